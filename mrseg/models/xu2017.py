"""VGG16 without dense layers, its scales resized and fused (Xu, Geraud, Bloch, ICIP 2017, section 2)."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mrseg import _checks
from mrseg.models import blocks
from mrseg.weight_files import check_weight_file

#: Convolutions of VGG16's five stages, each a multiple of ``filters`` channels wide.
STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
#: "specialized" feature maps of every stage (section 2.2).
SIDE_FILTERS = 16
SIDE_DEVIATION = 0.01


def vgg_fcn(
    input_shape: Sequence[int | None],
    num_classes: int = 8,
    *,
    filters: int = 64,
    stages: int = 5,
    weights: str | Path | None = None,
    input_deviation: float = 1.0,
    weight_decay: float = 0.0,
    name: str = "vgg_fcn",
) -> keras.Model:
    """Fully convolutional VGG16: a side convolution on each stage, resized to the image and fused.

    ::

        image ─► stage 1 ─► pool ─► stage 2 ─► pool ─► ... ─► stage 5
                    │                  │                         │
                 side x1            side x2                   side x16     3x3, 16 maps, linear
                    └──────────────────┴───────── concat ────────┘─► 1x1 ─► classes

    The image's three channels are the slices n-1, n and n+1 ("3D-like").

    Args:
        input_shape: (x, y, 3) in pixels, each size a multiple of 2**(stages-1) or None. In 2-D alone: the
            third dimension is in the colours.
        num_classes: classes with the background: 8 for newborns (NeoBrainS12), 9 for adults (MRBrainS13).
        filters: channels of the first stage.
        stages: 5 for newborns; 4 for adults, for whom the paper drops the branch of the deepest stage.
        weights: None starts from He normal. A path to a weight file of
            ``keras.applications.VGG16(include_top=False)``, or "imagenet" to let Keras fetch one, starts from
            ImageNet as the paper does; needs 64 filters.
        input_deviation: the input is divided by it. He normal is made for a deviation of 1: fed with 0 to
            255, it begins with logits in the hundreds, at which no pixel has a gradient. 74 is right for grey
            values spread evenly. 1 with ``weights``, which were trained on 0 to 255.
        weight_decay: L2 penalty on the convolution kernels (Caffe's decay is twice this number).
        name: of the model.

    Returns:
        keras.Model from (N, x, y, 3), 0 to 255 less the training mean, to probabilities (N, x, y,
        num_classes), float32 under any dtype policy. 14,927,384 parameters with 5 stages and 8 classes,
        7,774,153 with 4 and 9.

    Raises:
        InputError: a size that does not divide, three spatial sizes, fewer than two classes, another number
            of stages, a deviation out of range; with ``weights``: a deviation other than 1, a file of
            another network, other channels or filters.
        FileNotFoundError: no such weight file.

    Deviation: upsampling is bilinear interpolation, equal to the paper's fixed bilinear deconvolution away
        from the border. Side convolutions start from N(0, 0.01), the last from Glorot uniform, and have no
        ReLU; the paper does not say.

    Reference:
        xu2017, section 2.2 and Figure 1.
    """
    if stages not in (4, 5) or not isinstance(stages, int):
        raise _checks.error("stages is 5 (newborns) or 4 (adults).", stages)
    if not (isinstance(input_deviation, numbers.Real) and 1e-3 <= input_deviation <= 1e6) or (
        weights is not None and input_deviation != 1
    ):
        raise _checks.error(
            "input_deviation is 0.001 to 1e6, and 1 with weights of ImageNet.", repr(input_deviation)
        )
    options: dict[str, Any] = {"weight_decay": weight_decay}
    image = blocks.image_input(input_shape, num_classes, filters, multiple=2 ** (stages - 1))
    if len(image.shape) != 4:
        raise _checks.error(
            "vgg_fcn takes slices with their neighbours as colours.", input_shape, "Write (x, y, 3)."
        )
    x = (
        image
        if input_deviation == 1
        else keras.layers.Rescaling(1 / input_deviation, name="encoder1_scaled")(image)
    )
    sides = []
    for level, widths in enumerate(STAGES[:stages], start=1):
        for i, width in enumerate(widths, start=1):
            layer = f"encoder{level}_conv{i}"
            x = blocks.convolution(x, filters * width, name=layer, kernel_initializer="he_normal", **options)
            x = blocks.relu(x, name=f"{layer}_relu")
        side = blocks.convolution(
            x,
            SIDE_FILTERS,
            name=f"decoder{level}_side",
            kernel_initializer=keras.initializers.RandomNormal(stddev=SIDE_DEVIATION),
            **options,
        )
        if level > 1:
            side = blocks.interpolate(side, 2 ** (level - 1), name=f"decoder{level}_upsample")
        sides.append(side)
        if level < stages:
            x = blocks.pool(x, name=f"encoder{level}_pool")
    x = blocks.concatenate(*sides, name="head_concat")
    x = blocks.head(x, num_classes, activation="softmax", **options)
    model = keras.Model(image, x, name=name)
    if weights is not None:
        load_vgg16(model, weights)
    return model


def load_vgg16(model: keras.Model, weights: str | Path) -> tuple[str, ...]:
    """Copies VGG16's convolutions into ``vgg_fcn``, for an image whose channels are in the order R, G, B.

    Those weights expect blue first. The paper's R, G, B are the slices n-1, n, n+1, so the first kernel's
    input channels are turned round, once, and the image is not.

    Args:
        model: of :func:`vgg_fcn` with 64 filters; changed in place.
        weights: as for :func:`vgg_fcn`.

    Returns:
        Names of the layers that received a kernel and a bias, in order: 13, or 10 with 4 stages.

    Raises:
        InputError: another network than vgg_fcn; other channels or filters; a file that does not fit VGG16.
        FileNotFoundError: no such file.
    """
    names = {layer.name for layer in model.layers}
    if "decoder1_side" not in names or len(model.input_shape) != 4:
        raise _checks.error("VGG16's weights go into vgg_fcn.", f"a network called {model.name!r}")
    first = model.get_layer("encoder1_conv1")
    if model.input_shape[-1] != 3 or first.filters != 64:
        raise _checks.error(
            "VGG16's weights fit three channels and 64 filters.",
            f"{model.input_shape[-1]} channels, {first.filters} filters",
        )
    vgg16 = _vgg16(weights)
    received: list[str] = []
    for level, widths in enumerate(STAGES, start=1):
        for i in range(1, len(widths) + 1):
            target = f"encoder{level}_conv{i}"
            if target not in names:
                continue
            kernel, bias = vgg16.get_layer(f"block{level}_conv{i}").get_weights()
            if not received:
                kernel = np.flip(kernel, axis=2)  # (3, 3, blue green red, 64) -> red green blue
            model.get_layer(target).set_weights([kernel, bias])
            received.append(target)
    return tuple(received)


def _vgg16(weights: str | Path) -> keras.Model:
    if str(weights) != "imagenet":
        weights = _checks.existing_file(weights)
        check_weight_file(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras skips layers that a file lacks with a warning
            return keras.applications.VGG16(include_top=False, weights=str(weights))
    except (ValueError, OSError, KeyError, UserWarning) as reason:
        what = "could not be fetched" if str(weights) == "imagenet" else "holds another network"
        raise _checks.error(
            "weights is a weight file of keras.applications.VGG16(include_top=False).",
            f"{weights}, which {what} ({' '.join(str(reason).split())[:200]})",
            "Save one with that model's save_weights where the network allows fetching it.",
        ) from None
