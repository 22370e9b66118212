from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data import datasets, io, normalization
from mrseg.data.normalization import (
    histogram_equalization,
    lcn,
    min_max,
    quantile_zscore,
    quantiles,
)

VARIANTS = ["jarrett", "fileexchange", "pinto"]


def noise(shape, seed=0):
    return np.random.default_rng(seed).gamma(2.0, 50.0, size=shape).astype(np.float32)


def naive_window_average(image, window):
    """Two-dimensional weighted mean, pixel by pixel, of the image mirrored at its edges."""
    radius = len(window) // 2
    padded = np.pad(image, radius, mode="symmetric")
    weights = np.outer(window, window)
    out = np.empty_like(image)
    for i, j in np.ndindex(*image.shape):
        out[i, j] = (weights * padded[i : i + 2 * radius + 1, j : j + 2 * radius + 1]).sum()
    return out


def naive_lcn(image, variant, sigma):
    """One slice in float64, written from the formulas."""
    image = image.astype(np.float64)
    if variant == "pinto":
        v = image - naive_window_average(image, np.full(3, 1 / 3))
        norm = np.sqrt(naive_window_average(v**2, np.ones(3)))
        return np.where(norm > 1, v / np.maximum(norm, 1e-30), v)
    radius = math.ceil(2 * sigma) if variant == "jarrett" else math.ceil(1.645 * sigma)
    window = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    window /= window.sum()
    v = image - naive_window_average(image, window)
    s = np.sqrt(naive_window_average(v**2, window))
    return v / np.maximum(s.mean(), s) if variant == "jarrett" else v / (s + 1e-8)


@pytest.mark.parametrize("sigma", [4.0, 1.3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_lcn_agrees_with_a_naive_loop(variant, sigma):
    image = noise((23, 31, 2))
    result = lcn(image, sigma=sigma, variant=variant)
    assert result.dtype == np.float32
    for k in range(2):
        # Values of order 1 from float32 of order 100: about 1e-5 absolute.
        np.testing.assert_allclose(result[..., k], naive_lcn(image[..., k], variant, sigma), atol=2e-4)


def test_the_default_window_reaches_8_pixels():
    # The local mean sees a single bright pixel up to 8 pixels away along a row, not 9.
    image = np.zeros((41, 41, 1), dtype=np.float32)
    image[20, 20] = 1
    result = lcn(image)[:, 20, 0]
    assert result[28] < 0 and result[12] < 0
    assert result[29] == 0 and result[11] == 0


def test_the_fileexchange_window_reaches_7_pixels():
    image = np.zeros((41, 41, 1), dtype=np.float32)
    image[20, 20] = 1
    result = lcn(image, variant="fileexchange")[:, 20, 0]
    assert result[27] < 0 and result[28] == 0


def test_a_bright_pixel_under_pintos_box_has_the_hand_derived_value():
    # v is 9 - 1 = 8 in the middle and -1 on its 8 neighbours; squares in the middle's box: 64 + 8 = 72.
    image = np.zeros((9, 9, 1), dtype=np.float32)
    image[4, 4] = 9
    result = lcn(image, variant="pinto")[..., 0]
    assert result[4, 4] == pytest.approx(8 / math.sqrt(72), rel=1e-6)
    assert result[0, 0] == 0


def test_weak_contrast_is_left_as_it_is_by_pintos_threshold():
    image = np.zeros((9, 9, 1), dtype=np.float32)
    image[4, 4] = 0.09  # the norm, 0.0849, is below 1
    assert lcn(image, variant="pinto")[4, 4, 0] == pytest.approx(0.08, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 7.3, -1000.0, 16777216.0])
def test_a_constant_slice_becomes_zero_beside_a_normal_one(variant, value):
    image = noise((20, 20, 3))
    image[..., 1] = value
    result = lcn(image, variant=variant)
    assert not result[..., 1].any()
    assert result[..., 0].std() > 0.1


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3)),
    st.floats(0.1, 100),
    st.floats(-500, 500),
    st.integers(0, 100),
)
def test_lcn_knows_no_unit_and_no_offset(shape, gain, offset, seed):
    image = noise(shape, seed)
    one, other = lcn(image), lcn(gain * image + offset)
    assert one.shape == shape
    # Rounding of float32 at the offset, against a local deviation of about 50 times the gain.
    np.testing.assert_allclose(other, one, atol=1e-3 * max(1, abs(offset) / gain / 50) + 1e-3)


