"""tf.data pipeline: examples of one sequence -> batches of patches and labels, seeded, of fixed shape.

Everything random of an epoch (order, patch positions, augmentation) follows from (seed, epoch) alone, so that
a resumed run sees the very batches that an unbroken run would have seen.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mrseg._checks import error, positive_ints
from mrseg.data.augmentation import Augmentation
from mrseg.data.examples import Example
from mrseg.data.patches import (
    ClassVoxels,
    Sampling,
    balanced_starts,
    cut,
    cut_input,
    patch_starts,
    random_starts,
)

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Share:
    """What one of several processes that train together reads of every batch.

    Attributes:
        process, processes: which of how many.
        devices: of all processes; every batch is divided evenly among them.
        looks_ahead: whether the first pass over the data is a look at one batch before the first epoch.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1
    looks_ahead: bool = False


def build_dataset(
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    batch_size: int = 2,
    augmentation: Augmentation | None = None,
    shuffle: bool = True,
    seed: int = 0,
    first_epoch: int = 0,
    share: Share = Share(),
) -> tf.data.Dataset:
    """Batches of patches from prepared examples; one iteration of the dataset is one epoch.

    Args:
        examples: images (x, y, z) float32 with labels (x, y, z) uint8, as `load_examples` gives, in memory
            or in a cache on disk.
        sampling: patch shape, overlap, and whether patches are drawn at random.
        batch_size: patches in a batch; a last smaller batch of an epoch is left out of training
            (``shuffle=True``).
        augmentation: drawn anew for every patch and epoch.
        shuffle: new order (and new random patches) in every epoch.
        seed: of everything random.
        first_epoch: number of the first epoch, for resumed runs.
        share: of a training on several devices: which part of every batch is read here. Without ``shuffle``
            the last patches that cannot be divided evenly are left out.

    Returns:
        Dataset of (batch, *patch, channels) float32 and (batch, *patch) uint8, the slice axis dropped for
        slices.

    Raises:
        InputError: no examples, a patch larger than a volume, fewer patches than one batch, or a batch that
            the devices cannot divide.
    """
    import tensorflow as tf

    positive_ints("batch_size", (batch_size,), 1)
    if not examples:
        raise error("A dataset needs at least one example.", "none", "Check the split names in the manifest.")
    input_shape = sampling.input_shape
    squeezed = input_shape[:-1]
    if augmentation and any(axis >= len(squeezed) for axis in augmentation.flip_axes):
        raise error(
            "augmentation.flip_axes holds axes of the patch.", augmentation.flip_axes, "A slice has 0 and 1."
        )
    if batch_size % share.devices:
        raise error(
            f"A batch is divided evenly among {share.devices} devices.",
            f"batch_size {batch_size}",
            f"Set training.batch_size to a multiple of {share.devices}.",
        )
    plan = _Plan(examples, sampling, shuffle, seed, first_epoch, share.looks_ahead)
    smallest = batch_size if shuffle else share.devices
    if len(plan) < smallest:
        raise error(f"An epoch must fill at least one batch of {smallest}.", f"{len(plan)} patches")
    mine = _places(len(plan), batch_size, share, whole_batches=shuffle)

    load = plan.load

    def next_rows() -> np.ndarray:
        return plan.next_epoch()[mine]

    def read(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, labels = tf.numpy_function(weakly(load), (row[0], row[1:4]), (tf.float32, tf.uint8))
        image, labels = tf.ensure_shape(image, input_shape), tf.ensure_shape(labels, squeezed)
        if augmentation:
            image, labels = augmentation(image, labels, row[4:6])
        return (image - sampling.channel_mean if sampling.channel_mean else image), labels

    def next_epoch(_: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(weakly(next_rows), (), tf.int32)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, (len(mine), 6)))

    # Not from_generator: it makes the allocator of the whole process give memory back at once, which slows
    # training.
    rows = tf.data.Dataset.range(1).flat_map(next_epoch)
    rows = rows.apply(tf.data.experimental.assert_cardinality(len(mine)))
    # As many calls as there are cores, and no tuner, which was seen to make short epochs longer.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = rows.map(read, num_parallel_calls=os.cpu_count() or 1, deterministic=True)
    dataset = dataset.batch(batch_size // share.processes, drop_remainder=shuffle).prefetch(2)
    dataset = dataset.with_options(options)
    dataset.functions = load, next_rows
    return dataset


def weakly(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as `tf.numpy_function` should have it, which keeps what it is given until the process ends.

    Whoever makes a dataset of it gives the dataset an attribute that holds the function itself: what is made
    of the dataset, and its iterators, hold on to the dataset. Arrays that the function knows go with it.
    """
    reference = weakref.ref(function)

    def call(*arguments: Any) -> Any:
        held = reference()
        assert held is not None, "the dataset is gone"
        return held(*arguments)

    return call


def grid_order(
    examples: Sequence[Example], sampling: Sampling, *, seed: int = 0
) -> Callable[[int], np.ndarray]:
    """Where the patches of a shuffled epoch stand in an epoch that is not shuffled.

    Args:
        examples: as for `build_dataset`.
        sampling: without random patches: every epoch holds the same ones.
        seed: of `build_dataset` with ``shuffle=True``.

    Returns:
        Number of an epoch -> (patches,) places in the epoch of ``shuffle=False``, in the order of that epoch.

    Raises:
        InputError: ``sampling`` draws patches at random.
    """
    if sampling.patches_per_volume:
        raise error(
            "Only the patches of a grid are the same in every epoch.",
            f"sampling.patches_per_volume {sampling.patches_per_volume}",
        )
    grid = _Plan(examples, sampling, False, seed, 0).rows_of(0)
    place = {tuple(row): i for i, row in enumerate(grid[:, :4].tolist())}
    plan = _Plan(examples, sampling, True, seed, 0)
    return lambda epoch: np.array([place[tuple(row)] for row in plan.rows_of(epoch)[:, :4].tolist()])


def _places(patches: int, batch_size: int, share: Share, *, whole_batches: bool) -> np.ndarray:
    """Which patches of an epoch are a process's own: its part of every batch, in order.

    Two processes, batches of 4, nine patches, not only whole batches::

        batches         | 0 1 2 3 | 4 5 6 7 | 8      the 8 is alone and left out
        first process     0 1       4 5
        second process        2 3       6 7
    """
    places = np.arange(patches - patches % (batch_size if whole_batches else share.devices))
    batches = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    return np.concatenate([np.split(batch, share.processes)[share.process] for batch in batches])


class _Plan:
    """Rows (case, x, y, z, seed, seed) of one epoch after the other, and what lies there."""

    def __init__(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        shuffle: bool,
        seed: int,
        first_epoch: int,
        looks_ahead: bool = False,
    ):
        self.examples = examples
        self.shapes = [image.shape for image, _ in examples]
        self.sampling, self.shuffle, self.seed, self.epoch = sampling, shuffle, seed, first_epoch
        self.looks_ahead = looks_ahead
        balanced = shuffle and sampling.class_share > 0
        self.voxels = [ClassVoxels(labels, sampling.classes) for _, labels in examples] if balanced else []
        self.grid = [patch_starts(shape, sampling.patch_shape, sampling.overlap) for shape in self.shapes]

    def __len__(self) -> int:
        per_volume = self.sampling.patches_per_volume if self.shuffle else None
        return per_volume * len(self.shapes) if per_volume else sum(map(len, self.grid))

    def load(self, case: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels of a patch, each in one piece of memory."""
        image, labels = self.examples[int(case)]
        patch = cut(labels, start, self.sampling.patch_shape)
        return (
            np.ascontiguousarray(cut_input(image, start, self.sampling)),
            np.ascontiguousarray(patch.reshape(self.sampling.input_shape[:-1])),
        )

    def next_epoch(self) -> np.ndarray:
        """(patches, 6) int32."""
        rows = self.rows_of(self.epoch)
        self.epoch += not self.looks_ahead
        self.looks_ahead = False
        return rows

    def rows_of(self, epoch: int) -> np.ndarray:
        """(patches, 6) int32 of one epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        rows = self._rows(rng)
        if self.shuffle:
            rng.shuffle(rows)
        return rows

    def _rows(self, rng: np.random.Generator) -> np.ndarray:
        count = self.sampling.patches_per_volume if self.shuffle else None
        starts = self.grid
        if count:
            starts = [self._random(number, count, rng) for number in range(len(self.shapes))]
        case = np.repeat(np.arange(len(starts)), [len(s) for s in starts])
        seeds = rng.integers(0, 2**31 - 1, size=(len(case), 2))
        return np.column_stack([case, np.concatenate(starts), seeds]).astype(np.int32)

    def _random(self, number: int, count: int, rng: np.random.Generator) -> np.ndarray:
        patch_shape = self.sampling.patch_shape
        balanced = round(self.sampling.class_share * count)
        anywhere = random_starts(self.shapes[number], patch_shape, count - balanced, rng)
        if not balanced:
            return anywhere
        return np.concatenate([anywhere, balanced_starts(self.voxels[number], patch_shape, balanced, rng)])
