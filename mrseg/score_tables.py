"""The tables of an evaluation: papers' layout, every metric and subject, confusion, volumes, two methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrseg.summaries import (
    SUBJECTS,
    VOXELS,
    Row,
    pooled_confusion,
    volume_agreement,
    whole_rows,
)
from mrseg.tables import Column, Estimate, Table, by_class, metric_title, table

#: The metrics of mecheter2023's tables, in its order.
PRINTED = ("precision", "recall", "dice", "jaccard")

_SIDE_BY_SIDE = 3  # classes of four metrics each: as many as fit a page

_ENDS = ("half_width", "low", "high")
_WALD = (
    "± after a pooled value is the 95 % Wald half-width 1.96 sqrt(p(1-p)/n), n = true voxels of the class, "
    "as mecheter2023 prints it: it takes voxels for independent and is too narrow."
)
_BOOTSTRAP = "Brackets after a mean over subjects: 95 % bootstrap (BCa) over subjects."
_SLICES = "A mean over slices has no interval, since the slices of a subject are not independent."


def layout_table(summary: Sequence[Row], *, caption: str) -> Table:
    """The papers' layout: precision, recall, Dice and Jaccard of every class, one line per pooling.

    Of more than three classes, which no page is wide enough for, one line per class and pooling.

    Args:
        summary: rows of `mrseg.summarize`.
        caption: what was scored.
    """
    known = [{**row, **{end: _or_none(row[end]) for end in _ENDS}} for row in summary]
    lines, columns = by_class(known, by="pooling", metrics=PRINTED)
    classes = list(dict.fromkeys(row["class"] for row in known))
    if len(classes) > _SIDE_BY_SIDE:
        lines = [
            {"class": name, "pooling": line["pooling"]}
            | {metric: line[f"{name} {metric}"] for metric in PRINTED if f"{name} {metric}" in line}
            for name in classes
            for line in lines
        ]
        metrics = [metric for metric in PRINTED if any(metric in line for line in lines)]
        columns = [Column("class"), Column("pooling"), *(Column(m, metric_title(m)) for m in metrics)]
    return table(
        lines,
        [dataclasses.replace(column, best="") for column in columns],
        caption=caption,
        missing="the class is in no truth and no prediction",
        note=f"{_WALD} {_BOOTSTRAP} {_SLICES}",
    )


def summary_table(summary: Sequence[Row], *, caption: str) -> Table:
    """One line per class and metric, the poolings side by side.

    Args:
        summary: rows of `mrseg.summarize`.
        caption: what was scored.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in summary:
        line = lines.setdefault(
            (row["class"], row["metric"]), {"class": row["class"], "metric": metric_title(row["metric"])}
        )
        line[row["pooling"]] = Estimate(row["value"], **{end: _or_none(row[end]) for end in _ENDS})
        if row["pooling"] == SUBJECTS:
            line["SD over subjects"], line["subjects"] = row["sd"], row["count"]
    slices = sorted({row["pooling"] for row in summary} - {VOXELS, SUBJECTS})
    pooled = [VOXELS] if any(row["pooling"] == VOXELS for row in summary) else []
    decimals = [Column(name, decimals=4) for name in [*pooled, SUBJECTS, "SD over subjects", *slices]]
    return table(
        lines.values(),
        [Column("class"), Column("metric"), *decimals, "subjects"],
        caption=caption,
        missing="not defined for this class, or too few subjects",
        note=" ".join(([_WALD] if pooled else []) + [_BOOTSTRAP] + ([_SLICES] if slices else [])),
    )


def subject_table(rows: Sequence[Row], *, caption: str = "Every subject.") -> Table:
    """One line per subject: Dice and distances of every class, in a group per class."""
    shown = ("dice", "avd_percent", "hausdorff_mm", "hd95_mm", "assd_mm")
    rows = [row for row in whole_rows(rows) if row["metric"] in shown]
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["subject"], {"subject": row["subject"]})
        line[f"{row['class']} {row['metric']}"] = row["value"]
    found = {(row["class"], row["metric"]) for row in rows}
    columns = [
        Column(f"{name} {metric}", metric_title(metric), group=name, decimals=3 if metric == "dice" else 2)
        for name in dict.fromkeys(row["class"] for row in rows)
        for metric in shown
        if (name, metric) in found
    ]
    return table(
        lines.values(),
        [Column("subject"), *columns],
        caption=caption,
        missing="the structure is absent in truth and prediction",
    )


def confusion_table(rows: Sequence[Row], *, caption: str = "Confusion matrix, all voxels pooled.") -> Table:
    """Rows are the truth, columns the prediction: voxel counts, and the percent of the true class."""
    classes, counts = pooled_confusion(rows)
    totals = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        percent = 100 * counts / totals[:, None]
    lines = [
        {
            "truth": name,
            **{f"voxels {other}": int(counts[c, d]) for d, other in enumerate(classes)},
            "voxels": int(totals[c]),
            **{f"percent {other}": float(percent[c, d]) for d, other in enumerate(classes)},
        }
        for c, name in enumerate(classes)
    ]
    columns = [
        Column("truth"),
        *(Column(f"voxels {name}", name, group="predicted, voxels") for name in classes),
        Column("voxels", "all", group="truth, voxels"),
        *(
            Column(f"percent {name}", name, group="predicted, % of the true class", decimals=2)
            for name in classes
        ),
    ]
    return table(lines, columns, caption=caption, missing="the class is in no truth")


def volume_table(rows: Sequence[Row]) -> Table:
    """Bias and limits of agreement of the volumes in ml."""
    columns = [
        Column("class"),
        Column("mean_true_ml", "mean true volume", "ml", decimals=1),
        Column("bias_ml", "bias", "ml", decimals=2),
        Column("lower_ml", "lower limit", "ml", decimals=2),
        Column("upper_ml", "upper limit", "ml", decimals=2),
        Column("subjects"),
    ]
    return table(
        volume_agreement(rows),
        columns,
        caption="Volumes: predicted minus true (Bland and Altman).",
        missing="limits need two subjects or more",
        note="Limits of agreement: bias ± 1.96 standard deviations of the difference over subjects.",
    )


def comparison_table(compared: Sequence[Row], *, names: tuple[str, str]) -> Table:
    """The rows of `mrseg.compare` as a table; ``names`` are those of the two methods."""
    lines = [
        {
            **row,
            "metric": metric_title(row["metric"]),
            "difference": Estimate(row["difference"], low=_or_none(row["low"]), high=_or_none(row["high"])),
        }
        for row in compared
    ]
    columns = [
        Column("class"),
        Column("metric"),
        Column("mean_a", names[0], group="mean over subjects", decimals=4),
        Column("mean_b", names[1], group="mean over subjects", decimals=4),
        Column("difference", decimals=4),
        Column("p_value", "p", decimals=4),
        Column("p_holm", "p (Holm)", decimals=4),
        Column("subjects"),
        Column("test"),
    ]
    return table(
        lines,
        columns,
        caption=f"{names[0]} against {names[1]}, paired by subject.",
        missing="no subject with both values",
        note="Difference: first minus second, with the 95 % bootstrap over subjects. p (Holm) is corrected "
        "for the classes of a metric. With fewer than six subjects no p value can fall below 0.05.",
    )


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
