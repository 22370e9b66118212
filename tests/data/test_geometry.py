from __future__ import annotations

import itertools
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import affines, orientations
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.data import geometry, io

ORIENTATIONS = [
    "".join(sign[axis] for sign, axis in zip(signs, order, strict=True))
    for order in itertools.permutations(range(3))
    for signs in itertools.product(("RAS", "LPI"), repeat=3)
]


def affine_of(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def rotation(angle_deg, axis):
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    matrix = np.eye(4)
    i, j = [a for a in range(3) if a != axis]
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def oriented(codes, shape, spacing, tilt_deg=0.0):
    """A volume of distinct values whose axes run along ``codes``, tilted a little about each axis."""
    matrix = orientations.inv_ornt_aff(orientations.axcodes2ornt(codes), shape)
    tilt = rotation(tilt_deg, 0) @ rotation(-tilt_deg, 1) @ rotation(tilt_deg, 2)
    affine = tilt @ np.linalg.inv(matrix) @ np.diag([*spacing, 1.0])
    affine[:3, 3] = (-31.5, 7.25, 100.0)
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    return array, affine


def world_of_each_value(array, affine):
    index = np.stack(np.unravel_index(np.argsort(array, axis=None), array.shape), axis=-1)
    return affines.apply_affine(affine, index)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("tilt_deg", [0.0, 9.0])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_canonical_moves_no_voxel_in_the_world_and_goes_back_exactly(codes, tilt_deg):
    native = oriented(codes, (3, 5, 7), (0.9, 3.0, 1.1), tilt_deg)
    array, affine = geometry.to_canonical(native)
    assert orientations.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_allclose(world_of_each_value(array, affine), world_of_each_value(*native), atol=1e-9)
    back = geometry.from_canonical(array, native[0].shape, native[1])
    assert np.array_equal(back, native[0])
    shape, by_grid = geometry.canonical_grid((native[0].shape, native[1]))
    assert shape == array.shape and np.array_equal(by_grid, affine)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.floats(0.2, 6.0)] * 3),
    st.floats(-20.0, 20.0),
)
def test_canonical_and_back_is_the_identity_for_any_size_and_spacing(codes, shape, spacing, tilt_deg):
    array, affine = oriented(codes, shape, spacing, tilt_deg)
    canonical = geometry.to_canonical((array, affine))
    assert np.array_equal(geometry.from_canonical(canonical[0], shape, affine), array)
    twice = geometry.to_canonical(canonical)
    assert np.array_equal(twice[0], canonical[0])
    np.testing.assert_allclose(twice[1], canonical[1], atol=1e-12)


def test_channels_stay_last_on_the_way_back():
    native, affine = oriented("LSP", (3, 4, 5), (1, 1, 1))
    two = np.stack([native, -native], axis=-1)
    canonical, _ = geometry.to_canonical((two, affine))
    for shape in (native.shape, two.shape):
        assert np.array_equal(geometry.from_canonical(canonical, shape, affine), two)


def test_going_back_to_a_grid_of_another_shape_is_an_error():
    native, affine = oriented("LSP", (3, 4, 5), (1, 1, 1))
    with pytest.raises(InputError, match=r"native shape \(3, 4, 6\)"):
        geometry.from_canonical(geometry.to_canonical((native, affine))[0], (3, 4, 6), affine)


def test_voxel_sizes_are_the_lengths_of_the_affines_columns():
    tilted = rotation(30, 2) @ affine_of((0.9, 1.5, 3.0))
    np.testing.assert_allclose(geometry.voxel_sizes(tilted), (0.9, 1.5, 3.0))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), "invertible"),
        (np.diag([1.0, 1.0, np.nan, 1.0]), "finite"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "invertible"),
        (np.eye(3), "4x4"),
    ],
)
def test_a_broken_affine_is_refused(broken, rule):
    with pytest.raises(InputError, match=rule):
        geometry.voxel_sizes(broken)


