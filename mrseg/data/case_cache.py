"""Preprocessed cases on disk, an HDF5 file each, read patch by patch: a cohort need not fit into memory.

A file is named by all that decides what it holds and is never changed: other scans or settings make another
file. It appears whole or not at all, and begins with a checksum of the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import shutil
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from mrseg import __version__
from mrseg._checks import error
from mrseg._files import atomic_file, checksum, clear_abandoned, told_when_full, writable_folder
from mrseg.data.io import scan_files

log = logging.getLogger(__name__)

#: To be raised when a scan of the same bytes and settings is preprocessed to other values.
VERSION = 1
#: Voxels that are read at once. A patch touches few of them; a slice costs 32 slices of reading, not all.
CHUNK = (32, 32, 32)
#: Files that one process holds open at most; each takes about 1 MB of memory.
OPEN_FILES = 32

_CHUNK_CACHE_BYTES = 256 * 1024  # of each array; less than a chunk makes HDF5 read row by row
_HEAD_BYTES = 512  # an HDF5 file may begin with so much of something else
_SETTLED_NS = 2 * 10**9  # a file that is younger may change within one tick of its clock

#: Image (x, y, z) float32 and labels (x, y, z) uint8.
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class CachedArray:
    """An array of a cached case: indexing reads from disk, ``np.asarray`` reads it whole.

    It may be used from several threads, handed to other processes and pickled.

    Attributes:
        path: of the file.
        name: of the array in it.
        shape, dtype: as an array's.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads a box: ``index`` holds whole numbers and slices with positive steps."""
        return _FILES.read(self.path, self.name, index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("What lies on disk is copied into memory. Received: copy=False.")
        return self[...].astype(dtype or self.dtype, copy=False)

    def sum(self, axis: Any = None, dtype: Any = None) -> Any:
        """As an array's, reading it whole."""
        return self[...].sum(axis=axis, dtype=dtype)


class CaseCache:
    """A folder of preprocessed cases, which several trainings and processes may use at the same time.

    It may be removed at any time when none of them runs.

    Args:
        folder: is made if missing.

    Raises:
        OSError: the folder cannot be made or written; the message names it.
    """

    def __init__(self, folder: str | Path):
        self.folder = writable_folder(folder)
        clear_abandoned(self.folder)

    def get(self, sources: Sequence[Path], settings: Mapping[str, Any], make: Callable[[], Pair]) -> Pair:
        """A case from disk, after ``make`` has made it if it was not there or was damaged.

        Args:
            sources: scans that the case is made from; their bytes count, not their names.
            settings: all else that decides what ``make`` returns, as plain values.
            make: returns image and labels.

        Returns:
            Two `CachedArray`, which serve as the arrays that ``make`` returns.

        Raises:
            InputError: a source changed while it was read; what ``make`` raises.
            OSError: the file cannot be read or written, or the disk is full; nothing is left behind.
        """
        digests = [self._digest(source) for source in sources]
        text = json.dumps([VERSION, __version__, settings, digests], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        path = self.folder / f"{key}.h5"
        if not _intact(path, key):
            image, labels = make()
            if [self._digest(source) for source in sources] != digests:
                raise error(
                    "A scan stays as it is while it is read.", ", ".join(map(str, sources)), "Start again."
                )
            _write(path, key, image, labels)
        return cast(Pair, tuple(_FILES.describe(path)))

    def remove(self) -> None:
        """Removes the folder; what stands for its cases cannot be read any longer."""
        _FILES.forget(*self.folder.glob("*.h5"))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _digest(self, scan: Path) -> str:
        """SHA-256 of the bytes of a scan's files, remembered as long as size and times stay the same."""
        files = scan_files(scan)
        state = [_state(file) for file in files]
        name = hashlib.sha256(str(scan.resolve()).encode()).hexdigest()
        note = self.folder / f"{name}.json"
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))
            if noted["files"] == state:
                return noted["sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        digest = hashlib.sha256("".join(checksum([file]) for file in files).encode()).hexdigest()
        youngest = max(times for _, _, *changed in state for times in changed)
        if time.time_ns() - youngest > _SETTLED_NS and [_state(file) for file in files] == state:
            with atomic_file(note) as temporary:
                temporary.write_text(json.dumps({"files": state, "sha256": digest}), encoding="utf-8")
        return digest


class _Files:
    """The files that this process holds open, those used last; any thread may read."""

    def __init__(self, limit: int):
        self.limit = limit
        self.forget_all()

    def forget_all(self) -> None:
        """Starts anew: in a process that was forked, the lock and the open files are its parent's."""
        self.lock = threading.Lock()
        self.arrays: OrderedDict[Path, dict[str, h5py.Dataset]] = OrderedDict()

    def read(self, path: Path, name: str, index: Any) -> np.ndarray:
        with self.lock:  # held while reading: nobody closes the file then
            return self._opened(path)[name][index]

    def describe(self, path: Path) -> list[CachedArray]:
        """Both arrays of a file."""
        with self.lock:
            arrays = self._opened(path)
            return [CachedArray(path, name, arrays[name].shape, arrays[name].dtype) for name in arrays]

    def forget(self, *paths: Path) -> None:
        """Closes files that are about to be replaced or removed."""
        with self.lock:
            for path in paths:
                self._close(self.arrays.pop(path, {}))

    def _opened(self, path: Path) -> dict[str, h5py.Dataset]:
        arrays = self.arrays.pop(path, None)
        if arrays is None:
            # No lock on the file: it never changes, and some network file systems know no locks.
            file = h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES, locking=False)
            arrays = {name: file[name] for name in ("image", "labels")}
        self.arrays[path] = arrays
        while len(self.arrays) > self.limit:
            self._close(self.arrays.popitem(last=False)[1])
        return arrays

    def _close(self, arrays: dict[str, h5py.Dataset]) -> None:
        for array in arrays.values():
            array.file.close()
            break


