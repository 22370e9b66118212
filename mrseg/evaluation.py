"""Scores of a segmenter on cases it has not seen, as tidy rows: subject, class, metric, value.

Every overlap figure follows from the voxel counts that the rows carry (`voxels_true`, `voxels_predicted`,
`voxels_both`), so that pooled and per-subject figures can be told apart and made again from the CSV alone.
Source: mecheter2023 section 3.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mrseg._checks import IGNORE_LABEL, error
from mrseg.data.cases import Case
from mrseg.data.geometry import check_same_grid, voxel_sizes
from mrseg.data.io import read_labels, read_volume
from mrseg.metrics.confidence import bootstrap_ci, wald_ci
from mrseg.metrics.overlap import confusion_matrix, scores
from mrseg.metrics.surface import mask_hausdorff, surface_distances
from mrseg.segmenter import Segmenter, trained_on

Row = dict[str, Any]
OVERLAP = ("precision", "recall", "dice", "jaccard")


def evaluate(
    segmenter: Segmenter,
    cases: Sequence[Case],
    *,
    sequence: str | None = None,
    distances: bool = False,
    seen_too: bool = False,
    on_result: Callable[[Case, np.ndarray], None] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Segments every case on its own grid and scores it against its labels.

    Args:
        segmenter: the network with its preprocessing.
        cases: cases with labels, of subjects that the segmenter was not trained on.
        sequence: which images; None takes the segmenter's own sequence.
        distances: add Hausdorff, HD95 and mean surface distance in mm.
        seen_too: score subjects that the segmenter has trained on as well, instead of refusing them.
        on_result: called with each case and its predicted labels (x, y, z) uint8, to keep or draw them.
        progress: show a bar.

    Returns:
        Rows of every subject, class and metric; see `score` for the metrics.

    Raises:
        InputError: no case, or a case without the image or labels; scan and labels on different grids.
    """
    sequence = sequence or segmenter.sequence
    if not cases:
        raise error("Evaluation needs at least one case.", "none", "Check the split names in the manifest.")
    seen = [] if seen_too else trained_on(segmenter, cases)
    if seen:
        raise error(
            "A segmenter is scored on subjects that it was not trained on.",
            f"{', '.join(seen[:5])} among the cases",
            "Leave them out, or pass seen_too=True and say so beside the figures.",
        )
    for case in cases:
        if sequence not in case.images or sequence not in case.labels:
            raise error(
                f"Subject {case.subject} needs a {sequence} image with labels to be scored.",
                f"images {sorted(case.images)}, labels {sorted(case.labels)}",
            )
    rows: list[Row] = []
    for case in tqdm(cases, desc=f"scoring {sequence}", unit="scan", disable=not progress, leave=False):
        scan = read_volume(case.images[sequence])
        labels = read_labels(case.labels[sequence], len(segmenter.class_names))
        check_same_grid(str(case.images[sequence]), scan, str(case.labels[sequence]), labels)
        predicted = np.asarray(segmenter(scan).dataobj)
        spacing_mm = voxel_sizes(scan[1]) if distances else None
        for row in score(labels[0], predicted, segmenter.class_names, spacing_mm=spacing_mm):
            rows.append({"subject": case.subject, "sequence": sequence, **row})
        if on_result:
            on_result(case, predicted)
    return rows


def score(
    labels_true: np.ndarray,
    labels_pred: np.ndarray,
    class_names: Sequence[str],
    *,
    spacing_mm: tuple[float, float, float] | None = None,
) -> list[Row]:
    """Rows (class, metric, value) of one subject.

    Args:
        labels_true: (x, y, z) integers; voxels of the ignore label 255 are not counted.
        labels_pred: the same shape.
        class_names: name of every label value from 0.
        spacing_mm: voxel size in mm; given, the surface distances of classes 1 and up are added in mm, and
            the mask-to-mask Hausdorff distance in voxels that islam2025 reports.

    Returns:
        Per class voxels_true, voxels_predicted, voxels_both, precision, recall, dice, jaccard; NaN where
        undefined (see mrseg.metrics.overlap for empty masks).
    """
    confusion = confusion_matrix(labels_true, labels_pred, len(class_names))
    values = {
        "voxels_true": confusion.sum(1),
        "voxels_predicted": confusion.sum(0),
        "voxels_both": confusion.diagonal(),
    }
    overlap = scores(confusion)
    values.update({metric: overlap[metric] for metric in OVERLAP})
    rows = [
        {"class": name, "metric": metric, "value": float(per_class[c])}
        for c, name in enumerate(class_names)
        for metric, per_class in values.items()
    ]
    if spacing_mm is not None:
        ignored = labels_true == IGNORE_LABEL
        for c, name in enumerate(class_names[1:], start=1):
            true, pred = labels_true == c, labels_pred == c
            distances = surface_distances(true, pred, spacing_mm, mask_ignored=ignored).scores()
            named = {f"{metric}_mm": value for metric, value in distances.items()}
            named["mask_hausdorff_voxels"] = mask_hausdorff(true, pred & ~ignored)
            rows += [{"class": name, "metric": metric, "value": value} for metric, value in named.items()]
    return rows


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Figures over all subjects: pooled over voxels, and the mean over subjects.

    Returns:
        Rows with ``class``, ``metric``, ``pooled`` (from summed voxel counts; overlap metrics only),
        ``pooled_halfwidth`` (1.96 sqrt(p(1-p)/n), n = reference voxels of the class, as mecheter2023 prints
        it: too narrow, since voxels are not independent), ``mean``, ``low``, ``high`` (95 % bootstrap over
            subjects) and
        ``subjects``, the number of subjects with a defined value.
    """
    summary: list[Row] = []
    classes = list(dict.fromkeys(row["class"] for row in rows))
    metrics = [m for m in dict.fromkeys(row["metric"] for row in rows) if not m.startswith("voxels_")]
    for name in classes:
        counts = {m: _sum(rows, name, m) for m in ("voxels_true", "voxels_predicted", "voxels_both")}
        pooled = _pooled(**counts)
        for metric in metrics:
            values = np.array([r["value"] for r in rows if r["class"] == name and r["metric"] == metric])
            if not len(values):
                continue
            values = values[~np.isnan(values)]
            low, high = bootstrap_ci(values) if len(values) > 1 else (np.nan, np.nan)
            whole = pooled.get(metric, np.nan)
            summary.append(
                {
                    "class": name,
                    "metric": metric,
                    "pooled": whole,
                    "pooled_halfwidth": _wald(whole, counts["voxels_true"]),
                    "mean": float(values.mean()) if len(values) else np.nan,
                    "low": float(low),
                    "high": float(high),
                    "subjects": len(values),
                }
            )
    return summary


def _sum(rows: Sequence[Row], name: str, metric: str) -> float:
    return float(sum(r["value"] for r in rows if r["class"] == name and r["metric"] == metric))


def _pooled(voxels_true: float, voxels_predicted: float, voxels_both: float) -> dict[str, float]:
    def ratio(over: float, under: float) -> float:
        return over / under if under else np.nan

    either = voxels_true + voxels_predicted - voxels_both
    return {
        "precision": ratio(voxels_both, voxels_predicted),
        "recall": ratio(voxels_both, voxels_true),
        "dice": ratio(2 * voxels_both, voxels_true + voxels_predicted),
        "jaccard": ratio(voxels_both, either),
    }


def _wald(value: float, count: float) -> float:
    return float(wald_ci(value, int(count))) if count and np.isfinite(value) else np.nan
