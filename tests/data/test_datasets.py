from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from mrseg._checks import InputError
from mrseg.data import cases, datasets, io
from mrseg.data.geometry import grid_distance_mm


def layout(folder, **sets):
    """Makes an IBSR18 folder of empty files: set -> subject numbers."""
    for name, numbers in sets.items():
        for number in numbers:
            subject = folder / name / f"IBSR_{number:02}"
            subject.mkdir(parents=True)
            (subject / f"{subject.name}.nii.gz").touch()
            if name != "Test_Set":
                (subject / f"{subject.name}_seg.nii.gz").touch()
    return folder


def test_the_course_layout_becomes_cases_with_splits(tmp_path):
    layout(tmp_path, Training_Set=[3, 1], Validation_Set=[11], Test_Set=[2])
    found = datasets.ibsr18(tmp_path)
    assert [(case.subject, case.split) for case in found] == [
        ("IBSR_01", "train"),
        ("IBSR_03", "train"),
        ("IBSR_11", "test"),
        ("IBSR_02", ""),
    ]
    folder = tmp_path / "Training_Set" / "IBSR_01"
    assert found[0].images == {"T1w": folder / "IBSR_01.nii.gz"}
    assert found[0].labels == {"T1w": folder / "IBSR_01_seg.nii.gz"}
    assert found[0].ct is None


def test_the_test_set_needs_no_labels(tmp_path):
    assert datasets.ibsr18(layout(tmp_path, Test_Set=[2]))[0].labels == {}


def test_every_missing_file_is_named(tmp_path):
    layout(tmp_path, Training_Set=[1, 3], Validation_Set=[11])
    (tmp_path / "Training_Set" / "IBSR_03" / "IBSR_03.nii.gz").unlink()
    (tmp_path / "Validation_Set" / "IBSR_11" / "IBSR_11_seg.nii.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.ibsr18(tmp_path)
    message = str(caught.value)
    assert "IBSR_03.nii.gz" in message and "IBSR_11_seg.nii.gz" in message
    assert "IBSR_01" not in message


def test_a_folder_of_something_else_is_refused_with_the_layout_and_the_source(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(InputError, match=r"Training_Set/IBSR_xx.*\['stuff'\].*nitrc"):
        datasets.ibsr18(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        datasets.ibsr18(tmp_path / "nowhere")


def test_stray_files_beside_the_subjects_do_no_harm(tmp_path):
    layout(tmp_path, Training_Set=[1])
    (tmp_path / "Training_Set" / "IBSR_notes.txt").touch()
    assert len(datasets.ibsr18(tmp_path)) == 1


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
def test_the_real_ibsr18_is_complete_and_each_image_shares_its_labels_grid():
    found = datasets.ibsr18(Path(os.environ["MRSEG_DATA"]) / "ibsr18")
    cases.check_splits(found, required=("train", "test"))
    assert Counter(case.split for case in found) == {"train": 10, "test": 3}
    for case in found:
        image, labels = (io.volume_header(files["T1w"]) for files in (case.images, case.labels))
        assert image[0] == (256, 128, 256)
        assert grid_distance_mm(*image, *labels) < 0.01


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
def test_the_real_ibsr18_survives_the_table(tmp_path):
    found = datasets.ibsr18(Path(os.environ["MRSEG_DATA"]) / "ibsr18")
    cases.write_cases(found, tmp_path / "ibsr18.tsv")
    assert cases.read_cases(tmp_path / "ibsr18.tsv") == found


def test_a_cohort_is_a_manifest_or_a_folder_of_a_known_layout(tmp_path):
    layout(tmp_path / "ibsr", Training_Set=[1])
    found = datasets.read_cohort(tmp_path / "ibsr")
    assert [case.subject for case in found] == ["IBSR_01"]
    cases.write_cases(found, tmp_path / "prepared" / "cohort.tsv")
    assert datasets.read_cohort(tmp_path / "prepared") == datasets.read_cohort(
        tmp_path / "prepared" / "cohort.tsv"
    )


def test_a_folder_of_no_known_layout_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(InputError, match=r"cohort.tsv.*\['scans'\].*mrseg prepare --help"):
        datasets.read_cohort(tmp_path)
