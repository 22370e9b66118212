"""Dense conditional random field on the softmax of a slice, by mean field (mecheter2020, Table II)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrseg._checks import choice, error

NORMALIZATIONS = ("symmetric", "none")

#: Windows reach this many standard deviations of the wider Gaussian.
_REACH = 3.0
_SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class _Kernel:
    """Two Gaussians of distance, one of them also of the difference in grey value; px and grey values."""

    distance_px: float
    grey: float
    smooth_px: float
    weights: tuple[float, float]

    def __call__(self, image: np.ndarray, dx: int, dy: int) -> np.ndarray:
        """Kernel between every pixel p and p + (dx, dy), where both are in the slice."""
        here, there = _pair(image, dx, dy)
        square = dx * dx + dy * dy
        near = self.weights[1] * math.exp(-square / (2 * self.smooth_px**2))
        alike = self.weights[0] * math.exp(-square / (2 * self.distance_px**2))
        if self.grey == 0:
            return np.full(here.shape, alike + near, np.float32)
        difference = here - there
        difference *= difference
        difference *= np.float32(-0.5 / self.grey**2)
        kernel = np.exp(difference, out=difference)
        kernel *= np.float32(alike)
        kernel += np.float32(near)
        return kernel


def dense_crf(
    probabilities: np.ndarray,
    image: np.ndarray,
    *,
    iterations: int = 5,
    distance_px: float = 10.0,
    grey_share: float = 0.1,
    smooth_px: float = 3.0,
    weights: tuple[float, float] = (4.0, 3.0),
    normalization: str = "symmetric",
) -> np.ndarray:
    """Sharpens class probabilities: near pixels of like grey value attract one another's label (Potts).

    Mean field with unary ``-log p`` and, between pixels at distance d with grey values that differ by D,
    ``w1 exp(-d^2 / 2a^2 - D^2 / 2b^2) + w2 exp(-d^2 / 2g^2)``, summed over the pixels within 3a.

    Args:
        probabilities: (x, y, classes) of one slice, from 0; need not sum to 1.
        image: (x, y), the slice they were made from, finite.
        iterations: of the mean field; 0 returns the probabilities normalised.
        distance_px: a, in pixels.
        grey_share: b as a share of the slice's range of values; a constant slice has no grey differences.
        smooth_px: g, in pixels.
        weights: (w1, w2).
        normalization: ``symmetric`` divides the kernel of two pixels by the root of both their sums, so that
            a neighbourhood's vote weighs the same whatever the window; ``none`` takes the formula as it
            stands.

    Returns:
        float32 (x, y, classes) that sums to 1.

    Raises:
        InputError: shapes that do not agree, negative or NaN probabilities, an option out of range.

    Deviation:
        The paper says "conditional random field" alone. Kernel, widths, weights and five iterations are
        choices, and so is the symmetric normalisation: by the bare formula several hundred neighbours
        outvote every network, and thin bone disappears. Neighbours beyond 3a count nothing.

    Reference:
        Mecheter et al. 2020, Table II, "SegNet + CRF"; Kraehenbuehl and Koltun 2011, NIPS (the formula in
        common use; not read again).
    """
    probabilities, image = _checked(probabilities, image)
    choice("normalization", normalization, NORMALIZATIONS)
    widths = distance_px, grey_share, smooth_px
    if iterations < 0 or min(widths) <= 0 or min(weights) < 0 or not np.isfinite([*widths, *weights]).all():
        raise error(
            "iterations and weights are from 0, distance_px, grey_share and smooth_px above 0.",
            (iterations, *weights, *widths),
        )
    kernel = _Kernel(distance_px, grey_share * float(np.ptp(image)), smooth_px, weights)
    clipped = np.maximum(probabilities, _SMALLEST_PROBABILITY)
    unary = -np.log(clipped / clipped.sum(axis=0, keepdims=True))
    belief = _softmax(-unary)
    if iterations == 0:
        return np.ascontiguousarray(np.moveaxis(belief, 0, -1))
    scale = np.ones(image.shape, np.float32)
    if normalization == "symmetric":
        total = _message(np.ones((1, *image.shape), np.float32), image, kernel)[0]
        # A pixel without a neighbour (a slice of one pixel, weights of 0) gets no message at all.
        scale = np.where(total > 0, 1 / np.sqrt(np.where(total > 0, total, 1)), 0).astype(np.float32)
    for _ in range(iterations):
        # Potts: all labels but one's own cost the same, so only the agreement is needed.
        belief = _softmax(scale * _message(scale * belief, image, kernel) - unary)
    return np.ascontiguousarray(np.moveaxis(belief, 0, -1))


def dense_crf_volume(
    probabilities: np.ndarray, image: np.ndarray, *, slice_axis: int = 2, **options: Any
) -> np.ndarray:
    """Runs ``dense_crf`` over the slices of a volume, each for itself.

    Args:
        probabilities: (x, y, z, classes).
        image: (x, y, z) on the same grid.
        slice_axis: axis of the slices, 0 to 2.
        **options: of ``dense_crf``.

    Returns:
        float32 (x, y, z, classes).

    Raises:
        InputError: as ``dense_crf``.
    """
    choice("slice_axis", slice_axis, (0, 1, 2))
    probabilities, image = np.asarray(probabilities), np.asarray(image)
    if probabilities.ndim != 4 or probabilities.shape[:3] != image.shape:
        raise error(
            "Probabilities (x, y, z, classes) lie on the grid of the image (x, y, z).",
            f"shapes {probabilities.shape} and {image.shape}",
        )
    refined = np.empty(probabilities.shape, np.float32)
    for index in range(image.shape[slice_axis]):
        at = (slice(None),) * slice_axis + (index,)
        refined[at] = dense_crf(probabilities[at], image[at], **options)
    return refined


def _checked(probabilities: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities as (classes, x, y), each class whole in memory, and the image; float32."""
    probabilities, image = np.asarray(probabilities, np.float32), np.asarray(image, np.float32)
    if image.ndim != 2 or probabilities.ndim != 3 or probabilities.shape[:2] != image.shape:
        raise error(
            "Probabilities (x, y, classes) lie on the pixels of the slice (x, y).",
            f"shapes {probabilities.shape} and {image.shape}",
            "dense_crf_volume runs over the slices of a volume.",
        )
    if not image.size or not np.isfinite(image).all():
        raise error("A slice has finite pixels.", "NaN, infinite or no pixels")
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise error("Probabilities are finite, from 0.", f"a minimum of {probabilities.min()}")
    return np.ascontiguousarray(np.moveaxis(probabilities, -1, 0)), image


