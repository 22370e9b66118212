from __future__ import annotations

import logging
import tracemalloc

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data.patches import Sampling
from mrseg.forward import compile_forward
from mrseg.inference import predict_probabilities, predict_slabs, slab_axis, slab_planes, working_mb
from mrseg.passes import Inference

SIZE = st.integers(1, 9)


def two_channels(batch):
    """A network that gives its input back, and one minus it."""
    return np.concatenate([batch, 1 - batch], -1)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(SIZE, SIZE, SIZE),
    patch=st.tuples(SIZE, SIZE, SIZE).filter(lambda p: sum(n == 1 for n in p) <= 1),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    blending=st.sampled_from(["gaussian", "constant"]),
    batch_size=st.integers(1, 3),
)
def test_an_identity_network_gives_the_volume_back(shape, patch, overlap, blending, batch_size):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    out = predict_probabilities(
        two_channels,
        image,
        Sampling(patch, 0.0),
        num_classes=2,
        inference=Inference(overlap=overlap, batch_size=batch_size, blending=blending),
    )
    assert out.shape == (*shape, 2) and out.dtype == np.float32
    np.testing.assert_allclose(out[..., 0], image, atol=1e-5)


def test_constant_blending_is_the_mean_of_the_patches():
    """Patches [0 1 2 3] and [2 3 4 5] of one row; a network that answers with the patch's first value."""
    image = np.array([0.1, 0, 0.5, 0, 0, 0], np.float32).reshape(6, 1, 1)
    image = np.broadcast_to(image, (6, 2, 2))
    out = predict_probabilities(
        first_value, image, Sampling((4, 2, 2), 0.5), num_classes=1, inference=Inference(blending="constant")
    )
    np.testing.assert_allclose(out[:, 0, 0, 0], [0.1, 0.1, 0.3, 0.3, 0.5, 0.5], rtol=1e-6)


def first_value(batch):
    return np.broadcast_to(batch[:, :1, :1, :1], batch.shape)


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", [(11, 6, 7), (6, 11, 7), (7, 6, 11)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_blending_is_that_of_a_naive_sum_over_patches(blending, shape, batch_size):
    """Written out: sum of weight times answer over sum of weight, with the three-dimensional weight."""
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    sampling = Sampling((4, 5, 4), 0.5)

    def grid(size, patch, stride):
        return [*range(0, size - patch, stride), size - patch]

    axis = [np.ones(n) for n in (4, 5, 4)]
    if blending == "gaussian":
        axis = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in (4, 5, 4)]
    weight = np.einsum("i,j,k->ijk", *axis)
    total, weights = np.zeros(shape), np.zeros(shape)
    for x in grid(shape[0], 4, 2):
        for y in grid(shape[1], 5, 2):  # round(2.5) is 2
            for z in grid(shape[2], 4, 2):
                box = (slice(x, x + 4), slice(y, y + 5), slice(z, z + 4))
                total[box] += weight * image[x, y, z]
                weights[box] += weight
    out = predict_probabilities(
        first_value,
        image,
        sampling,
        num_classes=1,
        inference=Inference(blending=blending, batch_size=batch_size),
    )
    np.testing.assert_allclose(out[..., 0], total / weights, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(SIZE, SIZE, SIZE),
    patch=st.sampled_from([(4, 4, 4), (5, 1, 5), (5, 5, 1), (2, 7, 3)]),
    overlap=st.sampled_from([0.0, 0.5, 0.8]),
    batch_size=st.integers(1, 4),
)
def test_slabs_hold_every_plane_once_and_are_no_thicker_than_said(shape, patch, overlap, batch_size):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    sampling, inference = Sampling(patch, overlap), Inference(batch_size=batch_size)
    at = 0
    for slab in predict_slabs(two_channels, image, sampling, num_classes=2, inference=inference):
        planes = slab.values.shape[slab.axis]
        assert slab.first == at and 0 < planes <= slab_planes(shape, sampling)
        np.testing.assert_allclose(
            slab.values[..., 0], np.take(image, range(at, at + planes), slab.axis), atol=1e-5
        )
        at += planes
    assert at == shape[slab.axis]


