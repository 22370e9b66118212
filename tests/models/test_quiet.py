"""A quiet layer is its Keras parent while it trains, and hands its input on while it is frozen."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg.models.quiet import QUIET, is_random, is_silent, set_quiet


def build(kind):
    return kind(1.0) if kind is keras.layers.GaussianNoise else kind(0.5)


def shape(kind):
    return (2, 4, 4, 4, 3) if "3D" in kind.__name__ else (2, 8, 8, 3)


@pytest.mark.parametrize("kind", QUIET, ids=lambda kind: kind.__name__)
def test_every_random_layer_falls_silent_while_frozen_and_wakes_again(kind):
    layer, x = build(kind), np.ones(shape(kind), "float32")
    set_quiet(layer, True)
    assert not np.array_equal(layer(x, training=True), x) and not is_silent(layer)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True), x)
    assert is_silent(layer)
    set_quiet(layer, False)
    assert type(layer) is kind and not np.array_equal(layer(x, training=True), x)


@pytest.mark.parametrize("kind", QUIET, ids=lambda kind: kind.__name__)
def test_a_quiet_layer_survives_its_config(kind):
    layer = build(kind)
    set_quiet(layer, True)
    layer.trainable = False
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is QUIET[kind] and is_silent(again)
    assert again.get_config() == layer.get_config()


def test_what_is_random():
    kinds = keras.layers
    assert is_random(kinds.Dropout(0.5)) and is_random(kinds.RandomFlip())
    assert not is_random(kinds.Dropout(0.0)) and not is_random(kinds.BatchNormalization())
    dense = kinds.Dense(1)
    set_quiet(dense, True)
    assert type(dense) is kinds.Dense
