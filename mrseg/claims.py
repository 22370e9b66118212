"""One folder, one run: what a folder was begun with, and one process at a time that writes it."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mrseg._checks import error
from mrseg._files import LOCK, atomic_file, clear_abandoned, read_json, try_lock, writable_folder

log = logging.getLogger(__name__)

#: How long to wait for another process: a cluster may hand a job on before its first worker has ended.
PATIENCE_S = 60.0


@contextmanager
def claimed(
    folder: str | Path,
    begun_with: Mapping[str, Any],
    rule: str,
    *,
    file: str = "run.json",
    binding: Callable[[], bool] = lambda: True,
) -> Iterator[Path]:
    """Holds a folder for one run: refuses another run's folder, and a second process at the same time.

    What killed processes left in it half written is removed.

    Args:
        folder: made if missing.
        begun_with: what decides the run, plain JSON values; written to ``file``, compared when the run is
            started again.
        rule: the first sentence of the error where they differ.
        binding: asked once the folder is this process's own; False where nothing has been done yet that
            depends on it: what is written is replaced.

    Yields:
        The folder.

    Raises:
        InputError: the folder was begun with something else, ``file`` is damaged, or another process is
            writing it and goes on for a minute.
        OSError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    with alone(folder):
        clear_abandoned(folder)
        path = folder / file
        text = json.dumps(begun_with, indent=1)
        if path.exists() and binding():
            earlier = read_json(path, "If it is the same run, remove this file: it is written anew.")
            now = json.loads(text)
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
def alone(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Locks an existing folder; the system frees the lock of a process that was killed.

    Raises:
        InputError: another process holds it, also after a minute.
    """
    with open(folder / name, "a+", encoding="utf-8") as lock:
        deadline, told = time.monotonic() + PATIENCE_S, False
        while not _locked(lock, folder):
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            if time.monotonic() >= deadline:
                raise error(
                    "One process at a time writes a folder.",
                    f"{folder}, which process {owner} is writing",
                    "Wait until it has ended, or choose another output folder.",
                )
            if not told:
                log.warning("waiting for process %s, which is writing %s", owner, folder)
                told = True
            time.sleep(0.5)
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def _locked(lock: IO[str], folder: Path) -> bool:
    """Whether the lock is ours now; some network file systems lock nothing, which is logged."""
    ours = try_lock(lock)
    if ours is None:
        log.warning("%s cannot be locked: start one run in it at a time", folder)
    return ours is not False
