"""Grids that cut a head out of a scan as the attenuation papers tell it.

Mecheter et al. 2020, section II.B (slices cropped to 256x256 without interpolation, end slices left out) and
Mecheter et al. 2023, section 3.2 (other resolutions to 300x300x48, then 256x256x48). `geometry.head_grid` is
this library's own way, with one interpolation for every scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel import affines

from mrseg._checks import error, positive_ints
from mrseg.data.geometry import Grid, Volume, head_mask

#: Pixels of a slice before the crop, for each that is left (mecheter2023, section 3.2).
_BEFORE_CROP = 300 / 256


def head_slices(mask: np.ndarray, min_pixels: float, count: int | None = None) -> tuple[int, int]:
    """First slice along z that shows the head, and the one after the last.

    Args:
        mask: (x, y, z) bool, the head.
        min_pixels: end slices with less head are dropped.
        count: so many contiguous slices in the middle of these; None keeps all.

    Raises:
        InputError: no slice has ``min_pixels`` of head, or fewer than ``count`` slices are left.
    """
    area = mask.sum(axis=(0, 1))
    kept = np.flatnonzero((area >= min_pixels) & (area > 0))
    if not kept.size:
        raise error(
            f"At least one slice shows the head on {min_pixels:.0f} pixels.",
            f"at most {area.max(initial=0)}",
            "Does the scan show a head? If so, lower min_head_area.",
        )
    first, end = int(kept[0]), int(kept[-1]) + 1
    if count is None:
        return first, end
    if end - first < count:
        raise error(
            f"{count} slices are cut from the middle of those that show the head.",
            f"{end - first} slices with the head",
            "Ask for fewer slices, or take the grid 'head', which spreads what is there.",
        )
    first += (end - first - count) // 2
    return first, first + count


def head_box_grid(volume: Volume, shape: Sequence[int] = (256, 256), *, min_head_area: float = 0.05) -> Grid:
    """Returns the window around the head on the scan's own voxels: nothing is interpolated.

    One window for the whole volume, centred on the bounding box of the head and moved back into the image
    where it sticks out; a slice smaller than the window lies in its middle, with 0 around.

    Args:
        volume: canonical volume (see ``to_canonical``).
        shape: pixels of the window; with a third number, so many slices from the middle of the head.
        min_head_area: smallest head area of an end slice that is kept, as a fraction of the window.

    Returns:
        ``(shape, affine)`` for ``resample``, which copies the voxels.

    Reference:
        Mecheter et al. 2020, section II.B; centre, 5 % and the middle slices are choices of this library.
    """
    size = positive_ints("shape", tuple(int(n) for n in shape), len(shape) if len(shape) in (2, 3) else 2)
    array, affine = volume
    mask = head_mask(array)
    count = size[2] if len(size) == 3 else None
    first, end = head_slices(mask, min_head_area * size[0] * size[1], count)
    low, high = _box(mask[:, :, first:end])
    start = [_window(int(low[a] + high[a] + 1), size[a], array.shape[a]) for a in range(2)]
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = affines.apply_affine(affine, [*start, first])
    return (size[0], size[1], end - first), moved


def head_resize_grid(
    volume: Volume, shape: Sequence[int] = (256, 256, 48), *, min_head_area: float = 0.05
) -> Grid:
    """Returns the window that is left when the scan is resized to 300x300x48 and its background cropped.

    The field of view gets 300x300 pixels in plane whatever its sides (a field of view that is not square is
    stretched), the slices that show the head are spread over 48, and a window of 256x256 of these pixels
    around the head is left. Both steps are one grid: the scan is interpolated once.

    Args:
        volume: canonical volume (see ``to_canonical``).
        shape: voxels that are left; the resized slice has 300/256 as many pixels along each side.
        min_head_area: smallest head area of an end slice that is kept, as a fraction of the window.

    Returns:
        ``(shape, affine)`` for ``resample``.

    Reference:
        Mecheter et al. 2023, section 3.2; that the second step is a crop is this library's reading.
    """
    x, y, z = positive_ints("shape", tuple(int(n) for n in shape), 3)
    array, affine = volume
    through = np.array([round(x * _BEFORE_CROP), round(y * _BEFORE_CROP)])
    step = np.array(array.shape[:2]) / through  # source voxels of a pixel
    mask = head_mask(array)
    first, end = head_slices(mask, min_head_area * x * y * step.prod())
    low, high = _box(mask[:, :, first:end])
    start = [
        _window(round((low[a] + high[a] + 1) / step[a]), size, through[a]) for a, size in enumerate((x, y))
    ]
    steps = np.array([*step, (end - first) / z])
    # The centre of pixel i lies at (i + 1/2) steps from the outer edge, which is voxel -1/2.
    origin = (np.array([*start, 0]) + 0.5) * steps - 0.5 + np.array([0, 0, first])
    moved = np.array(affine, dtype=np.float64)
    moved[:3, :3] *= steps
    moved[:3, 3] = affines.apply_affine(affine, origin)
    return (x, y, z), moved


def _box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest pixel of the mask's shadow along z, both inclusive."""
    shadow = np.any(mask, axis=2)
    along = [np.flatnonzero(shadow.any(axis=1)), np.flatnonzero(shadow.any(axis=0))]
    return np.array([found[0] for found in along]), np.array([found[-1] for found in along])


def _window(twice_centre: int, size: int, available: int) -> int:
    """First pixel of a window of ``size`` about a centre, inside 0 to ``available`` where it fits."""
    if available < size:
        return -((size - available) // 2)
    return min(max((twice_centre - size) // 2, 0), available - size)
