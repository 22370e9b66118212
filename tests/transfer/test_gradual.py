"""Gradual unfreezing is train_last, compile and fit in turn, within one fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.islam2025 import unet
from mrseg.transfer.freezing import train_last
from mrseg.transfer.gradual import GradualUnfreezing


def compiled(model, rate=1e-2, eager=True):
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", run_eagerly=eager)
    return model


def train(model, epochs, **options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 16, 16, 1)).astype("float32")
    y = rng.integers(0, 4, size=(4, 16, 16))
    return model.fit(x, y, batch_size=2, shuffle=False, epochs=epochs, verbose=0, **options).history


def test_two_stages_in_one_fit_equal_two_fits():
    gradual, by_hand = unet((16, 16, 1), filters=2), unet((16, 16, 1), filters=2)
    by_hand.set_weights(gradual.get_weights())
    losses = train(compiled(gradual, eager=False), 3, callbacks=[GradualUnfreezing({0: 0, 2: 3})])["loss"]
    expected = []
    for convs, epochs in ((0, 2), (3, 1)):
        train_last(by_hand, convs)
        expected += train(compiled(by_hand, eager=False), epochs)["loss"]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for a, b in zip(gradual.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_frozen_tensors_do_not_move_before_their_stage():
    model = compiled(unet((16, 16, 1), filters=2))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            layer = model.get_layer("decoder1_conv2")
            seen.append(layer.get_weights()[0])

    start = model.get_layer("decoder1_conv2").get_weights()[0]
    train(model, 2, callbacks=[GradualUnfreezing({0: 0, 1: 1}), Watch()])
    assert np.array_equal(seen[0], start) and not np.array_equal(seen[1], start)


def test_a_reduced_rate_is_carried_into_the_next_stage():
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate.assign(0.005)

    model = compiled(unet((16, 16, 1), filters=2))
    train(model, 2, callbacks=[GradualUnfreezing({0: 0, 1: 1}), Halve()])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.005)


@pytest.mark.parametrize("schedule", [{}, {1: 3}, {0: 0, -1: 3}, {0: 0, 1.5: 3}])
def test_a_schedule_begins_with_epoch_0(schedule):
    with pytest.raises(InputError, match="first epoch being 0"):
        GradualUnfreezing(schedule)


def test_a_late_mistake_is_found_at_the_beginning():
    model = compiled(unet((16, 16, 1), filters=2))
    with pytest.raises(InputError, match="14 convolutions"):
        train(model, 1, callbacks=[GradualUnfreezing({0: 0, 99: 15})])
    steps = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    with pytest.raises(InputError, match="its rate is a number"):
        train(compiled(unet((16, 16, 1), filters=2), steps), 1, callbacks=[GradualUnfreezing({0: 0})])
