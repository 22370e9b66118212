from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data.patches import Sampling
from mrseg.inference import compile_forward, predict_probabilities

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
        two_channels, image, Sampling(patch, overlap), num_classes=2, batch_size=batch_size, blending=blending
    )
    assert out.shape == (*shape, 2) and out.dtype == np.float32
    np.testing.assert_allclose(out[..., 0], image, atol=1e-5)


def test_constant_blending_is_the_mean_of_the_patches():
    """Patches [0 1 2 3] and [2 3 4 5] of one row; a network that answers with the patch's first value."""
    image = np.array([1.0, 0, 5.0, 0, 0, 0], np.float32).reshape(6, 1, 1)
    image = np.broadcast_to(image, (6, 2, 2))

    def first(batch):
        return np.broadcast_to(batch[:, :1, :1, :1], batch.shape)

    out = predict_probabilities(first, image, Sampling((4, 2, 2), 0.5), num_classes=1, blending="constant")
    np.testing.assert_allclose(out[:, 0, 0, 0], [1, 1, 3, 3, 5, 5])


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


def test_an_unknown_blending_is_refused():
    with pytest.raises(InputError, match="gaussian, constant"):
        predict_probabilities(
            two_channels, np.zeros((4, 4, 4)), Sampling((4, 4, 4)), num_classes=2, blending="linear"
        )
