from __future__ import annotations

import keras
import numpy as np
import pytest

import mrseg
from mrseg import graphs, models
from mrseg._checks import InputError
from mrseg.engines import Engine
from mrseg.graphs import compile_engine, convert, fingerprint
from mrseg.models.builders import BUILDERS
from mrseg.transfer.fusion import FUSIONS

CONVERTING = ("openvino", "onnx")


def small(name):
    """A network of the zoo with four filters, whose normalisations have statistics of their own."""
    network = models.list()[name]
    sizes = (2 * network.multiple, 2 * network.multiple, network.multiple)[: len(network.input_shape) - 1]
    keras.utils.set_random_seed(1)
    return with_statistics(network.build((*sizes, network.input_shape[-1]), filters=4))


def with_statistics(model):
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if weight.path.endswith("moving_mean"):
            weight.assign(rng.normal(size=weight.shape) / 10)
        if weight.path.endswith("moving_variance"):
            weight.assign(rng.uniform(0.5, 2, size=weight.shape))
    return model


def batch_for(model, size=2):
    return np.random.default_rng(0).normal(size=(size, *model.input_shape[1:])).astype(np.float32)


def agrees(model, engine, atol=1e-4):
    batch = batch_for(model)
    answer = compile_engine(model, batch.shape, Engine(engine))(batch)
    known = keras.ops.convert_to_numpy(model(batch, training=False))
    assert answer.dtype == np.float32 and np.ptp(known) > 1e-3
    np.testing.assert_allclose(answer, known, atol=atol)


@pytest.fixture
def tiny():
    image = keras.Input((4, 4, 1))
    return keras.Model(image, keras.layers.Conv2D(2, 3, padding="same", activation="softmax")(image))


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize("engine", CONVERTING)
def test_every_engine_answers_as_keras_does(name, engine):
    agrees(small(name), engine)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({row.name for row in models.list()} - set(BUILDERS)))
@pytest.mark.parametrize("engine", CONVERTING)
def test_every_form_of_a_network_is_converted(name, engine):
    network = models.list()[name]
    if "filters" in network.arguments:
        pytest.skip("differs from another in its width alone")
    agrees(small(name), engine)


@pytest.mark.parametrize("engine", CONVERTING)
@pytest.mark.parametrize(
    "fuse", [pytest.param(f, marks=() if f == "multiply" else pytest.mark.slow) for f in FUSIONS]
)
def test_a_hybrid_with_its_frozen_encoder_is_converted(fuse, engine):
    model = mrseg.transfer.hybrid(models.unet((16, 16, 1), 3, filters=2, head="softmax"), fuse=fuse)
    agrees(with_statistics(model), engine)


@pytest.mark.parametrize("engine", CONVERTING)
def test_mixed_precision_of_the_training_is_not_the_engine_s(engine):
    """The copy computes in float32 whatever the network was trained in: as the same weights in float32 do."""
    known = small("unet")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = small("unet")
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(known.get_weights())
    batch = batch_for(known)
    answer = compile_engine(mixed, batch.shape, Engine(engine))(batch)
    np.testing.assert_allclose(answer, keras.ops.convert_to_numpy(known(batch, training=False)), atol=1e-4)


def test_tensorflow_is_keras_itself(tiny):
    batch = batch_for(tiny)
    np.testing.assert_allclose(
        compile_engine(tiny, batch.shape, Engine())(batch), tiny(batch, training=False), atol=1e-6
    )


def test_no_statistics_are_left_in_an_onnx_file(tmp_path):
    """Every normalisation of the network went into the convolution before it."""
    import onnx

    model = small("se_unet3d")
    file = convert(model, (1, *model.input_shape[1:]), "onnx", tmp_path)
    nodes = [node.op_type for node in onnx.load(file).graph.node]
    assert not {"BatchNormalization", "Sub", "Div", "Sqrt", "Add"} & set(nodes)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert nodes.count("Conv") == kinds.count("Conv3D") + kinds.count("SpatialRecalibration")


@keras.saving.register_keras_serializable(package="mrseg_tests")
class Unknown(keras.layers.Layer):
    """An operation that neither ONNX nor OpenVINO has."""

    def call(self, x):
        import tensorflow as tf

        return tf.numpy_function(lambda a: a, [x], tf.float32, name="code_of_its_own")

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize("engine", CONVERTING)
def test_a_layer_that_an_engine_does_not_know_is_told(engine, tmp_path):
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, Unknown()(image), name="strange")
    with pytest.raises(
        InputError, match=f"engine {engine} must know every layer.*strange.*engine='tensorflow'"
    ):
        compile_engine(model, (1, 4, 4, 1), Engine(engine))


def test_keras_on_another_backend_is_told_before_anything_is_converted(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs.keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="converted by TensorFlow.*Keras on jax.*KERAS_BACKEND=tensorflow"):
        convert(tiny, (1, 4, 4, 1), "onnx", tmp_path)


def test_a_fingerprint_changes_with_any_weight(tiny):
    before = fingerprint(tiny)
    assert fingerprint(tiny) == before
    bias = tiny.weights[-1]
    bias.assign(bias + np.float32(1e-3))
    assert fingerprint(tiny) != before
