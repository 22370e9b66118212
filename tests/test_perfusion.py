"""Region curves by hand, and against the phantom's own kinetics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data import phantom_physics as physics
from mrseg.perfusion import region_curve

SETTINGS = {"te_ms": 50.0, "interval_s": 2.0, "baseline": (0, 1)}


def test_a_curve_worked_out_by_hand():
    series = np.zeros((1, 2, 1, 4))
    series[0, :, 0] = [[90, 110, 40, 0], [110, 90, 60, 0]]
    rows = region_curve(series, np.ones((1, 2, 1), bool), **SETTINGS)
    assert [row["time_s"] for row in rows] == [0, 2, 4, 6]
    assert [row["mean_signal"] for row in rows] == [100, 100, 50, 0]
    assert rows[0]["sd"] == pytest.approx(math.sqrt(200))  # 10^2 + 10^2 over n - 1 = 1
    assert rows[2]["delta_r2star"] == pytest.approx(math.log(2) / 0.05)
    assert math.isnan(rows[3]["delta_r2star"])
    assert [row["baseline"] for row in rows] == [1, 1, 0, 0]


def test_voxels_outside_the_mask_do_not_matter_even_if_nan():
    series = np.full((2, 1, 1, 3), np.nan)
    series[0] = 5.0
    mask = np.array([True, False]).reshape(2, 1, 1)
    rows = region_curve(series, mask, te_ms=30, interval_s=1, baseline=(0,))
    assert all(row["mean_signal"] == 5 and row["delta_r2star"] == 0 for row in rows)
    assert all(math.isnan(row["sd"]) for row in rows)  # one voxel has no spread


def test_a_baseline_without_signal_gives_no_rate():
    rows = region_curve(
        np.zeros((1, 1, 1, 2)), np.ones((1, 1, 1), bool), te_ms=30, interval_s=1, baseline=[0]
    )
    assert all(math.isnan(row["delta_r2star"]) for row in rows)


def test_the_rate_does_not_depend_on_the_scanners_gain():
    series = np.random.default_rng(0).uniform(50, 100, (3, 3, 3, 6))
    mask = np.ones((3, 3, 3), bool)
    once, tenfold = (region_curve(s, mask, **SETTINGS) for s in (series, 10 * series))
    np.testing.assert_allclose([r["delta_r2star"] for r in once], [r["delta_r2star"] for r in tenfold])


def test_white_matter_of_the_phantom_shows_the_rate_that_was_put_in():
    head = phantom.head(3, shape=(48, 56, 12))
    series, _ = phantom.dsc_series(head, timepoints=30, noise=0.0, arrival_s=12.0)
    white = head.fractions[head.tissues.index("wm")] > 0.999
    assert white.any()
    rows = region_curve(
        series,
        white,
        te_ms=physics.DSC["te_ms"],
        interval_s=physics.DSC["tr_ms"] / 1000,
        baseline=range(3, 8),
    )
    truth = physics.bolus_r2star(np.array([row["time_s"] for row in rows]), 12.0)[head.tissues.index("wm")]
    # Up to 0.1 % of other tissue in a voxel, and float16 fractions: some 1e-3 of a peak of a few 1 / s.
    np.testing.assert_allclose([row["delta_r2star"] for row in rows], truth, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"te_ms": 0}, "above 0"),
        ({"interval_s": math.inf}, "above 0"),
        ({"baseline": ()}, "baseline names"),
        ({"baseline": (0, 0)}, "baseline names"),
        ({"baseline": (3,)}, "0 to 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        region_curve(np.ones((1, 1, 1, 3)), np.ones((1, 1, 1), bool), **{**SETTINGS, **changes})


@pytest.mark.parametrize(
    ("series", "mask", "message"),
    [
        (np.ones((2, 2, 2)), np.ones((2, 2, 2), bool), "one grid"),
        (np.ones((2, 2, 2, 3)), np.ones((2, 2, 1), bool), "one grid"),
        (np.ones((2, 2, 2, 3)), np.zeros((2, 2, 2), bool), "true somewhere"),
        (np.ones((2, 2, 2, 3)), np.ones((2, 2, 2)), "bool"),
        (np.full((2, 2, 2, 3), np.nan), np.ones((2, 2, 2), bool), "finite"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(series, mask, message):
    with pytest.raises(InputError, match=message):
        region_curve(series, mask, **SETTINGS)


@pytest.mark.parametrize(
    "bad",
    [{"te_ms": "30"}, {"baseline": (1.5,)}, {"baseline": 3}, {"baseline": "ab"}, {"baseline": range(99)}],
    ids=str,
)
def test_settings_of_a_wrong_kind_are_told_in_one_short_line(bad):
    settings = {"te_ms": 30, "interval_s": 1.5, "baseline": (1, 2), **bad}
    with pytest.raises(InputError) as caught:
        region_curve(np.ones((2, 2, 2, 6)), np.ones((2, 2, 2), bool), **settings)
    assert len(str(caught.value)) < 300
