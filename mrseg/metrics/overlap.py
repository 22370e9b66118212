"""Overlap of label maps: one confusion matrix, and every measure read from it (all five papers, Metrics).

Policy for empty masks, one for every measure here and in ``surface``, ``streaming``:

* absent from truth and prediction: NaN. The structure does not count, neither for nor against.
* present in the truth, missed by the prediction: Dice, Jaccard, precision and recall are 0, the volume
  difference is 100 %, every distance is infinite. A missed structure never improves a mean.
* absent from the truth, predicted: Dice, Jaccard and precision are 0, the volume difference and every
  distance are infinite. Recall is NaN, since nothing was there to recall.

Averages leave NaN out (``numpy.nanmean``) and keep the rest, infinity included. Specificity and accuracy
judge a structure mostly by the voxels outside it and stay high when it is missed: never report them without
Dice or recall.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mrseg import _checks

#: Voxels counted at a time: the codes of one chunk stay in the processor's cache.
_CHUNK = 2**19


def confusion_matrix(
    labels_true: np.ndarray,
    labels_pred: np.ndarray,
    num_classes: int,
    *,
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> np.ndarray:
    """Counts voxels by true and predicted class, in one pass.

    Args:
        labels_true: integer (or bool) label map of any shape, values ``0..num_classes-1`` or
            ``ignore_label``.
        labels_pred: label map of the same shape. Where the truth is to be judged it must have a class;
            elsewhere it may carry ``ignore_label`` too.
        num_classes: classes with the background, 2 to 255.
        ignore_label: label of voxels that do not count, ``num_classes..255``; None counts every voxel.

    Returns:
        int64 ``(num_classes, num_classes)``, rows true, columns predicted. Matrices add up: the sum over
        subjects is the matrix of the pooled voxels.

    Raises:
        InputError: shapes differ, labels are not whole numbers, or a label is not in the table.

    Example:
        >>> confusion_matrix(np.array([0, 1, 1, 255]), np.array([0, 0, 1, 1]), 2)
        array([[1, 0],
               [1, 1]])
    """
    _check_table(num_classes, ignore_label)
    true, pred = _as_bytes("labels_true", labels_true), _as_bytes("labels_pred", labels_pred)
    _check_one_grid(true, pred)
    true, pred = _flat(true, pred)
    if not true.size or max(true.max(), pred.max()) < num_classes:
        return _pair_counts(true, pred, num_classes)
    # Labels beyond the table share one more class, which must turn out to be ignore_label alone.
    counts = _pair_counts(np.minimum(true, num_classes), np.minimum(pred, num_classes), num_classes + 1)
    if counts[num_classes].any() or counts[:, num_classes].any():
        _check_strays(true, pred, counts, num_classes, ignore_label)
    return counts[:num_classes, :num_classes].copy()


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Reads every overlap measure of every class from a confusion matrix.

    Args:
        confusion: counts ``(num_classes, num_classes)``, rows true, columns predicted.

    Returns:
        Measure -> float64 ``(num_classes,)``: dice, jaccard, precision, recall (sensitivity), specificity,
        accuracy (one class against the rest), avd (absolute volume difference in percent of the true
        volume). NaN where a class does not count (see the module's policy). All but avd are in [0, 1].

    Raises:
        InputError: not a square matrix of counts.
    """
    confusion = np.asarray(confusion)
    square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
    if not square or not np.all(confusion >= 0):
        raise _checks.error("A confusion matrix is square and counts voxels.", f"shape {confusion.shape}")
    counts = confusion.astype(np.float64)
    tp = np.diagonal(counts)
    fn, fp = counts.sum(axis=1) - tp, counts.sum(axis=0) - tp
    tn = counts.sum() - tp - fn - fp
    return scores_of_counts(tp, fp, fn, tn)


