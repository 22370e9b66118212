"""Intensity normalisation of images.

Local contrast (Mecheter et al. 2020 and 2023, Preprocessing) and robust z-score (Islam and Tabassum 2025,
Eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mrseg._checks import choice, error
from mrseg.data.bands import Bands, shared, window_matrix

VARIANTS = ("jarrett", "fileexchange", "pinto")
_SLICES = 16  # that are normalised together: 64 bytes side by side where slices lie along the last axis
_VOXELS = 1 << 14  # that are standardised together: they stay in the processor's cache
_SAMPLE = 1 << 14  # values that bracket a quantile, and how many of them to each side
_MARGIN = 1 << 8


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
    window = lcn_window(variant, sigma)
    image, _, _ = _finite(image)
    if image.ndim != 3 or not -3 <= axis < 3:
        raise error("lcn takes an image (x, y, z) and an axis of it.", f"shape {image.shape}, axis {axis}")
    slices = np.moveaxis(image, axis, 0)
    result = np.empty_like(image)
    turned = np.moveaxis(result, axis, 0)
    rows, columns = (window_matrix(window, size) for size in slices.shape[1:])
    # Without a floor under the divisor, a mean that is off by its last digit would become 1.
    exact = np.float64 if variant == "fileexchange" else np.float32
    bands = [[Bands.of(matrix, dtype) for matrix in (rows, columns)] for dtype in (exact, np.float32)]

    def normalise(first: int) -> None:
        part = slices[first : first + _SLICES]
        some = np.empty(part.shape, np.float32)  # (n, x, y), contiguous
        for x in range(part.shape[1]):  # row by row: what lies side by side is read once
            some[:, x] = part[:, x]
        for one in some:
            _normalise_slice(one, variant, *bands)
        turned[first : first + _SLICES] = some

    shared(normalise, range(0, len(slices), _SLICES))
    return result


def lcn_window(variant: str, sigma: float) -> np.ndarray:
    """Weights of the window of `lcn` along one axis, symmetric and of sum 1.

    Raises:
        InputError: an unknown variant, a sigma that is not positive.
    """
    choice("variant", variant, VARIANTS)
    if not sigma > 0:
        raise error("sigma is a positive number of voxels.", sigma)
    if variant == "pinto":
        return np.full(3, 1 / 3)
    radius = math.ceil(sigma * _CUT_AT_SIGMA[variant])
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return window / window.sum()


def _normalise_slice(image: np.ndarray, variant: str, exact: list[Bands], fast: list[Bands]) -> None:
    """Normalises a contiguous slice (x, y) float32 in its place."""
    image -= image[0, 0]  # most often air: what is constant leaves exactly 0, and an offset no error
    wide = image.astype(exact[0].dtype)
    other = np.empty_like(wide)
    exact[0].on_rows(wide, other)
    exact[1].on_columns(other, wide)
    spare = wide.astype(np.float32, copy=False)
    np.subtract(image, spare, out=image)
    squares = np.square(image)
    fast[0].on_rows(squares, spare)
    fast[1].on_columns(spare, squares)
    divisor = np.sqrt(squares, out=squares)
    if variant == "jarrett":
        floor = np.float32(divisor.mean(dtype=np.float64))
        # A constant slice has neither deviation nor floor, and is 0 already.
        np.maximum(divisor, floor if floor > 0 else np.float32(1), out=divisor)
    elif variant == "fileexchange":
        divisor += np.float32(1e-8)
    else:
        np.multiply(divisor, 3, out=divisor)  # L2 norm over 9 pixels = 3 * root mean square
        np.maximum(divisor, 1, out=divisor)
    np.divide(image, divisor, out=image)


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
    image, least, most = _finite(image)
    foreground = image > 0
    values = image[foreground]
    if values.size == 0 or least < 0:
        raise error(
            "quantile_zscore takes an image that is 0 in the background and positive elsewhere.",
            f"values from {least:g} to {most:g}" if image.size else "an empty array",
            "Clip at 0 first, or use another normalization.",
        )
    lower, upper = (_bracketed(values, share) for share in (0.25, 0.75))
    # The outermost values of the middle half: the quartiles themselves, or the next inside.
    low, high = lower[1] if lower[2] else lower[0], upper[0]
    count, mean, std = _moments(values, low, high)
    if low == high:
        raise error(
            "quantile_zscore takes an image whose foreground varies.",
            f"{count} of {values.size} positive voxels equal to {low:g}",
            "Check that this is an image, not a mask.",
        )
    # The mean as a sum of two float32: values far from 0 keep their differences.
    coarse = np.float32(mean)
    for some in _chunks(values):
        some -= coarse
        some -= np.float32(mean - coarse)
        some *= np.float32(1 / std)
    result = np.zeros(image.shape, np.float32)
    result[foreground] = values
    return result


def _chunks(flat: np.ndarray) -> list[np.ndarray]:
    """Pieces of an array (n,) that stay in the processor's cache."""
    return [flat[first : first + _VOXELS] for first in range(0, flat.size, _VOXELS)]