def test_tiny_voxels_are_not_mistaken_for_a_singular_affine():
    assert geometry.voxel_sizes(affine_of((1e-3, 1e-3, 1e-3))) == (1e-3, 1e-3, 1e-3)


def test_a_shifted_grid_is_as_far_as_its_shift():
    moved = affine_of(origin=(3.0, 4.0, 0.0))
    assert geometry.grid_distance_mm((2, 2, 2), affine_of(), (2, 2, 2), moved) == pytest.approx(5.0)


def test_a_coarser_spacing_moves_the_far_corner_most():
    # The far corner has index (10, 0, 0): 10 mm against 11 mm. Moved back by 1 mm, the near corner is off.
    for origin in ((0, 0, 0), (-1.0, 0, 0)):
        coarser = affine_of((1.1, 1, 1), origin)
        assert geometry.grid_distance_mm((11, 1, 1), affine_of(), (11, 1, 1), coarser) == pytest.approx(1.0)


def test_grids_of_different_shape_are_infinitely_far():
    assert geometry.grid_distance_mm((2, 2, 2), np.eye(4), (2, 2, 3), np.eye(4)) == math.inf
    assert geometry.grid_distance_mm((2, 2, 2, 5), np.eye(4), (2, 2, 2), np.eye(4)) == 0  # channels
    assert geometry.grid_distance_mm((2, 2, 2), np.eye(4), (2, 2, 2, 5), np.eye(4)) == 0


def test_one_grid_within_rounding_passes_the_check():
    volume = np.zeros((256, 256, 48)), affine_of((0.9, 0.9, 3.0))
    rounded = volume[0], np.asarray(volume[1] * (1 + 1e-6), dtype=np.float32)
    geometry.check_same_grid("a.nii", volume, "b.nii", rounded)


def test_different_grids_are_named_with_their_distance_and_a_remedy():
    a, b = (np.zeros((2, 2, 2)), np.eye(4)), (np.zeros((2, 2, 2)), affine_of(origin=(0, 0, 2.5)))
    with pytest.raises(InputError, match=r"t1.nii and seg.nii.*2\.5 mm apart.*mrseg.data.resample"):
        geometry.check_same_grid("t1.nii", a, "seg.nii", b)


def test_different_shapes_are_named_in_the_error():
    a, b = (np.zeros((2, 2, 2)), np.eye(4)), (np.zeros((2, 2, 3)), np.eye(4))
    with pytest.raises(InputError, match=r"t1.nii of shape \(2, 2, 2\) and seg.nii of shape \(2, 2, 3\)"):
        geometry.check_same_grid("t1.nii", a, "seg.nii", b)


def naive_resample(array, affine, shape, to_affine, order, fill):
    """One target voxel after another: its world position, its source index, nearest or trilinear."""
    to_source = np.linalg.inv(affine) @ to_affine
    out = np.empty(shape, dtype=np.float64)
    for target in np.ndindex(*shape):
        position = affines.apply_affine(to_source, target)
        if any(p < -0.5 - 1e-6 or p > n - 0.5 + 1e-6 for p, n in zip(position, array.shape, strict=True)):
            out[target] = fill
            continue
        position = [min(max(p, 0), n - 1) for p, n in zip(position, array.shape, strict=True)]
        if order == 0:
            out[target] = array[tuple(math.floor(p + 0.5) for p in position)]
            continue
        total = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight, index = 1.0, []
            for p, up, n in zip(position, corner, array.shape, strict=True):
                low = min(math.floor(p), n - 1)
                weight *= (p - low) if up else 1 - (p - low)
                index.append(min(low + up, n - 1))
            total += weight * array[tuple(index)]
        out[target] = total
    return out


