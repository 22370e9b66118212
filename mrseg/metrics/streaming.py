"""Keras metrics that stream one confusion matrix: Dice, Jaccard, precision, recall, specificity, accuracy.

Each metric equals the function of its name in ``mrseg.metrics.overlap`` on the pooled voxels of all batches
since the last reset (not the mean over subjects), with the same policy for empty masks: a class absent from
truth and prediction is NaN and does not count in a mean; a missed class has Dice, Jaccard, precision and
recall 0.

Every metric keeps its own small matrix, so any subset can be compiled. The counting itself is the same
expression on the same tensors in each of them, and compiled graphs (TensorFlow's and XLA's) compute it once
per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mrseg import _checks
from mrseg.metrics.targets import Tensor, sparse_labels

#: Counts are kept in two float32 parts, ``high * 2^20 + low``: exact to 2^44 voxels, where one float32
#: stops at 2^24.
_HIGH = 2**20


def batch_confusion(
    y_true: Tensor, y_pred: Tensor, *, ignore_label: int | None = _checks.IGNORE_LABEL
) -> tuple[Tensor, Tensor]:
    """Counts the voxels of a batch by true and predicted class.

    Args:
        y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
        y_pred: probabilities or logits ``(batch, *spatial, channels)``; the largest wins, the first of
            equals.
        ignore_label: label of voxels that do not count.

    Returns:
        counts: int32 ``(channels, channels)``, rows true, columns predicted.
        stray: bool scalar, True if a sparse label is neither in the table nor ``ignore_label``.
    """
    num_classes = y_pred.shape[-1]
    labels, judged, stray = sparse_labels(y_true, y_pred, ignore_label=ignore_label)
    cells = num_classes**2  # one more for voxels that do not count
    code = ops.where(judged, labels * num_classes + _argmax(ops.convert_to_tensor(y_pred)), cells)
    code = ops.reshape(code, (-1,))
    # segment_sum, because keras.ops.bincount cannot be compiled by XLA.
    counts = ops.segment_sum(ops.ones_like(code), code, num_segments=cells + 1)
    return ops.reshape(counts[:cells], (num_classes, num_classes)), ops.any(stray)


class _ConfusionMetric(keras.metrics.Metric):
    """Streams a confusion matrix and reads one number from it; subclasses say which.

    Args:
        num_classes: channels of the prediction, at least 2 (the background counts).
        class_id: class to measure; None takes the mean over ``mean_over``.
        mean_over: classes of the mean; None takes all.
        ignore_label: label of voxels that do not count.
        name: shown in logs.
        dtype: of the result.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_id: int | None = None,
        mean_over: Sequence[int] | None = None,
        ignore_label: int | None = _checks.IGNORE_LABEL,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name or type(self).__name__.lower(), dtype=dtype)
        if num_classes < 2:
            raise _checks.error("num_classes counts the background, so it is at least 2.", num_classes)
        for index in [*([] if class_id is None else [class_id]), *(mean_over or [])]:
            if not 0 <= index < num_classes:
                raise _checks.error(f"A class index is in 0..{num_classes - 1}.", index)
        if class_id is not None and mean_over is not None:
            raise _checks.error("Give class_id or mean_over, not both.", (class_id, mean_over))
        self.num_classes = num_classes
        self.class_id = class_id
        self.mean_over = None if mean_over is None else tuple(mean_over)
        self.ignore_label = ignore_label
        self._parts = self.add_variable(
            (2, num_classes, num_classes), "zeros", dtype="float32", name="confusion"
        )  # low, high

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        """Adds the voxels of a batch.

        Args:
            y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
            y_pred: ``(batch, *spatial, channels)``.
            sample_weight: refused; voxels are left out by ``ignore_label``.
        """
        if sample_weight is not None:
            raise _checks.error(
                f"{self.name} counts voxels and takes no sample_weight.",
                type(sample_weight).__name__,
                "Use compile(metrics=...), not weighted_metrics, and give voxels that nobody may "
                "judge the ignore label.",
            )
        if y_pred.shape[-1] != self.num_classes:
            raise _checks.error(f"{self.name} was made for {self.num_classes} channels.", tuple(y_pred.shape))
        counts, stray = batch_confusion(y_true, y_pred, ignore_label=self.ignore_label)
        low = ops.cast(counts % _HIGH, "float32") + self._parts[0]
        carry = ops.floor(low / _HIGH)
        high = ops.cast(counts // _HIGH, "float32") + self._parts[1] + carry
        high = ops.where(stray, math.nan, high)  # a wrong label is never a silent class
        self._parts.assign(ops.stack([low - carry * _HIGH, high]))

    def confusion(self) -> Tensor:
        """Returns the counts so far, float32 ``(channels, channels)``, rows true, columns predicted."""
        return self._parts[1] * _HIGH + self._parts[0]

    def per_class(self) -> Tensor:
        """Returns the measure of each class, float32 ``(channels,)``, NaN where a class does not count."""
        confusion = self.confusion()
        # No subtraction from totals and no matrix product: both lose digits (the latter on GPUs by default).
        eye = ops.eye(self.num_classes, dtype="float32")
        true_positive = ops.sum(confusion * eye, axis=0)
        wrong = confusion * (1.0 - eye)
        false_negative, false_positive = ops.sum(wrong, axis=1), ops.sum(wrong, axis=0)
        others = (1.0 - eye)[:, :, None] * (1.0 - eye)[:, None, :]  # (class, true, predicted)
        true_negative = ops.sum(others * confusion[None], axis=(1, 2))
        values = self._measure(true_positive, false_positive, false_negative, true_negative)
        absent = true_positive + false_positive + false_negative == 0.0
        return ops.where(absent, math.nan, values)

    def result(self) -> Tensor:
        """Returns the measure of ``class_id``, or its mean over the classes that count."""
        values = self.per_class()
        if self.class_id is not None:
            return ops.cast(values[self.class_id], self.dtype)
        if self.mean_over is not None:
            values = ops.take(values, ops.convert_to_tensor(self.mean_over, dtype="int32"))
        return ops.cast(_mean_of_numbers(values), self.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the options."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "class_id": self.class_id,
            "mean_over": None if self.mean_over is None else list(self.mean_over),
            "ignore_label": self.ignore_label,
        }

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        raise NotImplementedError


@keras.saving.register_keras_serializable("mrseg")
class Dice(_ConfusionMetric):
    """``2 TP / (2 TP + FP + FN)`` of one class, or the mean over classes."""

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return _ratio(2.0 * tp, 2.0 * tp + fp + fn)


@keras.saving.register_keras_serializable("mrseg")
class Jaccard(_ConfusionMetric):
    """``TP / (TP + FP + FN)`` of one class, or the mean over classes."""

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return _ratio(tp, tp + fp + fn)


@keras.saving.register_keras_serializable("mrseg")
class Precision(_ConfusionMetric):
    """``TP / (TP + FP)`` of one class, or the mean over classes; 0 for a class that is missed."""

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return ops.where(tp + fp == 0.0, 0.0, _ratio(tp, tp + fp))


@keras.saving.register_keras_serializable("mrseg")
class Recall(_ConfusionMetric):
    """``TP / (TP + FN)`` (sensitivity) of one class, or the mean over classes; NaN without truth."""

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return _ratio(tp, tp + fn)


@keras.saving.register_keras_serializable("mrseg")
class Specificity(_ConfusionMetric):
    """``TN / (TN + FP)`` of one class, or the mean over classes; NaN where no voxel is outside the class."""

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return _ratio(tn, tn + fp)


@keras.saving.register_keras_serializable("mrseg")
class Accuracy(_ConfusionMetric):
    """``(TP + TN) / all`` of ``class_id``; without it, the share of voxels with the right class."""

    def result(self) -> Tensor:
        """Returns the accuracy of ``class_id``, the mean over ``mean_over``, or that of all voxels."""
        if self.class_id is not None or self.mean_over is not None:
            return super().result()
        confusion = self.confusion()
        right = ops.sum(confusion * ops.eye(self.num_classes, dtype="float32"))
        return ops.cast(_ratio(right, ops.sum(confusion)), self.dtype)

    def _measure(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        return _ratio(tp + tn, tp + fp + fn + tn)


#: Metric by the name used in tidy rows.
METRICS: dict[str, type[_ConfusionMetric]] = {
    "dice": Dice,
    "jaccard": Jaccard,
    "precision": Precision,
    "recall": Recall,
    "specificity": Specificity,
}


def for_classes(
    class_names: Sequence[str],
    *,
    metrics: Sequence[str] = ("dice",),
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> list[keras.metrics.Metric]:
    """Makes the metrics of a label table: measures per class, their means, and the overall accuracy.

    Args:
        class_names: name of class i at place i, at least two.
        metrics: measures, of ``METRICS``.
        ignore_label: label of voxels that do not count.

    Returns:
        Metrics named ``dice_<class>`` for every class, then ``dice`` (mean over the classes, without one
        that is called "background"), for every measure; last ``accuracy``.

    Raises:
        InputError: fewer than two classes, equal names, or an unknown measure.

    Example:
        >>> [m.name for m in for_classes(["air", "soft", "bone"])]
        ['dice_air', 'dice_soft', 'dice_bone', 'dice', 'accuracy']
    """
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise _checks.error("class_names are two or more different names, background included.", class_names)
    foreground = [i for i, name in enumerate(names) if name != "background"]
    made: list[keras.metrics.Metric] = []
    for measure in metrics:
        make = METRICS[_checks.choice("metrics", measure, METRICS)]
        for i, name in enumerate(names):
            made.append(make(len(names), class_id=i, ignore_label=ignore_label, name=f"{measure}_{name}"))
        made.append(make(len(names), mean_over=foreground, ignore_label=ignore_label, name=measure))
    made.append(Accuracy(len(names), ignore_label=ignore_label, name="accuracy"))
    return made


def _argmax(y_pred: Tensor) -> Tensor:
    """Argmax over a short last axis by comparison: TensorFlow's own takes six times as long on CPU."""
    best, label = y_pred[..., 0], ops.zeros_like(y_pred[..., 0], dtype="int32")
    for channel in range(1, y_pred.shape[-1]):
        value = y_pred[..., channel]
        label = ops.where(value > best, channel, label)
        best = ops.maximum(best, value)
    return label


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Returns part / whole, NaN where whole is 0."""
    return ops.where(whole == 0.0, math.nan, part / ops.where(whole == 0.0, 1.0, whole))


def _mean_of_numbers(values: Tensor) -> Tensor:
    """Returns the mean of the values that are not NaN, NaN if none is."""
    counts = ops.logical_not(ops.isnan(values))
    return _ratio(ops.sum(ops.where(counts, values, 0.0)), ops.sum(ops.cast(counts, "float32")))
