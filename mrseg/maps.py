"""Slabs of probabilities become maps on the scan's own grid: labels, probabilities, uncertainty."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import affines, orientations

from mrseg.data.geometry import Grid, canonical_grid, grid_distance_mm, resample
from mrseg.data.patches import Sampling
from mrseg.inference import Slab, slab_axis, slab_planes, working_mb
from mrseg.passes import DEFAULT, Inference

_THICKNESS = 16  # planes of the scan's grid that are resampled at a time
_SAME_GRID_MM = 1e-5


@dataclass(frozen=True)
class Maps:
    """What was found, on the scan's own grid and in its orientation.

    Attributes:
        labels: (x, y, z) uint8.
        affine: the scan's own, 4x4.
        probabilities: (x, y, z, classes) float32, or None if not asked for.
        uncertainty: (x, y, z) float32, or None if not asked for.
    """

    labels: np.ndarray
    affine: np.ndarray
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None

    def label_image(self) -> nib.Nifti1Image:
        """The labels as a NIfTI image of uint8."""
        image = nib.Nifti1Image(self.labels, self.affine)
        image.header.set_xyzt_units("mm")
        return image


def collect(
    slabs: Iterable[Slab],
    grid: Grid,
    native: Grid,
    *,
    num_classes: int,
    uncertainty: str | None = None,
    probabilities: bool = False,
    scratch: str | Path | None = None,
) -> Maps:
    """Takes slabs as they are finished and keeps of each what is asked for.

    Args:
        slabs: of the working grid, in order, as `mrseg.inference.predict_slabs` yields them.
        grid: shape and affine of the working grid, RAS+.
        native: shape and affine of the scan, in any orientation.
        num_classes: channels that are classes.
        uncertainty: None, ``entropy``, or ``mirror`` or ``dropout`` for the channel after the classes.
        probabilities: keep the probabilities of every class.
        scratch: folder for a temporary file that holds them instead of the memory; it goes with the array.

    Returns:
        The maps. The largest interpolated probability gives the label; among equals the lower class. Voxels
        outside the working grid are class 0, with certainty.
    """
    shape, affine = native
    labels = np.zeros(shape, np.uint8)
    to_ras = orientations.io_orientation(affine)
    kept = _array((*shape, num_classes), scratch) if probabilities else None
    uncertain = np.zeros(shape, np.float32) if uncertainty else None

    def planes(array: np.ndarray, slab: Slab) -> np.ndarray:
        """Where a slab lies in an array of the scan's orientation: a view in RAS+."""
        view = orientations.apply_orientation(array, to_ras)
        return view[
            (slice(None),) * slab.axis + (slice(slab.first, slab.first + slab.values.shape[slab.axis]),)
        ]

    for slab in native_slabs(slabs, grid, native, num_classes):
        classes = slab.values[..., :num_classes]
        planes(labels, slab)[...] = most_probable(classes)
        if kept is not None:
            planes(kept, slab)[...] = classes
        if uncertain is not None:
            planes(uncertain, slab)[...] = (
                entropy(classes) if uncertainty == "entropy" else slab.values[..., num_classes]
            )
    return Maps(labels, affine, kept, uncertain)


def native_slabs(slabs: Iterable[Slab], grid: Grid, native: Grid, num_classes: int) -> Iterator[Slab]:
    """Slabs on the scan's grid turned to RAS+, each made once the working slabs that it lies in are there.

    Where both grids are one, the slabs pass as they are; else every channel is interpolated as
    `mrseg.data.resample` does it, with the same values as if the whole volume were there.

    Args:
        slabs: of the working grid, in order.
        grid: shape and affine of the working grid, RAS+.
        native: shape and affine of the scan, in any orientation.
        num_classes: channels that are classes; outside the working grid, class 0 is 1 and the others are 0.
    """
    shape, affine = canonical_grid(native)
    if grid_distance_mm(grid[0], grid[1], shape, affine) < _SAME_GRID_MM:
        yield from slabs
        return
    slabs = iter(slabs)
    slab = next(slabs)
    axis, channels = slab.axis, slab.values.shape[-1]
    step = np.linalg.inv(grid[1]) @ affine
    window, low, there = np.array(slab.values), 0, slab.values.shape[axis]  # planes low ... there - 1
    for first in range(0, shape[axis], _THICKNESS):
        size = list(shape)
        size[axis] = min(_THICKNESS, shape[axis] - first)
        begin, end = _needed(step, axis, first, size, grid[0][axis])
        parts = [_cut(window, axis, max(0, begin - low), None)]
        low = max(low, begin)
        while there < end:
            slab = next(slabs)
            there = slab.first + slab.values.shape[axis]
            parts.append(np.array(_cut(slab.values, axis, max(0, low - slab.first), None)))
        window = np.concatenate(parts, axis) if len(parts) > 1 else parts[0]
        source = _cut(window, axis, 0, end - low)
        made = np.empty((*size, channels), np.float32)
        for c in range(channels):
            made[..., c] = resample(
                (source[..., c], _moved(grid[1], axis, low)),
                size,
                _moved(affine, axis, first),
                fill=float(c == 0),
            )
        yield Slab(axis, first, made)
    for _ in slabs:  # planes beyond the scan are computed all the same, so that their errors are told
        pass


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Position of the largest value along the last axis, the first among equals; uint8."""
    labels = np.zeros(probabilities.shape[:-1], np.uint8)
    best = probabilities[..., 0].copy()
    for c in range(1, probabilities.shape[-1]):
        labels[probabilities[..., c] > best] = c
        np.maximum(best, probabilities[..., c], out=best)
    return labels


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats over log(classes): 0 where one class is certain, 1 where all are equally probable.

    Args:
        probabilities: (..., classes) in [0, 1]. They are divided by their sum first, which a sigmoid head
            does not make 1; where all are 0 nothing is known, and the entropy is 1.

    Returns:
        (...) float32 in [0, 1]; 0 where there is one class alone.
    """
    classes = probabilities.shape[-1]
    if classes == 1:
        return np.zeros(probabilities.shape[:-1], np.float32)
    total = probabilities.sum(-1)
    # -sum(q log q) with q = p / t is log(t) - sum(p log p) / t.
    weighted = np.zeros_like(total)
    for c in range(classes):
        p = probabilities[..., c]
        weighted += p * np.log(np.maximum(p, 1e-30))
    known = total > 0
    total[~known] = 1
    result = (np.log(total) - weighted / total) / math.log(classes)
    result[~known] = 1
    return np.clip(result, 0, 1, out=result)


