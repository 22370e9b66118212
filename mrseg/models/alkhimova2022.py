"""U-Net with residual blocks and scSE recalibration of alkhimova2022 (Alkhimova, Diumin 2022).

Brain masks in T2*-w perfusion series. The same authors' arXiv 2303.02518 compares the places where the
recalibration may stand; all are options here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from mrseg import _checks
from mrseg.models import blocks

BACKBONES = ("unet", "resnet34")
POSITIONS = ("standard", "pre", "post", "identity", "none")
COMBINATIONS = ("add", "max", "sequential")
STAGES = 4
#: Residual blocks of ResNet34's four stages, and the widths of the decoders above them, in 64ths of a stage.
RESNET34_BLOCKS = (3, 4, 6, 3)
RESNET34_DECODERS = (8, 4, 2, 2, 1)


def res_unet(
    input_shape: Sequence[int | None],
    num_classes: int = 2,
    *,
    filters: int = 64,
    recalibration: str = "add",
    position: str = "standard",
    backbone: str = "unet",
    weight_decay: float = 0.0,
    name: str = "res_unet",
) -> keras.Model:
    """U-Net of residual blocks, each with channel and spatial recalibration (scSE).

    A block is convolution, BatchNormalization, ReLU, convolution, BatchNormalization, beside a shortcut; the
    sum is followed by ReLU. Where the recalibration stands::

        position   standard: branch -> scSE, + shortcut      pre:  scSE -> branch, + shortcut
                   identity: branch, + scSE(shortcut)        post: scSE after the sum and its ReLU

    Args:
        input_shape: (x, y, channels) in voxels, each size a multiple of 16 (backbone "resnet34": 32) or None;
            (x, y, z, channels) builds the same network in 3-D.
        num_classes: classes with the background, 2 or more.
        filters: channels of the first stage.
        recalibration: how the channel's and the voxel's weighting combine: "add" (the sum, Roy et al. 2018),
            "max" or "sequential".
        position: "standard" as in SE-ResNet, "pre", "post", "identity" or "none".
        backbone: "unet": one block a stage, four poolings, decoders with recalibration. "resnet34": the
            encoder is ResNet34 (stem of 7x7, stages of 3, 4, 6, 3 blocks), decoders are plain.
        weight_decay: L2 penalty on the convolution kernels.
        name: of the model.

    Returns:
        keras.Model from (N, x, y, channels) to probabilities (N, x, y, num_classes), float32 under any dtype
        policy. 34,213,899 parameters at 64 filters, 8,566,795 at 32, 2,148,363 at 16; ResNet34 25,739,986.

    Raises:
        InputError: a size that does not divide, an unknown option, fewer than two classes.

    Deviation: widths, depth and the place of the recalibration are not in the text (its figure is lost);
        those of U-Net and SE-ResNet are taken, and recalibration stands in the decoder's blocks too.

    Reference:
        alkhimova2022, section on the network. Weights start from Glorot uniform, as stated.
    """
    _checks.choice("recalibration", recalibration, COMBINATIONS)
    _checks.choice("position", position, POSITIONS)
    _checks.choice("backbone", backbone, BACKBONES)

    def residual(x: Any, width: int, block: str, strides: int = 1) -> Any:
        return _residual(
            x, width, block, strides=strides, mode=recalibration, at=position, weight_decay=weight_decay
        )

    if backbone == "resnet34":
        image = blocks.image_input(input_shape, num_classes, filters, multiple=32)
        x = _resnet34(image, filters, residual, weight_decay)
    else:
        image = blocks.image_input(input_shape, num_classes, filters, multiple=2**STAGES)
        widths = [filters * 2**level for level in range(STAGES + 1)]
        x = blocks.encoder_decoder(image, widths, residual, weight_decay=weight_decay)
    x = blocks.head(x, num_classes, activation="softmax", weight_decay=weight_decay)
    return keras.Model(image, x, name=name)


def _residual(x: Any, width: int, name: str, *, strides: int, mode: str, at: str, weight_decay: float) -> Any:
    def recalibrated(features: Any, place: str) -> Any:
        return blocks.recalibrate(features, mode, name=f"{name}_recalibration") if at == place else features

    y = recalibrated(x, "pre")
    y = blocks.convolution_norm_relu(
        y, width, name=f"{name}_conv1", strides=strides, weight_decay=weight_decay
    )
    y = blocks.convolution(y, width, name=f"{name}_conv2", weight_decay=weight_decay)
    y = recalibrated(blocks.norm(y, name=f"{name}_conv2_bn"), "standard")
    past = blocks.shortcut(x, y, name=f"{name}_shortcut", strides=strides, weight_decay=weight_decay)
    y = blocks.add(y, recalibrated(past, "identity"), name=f"{name}_add")
    return recalibrated(blocks.relu(y, name=f"{name}_relu"), "post")


def _resnet34(image: Any, filters: int, residual: Any, weight_decay: float) -> Any:
    """ResNet34 down to 1/32 of the image's size, and five decoders up, the last without a skip."""
    x = blocks.convolution(image, filters, size=7, strides=2, name="stem_conv1", weight_decay=weight_decay)
    x = blocks.relu(blocks.norm(x, name="stem_conv1_bn"), name="stem_conv1_relu")
    skips = [x]
    pooling = layers.MaxPooling2D if len(x.shape) == 4 else layers.MaxPooling3D
    x = pooling(3, strides=2, padding="same", name="stem_pool")(x)
    for stage, depth in enumerate(RESNET34_BLOCKS, start=1):
        for i in range(1, depth + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            x = residual(x, filters * 2 ** (stage - 1), f"encoder{stage}_block{i}", strides)
        skips.append(x)
    skips.pop()  # the deepest goes up itself
    for level, width in zip(range(5, 0, -1), _decoder_widths(filters), strict=True):
        decoder = f"decoder{level}"
        x = blocks.upsample(x, width, name=f"{decoder}_upsample", weight_decay=weight_decay)
        if skips:
            x = blocks.concatenate(x, skips.pop(), name=f"{decoder}_skip")
        x = blocks.convolutions(x, width, 2, name=decoder, weight_decay=weight_decay, use_bias=False)
    return x


def _decoder_widths(filters: int) -> list[int]:
    return [max(filters * part // 2, 1) for part in RESNET34_DECODERS]
