"""The three networks of islam2025 (Islam, Tabassum: brain tissue segmentation on IBSR18, 13 January 2025).

Paper: section 3.2 and Table 1. Where text and the authors' public code differ, the paper's text is the
default and the code's form an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from mrseg import _checks
from mrseg.models import blocks

CONVS_PER_STAGE = 2
VARIANTS = ("paper", "code")
SKIPS = ("concat", "add")
CONVOLUTIONS = ("plain", "separable")


def unet(
    input_shape: Sequence[int | None],
    num_classes: int = 4,
    *,
    filters: int = 32,
    head: str = "sigmoid",
    weight_decay: float = 0.0,
    name: str = "unet",
) -> keras.Model:
    """U-Net of three encoder stages, a bottleneck and three decoder stages with two convolutions each.

    Stage k has ``filters * 2**(k-1)`` channels, the bottleneck ``filters * 8``. Convolutions that feed a
    BatchNormalization have no bias. Upsampling is a transposed convolution of size 2 and stride 2.

    Args:
        input_shape: (x, y, channels) in voxels, each size a multiple of 8 or None; (x, y, z, channels) builds
            the same network in 3-D.
        num_classes: classes with the background, 2 or more.
        filters: channels of the first stage.
        head: "sigmoid", as the paper says: each class has its own probability and a voxel's probabilities
            need not sum to 1 (divide by their sum where that matters; the argmax is the same either way).
            "softmax": they sum to 1.
        weight_decay: L2 penalty on the convolution kernels.
        name: of the model.

    Returns:
        keras.Model from (N, x, y, channels) to probabilities (N, x, y, num_classes), float32 under any dtype
        policy. 1,929,348 parameters at 32 filters.

    Raises:
        InputError: a size that does not divide by 8, an unknown head, fewer than two classes.

    Reference:
        islam2025, section on the U-Net; widths as in the authors' public code.
    """
    _checks.choice("head", head, blocks.ACTIVATIONS)

    def stage(x: Any, width: int, stage_name: str) -> Any:
        return blocks.convolutions(
            x, width, CONVS_PER_STAGE, name=stage_name, weight_decay=weight_decay, use_bias=False
        )

    image = blocks.image_input(input_shape, num_classes, filters, multiple=8)
    x = blocks.encoder_decoder(image, _widths(filters, 4), stage, weight_decay=weight_decay)
    x = blocks.head(x, num_classes, activation=head, weight_decay=weight_decay)
    return keras.Model(image, x, name=name)


def sep_res_unet(
    input_shape: Sequence[int | None],
    num_classes: int = 4,
    *,
    filters: int = 32,
    variant: str = "paper",
    skip: str = "concat",
    head: str = "sigmoid",
    weight_decay: float = 0.0,
    name: str = "sep_res_unet",
) -> keras.Model:
    """Sep-Res U-Net: stages that widen to twice their channels and narrow again ("inverse bottleneck").

    Args:
        input_shape: (x, y, channels) in voxels, each size a multiple of 8 (variant "code": 16) or None;
            (x, y, z, channels) builds the variant "code" in 3-D.
        num_classes: classes with the background, 2 or more.
        filters: channels of the first stage.
        variant: "paper": two separable convolutions beside a shortcut. "code": what the authors ran, two
            plain convolutions without shortcut; its deepest stage is pooled once more before it goes up, so
            the first decoder is interpolated to the size of its skip.
        skip: "concat" or "add", as the text allows both.
        head: "sigmoid" (the paper) or "softmax".
        weight_decay: L2 penalty on the convolution kernels.
        name: of the model.

    Returns:
        keras.Model from (N, x, y, channels) to probabilities (N, x, y, num_classes), float32 under any dtype
        policy. 677,613 parameters at 32 filters; 3,683,492 in the variant "code".

    Raises:
        InputError: a size that does not divide, an unknown option, fewer than two classes; a volume for
            the variant "paper" (Keras has no separable convolution in 3-D).

    Deviation: where the shortcut joins, and how wide the middle is, follow the usual inverted residual block
        and the authors' code; the text names the parts without a drawing.

    Reference:
        islam2025, section on the Sep-Res U-Net and Table 1.
    """
    _checks.choice("variant", variant, VARIANTS)
    _checks.choice("skip", skip, SKIPS)
    _checks.choice("head", head, blocks.ACTIVATIONS)
    as_code = variant == "code"

    def stage(x: Any, width: int, stage_name: str) -> Any:
        if not as_code:
            return _separable_residual(x, width, stage_name, weight_decay)
        options: dict[str, Any] = {"weight_decay": weight_decay, "use_bias": False}
        x = blocks.convolution_norm_relu(x, 2 * width, name=f"{stage_name}_conv1", **options)
        x = blocks.convolution_norm_relu(x, width, name=f"{stage_name}_conv2", **options)
        return blocks.pool(x, name="bottleneck_pool") if stage_name == "bottleneck" else x

    def join(up: Any, encoder: Any, below: Any, decoder: str) -> Any:
        if as_code and decoder == "decoder3":
            up = blocks.interpolate(up, 2, name=f"{decoder}_resize")
        joined = blocks.concatenate if skip == "concat" else blocks.add
        return joined(up, encoder, name=f"{decoder}_skip")

    image = blocks.image_input(input_shape, num_classes, filters, multiple=16 if as_code else 8)
    x = blocks.encoder_decoder(image, _widths(filters, 4), stage, join=join, weight_decay=weight_decay)
    x = blocks.head(x, num_classes, activation=head, weight_decay=weight_decay)
    return keras.Model(image, x, name=name)


def attention_unet(
    input_shape: Sequence[int | None],
    num_classes: int = 4,
    *,
    filters: int = 64,
    convolution: str = "plain",
    head: str = "sigmoid",
    weight_decay: float = 0.0,
    name: str = "attention_unet",
) -> keras.Model:
    """Attention U-Net: four encoder stages, a bottleneck of one convolution, gated skips that are added.

    Args:
        input_shape: (x, y, channels) in voxels, each size a multiple of 16 or None; (x, y, z, channels)
            builds the same network in 3-D (plain convolutions alone).
        num_classes: classes with the background, 2 or more.
        filters: channels of the first stage.
        convolution: "plain" (two convolutions a stage, as text and code have it) or "separable" (the blocks
            of the Sep-Res U-Net, which Table 1 ticks for this network too).
        head: "sigmoid" (the paper) or "softmax".
        weight_decay: L2 penalty on the convolution kernels.
        name: of the model.

    Returns:
        keras.Model from (N, x, y, channels) to probabilities (N, x, y, num_classes), float32 under any dtype
        policy. 18,997,416 parameters at 64 filters; 9,698,993 with separable convolutions.

    Raises:
        InputError: a size that does not divide by 16, an unknown option, fewer than two classes; a volume
            with separable convolutions.

    Deviation: Table 1 ticks separable convolution and inverse bottleneck for this network; text and the
        authors' code have neither, and plain convolutions are the default.

    Reference:
        islam2025, section on the Attention U-Net ("additive skip connections"); gate as in the authors' code.
    """
    _checks.choice("convolution", convolution, CONVOLUTIONS)
    _checks.choice("head", head, blocks.ACTIVATIONS)

    def stage(x: Any, width: int, stage_name: str) -> Any:
        if convolution == "separable":
            return _separable_residual(x, width, stage_name, weight_decay)
        depth = 1 if stage_name == "bottleneck" else CONVS_PER_STAGE
        return blocks.convolutions(
            x, width, depth, name=stage_name, weight_decay=weight_decay, use_bias=False
        )

    def join(up: Any, encoder: Any, below: Any, decoder: str) -> Any:
        gated = blocks.attention_gate(encoder, below, name=f"{decoder}_gate", weight_decay=weight_decay)
        return blocks.add(up, gated, name=f"{decoder}_skip")

    image = blocks.image_input(input_shape, num_classes, filters, multiple=16)
    x = blocks.encoder_decoder(image, _widths(filters, 5), stage, join=join, weight_decay=weight_decay)
    x = blocks.head(x, num_classes, activation=head, weight_decay=weight_decay)
    return keras.Model(image, x, name=name)


def _widths(filters: int, stages: int) -> list[int]:
    return [filters * 2**level for level in range(stages)]


def _separable_residual(x: Any, width: int, name: str, weight_decay: float) -> Any:
    """Separable convolutions to twice the width and back, beside a shortcut."""
    options: dict[str, Any] = {"weight_decay": weight_decay, "use_bias": False}
    y = blocks.convolution_norm_relu(
        x, 2 * width, name=f"{name}_conv1", convolve=blocks.separable_convolution, **options
    )
    y = blocks.separable_convolution(y, width, name=f"{name}_conv2", **options)
    y = blocks.norm(y, name=f"{name}_conv2_bn")
    y = blocks.add(y, blocks.shortcut(x, y, name=f"{name}_shortcut", **options), name=f"{name}_add")
    return blocks.relu(y, name=f"{name}_relu")
