"""The dense CRF against a mean field that visits every pair of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.baselines import dense_crf, dense_crf_volume
from mrseg.data import phantom
from mrseg.metrics import dice


def naive(probabilities, image, iterations, a, share, g, weights, normalization):
    """Float64, pixel by pixel, with the full matrix of labels' costs (Potts)."""
    places = list(np.ndindex(*image.shape))
    count, classes = len(places), probabilities.shape[-1]
    b = share * (image.max() - image.min())
    alike, near = np.zeros((2, count, count))
    for p, (i, j) in enumerate(places):
        for q, (k, m) in enumerate(places):
            square = (i - k) ** 2 + (j - m) ** 2
            if p != q and square <= (3 * a) ** 2:
                grey = 0.0 if b == 0 else (image[i, j] - image[k, m]) ** 2 / (2 * b**2)
                alike[p, q] = math.exp(-square / (2 * a**2) - grey)
            if p != q and max(abs(i - k), abs(j - m)) <= 3 * g:
                near[p, q] = math.exp(-square / (2 * g**2))
    if normalization == "symmetric":
        alike, near = (k / np.sqrt(k.sum(1))[:, None] / np.sqrt(k.sum(1))[None, :] for k in (alike, near))
    kernel = weights[0] * alike + weights[1] * near
    cost = 1 - np.eye(classes)
    prior = probabilities.reshape(count, classes) / probabilities.reshape(count, classes).sum(
        1, keepdims=True
    )
    unary = -np.log(np.maximum(prior, 1e-7))
    belief = np.exp(-unary) / np.exp(-unary).sum(1, keepdims=True)
    for _ in range(iterations):
        energy = unary + kernel @ belief @ cost.T
        belief = np.exp(-energy + energy.min(1, keepdims=True))
        belief /= belief.sum(1, keepdims=True)
    return belief.reshape(probabilities.shape)


@given(
    seed=st.integers(0, 1000),
    classes=st.integers(2, 4),
    iterations=st.integers(0, 5),
    a=st.sampled_from([0.9, 1.7, 10.0]),
    g=st.sampled_from([0.5, 3.0]),
    normalization=st.sampled_from(["symmetric", "none"]),
)
@settings(max_examples=25, deadline=None)
def test_agrees_with_the_naive_mean_field(seed, classes, iterations, a, g, normalization):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 500, (6, 7))
    probabilities = rng.dirichlet(np.ones(classes), (6, 7))
    result = dense_crf(
        probabilities, image, iterations=iterations, distance_px=a, grey_share=0.3, smooth_px=g,
        weights=(0.4, 0.3), normalization=normalization,
    )  # fmt: skip
    expected = naive(probabilities, image, iterations, a, 0.3, g, (0.4, 0.3), normalization)
    assert result.dtype == np.float32
    # Float32 sums of some 40 terms; small weights keep the fixed point from tipping over.
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_two_pixels_worked_out_by_hand():
    """One neighbour: both normalised terms are 1, so each belief is p_i exp(w Q_j), w = 0.5 + 0.25."""
    probabilities = np.array([[[0.8, 0.2], [0.4, 0.6]]])
    result = dense_crf(probabilities, np.array([[1.0, 1.0]]), iterations=1, weights=(0.5, 0.25))
    first = np.array([0.8 * math.exp(0.75 * 0.4), 0.2 * math.exp(0.75 * 0.6)])
    second = np.array([0.4 * math.exp(0.75 * 0.8), 0.6 * math.exp(0.75 * 0.2)])
    expected = np.stack([first / first.sum(), second / second.sum()])
    np.testing.assert_allclose(result[0], expected, rtol=1e-5)


def test_no_iteration_returns_the_probabilities_normalised():
    probabilities = np.array([[[2.0, 6.0]]])
    np.testing.assert_allclose(dense_crf(probabilities, np.ones((1, 1)), iterations=0), [[[0.25, 0.75]]])
    np.testing.assert_allclose(dense_crf(probabilities, np.ones((1, 1))), [[[0.25, 0.75]]])  # no neighbour


