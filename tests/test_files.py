from __future__ import annotations

import os

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
