"""Synthetic slices for the baselines: a head as simple as it can be with everything that makes it hard."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def simple_head():
    """Maker of (slice, brain mask): scalp with a gap in the skull, bright lesion at the edge, ventricles."""

    def make(seed, noise):
        rng = np.random.default_rng(seed)
        x, y = np.mgrid[:128, :128] - 63.5 - rng.uniform(-3, 3, 2)[:, None, None]
        across, along = rng.uniform(42, 47), rng.uniform(50, 55)
        angle = np.arctan2(y / along, x / across)
        phases = rng.uniform(0, 2 * np.pi, 2)
        outline = 1 + 0.02 * np.sin(3 * angle + phases[0]) + 0.015 * np.sin(5 * angle + phases[1])
        radius = np.hypot(x / across, y / along) / outline
        image = np.zeros((128, 128))
        image[radius < 1.0] = 0.5  # scalp
        image[radius < 0.93] = 0.06  # skull
        gap, side = rng.uniform(-np.pi, np.pi, 2)
        image[(radius < 0.93) & (np.abs(np.angle(np.exp(1j * (angle - gap)))) < 0.12)] = 0.35
        brain = radius < 0.84
        image[brain] = (0.8 + 0.1 * np.sin(x / 5) * np.sin(y / 6))[brain]
        for ventricle in (-6, 6):
            image[np.hypot((x - ventricle) / 4, y / 14) < 1] = 1.4
        lesion = np.hypot(x - 0.68 * across * np.cos(side), y - 0.68 * along * np.sin(side)) < 8
        image[lesion & brain] = 1.3
        real, imaginary = noise * rng.standard_normal((2, 128, 128))
        return np.hypot(image + real, imaginary), brain

    return make
