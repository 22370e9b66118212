"""Claims that every network of the table keeps, in 2-D and 3-D."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from mrseg import models
from mrseg._checks import InputError
from mrseg.models.builders import BUILDERS, NETWORKS
from mrseg.models.resampling import MaxPoolingWithIndices

#: Rows that differ from another in their width alone are built once, for their parameters.
DISTINCT = [network for network in NETWORKS if list(network.arguments) != ["filters"]]
NAMES = [network.name for network in DISTINCT]
WITH_RANK = [(network.name, rank) for network in DISTINCT for rank in network.ranks]


def small(name, rank=None, **options):
    """The network with four filters, for the smallest image that is halved to 2 voxels and more."""
    network = models.list()[name]
    rank = rank or len(network.input_shape) - 1
    sizes = (2 * network.multiple, 2 * network.multiple, network.multiple)[:rank]
    keras.utils.set_random_seed(1)
    return network.build((*sizes, network.input_shape[-1]), filters=4, **options)


def image(model, batch=2):
    sizes = model.input_shape[1:]
    return np.random.default_rng(0).normal(size=(batch, *sizes)).astype("float32")


def counts(model):
    return model.count_params(), sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_parameter_counts_are_those_of_the_paper_s_network(network):
    assert counts(network.build()) == (network.parameters, network.trainable)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_the_defaults_of_a_builder_are_the_paper_s(name):
    network = models.list()[name]
    assert network.builder == name and network.arguments == {}
    assert counts(BUILDERS[name](network.input_shape)) == (network.parameters, network.trainable)


def test_every_builder_is_a_public_name_and_takes_the_width_of_its_first_stage():
    for name, build in BUILDERS.items():
        assert getattr(models, name) is build
        network = models.list()[name]
        sizes = (network.multiple,) * (len(network.input_shape) - 1)
        model = build((*sizes, network.input_shape[-1]), filters=3)
        first = next(layer for layer in model.layers if hasattr(layer, "filters"))
        assert first.filters == (6 if name == "sep_res_unet" else 3)


@pytest.mark.parametrize(("name", "rank"), WITH_RANK)
def test_output_is_one_probability_per_class_and_voxel(name, rank):
    model = small(name, rank)
    assert model.output_shape == (*model.input_shape[:-1], models.list()[name].num_classes)
    p = np.asarray(model(image(model)))
    assert np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1


@pytest.mark.parametrize("name", [n.name for n in NETWORKS if n.ranks == (2,)])
def test_networks_of_slices_refuse_volumes_in_one_line(name):
    network = models.list()[name]
    with pytest.raises(InputError):
        network.build((16, 16, 16, network.input_shape[-1]))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_two_layers_are_the_logits_and_the_probabilities(name):
    model = small(name)
    assert [layer.name for layer in model.layers[-2:]] == ["head_logits", "head_probabilities"]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_left_open_take_any_size_that_divides(name):
    network = models.list()[name]
    rank, channels = len(network.input_shape) - 1, network.input_shape[-1]
    model = network.build((*[None] * rank, channels), filters=2)
    for size in (network.multiple, 2 * network.multiple):
        x = np.zeros((1, *[size] * rank, channels), "float32")
        assert model(x).shape[1:-1] == x.shape[1:-1]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_do_not_divide_and_too_few_classes_are_refused(name):
    network = models.list()[name]
    sizes = list(network.input_shape)
    sizes[0] = network.multiple + 1
    with pytest.raises(InputError, match=f"multiples of {network.multiple}"):
        network.build(tuple(sizes))
    with pytest.raises(InputError, match="num_classes"):
        network.build(num_classes=1)


def test_the_table_of_networks_prints_a_row_each_and_names_a_misspelt_one():
    table = models.list()
    lines = str(table).splitlines()
    assert len(lines) == len(table) + 2 == len(NETWORKS) + 2
    assert "29,459,459" in lines[2] and "`mecheter2020_t1`" in lines[2]
    with pytest.raises(InputError, match="Did you mean 'vgg_fcn_adult'"):
        table["vgg_fcn_adlt"]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_float32_probabilities_close_to_float32_ones(name):
    exact = small(name)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = small(name)
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(exact.get_weights())
    p = half(image(half))
    assert next(layer for layer in half.layers if layer.weights).compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(p.dtype) == "float32"
    # some twenty layers of 2**-9 relative rounding each, on probabilities: far below 0.05
    assert np.abs(np.asarray(p) - np.asarray(exact(image(exact)))).max() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_config_makes_the_same_network(name):
    model = small(name)
    again = keras.Model.from_config(model.get_config())
    assert again.get_config() == model.get_config() and again.count_params() == model.count_params()


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_is_bit_equal_and_compiled_when_loaded(name, tmp_path):
    model = small(name)
    model.compile("sgd", "categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert again.compiled and again.to_json() == model.to_json()
    np.testing.assert_array_equal(again(image(model)), model(image(model)))


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_tensor_gets_a_finite_gradient_that_is_not_zero(name):
    model = small(name)
    for w in model.weights:
        if w.name == "squeeze_bias":  # with few filters a whole squeeze layer can start dead, as ReLUs do
            w.assign(w + 1)
    before_norm = {f"{layer.name[:-3]}/bias" for layer in model.layers if layer.name.endswith("_bn")}
    for path, gradient in gradients(model, image(model)).items():
        assert np.isfinite(gradient).all(), path
        # BatchNormalization subtracts the mean, so a bias right before it changes nothing
        assert path in before_norm or np.abs(gradient).max() > 1e-12, path


#: Initial kernels as each paper states them; where none does, Keras' own.
INITIAL = {
    "segnet": {"HeNormal"},
    "se_unet3d": {"GlorotUniform"},
    "vgg_fcn": {"HeNormal", "RandomNormal", "GlorotUniform"},
    "res_unet": {"GlorotUniform"},
    "unet": {"GlorotUniform"},
    "sep_res_unet": {"GlorotUniform"},
    "attention_unet": {"GlorotUniform"},
}


@pytest.mark.parametrize("name", NAMES)
def test_kernels_start_as_the_paper_says_and_biases_from_zero(name):
    model = small(name)
    found = set()
    for layer in model.layers:
        for kind in ("kernel_initializer", "depthwise_initializer", "pointwise_initializer"):
            if getattr(layer, kind, None) is not None and layer.weights:
                found.add(type(getattr(layer, kind)).__name__)
        if getattr(layer, "bias", None) is not None:
            assert not keras.ops.convert_to_numpy(layer.bias).any()
    # a separable layer has an unused option for a whole kernel
    assert found == INITIAL[models.list()[name].builder]


@pytest.mark.parametrize("name", NAMES)
def test_each_layer_has_one_input_and_a_name_with_its_stage(name):
    stages = ("stem", "encoder", "bottleneck", "decoder", "head", "image")
    for layer in small(name).layers:
        assert layer.name.startswith(stages)
        assert layer.input is not None


@pytest.mark.slow
def test_tensorflow_and_jax_agree_on_the_same_weights(tmp_path):
    pytest.importorskip("jax")
    rng = np.random.default_rng(1)
    built = {name: small(name) for name in NAMES}
    for name, model in built.items():
        for w in model.weights:  # every tensor, statistics among them, as after some training
            w.assign(w + 0.1 * (rng.random(tuple(w.shape)) - 0.5))
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", image(model))
    script = (
        "import pathlib, sys, keras, numpy as np, mrseg.models.blocks\n"
        "assert keras.backend.backend() == 'jax'\n"
        "for path in pathlib.Path(sys.argv[1]).glob('*.keras'):\n"
        "    model, x = keras.saving.load_model(path), np.load(path.with_suffix('.npy'))\n"
        "    np.save(path.with_suffix('.jax.npy'), model.predict(x, verbose=0))\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    for name, model in built.items():
        theirs, ours = np.load(tmp_path / f"{name}.jax.npy"), np.asarray(model(image(model)))
        close = (np.abs(theirs - ours) <= 1e-4).all(axis=-1)
        # a maximum that is nearly tied may be found at another index: SegNet then differs in a few pixels
        by_indices = any(isinstance(layer, MaxPoolingWithIndices) for layer in model.layers)
        assert close.mean() >= (0.999 if by_indices else 1.0), name


def gradients(model, x):
    """Gradient of a sum of weighted probabilities for each trainable tensor, by its path."""
    import tensorflow as tf

    weight = np.random.default_rng(2).normal(size=(*x.shape[:-1], model.output_shape[-1])).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weight * model(x, training=True))
    found = tape.gradient(loss, [w.value for w in model.trainable_weights])
    assert all(g is not None for g in found)
    return {w.path: np.asarray(g) for w, g in zip(model.trainable_weights, found, strict=True)}
