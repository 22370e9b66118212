"""The cut lies where training begins, and the two parts are the network."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.builders import NETWORKS
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.transfer.cutting import find_cut
from mrseg.transfer.freezing import freeze, train_all, train_last
from mrseg.transfer.fusion import hybrid

BY_NAME = {network.name: network for network in NETWORKS}
#: one form of every builder
NAMES = ["segnet", "se_unet3d", "vgg_fcn", "res_unet", "unet", "sep_res_unet", "attention_unet"]


def small(name):
    network = BY_NAME[name]
    sizes = (network.multiple,) * (len(network.input_shape) - 1)
    return network.build((*sizes, network.input_shape[-1]), filters=2)


def image(model):
    return np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("convs", [0, "decoder"])
def test_the_two_parts_compute_what_the_network_computes(name, convs):
    model = small(name)
    train_last(model, convs)
    cut = find_cut(model)
    whole, parts = model(image(model)), cut.suffix(cut.prefix(image(model)))
    # the same operations; eager and grouped differently, so equal but for rounding
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert cut.pays and not cut.prefix.trainable_variables
    assert {id(v) for v in cut.suffix.trainable_variables} == {id(v) for v in model.trainable_variables}


def test_segnet_hands_its_pooling_indices_over():
    model = segnet((32, 32, 1), filters=2)
    train_last(model, "decoder")
    pools = {f"encoder{i}_pool" for i in range(1, 6)}
    cut = find_cut(model)
    assert set(cut.names) == pools | {"bottleneck_dropout"}
    assert [t.dtype for t in cut.tensors].count("int32") == 5
    assert "encoder1_pool" in str(cut) and "16x16x2" in str(cut)


def test_unpooling_is_done_anew_since_its_input_is_smaller():
    # the last 2 convolutions begin behind decoder1_unpool: 32x32x2 floats there, 16x16x2 floats and bytes
    # before it
    model = segnet((32, 32, 1), filters=2)
    train_last(model, 2)
    assert set(find_cut(model).names) == {"decoder2_conv2_relu", "encoder1_pool"}


def test_a_live_dropout_is_a_border_and_a_silent_one_is_not():
    model = segnet((32, 32, 1), filters=2)
    train_last(model, 0)
    assert find_cut(model).names == ("decoder1_conv1_relu",)
    train_last(model, 0, frozen_dropout="live")
    names = find_cut(model).names
    assert "encoder5_pool" in names and "decoder1_conv1_relu" not in names


def test_a_norm_that_trains_is_a_border_even_without_gamma_and_beta():
    tensor = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Conv2D(2, 3, name="encoder1_conv1", trainable=False)(tensor)
    x = keras.layers.BatchNormalization(center=False, scale=False, name="encoder1_bn")(x)
    model = keras.Model(tensor, keras.layers.Conv2D(2, 1, name="head_logits")(x))
    assert find_cut(model).names == ("encoder1_conv1",)


def test_random_images_are_a_border_at_the_very_beginning():
    tensor = keras.Input((4, 4, 1), name="image")
    x = keras.layers.RandomFlip(name="flip")(tensor)
    x = keras.layers.Conv2D(2, 3, name="encoder1_conv1", trainable=False)(x)
    cut = find_cut(keras.Model(tensor, keras.layers.Conv2D(2, 1, name="head_logits")(x)))
    assert cut.names == ("image",) and not cut.pays


def test_of_a_hybrid_the_adapted_features_and_the_image_are_handed_over():
    cut = find_cut(hybrid(se_unet3d((16, 16, 8, 1), filters=2)))
    stages = ["encoder1", "encoder2", "encoder3", "bottleneck"]
    assert set(cut.names) == {"image"} | {f"adapted_{s}_recalibration_spatial_stop" for s in stages}
    assert cut.pays


def test_an_open_network_has_nothing_to_save_and_a_frozen_one_nothing_to_train():
    model = unet((16, 16, 1), filters=2)
    train_all(model)
    assert find_cut(model).names == ("image",) and not find_cut(model).pays
    model.trainable = False
    with pytest.raises(InputError, match="all of it frozen"):
        find_cut(model)


def test_the_network_is_saved_as_before_it_was_cut(tmp_path):
    model = unet((16, 16, 1), filters=2)
    freeze(model, ["encoder1", "encoder2"])
    config = model.get_config()
    find_cut(model)
    assert model.get_config() == config
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(image(model)), model(image(model)))


def test_what_cannot_be_cut_is_refused():
    tensor = keras.Input((4, 4, 1), name="image")
    shared = keras.layers.Conv2D(1, 3, padding="same", name="encoder1_conv1")
    with pytest.raises(InputError, match="each called once"):
        find_cut(keras.Model(tensor, shared(shared(tensor))))
    model = unet((16, 16, 1), filters=2)
    train_last(model, 2)
    with pytest.raises(InputError, match="not already cut"):
        find_cut(find_cut(model).suffix)

    class Own(keras.Model):
        pass

    with pytest.raises(InputError, match="Functional"):
        find_cut(Own())
