"""The three networks beside the paper: sizes, blocks, heads."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.islam2025 import attention_unet, sep_res_unet, unet

SHAPES = {
    "encoder1_conv2_relu": (256, 256, 32),
    "encoder2_conv2_relu": (128, 128, 64),
    "encoder3_conv2_relu": (64, 64, 128),
    "bottleneck_conv2_relu": (32, 32, 256),
    "decoder3_upsample": (64, 64, 128),
    "decoder3_conv2_relu": (64, 64, 128),
    "decoder2_conv2_relu": (128, 128, 64),
    "decoder1_skip": (256, 256, 64),
    "decoder1_conv2_relu": (256, 256, 32),
    "head_logits": (256, 256, 4),
}


SEP_RES_SHAPES = {
    "encoder1_conv1_relu": (256, 256, 64),
    "encoder1_relu": (256, 256, 32),
    "encoder3_conv1_relu": (64, 64, 256),
    "encoder3_relu": (64, 64, 128),
    "bottleneck_relu": (32, 32, 256),
    "decoder3_skip": (64, 64, 256),
    "decoder1_relu": (256, 256, 32),
    "head_logits": (256, 256, 4),
}
SEP_RES_CODE_SHAPES = {
    "encoder3_conv2_relu": (64, 64, 128),
    "bottleneck_conv2_relu": (32, 32, 256),
    "bottleneck_pool": (16, 16, 256),
    "decoder3_upsample": (32, 32, 128),
    "decoder3_resize": (64, 64, 128),
    "decoder3_skip": (64, 64, 256),
    "decoder1_conv2_relu": (256, 256, 32),
}
ATTENTION_SHAPES = {
    "encoder1_conv2_relu": (256, 256, 64),
    "encoder4_conv2_relu": (32, 32, 512),
    "bottleneck_conv1_relu": (16, 16, 1024),
    "decoder4_gate_signal": (16, 16, 256),
    "decoder4_gate_signal_upsample": (32, 32, 256),
    "decoder4_gate_weight": (32, 32, 1),
    "decoder4_gate": (32, 32, 512),
    "decoder4_skip": (32, 32, 512),
    "decoder1_gate_skip": (256, 256, 32),
    "decoder1_conv2_relu": (256, 256, 64),
    "head_logits": (256, 256, 4),
}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: sep_res_unet((256, 256, 1)), SEP_RES_SHAPES),
        (lambda: sep_res_unet((256, 256, 1), variant="code"), SEP_RES_CODE_SHAPES),
        (lambda: attention_unet((256, 256, 1)), ATTENTION_SHAPES),
    ],
    ids=["sep_res_unet", "sep_res_unet as the code", "attention_unet"],
)
def test_features_of_the_other_two_have_the_spec_s_sizes(model, expected):
    built = model()
    assert {name: built.get_layer(name).output.shape[1:] for name in expected} == expected


def test_the_gate_weighs_the_skip_as_oktay_s_equation_says():
    """psi(relu(theta(x) + phi(g interpolated))) in NumPy, interpolated before phi as it is written."""
    model = attention_unet((32, 32, 1), filters=2)
    parts = ["encoder4_conv2_relu", "bottleneck_conv1_relu", "decoder4_gate"]
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype("float32")
    rng = np.random.default_rng(1)
    for w in model.weights:
        if "decoder4_gate" in w.path:
            w.assign(rng.normal(size=tuple(w.shape)))
    skip, below, gated = map(
        np.asarray, keras.Model(model.input, [model.get_layer(n).output for n in parts])(x)
    )
    bilinear = np.asarray(keras.layers.UpSampling2D(2, interpolation="bilinear")(below))

    def one(name, features):
        kernel, bias = model.get_layer(f"decoder4_gate_{name}").get_weights()
        return features @ kernel[0, 0] + bias

    called = np.maximum(one("skip", skip) + one("signal", bilinear), 0)
    np.testing.assert_allclose(gated, skip / (1 + np.exp(-one("weight", called))), rtol=1e-4, atol=1e-5)


def test_gated_skips_are_added_to_what_came_up():
    model = attention_unet((32, 32, 1), filters=2)
    added = model.get_layer("decoder2_skip")
    assert isinstance(added, keras.layers.Add)
    assert added.input[1] is model.get_layer("decoder2_gate").output


def test_the_sep_res_block_is_separable_widens_twice_and_has_a_shortcut_where_channels_change():
    model = sep_res_unet((16, 16, 1), filters=4)
    for name, width in {"encoder2_conv1": 16, "encoder2_conv2": 8, "decoder1_conv1": 8}.items():
        layer = model.get_layer(name)
        assert isinstance(layer, keras.layers.SeparableConv2D) and layer.filters == width
        assert not layer.use_bias
    branch, past = model.get_layer("encoder2_add").input
    assert branch is model.get_layer("encoder2_conv2_bn").output
    assert past is model.get_layer("encoder2_shortcut_bn").output


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_skips_are_concatenated_or_added(variant):
    kinds = {
        skip: type(
            sep_res_unet((16, 16, 1), filters=2, variant=variant, skip=skip).get_layer("decoder2_skip")
        )
        for skip in ("concat", "add")
    }
    assert kinds == {"concat": keras.layers.Concatenate, "add": keras.layers.Add}


def test_separable_networks_of_volumes_say_what_would_work():
    with pytest.raises(InputError, match="in 2-D alone.*plain convolutions"):
        sep_res_unet((16, 16, 16, 1))


def test_features_have_the_paper_s_sizes_layer_by_layer():
    model = unet((256, 256, 1))
    assert {name: model.get_layer(name).output.shape[1:] for name in SHAPES} == SHAPES


@pytest.mark.parametrize("build", [unet, sep_res_unet, attention_unet])
def test_convolutions_before_a_norm_have_no_bias_and_the_head_has_one(build):
    model = build((16, 16, 1), filters=2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and "gate" not in layer.name:
            assert layer.use_bias == (layer.name == "head_logits")


def test_the_softmax_head_sums_to_one_and_the_sigmoid_head_need_not():
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    soft, sigmoid = (unet((16, 16, 1), filters=2, head=head) for head in ("softmax", "sigmoid"))
    sigmoid.set_weights(soft.get_weights())
    p, q = np.asarray(soft(x)), np.asarray(sigmoid(x))
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-6)
    assert np.abs(q.sum(axis=-1) - 1).max() > 0.01
    np.testing.assert_array_equal(p.argmax(axis=-1), q.argmax(axis=-1))


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(InputError, match="softmax, sigmoid"):
        unet((16, 16, 1), head="relu")
    with pytest.raises(InputError, match="paper, code"):
        sep_res_unet((16, 16, 1), variant="authors")
    with pytest.raises(InputError, match="plain, separable"):
        attention_unet((16, 16, 1), convolution="depthwise")