def test_without_weights_nothing_changes():
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], (5, 5))
    image = np.random.default_rng(1).normal(size=(5, 5))
    np.testing.assert_allclose(dense_crf(probabilities, image, weights=(0, 0)), probabilities, atol=1e-6)


def test_classes_are_equal_before_it():
    rng = np.random.default_rng(0)
    probabilities, image = rng.dirichlet([1, 1, 1], (9, 8)), rng.normal(size=(9, 8))
    order = [2, 0, 1]
    straight = dense_crf(probabilities, image)[..., order]
    np.testing.assert_allclose(dense_crf(probabilities[..., order], image), straight, atol=1e-5)


def test_a_speck_goes_and_an_edge_of_the_image_holds():
    image = np.where(np.arange(24)[:, None] < 12, 100.0, 900.0) * np.ones((24, 24))
    labels = (image > 500).astype(int)
    wrong = labels.copy()
    wrong[5, 5], wrong[18, 18] = 1, 0
    probabilities = np.where(np.eye(2)[wrong] > 0, 0.7, 0.3)
    np.testing.assert_array_equal(dense_crf(probabilities, image).argmax(-1), labels)


@pytest.fixture(scope="module")
def noisy():
    """T1-w slice of the phantom, its attenuation classes, and a softmax with patchy errors."""
    head = phantom.head(2, shape=(128, 128, 16))
    image = phantom.mr_image(head, "T1w", noise=0.02)[0][..., 10]
    truth = phantom.attenuation_labels(head)[..., 10]
    errors = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(128, 128, 3)), (1.5, 1.5, 0))
    scores = 2.5 * np.eye(3)[truth] + errors / errors.std()
    return image, truth, np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


@pytest.mark.parametrize(("weights", "gain"), [((4.0, 3.0), 0.02), ((2.0, 1.0), 0.04)])
def test_a_noisy_softmax_of_the_phantom_gets_better_in_every_class(noisy, weights, gain):
    image, truth, softmax = noisy
    refined = dense_crf(softmax, image, weights=weights)
    np.testing.assert_allclose(refined.sum(-1), 1, atol=1e-5)
    for label in range(3):
        before = dice(truth == label, softmax.argmax(-1) == label)
        after = dice(truth == label, refined.argmax(-1) == label)
        assert after > before + gain, (label, before, after)


def test_by_the_bare_formula_the_skull_disappears(noisy):
    """Why the kernels are normalised: hundreds of neighbours outvote any network."""
    image, truth, softmax = noisy
    bare = dense_crf(softmax, image, normalization="none", iterations=2)
    assert dice(truth == 2, softmax.argmax(-1) == 2) > 0.6
    assert dice(truth == 2, bare.argmax(-1) == 2) < 0.1


def test_a_volume_is_its_slices():
    rng = np.random.default_rng(0)
    probabilities, image = rng.dirichlet([1, 1], (5, 6, 3)), rng.normal(size=(5, 6, 3))
    along_y = dense_crf_volume(probabilities, image, slice_axis=1, iterations=2)
    np.testing.assert_array_equal(along_y[:, 4], dense_crf(probabilities[:, 4], image[:, 4], iterations=2))
    assert along_y.shape == probabilities.shape


GOOD = np.full((3, 3, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dense_crf(GOOD, np.ones((3, 4))), "lie on the pixels"),
        (lambda: dense_crf(GOOD, np.ones((3, 3, 2))), "lie on the pixels"),
        (lambda: dense_crf(-GOOD, np.ones((3, 3))), "from 0"),
        (lambda: dense_crf(GOOD, np.full((3, 3), np.nan)), "finite"),
        (lambda: dense_crf(GOOD, np.ones((3, 3)), smooth_px=0), "above 0"),
        (lambda: dense_crf(GOOD, np.ones((3, 3)), weights=(-1, 1)), "from 0"),
        (lambda: dense_crf(GOOD, np.ones((3, 3)), normalization="sym"), "symmetric, none"),
        (lambda: dense_crf_volume(GOOD, np.ones((3, 3))), "x, y, z, classes"),
        (lambda: dense_crf_volume(GOOD[None], np.ones((1, 3, 3)), slice_axis=4), "0, 1, 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
