"""Tables of a study against figures worked out by hand."""

import dataclasses
import math

import pytest

from mrseg._checks import InputError
from mrseg.experiments import Experiment
from mrseg.formats import to_text
from mrseg.studies import tables
from mrseg.studies.loader import TablePage, load_study
from mrseg.tables import best_rows, is_missing, plain_value

STUDY = load_study("mecheter2023")


def counts(experiment, fold, subject, both, pred, true, *, split="test", sequence="T2w", everything=1000):
    """Rows of bone and of the rest of one subject, with the scores that follow from the counts."""
    which = {
        "experiment": experiment, "fold": fold, "subjects": 0, "split": split, "sequence": sequence,
        "subject": subject,
    }  # fmt: skip
    rows = []
    for name, b, p, t in (("bone", both, pred, true), ("soft", 400, 500, 600), ("air", 5, 10, 10)):
        values = {
            "dice": 2 * b / (p + t), "jaccard": b / (p + t - b), "precision": b / p, "recall": b / t,
            "voxels_true": t, "voxels_predicted": p, "voxels_both": b, "voxels_all": everything,
        }  # fmt: skip
        rows += [{**which, "class": name, "metric": metric, "value": v} for metric, v in values.items()]
    return rows


TWO_FOLDS = [
    *counts("open", 1, "a", 30, 50, 50), *counts("open", 1, "b", 10, 30, 30),
    *counts("open", 2, "a", 40, 50, 50), *counts("open", 2, "b", 10, 30, 30),
    *counts("none", 1, "a", 10, 50, 50), *counts("none", 1, "b", 10, 30, 30),
    *counts("none", 2, "a", 10, 50, 50), *counts("none", 2, "b", 10, 30, 30),
]  # fmt: skip


def cell(made, row, key):
    return next(r[key] for r in made.rows if r["experiment"] == row)


def test_folds_are_pooled_over_voxels_and_their_mean_is_the_mean_of_folds():
    page = STUDY.tables[0]
    made = tables.scores_table(page, TWO_FOLDS, STUDY)
    # pooled: fold 1 has 40 common voxels of 80 and 80, fold 2 has 50
    assert cell(made, "open (fold 1)", "bone dice").value == pytest.approx(40 / 80)
    assert cell(made, "open (fold 2)", "bone dice").value == pytest.approx(50 / 80)
    mean = cell(made, "open (mean)", "bone dice")
    assert mean.value == pytest.approx(45 / 80)
    assert mean.half_width == pytest.approx(1.96 * math.sqrt(45 / 80 * 35 / 80 / 80))
    # means of a and b over the folds: 35/50 and 10/30, and the bootstrap of two is between them
    assert 1 / 3 - 1e-9 <= mean.low < mean.high <= 0.7 + 1e-9
    assert [c.group for c in made.columns[1:]] == ["bone"] * 4 + ["soft"] * 4 + ["air"] * 4


def test_what_is_not_trained_has_one_row():
    made = tables.scores_table(STUDY.tables[0], TWO_FOLDS, STUDY)
    assert [row["experiment"] for row in made.rows] == [
        "none",
        "open (fold 1)",
        "open (fold 2)",
        "open (mean)",
    ]


def test_pairs_have_their_difference_in_percent():
    rows = [
        *counts("T1w", 0, "a", 20, 50, 50, sequence="T1w"),
        *counts("augmentation", 1, "a", 30, 50, 50, sequence="T1w"),
        *counts("none", 1, "a", 25, 50, 50),
        *counts("augmentation", 1, "a", 10, 50, 50),
    ]
    made = tables.scores_table(STUDY.tables[-1], rows, STUDY)
    names = [row["experiment"] for row in made.rows]
    assert names == [f"{s}: {what}" for s, first in (("T1w", "T1w"), ("T2w", "none"))
                     for what in (first, "augmentation", "difference [%]")]  # fmt: skip
    assert cell(made, "T1w: difference [%]", "bone dice").value == pytest.approx(50)
    assert cell(made, "T2w: difference [%]", "bone dice").value == pytest.approx(-60)


def test_a_table_without_its_scores_names_the_experiment():
    with pytest.raises(InputError, match="table4.*FC"):
        tables.scores_table(STUDY.tables[1], TWO_FOLDS, STUDY)
    with pytest.raises(InputError, match="table9.*augmentation.*T1w"):
        tables.scores_table(STUDY.tables[-1], counts("T1w", 0, "a", 1, 2, 2, sequence="T1w"), STUDY)


