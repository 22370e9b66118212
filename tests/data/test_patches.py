from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data.patches import (
    ClassVoxels,
    Sampling,
    balanced_starts,
    channel_means,
    cut,
    cut_input,
    pad_to,
    patch_starts,
    random_starts,
)

SIZE = st.integers(1, 12)


def test_starts_of_the_docstring_drawing():
    starts = patch_starts((10, 1, 1), (4, 1, 1), 0.5)
    assert starts[:, 0].tolist() == [0, 2, 4, 6]


def test_mecheter2023_cuts_nine_patches_of_a_volume():
    starts = patch_starts((256, 256, 48), (128, 128, 48), 0.5)
    assert sorted(set(starts[:, 0].tolist())) == [0, 64, 128]
    assert len(starts) == 9


@settings(max_examples=25, deadline=None)
@given(st.tuples(SIZE, SIZE, SIZE), st.tuples(SIZE, SIZE, SIZE), st.floats(0, 0.95))
def test_patches_cover_every_voxel_and_never_leave_the_volume(shape, patch, overlap):
    patch = tuple(min(p, s) for p, s in zip(patch, shape, strict=True))
    seen = np.zeros(shape, int)
    for start in patch_starts(shape, patch, overlap):
        piece = cut(seen, start, patch)
        assert piece.shape == patch
        piece += 1
    assert seen.min() >= 1


def test_a_patch_larger_than_the_volume_is_refused():
    with pytest.raises(InputError, match=r"\(8, 8, 8\).*\(8, 8, 4\)"):
        patch_starts((8, 8, 4), (8, 8, 8))


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_overlap_outside_its_range_is_refused(overlap):
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        Sampling((4, 4, 4), overlap)


def test_random_starts_reach_both_ends_and_stay_inside():
    starts = random_starts((6, 4, 5), (4, 4, 2), 300, np.random.default_rng(0))
    assert starts.min(0).tolist() == [0, 0, 0]
    assert starts.max(0).tolist() == [2, 0, 3]


@settings(max_examples=25, deadline=None)
@given(st.tuples(SIZE, SIZE, SIZE), st.tuples(SIZE, SIZE, SIZE))
def test_padding_holds_a_patch_and_is_cut_off_again_exactly(shape, patch):
    array = np.arange(np.prod(shape), dtype=float).reshape(shape) + 1
    padded, inside = pad_to(array, patch)
    assert all(n >= p for n, p in zip(padded.shape, patch, strict=True))
    np.testing.assert_array_equal(padded[inside], array)
    assert padded.sum() == array.sum()


def test_a_slice_is_a_patch_of_thickness_one():
    sampling = Sampling((256, 1, 192))
    assert sampling.slice_axis == 1
    assert sampling.input_shape == (256, 192, 1)
    assert Sampling((8, 8, 8)).slice_axis is None


def test_two_slice_axes_are_refused():
    with pytest.raises(InputError, match="at most one axis of size 1"):
        Sampling((1, 1, 8))


def test_the_colours_of_a_slice_are_its_neighbours_and_zero_outside():
    #  volume whose slice z holds z + 1 everywhere
    image = np.broadcast_to(np.arange(1.0, 5.0), (2, 3, 4))
    sampling = Sampling((2, 3, 1), neighbours=1)
    assert sampling.input_shape == (2, 3, 3)
    seen = [cut_input(image, (0, 0, z), sampling)[1, 2].tolist() for z in range(4)]
    assert seen == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), axis=st.integers(0, 2), neighbours=st.integers(1, 3))
def test_colours_and_their_means_equal_a_padded_volume(seed, axis, neighbours):
    images = [np.random.default_rng(seed + i).normal(size=(3, 4, 5)) for i in range(2)]
    shape = [3, 4, 5]
    shape[axis] = 1
    sampling = Sampling(tuple(shape), neighbours=neighbours)
    stacks = []
    for image in images:
        width = [(neighbours, neighbours) if a == axis else (0, 0) for a in range(3)]
        padded = np.moveaxis(np.pad(image, width), axis, 0)
        for n in range(image.shape[axis]):
            start = [0, 0, 0]
            start[axis] = n
            expected = np.moveaxis(padded[n : n + 2 * neighbours + 1], 0, -1)
            stacks.append(expected)
            np.testing.assert_array_equal(cut_input(image, start, sampling), expected)
    np.testing.assert_allclose(channel_means(images, sampling), np.mean(stacks, axis=(0, 1, 2)), atol=1e-12)


