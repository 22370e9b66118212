"""A full disk, a read-only folder, a damaged file: one line with the remedy, and nothing lost."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mrseg.data import case_cache
from mrseg.data.cases import read_cases

ROOM = "Make room, then start the same command again."


def refusal(ended):
    """The one line of a command that told a mistake."""
    assert ended.code == 2, ended.said
    assert ended.last.startswith("mrseg: error: ") and "Traceback" not in ended.said
    return ended.last


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("train", "out/checkpoint/epoch0001.keras"),
        ("prepare", ""),
        ("crossval", "out/trials/tiny/fold1/checkpoint/"),
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(mrseg, house, out, name, named):
    house.unbroken(name)
    line = refusal(mrseg(*house.command(name, out), largest_bytes=4000))
    assert f"fit on the disk. Received: {out}" in line and named in line and line.endswith(ROOM)
    assert not list(out.rglob("*.partial"))
    ended = mrseg(*house.command(name, out))
    assert ended.code == 0, ended.said
    house.assert_same(out, name)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KB, where this user may mount one; and what makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not mount("size=64k"):
        pytest.skip("needs the right to mount a file system")
    yield disk, lambda: mount("remount,size=64m")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "train"])
def test_a_disk_that_is_really_full_is_one_line_and_the_same_command_goes_on(mrseg, house, small_disk, name):
    disk, enlarge = small_disk
    house.unbroken(name)
    line = refusal(mrseg(*house.command(name, disk / "out")))
    assert f"fit on the disk. Received: {disk}" in line and "(No space left on device)" in line
    assert line.endswith(ROOM)
    assert enlarge()
    assert mrseg(*house.command(name, disk / "out")).code == 0
    house.assert_same(disk / "out", name)
    assert not list(disk.rglob("*.partial"))


@pytest.mark.slow
def test_a_full_disk_fails_a_cohort_s_scans_one_by_one_and_the_same_command_goes_on(mrseg, house, out):
    house.unbroken("predict")
    ended = mrseg(*house.command("predict", out), largest_bytes=4000)
    assert ended.code == 1 and "must fit on the disk" in ended.said and "3 failed" in ended.last
    assert not list(out.rglob("*.partial"))
    ended = mrseg(*house.command("predict", out))
    assert ended.code == 0 and "3 written" in ended.last
    house.assert_same(out, "predict")


def test_a_full_disk_of_the_cache_names_the_cache(mrseg, house, out, tmp_path):
    house.unbroken("prepare")
    cached = (*house.command("train", out), "--cache", tmp_path / "cache")
    line = refusal(mrseg(*cached, largest_bytes=4000))
    assert f"Cached cases must fit on the disk. Received: {tmp_path / 'cache'}" in line
    assert not list((tmp_path / "cache").glob("*.h5"))


@pytest.mark.parametrize("name", ["train", "predict", "prepare", "crossval"])
def test_a_folder_that_is_read_only_is_one_line_and_nothing_is_begun(mrseg, house, tmp_path, name):
    house.unbroken("train")
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "mine").write_text("", encoding="utf-8")
    folder.chmod(0o555)
    for output in (folder, folder / "new"):
        line = refusal(mrseg(*house.command(name, output), as_anybody=True))
        assert f"The output folder must be writable. Received: {output}" in line
        assert line.endswith("Choose another folder or change its permissions.")
    assert names(folder) == {"mine"}
    folder.chmod(0o755)


@pytest.mark.slow
def test_a_damaged_cache_is_told_and_made_again(mrseg, house, tmp_path):
    unbroken, _ = house.unbroken("train")
    cache = tmp_path / "cache"
    assert mrseg(*house.command("train", tmp_path / "first"), "--cache", cache).code == 0
    files = sorted(cache.glob("*.h5"))
    assert files
    for file in files:
        whole, half = file.read_bytes(), file.stat().st_size // 2
        file.write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
    ended = mrseg(*house.command("train", tmp_path / "second"), "--cache", cache)
    assert ended.code == 0
    assert ended.said.count("was damaged; the case is preprocessed again.") == len(files)
    assert all(case_cache._intact(file, file.stem) for file in files)
    for log in (tmp_path / "first/log.csv", tmp_path / "second/log.csv"):
        assert log.read_bytes() == (unbroken / "log.csv").read_bytes()


@pytest.mark.parametrize("how", ["halved", "a byte"])
@pytest.mark.parametrize("which", ["image", "labels"])
def test_a_damaged_scan_or_label_map_is_named(mrseg, house, tmp_path, which, how):
    house.unbroken("prepare")
    for folder in ("raw", "prepare"):
        shutil.copytree(house.folder / folder, tmp_path / folder)
    shutil.copy(house.folder / "tiny.yaml", tmp_path)
    manifest = tmp_path / "prepare/cohort.tsv"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace(str(house.folder), str(tmp_path)), encoding="utf-8")
    cases = read_cases(manifest)
    case = next(case for case in cases if case.split == "train")
    file = {"image": case.images, "labels": case.labels}[which]["T1w"]
    assert tmp_path in file.resolve().parents
    content, half = file.read_bytes(), file.stat().st_size // 2
    file.write_bytes(
        content[:half] if how == "halved" else content[:half] + b"\0\xff\0\xff" + content[half + 4 :]
    )
    train = ("train", tmp_path / "tiny.yaml", "--data", tmp_path / "prepare", "--output", tmp_path / "out")
    assert file.name in refusal(mrseg(*train))


@pytest.mark.parametrize("part", ["segmenter.json", "network.keras"])
def test_a_damaged_segmenter_is_told_before_anything_is_written(mrseg, house, tmp_path, out, part):
    house.unbroken("train")
    shutil.copytree(house.folder / "train/segmenter", tmp_path / "segmenter")
    file = tmp_path / "segmenter" / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    predict = ("predict", "--segmenter", tmp_path / "segmenter", "--data", house.folder / "raw")
    assert "segmenter" in refusal(mrseg(*predict, "--output", out))
    assert not out.exists()
