"""Scores of a segmenter on cases it has not seen, as tidy rows: subject, class, metric, value.

Every overlap figure follows from the voxel counts that the rows carry (`voxels_true`, `voxels_predicted`,
`voxels_both`, `voxels_all`, and `voxels_as_<class>`: a row of the confusion matrix), so that pooled and
per-subject figures can be told apart and made again from the CSV alone (`mrseg.summaries`).
Source: mecheter2023 section 3.6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from mrseg._checks import IGNORE_LABEL, choice, error
from mrseg.data.cases import Case
from mrseg.data.geometry import check_same_grid, to_canonical, voxel_sizes
from mrseg.data.io import read_labels, read_volume
from mrseg.metrics.overlap import confusion_matrix, scores
from mrseg.metrics.surface import mask_hausdorff, surface_distances
from mrseg.passes import DEFAULT, Inference
from mrseg.segmenter import Asked, trained_on
from mrseg.summaries import Row, compare, summarize

__all__ = ["PLANES", "Row", "compare", "evaluate", "score", "score_slices", "summarize"]

#: Name of the metric in the rows -> name in `mrseg.metrics.scores`.
_OVERLAP = {name: name for name in ("precision", "recall", "dice", "jaccard", "specificity", "accuracy")}
_OVERLAP["avd_percent"] = "avd"

#: Axis across the slices of a plane, in RAS+ order.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}

#: Tolerance of the surface Dice in the rows, in mm.
_TOLERANCE_MM = 1.0


def evaluate(
    segmenter: Asked,
    cases: Sequence[Case],
    *,
    sequence: str | None = None,
    distances: bool = False,
    plane: str | None = None,
    seen_too: bool = False,
    inference: Inference = DEFAULT,
    on_result: Callable[[Case, np.ndarray], None] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Segments every case on its own grid and scores it against its labels.

    Args:
        segmenter: the network with its preprocessing, or an `mrseg.Ensemble` of several.
        cases: cases with labels, of subjects that the segmenter was not trained on.
        sequence: which images; None takes the segmenter's own sequence.
        distances: add Hausdorff, HD95, mean surface distances in mm and surface Dice.
        plane: ``axial``, ``coronal`` or ``sagittal`` adds rows of every slice of that plane, with the keys
            ``plane`` and ``slice``; papers that average over slices are compared with those.
        seen_too: score subjects that the segmenter has trained on as well, instead of refusing them.
        inference: how the network is asked: overlap, blending, mirrors, Monte-Carlo dropout, whole volumes.
        on_result: called with each case and its predicted labels (x, y, z) uint8, to keep or draw them.
        progress: show a bar.

    Returns:
        Rows of every subject, class and metric; see `score` for the metrics. Besides, ``volume_true_ml`` and
        ``volume_predicted_ml``.

    Raises:
        InputError: no case, two cases of one subject, a case without the image or labels, scan and labels on
            different grids, an unknown plane.
    """
    sequence = sequence or segmenter.sequence
    if not cases:
        raise error("Evaluation needs at least one case.", "none", "Check the split names in the manifest.")
    if plane is not None:
        choice("plane", plane, PLANES)
    _check_one_case_each(cases)
    seen = [] if seen_too else trained_on(segmenter, cases)
    if seen:
        raise error(
            "A segmenter is scored on subjects that it was not trained on.",
            f"{', '.join(seen[:5])} among the cases",
            "Leave them out, or say seen_too=True (--seen-too) and tell so beside the figures.",
        )
    for case in cases:
        if sequence not in case.images or sequence not in case.labels:
            raise error(
                f"Subject {case.subject} needs a {sequence} image with labels to be scored.",
                f"images {sorted(case.images)}, labels {sorted(case.labels)}",
                "Leave the case out of the split, or name another sequence; `mrseg prepare` makes labels.",
            )
    rows: list[Row] = []
    for case in tqdm(cases, desc=f"scoring {sequence}", unit="scan", disable=not progress, leave=False):
        scan = read_volume(case.images[sequence])
        labels = read_labels(case.labels[sequence], len(segmenter.class_names))
        check_same_grid(str(case.images[sequence]), scan, str(case.labels[sequence]), labels)
        predicted = segmenter.predict(scan, inference=inference).labels
        found = _score_case(labels[0], predicted, scan[1], segmenter.class_names, distances, plane)
        rows += [{"subject": case.subject, "sequence": sequence, **row} for row in found]
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
        Per class the counts voxels_true, voxels_predicted, voxels_both, voxels_all (judged voxels of the
        scan) and voxels_as_<class> (true voxels by predicted class), then precision, recall, dice, jaccard,
        specificity, accuracy and avd_percent (absolute volume difference); NaN where undefined (see
        mrseg.metrics.overlap for empty masks). The distances are hausdorff_mm, hd95_mm, assd_mm,
        mean_true_to_pred_mm, mean_pred_to_true_mm, surface_dice_1mm and mask_hausdorff_voxels.
    """
    confusion = confusion_matrix(labels_true, labels_pred, len(class_names))
    values = {
        "voxels_true": confusion.sum(1),
        "voxels_predicted": confusion.sum(0),
        "voxels_both": confusion.diagonal(),
        "voxels_all": np.full(len(class_names), confusion.sum()),
        **{f"voxels_as_{name}": confusion[:, c] for c, name in enumerate(class_names)},
    }
    overlap = scores(confusion)
    values.update({metric: overlap[name] for metric, name in _OVERLAP.items()})
    rows = [
        {"class": name, "metric": metric, "value": float(per_class[c])}
        for c, name in enumerate(class_names)
        for metric, per_class in values.items()
    ]
    if spacing_mm is not None:
        ignored = labels_true == IGNORE_LABEL
        for c, name in enumerate(class_names[1:], start=1):
            true, pred = labels_true == c, labels_pred == c
            mask_ignored = ignored if ignored.any() else None
            distances = surface_distances(true, pred, spacing_mm, mask_ignored=mask_ignored)
            named = {f"{metric}_mm": value for metric, value in distances.scores().items()}
            named[f"surface_dice_{_TOLERANCE_MM:g}mm"] = distances.surface_dice(_TOLERANCE_MM)
            named["mask_hausdorff_voxels"] = mask_hausdorff(true, pred & ~ignored)
            rows += [{"class": name, "metric": metric, "value": value} for metric, value in named.items()]
    return rows


def score_slices(
    labels_true: np.ndarray, labels_pred: np.ndarray, class_names: Sequence[str], *, axis: int = 2
) -> list[Row]:
    """Rows (slice, class, metric, value) of every slice of one subject.

    Args:
        labels_true: (x, y, z) integers; voxels of the ignore label 255 are not counted.
        labels_pred: the same shape.
        class_names: name of every label value from 0.
        axis: across the slices.

    Returns:
        Overlap as in `score` but the volume difference, with ``slice`` counted from 0. A class that a slice
        holds neither in truth nor in prediction is NaN there.
    """
    choice("axis", axis, (0, 1, 2))
    if np.ndim(labels_true) != 3 or np.shape(labels_true) != np.shape(labels_pred):
        raise error(
            "Truth and prediction are volumes (x, y, z) on one grid.",
            f"shapes {np.shape(labels_true)} and {np.shape(labels_pred)}",
        )
    rows = []
    slices = zip(*(np.moveaxis(labels, axis, 0) for labels in (labels_true, labels_pred)), strict=True)
    for number, (true, pred) in enumerate(slices):
        overlap = scores(confusion_matrix(true, pred, len(class_names)))
        rows += [
            {"slice": number, "class": class_, "metric": metric, "value": float(overlap[name][c])}
            for c, class_ in enumerate(class_names)
            for metric, name in _OVERLAP.items()
            if name != "avd"
        ]
    return rows


def _check_one_case_each(cases: Sequence[Case]) -> None:
    twice = [subject for subject, count in Counter(case.subject for case in cases).items() if count > 1]
    if twice:
        raise error(
            "An evaluation has one case per subject.",
            f"several of {', '.join(twice[:5])}",
            "Score each session by itself: two scans of one subject are not two subjects.",
        )


def _score_case(
    true: np.ndarray,
    predicted: np.ndarray,
    affine: np.ndarray,
    class_names: Sequence[str],
    distances: bool,
    plane: str | None,
) -> list[Row]:
    rows = score(true, predicted, class_names, spacing_mm=voxel_sizes(affine) if distances else None)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    for which in ("true", "predicted"):
        rows += [
            {**row, "metric": f"volume_{which}_ml", "value": row["value"] * voxel_ml}
            for row in rows
            if row["metric"] == f"voxels_{which}"
        ]
    if plane is not None:
        upright_true, upright_pred = (to_canonical((labels, affine))[0] for labels in (true, predicted))
        of_slices = score_slices(upright_true, upright_pred, class_names, axis=PLANES[plane])
        rows += [{"plane": plane, **row} for row in of_slices]
    return rows
