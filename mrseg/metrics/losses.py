"""Losses for segmentation: cross-entropy, soft Dice, their sum, Tversky and focal (function and class).

Every function takes truth sparse or one-hot (see ``mrseg.metrics.targets``), computes in float32 whatever the
policy, and returns one value per sample, so that Keras applies ``sample_weight`` and ``reduction`` to
samples. Voxels labelled ``ignore_label`` get no gradient and no count: a sample with such voxels has the
loss of its other voxels. A sample with nothing to judge has loss 0. A label that is neither in the table
nor ``ignore_label`` makes the loss of its sample NaN, so that wrong labels cannot pass unseen; so does NaN
in a judged voxel's prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mrseg import _checks
from mrseg.metrics.targets import Tensor, one_hot_labels

#: Probabilities are kept this far from 0 and 1 before the logarithm (the value Keras uses).
EPSILON = 1e-7

#: Class weights of islam2025 (Head and loss): background, CSF, GM, WM.
ISLAM2025_CLASS_WEIGHTS = (1.0, 10.0, 3.0, 3.0)


def categorical_cross_entropy(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    from_logits: bool = False,
    over_voxels: str = "mean",
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> Tensor:
    """Cross-entropy per sample: ``-sum_c w_c y_c log p_c``, averaged (or summed) over the judged voxels.

    Probabilities are divided by their sum over the channels first, as
    ``keras.losses.categorical_crossentropy`` does, so a sigmoid head is trained as islam2025 prints it. The
    mean divides by the number of voxels, not by the sum of their weights.

    Args:
        y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
        y_pred: probabilities ``(batch, *spatial, channels)``, or logits with ``from_logits``.
        class_weights: one weight per channel; None weighs all as 1.
        from_logits: y_pred goes through a softmax first (on sigmoid outputs: the code variant of islam2025).
        over_voxels: "mean", or "sum" (the loss of xu2017; see ``mean_loss_rates``).
        ignore_label: label of voxels without gradient and count.

    Returns:
        float32 ``(batch,)``.

    Raises:
        InputError: shapes that do not belong together, wrong number of weights, unknown ``over_voxels``.

    Reference:
        islam2025, Head and loss; xu2017, Training.
    """
    _checks.choice("over_voxels", over_voxels, ("mean", "sum"))
    truth, judged, stray = one_hot_labels(y_true, y_pred, ignore_label=ignore_label)
    log_p = _log_probabilities(y_pred, judged, from_logits)
    values = -ops.sum(_weights(class_weights, y_pred) * truth * log_p, axis=-1)  # (batch, *spatial)
    return _over_voxels(values, judged, stray, over_voxels)


def categorical_focal(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
    from_logits: bool = False,
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> Tensor:
    """Focal loss per sample: ``-sum_c w_c y_c (1 - p_c)^gamma log p_c``, mean over the judged voxels.

    With ``gamma=0`` it is ``categorical_cross_entropy``.

    Args:
        y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
        y_pred: probabilities ``(batch, *spatial, channels)``, or logits with ``from_logits``.
        gamma: how much well classified voxels are discounted, at least 0.
        class_weights: one weight per channel (the alpha of the paper); None weighs all as 1.
        from_logits: y_pred goes through a softmax first.
        ignore_label: label of voxels without gradient and count.

    Returns:
        float32 ``(batch,)``.

    Reference:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 5.
    """
    _at_least_zero("gamma", gamma)
    truth, judged, stray = one_hot_labels(y_true, y_pred, ignore_label=ignore_label)
    log_p = _log_probabilities(y_pred, judged, from_logits)
    # 1 - p below EPSILON has no useful power: for gamma < 1 its gradient is infinite at 0.
    discount = ops.power(ops.maximum(1.0 - ops.exp(log_p), EPSILON), gamma) if gamma else 1.0
    values = -ops.sum(_weights(class_weights, y_pred) * truth * discount * log_p, axis=-1)
    return _over_voxels(values, judged, stray, "mean")


def categorical_dice(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    smooth: float = 1.0,
    class_weights: Sequence[float] | None = None,
    from_logits: bool = False,
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> Tensor:
    """Soft Dice loss per sample, the mean over classes of one minus a differentiable Dice.

    A class costs ``1 - (2 sum(y p) + smooth) / (sum(y) + sum(p) + smooth)``. Sums run over the judged
    voxels of one sample. A class absent from the sample costs ``sum(p) / (sum(p) + smooth)``: nothing if it
    is not predicted either.

    Args:
        y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
        y_pred: probabilities ``(batch, *spatial, channels)``, or logits with ``from_logits``. Used as they
            are: a sigmoid head is not renormalised.
        smooth: voxels added to numerator and denominator, above 0.
        class_weights: weights of the mean over classes (0 leaves a class out); None weighs all alike.
        from_logits: y_pred goes through a softmax first.
        ignore_label: label of voxels without gradient and count.

    Returns:
        float32 ``(batch,)``, in [0, 1].

    Reference:
        Milletari et al., "V-Net", 3DV 2016 (there with squares in the denominator; here without, so that
        the loss of a hard prediction is one minus its Dice).
    """
    return categorical_tversky(
        y_true, y_pred, false_positive_weight=0.5, smooth=smooth, class_weights=class_weights,
        from_logits=from_logits, ignore_label=ignore_label,
    )  # fmt: skip


def categorical_tversky(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    false_positive_weight: float = 0.3,
    smooth: float = 1.0,
    class_weights: Sequence[float] | None = None,
    from_logits: bool = False,
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> Tensor:
    """Tversky loss per sample: soft Dice with separate weights for false positives and false negatives.

    A class costs ``1 - (2 TP + smooth) / (2 (TP + a FP + (1 - a) FN) + smooth)``. Below 0.5,
    ``false_positive_weight`` (a) favours recall; at 0.5 the loss is ``categorical_dice``.

    Args:
        y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
        y_pred: probabilities ``(batch, *spatial, channels)``, or logits with ``from_logits``.
        false_positive_weight: a, in [0, 1]; false negatives weigh ``1 - a``.
        smooth: voxels added to numerator and denominator, above 0.
        class_weights: weights of the mean over classes (0 leaves a class out); None weighs all alike.
        from_logits: y_pred goes through a softmax first.
        ignore_label: label of voxels without gradient and count.

    Returns:
        float32 ``(batch,)``, in [0, 1].

    Reference:
        Salehi et al., "Tversky loss function for image segmentation", MLMI 2017 (best there: 0.3 and 0.7).
    """
    _fraction("false_positive_weight", false_positive_weight)
    _above_zero("smooth", smooth)
    truth, judged, stray = one_hot_labels(y_true, y_pred, ignore_label=ignore_label)
    p = _judged_only(ops.cast(y_pred, "float32"), judged, 0.0)
    if from_logits:
        p = ops.softmax(p, axis=-1) * ops.cast(judged, "float32")[..., None]
    space = tuple(range(1, len(p.shape) - 1))
    both = ops.sum(truth * p, axis=space)  # (batch, channels)
    size_true, size_pred = ops.sum(truth, axis=space), ops.sum(p, axis=space)
    a = false_positive_weight
    union = 2.0 * (a * size_pred + (1.0 - a) * size_true)  # TP + a FP + (1-a) FN, twice
    index = (2.0 * both + smooth) / (union + smooth)
    weights = _weights(class_weights, y_pred)
    loss = ops.sum(weights * (1.0 - index), axis=-1) / ops.sum(weights)  # (batch,)
    return _nan_where_stray(loss, stray)


def dice_cross_entropy(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    smooth: float = 1.0,
    class_weights: Sequence[float] | None = None,
    from_logits: bool = False,
    ignore_label: int | None = _checks.IGNORE_LABEL,
) -> Tensor:
    """``categorical_dice + cross_entropy_weight * categorical_cross_entropy`` per sample.

    Args:
        y_true: sparse ``(batch, *spatial[, 1])`` or one-hot ``(batch, *spatial, channels)``.
        y_pred: probabilities ``(batch, *spatial, channels)``, or logits with ``from_logits``.
        cross_entropy_weight: at least 0.
        smooth: see ``categorical_dice``.
        class_weights: used in both terms.
        from_logits: y_pred goes through a softmax first.
        ignore_label: label of voxels without gradient and count.

    Returns:
        float32 ``(batch,)``.
    """
    _at_least_zero("cross_entropy_weight", cross_entropy_weight)
    shared: dict[str, Any] = {
        "class_weights": class_weights, "from_logits": from_logits, "ignore_label": ignore_label,
    }  # fmt: skip
    dice = categorical_dice(y_true, y_pred, smooth=smooth, **shared)
    return dice + cross_entropy_weight * categorical_cross_entropy(y_true, y_pred, **shared)


def mean_loss_rates(learning_rate: float, weight_decay: float, num_voxels: int) -> tuple[float, float]:
    """Turns the rates of a loss summed over voxels into those of the loss averaged over them.

    Caffe's ``SoftmaxWithLoss`` with ``normalize: false`` sums over the image. The same steps are taken with
    the mean loss when the learning rate is multiplied, and the weight decay divided, by the number of
    voxels (batch size 1; momentum stays).

    Args:
        learning_rate: of the summed loss, above 0.
        weight_decay: of the summed loss, as Caffe adds it to the gradient (``weight_decay * w``); at least 0.
        num_voxels: voxels (pixels) of one image, at least 1.

    Returns:
        learning rate and weight decay of the mean loss.

    Example:
        >>> mean_loss_rates(1e-10, 0.005, 512 * 512)[0]
        2.62144e-05

    Reference:
        xu2017, Training.
    """
    _above_zero("learning_rate", learning_rate)
    _at_least_zero("weight_decay", weight_decay)
    _checks.positive_ints("num_voxels", [num_voxels])
    return learning_rate * num_voxels, weight_decay / num_voxels


class _SegmentationLoss(keras.losses.Loss):
    """Calls one function of this module with the options it was made with."""

    def __init__(self, function: Any, options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = function
        self._options = options

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one value per sample, float32 ``(batch,)``."""
        return self._function(y_true, y_pred, **self._options)

    def get_config(self) -> dict[str, Any]:
        """Returns the options, name and reduction."""
        return {**super().get_config(), **self._options}


