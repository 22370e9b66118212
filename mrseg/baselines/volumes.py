"""The baselines by name, slice by slice over a volume; one mask for a whole DSC series (alkhimova2022)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from mrseg._checks import choice, error
from mrseg.baselines.aabl import low_intensity_mask
from mrseg.baselines.cusum import cusum_mask
from mrseg.baselines.otsu import bi_level_otsu
from mrseg.baselines.regions import MIN_HEAD_AREA
from mrseg.data.geometry import head_mask

#: Name of a baseline -> function from a slice (x, y) to its brain mask.
BASELINES: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {"otsu": bi_level_otsu, "aabl": low_intensity_mask, "cusum": cusum_mask}
)


def brain_mask_volume(
    image: np.ndarray, method: str = "cusum", *, slice_axis: int = 2, **options: Any
) -> np.ndarray:
    """Masks the brain in a volume, slice by slice.

    Slices where the head (``mrseg.data.head_mask`` of the volume) covers less than 5 % stay empty: a slice of
    air alone has a threshold too.

    Args:
        image: (x, y, z), finite, not constant; T2*-weighted (brain brighter than skull).
        method: a name of ``BASELINES``: ``otsu``, ``aabl`` or ``cusum``.
        slice_axis: axis of the slices, 0 to 2. The methods are made for transversal slices.
        **options: of the method's function.

    Returns:
        bool array (x, y, z).

    Raises:
        InputError: unknown method, not a volume, or a bad option.

    Example:
        >>> from mrseg.data import phantom
        >>> series, _ = phantom.dsc_series(phantom.head(1, shape=(64, 64, 6)), timepoints=1)
        >>> brain_mask_volume(series[..., 0], "aabl").shape
        (64, 64, 6)
    """
    mask_slice = BASELINES[choice("method", method, BASELINES)]
    choice("slice_axis", slice_axis, (0, 1, 2))
    image = np.asarray(image)
    if image.ndim != 3:
        raise error("A volume is (x, y, z).", f"shape {image.shape}", "A series: brain_mask_series.")
    area = np.moveaxis(head_mask(image), slice_axis, 0).mean(axis=(1, 2))
    mask = np.zeros(image.shape, bool)
    slices, masks = np.moveaxis(image, slice_axis, 0), np.moveaxis(mask, slice_axis, 0)
    known = inspect.signature(mask_slice).parameters
    for name in options:
        choice(f"An option of {method}", name, [key for key in known if key != "image"])
    for index in np.flatnonzero(area >= MIN_HEAD_AREA):
        masks[index] = mask_slice(slices[index], **options)
    return mask


def brain_mask_series(
    series: np.ndarray, method: str = "cusum", *, time_index: int = 3, slice_axis: int = 2, **options: Any
) -> np.ndarray:
    """Masks the brain in a DSC series: the mask of one time point, for all of them.

    Args:
        series: (x, y, z, t), free of motion (``mrseg.data.correct_motion``).
        method: as for ``brain_mask_volume``.
        time_index: the time point that is segmented, from 0: the fourth, when the signal is steady and the
            bolus has not come.
        slice_axis: as for ``brain_mask_volume``.
        **options: of the method's function.

    Returns:
        bool array (x, y, z).

    Raises:
        InputError: not a series, fewer time points than ``time_index`` asks for, or as ``brain_mask_volume``.

    Reference:
        Alkhimova and Diumin 2022, Data: masks are drawn on the fourth time point.
    """
    series = np.asarray(series)
    if series.ndim != 4:
        raise error("A series is (x, y, z, t).", f"shape {series.shape}")
    if not 0 <= time_index < series.shape[3]:
        raise error(
            f"time_index is a time point of the series, 0 to {series.shape[3] - 1}.",
            time_index,
            "Name one before the bolus with time_index.",
        )
    return brain_mask_volume(series[..., time_index], method, slice_axis=slice_axis, **options)