def _message(values: np.ndarray, image: np.ndarray, kernel: _Kernel) -> np.ndarray:
    """Sum over all q in the window, but p itself, of kernel(p, q) values(q); values (channels, x, y)."""
    total = np.zeros_like(values)
    for dx, dy in _offsets(image.shape, kernel):
        weight = kernel(image, dx, dy)
        to_here, to_there = _pair(total, dx, dy)
        from_here, from_there = _pair(values, dx, dy)
        to_here += weight * from_there
        to_there += weight * from_here
    return total


def _offsets(shape: tuple[int, ...], kernel: _Kernel) -> Iterator[tuple[int, int]]:
    """One of each two opposite offsets within the window."""
    radius = _REACH * max(kernel.distance_px, kernel.smooth_px)
    reach = math.floor(radius)
    for dx in range(min(reach, shape[0] - 1) + 1):
        for dy in range(-min(reach, shape[1] - 1), min(reach, shape[1] - 1) + 1):
            if (dx > 0 or dy > 0) and dx * dx + dy * dy <= radius * radius:
                yield dx, dy


def _pair(array: np.ndarray, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the pixels p and of p + (dx, dy), in one order; dx is not negative."""
    x, y = array.shape[-2:]
    here_y, there_y = (slice(0, y - dy), slice(dy, y)) if dy >= 0 else (slice(-dy, y), slice(0, y + dy))
    return array[..., : x - dx, here_y], array[..., dx:, there_y]


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=0, keepdims=True))
    return scores / scores.sum(axis=0, keepdims=True)
