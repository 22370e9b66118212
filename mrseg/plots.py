"""Plots of numbers: learning curves from training logs, and one dot per subject with means and intervals.

Like `mrseg.pictures`, every function returns a matplotlib Figure without global state; `mrseg.theme.to_svg`
makes a picture of it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mrseg._checks import choice, error, existing_file
from mrseg.data.labels import OKABE_ITO
from mrseg.tables import metric_title
from mrseg.theme import FAINT, INK, WIDTH_IN, headline, new_figure, plain_axes

_TRAIN, _VALIDATION = OKABE_ITO["blue"], OKABE_ITO["vermillion"]

Log = Mapping[str, Sequence[float] | np.ndarray]


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a training log: CSV with a header line and one line per epoch.

    Returns:
        Column name to float64 values, (epochs,); an empty field is NaN. A log without an ``epoch`` column
        gets one that counts from 0.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file has no header, no epoch yet, or a field that is no number.
    """
    path = existing_file(path)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or () if name]
        rows = list(reader)
    if not rows or not names:
        raise error("A training log holds a header and one epoch or more.", f"{path}, {len(rows)} epochs")
    try:
        log = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    except (TypeError, ValueError) as reason:
        raise error("A training log holds numbers only.", f"{path} ({reason})") from reason
    return {"epoch": np.arange(len(rows), dtype=float), **log}


def learning_curves(
    logs: Mapping[str, str | Path | Log],
    *,
    metric: str = "loss",
    monitor: str | None = None,
    best: str = "lowest",
    title: str = "",
) -> Figure:
    """Draws one panel per training on common axes: training and validation curve, the best epoch marked.

    Args:
        logs: name of the training to its CSV log or to columns ``{"epoch": .., "loss": .., "val_loss": ..}``.
        metric: the column to draw; ``val_<metric>`` is drawn beside it where a log has it.
        monitor: the column whose best epoch is marked; by default ``val_<metric>``, or ``metric`` without it.
        best: ``lowest`` or ``highest`` value of the monitor.
        title: a line above the panels.

    Raises:
        InputError: no log, or a log without the column, which lists the ones there are.

    Example:
        >>> figure = learning_curves({"T1w": "runs/t1/log.csv", "open": "runs/open/log.csv"})
    """
    choice("best", best, ("lowest", "highest"))
    if not logs:
        raise error("Learning curves need at least one log.", "none")
    read = {n: read_log(g) if isinstance(g, (str, Path)) else _columns(g) for n, g in logs.items()}
    across = min(len(read), 3) if len(read) != 4 else 4
    down = -(-len(read) // across)
    panel_in = 2.05 if down > 1 else 2.6
    figure = new_figure(0.85 + panel_in * down + 0.3)
    grid = figure.subplots(down, across, sharex=False, sharey=True, squeeze=False)
    for axes in grid.flat[len(read) :]:
        axes.set_visible(False)
    for axes, (name, log) in zip(grid.flat, read.items(), strict=False):
        _curve_panel(axes, name, log, metric, monitor, best)
    for axes in grid[:, 0]:
        axes.set_ylabel(_readable(metric), color=INK, fontsize=10)
    headline(figure, title, [(_TRAIN, "-", "training"), (_VALIDATION, "-", "validation")])
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.065, right=0.99, top=1 - 0.85 / height, bottom=0.5 / height)
    figure.subplots_adjust(hspace=0.62, wspace=0.08)
    return figure


def dot_plot(
    rows: Iterable[Mapping[str, Any]],
    *,
    by: str = "model",
    metric: str = "dice",
    summary: Iterable[Mapping[str, Any]] = (),
    classes: Sequence[str] | None = None,
    reference: str | None = None,
    title: str = "",
) -> Figure:
    """Draws one panel per class: a line per model with a dot per subject, the mean and its interval.

    Args:
        rows: tidy rows with keys ``by``, subject, class, metric, value. NaN values have no dot.
        by: the key that names a line.
        metric: which rows to draw.
        summary: tidy rows with keys ``by``, class, metric, value, low, high: the estimate marked on a line
            and its interval. Without a summary row the mean over the subjects is marked, without interval.
        classes: the classes, in order; by default as they first appear.
        reference: the model shown as a vertical line through all others, e.g. T1-w on T1-w.
        title: a line above the panels.

    Raises:
        InputError: no row has this metric, or the reference is not among the models.

    Example:
        >>> figure = dot_plot(rows, metric="dice", summary=intervals, reference="T1w on T1w")
    """
    rows = [row for row in rows if row["metric"] == metric]
    estimates = {(r[by], r["class"]): r for r in summary if r["metric"] == metric}
    if not rows:
        raise error(f"The rows hold the metric {metric!r}.", "none with it")
    classes = list(dict.fromkeys(r["class"] for r in rows)) if classes is None else list(classes)
    models = list(dict.fromkeys(r[by] for r in rows))
    if reference is not None:
        models.remove(choice("reference", reference, models))
    height = 1.5 + 0.34 * max(len(models), 1)
    figure = new_figure(height)
    panels = figure.subplots(1, len(classes), sharey=True, squeeze=False)[0]
    longest = max((len(str(name)) for name in models), default=0)
    for axes, name in zip(panels, classes, strict=True):
        values = {
            model: np.array([float(r["value"]) for r in rows if r[by] == model and r["class"] == name])
            for model in ([*models, reference] if reference is not None else models)
        }
        marks = {model: _estimate(found, estimates.get((model, name))) for model, found in values.items()}
        _dot_panel(axes, name, models, values, marks)
        if reference is not None and math.isfinite(marks[reference][0]):
            axes.axvline(marks[reference][0], color=FAINT, linewidth=1.2, dashes=(4, 2), zorder=1)
        axes.set_xlabel(_readable(metric), color=INK, fontsize=10)
    panels[0].set_yticks(range(len(models)), [str(m) for m in models], parse_math=False)
    key = [(OKABE_ITO["sky"], "o", "subject"), (INK, "|", "mean, with interval" if estimates else "mean")]
    headline(figure, title, key + ([(FAINT, "--", str(reference))] if reference is not None else []))
    left = min(0.3, (0.35 + 0.083 * longest) / WIDTH_IN)
    figure.subplots_adjust(left=left, right=0.985, top=1 - 0.82 / height, bottom=0.52 / height, wspace=0.1)
    return figure


