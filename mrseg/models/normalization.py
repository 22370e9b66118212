"""Normalisation of intensities inside a network: the functions of `mrseg.data.normalization` in keras.ops.

Every image of a batch and every channel is normalised by itself. In a network these run on TensorFlow and
JAX, so that a saved model takes raw intensities. Mecheter et al. 2020 and 2023 (Preprocessing); Islam and
Tabassum 2025, Eq. 1.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from mrseg._checks import choice, error
from mrseg.data.normalization import lcn_window
from mrseg.models.layers import PACKAGE


def local_contrast(x: Any, *, sigma: float = 4.0, variant: str = "jarrett", axis: int = 2) -> Any:
    """Local contrast normalisation, slice by slice: `mrseg.data.lcn` on a batch.

    Args:
        x: images (N, x, y, C), each a slice, or (N, x, y, z, C); finite.
        sigma: standard deviation of the window in voxels.
        variant: "jarrett", "fileexchange" or "pinto", as for `mrseg.data.lcn`.
        axis: the axis of a volume (0, 1 or 2) across its slices; has no meaning for slices.

    Returns:
        float tensor of the same shape. A constant slice becomes 0.
    """
    window = lcn_window(variant, sigma).astype("float32")
    rank = len(x.shape) - 2
    in_plane = [a + 1 for a in range(rank) if rank == 2 or a != axis]
    mean, centred = x, ops.zeros_like(x)
    for a in in_plane:  # x - (w * x), as a sum of differences: what is constant leaves exactly 0
        apart = _apart(mean, window, a)
        mean, centred = mean + apart, centred - apart
    squares = ops.square(centred)
    for a in in_plane:
        squares = ops.maximum(squares + _apart(squares, window, a), 0.0)
    divisor = ops.sqrt(squares)
    if variant == "jarrett":
        floor = ops.mean(divisor, axis=in_plane, keepdims=True)
        divisor = ops.maximum(divisor, ops.where(floor > 0, floor, ops.ones_like(floor)))
    elif variant == "fileexchange":
        divisor = divisor + 1e-8
    else:
        divisor = ops.maximum(3.0 * divisor, 1.0)
    return centred / divisor


def quantile_zscore(x: Any) -> Any:
    """Standardises the foreground by the middle half of its intensities: `mrseg.data.quantile_zscore`.

    Args:
        x: images (N, *spatial, C), positive in the foreground; what is not positive is background.

    Returns:
        float tensor of the same shape, 0 in the background; all 0 where there is no foreground, or its middle
        half is constant.
    """
    shape = ops.shape(x)
    flat = ops.reshape(ops.moveaxis(x, -1, 1), (shape[0], shape[-1], -1))  # (N, C, voxels)
    foreground = flat > 0
    zero = ops.zeros_like(flat)
    ranked = ops.sort(ops.where(foreground, flat, zero), axis=-1)  # the background comes first
    voxels = ops.shape(flat)[-1]
    count = ops.sum(ops.cast(foreground, "int32"), axis=-1, keepdims=True)  # (N, C, 1)
    lower, upper = (_ranked(ranked, voxels, count, quarter) for quarter in (1, 3))
    middle = ops.cast(foreground & (flat >= lower) & (flat <= upper), x.dtype)
    total = ops.maximum(ops.sum(middle, axis=-1, keepdims=True), 1.0)
    apart = flat - lower  # near 0, so that no digit is lost
    mean = ops.sum(apart * middle, axis=-1, keepdims=True) / total
    deviation = ops.sqrt(ops.sum(ops.square(apart - mean) * middle, axis=-1, keepdims=True) / total)
    known = foreground & (deviation > 0)
    scores = ops.where(known, (apart - mean) / ops.where(deviation > 0, deviation, 1.0), zero)
    turned = (shape[0], shape[-1], *shape[1:-1])
    return ops.moveaxis(ops.reshape(scores, turned), 1, -1)


def min_max(x: Any) -> Any:
    """Maps the range of every image and channel onto [0, 1]: `mrseg.data.min_max`.

    Args:
        x: images (N, *spatial, C), finite.

    Returns:
        float tensor of the same shape; 0 where an image is constant.
    """
    spatial = tuple(range(1, len(x.shape) - 1))
    low, high = ops.min(x, axis=spatial, keepdims=True), ops.max(x, axis=spatial, keepdims=True)
    return (x - low) / ops.where(high > low, high - low, ops.ones_like(low))


class _Normalization(keras.layers.Layer):
    """A layer without weights that computes in float32 under any policy: bfloat16 has 8 bits, scans 12."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"dtype": "float32"} | options))
        self.supports_masking = True

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape of the input."""
        return input_shape


@keras.saving.register_keras_serializable(package=PACKAGE)
class LocalContrast(_Normalization):
    """:func:`local_contrast` as a layer.

    Args:
        sigma: as for the function.
        variant: as for the function.
        axis: as for the function.
    """

    def __init__(self, sigma: float = 4.0, variant: str = "jarrett", axis: int = 2, **options: Any) -> None:
        super().__init__(**options)
        lcn_window(variant, sigma)  # refuses what makes no window
        choice("axis", axis, (0, 1, 2))
        self.sigma, self.variant, self.axis = sigma, variant, axis

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Checks the rank."""
        if len(input_shape) not in (4, 5) or None in input_shape[1:-1]:
            raise error(
                "LocalContrast takes slices (N, x, y, C) or volumes (N, x, y, z, C) of known size.",
                tuple(input_shape),
            )

    def call(self, x: Any) -> Any:
        """Images (N, *spatial, C) to images of the same shape."""
        return local_contrast(x, sigma=self.sigma, variant=self.variant, axis=self.axis)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {"sigma": self.sigma, "variant": self.variant, "axis": self.axis}