def test_jarretts_floor_keeps_noise_in_the_air_near_zero():
    image = np.abs(np.random.default_rng(0).normal(0, 1, size=(96, 96, 1))).astype(np.float32)
    image[32:64, 32:64] += noise((32, 32, 1))
    air = np.s_[:16, :16]
    assert lcn(image)[air].std() < 0.1
    assert lcn(image, variant="fileexchange")[air].std() > 0.5


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_slices_across_any_axis_are_normalised_alike(axis):
    image = noise((12, 13, 14))
    expected = np.moveaxis(lcn(np.moveaxis(image, axis, 2)), 2, axis)
    np.testing.assert_array_equal(lcn(image, axis=axis), expected)


def test_slices_do_not_know_each_other():
    image = noise((16, 16, 4))
    np.testing.assert_array_equal(lcn(image)[..., 1:2], lcn(image[..., 1:2]))


@pytest.mark.parametrize("function", [lcn, quantile_zscore, min_max])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_voxels_are_counted_and_refused(function, value):
    image = noise((4, 4, 4))
    image[0, 0, :2] = value
    with pytest.raises(InputError, match="2 NaN or infinite"):
        function(image)


@pytest.mark.parametrize("function", [lcn, quantile_zscore, min_max])
def test_the_input_is_left_untouched(function):
    image = noise((4, 5, 6))
    kept = image.copy()
    function(image)
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"variant": "jarret"}, "Did you mean 'jarrett'"),
        ({"sigma": 0.0}, "sigma is a positive"),
        ({"sigma": math.nan}, "sigma is a positive"),
        ({"axis": 3}, "axis 3"),
    ],
)
def test_wrong_settings_of_lcn_are_refused(arguments, word):
    with pytest.raises(InputError, match=word):
        lcn(noise((4, 4, 4)), **arguments)


def test_lcn_takes_three_axes():
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        lcn(noise((4, 4)))


def test_quantile_zscore_uses_the_middle_half_of_the_foreground():
    # Positive voxels 1..8: quartiles 2.75 and 6.25, so 3, 4, 5, 6 count: mean 4.5, std sqrt(1.25).
    image = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8], dtype=np.float32)
    expected = np.where(image > 0, (image - 4.5) / math.sqrt(1.25), 0)
    np.testing.assert_allclose(quantile_zscore(image), expected, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1000))
def test_quantile_zscore_knows_no_unit(seed, gain):
    image = noise((5, 6, 7), seed)
    image[:2] = 0
    np.testing.assert_allclose(quantile_zscore(gain * image), quantile_zscore(image), rtol=1e-3, atol=1e-4)


def test_quantile_zscore_leaves_the_background_at_zero():
    image = noise((5, 6, 7))
    image[:2] = 0
    result = quantile_zscore(image)
    assert result.dtype == np.float32
    assert not result[:2].any()
    assert (result[2:] != 0).mean() > 0.99


def test_quantile_zscore_keeps_small_differences_of_large_values():
    image = np.array([10000.0, 10001, 10002, 10003, 10004], dtype=np.float32)
    # Quartiles 10001 and 10003: mean 10002, std sqrt(2/3).
    np.testing.assert_allclose(quantile_zscore(image), np.arange(-2, 3) / math.sqrt(2 / 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((2, 2)), "0 to 0"),
        (np.array([-1.0, 2, 3]), "-1 to 3"),
        (np.array([0.0, 5, 5, 5]), "3 of 3 positive voxels equal to 5"),
        (np.zeros(0), "an empty array"),
    ],
)
def test_quantile_zscore_refuses_what_it_cannot_standardise(image, word):
    with pytest.raises(InputError, match=word):
        quantile_zscore(image)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, unique=True))
def test_min_max_reaches_both_ends_and_keeps_the_order(values):
    image = np.array(values, dtype=np.float32)
    result = min_max(image)
    assert result.min() == 0 and result.max() == 1
    assert (np.diff(result[np.argsort(image)]) >= 0).all()


def test_min_max_of_a_hand_derived_row():
    np.testing.assert_allclose(min_max(np.array([-1.0, 0.0, 3.0])), [0, 0.25, 1])


@pytest.mark.parametrize("image", [np.full((2, 2), 3.0), np.zeros(0)])
def test_min_max_refuses_a_constant_or_empty_image(image):
    with pytest.raises(InputError, match="constant or empty"):
        min_max(image)


