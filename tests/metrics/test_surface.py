"""Surface distances by drawing, against loops, against SimpleITK, and at the edges of their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from mrseg._checks import InputError
from mrseg.metrics import surface

shapes = st.tuples(*[st.integers(1, 6)] * 3)
cases = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(bool, shape),
        hnp.arrays(bool, shape),
        st.tuples(*[st.sampled_from([0.3, 0.94, 1.0, 1.5, 3.0])] * 3),
    )
)


def drawn(*rows):
    return np.array([[cell == "#" for cell in row] for row in rows])


def naive_boundary(mask, ignored=None):
    """Voxels with a face neighbour that is judged and outside the mask, by a loop."""
    ignored = np.zeros_like(mask) if ignored is None else ignored
    found = []
    for voxel in np.argwhere(mask & ~ignored):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = voxel.copy()
                other[axis] += step
                outside_image = other[axis] < 0 or other[axis] >= mask.shape[axis]
                if outside_image or not (mask | ignored)[tuple(other)]:
                    found.append(tuple(voxel))
    return np.array(sorted(set(found)), float).reshape(-1, mask.ndim)


def naive_distances(true, pred, spacing, ignored=None):
    between = cdist(*(naive_boundary(mask, ignored) * spacing for mask in (true, pred)))
    return between.min(axis=1), between.min(axis=0)


def check_against_naive(true, pred, spacing, ignored=None):
    measured = surface.surface_distances(true, pred, spacing, mask_ignored=ignored)
    for ours, naive in zip(
        (measured.true_to_pred, measured.pred_to_true),
        naive_distances(true, pred, spacing, ignored),
        strict=True,
    ):
        np.testing.assert_allclose(np.sort(ours), np.sort(naive), atol=1e-9)


def test_a_shifted_square_has_the_distances_worked_out_by_hand():
    true = drawn(
        ".......",
        ".###...",
        ".###...",
        ".###...",
        ".......",
    )  # boundary: the 8 voxels of the rim
    pred = drawn(
        ".......",
        "...###.",
        "...###.",
        "...###.",
        ".......",
    )
    # Two columns to the right. The true rim: the left column (3 voxels) is 2 columns from the predicted
    # left column, the middle one (2) is 1, the right one (3) is 0. The other way round by symmetry. One
    # column is 0.5 mm.
    measured = surface.surface_distances(true, pred, (2.0, 0.5))
    assert sorted(measured.true_to_pred.tolist()) == [0, 0, 0, 0.5, 0.5, 1, 1, 1]
    assert sorted(measured.pred_to_true.tolist()) == [0, 0, 0, 0.5, 0.5, 1, 1, 1]
    assert measured.hausdorff == 1.0
    assert measured.hd95 == 1.0
    assert measured.assd == measured.pooled_mean == 0.5
    assert measured.surface_dice(0.0) == 6 / 16
    assert measured.surface_dice(0.5) == 10 / 16
    assert measured.surface_dice(1.0) == 1.0


def test_the_directed_means_tell_what_was_missed_from_what_was_invented():
    true = drawn("#.........")
    pred = drawn("#..#......")
    measured = surface.surface_distances(true, pred, (1.0, 1.0))
    assert measured.mean_true_to_pred == 0.0
    assert measured.mean_pred_to_true == 1.5
    assert surface.mean_true_to_pred(true, pred, (1.0, 1.0)) == 0.0
    assert surface.mean_pred_to_true(true, pred, (1.0, 1.0)) == 1.5
    assert measured.assd == 0.75  # mean of the two means
    assert measured.pooled_mean == 1.0  # (0 + 0 + 3) / 3


def test_hd95_is_the_larger_of_two_linear_percentiles():
    # True: 21 single voxels on a line, the prediction misses the last one, 2 away from the one before.
    true = np.zeros((41, 1), bool)
    true[::2] = True
    pred = true.copy()
    pred[40] = False
    # Sorted distances from the truth: 20 times 0, then 2. 95 % of 20 steps is place 19: still 0.
    assert surface.hd95(true, pred, (1.0, 1.0)) == 0.0
    pred[38] = False  # now 19 times 0, then 2, 4: place 19 is 2
    assert surface.hd95(true, pred, (1.0, 1.0)) == 2.0
    assert surface.hausdorff(true, pred, (1.0, 1.0)) == 4.0
    pred[36] = False  # 18 times 0, then 2, 4, 6: place 19 is 4, and the other direction is still all 0
    assert surface.hd95(true, pred, (1.0, 1.0)) == surface.hd95(pred, true, (1.0, 1.0)) == 4.0
    # Two values 0 and 3 lie at places 0 and 1; place 0.95 is 0.95 of the way.
    assert surface.hd95(drawn("#..#"), drawn("#..."), (1.0, 1.0)) == pytest.approx(0.95 * 3)


def test_the_edge_of_the_image_is_a_boundary():
    full = np.ones((3, 3), bool)
    holed = drawn("###", "#.#", "###")
    # The full mask's boundary is its rim at the image's edge, the holed one's is the same rim.
    assert surface.hausdorff(full, holed, (1.0, 1.0)) == 0.0


def test_a_hole_counts_its_depth_on_surfaces_and_one_voxel_between_masks():
    solid = np.zeros((13, 13, 13), bool)
    solid[1:12, 1:12, 1:12] = True
    holed = solid.copy()
    holed[6, 6, 6] = False
    # The voxels around the hole become boundary, 4 voxels below the nearest face.
    assert surface.hausdorff(solid, holed, (1.0, 1.0, 1.0)) == 4.0
    assert surface.mask_hausdorff(solid, holed) == 1.0
    assert surface.mask_hausdorff(solid, holed, (1.0, 1.0, 0.25)) == 0.25


@settings(max_examples=25, deadline=None)
@given(cases)
def test_distances_equal_the_naive_definition(case):
    true, pred, spacing = case
    true[0, 0, 0] = pred[-1, -1, -1] = True
    check_against_naive(true, pred, spacing)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 3.0), (0.2, 1.0, 7.0)])
def test_far_structures_are_measured_exactly_too(spacing):
    rng = np.random.default_rng(0)
    true, pred = np.zeros((2, 24, 20, 9), bool)
    true[1:5, 2:6, 1:4] = rng.random((4, 4, 3)) > 0.3
    pred[17:23, 12:18, 4:8] = rng.random((6, 6, 4)) > 0.3
    pred[2:4, 3:5, 2] = True  # some are near
    check_against_naive(true, pred, spacing)


@pytest.mark.parametrize(
    ("shape", "spread"),
    [((3, 420, 400), 0.002), ((40, 2, 3), 0.2), ((5,), 0.2), ((90,), 0.05), ((30, 40), 0.05)],
)
def test_grids_larger_than_one_chunk_and_of_other_dimensions_are_measured_exactly(shape, spread):
    """Planes of 168,000 voxels are larger than the chunk in which boundaries are found."""
    rng = np.random.default_rng(len(shape))
    true, pred = (rng.random(shape) < spread for _ in range(2))
    true[(0,) * len(shape)] = pred[(-1,) * len(shape)] = True
    check_against_naive(true, pred, (0.9, 1.1, 2.0)[: len(shape)])


def test_far_targets_are_found_whether_or_not_the_search_is_narrowed_down():
    """One far voxel whose box holds the grid, many whose boxes are small, targets off every fourth line."""
    true, pred = np.zeros((2, 60, 50, 12), bool)
    pred[1::6, 1::6, ::5] = True
    true[::7, ::9, 3] = True
    true[59, 49, 11] = True
    check_against_naive(true, pred, (1.0, 1.0, 4.0))
    pred[:] = False
    pred[1, 1, 0] = pred[58, 1, 11] = True  # none on the lines that bound the distances
    check_against_naive(true, pred, (1.0, 1.0, 4.0))


@pytest.mark.parametrize(
    ("spacing", "neighbours"),
    [
        # 5 voxels: 81 points of the grid lie within a circle of radius 5
        ((1.0, 1.0), 80),
        # 1.2 * 7 mm: 8 up and 8 down, and on either side 4 up, 4 down and one between: 7^2 + 4^2 < 8.4^2
        ((1.0, 7.0), 16 + 2 * 9),
        # at most 10 mm, not 1.2 * 10: 10 up and 10 down, and one on either side
        ((1.0, 10.0), 20 + 2),
    ],
)
def test_neighbours_are_all_voxels_within_reach_but_the_centre_nearest_first(spacing, neighbours):
    found = surface._neighbours((5, 40), spacing)
    offsets, distances = zip(*found, strict=True)
    assert len(set(offsets)) == len(found) == neighbours
    assert list(distances) == sorted(distances) and distances[0] == 1.0
    assert dict(found)[40] == spacing[0] and dict(found)[-1] == spacing[1]  # a row down, a column back
    assert surface._neighbours((5, 40), spacing) is found  # not made again for the next pair of masks


def test_what_is_within_reach_is_found_without_a_search(monkeypatch):
    monkeypatch.setattr(surface, "_tree", None)
    rng = np.random.default_rng(4)
    true = rng.random((20, 20, 6)) > 0.5
    check_against_naive(true, np.roll(true, 2, axis=0), (1.0, 1.0, 3.0))


def test_a_search_looks_among_the_targets_that_can_be_nearest_alone(monkeypatch):
    trees, tree = [], surface._tree
    monkeypatch.setattr(surface, "_tree", lambda points: trees.append(len(points)) or tree(points))
    true, pred = np.zeros((2, 9, 200), bool)
    true[4, 20] = True
    pred[2:7, 9:11] = pred[2:7, 30:32] = pred[2:7, 100:160] = True
    measured = surface.surface_distances(true, pred, (1.0, 1.0))
    assert measured.true_to_pred.tolist() == [10.0]
    assert measured.hausdorff == math.hypot(139, 2)
    # Every fourth row is row 4, where 2 + 2 + 2 boundary voxels show that none is farther than 10 voxels.
    # So far lie the columns 10 and 30, five voxels each. On the way back there is one target for all.
    assert trees == [6, 10, 1, 1]


@settings(max_examples=25, deadline=None)
@given(cases, st.data())
def test_an_ignored_region_has_no_boundary(case, data):
    true, pred, spacing = case
    ignored = data.draw(hnp.arrays(bool, true.shape))
    if len(naive_boundary(true, ignored)) and len(naive_boundary(pred, ignored)):
        check_against_naive(true, pred, spacing, ignored)


def test_the_cut_through_a_structure_at_the_judged_regions_edge_does_not_flatter():
    true = np.zeros((9, 5), bool)
    pred = true.copy()
    true[:6], pred[:8] = True, True
    ignored = np.zeros_like(true)
    ignored[:3] = True
    # Judged rows are 3..8; the surfaces are at row 5 and row 7 (and the image's sides), none at row 3.
    measured = surface.surface_distances(true, pred, (1.0, 1.0), mask_ignored=ignored)
    assert measured.true_to_pred.size == 2 * 2 + 5
    assert measured.hausdorff == 2.0


@settings(max_examples=25, deadline=None)
@given(cases, st.tuples(*[st.integers(0, 3)] * 3))
def test_swapping_the_masks_or_moving_both_changes_nothing(case, shift):
    true, pred, spacing = case
    expected = surface.surface_distances(np.pad(true, 1), np.pad(pred, 1), spacing)
    moved = [np.pad(mask, [(1 + s, 4 - s) for s in shift]) for mask in (true, pred)]
    found = surface.surface_distances(moved[1], moved[0], spacing)
    np.testing.assert_array_equal(np.sort(found.true_to_pred), np.sort(expected.pred_to_true))
    np.testing.assert_array_equal(np.sort(found.pred_to_true), np.sort(expected.true_to_pred))


def test_memory_order_does_not_matter():
    rng = np.random.default_rng(1)
    true, pred = rng.random((2, 7, 6, 5)) > 0.6
    expected = surface.surface_distances(true, pred, (1.0, 2.0, 3.0)).scores()
    turned = np.asfortranarray(true), np.asfortranarray(pred)
    for one, other in (turned, (turned[0], pred), (true, turned[1])):
        assert surface.surface_distances(one, other, (1.0, 2.0, 3.0)).scores() == expected
    turned = surface.surface_distances(true.transpose(2, 0, 1), pred.transpose(2, 0, 1), (3.0, 1.0, 2.0))
    assert turned.scores() == pytest.approx(expected)


EMPTY, FULL = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
FUNCTIONS = (
    surface.hausdorff, surface.hd95, surface.assd, surface.mean_true_to_pred, surface.mean_pred_to_true,
    surface.mask_hausdorff, surface.hd95_in_plane,
)  # fmt: skip


@pytest.mark.parametrize("measure", FUNCTIONS)
def test_one_empty_mask_is_infinitely_far_and_two_do_not_count(measure):
    mask = EMPTY.copy()
    mask[1, 1, 1] = True
    spacing = (1.0, 1.0, 1.0)
    assert measure(mask, EMPTY, spacing) == math.inf
    assert measure(EMPTY, mask, spacing) == math.inf
    assert math.isnan(measure(EMPTY, EMPTY, spacing))
    assert measure(mask, mask, spacing) == 0.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_a_grid_without_voxels_holds_no_structure(shape):
    nothing = np.zeros(shape, bool)
    assert math.isnan(surface.hausdorff(nothing, nothing, (1.0,) * len(shape)))


def test_every_reader_follows_the_policy_for_empty_masks():
    spacing = (1.0, 1.0, 1.0)
    missed = surface.surface_distances(FULL, EMPTY, spacing)
    assert set(missed.scores().values()) == {math.inf}
    assert missed.pooled_mean == math.inf
    assert missed.surface_dice(5.0) == surface.surface_dice(EMPTY, FULL, spacing, tolerance_mm=5.0) == 0.0
    neither = surface.surface_distances(EMPTY, EMPTY, spacing)
    assert all(math.isnan(value) for value in (*neither.scores().values(), neither.surface_dice(1.0)))


def test_a_tolerance_includes_distances_equal_to_it_up_to_rounding():
    true, pred = drawn("#......"), drawn("...#...")
    assert 3 * 0.1 > 0.3
    assert surface.surface_dice(true, pred, (0.1, 0.1), tolerance_mm=0.3) == 1.0
    assert surface.surface_dice(true, pred, (0.1, 0.1), tolerance_mm=0.29) == 0.0


def sitk_image(mask, spacing):
    image = sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0))
    image.SetSpacing(spacing)
    return image


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_form_equals_simpleitk(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.random((2, 12, 10, 8)) > 0.97
    true[2:7, 3:8, 2:6] = True
    pred[4:9, 1:6, 3:7] = True
    spacing = (0.9, 1.1, 3.0)
    tool = sitk.HausdorffDistanceImageFilter()
    tool.Execute(sitk_image(true, spacing), sitk_image(pred, spacing))
    assert surface.mask_hausdorff(true, pred, spacing) == pytest.approx(tool.GetHausdorffDistance(), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(cases)
def test_the_mask_form_equals_the_naive_definition(case):
    true, pred, spacing = case
    true[0, 0, 0] = pred[-1, -1, -1] = True
    between = cdist(np.argwhere(true) * spacing, np.argwhere(pred) * spacing)
    naive = max(between.min(axis=1).max(), between.min(axis=0).max())
    assert surface.mask_hausdorff(true, pred, spacing) == pytest.approx(naive, abs=1e-9)


def mrbrains_edge(mask, spacing):
    """Boundary of the challenge: mask minus SimpleITK's erosion of each slice."""
    image = sitk_image(mask, spacing)
    edge = sitk.GetArrayFromImage(sitk.Subtract(image, sitk.BinaryErode(image, (1, 1, 0))))
    return np.argwhere(edge.transpose(2, 1, 0)) * spacing


