from __future__ import annotations

import time

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.baselines import cusum_boundary, cusum_mask
from mrseg.metrics import dice


@pytest.mark.parametrize(("noise", "least"), [(0.04, 0.97), (0.08, 0.95), (0.12, 0.93)])
def test_the_tracker_comes_round_on_eight_of_eight_simple_heads(simple_head, noise, least):
    for seed in range(8):
        image, brain = simple_head(seed, noise)
        assert cusum_boundary(image).closed
        assert dice(brain, cusum_mask(image)) >= least


def test_boundary_points_of_a_disc_lie_on_its_edge():
    x, y = np.mgrid[:96, :96] - 47.5
    radius = np.hypot(x, y)
    image = np.where(radius < 30, 1.0, np.where((radius > 38) & (radius < 44), 0.8, 0.05))
    found = cusum_boundary(image)
    distance = np.hypot(*(found.points - 47.5).T)
    # Bilinear interpolation blurs the edge over a pixel, and the tracker steps by half of one.
    assert found.closed and found.restarts == 0
    assert np.abs(distance - 29.75).max() < 1.5 and abs(np.median(distance) - 29.75) < 0.5


def test_the_walk_goes_once_round_in_the_direction_of_the_rising_angle():
    x, y = np.mgrid[:96, :96] - 47.5
    radius = np.hypot(x, y)
    image = np.where(radius < 30, 1.0, np.where((radius > 38) & (radius < 44), 0.8, 0.05))
    points = cusum_boundary(image).points - 47.5
    angles = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    # Two points of one edge may stand a pixel out of order: 1 / 30 rad.
    assert (np.diff(angles) > -1 / 30).all() and angles[-1] - angles[0] == pytest.approx(2 * np.pi, abs=0.3)


def test_a_stripped_brain_without_scalp_is_found_at_its_own_edge():
    x, y = np.mgrid[:96, :96] - 47.5
    brain = np.hypot(x / 30, y / 38) < 1
    assert dice(brain, cusum_mask(np.where(brain, 1.0, 0.0))) > 0.97


def test_a_skull_too_thin_to_be_seen_on_one_side_does_not_lead_to_the_scalp():
    x, y = np.mgrid[:128, :128] - 63.5
    radius, angle = np.hypot(x / 48, y / 56), np.arctan2(y, x)
    brain = radius < 0.84
    image = np.where(radius < 1, 0.7, 0.0)
    thin = np.abs(angle - 1.0) < 0.35  # there brain and scalp touch
    image[(radius < 0.94) & ~thin] = 0.05
    image[brain] = 0.8
    found = cusum_boundary(image)
    assert found.closed and found.restarts > 0
    assert dice(brain, cusum_mask(image)) > 0.97


def test_a_cleft_at_the_centre_is_no_edge(simple_head):
    image, brain = simple_head(0, 0.04)
    image[63:66, 20:108] = 0.06  # a dark fissure through the middle
    assert dice(brain, cusum_mask(image)) > 0.9


def test_a_slice_without_a_head_gives_no_points_and_an_empty_mask():
    for image in (np.zeros((64, 64)), np.pad(np.ones((4, 4)), 30)):
        found = cusum_boundary(image)
        assert found.points.shape == (0, 2) and not found.closed
        mask = cusum_mask(image)
        assert mask.shape == image.shape and mask.dtype == bool and not mask.any()


def test_noise_alone_ends():
    image = np.random.default_rng(0).rayleigh(1.0, (64, 64))
    assert cusum_mask(image).shape == (64, 64)


def test_gain_changes_nothing(simple_head):
    image, _ = simple_head(3, 0.08)
    np.testing.assert_array_equal(cusum_mask(1024 * image), cusum_mask(image))


@pytest.mark.slow
def test_a_slice_takes_less_than_a_twentieth_of_a_second(simple_head):
    image, _ = simple_head(0, 0.08)
    times = []
    for _ in range(5):
        start = time.process_time()
        cusum_mask(image)
        times.append(time.process_time() - start)
    assert min(times) < 0.05


def test_what_is_no_slice_is_refused():
    with pytest.raises(InputError, match="one slice"):
        cusum_mask(np.zeros((4, 4, 4)))


def test_a_head_of_a_few_pixels_has_no_boundary():
    image = np.zeros((4, 4))
    image[1:3, 1:3] = [[1.0, 0.9], [0.8, 1.0]]
    assert not cusum_mask(image).any()
    assert not cusum_mask(np.array([[0.1, 0.9], [0.7, 0.2]])).any()
