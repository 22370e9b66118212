from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.geometry import head_mask, to_canonical, voxel_sizes
from mrseg.data.preprocessing import Preprocessing

LPS = np.array([[-1.0, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def scan(shape=(20, 18, 12), seed=0):
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    image[4:-4, 3:-3, 2:-2] = 50 + 10 * rng.random((shape[0] - 8, shape[1] - 6, shape[2] - 4))
    return image, LPS


def test_native_grid_keeps_the_voxels_and_turns_them_to_ras():
    image, affine = Preprocessing(normalization="min_max").image(scan())
    np.testing.assert_allclose(image, to_canonical(scan())[0] / to_canonical(scan())[0].max(), atol=1e-6)
    np.testing.assert_allclose(np.diag(affine)[:3], [1.0, 1.5, 2.0])


@pytest.mark.parametrize("grid", ["native", "foreground"])
def test_one_hot_probabilities_of_labels_come_back_as_the_same_labels(grid):
    volume = scan()
    labels = (volume[0] > 0).astype(np.uint8) + (volume[0] > 55)
    steps = Preprocessing(grid=grid, normalization="min_max")
    image, affine = steps.image(volume)
    there = steps.labels((labels, LPS), image.shape, affine)
    back = steps.to_native(np.eye(3, dtype=np.float32)[there], affine, labels.shape, LPS)
    np.testing.assert_array_equal(back.argmax(-1), labels)


def test_foreground_is_the_box_of_voxels_above_zero():
    image, affine = Preprocessing(grid="foreground", normalization="min_max").image(scan())
    assert image.shape == (12, 12, 8)
    assert np.linalg.inv(affine).shape == (4, 4)
    canonical, canonical_affine = to_canonical(scan())
    first = np.argwhere(canonical > 0).min(0)
    np.testing.assert_allclose(affine[:3, 3], (canonical_affine @ [*first, 1])[:3])


def test_spacing_resamples_and_comes_back_to_the_scans_own_grid():
    steps = Preprocessing(grid="spacing", spacing_mm=(2.0, 2.0, 2.0), normalization="min_max")
    image, affine = steps.image(scan())
    np.testing.assert_allclose(voxel_sizes(affine), (2.0, 2.0, 2.0))
    inside = np.stack([image < 0.5, image >= 0.5], -1).astype(np.float32)
    back = steps.to_native(inside, affine, (20, 18, 12), LPS)
    assert back.shape == (20, 18, 12, 2)
    agreement = (back.argmax(-1) == (scan()[0] > 0)).mean()
    assert agreement > 0.9  # a box with faces off the coarser grid: only a shell of half a voxel may differ


def test_head_grid_has_the_papers_shape_whatever_the_scan():
    steps = Preprocessing(grid="head", shape=(32, 32, 8), normalization="lcn")
    assert steps.image(scan())[0].shape == (32, 32, 8)


def test_voxels_outside_the_working_grid_are_class_zero():
    steps = Preprocessing(grid="foreground", normalization="min_max")
    image, affine = steps.image(scan())
    ones = np.zeros((*image.shape, 2), np.float32)
    ones[..., 1] = 1
    back = steps.to_native(ones, affine, (20, 18, 12), LPS).argmax(-1)
    np.testing.assert_array_equal(back, scan()[0] > 0)


def test_labels_without_a_value_are_ignored_not_air():
    labels = np.ones((4, 4, 4), np.uint8)
    wider = np.eye(4)
    wider[0, 3] = -2
    moved = Preprocessing().labels((labels, np.eye(4)), (8, 4, 4), wider)
    assert moved[:2].min() == 255 and (moved[2:6] == 1).all() and moved[6:].min() == 255


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"grid": "nativ"}, "Did you mean 'native'"),
        ({"grid": "spacing"}, "needs spacing_mm"),
        ({"grid": "head"}, "needs shape"),
        ({"grid": "spacing", "spacing_mm": (1.0, 1.0, 0.0)}, "positive"),
        ({"normalization": "zscore"}, "normalization"),
    ],
)
def test_impossible_settings_are_refused(bad, word):
    with pytest.raises(InputError, match=word):
        Preprocessing(**bad)


def test_an_image_without_foreground_is_refused():
    with pytest.raises(InputError, match="voxels above 0"):
        Preprocessing(grid="foreground").image((-np.ones((4, 4, 4), np.float32), np.eye(4)))


def test_the_plane_grid_pads_to_a_square_and_keeps_the_slices():
    # 20 x 18 voxels of 1 x 1.5 mm: a square of 27 mm, 9 pixels of 3 mm
    image, affine = Preprocessing(grid="plane", shape=(9, 9), normalization="min_max").image(scan())
    assert image.shape == (9, 9, 12)
    np.testing.assert_allclose(voxel_sizes(affine), (3.0, 3.0, 2.0))
    canonical, canonical_affine = to_canonical(scan())
    middle = (np.array(canonical.shape) - 1) / 2
    np.testing.assert_allclose(affine @ [4.0, 4.0, 5.5, 1.0], canonical_affine @ [*middle, 1.0], atol=1e-9)


