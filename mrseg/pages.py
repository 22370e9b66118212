"""What the HTML page of an evaluation says: table, dots, learning curves, best, median and worst case."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrseg._files import writable_folder
from mrseg.data.cases import Case
from mrseg.data.geometry import to_canonical, voxel_sizes
from mrseg.data.io import read_labels, read_volume
from mrseg.evaluation import Row, evaluate, summarize
from mrseg.formats import to_text, write_csv
from mrseg.pictures import View, comparison, to_png
from mrseg.plots import learning_curves, to_svg
from mrseg.report import Picture, Section, write_report
from mrseg.segmenter import Segmenter, subject_digest
from mrseg.tables import Column, Estimate, Table, table

INTERVALS = (
    "pooled: all voxels of all subjects together, +- the 95 % Wald half-width 1.96 sqrt(p(1-p)/n) as "
    "mecheter2023 prints it, which takes voxels for independent and is too narrow. mean: over subjects, "
    "with the 95 % bootstrap over subjects."
)


def summary_table(rows: Sequence[Row], *, caption: str) -> Table:
    """One line a class and metric: pooled with half-width, mean over subjects with interval."""
    lines = [
        {
            "class": row["class"],
            "metric": row["metric"],
            "pooled": Estimate(row["pooled"], half_width=_or_none(row["pooled_halfwidth"])),
            "mean": Estimate(row["mean"], low=_or_none(row["low"]), high=_or_none(row["high"])),
            "subjects": row["subjects"],
        }
        for row in summarize(rows)
    ]
    return table(
        lines,
        [
            Column("class"),
            Column("metric"),
            Column("pooled", decimals=4),
            Column("mean", decimals=4),
            "subjects",
        ],
        caption=caption,
        missing="a distance is not pooled, or there are too few subjects",
        note=INTERVALS,
    )


def case_picture(
    case: Case, sequence: str, predicted: np.ndarray, class_names: Sequence[str], title: str
) -> bytes:
    """PNG of one case: image, truth, prediction and where they differ."""
    image = read_volume(case.images[sequence])
    truth = read_labels(case.labels[sequence], len(class_names))
    array, affine = to_canonical(image)
    figure = comparison(
        array,
        to_canonical(truth)[0],
        to_canonical((predicted, image[1]))[0],
        class_names=class_names,
        spacing_mm=voxel_sizes(affine),
        title=title,
        view=View(focus=class_names[-1]),
    )
    return to_png(figure, dpi=110)


def write_evaluation(
    segmenter: Segmenter,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sequence: str | None = None,
    distances: bool = False,
    seen_too: bool = False,
    log: Path | None = None,
    notice: str = "",
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[list[Row], str]:
    """Evaluates, and writes ``scores.csv`` and ``report.html`` into ``output``.

    Args:
        segmenter, cases, sequence, distances, seen_too, progress: as `mrseg.evaluate` takes them.
        output: folder.
        log: CSV log of the training, for its curves.
        notice: what a reader must know before the figures.
        provenance: shown folded at the end.

    Returns:
        The rows, and the summary table as text.
    """
    output = writable_folder(output)
    sequence = sequence or segmenter.sequence
    with tempfile.TemporaryDirectory() as spool:
        predictions = _Spool(Path(spool))
        rows = evaluate(
            segmenter,
            cases,
            sequence=sequence,
            distances=distances,
            seen_too=seen_too,
            on_result=predictions.add,
            progress=progress,
        )
        pictures = _ranked_pictures(rows, cases, sequence, predictions, segmenter.class_names)
    write_csv(rows, output / "scores.csv")
    made = summary_table(rows, caption=f"{len(cases)} subjects, {sequence}")
    sections = [Section("Scores", (made, _per_subject(rows)))]
    if log is not None and log.exists():
        curves = learning_curves({"training": log}, metric="loss", title="Learning curve")
        sections.append(Section("Training", (Picture("Loss by epoch.", to_svg(curves)),)))
    sections.append(Section("Cases", tuple(pictures)))
    write_report(
        output / "report.html",
        title=f"{sequence}: {', '.join(segmenter.class_names)}",
        summary=(_verdict(rows, cases),),
        sections=sections,
        notice=notice,
        provenance=provenance or segmenter.provenance,
    )
    return rows, to_text(made)


def mean_dice(rows: Sequence[Row], subject: str | None = None) -> float:
    """Mean Dice over classes 1 and up and over subjects (or of one subject), undefined values left out."""
    first = rows[0]["class"]
    values = [
        r["value"]
        for r in rows
        if r["metric"] == "dice" and r["class"] != first and subject in (None, r["subject"])
    ]
    return float(np.nanmean(values)) if values and not np.all(np.isnan(values)) else float("nan")


def _verdict(rows: Sequence[Row], cases: Sequence[Case]) -> str:
    splits = sorted({case.split for case in cases if case.split})
    subjects = len({row["subject"] for row in rows})
    return (
        f"Mean Dice {mean_dice(rows):.3f} over the classes but the first, and over {subjects} subjects "
        f"of the split {' and '.join(splits) or 'without name'}."
    )


def _per_subject(rows: Sequence[Row]) -> Table:
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row["metric"].startswith("voxels_") and row["metric"] not in (
            "precision",
            "recall",
            "jaccard",
        ):
            lines.setdefault(row["subject"], {"subject": row["subject"]})[
                f"{row['class']} {row['metric']}"
            ] = row["value"]
    return table(
        lines.values(), caption="Every subject.", missing="the structure is absent in truth and prediction"
    )


class _Spool:
    """Predicted labels, on disk until it is known which few are drawn."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, case: Case, labels: np.ndarray) -> None:
        np.save(self._path(case), labels)

    def labels(self, case: Case) -> np.ndarray:
        return np.load(self._path(case))

    def _path(self, case: Case) -> Path:
        return self.folder / f"{subject_digest(case)}.npy"


def _ranked_pictures(
    rows: Sequence[Row],
    cases: Sequence[Case],
    sequence: str,
    predictions: _Spool,
    class_names: Sequence[str],
) -> list[Picture]:
    """Best, median and worst case by mean Dice, none of them twice."""
    ranked = sorted(cases, key=lambda case: mean_dice(rows, case.subject), reverse=True)
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    pictures, shown = [], set()
    for rank, case in chosen.items():
        if case.subject in shown:
            continue
        shown.add(case.subject)
        title = f"{case.subject} ({rank}): mean Dice {mean_dice(rows, case.subject):.3f}"
        picture = case_picture(case, sequence, predictions.labels(case), class_names, title)
        pictures.append(Picture(title, picture))
    return pictures


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
