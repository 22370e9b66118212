"""How much memory there is, and a word before work that needs more."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mrseg._checks import error

log = logging.getLogger(__name__)

_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_STATE = Path("/proc/meminfo")


def memory_mb() -> float:
    """Memory of the machine in MB (10^6 bytes), or less where a container is given less."""
    return min([_machine_mb(), *_containers_mb()])


def available_mb() -> float:
    """Memory in MB (10^6 bytes) that other programs leave; all of it where the system does not tell."""
    return min(memory_mb(), _stated_mb("MemAvailable", otherwise=memory_mb()))


def check_memory(needed_mb: float, what: str, remedy: str) -> None:
    """Refuses work that cannot fit into the memory; warns of work that needs more than others leave.

    Args:
        needed_mb: what the work takes at most, in MB (10^6 bytes).
        what: is to fit, say ``A scan's maps``.
        remedy: the last sentence.

    Raises:
        InputError: it is more than the machine (or its container) has, swap space included.
    """
    there = memory_mb()
    if there == _machine_mb():
        there += _stated_mb("SwapTotal", otherwise=0.0)
    if needed_mb > there:
        raise error(
            f"{what} must fit into the memory.",
            f"up to {needed_mb / 1e3:.1f} GB, where there are {there / 1e3:.1f}",
            remedy,
        )
    free = available_mb()
    if needed_mb > free:
        log.warning(
            "%s may take %.1f GB, and other programs leave %.1f GB. %s",
            what, needed_mb / 1e3, free / 1e3, remedy,
        )  # fmt: skip


def _machine_mb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6


def _containers_mb() -> list[float]:
    texts = [
        file.read_text(encoding="utf-8").strip() for file in map(Path, _CONTAINER_LIMITS) if file.is_file()
    ]
    return [int(text) / 1e6 for text in texts if text.isdigit()]


def _stated_mb(key: str, *, otherwise: float) -> float:
    """What Linux says about its memory, in lines such as ``MemAvailable:  21049108 kB``."""
    lines = _STATE.read_text(encoding="utf-8").splitlines() if _STATE.is_file() else []
    for name, _, value in (line.partition(":") for line in lines):
        if name == key:
            return int(value.split()[0]) * 1024 / 1e6
    return otherwise
