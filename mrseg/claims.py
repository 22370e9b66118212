"""One folder, one run: what a folder was begun with, and one process at a time that writes it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrseg._checks import error
from mrseg._files import atomic_file, writable_folder

log = logging.getLogger(__name__)

LOCK = ".mrseg.lock"


@contextmanager
def claimed(
    folder: str | Path,
    begun_with: Mapping[str, Any],
    rule: str,
    *,
    file: str = "run.json",
    binding: bool = True,
) -> Iterator[Path]:
    """Holds a folder for one run: refuses another run's folder, and a second process at the same time.

    Args:
        folder: made if missing.
        begun_with: what decides the run, plain JSON values; written to ``file``, compared when the run is
            started again.
        rule: the first sentence of the error where they differ.
        binding: False where nothing has been done yet that depends on it: what is written is replaced.

    Yields:
        The folder.

    Raises:
        InputError: the folder was begun with something else, or another process is writing it.
        OSError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    with _alone(folder):
        path = folder / file
        text = json.dumps(begun_with, indent=1)
        if binding and path.exists():
            earlier, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
            other = [key for key in now if earlier.get(key) != now[key]]
            if other:
                raise error(
                    rule,
                    f"{folder}, begun with another {' and '.join(other)}",
                    "Choose another output folder, or remove this one.",
                )
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        yield folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder; the system frees the lock of a process that was killed."""
    with open(folder / LOCK, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise error(
                "One process at a time writes a folder.",
                f"{folder}, which process {lock.read().strip() or 'unknown'} is writing",
                "Wait until it has ended, or choose another output folder.",
            ) from None
        except OSError as reason:  # some network file systems lock nothing
            log.warning("%s cannot be locked (%s): start one run in it at a time", folder, reason.strerror)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
