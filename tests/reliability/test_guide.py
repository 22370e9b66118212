"""The messages in docs/guides/trouble.md are those of the code."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from mrseg import claims, memory
from mrseg._files import atomic_file, told_when_full, writable_folder
from mrseg.claims import alone, claimed
from mrseg.cli import main
from mrseg.data import phantom

GUIDE = Path(__file__).parents[2] / "docs/guides/trouble.md"


def full(_):
    with atomic_file("runs/epoch1.keras"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_cache(_):
    with told_when_full("Cached cases must", Path("cache"), "Choose a folder with more room"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    writable_folder("runs")


def twice(monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE_S", 0.0)
    with alone(Path(".")), alone(Path(".")):
        pass


def damaged(_):
    Path("run.json").write_text("", encoding="utf-8")
    with claimed(".", {}, ""):
        pass


def damaged_checkpoint(_):
    from mrseg import checkpoint

    with checkpoint._whole(Path("runs/t1/checkpoint/epoch0007.keras"), Path("runs/t1")):
        raise ValueError("another checksum")


def many_workers(monkeypatch):
    monkeypatch.setattr(memory, "_machine_mb", lambda: 1.0)
    monkeypatch.setattr(memory, "_STATE", Path("nowhere"))
    memory.check_memory(2.0, "The maps of 8 scans at once", "Take fewer --workers.")


def no_memory(_):
    raise MemoryError("Unable to allocate 3.2 GiB for an array")


def parts(message):
    """Rule and remedy, without names of files and numbers."""
    rule, received = message.split(" Received: ")
    remedy = re.split(r"\)\. |(?<=writing)\. |(?<=\d)\. |array\. ", received, maxsplit=1)[-1]
    return [re.sub(r"\S*[/\d]\S*:?|\.(?=:)", "#", part) for part in (rule, remedy)]


@pytest.mark.parametrize(
    "fault",
    [full, full_cache, read_only, twice, damaged, damaged_checkpoint, many_workers, no_memory],
)
def test_a_message_of_the_guide_is_that_of_the_code(fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def fail(*_, **__):
        with monkeypatch.context() as changes:
            fault(changes)

    monkeypatch.setattr(phantom, "write_cohort", fail)
    assert main(["phantom", "--output", "out", "--train", "1"]) == 2
    said = capsys.readouterr().err.strip()
    known = re.findall(r"^mrseg: error: .*$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert parts(said) in [parts(message) for message in known]
