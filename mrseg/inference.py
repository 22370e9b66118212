"""Class probabilities of a volume from overlapping, blended patches, slab by slab (mecheter2023 section 3.4).

A slab is a number of whole planes across one axis. Patches come in the order of that axis; planes that no
later patch can touch are finished, handed on and freed::

    axis ->    [patch 1      ]
                      [patch 2      ]
                             [patch 3      ]
               ^^^^^^^ finished once patch 1 is done

so that the probabilities held at any time are a patch thick, however long the volume is.
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

#: Every pooling halves; no network of the papers halves more than five times.
LARGEST_MULTIPLE = 32


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
    shares = [
        _shares(starts[:, a], _profile(sampling.patch_shape[a], inference.blending), padded.shape[a])
        for a in range(3)
    ]
    channels = num_classes + inference.variance
    depth = sampling.patch_shape[axis]
    # Long rows are added fast: slices lie one behind the other, all else as it comes from the network. With
    # slabs along the last axis a row of patches is one piece of memory, since the buffer is as deep as they.
    order = [axis, *(a for a in range(3) if a != axis)] if sampling.patch_shape[axis] == 1 else [0, 1, 2]
    size = [depth if a == axis else padded.shape[a] for a in order]
    buffer = np.zeros((*size, channels), np.float32)
    in_ras = buffer.transpose(*np.argsort(order), 3)  # planes base, base + 1, ... along the axis
    base = 0

    def finished(planes: int) -> Iterator[Slab]:
        first = max(0, inside[axis].start - base)
        last = min(planes, inside[axis].stop - base)
        if first < last:
            own = tuple(slice(first, last) if a == axis else inside[a] for a in range(3))
            yield Slab(axis, base + first - inside[axis].start, in_ras[own])

    batches = range(0, len(starts), batch_size)
    for begin in tqdm(batches, desc="patches", unit="batch", disable=not progress, leave=False):
        some = starts[begin : begin + batch_size]
        answers = ask(forward, padded, some, sampling, inference, num_classes, batch_size)
        for start, answer in zip(some, answers, strict=True):
            if start[axis] > base:
                yield from finished(int(start[axis]) - base)
                _shift(buffer, order.index(axis), int(start[axis]) - base)
                base = int(start[axis])
            corner = [start[a] - base if a == axis else start[a] for a in order]
            share = [shares[a][int(start[a])] for a in order]
            _add(buffer, corner, answer.transpose(*order, 3), share)
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
        whole[(slice(None),) * slab.axis + (planes,)] = slab.values[..., :num_classes]
    return whole


def slab_axis(shape: Sequence[int], patch_shape: Sequence[int]) -> int:
    """The axis along which a patch is thinnest in relation to the volume, which makes the slabs smallest.

    Of equals the last, along which blending is fastest.
    """
    shares = [min(1.0, patch / size) for patch, size in zip(patch_shape, shape, strict=True)]
    return 2 - shares[::-1].index(min(shares))


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
    depth = slab_planes(shape, sampling)
    patch = math.prod(sampling.patch_shape)
    # The last answer and this one; of several passes also first, total, squares, difference and mean.
    answers = (7 if inference.several else 2) * num_classes + channels
    padded = math.prod(shape) if math.prod(shape) > given else 0
    floats = (depth + 5) * plane + batch_size * patch * (answers + 3 * sampling.channels) + padded
    return 4 * floats / 1e6


def whole(sampling: Sampling, sizes: Sequence[int]) -> Sampling:
    """The sampling whose one patch, or whose slices, have these sizes (two of them for slices)."""
    left = iter(sizes)
    x, y, z = (1 if size == 1 else next(left) for size in sampling.patch_shape)
    return dataclasses.replace(sampling, patch_shape=(x, y, z), overlap=0.0)


def slab_planes(shape: Sequence[int], sampling: Sampling) -> int:
    """Planes of the thickest slab that `predict_slabs` can yield for an image of ``shape``."""
    shape = [max(size, patch) for size, patch in zip(shape, sampling.patch_shape, strict=True)]
    return sampling.patch_shape[slab_axis(shape, sampling.patch_shape)]


def _starts(shape: Sequence[int], sampling: Sampling, inference: Inference) -> tuple[np.ndarray, int]:
    """First voxels of the patches, those of lower planes first, and how many go into one call."""
    overlap = sampling.overlap if inference.overlap is None else inference.overlap
    starts = patch_starts(shape, sampling.patch_shape, overlap)
    order = np.argsort(starts[:, slab_axis(shape, sampling.patch_shape)], kind="stable")
    return starts[order], inference.batch_size or BATCH_SIZE


def _add(buffer: np.ndarray, corner: Sequence[int], patch: np.ndarray, shares: Sequence[np.ndarray]) -> None:
    """Adds a patch, weighted by the product of its shares, plane by plane: what fits into the cache."""
    planes, rows, columns, channels = patch.shape
    x, y, z = (slice(c, c + n) for c, n in zip(corner, (planes, rows, columns), strict=True))
    target = buffer[x, y].reshape(planes, rows, -1)[..., z.start * channels : z.stop * channels]
    in_plane = np.repeat(np.outer(shares[1], shares[2]), channels, axis=1)
    weighted = np.empty_like(in_plane)
    for plane, share in enumerate(shares[0]):
        np.multiply(patch[plane].reshape(rows, -1), in_plane, out=weighted)
        np.multiply(weighted, share, out=weighted)
        np.add(target[plane], weighted, out=target[plane])


def _shift(buffer: np.ndarray, place: int, planes: int) -> None:
    """Moves what lies beyond so many planes to the beginning of an axis; zeros come after it.

    Part by part, since NumPy copies what overlaps.
    """
    if place == 0:
        for i in range(len(buffer)):
            buffer[i] = buffer[i + planes] if i + planes < len(buffer) else 0
        return
    rows = buffer.reshape(*buffer.shape[:2], -1)  # the last two axes are one piece of memory
    moved = planes if place == 1 else planes * buffer.shape[3]
    for part in rows if place == 1 else rows.swapaxes(1, 2):
        part[:-moved] = part[moved:]
        part[-moved:] = 0


def _profile(size: int, blending: str) -> np.ndarray:
    """Weight of a patch along one axis: all 1, or a Gaussian about the centre of sigma size / 4."""
    if blending == "constant":
        return np.ones(size)
    position = (np.arange(size) - (size - 1) / 2.0) / (size / 4.0)
    return np.exp(-0.5 * position**2)


def _shares(starts: np.ndarray, profile: np.ndarray, size: int) -> dict[int, np.ndarray]:
    """First voxel of a patch -> its weight along one axis, over the sum of all patches' weights there.

    A patch's weight is the product over its axes and the patches are a grid, so that the sum of all weights
    is the product of three sums, and what is added up needs no division in the end.
    """
    total = np.zeros(size)
    for start in np.unique(starts):
        total[start : start + len(profile)] += profile
    return {
        int(start): (profile / total[start : start + len(profile)]).astype(np.float32)
        for start in np.unique(starts)
    }
