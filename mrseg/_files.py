"""Outputs appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrseg._checks import error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` on success, removes it on failure.

    The temporary name keeps the suffixes of ``path`` (``.nii.gz``), since writers choose the format by them.
    Missing parent folders are made.

    Raises:
        OSError: the folder cannot be made or written; the message names it.
    """
    path = Path(path)
    temporary = _temporary_folder(path) / path.name
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``path``; on success it takes the place of ``path``.

    An older folder of that name is replaced as a whole, only after the new one is complete; if that fails it
    is put back. With ``replace=False`` it stays, whoever comes second.

    Raises:
        InputError: ``path`` is a file; with ``replace=False``, there is something already.
        OSError: the folder cannot be made or written; the message names it.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise error("A folder is written here, not a file.", path, "Choose another name.")
    holder = _temporary_folder(path)
    temporary = holder / path.name
    temporary.mkdir()
    try:
        yield temporary
        replaced = holder / "replaced"
        if path.exists() and not replace:
            raise error("What is there already is not replaced.", path, "Choose another name.")
        if path.exists():
            os.replace(path, replaced)
        try:
            os.replace(temporary, path)
        except OSError:
            if replaced.exists():
                os.replace(replaced, path)
            if not replace and path.exists():  # somebody came between
                raise error("What is there already is not replaced.", path, "Choose another name.") from None
            raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def writable_folder(path: str | Path) -> Path:
    """Makes ``path`` if missing and proves that files can be written there.

    Raises:
        OSError: it cannot be made or written; the message names the folder and the remedy.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as reason:
        raise OSError(
            f"The output folder must be writable. Received: {path} ({reason.strerror}). "
            "Choose another folder or change its permissions."
        ) from reason
    return path


@contextmanager
def told_when_full(what: str, folder: Path, remedy: str) -> Iterator[None]:
    """Says in one line what did not fit where the disk (or a limit on it) is full; other errors pass.

    Args:
        what: with its verb, say ``The features must``.
        folder: where it was written.
        remedy: the rest of the line.
    """
    try:
        yield
    except OSError as reason:
        if reason.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            reason.errno, f"{what} fit on the disk. Received: {folder} ({reason.strerror}). {remedy}"
        ) from reason


def checksum(files: Iterable[Path]) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _temporary_folder(path: Path) -> Path:
    parent = writable_folder(path.parent)
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=parent))
