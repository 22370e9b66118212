"""Attenuation coefficients by hand, and the physics that any correct table must show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.attenuation import BONE_LINES, WATER_SLOPE_PER_CM, mu_difference, mu_from_hu, mu_from_labels
from mrseg.data import io, phantom
from mrseg.data.labels import hu_to_labels

VOLTAGES = sorted(BONE_LINES)


def test_air_water_and_bone_at_120_kvp():
    # 9.6e-5 * 1000; 5.10e-5 * 2000 + 4.71e-2
    np.testing.assert_allclose(mu_from_hu(np.array([-1000.0, 0.0, 1000.0])), [0, 0.096, 0.1491], rtol=1e-6)


@pytest.mark.parametrize("tube_kvp", VOLTAGES)
def test_water_is_water_at_every_voltage(tube_kvp):
    """0 HU is water by definition, whatever the tube; a break below 0 would spoil that."""
    assert mu_from_hu(np.array(0.0), tube_kvp=tube_kvp) == pytest.approx(0.096)


@pytest.mark.parametrize("line", BONE_LINES.values(), ids=map(str, BONE_LINES))
def test_the_two_lines_meet_at_the_break(line):
    at = line.break_hu + 1000
    assert line.slope_per_cm * at + line.offset_per_cm == pytest.approx(WATER_SLOPE_PER_CM * at, rel=1e-3)


def test_a_higher_voltage_gives_bone_a_steeper_line():
    """The higher the energy, the less of bone's HU is photoelectric, which 511 keV does not see."""
    slopes = [BONE_LINES[v].slope_per_cm for v in VOLTAGES]
    assert slopes == sorted(slopes) and slopes[-1] < WATER_SLOPE_PER_CM


@given(st.lists(st.floats(-1024, 3000), min_size=2, max_size=20), st.sampled_from(VOLTAGES))
def test_denser_is_never_less_attenuating(values, tube_kvp):
    mu = mu_from_hu(np.sort(values), tube_kvp=tube_kvp)
    # At the break the lines differ by up to 0.1 %, of 0.1 / cm.
    assert (np.diff(mu) >= -1e-4).all() and (mu >= 0).all()


def test_outside_the_field_of_view_nothing_is_known():
    mu = mu_from_hu(np.array([np.nan, -2048.0, -1024.0]))
    assert np.isnan(mu[:2]).all() and mu[2] == 0
    assert mu.dtype == np.float32


def test_labels_take_the_coefficient_of_their_class():
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    mu = mu_from_labels(labels)
    np.testing.assert_array_equal(mu, np.array([[0, 0.096], [0.151, np.nan]], np.float32))
    assert mu_from_labels(labels, ignore_mu_per_cm=0.0)[1, 1] == 0
    np.testing.assert_array_equal(
        mu_from_labels(np.array([1, 0]), mu_per_cm=(0.5, 0.25)), np.array([0.25, 0.5], np.float32)
    )


def test_a_map_with_unknown_voxels_is_not_written_and_one_with_a_value_is(tmp_path):
    labels = np.full((2, 2, 2), 255, np.uint8)
    labels[0] = 1
    with pytest.raises(InputError):
        io.write_volume(tmp_path / "mu.nii.gz", mu_from_labels(labels), np.eye(4))
    io.write_volume(tmp_path / "mu.nii.gz", mu_from_labels(labels, ignore_mu_per_cm=0.0), np.eye(4))
    np.testing.assert_allclose(io.read_volume(tmp_path / "mu.nii.gz")[0][0], 0.096, rtol=1e-6)


def test_differences_by_hand():
    true = np.array([0.10, 0.10, 0.20, np.nan, 9.0])
    pred = np.array([0.11, 0.08, 0.20, 0.10, 0.0])
    found = mu_difference(true, pred, np.array([True, True, True, True, False]))
    # -0.01 and 0.03 over three voxels, of a mean of 0.4 / 3.
    assert found["voxels"] == 3
    assert found["mean_difference_per_cm"] == pytest.approx(-0.01 / 3)
    assert found["mean_absolute_difference_per_cm"] == pytest.approx(0.01)
    assert found["mean_difference_percent"] == pytest.approx(-2.5)
    assert found["mean_absolute_difference_percent"] == pytest.approx(7.5)


def test_no_voxel_to_compare_gives_nan():
    found = mu_difference(np.zeros(2), np.zeros(2), np.zeros(2, bool))
    assert found.pop("voxels") == 0 and len(found) == 4 and all(map(math.isnan, found.values()))
    assert math.isnan(mu_difference(np.zeros(2), np.ones(2), np.ones(2, bool))["mean_difference_percent"])


def test_true_labels_of_the_phantom_come_close_to_its_ct():
    """Three classes cannot say how dense a bone is, but the mean is right within some per cent."""
    subject = phantom.head(1, shape=(40, 48, 30))
    (ct_hu, _), _ = phantom.ct_image(subject, misalignment=False, shape=(40, 48, 30))
    labels = hu_to_labels(ct_hu)
    head = labels > 0
    found = mu_difference(mu_from_hu(ct_hu), mu_from_labels(labels), head)
    assert abs(found["mean_difference_percent"]) < 5
    only_soft = mu_from_labels(np.minimum(labels, 1))  # bone taken for soft tissue: a known, larger error
    without = mu_difference(mu_from_hu(ct_hu), only_soft, head)
    assert found["mean_absolute_difference_percent"] < without["mean_absolute_difference_percent"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mu_from_hu(np.zeros(2), tube_kvp=90), "80, 100, 110, 120, 130, 140"),
        (lambda: mu_from_labels(np.array([3])), "below 3"),
        (lambda: mu_from_labels(np.array([-1])), "below 3"),
        (lambda: mu_from_labels(np.array([0.5])), "integer"),
        (lambda: mu_from_labels(np.array([0]), mu_per_cm=(-1.0,)), "from 0"),
        (lambda: mu_difference(np.zeros(2), np.zeros(3), np.ones(2, bool)), "one grid"),
        (lambda: mu_difference(np.zeros(2), np.zeros(2), np.ones(2)), "bool"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_infinity_is_outside_the_field_of_view_and_words_are_no_coefficients():
    np.testing.assert_array_equal(np.isnan(mu_from_hu(np.array([np.inf, -np.inf, 0.0]))), [True, True, False])
    with pytest.raises(InputError, match="one coefficient per class"):
        mu_from_labels(np.zeros((2, 2), np.uint8), mu_per_cm=("a", "b"))
