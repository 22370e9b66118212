"""Features once: what the frozen part of a network computes is kept on disk, and only the rest is trained.

While a frozen prefix meets the same images in every epoch, it computes the same features in every epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree

from mrseg import _checks
from mrseg._files import atomic_folder, told_when_full
from mrseg.data.pipeline import weakly
from mrseg.transfer.compiling import compile_like
from mrseg.transfer.cutting import Cut, find_cut, stored_type

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

CACHE_PRECISIONS = ("float32", "float16")
_MARK = "features.txt"  # says that a folder is a cache and may be replaced


@dataclass(frozen=True)
class _Stored:
    """One array on disk: rows of one shape, one after the other, and the checksum of them all."""

    file: Path
    stored: str
    read_as: str
    shape: tuple[int, ...]
    crc32: int = 0

    def check(self) -> None:
        """Raises InputError unless the file holds what was written."""
        total = 0
        try:
            with open(self.file, "rb") as file:
                while block := file.read(1 << 22):
                    total = zlib.crc32(block, total)
        except FileNotFoundError:
            raise self._spoilt("missing") from None
        if total != self.crc32:
            raise self._spoilt("changed or cut short")

    def _spoilt(self, how: str) -> _checks.InputError:
        return _checks.error(
            "Features are read back as they were written.", f"{self.file}, {how}", "Compute them again."
        )

    def rows(self) -> np.ndarray:
        return np.memmap(self.file, dtype=self.stored, mode="r").reshape(-1, *self.shape)


@dataclass(frozen=True)
class CachedFeatures:
    """Features and labels of every case in a folder; leaving a ``with`` block removes the folder.

    Attributes:
        folder: where they lie.
        count: cases.
        batch_size: cases in the batches that they came in.
        bytes: on disk.
    """

    folder: Path
    count: int
    batch_size: int
    bytes: int
    _arrays: tuple[_Stored, ...]
    _structure: Any

    @functools.cached_property
    def _checked(self) -> tuple[_Stored, ...]:
        """The arrays, once every file was read and its checksum compared."""
        for array in self._arrays:
            array.check()
        return self._arrays

    def dataset(
        self,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        first_epoch: int = 0,
        order: Callable[[int], np.ndarray] | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Batches ((features, ...), labels) for ``fit`` of the cut's suffix, read from disk when needed.

        Args:
            batch_size: cases in a batch; as they came unless given.
            seed: shuffles the cases anew in every epoch; None keeps the order in which they came, hence the
                same batches in every epoch.
            first_epoch: of a resumed run, so that its order is that of an uninterrupted one.
            order: number of an epoch -> numbers of all cases in its order, instead of ``seed``.
            drop_remainder: leave out a last smaller batch of an epoch.

        Raises:
            InputError: a file is not what was written; checked once, at the first call.
        """
        import tensorflow as tf

        size = batch_size or self.batch_size
        _checks.positive_ints("batch_size", (size,), 1)
        arrays = [array.rows() for array in self._checked]
        types = [array.read_as for array in self._arrays]
        epoch = iter(range(first_epoch, 2**31))

        def next_order() -> np.ndarray:
            number = next(epoch)
            if order is not None:
                return np.asarray(order(number), np.int64)
            rows = np.arange(self.count, dtype=np.int64)
            return rows if seed is None else np.random.default_rng((seed, number)).permutation(rows)

        def read(rows: np.ndarray) -> list[np.ndarray]:
            run = len(rows) > 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
            chosen = slice(rows[0], rows[0] + len(rows)) if run else rows  # a run of rows needs no gathering
            return [
                np.ascontiguousarray(a[chosen], dtype=tf.as_dtype(t).as_numpy_dtype)
                for a, t in zip(arrays, types, strict=True)
            ]

        def batch(rows: tf.Tensor) -> Any:
            flat = tf.numpy_function(weakly(read), (rows,), [tf.as_dtype(t) for t in types])
            flat = [
                tf.ensure_shape(tensor, (None, *array.shape))
                for tensor, array in zip(flat, self._arrays, strict=True)
            ]
            return tree.pack_sequence_as(self._structure, flat)

        def next_epoch(_: tf.Tensor) -> tf.data.Dataset:
            rows = tf.data.Dataset.from_tensor_slices(
                tf.ensure_shape(tf.numpy_function(weakly(next_order), (), tf.int64), (self.count,))
            )
            return rows.batch(size, drop_remainder=drop_remainder)

        steps = self.count // size if drop_remainder else -(-self.count // size)

        batches = tf.data.Dataset.range(1).flat_map(next_epoch)
        batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
        batches = batches.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)
        # There is nothing to tune here; with the tuner on, short epochs were seen to end in steps of 0.16,
        # 0.32, 0.64, ... s, and without it not.
        options = tf.data.Options()
        options.autotune.enabled = False
        batches = batches.with_options(options)
        batches.functions = read, next_order
        return batches

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> CachedFeatures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DataChanged(_checks.InputError):
    """The data are not the same in two readings, so that features of one epoch do not serve the next."""


