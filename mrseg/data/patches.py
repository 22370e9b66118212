"""Overlapping patches: where they lie, how they are cut and how a volume is padded to hold one.

Slices are patches of thickness 1: ``patch_shape=(256, 1, 256)`` means whole coronal slices for a 2-D network,
so that the 2-D and the 3-D road are one road (mecheter2023 section 3.4: 128x128x48 patches; islam2025 section
3.1.3: slices).
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mrseg._checks import IGNORE_LABEL, choice, error, positive_ints

#: Name of a plane -> the axis of RAS+ across its slices.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Sampling:
    """How a network sees a volume.

    Attributes:
        patch_shape: voxels of a patch along the RAS+ axes; a 1 makes it a slice for a 2-D network. With
            ``plane`` the two numbers of a slice will do.
        overlap: fraction of a patch shared with its neighbour along each axis, in [0, 1).
        patches_per_volume: training takes so many random patches of each volume in every epoch;
            None takes the grid of overlapping patches, the same in every epoch.
        neighbours: so many slices before and after a slice come with it as channels, 0 outside the volume: 1
            makes the "3D-like" colours n-1, n, n+1 of xu2017 (section 2.1).
        channel_mean: subtracted from each channel, last of all; empty subtracts nothing.
        plane: "axial", "coronal" or "sagittal" says by name which slices these are, on a grid in RAS+ (every
            grid of `Preprocessing` but ``acquisition``). Empty: ``patch_shape`` says it.
        class_share: of the random patches of a volume, this share lies about a voxel of a class drawn from
            ``classes``, each class as often as another, however rare; the others lie anywhere.
        classes: labels for ``class_share``; empty takes all that a volume holds. Those that a volume lacks
            are left out there.
    """

    patch_shape: tuple[int, ...]
    overlap: float = 0.5
    patches_per_volume: int | None = None
    neighbours: int = 0
    channel_mean: tuple[float, ...] = ()
    plane: str = ""
    class_share: float = 0.0
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.plane:
            self._lay_in_plane()
        positive_ints("sampling.patch_shape", self.patch_shape, 3)
        check_overlap(self.overlap)
        if sum(size == 1 for size in self.patch_shape) > 1:
            raise error(
                "sampling.patch_shape has at most one axis of size 1, the slice axis.", self.patch_shape
            )
        if self.patches_per_volume is not None:
            positive_ints("sampling.patches_per_volume", (self.patches_per_volume,), 1)
        if self.neighbours:
            positive_ints("sampling.neighbours", (self.neighbours,), 1)
            if self.slice_axis is None:
                raise error(
                    "sampling.neighbours are slices beside a slice.",
                    f"patches of {self.patch_shape}",
                    "Give patch_shape an axis of size 1, or leave neighbours out.",
                )
        if self.channel_mean and len(self.channel_mean) != self.channels:
            raise error(f"sampling.channel_mean has {self.channels} numbers.", self.channel_mean)
        self._check_classes()

    def _lay_in_plane(self) -> None:
        axis = PLANES[choice("sampling.plane", self.plane, PLANES)]
        shape = tuple(self.patch_shape)
        if len(shape) == 2:
            shape = (*shape[:axis], 1, *shape[axis:])
            object.__setattr__(self, "patch_shape", shape)
        if len(shape) != 3 or shape[axis] != 1:
            raise error(
                f"sampling.patch_shape is 1 along axis {axis}, across {self.plane} slices.",
                self.patch_shape,
                "Give the two numbers of a slice.",
            )

    def _check_classes(self) -> None:
        if not 0.0 <= self.class_share <= 1.0:
            raise error("sampling.class_share is a share of the patches, in [0, 1].", self.class_share)
        if self.class_share and self.patches_per_volume is None:
            raise error(
                "sampling.class_share is of random patches.",
                f"{self.class_share} and no patches_per_volume",
                "Set patches_per_volume.",
            )
        if any(not 0 <= value < IGNORE_LABEL for value in self.classes):
            raise error("sampling.classes holds labels from 0 to 254.", self.classes)
        if self.classes and not self.class_share:
            raise error("sampling.classes belongs to class_share.", self.classes, "Set class_share.")

    @property
    def slice_axis(self) -> int | None:
        """The axis of thickness 1, or None for a 3-D network."""
        return self.patch_shape.index(1) if 1 in self.patch_shape else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape a builder takes: the patch without its slice axis, and the channels."""
        return (*(size for size in self.patch_shape if size != 1), self.channels)

    @property
    def channels(self) -> int:
        """1, or a slice with its neighbours on both sides."""
        return 2 * self.neighbours + 1


