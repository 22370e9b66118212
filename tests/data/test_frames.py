from __future__ import annotations

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.frames import head_box_grid, head_resize_grid, head_slices
from mrseg.data.geometry import resample
from mrseg.data.preprocessing import Preprocessing


def head(shape=(60, 50, 30), box=((20, 50), (10, 34), (6, 26)), spacing=(0.8, 0.8, 2.0)):
    """A bright box (first, end) on every axis, textured, with an affine far from the origin."""
    image = np.zeros(shape, np.float32)
    inside = tuple(slice(*ends) for ends in box)
    image[inside] = 80 + 20 * np.random.default_rng(0).random(image[inside].shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = 11.0, -70.0, 33.0
    return image, affine


def test_the_box_is_cut_out_of_the_scan_s_own_voxels():
    # head 20..49 x 10..33: centre 34.5, 21.5, so a window of 40x32 begins at 15 and 6
    image, affine = head()
    shape, moved = head_box_grid((image, affine), (40, 32))
    assert shape == (40, 32, 20)
    np.testing.assert_array_equal(resample((image, affine), shape, moved), image[15:55, 6:38, 6:26])


def test_a_window_that_sticks_out_is_moved_back_and_a_larger_one_is_padded_evenly():
    # x: centre 34.5, 56 pixels would begin at 7 and end at 63 of 60, so they begin at 4
    # y: 54 pixels of 50, 2 outside at each end
    image, affine = head()
    shape, moved = head_box_grid((image, affine), (56, 54))
    cut = resample((image, affine), shape, moved)
    np.testing.assert_array_equal(cut[:, 2:52], image[4:60, :, 6:26])
    assert not cut[:, :2].any() and not cut[:, 52:].any()


def test_end_slices_with_little_head_are_dropped_and_the_middle_ones_counted():
    mask = np.zeros((10, 10, 9), bool)
    for z, pixels in enumerate([0, 3, 5, 8, 4, 9, 5, 1, 0]):
        mask.reshape(100, 9)[:pixels, z] = True
    assert head_slices(mask, 5) == (2, 7)  # slice 4 stays though it has less: it is no end slice
    assert head_slices(mask, 0) == (1, 8)
    assert head_slices(mask, 5, 3) == (3, 6)
    with pytest.raises(InputError, match="5 slices with the head"):
        head_slices(mask, 5, 6)
    with pytest.raises(InputError, match="at most 9"):
        head_slices(mask, 10)


def test_the_resized_window_is_a_crop_of_the_whole_field_of_view_resized():
    image, affine = head(shape=(150, 150, 30), box=((30, 110), (40, 120), (3, 27)))
    shape, moved = head_resize_grid((image, affine), (256, 256, 48))
    assert shape == (256, 256, 48)
    # 150 pixels become 300: steps of 1/2; 24 slices become 48: steps of 1/2
    np.testing.assert_allclose(np.diag(moved)[:3], np.array([0.4, 0.4, 1.0]))
    index = np.linalg.inv(affine) @ moved @ [0, 0, 0, 1]
    # head 60..219 of 300: centre 140, window from 12; 80..239: centre 160, window from 32
    np.testing.assert_allclose(index[:3], [(12 + 0.5) / 2 - 0.5, (32 + 0.5) / 2 - 0.5, 3 + 0.25 - 0.5])
    whole = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    whole[:3, 3] = (affine @ [-0.25, -0.25, 2.75, 1])[:3]
    resized = resample((image, affine), (300, 300, 48), whole)
    np.testing.assert_allclose(
        resample((image, affine), shape, moved), resized[12:268, 32:288], rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("grid", "shape", "made"),
    [
        ("head_box", (40, 32), (40, 32, 20)),
        ("head_box", (40, 32, 12), (40, 32, 12)),
        ("head_resize", (64, 64, 16), (64, 64, 16)),
    ],
)
def test_preprocessing_takes_both_to_labels_and_back(grid, shape, made):
    image, affine = head()
    steps = Preprocessing(grid=grid, shape=shape, normalization="min_max")
    native = (image.shape, affine)
    working, at = steps.image((image, affine))
    assert working.shape == made
    assert all(a <= b for a, b in zip(made, steps.grid_shape(native), strict=True))
    labels = (image > 0).astype(np.uint8)
    there = steps.labels((labels, affine), working.shape, at)
    hot = np.eye(2, dtype=np.float32)[np.where(there == 255, 0, there)]
    back = steps.to_native(hot, at, image.shape, affine).argmax(-1)
    seen = slice(10, 22) if len(shape) == 3 and grid == "head_box" else slice(6, 26)
    if grid == "head_box":
        np.testing.assert_array_equal(back[..., seen], labels[..., seen])
        assert not back[..., : seen.start].any()
    else:
        assert (back == labels).mean() > 0.95  # a coarser grid: a shell of half a voxel may differ


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": "head_box"}, r"needs shape.*\[256, 256\]"),
        ({"grid": "head_box", "shape": (256,)}, "preprocessing.shape"),
        ({"grid": "head_resize", "shape": (256, 256)}, "preprocessing.shape"),
        ({"min_head_area": 1.0}, "min_head_area"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Preprocessing(**options)