GRIDS = {
    "shifted": ((6, 5, 7), affine_of(origin=(0.3, -0.2, 0.45))),
    "finer": ((9, 8, 9), affine_of((0.6, 0.55, 0.7), (-0.4, -0.3, 0.0))),
    "flipped": ((5, 4, 6), np.array([[-1.0, 0, 0, 4.2], [0, 0, 1, 0.1], [0, -1.3, 0, 3.4], [0, 0, 0, 1]])),
    "oblique": ((6, 6, 6), rotation(17, 2) @ rotation(-8, 0) @ affine_of((0.9, 0.9, 0.8), (0.5, -0.6, 0.2))),
}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", GRIDS)
def test_resampling_agrees_with_a_naive_loop(name, order):
    rng = np.random.default_rng(1)
    array = rng.normal(size=(5, 4, 6)).astype(np.float32)
    shape, to_affine = GRIDS[name]
    affine = rotation(3, 1) @ affine_of((1.0, 1.2, 0.9)) if name == "oblique" else affine_of()
    expected = naive_resample(array, affine, shape, to_affine, order, fill=-7.0)
    result = geometry.resample((array, affine), shape, to_affine, order=order, fill=-7.0, antialias=False)
    # float32 in and out; the interpolation itself runs in double.
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("tilt_deg", [0.0, 11.0])
def test_resampling_onto_the_own_grid_changes_nothing(order, tilt_deg):
    array, affine = oriented("LIA", (5, 6, 7), (0.7, 1.3, 2.9), tilt_deg)
    result = geometry.resample((array, affine), array.shape, affine, order=order)
    # Interpolation weights of a tilted grid are off 0 and 1 by the rounding of its inverse, 1e-9 voxels.
    np.testing.assert_allclose(result, array, rtol=0, atol=0 if tilt_deg == 0 or order == 0 else 1e-4)


def test_the_field_of_view_ends_at_the_outer_edge_of_the_outer_voxel():
    #  source voxels      [  10  |  20  ]          edges at -0.5, 0.5, 1.5
    #  target centres   x   x  x   x  x   x        at -0.75, -0.25, 0.25, 0.75, 1.25, 1.75
    array = np.array([10.0, 20.0], dtype=np.float32).reshape(2, 1, 1)
    result = geometry.resample((array, np.eye(4)), (6, 1, 1), affine_of((0.5, 1, 1), (-0.75, 0, 0)), fill=-1)
    np.testing.assert_allclose(result.ravel(), [-1, 10, 12.5, 17.5, 20, -1])


def test_a_linear_ramp_survives_trilinear_interpolation():
    ramp = np.fromfunction(lambda x, y, z: 2 * x - y + 0.5 * z, (8, 8, 8)).astype(np.float32)
    to = rotation(20, 2) @ affine_of((0.5, 0.5, 0.5))
    to[:3, 3] = (2.5, 1.0, 2.0)
    result = geometry.resample((ramp, np.eye(4)), (5, 5, 5), to)
    world = affines.apply_affine(to, np.stack(np.meshgrid(*[range(5)] * 3, indexing="ij"), axis=-1))
    np.testing.assert_allclose(result, world @ [2, -1, 0.5], atol=1e-5)


def test_labels_keep_their_dtype_and_gain_no_value():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 2, 255], dtype=np.uint8), size=(7, 7, 7))
    to = rotation(25, 0) @ affine_of((0.8, 0.8, 0.8), (0.2, 1.0, -0.4))
    result = geometry.resample((labels, np.eye(4)), (8, 8, 8), to, order=0, fill=255)
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 2, 255}


def test_masks_are_resampled_as_labels():
    mask = np.zeros((4, 1, 1), dtype=bool)
    mask[2:] = True
    result = geometry.resample((mask, np.eye(4)), (2, 1, 1), affine_of((2, 1, 1), (0.4, 0, 0)), order=0)
    assert result.dtype == bool
    assert result.ravel().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_integer_arrays_are_never_interpolated(dtype):
    with pytest.raises(InputError, match="labels, which are never interpolated.*order=1.*order=0"):
        geometry.resample((np.zeros((2, 2, 2), dtype), np.eye(4)), (2, 2, 2), np.eye(4))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (np.uint8, (0, 255), (-1, 256, 0.5, math.nan)),
        (np.int16, (-32768, 32767), (-32769, 32768)),
        (bool, (0, 1), (-1, 2)),
    ],
)
def test_a_fill_that_labels_cannot_hold_is_refused(dtype, good, bad):
    labels, away = (np.zeros((2, 2, 2), dtype), np.eye(4)), affine_of(origin=(9, 9, 9))
    for fill in good:
        assert (geometry.resample(labels, (2, 2, 2), away, order=0, fill=fill) == fill).all()
    for fill in bad:
        with pytest.raises(InputError, match="fill"):
            geometry.resample(labels, (2, 2, 2), away, order=0, fill=fill)


def test_other_orders_and_ranks_are_refused():
    with pytest.raises(InputError, match="order is 0"):
        geometry.resample((np.zeros((2, 2, 2)), np.eye(4)), (2, 2, 2), np.eye(4), order=3)
    with pytest.raises(InputError, match="three spatial axes"):
        geometry.resample((np.zeros((2, 2)), np.eye(4)), (2, 2, 2), np.eye(4))


def test_antialiasing_dims_what_the_coarse_grid_cannot_show():
    # +1 -1 +1 -1 ... sampled at every second voxel is all +1 without a filter. The matching Gaussian for
    # f=2 has sigma^2 = 3 / (8 ln 2) = 0.541 and passes exp(-pi^2 sigma^2 / 2) = 0.069 at the frequency pi;
    # its taps at whole voxels fold -pi onto pi, which doubles that (Poisson's sum).
    stripes = np.where(np.arange(64) % 2 == 0, 1.0, -1.0).astype(np.float32).reshape(64, 1, 1)
    to = affine_of((2, 1, 1))
    raw = geometry.resample((stripes, np.eye(4)), (32, 1, 1), to, antialias=False)
    smooth = geometry.resample((stripes, np.eye(4)), (32, 1, 1), to)
    np.testing.assert_allclose(raw, 1)
    passed = 2 * math.exp(-(math.pi**2) * 3 / (16 * math.log(2)))
    np.testing.assert_allclose(smooth[4:-4], passed, atol=1e-3)


def test_oblique_grids_are_antialiased_too():
    # Turned by 1 degree about the stripes' own axis, the grid meets the same stripes.
    stripes = np.where(np.arange(64) % 2 == 0, 1.0, -1.0).astype(np.float32)[:, None, None] * np.ones(
        (1, 5, 5)
    )
    to = rotation(1, 0) @ affine_of((2, 1, 1))
    straight = geometry.resample((stripes, np.eye(4)), (32, 3, 3), affine_of((2, 1, 1)))
    turned = geometry.resample((stripes, np.eye(4)), (32, 3, 3), to)
    np.testing.assert_allclose(turned, straight, atol=1e-5)


def test_antialiasing_leaves_finer_and_equal_axes_alone():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(6, 6, 6)).astype(np.float32)
    shape, to = (12, 6, 6), affine_of((0.5, 1, 1), (-0.25, 0, 0))
    one = geometry.resample((array, np.eye(4)), shape, to)
    other = geometry.resample((array, np.eye(4)), shape, to, antialias=False)
    assert np.array_equal(one, other)


def test_nan_stays_where_it_is_on_the_own_grid():
    array = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    array[1, 1, 1] = np.nan
    np.testing.assert_array_equal(geometry.resample((array, np.eye(4)), (3, 3, 3), np.eye(4)), array)


