from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mrseg import data
from mrseg._checks import InputError
from mrseg.baselines import BASELINES, brain_mask_series, brain_mask_volume
from mrseg.data import phantom
from mrseg.metrics import dice


@pytest.fixture(scope="module")
def perfusion():
    """A DSC series of the phantom through the middle of the head, and its true brain."""
    head = phantom.head(1, shape=(128, 128, 12), spacing_mm=(1.9, 1.9, 6.0))
    series, _ = phantom.dsc_series(head, timepoints=5, noise=0.04)
    return series, phantom.tissue_labels(head) > 0


# Otsu keeps the scalp; slices at the level of the eyes and the crown are hard for the others too.
@pytest.mark.parametrize(("method", "least"), [("otsu", 0.8), ("aabl", 0.95), ("cusum", 0.95)])
def test_the_brain_of_the_phantoms_middle_slices_is_found(perfusion, method, least):
    series, brain = perfusion
    middle = slice(6, 10)
    mask = brain_mask_series(series, method)
    assert mask.shape == series.shape[:3] and mask.dtype == bool
    for k in range(6, 10):
        assert dice(brain[..., k], mask[..., k]) > least, k
    assert dice(brain[..., middle], mask[..., middle]) > least


def test_a_volume_is_its_slices_one_by_one(perfusion):
    image = perfusion[0][..., 3]
    mask = brain_mask_volume(image, "aabl", ellipse=0.8)
    np.testing.assert_array_equal(mask[..., 7], BASELINES["aabl"](image[..., 7], ellipse=0.8))


def test_slices_run_along_any_axis(perfusion):
    image = perfusion[0][..., 3]
    turned = brain_mask_volume(np.moveaxis(image, 2, 0), "otsu", slice_axis=0)
    np.testing.assert_array_equal(np.moveaxis(turned, 0, 2), brain_mask_volume(image, "otsu"))


def test_the_fourth_time_point_speaks_for_the_series(perfusion):
    series = perfusion[0]
    np.testing.assert_array_equal(
        brain_mask_series(series, "otsu"), brain_mask_volume(series[..., 3], "otsu")
    )
    second = brain_mask_series(series, "otsu", time_index=1)
    np.testing.assert_array_equal(second, brain_mask_volume(series[..., 1], "otsu"))


def test_a_slice_of_air_stays_empty_although_noise_has_a_threshold(perfusion):
    image = np.concatenate([perfusion[0][..., 3], np.full((128, 128, 1), 1.0)], axis=2)
    image[..., -1] = np.random.default_rng(0).rayleigh(5.0, (128, 128))
    assert BASELINES["otsu"](image[..., -1]).any()
    assert not brain_mask_volume(image, "otsu")[..., -1].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brain_mask_volume(np.zeros((4, 4, 4)), "cusun"), "Did you mean 'cusum'"),
        (lambda: brain_mask_volume(np.zeros((4, 4))), "x, y, z"),
        (lambda: brain_mask_volume(np.zeros((4, 4, 4))), "contrast"),
        (lambda: brain_mask_volume(np.ones((4, 4, 4)), slice_axis=3), "0, 1, 2"),
        (lambda: brain_mask_series(np.zeros((4, 4, 4))), "x, y, z, t"),
        (lambda: brain_mask_series(np.zeros((4, 4, 4, 3))), "0 to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.data
@pytest.mark.parametrize("patient", ["patient01", "patient04"])
def test_the_brain_of_a_real_t2_slice_is_neither_the_head_nor_a_part(patient):
    """No reference mask exists: AABL and CUSUM must agree with each other, and lie inside Otsu's head."""
    folder = os.environ.get("MRSEG_DATA")
    if not folder or not (Path(folder) / "open_ms").is_dir():
        pytest.skip("MRSEG_DATA holds no open_ms")
    volume = data.to_canonical(data.read_volume(Path(folder) / "open_ms" / patient / "study1_T2W.nii.gz"))
    thickness = data.voxel_sizes(volume[1])[2]
    image = data.resample(volume, *data.grid_with_spacing(volume[0].shape, volume[1], (1.8, 1.8, thickness)))
    plane = image[..., image.shape[2] // 2]
    aabl, cusum = BASELINES["aabl"](plane), BASELINES["cusum"](plane)
    head = data.head_mask(image)[..., image.shape[2] // 2]
    assert dice(aabl, cusum) > 0.9
    for mask in (aabl, cusum):
        assert 0.5 < mask.sum() / head.sum() < 0.95


def test_an_option_of_another_method_is_named():
    with pytest.raises(InputError, match="An option of otsu is one of clean"):
        brain_mask_volume(np.random.default_rng(0).random((8, 8, 2)), "otsu", size=0.5)
