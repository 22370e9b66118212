"""Statistics of BatchNormalization estimated anew on images without labels; the weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from mrseg import _checks
from mrseg.models.quiet import is_random, set_quiet
from mrseg.transfer.grouping import is_adapted


def adapt_statistics(model: keras.Model, images: Iterable[Any]) -> dict[str, float]:
    """Replaces the mean and variance of every BatchNormalization by those of ``images``.

    The network runs once over the images as in training, each batch normalised by its own statistics and
    dropout silent. Mean and variance are those of all voxels of all batches together, larger batches counting
    for more. What trains, gamma, beta and all other weights stay as they were; so does a hybrid's adapted
    encoder, which is frozen for good. A frozen group's statistics are adapted too: that is the purpose.

    Args:
        model: changed in place.
        images: batches (N, *spatial, C) of unlabelled images, read once.

    Returns:
        Layer name -> how far its mean moved, in standard deviations of the old statistics (root mean square
        over the channels).

    Raises:
        InputError: no BatchNormalization of its own; no image; NaN or infinity. The model is then unchanged.
    """
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and not is_adapted(layer.name)
    ]
    if not norms:
        raise _checks.error("Statistics are adapted in a network with BatchNormalization.", model.name)
    old = [_statistics(layer) for layer in norms]
    sums = [np.zeros_like(statistics) for statistics in old]
    kept = [(layer, type(layer), layer.trainable) for layer in model.layers]
    momenta = [layer.momentum for layer in norms]
    count = 0
    try:
        _as_in_training(model, norms)
        for batch in images:
            model(batch, training=True)
            count += len(batch)
            for total, layer in zip(sums, norms, strict=True):
                mean, variance = _statistics(layer)
                total += len(batch) * np.stack([mean, variance + mean**2])
    finally:
        _restore(norms, old, momenta, kept)
    if not count:
        raise _checks.error("Statistics are estimated from at least one image.", "none")
    if not all(np.isfinite(total).all() for total in sums):
        raise _checks.error("Images hold finite values.", "NaN or infinity", "The model is unchanged.")
    new = [_pooled(total / count) for total in sums]
    moved = {}
    for layer, before, after in zip(norms, old, new, strict=True):
        layer.moving_mean.assign(after[0])
        layer.moving_variance.assign(after[1])
        distance = (after[0] - before[0]) ** 2 / (before[1] + layer.epsilon)
        moved[layer.name] = float(np.sqrt(distance.mean()))
    return moved


def _statistics(layer: keras.layers.Layer) -> np.ndarray:
    """(2, channels) float64: mean and variance."""
    values = (layer.moving_mean, layer.moving_variance)
    return np.stack([np.array(ops.convert_to_numpy(value), np.float64) for value in values])


def _pooled(moments: np.ndarray) -> np.ndarray:
    mean, mean_of_squares = moments
    return np.stack([mean, np.maximum(mean_of_squares - mean**2, 0.0)])


def _as_in_training(model: keras.Model, norms: list[keras.layers.Layer]) -> None:
    """Norms use and store the statistics of each batch alone; random layers pass their input on."""
    for layer in model.layers:
        if is_random(layer):
            set_quiet(layer, True)
            layer.trainable = False
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0


def _restore(
    norms: list[keras.layers.Layer],
    old: list[np.ndarray],
    momenta: list[float],
    kept: list[tuple[keras.layers.Layer, type, bool]],
) -> None:
    for layer, statistics, momentum in zip(norms, old, momenta, strict=True):
        layer.moving_mean.assign(statistics[0])
        layer.moving_variance.assign(statistics[1])
        layer.momentum = momentum
    for layer, kind, trainable in kept:
        layer.trainable = trainable
        if type(layer) is not kind:
            layer.__class__ = kind
