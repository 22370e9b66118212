"""Dense conditional random field on the softmax of a slice, by mean field (mecheter2020, Table II)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from mrseg._checks import choice, error

NORMALIZATIONS = ("symmetric", "none")

#: Windows reach this many standard deviations.
_REACH = 3.0
_SMALLEST_PROBABILITY = 1e-7


def dense_crf(
    probabilities: np.ndarray,
    image: np.ndarray,
    *,
    iterations: int = 5,
    distance_px: float = 10.0,
    grey_share: float = 0.1,
    smooth_px: float = 3.0,
    weights: tuple[float, float] = (4.0, 3.0),
    normalization: str = "symmetric",
) -> np.ndarray:
    """Sharpens class probabilities: near pixels of like grey value attract one another's label (Potts).

    Mean field with unary ``-log p`` and, between pixels at distance d with grey values that differ by D,
    ``w1 exp(-d^2 / 2a^2 - D^2 / 2b^2) + w2 exp(-d^2 / 2g^2)``: the first term over the pixels within 3a, the
    second over a square window of 3g to each side. That is thousands of neighbours a pixel: a slice of
    256x256 takes seconds.

    Args:
        probabilities: (x, y, classes) of one slice, from 0; need not sum to 1.
        image: (x, y), the slice they were made from, finite.
        iterations: of the mean field; 0 returns the probabilities normalised.
        distance_px: a, in pixels.
        grey_share: b as a share of the slice's range of values; a constant slice has no grey differences.
        smooth_px: g, in pixels.
        weights: (w1, w2). Where the probabilities are weak, the default loses thin classes, (2, 1) less so.
        normalization: ``symmetric`` divides each term between two pixels by the root of both their sums of
            it, so that w1 and w2 are the weight of a whole neighbourhood's vote; ``none`` takes the formula
            as it stands.

    Returns:
        float32 (x, y, classes) that sums to 1.

    Raises:
        InputError: shapes that do not agree, negative or NaN probabilities, an option out of range.

    Deviation:
        The paper says "conditional random field" alone. Kernel, widths, weights and five iterations are
        choices, and so is the symmetric normalisation: by the bare formula several hundred neighbours
        outvote every network, and thin bone disappears. Neighbours beyond the windows count nothing.

    Reference:
        Mecheter et al. 2020, Table II, "SegNet + CRF"; Kraehenbuehl and Koltun 2011, NIPS (the formula in
        common use; not read again).
    """
    probabilities, image = _checked(probabilities, image)
    choice("normalization", normalization, NORMALIZATIONS)
    widths = distance_px, grey_share, smooth_px
    if iterations < 0 or min(widths) <= 0 or min(weights) < 0 or not np.isfinite([*widths, *weights]).all():
        raise error(
            "iterations and weights are from 0, distance_px, grey_share and smooth_px above 0.",
            (iterations, *weights, *widths),
        )
    grey = grey_share * float(np.ptp(image))
    kernels = [
        _Kernel(weights[0], lambda values: _alike(values, image, distance_px, grey)),
        _Kernel(weights[1], lambda values: _near(values, smooth_px)),
    ]
    if normalization == "symmetric":
        kernels = [kernel.normalised(image.shape) for kernel in kernels]
    clipped = np.maximum(probabilities, _SMALLEST_PROBABILITY)
    unary = -np.log(clipped / clipped.sum(axis=0, keepdims=True))
    belief = _softmax(-unary)
    for _ in range(iterations):
        # Potts: every other label costs the same, so that the agreement with one's own says it all.
        belief = _softmax(sum(kernel(belief) for kernel in kernels) - unary)
    return np.ascontiguousarray(np.moveaxis(belief, 0, -1))


def dense_crf_volume(
    probabilities: np.ndarray, image: np.ndarray, *, slice_axis: int = 2, **options: Any
) -> np.ndarray:
    """Runs ``dense_crf`` over the slices of a volume, each for itself.

    Args:
        probabilities: (x, y, z, classes).
        image: (x, y, z) on the same grid.
        slice_axis: axis of the slices, 0 to 2.
        **options: of ``dense_crf``.

    Returns:
        float32 (x, y, z, classes).

    Raises:
        InputError: as ``dense_crf``.
    """
    choice("slice_axis", slice_axis, (0, 1, 2))
    probabilities, image = np.asarray(probabilities), np.asarray(image)
    if probabilities.ndim != 4 or probabilities.shape[:3] != image.shape:
        raise error(
            "Probabilities (x, y, z, classes) lie on the grid of the image (x, y, z).",
            f"shapes {probabilities.shape} and {image.shape}",
        )
    refined = np.empty(probabilities.shape, np.float32)
    for index in range(image.shape[slice_axis]):
        at = (slice(None),) * slice_axis + (index,)
        refined[at] = dense_crf(probabilities[at], image[at], **options)
    return refined


def _checked(probabilities: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities as (classes, x, y), each class whole in memory, and the image; float32."""
    probabilities, image = np.asarray(probabilities, np.float32), np.asarray(image, np.float32)
    if image.ndim != 2 or probabilities.ndim != 3 or probabilities.shape[:2] != image.shape:
        raise error(
            "Probabilities (x, y, classes) lie on the pixels of the slice (x, y).",
            f"shapes {probabilities.shape} and {image.shape}",
            "dense_crf_volume runs over the slices of a volume.",
        )
    if not image.size or not np.isfinite(image).all():
        raise error("A slice has finite pixels.", "NaN, infinite or no pixels")
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise error("Probabilities are finite, from 0.", f"a minimum of {probabilities.min()}")
    return np.ascontiguousarray(np.moveaxis(probabilities, -1, 0)), image


