from __future__ import annotations

import builtins
import dataclasses
import logging
from pathlib import Path

import pytest

from mrseg._checks import InputError
from mrseg.data import bids, cases, datasets
from mrseg.data.cases import Case


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


@pytest.fixture
def cohort(tmp_path):
    """One subject of one session with all datatypes, one of two sessions whose CT was taken once."""
    return touched(
        tmp_path,
        "dataset_description.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/ct/sub-01_ct.nii.gz",
        "sub-01/perf/sub-01_dsc.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
        "sub-02/ses-1/ct/sub-02_ses-1_ct.nii.gz",
    )


def test_a_bids_folder_becomes_one_case_per_subject_and_session(cohort):
    found = datasets.read_cohort(cohort)
    assert [case.name for case in found] == ["01", "02_ses-1", "02_ses-2"]
    assert found[0].images == {
        "T1w": cohort / "sub-01/anat/sub-01_T1w.nii.gz",
        "T2w": cohort / "sub-01/anat/sub-01_T2w.nii.gz",
        "dsc": cohort / "sub-01/perf/sub-01_dsc.nii.gz",
    }
    assert found[0].ct == cohort / "sub-01/ct/sub-01_ct.nii.gz"


def test_a_session_without_ct_takes_the_only_one_the_subject_has(cohort):
    found = datasets.bids(cohort)
    assert found[1].ct == found[2].ct == cohort / "sub-02/ses-1/ct/sub-02_ses-1_ct.nii.gz"
    touched(cohort, "sub-02/ses-2/ct/sub-02_ses-2_ct.nii.gz", "sub-02/ses-3/anat/sub-02_ses-3_T1w.nii.gz")
    found = datasets.bids(cohort)
    assert found[2].ct.name == "sub-02_ses-2_ct.nii.gz" and found[3].ct is None  # which of two, nobody knows


def test_label_maps_of_derivatives_go_to_the_sequence_they_name(cohort):
    touched(
        cohort,
        "derivatives/other/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "derivatives/mine/sub-01/anat/sub-01_space-T2w_dseg.nii.gz",
        "derivatives/mine/sub-02/ses-2/anat/sub-02_ses-2_desc-manual_dseg.nii.gz",
        "derivatives/mine/sub-02/ses-2/anat/sub-02_ses-2_desc-brain_mask.nii.gz",
    )
    found = datasets.bids(cohort)
    mine = cohort / "derivatives/mine"
    assert [case.labels for case in found] == [
        {"T2w": mine / "sub-01/anat/sub-01_space-T2w_dseg.nii.gz"},
        {},
        {"T1w": mine / "sub-02/ses-2/anat/sub-02_ses-2_desc-manual_dseg.nii.gz"},
    ]
    assert datasets.bids(cohort, labels=mine) == found
    touched(cohort, "derivatives/yours/sub-01/anat/sub-01_space-T1w_dseg.nii.gz")
    with pytest.raises(InputError, match="one folder of derivatives.*mine, yours"):
        datasets.bids(cohort)
    touched(cohort, "derivatives/mine/sub-01/anat/sub-01_space-T2w_desc-b_dseg.nii.gz")
    with pytest.raises(InputError, match=r"sub-01_T2w\.nii\.gz has one label map.*desc-b"):
        datasets.bids(cohort, labels=mine)


def test_a_label_map_that_names_no_sequence_is_nobodys_where_there_are_several(cohort):
    touched(cohort, "derivatives/mine/sub-01/anat/sub-01_desc-manual_dseg.nii.gz")
    assert datasets.bids(cohort)[0].labels == {}


def test_a_second_run_and_a_bad_name_are_left_out_and_told(cohort, caplog):
    touched(
        cohort,
        "sub-01/anat/sub-01_run-2_T1w.nii.gz",
        "sub-01/anat/T1.nii.gz",
        "sub-01/ct/sub-01_acq-low_ct.nii.gz",
    )
    found = datasets.bids(cohort)
    assert found[0].images["T1w"].name == "sub-01_T1w.nii.gz"
    for words in ("a second T1w, beside", "T1.nii.gz is left out: the name is not", "a second CT, beside"):
        assert words in caplog.text


def test_sessions_go_through_a_manifest_and_share_their_split(cohort):
    dealt = cases.split_by_subject(datasets.bids(cohort), {"train": 0.5, "test": 0.5}, seed=0)
    assert dealt[1].split == dealt[2].split != dealt[0].split
    cases.write_cases(dealt, cohort / "cohort.tsv")
    assert cases.read_cases(cohort / "cohort.tsv") == dealt
    two = [dataclasses.replace(dealt[1], split="train"), dataclasses.replace(dealt[2], split="val")]
    cases.write_cases(two, cohort / "cohort.tsv")
    with pytest.raises(InputError, match="one split only.*02 in 'train' and 'val'"):
        cases.read_cases(cohort / "cohort.tsv")


def test_a_folder_without_scans_is_refused(tmp_path):
    touched(tmp_path, "sub-01/ct/sub-01_ct.nii.gz")
    with pytest.raises(InputError, match="has scans in sub-"):
        datasets.bids(tmp_path)


def test_the_validator_is_asked_about_names_of_the_standard_alone(tmp_path, caplog):
    pytest.importorskip("bids_validator")
    touched(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_run-1_acq-x_T2w.nii.gz",  # acq goes before run
        "sub-01/ct/sub-01_ct.nii.gz",
        "sub-01/perf/sub-01_dsc.nii.gz",
    )
    bids._validator.cache_clear()
    files, unknown = bids.bids_files(tmp_path)
    assert len(files) == 4 and not unknown
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "sub-01_run-1_acq-x_T2w.nii.gz is no name of BIDS" in told[0]


def test_without_the_validator_names_are_read_and_a_line_says_so(tmp_path, caplog, monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("bids_validator"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    bids._validator.cache_clear()
    touched(tmp_path, "sub-01/anat/sub-01_run-1_acq-x_T2w.nii.gz")
    with caplog.at_level(logging.INFO):
        files, _ = bids.bids_files(tmp_path)
    assert len(files) == 1 and "not validated" in caplog.text
    bids._validator.cache_clear()


@pytest.mark.parametrize(
    ("case", "stem", "place"),
    [
        (Case("01", {}), "sub-01", "sub-01/anat"),
        (Case("sub-IBSR_07", {}), "sub-IBSR07", "sub-IBSR07/anat"),
        (Case("a", {}, session="ses-2"), "sub-a_ses-2", "sub-a/ses-2/anat"),
    ],
)
def test_a_case_has_a_name_in_bids(case, stem, place):
    assert bids.bids_names(case) == (stem, Path(place))


def test_a_subject_without_letter_or_digit_has_no_name_in_bids():
    with pytest.raises(InputError, match="letters or digits"):
        bids.bids_names(Case("__", {}))
