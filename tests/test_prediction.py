from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import nibabel as nib
import numpy as np
import pytest

from mrseg import memory, prediction
from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.io import read_labels, read_sidecar, write_volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.passes import Inference
from mrseg.prediction import predict_cohort, predict_scan
from mrseg.segmenter import Segmenter

LPS = np.array([[-1.0, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])
SUFFIXES = ["dseg.json", "dseg.nii.gz", "dseg.png", "dseg.tsv"]


@pytest.fixture(scope="module")
def bright():
    """Class 1 where the normalised image is above 0.5."""
    image = keras.Input((8, 8, 8, 1))
    conv = keras.layers.Conv3D(2, 1, activation="softmax")
    model = keras.Model(image, conv(image))
    conv.set_weights([np.array([-100.0, 100.0]).reshape(1, 1, 1, 1, 2), np.array([50.0, -50.0])])
    steps = Preprocessing(normalization="min_max")
    return Segmenter(model, steps, Sampling((8, 8, 8)), ("background", "bright"), sequence="T2w")


def write_scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).random((9, 8, 7)).astype(np.float32)
    image[0, 0, 0], image[1, 1, 1] = 0, 1
    write_volume(path, image, LPS)
    return image


@pytest.fixture
def bids(tmp_path):
    for number, subject in enumerate(("01", "02", "03")):
        write_scan(tmp_path / f"raw/sub-{subject}/anat/sub-{subject}_T2w.nii.gz", number)
    return tmp_path / "raw"


def statuses(rows):
    return {row["scan"]: row["status"] for row in rows}


def test_a_cohort_is_written_as_bids_derivatives(bright, bids, tmp_path):
    rows = predict_cohort(bright, bids, tmp_path / "out")
    assert set(statuses(rows).values()) == {"written"} and len(rows) == 3
    folder = tmp_path / "out/sub-01/anat"
    assert sorted(p.name for p in folder.iterdir()) == [f"sub-01_desc-mrseg_{s}" for s in SUFFIXES]
    labels, affine = read_labels(folder / "sub-01_desc-mrseg_dseg.nii.gz")
    scan = nib.load(bids / "sub-01/anat/sub-01_T2w.nii.gz")
    np.testing.assert_array_equal(labels, scan.get_fdata() > 0.5)
    np.testing.assert_array_equal(affine, scan.affine)
    table = (folder / "sub-01_desc-mrseg_dseg.tsv").read_text(encoding="utf-8")
    assert table == "index\tname\tcolor\n0\tbackground\tn/a\n1\tbright\t#E69F00\n255\tignore\tn/a\n"
    about = json.loads((tmp_path / "out/dataset_description.json").read_text(encoding="utf-8"))
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "mrseg"
    origin = read_sidecar(folder / "sub-01_desc-mrseg_dseg.nii.gz")["provenance"]
    assert origin["segmenter_digest"] == bright.digest and origin["input"] == "sub-01_T2w.nii.gz"
    assert origin["inference"]["blending"] == "gaussian"


