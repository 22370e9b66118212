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


def bump(shape=(31, 31)):
    x, y = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    return np.exp(-6 * ((x - 0.2) ** 2 + 2 * y**2)).astype(np.float32)


@pytest.mark.parametrize("interpolation", ["BILINEAR", "NEAREST"])
@pytest.mark.parametrize("angle", [0.0, 0.2, -0.7, np.pi / 2])
@pytest.mark.parametrize("count", [1, 12])
def test_images_are_read_as_by_tensorflow_s_kernel(interpolation, angle, count):
    images = tf.constant(np.random.default_rng(0).random((1, 21, 17, count)).astype(np.float32))
    turn = augmentation._rotation(tf.constant(angle, tf.float32), tf.constant(1.07), 21, 17)
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=turn,
        output_shape=(21, 17),
        fill_value=5.0,
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )
    # coordinates up to 20 in float32: about 2e-6 of a voxel, times a slope of at most 5
    np.testing.assert_allclose(augmentation._project(images, turn, interpolation, 5.0), expected, atol=5e-5)


def test_labels_of_a_volume_turn_as_those_of_its_slices():
    labels = tf.constant(np.random.default_rng(0).integers(0, 3, (20, 22, 10)).astype(np.uint8))
    image = tf.cast(labels, tf.float32)[..., None]
    volume = random_rotation(image, labels, seed(3), max_angle_deg=40.0)
    assert volume[1].dtype == tf.uint8 and 255 in volume[1].numpy()
    for z in (0, 9):
        one = random_rotation(image[:, :, z], labels[:, :, z], seed(3), max_angle_deg=40.0)
        np.testing.assert_array_equal(volume[1][..., z], one[1])
        np.testing.assert_allclose(volume[0][:, :, z], one[0], atol=5e-5)


def test_cubic_rotation_is_scipy_s_and_turns_as_the_linear_one():
    image = np.stack([bump(), bump()[::-1]], -1)
    for angle in (12.0, -7.5):
        turn = augmentation._rotation(tf.constant(np.deg2rad(angle), tf.float32), tf.constant(1.0), 31, 31)
        cubic = augmentation._cubic(image, turn.numpy()[0])
        linear = augmentation._project(tf.constant(image[None]), turn, "BILINEAR", 0.0)[0].numpy()
        # linear interpolation is off by at most h^2 / 8 (f_xx + f_yy) = (1/15)^2 / 8 * (12 + 24) = 0.02
        assert np.abs(cubic - linear)[4:-4, 4:-4].max() < 0.02
        theirs = [ndimage.rotate(image, s * angle, reshape=False, order=3, mode="constant") for s in (1, -1)]
        off = [np.abs(cubic - one.clip(0, image.max())).max() for one in theirs]
        assert min(off) < 1e-5 < 0.05 < max(off)


def test_cubic_interpolation_keeps_the_labels_of_the_linear_one_and_the_image_s_range():
    image, labels = patch((24, 24, 3))
    linear, cubic = (
        Augmentation(rotation_deg=30.0, interpolation=how)(image, labels, seed(2))
        for how in ("linear", "cubic")
    )
    np.testing.assert_array_equal(linear[1], cubic[1])
    assert 255 in cubic[1].numpy()
    assert cubic[0].numpy().min() >= 0 and cubic[0].numpy().max() <= 2
    assert not np.array_equal(linear[0], cubic[0])
    assert cubic[0].shape == image.shape


def test_cubic_rotation_by_nothing_changes_nothing():
    image = np.random.default_rng(0).random((9, 11, 2)).astype(np.float32)
    still = augmentation._rotation(tf.constant(0.0), tf.constant(1.0), 9, 11)
    np.testing.assert_allclose(augmentation._cubic(image, still.numpy()[0]), image, atol=1e-6)


INTENSITIES = [
    {"bias_field": 0.4}, {"gamma": 0.5}, {"noise": 0.2}, {"bias_field": 0.4, "gamma": 0.5, "noise": 0.2}
]  # fmt: skip


@pytest.mark.parametrize("settings", INTENSITIES)
@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 6)])
def test_intensities_change_alone_by_the_seed_and_labels_with_255_stay(settings, shape):
    image, labels = patch(shape)
    labels = tf.where(image[..., 0] == 0, tf.constant(255, tf.uint8), labels)
    augment = Augmentation(**settings)
    first, same = augment(image, labels, seed(5))
    np.testing.assert_array_equal(same, labels)
    assert first.shape == image.shape and first.dtype == image.dtype
    assert np.abs(first - image).max() > 1e-3
    np.testing.assert_array_equal(first, augment(image, labels, seed(5))[0])
    assert not np.array_equal(first, augment(image, labels, seed(6))[0])


@pytest.mark.parametrize(
    "change", [augmentation.random_bias_field, augmentation.random_gamma, augmentation.random_noise]
)
def test_at_strength_zero_an_image_stays_as_it_is(change):
    image, _ = patch()
    np.testing.assert_allclose(change(image - 1.0, seed(3), 0.0), image - 1.0, atol=1e-6)


