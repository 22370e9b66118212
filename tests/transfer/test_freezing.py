"""What is frozen is bit for bit the same after training; what trains is what the paper's row says."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.models.builders import NETWORKS
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.transfer.freezing import freeze, train_all, train_last, train_norms
from mrseg.transfer.fusion import hybrid
from mrseg.transfer.grouping import groups

FROM_OUTPUT = ["head", "decoder1", "decoder2", "decoder3", "bottleneck", "encoder3", "encoder2", "encoder1"]


@pytest.fixture(scope="module")
def network():
    return se_unet3d((16, 16, 8, 1), filters=2)


def trained_groups(model):
    return {group.name for group in groups(model) if group.state != "frozen"}


def one_epoch(model):
    """Two steps of SGD on noise: every tensor that may move moves."""
    rng = np.random.default_rng(0)
    sizes = model.input_shape[1:-1]
    x = rng.normal(3, 5, size=(4, *sizes, 1)).astype("float32")
    y = rng.integers(0, model.output_shape[-1], size=(4, *sizes))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)


def values(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


@pytest.mark.parametrize("convs", [0, 3, 6, 9, 12, 15, 18, 21])
def test_train_last_trains_the_groups_of_the_paper_s_row(network, convs):
    train_last(network, convs)
    assert trained_groups(network) == set(FROM_OUTPUT[: convs // 3 + 1])
    assert {g.state for g in groups(network)} <= {"trains", "frozen"}


def test_decoder_is_nine_convolutions_and_all_is_21(network):
    assert train_last(network, "decoder").after == train_last(network, 9).after
    assert train_last(network, "all").after == train_last(network, 21).after


def test_a_part_of_a_group_trains_its_last_convolutions_with_their_norms_alone(network):
    report = train_last(network, 4)
    names = {layer.name for layer in network.layers if layer.trainable_weights}
    partly = {name for name in names if name.startswith("decoder2")}
    assert partly == {"decoder2_conv3", "decoder2_conv3_bn"}
    assert report.after["decoder2"].state == "partly" and report.after["decoder1"].state == "trains"


def test_trainable_parameters_of_the_last_three_convolutions_worked_out_by_hand(network):
    # decoder1 at 2 filters: deconvolution 8*4*2+2; convolutions 27*4*2+2, twice 27*2*2+2; three norms of 2*2;
    # channel recalibration 2*1+1+1*2+2, spatial 2+1; head 2*3+3
    expected = (66 + 218 + 2 * 110 + 12) + (7 + 3) + 9
    report = train_last(network, 3)
    assert report.after.trainable == expected
    assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == expected


@given(convs=st.integers(0, 21))
@settings(max_examples=22, deadline=None)
def test_one_more_convolution_never_freezes_anything(convs):
    model = test_one_more_convolution_never_freezes_anything.model
    train_last(model, convs)
    fewer = {w.path for w in model.trainable_weights}
    train_last(model, min(convs + 1, 21))
    assert fewer <= {w.path for w in model.trainable_weights}


test_one_more_convolution_never_freezes_anything.model = se_unet3d((None, None, 1), filters=2)


@pytest.mark.parametrize("convs", [22, -1, 2.0, True, "encoder", None])
def test_a_depth_that_the_network_has_not_is_refused_with_its_number_of_convolutions(network, convs):
    before = groups(network)
    with pytest.raises(InputError, match="from 0 to the 21 convolutions of 'se_unet3d'"):
        train_last(network, convs)
    assert groups(network) == before


def test_a_stem_belongs_to_the_encoder():
    x = image = keras.Input((8, 8, 1), name="image")
    for name in ("stem_conv1", "encoder1_conv1", "decoder1_conv1", "head_logits"):
        x = keras.layers.Conv2D(1, 3, padding="same", name=name)(x)
    model = keras.Model(image, x)
    train_last(model, "decoder")
    assert trained_groups(model) == {"decoder1", "head"}


def test_a_head_with_a_kernel_larger_than_one_is_the_first_convolution_counted():
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(2, 3, padding="same", name="encoder1_conv1")(image)
    x = keras.layers.Conv2D(2, 3, padding="same", name="decoder1_conv1")(x)
    model = keras.Model(image, keras.layers.Conv2D(3, 3, padding="same", name="head_logits")(x))
    from_output = ["head", "decoder1", "encoder1"]
    for convs in range(4):
        train_last(model, convs)
        assert trained_groups(model) == set(from_output[: max(convs, 1)])


def test_freeze_freezes_the_named_groups_and_trains_the_rest(network):
    freeze(network, ["encoder1", "encoder2"])
    assert trained_groups(network) == set(FROM_OUTPUT) - {"encoder1", "encoder2"}
    freeze(network, ["head"])
    assert trained_groups(network) == set(FROM_OUTPUT) - {"head"}


def test_train_all_thaws_even_a_network_frozen_as_a_whole(network):
    network.trainable = False
    report = train_all(network)
    assert report.before.trainable == 0 and trained_groups(network) == set(FROM_OUTPUT)


def test_freeze_refuses_an_unknown_group_and_a_bare_name(network):
    with pytest.raises(InputError, match="encoder1, encoder2, encoder3"):
        freeze(network, ["encoder4"])
    with pytest.raises(InputError, match=r"Write \['encoder1'\]"):
        freeze(network, "encoder1")


@pytest.mark.parametrize("convs", [0, 4])
def test_frozen_tensors_and_statistics_are_bit_identical_after_training(convs):
    model = se_unet3d((16, 16, 8, 1), filters=2)
    train_last(model, convs)
    frozen = {layer.name for layer in model.layers if layer.weights and not layer.trainable}
    before = values(model)
    one_epoch(model)
    for path, value in values(model).items():
        if path.split("/")[0] in frozen:
            np.testing.assert_array_equal(value, before[path], err_msg=path)
    moved = {path for path, value in values(model).items() if not np.array_equal(value, before[path])}
    assert {"head_logits/kernel", "head_logits/bias"} <= moved
    assert ("decoder2_conv3_bn/moving_mean" in moved) == (convs == 4)
    assert "decoder2_conv2_bn/moving_mean" not in moved


def test_a_frozen_norm_uses_its_stored_statistics_while_training():
    model = unet((16, 16, 1), filters=2)
    x = np.random.default_rng(0).normal(5, 3, size=(2, 16, 16, 1)).astype("float32")
    encoder = keras.Model(model.input, model.get_layer("encoder1_conv2_relu").output)
    assert np.abs(np.asarray(encoder(x, training=True)) - np.asarray(encoder(x, training=False))).max() > 0.1
    freeze(model, ["encoder1"])
    np.testing.assert_array_equal(encoder(x, training=True), encoder(x, training=False))


def test_a_compiled_network_must_be_compiled_again_and_says_so():
    model = unet((16, 16, 1), filters=2)
    one_epoch(model)
    report = train_last(model, 2)
    assert report.must_compile and "Compile the model again" in str(report)
    with pytest.raises(ValueError, match="compile"):
        model.fit(np.zeros((2, 16, 16, 1)), np.zeros((2, 16, 16)), verbose=0)
    before = values(model)
    one_epoch(model)
    after = values(model)
    assert np.array_equal(before["encoder1_conv1/kernel"], after["encoder1_conv1/kernel"])
    assert not np.array_equal(before["decoder1_conv1/kernel"], after["decoder1_conv1/kernel"])


def test_a_change_that_changes_nothing_leaves_the_compilation_alone():
    model = unet((16, 16, 1), filters=2)
    model.compile("sgd", "categorical_crossentropy")
    assert not train_all(model).must_compile and model.compiled


def test_what_is_frozen_stays_frozen_through_a_saved_file(tmp_path):
    model = unet((16, 16, 1), filters=2)
    train_last(model, 3)
    model.save(tmp_path / "model.keras")
    assert groups(keras.saving.load_model(tmp_path / "model.keras")) == groups(model)


def test_the_report_prints_each_group_before_and_after(network):
    train_all(network)
    lines = str(train_last(network, 0)).split("\n")
    assert lines[0].split() == [
        "group",
        "convs",
        "parameters",
        "trainable",
        "before",
        "trainable",
        "after",
        "state",
    ]
    assert lines[1].split()[-2:] == ["0", "frozen"] and lines[-2].split()[-1] == "trains"
    weights = sum(int(np.prod(w.shape)) for w in network.weights)
    statistics = sum(int(np.prod(w.shape)) for w in network.weights if w.name.startswith("moving_"))
    before = f"{weights - statistics:,}"
    assert lines[-1].split() == ["total", "21", f"{weights:,}", before, "9"]  # 2 * 3 + 3 of the head


def dropped(model):
    """Whether ten passes in training mode differ; two masks of few channels may be the same by chance."""
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    encoder = keras.Model(model.input, model.get_layer("bottleneck_dropout").output)
    first, *others = (np.asarray(encoder(x, training=True)) for _ in range(10))
    return any(not np.array_equal(first, other) for other in others)


def test_dropout_of_a_frozen_group_is_silent_unless_it_is_to_live():
    model = segnet((32, 32, 1), filters=2)
    assert dropped(model) and groups(model)["bottleneck"].dropout == "live"
    report = train_last(model, "decoder")
    assert not dropped(model) and report.after["bottleneck"].dropout == "silent"
    assert "silent" in str(report) and str(report).split("\n")[0].endswith("dropout")
    assert train_last(model, "decoder", frozen_dropout="live").after["bottleneck"].dropout == "live"
    assert dropped(model)
    freeze(model, ["encoder1", "encoder2"])  # the bottleneck trains
    assert groups(model)["bottleneck"].dropout == "live"


def test_a_silenced_dropout_drops_again_once_thawed_from_a_saved_file(tmp_path):
    model = segnet((32, 32, 1), filters=2)
    train_last(model, "decoder")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert not dropped(again) and again.get_layer("bottleneck_dropout").rate == 0.7
    freeze(again, ["encoder1"])
    assert dropped(again)


def test_a_change_of_dropout_alone_asks_for_compilation():
    model = segnet((32, 32, 1), filters=2)
    train_last(model, 2)
    model.compile("sgd", "categorical_crossentropy")
    assert train_last(model, 2, frozen_dropout="live").must_compile


def trained_layers(model):
    return {layer.name for layer in model.layers if layer.trainable_weights}


def test_norms_follow_their_convolution_or_are_all_frozen_or_all_train():
    model = unet((16, 16, 1), filters=2)
    train_last(model, 2)
    follow = trained_layers(model)
    every = {layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert {"decoder1_conv1_bn", "decoder1_conv2_bn"} == follow & every
    train_last(model, 2, norms="frozen")
    assert trained_layers(model) == follow - every
    train_last(model, 2, norms="train")
    assert trained_layers(model) == follow | every


def test_train_norms_trains_gamma_and_beta_and_nothing_else():
    model = hybrid(unet((16, 16, 1), filters=2))
    train_norms(model)
    assert {w.name for w in model.trainable_weights} == {"gamma", "beta"}
    assert not any(w.path.startswith("adapted_") for w in model.trainable_weights)
    train_norms(model, head=True)
    others = {w.path for w in model.trainable_weights if w.name not in {"gamma", "beta"}}
    assert others == {"head_logits/kernel", "head_logits/bias"}
    bare = keras.Input((4, 4, 1), name="image")
    with pytest.raises(InputError, match="a network that normalises"):
        train_norms(keras.Model(bare, keras.layers.Conv2D(2, 1, name="head_logits")(bare)))


def test_unknown_policies_list_the_known_ones(network):
    before = groups(network)
    with pytest.raises(InputError, match="silent, live"):
        train_last(network, 3, frozen_dropout="off")
    with pytest.raises(InputError, match="follow, frozen, train"):
        freeze(network, [], norms="none")
    assert groups(network) == before


def test_the_norm_behind_a_convolution_of_a_backbone_goes_with_it():
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), include_top=False)
    train_last(model, 1)
    assert trained_layers(model) == {"conv5_block3_2_conv", "conv5_block3_2_bn"}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("mechanism", ["head", "last2", "decoder", "names", "hybrid"])
def test_frozen_layers_of_every_network_are_bit_identical_after_every_mechanism(network, mechanism):
    sizes = (2 * network.multiple,) * 2 + (network.multiple,) * (len(network.input_shape) - 3)
    model = network.build((*sizes, network.input_shape[-1]), filters=2)
    if mechanism == "hybrid":
        model = hybrid(model)
    elif mechanism == "names":
        freeze(model, ["encoder1", "encoder2"])
    else:
        train_last(model, {"head": 0, "last2": 2, "decoder": "decoder"}[mechanism])
    frozen = {layer.name for layer in model.layers if layer.weights and not layer.trainable}
    before = values(model)
    rng = np.random.default_rng(0)
    x = rng.normal(3, 5, size=(2, *model.input_shape[1:])).astype("float32")
    y = rng.integers(0, model.output_shape[-1], size=x.shape[:-1])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(x, y, epochs=1, verbose=0)
    moved = {path for path, value in values(model).items() if not np.array_equal(value, before[path])}
    assert frozen and moved and not {path.split("/")[0] for path in moved} & frozen