@keras.saving.register_keras_serializable("mrseg")
class CategoricalCrossEntropy(_SegmentationLoss):
    """Class twin of ``categorical_cross_entropy``.

    Example:
        >>> model.compile("adam", loss=CategoricalCrossEntropy(class_weights=ISLAM2025_CLASS_WEIGHTS))
    """

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        from_logits: bool = False,
        over_voxels: str = "mean",
        ignore_label: int | None = _checks.IGNORE_LABEL,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_cross_entropy",
    ) -> None:
        _checks.choice("over_voxels", over_voxels, ("mean", "sum"))
        options = {
            "class_weights": _weight_list(class_weights),
            "from_logits": from_logits,
            "over_voxels": over_voxels,
            "ignore_label": ignore_label,
        }
        super().__init__(categorical_cross_entropy, options, name=name, reduction=reduction)


@keras.saving.register_keras_serializable("mrseg")
class CategoricalFocal(_SegmentationLoss):
    """Class twin of ``categorical_focal``."""

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        from_logits: bool = False,
        ignore_label: int | None = _checks.IGNORE_LABEL,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_focal",
    ) -> None:
        options = {
            "gamma": _at_least_zero("gamma", gamma),
            "class_weights": _weight_list(class_weights),
            "from_logits": from_logits,
            "ignore_label": ignore_label,
        }
        super().__init__(categorical_focal, options, name=name, reduction=reduction)