def test_a_bias_field_is_smooth_positive_and_as_strong_as_asked():
    ones = tf.ones((40, 32, 24, 2))
    deviations = []
    for number in range(150):
        log_field = np.log(augmentation.random_bias_field(ones, seed(number), 0.3).numpy())
        np.testing.assert_array_equal(log_field[..., 0], log_field[..., 1])
        deviations.append(log_field[::39, ::31, ::23, 0].std(ddof=0))  # 8 corners, which are nodes
        # three steps between four nodes; the steepest slope of 3 s^2 - 2 s^3 is 1.5
        assert np.abs(np.diff(log_field[..., 0], axis=0)).max() <= 1.5 * 3 / 39 * np.ptp(log_field) + 1e-6
    # Deviation uniform in [0, 0.3]: mean square 0.03, of which 8 values keep 7/8 about their own mean.
    assert np.mean(np.square(deviations)) == pytest.approx(0.03 * 7 / 8, rel=0.35)
    assert max(deviations) < 0.3 * 2.5


def test_the_weights_between_nodes_worked_out_by_hand():
    # 7 voxels over 4 nodes: a step is half a node; half-way 3/4 - 2/8 = 1/2
    weights = augmentation._between_nodes(7)
    assert weights[:3].tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0]]
    assert weights[-1].tolist() == [0, 0, 0, 1]


def test_gamma_keeps_both_ends_and_the_order_and_bends_as_a_power():
    image = tf.constant(np.array([-2.0, 0.0, 2.0], np.float32).reshape(3, 1, 1))
    powers = []
    for number in range(200):
        low, middle, high = augmentation.random_gamma(image, seed(number), 0.7).numpy().ravel()
        assert low == -2 and high == pytest.approx(2) and low < middle < high
        powers.append(np.log((middle + 2) / 4) / np.log(0.5))  # (1/2)^p of the way
    logs = np.log(powers)
    assert -0.7 - 1e-5 < logs.min() < -0.6 and 0.6 < logs.max() < 0.7 + 1e-5
    assert abs(logs.mean()) < 4 * 0.7 / np.sqrt(3 * 200)  # uniform: deviation 0.7 / sqrt(3)


def test_gamma_leaves_a_constant_patch():
    image = tf.fill((4, 4, 1), 3.0)
    np.testing.assert_array_equal(augmentation.random_gamma(image, seed(0), 0.5), image)


def test_noise_has_mean_0_and_a_deviation_up_to_its_strength():
    image = tf.zeros((40, 40, 1))
    noise = [augmentation.random_noise(image, seed(number), 0.5).numpy() for number in range(100)]
    deviations = [one.std() for one in noise]
    assert max(deviations) < 0.5 * 1.07 and min(deviations) < 0.05 and max(deviations) > 0.45
    assert np.mean(deviations) == pytest.approx(0.25, abs=4 * 0.5 / np.sqrt(12 * 100))
    assert abs(np.mean(noise)) < 0.005  # deviation of the mean: at most 0.5 / sqrt(160,000)


def test_the_noise_is_normal_and_no_two_voxels_share_theirs():
    table = augmentation._normal_quantiles()
    assert table.shape == (65_536,) and (np.diff(table) > 0).all()
    assert abs(table.mean()) < 1e-6 and table.std() == pytest.approx(1, abs=1e-6)
    # shares within 1, 2 and 3 deviations, by any table of the normal distribution
    for width, share in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):
        assert (np.abs(table) < width).mean() == pytest.approx(share, abs=2e-4)
    noise = augmentation.random_noise(tf.zeros((61, 41, 1)), seed(4), 1.0).numpy().ravel()  # an odd number
    unit = noise / noise.std()
    assert (np.abs(unit) < 1).mean() == pytest.approx(0.6827, abs=5 * np.sqrt(0.68 * 0.32 / 2501))
    # words of 32 bits give two voxels, half the image apart: they know nothing of each other
    assert abs(np.corrcoef(unit[:1250], unit[1251:])[0, 1]) < 5 / np.sqrt(1250)


def test_gamma_is_a_power_of_the_way_from_the_lowest_to_the_highest_value():
    image = np.random.default_rng(0).normal(size=(6, 5, 4, 1)).astype(np.float32)
    bent = augmentation.random_gamma(tf.constant(image), seed(8), 0.6).numpy().astype(np.float64)
    share = (image - image.min()) / np.ptp(image)
    middle = np.argsort(share.ravel())[60]
    power = np.log((bent.ravel()[middle] - image.min()) / np.ptp(image)) / np.log(share.ravel()[middle])
    np.testing.assert_allclose(bent, image.min() + np.ptp(image) * share**power, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"interpolation": "quintic"}, "augmentation.interpolation"),
        ({"noise": -0.1}, "augmentation.noise"),
        ({"gamma": float("nan")}, "augmentation.gamma"),
        ({"bias_field": float("inf")}, "augmentation.bias_field"),
    ],
)
def test_strengths_that_make_no_sense_are_refused(bad, words):
    with pytest.raises(InputError, match=words):
        Augmentation(**bad)
