"""Max pooling that remembers where the maximum was, its inverse, and linear upsampling, in 2-D and 3-D.

Pooling indices are the defining step of SegNet (Badrinarayanan, Kendall, Cipolla 2017, section 3), the
network of mecheter2020; linear upsampling joins scales in xu2017 and in the attention gates of islam2025.
"""

from __future__ import annotations

import itertools
from typing import Any

import keras
from keras import ops

from mrseg._checks import error
from mrseg.models.layers import PACKAGE


def max_pool_with_indices(x: Any) -> tuple[Any, Any]:
    """Maximum over windows of 2 x 2 (x 2) voxels, and where in its window each maximum was.

    Args:
        x: features (N, *spatial, C), every spatial size even.

    Returns:
        Maxima (N, *spatial / 2, C) of the type of ``x``; indices of the same shape, int32, counted along the
        window with its last axis fastest (2-D: 0 upper left, 1 upper right, 2 lower left, 3 lower right). Of
        equal maxima the first is named, as TensorFlow's ``max_pool_with_argmax`` does.
    """
    rank = len(x.shape) - 2
    pooled = ops.max_pool(x, 2, strides=2, padding="valid", data_format="channels_last")
    fixed = ops.stop_gradient(x)
    corners = list(itertools.product((0, 1), repeat=rank))
    best = _corner(fixed, corners[0])
    indices = ops.zeros_like(best, dtype="int32")
    for number, corner in enumerate(corners[1:], start=1):
        value = _corner(fixed, corner)
        larger = value > best
        indices = ops.where(larger, number, indices)
        best = ops.where(larger, value, best)
    return pooled, indices


def max_unpool(x: Any, indices: Any) -> Any:
    """Puts every voxel back where `max_pool_with_indices` found it; all others are 0.

    ::

        x   indices        result
        5     2       ->   0 0
                           5 0

    Args:
        x: features (N, *spatial, C).
        indices: of the same shape, from `max_pool_with_indices`.

    Returns:
        Features (N, *spatial * 2, C).
    """
    rank = len(x.shape) - 2
    zero = ops.zeros_like(x)
    parts = [ops.where(indices == number, x, zero) for number in range(2**rank)]
    for axis in range(rank, 0, -1):  # neighbours along the last axis first
        parts = [_interleave(parts[i : i + 2], axis) for i in range(0, len(parts), 2)]
    return parts[0]


def upsample_linear(x: Any, factor: int) -> Any:
    """Linear interpolation to ``factor`` times as many voxels along every axis, half-voxel centres.

    The border repeats its last voxel. The weights are those of a transposed convolution with a fixed bilinear
    kernel of size 2 x factor, away from the border.

    Args:
        x: features (N, *spatial, C).
        factor: 1 or more.
    """
    for axis in range(1, len(x.shape) - 1):
        before = ops.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, -1)], axis)
        after = ops.concatenate([_part(x, axis, 1, None), _part(x, axis, -1, None)], axis)
        phases = []
        for phase in range(factor):
            offset = (phase + 0.5) / factor - 0.5  # of the new voxel's centre from the old one's, in voxels
            neighbour = before if offset < 0 else after
            phases.append(x * (1.0 - abs(offset)) + neighbour * abs(offset))
        x = _interleave(phases, axis)
    return x


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaxPoolingWithIndices(keras.layers.Layer):
    """:func:`max_pool_with_indices` as a layer; returns [maxima, indices]."""

    def call(self, x: Any) -> list[Any]:
        """Features (N, *spatial, C) to maxima and indices."""
        return list(max_pool_with_indices(x))

    def compute_output_spec(self, x: Any) -> list[Any]:
        """Half the spatial sizes, twice; the indices are int32."""
        shape = _scaled(x.shape, lambda size: size // 2)
        return [keras.KerasTensor(shape, self.compute_dtype), keras.KerasTensor(shape, "int32")]


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaxUnpooling(keras.layers.Layer):
    """:func:`max_unpool` as a layer; called with [features, indices]."""

    def call(self, inputs: list[Any]) -> Any:
        """Features and indices (N, *spatial, C) to features (N, *spatial * 2, C)."""
        return max_unpool(*inputs)

    def compute_output_shape(self, input_shape: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Twice the spatial sizes."""
        features, indices = input_shape
        if features[-1] != indices[-1]:
            raise error(
                "Features go back to the indices of as many channels.", f"{features[-1]} and {indices[-1]}"
            )
        return _scaled(features, lambda size: size * 2)


@keras.saving.register_keras_serializable(package=PACKAGE)
class LinearUpsampling(keras.layers.Layer):
    """:func:`upsample_linear` as a layer (Keras has the bilinear one alone).

    Args:
        factor: how many times as many voxels along every axis.
    """

    def __init__(self, factor: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, x: Any) -> Any:
        """Features (N, *spatial, C) to features (N, *spatial * factor, C)."""
        return upsample_linear(x, self.factor)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """``factor`` times the spatial sizes."""
        return _scaled(input_shape, lambda size: size * self.factor)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {"factor": self.factor}


def _corner(x: Any, corner: tuple[int, ...]) -> Any:
    """Of every window of 2 x 2 (x 2), the voxel at this corner."""
    return x[(slice(None), *(slice(first, None, 2) for first in corner), slice(None))]


def _part(x: Any, axis: int, first: int, last: int | None) -> Any:
    return x[(*(slice(None),) * axis, slice(first, last))]


def _interleave(parts: list[Any], axis: int) -> Any:
    """Voxel i of part p becomes voxel ``i * len(parts) + p`` along ``axis``."""
    shape = list(ops.shape(parts[0]))
    shape[axis] = shape[axis] * len(parts)
    return ops.reshape(ops.stack(parts, axis=axis + 1), shape)


def _scaled(shape: tuple[Any, ...], scale: Any) -> tuple[Any, ...]:
    spatial = (None if size is None else scale(size) for size in shape[1:-1])
    return (shape[0], *spatial, shape[-1])
