"""The 3-D excitation encoder-decoder of mecheter2023 (section 3.3 and Figure 1).

Mecheter, Abbod, Zaidi, Amira: transfer learning from T1-w to T2-w brain MR for bone segmentation, CAAI
Transactions on Intelligence Technology. Its base network is the same authors' Neurocomputing 2022 paper
(doi 10.1016/j.neucom.2022.03.039), which combines the two recalibrations one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mrseg import _checks
from mrseg.models import blocks

#: "after each three convolutional layers" an attention block follows (section 3.3).
CONVS_PER_STAGE = 3
STAGES = 3


def se_unet3d(
    input_shape: Sequence[int | None],
    num_classes: int = 3,
    *,
    filters: int = 32,
    recalibration: str = "sequential",
    weight_decay: float = 0.0,
    name: str = "se_unet3d",
) -> keras.Model:
    """Encoder-decoder of 21 convolutions and 7 recalibration blocks.

    Three encoder stages and a bottleneck of three convolutions each, three decoder stages that mirror the
    encoder; after every three convolutions a recalibration block. At the paper's patch and 32 filters:

    ==========  ===================================================  ================
    stage       layers                                               features
    ==========  ===================================================  ================
    encoder1    3 x (conv 32, BN, ReLU), recalibration               128 x 128 x 48
    encoder2    max-pool; 3 x conv 64, recalibration                 64 x 64 x 24
    encoder3    max-pool; 3 x conv 128, recalibration                32 x 32 x 12
    bottleneck  max-pool; 3 x conv 256, recalibration                16 x 16 x 6
    decoder3    deconv 128, skip 3; 3 x conv 128, recalibration      32 x 32 x 12
    decoder2    deconv 64, skip 2; 3 x conv 64, recalibration        64 x 64 x 24
    decoder1    deconv 32, skip 1; 3 x conv 32, recalibration        128 x 128 x 48
    head        conv 1 x 1 x 1 to the classes, softmax               128 x 128 x 48
    ==========  ===================================================  ================

    Args:
        input_shape: (x, y, z, channels) in voxels, each size a multiple of 8 or None; (x, y, channels) builds
            the same network in 2-D.
        num_classes: classes with the background (air), 2 or more.
        filters: channels of the first stage; each stage doubles them. The paper does not state it; 32 is
            chosen.
        recalibration: "sequential" (the paper: spatial after channel), "add", "max" or "concat".
        weight_decay: L2 penalty on the convolution kernels; the paper trains with 5e-4.
        name: of the model.

    Returns:
        keras.Model from (N, x, y, z, channels) to probabilities (N, x, y, z, num_classes), float32 under any
        dtype policy. 8,649,930 parameters at 32 filters.

    Raises:
        InputError: a size that does not divide by 8, an unknown recalibration, fewer than two classes.

    Deviation: the "fully connected layer" is a convolution of size 1, the only reading with one label per
        voxel.
    Deviation: the skip leaves after the recalibration and before the pooling; the paper does not say.

    Reference:
        mecheter2023, section 3.3, Figure 1. Weights start from Glorot uniform, as stated.
    """
    _checks.choice("recalibration", recalibration, blocks.RECALIBRATIONS)

    def stage(x, width, stage_name):
        x = blocks.convolutions(x, width, CONVS_PER_STAGE, name=stage_name, weight_decay=weight_decay)
        return blocks.recalibrate(x, recalibration, name=f"{stage_name}_recalibration")

    image = blocks.image_input(input_shape, num_classes, filters, multiple=2**STAGES)
    widths = [filters * 2**level for level in range(STAGES + 1)]
    x = blocks.encoder_decoder(image, widths, stage, weight_decay=weight_decay)
    x = blocks.head(x, num_classes, activation="softmax", weight_decay=weight_decay)
    return keras.Model(image, x, name=name)
