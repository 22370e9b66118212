"""Recalibration of features (squeeze and excitation), as pure functions with thin layers over them.

Roy, Navab, Wachinger: Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks,
MICCAI 2018 (arXiv 1803.02579), sections 2.1 and 2.2; used by mecheter2023 (section 3.3) and alkhimova2022.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

PACKAGE = "mrseg"


def channel_recalibration(x: Any, squeeze: tuple[Any, Any], excite: tuple[Any, Any]) -> Any:
    """Scales every channel by a weight in (0, 1) computed from the channels' spatial means (cSE).

    Args:
        x: features (N, *spatial, C).
        squeeze: kernel (C, C / r) and bias (C / r) of the dense layer that is followed by ReLU.
        excite: kernel (C / r, C) and bias (C) of the dense layer that is followed by a sigmoid.

    Returns:
        Features (N, *spatial, C).

    Reference:
        Roy et al. 2018, section 2.1, equations 2 and 3.
    """
    spatial = tuple(range(1, len(x.shape) - 1))
    means = ops.mean(x, axis=spatial, keepdims=True)  # (N, 1, ..., 1, C)
    hidden = ops.relu(_dense(means, *squeeze))  # (N, 1, ..., 1, C / r)
    return x * ops.sigmoid(_dense(hidden, *excite))


def spatial_recalibration(x: Any, kernel: Any, bias: Any) -> Any:
    """Scales every voxel by a weight in (0, 1) computed from the voxel's channels (sSE).

    Args:
        x: features (N, *spatial, C).
        kernel: (C, 1), a convolution of size 1.
        bias: (1,).

    Returns:
        Features (N, *spatial, C).

    Reference:
        Roy et al. 2018, section 2.2, equation 4.
    """
    return x * ops.sigmoid(_dense(x, kernel, bias))


@keras.saving.register_keras_serializable(package=PACKAGE)
class ChannelRecalibration(keras.layers.Layer):
    """:func:`channel_recalibration` with its weights.

    Args:
        reduction: r, the factor by which the hidden layer is narrower (at least one unit is kept). 2 is
            the best of Roy et al. 2018, section 3.
    """

    def __init__(
        self, reduction: int = 2, kernel_initializer: Any = "glorot_uniform", **options: Any
    ) -> None:
        super().__init__(**options)
        self.reduction = reduction
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Makes the kernels and biases for the channels of ``input_shape``."""
        channels = input_shape[-1]
        hidden = max(channels // self.reduction, 1)
        self.squeeze_kernel = self._weight("squeeze_kernel", (channels, hidden))
        self.squeeze_bias = self._weight("squeeze_bias", (hidden,))
        self.excite_kernel = self._weight("excite_kernel", (hidden, channels))
        self.excite_bias = self._weight("excite_bias", (channels,))

    def _weight(self, name: str, shape: tuple[int, ...]) -> Any:
        # A new initialiser object per kernel: one that has no seed would warn when used twice.
        kernel = keras.initializers.get(keras.initializers.serialize(self.kernel_initializer))
        return self.add_weight(name=name, shape=shape, initializer=kernel if len(shape) > 1 else "zeros")

    def call(self, x: Any) -> Any:
        """Features (N, *spatial, C) to features of the same shape."""
        return channel_recalibration(
            x, (self.squeeze_kernel, self.squeeze_bias), (self.excite_kernel, self.excite_bias)
        )

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return super().get_config() | {"reduction": self.reduction, "kernel_initializer": initializer}


@keras.saving.register_keras_serializable(package=PACKAGE)
class SpatialRecalibration(keras.layers.Layer):
    """:func:`spatial_recalibration` with its weights."""

    def __init__(self, kernel_initializer: Any = "glorot_uniform", **options: Any) -> None:
        super().__init__(**options)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Makes the kernels and biases for the channels of ``input_shape``."""
        self.kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1], 1), initializer=self.kernel_initializer
        )
        self.bias = self.add_weight(name="bias", shape=(1,), initializer="zeros")

    def call(self, x: Any) -> Any:
        """Features (N, *spatial, C) to features of the same shape."""
        return spatial_recalibration(x, self.kernel, self.bias)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer)
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class StopGradient(keras.layers.Layer):
    """Hands its input on unchanged; no gradient passes back through it."""

    def call(self, x: Any) -> Any:
        """Any tensor to itself."""
        return ops.stop_gradient(x)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape of the input."""
        return input_shape


def _dense(x: Any, kernel: Any, bias: Any) -> Any:
    return ops.tensordot(x, kernel, axes=1) + bias