def test_slabs_go_along_the_axis_in_which_a_patch_is_thinnest():
    assert slab_axis((256, 128, 256), (256, 1, 256)) == 1
    assert slab_axis((256, 192, 48), (128, 128, 48)) == 0
    assert slab_axis((256, 256, 48), (128, 128, 48)) == 1  # of equals the last
    assert slab_axis((8, 8, 8), (8, 8, 8)) == 2


@pytest.mark.parametrize(
    ("shape", "patch", "inference"),
    [
        ((96, 80, 64), (16, 32, 32), Inference()),
        ((96, 80, 64), (96, 1, 64), Inference(batch_size=8)),
        ((64, 80, 96), (32, 32, 16), Inference(mirror_axes=(0, 1), uncertainty="mirror")),
        ((20, 80, 80), (32, 32, 32), Inference(overlap=0.75, mirror_axes=(0,))),
    ],
)
def test_blending_takes_no_more_memory_than_stated_and_not_much_less(shape, patch, inference):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    sampling = Sampling(patch)
    stated = working_mb(shape, sampling, 2, inference)
    tracemalloc.start()
    for _ in predict_slabs(two_channels, image, sampling, num_classes=2, inference=inference):
        pass
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert stated / 3 < peak < stated


def test_the_memory_of_blending_does_not_grow_with_the_length_of_the_volume():
    sampling = Sampling((64, 64, 64))
    short, long = (working_mb((512, 512, n), sampling, 10) for n in (513, 4096))
    assert long == short
    everything_mb = 4 * 512**3 * 10 / 1e6
    assert working_mb((512, 512, 512), sampling, 10) < everything_mb / 3


def test_a_volume_smaller_than_a_patch_is_padded_and_this_is_logged(caplog):
    image = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    with caplog.at_level(logging.INFO, logger="mrseg.inference"):
        out = predict_probabilities(two_channels, image, Sampling((8, 8, 8)), num_classes=2)
    np.testing.assert_allclose(out[..., 0], image, atol=1e-6)
    assert "(3, 4, 5)" in caplog.text and "(8, 8, 8)" in caplog.text


def test_nan_from_a_network_is_an_error_and_not_class_zero():
    def broken(batch):
        return np.full((*batch.shape[:-1], 2), np.nan, np.float32)

    with pytest.raises(InputError, match="64 voxels with NaN"):
        predict_probabilities(broken, np.zeros((4, 4, 4), np.float32), Sampling((4, 4, 4)), num_classes=2)


def test_the_compiled_pass_is_traced_once_for_volumes_of_all_sizes():
    traces = []

    @keras.saving.register_keras_serializable("tests")
    class Count(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    image = keras.Input((4, 4, 1))
    model = keras.Model(image, Count()(image))
    traces.clear()
    sampling = Sampling((4, 1, 4), 0.5)
    forward = compile_forward(model, (2, *sampling.input_shape))
    for shape in [(4, 3, 4), (9, 2, 5), (2, 2, 2)]:
        predict_probabilities(forward, np.zeros(shape, np.float32), sampling, num_classes=1)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda b: np.full((*b.shape[:-1], 2), 1.5, np.float32), "values from 1.5 to 1.5"),
        (lambda b: np.full((*b.shape[:-1], 2), -0.5, np.float32), "values from -0.5"),
        (lambda b: np.full((*b.shape[:-1], 2), np.inf, np.float32), "64 voxels with NaN or infinity"),
        (lambda b: np.zeros((*b.shape[:-1], 3), np.float32), r"\(2, 4, 4, 4, 3\)"),
        (lambda b: np.zeros((2, 2, 2, 2, 2), np.float32), r"Wanted: \(2, 4, 4, 4, 2\)"),
    ],
)
def test_answers_that_are_no_probabilities_of_the_patch_are_refused(answer, words):
    with pytest.raises(InputError, match=words):
        predict_probabilities(answer, np.zeros((4, 4, 4), np.float32), Sampling((4, 4, 4)), num_classes=2)
