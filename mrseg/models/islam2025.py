"""The U-Net of islam2025 (Islam, Tabassum: brain tissue segmentation on IBSR18, MAIA, 13 January 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mrseg import _checks
from mrseg.models import blocks

CONVS_PER_STAGE = 2
STAGES = 3


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

    def stage(x, width, stage_name):
        return blocks.convolutions(
            x, width, CONVS_PER_STAGE, name=stage_name, weight_decay=weight_decay, use_bias=False
        )

    image = blocks.image_input(input_shape, num_classes, filters, multiple=2**STAGES)
    x, skips = image, []
    for level in range(1, STAGES + 1):
        x = stage(x, filters * 2 ** (level - 1), f"encoder{level}")
        skips.append(x)
        x = blocks.pool(x, name=f"encoder{level}_pool")
    x = stage(x, filters * 2**STAGES, "bottleneck")
    for level in range(STAGES, 0, -1):
        width = filters * 2 ** (level - 1)
        x = blocks.upsample(x, width, name=f"decoder{level}_upsample", weight_decay=weight_decay)
        x = blocks.join(x, skips[level - 1], name=f"decoder{level}_skip")
        x = stage(x, width, f"decoder{level}")
    x = blocks.head(x, num_classes, activation=head, weight_decay=weight_decay)
    return keras.Model(image, x, name=name)
