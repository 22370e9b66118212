"""The truth of the misalignment is a true, invertible motion of the stated size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data.phantom import Misalignment

POINTS = np.random.default_rng(0).uniform(-100, 100, (200, 3))


def test_a_quarter_turn_about_z_takes_x_to_y():
    truth = Misalignment(rotation_deg=(0, 0, 90), translation_mm=(1, 2, 3), centre_mm=(0, 0, 0))
    np.testing.assert_allclose(truth.to_ct(np.array([[10.0, 0.0, 0.0]])), [[1, 12, 3]], atol=1e-9)


def test_turns_happen_about_x_then_y_then_z():
    # about x: (0, 1, 0) -> (0, 0, 1); about y: (0, 0, 1) -> (1, 0, 0); about z: (1, 0, 0) -> (0, 1, 0)
    truth = Misalignment(rotation_deg=(90, 90, 90), centre_mm=(0, 0, 0))
    np.testing.assert_allclose(truth.to_ct(np.array([[0.0, 1.0, 0.0]])), [[0, 1, 0]], atol=1e-12)


def test_no_motion_is_the_identity():
    np.testing.assert_allclose(Misalignment().displacement(POINTS), 0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), warp=st.floats(0, 8), shift=st.floats(0, 30), angle=st.floats(0, 45))
def test_to_ct_and_to_mr_are_inverse(seed, warp, shift, angle):
    truth = Misalignment.random(seed, warp_mm=warp, translation_mm=shift, angle_deg=angle)
    np.testing.assert_allclose(truth.to_mr(truth.to_ct(POINTS)), POINTS, atol=1e-5)
    np.testing.assert_allclose(truth.to_ct(truth.to_mr(POINTS)), POINTS, atol=1e-5)


def test_random_motion_has_the_stated_size():
    truth = Misalignment.random(3)
    assert np.linalg.norm(truth.translation_mm) == pytest.approx(10.0)
    assert np.linalg.norm(truth.rotation_deg) == pytest.approx(4.0)
    assert truth.warp == ()
    centre = np.array([truth.centre_mm])
    np.testing.assert_allclose(np.linalg.norm(truth.displacement(centre), axis=1), 10.0)


def test_a_rigid_motion_keeps_distances_and_a_warp_does_not():
    def distances(points):
        return np.linalg.norm(points[:100] - points[100:], axis=1)

    rigid, bent = (Misalignment.random(1, warp_mm=warp) for warp in (0.0, 3.0))
    np.testing.assert_allclose(distances(rigid.to_ct(POINTS)), distances(POINTS))
    assert np.abs(distances(bent.to_ct(POINTS)) - distances(POINTS)).max() > 0.3


def test_the_warp_moves_no_point_further_than_stated():
    warped = Misalignment.random(5, warp_mm=3.0, translation_mm=0.0, angle_deg=0.0)
    assert 0.5 < np.linalg.norm(warped.displacement(POINTS), axis=1).max() <= 3.0 + 1e-6


@pytest.mark.parametrize("bad", [{"warp_mm": 9.0}, {"translation_mm": -1.0}, {"angle_deg": float("nan")}])
def test_sizes_outside_their_range_are_refused(bad):
    with pytest.raises(InputError, match="warp_mm from 0 to 8"):
        Misalignment.random(0, **bad)
