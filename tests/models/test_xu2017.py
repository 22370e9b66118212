"""vgg_fcn beside the paper, and the road from ImageNet weights: every tensor, the order of the colours."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.xu2017 import load_vgg16, vgg_fcn
from mrseg.transfer.fusion import hybrid

SHAPES = {
    "encoder1_conv2_relu": (512, 512, 64),
    "encoder2_conv2_relu": (256, 256, 128),
    "encoder3_conv3_relu": (128, 128, 256),
    "encoder4_conv3_relu": (64, 64, 512),
    "encoder5_conv3_relu": (32, 32, 512),
    "decoder1_side": (512, 512, 16),
    "decoder3_side": (128, 128, 16),
    "decoder3_upsample": (512, 512, 16),
    "decoder5_upsample": (512, 512, 16),
    "head_concat": (512, 512, 80),
    "head_logits": (512, 512, 8),
}
#: Parameters of the side convolutions and of the last one.
SIDES = {1: 9_232, 2: 18_448, 3: 36_880, 4: 73_744, 5: 73_744}


@pytest.fixture(scope="module")
def newborns():
    return vgg_fcn((512, 512, 3))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A weight file such as Keras would fetch, with random numbers in it, and the network it came from."""
    keras.utils.set_random_seed(7)
    vgg16 = keras.applications.VGG16(weights=None, include_top=False)
    for w in vgg16.weights:
        w.assign(np.random.default_rng(len(w.path)).normal(size=tuple(w.shape)) * 0.05)
    path = tmp_path_factory.mktemp("imagenet") / "vgg16_notop.weights.h5"
    vgg16.save_weights(path)
    return vgg16, path


def test_features_have_the_paper_s_sizes_layer_by_layer(newborns):
    assert {name: newborns.get_layer(name).output.shape[1:] for name in SHAPES} == SHAPES


def test_side_convolutions_have_16_linear_maps_and_the_paper_s_parameters(newborns):
    for level, parameters in SIDES.items():
        side = newborns.get_layer(f"decoder{level}_side")
        assert side.count_params() == parameters
        assert side.activation is keras.activations.linear
        assert side.input is newborns.get_layer(f"encoder{level}_conv{2 if level < 3 else 3}_relu").output
    assert newborns.get_layer("head_logits").count_params() == 648


def test_adults_have_no_fifth_stage_and_585_numbers_in_the_last_convolution():
    adults = vgg_fcn((240, 240, 3), 9, stages=4)
    assert not any("5" in layer.name.split("_")[0] for layer in adults.layers)
    assert adults.get_layer("head_logits").count_params() == 585
    assert adults.get_layer("decoder4_side").input.shape[1:] == (30, 30, 512)


def test_initial_weights_are_he_normal_normal_and_glorot(newborns):
    kernel = newborns.get_layer("encoder4_conv2").get_weights()[0]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    side = newborns.get_layer("decoder4_side").get_weights()[0]
    assert side.std() == pytest.approx(0.01, rel=0.02)
    assert isinstance(newborns.get_layer("head_logits").kernel_initializer, keras.initializers.GlorotUniform)


