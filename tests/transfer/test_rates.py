"""A group's factor acts as a rate of its own: worked out by hand, and against optimisers of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.islam2025 import unet
from mrseg.transfer.rates import GroupRatesAdam, group_rates


def two_layers():
    """y = b * (a * x) with a = 2, b = 3: one number in each of two layers."""
    image = keras.Input((1, 1, 1), name="image")
    x = keras.layers.Conv2D(1, 1, use_bias=False, name="encoder1_conv1")(image)
    model = keras.Model(image, keras.layers.Conv2D(1, 1, use_bias=False, name="head_logits")(x))
    model.set_weights([np.full((1, 1, 1, 1), 2.0), np.full((1, 1, 1, 1), 3.0)])
    return model


def fit_one(model, steps=1):
    """Squared error on x = 1, y = 5: the gradient is 2 (ab - 5) (b, a)."""
    one, five = np.ones((1, 1, 1, 1), "float32"), np.full((1, 1, 1, 1), 5.0, "float32")
    model.fit(one, five, epochs=steps, verbose=0, shuffle=False)
    return [float(w.ravel()[0]) for w in model.get_weights()]


def compiled(optimizer, factors=None):
    model = two_layers()
    chosen = optimizer if factors is None else group_rates(model, optimizer, factors)
    model.compile(chosen, "mean_squared_error", jit_compile=False)
    return model


def test_two_steps_of_sgd_with_momentum_by_hand():
    # a = 2, b = 3: gradient 2 * (6 - 5) * (3, 2) = (6, 4). Rates 0.01 * 0.5 and 0.01 * 2.
    # step 1: velocity (-0.03, -0.08); a = 1.97, b = 2.92, ab = 5.7524
    # step 2: gradient 1.5048 * (2.92, 1.97) = (4.394016, 2.964456)
    #         velocity 0.9 * (-0.03, -0.08) - (0.005 * 4.394016, 0.02 * 2.964456) = (-0.04897008, -0.13128912)
    model = compiled(keras.optimizers.SGD(0.01, momentum=0.9), {"encoder1": 0.5, "head": 2})
    assert fit_one(model) == pytest.approx([1.97, 2.92], rel=1e-6)
    assert fit_one(model) == pytest.approx([1.97 - 0.04897008, 2.92 - 0.13128912], rel=1e-6)


def test_the_first_step_of_adam_is_the_rate_of_the_group():
    # m / sqrt(v) is the sign of the gradient in the first step, epsilon (1e-7) aside
    model = compiled(keras.optimizers.Adam(0.01), {"encoder1": 0.1})
    assert fit_one(model) == pytest.approx([2 - 0.001, 3 - 0.01], rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: keras.optimizers.SGD(rate),
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        lambda rate: keras.optimizers.Adam(rate, amsgrad=True),
    ],
)
def test_a_factor_on_every_group_is_the_same_as_another_rate(make):
    a = fit_one(compiled(make(0.01), {"encoder1": 0.25, "head": 0.25}), steps=4)
    assert a == pytest.approx(fit_one(compiled(make(0.0025)), steps=4), rel=1e-6)


def test_factors_follow_a_scheduled_rate():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.01, 0.002])
    model = compiled(keras.optimizers.Adam(schedule), {"head": 0.5})
    first = fit_one(model)
    assert first == pytest.approx([1.99, 2.995], rel=1e-6)
    second = fit_one(model)  # the same sign and nearly the same size again, a fifth of the rate
    assert first[0] - second[0] == pytest.approx(0.002, rel=0.02)
    assert first[1] - second[1] == pytest.approx(0.001, rel=0.02)


def test_a_saved_model_goes_on_with_its_rates(tmp_path):
    model = compiled(keras.optimizers.Adam(0.01), {"encoder1": 0.1})
    fit_one(model, steps=2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, GroupRatesAdam)
    assert fit_one(again, steps=2) == pytest.approx(fit_one(model, steps=2), rel=1e-7)


def test_every_variable_of_a_network_gets_the_factor_of_its_group():
    model = unet((16, 16, 1), filters=2)
    optimizer = group_rates(model, keras.optimizers.Adam(), {"encoder1": 0.1, "decoder1": 3})
    optimizer.build(model.trainable_variables)
    expected = {"encoder1": 0.1, "decoder1": 3.0}
    assert optimizer._factors == [expected.get(v.path.split("_")[0], 1.0) for v in model.trainable_variables]


def test_the_given_optimiser_is_left_alone():
    optimizer = keras.optimizers.Adam(0.01)
    compiled(optimizer, {"head": 0.5})
    assert not optimizer.built and type(optimizer) is keras.optimizers.Adam


def test_unknown_groups_factors_and_optimisers_are_refused():
    model = two_layers()
    with pytest.raises(InputError, match="encoder1, head.*Did you mean 'encoder1'"):
        group_rates(model, keras.optimizers.Adam(), {"encoder2": 0.1})
    for factor in (0, -1.0, float("nan"), float("inf"), True, "1e-1"):
        with pytest.raises(InputError, match="factor of head is a number above 0"):
            group_rates(model, keras.optimizers.Adam(), {"head": factor})
    with pytest.raises(InputError, match="Adam and SGD. Received: RMSprop"):
        group_rates(model, keras.optimizers.RMSprop(), {"head": 0.1})
    with pytest.raises(InputError, match="weight_decay 0.01"):
        group_rates(model, keras.optimizers.SGD(weight_decay=0.01), {"head": 0.1})
