from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.data import augmentation
from mrseg.data.augmentation import Augmentation, random_flip, random_rotation


def patch(shape=(9, 9, 4), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    return tf.constant(labels[..., None].astype(np.float32)), tf.constant(labels)


def seed(number):
    return tf.constant([number, 7])


def test_image_and_labels_are_mirrored_together_and_every_combination_occurs():
    image, labels = patch()
    seen = set()
    for number in range(40):
        flipped, flipped_labels = random_flip(image, labels, seed(number), axes=(0, 1))
        np.testing.assert_array_equal(flipped[..., 0], flipped_labels)
        for axes in [(), (0,), (1,), (0, 1)]:
            if np.array_equal(np.flip(labels, axes), flipped_labels):
                seen.add(axes)
    assert seen == {(), (0,), (1,), (0, 1)}


def test_an_axis_that_is_not_named_is_never_mirrored():
    image, labels = patch()
    for number in range(20):
        _, flipped = random_flip(image, labels, seed(number), axes=(0,))
        assert np.array_equal(flipped, labels) or np.array_equal(flipped, np.flip(labels, 0))


def test_the_same_seed_gives_the_same_result_and_another_does_not():
    image, labels = patch()
    augment = Augmentation(flip_axes=(0, 1), rotation_deg=15.0, intensity_scale=0.2)
    first, again, other = (augment(image, labels, seed(n))[0].numpy() for n in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_quarter_turn_moves_voxels_as_numpy_rot90_does():
    image, _ = patch((5, 5))
    turn = augmentation._rotation(tf.constant(np.pi / 2, tf.float32), tf.constant(1.0), 5, 5)
    turned = augmentation._project(image[None], turn, "NEAREST", 0.0)[0, ..., 0].numpy()
    quarter = [np.rot90(image[..., 0], k) for k in (1, 3)]
    assert any(np.allclose(turned, q) for q in quarter)


def test_scaling_by_two_shows_the_middle_half():
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    image = tf.constant(np.repeat(x[:, None], 9, 1)[..., None])
    zoom = augmentation._rotation(tf.constant(0.0), tf.constant(2.0), 9, 9)
    larger = augmentation._project(image[None], zoom, "BILINEAR", 0.0)[0, :, 4, 0].numpy()
    np.testing.assert_allclose(larger, x / 2, atol=1e-6)


def test_random_scaling_stays_in_its_range_and_takes_the_labels_along():
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) <= 10
    image, labels = tf.constant(disc[..., None].astype(np.float32)), tf.constant(disc.astype(np.uint8))
    augment = Augmentation(scale=0.2)
    areas = []
    for number in range(12):
        scaled, scaled_labels = augment(image, labels, seed(number))
        inside = scaled_labels.numpy() == 1
        areas.append(np.sqrt(inside.sum() / disc.sum()))
        assert np.mean((scaled.numpy()[..., 0] > 0.5) == inside) > 0.97
    assert 0.77 < min(areas) < 0.95 and 1.05 < max(areas) < 1.23


def test_rotation_agrees_with_scipy_inside_the_patch():
    x, y = np.mgrid[-1:1:31j, -1:1:31j]
    smooth = np.exp(-4 * ((x - 0.2) ** 2 + 2 * y**2)).astype(np.float32)
    angle = np.deg2rad(12.0)
    turn = augmentation._rotation(tf.constant(angle, tf.float32), tf.constant(1.0), 31, 31)
    ours = augmentation._project(tf.constant(smooth[None, ..., None]), turn, "BILINEAR", 0.0)[
        0, ..., 0
    ].numpy()
    theirs = [ndimage.rotate(smooth, sign * 12.0, reshape=False, order=1) for sign in (1, -1)]
    inner = (slice(5, -5), slice(5, -5))
    assert min(np.abs(ours[inner] - t[inner]).max() for t in theirs) < 1e-3


def test_corners_that_turn_in_are_ignored_and_labels_stay_labels():
    image, labels = patch((32, 32))
    _, turned = random_rotation(image, labels, seed(1), max_angle_deg=45.0)
    values = set(np.unique(turned))
    assert values <= {0, 1, 2, 255}
    assert turned.dtype == labels.dtype


def test_intensity_scale_changes_the_image_alone():
    image, labels = patch()
    scaled, same = Augmentation(intensity_scale=0.3)(image, labels, seed(5))
    np.testing.assert_array_equal(same, labels)
    ratio = scaled[image > 0] / image[image > 0]
    assert ratio.numpy().min() >= 0.7 and ratio.numpy().max() <= 1.3
    assert np.ptp(ratio.numpy()) < 1e-6


@pytest.mark.parametrize(
    "bad", [{"flip_axes": (3,)}, {"rotation_deg": -1.0}, {"rotation_deg": 200.0}, {"intensity_scale": 1.0}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match="augmentation"):
        Augmentation(**bad)
