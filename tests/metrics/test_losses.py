"""Losses by hand, against Keras and NumPy, with half a volume ignored, in half precision, inside fit."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from mrseg._checks import InputError
from mrseg.metrics import losses, overlap

FUNCTIONS = [
    losses.categorical_cross_entropy,
    losses.categorical_focal,
    losses.categorical_dice,
    losses.categorical_tversky,
    losses.dice_cross_entropy,
]
CLASSES = [
    losses.CategoricalCrossEntropy,
    losses.CategoricalFocal,
    losses.CategoricalDice,
    losses.CategoricalTversky,
    losses.DiceCrossEntropy,
]


def values(tensor):
    return ops.convert_to_numpy(tensor)


def batch(seed, shape=(2, 4, 3, 2), num_classes=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, num_classes, shape).astype(np.uint8), probabilities(
        rng.normal(size=(*shape, num_classes))
    )


def probabilities(logits):
    return (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype("float32")


def one_hot(labels, num_classes=3):
    return (labels[..., None] == np.arange(num_classes)).astype("float32")


def gradient(function, y_pred):
    """Gradient of the summed loss by the backend's own differentiation."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        y_pred = tf.constant(y_pred)
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            loss = tf.reduce_sum(function(y_pred))
        return tape.gradient(loss, y_pred).numpy()
    import jax

    return np.asarray(jax.grad(lambda p: function(p).sum())(y_pred))


def test_cross_entropy_of_two_voxels_worked_out_by_hand():
    labels, p = np.array([[0, 1]]), np.array([[[0.5, 0.5], [0.75, 0.25]]], "float32")
    # -ln 1/2 and -ln 1/4, mean
    found = values(losses.categorical_cross_entropy(labels, p))
    np.testing.assert_allclose(found, [(math.log(2) + math.log(4)) / 2], rtol=1e-6)
    # weights 1 and 10: the mean divides by two voxels, not by eleven
    found = values(losses.categorical_cross_entropy(labels, p, class_weights=[1, 10]))
    np.testing.assert_allclose(found, [(math.log(2) + 10 * math.log(4)) / 2], rtol=1e-6)


def test_a_sigmoid_head_is_divided_by_its_sum_over_the_channels():
    # islam2025: sigmoid outputs .6 and .2 are .75 and .25 of their sum; weight 3 on the true class
    found = losses.categorical_cross_entropy(
        np.array([[1]]), np.array([[[0.6, 0.2]]], "float32"), class_weights=[1, 3]
    )
    np.testing.assert_allclose(values(found), [3 * math.log(4)], rtol=1e-6)


def test_the_code_variant_of_islam2025_has_the_floor_that_its_spec_states():
    # softmax over four perfect sigmoid outputs gives e / (e + 3) = .475: a loss of .7437 that cannot shrink
    labels, perfect = np.array([[2]]), np.array([[[0, 0, 1, 0]]], "float32")
    found = losses.categorical_cross_entropy(labels, perfect, from_logits=True)
    np.testing.assert_allclose(values(found), [0.7437], atol=5e-5)
    assert losses.ISLAM2025_CLASS_WEIGHTS == (1, 10, 3, 3)


def test_soft_dice_of_three_voxels_worked_out_by_hand():
    labels, p = np.array([[0, 1, 1]]), np.array([[[0.5, 0.5], [0.25, 0.75], [0, 1]]], "float32")
    # class 0: 2 * .5 + 1 over 1 + .75 + 1;  class 1: 2 * 1.75 + 1 over 2 + 2.25 + 1
    expected = ((1 - 2 / 2.75) + (1 - 4.5 / 5.25)) / 2
    np.testing.assert_allclose(values(losses.categorical_dice(labels, p)), [expected], rtol=1e-6)
    only_class_1 = losses.categorical_dice(labels, p, class_weights=[0, 2])
    np.testing.assert_allclose(values(only_class_1), [1 - 4.5 / 5.25], rtol=1e-6)


def test_tversky_of_three_voxels_worked_out_by_hand():
    # class 1 predicted everywhere, true twice: TP 2, FP 1, FN 0; class 0: TP 0, FP 0, FN 1
    labels, p = np.array([[0, 1, 1]]), np.array([[[0, 1], [0, 1], [0, 1]]], "float32")
    found = losses.categorical_tversky(labels, p, false_positive_weight=0.2, smooth=1.0)
    expected = ((1 - 1 / (2 * 0.8 + 1)) + (1 - 5 / (2 * 2.2 + 1))) / 2
    np.testing.assert_allclose(values(found), [expected], rtol=1e-6)


def test_focal_of_one_voxel_worked_out_by_hand():
    # (1 - 1/4)^2 * ln 4
    found = losses.categorical_focal(np.array([[1]]), np.array([[[0.75, 0.25]]], "float32"))
    np.testing.assert_allclose(values(found), [0.5625 * math.log(4)], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20))
