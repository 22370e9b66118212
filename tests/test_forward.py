from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.forward import compile_forward, for_volume, with_dropout
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.quiet import set_quiet


def random_batch(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


@pytest.fixture(scope="module")
def small_unet():
    return unet((16, 16, 1), 3, filters=2, head="softmax")


def test_a_network_for_a_volume_has_the_same_weights_and_the_size_its_poolings_ask_for(small_unet):
    built = for_volume(small_unet, (21, 30))
    assert built.input_shape == (None, 24, 32, 1) and built.output_shape == (None, 24, 32, 3)
    for one, other in zip(built.get_weights(), small_unet.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_at_its_own_size_a_network_for_a_volume_gives_the_same_answer(small_unet):
    batch = random_batch(2, 16, 16, 1)
    built = for_volume(small_unet, (16, 16))
    np.testing.assert_array_equal(
        compile_forward(built, batch.shape)(batch), compile_forward(small_unet, batch.shape)(batch)
    )


def test_a_network_of_open_sizes_is_built_at_the_volume_s():
    model = unet((None, None, 1), 3, filters=2, head="softmax")
    assert for_volume(model, (9, 40)).output_shape == (None, 16, 40, 3)


def test_a_network_that_is_tied_to_its_size_is_refused():
    image = keras.Input((4, 4, 1))
    x = keras.layers.Dense(16, activation="sigmoid")(keras.layers.Flatten()(image))
    model = keras.Model(image, keras.layers.Reshape((4, 4, 1))(x))
    with pytest.raises(InputError, match="whole volume at once.*extent='patch'"):
        for_volume(model, (8, 8))


def dropped(rate=0.5):
    """x, normalised by moving statistics of mean 1 and variance 4, then dropped."""
    image = keras.Input((8, 8, 1))
    norm = keras.layers.BatchNormalization(epsilon=0.0, scale=False, center=False, name="norm")
    model = keras.Model(image, keras.layers.Dropout(rate, name="drop")(norm(image)))
    norm.set_weights([np.array([1.0]), np.array([4.0])])
    return model


def test_dropout_is_at_work_and_batch_normalization_keeps_its_statistics():
    """(3 - 1) / 2 = 1 everywhere; half of the values are dropped and the others doubled."""
    model, restart = with_dropout(dropped())
    restart(0)
    before = model.get_layer("norm").get_weights()
    out = compile_forward(model, (1, 8, 8, 1))(np.full((1, 8, 8, 1), 3, np.float32))
    assert set(np.unique(out)) == {0.0, 2.0}
    for one, other in zip(before, model.get_layer("norm").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_dropout_that_is_silent_while_frozen_is_at_work_in_the_copy_alone(nested):
    """A network fine-tuned with most groups frozen must not look more certain than it is."""
    frozen = dropped()
    set_quiet(frozen.get_layer("drop"), True)
    frozen.trainable = False
    image = keras.Input((8, 8, 1))
    network = keras.Model(image, frozen(image)) if nested else frozen
    batch = np.full((1, 8, 8, 1), 3, np.float32)
    np.testing.assert_array_equal(network(batch, training=True), 1)
    model, restart = with_dropout(network)
    restart(0)
    assert set(np.unique(compile_forward(model, batch.shape)(batch))) == {0.0, 2.0}
    np.testing.assert_array_equal(network(batch, training=True), 1)  # the network itself stays silent


def test_dropout_samples_differ_and_come_again_with_their_seed():
    model, restart = with_dropout(dropped())
    forward, batch = compile_forward(model, (1, 8, 8, 1)), np.full((1, 8, 8, 1), 3, np.float32)
    restart(1)
    first, second = forward(batch), forward(batch)
    restart(1)
    np.testing.assert_array_equal(forward(batch), first)
    restart(2)
    assert (first != second).any() and (forward(batch) != first).any()


def test_the_mean_of_dropout_samples_tends_to_the_network_without_dropout():
    """400 samples of values 0 or 2 with mean 1: standard error 0.05 a voxel, 0.007 over 64 voxels."""
    model, restart = with_dropout(dropped())
    restart(0)
    forward, batch = compile_forward(model, (1, 8, 8, 1)), np.full((1, 8, 8, 1), 3, np.float32)
    assert abs(np.mean([forward(batch) for _ in range(400)]) - 1) < 5 * 0.00625


def test_dropout_inside_a_network_within_a_network_is_found():
    image = keras.Input((8, 8, 1))
    model, restart = with_dropout(keras.Model(image, dropped()(image)))
    restart(0)
    out = compile_forward(model, (1, 8, 8, 1))(np.full((1, 8, 8, 1), 3, np.float32))
    assert set(np.unique(out)) == {0.0, 2.0}


def test_the_paper_s_network_with_dropout_can_be_sampled():
    network = segnet((32, 32, 1), 3, filters=2)
    model, _ = with_dropout(network)
    batch = random_batch(1, 32, 32, 1)
    forward = compile_forward(model, batch.shape)
    assert (forward(batch) != forward(batch)).any()
    np.testing.assert_array_equal(  # the network itself is not touched
        compile_forward(network, batch.shape)(batch), compile_forward(network, batch.shape)(batch)
    )


@pytest.mark.parametrize("model", [dropped(0.0), unet((8, 8, 1), 2, filters=2)], ids=["rate 0", "none"])
def test_a_network_without_dropout_is_refused(model):
    with pytest.raises(InputError, match="no dropout layer with a rate above 0"):
        with_dropout(model)