@dataclass(frozen=True)
class _Kernel:
    """A weighted sum over the neighbours of a pixel, each of both divided by a root of theirs."""

    weight: float
    neighbours: Callable[[np.ndarray], np.ndarray]
    scale: np.ndarray | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self.weight == 0:
            return np.zeros_like(values)
        if self.scale is None:
            return np.float32(self.weight) * self.neighbours(values)
        return np.float32(self.weight) * self.scale * self.neighbours(self.scale * values)

    def normalised(self, shape: tuple[int, ...]) -> _Kernel:
        total = self.neighbours(np.ones((1, *shape), np.float32))[0]
        # A pixel without neighbours (a slice of one pixel) gets no message.
        scale = np.where(total > 0, 1 / np.sqrt(np.where(total > 0, total, 1)), 0)
        return replace(self, scale=scale.astype(np.float32))


def _near(values: np.ndarray, width_px: float) -> np.ndarray:
    """Sum over all neighbours but the pixel itself of exp(-d^2 / 2g^2); values (channels, x, y)."""
    reach = math.floor(_REACH * width_px)
    window = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * width_px**2)).astype(np.float32)
    total = values
    for axis in (1, 2):
        total = ndimage.correlate1d(total, window, axis, mode="constant")
    return total - values


def _alike(values: np.ndarray, image: np.ndarray, width_px: float, grey: float) -> np.ndarray:
    """Sum over all neighbours of exp(-d^2 / 2a^2 - D^2 / 2b^2); values (channels, x, y)."""
    total = np.zeros_like(values)
    for dx, dy in _offsets(image.shape, _REACH * width_px):
        here, there = _pair(image, dx, dy)
        kernel = here - there
        kernel *= kernel
        kernel *= np.float32(-0.5 / grey**2 if grey > 0 else 0.0)
        kernel -= np.float32((dx * dx + dy * dy) / (2 * width_px**2))
        np.exp(kernel, out=kernel)
        to_here, to_there = _pair(total, dx, dy)
        from_here, from_there = _pair(values, dx, dy)
        to_here += kernel * from_there
        to_there += kernel * from_here
    return total


def _offsets(shape: tuple[int, ...], radius: float) -> Iterator[tuple[int, int]]:
    """One of each two opposite offsets within the radius."""
    reach = math.floor(radius)
    for dx in range(min(reach, shape[0] - 1) + 1):
        for dy in range(-min(reach, shape[1] - 1), min(reach, shape[1] - 1) + 1):
            if (dx > 0 or dy > 0) and dx * dx + dy * dy <= radius * radius:
                yield dx, dy


def _pair(array: np.ndarray, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the pixels p and of p + (dx, dy), in one order; dx is not negative."""
    x, y = array.shape[-2:]
    here_y, there_y = (slice(0, y - dy), slice(dy, y)) if dy >= 0 else (slice(-dy, y), slice(0, y + dy))
    return array[..., : x - dx, here_y], array[..., dx:, there_y]


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=0, keepdims=True))
    return scores / scores.sum(axis=0, keepdims=True)