def test_the_losses_are_related_as_their_definitions_say(seed):
    labels, p = batch(seed)
    cross_entropy = values(losses.categorical_cross_entropy(labels, p))
    dice = values(losses.categorical_dice(labels, p))
    assert np.all((dice >= 0) & (dice <= 1))
    focal = values(losses.categorical_focal(labels, p, gamma=0.0))
    np.testing.assert_allclose(focal, cross_entropy, rtol=1e-6)
    tversky = values(losses.categorical_tversky(labels, p, false_positive_weight=0.5))
    np.testing.assert_allclose(tversky, dice, rtol=1e-6)
    both = values(losses.dice_cross_entropy(labels, p, cross_entropy_weight=0.3))
    np.testing.assert_allclose(both, dice + 0.3 * cross_entropy, rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20))
def test_cross_entropy_equals_keras(seed):
    labels, p = batch(seed)
    for scale in (1.0, 0.3):  # not yet divided by the sum
        naive = keras.losses.categorical_crossentropy(one_hot(labels), scale * p)  # (batch, *spatial)
        expected = values(naive).reshape(2, -1).mean(axis=1)
        np.testing.assert_allclose(
            values(losses.categorical_cross_entropy(labels, scale * p)), expected, rtol=1e-5
        )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20))
def test_the_dice_loss_of_a_hard_prediction_is_one_minus_its_mean_dice(seed):
    labels, p = batch(seed, (1, 4, 4, 4))
    hard = p.argmax(-1)
    dice = overlap.scores(overlap.confusion_matrix(labels, hard, 3))["dice"]
    found = values(losses.categorical_dice(labels, one_hot(hard), smooth=1e-6))
    np.testing.assert_allclose(found, [1 - dice.mean()], atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_logits_give_the_loss_of_their_softmax(function):
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 3, (2, 5))
    np.testing.assert_allclose(
        values(function(labels, logits, from_logits=True)),
        values(function(labels, probabilities(logits))),
        rtol=1e-5,
    )


def test_the_gradient_from_logits_is_the_error_over_the_voxels():
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 3, (2, 5))
    found = gradient(lambda z: losses.categorical_cross_entropy(labels, z, from_logits=True), logits)
    np.testing.assert_allclose(found, (probabilities(logits) - one_hot(labels)) / 5, atol=1e-6)


def test_wrong_logits_far_from_the_truth_still_have_a_gradient():
    labels, logits = np.array([[0]]), np.array([[[-200.0, 200.0]]], "float32")
    found = gradient(lambda z: losses.categorical_cross_entropy(labels, z, from_logits=True), logits)
    np.testing.assert_allclose(found, [[[-1.0, 1.0]]])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("from_logits", [False, True])
