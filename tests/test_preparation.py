from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from mrseg import preparation
from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.bids import bids_files
from mrseg.data.cases import read_cases
from mrseg.data.datasets import read_cohort
from mrseg.data.io import read_labels, read_sidecar, read_volume, write_volume
from mrseg.preparation import Labelling, prepare

REGISTERED = Labelling(stages=())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two heads with their CT in place on the MR grid, and the true labels beside."""
    folder = tmp_path_factory.mktemp("cohort")
    manifest = phantom.write_cohort(
        folder, subjects={"train": 1, "test": 1}, shape=(24, 24, 20), registered=True
    )
    return read_cases(manifest)


def test_labels_from_a_ct_in_place_agree_with_the_true_ones(cohort, tmp_path):
    prepared, quality = prepare(cohort, tmp_path, labelling=REGISTERED, progress=False)
    for raw, case in zip(cohort, prepared, strict=True):
        made, truth = read_labels(case.labels["T1w"])[0], read_labels(raw.labels["T1w"])[0]
        assert (made == truth).mean() > 0.99  # the CT's noise may turn voxels near a threshold
    assert [row["subject"] for row in quality] == [case.subject for case in cohort]
    assert sum(quality[0][f"fraction_{name}"] for name in ("air", "soft", "bone")) == pytest.approx(1.0)


def test_the_prepared_manifest_reads_back_with_labels_and_splits(cohort, tmp_path):
    prepared, _ = prepare(cohort, tmp_path, labelling=REGISTERED, progress=False)
    again = read_cases(tmp_path / "cohort.tsv")
    assert [(c.subject, c.split, sorted(c.labels)) for c in again] == [
        (c.subject, c.split, ["T1w"]) for c in prepared
    ]


def test_outputs_are_bids_derivatives_with_label_table_and_page(cohort, tmp_path):
    prepared, _ = prepare(cohort, tmp_path, labelling=REGISTERED, progress=False)
    label = prepared[0].subject.replace("-", "")
    base = tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_space-T1w_dseg"
    assert prepared[0].labels["T1w"] == base.with_name(base.name + ".nii.gz")
    assert base.with_suffix(".json").is_file()
    assert base.with_suffix(".tsv").read_text(encoding="utf-8").splitlines()[3] == "2\tbone\t#E69F00"
    assert (
        json.loads((tmp_path / "dataset_description.json").read_text(encoding="utf-8"))["DatasetType"]
        == "derivative"
    )
    text = (tmp_path / "quality.html").read_text(encoding="utf-8")
    assert "2 scans of 2 subjects" in text and text.count("data:image/png") == 2
    assert f'href="pictures/sub-{label}_space-T1w.png"' in text
    files, unknown = bids_files(tmp_path, derivative=True)
    assert len(files) == 2 and not unknown


def test_a_bids_folder_is_prepared_into_its_derivatives_and_read_back_with_the_labels(cohort, tmp_path):
    for case in cohort:
        name = f"sub-{case.subject}"
        for source, target in (
            (case.images["T1w"], f"anat/{name}_T1w.nii.gz"),
            (case.ct, f"ct/{name}_ct.nii.gz"),
        ):
            (tmp_path / name / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / name / target)
    raw = read_cohort(tmp_path)
    assert [case.labels for case in raw] == [{}, {}]
    prepared, _ = prepare(raw, tmp_path / "derivatives" / "labels", labelling=REGISTERED, progress=False)
    assert read_cohort(tmp_path) == prepared and all(case.labels for case in prepared)


def test_sessions_of_a_subject_have_labels_of_their_own(cohort, tmp_path):
    two = [
        dataclasses.replace(case, subject="a", split="train", session=str(i)) for i, case in enumerate(cohort)
    ]
    prepared, quality = prepare(two, tmp_path, labelling=REGISTERED, progress=False)
    assert [case.labels["T1w"].parent.parent.name for case in prepared] == ["ses-0", "ses-1"]
    assert [row["subject"] for row in quality] == ["a_ses-0", "a_ses-1"]
    assert [case.session for case in read_cases(tmp_path / "cohort.tsv")] == ["0", "1"]


def test_two_subjects_of_one_bids_name_are_refused_before_any_work(cohort, tmp_path):
    two = [dataclasses.replace(case, subject=name) for case, name in zip(cohort, ("a_1", "a1"), strict=True)]
    with pytest.raises(InputError, match="several sub-a1_space-T1w"):
        prepare(two, tmp_path / "out", labelling=REGISTERED, progress=False)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_scans_themselves_is_refused(cohort, tmp_path):
    (tmp_path / "dataset_description.json").write_text(
        '{"Name": "my study", "BIDSVersion": "1.9.0"}', encoding="utf-8"
    )
    with pytest.raises(InputError, match="Derivatives go into a folder of their own"):
        prepare(cohort, tmp_path, labelling=REGISTERED, progress=False)


@pytest.mark.parametrize("padding_hu", [-1500.0, -3024.0])
def test_padding_of_the_ct_is_ignored_and_never_air(cohort, tmp_path, padding_hu):
    ct_hu, affine = read_volume(cohort[0].ct)
    ct_hu[:, :, :3] = padding_hu
    write_volume(tmp_path / "ct.nii.gz", ct_hu, affine)
    case = dataclasses.replace(cohort[0], ct=tmp_path / "ct.nii.gz")
    prepared, quality = prepare([case], tmp_path / "out", labelling=REGISTERED, progress=False)
    made = read_labels(prepared[0].labels["T1w"])[0]
    assert (made[:, :, :3] == 255).all() and (made[:, :, 3:] != 255).all()
    assert quality[0]["ignored"] == pytest.approx(3 / made.shape[2])


def test_one_refused_scan_stops_no_other_and_the_page_has_both(cohort, tmp_path):
    moved = tmp_path / "ct.nii.gz"
    write_volume(moved, np.linspace(-1000, 1000, 64, dtype=np.float32).reshape(4, 4, 4), np.eye(4))
    bad = dataclasses.replace(cohort[0], ct=moved)
    with pytest.raises(InputError, match=f"{bad.subject}, T1w: "):
        prepare([bad, cohort[1]], tmp_path / "out", labelling=REGISTERED, progress=False)
    assert len(list((tmp_path / "out").rglob("*_dseg.nii.gz"))) == 1
    page = (tmp_path / "out" / "quality.html").read_text(encoding="utf-8")
    assert "2 scans of 2 subjects" in page and ", 1 refused." in page and page.count("data:image/png") == 1
    assert not (tmp_path / "out" / "cohort.tsv").exists()
    assert len((tmp_path / "out" / "quality.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_labels_know_their_ct_thresholds_and_quality(cohort, tmp_path):
    prepared, _ = prepare(cohort[:1], tmp_path, labelling=REGISTERED, progress=False)
    card = read_sidecar(prepared[0].labels["T1w"])
    assert card["labels"]["2"] == "bone" and card["labels"]["255"] == "ignore"
    assert card["provenance"]["labelling"]["thresholds_hu"] == [-500.0, 600.0]
    assert card["provenance"]["ct"]["name"] == cohort[0].ct.name


def test_a_second_run_does_nothing_again_and_other_thresholds_do(cohort, tmp_path):
    prepared, quality = prepare(cohort[:1], tmp_path, labelling=REGISTERED, progress=False)
    path = prepared[0].labels["T1w"]
    first = path.stat().st_mtime_ns
    _, same = prepare(cohort[:1], tmp_path, labelling=REGISTERED, progress=False)
    assert path.stat().st_mtime_ns == first and same == quality
    other = dataclasses.replace(REGISTERED, thresholds_hu=(-500.0, 300.0))
    _, changed = prepare(cohort[:1], tmp_path, labelling=other, progress=False)
    assert path.stat().st_mtime_ns > first
    assert changed[0]["fraction_bone"] > quality[0]["fraction_bone"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_dask_write_the_very_files(cohort, tmp_path):
    distributed = pytest.importorskip("distributed")
    prepare(cohort, tmp_path / "here", labelling=REGISTERED, progress=False)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster:
        prepare(
            cohort, tmp_path / "there", labelling=REGISTERED, progress=False,
            scheduler=cluster.scheduler_address,
        )  # fmt: skip
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("killed_before", ["save_png", "write_label_table", "write_labels"])
def test_a_kill_between_two_files_vouches_for_neither(cohort, tmp_path, monkeypatch, killed_before):
    """Else pictures of other thresholds would be taken for those of the labels."""
    prepare(cohort, tmp_path, labelling=Labelling(stages=()), progress=False)
    before = contents(tmp_path)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, killed_before, killed)
    other = Labelling((-400.0, 300.0), stages=())
    with pytest.raises(KeyboardInterrupt):
        prepare(cohort, tmp_path, labelling=other, progress=False)
    monkeypatch.undo()
    prepare(cohort, tmp_path, labelling=Labelling(stages=()), progress=False)
    assert contents(tmp_path) == before


def test_a_half_written_sidecar_is_made_again(cohort, tmp_path):
    prepared, quality = prepare(cohort[:1], tmp_path, labelling=REGISTERED, progress=False)
    path = prepared[0].labels["T1w"]
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    sidecar.write_text(json.dumps(read_sidecar(path))[:40], encoding="utf-8")
    assert prepare(cohort[:1], tmp_path, labelling=REGISTERED, progress=False)[1] == quality
    assert read_sidecar(path)["labels"]["0"] == "air"


def test_a_displaced_ct_is_brought_back(tmp_path):
    """10 mm and 4 degrees of motion leave few skull voxels in place; registered, most of them are."""
    head = phantom.head(3, shape=(48, 56, 40))
    image, truth = phantom.mr_image(head, "T1w"), phantom.attenuation_labels(head)
    (ct_hu, ct_affine), _ = phantom.ct_image(head)
    write_volume(tmp_path / "t1.nii.gz", *image)
    write_volume(tmp_path / "ct.nii.gz", ct_hu, ct_affine)
    (tmp_path / "cohort.tsv").write_text("subject\tT1w\tct\ns1\tt1.nii.gz\tct.nii.gz\n", encoding="utf-8")
    prepared, quality = prepare(
        read_cases(tmp_path / "cohort.tsv"), tmp_path / "out", labelling=Labelling(), progress=False
    )
    made = read_labels(prepared[0].labels["T1w"])[0]
    both = np.sum((made == 2) & (truth == 2))
    assert 2 * both / (np.sum(made == 2) + np.sum(truth == 2)) > 0.7
    assert quality[0]["mutual_information_after"] > quality[0]["mutual_information_before"]
    name = "sub-s1_space-T1w"
    for picture in (f"{name}.png", f"small/{name}.png"):
        assert (tmp_path / "out" / "pictures" / picture).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "registrations" / f"{name}.json").exists()
    assert quality[0]["overlap"] > 0.5 and quality[0]["orientation"] == "RAS"


def test_a_subject_without_ct_is_named(cohort, tmp_path):
    bare = dataclasses.replace(cohort[0], ct=None)
    with pytest.raises(InputError, match=f"{bare.subject} needs a CT"):
        prepare([bare], tmp_path, labelling=REGISTERED, progress=False)


def test_a_ct_elsewhere_that_is_called_registered_is_refused_and_leaves_nothing(cohort, tmp_path):
    moved = tmp_path / "ct.nii.gz"
    write_volume(moved, np.linspace(-1000, 1000, 64, dtype=np.float32).reshape(4, 4, 4), np.eye(4))
    case = dataclasses.replace(cohort[0], ct=moved)
    with pytest.raises(InputError, match=f"{case.subject}, T1w: .*ct.nii.gz"):
        prepare([case], tmp_path / "out", labelling=REGISTERED, progress=False)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
