"""What rows of scores say about a cohort: three ways of pooling, two methods compared, volumes, confusion.

Papers mix three figures: all voxels of all subjects together (mecheter2023), the mean over subjects, and the
mean over slices (alkhimova2022 counts pixels). They differ, so every row here names its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrseg._checks import error, existing_file
from mrseg.metrics.confidence import bootstrap_ci, holm, paired_test, wald_ci
from mrseg.metrics.overlap import scores_of_counts

Row = dict[str, Any]

#: Names of the poolings in the rows; a mean over slices adds the plane: ``mean over axial slices``.
VOXELS, SUBJECTS = "voxels pooled", "mean over subjects"

#: Metrics that are amounts, not scores: they are summed, never averaged.
AMOUNTS = ("voxels_", "volume_")

#: Shares whose Wald half-width mecheter2023 prints.
_WALD = ("precision", "recall", "dice", "jaccard")

_COUNTS = ("voxels_true", "voxels_predicted", "voxels_both", "voxels_all")
_SAME_SUBJECT = (
    "Score each session or sequence by itself, or average a subject's rows first: "
    "two rows of one subject are not two subjects."
)


def read_rows(path: str | Path) -> list[Row]:
    """Reads rows that `mrseg.formats.write_csv` wrote, say ``scores.csv``; ``value`` becomes a number.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: a column (subject, class, metric, value) is missing, there is no row, or a value is no
            number.
    """
    path = existing_file(path)
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    missing = {"subject", "class", "metric", "value"} - set(rows[0] if rows else ())
    if missing:
        raise error(
            "A table of scores has the columns subject, class, metric, value, and one row or more.",
            f"{path} with {len(rows)} rows, without {', '.join(sorted(missing))}",
            "Name the scores.csv that `mrseg evaluate` wrote.",
        )
    for number, row in enumerate(rows, start=2):
        try:
            row["value"] = float(row["value"])
        except (TypeError, ValueError) as reason:
            raise error("value is a number.", f"{row['value']!r} in line {number} of {path}") from reason
    return rows


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Figures over all subjects, one row per class, metric and pooling.

    Args:
        rows: of `mrseg.evaluate`: subject, class, metric, value; rows with the keys ``slice`` and ``plane``
            belong to one slice.

    Returns:
        Rows with ``class``, ``metric``, ``pooling``, ``value``, ``half_width``, ``low``, ``high``, ``sd``,
        ``count`` and ``unit``:

        * ``voxels pooled`` (overlap only): from the summed voxel counts. ``half_width`` is
          1.96 sqrt(p(1-p)/n), n = true voxels of the class, as mecheter2023 prints it for precision, recall,
          Dice and Jaccard: too narrow, since voxels are not independent. ``count`` is n.
        * ``mean over subjects``: ``low`` and ``high`` are the 95 % bootstrap (BCa) over subjects, ``sd`` the
          standard deviation, ``count`` the subjects with a defined value.
        * ``mean over axial slices`` (or the plane that was scored), where the rows have slices: over all
          slices of all subjects with a defined value, ``count`` of them. No interval: the slices of one
          subject are not independent.

        What a row does not have is NaN.

    Raises:
        InputError: no rows, or two values of one subject for the same class and metric.
    """
    whole, sliced = _grouped(rows)
    summary: list[Row] = []
    classes = list(dict.fromkeys(name for name, _ in whole))
    metrics = [m for m in dict.fromkeys(metric for _, metric in whole) if not m.startswith(AMOUNTS)]
    for name in classes:
        counts = [_sum(whole, name, metric) for metric in _COUNTS]
        pooled = _pooled(*counts)
        for metric in metrics:
            if (name, metric) not in whole:
                continue
            if metric in pooled and not np.isnan(counts[0]):
                half = _wald(pooled[metric], counts[0]) if metric in _WALD else np.nan
                summary.append(
                    _row(name, metric, VOXELS, pooled[metric], int(counts[0]), "voxels", half_width=half)
                )
            values = _defined(whole[name, metric])
            low, high = bootstrap_ci(values) if len(values) > 1 else (np.nan, np.nan)
            spread = (
                float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else np.nan
            )
            mean = float(values.mean()) if len(values) else np.nan
            summary.append(
                _row(name, metric, SUBJECTS, mean, len(values), "subjects", low=low, high=high, sd=spread)
            )
            for plane, found in sliced.get((name, metric), {}).items():
                values = _defined(found)
                mean = float(values.mean()) if len(values) else np.nan
                summary.append(_row(name, metric, f"mean over {plane} slices", mean, len(values), "slices"))
    return summary


