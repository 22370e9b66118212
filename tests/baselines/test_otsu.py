from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.filters import threshold_otsu

from mrseg._checks import InputError
from mrseg.baselines import bi_level_otsu
from mrseg.baselines.regions import otsu_threshold

slices = hnp.arrays(np.float64, (8, 9), elements=st.integers(0, 60).map(float))


def test_two_levels_are_told_apart():
    image = np.where(np.eye(6) > 0, 10.0, 90.0)
    np.testing.assert_array_equal(bi_level_otsu(image), np.eye(6) == 0)


@given(slices)
@settings(max_examples=60, deadline=None)
def test_no_other_edge_separates_the_classes_better(image):
    """Between-class variance by its definition, at every edge of the histogram."""
    if image.min() == image.max():
        return
    edges = np.linspace(image.min(), image.max(), 257)[1:-1]

    def between(threshold):
        high = image > threshold
        if high.all() or not high.any():
            return 0.0
        return high.mean() * (1 - high.mean()) * (image[high].mean() - image[~high].mean()) ** 2

    best = max(map(between, edges))
    # The histogram rounds a value to the middle of its bin: half a bin in each of the two means.
    slack = 2 * np.ptp(image) / 256 * np.ptp(image)
    assert between(otsu_threshold(image)) >= best - slack


def test_agrees_with_scikit_image_on_a_bimodal_slice():
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.normal(20, 5, 3000), rng.normal(80, 9, 2000)]).reshape(50, 100)
    # scikit-image names the middle of the bin whose upper edge we take.
    assert otsu_threshold(image) == pytest.approx(threshold_otsu(image, nbins=256), abs=np.ptp(image) / 256)


@given(slices, st.floats(0.1, 10), st.integers(-50, 50))
@settings(max_examples=30, deadline=None)
def test_the_mask_does_not_depend_on_gain_and_offset(image, gain, offset):
    # Powers of two and whole numbers keep the histogram's edges exact.
    gain = 2.0 ** np.round(np.log2(gain))
    np.testing.assert_array_equal(bi_level_otsu(gain * image + gain * offset), bi_level_otsu(image))


def test_a_constant_slice_has_an_empty_mask():
    assert not bi_level_otsu(np.full((4, 4), 7.0)).any()


def test_cleaning_fills_the_ring_and_drops_the_speck():
    image = np.zeros((12, 12))
    image[2:8, 2:8] = 1
    image[4:6, 4:6] = 0
    image[10, 10] = 1
    expected = np.zeros((12, 12), bool)
    expected[2:8, 2:8] = True
    np.testing.assert_array_equal(bi_level_otsu(image, clean=True), expected)
    np.testing.assert_array_equal(bi_level_otsu(image), image > 0)


@pytest.mark.parametrize("image", [np.zeros((2, 2, 2)), np.zeros(3), np.full((2, 2), np.nan)])
def test_what_is_no_slice_is_refused(image):
    with pytest.raises(InputError, match=r"one slice|finite"):
        bi_level_otsu(image)
