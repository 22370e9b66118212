"""The tables of an evaluation, from scores worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrseg.evaluation import score
from mrseg.score_tables import (
    comparison_table,
    confusion_table,
    layout_table,
    subject_table,
    summary_table,
    volume_table,
)
from mrseg.summaries import compare, summarize
from mrseg.tables import best_rows, cell_text, column_groups

NAMES = ("air", "bone")


def scored():
    """Two subjects of 10 voxels. a: 4 bone, 3 found, none invented. b: 2 bone, both found, 2 invented."""
    rows = []
    for subject, true, pred in (
        ("a", [1] * 4 + [0] * 6, [1] * 3 + [0] * 7),
        ("b", [1] * 2 + [0] * 8, [1] * 4 + [0] * 6),
    ):
        labels = [np.array(values).reshape(10, 1, 1) for values in (true, pred)]
        rows += [{"subject": subject, **row} for row in score(*labels, NAMES, spacing_mm=(2.0, 1.0, 1.0))]
    return rows


def texts(made, row):
    return [cell_text(row.get(column.key), column) for column in made.columns]


def test_the_confusion_table_has_the_truth_in_rows_with_counts_and_percent():
    made = confusion_table(scored())
    air, bone = made.rows
    # air: 6 + 8 voxels, 2 of them taken for bone; bone: 4 + 2, one missed
    assert texts(made, air) == ["air", "12", "2", "14", "85.71", "14.29"]
    assert texts(made, bone) == ["bone", "1", "5", "6", "16.67", "83.33"]


def test_the_layout_has_a_line_per_pooling_and_marks_none_of_them_as_best():
    made = layout_table(summarize(scored()), caption="c")
    lines = {row["pooling"]: row for row in made.rows}
    assert set(lines) == {"voxels pooled", "mean over subjects"}
    pooled, mean = (lines[name]["bone dice"] for name in ("voxels pooled", "mean over subjects"))
    assert pooled.value == pytest.approx(2 * 5 / (6 + 7))
    assert pooled.half_width == pytest.approx(1.96 * math.sqrt(pooled.value * (1 - pooled.value) / 6))
    assert mean.value == pytest.approx((6 / 7 + 4 / 6) / 2) and mean.half_width is None
    assert not any(best_rows(made, column) for column in made.columns)
    assert "too narrow" in made.note


def test_the_layout_of_four_classes_has_a_line_per_class_and_pooling():
    """Class c of 0 to 3 has three voxels, c of them right; the wrong ones are called class 0."""
    true = np.repeat([0, 1, 2, 3], 3)
    pred = np.where(np.tile([0, 1, 2], 4) < true, true, 0)
    names = ("w", "x", "y", "z")
    rows = score(true.reshape(12, 1, 1), pred.reshape(12, 1, 1), names)
    made = layout_table(summarize([{"subject": "a", **row} for row in rows]), caption="c")
    assert [column.key for column in made.columns] == [
        "class",
        "pooling",
        "precision",
        "recall",
        "dice",
        "jaccard",
    ]
    assert [(row["class"], row["pooling"]) for row in made.rows] == [
        (name, pooling) for name in names for pooling in ("voxels pooled", "mean over subjects")
    ]
    recalls = {row["class"]: row["recall"].value for row in made.rows}
    assert recalls == pytest.approx({"w": 1.0, "x": 1 / 3, "y": 2 / 3, "z": 1.0})
    assert made.rows[0]["precision"].value == pytest.approx(3 / 6)


def test_every_metric_has_its_poolings_side_by_side_and_distances_none_pooled():
    made = summary_table(summarize(scored()), caption="c")
    lines = {(row["class"], row["metric"]): row for row in made.rows}
    assert lines["bone", "AVD [%]"]["voxels pooled"].value == pytest.approx(100 / 6)
    assert lines["bone", "AVD [%]"]["mean over subjects"].value == pytest.approx((25 + 100) / 2)
    hausdorff = lines["bone", "Hausdorff [mm]"]
    assert "voxels pooled" not in hausdorff
    assert hausdorff["mean over subjects"].value == pytest.approx(
        (2 + 4) / 2
    )  # one voxel, two voxels of 2 mm
    assert hausdorff["SD over subjects"] == pytest.approx(math.sqrt(2))
    assert hausdorff["subjects"] == 2


def test_a_subjects_metrics_stand_together_by_class():
    made = subject_table(scored())
    assert [name for name, _ in column_groups(made.columns)] == ["", "air", "bone"]
    assert [row["subject"] for row in made.rows] == ["a", "b"]
    assert made.rows[0]["bone dice"] == pytest.approx(6 / 7)


def test_volumes_and_a_comparison_with_itself():
    rows = scored() + [
        {"subject": "a", "class": "bone", "metric": f"volume_{which}_ml", "value": value}
        for which, value in (("true", 4.0), ("predicted", 3.0))
    ]
    made = volume_table(rows)
    assert texts(made, made.rows[0]) == [
        "bone",
        "4.0",
        "\N{MINUS SIGN}1.00",
        "\N{EN DASH}",
        "\N{EN DASH}",
        "1",
    ]
    same = comparison_table(compare(rows, rows), names=("x", "y"))
    assert all(row["p_holm"] == 1.0 and row["difference"].value == 0.0 for row in same.rows)
