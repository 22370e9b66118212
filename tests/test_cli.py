from __future__ import annotations

import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrseg.cli import main
from mrseg.data import phantom
from mrseg.data.io import write_volume

COMMANDS = (
    "demo", "prepare", "train", "transfer", "predict", "evaluate", "recipes", "weights", "clean",
    "attenuation", "brainmask", "perfusion", "crossval", "study", "phantom", "series", "convert", "export",
)  # fmt: skip
TINY = [
    "--set",
    "sampling.patch_shape=[16,16,16]",
    "--set",
    "sampling.patches_per_volume=2",
    "--set",
    "training.epochs=1",
    "--set",
    "training.batch_size=2",
    "--set",
    "network.arguments.filters=2",
    "--set",
    "preprocessing.spacing_mm=[9.0,9.0,9.0]",
]


def run(*arguments):
    return main([str(a) for a in arguments])


def refused(capsys, *arguments):
    """Runs a command that must fail as a user's mistake: exit code 2, one line, no traceback."""
    capsys.readouterr()
    assert run(*arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("mrseg: error: ")
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A tiny cohort, a T1-w segmenter trained on it by the command, and a T2-w one carried over."""
    folder = tmp_path_factory.mktemp("house")
    phantom.write_cohort(
        folder / "raw",
        subjects={"train": 2, "test": 1},
        sequences=("T1w", "T2w"),
        shape=(24, 28, 24),
        registered=True,
    )
    assert run("prepare", folder / "raw/cohort.tsv", "--output", folder / "data", "--registered") == 0
    assert run("train", "phantom_t1", "--data", folder / "data", "--output", folder / "t1", *TINY) == 0
    assert (
        run(
            "transfer", "phantom_t2", "--from", folder / "t1/segmenter", "--data", folder / "data",
            "--output", folder / "t2", *TINY, "--set", "transfer.mechanism=hybrid",
        )
        == 0
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (["train", "phantom_t1", "--data", "raw"], "mrseg.recipes.runner", "train_recipe"),
        (["crossval", "phantom_t1", "--data", "raw"], "mrseg.studies.runner", "run_study"),
        (["study", "phantom_transfer"], "mrseg.studies.runner", "run_study"),
    ],
)
def test_the_cache_reaches_what_trains(tmp_path, monkeypatch, arguments, module, function):
    phantom.write_cohort(tmp_path / "raw", subjects={"train": 2}, shape=(24, 28, 24), registered=True)
    monkeypatch.chdir(tmp_path)
    given = []

    def stop(*arguments, **options):
        given.append(options["cache"])
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), function, stop)
    assert run(*arguments, "--output", "run", "--cache", "cache") == 130
    assert run(*arguments, "--output", "run") == 130
    assert given == [Path("cache"), None]


@pytest.mark.parametrize("said", ["Unable to allocate 3.2 TiB for an array", ""])
def test_too_little_memory_is_one_line_with_the_remedy(tmp_path, monkeypatch, capsys, said):
    def too_much(*_, **__):
        raise MemoryError(said)

    monkeypatch.setattr(importlib.import_module("mrseg.data.phantom"), "write_cohort", too_much)
    message = refused(capsys, "phantom", "--output", tmp_path, "--train", "1")
    assert "fits into the memory. Received: " + (said or "no room for more") in message
    assert "fewer --workers" in message


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_teaches(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) >= 8


def test_prepare_train_and_transfer_leave_what_they_promise(house):
    for part in ("dataset_description.json", "pictures", "cohort.tsv", "quality.csv", "quality.html"):
        assert (house / "data" / part).exists()
    for part in (
        "segmenter/segmenter.json",
        "recipe.yaml",
        "log.csv",
        "scores.csv",
        "report.html",
        "transfer.txt",
    ):
        assert (house / "t2" / part).exists()
    card = json.loads((house / "t2/segmenter/segmenter.json").read_text(encoding="utf-8"))
    assert card["sequence"] == "T2w"
    assert card["provenance"]["source"]["recipe"]["name"] == "phantom_t1"
    assert not list(house.rglob("*.partial"))


def test_predict_writes_labels_on_the_scans_grid_a_sidecar_and_a_picture(house, tmp_path):
    scan = next((house / "raw").rglob("*T2w.nii.gz"))
    out = tmp_path / "new" / "t2_dseg.nii.gz"
    assert run("predict", "--segmenter", house / "t2/segmenter", "--input", scan, "--output", out) == 0
    image, labels = nib.load(scan), nib.load(out)
    assert labels.shape == image.shape
    np.testing.assert_array_equal(labels.affine, image.affine)
    assert set(np.unique(labels.dataobj)) <= {0, 1, 2}
    assert sorted(p.name for p in out.parent.iterdir()) == ["t2_dseg.json", "t2_dseg.nii.gz", "t2_dseg.png"]


def test_predict_goes_through_a_cohort_and_its_exit_code_tells_of_a_bad_scan(house, tmp_path, capsys):
    shutil.copytree(house / "raw", tmp_path / "raw")
    scans = sorted((tmp_path / "raw").rglob("*T2w.nii.gz"))
    content = scans[0].read_bytes()
    scans[0].write_bytes(b"hello")
    out = tmp_path / "out"
    command = (
        "predict", "--segmenter", house / "t2/segmenter", "--data", tmp_path / "raw/cohort.tsv",
        "--output", out, "--uncertainty", "mirror", "--probabilities", "--overlap", "0.25",
    )  # fmt: skip
    assert run(*command) == 1
    told = capsys.readouterr().out
    assert "2 written" in told and "1 failed" in told and scans[0].name in told
    assert len(list(out.rglob("*_dseg.nii.gz"))) == len(list(out.rglob("*_probseg.nii.gz"))) == 2
    assert len(list(out.rglob("*_desc-uncertainty_mirror.nii.gz"))) == 2
    scans[0].write_bytes(content)
    assert run(*command) == 0
    assert "1 written" in (told := capsys.readouterr().out) and "2 there already" in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--overlap", "1.0"], "overlap"),
        (["--sequence", "T1w"], "--sequence belongs to --data"),
        (["--workers", "2"], "--workers and --scheduler belong to --data"),
        (["--uncertainty", "dropout"], "network with dropout"),
        (["--uncertainty", "mirror", "--dropout-samples", "3"], "no dropout besides"),
    ],
)
def test_predict_refuses_impossible_options_in_one_line(house, tmp_path, capsys, more, words):
    scan = next((house / "raw").rglob("*T2w.nii.gz"))
    message = refused(
        capsys, "predict", "--segmenter", house / "t2/segmenter", "--input", scan,
        "--output", tmp_path / "x.nii.gz", *more,
    )  # fmt: skip
    assert words in message and not list(tmp_path.glob("x*"))


def test_predict_takes_one_scan_or_a_cohort(house, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("predict", "--segmenter", house / "t2/segmenter", "--output", tmp_path / "x.nii.gz")
    assert ended.value.code == 2 and "--input --data" in capsys.readouterr().err


def test_evaluate_writes_scores_and_a_page(house, tmp_path, capsys):
    assert (
        run("evaluate", "--segmenter", house / "t1/segmenter", "--data", house / "data", "--output", tmp_path,
            "--sequence", "T2w", "--distances") == 0
    )  # fmt: skip
    assert "hd95" in (tmp_path / "scores.csv").read_text(encoding="utf-8")
    assert (tmp_path / "report.html").exists() and (tmp_path / "tables" / "layout.tex").exists()
    assert "bone" in capsys.readouterr().out


def test_evaluate_asks_the_network_as_predict_does(house, tmp_path):
    common = ("evaluate", "--segmenter", house / "t1/segmenter", "--data", house / "data")
    for name, more in (("plain", ()), ("mirrored", ("--mirror", "--blending", "constant"))):
        assert run(*common, "--output", tmp_path / name, *more) == 0
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        assert ("mirror_axes" in page) == ("constant" in page) == bool(more)


def test_evaluate_compares_with_the_scores_of_another_run(house, tmp_path, capsys):
    common = ("evaluate", "--segmenter", house / "t1/segmenter", "--data", house / "data")
    assert run(*common, "--output", tmp_path / "a", "--plane", "coronal") == 0
    assert run(*common, "--output", tmp_path / "b", "--compare", tmp_path / "a" / "scores.csv") == 0
    assert "b against a, paired by subject" in capsys.readouterr().out
    message = refused(capsys, *common, "--output", tmp_path / "c", "--compare", house / "data" / "cohort.tsv")
    assert "subject, class, metric, value" in message


def test_evaluate_takes_another_test_and_names(house, tmp_path, capsys):
    common = ("evaluate", "--segmenter", house / "t1/segmenter", "--data", house / "data")
    for folder in ("t1", "t2"):
        more = ("--compare", tmp_path / "t1/test/scores.csv", "--test", "permutation") * (folder == "t2")
        assert run(*common, "--output", tmp_path / folder / "test", *more) == 0
    told = capsys.readouterr().out
    assert "t2 against t1, paired by subject" in told and "permutation" in told
    message = refused(capsys, *common, "--output", tmp_path / "c", "--names", "a", "b")
    assert "belong to --compare" in message


def test_recipes_lists_every_page_and_prints_one(capsys):
    assert run("recipes") == 0
    assert "mecheter2023_hybrid_multiply" in capsys.readouterr().out
    assert run("recipes", "islam2025_unet") == 0
    assert "quantile_zscore" in capsys.readouterr().out


def nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def bad_scan(kind: str, folder: Path) -> Path:
    noise = np.random.default_rng(0).random((6, 6, 6)).astype(np.float32)
    path = folder / "scan.nii.gz"
    if kind == "not an image":
        path.write_bytes(b"hello")
    elif kind == "truncated":
        whole = nifti(folder / "w.nii", noise)
        path.write_bytes(gzip.compress(whole.read_bytes())[:300])
    elif kind == "nan":
        noise[1, 1, 1] = np.nan
        nifti(path, noise)
    elif kind == "constant":
        nifti(path, np.ones((6, 6, 6), np.float32))
    elif kind == "4-D":
        nifti(path, np.stack([noise, noise], -1))
    elif kind == "zero voxel size":
        nifti(folder / "w.nii", noise)
        content = bytearray((folder / "w.nii").read_bytes())
        content[80:84] = b"\0\0\0\0"  # pixdim[1] of nifti1.h
        content[252:256] = b"\1\0\0\0"  # qform code 1, sform code 0: the affine comes from the zooms
        path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "not an image", "truncated", "nan", "constant", "4-D", "zero voxel size"]
)
def test_a_bad_scan_is_one_clear_line_and_nothing_is_written(kind, house, tmp_path, capsys):
    scan = bad_scan(kind, tmp_path)
    out = tmp_path / "out" / "labels.nii.gz"
    message = refused(
        capsys, "predict", "--segmenter", house / "t1/segmenter", "--input", scan, "--output", out
    )
    assert "scan.nii.gz" in message
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_scan_smaller_than_a_patch_is_padded_and_cropped_back(house, tmp_path):
    small = nifti(tmp_path / "s.nii.gz", np.random.default_rng(0).random((9, 8, 7)).astype(np.float32))
    out = tmp_path / "labels.nii.gz"
    assert run("predict", "--segmenter", house / "t1/segmenter", "--input", small, "--output", out) == 0
    assert nib.load(out).shape == (9, 8, 7)


def test_a_patch_larger_than_the_volume_is_refused_in_training(house, tmp_path, capsys):
    message = refused(
        capsys, "train", "phantom_t1", "--data", house / "data", "--output", tmp_path / "t",
        *TINY, "--set", "sampling.patch_shape=[64,64,64]",
    )  # fmt: skip
    assert "A patch fits into every scan" in message and "patches of (64, 64, 64) voxels" in message


def test_the_scan_and_a_foreign_sidecar_are_never_overwritten(house, tmp_path, capsys):
    scan = nifti(tmp_path / "t2.nii.gz", np.random.default_rng(0).random((9, 8, 7)).astype(np.float32))
    common = ("predict", "--segmenter", house / "t1/segmenter", "--input", scan, "--output")
    assert "another file than the scan" in refused(capsys, *common, scan)
    (tmp_path / "other.json").write_text('{"RepetitionTime": 2.0}', encoding="utf-8")
    assert "replaces no other file" in refused(capsys, *common, tmp_path / "other.nii.gz")
    assert "RepetitionTime" in (tmp_path / "other.json").read_text(encoding="utf-8")


def test_an_output_name_that_is_no_nifti_is_refused_before_any_work(house, tmp_path, capsys):
    scan = next((house / "raw").rglob("*T1w.nii.gz"))
    message = refused(
        capsys,
        "predict",
        "--segmenter",
        house / "t1/segmenter",
        "--input",
        scan,
        "--output",
        tmp_path / "x.png",
    )
    assert ".nii.gz" in message


def test_an_output_folder_that_cannot_be_made_is_named(house, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    scan = next((house / "raw").rglob("*T1w.nii.gz"))
    message = refused(
        capsys, "predict", "--segmenter", house / "t1/segmenter", "--input", scan,
        "--output", tmp_path / "file" / "x.nii.gz",
    )  # fmt: skip
    assert str(tmp_path / "file") in message


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("subject\tT1w\ns1\tmissing.nii.gz\n", ["missing.nii.gz", "row 2"]),
        ("subject\tT1w\tsplit\ns1\ta.nii.gz\ttrain\ns1\ta.nii.gz\ttest\n", ["s1", "train", "test"]),
        ("subject\tT1w\tsplit\ns1\ta.nii.gz\ttest\n", ["train"]),
        ("name\tT1w\ns1\ta.nii.gz\n", ["subject"]),
    ],
)
def test_a_bad_manifest_is_one_clear_line(table, words, tmp_path, capsys):
    write_volume(tmp_path / "a.nii.gz", np.arange(27, dtype=np.float32).reshape(3, 3, 3), np.eye(4))
    (tmp_path / "cohort.tsv").write_text(table, encoding="utf-8")
    message = refused(
        capsys, "train", "phantom_t1", "--data", tmp_path / "cohort.tsv", "--output", tmp_path / "o"
    )
    for word in words:
        assert word in message


def test_weights_that_do_not_fit_are_named(house, tmp_path, capsys):
    message = refused(
        capsys, "transfer", "phantom_t2", "--from", house / "t1/segmenter", "--data", house / "data",
        "--output", tmp_path / "t", *TINY, "--set", "network.arguments.filters=3",
    )  # fmt: skip
    assert "encoder1_conv1" in message


def test_an_unknown_key_and_a_text_number_are_refused(house, tmp_path, capsys):
    for override, word in (("training.epoch=3", "epochs"), ("training.learning_rate=1e-3", "1.0e-3")):
        message = refused(
            capsys, "train", "phantom_t1", "--data", house / "data", "--output", tmp_path, "--set", override
        )
        assert word in message


def test_import_takes_under_a_third_of_a_second_and_loads_neither_tensorflow_nor_itk():
    code = (
        "import sys, time; start = time.perf_counter(); import mrseg; took = time.perf_counter() - start; "
        "print(took, [m for m in ('tensorflow', 'keras', 'itk', 'SimpleITK') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
        ).stdout
        for _ in range(3)
    ]
    assert min(float(out.split()[0]) for out in runs) < 0.3
    assert all(out.split(maxsplit=1)[1].strip() == "[]" for out in runs)


def test_weights_are_kept_under_a_name_handed_on_and_used_by_name(house, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MRSEG_WEIGHTS", str(tmp_path / "store"))
    trained = house / "t1/segmenter"
    assert run("weights", "ward7", "--import", trained) == 0
    assert run("weights", "ward7", "--export", tmp_path / "ward7.zip") == 0
    assert run("weights", "ward8", "--import", tmp_path / "ward7.zip") == 0
    capsys.readouterr()
    assert run("weights") == 0
    listed = capsys.readouterr().out
    assert "ward7" in listed and "ward8" in listed and "se_unet3d" in listed
    assert run("weights", "ward8", "--full") == 0
    assert json.loads(capsys.readouterr().out)["sequence"] == "T1w"
    scan = next((house / "raw").glob("*/*_T1w.nii.gz"))
    for segmenter, name in ((trained, "a"), ("ward8", "b")):
        out = tmp_path / f"{name}.nii"
        assert run("predict", "--segmenter", segmenter, "--input", scan, "--output", out) == 0
    a, b = (np.asarray(nib.load(tmp_path / f"{name}.nii").dataobj) for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_a_card_is_short_and_says_what_matters(capsys):
    assert run("weights", "phantom_t1_unet") == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= 20 and max(map(len, told.splitlines())) < 200
    for words in (
        "T1w",
        "0 air, 1 soft, 2 bone",
        "12 synthetic heads",
        "Apache-2.0",
        "3.2x3.2x4 mm",
        "0.3 MB",
    ):
        assert words in told
    assert run("weights", "phantom_t1_unet", "--full") == 0
    assert len(json.loads(capsys.readouterr().out)["network_sha256"]) == 64


def test_weights_that_cannot_be_kept_are_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MRSEG_WEIGHTS", str(tmp_path / "store"))
    assert "--export needs the name" in refused(capsys, "weights", "--export", tmp_path / "x.zip")
    assert "nowhere" in refused(capsys, "weights", "--import", tmp_path / "nowhere")
    assert "name of stored weights" in refused(capsys, "weights", "ward9")
