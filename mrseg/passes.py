"""How a network is asked, and what it answers to a batch: mirrored passes, dropout samples, their mean."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrseg._checks import choice, error
from mrseg.data.patches import Sampling, check_overlap, cut_input

#: From a float32 batch (batch, *patch, channels) to the network's float32 output.
Forward = Callable[[np.ndarray], np.ndarray]

BLENDINGS = ("gaussian", "constant")
EXTENTS = ("patch", "whole")
UNCERTAINTIES = ("entropy", "mirror", "dropout")
BATCH_SIZE = 2
_TOLERANCE = 1e-3  # of probabilities around [0, 1]: bfloat16 keeps 8 bits
# Read as whole numbers, float32 from 0 up are in their order, and NaN, infinity and all below 0 come after 1:
# one look at every value instead of two.
_LARGEST_BITS = np.float32(1 + _TOLERANCE).view(np.uint32)


@dataclass(frozen=True)
class Inference:
    """How a trained network is asked.

    Attributes:
        overlap: shared fraction of neighbouring patches, in [0, 1); None takes the sampling's.
        blending: ``gaussian`` trusts the middle of a patch more than its border (sigma a quarter of its
            size); ``constant`` averages. The paper does not say how patches are joined.
        mirror_axes: test-time augmentation: every patch is also shown mirrored along each set of these axes
            of RAS+, and the answers, mirrored back, are averaged. ``(0,)`` is left-right.
        extent: ``patch``, or ``whole`` for the whole volume (or whole slices) at once.
        dropout_samples: Monte-Carlo dropout: passes with dropout at work, averaged; 0 is one pass without.
        uncertainty: None, or a map of it: ``entropy`` of the probabilities over log(classes), in [0, 1];
            ``mirror`` or ``dropout``: the variance over the mirrored or the dropout passes of a patch,
            averaged over classes and blended as the probabilities are, in [0, 0.25].
        seed: of the dropout samples.
        batch_size: patches in one call, a matter of memory and speed alone; None takes the segmenter's.
    """

    overlap: float | None = None
    blending: str = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    extent: str = "patch"
    dropout_samples: int = 0
    uncertainty: str | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.overlap is not None:
            check_overlap(self.overlap)
        axes = self.mirror_axes
        if not isinstance(axes, tuple | list) or len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
            raise error("inference.mirror_axes are different axes of 0, 1, 2.", repr(axes))
        object.__setattr__(self, "mirror_axes", tuple(axes))
        for name, least in (("dropout_samples", 0), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if (value is not None or name != "batch_size") and (not whole or value < least):
                raise error(f"inference.{name} is a whole number, {least} or more.", repr(value))
        choice("inference.blending", self.blending, BLENDINGS)
        choice("inference.extent", self.extent, EXTENTS)
        choice("inference.uncertainty", self.uncertainty, (None, *UNCERTAINTIES))
        if self.uncertainty == "mirror" and (not axes or self.dropout_samples):
            raise error(
                "The variance over mirrors needs mirror_axes, and no dropout besides.",
                f"mirror_axes={axes}, dropout_samples={self.dropout_samples}",
                "Take no dropout samples." if axes else "Name mirror_axes=(0,), --mirror.",
            )
        if self.uncertainty == "dropout" and (self.dropout_samples < 2 or axes):
            raise error(
                "The variance over dropout needs dropout_samples of 2 or more, and no mirrors besides.",
                f"dropout_samples={self.dropout_samples}, mirror_axes={axes}",
                "Leave the mirrors out." if axes else "Take 20: dropout_samples=20, --dropout-samples 20.",
            )

    @property
    def variance(self) -> bool:
        """Whether the answers carry a variance as an additional channel."""
        return self.uncertainty in ("mirror", "dropout")

    @property
    def several(self) -> bool:
        """Whether the network is asked several times about every patch."""
        return bool(self.mirror_axes) or self.dropout_samples > 1

    def as_dict(self) -> dict[str, Any]:
        """What decides the result, as plain JSON values; the batch size does not."""
        values = dataclasses.asdict(self)
        del values["batch_size"]
        return {**values, "mirror_axes": list(self.mirror_axes)}


#: Overlapping patches as in training, one pass, no uncertainty.
DEFAULT = Inference()


def ask(
    forward: Forward,
    image: np.ndarray,
    starts: np.ndarray,
    sampling: Sampling,
    inference: Inference,
    num_classes: int,
    batch_size: int,
) -> np.ndarray:
    """What the network answers to patches: the mean over its passes and, if wanted, their variance.

    Args:
        forward: the network for ``batch_size`` patches.
        image: (x, y, z) float32, preprocessed.
        starts: (n, 3) first voxels of the patches, at most ``batch_size``; the batch is filled up with zeros.
        sampling: patch shape and channels.
        inference: mirrors, dropout samples, uncertainty.
        num_classes: channels of the output.
        batch_size: of ``forward``.

    Returns:
        (n, *patch, num_classes) float32, with one channel more where ``inference.variance``.

    Raises:
        InputError: an answer of another shape, NaN, or values outside [0, 1].
    """
    batch = np.empty((batch_size, *sampling.input_shape), np.float32)
    batch[len(starts) :] = 0
    for place, start in enumerate(starts):
        batch[place] = cut_input(image, start, sampling)
    mean = np.array(sampling.channel_mean or (0.0,), np.float32)
    shape = (batch_size, *sampling.input_shape[:-1], num_classes)

    def answered() -> Iterator[np.ndarray]:
        for count in range(len(inference.mirror_axes) + 1):
            for axes in itertools.combinations(inference.mirror_axes, count):
                asked, back = _flips(axes, sampling)
                mirrored = np.flip(batch, asked) - mean if asked or mean.any() else batch
                for _ in range(max(1, inference.dropout_samples)):
                    yield np.flip(_checked(forward(mirrored), shape, len(starts)), back)

    passes = answered()
    first = next(passes)
    patches = (len(starts), *sampling.patch_shape, num_classes)
    if not inference.several:
        return first.reshape(patches)
    # About the first answer, since differences keep the digits that squares of numbers near 1 lose.
    count, total, squares = 1, np.zeros_like(first), np.zeros_like(first)
    for answer in passes:
        difference = answer - first
        total += difference
        squares += np.square(difference, out=difference)
        count += 1
    total /= count
    answers = [first + total]
    if inference.variance:
        squares /= count
        squares -= np.square(total, out=total)
        answers.append(np.maximum(squares, 0, out=squares).mean(-1, keepdims=True))
    return np.concatenate(answers, -1).reshape(*patches[:-1], -1)


def _flips(axes: tuple[int, ...], sampling: Sampling) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes of a batch to flip before the network, and of its answer after, for mirrored axes of RAS+.

    Across slices there is nothing to turn but the order of the neighbours, which are channels.
    """
    spatial = [a for a in range(3) if a != sampling.slice_axis]
    within = tuple(1 + spatial.index(a) for a in axes if a != sampling.slice_axis)
    across = (-1,) if sampling.slice_axis in axes else ()
    return (*within, *across), within


def _checked(output: np.ndarray, shape: tuple[int, ...], rows: int) -> np.ndarray:
    """The rows in use, if they are probabilities of the right shape."""
    if output.shape != shape:
        raise error(
            "A network answers with one channel a class on its patch.", output.shape, f"Wanted: {shape}."
        )
    output = output[:rows]
    if output.dtype == np.float32 and output.view(np.uint32).max() <= _LARGEST_BITS:
        return output
    low, high = output.min(), output.max()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise error(
            "A network must give finite probabilities.",
            f"{int((~np.isfinite(output)).any(-1).sum())} voxels with NaN or infinity",
            "Were the weights trained to the end, and the scan normalised as in training?",
        )
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise error(
            "A network must give probabilities, in [0, 1].",
            f"values from {low:g} to {high:g}",
            "End the network in a softmax or a sigmoid.",
        )
    return output
