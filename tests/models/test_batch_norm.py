"""The fused layer is Keras' layer: outputs, gradients, statistics, files; only the operation differs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mrseg
from mrseg.models.batch_norm import BatchNormalization, use_fused_norms
from mrseg.transfer import load_weights

KERAS = keras.layers.BatchNormalization
SHAPES = [(2, 8, 6, 5), (1, 3, 7, 1), (2, 4, 6, 5, 3), (1, 1, 1, 4), (1, 1, 1, 1, 4), (3, 16, 16, 4, 16)]
#: training, trainable
MODES = {"training": (True, True), "frozen": (True, False), "inference": (False, True)}


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, size=shape).astype("float32")


def made(kind, shape, **options):
    """A layer whose gamma, beta and statistics are numbers around 1, the same for either class."""
    layer = kind(**({"momentum": 0.9, "name": "norm"} | options))
    layer.build(shape)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    return layer


def results(kind, x, mode, **options):
    """Output, gradients by input, gamma and beta, and all weights after one call."""
    layer = made(kind, x.shape, **options)
    training, layer.trainable = MODES[mode]
    watched = [w.value for w in layer.weights[:-2]]
    x = tf.cast(x, layer.compute_dtype)

    @tf.function
    def call(x, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, *watched])
            y = layer(x, training=training)
        return y, *tape.gradient(y, [x, *watched], tf.cast(dy, y.dtype))

    values = [*call(x, noise(x.shape, 2)), *layer.weights]
    return [np.asarray(tf.cast(value, "float32")) for value in values]


def model_of(kind):
    """Two norms, one in 2-D and one behind a convolution, with numbers of their own."""
    image = keras.Input((8, 8, 3))
    x = kind(name="first_bn")(image)
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(x)
    model = keras.Model(image, kind(momentum=0.8, name="second_bn")(x))
    rng = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    return model


def operations(layer, shape, training=True, dtype="float32"):
    call = tf.function(lambda x: layer(x, training=training))
    graph = call.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_gradients_and_statistics_are_those_of_keras(shape, mode):
    for ours, theirs in zip(
        results(BatchNormalization, noise(shape), mode), results(KERAS, noise(shape), mode), strict=True
    ):
        # gradients of gamma and beta are sums over voxels, so the tolerance goes with their size
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (2, 4, 6, 5, 3)], ids=str)
def test_mixed_precision_keeps_statistics_in_float32(shape, policy, mode):
    ours, theirs = (results(kind, noise(shape), mode, dtype=policy) for kind in (BatchNormalization, KERAS))
    step = {"mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}[policy]  # one digit of the output's type
    np.testing.assert_allclose(ours[0], theirs[0], rtol=step, atol=step)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=step, atol=step)
    for i in range(2, len(ours)):
        np.testing.assert_allclose(ours[i], theirs[i], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}, {"center": False, "scale": False}])
def test_without_gamma_or_beta(options):
    x = noise((2, 8, 6, 5))
    for mode in MODES:
        ours = results(BatchNormalization, x, mode, **options)
        theirs = results(KERAS, x, mode, **options)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-3)


def test_the_moving_variance_is_the_biased_one():
    """Values 0 and 4: mean 2, biased variance 4, unbiased 8; half of that and half of the 1 before."""
    layer = BatchNormalization(momentum=0.5)
    layer(np.array([0.0, 4.0], "float32").reshape(1, 2, 1, 1), training=True)
    assert float(layer.moving_mean[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(layer.moving_variance[0]) == pytest.approx(2.5, abs=1e-6)


def test_a_network_of_unknown_size_keeps_the_biased_variance_too():
    layer = BatchNormalization(momentum=0.0)
    model = keras.Model(image := keras.Input((None, None, 2)), layer(image))
    x = noise((2, 5, 3, 2))
    tf.function(lambda x: model(x, training=True), input_signature=[tf.TensorSpec((None, None, None, 2))])(x)
    np.testing.assert_allclose(layer.moving_variance, x.var(axis=(0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (2, 4, 6, 5, 3)], ids=str)
def test_frozen_training_is_inference_bit_for_bit(shape):
    layer = made(BatchNormalization, shape)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(noise(shape), training=True), layer(noise(shape), training=False))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_gradient_of_a_frozen_layer_by_its_statistics_is_that_of_keras():
    def gradients(kind):
        layer = made(kind, (2, 4, 4, 3))
        layer.trainable = False
        statistics = [layer.moving_mean.value, layer.moving_variance.value]
        with tf.GradientTape() as tape:
            tape.watch(statistics)
            y = layer(noise((2, 4, 4, 3)), training=True)
        return tape.gradient(y, statistics, noise((2, 4, 4, 3), 2))

    for ours, theirs in zip(gradients(BatchNormalization), gradients(KERAS), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_are_equal_bit_for_bit(mode):
    x = noise((2, 16, 16, 8))
    for one, other in zip(
        results(BatchNormalization, x, mode), results(BatchNormalization, x, mode), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (2, 4, 6, 5, 3)], ids=str)
def test_slices_and_volumes_take_the_fused_operation(shape, training):
    assert "FusedBatchNormV3" in operations(made(BatchNormalization, shape), shape, training)
    assert "FusedBatchNormV3" not in operations(made(KERAS, shape), shape, training)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3), {}),
        ((4, 5, 3), {}),
        ((2, 3, 4, 4), {"axis": 1}),
        ((2, 4, 4, 3), {"dtype": "float64"}),
        ((2, 4, 4, 3), {"synchronized": True}),
    ],
    ids=str,
)
def test_elsewhere_keras_computes(shape, options):
    layer, parent = (made(kind, shape, **options) for kind in (BatchNormalization, KERAS))
    assert "FusedBatchNormV3" not in operations(layer, shape, dtype=layer.compute_dtype)
    x = noise(shape).astype(layer.compute_dtype)
    np.testing.assert_array_equal(layer(x, training=True), parent(x, training=True))


def test_a_mask_is_respected():
    x, mask = noise((2, 4, 4, 3)), np.zeros((2, 4, 4), bool)
    mask[:, :2] = True
    ours, theirs = (made(kind, x.shape) for kind in (BatchNormalization, KERAS))
    np.testing.assert_array_equal(ours(x, training=True, mask=mask), theirs(x, training=True, mask=mask))


def test_the_config_is_that_of_keras_and_makes_the_layer_again():
    ours, theirs = (kind(momentum=0.7, epsilon=1e-4, name="norm") for kind in (BatchNormalization, KERAS))
    assert ours.get_config() == theirs.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours))
    assert type(again) is BatchNormalization and again.get_config() == ours.get_config()


@pytest.mark.parametrize(("writer", "reader"), [(KERAS, BatchNormalization), (BatchNormalization, KERAS)])
def test_either_class_reads_weights_that_the_other_wrote(tmp_path, writer, reader):
    written, by_keras, by_transfer = model_of(writer), model_of(reader), model_of(reader)
    written.save_weights(tmp_path / "network.weights.h5")
    written.save(tmp_path / "network.keras")
    for model in (by_keras, by_transfer):
        for weight in model.weights:
            weight.assign(weight * 0.0)
    by_keras.load_weights(tmp_path / "network.weights.h5")
    assert not load_weights(by_transfer, tmp_path / "network.keras").names("skipped")
    for model in (by_keras, by_transfer):
        for old, new in zip(written.weights, model.weights, strict=True):
            assert old.path == new.path
            np.testing.assert_array_equal(old, new)
    again = keras.saving.load_model(tmp_path / "network.keras")
    assert type(again.get_layer("first_bn")) is writer


def test_a_network_of_keras_layers_becomes_fused_in_place():
    image = keras.Input((8, 8, 3))
    model = keras.Model(
        image, keras.layers.Add()([model_of(KERAS)(image), KERAS(name="third_bn")(image)[..., :1]])
    )
    x, weights = noise((2, 8, 8, 3)), model.get_weights()
    before = np.asarray(model(x, training=False))
    use_fused_norms(model)
    kinds = {type(layer) for layer in model._flatten_layers() if isinstance(layer, KERAS)}
    assert kinds == {BatchNormalization}
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(model(x, training=False), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["phantom_t1_unet", "phantom_t1_se_unet3d"])
def test_the_weights_that_come_with_mrseg_are_fused(name):
    norms = [layer for layer in mrseg.Segmenter.load(name).model.layers if isinstance(layer, KERAS)]
    assert norms and all(type(layer) is BatchNormalization for layer in norms)
