"""N4 correction of the bias field, the slow change of brightness that coils leave on an MR image (SimpleITK).

None of the five papers corrects it; the recipes leave it out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from mrseg._checks import error, positive_ints
from mrseg.data.geometry import head_mask

_LOGGER = logging.getLogger(__name__)
#: Iterations at every resolution of the field, coarse to fine: those of SimpleITK.
ITERATIONS = (50, 50, 50, 50)


def bias_field(
    image: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    shrink: int = 4,
    iterations: Sequence[int] = ITERATIONS,
) -> np.ndarray:
    """Estimates the bias field of an MR image by N4.

    Args:
        image: array (x, y, z), finite, from 0.
        mask: (x, y, z) bool, where the field is estimated; None takes the head (`head_mask`). Voxels of 0
            never count.
        spacing_mm: voxel sizes.
        shrink: the estimate uses every n-th voxel along each axis, on axes of at least 8 n voxels.
        iterations: at most so many at each resolution; their number is that of the resolutions.

    Returns:
        float32 array (x, y, z), smooth and positive, with mean 1 over the mask.

    Raises:
        InputError: NaN, infinite or negative voxels, a constant image, a mask of another shape or without a
            positive voxel.

    Note:
        The time is logged (INFO): about 4 s for 192x224x96 voxels on one core. Most of it is the field at the
        scan's resolution; a larger ``shrink`` saves little more.

    Reference:
        Tustison et al. 2010, N4ITK: improved N3 bias correction (IEEE Trans. Med. Imaging 29:1310).
    """
    image, inside = _checked(image, mask)
    (shrink,) = positive_ints("shrink", (shrink,), 1)
    started = time.perf_counter()
    whole, where = (sitk.GetImageFromArray(array.T) for array in (image, inside.astype(np.uint8)))
    for volume in (whole, where):
        volume.SetSpacing([float(size) for size in spacing_mm])
    factors = [shrink if size >= 8 * shrink else 1 for size in image.shape]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    # More threads add in an order of their own: one repeats bit for bit.
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(list(positive_ints("iterations", iterations)))
    n4.Execute(sitk.Shrink(whole, factors), sitk.Shrink(where, factors))
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).T
    field = np.exp(np.ascontiguousarray(log_field, dtype=np.float32))
    field /= field[inside].mean(dtype=np.float64)
    _LOGGER.info(
        "N4 of %s voxels took %.1f s.", "x".join(map(str, image.shape)), time.perf_counter() - started
    )
    return field


def bias_correction(
    image: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    shrink: int = 4,
    iterations: Sequence[int] = ITERATIONS,
) -> np.ndarray:
    """Divides a whole volume by its bias field; arguments, errors and time as for `bias_field`.

    Returns:
        float32 array (x, y, z); 0 stays 0.

    Example:
        >>> image, affine = read_volume("t1.nii.gz")
        >>> corrected = bias_correction(image, spacing_mm=voxel_sizes(affine))
    """
    field = bias_field(image, mask, spacing_mm=spacing_mm, shrink=shrink, iterations=iterations)
    return np.asarray(image, dtype=np.float32) / field


def _checked(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 3 or not image.size or not np.isfinite(image).all() or image.min() < 0:
        low = f"values from {image.min():g}" if image.size else "no voxels"
        raise error("Bias correction takes finite intensities (x, y, z) from 0.", f"{image.shape}, {low}")
    if mask is None:
        mask = head_mask(image)
    mask = np.asarray(mask)
    if mask.shape != image.shape:
        raise error("The mask lies on the image's grid.", f"{mask.shape} and {image.shape}")
    inside = (mask != 0) & (image > 0)
    if not inside.any():
        raise error("The mask holds voxels above 0.", "none")
    return image, inside
