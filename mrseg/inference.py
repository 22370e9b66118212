"""Class probabilities of a volume from overlapping, blended patches, slab by slab (mecheter2023 section 3.4).

A slab is a number of whole planes across one axis. Patches come in the order of that axis; planes that no
later patch can touch are finished, handed on and freed::

    axis ->    [patch 1      ]
                      [patch 2      ]
                             [patch 3      ]
               ^^^^^^^ finished once patch 1 is done

so that the probabilities held at any time are about a patch thick, however long the volume is.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mrseg.data.patches import Sampling, pad_to, patch_starts
from mrseg.passes import BATCH_SIZE, DEFAULT, Forward, Inference, ask

log = logging.getLogger(__name__)


class Slab(NamedTuple):
    """Finished planes of a volume.

    Attributes:
        axis: across the planes.
        first: index of the first plane.
        values: (x, y, z, channels) float32, short along ``axis``; valid until the next slab is asked for.
    """

    axis: int
    first: int
    values: np.ndarray


def predict_slabs(
    forward: Forward,
    image: np.ndarray,
    sampling: Sampling,
    *,
    num_classes: int,
    inference: Inference = DEFAULT,
    progress: bool = False,
) -> Iterator[Slab]:
    """Slides a network over a volume and hands on what is finished.

    Args:
        forward: from (batch, *patch, channels) to (batch, *patch, num_classes), as `compile_forward` gives.
        image: (x, y, z) float32, preprocessed. A volume smaller than a patch is padded with 0 and cropped
            back.
        sampling: patch shape and overlap.
        num_classes: channels of the output.
        inference: blending, overlap, mirrors and samples. The last batch is filled up with zeros.
        progress: show a bar.

    Yields:
        Slabs in order along ``slab_axis``, which hold every plane of the volume once. Channels are the
        classes and, where ``inference.variance``, one more.

    Raises:
        InputError: the network gave another shape, a NaN, or values outside [0, 1].
    """
    padded, inside = pad_to(image, sampling.patch_shape)
    if padded.shape != image.shape:
        log.info("volume of %s voxels padded to %s to hold a patch", image.shape, padded.shape)
    axis = slab_axis(padded.shape, sampling.patch_shape)
    starts, batch_size = _starts(padded.shape, sampling, inference)
    profiles = [_profile(size, inference.blending) for size in sampling.patch_shape]
    sums = [_sum_of_profiles(starts[:, a], profiles[a], padded.shape[a]) for a in range(3)]
    row, column = (a for a in range(3) if a != axis)
    channels = num_classes + inference.variance
    weight = np.repeat(np.outer(profiles[row], profiles[column]), channels, axis=1)
    scale = np.repeat(1 / np.outer(sums[row], sums[column]), channels, axis=1).astype(np.float32)
    depth = _depth(starts[:, axis], batch_size, sampling.patch_shape[axis])
    # Planes base, base + 1, ... as (row, column * channels): long rows, which NumPy adds fast.
    buffer = np.zeros((depth, padded.shape[row], padded.shape[column] * channels), np.float32)
    base = 0

    def finished(planes: int) -> Iterator[Slab]:
        for i in range(planes):
            buffer[i] *= scale
            buffer[i] *= np.float32(1 / sums[axis][base + i])
        values = buffer[:planes].reshape(planes, padded.shape[row], padded.shape[column], channels)
        values = np.moveaxis(values, 0, axis)
        first = max(0, inside[axis].start - base)
        last = min(planes, inside[axis].stop - base)
        if first < last:
            own = tuple(slice(first, last) if a == axis else inside[a] for a in range(3))
            yield Slab(axis, base + first - inside[axis].start, values[own])
        for i in range(depth):
            buffer[i] = buffer[i + planes] if i + planes < depth else 0

    batches = range(0, len(starts), batch_size)
    for begin in tqdm(batches, desc="patches", unit="batch", disable=not progress, leave=False):
        some = starts[begin : begin + batch_size]
        if some[0][axis] > base:
            yield from finished(some[0][axis] - base)
            base = int(some[0][axis])
        answers = ask(forward, padded, some, sampling, inference, num_classes, batch_size)
        for start, answer in zip(some, answers, strict=True):
            _add(
                buffer,
                start[[row, column]],
                np.moveaxis(answer, axis, 0),
                weight,
                profiles[axis],
                start[axis] - base,
            )
    yield from finished(padded.shape[axis] - base)


def predict_probabilities(
    forward: Forward,
    image: np.ndarray,
    sampling: Sampling,
    *,
    num_classes: int,
    inference: Inference = DEFAULT,
    progress: bool = False,
) -> np.ndarray:
    """All class probabilities of a volume in one array: `predict_slabs`, put together.

    Returns:
        (x, y, z, num_classes) float32, summing to 1 where the network's channels do.
    """
    whole = np.empty((*image.shape, num_classes), np.float32)
    for slab in predict_slabs(
        forward, image, sampling, num_classes=num_classes, inference=inference, progress=progress
    ):
        planes = slice(slab.first, slab.first + slab.values.shape[slab.axis])
        np.moveaxis(whole, slab.axis, 0)[planes] = np.moveaxis(slab.values, slab.axis, 0)[..., :num_classes]
    return whole


def slab_axis(shape: Sequence[int], patch_shape: Sequence[int]) -> int:
    """The axis along which a patch is thinnest in relation to the volume, which makes the slabs smallest."""
    shares = [min(1.0, patch / size) for patch, size in zip(patch_shape, shape, strict=True)]
    return shares.index(min(shares))


def working_mb(
    shape: Sequence[int], sampling: Sampling, num_classes: int, inference: Inference = DEFAULT
) -> float:
    """Memory in MB (10^6 bytes) that blending takes at most, without the image, the network and TensorFlow.

    Args:
        shape: voxels of the preprocessed image.
        sampling: patch shape and overlap.
        num_classes: channels of the network's output.
        inference: blending, overlap, mirrors and samples.
    """
    given = math.prod(shape)
    shape = [max(size, patch) for size, patch in zip(shape, sampling.patch_shape, strict=True)]
    axis = slab_axis(shape, sampling.patch_shape)
    batch_size = inference.batch_size or BATCH_SIZE
    channels = num_classes + inference.variance
    plane = math.prod(shape) // shape[axis] * channels
    depth = slab_planes(shape, sampling, inference)
    patch = math.prod(sampling.patch_shape)
    # The last answer and this one; where there are several passes also first, total, squares, difference, mean.
    answers = (7 if inference.several else 2) * num_classes + channels
    padded = math.prod(shape) if math.prod(shape) > given else 0
    floats = (depth + 5) * plane + batch_size * patch * (answers + 3 * sampling.channels) + padded
    return 4 * floats / 1e6


def whole(sampling: Sampling, sizes: Sequence[int]) -> Sampling:
    """The sampling whose one patch, or whose slices, have these sizes (two of them for slices)."""
    left = iter(sizes)
    x, y, z = (1 if size == 1 else next(left) for size in sampling.patch_shape)
    return dataclasses.replace(sampling, patch_shape=(x, y, z), overlap=0.0)


def slab_planes(shape: Sequence[int], sampling: Sampling, inference: Inference = DEFAULT) -> int:
    """Planes of the thickest slab that `predict_slabs` can yield for an image of ``shape``."""
    shape = [max(size, patch) for size, patch in zip(shape, sampling.patch_shape, strict=True)]
    starts, batch_size = _starts(shape, sampling, inference)
    axis = slab_axis(shape, sampling.patch_shape)
    return _depth(starts[:, axis], batch_size, sampling.patch_shape[axis])


def _starts(shape: Sequence[int], sampling: Sampling, inference: Inference) -> tuple[np.ndarray, int]:
    """First voxels of the patches, those of lower planes first, and how many go into one call."""
    overlap = sampling.overlap if inference.overlap is None else inference.overlap
    starts = patch_starts(shape, sampling.patch_shape, overlap)
    order = np.argsort(starts[:, slab_axis(shape, sampling.patch_shape)], kind="stable")
    return starts[order], inference.batch_size or BATCH_SIZE


def _depth(firsts: np.ndarray, batch_size: int, thickness: int) -> int:
    """Planes that the patches of one batch touch at most."""
    return max(
        int(some[-1] - some[0]) + thickness
        for some in (firsts[i : i + batch_size] for i in range(0, len(firsts), batch_size))
    )


def _add(
    buffer: np.ndarray,
    corner: np.ndarray,
    patch: np.ndarray,
    weight: np.ndarray,
    profile: np.ndarray,
    first: int,
) -> None:
    """Adds a weighted patch (planes, rows, columns, channels), plane by plane: what fits into the cache."""
    planes, rows, columns, channels = patch.shape
    target = buffer[
        first : first + planes,
        corner[0] : corner[0] + rows,
        corner[1] * channels : (corner[1] + columns) * channels,
    ]
    weighted = np.empty((rows, columns * channels), np.float32)
    for plane, share in enumerate(profile):
        np.multiply(patch[plane].reshape(rows, -1), weight, out=weighted)
        weighted *= share
        target[plane] += weighted


def _profile(size: int, blending: str) -> np.ndarray:
    """Weight of a patch along one axis: all 1, or a Gaussian about the centre of sigma size / 4.

    A patch's weight is the product over its axes, so that the weights of all patches sum to the product of
    three sums along the axes.
    """
    if blending == "constant":
        return np.ones(size, np.float32)
    position = (np.arange(size) - (size - 1) / 2.0) / (size / 4.0)
    return np.exp(-0.5 * position**2).astype(np.float32)


def _sum_of_profiles(starts: np.ndarray, profile: np.ndarray, size: int) -> np.ndarray:
    total = np.zeros(size)
    for start in np.unique(starts):
        total[start : start + len(profile)] += profile
    return total
