"""unet beside the paper: sizes, heads, and that it can learn."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.islam2025 import unet

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


def slices():
    """Two slices of nested squares, one grey value per class."""
    labels = np.zeros((2, 16, 16), "int32")
    labels[:, 2:14, 2:14] = 1
    labels[0, 4:12, 4:12], labels[1, 5:13, 5:13] = 2, 2
    labels[0, 6:10, 6:10], labels[1, 8:11, 8:11] = 3, 3
    return np.array([0.0, -1.0, 0.5, 1.5], "float32")[labels][..., None], labels


def test_features_have_the_paper_s_sizes_layer_by_layer():
    model = unet((256, 256, 1))
    assert {name: model.get_layer(name).output.shape[1:] for name in SHAPES} == SHAPES


def test_convolutions_before_a_norm_have_no_bias_and_the_head_has_one():
    model = unet((16, 16, 1), filters=2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.use_bias == (layer.name == "head_logits")


def test_the_softmax_head_sums_to_one_and_the_sigmoid_head_need_not():
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    soft, sigmoid = (unet((16, 16, 1), filters=2, head=head) for head in ("softmax", "sigmoid"))
    sigmoid.set_weights(soft.get_weights())
    p, q = np.asarray(soft(x)), np.asarray(sigmoid(x))
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-6)
    assert np.abs(q.sum(axis=-1) - 1).max() > 0.01
    np.testing.assert_array_equal(p.argmax(axis=-1), q.argmax(axis=-1))


def test_an_unknown_head_lists_the_known_ones():
    with pytest.raises(InputError, match="softmax, sigmoid"):
        unet((16, 16, 1), head="relu")


def test_it_learns_two_small_slices_by_heart():
    images, labels = slices()
    keras.utils.set_random_seed(0)
    model = unet((16, 16, 1), filters=8)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "categorical_crossentropy", jit_compile=False)
    model.fit(images, keras.utils.to_categorical(labels, 4), epochs=60, verbose=0)
    found = np.argmax(model.predict(images, verbose=0), axis=-1)
    for label in range(4):
        a, b = labels == label, found == label
        assert 2 * np.sum(a & b) / (np.sum(a) + np.sum(b)) >= 0.95