def test_a_plane_grid_of_the_scan_s_own_size_changes_no_voxel():
    volume = scan()[0][:18, :18], np.diag([1.0, 1.0, 3.0, 1.0])
    image, affine = Preprocessing(grid="plane", shape=(18, 18), normalization="min_max").image(volume)
    np.testing.assert_array_equal(affine, volume[1])
    np.testing.assert_allclose(image, volume[0] / volume[0].max(), rtol=1e-6)


def test_grids_that_need_a_shape_say_the_paper_s():
    with pytest.raises(InputError, match=r"'plane' needs shape.*The paper.*\[128, 128\]"):
        Preprocessing(grid="plane")
    with pytest.raises(InputError, match="preprocessing.shape"):
        Preprocessing(grid="plane", shape=(128, 128, 48))


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_the_acquisition_grid_lays_the_thickest_axis_last_and_changes_no_voxel(thick):
    spacing = [1.0, 1.0, 1.0]
    spacing[thick] = 2.5
    volume = scan()[0], np.diag([*spacing, 1.0])
    steps = Preprocessing(grid="acquisition", normalization="min_max")
    image, affine = steps.image(volume)
    np.testing.assert_array_equal(image, np.moveaxis(volume[0], thick, 2) / volume[0].max())
    np.testing.assert_allclose(voxel_sizes(affine), (1.0, 1.0, 2.5))
    index = np.array([3.0, 4.0, 5.0])
    world = volume[1] @ [*index, 1.0]
    np.testing.assert_allclose(affine @ [*np.delete(index, thick), index[thick], 1.0], world)
    labels = (volume[0] > 0).astype(np.uint8)
    there = steps.labels((labels, volume[1]), image.shape, affine)
    back = steps.to_native(np.eye(2, dtype=np.float32)[there], affine, labels.shape, volume[1])
    np.testing.assert_array_equal(back.argmax(-1), labels)


def test_cubes_are_cut_along_z():
    image, affine = Preprocessing(grid="acquisition", normalization="min_max").image((scan()[0], np.eye(4)))
    assert image.shape == (20, 18, 12)


@pytest.mark.parametrize("normalization", ["lcn", "quantile_zscore", "min_max", "histogram_equalization"])
@pytest.mark.parametrize(
    "steps",
    [
        {"grid": "native"},
        {"grid": "foreground"},
        {"grid": "spacing", "spacing_mm": (1.0, 1.0, 1.0)},
        {"grid": "spacing", "spacing_mm": (2.0, 2.0, 2.0)},
        {"grid": "plane", "shape": (32, 32)},
        {"grid": "head", "shape": (32, 32, 16)},
        {"grid": "acquisition"},
    ],
    ids=lambda steps: steps["grid"],
)
def test_grid_and_memory_are_known_before_the_scan_is_read(steps, normalization):
    image = np.random.default_rng(0).random((96, 80, 64)).astype(np.float32) + 0.1
    image[8:-8, 8:-8, 4:-4] += 9  # a head for the grid of that name
    made, native = Preprocessing(**steps, normalization=normalization), ((96, 80, 64), LPS)
    tracemalloc.start()
    working = made.image((image, LPS))[0]
    peak = (tracemalloc.get_traced_memory()[1] + image.nbytes) / 1e6
    tracemalloc.stop()
    assert made.grid_shape(native) == working.shape  # random voxels above 0 reach every border
    assert peak < made.memory_mb(native)


@pytest.mark.parametrize(
    ("grid", "shape"), [("head", (24, 24, 12)), ("head_box", (56, 60)), ("head_resize", (24, 24, 12))]
)
def test_what_of_the_head_a_grid_leaves_out_is_told_in_ml(grid, shape):
    array, affine = phantom.mr_image(phantom.head(2, shape=(32, 36, 40)), "T1w")
    array = np.pad(array, ((12, 12), (12, 12), (0, 0)))  # `head_resize` crops the field of view
    left_out = Preprocessing(grid=grid, shape=shape, min_head_area=0.1)
    mask = head_mask(array)
    whole = Preprocessing(grid=grid, shape=shape, min_head_area=0.0)
    assert left_out.of_whole_head() == whole and whole.head_outside_ml((array, affine)) == 0
    _, frame = left_out.image((array, affine))
    lowest = (np.linalg.inv(affine) @ frame @ [0, 0, -0.5, 1])[2] + 0.5  # of the slices inside
    highest = lowest + left_out.image((array, affine))[0].shape[2] * frame[2, 2] / affine[2, 2]
    inside = slice(round(lowest), round(highest))
    assert inside.start > 0 or inside.stop < 40
    lost = mask.sum() - mask[:, :, inside].sum()
    told = left_out.head_outside_ml((array, affine))
    assert told == pytest.approx(lost * np.prod(np.diag(affine)[:3]) / 1000) and told > 1
    turned = (
        np.flip(array, 0).transpose(2, 0, 1),
        affine @ np.array([[0, -1, 0, 55], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]),
    )
    assert left_out.head_outside_ml(turned) == pytest.approx(told)


def test_a_grid_that_is_not_laid_around_the_head_leaves_nothing_out():
    volume = phantom.mr_image(phantom.head(2, shape=(16, 18, 16)), "T1w")
    assert Preprocessing(grid="native").head_outside_ml(volume) == 0
    with pytest.raises(InputError, match="whole head.*'native'.*Leave out --whole-head"):
        Preprocessing(grid="native").of_whole_head()
