from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.morphology import convex_hull_image

from mrseg.baselines.regions import brain_ellipse, convex_hull, filled, head_region, largest_region

masks = hnp.arrays(bool, (7, 9))


@given(masks)
@settings(max_examples=80, deadline=None)
def test_filling_agrees_with_scipy(mask):
    np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask))


@given(masks)
@settings(max_examples=80, deadline=None)
def test_the_hull_agrees_with_scikit_image(mask):
    places = np.argwhere(mask)
    if len(places) < 3 or np.linalg.matrix_rank(places - places[0]) < 2:
        return  # on a line scikit-image has no hull
    # Between pixel centres, as ours; scikit-image's default adds half a pixel at the edges.
    expected = convex_hull_image(mask, offset_coordinates=False, include_borders=True)
    np.testing.assert_array_equal(convex_hull(mask), expected)


def test_the_largest_region_does_not_hold_on_by_a_corner():
    mask = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 1]], bool)
    np.testing.assert_array_equal(
        largest_region(mask), np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]) > 0
    )
    assert not largest_region(np.zeros((3, 3), bool)).any()


def test_the_head_is_whole_although_the_scalp_is_open():
    image = np.zeros((64, 64))
    x, y = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y)
    image[(radius < 28) & (radius > 24)] = 50  # scalp
    image[(x > 0) & (np.abs(y) < 8) & (radius > 20)] = 0  # a gap
    image[radius < 18] = 100
    head = head_region(image)
    assert head[int(31.5 - 27), 32] and head[32, 32] and head[int(31.5 - 21), 32]
    assert not head[0].any() and head[radius > 29].sum() == 0


def test_a_head_below_5_per_cent_is_none():
    image = np.zeros((40, 40))
    image[:8, :9] = 1  # 72 of 1600: 4.5 %
    assert not head_region(image).any()
    image[:8, :10] = 1  # 5 %
    assert head_region(image).sum() == 80


def test_the_ellipse_touches_the_sides_of_the_box_at_full_size():
    head = np.zeros((11, 21), bool)
    head[1:10, 2:19] = True  # 9 x 17 pixels about (5, 10)
    ellipse = brain_ellipse(head, 1.0)
    assert ellipse[1, 10] and ellipse[9, 10] and ellipse[5, 2] and ellipse[5, 18]
    assert not ellipse[0].any() and not ellipse[1, 2]
    half = brain_ellipse(head, 0.5)  # semi-axes 2.25 and 4.25
    assert half[3, 10] and not half[2, 10] and half[5, 6] and not half[5, 5]
