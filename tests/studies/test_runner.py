"""A whole study by the command: cohort, trainings, tables, figures, page; and again without training."""

import dataclasses

import pytest

from mrseg import crossval
from mrseg._checks import InputError
from mrseg.cli import main
from mrseg.data.cases import read_cases
from mrseg.data.io import read_volume
from mrseg.studies import runner
from mrseg.studies.loader import Phantom, load_study
from mrseg.studies.runner import make_cohort
from mrseg.study_commands import _values

RECIPE = """
base: phantom_t1_slices
name: tiny
network: {arguments: {filters: 2}}
preprocessing: {grid: native, spacing_mm: null, shape: null}
sampling: {patch_shape: [16, 16, 1]}
augmentation: {flip_axes: [], rotation_deg: 0.0, scale: 0.0, intensity_scale: 0.0}
training: {epochs: 1}
"""
STUDY = """
name: tiny
title: From T1-w to T2-w
paper: phantom
command: mrseg study tiny.yaml --output runs/tiny
sequence: T2w
folds: 2
phantom: {sources: 2, targets: 2, tests: 1, shape: [16, 16, 16]}
experiments:
  T1w: {recipe: RECIPE, folded: false}
  none: {recipe: RECIPE, source: T1w, set: {sequence: T2w, transfer: {mechanism: none}}}
  FC: {recipe: RECIPE, source: T1w, set: {sequence: T2w, transfer: {mechanism: conservative}}}
depths: [FC]
timed: [FC]
reference: FC
tables:
  table3: {caption: "Both.", experiments: [none, FC], folds: true}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(STUDY.replace("RECIPE", str(folder / "recipe.yaml")), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert main(["study", str(folder / "tiny.yaml"), "--output", str(folder / "run")]) == 0
    return folder


def test_everything_that_is_promised_is_there(done):
    run = done / "run"
    for file in ("scores.csv", "trials.csv", "report.html", "tables/table3.csv", "tables/table3.tex",
                 "tables/trainings.csv", "tables/validation_bone.csv", "figures/depth.svg",
                 "figures/time.svg", "cohort/cohort.tsv",
                 "trials/FC/fold2/segmenter/segmenter.json"):  # fmt: skip
        assert (run / file).stat().st_size, file
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "synthetic" in page and "FC" in page and "Both." in page


def test_the_same_command_trains_nothing_again_and_prints_the_same(done, capsys, monkeypatch):
    monkeypatch.setattr(crossval, "train_recipe", None)
    texts = []
    for _ in range(2):
        assert main(["study", str(done / "tiny.yaml"), "--output", str(done / "run")]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "Both." in texts[0] and "report: " in texts[0]


def test_a_folder_of_another_study_is_refused(done, capsys):
    words = ["study", str(done / "tiny.yaml"), "--output", str(done / "run"), "--change", "seed=3"]
    assert main(words) == 2
    assert "begun with another seed" in capsys.readouterr().err


def test_crossval_scores_every_subject_unseen(done, capsys):
    cohort = done / "run/cohort/cohort.tsv"
    source = done / "run/trials/T1w/once/segmenter"
    words = ["crossval", str(done / "recipe.yaml"), "--from", str(source), "--data", str(cohort)]
    words += ["--output", str(done / "folds"), "--folds", "2", "--set", "sequence=T2w", "--set"]
    assert main([*words, "transfer={mechanism: none}"]) == 0
    text = capsys.readouterr().out
    assert "Every training subject." in text and "Test subjects." in text
    assert main([*words, "transfer={mechanism: none}", "--grid", "nonsense"]) == 2
    assert "A grid is KEY=V1,V2" in capsys.readouterr().err


def test_studies_are_listed_and_need_a_folder(capsys):
    assert main(["study"]) == 0
    text = capsys.readouterr().out
    assert "phantom_transfer" in text and "its own" in text and "--data" in text
    assert main(["study", "phantom_transfer"]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_study_without_a_cohort_of_its_own_needs_scans(capsys, tmp_path):
    assert main(["study", "mecheter2023", "--output", str(tmp_path)]) == 2
    assert "--data cohort.tsv" in capsys.readouterr().err


def test_the_cohort_keeps_apart_who_has_labels_for_what(tmp_path):
    phantom = Phantom(sources=2, targets=1, tests=1, shape=(16, 16, 16), seed=3)
    cases = make_cohort(phantom, "T2w", tmp_path)
    found = {c.subject: (sorted(c.images), sorted(c.labels), c.split) for c in cases}
    assert found == {
        "source-phantom001": (["T1w"], ["T1w"], "train"),
        "source-phantom002": (["T1w"], ["T1w"], "train"),
        "target-phantom001": (["T1w", "T2w"], ["T2w"], "train"),
        "test-phantom001": (["T1w", "T2w"], ["T1w", "T2w"], "test"),
    }
    heads = [read_volume(c.images["T1w"])[0] for c in cases]
    assert all((a != b).any() for i, a in enumerate(heads) for b in heads[:i])  # no head twice
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nii.gz")}
    assert make_cohort(phantom, "T2w", tmp_path) == cases == read_cases(tmp_path / "cohort.tsv")
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nii.gz")}


def scored(experiment, split, fold, value, subjects=0):
    which = {"experiment": experiment, "fold": fold, "subjects": subjects, "split": split, "subject": "a"}
    counts = {"voxels_true": 10, "voxels_predicted": 10, "voxels_both": 10 * value, "voxels_all": 20}
    return [
        {**which, "sequence": "T2w", "class": name, "metric": metric, "value": v}
        for name in ("air", "soft", "bone")
        for metric, v in {"dice": value, **counts}.items()
    ]


def test_the_figure_by_depth_takes_the_classes_shown_and_unseen_subjects_where_none_is_for_the_test(done):
    study = dataclasses.replace(load_study(done / "tiny.yaml"), classes=("bone",))
    tested = [row for fold in (1, 2) for row in scored("FC", "test", fold, fold / 10)]
    assert runner._depth_dice(study, tested) == {"bone": {"all": {"FC": pytest.approx([0.1, 0.2])}}}
    unseen = scored("FC", "val", 1, 0.3)
    trial = {"experiment": "FC", "chosen": True, "subjects": 2, "seconds": 1.0}  # none on all subjects
    picture = runner._figures(study, unseen, [trial], done / "figures")[0]
    assert "each unseen" in picture.caption


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["experiments.FC.test=[T1w, PDw]", "tables.table3.pairs=[[none, FC, T2w]]",
          "tables.table3.experiments=[]"], "FC on T2w test scans"),
        (["experiments.FC.test=[PDw]"], "FC on test scans"),
        (["tables.table3.split=val", "tables.table3.experiments=[T1w]"], "T1w on subjects of a fold"),
        (["experiments.FC.subjects=[1]"], "FC on all subjects"),
    ],
)  # fmt: skip
def test_a_table_without_scores_is_refused_before_any_training(done, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(runner, "cross_validate", None)
    study = load_study(done / "tiny.yaml", changes)
    with pytest.raises(InputError, match=f"Table table3.*none of {message}"):
        runner.run_study(study, read_cases(done / "run/cohort/cohort.tsv"), tmp_path)


def test_the_values_of_a_grid_are_read_as_yaml():
    assert _values("a.b=1.0e-3,2") == ("a.b", [0.001, 2]) and _values("a=[[1, 2], 3]") == ("a", [[1, 2], 3])
    with pytest.raises(InputError, match="values of a are YAML"):
        _values("a=[1,2")
