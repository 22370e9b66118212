"""A network of the user's own joins recipes, transfer and segmenters by the names of its layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import mrseg
from mrseg._checks import InputError
from mrseg.recipes import build_network, load_recipe

SMALL = "network={builder: mine, arguments: {filters: 2}}"


@keras.saving.register_keras_serializable(package="test_own_network")
class Scale(layers.Layer):
    """Multiplies by a learned number, 1 at first."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


def network(input_shape, num_classes, *, filters=4, names="encoder1", own=None):
    """One stage each way; ``filters`` has no type on purpose."""
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(filters, 3, padding="same", name=f"{names}_conv1")(image)
    x = (own or Scale)(name="bottleneck_scale")(x)
    x = layers.Conv2D(filters, 3, padding="same", name="decoder1_conv1")(x)
    x = layers.Conv2D(num_classes, 1, name="head_logits", dtype="float32")(x)
    return keras.Model(image, layers.Softmax(name="head_probabilities", dtype="float32")(x), name="mine")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(mrseg.models.BUILDERS, "mine", network)


def segmenter_of(model):
    preprocessing = mrseg.data.Preprocessing(normalization="min_max")
    sampling = mrseg.data.Sampling(patch_shape=(8, 8, 1))
    return mrseg.Segmenter(model, preprocessing, sampling, ("air", "soft", "bone"), "T1w")


def test_a_recipe_builds_it_from_its_name():
    recipe = load_recipe("phantom_t1_slices", [SMALL])
    model, _ = build_network(recipe)
    assert model.name == "mine" and model.get_layer("encoder1_conv1").filters == 2
    assert model.input_shape[1:] == recipe.sampling.input_shape


def test_a_misspelt_argument_lists_those_there_are():
    with pytest.raises(InputError, match="filters, names, own.*Did you mean 'filters'"):
        load_recipe("phantom_t1_slices", ["network={builder: mine, arguments: {filter: 2}}"])


def test_groups_freezing_and_hybrid_read_its_names():
    model = network((8, 8, 1), 3)
    assert mrseg.transfer.groups(model).names == ("encoder1", "bottleneck", "decoder1", "head")
    mrseg.transfer.train_last(model, convs=1)
    assert mrseg.transfer.groups(model)["encoder1"].state == "frozen"
    assert "adapted_encoder1" in mrseg.transfer.groups(mrseg.transfer.hybrid(model, fuse="average")).names


def test_a_layer_without_a_stage_in_its_name_is_named():
    with pytest.raises(InputError, match="layer 'first_conv1'"):
        mrseg.transfer.groups(network((8, 8, 1), 3, names="first"))


def test_a_registered_layer_is_saved_and_loaded(tmp_path):
    keras.utils.set_random_seed(0)
    one = segmenter_of(network((8, 8, 1), 3))
    again = mrseg.Segmenter.load(one.save(tmp_path / "mine"))
    scan = np.random.default_rng(0).random((8, 8, 3), np.float32), np.eye(4)
    np.testing.assert_array_equal(again.probabilities(scan), one.probabilities(scan))


def test_a_layer_that_is_not_registered_is_refused(tmp_path):
    class Foreign(Scale):
        pass

    folder = segmenter_of(network((8, 8, 1), 3, own=Foreign)).save(tmp_path / "mine")
    with pytest.raises(InputError, match="layers of Keras and mrseg"):
        mrseg.Segmenter.load(folder)
