"""SynthRAD2023 and TCGA-GBM: folders made from their layouts."""

from __future__ import annotations

import pytest

from mrseg._checks import InputError
from mrseg.data import datasets


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def synthrad(tmp_path):
    brain = tmp_path / "Task1" / "brain"
    touch(brain / "overview" / "1_brain_train.xlsx", brain / "overview" / "1BA001_train.png")
    for name in ("1BA001", "1BB017", "1BC099"):
        touch(*(brain / name / f"{stem}.nii.gz" for stem in ("mr", "ct", "mask")))
    return tmp_path


def test_synthrad_gives_pairs_of_mr_and_ct_from_every_depth(synthrad, caplog):
    for folder in (synthrad, synthrad / "Task1", synthrad / "Task1" / "brain"):
        cases = datasets.read_cohort(folder)
        assert [case.subject for case in cases] == ["1BA001", "1BB017", "1BC099"]
    subject = synthrad / "Task1" / "brain" / "1BB017"
    assert cases[1].images == {"T1w": subject / "mr.nii.gz"} and cases[1].ct == subject / "ct.nii.gz"
    assert datasets.synthrad2023(synthrad, sequence="T1wGd")[0].images.keys() == {"T1wGd"}
    assert not caplog.records


def test_validation_cases_of_synthrad_have_no_ct(synthrad):
    for file in synthrad.rglob("ct.nii.gz"):
        file.unlink()
    assert [case.ct for case in datasets.synthrad2023(synthrad)] == [None] * 3


@pytest.mark.parametrize("stem", ["mr", "ct", "mask"])
def test_of_synthrad_a_missing_file_is_an_error_and_an_extra_one_is_told(synthrad, caplog, stem):
    brain = synthrad / "Task1" / "brain"
    touch(brain / "1BC099" / "cbct.nii.gz")
    datasets.synthrad2023(synthrad)
    assert "1BC099/cbct.nii.gz" in caplog.text
    (brain / "1BA001" / f"{stem}.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"1BA001/{stem}\.nii\.gz"):
        datasets.synthrad2023(synthrad)


def test_a_folder_without_subjects_is_told_with_what_it_holds(tmp_path):
    touch(tmp_path / "readme.txt")
    with pytest.raises(InputError, match="holds subjects 1BA001.*readme.txt"):
        datasets.synthrad2023(tmp_path)


def test_folders_of_pairs_with_other_names_are_read_as_well(tmp_path):
    touch(*(tmp_path / "patient 7" / f"{stem}.nii.gz" for stem in ("mr", "ct", "mask")))
    assert [case.subject for case in datasets.read_cohort(tmp_path)] == ["patient 7"]


@pytest.fixture
def tcga(tmp_path):
    """Names of folders as they come from the archive; two studies of the second patient."""
    for series in (
        "TCGA-02-0003/06-08-1997-MRI BRAIN WWO CONTRAMR-81239/1-3-P Localizer-98688",
        "TCGA-02-0003/06-08-1997-MRI BRAIN WWO CONTRAMR-81239/12-AX PERFUSION-11111",
        "TCGA-06-0119/12-01-2004-MRI BRAIN-20001/9-Axial Perfusion-22222",
        "TCGA-06-0119/01-05-2005-MRI BRAIN-30001/8-Axial Perfusion-33333",
    ):
        touch(tmp_path / "TCGA-GBM" / series / "1-01.dcm", tmp_path / "TCGA-GBM" / series / "1-02.dcm")
    touch(tmp_path / "TCGA-GBM" / "TCGA-02-0003" / "notes" / "empty" / "readme.txt", tmp_path / "LICENSE")
    return tmp_path


def test_series_are_listed_without_opening_a_file(tcga):
    listed = datasets.series_folders(tcga)
    assert [(one.subject, one.series, one.files) for one in listed] == [
        ("TCGA-02-0003", "1-3-P Localizer-98688", 2),
        ("TCGA-02-0003", "12-AX PERFUSION-11111", 2),
        ("TCGA-06-0119", "8-Axial Perfusion-33333", 2),
        ("TCGA-06-0119", "9-Axial Perfusion-22222", 2),
    ]
    assert datasets.series_folders(tcga / "TCGA-GBM") == listed


def test_the_chosen_series_become_cases_and_studies_sessions(tcga):
    cases = datasets.tcga_gbm(tcga, series="*perfusion*")
    assert [case.name for case in cases] == [
        "TCGA-02-0003", "TCGA-06-0119_ses-01052005MRIBRAIN30001", "TCGA-06-0119_ses-12012004MRIBRAIN20001",
    ]  # fmt: skip
    assert cases[0].images["dsc"].name == "12-AX PERFUSION-11111"


def test_a_pattern_that_fits_no_series_or_several_is_refused_with_their_names(tcga):
    with pytest.raises(InputError, match=r"none, 1-3-P Localizer-98688, 12-AX PERFUSION-11111"):
        datasets.tcga_gbm(tcga, series="*dsc*")
    with pytest.raises(InputError, match=r"several, 1-3-P Localizer-98688, 12-AX PERFUSION-11111"):
        datasets.tcga_gbm(tcga, series="*")


def test_a_whole_collection_is_no_cohort_before_a_series_is_chosen(tcga):
    with pytest.raises(InputError, match="TCGA-GBM holds many DICOM series.*series_folders"):
        datasets.read_cohort(tcga)


def test_a_folder_without_series_is_refused(tmp_path):
    with pytest.raises(InputError, match="TCGA-xx-xxxx/<study>/<series>"):
        datasets.series_folders(tmp_path)
