"""Images of random contrast keep the anatomy, lose the contrast, and come back the same from a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.contrast import random_contrast


def ball():
    """A ball of soft tissue with a shell of bone in air, and an image where its core is bright."""
    distance = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
    labels = np.where(distance < 8, 1, np.where(distance < 10, 2, 0)).astype(np.uint8)
    image = np.select([distance < 4, distance < 8, distance < 10], [200.0, 90.0, 30.0], 0.0)
    return labels, image.astype(np.float32), distance


def made(seed, labels, **options):
    return random_contrast(labels, np.random.default_rng(seed), **options)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    clusters=st.integers(1, 6),
    with_image=st.booleans(),
)
def test_any_labels_give_a_finite_image_from_zero_of_their_shape_again_and_again(
    seed, shape, clusters, with_image
):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), shape)
    image = rng.normal(50, 60, shape) if with_image else None
    options = {"image": image, "clusters": clusters, "dark": [2]}
    one, same = made(seed, labels, **options), made(seed, labels, **options)
    assert one.shape == shape and one.dtype == np.float32
    assert np.isfinite(one).all() and one.min() >= 0
    np.testing.assert_array_equal(one, same)


def test_the_contrast_of_two_structures_turns_round_from_image_to_image():
    labels, image, distance = ball()
    core, rim = distance < 3, (distance > 5) & (distance < 7)
    signs = {
        bool(one[core].mean() > one[rim].mean())
        for one in (made(seed, labels, image=image) for seed in range(12))
    }
    assert signs == {True, False}


def test_a_class_is_split_where_the_image_splits_it_and_not_without_an_image():
    labels, image, distance = ball()
    core, rim = distance < 3, (distance > 5) & (distance < 7)

    def split(one):
        return abs(one[core].mean() - one[rim].mean()) / one[distance < 7].mean()

    with_image = [split(made(seed, labels, image=image, clusters=4)) for seed in range(20)]
    without = [split(made(seed, labels)) for seed in range(20)]
    assert np.median(with_image) > 2 * np.median(without)  # there the bias field alone tells them apart


def test_air_is_dark_in_most_images_and_bone_where_it_is_said_to_be():
    labels, image, distance = ball()
    air, bone = distance > 14, (distance > 8.7) & (distance < 9.3)
    seeds = range(40)
    plain = [made(seed, labels, image=image) for seed in seeds]
    plain_bone = [made(seed, labels, image=image, clusters=1) for seed in seeds]
    dark_bone = [made(seed, labels, image=image, clusters=1, dark=[2]) for seed in seeds]
    assert np.mean([one[air].mean() < 30 for one in plain]) > 0.75

    def median(images):
        return np.median([one[bone].mean() for one in images])

    # means uniform up to 64 in nine of ten, and up to 255; blur mixes in the neighbours
    assert median(dark_bone) < 0.5 * median(plain_bone)


def test_what_is_exactly_zero_outside_a_stripped_head_stays_zero():
    labels, image, distance = ball()
    one = made(0, labels, image=image)
    assert not one[image == 0].any() and (one[distance < 8] > 0).all()
    noisy = image + np.random.default_rng(0).uniform(0.1, 2, image.shape)
    assert (made(0, labels, image=noisy)[image == 0] > 0).mean() > 0.9


def test_the_head_around_a_brain_mask_is_filled_from_the_image():
    labels, image, _ = ball()
    brain = (labels == 1).astype(np.uint8)
    brain[labels == 0] = 0
    shell = (labels == 2) & (ndimage.distance_transform_edt(labels != 2) == 0)
    wide = np.where(labels == 0, 0, 90).astype(np.float32)  # shell and brain give signal
    noise = np.random.default_rng(1).uniform(0, 2, image.shape)
    small = brain[5:19, 5:19, 5:19], (wide + noise)[5:19, 5:19, 5:19], shell[5:19, 5:19, 5:19]
    brightness = [made(seed, small[0], image=small[1])[small[2]].mean() for seed in range(20)]
    alone = [made(seed, small[0])[small[2]].mean() for seed in range(20)]
    assert np.median(brightness) > 2 * np.median(alone)


def test_edges_of_the_labels_are_edges_of_the_image():
    """Of a phantom: where labels change, a random image changes more than where they do not."""
    head = phantom.head(3, shape=(32, 32, 24))
    labels, (t1, _) = phantom.attenuation_labels(head), phantom.mr_image(head, "T1w")
    edge = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    ratios = []
    for seed in range(10):
        slope = ndimage.gaussian_gradient_magnitude(made(seed, labels, image=t1), 0.7)
        ratios.append(slope[edge].mean() / slope[~edge].mean())
    assert np.median(ratios) > 1.5


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (np.zeros((4, 4), np.uint8), {}, "a volume"),
        (np.zeros((4, 4, 4)), {}, "of integers"),
        (np.zeros((4, 4, 4), np.uint8), {"image": np.zeros((4, 4, 5))}, "grid of the labels"),
        (np.zeros((4, 4, 4), np.uint8), {"image": np.full((4, 4, 4), np.nan)}, "finite"),
        (np.zeros((4, 4, 4), np.uint8), {"clusters": 0}, "clusters"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_error(labels, options, words):
    with pytest.raises(InputError, match=words):
        made(0, labels, **options)
