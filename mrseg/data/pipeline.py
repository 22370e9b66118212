"""tf.data pipeline: cases of one sequence -> batches of patches and labels, seeded, of fixed shape.

Everything random of an epoch (order, patch positions, augmentation) follows from (seed, epoch) alone, so that
a resumed run sees the very batches that an unbroken run would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from mrseg._checks import IGNORE_LABEL, error, positive_ints
from mrseg.data.augmentation import Augmentation
from mrseg.data.cases import Case
from mrseg.data.contrast import random_contrast
from mrseg.data.geometry import Volume, check_same_grid
from mrseg.data.io import read_labels, read_volume
from mrseg.data.patches import (
    ClassVoxels,
    Sampling,
    balanced_starts,
    cut,
    cut_input,
    patch_starts,
    random_starts,
)
from mrseg.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    import tensorflow as tf

Example = tuple[np.ndarray, np.ndarray]


def load_example(case: Case, sequence: str, preprocessing: Preprocessing, num_classes: int) -> Example:
    """Reads one case and brings it onto the network's grid.

    Returns:
        Image (x, y, z) float32 and labels (x, y, z) uint8.

    Raises:
        InputError: the case lacks the sequence or its labels, or the two lie on different grids.
    """
    image, labels = _read(case, sequence, num_classes)
    array, affine = preprocessing.image(image)
    return array, preprocessing.labels(labels, array.shape, affine)


@dataclass(frozen=True)
class Contrasts:
    """Images of random contrast that stand for a scan.

    Attributes:
        count: of every scan; 0 leaves the scan itself.
        dark: labels that are dark in most sequences, as in `random_contrast`.
        seed: image n of a scan follows from seed, subject, sequence and n alone.
    """

    count: int = 0
    dark: tuple[int, ...] = ()
    seed: int = 0


def random_contrast_examples(
    case: Case, sequence: str, preprocessing: Preprocessing, num_classes: int, contrasts: Contrasts
) -> list[Example]:
    """Images of random contrast made from one case's labels, on the network's grid.

    They are made on the scan's own grid, which decides the network's grid too; its intensities only tell
    where a class falls into parts.

    Returns:
        ``contrasts.count`` pairs, as `load_example` gives them; all have the same labels.

    Raises:
        InputError: as `load_example`.
    """
    image, labels = _read(case, sequence, num_classes)
    name = [*hashlib.sha256(f"{case.subject} {sequence}".encode()).digest()]
    made: list[Example] = []
    for number in range(contrasts.count):
        rng = np.random.default_rng([contrasts.seed, number, *name])
        contrast = random_contrast(labels[0], rng, image=image[0], dark=contrasts.dark)
        array, affine = preprocessing.image((contrast, image[1]), like=image)
        truth = made[0][1] if made else preprocessing.labels(labels, array.shape, affine)
        made.append((array, truth))
    return made


def load_image(case: Case, sequence: str, preprocessing: Preprocessing) -> Example:
    """Reads one scan without labels: the image (x, y, z), and labels that say nothing (255)."""
    array, _ = preprocessing.image(read_volume(case.images[sequence]))
    return array, np.full(array.shape, IGNORE_LABEL, np.uint8)


def _read(case: Case, sequence: str, num_classes: int) -> tuple[Volume, Volume]:
    image_path, labels_path = case.images.get(sequence), case.labels.get(sequence)
    if image_path is None or labels_path is None:
        missing = "image" if image_path is None else "label map"
        raise error(
            f"Subject {case.subject} needs a {sequence} {missing}.",
            f"images {sorted(case.images)}, labels {sorted(case.labels)}",
            "Labels come from CT by `mrseg prepare`." if image_path else "",
        )
    image, labels = read_volume(image_path), read_labels(labels_path, num_classes)
    check_same_grid(str(image_path), image, str(labels_path), labels)
    return image, labels


def load_examples(
    cases: Sequence[Case],
    sequence: str,
    preprocessing: Preprocessing,
    num_classes: int,
    *,
    contrasts: Contrasts = Contrasts(),
    progress: bool = False,
) -> list[Example]:
    """Reads all cases, with a progress bar if asked for.

    With ``contrasts.count``, so many images of random contrast stand for every scan.
    """
    bar = tqdm(cases, desc=f"reading {sequence}", unit="scan", disable=not progress, leave=False)
    if not contrasts.count:
        return [load_example(case, sequence, preprocessing, num_classes) for case in bar]
    return [
        example
        for case in bar
        for example in random_contrast_examples(case, sequence, preprocessing, num_classes, contrasts)
    ]


def build_dataset(
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    batch_size: int = 2,
    augmentation: Augmentation | None = None,
    shuffle: bool = True,
    seed: int = 0,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Batches of patches from prepared examples; one iteration of the dataset is one epoch.

    Args:
        examples: images (x, y, z) float32 with labels (x, y, z) uint8, as `load_examples` gives.
        sampling: patch shape, overlap, and whether patches are drawn at random.
        batch_size: patches in a batch; a last smaller batch of an epoch is left out of training
            (``shuffle=True``).
        augmentation: drawn anew for every patch and epoch.
        shuffle: new order (and new random patches) in every epoch.
        seed: of everything random.
        first_epoch: number of the first epoch, for resumed runs.

    Returns:
        Dataset of (batch, *patch, channels) float32 and (batch, *patch) uint8, the slice axis dropped for
        slices.

    Raises:
        InputError: no examples, a patch larger than a volume, or fewer patches than one batch.
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
    plan = _Plan(examples, sampling, shuffle, seed, first_epoch)
    if shuffle and len(plan) < batch_size:
        raise error(f"An epoch must fill at least one batch of {batch_size}.", f"{len(plan)} patches")

    def load(case: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, labels = examples[int(case)]
        patch = cut_input(image, start, sampling)
        return np.ascontiguousarray(patch), np.ascontiguousarray(
            cut(labels, start, sampling.patch_shape).reshape(squeezed)
        )

    def read(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, labels = tf.numpy_function(load, (row[0], row[1:4]), (tf.float32, tf.uint8))
        image, labels = tf.ensure_shape(image, input_shape), tf.ensure_shape(labels, squeezed)
        if augmentation:
            image, labels = augmentation(image, labels, row[4:6])
        return (image - sampling.channel_mean if sampling.channel_mean else image), labels

    def next_epoch(_: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(plan.next_epoch, (), tf.int32)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, (len(plan), 6)))

    # Not from_generator: it makes the allocator of the whole process give memory back at once, which slows
    # training.
    rows = tf.data.Dataset.range(1).flat_map(next_epoch)
    rows = rows.apply(tf.data.experimental.assert_cardinality(len(plan)))
    dataset = rows.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size, drop_remainder=shuffle).prefetch(2)


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


class _Plan:
    """Rows (case, x, y, z, seed, seed) of one epoch after the other."""

    def __init__(
        self, examples: Sequence[Example], sampling: Sampling, shuffle: bool, seed: int, first_epoch: int
    ):
        self.shapes = [image.shape for image, _ in examples]
        self.sampling, self.shuffle, self.seed, self.epoch = sampling, shuffle, seed, first_epoch
        balanced = shuffle and sampling.class_share > 0
        self.voxels = [ClassVoxels(labels, sampling.classes) for _, labels in examples] if balanced else []
        self.grid = [patch_starts(shape, sampling.patch_shape, sampling.overlap) for shape in self.shapes]

    def __len__(self) -> int:
        per_volume = self.sampling.patches_per_volume if self.shuffle else None
        return per_volume * len(self.shapes) if per_volume else sum(map(len, self.grid))

    def next_epoch(self) -> np.ndarray:
        """(patches, 6) int32."""
        self.epoch += 1
        return self.rows_of(self.epoch - 1)

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
