"""Stacks of slices that lie where each slice's own header puts them: gantry tilt, unequal steps, gaps."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np

from mrseg._checks import error
from mrseg.data.geometry import Volume, check_affine

_LOGGER = logging.getLogger(__name__)
_RESAMPLE = "Resample them: mrseg convert --resample-spacing, or mrseg.data.resample_slices."


@dataclass(frozen=True)
class Slices:
    """Parallel slices of one size, in order along their normal.

    Voxel (i, j) of slice k lies at ``origins_mm[k] + axes_mm @ (i, j)``.

    Attributes:
        name: of the folder, for messages.
        array: float32 (x, y, n).
        axes_mm: (3, 2): the step from voxel to voxel along x and along y, RAS+ mm.
        origins_mm: (n, 3): voxel (0, 0) of every slice, RAS+ mm.
        padding: value of voxels that were not measured (outside a CT's field of view); None if not known.
    """

    name: str
    array: np.ndarray
    axes_mm: np.ndarray
    origins_mm: np.ndarray
    padding: float | None = None


def steps_mm(origins_mm: np.ndarray) -> np.ndarray:
    """Returns the n - 1 distances from slice to slice."""
    return np.linalg.norm(np.diff(origins_mm, axis=0), axis=1)


def describe_steps(origins_mm: np.ndarray) -> str:
    """The steps in words: ``13 of 4.22 mm, 1 of 1.14 mm; ...``, with what looks like missing slices."""
    steps = np.round(steps_mm(origins_mm), 3)
    counts = Counter(steps.tolist())
    words = ", ".join(f"{count} of {step:g} mm" for step, count in list(counts.items())[:6])
    words += ", ..." if len(counts) > 6 else ""
    gaps = [
        f"{missing} between slices {place + 1} and {place + 2}"
        for place, missing in enumerate(_missing(steps))
        if missing
    ]
    return f"{words}; missing, it seems: {', '.join(gaps[:5])}" if gaps else words


def _missing(steps: np.ndarray) -> list[int]:
    """How many slices seem to be missing in each step: it is a multiple of the steps before and after."""
    missing = []
    for place, step in enumerate(steps):
        beside = [steps[other] for other in (place - 1, place + 1) if 0 <= other < len(steps)]
        ratios = [step / other for other in beside if other > 0]
        whole = [round(ratio) for ratio in ratios if ratio > 1.5 and abs(ratio - round(ratio)) < 0.02]
        missing.append(min(whole) - 1 if whole and len(whole) == len(beside) else 0)
    return missing


def slices_affine(
    name: object, axes_mm: np.ndarray, origins_mm: np.ndarray, *, tolerance_mm: float = 0.01
) -> np.ndarray:
    """Returns the affine of slices at one distance, or raises an error with the distances there are.

    A gantry tilt makes the affine a sheared one, which is kept as it is.

    Args:
        name: of the folder, for the message.
        axes_mm: as in `Slices`.
        origins_mm: as in `Slices`, two slices or more.
        tolerance_mm: largest distance of a slice from where the affine puts it.
    """
    affine = np.eye(4)
    affine[:3, :2] = axes_mm
    affine[:3, 2] = (origins_mm[-1] - origins_mm[0]) / (len(origins_mm) - 1)
    affine[:3, 3] = origins_mm[0]
    expected = origins_mm[0] + np.arange(len(origins_mm))[:, None] * affine[:3, 2]
    off = float(np.linalg.norm(origins_mm - expected, axis=1).max())
    if off > tolerance_mm:
        raise error(
            f"{name}: slices lie at one distance, within {tolerance_mm:g} mm.",
            f"steps: {describe_steps(origins_mm)} (up to {off:.4g} mm off an even grid)",
            _RESAMPLE,
        )
    return check_affine(str(name), affine)


def stack_slices(slices: Slices, *, tolerance_mm: float = 0.01) -> Volume:
    """Returns the slices as a volume; no voxel is resampled.

    Args:
        slices: two or more, at one distance.
        tolerance_mm: largest accepted distance of a slice from where the affine puts it. A larger one is
            for positions that the scanner rounded: 0.05 for one decimal.

    Returns:
        The array (x, y, n) and the affine, RAS+ mm; sheared under a gantry tilt.

    Raises:
        InputError: unequal distances; the message lists them.
    """
    _at_least_two(slices)
    affine = slices_affine(slices.name, slices.axes_mm, slices.origins_mm, tolerance_mm=tolerance_mm)
    return slices.array, affine


def resample_slices(slices: Slices, spacing_mm: float | None = None, *, tolerance_mm: float = 0.01) -> Volume:
    """Returns slices of unequal distances as a volume of one distance.

    Values are interpolated linearly between the two neighbouring slices along the line through the slices'
    origins, at the same place in the slice; nothing is interpolated in plane, and a slice that lies on the
    new grid is kept as it is. Where one of the two is padding, the nearer one counts. Slices that seem to be
    missing are told in a warning.

    Args:
        slices: two or more, whose origins lie on a line.
        spacing_mm: distance of the new slices; None: the median of the steps.
        tolerance_mm: largest accepted distance of an origin from the line.

    Returns:
        float32 array (x, y, m) and affine, RAS+ mm. The first new slice is the first slice; the last new one
        lies less than a step before the last slice.

    Raises:
        InputError: slices beside the line, a distance that is not positive, a distance longer than the stack.

    Example:
        >>> slices = read_slices("ct_folder")                                          # doctest: +SKIP
        >>> ct_hu, affine = resample_slices(slices, spacing_mm=5.0)                    # doctest: +SKIP
    """
    _at_least_two(slices)
    origins = slices.origins_mm
    length = float(np.linalg.norm(origins[-1] - origins[0]))
    line = (origins[-1] - origins[0]) / length
    along = (origins - origins[0]) @ line
    off = float(np.linalg.norm(origins - origins[0] - along[:, None] * line, axis=1).max())
    if off > tolerance_mm or not (np.diff(along) > 0).all():
        raise error(
            f"{slices.name}: the slices' origins lie on one line, within {tolerance_mm:g} mm.",
            f"a slice {off:.4g} mm beside it",
            "Such a stack has no grid; reconstruct it on the scanner.",
        )
    step = float(np.median(np.diff(along)) if spacing_mm is None else spacing_mm)
    if not 0 < step <= length * (1 + 1e-9):
        raise error(f"spacing_mm is above 0 and at most the stack's length, {length:g} mm.", step)
    if any(_missing(np.diff(along))):
        _LOGGER.warning("%s: steps: %s; interpolated across.", slices.name, describe_steps(origins))
    # 1e-6 of a step: a length that divides evenly keeps its last slice.
    count = int(np.floor(length / step + 1e-6)) + 1
    affine = np.eye(4)
    affine[:3, :2] = slices.axes_mm
    affine[:3, 2] = step * line
    affine[:3, 3] = origins[0]
    wanted = np.arange(count) * step
    return _interpolated(slices, along, wanted), check_affine(slices.name, affine)


def _interpolated(slices: Slices, along: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    array = slices.array
    result = np.empty((*array.shape[:2], len(wanted)), np.float32)
    for place, distance in enumerate(wanted):
        above = int(np.clip(np.searchsorted(along, distance), 1, len(along) - 1))
        gap = along[above] - along[above - 1]
        weight = float(np.clip((distance - along[above - 1]) / gap, 0, 1))
        if min(weight, 1 - weight) * gap < 1e-6:  # a slice itself
            result[..., place] = array[..., above - 1 + round(weight)]
        else:
            lower, upper = array[..., above - 1], array[..., above]
            values = lower + weight * (upper - lower)  # equal values stay as they are
            if slices.padding is not None:
                padded = (lower == slices.padding) != (upper == slices.padding)
                values = np.where(padded, upper if weight > 0.5 else lower, values)
            result[..., place] = values
    return result


def _at_least_two(slices: Slices) -> None:
    if len(slices.origins_mm) < 2:
        raise error(f"{slices.name}: a stack has two slices or more.", len(slices.origins_mm))
