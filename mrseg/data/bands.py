"""Banded matrices along an axis of an array, as small matrix products: smoothing windows, linear resampling.

A window of 17 weights costs a product with blocks of 32 rows less than a loop over the weights, since the
blocks stay in the processor's cache and its matrix units work on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_ROWS = 32  # of a block; larger ones multiply more zeros (and wake the threads of BLAS)


@dataclass(frozen=True)
class Bands:
    """The blocks of a matrix (m, n) whose rows are 0 away from a band.

    Attributes:
        shape: (m, n).
        blocks: first and last row, first and last column, entries (rows, columns).
    """

    shape: tuple[int, int]
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]

    @classmethod
    def of(cls, matrix: np.ndarray, dtype: type) -> Bands:
        """Cuts a matrix (m, n) into blocks of 32 rows."""
        blocks = []
        for first in range(0, len(matrix), _ROWS):
            rows = matrix[first : first + _ROWS]
            used = np.flatnonzero(rows.any(axis=0))
            columns = slice(used[0], used[-1] + 1) if used.size else slice(0, 1)
            entries: np.ndarray = np.ascontiguousarray(rows[:, columns], dtype=dtype)
            blocks.append((slice(first, first + len(rows)), columns, entries))
        return cls((matrix.shape[0], matrix.shape[1]), tuple(blocks))

    def on_rows(self, array: np.ndarray, out: np.ndarray) -> None:
        """``matrix @ array`` for an array (n, k), into ``out`` (m, k)."""
        for rows, columns, entries in self.blocks:
            np.matmul(entries, array[columns], out=out[rows])

    def on_columns(self, array: np.ndarray, out: np.ndarray) -> None:
        """``array @ matrix.T`` for an array (k, n), into ``out`` (k, m)."""
        for rows, columns, entries in self.blocks:
            np.matmul(array[:, columns], entries.T, out=out[:, rows])

    def along(self, array: np.ndarray, axis: int) -> np.ndarray:
        """The matrix times every line of an array (x, y, z) along ``axis``, in the array's type.

        Args:
            array: C-contiguous, n voxels along ``axis``.
            axis: 0, 1 or 2.

        Returns:
            A new array with m voxels along ``axis``.
        """
        shape = list(array.shape)
        shape[axis] = self.shape[0]
        out = np.empty(shape, array.dtype)
        if axis == 0:
            self.on_rows(array.reshape(len(array), -1), out.reshape(len(out), -1))
        elif axis == 1:
            for before, after in zip(array, out, strict=True):
                self.on_rows(before, after)
        else:
            self.on_columns(array.reshape(-1, array.shape[-1]), out.reshape(-1, shape[-1]))
        return out


def window_matrix(window: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """The matrix (size, size) of a symmetric window, mirrored at the ends (``b a | a b c | c b``)."""
    return ndimage.correlate1d(np.eye(size), window, axis=0, mode="reflect")
