"""Bi-level Otsu thresholding of a slice (alkhimova2022, Table 1, first row)."""

from __future__ import annotations

import numpy as np

from mrseg.baselines.regions import check_slice, filled, largest_region, otsu_threshold


def bi_level_otsu(image: np.ndarray, *, clean: bool = False) -> np.ndarray:
    """Returns the pixels above the one threshold that separates the slice's two classes best.

    On a raw head image this is the bright part of the head, scalp and eyes included, not the brain.

    Args:
        image: slice (x, y), finite.
        clean: fill holes, then keep the largest region. Off, as in the paper as far as it tells.

    Returns:
        bool array of the same shape; all False for a constant slice.

    Raises:
        InputError: not two-dimensional, or NaN or infinite pixels.

    Reference:
        Alkhimova and Diumin 2022, Table 1; Otsu 1979, IEEE Trans. SMC 9:62.
    """
    image = check_slice(image)
    mask = image > otsu_threshold(image)
    return largest_region(filled(mask)) if clean else mask