@pytest.mark.parametrize("seed", range(6))
def test_the_in_plane_form_equals_the_challenges_definition(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.random((2, 11, 9, 4)) > 0.9
    true[0:7, 3:9, 1:3] = True  # reaches the edge of the image, which is no boundary here
    pred[3:11, 1:7, 0:3] = True
    spacing = (0.96, 0.8, 3.0)
    between = cdist(mrbrains_edge(true, spacing), mrbrains_edge(pred, spacing))
    expected = max(np.percentile(between.min(axis=axis), 95) for axis in (0, 1))
    assert surface.hd95_in_plane(true, pred, spacing) == pytest.approx(expected, abs=1e-9)
    true, pred, spacing = true.transpose(2, 0, 1), pred.transpose(2, 0, 1), (3.0, 0.96, 0.8)
    for axis in (0, -3):
        turned = surface.hd95_in_plane(true, pred, spacing, slice_axis=axis)
        assert turned == pytest.approx(expected, abs=1e-9)


def test_a_mask_that_ends_inside_the_image_has_a_boundary_there_in_plane():
    true, pred = np.zeros((2, 12, 12, 3), bool)
    true[2:5, :, 1], pred[2:9, :, 1] = True, True
    # From edge to edge of the image in the other direction: boundaries are the rows 2 and 4, and 2 and 8.
    assert surface.hd95_in_plane(true, pred, (0.5, 1.0, 3.0)) == 4 * 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((EMPTY, np.zeros((4, 4), bool), (1, 1, 1)), "on one grid"),
        ((EMPTY, EMPTY, (1, 1)), r"one voxel size above 0 per axis \(3\)"),
        ((EMPTY, EMPTY, (1, 1, 0)), "above 0"),
        ((EMPTY, EMPTY, (1, 1, math.nan)), "above 0"),
        ((EMPTY, EMPTY, (1, 1, math.inf)), "above 0"),
        ((EMPTY + 2, EMPTY, (1, 1, 1)), "mask_true is a mask"),
    ],
)
def test_bad_input_is_refused_with_the_rule(arguments, message):
    with pytest.raises(InputError, match=message):
        surface.hausdorff(*arguments)


def test_a_negative_tolerance_and_a_missing_slice_axis_are_refused():
    with pytest.raises(InputError, match="tolerance_mm"):
        surface.surface_dice(FULL, FULL, (1, 1, 1), tolerance_mm=-1)
    for axis in (3, -4):
        with pytest.raises(InputError, match="one of their axes"):
            surface.hd95_in_plane(FULL, FULL, (1, 1, 1), slice_axis=axis)