def cache_features(
    cut: Cut, data: Iterable[Any], folder: str | Path, *, precision: str = "float32"
) -> CachedFeatures:
    """Computes the features of every case once and writes them to ``folder``, batch by batch.

    Args:
        cut: of a network, from :func:`~mrseg.transfer.cutting.find_cut`.
        data: finite batches (image, labels) or (image, labels, weights), the same in every reading: neither
            shuffled nor augmented. It is read twice at the same time, to prove that.
        folder: is made, or replaced as a whole once all features are there.
        precision: "float32", or "float16" for half the space and features rounded to 11 bits.

    Raises:
        DataChanged: (an InputError) the two readings differ.
        InputError: no batch; features beyond 65504 in float16.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    _checks.choice("precision", precision, CACHE_PRECISIONS)
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise _checks.error("Features go into a folder of their own, which is removed later.", folder)
    remedy = (
        "The cache was removed. Choose a folder with more room, precision float16, or train without a cache"
    )
    with told_when_full("The features must", folder, remedy), atomic_folder(folder) as temporary:
        writer = _Writer(cut, temporary, precision)
        for first, second in itertools.zip_longest(_batches(data), _batches(data)):
            writer.add(first, second)
        return writer.finish(folder)


def fit_cached(
    model: keras.Model,
    data: Iterable[Any],
    *,
    epochs: int,
    folder: str | Path,
    precision: str = "float32",
    seed: int | None = None,
    validation_data: Iterable[Any] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = 0,
) -> keras.callbacks.History:
    """As ``model.fit``, but the frozen part of the network computes its features in the first epoch alone.

    Falls back to ``model.fit`` and says why in the log where that cannot be: the data differ from epoch to
    epoch (augmentation, random patches, shuffling), or training starts in the first layer with weights.

    Args:
        model: compiled, some of it frozen. Loss, metrics and optimiser are those it was compiled with; its
            own weights are trained.
        data: batches, as `cache_features` takes them.
        epochs: number of epochs.
        folder: for the features while training runs; removed afterwards.
        precision: of the features.
        seed: shuffles the cases anew in every epoch; None trains on the batches of ``data`` in their order,
            which gives what ``model.fit(data)`` gives.
        validation_data: batches; their features are kept as well.
        callbacks: they see the part that is trained as their ``model``.
        verbose: as in ``fit``.

    Raises:
        InputError: the model is not compiled, or nothing is trainable; and what `cache_features` raises.
    """
    if not model.compiled:
        raise _checks.error("fit_cached trains a compiled model.", f"{model.name!r}, not compiled")
    cut = find_cut(model)
    folder = Path(folder)

    options = {"epochs": epochs, "callbacks": [*callbacks], "verbose": verbose, "shuffle": False}

    def plainly(why: str) -> keras.callbacks.History:
        log.warning("Training without a cache of features: %s", why)
        return model.fit(data, validation_data=validation_data, **options)

    if not cut.pays:
        return plainly("the first layer that can change comes before any frozen layer with weights.")
    try:
        with ExitStack() as caches:
            sets = [
                caches.enter_context(cache_features(cut, batches, folder / name, precision=precision))
                for name, batches in (("train", data), ("validation", validation_data))
                if batches is not None
            ]
            compile_like(cut.suffix, model, model.optimizer)
            held_out = sets[1].dataset() if len(sets) > 1 else None
            return cut.suffix.fit(sets[0].dataset(seed=seed), validation_data=held_out, **options)
    except DataChanged as reason:
        return plainly(str(reason))


class _Writer:
    """Appends the features and labels of batch after batch to one file each."""

    def __init__(self, cut: Cut, folder: Path, precision: str):
        self.cut, self.folder, self.precision = cut, folder, precision
        self.arrays: list[_Stored] = []
        self.checksums: dict[str, int] = {}
        self.structure: Any = None
        self.count = self.batch_size = self.bytes = 0

    def add(self, first: Any, second: Any) -> None:
        if _digest(first) != _digest(second):
            raise DataChanged(
                "Features are kept where the data are the same in every epoch. Received: two readings that "
                f"differ after {self.count} cases. Leave out augmentation, random patches and shuffling "
                "(seed shuffles)."
            )
        image, *rest = first
        features = [np.asarray(t) for t in tree.flatten(self.cut.prefix.predict_on_batch(image))]
        values = [*features, *(_numpy(t) for t in tree.flatten(rest))]
        if not self.arrays:
            self._begin(features, rest, values)
        for array, value in zip(self.arrays, values, strict=True):
            self._append(array, value)
        self.count += len(values[0])

    def _begin(self, features: list[np.ndarray], rest: list[Any], values: list[np.ndarray]) -> None:
        stored = [stored_type(tensor, self.precision) for tensor in self.cut.tensors]
        stored += [str(value.dtype) for value in values[len(features) :]]
        read_as = [str(tensor.dtype) for tensor in self.cut.suffix.inputs]
        read_as += [str(value.dtype) for value in values[len(features) :]]
        self.arrays = [
            _Stored(self.folder / f"{i}.bin", kept, read, value.shape[1:])
            for i, (kept, read, value) in enumerate(zip(stored, read_as, values, strict=True))
        ]
        inputs = tuple(features) if len(features) > 1 else features[0]
        self.structure = (inputs, *rest)
        self.batch_size = len(values[0])

    def _append(self, array: _Stored, value: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(value, dtype=array.stored)
        if array.stored == "float16" and not np.isfinite(kept).all():
            raise _checks.error(
                "Features kept in float16 stay within 65504.",
                f"{float(np.abs(value).max()):.6g}",
                "Take precision float32.",
            )
        if value.shape[1:] != array.shape:
            raise _checks.error(
                "All batches have cases of one shape.", f"{value.shape[1:]} and {array.shape}"
            )
        content = kept.tobytes()
        with open(array.file, "ab") as file:
            file.write(content)  # tofile would hide why a write failed
        self.checksums[array.file.name] = zlib.crc32(content, self.checksums.get(array.file.name, 0))
        self.bytes += kept.nbytes

    def finish(self, folder: Path) -> CachedFeatures:
        if not self.count:
            raise _checks.error("Features are computed of at least one batch.", "no batch")
        (self.folder / _MARK).write_text(
            f"{self.count} cases of features of {self.cut.suffix.name}\n", encoding="utf-8"
        )
        arrays = tuple(
            dataclasses.replace(a, file=folder / a.file.name, crc32=self.checksums[a.file.name])
            for a in self.arrays
        )
        return CachedFeatures(folder, self.count, self.batch_size, self.bytes, arrays, self.structure)


def _batches(data: Iterable[Any]) -> Iterable[Any]:
    """The batches of a finite data set; refuses one that says it has no end."""
    cardinality = getattr(data, "cardinality", None)
    if cardinality is not None and int(cardinality()) == -1:
        raise _checks.error("An epoch has an end.", "a dataset that repeats for ever", "Leave out repeat().")
    return data


def _digest(batch: Any) -> int:
    total = 0
    for tensor in tree.flatten(batch):
        total = zlib.crc32(np.ascontiguousarray(_numpy(tensor)).tobytes(), total)
    return total


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))