def check_overlap(overlap: float) -> float:
    """Returns ``overlap`` if it lies in [0, 1), else raises."""
    if not isinstance(overlap, numbers.Real) or not 0.0 <= overlap < 1.0:
        raise error("overlap is the shared fraction of neighbouring patches, in [0, 1).", overlap)
    return overlap


def patch_starts(shape: Sequence[int], patch_shape: Sequence[int], overlap: float = 0.5) -> np.ndarray:
    """First voxels of the patches that cover a volume.

    The last patch of an axis ends at the volume's end, so that every voxel is covered and none is outside::

        size 10, patch 4, overlap 0.5   [0 1 2 3]
                                            [2 3 4 5]
                                                [4 5 6 7]
                                                    [6 7 8 9]

    Args:
        shape: (3,) voxels of the volume, at least those of the patch along every axis.
        patch_shape: (3,) voxels of a patch.
        overlap: shared fraction in [0, 1); the stride is ``max(1, round(patch * (1 - overlap)))``.

    Returns:
        (n, 3) int array, ordered with the last axis fastest.

    Raises:
        InputError: a patch is larger than the volume.
    """
    check_overlap(overlap)
    if any(patch > size for patch, size in zip(patch_shape, shape, strict=True)):
        raise error(
            f"A patch of {tuple(patch_shape)} voxels must fit into the volume.",
            f"a volume of {tuple(shape)} voxels",
            "Choose a smaller patch_shape or a finer grid (prediction pads small volumes by itself).",
        )
    axes = []
    for size, patch in zip(shape, patch_shape, strict=True):
        stride = max(1, round(patch * (1.0 - overlap)))
        axes.append([*range(0, size - patch, stride), size - patch])
    return np.array(list(itertools.product(*axes)), np.int64)


def random_starts(
    shape: Sequence[int], patch_shape: Sequence[int], count: int, rng: np.random.Generator
) -> np.ndarray:
    """``count`` uniformly drawn first voxels, (count, 3)."""
    patch_starts(shape, patch_shape, 0.0)  # the same refusal of patches that do not fit
    free = np.array(shape) - np.array(patch_shape)
    return rng.integers(0, free + 1, size=(count, 3))