@keras.saving.register_keras_serializable("mrseg")
class CategoricalDice(_SegmentationLoss):
    """Class twin of ``categorical_dice``."""

    def __init__(
        self,
        *,
        smooth: float = 1.0,
        class_weights: Sequence[float] | None = None,
        from_logits: bool = False,
        ignore_label: int | None = _checks.IGNORE_LABEL,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_dice",
    ) -> None:
        options = {
            "smooth": _above_zero("smooth", smooth),
            "class_weights": _weight_list(class_weights),
            "from_logits": from_logits,
            "ignore_label": ignore_label,
        }
        super().__init__(categorical_dice, options, name=name, reduction=reduction)


@keras.saving.register_keras_serializable("mrseg")
class CategoricalTversky(_SegmentationLoss):
    """Class twin of ``categorical_tversky``."""

    def __init__(
        self,
        *,
        false_positive_weight: float = 0.3,
        smooth: float = 1.0,
        class_weights: Sequence[float] | None = None,
        from_logits: bool = False,
        ignore_label: int | None = _checks.IGNORE_LABEL,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_tversky",
    ) -> None:
        options = {
            "false_positive_weight": _fraction("false_positive_weight", false_positive_weight),
            "smooth": _above_zero("smooth", smooth),
            "class_weights": _weight_list(class_weights),
            "from_logits": from_logits,
            "ignore_label": ignore_label,
        }
        super().__init__(categorical_tversky, options, name=name, reduction=reduction)


