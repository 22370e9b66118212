"""Low-intensity extraction inside the approximate anatomical brain location (alkhimova2022, Table 1)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mrseg._checks import choice, error
from mrseg.baselines.regions import (
    brain_ellipse,
    check_slice,
    filled,
    head_region,
    largest_region,
    otsu_threshold,
)


def low_intensity_mask(
    image: np.ndarray,
    *,
    ellipse: float = 0.9,
    threshold: str = "median",
    fraction: float = 0.5,
    iterations: int = 2,
) -> np.ndarray:
    """Masks the brain of a T2*-weighted slice: what is not dark, inside an ellipse.

    1. Head: the convex hull of the bright regions. The ellipse lies in its bounding box.
    2. Pixels of the ellipse above the low threshold, filled.
    3. An opening cuts thin bridges to the scalp; the largest region is grown back by one pixel and filled.

    The ellipse bounds the result: brain outside it, and the outer part of a lesion at the border, is lost.

    Args:
        image: slice (x, y), finite. The brain must be brighter than the skull.
        ellipse: semi-axes as a share of the half sides of the head's bounding box, above 0, at most 1.
        threshold: ``median``: ``fraction`` times the median inside the ellipse; ``otsu``: Otsu's threshold of
            the pixels inside it.
        fraction: for ``median``, above 0 and below 1.
        iterations: of the opening with a cross, from 0.

    Returns:
        bool array of the same shape; empty where the head covers less than 5 % of the slice.

    Raises:
        InputError: not a slice, or an option outside its range.

    Deviation:
        The paper names the method and its ancestor (Alkhimova 2018), which was read in its abstract alone:
        the ellipse, its size, the threshold's rule and the opening are choices. CSF is not removed, since the
        paper's reference masks hold the whole brain.

    Reference:
        Alkhimova and Diumin 2022, Table 1; Alkhimova, "Automated detection of regions of interest for brain
        perfusion MR images", 2018 (abstract).
    """
    choice("threshold", threshold, ("median", "otsu"))
    if not 0 < ellipse <= 1 or not 0 < fraction < 1 or iterations < 0:
        raise error(
            "ellipse is in (0, 1], fraction in (0, 1), iterations from 0.", (ellipse, fraction, iterations)
        )
    image = check_slice(image)
    head = head_region(image)
    if not head.any():
        return head
    inside = brain_ellipse(head, ellipse)
    values = image[inside]
    low = fraction * float(np.median(values)) if threshold == "median" else otsu_threshold(values)
    bright = filled((image > low) & inside)
    core = ndimage.binary_opening(bright, iterations=iterations) if iterations else bright
    return filled(ndimage.binary_dilation(largest_region(core)) & bright)