@keras.saving.register_keras_serializable(package=PACKAGE)
class QuantileZScore(_Normalization):
    """:func:`quantile_zscore` as a layer."""

    def call(self, x: Any) -> Any:
        """Images (N, *spatial, C) to images of the same shape."""
        return quantile_zscore(x)


@keras.saving.register_keras_serializable(package=PACKAGE)
class MinMax(_Normalization):
    """:func:`min_max` as a layer."""

    def call(self, x: Any) -> Any:
        """Images (N, *spatial, C) to images of the same shape."""
        return min_max(x)


def _apart(x: Any, window: np.ndarray, axis: int) -> Any:
    """``w * x - x`` along ``axis`` for a symmetric window of sum 1, mirrored at the ends."""
    size, radius = x.shape[axis], len(window) // 2
    twice, total = x + x, ops.zeros_like(x)
    for k in range(1, radius + 1):
        before, after = (_mirrored(np.arange(size) + step, size) for step in (-k, k))
        beside = ops.take(x, before, axis=axis) + ops.take(x, after, axis=axis)
        total = total + (beside - twice) * window[radius + k]
    return total


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond the ends, mirrored: ``b a | a b c | c b``."""
    inside = index % (2 * size)
    return np.where(inside < size, inside, 2 * size - 1 - inside).astype("int32")


def _ranked(ranked: Any, voxels: Any, count: Any, quarter: int) -> Any:
    """The quartile of the last ``count`` of sorted values (N, C, voxels), with linear interpolation."""
    quarters = ops.maximum(count - 1, 0) * quarter  # the rank, in quarters of a place
    share = ops.cast(quarters % 4, ranked.dtype) / 4.0
    first = ops.minimum(voxels - count + quarters // 4, voxels - 1)
    one = ops.take_along_axis(ranked, first, axis=-1)
    next_one = ops.take_along_axis(ranked, ops.minimum(first + 1, voxels - 1), axis=-1)
    return one + (next_one - one) * share