@keras.saving.register_keras_serializable("mrseg")
class DiceCrossEntropy(_SegmentationLoss):
    """Class twin of ``dice_cross_entropy``."""

    def __init__(
        self,
        *,
        cross_entropy_weight: float = 1.0,
        smooth: float = 1.0,
        class_weights: Sequence[float] | None = None,
        from_logits: bool = False,
        ignore_label: int | None = _checks.IGNORE_LABEL,
        reduction: str | None = "sum_over_batch_size",
        name: str = "dice_cross_entropy",
    ) -> None:
        options = {
            "cross_entropy_weight": _at_least_zero("cross_entropy_weight", cross_entropy_weight),
            "smooth": _above_zero("smooth", smooth),
            "class_weights": _weight_list(class_weights),
            "from_logits": from_logits,
            "ignore_label": ignore_label,
        }
        super().__init__(dice_cross_entropy, options, name=name, reduction=reduction)


def _judged_only(y_pred: Tensor, judged: Tensor, fill: float) -> Tensor:
    """Replaces ignored predictions before any arithmetic: even NaN there has exactly zero gradient."""
    return ops.where(judged[..., None], y_pred, fill)


def _log_probabilities(y_pred: Tensor, judged: Tensor, from_logits: bool) -> Tensor:
    y_pred = _judged_only(ops.cast(y_pred, "float32"), judged, 1.0)
    if from_logits:
        return ops.log_softmax(y_pred, axis=-1)
    p = y_pred / ops.maximum(ops.sum(y_pred, axis=-1, keepdims=True), EPSILON)
    return ops.log(ops.clip(p, EPSILON, 1.0 - EPSILON))


def _over_voxels(values: Tensor, judged: Tensor, stray: Tensor, how: str) -> Tensor:
    space = tuple(range(1, len(values.shape)))
    loss = ops.sum(values, axis=space)  # (batch,)
    if how == "mean":
        loss = loss / ops.maximum(ops.sum(ops.cast(judged, "float32"), axis=space), 1.0)
    return _nan_where_stray(loss, stray)


def _nan_where_stray(loss: Tensor, stray: Tensor) -> Tensor:
    space = tuple(range(1, len(stray.shape)))
    return ops.where(ops.any(stray, axis=space), math.nan, loss)


def _weights(class_weights: Sequence[float] | None, y_pred: Tensor) -> Tensor:
    channels = y_pred.shape[-1]
    weights = _weight_list(class_weights) or [1.0] * channels
    if len(weights) != channels:
        raise _checks.error(f"class_weights has one weight per channel ({channels}).", weights)
    return ops.convert_to_tensor(weights, dtype="float32")


def _weight_list(class_weights: Sequence[float] | None) -> list[float] | None:
    if class_weights is None:
        return None
    weights = [float(w) for w in class_weights]
    if not weights or not all(0.0 <= w < math.inf for w in weights) or not any(weights):
        raise _checks.error("class_weights are finite, at least 0, and not all 0.", class_weights)
    return weights


def _at_least_zero(name: str, value: float) -> float:
    if not 0.0 <= value < math.inf:
        raise _checks.error(f"{name} is at least 0.", value)
    return float(value)


def _above_zero(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise _checks.error(f"{name} is above 0.", value)
    return float(value)


def _fraction(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise _checks.error(f"{name} is in [0, 1].", value)
    return float(value)
