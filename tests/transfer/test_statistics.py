"""Adapted statistics are those of the images; nothing else moves."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.transfer.freezing import freeze, train_last
from mrseg.transfer.fusion import hybrid
from mrseg.transfer.statistics import adapt_statistics


def images(seed=0, cases=6, size=32):
    return np.random.default_rng(seed).normal(3, 2, size=(cases, size, size, 1)).astype("float32")


def statistics(model):
    return {w.path: np.array(w) for w in model.weights if "moving" in w.name}


def test_mean_and_variance_of_three_voxels_by_hand():
    # 2x on the voxels 1, 2 | 6: values 2, 4, 12; mean 6, variance (16 + 4 + 36) / 3, in batches of 2 and 1
    tensor = keras.Input((1, 1, 1), name="image")
    x = keras.layers.Conv2D(1, 1, use_bias=False, name="encoder1_conv1")(tensor)
    x = keras.layers.BatchNormalization(epsilon=0.001, name="encoder1_conv1_bn")(x)
    model = keras.Model(tensor, x)
    model.get_layer("encoder1_conv1").set_weights([np.full((1, 1, 1, 1), 2.0)])
    voxels = np.array([1, 2, 6], "float32").reshape(3, 1, 1, 1)
    moved = adapt_statistics(model, [voxels[:2], voxels[2:]])
    norm = model.get_layer("encoder1_conv1_bn")
    assert float(norm.moving_mean[0]) == pytest.approx(6)
    assert float(norm.moving_variance[0]) == pytest.approx(56 / 3)
    assert moved == {"encoder1_conv1_bn": pytest.approx(6 / np.sqrt(1.001))}  # from mean 0, variance 1


def test_of_one_batch_inference_then_equals_training():
    model, x = unet((32, 32, 1), filters=2), images()
    before = np.asarray(model(x, training=False))
    as_in_training = np.asarray(model(x, training=True))  # moves the statistics, which are estimated anew
    adapt_statistics(model, [x])
    np.testing.assert_allclose(model(x, training=False), as_in_training, atol=1e-4)
    assert np.abs(before - as_in_training).max() > 0.01


def test_weights_flags_and_dropout_stay_and_frozen_groups_are_adapted():
    model = segnet((32, 32, 1), filters=2)
    train_last(model, 2, frozen_dropout="live")
    flags = [(layer.trainable, type(layer), getattr(layer, "momentum", None)) for layer in model.layers]
    weights = {w.path: np.array(w) for w in model.weights if "moving" not in w.name}
    before = statistics(model)
    model.compile("sgd", "mse")
    adapt_statistics(model, [images()])
    assert flags == [(la.trainable, type(la), getattr(la, "momentum", None)) for la in model.layers]
    assert all(np.array_equal(w, weights[w.path]) for w in model.weights if w.path in weights)
    after = statistics(model)
    assert all(not np.array_equal(after[path], before[path]) for path in after) and model.compiled


def test_an_adapted_encoder_is_left_alone():
    model = hybrid(unet((32, 32, 1), filters=2))
    before = statistics(model)
    moved = adapt_statistics(model, [images()])
    after = statistics(model)
    same = {path for path in after if np.array_equal(after[path], before[path])}
    assert same == {path for path in after if path.startswith("adapted_")}
    assert not any(name.startswith("adapted_") for name in moved)


def test_nan_and_no_images_leave_the_model_unchanged():
    model = unet((32, 32, 1), filters=2)
    freeze(model, ["encoder1"])
    before = statistics(model)
    bad = images()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite values"):
        adapt_statistics(model, [images(), bad])
    with pytest.raises(InputError, match="at least one image"):
        adapt_statistics(model, [])
    assert all(np.array_equal(before[path], value) for path, value in statistics(model).items())
    tensor = keras.Input((4, 4, 1), name="image")
    with pytest.raises(InputError, match="with BatchNormalization"):
        adapt_statistics(keras.Model(tensor, keras.layers.ReLU(name="head")(tensor)), [images()])
