"""BatchNormalization in one pass over the features on TensorFlow, where Keras' own takes many.

Ioffe, Szegedy: Batch Normalization, ICML 2015, algorithm 1. See docs/decisions/0019-fused-norm.md.
"""

from __future__ import annotations

import math
from typing import Any

import keras

from mrseg.models.layers import PACKAGE

#: What TensorFlow's fused operation takes; Keras too computes all of them in float32.
_FUSED_TYPES = ("float32", "bfloat16", "float16")
_FUSED_RANKS = {4: "NHWC", 5: "NDHWC"}


@keras.saving.register_keras_serializable(package=PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """``keras.layers.BatchNormalization`` by TensorFlow's fused operation where there is one.

    It bears the parent's name because a weight file does: either class reads what the other wrote.

    Weights, their names, arguments, statistics and results are those of the parent, rounding apart: float32
    inside under any policy, the biased variance in the moving statistics, inference mode while
    ``trainable`` is False. The parent computes where the fused operation does not serve: on JAX, for
    other than slices (N, x, y, C) and volumes (N, x, y, z, C) with their channels last, in float64, with a
    mask, batch renormalisation or statistics synchronised over devices.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Features (N, *spatial, C) to features of the same shape and the layer's compute dtype."""
        if mask is not None or not self._is_fused(inputs):
            return super().call(inputs, training=training, mask=mask)
        moving = (self.moving_mean, self.moving_variance)
        gamma = keras.ops.ones_like(moving[0]) if self.gamma is None else self.gamma
        beta = keras.ops.zeros_like(moving[0]) if self.beta is None else self.beta
        if training and self.trainable:
            outputs, *batch = _normalized_by_batch(inputs, gamma, beta, self.epsilon)
            for statistic, new in zip(moving, batch, strict=True):
                statistic.assign(statistic * self.momentum + new * (1.0 - self.momentum))
        else:
            normalize = _normalized_in_training if training else _normalized
            outputs = normalize(inputs, *moving, gamma, beta, self.epsilon)
        return keras.ops.cast(outputs, self.compute_dtype)

    def _is_fused(self, inputs: Any) -> bool:
        rank = len(inputs.shape)
        return (
            keras.backend.backend() == "tensorflow"
            and rank in _FUSED_RANKS
            and self.axis in (-1, rank - 1)
            and keras.backend.standardize_dtype(inputs.dtype) in _FUSED_TYPES
            and self.variable_dtype == "float32"
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Keras before 3.13 has no such argument
        )


def use_fused_norms(model: keras.Model) -> None:
    """Turns every ``keras.layers.BatchNormalization`` of a network into the fused one, in place.

    For networks from files that name Keras' layer. A layer changes its class alone: weights and place in the
    network stay. A compiled model must be compiled again.
    """
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.BatchNormalization:
            layer.__class__ = BatchNormalization


def _normalized_by_batch(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Features normalised by their own mean and biased variance per channel, and these two."""
    import tensorflow as tf

    unused = tf.zeros((0,))
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=unused, variance=unused, epsilon=epsilon, is_training=True,
        data_format=_FUSED_RANKS[len(x.shape)],
    )  # fmt: skip
    # The operation gives the unbiased variance, Keras keeps the biased one.
    sizes = x.shape[:-1]
    voxels = math.prod(sizes) if sizes.is_fully_defined() else tf.reduce_prod(tf.shape(x)[:-1])
    voxels = tf.cast(voxels, tf.float32)
    return y, mean, variance * ((voxels - 1.0) / voxels)


def _normalized(x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` for statistics that are given."""
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False,
        data_format=_FUSED_RANKS[len(x.shape)],
    ).y  # fmt: skip


def _normalized_in_training(x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """As `_normalized`, bit for bit, with a gradient that is cheaper for a frozen layer.

    TensorFlow's own sums over all voxels whether or not gamma and beta train; here what nobody asks for is
    pruned from the graph.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def normalized(x: Any, mean: Any, variance: Any, gamma: Any, beta: Any) -> Any:
        def gradient(dy: Any) -> tuple[Any, ...]:
            zero = tf.zeros_like(mean)
            rate = tf.math.rsqrt(variance + epsilon)
            voxels = list(range(len(x.shape) - 1))
            wide, apart = tf.cast(dy, tf.float32), tf.cast(x, tf.float32) - mean
            d_beta = tf.reduce_sum(wide, voxels)
            d_gamma = tf.reduce_sum(wide * apart, voxels) * rate
            d_mean, d_variance = -d_beta * gamma * rate, -0.5 * d_gamma * gamma * rate**2
            return _normalized(dy, zero, variance, gamma, zero, epsilon), d_mean, d_variance, d_gamma, d_beta

        return _normalized(x, mean, variance, gamma, beta, epsilon), gradient

    return normalized(x, *map(tf.convert_to_tensor, (mean, variance, gamma, beta)))
