"""IBSR18 in NITRC's layout, MRBrainS13 and NeoBrainS12: folders made from their lists of files."""

from __future__ import annotations

import pytest

from mrseg._checks import InputError
from mrseg.data import datasets
from mrseg.data.cases import check_splits

# Per subject of "IBSR_V2.0 skull-stripped NIfTI".
NITRC = ("ana", "ana_strip", "ana_brainmask", "seg_ana", "segTRI_ana", "segTRI_fill_ana")
# Readme.txt of MRBrainS13.
MRBRAINS = ("T1_1mm", "T1", "T1_IR", "T2_FLAIR")
MRBRAINS_LABELS = ("LabelsForTraining", "LabelsForTesting")
NEO_TESTS = {"scans_axial_40": "set1", "scans_cor_30": "set2", "scans_cor_40": "set3"}


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def ibsr(tmp_path):
    names = [f"IBSR_{number:02}" for number in range(1, 19)]
    touch(*(tmp_path / name / f"{name}_{stem}.nii.gz" for name in names for stem in NITRC))
    return tmp_path


@pytest.fixture
def mrbrains(tmp_path):
    for part, count, stems in (("TrainingData", 5, MRBRAINS + MRBRAINS_LABELS), ("TestData", 15, MRBRAINS)):
        touch(*(tmp_path / part / str(i) / f"{stem}.nii" for i in range(1, count + 1) for stem in stems))
    return tmp_path


@pytest.fixture
def neobrains(tmp_path):
    for example in ("30wCoronal/example1", "30wCoronal/example2", "40wAxial/example3", "40wAxial/example4"):
        folder = tmp_path / "trainingDataNeoBrainS12" / example
        touch(*(folder / name for name in ("T1_1-2.nii.gz", "T2_1-1.nii.gz", "manualSegm.nii.gz")))
    for folder, prefix in NEO_TESTS.items():
        scans = [
            f"{prefix}_{scan}_{t}.nii.gz" for scan in ("i1", "i2", "i3", "iC1", "iC2") for t in ("t1", "t2")
        ]
        touch(*(tmp_path / folder / name for name in scans))
    return tmp_path


# --- IBSR18


def test_nitrcs_18_subjects_take_the_stripped_scan_the_three_classes_and_the_papers_split(ibsr, caplog):
    cases = datasets.read_cohort(ibsr)
    assert [case.subject for case in cases] == [f"IBSR_{number:02}" for number in range(1, 19)]
    folder = ibsr / "IBSR_07"
    assert cases[6].images == {"T1w": folder / "IBSR_07_ana_strip.nii.gz"}
    assert cases[6].labels == {"T1w": folder / "IBSR_07_segTRI_ana.nii.gz"}
    splits = {
        split: [int(c.subject[-2:]) for c in cases if c.split == split] for split in ("train", "test", "")
    }
    # islam2025, Data.
    assert splits == {
        "train": [1, 3, 4, 5, 6, 7, 8, 9, 16, 18], "test": [11, 12, 13, 14, 17], "": [2, 10, 15],
    }  # fmt: skip
    assert not caplog.records


def test_filled_labels_on_request(ibsr):
    cases = datasets.ibsr18(ibsr, labels="segTRI_fill")
    assert cases[0].labels["T1w"].name == "IBSR_01_segTRI_fill_ana.nii.gz"
    with pytest.raises(InputError, match="labels is one of segTRI, segTRI_fill"):
        datasets.ibsr18(ibsr, labels="seg")


def test_unpacked_files_are_found(ibsr):
    (ibsr / "IBSR_01" / "IBSR_01_ana_strip.nii.gz").rename(ibsr / "IBSR_01" / "IBSR_01_ana_strip.nii")
    assert datasets.ibsr18(ibsr)[0].images["T1w"].name == "IBSR_01_ana_strip.nii"


