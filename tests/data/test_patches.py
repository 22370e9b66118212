from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data.patches import (
    Sampling,
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
