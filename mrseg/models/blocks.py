"""The steps that every network is made of, in 2-D and 3-D; the rank is read off the tensor here alone.

A step takes a tensor (N, *spatial, C) and the name of its layer and returns a tensor. The layer names are
public: ``encoder1_conv2``, ``encoder1_conv2_bn``, ``decoder3_upsample``, ``head_logits``; the transfer
groups are read off them. Every layer is called once, with one tensor or one list of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from mrseg import _checks
from mrseg.models.layers import ChannelRecalibration, SpatialRecalibration

#: Weight of the past in BatchNormalization's moving statistics. No paper states it; Keras' own 0.99 needs
#: some 500 steps to forget its starting values, more than a fine-tuning on a few subjects has.
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
    sizes_are_whole = all(size is None or (type(size) is int and size > 0) for size in shape)
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
    _checks.positive_ints("filters", (filters,))
    _check_policy(rank=len(shape) - 1)
    return keras.Input(shape, name="image")


def check_num_classes(num_classes: int) -> None:
    """Raises InputError unless ``num_classes`` is a whole number of 2 or more."""
    if type(num_classes) is not int or num_classes < 2:
        raise _checks.error(
            "num_classes counts the background, so it is a whole number of 2 or more.", num_classes
        )


def convolution(
    x: Any, filters: int, *, name: str, size: int = 3, weight_decay: float = 0.0, **options: Any
) -> Any:
    """Convolution of ``size`` in every direction, the same spatial sizes out as in."""
    layer = _by_rank(x, layers.Conv2D, layers.Conv3D)
    return layer(filters, size, padding="same", name=name, **_kernel(weight_decay), **options)(x)


def convolution_norm_relu(x: Any, filters: int, *, name: str, **options: Any) -> Any:
    """Convolution, BatchNormalization, ReLU: ``name``, ``name_bn``, ``name_relu``."""
    x = convolution(x, filters, name=name, **options)
    x = layers.BatchNormalization(momentum=NORM_MOMENTUM, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def convolutions(x: Any, filters: int, depth: int, *, name: str, **options: Any) -> Any:
    """``depth`` times convolution, BatchNormalization, ReLU: ``name_conv1``, ``name_conv2``, ..."""
    for i in range(1, depth + 1):
        x = convolution_norm_relu(x, filters, name=f"{name}_conv{i}", **options)
    return x


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


def join(x: Any, skip: Any, *, name: str) -> Any:
    """The features that came up and those of the encoder, channel after channel."""
    return layers.Concatenate(name=name)([x, skip])


def head(x: Any, num_classes: int, *, activation: str, weight_decay: float = 0.0) -> Any:
    """Convolution of size 1 to the classes (``head_logits``), then ``head_probabilities``, both in float32.

    float32 under any dtype policy: half precision leaves too few digits for probabilities near 0 and 1.
    """
    logits = convolution(
        x, num_classes, size=1, name="head_logits", weight_decay=weight_decay, dtype="float32"
    )
    return layers.Activation(activation, name="head_probabilities", dtype="float32")(logits)


def _by_rank(x: Any, planar: Any, volumetric: Any) -> Any:
    return planar if len(x.shape) == 4 else volumetric


def _kernel(weight_decay: float) -> dict[str, Any]:
    return {
        "kernel_initializer": "glorot_uniform",
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
