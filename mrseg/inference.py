"""Class probabilities of a whole volume from overlapping, blended patches (mecheter2023 section 3.4)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import keras
import numpy as np
from tqdm import tqdm

from mrseg._checks import choice, error
from mrseg.data.patches import Sampling, cut, cut_input, pad_to, patch_starts

log = logging.getLogger(__name__)

BLENDINGS = ("gaussian", "constant")


def compile_forward(model: keras.Model, batch_shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """One compiled forward pass of a fixed shape: traced once, then called for every batch of every volume.

    Args:
        model: network with one input.
        batch_shape: (batch, *patch, channels).

    Returns:
        Function from a float32 array of ``batch_shape`` to the model's float32 output.
    """
    if keras.backend.backend() == "jax":
        import jax

        call = jax.jit(lambda t, n, x: model.stateless_call(t, n, x, training=False)[0])

        def forward(batch: np.ndarray) -> np.ndarray:
            trainable = [v.value for v in model.trainable_variables]
            rest = [v.value for v in model.non_trainable_variables]
            return np.asarray(call(trainable, rest, batch))

        return forward
    import tensorflow as tf

    # XLA on a CPU is several times slower in 3-D, hence no jit_compile.
    traced = tf.function(
        lambda x: model(x, training=False),
        input_signature=[tf.TensorSpec(batch_shape, tf.float32)],
        jit_compile=False,
    )
    return lambda batch: traced(batch).numpy()


def predict_probabilities(
    forward: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    sampling: Sampling,
    *,
    num_classes: int,
    batch_size: int = 2,
    blending: str = "gaussian",
    progress: bool = False,
) -> np.ndarray:
    """Slides a network over a volume.

    Args:
        forward: from (batch_size, *patch, 1) to (batch_size, *patch, num_classes), as `compile_forward`
            gives.
        image: (x, y, z) float32, preprocessed. A volume smaller than a patch is padded with 0 and cropped
            back.
        sampling: patch shape and overlap.
        num_classes: channels of the output.
        batch_size: patches in one call; the last call is filled up with zeros.
        blending: ``constant`` averages overlapping patches; ``gaussian`` trusts the middle of a patch more
            than its border. The paper does not say how patches are joined.
        progress: show a bar.

    Returns:
        (x, y, z, num_classes) float32, summing to 1 where the network's channels do.

    Raises:
        InputError: the network gave a NaN.
    """
    choice("blending", blending, BLENDINGS)
    padded, inside = pad_to(image, sampling.patch_shape)
    if padded.shape != image.shape:
        log.info("volume of %s voxels padded to %s to hold a patch", image.shape, padded.shape)
    starts = patch_starts(padded.shape, sampling.patch_shape, sampling.overlap)
    weight = _patch_weight(sampling.patch_shape, blending)
    total = np.zeros((*padded.shape, num_classes), np.float32)
    weights = np.zeros(padded.shape, np.float32)
    batch = np.zeros((batch_size, *sampling.input_shape), np.float32)
    for first in tqdm(range(0, len(starts), batch_size), desc="patches", disable=not progress, leave=False):
        some = starts[first : first + batch_size]
        for row, start in enumerate(some):
            batch[row] = cut_input(padded, start, sampling)
            if sampling.channel_mean:
                batch[row] -= sampling.channel_mean
        output = forward(batch)
        for row, start in enumerate(some):
            patch = output[row].reshape(*sampling.patch_shape, num_classes)
            cut(total, start, sampling.patch_shape)[...] += patch * weight[..., None]
            cut(weights, start, sampling.patch_shape)[...] += weight
    total /= weights[..., None]
    if not np.isfinite(total).all():
        raise error(
            "A network must give finite probabilities.",
            f"{int(np.isnan(total).any(-1).sum())} voxels with NaN",
            "Were the weights trained to the end, and the scan normalised as in training?",
        )
    return total[inside]


def _patch_weight(patch_shape: tuple[int, ...], blending: str) -> np.ndarray:
    """Weight of a patch's voxels: all 1, or a Gaussian about the centre of sigma size / 4, at least 0.01."""
    weight = np.ones(patch_shape, np.float32)
    if blending == "constant":
        return weight
    for axis, size in enumerate(patch_shape):
        position = (np.arange(size) - (size - 1) / 2.0) / (size / 4.0)
        profile = np.exp(-0.5 * position**2)
        weight *= profile.reshape([-1 if a == axis else 1 for a in range(len(patch_shape))])
    return np.maximum(weight, 0.01)
