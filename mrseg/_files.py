"""Outputs appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mrseg._checks import error

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

#: A file that the process which writes a folder has locked.
LOCK = ".mrseg.lock"

_REPLACED = ".replaced"
_ABANDONED_S = 24 * 3600.0  # after which nobody writes any more, where a lock cannot tell
#: What file systems answer where another process holds the lock.
_HELD = (errno.EAGAIN, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(OSError):
    """What was to be written does not fit; told in one line."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` on success, removes it on failure.

    The temporary name keeps the suffixes of ``path`` (``.nii.gz``), since writers choose the format by them.
    Missing parent folders are made.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; the message names it.
    """
    path = Path(path)
    with told_when_full("A file must", path), partial_folder(path) as holder:
        yield holder / path.name
        os.replace(holder / path.name, path)


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
    with told_when_full("A folder must", path), partial_folder(path) as holder:
        temporary = holder / path.name
        temporary.mkdir()
        yield temporary
        replaced = holder / _REPLACED
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


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path`` that is named after it, and removes it in the end.

    As long as this process lives, nobody else removes it. What killed processes left at that place is removed
    first.
    """
    parent = writable_folder(path.parent)
    for left in parent.glob(f".{glob.escape(path.name)}.*.partial"):
        _clear(left)
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=parent))
        try:
            with suppress(_Taken), _locked(holder) as stream:
                stream.write(platform.node())
                stream.flush()
                yield holder
                return
        finally:
            shutil.rmtree(holder, ignore_errors=True)


class _Taken(Exception):
    """Another process took a new temporary folder for that of a killed one, and removed it."""


@contextmanager
def _locked(holder: Path) -> Iterator[IO[str]]:
    try:
        stream = open(holder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    except FileNotFoundError:
        raise _Taken from None
    with stream:
        if try_lock(stream) is False or not (holder / LOCK).exists():  # taken since it was opened
            raise _Taken
        yield stream


def clear_abandoned(folder: Path) -> None:
    """Removes, at any depth, the temporary folders of processes that were killed; not those of living ones.

    A replacement of one folder by another that a kill interrupted is brought to its end.
    """
    for place, folders, _ in os.walk(folder):
        for name in [n for n in folders if n.startswith(".") and n.endswith(".partial")]:
            folders.remove(name)
            _clear(Path(place, name))


def try_lock(stream: IO[str]) -> bool | None:
    """Locks an open file without waiting: whether it is ours now; None where the file system locks nothing.

    The system frees the lock when the file is closed, also that of a process that was killed.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        return False if reason.errno in _HELD else None
    return True


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
def told_when_full(
    what: str, folder: Path, remedy: str = "Make room, then start the same command again."
) -> Iterator[None]:
    """Says in one line what did not fit where the disk (or a limit on it) is full; other errors pass.

    Args:
        what: with its verb, say ``The features must``.
        folder: where it was written.
        remedy: the rest of the line.
    """
    try:
        yield
    except OSError as reason:
        # HDF5 tells the number in its text alone.
        number = next((n for n in _FULL if n == reason.errno or os.strerror(n) in str(reason)), None)
        if number is None:
            raise
        said = f"{what} fit on the disk. Received: {folder} ({os.strerror(number)}). {remedy}"
        raise DiskFull(number, said) from reason


def checksum(files: Iterable[Path]) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object that mrseg wrote.

    Raises:
        InputError: it is damaged; the message ends with ``remedy``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as reason:
        raise error(f"{path.name} is as mrseg wrote it.", f"{path}, damaged ({reason})", remedy) from None
    if not isinstance(content, dict):
        raise error(f"{path.name} is as mrseg wrote it.", f"{path}, damaged", remedy)
    return content


def _clear(left: Path) -> None:
    """Removes a temporary folder if its process has ended: its lock is free."""
    with suppress(OSError):
        old = time.time() - left.stat().st_mtime > _ABANDONED_S
        if not (left / LOCK).exists():  # not begun, cleared already, or not ours
            left.rmdir()  # where it is empty
            return
        with open(left / LOCK, "r+", encoding="utf-8") as stream:
            free = try_lock(stream)
            # Not every network file system tells one machine of the other's locks.
            sure = free and stream.read() in ("", platform.node())
            if free is False or not (sure or old):
                return
            if (left / _REPLACED).exists():
                _finish_replacement(left)
            shutil.rmtree(left, ignore_errors=True)


def _finish_replacement(left: Path) -> None:
    """The old folder was moved away, the new one is whole: it takes its place unless something else did."""
    for new in left.iterdir():
        if new.name not in (LOCK, _REPLACED) and not (left.parent / new.name).exists():
            os.replace(new, left.parent / new.name)