_FILES = _Files(OPEN_FILES)
os.register_at_fork(after_in_child=_FILES.forget_all)


def _intact(path: Path, key: str) -> bool:
    """Whether the file is there and holds what was written; reads it whole."""
    crc = length = 0
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
            while block := stream.read(1 << 22):
                crc, length = zlib.crc32(block, crc), length + len(block)
    except FileNotFoundError:
        return False
    except OSError as reason:
        raise OSError(
            f"A cached case must be readable. Received: {path} ({reason.strerror}). "
            "Change its permissions, or choose another folder."
        ) from reason
    if head == _head(key, crc, length):
        return True
    log.warning("%s was damaged; the case is preprocessed again.", path)
    _FILES.forget(path)
    return False


def _head(key: str, crc: int, length: int) -> bytes:
    return f"mrseg case\n{key}\n{crc:08x} {length}\n".encode().ljust(_HEAD_BYTES, b"\0")


def _write(path: Path, key: str, image: np.ndarray, labels: np.ndarray) -> None:
    # HDF5 fills memory, not the disk: a full disk then is an error of Python, with nothing left half open.
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest", userblock_size=_HEAD_BYTES) as file:
        for name, array in (("image", image), ("labels", labels)):
            chunks = tuple(min(n, size) for n, size in zip(CHUNK, array.shape, strict=True))
            file.create_dataset(name, data=array, chunks=chunks)
    with (
        memory.getbuffer() as content,
        content[_HEAD_BYTES:] as body,
        told_when_full("Cached cases must", path.parent, "Choose a folder with more room"),
        atomic_file(path) as temporary,
        open(temporary, "wb") as stream,
    ):
        stream.write(_head(key, zlib.crc32(body), len(body)))
        stream.write(body)


def _state(file: Path) -> list[Any]:
    """What changes with a file's content; the second time is none that a user can set."""
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
