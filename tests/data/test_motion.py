"""Motion that is put into a series is found and undone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.motion import correct_motion, move_back

TIMES = 8


def moved(plane, shift_mm, angle_deg, spacing_mm):
    """The slice as it looks when the head has turned about the centre and then shifted."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    centre = (np.array(plane.shape) - 1) / 2
    x, y = (np.arange(n, dtype=float) for n in plane.shape)
    x = (x[:, None] - centre[0]) * spacing_mm[0] - shift_mm[0]
    y = (y[None, :] - centre[1]) * spacing_mm[1] - shift_mm[1]
    # Where this point of the image was before: turned back.
    back_x, back_y = cos * x + sin * y, -sin * x + cos * y
    places = [back_x / spacing_mm[0] + centre[0], back_y / spacing_mm[1] + centre[1]]
    return ndimage.map_coordinates(plane, places, order=3, mode="constant")


@pytest.fixture(scope="module")
def walk():
    """A still series of the phantom through the bolus, the same with motion, and that motion."""
    head = phantom.head(1, shape=(96, 112, 4))
    still, affine = phantom.dsc_series(head, timepoints=TIMES, noise=0.02, arrival_s=6.0)
    spacing = np.diag(affine)[:3]
    motion = np.zeros((TIMES, 3))
    rng = np.random.default_rng(0)
    motion[:, :2], motion[:, 2] = rng.uniform(-6, 6, (TIMES, 2)), rng.uniform(-3, 3, TIMES)
    motion[3] = 0
    restless = still.copy()
    for t in range(TIMES):
        for k in range(4):
            restless[:, :, k, t] = moved(still[:, :, k, t], motion[t, :2], motion[t, 2], spacing[:2])
    return still, restless, motion, spacing


def test_known_shifts_and_turns_are_found(walk):
    _, restless, motion, spacing = walk
    _, found = correct_motion(restless, spacing)
    error = np.abs(found - motion)
    # A tenth of the 2 mm pixel on the median; the worst is a slice of little structure at the bolus.
    assert np.median(error[..., :2]) < 0.2 and np.median(error[..., 2]) < 0.2
    assert error[..., :2].max() < 1.0 and error[..., 2].max() < 1.0
    assert not found[:, 3].any()


def test_the_corrected_series_is_nearer_to_the_still_one_at_every_time_point(walk):
    still, restless, _, spacing = walk
    corrected, _ = correct_motion(restless, spacing)
    inner = (slice(16, -16), slice(16, -16))
    before = np.abs(restless - still)[inner].mean(axis=(0, 1, 2))
    after = np.abs(corrected - still)[inner].mean(axis=(0, 1, 2))
    others = np.arange(TIMES) != 3
    assert (after[others] < 0.7 * before[others]).all()
    np.testing.assert_array_equal(corrected[..., 3], restless[..., 3])


def test_a_still_series_hardly_moves_although_the_bolus_darkens_it(walk):
    still, _, _, spacing = walk
    _, found = correct_motion(still, spacing)
    assert np.abs(found[..., :2]).max() < 0.5 and np.abs(found[..., 2]).max() < 0.5


def test_slices_along_another_axis_are_the_same_slices(walk):
    _, restless, _, spacing = walk
    series = restless[..., 2:5]
    corrected, found = correct_motion(series, spacing, reference=1)
    turned, also_found = correct_motion(
        np.moveaxis(series, 2, 0), spacing[[2, 0, 1]], reference=1, slice_axis=0
    )
    np.testing.assert_array_equal(np.moveaxis(turned, 0, 2), corrected)
    np.testing.assert_array_equal(also_found, found)


def test_slices_of_air_stay_as_they_are():
    series = np.random.default_rng(0).rayleigh(1.0, (32, 32, 3, 4)).astype(np.float32)
    series[8:24, 8:24, 1] += 100
    corrected, found = correct_motion(series, (2, 2, 5))
    np.testing.assert_array_equal(corrected[:, :, [0, 2]], series[:, :, [0, 2]])
    assert not found[[0, 2]].any()


def test_a_motion_beyond_the_limits_is_not_invented(walk):
    still, _, _, spacing = walk
    series = still[..., 2:5].copy()
    series[:, :, 1, 0] = np.roll(series[:, :, 1, 0], 12, axis=0)  # 25 mm
    _, found = correct_motion(series, spacing, reference=1, max_shift_mm=10.0)
    assert (np.abs(found[..., :2]) <= 10).all() and (np.abs(found[..., 2]) <= 5).all()


def test_moving_back_a_whole_pixel_by_hand():
    plane = np.zeros((5, 5), np.float32)
    plane[3, 2] = 1  # the head's point lies at (2, 2), and moved by one pixel of 2 mm along x
    back = move_back(plane, (2.0, 0.0, 0.0), np.array([2.0, 2.0]))
    assert back[2, 2] == 1 and back.sum() == 1


def test_a_quarter_turn_by_hand():
    plane = np.zeros((5, 5), np.float32)
    plane[2, 4] = 1  # a point of the first axis, turned towards the second by 90 degrees
    back = move_back(plane, (0.0, 0.0, 90.0), np.array([1.0, 1.0]))
    assert back[4, 2] == pytest.approx(1, abs=1e-6)


def test_no_motion_is_an_exact_copy():
    plane = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    back = move_back(plane, (0.0, 0.0, 0.0), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(back, plane)
    assert back is not plane


@pytest.mark.parametrize(
    ("series", "changes", "message"),
    [
        (np.ones((4, 4, 4)), {}, "x, y, z, t"),
        (np.ones((4, 4, 4, 3)), {}, "0 to 2"),
        (np.full((4, 4, 4, 4), np.nan), {}, "finite"),
        (np.ones((4, 4, 4, 4)), {}, "contrast"),
        (np.ones((4, 4, 4, 4)), {"slice_axis": 3}, "0, 1, 2"),
        (np.ones((4, 4, 4, 4)), {"max_shift_mm": 0}, "above 0"),
        (np.ones((4, 4, 4, 4)), {"max_angle_deg": 90}, "0 to 45"),
    ],
)
def test_what_makes_no_sense_is_refused(series, changes, message):
    with pytest.raises(InputError, match=message):
        correct_motion(series, (1, 1, 1), **changes)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 1, 0), (1, 1, np.inf)])
def test_a_spacing_is_three_positive_numbers(spacing_mm):
    with pytest.raises(InputError, match="three positive numbers"):
        correct_motion(np.ones((4, 4, 4, 4)), spacing_mm)
