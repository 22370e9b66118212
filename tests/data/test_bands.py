from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg.data.bands import Bands, multiply_axes, window_matrix

SIZES = st.tuples(*[st.integers(1, 80)] * 3)


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, st.integers(0, 12), st.integers(0, 1000))
def test_blocks_multiply_as_the_whole_matrices_do(shape, new_shape, reach, seed):
    rng = np.random.default_rng(seed)
    matrices = []
    for size, new_size in zip(shape, new_shape, strict=True):
        near = np.abs(np.linspace(0, size - 1, new_size)[:, None] - np.arange(size)) <= reach
        matrices.append(np.where(near, rng.normal(size=near.shape), 0))
    array = rng.normal(size=shape)
    expected = np.einsum("ai,bj,ck,ijk->abc", *matrices, array, optimize=True)
    made = multiply_axes([Bands.of(matrix, np.float64) for matrix in matrices], array)
    np.testing.assert_allclose(made, expected, atol=1e-9)


def test_a_matrix_of_zeros_gives_zeros():
    nothing, whole = np.zeros((40, 3)), np.eye(3)
    bands = [Bands.of(matrix, np.float32) for matrix in (whole, nothing, whole)]
    assert not multiply_axes(bands, np.ones((3, 3, 3), np.float32)).any()


def test_a_window_s_matrix_mirrors_at_the_ends():
    # window 1 2 1 over a b c: a + 2a + b, a + 2b + c, b + 2c + c
    assert window_matrix((1, 2, 1), 3).tolist() == [[3, 1, 0], [1, 2, 1], [0, 1, 3]]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_window_longer_than_the_line_still_has_rows_of_its_sum(size):
    np.testing.assert_allclose(window_matrix(np.full(17, 1 / 17), size).sum(axis=1), 1)
