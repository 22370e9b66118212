"""SegNet as mecheter2020 trains it (Mecheter, Amira, Abbod, Zaidi, IEEE SSCI 2020, section II).

The network is that of Badrinarayanan, Kendall, Cipolla 2017: the 13 convolutions of VGG16, mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from mrseg import _checks
from mrseg.models import blocks

#: Convolutions of encoder1 to encoder5, each a multiple of ``filters`` channels wide.
STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
UNPOOLINGS = ("indices", "upsample")
HEADS = ("3x3", "1x1")
#: Where dropout layers stand: after these stages.
DROPOUT_AT = {
    "bottleneck": ("encoder5",),
    "bayesian": ("encoder3", "encoder4", "encoder5", "decoder5", "decoder4", "decoder3"),
    "head": ("decoder1",),
}


def segnet(
    input_shape: Sequence[int | None],
    num_classes: int = 3,
    *,
    filters: int = 64,
    unpool: str = "indices",
    dropout: float = 0.7,
    dropout_at: str = "bottleneck",
    head: str = "3x3",
    weight_decay: float = 0.0,
    name: str = "segnet",
) -> keras.Model:
    """SegNet: 13 convolutions and five poolings down, five unpoolings and 13 convolutions up, no skips.

    At the paper's image and 64 filters:

    ========  =========================  =========  ========  =========================  =========
    stage     convolutions               features   stage     convolutions               features
    ========  =========================  =========  ========  =========================  =========
    encoder1  64, 64; pool               256 x 256  decoder1  unpool; 64, classes        256 x 256
    encoder2  128, 128; pool             128 x 128  decoder2  unpool; 128, 64            128 x 128
    encoder3  256, 256, 256; pool        64 x 64    decoder3  unpool; 256, 256, 128      64 x 64
    encoder4  512, 512, 512; pool        32 x 32    decoder4  unpool; 512, 512, 256      32 x 32
    encoder5  512, 512, 512; pool        16 x 16    decoder5  unpool; 512, 512, 512      16 x 16
    ========  =========================  =========  ========  =========================  =========

    Each convolution is followed by BatchNormalization and ReLU, but for the last, which gives the classes.

    Args:
        input_shape: (x, y, channels) in voxels, each size a multiple of 32 or None; (x, y, z, channels)
            builds the same network in 3-D.
        num_classes: classes with the background (air), 2 or more.
        filters: channels of the first stage.
        unpool: "indices" puts each value back where its maximum was, SegNet's defining step. "upsample"
            repeats it, as many public versions do; the paper writes "upsampling layers" only.
        dropout: fraction of features dropped in training, in [0, 1). The paper's "factor 0.7", read as Keras'
            rate; write 0.3 to read it as the fraction kept.
        dropout_at: "bottleneck" (one layer after the last pooling), "bayesian" (after the three deepest
            encoder and decoder stages, Kendall et al. 2015) or "head" (before the classes). The paper does
            not say.
        head: "3x3": the 13th convolution up gives the classes, as SegNet's. "1x1": it keeps its width and a
            convolution of size 1 follows.
        weight_decay: L2 penalty on the convolution kernels.
        name: of the model.

    Returns:
        keras.Model from (N, x, y, channels) to probabilities (N, x, y, num_classes), float32 under any dtype
        policy. 29,459,459 parameters at 64 filters.

    Raises:
        InputError: a size that does not divide by 32, an unknown option, fewer than two classes, a dropout
            outside [0, 1).

    Deviation: widths are those of VGG16, which 13 convolutions and five poolings imply; place and meaning of
        the dropout, the unpooling and the size of the last convolution are chosen.

    Reference:
        mecheter2020, section on the network. Weights start from He normal, as stated.
    """
    _checks.choice("unpool", unpool, UNPOOLINGS)
    _checks.choice("dropout_at", dropout_at, DROPOUT_AT)
    _checks.choice("head", head, HEADS)
    if not 0.0 <= dropout < 1.0:
        raise _checks.error("dropout is the fraction dropped, in [0, 1).", dropout)
    options: dict[str, Any] = {"kernel_initializer": "he_normal", "weight_decay": weight_decay}

    def convolutions(x: Any, widths: Sequence[int], stage: str) -> Any:
        for i, width in enumerate(widths, start=1):
            x = blocks.convolution_norm_relu(x, filters * width, name=f"{stage}_conv{i}", **options)
        return x

    def drop(x: Any, stage: str) -> Any:
        if dropout == 0.0 or stage not in DROPOUT_AT[dropout_at]:
            return x
        place = "bottleneck" if stage == f"encoder{len(STAGES)}" else stage
        return layers.Dropout(dropout, name=f"{place}_dropout")(x)

    image = blocks.image_input(input_shape, num_classes, filters, multiple=2 ** len(STAGES))
    x, indices = image, []
    for level, widths in enumerate(STAGES, start=1):
        x = convolutions(x, widths, f"encoder{level}")
        pooling = f"encoder{level}_pool"
        if unpool == "indices":
            x, where = blocks.pool_with_indices(x, name=pooling)
            indices.append(where)
        else:
            x = blocks.pool(x, name=pooling)
        x = drop(x, f"encoder{level}")
    for level in range(len(STAGES), 0, -1):
        decoder = f"decoder{level}"
        if unpool == "indices":
            x = blocks.unpool(x, indices[level - 1], name=f"{decoder}_unpool")
        else:
            x = blocks.repeat(x, name=f"{decoder}_unpool")
        x = drop(convolutions(x, _upward(level, head), decoder), decoder)
    x = blocks.head(x, num_classes, activation="softmax", size=int(head[0]), **options)
    return keras.Model(image, x, name=name)


def _upward(level: int, head: str) -> tuple[int, ...]:
    """Widths of a decoder stage: its encoder's backwards, the last narrowed to the stage above."""
    own = STAGES[level - 1]
    if level == 1:
        return own if head == "1x1" else own[:-1]
    return (*own[:-1], STAGES[level - 2][-1])