def test_of_ibsr18_a_missing_file_is_an_error_and_an_extra_one_and_a_missing_subject_are_told(ibsr, caplog):
    touch(ibsr / "IBSR_02" / "IBSR_02_mine.nii.gz")
    for file in (ibsr / "IBSR_18").iterdir():
        file.unlink()
    (ibsr / "IBSR_18").rmdir()
    assert len(datasets.ibsr18(ibsr)) == 17
    assert "IBSR_02_mine.nii.gz" in caplog.text and "without IBSR_18" in caplog.text
    (ibsr / "IBSR_03" / "IBSR_03_segTRI_ana.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"IBSR_03_segTRI_ana\.nii\.gz"):
        datasets.ibsr18(ibsr)


# --- MRBrainS13


def test_mrbrains13_has_three_sequences_on_the_grid_of_its_labels(mrbrains, caplog):
    cases = datasets.read_cohort(mrbrains)
    assert [c.subject for c in cases if c.split == "train"] == [f"train-{i}" for i in range(1, 6)]
    assert [c.subject for c in cases if not c.split] == [f"test-{i}" for i in range(1, 16)]
    folder = mrbrains / "TrainingData" / "2"
    assert cases[1].images == {
        "T1w": folder / "T1.nii", "T1IR": folder / "T1_IR.nii", "FLAIR": folder / "T2_FLAIR.nii",
    }  # fmt: skip
    assert set(cases[1].labels.values()) == {folder / "LabelsForTraining.nii"}
    assert set(cases[1].labels) == {"T1w", "T1IR", "FLAIR"} and not cases[5].labels
    assert not caplog.records


def test_mrbrains13_with_tissues_and_with_labels_of_the_test_data(mrbrains):
    touch(mrbrains / "TestData" / "1" / "LabelsForTesting.nii")
    cases = datasets.mrbrains13(mrbrains, labels="tissues")
    assert {case.labels["T1w"].name for case in cases[:6]} == {"LabelsForTesting.nii"}
    assert [case.split for case in cases[5:7]] == ["test", ""]
    check_splits(cases, required=("train", "test"))


def test_of_mrbrains13_a_missing_file_is_an_error_and_an_extra_one_is_told(mrbrains, caplog):
    touch(mrbrains / "TestData" / "15" / "T2.nii")
    datasets.mrbrains13(mrbrains)
    assert "TestData/15/T2.nii" in caplog.text
    (mrbrains / "TrainingData" / "4" / "T1_IR.nii").unlink()
    with pytest.raises(FileNotFoundError, match=r"TrainingData/4/T1_IR\.nii"):
        datasets.mrbrains13(mrbrains)


def test_other_folders_are_refused_with_the_layout(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(InputError, match=r"TrainingData/1.*\['stuff'\]"):
        datasets.mrbrains13(tmp_path)
    with pytest.raises(InputError, match=r"trainingDataNeoBrainS12.*\['stuff'\]"):
        datasets.neobrains12(tmp_path)


# --- NeoBrainS12


def test_neobrains12_has_two_training_scans_of_two_acquisitions_and_five_test_scans_of_three(
    neobrains, caplog
):
    cases = datasets.read_cohort(neobrains)
    train = [case for case in cases if case.split == "train"]
    assert [case.subject for case in train] == [
        "30wCoronal-example1", "30wCoronal-example2", "40wAxial-example3", "40wAxial-example4",
    ]  # fmt: skip
    folder = neobrains / "trainingDataNeoBrainS12" / "30wCoronal" / "example1"
    assert train[0].images == {"T1w": folder / "T1_1-2.nii.gz", "T2w": folder / "T2_1-1.nii.gz"}
    assert train[0].labels["T2w"] == folder / "manualSegm.nii.gz"
    assert len(cases) == 4 + 3 * 5 and not any(case.labels for case in cases[4:])
    assert cases[4].images["T2w"] == neobrains / "scans_axial_40" / "set1_i1_t2.nii.gz"
    assert not caplog.records


def test_neobrains12_of_one_acquisition(neobrains):
    cases = datasets.neobrains12(neobrains, acquisition="40wAxial")
    assert len(cases) == 7 and all(case.subject.startswith("40wAxial-") for case in cases)
    assert len(datasets.neobrains12(neobrains, acquisition="40wCoronal")) == 5
    with pytest.raises(InputError, match="acquisition is one of"):
        datasets.neobrains12(neobrains, acquisition="axial")


def test_of_neobrains12_a_missing_file_is_an_error_and_an_extra_one_is_told(neobrains, caplog):
    touch(neobrains / "scans_cor_30" / "set2_i4_t1.nii.gz")
    datasets.neobrains12(neobrains)
    assert "set2_i4_t1.nii.gz" in caplog.text
    (neobrains / "scans_cor_40" / "set3_iC2_t2.nii.gz").unlink()
    (neobrains / "trainingDataNeoBrainS12" / "40wAxial" / "example3" / "T2_1-1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"example3/T2\.nii\.gz, .*set3_iC2_t2\.nii\.gz"):
        datasets.neobrains12(neobrains)
