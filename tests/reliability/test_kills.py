"""A command that is killed at any moment and started again ends with the very files of one that was not."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import zipfile

import nibabel as nib
import pytest

from mrseg._files import LOCK

COMMANDS = ("prepare", "train", "predict", "crossval")
#: What tells how long something took.
TIMED = {"crossval": ("report.html", "trainings.csv", "trainings.tex")}


def contents(folder, name):
    """Every file but locks and what is half written, without what names a moment or a duration."""
    found = {}
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder).as_posix()
        left_out = file.name == LOCK or ".partial/" in place or file.name in TIMED.get(name, ())
        if file.is_file() and not left_out:
            found[place] = content(file)
    return found


def content(file):
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


def assert_same(folder, unbroken, name):
    ours, theirs = contents(folder, name), contents(unbroken, name)
    assert list(ours) == list(theirs)
    assert [file for file in ours if ours[file] != theirs[file]] == []


def assert_whole(folder, unbroken, name):
    """What a kill leaves: every file that has its name is whole, and the last one where it never changes."""
    final = contents(unbroken, name)
    for file, found in contents(folder, name).items():  # which reads every JSON and every network
        if file.endswith(".nii.gz"):
            nib.load(folder / file).get_fdata()
        if name in ("prepare", "predict"):
            assert found == final[file], file
        if file.endswith("log.csv"):
            assert final[file].startswith(found)


def killed_and_resumed(mrseg, house, tmp_path, name, moments):
    unbroken, seconds = house.unbroken(name)
    rng = random.Random(name)
    kills = 0
    for number in range(moments):
        folder = tmp_path / f"{name}{number}"
        command = house.command(name, folder)
        for _ in range(2 if number % 5 == 4 else 1):  # every fifth is killed once more as it goes on
            ended = mrseg(*command, kill_after=rng.uniform(0, seconds))
            assert ended.code in (-9, 0), ended.said
            kills += ended.code == -9
            if folder.exists():
                assert_whole(folder, unbroken, name)
        ended = mrseg(*command)
        assert ended.code == 0, ended.said
        assert_same(folder, unbroken, name)
        assert not list(folder.rglob("*.partial"))
        shutil.rmtree(folder)
    return kills


@pytest.mark.parametrize("name", ["train", "predict"])
def test_a_killed_command_goes_on_to_the_same_end(mrseg, house, tmp_path, name):
    killed_and_resumed(mrseg, house, tmp_path, name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_twenty_random_moments_goes_on_to_the_same_end(mrseg, house, tmp_path, name):
    kills = killed_and_resumed(mrseg, house, tmp_path, name, 20)
    assert kills > 12  # some had ended before


@pytest.mark.parametrize(
    "name", ["train", *(pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS if n != "train")]
)
def test_a_command_gives_the_same_bits_twice(mrseg, house, tmp_path, name):
    unbroken, _ = house.unbroken(name)
    ended = mrseg(*house.command(name, tmp_path / "again"))
    assert ended.code == 0, ended.said
    assert_same(tmp_path / "again", unbroken, name)


@pytest.mark.slow
def test_a_killed_prediction_s_workers_end_and_the_next_run_clears_up(mrseg, house, tmp_path):
    unbroken, _ = house.unbroken("predict")
    command = [*house.command("predict", tmp_path / "out"), "--workers", 2]
    seconds = 0.0
    while not list(tmp_path.glob("out/.segmenter.*.partial/segmenter")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        seconds += 0.5
        assert mrseg(*command, kill_after=seconds, alone=True).code == -9
    assert mrseg(*command[:-2]).code == 0
    assert_same(tmp_path / "out", unbroken, "predict")
    assert not list(tmp_path.rglob("*.partial"))