def memory_mb(
    grid_shape: Sequence[int],
    native: Grid,
    sampling: Sampling,
    num_classes: int,
    *,
    inference: Inference = DEFAULT,
    probabilities: bool = False,
    resampled: bool = True,
) -> float:
    """Memory in MB (10^6 bytes) from the preprocessed image to the maps, scan and image included.

    The network and TensorFlow come on top.

    Args:
        grid_shape: voxels of the working grid.
        native: shape and affine of the scan.
        sampling: patch shape and overlap.
        num_classes: channels of the network's output.
        inference: blending, overlap, mirrors and samples.
        probabilities: whether those of all classes are kept in memory.
        resampled: whether the working grid is another than the scan's own, turned to RAS+.
    """
    voxels, working = math.prod(native[0]), math.prod(grid_shape)
    channels = num_classes + inference.variance
    padded = [max(size, patch) for size, patch in zip(grid_shape, sampling.patch_shape, strict=True)]
    axis = slab_axis(padded, sampling.patch_shape)
    planes = slab_planes(grid_shape, sampling)
    kept = voxels * (1 + 4 * bool(inference.uncertainty) + 4 * num_classes * bool(probabilities))
    plane = working // grid_shape[axis]
    native_plane = voxels // canonical_grid(native)[0][axis]
    # What argmax and entropy hold beside a slab; the window, its successor, a channel of it as it is blurred.
    thickness = max(_THICKNESS, planes) if resampled else planes
    taken = 4 * native_plane * 4 * thickness
    if resampled:
        taken += 4 * plane * (2 * planes + 2 * _THICKNESS) * (channels + 3)
        taken += 4 * native_plane * _THICKNESS * (channels + 3)
    blending = working_mb(grid_shape, sampling, num_classes, inference)
    return blending + (kept + taken + 4 * (voxels + working)) / 1e6


def _needed(step: np.ndarray, axis: int, first: int, size: list[int], planes: int) -> tuple[int, int]:
    """Working planes (from, to) that planes of the scan's grid are interpolated from, the blur included."""
    corners = list(itertools.product(*((0, n - 1) for n in size)))
    at = np.array(corners, float)
    at[:, axis] += first
    along = affines.apply_affine(step, at)[:, axis]
    # resample blurs with sigma = sqrt(f^2 - 1) / 2.355 < f / 2, which SciPy cuts at 4 sigma.
    margin = 1 + math.ceil(2 * np.linalg.norm(step[axis, :3]))
    begin = min(max(0, math.floor(along.min()) - margin), planes - 1)
    end = max(min(planes, math.ceil(along.max()) + margin + 1), begin + 1)
    return begin, end


def _cut(array: np.ndarray, axis: int, begin: int, end: int | None) -> np.ndarray:
    return array[(slice(None),) * axis + (slice(begin, end),)]


def _moved(affine: np.ndarray, axis: int, planes: int) -> np.ndarray:
    """The affine of a grid that begins so many planes later."""
    moved = np.array(affine, dtype=float)
    moved[:3, 3] += planes * moved[:3, axis]
    return moved


def _array(shape: tuple[int, ...], scratch: str | Path | None) -> np.ndarray:
    """Zeros in memory, or in a nameless file of ``scratch``; class by class, as NIfTI lays them out."""
    if scratch is None:
        return np.zeros(shape, np.float32, order="F")
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, np.float32, "w+", shape=shape, order="F")
