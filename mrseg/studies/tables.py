"""Scores of a study in the paper's layout: folds and their mean, pairs with their difference, times."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mrseg._checks import error
from mrseg.metrics.confidence import bootstrap_ci, holm, paired_test, wald_ci
from mrseg.plots import read_log
from mrseg.recipes.loader import load_recipe
from mrseg.studies.loader import Study, TablePage
from mrseg.summaries import VOXELS, Row, summarize
from mrseg.tables import Column, Estimate, Missing, Table, by_class, table

_INTERVALS = (
    "+-: 95 % Wald half-width as mecheter2023 prints it, too narrow since voxels are not independent. "
    "Brackets: 95 % bootstrap of the mean over the subjects."
)
_POOLED = {
    "test": "Voxels of all test subjects pooled, then the mean over the folds.",
    "val": "Voxels of all training subjects pooled, each by the network of the fold that has not seen it.",
}

#: Share of the training loss's fall after which a training counts as converged.
CONVERGED = 0.95


def scores_table(page: TablePage, scores: Sequence[Row], study: Study, trials: Sequence[Row] = ()) -> Table:
    """One table of the study; its note names the experiments that its subjects decided (``trials``)."""
    shown = _pair_rows(page, scores) if page.pairs else _experiment_rows(page, scores, study.sequence)
    classes = page.classes or study.classes or tuple(dict.fromkeys(row["class"] for row in shown))
    subjects = {
        row["subject"] for row in scores if row["split"] == page.split and row["experiment"] in page.named
    }
    rows, columns = by_class(shown, by="experiment", metrics=page.metrics, classes=classes)
    if page.pairs or page.folds:  # percentages and single folds do not compete with scores
        columns = [dataclasses.replace(column, best="") for column in columns]
    note = f"{len(subjects)} subjects. {_POOLED[page.split]} {_INTERVALS}"
    decided = {t["experiment"] for t in trials if t["validation_decides"]} & page.named
    if page.split == "val" and decided:
        note += (
            " These subjects decided the grid, the stopping or the best epoch of "
            f"{', '.join(sorted(decided))}, which flatters it."
        )
    return table(rows, columns, caption=page.caption, note=note)


def dice_alone(made: Table) -> Table:
    """A table of scores without its other metrics, for the terminal; as it is where it has no Dice."""
    first, *others = made.columns
    kept = tuple(column for column in others if column.key.endswith(" dice"))
    return dataclasses.replace(made, columns=(first, *kept)) if kept else made


def fold_scores(
    scores: Sequence[Row], experiment: str, sequence: str, subjects: int = 0, split: str = "test"
) -> dict[int, list[Row]]:
    """Rows of one experiment by fold (0: trained once); validation subjects of all folds are one group."""
    found: dict[int, list[Row]] = {}
    for row in scores:
        which = (row["experiment"], row["split"], row["sequence"], row["subjects"])
        if which == (experiment, split, sequence, subjects):
            found.setdefault(row["fold"] if split == "test" else 0, []).append(row)
    return found


def mean_scores(by_fold: Mapping[int, Sequence[Row]]) -> list[Row]:
    """The mean over folds of the pooled figures, with the paper's interval and that over subjects."""
    of_folds = [pooled(rows) for rows in by_fold.values()]
    result = []
    for key, (_, count) in of_folds[0].items():
        value = mean([of_fold[key][0] for of_fold in of_folds])
        of_subjects = _by_subject([row for rows in by_fold.values() for row in rows], *key)
        low, high = bootstrap_ci(of_subjects) if len(of_subjects) > 1 else (math.nan, math.nan)
        half = _wald(value, count)
        result.append(
            {"class": key[0], "metric": key[1], "value": value, "half_width": half, "low": low, "high": high}
        )
    return result


def training_table(trials: Sequence[Row], study: Study, output: Path) -> Table:
    """What every experiment trained, for how long, and which point of its grid was chosen."""
    rows: list[dict[str, Any]] = []
    for experiment in study.experiments:
        own = [t for t in trials if t["experiment"] == experiment.name]
        chosen = [t for t in own if t["chosen"] and t["subjects"] == 0]
        times = [converged_seconds(t, output) for t in chosen]
        rows.append(
            {
                "experiment": experiment.name,
                "recipe": experiment.recipe,
                "trainings": len(own),
                "trainable": chosen[0]["trainable"] if chosen else Missing("not trained on all subjects"),
                "epochs": median([float(t["epochs"]) for t in chosen]) if chosen else None,
                "seconds": median([t["seconds"] for t in chosen]),
                "converged": median(times),
                "total": float(np.sum([t["seconds"] for t in own])),
                "chosen": "; ".join(t["point"] for t in chosen if t["point"]) or "-",
            }
        )
    return table(
        rows,
        (
            Column("experiment"),
            Column("recipe"),
            Column("trainings"),
            Column("trainable", "trainable parameters"),
            Column("epochs", decimals=0),
            Column("seconds", "one training", "s", decimals=0),
            Column("converged", "to convergence", "s", decimals=0),
            Column("total", "all trainings", "s", decimals=0),
            Column("chosen", "chosen in each fold"),
        ),
        caption="Trainings.",
        missing="interrupted, so not timed as a whole, or nothing to train",
        note=f"Medians over the folds. Converged: the loss has made {CONVERGED:.0%} of its fall.",
    )


