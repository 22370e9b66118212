"""What the baselines share: Otsu's threshold, holes, the largest region, the head, the brain's ellipse."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mrseg._checks import error

#: A head on less than this share of the slice is none: nothing is segmented there.
MIN_HEAD_AREA = 0.05

_SMALLEST_REGION = 0.005  # of the slice; what is smaller is noise
_BINS = 256  # of the histogram, over the range of the values


def otsu_threshold(values: np.ndarray) -> float:
    """Returns the threshold that maximises the variance between the values at or below it and those above.

    Args:
        values: finite numbers, any shape.

    Returns:
        The upper edge of the last bin of the darker class; the maximum if all values are equal or none is
        given (0).
    """
    values = np.asarray(values, np.float64).ravel()
    if not values.size or values.min() == values.max():
        return float(values[0]) if values.size else 0.0
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * centres)
    above = counts.sum() - below
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1:-1][between.argmax()])


def check_slice(image: np.ndarray) -> np.ndarray:
    """Returns the slice as float64 (x, y), or raises an error."""
    image = np.asarray(image)
    if image.ndim != 2:
        raise error(
            "A baseline takes one slice (x, y).",
            f"shape {image.shape}",
            "mrseg.baselines.brain_mask_volume runs over the slices of a volume.",
        )
    image = image.astype(np.float64)
    if not np.isfinite(image).all():
        raise error("A slice has finite pixels.", f"{np.count_nonzero(~np.isfinite(image))} NaN or infinite")
    return image


def largest_region(mask: np.ndarray) -> np.ndarray:
    """Returns the largest 4-connected region of a mask (x, y), the first of equals; empty if none."""
    regions, count = ndimage.label(mask)
    if count < 2:
        return mask.astype(bool)
    return regions == np.bincount(regions.ravel())[1:].argmax() + 1


def filled(mask: np.ndarray) -> np.ndarray:
    """Returns the mask (x, y) with its holes: background that no 4-connected path joins to the border."""
    regions, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, bool)
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        outside[edge] = True
    outside[0] = False  # 0 is the mask itself
    return ~outside[regions]


def head_region(image: np.ndarray) -> np.ndarray:
    """Returns the head of a slice: the convex hull of its bright regions.

    Bright is above Otsu's threshold of the square root of the values, which keeps dark scalp. Regions smaller
    than 0.5 % of the slice are taken for noise. The hull, because a scalp that is open somewhere (at a sinus,
    or where it is dark) leaves the brain alone as the largest region.

    Args:
        image: slice (x, y), finite.

    Returns:
        bool array of the same shape; empty below ``MIN_HEAD_AREA``.
    """
    root = np.sqrt(image - image.min())
    regions, count = ndimage.label(root > otsu_threshold(root))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    large = sizes >= _SMALLEST_REGION * image.size
    large[0] = False  # 0 is the background
    bright = large[regions]
    if not bright.any():
        return bright
    head = convex_hull(bright)
    return head if head.mean() >= MIN_HEAD_AREA else np.zeros_like(head)


def convex_hull(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels whose centres lie in the convex hull of the mask's; the mask if it has one row."""
    x = np.arange(mask.shape[0])
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    if len(rows) < 2:
        return mask
    low = np.interp(x, *_lower_chain(rows, first))
    high = -np.interp(x, *_lower_chain(rows, -last))
    y = np.arange(mask.shape[1])
    # Rounding must not cost a pixel that lies on the hull.
    hull = (y >= low[:, None] - 1e-9) & (y <= high[:, None] + 1e-9)
    hull[: rows[0]] = hull[rows[-1] + 1 :] = False
    return hull


def _lower_chain(x: np.ndarray, y: np.ndarray) -> tuple[list[int], list[int]]:
    """The corners of the largest convex function at or below the points (Andrew's monotone chain)."""
    chain: list[tuple[int, int]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(chain) > 1 and _right_turn(chain[-2], chain[-1], point):
            chain.pop()
        chain.append(point)
    return [p[0] for p in chain], [p[1] for p in chain]


def _right_turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


def brain_ellipse(head: np.ndarray, size: float) -> np.ndarray:
    """Returns the ellipse inside the head's bounding box: AABL, the approximate anatomical brain location.

    Args:
        head: mask (x, y), not empty.
        size: semi-axes as a share of the box's half sides.

    Returns:
        bool array of the same shape.
    """
    (centre_x, half_x), (centre_y, half_y) = box(head)
    x, y = np.ogrid[: head.shape[0], : head.shape[1]]
    return ((x - centre_x) / (size * half_x)) ** 2 + ((y - centre_y) / (size * half_y)) ** 2 <= 1


def box(mask: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns (centre, half the side) of a mask's bounding box along each axis, in pixels."""
    sides = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        sides.append(((inside[0] + inside[-1]) / 2, (inside[-1] - inside[0] + 1) / 2))
    return sides[0], sides[1]
