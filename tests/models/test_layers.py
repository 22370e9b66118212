"""Recalibration by hand, against loops, and through every round that a layer must survive."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg.models.layers import (
    ChannelRecalibration,
    SpatialRecalibration,
    StopGradient,
    channel_recalibration,
    spatial_recalibration,
)

LAYERS = [ChannelRecalibration, SpatialRecalibration, StopGradient]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_channel_recalibration_of_a_two_channel_image_worked_out_by_hand():
    #  channel 0 is 1, 3 (mean 2), channel 1 is -4, 0 (mean -2)
    #  squeeze: relu(2 * 1 + -2 * 1 + 1) = 1; excite: sigmoid(1 * 0) = 1/2 and sigmoid(1 * ln 3) = 3/4
    x = np.array([1, -4, 3, 0], "float32").reshape(1, 2, 1, 2)
    squeeze = np.array([[1], [1]], "float32"), np.array([1], "float32")
    excite = np.array([[0, np.log(3)]], "float32"), np.zeros(2, "float32")
    y = keras.ops.convert_to_numpy(channel_recalibration(x, squeeze, excite))
    np.testing.assert_allclose(y.ravel(), [0.5, -3, 1.5, 0], rtol=1e-6)


def test_spatial_recalibration_of_two_voxels_worked_out_by_hand():
    #  voxel (1, -4): sigmoid(1 * ln 3 + 0 - 4 * 0) = 3/4; voxel (0, 2): sigmoid(0) = 1/2
    x = np.array([1, -4, 0, 2], "float32").reshape(1, 2, 1, 2)
    kernel = np.array([[np.log(3)], [0]], "float32")
    y = keras.ops.convert_to_numpy(spatial_recalibration(x, kernel, np.zeros(1, "float32")))
    np.testing.assert_allclose(y.ravel(), [0.75, -3, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 4, 2, 4)], ids=["2-D", "3-D"])
def test_both_recalibrations_equal_a_loop_over_voxels(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    w1, b1, w2, b2 = (rng.normal(size=s).astype("float32") for s in [(4, 2), (2,), (2, 4), (4,)])
    k, b = rng.normal(size=(4, 1)).astype("float32"), rng.normal(size=1).astype("float32")
    by_channel, by_voxel = np.empty_like(x), np.empty_like(x)
    for n in range(shape[0]):
        mean = x[n].reshape(-1, 4).mean(axis=0)
        by_channel[n] = x[n] * sigmoid(np.maximum(mean @ w1 + b1, 0) @ w2 + b2)
        for voxel in np.ndindex(shape[1:-1]):
            by_voxel[n][voxel] = x[n][voxel] * sigmoid((x[n][voxel] @ k + b)[0])
    np.testing.assert_allclose(channel_recalibration(x, (w1, b1), (w2, b2)), by_channel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spatial_recalibration(x, k, b), by_voxel, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100))
@settings(max_examples=15, deadline=None)
def test_recalibration_never_enlarges_a_value_nor_turns_its_sign(seed, scale):
    x = scale * np.random.default_rng(seed).normal(size=(1, 3, 3, 4)).astype("float32")
    for layer in (ChannelRecalibration(), SpatialRecalibration()):
        y = keras.ops.convert_to_numpy(layer(x))
        assert np.all(np.abs(y) <= np.abs(x)) and np.all(y * x >= 0)


def test_channel_recalibration_of_a_constant_image_is_constant_and_of_zero_is_zero():
    layer = ChannelRecalibration()
    y = keras.ops.convert_to_numpy(layer(np.ones((1, 4, 4, 3), "float32")))
    assert np.ptp(y, axis=(1, 2)).max() == 0
    assert not keras.ops.convert_to_numpy(layer(np.zeros((1, 4, 4, 3), "float32"))).any()


def test_a_single_channel_keeps_one_hidden_unit():
    layer = ChannelRecalibration(reduction=2)
    layer.build((None, 4, 4, 1))
    assert [tuple(w.shape) for w in layer.weights] == [(1, 1), (1,), (1, 1), (1,)]


@pytest.mark.parametrize("kind", LAYERS)
def test_config_round_trip_makes_the_same_layer(kind):
    layer = kind(name="encoder1_recalibration", dtype="mixed_bfloat16")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is kind and again.get_config() == layer.get_config()


@pytest.mark.parametrize("kind", LAYERS)
def test_under_bfloat16_the_layer_computes_in_bfloat16_and_near_the_float32_result(kind):
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype("float32")
    exact, half = kind(), kind(dtype="mixed_bfloat16")
    y = keras.ops.convert_to_numpy(exact(x))
    half.build(x.shape)
    half.set_weights(exact.get_weights())
    z = half(x)
    assert keras.backend.standardize_dtype(z.dtype) == "bfloat16"
    # bfloat16 keeps 8 bits: 2**-8 for the input, the weight and the product each
    z = keras.ops.convert_to_numpy(keras.ops.cast(z, "float32"))
    np.testing.assert_allclose(z, y, rtol=0.02, atol=1e-3)


def test_weights_are_named_and_start_from_glorot_uniform_and_zero():
    layer = ChannelRecalibration()
    layer.build((None, 4, 4, 8))
    names = ["squeeze_kernel", "squeeze_bias", "excite_kernel", "excite_bias"]
    assert [w.name for w in layer.weights] == names
    kernel = layer.get_weights()[0]
    assert np.abs(kernel).max() <= np.sqrt(6 / (8 + 4)) and np.std(kernel) > 0
    assert not layer.get_weights()[1].any() and not layer.get_weights()[3].any()