def converged_seconds(trial: Mapping[str, Any], output: Path) -> float:
    """Seconds until the training loss had made 95 % of its fall; NaN for what was not trained or timed.

    Reference:
        mecheter2023 section 4.5 multiplies the time of an epoch by the epochs until convergence.
    """
    log = output / trial["folder"] / "log.csv"
    if not trial["epochs"] or not log.exists():
        return math.nan
    loss = read_log(log)["loss"]
    if not np.isfinite(loss).all():
        return math.nan
    target = loss[0] - CONVERGED * (loss[0] - loss.min())
    return float(trial["seconds"]) * (int(np.argmax(loss <= target)) + 1) / len(loss)


def validation_table(scores: Sequence[Row], trials: Sequence[Row], study: Study, name: str) -> Table | None:
    """Dice of one class on every subject by the network that has not seen it, against the reference.

    Experiments whose grid, stopping or best epoch the validation subjects decided are left out; None where
    fewer than two are left to compare.
    """
    decided = {t["experiment"] for t in trials if t["validation_decides"]}
    dice: dict[str, dict[str, float]] = {}
    for row in scores:
        wanted = (row["split"], row["class"], row["metric"], row["subjects"]) == ("val", name, "dice", 0)
        if wanted and row["experiment"] not in decided:
            dice.setdefault(row["experiment"], {})[row["subject"]] = row["value"]
    if len(dice) < 2:
        return None
    rows: list[dict[str, Any]] = []
    for experiment in (e.name for e in study.experiments if e.name in dice):
        of_subject = dice[experiment]
        values = np.array([of_subject[subject] for subject in sorted(of_subject)])
        low, high = bootstrap_ci(values)
        shown: dict[str, Any] = {
            "experiment": experiment,
            "subjects": int(np.count_nonzero(~np.isnan(values))),
            "dice": Estimate(mean(values), None, low, high),
        }
        if study.reference in dice and experiment != study.reference:
            base = np.array([dice[study.reference][subject] for subject in sorted(of_subject)])
            test = paired_test(values, base, method="permutation")
            ends = bootstrap_ci(np.where(values == base, 0.0, values - base))
            shown |= {"difference": Estimate(test.difference, None, *ends), "p": test.p_value}
        rows.append(shown)
    tested = [row for row in rows if "p" in row]
    for shown, corrected in zip(tested, holm([t["p"] for t in tested]) if tested else (), strict=True):
        shown["p_holm"] = float(corrected)
    columns = [Column("experiment"), Column("subjects"), Column("dice", f"{name} Dice", best="highest")]
    if tested:
        columns += [
            Column("difference", f"minus {study.reference}"),
            Column("p"),
            Column("p_holm", "p (Holm)"),
        ]
    return table(
        rows,
        columns,
        caption=f"Dice of {name} on the training subjects of {study.sequence}, each by the network of the "
        "fold that has not seen it.",
        note="Mean over subjects, 95 % bootstrap in brackets; p: sign-flip permutation test over subjects, "
        "beside it corrected for the number of experiments (Holm).",
    )


def grid_table(trials: Sequence[Row]) -> Table | None:
    """The validation Dice of every point of every grid."""
    rows = [
        {
            "experiment": t["experiment"],
            "fold": t["fold"],
            "subjects": t["subjects"] or "all",
            "point": t["point"],
            "dice": t["validation_dice"],
            "chosen": t["chosen"],
        }
        for t in trials
        if t["point"]
    ]
    if not rows:
        return None
    columns = [Column("experiment"), Column("fold"), Column("subjects"), Column("point", "grid point")]
    columns += [Column("dice", "validation Dice"), Column("chosen")]
    return table(rows, columns, caption="The grid, decided on each fold's validation subjects.")