def test_maps_that_are_asked_for_are_written_beside(bright, bids, tmp_path):
    inference = Inference(mirror_axes=(0,), uncertainty="mirror")
    predict_cohort(bright, bids, tmp_path / "out", inference=inference, probabilities=True)
    stem = tmp_path / "out/sub-02/anat/sub-02_desc-"
    probabilities = nib.load(f"{stem}mrseg_probseg.nii.gz")
    labels = nib.load(f"{stem}mrseg_dseg.nii.gz")
    variance = nib.load(f"{stem}uncertainty_mirror.nii.gz")
    assert probabilities.shape == (9, 8, 7, 2) and variance.shape == (9, 8, 7)
    np.testing.assert_array_equal(probabilities.get_fdata().argmax(-1), np.asarray(labels.dataobj))
    np.testing.assert_allclose(probabilities.get_fdata().sum(-1), 1, atol=1e-5)
    for image in (probabilities, labels, variance):
        np.testing.assert_allclose(image.affine, LPS)
    names = json.loads(
        (tmp_path / "out/sub-02/anat/sub-02_desc-mrseg_probseg.json").read_text(encoding="utf-8")
    )
    assert names["LabelMap"] == ["background", "bright"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_bad_scan_is_reported_and_the_others_go_on(bright, bids, tmp_path):
    (bids / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"no image")
    rows = predict_cohort(bright, bids, tmp_path / "out")
    assert statuses(rows) == {"sub-01": "written", "sub-02": "failed", "sub-03": "written"}
    assert "sub-02_T2w.nii.gz" in rows[1]["reason"]
    assert not list((tmp_path / "out").rglob("sub-02*.nii.gz"))


def test_a_second_run_does_only_what_is_missing(bright, bids, tmp_path):
    out = tmp_path / "out"
    predict_cohort(bright, bids, out)
    labels = {n: out / f"sub-{n}/anat/sub-{n}_desc-mrseg_dseg.nii.gz" for n in ("01", "02", "03")}
    for path in labels.values():
        os.utime(path, (1, 1))
    labels["02"].with_name("sub-02_desc-mrseg_dseg.json").unlink()  # as if it had been interrupted
    write_scan(bids / "sub-03/anat/sub-03_T2w.nii.gz", 9)  # another scan of that name
    rows = predict_cohort(bright, bids, out)
    assert statuses(rows) == {"sub-01": "there already", "sub-02": "written", "sub-03": "written"}
    assert labels["01"].stat().st_mtime == 1 and labels["02"].stat().st_mtime > 1
    assert set(statuses(predict_cohort(bright, bids, out)).values()) == {"there already"}


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_dask_write_the_very_files_and_load_the_network_once(bright, bids, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    (bids / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"no scan")
    bright = dataclasses.replace(bright, engine="openvino", threads=1)
    here = predict_cohort(bright, bids, tmp_path / "here")
    loaded, load = [], Segmenter.load

    def recorded(folder, **engine):
        loaded.append((folder, engine))
        return load(folder, **engine)

    monkeypatch.setattr(Segmenter, "load", recorded)
    # Relative paths are those of this process, not of the workers.
    monkeypatch.chdir(tmp_path)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as one:
        there = predict_cohort(bright, bids, "there", scheduler=one.scheduler_address)
        assert statuses(here) == statuses(there)
        assert list(statuses(there).values()) == ["written", "failed", "written"]
        [(folder, engine)] = loaded
        assert not folder.exists()
        assert engine == {"engine": "openvino", "precision": "float32", "threads": 1}
        again = predict_cohort(bright, bids, "there", scheduler=one.scheduler_address)
    assert list(statuses(again).values()) == ["there already", "failed", "there already"]
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_loses_nothing_and_finished_scans_are_not_done_again(bright, tmp_path):
    distributed = pytest.importorskip("distributed")
    for number in range(16):
        write_scan(tmp_path / f"raw/sub-{number:02d}/anat/sub-{number:02d}_T2w.nii.gz", number)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster.scheduler_address) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        running = thread.submit(
            predict_cohort, bright, tmp_path / "raw", tmp_path / "out", scheduler=cluster.scheduler_address
        )
        while len(cards := list((tmp_path / "out").glob("sub-*/anat/*_dseg.json"))) < 4:
            assert not running.done()
            time.sleep(0.01)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        finished = {card: card.stat().st_mtime_ns for card in cards}
        rows = running.result(timeout=600)
    assert set(statuses(rows).values()) <= {"written", "there already"} and len(rows) == 16
    assert len(finished) < 16 and len(list((tmp_path / "out").glob("sub-*/anat/*_dseg.nii.gz"))) == 16
    assert {card: card.stat().st_mtime_ns for card in cards} == finished


@pytest.mark.parametrize("change", ["options", "segmenter", "maps", "file"])
def test_other_options_another_segmenter_and_missing_files_are_done_again(bright, bids, tmp_path, change):
    out, inference, segmenter = tmp_path / "out", Inference(batch_size=1), bright
    predict_cohort(bright, bids, out, inference=inference)
    if change == "options":
        inference = Inference(blending="constant")
    elif change == "segmenter":
        segmenter = Segmenter(
            bright.model, bright.preprocessing, bright.sampling, ("background", "light"), sequence="T2w"
        )
    elif change == "file":
        (out / "sub-01/anat/sub-01_desc-mrseg_dseg.png").unlink()
    rows = predict_cohort(segmenter, bids, out, inference=inference, probabilities=change == "maps")
    assert statuses(rows)["sub-01"] == "written"


@pytest.mark.parametrize("killed_before", ["write_label_table", "save_png", "write_labels"])
def test_a_kill_between_two_files_vouches_for_neither(bright, bids, tmp_path, monkeypatch, killed_before):
    """Else files of another run would be taken for those of the first."""
    out = tmp_path / "out"
    predict_cohort(bright, bids, out)
    before = contents(out)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, killed_before, killed)
    other = dataclasses.replace(bright, class_names=("background", "light"))
    with pytest.raises(KeyboardInterrupt):
        predict_cohort(other, bids, out)
    monkeypatch.undo()
    assert statuses(predict_cohort(bright, bids, out))["sub-01"] == "written"
    assert contents(out) == before