def test_recipes_find_every_normalization_by_its_name():
    for name, function in normalization.NORMALIZATIONS.items():
        assert function.__name__ == name
        result = function(noise((8, 8, 4)))
        assert result.dtype == np.float32 and result.shape == (8, 8, 4)


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
class TestOnRealScans:
    def ibsr(self, number):
        found = datasets.ibsr18(Path(os.environ["MRSEG_DATA"]) / "ibsr18")
        case = next(case for case in found if case.subject == f"IBSR_{number:02}")
        return io.read_volume(case.images["T1w"])[0], io.read_labels(case.labels["T1w"], 4)[0]

    def test_quantile_zscore_brings_scans_of_different_gain_together(self):
        # The scans' white matter differs several times in intensity; z-scores of it agree within 2.
        pairs = [self.ibsr(number) for number in (1, 7, 11)]
        raw = [np.median(image[labels == 3]) for image, labels in pairs]
        scores = [np.median(quantile_zscore(image)[labels == 3]) for image, labels in pairs]
        assert max(raw) / min(raw) > 2
        assert max(scores) - min(scores) < 2

    def test_lcn_of_a_skull_stripped_scan_keeps_the_background_at_zero(self):
        image, _ = self.ibsr(1)
        for variant in VARIANTS:
            result = lcn(image, variant=variant)
            assert np.isfinite(result).all()
            assert not result[:10, :10].any()


def test_histogram_equalization_of_six_voxels_worked_out_by_hand():
    #  x          0 0 0 5 5 9     cdf 3 3 3 5 5 6, cdf_min 3, N 6
    #  255 * (cdf - 3) / 3  ->    0 0 0 170 170 255
    image = np.array([0, 5, 0, 9, 5, 0.0]).reshape(1, 2, 3)
    assert histogram_equalization(image).ravel().tolist() == [0, 170, 0, 255, 170, 0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_equalization_keeps_the_order_and_forgets_every_increasing_change_of_intensity(seed):
    image = np.random.default_rng(seed).integers(0, 40, size=(4, 5, 6)).astype(float)
    equalized = histogram_equalization(image)
    order = np.argsort(image.ravel(), kind="stable")
    assert (np.diff(equalized.ravel()[order]) >= 0).all()
    np.testing.assert_array_equal(histogram_equalization(np.exp(image / 20)), equalized)
    assert equalized.min() == 0 and equalized.max() == 255


def test_equalization_of_many_levels_is_uniform():
    image = np.random.default_rng(0).exponential(size=(32, 32, 32))
    counts, _ = np.histogram(histogram_equalization(image), bins=16, range=(0, 256))
    assert counts.max() / counts.min() < 1.1


def test_a_constant_image_cannot_be_equalized():
    with pytest.raises(InputError, match="not constant"):
        histogram_equalization(np.ones((2, 2, 2)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([1, 2, 7, 1000, 40_000]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_bracketed_quantiles_are_those_of_numpy(seed, count, share):
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0, 50.0, count).astype(np.float32)
    if seed % 3 == 0:
        values = np.round(values / 20)  # many ties
    if seed % 3 == 1:
        values.sort()  # a sample at regular places of a sorted array
    expected = np.quantile(values.astype(np.float64), share)
    np.testing.assert_allclose(quantiles(values, (share,)), [expected], rtol=1e-12)


def test_a_sample_that_misleads_does_not_spoil_a_quantile():
    # Every 4th value, which the sample takes, is 0; all others are 1 to 3.
    values = np.tile(np.array([0, 1, 2, 3], np.float32), 1 << 14)
    assert quantiles(values, (0.25, 0.75)) == [
        float(np.quantile(values, 0.25)), float(np.quantile(values, 0.75))
    ]  # fmt: skip


def test_quantile_zscore_of_a_large_image_follows_its_definition():
    image = noise((64, 60, 20))
    image[:20] = 0
    values = image[image > 0].astype(np.float64)
    low, high = np.percentile(values, (25, 75))
    middle = values[(values >= low) & (values <= high)]
    expected = np.where(image > 0, (image.astype(np.float64) - middle.mean()) / middle.std(), 0)
    np.testing.assert_allclose(quantile_zscore(image), expected, rtol=1e-6, atol=1e-7)


def test_slices_beyond_one_chunk_and_any_order_in_memory_are_normalised_alike():
    image = noise((24, 20, 37))
    expected = lcn(image)
    np.testing.assert_array_equal(lcn(np.asfortranarray(image)), expected)
    np.testing.assert_array_equal(lcn(image[:, :, ::-1])[:, :, ::-1], expected)
    np.testing.assert_array_equal(lcn(image[..., 35:]), expected[..., 35:])


@pytest.mark.parametrize(("variant", "most"), [("jarrett", 1e-5), ("fileexchange", 0), ("pinto", 1e-4)])
def test_what_is_constant_under_the_windows_is_not_blown_up(variant, most):
    image = noise((120, 60, 2))
    image[40:, :, 0] = 207.3  # two windows of radius 8 from 56 on
    assert np.abs(lcn(image, variant=variant)[56:, :, 0]).max() <= most
