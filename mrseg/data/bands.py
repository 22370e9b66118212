"""Banded matrices along an axis of an array, as small matrix products: smoothing windows, linear resampling.

A window of 17 weights costs less as a product with blocks of 16 rows than as a loop over the weights: the
blocks stay in the processor's cache. Every product is too small for BLAS to start threads of its own, whose
waiting costs more than they bring where other work runs; `shared` deals blocks out instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import ndimage

T = TypeVar("T")

_PRODUCTS = 1 << 18  # of numbers in one call, from which OpenBLAS would start its threads


@dataclass(frozen=True)
class Bands:
    """The blocks of a matrix (m, n) whose rows are 0 away from a band.

    Attributes:
        shape: (m, n).
        blocks: first and last row, first and last column, entries (rows, columns).
    """

    shape: tuple[int, int]
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries."""
        return self.blocks[0][2].dtype

    @classmethod
    def of(cls, matrix: np.ndarray, dtype: type, rows: int = 16) -> Bands:
        """Cuts a matrix (m, n) into blocks of so many rows: larger ones, more zeros, fewer calls."""
        blocks = []
        for first in range(0, len(matrix), rows):
            some = matrix[first : first + rows]
            used = np.flatnonzero(some.any(axis=0))
            columns = slice(used[0], used[-1] + 1) if used.size else slice(0, 1)
            entries: np.ndarray = np.ascontiguousarray(some[:, columns], dtype=dtype)
            blocks.append((slice(first, first + len(some)), columns, entries))
        return cls((matrix.shape[0], matrix.shape[1]), tuple(blocks))

    def on_rows(self, array: np.ndarray, out: np.ndarray) -> None:
        """``matrix @ array`` for an array (n, k), into ``out`` (m, k)."""
        for rows, columns, entries in self.blocks:
            some = max(1, _PRODUCTS // entries.size)
            for at in range(0, array.shape[1], some):
                np.matmul(entries, array[columns, at : at + some], out=out[rows, at : at + some])

    def on_columns(self, array: np.ndarray, out: np.ndarray) -> None:
        """``array @ matrix.T`` for an array (k, n), into ``out`` (k, m)."""
        for rows, columns, entries in self.blocks:
            some = max(1, _PRODUCTS // entries.size)
            for at in range(0, len(array), some):
                np.matmul(array[at : at + some, columns], entries.T, out=out[at : at + some, rows])


def multiply_axes(bands: Sequence[Bands], array: np.ndarray) -> np.ndarray:
    """A matrix for each axis times an array (x, y, z), some planes at a time.

    Args:
        bands: three, with as many columns as the array has voxels along x, y and z.
        array: C-contiguous.

    Returns:
        A new array of the same type, with as many voxels as the matrices have rows.
    """
    first, second, third = bands
    out = np.empty([one.shape[0] for one in bands], array.dtype)
    flat = array.reshape(len(array), -1)

    def work(block: tuple[slice, slice, np.ndarray]) -> None:
        rows, columns, entries = block
        planes = np.empty((len(entries), flat.shape[1]), array.dtype)
        own = Bands((len(entries), entries.shape[1]), ((slice(None), slice(None), entries),))
        own.on_rows(flat[columns], planes)
        between = np.empty((second.shape[0], array.shape[2]), array.dtype)
        for plane, target in zip(planes.reshape(-1, *array.shape[1:]), out[rows], strict=True):
            second.on_rows(plane, between)
            third.on_columns(between, target)

    shared(work, first.blocks)
    return out


def shared(work: Callable[[T], None], parts: Iterable[T]) -> None:
    """Calls ``work`` for every part, on up to four cores; each part writes what no other does."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, parts):
            pass


def window_matrix(window: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """The matrix (size, size) of a symmetric window, mirrored at the ends (``b a | a b c | c b``)."""
    return ndimage.correlate1d(np.eye(size), window, axis=0, mode="reflect")
