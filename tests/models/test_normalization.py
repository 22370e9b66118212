"""The layers equal the functions of mrseg.data, image by image, and keep what the functions promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from mrseg import data
from mrseg._checks import InputError
from mrseg.models.normalization import LocalContrast, MinMax, QuantileZScore

LAYERS = [LocalContrast(), QuantileZScore(), MinMax()]


def scans(shape=(2, 19, 23, 5, 2), seed=0):
    images = np.random.default_rng(seed).gamma(2.0, 50.0, shape).astype("float32")
    images[:, :4] = 0  # background
    return images


def by_layer(layer, images):
    return keras.ops.convert_to_numpy(layer(images))


def image_by_image(function, images):
    made = np.empty_like(images)
    for n in range(len(images)):
        for c in range(images.shape[-1]):
            made[n, ..., c] = function(images[n, ..., c])
    return made


def lcn_of_slice(image, **options):
    return data.lcn(image[..., None], **options)[..., 0]


@pytest.mark.parametrize("variant", ["jarrett", "fileexchange", "pinto"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_local_contrast_of_volumes_is_lcn(variant, axis):
    images = scans()[..., 2:, :]
    expected = image_by_image(lambda image: data.lcn(image, variant=variant, axis=axis), images)
    made = by_layer(LocalContrast(variant=variant, axis=axis), images)
    np.testing.assert_allclose(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["jarrett", "fileexchange", "pinto"])
@pytest.mark.parametrize("sigma", [4.0, 1.3])
def test_local_contrast_of_slices_is_lcn(variant, sigma):
    images = scans((3, 21, 30, 2))
    expected = image_by_image(lambda image: lcn_of_slice(image, variant=variant, sigma=sigma), images)
    made = by_layer(LocalContrast(sigma, variant), images)
    np.testing.assert_allclose(made, expected, atol=1e-5, rtol=1e-5)


def test_a_window_longer_than_the_slice_is_mirrored_more_than_once():
    images = scans((1, 7, 5, 1), seed=3)
    made = by_layer(LocalContrast(), images)
    np.testing.assert_allclose(made, image_by_image(lcn_of_slice, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 20, 24, 2), (2, 12, 10, 8, 1)], ids=["2-D", "3-D"])
@pytest.mark.parametrize(
    ("layer", "function"), [(QuantileZScore(), data.quantile_zscore), (MinMax(), data.min_max)]
)
def test_the_other_two_equal_their_functions(layer, function, shape):
    images = scans(shape)
    np.testing.assert_allclose(
        by_layer(layer, images), image_by_image(function, images), atol=1e-5, rtol=1e-5
    )


def test_quantile_zscore_worked_out_by_hand():
    # Positive voxels 1..8: quartiles 2.75 and 6.25, so 3, 4, 5, 6 count: mean 4.5, std sqrt(1.25).
    row = np.array([0, 3, 1, 2, 0, 8, 7, 6, 5, 4], "float32")
    made = by_layer(QuantileZScore(), row.reshape(1, 2, 5, 1)).ravel()
    np.testing.assert_allclose(made, np.where(row > 0, (row - 4.5) / np.sqrt(1.25), 0), rtol=1e-6)


@pytest.mark.parametrize("layer", [*LAYERS, LocalContrast(variant="fileexchange")], ids=lambda one: one.name)
@pytest.mark.parametrize("value", [0.0, 7.3, 16777216.0])
def test_a_constant_image_becomes_zero_beside_a_normal_one(layer, value):
    images = scans((2, 20, 20, 1))
    images[0] = value
    made = by_layer(layer, images)
    assert not made[0].any()
    assert np.isfinite(made).all() and made[1].std() > 0.1


@pytest.mark.parametrize(
    "layer",
    [LocalContrast(2.5, "pinto", 1), QuantileZScore(), MinMax()],
    ids=["local_contrast", "zscore", "min_max"],
)
def test_config_and_file_round_trips_keep_the_layer_and_its_result(layer, tmp_path):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == layer.get_config()
    images = scans((1, 9, 8, 6, 1))
    inputs = keras.Input(images.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))
    np.testing.assert_allclose(model.predict(images, verbose=0), by_layer(layer, images), atol=1e-5)


def test_under_bfloat16_intensities_are_normalised_in_float32():
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        layer = MinMax()
    finally:
        keras.config.set_dtype_policy("float32")
    row = np.arange(1000, 2000, dtype="float32").reshape(1, 50, 20, 1)
    assert len(np.unique(by_layer(layer, row))) == 1000


@pytest.mark.parametrize("shape", [(None, 20, 1), (None, None, 20, 1)])
def test_shapes_that_local_contrast_cannot_take_are_refused(shape):
    with pytest.raises(InputError, match="LocalContrast takes"):
        LocalContrast().build(shape)


@pytest.mark.parametrize("options", [{"variant": "jarret"}, {"axis": 3}, {"sigma": 0.0}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(InputError):
        LocalContrast(**options)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="started by the tests on TensorFlow")
def test_all_of_this_holds_on_jax():
    pytest.importorskip("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
