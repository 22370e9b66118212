"""Random changes of a patch and its labels, as TensorFlow graph operations: geometry, then intensities.

Sources: islam2025 section 3.1.2 ("random flips and rotations"), xu2017 section 2.1 ("scaling and rotating"),
alkhimova2022 (flip, rotation of up to 15 degrees, cubic spline). Ranges that a paper leaves open are told on
its page in docs/papers. Bias field, gamma and noise are beyond the papers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, special

from mrseg._checks import IGNORE_LABEL, choice, error

if TYPE_CHECKING:
    import tensorflow as tf


#: How a rotation reads between voxels: linear in TensorFlow, cubic spline in SciPy (slower).
INTERPOLATIONS = ("linear", "cubic")
_BIAS_NODES = 4  # of the coarse grid along each axis that a bias field is drawn on


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every patch.

    Attributes:
        flip_axes: axes of the patch that are mirrored, each with probability 1/2. For slices the axes are
            those of the slice: 0 and 1.
        rotation_deg: rotation in the plane of the first two axes, uniform in [-rotation_deg, rotation_deg].
        scale: factor on sizes in that plane, uniform in [1 - scale, 1 + scale].
        intensity_scale: factor on the intensities, uniform in [1 - s, 1 + s].
        interpolation: of rotation and scaling: ``linear``, or ``cubic`` (spline, kept within the patch's own
            range), which takes many times as long. Labels take the nearest voxel in both.
        bias_field: a smooth field multiplies the image; the logarithm at its nodes is normal with a
            deviation that is uniform in [0, bias_field].
        gamma: the intensities, brought onto [0, 1], are raised to a power and brought back; the power's
            logarithm is uniform in [-gamma, gamma].
        noise: normal noise on every voxel, of a deviation that is uniform in [0, noise], in the unit of the
            normalised image.

    Geometry comes first, then bias field, gamma, factor and noise, which leave the labels alone.
    """

    flip_axes: tuple[int, ...] = ()
    rotation_deg: float = 0.0
    scale: float = 0.0
    intensity_scale: float = 0.0
    interpolation: str = "linear"
    bias_field: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if any(axis not in (0, 1, 2) for axis in self.flip_axes):
            raise error("augmentation.flip_axes holds axes of the patch: 0, 1, 2.", self.flip_axes)
        if not 0.0 <= self.rotation_deg <= 180.0:
            raise error("augmentation.rotation_deg lies in [0, 180].", self.rotation_deg)
        for name in ("scale", "intensity_scale"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise error(f"augmentation.{name} lies in [0, 1).", getattr(self, name))
        choice("augmentation.interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("bias_field", "gamma", "noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise error(f"augmentation.{name} is 0 or positive.", getattr(self, name))

    def __call__(self, image: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Augments one patch.

        Args:
            image: (*spatial, channels) float32.
            labels: (*spatial) integer.
            seed: (2,) int; the same seed gives the same result.

        Returns:
            Both, of unchanged shape and type.
        """
        import tensorflow as tf

        seeds = tf.random.split(seed, 3)
        image, labels = random_flip(image, labels, seeds[0], axes=self.flip_axes)
        if self.rotation_deg > 0 or self.scale > 0:
            image, labels = random_rotation(
                image,
                labels,
                seeds[1],
                max_angle_deg=self.rotation_deg,
                max_scale=self.scale,
                interpolation=self.interpolation,
            )
        if self.bias_field > 0:
            image = random_bias_field(image, _fold(seed, 1), self.bias_field)
        if self.gamma > 0:
            image = random_gamma(image, _fold(seed, 2), self.gamma)
        if self.intensity_scale > 0:
            low, high = 1.0 - self.intensity_scale, 1.0 + self.intensity_scale
            image = image * tf.random.stateless_uniform((), seeds[2], low, high)
        return (random_noise(image, _fold(seed, 3), self.noise) if self.noise > 0 else image), labels


def random_flip(
    image: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, *, axes: tuple[int, ...]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image and labels together along each of ``axes`` with probability 1/2."""
    import tensorflow as tf

    coins = tf.random.stateless_uniform((3,), seed) < 0.5
    named = [axis in axes for axis in range(len(labels.shape))]
    dims = tf.logical_and(coins[: len(named)], named)
    # One copy at most, and none of what stays: tf.reverse knows its axes only when the graph is made.
    return (
        tf.raw_ops.Reverse(tensor=image, dims=tf.concat([dims, [False]], 0)),
        tf.raw_ops.Reverse(tensor=labels, dims=dims),
    )


def random_rotation(
    image: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    max_angle_deg: float,
    max_scale: float = 0.0,
    interpolation: str = "linear",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rotates and scales image and labels (nearest) in the plane of the first two axes.

    Corners that turn in from outside hold 0 in the image and the ignore label in the labels, so that nobody
    learns from them. The same seed turns by the same angle, whatever the interpolation.

    Args:
        image: (x, y, ..., channels) float32.
        labels: (x, y, ...) integer.
        seed: (2,) int.
        max_angle_deg: uniform in [-max_angle_deg, max_angle_deg].
        max_scale: factor uniform in [1 - max_scale, 1 + max_scale].
        interpolation: "linear" or "cubic": the spline of ``scipy.ndimage.rotate``, cut to the range of the
            image (alkhimova2022).
    """
    import tensorflow as tf

    angle = tf.random.stateless_uniform((), seed, -max_angle_deg, max_angle_deg) * (math.pi / 180.0)
    other_seed = tf.random.experimental.stateless_fold_in(seed, 1)
    scale = tf.random.stateless_uniform((), other_seed, 1.0 - max_scale, 1.0 + max_scale)
    shape = image.shape
    flat_image = tf.reshape(image, (1, shape[0], shape[1], -1))  # (1, X, Y, Z*C)
    flat_labels = tf.reshape(labels, (1, shape[0], shape[1], -1))
    transform = _rotation(angle, scale, shape[0], shape[1])
    if interpolation == "cubic":
        rotated = tf.numpy_function(_cubic, (flat_image[0], transform[0]), tf.float32)
    else:
        rotated = _project(flat_image, transform, "BILINEAR", 0.0)
    rotated_labels = _project(flat_labels, transform, "NEAREST", IGNORE_LABEL)
    return tf.reshape(rotated, shape), tf.reshape(rotated_labels, labels.shape)


def random_bias_field(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Multiplies an image (*spatial, channels) by a smooth positive field, the same for all channels."""
    import tensorflow as tf

    spatial = [int(size) for size in image.shape[:-1]]
    deviation = tf.random.stateless_uniform((), _fold(seed, 0), 0.0, strength)
    log_field = deviation * tf.random.stateless_normal([_BIAS_NODES] * len(spatial), _fold(seed, 1))
    for size in spatial:  # the first axis goes to the back, interpolated; after the last all are in place
        log_field = tf.tensordot(log_field, tf.constant(_between_nodes(size)), ((0,), (1,)))
    return image * tf.exp(log_field)[..., None]


def random_gamma(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Raises intensities to a power between exp(-strength) and exp(strength); the range stays as it is."""
    import tensorflow as tf

    power = tf.exp(tf.random.stateless_uniform((), seed, -strength, strength))
    low, high = tf.reduce_min(image), tf.reduce_max(image)
    width = high - low
    share = tf.math.divide_no_nan(image - low, width)
    return low + width * tf.exp(power * tf.math.log(share))  # four times as fast as tf.pow


def random_noise(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Adds normal noise whose deviation is uniform in [0, strength].

    Its values are 65,536 quantiles of the normal distribution, out to 4.3 deviations, each as likely as
    another: read from a table by 16 random bits, four times as fast as `tf.random.stateless_normal`.
    """
    import tensorflow as tf

    deviation = tf.random.stateless_uniform((), _fold(seed, 0), 0.0, strength)
    words = -(-math.prod(image.shape) // 2)
    bits = tf.random.stateless_uniform((words,), _fold(seed, 1), minval=None, maxval=None, dtype=tf.int32)
    return _compiled(_add_noise)(image, bits, deviation)


def _fold(seed: tf.Tensor, number: int) -> tf.Tensor:
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(seed, number)


def _add_noise(image: tf.Tensor, bits: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    """Two voxels take their places in the table from a word of 32 random bits."""
    import tensorflow as tf

    places = tf.concat([bits & 0xFFFF, tf.bitwise.right_shift(bits, 16) & 0xFFFF], 0)
    noise = tf.gather(tf.constant(_normal_quantiles()), places[: math.prod(image.shape)])
    return image + deviation * tf.reshape(noise, image.shape)


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """(65,536) float32 of mean 0 and variance 1: the normal distribution in steps of equal probability."""
    quantiles = special.ndtri((np.arange(2**16) + 0.5) / 2**16)
    return (quantiles / quantiles.std()).astype(np.float32)


def _between_nodes(size: int) -> np.ndarray:
    """(size, nodes) weights that lead smoothly from node to node along an axis."""
    at = np.linspace(0, _BIAS_NODES - 1, size)
    first = np.minimum(at.astype(int), _BIAS_NODES - 2)
    share = at - first
    share = share * share * (3 - 2 * share)  # no kinks at the nodes
    weights = np.zeros((size, _BIAS_NODES), np.float32)
    weights[np.arange(size), first] = 1 - share
    weights[np.arange(size), first + 1] = share
    return weights


def _cubic(images: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Cubic spline of images (x, y, n) float32 at the places of `_rotation`, 0 outside, in their range."""
    # The transform counts (column, row), the array (row, column).
    a, b, shift_x, c, d, shift_y = transform.astype(np.float64)[:6]
    out = np.empty_like(images)
    for n in range(images.shape[-1]):
        one = images[..., n]
        turned = ndimage.affine_transform(one, [[d, c], [b, a]], (shift_y, shift_x), order=3, mode="constant")
        low, high = min(0.0, float(one.min())), max(0.0, float(one.max()))
        out[..., n] = np.clip(turned, low, high)
    return out


def _rotation(angle: tf.Tensor, scale: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The 8 numbers that ImageProjectiveTransformV3 wants: output (x, y) -> input, about the centre."""
    import tensorflow as tf

    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    centre_x, centre_y = (width - 1) / 2.0, (height - 1) / 2.0
    shift_x = centre_x - cos * centre_x + sin * centre_y
    shift_y = centre_y - sin * centre_x - cos * centre_y
    zero = tf.zeros(())
    return tf.stack([cos, -sin, shift_x, sin, cos, shift_y, zero, zero])[None]


def _project(images: tf.Tensor, transform: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
    """Images (1, x, y, n) read at the places of `_rotation`, ``fill`` outside; of the images' type."""
    read = _read_linear if interpolation == "BILINEAR" else _read_nearest
    return _compiled(read)(images[0], transform[0], fill)[None]


@functools.cache
def _compiled(read: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The function compiled by XLA: one pass over the image, faster than TensorFlow's own kernel."""
    import tensorflow as tf

    return tf.function(read, jit_compile=True)


def _places(transform: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Row and column, each (x * y) float32, where every output pixel is read."""
    import tensorflow as tf

    row, column = tf.range(height, dtype=tf.float32)[:, None], tf.range(width, dtype=tf.float32)
    across = transform[0] * column + transform[1] * row + transform[2]
    down = transform[3] * column + transform[4] * row + transform[5]
    return tf.reshape(down, [-1]), tf.reshape(across, [-1])


def _read_linear(images: tf.Tensor, transform: tf.Tensor, fill: float) -> tf.Tensor:
    import tensorflow as tf

    height, width, count = images.shape
    rows = tf.reshape(images, (height * width, count))
    down, across = _places(transform, height, width)
    top, left = tf.floor(down), tf.floor(across)
    total = tf.zeros((height * width, count), rows.dtype)
    for row, row_weight in ((top, 1 + top - down), (top + 1, down - top)):
        for column, column_weight in ((left, 1 + left - across), (left + 1, across - left)):
            index, inside = _index(row, column, height, width)
            value = tf.where(inside[:, None], tf.gather(rows, index), tf.cast(fill, rows.dtype))
            total += value * (row_weight * column_weight)[:, None]
    return tf.reshape(total, images.shape)


def _read_nearest(images: tf.Tensor, transform: tf.Tensor, fill: float) -> tf.Tensor:
    import tensorflow as tf

    height, width, count = images.shape
    rows = tf.reshape(images, (height * width, count))
    down, across = _places(transform, height, width)
    index, inside = _index(tf.floor(down + 0.5), tf.floor(across + 0.5), height, width)
    value = tf.where(inside[:, None], tf.gather(rows, index), tf.cast(fill, rows.dtype))
    return tf.reshape(value, images.shape)


def _index(row: tf.Tensor, column: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Number of the pixel, 0 for what lies outside, and what lies inside."""
    import tensorflow as tf

    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tf.where(inside, tf.cast(row, tf.int32) * width + tf.cast(column, tf.int32), 0), inside
