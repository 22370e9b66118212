"""The steps that every network is made of, in 2-D and 3-D; the rank is read off the tensor here alone.

A step takes a tensor (N, *spatial, C) and the name of its layer and returns a tensor. The layer names are
public: ``encoder1_conv2``, ``encoder1_conv2_bn``, ``decoder3_upsample``, ``head_logits``; the transfer
groups are read off them. Every layer is called once, with one tensor or one list of tensors.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

import mrseg.models.quiet  # noqa: F401  (registers layers that a file of a network with frozen groups may hold)
from mrseg import _checks
from mrseg.models.batch_norm import BatchNormalization
from mrseg.models.layers import ChannelRecalibration, SpatialRecalibration
from mrseg.models.resampling import LinearUpsampling, MaxPoolingWithIndices, MaxUnpooling

#: Weight of the past in BatchNormalization's moving statistics. Keras' own 0.99 (which alkhimova2022 takes
#: with all defaults; the other papers say nothing) needs some 500 steps to forget its starting values, more
#: than a fine-tuning on a few subjects has.
NORM_MOMENTUM = 0.9

RECALIBRATIONS = ("sequential", "add", "max", "concat")
ACTIVATIONS = ("softmax", "sigmoid")


def image_input(input_shape: Sequence[int | None], num_classes: int, filters: int, multiple: int) -> Any:
    """The input tensor of a network, once the builder's arguments are known to be possible.

    Args:
        input_shape: (*spatial, channels) with two or three spatial sizes in voxels; a size may be None.
        num_classes: classes with the background, 2 or more.
        filters: width of the first stage, 1 or more.
        multiple: every spatial size must divide by it (2 to the power of the number of poolings).

    Raises:
        InputError: a size does not divide; the wrong number of sizes; too few classes; a dtype policy for
            which this machine has no kernel.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    sizes_are_whole = all(size is None or (_is_whole(size) and size > 0) for size in shape)
    if len(shape) not in (3, 4) or shape[-1] is None or not sizes_are_whole:
        raise _checks.error(
            "input_shape is (x, y, channels) or (x, y, z, channels) in voxels, the channels given.",
            input_shape,
            "Write for example (128, 128, 48, 1); None stands for a size that may vary.",
        )
    if any(size is not None and size % multiple for size in shape[:-1]):
        nearest = tuple(size and -(-size // multiple) * multiple for size in shape[:-1])
        raise _checks.error(
            f"Spatial sizes must be multiples of {multiple}, since the network halves them on its way down.",
            shape[:-1],
            f"Pad or crop to {nearest}.",
        )
    check_num_classes(num_classes)
    _checks.positive_ints("filters", (filters,), 1)
    _check_policy(rank=len(shape) - 1)
    return keras.Input(shape, name="image")


def check_num_classes(num_classes: int) -> None:
    """Raises InputError unless ``num_classes`` is a whole number of 2 or more."""
    if not _is_whole(num_classes) or num_classes < 2:
        raise _checks.error(
            "num_classes counts the background, so it is a whole number of 2 or more.", num_classes
        )


def encoder_decoder(
    image: Any,
    widths: Sequence[int],
    stage: Callable[[Any, int, str], Any],
    *,
    join: Callable[[Any, Any, Any, str], Any] | None = None,
    **options: Any,
) -> Any:
    """The U shape: stages with poolings between them on the way down, upsamplings and skips on the way up.

    ::

        encoder1 ────────────────► skip ► decoder1
            pool                    upsample
          encoder2 ────────► skip ► decoder2
              pool            upsample
                   bottleneck

    Args:
        image: the input.
        widths: channels of encoder1, encoder2, ..., bottleneck; the decoders mirror the encoders.
        stage: makes a stage from features, its width and its name.
        join: makes a decoder's input from what came up, the encoder's features, what lay below before it was
            upsampled, and the decoder's name; concatenates the first two unless given.
        options: of the transposed convolutions.

    Returns:
        The features of decoder1.
    """
    x, skips = image, []
    for level, width in enumerate(widths[:-1], start=1):
        x = stage(x, width, f"encoder{level}")
        skips.append(x)
        x = pool(x, name=f"encoder{level}_pool")
    x = stage(x, widths[-1], "bottleneck")
    for level in range(len(skips), 0, -1):
        width, decoder = widths[level - 1], f"decoder{level}"
        up = upsample(x, width, name=f"{decoder}_upsample", **options)
        if join:
            x = join(up, skips[level - 1], x, decoder)
        else:
            x = concatenate(up, skips[level - 1], name=f"{decoder}_skip")
        x = stage(x, width, decoder)
    return x


def convolution(
    x: Any, filters: int, *, name: str, size: int = 3, weight_decay: float = 0.0, **options: Any
) -> Any:
    """Convolution of ``size`` in every direction, the same spatial sizes out as in (unless ``strides``)."""
    layer = _by_rank(x, layers.Conv2D, layers.Conv3D)
    return layer(filters, size, padding="same", name=name, **(_kernel(weight_decay) | options))(x)


def separable_convolution(
    x: Any, filters: int, *, name: str, weight_decay: float = 0.0, use_bias: bool = False
) -> Any:
    """Convolution of size 3 within each channel, then of size 1 across them; in 2-D alone.

    Raises:
        InputError: features of a volume, for which Keras has no such layer.
    """
    if len(x.shape) != 4:
        raise _checks.error(
            "Separable convolutions are there in 2-D alone.",
            f"{len(x.shape) - 2} spatial sizes",
            "Give an input_shape (x, y, channels), or take plain convolutions.",
        )
    kernel = _kernel(weight_decay)
    initial, penalty = kernel["kernel_initializer"], kernel["kernel_regularizer"]
    return layers.SeparableConv2D(
        filters,
        3,
        padding="same",
        data_format="channels_last",
        use_bias=use_bias,
        depthwise_initializer=initial,
        pointwise_initializer=initial,
        depthwise_regularizer=penalty,
        pointwise_regularizer=penalty,
        name=name,
    )(x)


def norm(x: Any, *, name: str) -> Any:
    """BatchNormalization over all axes but the channels."""
    return BatchNormalization(momentum=NORM_MOMENTUM, name=name)(x)


def relu(x: Any, *, name: str) -> Any:
    """Negative values become 0."""
    return layers.ReLU(name=name)(x)


def convolution_norm_relu(
    x: Any, filters: int, *, name: str, convolve: Callable[..., Any] = convolution, **options: Any
) -> Any:
    """Convolution, BatchNormalization, ReLU: ``name``, ``name_bn``, ``name_relu``."""
    x = norm(convolve(x, filters, name=name, **options), name=f"{name}_bn")
    return relu(x, name=f"{name}_relu")


def convolutions(x: Any, filters: int, depth: int, *, name: str, **options: Any) -> Any:
    """``depth`` times convolution, BatchNormalization, ReLU: ``name_conv1``, ``name_conv2``, ..."""
    for i in range(1, depth + 1):
        x = convolution_norm_relu(x, filters, name=f"{name}_conv{i}", **options)
    return x


def shortcut(x: Any, like: Any, *, name: str, strides: int = 1, **options: Any) -> Any:
    """``x`` itself, or where size or channels differ from ``like``'s, a convolution of size 1 and a norm."""
    if strides == 1 and x.shape[-1] == like.shape[-1]:
        return x
    x = convolution(x, like.shape[-1], size=1, strides=strides, name=name, **options)
    return norm(x, name=f"{name}_bn")


def add(x: Any, y: Any, *, name: str) -> Any:
    """Voxel by voxel sum of two features of one shape."""
    return layers.Add(name=name)([x, y])


def recalibrate(x: Any, mode: str, *, name: str) -> Any:
    """Channel (cSE) and spatial (sSE) recalibration of ``x``, combined as ``mode`` says.

    Args:
        mode: "sequential" sSE(cSE(x)); "add", "max" and "concat" combine cSE(x) and sSE(x) (Roy et al. 2018,
            section 2.3); "concat" doubles the channels.
        name: stem of the names ``name_channel``, ``name_spatial`` and, unless sequential, ``name``.
    """
    channel = ChannelRecalibration(name=f"{name}_channel")(x)
    if mode == "sequential":
        return SpatialRecalibration(name=f"{name}_spatial")(channel)
    spatial = SpatialRecalibration(name=f"{name}_spatial")(x)
    combine = {"add": layers.Add, "max": layers.Maximum, "concat": layers.Concatenate}[mode]
    return combine(name=name)([channel, spatial])


def pool(x: Any, *, name: str) -> Any:
    """Maximum over 2 x 2 (x 2) voxels: every spatial size is halved."""
    return _by_rank(x, layers.MaxPooling2D, layers.MaxPooling3D)(2, name=name)(x)


def upsample(x: Any, filters: int, *, name: str, weight_decay: float = 0.0) -> Any:
    """Learned upsampling: a transposed convolution of size 2 and stride 2 doubles every spatial size."""
    layer = _by_rank(x, layers.Conv2DTranspose, layers.Conv3DTranspose)
    return layer(filters, 2, strides=2, padding="same", name=name, **_kernel(weight_decay))(x)


def pool_with_indices(x: Any, *, name: str) -> tuple[Any, Any]:
    """As `pool`, and where each maximum was, for `unpool`."""
    pooled, indices = MaxPoolingWithIndices(name=name)(x)
    return pooled, indices


def unpool(x: Any, indices: Any, *, name: str) -> Any:
    """Puts features back where their maxima were: every spatial size is doubled, the rest is 0."""
    return MaxUnpooling(name=name)([x, indices])


def repeat(x: Any, *, name: str) -> Any:
    """Every voxel becomes 2 x 2 (x 2) voxels of the same value."""
    return _by_rank(x, layers.UpSampling2D, layers.UpSampling3D)(2, name=name)(x)


def interpolate(x: Any, factor: int, *, name: str) -> Any:
    """Linear interpolation to ``factor`` times every spatial size."""
    if len(x.shape) == 4:
        return layers.UpSampling2D(factor, interpolation="bilinear", name=name)(x)
    return LinearUpsampling(factor, name=name)(x)


def attention_gate(skip: Any, gating: Any, *, name: str, weight_decay: float = 0.0) -> Any:
    """The skip, each voxel weighted by how much the deeper features call for it.

    ``skip * sigmoid(psi(relu(theta(skip) + up(phi(gating)))))`` with theta, phi, psi convolutions of size 1,
    theta and phi to half the skip's channels, psi to one. Interpolation and a convolution of size 1 may be
    exchanged, so the deeper features are interpolated after theirs, at a quarter (an eighth) of the cost.

    Args:
        skip: encoder's features (N, *spatial, C).
        gating: deeper features (N, *spatial / 2, C').
        name: of the gated skip; the parts are ``name_skip``, ``name_signal``, ``name_weight``, ...

    Reference:
        Oktay et al. 2018 (Attention U-Net), section 2, with the resizing of islam2025's code.
    """
    width = max(skip.shape[-1] // 2, 1)
    signal = convolution(gating, width, size=1, name=f"{name}_signal", weight_decay=weight_decay)
    signal = interpolate(signal, 2, name=f"{name}_signal_upsample")
    own = convolution(skip, width, size=1, name=f"{name}_skip", weight_decay=weight_decay)
    called = relu(add(own, signal, name=f"{name}_add"), name=f"{name}_relu")
    weight = convolution(called, 1, size=1, name=f"{name}_weight", weight_decay=weight_decay)
    weight = layers.Activation("sigmoid", name=f"{name}_sigmoid")(weight)
    return layers.Multiply(name=name)([skip, weight])


def concatenate(*features: Any, name: str) -> Any:
    """Features of one size, channel after channel: what came up first, then the encoder's."""
    return layers.Concatenate(name=name)(list(features))


def head(x: Any, num_classes: int, *, activation: str, size: int = 1, **options: Any) -> Any:
    """Convolution of size 1 to the classes (``head_logits``), then ``head_probabilities``, both in float32.

    float32 under any dtype policy: half precision leaves too few digits for probabilities near 0 and 1.
    """
    logits = convolution(x, num_classes, size=size, name="head_logits", dtype="float32", **options)
    return layers.Activation(activation, name="head_probabilities", dtype="float32")(logits)


def _is_whole(number: Any) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def _by_rank(x: Any, planar: Any, volumetric: Any) -> Any:
    return planar if len(x.shape) == 4 else volumetric


def _kernel(weight_decay: float) -> dict[str, Any]:
    return {
        "kernel_initializer": "glorot_uniform",  # stated by mecheter2023 and alkhimova2022
        "kernel_regularizer": keras.regularizers.L2(weight_decay) if weight_decay else None,
        "data_format": "channels_last",
    }


def _check_policy(rank: int) -> None:
    policy = keras.config.dtype_policy()
    if rank != 3 or policy.compute_dtype != "float16" or keras.backend.backend() != "tensorflow":
        return
    if not keras.distribution.list_devices("gpu"):
        raise _checks.error(
            "TensorFlow has no float16 pooling of volumes on a CPU.",
            f"dtype policy {policy.name!r}",
            "Use keras.config.set_dtype_policy('mixed_bfloat16') or 'float32'.",
        )