def test_a_network_of_deviation_74_says_of_an_image_what_another_says_of_a_74th_of_it():
    keras.utils.set_random_seed(3)
    plain = vgg_fcn((32, 32, 3), 4, filters=4)
    scaled = vgg_fcn((32, 32, 3), 4, filters=4, input_deviation=74.0)
    scaled.set_weights(plain.get_weights())
    image = np.random.default_rng(0).uniform(-128, 128, (1, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(
        scaled.predict(image, verbose=0), plain.predict(image / 74, verbose=0), atol=1e-6
    )
    both = hybrid(scaled, fuse="average")
    scales = [layer.scale for layer in both.layers if isinstance(layer, keras.layers.Rescaling)]
    assert scales == [1 / 74, 1 / 74] and np.isfinite(both.predict(image, verbose=0)).all()


def test_a_random_start_fed_with_grey_values_is_saturated_and_with_their_deviation_is_not():
    """Why the deviation is there: pixels that are sure and wrong from the first step have no gradient."""
    image = np.random.default_rng(0).uniform(-128, 128, (1, 64, 64, 3)).astype("float32")
    keras.utils.set_random_seed(3)
    plain, scaled = (vgg_fcn((64, 64, 3), 8, filters=16, input_deviation=d) for d in (1.0, 74.0))
    assert (plain.predict(image, verbose=0).max(axis=-1) > 0.999).mean() > 0.5
    assert scaled.predict(image, verbose=0).max() < 0.9


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan"), float("inf"), 1e-300, "74"])
def test_a_deviation_is_a_number_that_leaves_something_of_the_input(deviation):
    with pytest.raises(InputError, match="input_deviation is 0.001 to 1e6"):
        vgg_fcn((32, 32, 3), 4, input_deviation=deviation)


def test_weights_of_imagenet_take_the_grey_values_as_they_are(imagenet):
    with pytest.raises(InputError, match="1 with weights of ImageNet"):
        vgg_fcn((32, 32, 3), 4, weights=imagenet[1], input_deviation=74.0)


@pytest.mark.parametrize(("stages", "layers"), [(5, 13), (4, 10)])
def test_every_tensor_of_vgg16_arrives(imagenet, stages, layers):
    vgg16, path = imagenet
    model = vgg_fcn((32, 32, 3), 4, stages=stages, weights=path)
    sources = {w.path.replace("block", "encoder"): w for w in vgg16.weights}
    arrived = 0
    for w in model.weights:
        source = sources.get(w.path)
        if source is None:
            assert w.path.startswith(("decoder", "head"))
            continue
        value = keras.ops.convert_to_numpy(source)
        if w.path == "encoder1_conv1/kernel":
            value = value[:, :, ::-1]
        np.testing.assert_array_equal(w, value)
        arrived += 1
    assert arrived == 2 * layers
    assert len(load_vgg16(model, path)) == layers


def test_the_colours_are_turned_round_on_an_image_of_two_pixels(imagenet):
    # VGG16 reads blue, green, red; the paper's red, green, blue are the slices n-1, n, n+1
    vgg16, path = imagenet
    rgb = np.array([[[10.0, 20.0, 30.0], [-5.0, 0.0, 40.0]]], "float32")  # (1, 2, 3): two pixels
    image = np.zeros((1, 16, 16, 3), "float32")
    image[0, 7:8, 7:9] = rgb
    model = vgg_fcn((16, 16, 3), weights=path)
    ours = keras.Model(model.input, model.get_layer("encoder1_conv1_relu").output)(image)
    theirs = keras.Model(vgg16.input, vgg16.get_layer("block1_conv1").output)
    np.testing.assert_allclose(ours, theirs(image[..., ::-1]), atol=1e-4)
    assert np.abs(np.asarray(ours) - np.asarray(theirs(image))).max() > 0.1
    kernel = vgg16.get_layer("block1_conv1").get_weights()[0]
    alone = np.zeros((1, 16, 16, 3), "float32")
    alone[0, 7, 7, 0] = 1.0  # only slice n-1
    bias = vgg16.get_layer("block1_conv1").get_weights()[1]
    felt = keras.Model(model.input, model.get_layer("encoder1_conv1").output)(alone)
    np.testing.assert_allclose(felt[0, 7, 7], kernel[1, 1, 2] + bias, atol=1e-5)


def test_a_file_of_another_network_and_a_missing_file_are_told_in_one_line(tmp_path, imagenet):
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(InputError, match="VGG16.*other.weights.h5, which holds another network"):
        vgg_fcn((32, 32, 3), weights=tmp_path / "other.weights.h5")
    with pytest.raises(FileNotFoundError):
        vgg_fcn((32, 32, 3), weights=tmp_path / "none.h5")
    with pytest.raises(InputError, match="three channels and 64 filters.*32 filters"):
        vgg_fcn((32, 32, 3), filters=32, weights=imagenet[1])
    image = keras.Input((8, 8, 3))
    with pytest.raises(InputError, match="go into vgg_fcn.*called 'other'"):
        load_vgg16(keras.Model(image, keras.layers.Conv2D(2, 3)(image), name="other"), imagenet[1])


def test_volumes_and_other_numbers_of_stages_are_refused():
    with pytest.raises(InputError, match=r"\(x, y, 3\)"):
        vgg_fcn((32, 32, 32, 3))
    with pytest.raises(InputError, match="5 .newborns. or 4 .adults.*3"):
        vgg_fcn((32, 32, 3), stages=3)