def test_half_a_volume_ignored_has_the_loss_of_the_other_half_and_no_gradient(function, from_logits):
    labels, p = batch(3, (2, 6, 4, 2))
    half = labels.copy()
    half[:, :3] = 255
    poisoned = p.copy()
    poisoned[:, 0] = np.nan  # even this must not matter where nobody judges
    poisoned[:, 1] = np.inf
    poisoned[:, 2] = 0.0
    np.testing.assert_allclose(
        values(function(half, poisoned, from_logits=from_logits)),
        values(function(labels[:, 3:], p[:, 3:], from_logits=from_logits)),
        rtol=1e-6,
    )
    found = gradient(lambda q: function(half, q, from_logits=from_logits), poisoned)
    assert np.all(found[:, :3] == 0.0)
    expected = gradient(lambda q: function(labels[:, 3:], q, from_logits=from_logits), p[:, 3:])
    np.testing.assert_allclose(found[:, 3:], expected, rtol=1e-5, atol=1e-8)
    assert np.all(np.any(found[:, 3:] != 0, axis=-1))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_sample_with_nothing_to_judge_costs_nothing(function):
    labels, p = batch(4)
    labels[1] = 255
    found = values(function(labels, p))
    assert found[1] == 0.0
    np.testing.assert_allclose(found[0], values(function(labels[:1], p[:1]))[0], rtol=1e-6)
    assert np.all(gradient(lambda q: function(labels, q), p)[1] == 0.0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("wrong", [3, -1, 254])
def test_a_label_outside_the_table_makes_its_sample_nan(function, wrong):
    labels, p = batch(5)
    labels = labels.astype(np.int32)
    labels[1, 0, 0, 0] = wrong
    found = values(function(labels, p))
    assert np.isfinite(found[0]) and np.isnan(found[1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_in_a_judged_voxel_is_not_hidden(function):
    labels, p = batch(5)
    p[1, 0, 0, 0] = np.nan
    found = values(function(labels, p))
    assert np.isfinite(found[0]) and np.isnan(found[1])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "float32"])
def test_layout_and_dtype_of_the_truth_do_not_matter(function, dtype):
    labels, p = batch(6)
    expected = values(function(labels, p))
    for laid in (labels, labels[..., None], one_hot(labels)):
        np.testing.assert_allclose(values(function(laid.astype(dtype), p)), expected, rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype, digits", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_computed_in_float32(function, dtype, digits):
    # 40^3 voxels: a sum in half precision would stop at 2048 (float16) or 256 (bfloat16).
    labels, p = batch(7, (1, 40, 40, 40))
    found = function(labels, ops.cast(p, dtype))
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(values(found), values(function(labels, p)), rtol=digits)


@pytest.mark.parametrize("make", CLASSES)
def test_the_class_is_a_twin_of_its_function_and_weighs_samples(make):
    labels, p = batch(8)
    loss = make(class_weights=[1, 2, 3])
    function = getattr(losses, loss.name)
    per_sample = values(function(labels, p, class_weights=[1, 2, 3]))
    np.testing.assert_allclose(values(loss(labels, p)), per_sample.mean(), rtol=1e-6)
    weighted = values(loss(labels, p, sample_weight=np.array([2.0, 0.0])))
    np.testing.assert_allclose(weighted, per_sample[0], rtol=1e-6)
    none = values(make(class_weights=[1, 2, 3], reduction=None)(labels, p))
    np.testing.assert_allclose(none, per_sample, rtol=1e-6)


@pytest.mark.parametrize("make", CLASSES)
def test_config_round_trip_keeps_every_option(make):
    loss = make(class_weights=(1, 2, 3), from_logits=True, ignore_label=9, reduction="sum", name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is make
    assert again.get_config() == loss.get_config()
    labels, p = batch(9)
    labels[0, 0] = 9
    np.testing.assert_array_equal(values(again(labels, p)), values(loss(labels, p)))


@pytest.mark.parametrize("make", CLASSES)
def test_fit_lowers_the_loss(make):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    labels = images.argmax(-1).astype(np.uint8)
    labels[:, :2] = 255
    model = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Conv2D(2, 1, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.1), loss=make())
    history = model.fit(images, labels, epochs=10, batch_size=4, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


def test_the_summed_loss_counts_every_judged_voxel():
    labels, p = batch(10, (2, 3, 5))
    labels[1, 0] = 255
    mean = values(losses.categorical_cross_entropy(labels, p))
    summed = values(losses.categorical_cross_entropy(labels, p, over_voxels="sum"))
    np.testing.assert_allclose(summed, mean * [15, 10], rtol=1e-6)


def test_rates_of_a_summed_loss_become_those_of_a_mean_loss():
    # xu2017, Training: 512^2, 384^2, 240^2 pixels at the neonatal and adult rates, as its spec lists them
    for side, rate, expected in ((512, 1e-10, 2.62e-5), (384, 1e-10, 1.47e-5), (240, 1e-8, 5.76e-4)):
        assert losses.mean_loss_rates(rate, 0.005, side**2)[0] == pytest.approx(expected, rel=5e-3)
    assert losses.mean_loss_rates(1e-8, 0.005, 240**2)[1] == pytest.approx(8.7e-8, rel=5e-3)


def test_one_step_with_the_turned_rates_is_the_step_of_the_summed_loss():
    # w' = w - lr (g_sum + wd w), with g_sum = n g_mean
    w, g_mean, n = 0.7, 0.3, 1000
    rate, decay = losses.mean_loss_rates(1e-4, 0.005, n)
    assert w - rate * (g_mean + decay * w) == pytest.approx(w - 1e-4 * (n * g_mean + 0.005 * w), rel=1e-12)


LABELS, P = batch(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.categorical_dice(LABELS[:, 1:], P), "sparse .* or one-hot"),
        (lambda: losses.categorical_dice(one_hot(LABELS, 4), P), "sparse .* or one-hot"),
        (lambda: losses.categorical_dice(LABELS, P[..., :1]), "at least two channels"),
        (lambda: losses.categorical_dice(LABELS, P, class_weights=[1, 2]), r"one weight per channel \(3\)"),
        (lambda: losses.CategoricalDice(class_weights=[1, -2]), "at least 0"),
        (lambda: losses.CategoricalDice(class_weights=[0, 0]), "not all 0"),
        (lambda: losses.CategoricalDice(smooth=0), "smooth is above 0"),
        (lambda: losses.CategoricalFocal(gamma=-1), "gamma is at least 0"),
        (lambda: losses.CategoricalTversky(false_positive_weight=1.5), r"in \[0, 1\]"),
        (lambda: losses.CategoricalCrossEntropy(over_voxels="maen"), "Did you mean 'mean'"),
        (lambda: losses.mean_loss_rates(1e-3, 0.0, 0), "num_voxels"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_rule(call, message):
    with pytest.raises(InputError, match=message):
        call()
