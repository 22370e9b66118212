from __future__ import annotations

import logging

import pytest

from mrseg.data.layouts import Layout, folders


def test_a_volume_is_found_whatever_its_ending_and_named_as_published_if_it_is_not_there(tmp_path):
    layout = Layout("Set", "Copy again.")
    (tmp_path / "T1.nii").touch()
    assert layout.volume(tmp_path, "T1") == tmp_path / "T1.nii"
    assert layout.volume(tmp_path, "T2", needed=False) == tmp_path / "T2.nii.gz"
    layout.close()


def test_all_missing_files_are_named_at_once(tmp_path):
    layout = Layout("Set", "Copy again.")
    for stem in ("T1", "T2"):
        layout.volume(tmp_path, stem)
    with pytest.raises(FileNotFoundError, match=r"Set.*T1\.nii\.gz, .*T2\.nii\.gz\. Copy again\."):
        layout.close()


def test_files_that_nobody_asked_for_are_logged_but_for_hidden_ones_and_the_voxels_of_an_mhd(
    tmp_path, caplog
):
    layout = Layout("Set", "")
    for name in ("T1.mhd", "T1.raw", ".DS_Store", "notes.docx"):
        (tmp_path / name).touch()
    layout.volume(tmp_path, "T1")
    with caplog.at_level(logging.WARNING):
        layout.close()
    assert "notes.docx" in caplog.text and "T1.raw" not in caplog.text and "DS_Store" not in caplog.text


def test_absent_and_strange_subjects_are_told(tmp_path, caplog):
    layout = Layout("Set", "")
    layout.subjects(["s1", "s9"], ["s1", "s2"])
    layout.close()
    assert "no subject s9" in caplog.text and "without s2" in caplog.text and "s1" not in caplog.text


def test_a_long_list_is_cut(tmp_path, caplog):
    layout = Layout("Set", "")
    layout.subjects([], [f"s{i:02}" for i in range(14)])
    layout.close()
    assert "s09 and 4 more" in caplog.text and "s10" not in caplog.text


def test_folders_leaves_files_out_and_a_missing_folder_has_none(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a.txt").touch()
    assert folders(tmp_path, "*") == [tmp_path / "a", tmp_path / "b"]
    assert folders(tmp_path / "nowhere", "*") == []