def signal_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str = "") -> Figure:
    """Draws the signal of regions of a DSC series over time, and beside it the change of R2*.

    Args:
        curves: name of the region to its rows, as `mrseg.perfusion.region_curve` gives them.
        title: a line above the panels.

    Raises:
        InputError: no region, a region without rows, or more regions than there are colours.

    Example:
        >>> figure = signal_curves({"brain": rows})
    """
    colours = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple", "orange", "sky")]
    if not curves or not all(curves.values()) or len(curves) > len(colours):
        raise error(f"Signal curves need one to {len(colours)} regions with rows.",
                    {name: len(rows) for name, rows in curves.items()})  # fmt: skip
    height = 3.6
    figure = new_figure(height)
    signal, change = figure.subplots(1, 2)
    plain_axes(signal, "mean signal")
    plain_axes(change, "\N{GREEK CAPITAL LETTER DELTA}R2* [1/s]")
    steady: set[float] = set()
    for colour, rows in zip(colours, curves.values(), strict=False):
        times, mean, rate = (
            np.array([float(row[key]) for row in rows]) for key in ("time_s", "mean_signal", "delta_r2star")
        )
        signal.plot(times, mean, color=colour, linewidth=1.6, marker="o", markersize=3)
        change.plot(times, rate, color=colour, linewidth=1.6, marker="o", markersize=3)
        steady |= {float(row["time_s"]) for row in rows if row["baseline"]}
    signal.set_ylim(bottom=0)
    change.axhline(0, color=FAINT, linewidth=1.0, dashes=(3, 2), zorder=1)
    for axes in (signal, change):
        axes.set_xlabel("time [s]", color=INK, fontsize=10)
        # The baseline is marked at the foot, point by point: it need not be an interval.
        foot = axes.get_xaxis_transform()
        axes.plot(sorted(steady), [0.02] * len(steady), "|", color=FAINT, markersize=8, transform=foot)
    key = [(colour, "-", str(name)) for colour, name in zip(colours, curves, strict=False)]
    headline(figure, title, [*key, (FAINT, "|", "baseline")])
    figure.subplots_adjust(left=0.065, right=0.985, top=1 - 0.85 / height, bottom=0.55 / height, wspace=0.16)
    return figure


