"""A command that is killed at any moment and started again ends with the very files of one that was not."""

from __future__ import annotations

import random
import shutil

import nibabel as nib
import pytest

COMMANDS = ("prepare", "train", "predict", "crossval")


def assert_whole(house, folder, unbroken, name):
    """What a kill leaves: every file that has its name is whole, and the last one where it never changes."""
    final = house.contents(unbroken, name)
    for file, found in house.contents(folder, name).items():  # which reads every JSON and every network
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
                assert_whole(house, folder, unbroken, name)
        ended = mrseg(*command)
        assert ended.code == 0, ended.said
        house.assert_same(folder, name)
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
    house.unbroken(name)
    ended = mrseg(*house.command(name, tmp_path / "again"))
    assert ended.code == 0, ended.said
    house.assert_same(tmp_path / "again", name)


@pytest.mark.slow
def test_a_killed_prediction_s_workers_end_and_the_next_run_clears_up(mrseg, house, tmp_path):
    house.unbroken("predict")
    command = [*house.command("predict", tmp_path / "out"), "--workers", 2]
    seconds = 0.0
    while not list(tmp_path.glob("out/.segmenter.*.partial/1")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        seconds += 0.5
        assert mrseg(*command, kill_after=seconds, alone=True).code == -9
    assert mrseg(*command[:-2]).code == 0
    house.assert_same(tmp_path / "out", "predict")
    assert not list(tmp_path.rglob("*.partial"))
