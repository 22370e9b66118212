from __future__ import annotations

import pytest

from mrseg._checks import InputError
from mrseg.data.scans import find_scans


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_a_bids_folder_gives_the_scans_of_one_sequence_with_their_sessions(tmp_path):
    touched(
        tmp_path,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.json",
        "sub-02/ses-1/anat/sub-02_ses-1_run-1_T2w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_run-2_T2w.nii",
        "sub-02/ses-1/func/sub-02_ses-1_task-rest_bold.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_T2w.nii.gz",
    )
    scans, unknown = find_scans(tmp_path, "T2w")
    assert [(scan.stem, scan.folder.as_posix()) for scan in scans] == [
        ("sub-01", "sub-01/anat"),
        ("sub-02_ses-1_run-1", "sub-02/ses-1/anat"),
        ("sub-02_ses-1_run-2", "sub-02/ses-1/anat"),
    ]
    assert scans[0].path == tmp_path / "sub-01/anat/sub-01_T2w.nii.gz" and not unknown


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01/anat/T2.nii.gz", "the name is not"),
        ("sub-01/anat/sub-01_T2w_extra_.nii.gz", "the name is not"),
        ("sub-01/anat/sub-01_run_1_T2w.nii.gz", "the name is not"),
        ("sub-01/anat/sub-02_T2w.nii.gz", "belongs into sub-02/anat"),
        ("sub-01/anat/sub-01_ses-1_T2w.nii.gz", "belongs into sub-01/ses-1/anat"),
        ("sub-01/ses-2/anat/sub-01_T2w.nii.gz", "belongs into sub-01/anat"),
        ("sub-01/anat/sub-01_desc-denoised_T2w.nii.gz", "a derivative"),
        ("sub-01/anat/sub-01_T2w.nii", "a second file"),
    ],
)
def test_what_is_not_understood_is_named_with_its_reason(tmp_path, name, reason):
    scans, unknown = find_scans(touched(tmp_path, "sub-01/anat/sub-01_T2w.nii.gz", name), "T2w")
    assert len(scans) == 1 and len(unknown) == 1
    assert reason in next(iter(unknown.values()))


def test_a_bids_folder_without_the_sequence_names_those_there_are(tmp_path):
    touched(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/x.nii")
    with pytest.raises(InputError, match=r"at least one T2w scan.*FLAIR, T1w.*x.nii"):
        find_scans(tmp_path, "T2w")


def test_subjects_of_a_manifest_become_bids_labels_and_a_missing_sequence_is_told(tmp_path):
    touched(tmp_path, "a.nii.gz")
    (tmp_path / "cohort.tsv").write_text(
        "subject\tT1w\tT2w\nIBSR_01\tn/a\ta.nii.gz\nsub-7\tn/a\ta.nii.gz\np3\ta.nii.gz\tn/a\n",
        encoding="utf-8",
    )
    for data in (tmp_path, tmp_path / "cohort.tsv"):
        scans, unknown = find_scans(data, "T2w")
        assert [(scan.stem, scan.folder.as_posix()) for scan in scans] == [
            ("sub-IBSR01", "sub-IBSR01/anat"),
            ("sub-7", "sub-7/anat"),
        ]
        assert unknown == {"p3": "no T2w image in the manifest"}


def test_two_subjects_that_become_one_label_are_refused(tmp_path):
    touched(tmp_path, "a.nii.gz")
    (tmp_path / "cohort.tsv").write_text("subject\tT2w\ns_1\ta.nii.gz\ns1\ta.nii.gz\n", encoding="utf-8")
    with pytest.raises(InputError, match="'s1' and 's_1'"):
        find_scans(tmp_path / "cohort.tsv", "T2w")
