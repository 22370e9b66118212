"""What the HTML page of an evaluation says: tables, dots, agreement, learning curves, best and worst case."""

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
from mrseg.evaluation import Row, evaluate
from mrseg.formats import to_text, write_csv, write_tables
from mrseg.opponent import Opponent
from mrseg.passes import DEFAULT, Inference
from mrseg.pictures import View, comparison, to_png
from mrseg.plots import bland_altman, dot_plot, learning_curves
from mrseg.report import Details, Picture, Section, write_report
from mrseg.score_tables import (
    PRINTED,
    confusion_table,
    layout_table,
    subject_table,
    summary_table,
    volume_table,
)
from mrseg.segmenter import Asked, subject_digest, trained_on
from mrseg.summaries import SUBJECTS, summarize, volumes, whole_rows
from mrseg.theme import to_svg

#: Metrics of the table on the terminal; the page shows all.
_IN_SHORT = (*PRINTED, "hd95_mm", "assd_mm")


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
    segmenter: Asked,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sequence: str | None = None,
    distances: bool = False,
    plane: str = "axial",
    other: str | Path | Opponent | None = None,
    seen_too: bool = False,
    inference: Inference = DEFAULT,
    log: Path | None = None,
    notice: str = "",
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[list[Row], str]:
    """Evaluates, and writes the scores, every table and the page into a folder.

    Written are ``scores.csv`` (rows of whole subjects), ``slices.csv`` (rows of every slice),
    ``report.html``, and ``tables/`` with every table of the page as LaTeX and CSV.

    Args:
        segmenter, cases, sequence, distances, plane, seen_too, inference, progress: as `mrseg.evaluate` takes
            them; an ``inference`` of one's own is told with the provenance.
        output: folder.
        other: another method on the same subjects, to be compared with, or its ``scores.csv``.
        log: CSV log of the training, for its curves.
        notice: what a reader must know before the figures.
        provenance: shown folded at the end.

    Returns:
        The rows, and the summary table as text.

    Raises:
        InputError: as `mrseg.evaluate`; ``other`` is no table of scores, or of other subjects.
    """
    output = writable_folder(output)
    sequence = sequence or segmenter.sequence
    opponent = Opponent(other) if isinstance(other, str | Path) else other
    rows_other: list[Row] = []
    if opponent is not None:  # before minutes of prediction
        rows_other = opponent.read([case.subject for case in cases], output)
    with tempfile.TemporaryDirectory() as spool:
        predictions = _Spool(Path(spool))
        rows = evaluate(
            segmenter,
            cases,
            sequence=sequence,
            distances=distances,
            plane=plane,
            seen_too=seen_too,
            inference=inference,
            on_result=predictions.add,
            progress=progress,
        )
        pictures = _ranked_pictures(whole_rows(rows), cases, sequence, predictions, segmenter.class_names)
    write_csv(whole_rows(rows), output / "scores.csv")
    write_csv([row for row in rows if row.get("plane")], output / "slices.csv")
    summary = summarize(rows)
    what = f"{len(cases)} subject{'s' if len(cases) > 1 else ''}, {sequence}"
    made = {
        "layout": layout_table(summary, caption=f"{what}, in the layout of the papers."),
        "metrics": summary_table(summary, caption=f"{what}, every metric."),
        "subjects": subject_table(rows),
        "confusion": confusion_table(rows),
        "volumes": volume_table(rows),
    }
    means = [{"sequence": sequence, **row} for row in summary if row["pooling"] == SUBJECTS]
    dots = dot_plot(whole_rows(rows), by="sequence", summary=means, title="Dice of every subject")
    sections = [
        Section(
            "Scores",
            (
                made["layout"],
                Picture("Every dot is a subject.", to_svg(dots)),
                made["subjects"],
                Details("Every metric", (made["metrics"],)),
            ),
        ),
        Section("Confusion", (made["confusion"],)),
        Section(
            "Volumes",
            (
                made["volumes"],
                Picture(
                    "Predicted minus true volume over their mean (Bland and Altman), a dot per subject.",
                    to_svg(bland_altman(volumes(rows), title="Agreement of volumes")),
                ),
            ),
        ),
    ]
    if opponent is not None:
        made["comparison"], both = opponent.compared(whole_rows(rows), rows_other, output)
        sections.insert(1, Section("Comparison", (made["comparison"], both)))
    if log is not None and log.exists():
        curves = learning_curves({"training": log}, metric="loss", title="Learning curve")
        sections.append(Section("Training", (Picture("Loss by epoch.", to_svg(curves)),)))
    sections.append(Section("Cases", tuple(pictures)))
    for kind in (".csv", ".tex"):  # of an evaluation before, which would not be this one's
        (output / "tables" / "comparison").with_suffix(kind).unlink(missing_ok=True)
    write_tables(made, output / "tables")
    write_report(
        output / "report.html",
        title=f"{sequence}: {', '.join(segmenter.class_names)}",
        summary=(_verdict(whole_rows(rows), cases),),
        sections=sections,
        notice=" ".join(filter(None, [notice, _seen(segmenter, cases)])),
        provenance={**(provenance or segmenter.provenance), **_told(segmenter, inference)},
    )
    short = [row for row in summary if row["metric"] in _IN_SHORT]
    shown = [summary_table(short, caption=f"{what}."), *(made[name] for name in made if name == "comparison")]
    return rows, "\n\n".join(map(to_text, shown))


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


def _seen(segmenter: Asked, cases: Sequence[Case]) -> str:
    seen = trained_on(segmenter, cases)
    if not seen:
        return ""
    return f"Of the {len(cases)} subjects scored, {len(seen)} were trained on: the figures flatter."


def _told(segmenter: Asked, inference: Inference) -> dict[str, Any]:
    """How the network was asked, as far as that is not the default."""
    told = {"engine": (segmenter.engine, "tensorflow"), "precision": (segmenter.precision, "float32")}
    asked: dict[str, Any] = {name: now for name, (now, default) in told.items() if now != default}
    return asked if inference == DEFAULT else {**asked, "inference": inference.as_dict()}


class _Spool:
    """Predicted labels, on disk until it is known which few are drawn."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, case: Case, labels: np.ndarray) -> None:
        np.save(self._path(case), labels)

    def labels(self, case: Case) -> np.ndarray:
        return np.load(self._path(case), allow_pickle=False)

    def _path(self, case: Case) -> Path:
        return self.folder / f"{subject_digest(case)}.npy"


def _ranked_pictures(
    rows: Sequence[Row],
    cases: Sequence[Case],
    sequence: str,
    predictions: _Spool,
    class_names: Sequence[str],
) -> list[Picture]:
    """Best, median and worst case by mean Dice, none of them twice; cases without a Dice are not ranked."""
    dice = {case.subject: mean_dice(rows, case.subject) for case in cases}
    scored = [case for case in cases if not np.isnan(dice[case.subject])] or list(cases)
    ranked = sorted(scored, key=lambda case: dice[case.subject], reverse=True)
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    pictures, shown = [], set()
    for rank, case in chosen.items():
        if case.subject in shown:
            continue
        shown.add(case.subject)
        named = f"{case.subject} ({rank})" if len(ranked) > 1 else case.subject
        title = f"{named}: mean Dice {dice[case.subject]:.3f}"
        picture = case_picture(case, sequence, predictions.labels(case), class_names, title)
        pictures.append(Picture(title, picture))
    return pictures
