"""Random flips, in-plane rotations and scalings of a patch and its labels, as TensorFlow graph operations.

Sources: islam2025 section 3.1.2 ("random flips and rotations"), xu2017 section 2.1 ("scaling and rotating"),
alkhimova2022 (flip, rotation of up to 15 degrees). Ranges that a paper leaves open are told on its page in
docs/papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrseg._checks import IGNORE_LABEL, error

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every patch.

    Attributes:
        flip_axes: axes of the patch that are mirrored, each with probability 1/2. For slices the axes are
            those of the slice: 0 and 1.
        rotation_deg: rotation in the plane of the first two axes, uniform in [-rotation_deg, rotation_deg].
        scale: factor on sizes in that plane, uniform in [1 - scale, 1 + scale].
        intensity_scale: factor on the intensities, uniform in [1 - s, 1 + s].
    """

    flip_axes: tuple[int, ...] = ()
    rotation_deg: float = 0.0
    scale: float = 0.0
    intensity_scale: float = 0.0

    def __post_init__(self) -> None:
        if any(axis not in (0, 1, 2) for axis in self.flip_axes):
            raise error("augmentation.flip_axes holds axes of the patch: 0, 1, 2.", self.flip_axes)
        if not 0.0 <= self.rotation_deg <= 180.0:
            raise error("augmentation.rotation_deg lies in [0, 180].", self.rotation_deg)
        for name in ("scale", "intensity_scale"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise error(f"augmentation.{name} lies in [0, 1).", getattr(self, name))

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
                image, labels, seeds[1], max_angle_deg=self.rotation_deg, max_scale=self.scale
            )
        if self.intensity_scale > 0:
            low, high = 1.0 - self.intensity_scale, 1.0 + self.intensity_scale
            image = image * tf.random.stateless_uniform((), seeds[2], low, high)
        return image, labels


def random_flip(
    image: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, *, axes: tuple[int, ...]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image and labels together along each of ``axes`` with probability 1/2."""
    import tensorflow as tf

    coins = tf.random.stateless_uniform((3,), seed) < 0.5
    for axis in axes:
        image = tf.where(coins[axis], tf.reverse(image, [axis]), image)
        labels = tf.where(coins[axis], tf.reverse(labels, [axis]), labels)
    return image, labels


def random_rotation(
    image: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, *, max_angle_deg: float, max_scale: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rotates and scales image (bilinear) and labels (nearest) in the plane of the first two axes.

    Corners that turn in from outside hold 0 in the image and the ignore label in the labels, so that nobody
    learns from them.
    """
    import tensorflow as tf

    angle = tf.random.stateless_uniform((), seed, -max_angle_deg, max_angle_deg) * (math.pi / 180.0)
    other_seed = tf.random.experimental.stateless_fold_in(seed, 1)
    scale = tf.random.stateless_uniform((), other_seed, 1.0 - max_scale, 1.0 + max_scale)
    shape = image.shape
    flat_image = tf.reshape(image, (1, shape[0], shape[1], -1))  # (1, X, Y, Z*C)
    flat_labels = tf.reshape(tf.cast(labels, tf.float32), (1, shape[0], shape[1], -1))
    transform = _rotation(angle, scale, shape[0], shape[1])
    rotated = _project(flat_image, transform, "BILINEAR", 0.0)
    rotated_labels = _project(flat_labels, transform, "NEAREST", float(IGNORE_LABEL))
    return (
        tf.reshape(rotated, shape),
        tf.cast(tf.reshape(rotated_labels, labels.shape), labels.dtype),
    )


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
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transform,
        output_shape=images.shape[1:3],
        fill_value=fill,
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )
