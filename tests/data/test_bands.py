from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg.data.bands import Bands, window_matrix


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 12), st.integers(0, 1000))
def test_blocks_multiply_as_the_whole_matrix_does_along_every_axis(size, new_size, reach, seed):
    rng = np.random.default_rng(seed)
    near = np.abs(np.linspace(0, size - 1, new_size)[:, None] - np.arange(size)) <= reach
    matrix = np.where(near, rng.normal(size=near.shape), 0)
    for axis in range(3):
        shape = [2, 3, 4]
        shape[axis] = size
        array = rng.normal(size=shape)
        expected = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
        made = Bands.of(matrix, np.float64).along(array, axis)
        assert made.shape == expected.shape
        np.testing.assert_allclose(made, expected, atol=1e-12 * max(1, size))


def test_a_window_s_matrix_mirrors_at_the_ends():
    # window 1 2 1 over a b c: a + 2a + b, a + 2b + c, b + 2c + c
    assert window_matrix((1, 2, 1), 3).tolist() == [[3, 1, 0], [1, 2, 1], [0, 1, 3]]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_window_longer_than_the_line_still_has_rows_of_its_sum(size):
    np.testing.assert_allclose(window_matrix(np.full(17, 1 / 17), size).sum(axis=1), 1)
