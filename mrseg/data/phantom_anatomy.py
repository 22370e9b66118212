"""Tissue fractions of a voxel anywhere in a synthetic head.

The head is defined analytically in world millimetres and has no grid of its own: MR and CT evaluate the same
subject at their own voxel positions.
"""

from __future__ import annotations

import numpy as np

from mrseg.data.phantom_brain import paint_brain
from mrseg.data.phantom_fields import soft
from mrseg.data.phantom_skull import (
    cavity_depth,
    paint_face,
    paint_scalp,
    paint_skull,
    scalp_depth,
    skull_thickness,
)
from mrseg.data.phantom_subject import AIR, CSF, TISSUES, Subject, take


def tissue_fractions(subject: Subject, points_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Shares of every tissue in cubes centred at world points.

    Borders are blurred analytically over ``width_mm`` along their normal, which is the partial volume of a
    flat border; sheets thinner than the cube keep their volume.

    Args:
        subject: whose head.
        points_mm: (3, n) world coordinates.
        width_mm: edge of the cube in the frame of the average adult head, positive.

    Returns:
        float32 (tissues, n), each column summing to 1; rows in the order of ``TISSUES``.
    """
    at = subject.canonical(points_mm)
    fractions = np.zeros((len(TISSUES), len(at[0])), np.float32)
    fractions[AIR] = 1.0
    cavity = cavity_depth(subject, at)
    thickness = skull_thickness(subject, at)
    scalp = scalp_depth(subject, at, cavity + thickness)

    head = np.flatnonzero(scalp > -width_mm)
    at, cavity, thickness, scalp = take(at, head), cavity[head], thickness[head], scalp[head]
    part = fractions[:, head]
    paint_scalp(part, at, scalp, cavity + thickness, subject, width_mm)
    paint_skull(part, at, cavity, thickness, subject, width_mm)
    paint_face(part, at, scalp, subject, width_mm)

    inner = np.flatnonzero(cavity > -width_mm)
    contents = np.zeros((len(TISSUES), len(inner)), np.float32)
    contents[CSF] = 1.0
    paint_brain(contents, take(at, inner), cavity[inner], subject, width_mm)
    share = soft(cavity[inner], width_mm)
    part[:, inner] = part[:, inner] * (1.0 - share) + contents * share
    fractions[:, head] = part
    return fractions
