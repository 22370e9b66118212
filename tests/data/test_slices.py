"""Slices of unequal distances: a field that is linear in the world survives; what has no grid is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import affines

from mrseg._checks import InputError
from mrseg.data import Slices, resample_slices, stack_slices
from mrseg.data.slices import describe_steps

TILT = np.radians(18.5)
AXES = np.array([[-0.5, 0.0], [0.0, -0.7 * np.cos(TILT)], [0.0, -0.7 * np.sin(TILT)]])
GRADIENT = np.array([0.3, -1.7, 2.1])  # per mm


def slices(steps, direction=(0.0, 0.0, 1.0), shape=(4, 5)):
    """Tilted slices of the field GRADIENT @ world + 5."""
    along = np.concatenate([[0.0], np.cumsum(steps)])
    origins = np.array([10.0, -20.0, 30.0]) + along[:, None] * np.array(direction)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = origins + (index @ AXES.T)[:, :, None]  # (x, y, n, 3)
    return Slices("ct", (world @ GRADIENT + 5).astype(np.float32), AXES, origins), world


def field(volume):
    """What the field is at every voxel of the volume's own grid."""
    index = np.stack(np.meshgrid(*map(np.arange, volume[0].shape), indexing="ij"), axis=-1)
    return affines.apply_affine(volume[1], index) @ GRADIENT + 5


def test_even_steps_become_a_sheared_affine_that_puts_every_voxel_where_its_slice_is():
    stack, world = slices([3.0] * 6)
    array, affine = stack_slices(stack)
    assert array is stack.array
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)
    np.testing.assert_allclose(affines.apply_affine(affine, index), world, atol=1e-9)
    # The tilt: the step across the slices is not at a right angle to the step down them.
    assert affine[:3, 1] @ affine[:3, 2] == pytest.approx(-0.7 * np.sin(TILT) * 3.0)


def test_uneven_steps_are_refused_with_the_steps_there_are():
    with pytest.raises(InputError, match=r"2 of 4 mm, 1 of 1 mm, 2 of 7 mm \(.*--resample-spacing"):
        stack_slices(slices([4.0, 4.0, 1.0, 7.0, 7.0])[0])


@pytest.mark.parametrize("off_mm", [0.0, 0.009])
def test_rounding_of_positions_within_the_tolerance_is_no_unevenness(off_mm):
    stack_slices(slices([3.0 + off_mm, 3.0 - off_mm, 3.0])[0])


def test_positions_rounded_to_a_decimal_need_a_tolerance_that_is_asked_for():
    stack, _ = slices([1.2, 1.3, 1.2, 1.3])  # steps of 1.25 mm
    with pytest.raises(InputError):
        stack_slices(stack)
    assert stack_slices(stack, tolerance_mm=0.051)[1][2, 2] == pytest.approx(1.25)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.3, 9.0), min_size=1, max_size=8),
    st.one_of(st.none(), st.floats(0.2, 0.999)),
    st.sampled_from([(0.0, 0.0, 1.0), (0.0, -0.6, 0.8)]),
)
def test_a_linear_function_of_the_world_is_reproduced_exactly(steps, part, direction):
    stack, _ = slices(steps, direction)
    length = float(np.sum(steps))
    spacing = None if part is None else part * length
    volume = resample_slices(stack, spacing)
    used = np.median(steps) if spacing is None else spacing
    np.testing.assert_allclose(np.linalg.norm(volume[1][:3, 2]), used)
    assert -1e-5 * used <= length - (volume[0].shape[2] - 1) * used < used * (1 + 1e-5)
    # float32 holds values of some hundreds to 3e-5.
    np.testing.assert_allclose(volume[0], field(volume), atol=5e-4)


def test_a_slice_on_the_new_grid_is_kept_bit_for_bit():
    stack, _ = slices([2.0, 1.0, 3.0])
    array, _ = resample_slices(stack, 1.0)
    assert array.shape[2] == 7
    for new, old in ((0, 0), (2, 1), (3, 2), (6, 3)):
        assert np.array_equal(array[:, :, new], stack.array[:, :, old])


def test_values_between_two_slices_are_weighted_by_distance():
    origins = np.array([[0, 0, 0], [0, 0, 1.0], [0, 0, 5.0]])
    stack = Slices(
        "ct", np.array([0.0, 10.0, 50.0], np.float32).reshape(1, 1, 3) ** 2, np.eye(3)[:, :2], origins
    )
    array, affine = resample_slices(stack, 2.0)
    # 2 mm lies a quarter of the way from 1 (100) to 5 (2500): 700; 4 mm three quarters: 1900.
    np.testing.assert_allclose(array[0, 0], [0, 700, 1900])
    np.testing.assert_array_equal(affine, np.diag([1, 1, 2, 1]))


def test_padding_is_not_blended_into_what_was_measured():
    """A tenth of -3024 would make air of soft tissue."""
    origins = np.array([[0, 0, 0], [0, 0, 10.0], [0, 0, 15.0]])
    values = np.array([[-3024, -3024], [40, -3024], [40, -3024]], np.float32).T.reshape(2, 1, 3)
    stack = Slices("ct", values, np.eye(3)[:, :2], origins, padding=-3024.0)
    array, _ = resample_slices(stack, 1.0)
    np.testing.assert_array_equal(array[0, 0], [-3024] * 6 + [40] * 10)
    np.testing.assert_array_equal(array[1, 0], [-3024] * 16)


def test_what_looks_like_missing_slices_is_counted_and_logged(caplog):
    stack, _ = slices([3.0, 3.0, 9.0, 3.0])
    assert "2 between slices 3 and 4" in describe_steps(stack.origins_mm)
    with pytest.raises(InputError, match="missing, it seems: 2 between slices 3 and 4"):
        stack_slices(stack)
    resample_slices(stack)
    assert "missing, it seems" in caplog.text


def test_other_uneven_steps_are_not_called_missing():
    assert "missing" not in describe_steps(slices([4.22, 4.22, 1.14, 7.38, 7.38])[0].origins_mm)


def test_slices_beside_the_line_have_no_grid():
    stack, _ = slices([3.0, 3.0, 3.0])
    stack.origins_mm[1, 0] += 0.5
    with pytest.raises(InputError, match="0.5 mm beside it"):
        resample_slices(stack)
    with pytest.raises(InputError, match="0.5 mm off"):
        stack_slices(stack)


@pytest.mark.parametrize("spacing_mm", [0.0, -1.0, float("nan"), 100.0])
def test_a_spacing_is_positive_and_within_the_stack(spacing_mm):
    with pytest.raises(InputError, match="spacing_mm is above 0 and at most the stack's length, 6 mm"):
        resample_slices(slices([3.0, 3.0])[0], spacing_mm)


def test_one_slice_is_no_stack():
    for function in (stack_slices, resample_slices):
        with pytest.raises(InputError, match="two slices"):
            function(slices([])[0])
