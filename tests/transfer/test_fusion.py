"""The hybrid: what is fused, what is frozen, and that the network it came from is left alone."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.builders import NETWORKS
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.transfer.freezing import train_all, train_last
from mrseg.transfer.fusion import hybrid
from mrseg.transfer.grouping import groups
from mrseg.transfer.weights import load_weights

BY_NAME = {network.name: network for network in NETWORKS}
#: Tensors that the encoder hands to the decoder; SegNet's pooling indices are handed over too and not fused.
CROSSING = {
    "segnet": ["bottleneck"],
    "se_unet3d": ["encoder1", "encoder2", "encoder3", "bottleneck"],
    "vgg_fcn": ["encoder1", "encoder2", "encoder3", "encoder4", "encoder5"],
    "res_unet": ["encoder1", "encoder2", "encoder3", "encoder4", "bottleneck"],
    "res_unet_resnet34": ["stem", "encoder1", "encoder2", "encoder3", "encoder4"],
    "unet": ["encoder1", "encoder2", "encoder3", "bottleneck"],
    "sep_res_unet": ["encoder1", "encoder2", "encoder3", "bottleneck"],
    "attention_unet": ["encoder1", "encoder2", "encoder3", "encoder4", "bottleneck"],
}
NAMES = list(CROSSING)


def trained_like(model, seed=3):
    """Gives every tensor of ``model`` a value as training might, statistics among them."""
    rng = np.random.default_rng(seed)
    for w in model.weights:
        noise = rng.normal(size=tuple(w.shape))
        w.assign(1 + 0.3 * np.abs(noise) if w.name in ("gamma", "moving_variance") else 0.3 * noise)
    return model


def base(name):
    network = BY_NAME[name]
    sizes = (2 * network.multiple, 2 * network.multiple, network.multiple)[: len(network.input_shape) - 1]
    return trained_like(network.build((*sizes, network.input_shape[-1]), filters=2))


def deepest(model):
    """The last of the stages before the decoder."""
    return next(g.name for g in reversed(list(groups(model))) if g.name.startswith(("encoder", "bottleneck")))


def image(model, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *model.input_shape[1:])).astype("float32")


def values(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


def value_of(model, layer_name, x):
    return np.asarray(keras.Model(model.input, model.get_layer(layer_name).output)(x))


@pytest.mark.parametrize(
    ("fuse", "parameters"),
    [("multiply", 14_607_614), ("average", 14_607_614), ("maximum", 14_607_614), ("concat", 15_450_366)],
)
def test_the_hybrid_of_the_paper_s_network_has_its_parameters(fuse, parameters):
    model = hybrid(se_unet3d((None, None, None, 1)), fuse=fuse)
    assert model.count_params() == parameters


def test_only_the_dedicated_encoder_and_the_decoder_train():
    # as many trainable parameters as the base network has
    model = hybrid(se_unet3d((None, None, None, 1)))
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == 8_645_706


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fuse", ["average", "maximum"])
def test_two_equal_encoders_averaged_or_maximised_give_back_the_base_network(name, fuse):
    t1_model = base(name)
    model = hybrid(t1_model, fuse=fuse, dedicated_from="adapted")
    load_weights(model, t1_model, allow=["missing"])
    np.testing.assert_array_equal(model(image(model)), t1_model(image(model)))


@pytest.mark.parametrize("name", NAMES)
def test_fusing_at_the_bottleneck_takes_the_skips_from_the_dedicated_encoder(name):
    t1_model = base(name)
    model = hybrid(t1_model, fuse="multiply", fuse_at="bottleneck")
    names = [layer.name for layer in model.layers]
    assert [name for name in names if name.endswith("_fusion")] == [f"{deepest(t1_model)}_fusion"]
    skips = [layer for layer in model.layers if layer.name.startswith("decoder") and "skip" in layer.name]
    for layer in skips:
        before = [t for t in keras.tree.flatten(layer.input) if "encoder" in t._keras_history.operation.name]
        assert not any("adapted" in t._keras_history.operation.name for t in before)


@pytest.mark.parametrize("name", NAMES)
def test_by_default_every_tensor_that_reaches_the_decoder_is_fused(name):
    model = hybrid(base(name))
    fused = {layer.name for layer in model.layers if layer.name.endswith("_fusion")}
    assert fused == {f"{stage}_fusion" for stage in CROSSING[name]}


def test_fusions_of_two_voxels_worked_out_by_hand():
    # on the image 1, -1 the adapted encoder 2x gives 2, -2 and the dedicated encoder 2 - x gives 1, 3
    by_hand = {"multiply": [2, -6], "average": [1.5, 0.5], "maximum": [2, 3]}
    image_tensor = keras.Input((1, 2, 1), name="image")
    x = keras.layers.Conv2D(1, 1, name="encoder1_conv1")(image_tensor)
    x = keras.layers.Conv2D(2, 1, name="decoder1_conv1")(x)
    t1_model = keras.Model(image_tensor, keras.layers.Conv2D(2, 1, name="head_logits")(x))
    t1_model.get_layer("encoder1_conv1").set_weights([np.full((1, 1, 1, 1), 2.0), np.array([0.0])])
    for fuse, expected in by_hand.items():
        model = hybrid(t1_model, fuse=fuse)
        model.get_layer("encoder1_conv1").set_weights([np.full((1, 1, 1, 1), -1.0), np.array([2.0])])
        x = np.array([1, -1], "float32").reshape(1, 1, 2, 1)
        assert value_of(model, "adapted_encoder1_conv1", x).ravel().tolist() == [2, -2]
        assert value_of(model, "encoder1_conv1", x).ravel().tolist() == [1, 3]
        assert value_of(model, "encoder1_fusion", x).ravel().tolist() == expected


def test_concat_puts_the_adapted_channels_first():
    model = hybrid(base("unet"), fuse="concat")
    x = image(model)
    fused = value_of(model, "bottleneck_fusion", x)
    half = fused.shape[-1] // 2
    np.testing.assert_array_equal(fused[..., :half], value_of(model, "adapted_bottleneck_conv2_relu", x))
    np.testing.assert_array_equal(fused[..., half:], value_of(model, "bottleneck_conv2_relu", x))


@pytest.mark.parametrize("name", NAMES)
def test_the_adapted_encoder_computes_what_the_t1_encoder_computes_even_while_training(name):
    t1_model = base(name)
    model = hybrid(t1_model)
    last = groups(t1_model)[deepest(t1_model)].layers[-1]
    encoder = keras.Model(t1_model.input, t1_model.get_layer(last).output)
    adapted = keras.Model(model.input, model.get_layer(f"adapted_{last}").output)
    x = image(model)
    np.testing.assert_array_equal(adapted(x, training=True), encoder(x, training=False))


@pytest.mark.parametrize("fuse", ["multiply", "concat"])
def test_training_moves_both_other_parts_and_leaves_the_adapted_encoder_bit_identical(fuse):
    t1_model = base("unet")
    model = hybrid(t1_model, fuse=fuse)
    before = values(model)
    rng = np.random.default_rng(0)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(image(model), rng.integers(0, 4, size=(2, 16, 16)), epochs=2, verbose=0)
    moved = {path for path, value in values(model).items() if not np.array_equal(value, before[path])}
    assert not any(path.startswith("adapted_") for path in moved)
    assert {"encoder1_conv1/kernel", "bottleneck_conv2_bn/moving_mean", "head_logits/kernel"} <= moved


def test_no_gradient_enters_the_adapted_encoder_even_if_it_is_thawed_by_hand():
    import tensorflow as tf

    model = hybrid(base("unet"), fuse="average")
    model.trainable = True
    kernels = [model.get_layer(name).kernel.value for name in ("adapted_encoder1_conv1", "encoder1_conv1")]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(image(model)) ** 2)
    adapted, dedicated = tape.gradient(loss, kernels)
    assert adapted is None and np.abs(dedicated).max() > 0


def test_the_t1_model_is_left_as_it_was():
    t1_model = base("se_unet3d")
    t1_model.compile("adam", "categorical_crossentropy")
    config, before, trainable = t1_model.get_config(), t1_model.get_weights(), len(t1_model.trainable_weights)
    model = hybrid(t1_model)
    for w in model.weights:
        w.assign(w * 2)
    assert t1_model.get_config() == config and t1_model.compiled
    assert len(t1_model.trainable_weights) == trainable
    assert all(np.array_equal(a, b) for a, b in zip(before, t1_model.get_weights(), strict=True))
    hybrid(t1_model)  # and can be carried again


def test_a_frozen_t1_model_gives_a_trainable_dedicated_encoder():
    t1_model = base("unet")
    t1_model.trainable = False
    assert len(hybrid(t1_model).trainable_weights) == len(base("unet").trainable_weights)


def test_dedicated_encoder_and_decoder_start_anew_or_as_the_t1_encoder():
    t1_model = base("unet")
    kernel = t1_model.get_layer("encoder1_conv1").get_weights()[0]
    scratch, copied = hybrid(t1_model), hybrid(t1_model, dedicated_from="adapted")
    assert not np.array_equal(scratch.get_layer("encoder1_conv1").get_weights()[0], kernel)
    np.testing.assert_array_equal(copied.get_layer("encoder1_conv1").get_weights()[0], kernel)
    for model in (scratch, copied):
        decoder = model.get_layer("decoder1_conv1").get_weights()[0]
        assert not np.array_equal(decoder, t1_model.get_layer("decoder1_conv1").get_weights()[0])


def test_the_hybrid_lists_the_adapted_groups_first_and_never_thaws_them():
    model = hybrid(base("se_unet3d"))
    assert groups(model).names[:5] == (
        "adapted_encoder1", "adapted_encoder2", "adapted_encoder3", "adapted_bottleneck", "encoder1",
    )  # fmt: skip
    for report in (train_all(model), train_last(model, 21), train_last(model, "all")):
        assert {g.state for g in report.after if g.name.startswith("adapted_")} == {"frozen"}
        assert {g.state for g in report.after if not g.name.startswith("adapted_")} == {"trains"}
    with pytest.raises(InputError, match="21 convolutions"):
        train_last(model, 22)


def test_a_saved_hybrid_is_bit_equal_and_as_frozen_when_loaded(tmp_path):
    model = hybrid(base("se_unet3d"), fuse="concat")
    model.save(tmp_path / "hybrid.keras")
    again = keras.saving.load_model(tmp_path / "hybrid.keras", safe_mode=True)
    assert groups(again) == groups(model)
    np.testing.assert_array_equal(again(image(model)), model(image(model)))


def test_a_bfloat16_network_gives_a_bfloat16_hybrid_with_float32_probabilities():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        t1_model = unet((16, 16, 1), filters=2)
    finally:
        keras.config.set_dtype_policy("float32")
    model = hybrid(t1_model)
    assert model.get_layer("encoder1_fusion").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model(image(model)).dtype) == "float32"


@pytest.mark.parametrize("name", ["segnet", "attention_unet"])
def test_concat_is_refused_where_the_decoder_adds_or_unpools_and_works_elsewhere(name):
    with pytest.raises(InputError, match="multiplies the channels.*multiply, average or maximum"):
        hybrid(base(name), fuse="concat")
    if name == "attention_unet":  # the deepest features are convolved
        model = hybrid(base(name), fuse="concat", fuse_at="bottleneck")
        assert np.isfinite(model(image(model))).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("segnet", "attention_unet")])
def test_concat_runs_for_every_network_that_convolves_what_it_receives(name):
    model = hybrid(base(name), fuse="concat")
    assert np.isfinite(model(image(model))).all()


def with_encoders(count):
    return [trained_like(unet((16, 16, 1), filters=2), seed) for seed in range(count)]


def test_encoders_of_t1_and_t2_stand_beside_the_dedicated_one_with_their_own_weights():
    sources = with_encoders(2)
    model = hybrid(sources, fuse="concat")
    for mark, source in zip(("adapted_", "adapted2_"), sources, strict=True):
        layer, twin = source.get_layer("encoder2_conv1"), model.get_layer(f"{mark}encoder2_conv1")
        np.testing.assert_array_equal(twin.get_weights()[0], layer.get_weights()[0])
        assert not twin.trainable
    x = image(model)
    fused = value_of(model, "encoder1_fusion", x)
    for i, source in enumerate(sources):
        np.testing.assert_allclose(
            fused[..., 2 * i : 2 * i + 2], value_of(source, "encoder1_conv2_relu", x), atol=1e-6
        )
    assert fused.shape[-1] == 3 * 2
    names = groups(model).names
    assert names.index("adapted_bottleneck") < names.index("adapted2_encoder1") < names.index("encoder1")
    assert {g.state for g in train_all(model).after if g.name.startswith("adapted")} == {"frozen"}


@pytest.mark.parametrize(
    ("name", "fuse", "atol"),
    [("unet", "average", 1e-5), ("segnet", "maximum", 0)],  # a third of 3x is rounded, the maximum is not
)
def test_three_equal_encoders_fused_give_back_the_base_network(name, fuse, atol):
    t1_model = base(name)
    model = hybrid([t1_model, t1_model], fuse=fuse, dedicated_from="adapted")
    load_weights(model, t1_model, allow=["missing"])
    np.testing.assert_allclose(model(image(model)), t1_model(image(model)), rtol=0, atol=atol)


def test_three_encoders_train_and_leave_both_adapted_ones_bit_identical(tmp_path):
    model = hybrid(with_encoders(2))
    before = values(model)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", run_eagerly=True)
    labels = np.random.default_rng(0).integers(0, 4, size=(2, 16, 16))
    model.fit(image(model), labels, verbose=0)
    moved = {path for path, value in values(model).items() if not np.array_equal(value, before[path])}
    assert not any(path.startswith("adapted") for path in moved) and "encoder1_conv1/kernel" in moved
    model.save(tmp_path / "hybrid.keras")
    assert groups(keras.saving.load_model(tmp_path / "hybrid.keras")) == groups(model)


def test_encoders_of_different_shapes_are_refused_by_the_layer_that_differs():
    one = unet((16, 16, 1), filters=2)
    with pytest.raises(InputError, match=r"encoder1_conv1.*\(16, 16, 2\) and \(16, 16, 3\)"):
        hybrid([one, unet((16, 16, 1), filters=3)])
    with pytest.raises(InputError, match=r"inputs \(16, 16, 1\) and \(32, 32, 1\)"):
        hybrid([one, unet((32, 32, 1), filters=2)])
    with pytest.raises(InputError, match="in one of 'unet' and 'attention_unet' alone"):
        hybrid([one, BY_NAME["attention_unet"].build((16, 16, 1), filters=2)])
    with pytest.raises(InputError, match="at least one trained network"):
        hybrid([])


def test_unknown_options_list_the_known_ones():
    t1_model = base("unet")
    with pytest.raises(InputError, match="multiply, average, maximum, concat.*Did you mean 'multiply'"):
        hybrid(t1_model, fuse="multiplication")
    with pytest.raises(InputError, match="all, bottleneck"):
        hybrid(t1_model, fuse_at="skips")
    with pytest.raises(InputError, match="scratch, adapted"):
        hybrid(t1_model, dedicated_from="imagenet")


def test_networks_that_cannot_be_carried_are_refused():
    image_tensor = keras.Input((8, 8, 1), name="image")
    shared = keras.layers.Conv2D(1, 3, padding="same", name="encoder1_conv1")
    x = keras.layers.Conv2D(1, 3, padding="same", name="decoder1_conv1")(shared(shared(image_tensor)))
    with pytest.raises(InputError, match="called once.*decoder1_conv1"):
        hybrid(keras.Model(image_tensor, x))
    flat = keras.Model(image_tensor, keras.layers.Conv2D(2, 1, name="head_logits")(image_tensor))
    with pytest.raises(InputError, match="encoder and decoder.*groups head"):
        hybrid(flat)
    with pytest.raises(InputError, match="one input and one output.*1 inputs, 2 outputs"):
        hybrid(keras.Model(image_tensor, [x, x]))
    nameless = keras.layers.ReLU(name="mystery")(shared(image_tensor))
    nameless = keras.layers.Conv2D(1, 3, name="decoder1_conv1")(nameless)
    with pytest.raises(InputError, match="starts with its stage.*'mystery'"):
        hybrid(keras.Model(image_tensor, nameless))
    with pytest.raises(InputError, match="one encoder"):
        hybrid(hybrid(base("unet")))