class ClassVoxels:
    """Draws voxels of a class from a label map, in little memory: counts by plane, not the voxels.

    Args:
        labels: (x, y, z) uint8.
        classes: to draw from; empty takes all but 255.
    """

    def __init__(self, labels: np.ndarray, classes: Sequence[int] = ()) -> None:
        counts = np.array([np.bincount(plane.ravel(), minlength=256) for plane in labels])  # (x, 256)
        counts[:, IGNORE_LABEL] = 0
        held = np.flatnonzero(counts.any(axis=0))
        self.labels = labels
        self.classes = [int(c) for c in held if not len(classes) or c in classes]
        self.up_to = {c: np.cumsum(counts[:, c]) for c in self.classes}

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 3) voxels: a class first, each as likely as another, then any voxel of it."""
        voxels = np.empty((count, 3), np.int64)
        for row, value in enumerate(rng.choice(self.classes, count)):
            up_to = self.up_to[int(value)]
            rank = int(rng.integers(up_to[-1]))
            x = int(np.searchsorted(up_to, rank, side="right"))
            plane = self.labels[x]
            inside = np.flatnonzero(plane == value)[rank - (up_to[x - 1] if x else 0)]
            voxels[row] = x, *np.unravel_index(inside, plane.shape)
        return voxels


def balanced_starts(
    voxels: ClassVoxels, patch_shape: Sequence[int], count: int, rng: np.random.Generator
) -> np.ndarray:
    """First voxels (count, 3) of patches about voxels of a class, moved into the volume where they stick out.

    The class is drawn first, each as likely as another. Where the volume holds none of them, patches lie
    anywhere.
    """
    shape = voxels.labels.shape
    if not voxels.classes:
        return random_starts(shape, patch_shape, count, rng)
    centred = voxels.draw(count, rng) - np.array(patch_shape) // 2
    return np.clip(centred, 0, np.array(shape) - np.array(patch_shape))


def cut(array: np.ndarray, start: Iterable[int], patch_shape: Sequence[int]) -> np.ndarray:
    """The patch of ``array`` (x, y, z, ...) that begins at ``start``; a view, no copy."""
    return array[tuple(slice(s, s + size) for s, size in zip(start, patch_shape, strict=True))]


def cut_input(image: np.ndarray, start: Sequence[int] | np.ndarray, sampling: Sampling) -> np.ndarray:
    """What the network sees of ``image`` (x, y, z) at ``start``, before its channel means are subtracted.

    Returns:
        Array of shape ``sampling.input_shape``: the patch, or a slice and its neighbours as channels, 0 where
        these lie outside the volume.
    """
    axis = sampling.slice_axis
    if not sampling.neighbours or axis is None:
        return cut(image, start, sampling.patch_shape).reshape(sampling.input_shape)
    # All neighbours are read at once: across the last axis they share their pieces of memory.
    first = int(start[axis]) - sampling.neighbours
    inside = slice(max(0, first), min(image.shape[axis], first + sampling.channels))
    index = [slice(s, s + size) for s, size in zip(start, sampling.patch_shape, strict=True)]
    index[axis] = inside
    slices = np.moveaxis(image[tuple(index)], axis, -1)
    if slices.shape[-1] == sampling.channels:
        return slices
    channels = np.zeros(sampling.input_shape, image.dtype)
    channels[..., inside.start - first : inside.stop - first] = slices
    return channels


def channel_means(images: Sequence[np.ndarray], sampling: Sampling) -> tuple[float, ...]:
    """Mean of each channel over all slices (or voxels) of training images, for ``sampling.channel_mean``.

    Args:
        images: arrays (x, y, z), preprocessed.
        sampling: the network's view.

    Reference:
        xu2017, section 2.1: the mean of the training images is subtracted.
    """
    totals, voxels = np.zeros(sampling.channels), 0
    for image in images:
        voxels += image.size
        axis = 0 if sampling.slice_axis is None else sampling.slice_axis
        by_slice = image.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
        for channel in range(sampling.channels):
            offset = channel - sampling.neighbours
            totals[channel] += by_slice[max(0, offset) : len(by_slice) + min(0, offset)].sum()
    return tuple(float(total / voxels) for total in totals)


def pad_to(array: np.ndarray, patch_shape: Sequence[int], fill: float = 0.0) -> tuple[np.ndarray, tuple]:
    """Pads (x, y, z, ...) on both sides with ``fill`` until a patch fits.

    Returns:
        The padded array (the same object if nothing was missing), and the slices that cut the original out of
        it.
    """
    missing = [max(0, patch - size) for patch, size in zip(patch_shape, array.shape, strict=False)]
    before = [m // 2 for m in missing]
    inside = tuple(slice(b, b + size) for b, size in zip(before, array.shape, strict=False))
    if not any(missing):
        return array, inside
    width = [(b, m - b) for b, m in zip(before, missing, strict=True)]
    width += [(0, 0)] * (array.ndim - len(width))
    return np.pad(array, width, constant_values=fill), inside
