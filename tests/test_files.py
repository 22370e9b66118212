from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import tempfile
import time

import pytest

from mrseg import _files
from mrseg._checks import InputError


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "labels.nii.gz"
    with _files.atomic_file(target) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert not target.exists()
        assert temporary.name == "labels.nii.gz"
    assert target.read_text(encoding="utf-8") == "whole"
    assert os.listdir(target.parent) == ["labels.nii.gz"]


def test_a_failure_keeps_the_older_file_and_leaves_no_trace(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), _files.atomic_file(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_replaces_the_older_one_as_a_whole(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "stale").write_text("", encoding="utf-8")
    with _files.atomic_folder(target) as temporary:
        (temporary / "fresh").write_text("", encoding="utf-8")
        assert os.listdir(target) == ["stale"]
    assert os.listdir(target) == ["fresh"]
    assert os.listdir(tmp_path) == ["run"]


def test_a_failure_keeps_the_older_folder(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError), _files.atomic_folder(target) as temporary:
        (temporary / "half").write_text("", encoding="utf-8")
        raise RuntimeError
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["run"]


def test_the_older_folder_is_put_back_when_the_last_step_fails(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("", encoding="utf-8")
    replace = os.replace

    def failing(source, destination):
        if destination == target and os.path.exists(os.path.join(source, "new")):
            raise OSError("disk is full")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk is full"), _files.atomic_folder(target) as temporary:
        (temporary / "new").write_text("", encoding="utf-8")
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["run"]


def test_a_file_is_not_overwritten_by_a_folder(tmp_path):
    target = tmp_path / "notes"
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not a file"), _files.atomic_folder(target):
        pass
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_writable_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = _files.writable_folder(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert os.listdir(folder) == []


def test_an_output_folder_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="must be writable.*file.*Choose another folder"):
        _files.writable_folder(tmp_path / "file" / "out")


def test_an_output_name_that_is_a_file_is_refused_as_a_folder(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="must be writable"):
        _files.writable_folder(tmp_path / "file")


def left_behind(path, machine=None):
    """What a process that was killed while it wrote ``path`` leaves; returns the folder."""
    code = """
import os, signal, sys
from mrseg._files import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    before = set(path.parent.glob(".*.partial"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=environment).returncode == -9
    [folder] = set(path.parent.glob(".*.partial")) - before
    assert (folder / path.name).read_text(encoding="utf-8") == "half"
    if machine:
        (folder / _files.LOCK).write_text(machine, encoding="utf-8")
    return folder


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    left, other = left_behind(tmp_path / "a.txt"), left_behind(tmp_path / "b.txt")
    with _files.atomic_file(tmp_path / "a.txt") as temporary:
        assert not left.exists() and other.exists()
        temporary.write_text("whole", encoding="utf-8")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole"
    _files.clear_abandoned(tmp_path)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_killed_processes_left_at_any_depth_goes_and_what_the_living_write_stays(tmp_path):
    (tmp_path / "sub/anat").mkdir(parents=True)
    left_behind(tmp_path / "sub/anat/a.txt")
    foreign = tmp_path / ".notes.mine.partial"  # of another program
    foreign.mkdir()
    (foreign / "page").write_text("", encoding="utf-8")
    with _files.atomic_file(tmp_path / "sub/b.txt") as temporary:
        temporary.write_text("whole", encoding="utf-8")
        with _files.atomic_file(tmp_path / "sub/b.txt") as second:  # two writers of one file
            second.write_text("second", encoding="utf-8")
            os.utime(second.parent, (0, 0))  # however long it takes
            _files.clear_abandoned(tmp_path)
            assert temporary.exists() and second.exists()
    assert (tmp_path / "sub/b.txt").read_text(encoding="utf-8") == "whole"
    assert [file.name for file in tmp_path.rglob(".*.partial")] == [foreign.name]


def test_a_folder_of_a_process_that_was_killed_before_its_lock_goes_at_once(tmp_path):
    (tmp_path / ".a.txt.b7_x.partial").mkdir()
    _files.clear_abandoned(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_writer_whose_folder_is_taken_for_a_dead_one_s_before_its_lock_takes_another(tmp_path, monkeypatch):
    make, made = tempfile.mkdtemp, []

    def taken(**options):
        made.append(make(**options))
        if len(made) == 1:
            _files.clear_abandoned(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", taken)
    with _files.atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert len(made) == 2 and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("hours", [1, 25])
@pytest.mark.parametrize("where", ["here", "elsewhere", "no locks"])
def test_what_a_lock_cannot_tell_is_kept_for_a_day(tmp_path, monkeypatch, where, hours):
    left = left_behind(tmp_path / "a.txt", platform.node() if where == "here" else "another machine")
    os.utime(left, (time.time() - 3600 * hours,) * 2)
    if where == "no locks":
        monkeypatch.setattr(_files, "try_lock", lambda stream: None)
    _files.clear_abandoned(tmp_path)
    assert left.exists() == (where != "here" and hours < 24)


def test_a_replacement_of_a_folder_that_was_interrupted_is_brought_to_its_end(tmp_path):
    target = tmp_path / "run"
    code = """
import os, signal, sys
from mrseg._files import atomic_folder
replace = os.replace
def killed(source, destination):
    replace(source, destination)
    os.kill(os.getpid(), signal.SIGKILL)  # the old one is away, the new one not yet there
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "new").write_text("", encoding="utf-8")
    os.replace = killed
"""
    target.mkdir()
    (target / "old").write_text("", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code, str(target)], env=environment).returncode == -9
    assert not target.exists()
    _files.clear_abandoned(tmp_path)
    assert os.listdir(tmp_path) == ["run"] and os.listdir(target) == ["new"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path, number):
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    for reason in (OSError(number, os.strerror(number)), OSError(f"HDF5: {os.strerror(number)}")):
        with pytest.raises(OSError) as told, _files.atomic_file(tmp_path / "a.txt"):
            raise reason
        assert str(told.value) == (
            f"A file must fit on the disk. Received: {tmp_path / 'a.txt'} ({os.strerror(number)}). "
            "Make room, then start the same command again."
        )
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("content", [b"", b'{"finished": tr', b"\xff\xfe", b"[1]"])
def test_damaged_json_is_one_line_with_the_remedy(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run.json is as mrseg wrote it\..*damaged.*Remove it\.$"):
        _files.read_json(tmp_path / "run.json", "Remove it.")