def overall_accuracy(confusion: np.ndarray) -> float:
    """Returns the share of voxels with the right class, NaN for a matrix without counts."""
    confusion = np.asarray(confusion)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def mask_scores(mask_true: np.ndarray, mask_pred: np.ndarray) -> dict[str, float]:
    """Reads every overlap measure of two masks (see ``scores``).

    Args:
        mask_true: bool array of any shape, or numbers that are all 0 or 1.
        mask_pred: mask of the same shape.

    Returns:
        Measure -> value.

    Raises:
        InputError: shapes differ, or an array is not a mask.
    """
    true, pred = as_masks(mask_true, mask_pred)
    tp = np.count_nonzero(true & pred)
    fn, fp = np.count_nonzero(true) - tp, np.count_nonzero(pred) - tp
    measures = scores_of_counts(*np.array([tp, fp, fn, true.size - tp - fp - fn], np.float64))
    return {name: float(value) for name, value in measures.items()}


def dice(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns ``2 TP / (2 TP + FP + FN)``, in [0, 1].

    NaN if both masks are empty, 0 if one is.

    Args:
        mask_true: bool array of any shape, or numbers that are all 0 or 1.
        mask_pred: mask of the same shape.

    Raises:
        InputError: shapes differ, or an array is not a mask.

    Example:
        >>> dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    return mask_scores(mask_true, mask_pred)["dice"]


def jaccard(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns ``TP / (TP + FP + FN)``, in [0, 1]; NaN if both masks are empty, 0 if one is. See ``dice``."""
    return mask_scores(mask_true, mask_pred)["jaccard"]


def precision(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns ``TP / (TP + FP)``, in [0, 1]; NaN if both masks are empty, 0 if one is. See ``dice``."""
    return mask_scores(mask_true, mask_pred)["precision"]


def recall(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns ``TP / (TP + FN)``, the sensitivity, in [0, 1]; NaN if the truth is empty. See ``dice``."""
    return mask_scores(mask_true, mask_pred)["recall"]


def specificity(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns ``TN / (TN + FP)``, in [0, 1]; NaN if both masks are empty or the truth full. See ``dice``."""
    return mask_scores(mask_true, mask_pred)["specificity"]


def accuracy(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns ``(TP + TN) / all``, in [0, 1]; NaN if both masks are empty. See ``dice``."""
    return mask_scores(mask_true, mask_pred)["accuracy"]


def avd(mask_true: np.ndarray, mask_pred: np.ndarray) -> float:
    """Returns the absolute volume difference ``100 |V_pred - V_true| / V_true`` in percent.

    NaN if both masks are empty, infinite if only the truth is. See ``dice``.

    Reference:
        Mendrik et al., "MRBrainS challenge", Comput. Intell. Neurosci. 2015, AVD.
    """
    return mask_scores(mask_true, mask_pred)["avd"]


def scores_of_counts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> dict[str, np.ndarray]:
    """Reads every overlap measure from true and false positives and negatives (see ``scores``).

    Args:
        tp: float64 counts of any shape, all four of the same.
        fp: false positives.
        fn: false negatives.
        tn: true negatives; NaN where unknown, then specificity and accuracy are NaN too.
    """
    true, pred = tp + fn, tp + fp
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "dice": 2 * tp / (true + pred),
            "jaccard": tp / (tp + fp + fn),
            "precision": np.where(pred == 0, 0.0, tp / pred),
            "recall": tp / true,
            "specificity": tn / (tn + fp),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "avd": 100 * np.abs(pred - true) / true,
        }
    absent = (true == 0) & (pred == 0)
    return {name: np.where(absent, np.nan, value) for name, value in values.items()}


def _check_table(num_classes: int, ignore_label: int | None) -> None:
    if not 2 <= num_classes <= _checks.IGNORE_LABEL:
        raise _checks.error("num_classes counts the background: 2 to 255.", num_classes)
    if ignore_label is not None and not num_classes <= ignore_label <= 255:
        raise _checks.error(f"ignore_label is {num_classes} to 255, or None.", ignore_label)


def _check_one_grid(true: np.ndarray, pred: np.ndarray) -> None:
    if true.shape != pred.shape:
        raise _checks.error(
            "Truth and prediction are on one grid.",
            f"shapes {true.shape} and {pred.shape}",
            "Resample one of them.",
        )


def _as_bytes(name: str, labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype == bool:
        return labels.view(np.uint8)
    if labels.dtype == np.uint8:
        return labels
    if labels.dtype.kind not in "ui":
        raise _checks.error(
            f"{name} is a label map of whole numbers.", labels.dtype, "Take argmax of probabilities first."
        )
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise _checks.error(f"{name} has labels 0 to 255.", f"{labels.min()} to {labels.max()}")
    return labels.astype(np.uint8)


def as_masks(mask_true: np.ndarray, mask_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both masks as bool arrays of one shape, without a copy where they are.

    Raises:
        InputError: shapes differ, or an array is not a mask.
    """
    true, pred = _as_mask("mask_true", mask_true), _as_mask("mask_pred", mask_pred)
    _check_one_grid(true, pred)
    return true, pred


def _as_mask(name: str, mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    as_bool = mask != 0
    if mask.dtype.kind not in "uif" or not np.array_equal(mask, as_bool):
        raise _checks.error(
            f"{name} is a mask: bool, or numbers that are all 0 or 1.",
            f"{mask.dtype} with values other than 0 and 1",
            "Compare a label map with one class: labels == class_id.",
        )
    return as_bool


def _flat(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flattens both in one order, without a copy if they share their memory layout."""
    order: Literal["C", "K"] = "K" if a.strides == b.strides else "C"
    return a.ravel(order), b.ravel(order)


def _pair_counts(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """Counts the pairs (a, b) of values below ``size``: int64 ``(size, size)``."""
    cells = size * size
    if cells > 256:
        counts = np.zeros(cells, np.int64)
        for start in range(0, a.size, _CHUNK):
            codes = a[start : start + _CHUNK].astype(np.uint32) * size + b[start : start + _CHUNK]
            counts += np.bincount(codes, minlength=cells)
        return counts.reshape(size, size)
    # Codes of neighbouring voxels are counted together, as one number of 16 bits: two codes of 8 bits or, up
    # to 4 classes, four of 4 bits. That halves and quarters the work.
    joined = 4 if cells <= 16 else 2
    groups, ones = np.zeros(2**16, np.int64), np.zeros(256, np.int64)
    for start in range(0, a.size, _CHUNK):
        codes = a[start : start + _CHUNK] * np.uint8(size)
        codes += b[start : start + _CHUNK]
        whole = codes.size - codes.size % joined
        packed = codes[:whole].view(np.uint16)
        if joined == 4:
            packed |= packed >> 4  # the low byte now holds both codes
            packed = packed.astype(np.uint8).view(np.uint16)
        groups += np.bincount(packed, minlength=2**16)
        ones += np.bincount(codes[whole:], minlength=256)
    totals = _either_half(groups, 256)
    if joined == 4:
        totals = _either_half(totals, 16)
    return (totals[:cells] + ones[:cells]).reshape(size, size)


def _either_half(counts: np.ndarray, base: int) -> np.ndarray:
    """How often each digit occurs in either place of the counted numbers ``base * digit + digit``."""
    square = counts.reshape(base, base)
    return square.sum(axis=0) + square.sum(axis=1)


def _check_strays(
    true: np.ndarray, pred: np.ndarray, counts: np.ndarray, num_classes: int, ignore_label: int | None
) -> None:
    """Refuses labels beyond the table: true ones but ``ignore_label``, predicted ones where judged."""
    beyond = true[true >= num_classes]
    beyond = beyond[beyond != (-1 if ignore_label is None else ignore_label)]
    if beyond.size:
        raise _checks.error(
            f"labels_true has labels 0 to {num_classes - 1}, or {ignore_label} where nobody may judge.",
            f"{beyond.size} voxels with labels {np.unique(beyond).tolist()}",
        )
    if counts[:num_classes, num_classes].any():
        beyond = pred[(true < num_classes) & (pred >= num_classes)]
        raise _checks.error(
            f"labels_pred has labels 0 to {num_classes - 1} wherever the truth is to be judged.",
            f"{beyond.size} voxels with labels {np.unique(beyond).tolist()}",
        )
