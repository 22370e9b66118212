"""Intensity normalisation of images.

Local contrast (Mecheter et al. 2020 and 2023, Preprocessing) and robust z-score (Islam and Tabassum 2025,
Eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from mrseg._checks import choice, error

_VARIANTS = ("jarrett", "fileexchange", "pinto")


def lcn(image: np.ndarray, *, sigma: float = 4.0, variant: str = "jarrett", axis: int = 2) -> np.ndarray:
    """Local contrast normalisation, slice by slice: subtracts the local mean, divides by the local deviation.

    With ``w*`` for the window average in the slice and ``v = x - w*x``:

    - ``"jarrett"``: ``v / max(c, s)``, ``s = sqrt(w*v^2)``, the floor c being the mean of s over the slice.
      The floor keeps noise in the air near 0. Gaussian window cut at 2 sigma (17x17 for sigma 4).
    - ``"fileexchange"``: ``v / s`` without a floor. Gaussian window cut at 1.645 sigma (15x15 for sigma 4).
    - ``"pinto"``: ``v / max(1, n)``, n the L2 norm of v in a 3x3 box; ``sigma`` has no meaning here. The
      result depends on the intensity unit.

    The window is mirrored at the slice's border (``d c b a | a b c d | d c b a``).

    Args:
        image: array (x, y, z) of finite values, any unit.
        sigma: standard deviation of the window in voxels.
        variant: "jarrett", "fileexchange" or "pinto".
        axis: the axis across the slices; 2 is axial in canonical orientation.

    Returns:
        float32 array of the same shape. A constant slice becomes 0.

    Raises:
        InputError: NaN or infinite voxels, another rank, a sigma that is not positive.

    Deviation:
        Mecheter et al. name local contrast normalisation without a formula; variant, window and border are
        choices of this library.

    Reference:
        Jarrett et al. 2009 (ICCV), section 2.1, for one channel; G. Xiong, localnormalize.m (MATLAB File
        Exchange); Pinto et al. 2008 (PLoS Computational Biology 4:e27).
    """
    choice("variant", variant, _VARIANTS)
    if not sigma > 0:
        raise error("sigma is a positive number of voxels.", sigma)
    image = _finite(image)
    if image.ndim != 3 or not -3 <= axis < 3:
        raise error("lcn takes an image (x, y, z) and an axis of it.", f"shape {image.shape}, axis {axis}")
    in_plane = [a for a in range(3) if a != axis % 3]
    window = _box(3) if variant == "pinto" else _gaussian(sigma, _CUT_AT_SIGMA[variant])

    def local_average(values: np.ndarray) -> np.ndarray:
        for a in in_plane:
            values = ndimage.correlate1d(values, window, axis=a, mode="reflect")
        return values

    centred = image - local_average(image)
    deviation = np.sqrt(local_average(np.square(centred)))
    if variant == "jarrett":
        floor = deviation.mean(axis=tuple(in_plane), keepdims=True, dtype=np.float64).astype(np.float32)
        divisor = np.maximum(deviation, floor)
        # A constant slice has neither deviation nor floor, and is 0 already.
        divisor[divisor == 0] = 1
    elif variant == "fileexchange":
        divisor = deviation + np.float32(1e-8)
    else:
        divisor = np.maximum(3 * deviation, 1)  # L2 norm over 9 pixels = 3 * root mean square
    return np.divide(centred, divisor, out=centred)


def quantile_zscore(image: np.ndarray) -> np.ndarray:
    """Standardises the foreground by the mean and deviation of the middle half of its intensities.

    With q25 and q75 the quartiles of the positive voxels, and mean and std (population) those of the positive
    voxels in [q25, q75]: ``(x - mean) / std`` where x > 0; the background stays 0.

    Args:
        image: array of any shape, finite, 0 in the background (skull-stripped) and positive elsewhere.

    Returns:
        float32 array of the same shape. Foreground near the mean is close to 0, as the background is.

    Raises:
        InputError: NaN or infinite voxels, negative voxels, no positive voxel, or a foreground whose middle
            half is constant.

    Reference:
        Islam and Tabassum 2025, Preprocessing, Eq. 1.
    """
    image = _finite(image)
    foreground = image > 0
    values = image[foreground]
    if values.size == 0 or image.min() < 0:
        raise error(
            "quantile_zscore takes an image that is 0 in the background and positive elsewhere.",
            f"values from {image.min():g} to {image.max():g}" if image.size else "an empty array",
            "Clip at 0 first, or use another normalization.",
        )
    lower, upper = np.percentile(values, (25, 75))
    middle = values[(values >= lower) & (values <= upper)]
    mean, std = middle.mean(dtype=np.float64), middle.std(dtype=np.float64)
    if std == 0:
        raise error(
            "quantile_zscore takes an image whose foreground varies.",
            f"{middle.size} of {values.size} positive voxels equal to {mean:g}",
            "Check that this is an image, not a mask.",
        )
    # In float64 up to the last step: values far from 0 keep their differences.
    return np.where(foreground, (image - mean) / std, 0).astype(np.float32)


def min_max(image: np.ndarray) -> np.ndarray:
    """Maps the range of the image onto [0, 1].

    Args:
        image: array of any shape, finite and not constant.

    Returns:
        float32 array of the same shape with minimum 0 and maximum 1.

    Raises:
        InputError: NaN or infinite voxels, or a constant image.
    """
    image = _finite(image)
    if image.size == 0 or image.min() == image.max():
        raise error("min_max takes an image that is not constant.", "a constant or empty image")
    low, high = float(image.min()), float(image.max())
    return ((image.astype(np.float64) - low) / (high - low)).astype(np.float32)


def histogram_equalization(image: np.ndarray) -> np.ndarray:
    """Spreads the intensities of the whole volume evenly over 0 to 255.

    ``round(255 * (cdf(x) - cdf_min) / (N - cdf_min))`` with cdf(x) the number of voxels up to intensity x,
    cdf_min that of the lowest intensity and N that of all: the background goes to 0 and the rest spreads.

    Args:
        image: array of any shape, finite and not constant; every distinct intensity counts as a level.

    Returns:
        float32 array of whole numbers from 0 to 255, of the same shape.

    Raises:
        InputError: NaN or infinite voxels, or a constant image.

    Reference:
        Xu, Geraud, Bloch 2017, section 2.1 (named there without a formula; this is the textbook's).
    """
    image = _finite(image)
    _, level, count = np.unique(image, return_inverse=True, return_counts=True)
    if len(count) < 2:
        raise error("histogram_equalization takes an image that is not constant.", "a constant image")
    up_to = np.cumsum(count)
    spread = np.round(255.0 * (up_to - up_to[0]) / (image.size - up_to[0]))
    return spread.astype(np.float32)[level].reshape(image.shape)


#: Name in recipes -> function of an image.
NORMALIZATIONS: dict[str, Callable[..., np.ndarray]] = {
    "lcn": lcn,
    "quantile_zscore": quantile_zscore,
    "min_max": min_max,
    "histogram_equalization": histogram_equalization,
}

# Where the Gaussian window ends, in sigma: 8 voxels of sigma 4, and the 5 % tail (norminv(0.95)).
_CUT_AT_SIGMA = {"jarrett": 2.0, "fileexchange": 1.645}


def _gaussian(sigma: float, cut_at_sigma: float) -> np.ndarray:
    radius = math.ceil(sigma * cut_at_sigma)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return window / window.sum()


def _box(size: int) -> np.ndarray:
    return np.full(size, 1 / size)


def _finite(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, dtype=np.float32)
    broken = np.count_nonzero(~np.isfinite(image))
    if broken:
        raise error(
            "An image to normalise has finite voxels.",
            f"{broken} NaN or infinite voxels",
            "Replace them first: 0 outside an MR image's field of view.",
        )
    return image
