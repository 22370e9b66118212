"""The truth beside a prediction, as losses and Keras metrics take it: sparse or one-hot, any integer dtype.

Three layouts are read off the shapes, for predictions ``(batch, *spatial, channels)``:

* sparse: ``(batch, *spatial)`` or ``(batch, *spatial, 1)`` with one class index per voxel;
* one-hot (or soft): ``(batch, *spatial, channels)``.

A voxel that nobody may judge carries ``ignore_label`` (sparse) or is zero in every channel (one-hot).
"""

from __future__ import annotations

from typing import Any

from keras import ops

from mrseg import _checks

#: A Keras tensor of any backend, or an array that converts to one.
Tensor = Any


def is_sparse(y_true: Tensor, y_pred: Tensor) -> bool:
    """Tells sparse truth from one-hot truth by shape, and refuses what is neither.

    Args:
        y_true: truth, a tensor in one of the layouts of this module.
        y_pred: prediction ``(batch, *spatial, channels)``.

    Returns:
        True for sparse labels, False for one-hot.

    Raises:
        InputError: fewer than two channels, or shapes that do not belong together.
    """
    true_shape, pred_shape = tuple(y_true.shape), tuple(y_pred.shape)
    channels = pred_shape[-1] if pred_shape else None
    if len(pred_shape) < 2 or channels is None or channels < 2:
        raise _checks.error(
            "A prediction is (batch, *spatial, channels) with at least two channels.", pred_shape
        )
    same_rank = len(true_shape) == len(pred_shape)
    sparse = len(true_shape) == len(pred_shape) - 1 or (same_rank and true_shape[-1] == 1)
    spatial = true_shape[:-1] if same_rank else true_shape
    fits = (sparse or (same_rank and true_shape[-1] == channels)) and all(
        a is None or b is None or a == b for a, b in zip(spatial, pred_shape[:-1], strict=True)
    )
    if not fits:
        raise _checks.error(
            f"Labels for a prediction of shape {pred_shape} are sparse {pred_shape[:-1]}, sparse "
            f"{(*pred_shape[:-1], 1)} or one-hot {pred_shape}.",
            true_shape,
        )
    return sparse


def sparse_labels(
    y_true: Tensor, y_pred: Tensor, *, ignore_label: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns class indices and which voxels count.

    Args:
        y_true: truth, sparse or one-hot.
        y_pred: prediction ``(batch, *spatial, channels)``; only its shape is used.
        ignore_label: label of voxels that nobody may judge; None judges every voxel.

    Returns:
        labels: int32 ``(batch, *spatial)``; meaningless where ``judged`` is False.
        judged: bool ``(batch, *spatial)``; True where the label is in the table.
        stray: bool ``(batch, *spatial)``; True where the label is neither in the table nor ``ignore_label``.
    """
    num_classes = y_pred.shape[-1]
    y_true = ops.convert_to_tensor(y_true)
    if not is_sparse(y_true, y_pred):
        judged = ops.any(y_true != 0, axis=-1)
        return ops.cast(ops.argmax(y_true, axis=-1), "int32"), judged, ops.zeros_like(judged)
    if len(y_true.shape) == len(y_pred.shape):
        y_true = ops.squeeze(y_true, axis=-1)
    labels = ops.cast(y_true, "int32")  # (batch, *spatial)
    judged = ops.logical_and(labels >= 0, labels < num_classes)
    stray = ops.logical_not(judged)
    if ignore_label is not None:
        ignored = labels == ignore_label
        judged = ops.logical_and(judged, ops.logical_not(ignored))
        stray = ops.logical_and(stray, ops.logical_not(ignored))
    return labels, judged, stray


def one_hot_labels(
    y_true: Tensor, y_pred: Tensor, *, ignore_label: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the truth per channel and which voxels count.

    Args:
        y_true: truth, sparse or one-hot (soft labels keep their values).
        y_pred: prediction ``(batch, *spatial, channels)``; only its shape is used.
        ignore_label: label of voxels that nobody may judge; None judges every voxel.

    Returns:
        truth: float32 ``(batch, *spatial, channels)``, zero in every channel where not judged.
        judged: bool ``(batch, *spatial)``.
        stray: bool ``(batch, *spatial)``; True where a sparse label is neither in the table nor
            ``ignore_label``.
    """
    y_true = ops.convert_to_tensor(y_true)
    if not is_sparse(y_true, y_pred):
        judged = ops.any(y_true != 0, axis=-1)
        return ops.cast(y_true, "float32"), judged, ops.zeros_like(judged)
    labels, judged, stray = sparse_labels(y_true, y_pred, ignore_label=ignore_label)
    labels = ops.where(judged, labels, -1)  # one_hot of a label outside the table is zero everywhere
    return ops.one_hot(labels, y_pred.shape[-1], dtype="float32"), judged, stray