def test_so_many_processes_that_their_scans_cannot_fit_are_refused_before_any_work(
    bright, bids, tmp_path, monkeypatch
):
    needed_mb = bright.memory_mb(((9, 8, 7), LPS))
    monkeypatch.setattr(memory, "_STATE", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "_machine_mb", lambda: 2.9 * needed_mb)
    (bids / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"no image")  # told later
    with pytest.raises(InputError, match="maps of 3 scans at once must fit into the memory.*fewer --workers"):
        predict_cohort(bright, bids, tmp_path / "out", workers=4)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_label_maps_of_another_sequence_are_not_replaced(bright, bids, tmp_path):
    predict_cohort(bright, bids, tmp_path / "out")
    write_scan(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    rows = predict_cohort(bright, bids, tmp_path / "out", sequence="T1w")
    assert statuses(rows) == {"sub-01": "failed"} and "those of T2w, not T1w" in rows[0]["reason"]


def test_a_folder_of_others_is_refused(bright, bids, tmp_path):
    (bids / "dataset_description.json").write_text(
        '{"Name": "raw", "BIDSVersion": "1.8.0"}', encoding="utf-8"
    )
    with pytest.raises(InputError, match="folder of their own"):
        predict_cohort(bright, bids, bids)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset_description.json").write_text(
        '{"GeneratedBy": [{"Name": "other"}]}', encoding="utf-8"
    )
    with pytest.raises(InputError, match="is not mrseg's"):
        predict_cohort(bright, bids, tmp_path / "out")


def test_a_network_of_no_use_is_a_mistake_before_the_first_scan(bright, bids, tmp_path):
    with pytest.raises(InputError, match="network with dropout"):
        predict_cohort(bright, bids, tmp_path / "out", inference=Inference(dropout_samples=3))
    assert not (tmp_path / "out").exists()


def test_a_segmenter_of_no_sequence_must_be_told_one(bright, bids, tmp_path):
    nameless = Segmenter(bright.model, bright.preprocessing, bright.sampling, bright.class_names)
    with pytest.raises(InputError, match="sequence must be known"):
        predict_cohort(nameless, bids, tmp_path / "out")


def test_one_scan_goes_into_files_named_after_the_label_map(bright, tmp_path):
    write_scan(tmp_path / "t2.nii.gz")
    files = predict_scan(
        bright, tmp_path / "t2.nii.gz", tmp_path / "out/t2_dseg.nii.gz",
        inference=Inference(uncertainty="entropy"), probabilities=True,
    )  # fmt: skip
    assert all(path.is_file() for path in files.values())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "t2_desc-uncertainty_entropy.json", "t2_desc-uncertainty_entropy.nii.gz", "t2_dseg.json",
        "t2_dseg.nii.gz", "t2_dseg.png", "t2_probseg.json", "t2_probseg.nii.gz",
    ]  # fmt: skip


def test_what_of_the_head_the_grid_leaves_out_is_told_and_can_be_asked_for(bright, tmp_path, caplog):
    image, affine = phantom.mr_image(phantom.head(2, shape=(32, 36, 40)), "T1w")
    write_volume(tmp_path / "t1.nii.gz", image, affine)
    steps = Preprocessing("head", shape=(32, 36, 40), normalization="min_max", min_head_area=0.3)
    cut = dataclasses.replace(bright, preprocessing=steps)
    whole = dataclasses.replace(bright, preprocessing=steps.of_whole_head())
    told = {}
    for name, segmenter in (("cut", cut), ("whole", whole)):
        caplog.clear()
        files = predict_scan(segmenter, tmp_path / "t1.nii.gz", tmp_path / f"{name}.nii.gz")
        told[name] = read_sidecar(files["labels"])["provenance"].get("head_outside_grid_ml")
        assert ("ml of the head lie outside" in caplog.text) == (name == "cut")
    assert told["cut"] > 1 and told["whole"] is None


@pytest.mark.parametrize(
    ("scan", "output", "more", "words"),
    [
        ("t2.nii.gz", "t2.nii.gz", {}, "label map is another file than the scan"),
        ("t2.nii.gz", "t2.nii", {}, "also by its sidecar"),
        ("t2.nii.gz", "new/x.nii.gz", {"picture": "t2.nii.gz"}, "picture is written as .png"),
        ("t2_probseg.nii.gz", "t2_dseg.nii.gz", {"probabilities": True}, "probabilities file is another"),
        (
            "t2_desc-uncertainty_entropy.nii.gz",
            "t2_dseg.nii.gz",
            {"inference": Inference(uncertainty="entropy")},
            "uncertainty file is another",
        ),
    ],
)
def test_no_output_replaces_the_scan(bright, tmp_path, scan, output, more, words):
    write_scan(tmp_path / scan)
    before = (tmp_path / scan).read_bytes()
    if "picture" in more:
        more = {"picture": tmp_path / more["picture"]}
    with pytest.raises(InputError, match=words):
        predict_scan(bright, tmp_path / scan, tmp_path / output, **more)
    assert (tmp_path / scan).read_bytes() == before
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [scan]