def compare(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    *,
    metrics: Sequence[str] = ("dice",),
    method: str = "wilcoxon",
) -> list[Row]:
    """Compares two methods on the same subjects, class by class.

    Args:
        rows_a: rows of `mrseg.evaluate` for the first method.
        rows_b: rows of the second, for the same subjects.
        metrics: which of their metrics to test.
        method: ``wilcoxon`` or ``permutation``, see `mrseg.metrics.paired_test`.

    Returns:
        Rows with ``class``, ``metric``, ``mean_a``, ``mean_b`` and ``difference`` (a - b) over the subjects
        with both values, ``low`` and ``high`` (95 % bootstrap of the difference), ``p_value``, ``p_holm``
        (Holm's correction over the classes of one metric), ``subjects`` and ``test``. Below six subjects no
        difference can be significant at 0.05.

    Raises:
        InputError: the subjects differ, a metric is in neither, no class is in both, or two values of one
            subject for the same class and metric.

    Example:
        >>> compare(read_rows("runs/open/scores.csv"), read_rows("runs/hybrid/scores.csv"))
    """
    whole_a, whole_b = _grouped(rows_a)[0], _grouped(rows_b)[0]
    a, b = ({subject for values in whole.values() for subject in values} for whole in (whole_a, whole_b))
    check_same_subjects(a, b)
    result: list[Row] = []
    for metric in metrics:
        classes = [name for name, other in whole_a if other == metric and (name, metric) in whole_b]
        if not classes:
            there = sorted({other for _, other in whole_a} & {other for _, other in whole_b})
            raise error(
                f"Both methods have the metric {metric!r} for the same class.",
                f"in both: {', '.join(there) or 'nothing'}",
            )
        tested = [
            _tested(name, metric, whole_a[name, metric], whole_b[name, metric], method) for name in classes
        ]
        for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            result.append({**row, "p_holm": float(corrected)})
    return result


def check_same_subjects(subjects_a: Iterable[str], subjects_b: Iterable[str]) -> None:
    """Raises InputError, naming who is in one set alone, unless both are the same subjects."""
    a, b = set(subjects_a), set(subjects_b)
    if a != b:
        only = [", ".join(sorted(map(str, some))[:5]) or "none" for some in (a - b, b - a)]
        raise error(
            "Two methods are compared on the same subjects.",
            f"only in the first: {only[0]}; only in the second: {only[1]}",
            "Score both on the same cases.",
        )


def pooled_confusion(rows: Sequence[Row]) -> tuple[list[str], np.ndarray]:
    """The confusion matrix of all voxels of all subjects.

    Returns:
        Class names, and int64 counts: rows true, columns predicted.

    Raises:
        InputError: the rows do not hold the counts (``voxels_as_<class>``) of every class.
    """
    whole, _ = _grouped(rows)
    classes = list(dict.fromkeys(name for name, _ in whole))
    try:
        table = [
            [_sum(whole, true, f"voxels_as_{pred}", strict=True) for pred in classes] for true in classes
        ]
    except KeyError as reason:
        raise error(
            "A confusion matrix needs voxels_as_<class> for every pair of classes.",
            f"no {reason.args[0]}",
            "Score again with this version.",
        ) from None
    return classes, np.array(table).astype(np.int64)


def volume_agreement(rows: Sequence[Row]) -> list[Row]:
    """Bland and Altman's agreement of predicted and true volumes over subjects.

    Returns:
        Rows with ``class``, ``mean_true_ml``, ``bias_ml`` (mean of predicted - true), ``lower_ml`` and
        ``upper_ml`` (limits of agreement, bias -+ 1.96 standard deviations; NaN for one subject) and
        ``subjects``. A missed structure counts with its whole volume.

    Reference:
        Bland and Altman, "Statistical methods for assessing agreement between two methods of clinical
        measurement", Lancet 1986.
    """
    agreement = []
    for name, (true_ml, predicted_ml) in volumes(rows).items():
        difference = predicted_ml - true_ml
        bias = float(difference.mean())
        reach = 1.96 * float(difference.std(ddof=1)) if difference.size > 1 else np.nan
        agreement.append(
            {"class": name, "mean_true_ml": float(true_ml.mean()), "bias_ml": bias, "lower_ml": bias - reach,
             "upper_ml": bias + reach, "subjects": difference.size}
        )  # fmt: skip
    return agreement