def test_a_voxel_next_to_nan_takes_the_known_value():
    # source  5 | nan; targets at 0.25 (three quarters known) and 0.75 (one quarter known)
    array = np.array([5.0, np.nan], dtype=np.float32).reshape(2, 1, 1)
    result = geometry.resample((array, np.eye(4)), (2, 1, 1), affine_of((0.5, 1, 1), (0.25, 0, 0)))
    np.testing.assert_allclose(result.ravel(), [5.0, np.nan])


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.floats(0.3, 4.0)] * 3),
    st.tuples(*[st.floats(0.3, 4.0)] * 3),
)
def test_a_new_spacing_covers_the_same_field_of_view(shape, old, new):
    affine = rotation(13, 1) @ affine_of(old, (5, -3, 60))
    to_shape, to_affine = geometry.grid_with_spacing(shape, affine, new)
    np.testing.assert_allclose(geometry.voxel_sizes(to_affine), new)
    extent, to_extent = np.array(shape) * old, np.array(to_shape) * new
    assert (to_extent > extent - 1e-5 * np.array(new)).all()
    assert (to_extent - extent < new).all()
    centres = [
        affines.apply_affine(a, (np.array(s) - 1) / 2) for s, a in ((shape, affine), (to_shape, to_affine))
    ]
    np.testing.assert_allclose(*centres, atol=1e-9)
    everywhere = geometry.resample((np.ones(shape, np.uint8), affine), to_shape, to_affine, order=0)
    assert everywhere.all()


def test_a_new_spacing_that_divides_the_extent_adds_no_voxel():
    shape, affine = geometry.grid_with_spacing((10, 3, 7), affine_of((0.3, 1.0, 2.0)), (0.1, 1.0, 4.0))
    assert shape == (30, 3, 4)
    # The first centre: outer edge -0.15 plus half a voxel; 14 mm in 4 voxels of 4 mm stick out 1 mm a side.
    np.testing.assert_allclose(affine[:3, 3], [-0.1, 0.0, -1.0 - 1.0 + 2.0], atol=1e-12)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, math.nan)])
def test_a_spacing_is_three_positive_numbers(spacing):
    with pytest.raises(InputError, match="spacing_mm"):
        geometry.grid_with_spacing((3, 3, 3), np.eye(4), spacing)


def box_head(neck=True):
    """Air with noise, a head of 40x60x30 voxels with a hollow inside, and a thin neck of 4x4 below it."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 5, size=(80, 80, 44)).astype(np.float32)
    image[20:60, 10:70, 10:40] = 100
    image[30:50, 30:50, 20:30] = 2
    if neck:
        image[30:34, 30:34, :10] = 100
    return image


def test_the_head_mask_is_the_head_with_its_hollows_and_without_specks():
    image = box_head()
    image[1:3, 1:3, 1:3] = 200  # a speck apart from the head
    expected = np.zeros(image.shape, dtype=bool)
    expected[20:60, 10:70, 10:40] = True
    expected[30:34, 30:34, :10] = True
    assert np.array_equal(geometry.head_mask(image), expected)


@pytest.mark.parametrize("quarter_turns", range(4))
def test_a_hollow_that_is_open_to_one_side_of_its_slice_is_no_head(quarter_turns):
    head = np.ones((12, 12, 3), dtype=bool)
    head[4:8, 4:8, 1] = False  # closed above and below
    head[7:, 5, 1] = False
    turned = np.rot90(head, quarter_turns)
    assert np.array_equal(geometry.head_mask(np.where(turned, 100.0, 0.0)), turned)


def test_the_head_in_a_ct_is_found_in_hounsfield_units():
    ct = np.full((30, 30, 10), -1000, dtype=np.int16)
    ct[8:22, 8:22] = 1200  # bone around
    ct[10:20, 10:20] = 40  # brain
    ct[12:14, 12:14] = -1000  # air in a sinus
    expected = np.zeros(ct.shape, dtype=bool)
    expected[8:22, 8:22] = True
    assert np.array_equal(geometry.head_mask(ct), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95), st.floats(-50, 50), st.floats(0.5, 30))
def test_otsus_threshold_parts_the_values_with_the_largest_variance_between(seed, share, mean, spread):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(400) < share, rng.normal(0, 1, 400), rng.normal(mean, spread, 400))
    width = np.ptp(values) / 256
    places = np.minimum((values - values.min()) // width, 255)  # 256 classes of one width
    between = [
        (places < k).mean()
        * (places >= k).mean()
        * (places[places < k].mean() - places[places >= k].mean()) ** 2
        for k in range(1, 256)
    ]
    found = geometry.otsu_threshold(values)
    k = round((found - values.min()) / width)
    assert found == pytest.approx(values.min() + k * width)
    assert between[k - 1] == pytest.approx(max(between), rel=1e-6)


@pytest.mark.parametrize("broken", [np.zeros((4, 4, 4)), np.full((4, 4, 4), np.nan), np.zeros((0, 4, 4))])
def test_a_constant_empty_or_nan_image_has_no_head(broken):
    with pytest.raises(InputError, match="Received"):
        geometry.head_mask(broken)


def test_the_head_grid_spreads_the_head_over_its_slices_and_drops_the_neck():
    affine = affine_of((1.0, 1.0, 2.0), (-40, -40, 7))
    shape, to = geometry.head_grid((box_head(), affine), (64, 64, 10))
    assert shape == (64, 64, 10)
    # Neck slices: 16 of 4096 pixels, below 5 %. Head: slices 10..39, 60 mm, so 10 slices of 6 mm.
    np.testing.assert_allclose(geometry.voxel_sizes(to), (1.0, 1.0, 6.0))
    # Centres: in plane (39.5, 39.5); the first slice's centre lies 3 mm above the edge at index 9.5.
    np.testing.assert_allclose(
        affines.apply_affine(to, (31.5, 31.5, 0)), affines.apply_affine(affine, (39.5, 39.5, 9.5)) + [0, 0, 3]
    )


def test_a_head_that_does_not_fit_coarsens_the_frame_in_plane():
    _, to = geometry.head_grid((box_head(), np.eye(4)), (32, 32, 30))
    # 60 voxels into 32, the same factor on both axes.
    np.testing.assert_allclose(geometry.voxel_sizes(to), (60 / 32, 60 / 32, 1.0))


def test_a_given_spacing_is_kept_and_a_cut_head_is_logged(caplog):
    _, to = geometry.head_grid((box_head(), np.eye(4)), (32, 32, 30), spacing_mm=(1.5, 1.5))
    np.testing.assert_allclose(geometry.voxel_sizes(to), (1.5, 1.5, 1.0))
    assert "1.25 times larger" in caplog.text


def test_the_area_that_is_asked_for_is_measured_in_the_world():
    volume = box_head(), affine_of((2.0, 1.5, 1.0))
    # A slice of the head has 40 * 60 voxels of 3 mm^2, 60 % of the frame's 100 * 60 pixels of 2 mm^2.
    options = {"spacing_mm": (1.0, 2.0), "min_head_area": 0.6}
    _, to = geometry.head_grid(volume, (100, 60, 15), **options)
    np.testing.assert_allclose(geometry.voxel_sizes(to), (1.0, 2.0, 2.0))
    with pytest.raises(InputError, match=r"at most 60\.00%"):
        geometry.head_grid(volume, (100, 60, 15), **{**options, "min_head_area": 0.601})


def test_the_frame_is_256_by_256_by_48_voxels_around_the_slices_that_are_kept():
    image = box_head(neck=False)
    image[60:64, 10:70, 39] = 100  # the last slice is the widest
    image[50:78, 30:34, 9] = image[2:50, 30:34, 40] = 100  # what sticks out, one slice below and above
    shape, to = geometry.head_grid((image, np.eye(4)), min_head_area=0.03)
    assert shape == (256, 256, 48)
    np.testing.assert_allclose(geometry.voxel_sizes(to), (1, 1, 30 / 48))
    np.testing.assert_allclose(affines.apply_affine(to, (127.5, 127.5, 23.5)), (41.5, 39.5, 24.5))


def test_a_head_that_just_fits_is_not_called_cut(caplog):
    geometry.head_grid((box_head(), np.eye(4)), (40, 60, 30), spacing_mm=(1, 1, 1))
    assert not caplog.text


def test_three_spacings_take_contiguous_slices_around_the_middle():
    _, to = geometry.head_grid((box_head(), np.eye(4)), (64, 64, 8), spacing_mm=(1, 1, 1))
    # The kept slices 10..39 are centred on 24.5; eight slices of 1 mm are 21..28.
    np.testing.assert_allclose(affines.apply_affine(to, (0, 0, 0))[2], 21)


def test_a_head_on_too_few_pixels_is_an_error():
    with pytest.raises(InputError, match="min_head_area"):
        geometry.head_grid((box_head(), np.eye(4)), (64, 64, 10), min_head_area=0.9)


def test_a_head_longer_than_the_grid_along_z_is_told(caplog):
    # 30 slices of 2 mm into 8 of 1.5 mm
    geometry.head_grid((box_head(), affine_of((1, 1, 2))), (64, 64, 8), spacing_mm=(1, 1, 1.5))
    assert "5.00 times longer than the grid along z and is cut" in caplog.text
    caplog.clear()
    geometry.head_grid((box_head(), np.eye(4)), (64, 64, 60), spacing_mm=(1, 1, 1))
    assert "cut" not in caplog.text


def test_slices_padded_to_a_square_show_the_same_field_of_view():
    affine = affine_of((1.0, 1.5, 3.0), (-10, 4, 7))
    shape, to = geometry.plane_grid((20, 10, 4), affine, (10, 5))
    # 20 mm and 15 mm: a square of 20 mm in 10 and in 5 pixels.
    assert shape == (10, 5, 4)
    np.testing.assert_allclose(geometry.voxel_sizes(to), (2.0, 4.0, 3.0))
    # The first centres: half a pixel into the square, which begins 0.5 mm before the first voxel's centre
    # along x and, padded by 2.5 mm, 3.25 mm before it along y.
    np.testing.assert_allclose(to[:3, 3], (-10 - 0.5 + 1, 4 - 0.75 - 2.5 + 2, 7))
    # Along y it is the longer side that counts as well, and a longer z has no say.
    _, to = geometry.plane_grid((10, 20, 90), affine, (10, 10))
    np.testing.assert_allclose(geometry.voxel_sizes(to), (3.0, 3.0, 3.0))
    with pytest.raises(InputError, match="size is a sequence of 2"):
        geometry.plane_grid((20, 10, 4), affine, (10, 5, 4))


def test_the_head_grid_wants_canonical_volumes():
    with pytest.raises(InputError, match="canonical.*LAS.*to_canonical"):
        geometry.head_grid((box_head(), np.diag([-1.0, 1, 1, 1])), (64, 64, 10))


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
class TestOnRealScans:
    def scan(self, name):
        return io.read_volume(os.path.join(os.environ["MRSEG_DATA"], name))

    @pytest.mark.parametrize("sequence", ["T1W", "T2W", "FLAIR"])
    def test_the_head_grid_frames_a_thick_sliced_head(self, sequence):
        volume = self.scan(f"open_ms/patient04/study1_{sequence}.nii.gz")
        canonical = geometry.to_canonical(volume)
        assert np.array_equal(geometry.from_canonical(canonical[0], volume[0].shape, volume[1]), volume[0])
        shape, affine = geometry.head_grid(canonical)
        mask = geometry.head_mask(canonical[0]).astype(np.uint8)
        framed = geometry.resample((mask, canonical[1]), shape, affine, order=0)
        whole_ml = mask.sum() * np.prod(geometry.voxel_sizes(canonical[1])) / 1000
        framed_ml = framed.sum() * np.prod(geometry.voxel_sizes(affine)) / 1000
        # A head above the jaw has 2 to 4 litres; only end slices under 5 % of the frame may be lost.
        assert 2000 < whole_ml < 4000
        assert framed_ml > 0.95 * whole_ml

    def test_the_three_sequences_of_a_session_overlap_in_the_world(self):
        t1, flair = (self.scan(f"open_ms/patient01/study1_{s}.nii.gz") for s in ("T1W", "FLAIR"))
        moved = geometry.resample(flair, t1[0].shape, t1[1])
        masks = [geometry.head_mask(image) for image in (t1[0], moved)]
        dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
        # Scanned in one session, aligned in the world: the same head, up to the different slabs.
        assert dice > 0.9

    def test_colin27_fits_the_papers_grid_at_its_own_resolution(self):
        canonical = geometry.to_canonical(self.scan("colin27/T1.nii.gz"))
        shape, affine = geometry.head_grid(canonical)
        assert shape == (256, 256, 48)
        # 1 mm in plane as the scan; 181 slices at most, spread over 48.
        assert geometry.voxel_sizes(affine)[:2] == pytest.approx((1.0, 1.0))
        assert 2.5 < geometry.voxel_sizes(affine)[2] <= 181 / 48


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.tuples(*[st.integers(1, 60)] * 3), st.sampled_from([0, 1]))
def test_aligned_grids_are_sampled_as_scipy_samples_them(seed, shape, order):
    rng = np.random.default_rng(seed)
    # drawn, not chosen: half-way between two voxels, SciPy's rounding decides for one of them
    steps, shift, to_shape = rng.uniform(0.3, 4, 3), rng.uniform(-6, 6, 3), rng.integers(1, 40, 3)
    array = np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = shift
    step = np.round(affine, 9)
    blurred = array
    if order:
        sigma = np.sqrt(np.maximum(np.diag(step)[:3] ** 2 - 1, 0)) / math.sqrt(8 * math.log(2))
        sigma[np.diag(step)[:3] < 1.001] = 0
        blurred = ndimage.gaussian_filter(array, sigma, mode="nearest")
    expected = ndimage.affine_transform(
        blurred, np.diag(step)[:3], step[:3, 3], output_shape=tuple(to_shape), order=order, mode="nearest"
    )
    made = geometry.resample((array, np.eye(4)), to_shape, affine, order=order, fill=-1e6)
    inside = made > -1e5
    if order == 0:
        np.testing.assert_array_equal(made[inside], expected[inside])
    else:  # float32 of about 200, a few dozen terms
        np.testing.assert_allclose(made[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize(("order", "expected"), [(0, [3, 5]), (1, [2.75, 4.75])])
def test_aligned_grids_take_the_quick_way(order, expected, monkeypatch):
    monkeypatch.setattr(ndimage, "affine_transform", None)
    monkeypatch.setattr(ndimage, "gaussian_filter", None)  # blurs whole volumes
    ramp = np.arange(8, dtype=np.float32).reshape(8, 1, 1)
    made = geometry.resample((ramp, np.eye(4)), (4, 1, 1), affine_of((2, 1, 1), (0.75, 0, 0)), order=order)
    # Read at 0.75, 2.75, 4.75 and 6.75; away from the ends a symmetric blur leaves a ramp as it is.
    np.testing.assert_allclose(made.ravel()[1:3], expected, atol=0.01)


def test_an_infinite_voxel_spoils_its_neighbours_alone():
    array = np.ones((40, 8, 8), np.float32)
    array[3, 3, 3] = np.inf
    moved = np.diag([1.0, 1.0, 1.0, 1.0])
    moved[0, 3] = 0.5
    made = geometry.resample((array, np.eye(4)), (40, 8, 8), moved)
    assert np.isfinite(made[6:]).all() and not np.isfinite(made[3, 3, 3])
