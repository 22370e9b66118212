"""Keras metrics against the NumPy functions, beyond the digits of float32, and inside fit."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from mrseg._checks import InputError
from mrseg.metrics import overlap, streaming

MEASURES = list(streaming.METRICS)
NAMES = ["air", "soft", "bone"]


def batch(seed, shape=(2, 5, 4, 3), num_classes=3, ignored=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    labels[rng.random(shape) < ignored] = 255
    return labels, rng.random((*shape, num_classes)).astype("float32")


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


def one_hot(labels, num_classes):
    return (labels[..., None] == np.arange(num_classes)).astype("float32")  # zero everywhere where ignored


def test_dice_of_four_voxels_worked_out_by_hand():
    # truth 0 1 1 ?, prediction 0 1 0 1: class 1 has TP 1, FN 1; class 0 has TP 1, FP 1
    labels = np.array([[0, 1, 1, 255]])
    probabilities = one_hot(np.array([[0, 1, 0, 1]]), 2)
    dice = streaming.Dice(2, class_id=1)
    dice.update_state(labels, probabilities)
    assert number(dice.result()) == pytest.approx(2 / 3)
    accuracy = streaming.Accuracy(2)
    accuracy.update_state(labels, probabilities)
    assert number(accuracy.result()) == pytest.approx(2 / 3)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**20), st.sampled_from([(1, 4), (2, 3, 3), (1, 2, 3, 4)]))
def test_every_metric_equals_its_numpy_function_on_the_pooled_voxels(num_classes, seed, shape):
    batches = [batch(seed + i, shape, num_classes) for i in range(2)]
    counts = sum(overlap.confusion_matrix(t, p.argmax(-1), num_classes) for t, p in batches)
    expected = overlap.scores(counts)
    for name, make in {**streaming.METRICS, "accuracy": streaming.Accuracy}.items():
        metric = make(num_classes, class_id=num_classes - 1)
        for labels, probabilities in batches:
            metric.update_state(labels, probabilities)
        np.testing.assert_allclose(ops.convert_to_numpy(metric.per_class()), expected[name], rtol=1e-6)
        assert number(metric.result()) == pytest.approx(expected[name][-1], rel=1e-6, nan_ok=True)


def test_the_mean_leaves_absent_classes_out_and_keeps_missed_ones():
    # class 0 right, class 1 missed (predicted as 0), class 2 in neither: mean of 0.8 and 0
    labels, probabilities = np.array([[0, 0, 1]]), one_hot(np.array([[0, 0, 0]]), 3)
    dice = streaming.Dice(3)
    dice.update_state(labels, probabilities)
    np.testing.assert_allclose(ops.convert_to_numpy(dice.per_class()), [0.8, 0.0, math.nan], rtol=1e-6)
    assert number(dice.result()) == pytest.approx(0.4)
    chosen = streaming.Dice(3, mean_over=[1, 2])
    chosen.update_state(labels, probabilities)
    assert number(chosen.result()) == 0.0


@pytest.mark.parametrize("measure", [*MEASURES, "accuracy"])
def test_nothing_counted_is_nan(measure):
    metric = {**streaming.METRICS, "accuracy": streaming.Accuracy}[measure](3)
    assert math.isnan(number(metric.result()))
    metric.update_state(np.full((1, 4), 255), np.ones((1, 4, 3), "float32"))
    assert math.isnan(number(metric.result()))


@pytest.mark.parametrize("measure", MEASURES)
def test_empty_classes_follow_the_policy_of_the_numpy_functions(measure):
    # 0: found, 1: missed, 2: invented, 3: absent
    true, pred = np.array([[0, 0, 1, 0]]), np.array([[0, 0, 0, 2]])
    metric = streaming.METRICS[measure](4)
    metric.update_state(true, one_hot(pred, 4))
    expected = overlap.scores(overlap.confusion_matrix(true, pred, 4))[measure]
    np.testing.assert_allclose(ops.convert_to_numpy(metric.per_class()), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32"])
@pytest.mark.parametrize("layout", ["sparse", "trailing", "one-hot"])
def test_layout_and_dtype_of_the_truth_do_not_matter(dtype, layout):
    labels, probabilities = batch(7)
    laid = {"sparse": labels, "trailing": labels[..., None], "one-hot": one_hot(labels, 3)}[layout].astype(
        dtype
    )
    counts, stray = streaming.batch_confusion(laid, probabilities)
    assert np.array_equal(
        ops.convert_to_numpy(counts), overlap.confusion_matrix(labels, probabilities.argmax(-1), 3)
    )
    assert not bool(ops.convert_to_numpy(stray))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_predictions_are_counted_the_same(dtype):
    labels, _ = batch(8)
    half = ops.cast(one_hot(labels, 3), dtype)
    accuracy = streaming.Accuracy(3)
    accuracy.update_state(labels, half)
    assert number(accuracy.result()) == 1.0


def test_counts_are_exact_far_beyond_the_digits_of_float32(monkeypatch):
    # One voxel at a time is lost by a float32 above 2^24; here every batch adds an odd number near 2^24.
    counts = np.array([[2**24 + 1, 1], [3, 2**30 - 1]])
    monkeypatch.setattr(
        streaming, "batch_confusion", lambda *_, **__: (ops.convert_to_tensor(counts, "int32"), False)
    )
    metric = streaming.Dice(2)
    for _ in range(50):
        metric.update_state(np.zeros((1, 1)), np.zeros((1, 1, 2)))
    low, high = ops.convert_to_numpy(metric.variables[0] + 0).astype(np.int64)
    assert np.array_equal(high * 2**20 + low, 50 * counts)
    expected = overlap.scores(50 * counts)["dice"]
    np.testing.assert_allclose(ops.convert_to_numpy(metric.per_class()), expected, rtol=1e-6)


def test_a_label_outside_the_table_makes_the_metric_nan_until_reset():
    labels, probabilities = batch(9)
    metric = streaming.Dice(3)
    metric.update_state(np.where(labels == 1, 7, labels), probabilities)
    assert math.isnan(number(metric.result()))
    metric.reset_state()
    metric.update_state(labels, probabilities)
    assert 0 < number(metric.result()) < 1


def test_without_an_ignore_label_255_is_a_wrong_label():
    labels, probabilities = batch(10)
    metric = streaming.Dice(3, ignore_label=None)
    metric.update_state(labels, probabilities)
    assert math.isnan(number(metric.result()))


def test_the_metrics_of_a_label_table_are_named_after_its_classes():
    names = [metric.name for metric in streaming.for_classes(NAMES)]
    assert names == ["dice_air", "dice_soft", "dice_bone", "dice", "accuracy"]
    names = [metric.name for metric in streaming.for_classes(NAMES, metrics=["recall", "jaccard"])]
    assert names[:5] == ["recall_air", "recall_soft", "recall_bone", "recall", "jaccard_air"]


def test_the_mean_of_a_tissue_table_is_over_the_tissues():
    labels, probabilities = batch(11, num_classes=4)
    names = ["background", "csf", "gm", "wm"]
    metrics = {metric.name: metric for metric in streaming.for_classes(names)}
    for metric in metrics.values():
        metric.update_state(labels, probabilities)
    tissues = [number(metrics[f"dice_{name}"].result()) for name in names[1:]]
    assert number(metrics["dice"].result()) == pytest.approx(np.mean(tissues), rel=1e-6)


@pytest.mark.parametrize("make", [*streaming.METRICS.values(), streaming.Accuracy])
def test_config_round_trip_keeps_every_option(make):
    metric = make(4, mean_over=[1, 3], ignore_label=9, name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is make
    assert again.get_config() == metric.get_config()
    assert again.get_config()["mean_over"] == [1, 3]


def network(num_classes=3):
    inputs = keras.Input((None, None, 1))
    logits = keras.layers.Conv2D(num_classes, 1)(inputs)
    return keras.Model(inputs, keras.layers.Softmax(dtype="float32")(logits))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_fit_logs_what_numpy_says_about_the_last_pass(policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype("float32")
    labels = np.where(images[..., 0] > 0.5, 2, np.where(images[..., 0] > 0, 1, 0)).astype(np.uint8)
    labels[:, 0] = 255
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=255),
        metrics=streaming.for_classes(NAMES),
    )
    history = model.fit(images, labels, batch_size=4, epochs=2, verbose=0, validation_data=(images, labels))
    counts = overlap.confusion_matrix(labels, model.predict(images, verbose=0).argmax(-1), 3)
    expected = overlap.scores(counts)["dice"]
    # A learning rate of 0 leaves the network alone, so every pass, reset in between, must say the same.
    for prefix in ("", "val_"):
        for i, name in enumerate(NAMES):
            logged = history.history[f"{prefix}dice_{name}"]
            np.testing.assert_allclose(logged, [expected[i]] * 2, rtol=1e-6)
        np.testing.assert_allclose(history.history[f"{prefix}dice"], [np.nanmean(expected)] * 2, rtol=1e-6)


# Keras copies its variables in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_compiled_model_comes_back_from_disk_with_its_metrics(tmp_path):
    model = network()
    images, labels = np.ones((1, 2, 2, 1), "float32"), np.zeros((1, 2, 2), np.uint8)
    model.compile("sgd", loss="sparse_categorical_crossentropy", metrics=streaming.for_classes(NAMES)[2:])
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    logs = again.evaluate(images, labels, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "dice_bone", "dice", "accuracy"}
    assert logs["accuracy"] == model.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA is how JAX always runs")
def test_tensorflow_can_compile_the_update_with_xla():
    import tensorflow as tf

    labels, probabilities = batch(12)
    counts, _ = tf.function(streaming.batch_confusion, jit_compile=True)(
        tf.constant(labels), tf.constant(probabilities)
    )
    assert np.array_equal(counts.numpy(), overlap.confusion_matrix(labels, probabilities.argmax(-1), 3))


def test_sample_weights_are_refused_with_the_remedy():
    with pytest.raises(InputError, match="weighted_metrics"):
        streaming.Dice(3).update_state(*batch(0), sample_weight=np.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: streaming.Dice(1), "at least 2"),
        (lambda: streaming.Dice(3, class_id=3), r"in 0\.\.2"),
        (lambda: streaming.Dice(3, mean_over=[-1]), r"in 0\.\.2"),
        (lambda: streaming.Dice(3, class_id=0, mean_over=[1]), "not both"),
        (lambda: streaming.for_classes(["air", "air"]), "different names"),
        (lambda: streaming.for_classes("ab"), "different names"),
        (lambda: streaming.for_classes(NAMES, metrics=["dise"]), "Did you mean 'dice'"),
        (lambda: streaming.Dice(4).update_state(*batch(0)), "made for 4 channels"),
        (lambda: streaming.Dice(3).update_state(np.zeros((2, 5)), batch(0)[1]), "sparse .* or one-hot"),
        (lambda: streaming.batch_confusion(np.zeros((2, 5)), np.zeros((2, 5, 1))), "at least two channels"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_rule(make, message):
    with pytest.raises(InputError, match=message):
        make()
