"""res_unet beside the paper and its follow-up: sizes, blocks, where the recalibration stands, ResNet34."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.alkhimova2022 import POSITIONS, res_unet

SHAPES = {
    "encoder1_relu": (128, 128, 64),
    "encoder2_relu": (64, 64, 128),
    "encoder3_relu": (32, 32, 256),
    "encoder4_relu": (16, 16, 512),
    "bottleneck_relu": (8, 8, 1024),
    "decoder4_upsample": (16, 16, 512),
    "decoder4_skip": (16, 16, 1024),
    "decoder4_relu": (16, 16, 512),
    "decoder3_relu": (32, 32, 256),
    "decoder2_relu": (64, 64, 128),
    "decoder1_relu": (128, 128, 64),
    "head_logits": (128, 128, 2),
}
RESNET34_SHAPES = {
    "stem_conv1_relu": (64, 64, 64),
    "encoder1_block3_relu": (32, 32, 64),
    "encoder2_block4_relu": (16, 16, 128),
    "encoder3_block6_relu": (8, 8, 256),
    "encoder4_block3_relu": (4, 4, 512),
    "decoder5_skip": (8, 8, 512),
    "decoder5_conv2_relu": (8, 8, 256),
    "decoder4_conv2_relu": (16, 16, 128),
    "decoder3_conv2_relu": (32, 32, 64),
    "decoder2_skip": (64, 64, 128),
    "decoder2_conv2_relu": (64, 64, 64),
    "decoder1_upsample": (128, 128, 32),
    "decoder1_conv2_relu": (128, 128, 32),
    "head_logits": (128, 128, 2),
}


def shapes(model, names):
    return {name: model.get_layer(name).output.shape[1:] for name in names}


def test_features_have_the_chosen_sizes_layer_by_layer():
    assert shapes(res_unet((128, 128, 1)), SHAPES) == SHAPES


def test_the_resnet34_encoder_has_3_4_6_3_blocks_and_the_decoder_five_stages():
    model = res_unet((128, 128, 1), backbone="resnet34")
    assert shapes(model, RESNET34_SHAPES) == RESNET34_SHAPES
    sums = [layer.name for layer in model.layers if layer.name.endswith("_add")]
    assert [sum(name.startswith(f"encoder{stage}_block") for name in sums) for stage in (1, 2, 3, 4)] == [
        3, 4, 6, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("position", POSITIONS)
def test_the_recalibration_stands_where_it_is_said_to(position):
    model = res_unet((16, 16, 1), filters=4, position=position)
    named = {layer.name: layer for layer in model.layers}
    scse, total = named.get("encoder2_recalibration"), named["encoder2_add"]
    branch, past = total.input
    expected = {
        "standard": lambda: branch is scse.output and past is named["encoder2_shortcut_bn"].output,
        "pre": lambda: named["encoder2_conv1"].input is scse.output,
        "post": lambda: named["encoder2_pool"].input is scse.output,
        "identity": lambda: past is scse.output and branch is named["encoder2_conv2_bn"].output,
        "none": lambda: scse is None,
    }
    assert expected[position]()


def test_the_sum_of_both_recalibrations_worked_out_by_a_separate_call():
    model = res_unet((16, 16, 1), filters=4)
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    names = [f"encoder1_recalibration{part}" for part in ("_channel", "_spatial", "")]
    channel, spatial, both = keras.Model(model.input, [model.get_layer(n).output for n in names])(x)
    np.testing.assert_allclose(both, channel + spatial, rtol=1e-6)


def test_a_stage_that_keeps_its_channels_has_an_identity_shortcut():
    model = res_unet((32, 32, 1), filters=2, backbone="resnet34")
    names = {layer.name for layer in model.layers}
    assert "encoder1_block1_shortcut" not in names and "encoder2_block1_shortcut" in names
    assert "encoder2_block2_shortcut" not in names
    assert model.get_layer("encoder2_block1_shortcut").strides == (2, 2)


def test_kernels_start_from_glorot_uniform():
    for layer in res_unet((16, 16, 1), filters=2).layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Conv2DTranspose):
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"position": "after"}, "standard, pre, post, identity, none"),
        ({"backbone": "resnet50"}, "unet, resnet34.*Did you mean 'resnet34'"),
        ({"recalibration": "concat"}, "add, max, sequential"),
    ],
)
def test_unknown_options_list_the_known_ones(options, words):
    with pytest.raises(InputError, match=words):
        res_unet((32, 32, 1), **options)