def volumes(rows: Sequence[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Class -> (true, predicted) volume in ml of every subject; empty if the rows hold no volumes."""
    whole, _ = _grouped(rows)
    return {
        name: tuple(
            np.array([whole[name, f"volume_{which}_ml"][subject] for subject in whole[name, metric]])
            for which in ("true", "predicted")
        )  # type: ignore[misc]
        for name, metric in whole
        if metric == "volume_true_ml" and (name, "volume_predicted_ml") in whole
    }


def whole_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of whole subjects, without those of single slices."""
    return [row for row in rows if not row.get("plane")]


_Values = dict[tuple[str, str], dict[Any, float]]


def _grouped(rows: Sequence[Row]) -> tuple[_Values, dict[tuple[str, str], dict[str, dict[Any, float]]]]:
    """Values by (class, metric) and subject; for slices by (class, metric), plane and (subject, slice)."""
    if not rows:
        raise error("A summary needs rows of at least one subject.", "none")
    whole: _Values = {}
    sliced: dict[tuple[str, str], dict[str, dict[Any, float]]] = {}
    for row in rows:
        absent = [key for key in ("class", "metric", "value") if key not in row]
        if absent:
            raise error("A row of scores has a class, a metric and a value.", f"one without {absent[0]}")
        key, subject = (row["class"], row["metric"]), row.get("subject", "")
        if row.get("plane"):
            place, into = (subject, row["slice"]), sliced.setdefault(key, {}).setdefault(row["plane"], {})
        else:
            place, into = subject, whole.setdefault(key, {})
        if place in into:
            raise error(
                "A subject has one value per class and metric.",
                f"two of {subject!r} for {row['class']} {row['metric']}",
                _SAME_SUBJECT,
            )
        into[place] = row["value"]
    return whole, sliced


def _defined(values: Mapping[Any, float]) -> np.ndarray:
    found = np.array(list(values.values()), np.float64)
    return found[~np.isnan(found)]


def _row(name: str, metric: str, pooling: str, value: float, count: int, unit: str, **known: float) -> Row:
    unknown = dict.fromkeys(("half_width", "low", "high", "sd"), float("nan"))
    ends = {key: float(known.get(key, nan)) for key, nan in unknown.items()}
    return {
        "class": name, "metric": metric, "pooling": pooling, "value": value, **ends, "count": count,
        "unit": unit,
    }  # fmt: skip


def _sum(whole: _Values, name: str, metric: str, *, strict: bool = False) -> float:
    """Sum over subjects; NaN (``strict``: a KeyError that names it) where the rows do not have it."""
    if (name, metric) not in whole:
        if strict:
            raise KeyError(f"{metric} of {name}")
        return np.nan
    return float(sum(whole[name, metric].values()))


def _pooled(true: float, predicted: float, both: float, everything: float) -> dict[str, float]:
    counts = np.array([both, predicted - both, true - both, everything - true - predicted + both])
    pooled = {metric: float(value) for metric, value in scores_of_counts(*counts).items()}
    return {"avd_percent": pooled.pop("avd"), **pooled}


def _wald(value: float, count: float) -> float:
    return float(wald_ci(value, int(count))) if count and np.isfinite(value) else np.nan


def _tested(name: str, metric: str, of_a: Mapping[Any, float], of_b: Mapping[Any, float], method: str) -> Row:
    a, b = (np.array([of.get(subject, np.nan) for subject in of_a], np.float64) for of in (of_a, of_b))
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    test = paired_test(a, b, method=method)
    with np.errstate(invalid="ignore"):
        low, high = bootstrap_ci(np.where(a == b, 0.0, a - b))
        means = [float(values.mean()) if values.size else np.nan for values in (a, b)]
    return {
        "class": name, "metric": metric, "mean_a": means[0], "mean_b": means[1],
        "difference": test.difference, "low": low, "high": high, "p_value": test.p_value,
        "subjects": test.subjects, "test": test.method,
    }  # fmt: skip