def paper_table(scores: Sequence[Row], study: Study) -> tuple[Table, str] | None:
    """Our Dice beside the paper's, and in words whether the order of the experiments is the same."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for experiment in study.experiments:
        recipe = load_recipe(experiment.recipe)
        if recipe.name in seen:
            continue  # a variant of a row that is there
        seen.add(recipe.name)
        theirs = {
            name: v["dice"]
            for name, v in recipe.expected.items()
            if name in recipe.class_names and "dice" in v
        }
        of_split = (fold_scores(scores, experiment.name, recipe.sequence, split=s) for s in ("test", "val"))
        by_fold = next(filter(None, of_split), None)
        if theirs and by_fold:
            ours = {row["class"]: row["value"] for row in mean_scores(by_fold) if row["metric"] == "dice"}
            row: dict[str, Any] = {"experiment": experiment.name, "sequence": recipe.sequence}
            for name, value in theirs.items():
                row |= {f"{name} ours": ours[name], f"{name} paper": float(value)}
            rows.append(row)
    if not rows:
        return None
    classes = list(
        dict.fromkeys(key.rsplit(" ", 1)[0] for row in rows for key in row if key.endswith(" ours"))
    )
    columns = [Column("experiment"), Column("sequence")]
    columns += [Column(f"{c} {who}", who, group=f"{c} Dice") for c in classes for who in ("ours", "paper")]
    of_sequence = [row for row in rows if row["sequence"] == study.sequence]
    said = [_order(name, [row for row in of_sequence if f"{name} ours" in row]) for name in classes]
    return table(
        rows, columns, caption="Dice beside the paper's: other scans, so the order is what can be compared."
    ), " ".join(text for text in said if text)


def _order(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    ours, paper = (np.array([row[f"{name} {who}"] for row in rows]) for who in ("ours", "paper"))
    if len(rows) < 3 or not (np.ptp(ours) > 0 and np.ptp(paper) > 0):  # NaN: a class that is nowhere
        return ""
    rho = float(stats.spearmanr(ours, paper).statistic)
    first = [str(rows[int(np.argmax(values))]["experiment"]) for values in (ours, paper)]
    return (
        f"{name}: Spearman rank correlation with the paper {rho:+.2f} over {len(rows)} rows; "
        f"best here {first[0]}, there {first[1]}."
    )


def _experiment_rows(page: TablePage, scores: Sequence[Row], sequence: str) -> list[Row]:
    shown: list[Row] = []
    for name in page.experiments:
        scored = [r["sequence"] for r in scores if (r["experiment"], r["split"]) == (name, page.split)]
        if not scored:
            raise error(f"Table {page.name} needs scores of {name}.", f"none on {page.split} subjects")
        # The first network of a study is not tested on the study's sequence.
        by_fold = fold_scores(scores, name, sequence if sequence in scored else scored[0], split=page.split)
        figures = {fold: pooled(rows) for fold, rows in by_fold.items()}
        # What is not trained is the same network in every fold.
        several = page.folds and any(found != next(iter(figures.values())) for found in figures.values())
        for fold, found in figures.items() if several else ():
            for (kind, metric), (value, count) in found.items():
                row = {"class": kind, "metric": metric, "value": value, "half_width": _wald(value, count)}
                shown.append({**row, "experiment": f"{name} (fold {fold})"})
        label = f"{name} (mean)" if several else name
        shown += [{**row, "experiment": label} for row in mean_scores(by_fold)]
    return shown


def _pair_rows(page: TablePage, scores: Sequence[Row]) -> list[Row]:
    shown: list[Row] = []
    for before, after, sequence in page.pairs:
        found = []
        for name in (before, after):
            by_fold = fold_scores(scores, name, sequence)
            if not by_fold:
                raise error(f"Table {page.name} needs {name} tested on {sequence}.", "no such scores")
            found.append(mean_scores(by_fold))
            shown += [{**row, "experiment": f"{sequence}: {name}"} for row in found[-1]]
        for old, new in zip(*found, strict=True):
            percent = 100 * (new["value"] - old["value"]) / old["value"] if old["value"] else math.nan
            shown.append(
                {"class": old["class"], "metric": old["metric"], "value": percent,
                 "experiment": f"{sequence}: difference [%]"}
            )  # fmt: skip
    return shown


def pooled(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, int]]:
    """(class, metric) -> figure over all voxels of all subjects, and the true voxels of the class."""
    return {
        (row["class"], row["metric"]): (row["value"], row["count"])
        for row in summarize(rows)
        if row["pooling"] == VOXELS
    }


def _wald(value: float, count: int) -> float:
    return float(wald_ci(value, count)) if count and 0 <= value <= 1 else math.nan


def _by_subject(rows: Sequence[Row], name: str, metric: str) -> np.ndarray:
    """Each subject's mean over the folds; those without a defined value left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (row["class"], row["metric"]) == (name, metric) and not math.isnan(row["value"]):
            values.setdefault(row["subject"], []).append(row["value"])
    return np.array([np.mean(found) for found in values.values()])


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Of the values that are known: a structure that does not count is left out (`mrseg.metrics.overlap`)."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def median(values: Sequence[float]) -> float:
    """Of the values that are known."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan
