"""Commands in processes of their own, and what they work on: scans, labels, a tiny recipe, a segmenter."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from mrseg._files import LOCK
from mrseg.data import phantom

RECIPE = """
name: tiny
title: a tiny network on slices
paper: phantom
command: mrseg train tiny.yaml
sequence: T1w
class_names: [air, soft, bone]
network: {builder: tiny, arguments: {filters: 4}}
sampling: {patch_shape: [16, 16, 1], overlap: 0.0, patches_per_volume: 8}
loss: {name: dice}
training: {epochs: 4, batch_size: 4, learning_rate: 5.0e-3}
"""


#: What tells how long something took.
TIMED = {"crossval": ("report.html", "trainings.csv", "trainings.tex")}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (or, negative, the signal), how long it took, what it said."""

    code: int
    seconds: float
    said: str

    @property
    def last(self) -> str:
        return self.said.strip().splitlines()[-1]


class Forks:
    """Runs ``mrseg`` in processes that are forked from a warm one (``warm.py``)."""

    def __init__(self, folder: Path):
        self.said = folder / "said.txt"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_DETERMINISTIC_OPS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
            env=environment,
        )  # fmt: skip

    def __call__(self, *arguments: object, **how: object) -> Ended:
        """Runs a command.

        Args:
            arguments: what stands after ``mrseg``.
            how: ``kill_after`` so many seconds, with all that it started (``alone``: without);
                ``largest_bytes`` of a file; ``as_anybody``, for whom permissions hold.
        """
        assert self.process.stdin and self.process.stdout
        request = {"arguments": [str(a) for a in arguments], "output": str(self.said), **how}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ended(answer["code"], answer["seconds"], self.said.read_text(encoding="utf-8"))

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def mrseg(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@dataclass
class House:
    """Where the scans, the labels, the recipe and the segmenter lie; and every command's unbroken run."""

    mrseg: Forks
    folder: Path

    def command(self, name: str, output: Path) -> tuple[object, ...]:
        """The command of that name, into ``output``."""
        raw, data, recipe = self.folder / "raw", self.folder / "prepare", self.folder / "tiny.yaml"
        return {
            "prepare": ("prepare", raw / "cohort.tsv", "--registered", "--workers", 1),
            "train": ("train", recipe, "--data", data),
            "crossval": ("crossval", recipe, "--data", data, "--folds", 2),
            "predict": ("predict", "--segmenter", self.folder / "train/segmenter", "--data", raw),
        }[name] + ("--output", output)

    def unbroken(self, name: str) -> tuple[Path, float]:
        """The folder of a run that nobody killed, and how long it took."""
        for needed in {"train": ["prepare"], "crossval": ["prepare"], "predict": ["train"]}.get(name, []):
            self.unbroken(needed)
        folder, note = self.folder / name, self.folder / f"{name}.seconds"
        if not note.exists():
            ended = self.mrseg(*self.command(name, folder))
            assert ended.code == 0, ended.said
            note.write_text(str(ended.seconds), encoding="utf-8")
        return folder, float(note.read_text(encoding="utf-8"))

    def contents(self, folder: Path, name: str) -> dict[str, object]:
        """Every file that a command leaves, by its place."""
        return _contents(folder, name)

    def assert_same(self, folder: Path, name: str) -> None:
        """Whether a command left the files of its unbroken run."""
        ours, theirs = self.contents(folder, name), self.contents(self.folder / name, name)
        assert list(ours) == list(theirs)
        assert [file for file in ours if ours[file] != theirs[file]] == []


def _contents(folder, name):
    """Every file but locks and what is half written, without what names a moment or a duration."""
    found = {}
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder).as_posix()
        left_out = file.name == LOCK or ".partial/" in place or file.name in TIMED.get(name, ())
        if file.is_file() and not left_out:
            found[place] = _content(file)
    return found


def _content(file):
    if file.suffix == ".keras":
        with zipfile.ZipFile(file) as archive:
            parts = {part: archive.read(part) for part in archive.namelist() if part != "metadata.json"}
            # Keras numbers objects by their place in memory.
            return {part: re.sub(rb'"shared_object_id": \d+', b"", data) for part, data in parts.items()}
    if file.suffix == ".json":
        read = json.loads(file.read_text(encoding="utf-8"))
        for key in ("sha256", "network_sha256"):  # of an archive with dates
            read.pop(key, None)
        read.get("record", {}).pop("seconds", None)
        return read
    if file.name == "trials.csv":
        rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return file.read_bytes()


@pytest.fixture(scope="session")
def house(mrseg, tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    phantom.write_cohort(
        folder / "raw", subjects={"train": 2, "test": 1}, shape=(24, 28, 24), registered=True
    )
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return House(mrseg, folder)
