"""What a file of weights may hold before Keras opens it: tensors of its own, and nothing else's.

HDF5 lets a tensor lie in another file of the reader's disk (a link, external storage, a virtual data set) and
claim more bytes than are there; an archive may unpack to much more than it holds. Newer versions of Keras
refuse part of this (CVE-2026-1669), the oldest that mrseg works with do not.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py

from mrseg._checks import InputError, error

#: A tensor or member of an archive above this size...
LARGE_BYTES = 64 * 2**20
#: ... takes at least this share of it in the file. Keras writes tensors uncompressed.
LARGEST_EXPANSION = 100


def check_weight_file(path: Path) -> None:
    """Refuses a ``.keras`` or ``.h5`` file with tensors that lie elsewhere or claim more than is there.

    What is no archive or no HDF5 at all passes: whoever opens it says so.

    Raises:
        InputError: the file names the place of a tensor instead of holding it, would take far more memory
            than its own size, or is cut short.
    """
    try:
        if not zipfile.is_zipfile(path):
            if h5py.is_hdf5(path):
                _check_h5(path, path)
            return
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(member, path)
                if member.filename.endswith(".h5"):
                    with archive.open(member) as stream:
                        _check_h5(stream, path)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError) as reason:
        first = " ".join(str(reason).split())[:200]
        raise error(f"A file of weights can be read ({first}).", path, "Copy it again.") from None


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/"):
        raise _refusal("its parts lie inside of it", f"{member.filename!r} in {path}")
    if member.file_size > max(LARGE_BYTES, LARGEST_EXPANSION * member.compress_size):
        raise _refusal("it holds what it unpacks to", f"{member.filename!r} in {path}")


def _check_h5(stream: Path | IO[bytes], path: Path) -> None:
    with h5py.File(stream, "r") as file:
        for name, item in _items(file, path):
            if isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise _refusal("it holds its tensors itself", f"{name} in {path}, kept in another file")
                if item.nbytes > max(LARGE_BYTES, LARGEST_EXPANSION * item.id.get_storage_size()):
                    raise _refusal("it holds its tensors itself", f"{name} in {path}, larger than the file")


def _items(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Every group and data set once, however they are linked; no link leaves the file."""
    waiting: list[h5py.Group] = [file]
    seen: set[int] = set()
    while waiting:
        group = waiting.pop()
        for key in group:
            name = f"{group.name.rstrip('/')}/{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise _refusal("it holds its tensors itself", f"{name} in {path}, a link")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address not in seen:
                seen.add(address)
                yield name, item
                if isinstance(item, h5py.Group):
                    waiting.append(item)


def _refusal(rule: str, received: str) -> InputError:
    return error(f"A file of weights is whole: {rule}.", received, "Do not use it; ask where it comes from.")
