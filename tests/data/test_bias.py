from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.bias import bias_correction, bias_field
from mrseg.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def scan():
    """A ball of cubes of 60, 90 and 120, mixed everywhere, under a smooth field; and both."""
    shape = (64, 64, 40)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    cubes = np.indices(shape) // 5
    tissue = np.array([60.0, 90.0, 120.0])[(cubes[0] + 2 * cubes[1] + cubes[2]) % 3]
    tissue[x**2 + y**2 + z**2 > 0.85] = 0
    field = np.exp(0.3 * x - 0.2 * y**2 + 0.15 * z)
    noise = np.random.default_rng(0).normal(0, 1.5, tissue.shape)
    image = np.where(tissue > 0, tissue * field + noise, 0).clip(0).astype(np.float32)
    return image, tissue, field


def test_the_field_that_was_laid_on_is_found_again(scan):
    image, tissue, field = scan
    found = bias_field(image, tissue > 0)
    inside = tissue > 0
    left = np.log(found / field)[inside].std()
    assert left < 0.2 * np.log(field)[inside].std()
    assert found.dtype == np.float32 and found.shape == image.shape and found.min() > 0
    assert found[inside & (image > 0)].mean() == pytest.approx(1, abs=1e-4)


def test_a_tissue_becomes_even_and_the_background_stays_0(scan):
    image, tissue, _ = scan
    corrected = bias_correction(image, tissue > 0)
    for value in (60, 90, 120):
        before, after = image[tissue == value], corrected[tissue == value]
        assert after.std() / after.mean() < 0.4 * before.std() / before.mean()
    assert not corrected[image == 0].any()


def test_it_repeats_bit_for_bit_and_tells_its_time(scan, caplog):
    with caplog.at_level(logging.INFO):
        first = bias_correction(scan[0], iterations=(5, 5))
    np.testing.assert_array_equal(first, bias_correction(scan[0], iterations=(5, 5)))
    assert "64x64x40 voxels took" in caplog.text


def test_preprocessing_removes_the_field_on_request(scan):
    image, tissue, _ = scan
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    steps = {"grid": "spacing", "spacing_mm": (2.0, 2.0, 3.0), "normalization": "min_max"}
    plain, _ = Preprocessing(**steps).image((image, affine))
    even, _ = Preprocessing(**steps, bias_correction=True).image((image, affine))
    core = tissue == 120
    assert even[core].std() / even[core].mean() < 0.6 * plain[core].std() / plain[core].mean()


def test_memory_counts_the_correction():
    native = ((100, 100, 50), np.eye(4))
    plain, with_n4 = (Preprocessing(bias_correction=n4).memory_mb(native) for n4 in (False, True))
    assert with_n4 > plain


@pytest.mark.parametrize(
    ("image", "mask", "words"),
    [
        (np.full((8, 8, 8), -1.0), None, "from -1"),
        (np.full((8, 8, 8), math.nan), None, "finite"),
        (np.ones((8, 8)), None, r"\(8, 8\)"),
        (np.ones((8, 8, 8)), np.ones((8, 8, 7)), "on the image's grid"),
        (np.ones((8, 8, 8)), np.zeros((8, 8, 8)), "voxels above 0"),
        (np.ones((8, 8, 8)), None, "constant"),
    ],
)
def test_what_n4_cannot_take_is_refused(image, mask, words):
    with pytest.raises(InputError, match=words):
        bias_correction(image, mask)