def trial(experiment, **other):
    known = {
        "experiment": experiment, "fold": 1, "subjects": 0, "folder": f"trials/{experiment}", "epochs": 4,
        "seconds": 8.0, "trainable": 9, "parameters": 10, "validation_decides": False, "chosen": True,
        "point": "",
    }  # fmt: skip
    return {**known, **other}


def test_unseen_subjects_are_compared_one_by_one_with_the_reference():
    people = "abcdefgh"
    rows = [
        row
        for fold, subject in enumerate(people)
        for name, both in (("open", 30), ("18 conv", 40), ("FC", 30), ("3 conv", 45))
        for row in counts(name, fold, subject, both, 50, 50, split="val")
    ]
    trials = [trial(name) for name in ("open", "18 conv", "FC")] + [trial("3 conv", validation_decides=True)]
    made = tables.validation_table(rows, trials, STUDY, "bone")
    assert [row["experiment"] for row in made.rows] == ["open", "FC", "18 conv"]  # 3 conv was decided on them
    assert cell(made, "18 conv", "difference").value == pytest.approx(0.2)
    # all eight differences have one sign: two of 2^8 sign patterns are as extreme
    assert cell(made, "18 conv", "p") == pytest.approx(2 / 2**8)
    assert cell(made, "18 conv", "p_holm") == pytest.approx(4 / 2**8)
    assert cell(made, "FC", "p") == 1 and is_missing(made.rows[0].get("p"))
    assert tables.validation_table(TWO_FOLDS, trials, STUDY, "bone") is None


def test_convergence_is_the_epoch_with_95_percent_of_the_fall(tmp_path):
    (tmp_path / "trials/open").mkdir(parents=True)
    (tmp_path / "trials/open/log.csv").write_text(
        "epoch,loss\n0,1.0\n1,0.5\n2,0.05\n3,0.0\n", encoding="utf-8"
    )
    assert tables.converged_seconds(trial("open"), tmp_path) == pytest.approx(8.0 * 3 / 4)
    assert math.isnan(tables.converged_seconds(trial("open", epochs=0), tmp_path))
    assert math.isnan(tables.converged_seconds(trial("gone"), tmp_path))
    assert math.isnan(tables.converged_seconds(trial("open", seconds=math.nan), tmp_path))


def test_trainings_are_told_with_what_was_chosen(tmp_path):
    trials = [
        trial("open", point="training.learning_rate=0.01", chosen=False, seconds=5.0),
        trial("open", point="training.learning_rate=0.1"),
    ]
    made = tables.training_table(trials, STUDY, tmp_path)
    row = next(r for r in made.rows if r["experiment"] == "open")
    assert (row["trainings"], row["seconds"], row["total"], row["trainable"]) == (2, 8.0, 13.0, 9)
    assert row["chosen"] == "training.learning_rate=0.1"


def test_the_grid_shows_every_point():
    assert tables.grid_table([trial("open")]) is None
    points = [trial("open", point=f"lr={i}", validation_dice=i / 10, chosen=i == 2) for i in range(3)]
    made = tables.grid_table(points)
    assert [plain_value(row["dice"]) for row in made.rows] == [0.0, 0.1, 0.2]
    assert "all" in to_text(made)


def test_beside_the_paper_the_order_is_compared():
    """mecheter2023's bone Dice: none .3841, open .5155, FC .3526."""
    found = {"none": 20, "open": 10, "FC": 30}
    rows = [row for name, both in found.items() for row in counts(name, 1, "a", both, 50, 50)]
    made, said = tables.paper_table(rows, STUDY)
    assert cell(made, "open", "bone paper") == pytest.approx(0.5155)
    assert cell(made, "open", "bone ours") == pytest.approx(0.2)
    assert (
        "bone: Spearman rank correlation with the paper -1.00 over 3 rows; best here FC, there open." in said
    )
    assert "soft" not in said  # all equal: there is no order
    assert tables.paper_table([], STUDY) is None


def test_where_the_paper_prints_one_figure_for_all_rows_no_order_is_compared():
    """mecheter2020's Table III: air .97 in every row."""
    found = {"none": 10, "2 conv": 20, "decoder": 30}
    rows = [row for name, both in found.items() for row in counts(name, 1, "a", both, 50, 50)]
    for row in rows:
        if row["class"] == "air" and row["metric"] == "voxels_both":
            row["value"] = found[row["experiment"]] / 5
    made, said = tables.paper_table(rows, load_study("mecheter2020_t2"))
    assert [row["air ours"] for row in made.rows] == pytest.approx([0.2, 0.4, 0.6])
    assert "bone: Spearman" in said and "air" not in said


def test_a_class_that_is_nowhere_in_one_subject_leaves_the_others_their_mean():
    rows = [row for n in ("open", "FC") for s in "abc" for row in counts(n, 1, s, 25, 50, 50, split="val")]
    for row in rows:
        if row["subject"] == "a" and row["class"] == "bone":
            row["value"] = math.nan if row["metric"] in ("dice", "jaccard", "precision", "recall") else 0
    made = tables.validation_table(rows, [trial("open"), trial("FC")], STUDY, "bone")
    shown = made.rows[0]
    assert (shown["subjects"], shown["dice"].value) == (2, pytest.approx(0.5))


def test_what_was_decided_on_the_subjects_of_a_table_is_said_under_it():
    page = TablePage("unseen", "All.", ("open", "none"), split="val")
    rows = [row for name in page.experiments for row in counts(name, 1, "a", 25, 50, 50, split="val")]
    trials = [trial("open", validation_decides=True), trial("none"), trial("FC", validation_decides=True)]
    note = tables.scores_table(page, rows, STUDY, trials).note
    assert "best epoch of open, which flatters it" in note
    assert "flatters" not in tables.scores_table(page, rows, STUDY, trials[1:]).note


def test_percentages_and_single_folds_are_never_the_best_score():
    rows = [
        *counts("T1w", 0, "a", 20, 50, 50, sequence="T1w"),
        *counts("augmentation", 1, "a", 30, 50, 50, sequence="T1w"),
        *counts("none", 1, "a", 25, 50, 50), *counts("augmentation", 1, "a", 10, 50, 50),
    ]  # fmt: skip
    for made in (
        tables.scores_table(STUDY.tables[-1], rows, STUDY),
        tables.scores_table(STUDY.tables[0], TWO_FOLDS, STUDY),
    ):
        assert not any(best_rows(made, column) for column in made.columns)
    # the same figures without the folds compete
    page = TablePage("means", "Both.", ("none", "open"))
    made = tables.scores_table(page, TWO_FOLDS, STUDY)
    assert best_rows(made, made.columns[1]) == {1}


def test_a_total_with_an_untimed_training_is_no_total(tmp_path):
    trials = [
        trial("open", seconds=math.nan, epochs=8),
        trial("open", fold=2),
        trial("open", fold=3, epochs=7),
    ]
    row = next(r for r in tables.training_table(trials, STUDY, tmp_path).rows if r["experiment"] == "open")
    assert math.isnan(row["total"]) and (row["seconds"], row["epochs"]) == (8.0, 7.0)


def test_a_loss_that_is_no_number_never_converged(tmp_path):
    (tmp_path / "trials/open").mkdir(parents=True)
    (tmp_path / "trials/open/log.csv").write_text(
        "epoch,loss\n0,1.0\n1,0.5\n2,nan\n3,nan\n", encoding="utf-8"
    )
    assert math.isnan(tables.converged_seconds(trial("open"), tmp_path))


def test_recipes_whose_papers_give_other_classes_stand_in_one_table():
    """islam2025 gives all tissues for one network and csf alone for another."""
    names = ("islam2025_unet", "islam2025_sep_res_unet")
    study = dataclasses.replace(
        STUDY, sequence="T1w", experiments=tuple(Experiment(name, name) for name in names),
        tables=(), depths=(), timed=(), reference="",
    )  # fmt: skip
    rows = [row for name in names for row in counts(name, 1, "a", 25, 50, 50, sequence="T1w")]
    renamed = [{**r, "class": {"bone": "csf", "soft": "gm", "air": "wm"}[r["class"]]} for r in rows]
    made, _ = tables.paper_table(renamed, study)
    assert [("gm ours" in row, "csf ours" in row) for row in made.rows] == [(True, True), (False, True)]