def _moments(values: np.ndarray, low: float, high: float) -> tuple[int, float, float]:
    """Number, mean and (population) deviation of those values in [low, high], which are float32 both."""
    # Values outside are clipped, and what they add is taken off again: faster than to pick the others out.
    centre = low  # near all of them, so that no digit is lost
    below = above = 0
    total = squares = 0.0
    for some in _chunks(values):
        below += int(np.count_nonzero(some < low))
        above += int(np.count_nonzero(some > high))
        apart = np.subtract(np.clip(some, low, high), centre, dtype=np.float64)
        total += float(apart.sum())
        squares += float(np.square(apart, out=apart).sum())
    reach, count = high - centre, values.size - below - above
    mean = (total - above * reach) / count
    return count, centre + mean, math.sqrt(max(0.0, (squares - above * reach**2) / count - mean**2))


def quantiles(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Quantiles with linear interpolation, as ``numpy.quantile`` gives them, of many finite values.

    A sample brackets each quantile; what lies in the bracket is counted and only this is sorted.

    Args:
        values: (n,) finite, at least one.
        shares: in [0, 1], 0.25 for the lower quartile.
    """
    found = (_bracketed(values, share) for share in shares)
    return [one + (next_one - one) * part for one, next_one, part in found]


def _bracketed(values: np.ndarray, share: float) -> tuple[float, float, float]:
    """The two values that a quantile lies between, and which part of the way it lies, in [0, 1)."""
    rank = share * (values.size - 1)
    part = rank - int(rank)
    sample = np.sort(values[:: max(1, values.size // _SAMPLE)])
    place = int(share * (len(sample) - 1))
    low, high = sample[max(0, place - _MARGIN)], sample[min(len(sample) - 1, place + _MARGIN)]
    below = values < low
    # np.compress: a mask as an index costs several times as much where it changes often
    inside = np.sort(np.compress((values <= high) ^ below, values))
    at = int(rank) - int(np.count_nonzero(below))
    if not 0 <= at < len(inside) - 1:  # a sample that misleads, or the very end
        inside, at = np.sort(values), int(rank)
    return float(inside[at]), float(inside[min(at + 1, len(inside) - 1)]), part


def min_max(image: np.ndarray) -> np.ndarray:
    """Maps the range of the image onto [0, 1].

    Args:
        image: array of any shape, finite and not constant.

    Returns:
        float32 array of the same shape with minimum 0 and maximum 1.

    Raises:
        InputError: NaN or infinite voxels, or a constant image.
    """
    image, low, high = _finite(image)
    if image.size == 0 or low == high:
        raise error("min_max takes an image that is not constant.", "a constant or empty image")
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
    image, _, _ = _finite(image)
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


def _finite(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The image as float32, its lowest and its highest value (NaN if it is empty)."""
    image = np.asarray(image, dtype=np.float32)
    if not image.size:
        return image, math.nan, math.nan
    # NaN reaches the minimum, infinity one of the two: faster than to look at every voxel.
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise error(
            "An image to normalise has finite voxels.",
            f"{np.count_nonzero(~np.isfinite(image))} NaN or infinite voxels",
            "Replace them first: 0 outside an MR image's field of view.",
        )
    return image, low, high