def bland_altman(volumes_ml: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = "") -> Figure:
    """Draws one panel per class: predicted minus true volume over their mean, a dot per subject, in ml.

    The line is the bias, the broken lines are the limits of agreement (bias -+ 1.96 standard deviations over
    subjects); one subject has no limits.

    Args:
        volumes_ml: class to (true, predicted) volume of every subject, as `mrseg.summaries.volumes` gives.
        title: a line above the panels.

    Raises:
        InputError: no class, or a class without a subject.

    Reference:
        Bland and Altman, "Statistical methods for assessing agreement between two methods of clinical
        measurement", Lancet 1986.
    """
    if not volumes_ml or not all(len(true) for true, _ in volumes_ml.values()):
        raise error(
            "A Bland-Altman plot needs volumes of at least one subject.", f"{len(volumes_ml)} classes"
        )
    across = min(len(volumes_ml), 4)
    down = -(-len(volumes_ml) // across)
    height = 0.8 + 2.7 * down
    figure = new_figure(height)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(volumes_ml) :]:
        axes.set_visible(False)
    for axes, (name, (true, predicted)) in zip(grid.flat, volumes_ml.items(), strict=False):
        plain_axes(axes, name)
        middle, difference = (true + predicted) / 2, predicted - true
        bias = float(difference.mean())
        reach = 1.96 * float(difference.std(ddof=1)) if difference.size > 1 else math.nan
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        axes.axhline(bias, color=INK, linewidth=1.6, zorder=2)
        for limit in (bias - reach, bias + reach):
            if math.isfinite(limit):
                axes.axhline(limit, color=_VALIDATION, linewidth=1.3, dashes=(5, 3), zorder=2)
        axes.plot(middle, difference, "o", color=OKABE_ITO["sky"], markersize=6, markeredgewidth=0, zorder=3)
        axes.set_xlabel("mean of both [ml]", color=INK, fontsize=9.5, labelpad=2)
        axes.margins(x=0.15, y=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    for axes in grid[:, 0]:
        axes.set_ylabel("predicted - true [ml]", color=INK, fontsize=10)
    key = [
        (OKABE_ITO["sky"], "o", "subject"),
        (INK, "-", "bias"),
        (_VALIDATION, "--", "limits of agreement"),
    ]
    headline(figure, title, key)
    figure.subplots_adjust(left=0.075, right=0.99, top=1 - 0.8 / height, bottom=0.52 / height)
    figure.subplots_adjust(hspace=0.6, wspace=0.28)
    return figure


def _curve_panel(axes: Any, name: str, log: Log, metric: str, monitor: str | None, best: str) -> None:
    for column in [metric] + ([monitor] if monitor else []):
        choice(f"A column of the log of {name!r}", column, [c for c in log if c != "epoch"])
    plain_axes(axes, name)
    epochs = np.asarray(log["epoch"])
    few = {"marker": "o", "markersize": 3.5} if len(epochs) < 3 else {}
    axes.plot(epochs, log[metric], color=_TRAIN, linewidth=1.6, **few)
    if f"val_{metric}" in log:
        axes.plot(epochs, log[f"val_{metric}"], color=_VALIDATION, linewidth=1.6, **few)
    monitor = monitor or (f"val_{metric}" if f"val_{metric}" in log else metric)
    values = np.asarray(log[monitor], dtype=float)
    axes.set_xlabel("epoch", color=INK, fontsize=9.5, labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not np.isfinite(values).any():
        axes.text(
            0.98,
            0.95,
            f"{monitor} was never finite",
            transform=axes.transAxes,
            color=INK,
            fontsize=9,
            ha="right",
            va="top",
            parse_math=False,
        )
        return
    at = int(np.nanargmin(values) if best == "lowest" else np.nanargmax(values))
    axes.axvline(epochs[at], color=FAINT, linewidth=1.0, dashes=(3, 2), zorder=1)
    drawn = monitor if monitor in (metric, f"val_{metric}") else None
    if drawn:
        axes.plot(
            [epochs[at]],
            [values[at]],
            "o",
            color=_VALIDATION if drawn != metric else _TRAIN,
            markersize=6,
            markeredgecolor=INK,
            markeredgewidth=1.0,
            zorder=5,
        )
    where = f"best epoch {epochs[at]:g}: {values[at]:.3f}"
    where += "" if drawn else f" ({_readable(monitor)})"
    axes.set_title(where, loc="right", fontsize=9.5, color=FAINT, parse_math=False)


def _dot_panel(
    axes: Any,
    name: str,
    models: Sequence[str],
    values: Mapping[str, np.ndarray],
    marks: Mapping[str, tuple[float, float, float]],
) -> None:
    plain_axes(axes, name)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for y, model in enumerate(models):
        found = values[model][np.isfinite(values[model])]
        # Subjects in their order, spread over a narrow band, so that equal values stay visible.
        lift = np.linspace(-0.17, 0.17, len(found)) if len(found) > 1 else np.zeros(len(found))
        axes.plot(
            found,
            y + lift,
            "o",
            color=OKABE_ITO["sky"],
            markersize=5,
            alpha=0.85,
            markeredgewidth=0,
            zorder=2,
        )
        mean, low, high = marks[model]
        if math.isfinite(mean):
            axes.plot([mean, mean], [y - 0.27, y + 0.27], color=INK, linewidth=2.0, zorder=4)
        else:
            axes.text(
                0.5,
                y,
                "no value",
                transform=axes.get_yaxis_transform(),
                color=FAINT,
                fontsize=9,
                ha="center",
                va="center",
            )
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [y, y], color=INK, linewidth=1.3, zorder=3)
    axes.set_ylim(max(len(models), 1) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _estimate(values: np.ndarray, summary: Mapping[str, Any] | None) -> tuple[float, float, float]:
    """The mark on a line and the ends of its interval, NaN where unknown."""
    nan = float("nan")
    if summary is not None:
        ends = (summary.get("low"), summary.get("high"))
        low, high = (nan if end is None else float(end) for end in ends)
        return float(summary["value"]), low, high
    kept = values[np.isfinite(values)]
    return (float(kept.mean()) if kept.size else nan), nan, nan


def _columns(log: Log) -> dict[str, np.ndarray]:
    columns = {name: np.asarray(values, dtype=float) for name, values in log.items()}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise error("The columns of a log hold one value per epoch, at least one.",
                    f"lengths { {n: len(v) for n, v in columns.items()} }")  # fmt: skip
    return {"epoch": np.arange(lengths.pop(), dtype=float), **columns}


def _readable(name: str) -> str:
    if name.startswith("val_"):
        return f"validation {_readable(name.removeprefix('val_'))}"
    return metric_title(name).replace("_", " ")