def test_without_neighbours_the_mean_is_that_of_all_voxels():
    images = [np.arange(8.0).reshape(2, 2, 2), np.full((2, 2, 2), 1.0)]
    assert channel_means(images, Sampling((2, 2, 2))) == ((3.5 + 1.0) / 2,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_shape": (4, 4, 4), "neighbours": 1}, "slices beside a slice"),
        ({"patch_shape": (4, 4, 1), "neighbours": -1}, "sampling.neighbours"),
        ({"patch_shape": (4, 4, 1), "neighbours": 1, "channel_mean": (1.0,)}, "has 3 numbers"),
    ],
)
def test_neighbours_and_means_that_do_not_fit_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Sampling(**options)


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_a_plane_s_name_says_which_axis_its_slices_lie_across(plane, axis):
    sampling = Sampling((24, 32), plane=plane)
    assert sampling.slice_axis == axis and sampling.input_shape == (24, 32, 1)
    assert sampling == Sampling(sampling.patch_shape, plane=plane)  # as a segmenter's card gives it back
    # in RAS+, x runs to the right: the slice x = 3 of a volume that holds its own x is 3 throughout
    volume = np.broadcast_to(
        np.arange(40.0).reshape([-1 if a == axis else 1 for a in range(3)]), (40, 40, 40)
    )
    start = [0, 0, 0]
    start[axis] = 3
    assert (cut_input(volume, start, sampling) == 3).all()


def test_voxels_of_a_rare_class_are_drawn_as_often_as_those_of_a_common_one():
    labels = np.zeros((10, 9, 8), np.uint8)
    labels[7, 2, 3] = labels[7, 8, 0] = labels[0, 0, 0] = 1
    labels[5] = 2
    labels[6] = 255
    drawn = ClassVoxels(labels).draw(3000, np.random.default_rng(0))
    values = labels[tuple(drawn.T)]
    shares = [(values == c).mean() for c in (0, 1, 2)]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.035)  # 4 standard deviations of 3000 draws
    assert {tuple(v) for v in drawn[values == 1].tolist()} == {(7, 2, 3), (7, 8, 0), (0, 0, 0)}
    assert len({tuple(v) for v in drawn[values == 2].tolist()}) == 72  # every voxel of the plane


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.tuples(SIZE, SIZE, SIZE), st.tuples(SIZE, SIZE, SIZE))
def test_balanced_patches_hold_a_voxel_of_the_class_and_stay_inside(seed, shape, patch):
    rng = np.random.default_rng(seed)
    patch = tuple(min(p, s) for p, s in zip(patch, shape, strict=True))
    labels = (rng.random(shape) < 0.05).astype(np.uint8)
    for start in balanced_starts(ClassVoxels(labels, (1,)), patch, 5, rng):
        piece = cut(labels, start, patch)
        assert piece.shape == patch and start.min() >= 0
        assert piece.any() or not labels.any()


def test_a_voxel_away_from_the_border_is_the_middle_of_its_patch():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[9, 10, 11] = 1
    starts = balanced_starts(ClassVoxels(labels, (1,)), (5, 4, 1), 3, np.random.default_rng(0))
    assert starts.tolist() == [[7, 8, 11]] * 3  # voxel 2 of 0..4, voxel 2 of 0..3, voxel 0 of 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_shape": (8, 8), "plane": "transversal"}, "sampling.plane"),
        ({"patch_shape": (8, 1, 8), "plane": "axial"}, "along axis 2, across axial"),
        ({"patch_shape": (8, 8)}, "sampling.patch_shape"),
        ({"patch_shape": (8, 8, 8), "class_share": 0.5}, "patches_per_volume"),
        ({"patch_shape": (8, 8, 8), "class_share": 1.5, "patches_per_volume": 2}, r"\[0, 1\]"),
        ({"patch_shape": (8, 8, 8), "classes": (2,)}, "belongs to class_share"),
        (
            {"patch_shape": (8, 8, 8), "class_share": 0.5, "patches_per_volume": 2, "classes": (255,)},
            "0 to 254",
        ),
    ],
)
def test_planes_and_classes_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Sampling(**options)
