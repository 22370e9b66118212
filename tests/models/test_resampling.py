"""Pooling with indices, unpooling, linear upsampling: by hand, against TensorFlow's own and loops."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mrseg.models.resampling import (
    LinearUpsampling,
    MaxPoolingWithIndices,
    MaxUnpooling,
    max_pool_with_indices,
    max_unpool,
    upsample_linear,
)


def array(x):
    return keras.ops.convert_to_numpy(x)


def test_a_window_of_each_kind_worked_out_by_hand():
    #   1 2 | 5 5        maxima  4 5     indices  3 0 (of equal ones the first)
    #   3 4 | 5 5               -1 9              2 1
    #  -2 -3| 0 9
    #  -1 -4| 7 8
    image = np.array([[1, 2, 5, 5], [3, 4, 5, 5], [-2, -3, 0, 9], [-1, -4, 7, 8]], "float32")
    pooled, indices = max_pool_with_indices(image[None, :, :, None])
    assert array(pooled)[0, ..., 0].tolist() == [[4, 5], [-1, 9]]
    assert array(indices)[0, ..., 0].tolist() == [[3, 0], [2, 1]]
    back = array(max_unpool(pooled, indices))[0, ..., 0]
    assert back.tolist() == [[0, 0, 5, 0], [0, 4, 0, 0], [0, 0, 0, 9], [-1, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_maxima_indices_and_unpooling_are_bit_equal_to_tensorflow_s_own(kind):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shape = (3, 8, 12, 5)
    x = rng.normal(size=shape) if kind == "normal" else rng.integers(0, 2, size=shape)
    x = x.astype("float32")
    pooled, flat = tf.nn.max_pool_with_argmax(x, 2, 2, "VALID", include_batch_in_index=False)
    ours, indices = map(array, max_pool_with_indices(x))
    np.testing.assert_array_equal(ours, pooled)
    # flat index of TensorFlow: (row * width + column) * channels + channel
    row, column, channel = np.meshgrid(*map(np.arange, ours.shape[1:]), indexing="ij")
    expected = ((2 * row + indices // 2) * shape[2] + 2 * column + indices % 2) * shape[3] + channel
    np.testing.assert_array_equal(expected, flat)
    scattered = np.zeros((shape[0], shape[1] * shape[2] * shape[3]), "float32")
    for n in range(shape[0]):
        scattered[n, np.asarray(flat[n]).ravel()] = np.asarray(pooled[n]).ravel()
    np.testing.assert_array_equal(array(max_unpool(ours, indices)), scattered.reshape(shape))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.sampled_from([2, 3]))
def test_unpooling_puts_every_maximum_back_where_it_was(seed, rank):
    x = np.random.default_rng(seed).normal(size=(2, *(4, 6, 2)[:rank], 3)).astype("float32")
    pooled, indices = max_pool_with_indices(x)
    back = array(max_unpool(pooled, indices))
    held = back != 0
    np.testing.assert_array_equal(back[held], x[held])
    assert held.sum() == array(pooled).size
    again, same = max_pool_with_indices(np.where(held, x + 10, 0).astype("float32"))
    np.testing.assert_array_equal(array(same), array(indices))


def test_the_gradient_reaches_the_maxima_alone_and_through_both_steps():
    import tensorflow as tf

    x = tf.constant(np.random.default_rng(1).normal(size=(1, 4, 4, 4, 2)), tf.float32)
    weight = np.random.default_rng(2).normal(size=x.shape).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled, indices = max_pool_with_indices(x)
        loss = tf.reduce_sum(weight * max_unpool(pooled, indices))
    held = array(max_unpool(*max_pool_with_indices(x))) != 0
    np.testing.assert_allclose(tape.gradient(loss, x), np.where(held, weight, 0), rtol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_linear_upsampling_is_keras_bilinear_upsampling_in_2d(factor):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 2)).astype("float32")
    bilinear = keras.layers.UpSampling2D(factor, interpolation="bilinear")(x)
    np.testing.assert_allclose(array(upsample_linear(x, factor)), array(bilinear), atol=1e-5)


def test_linear_upsampling_of_a_volume_is_interpolation_at_half_voxel_centres():
    x = np.random.default_rng(0).normal(size=(4, 3, 2))
    ours = array(upsample_linear(x[None, ..., None].astype("float32"), 2))[0, ..., 0]
    where = np.meshgrid(*[(np.arange(2 * n) + 0.5) / 2 - 0.5 for n in x.shape], indexing="ij")
    np.testing.assert_allclose(ours, ndimage.map_coordinates(x, where, order=1, mode="nearest"), atol=1e-6)


def test_linear_upsampling_is_the_fixed_bilinear_deconvolution_away_from_the_border():
    # Caffe's bilinear filler: kernel 2f, weight (1 - |i / f - c|), c = (2f - 1) / 2f, per axis
    factor, n = 4, 5
    x = np.random.default_rng(0).normal(size=n)
    profile = 1 - np.abs(np.arange(2 * factor) / factor - (2 * factor - 1) / (2 * factor))
    full = np.zeros(factor * (n + 1))
    for i, value in enumerate(x):
        full[factor * i : factor * i + 2 * factor] += value * profile
    cropped = full[factor // 2 : factor // 2 + factor * n]
    line = np.tile(x[None, :, None, None], (1, 1, 1, 1)).astype("float32")
    ours = array(upsample_linear(np.repeat(line, 2, axis=2), factor))[0, :, 0, 0]
    inside = slice(factor, -factor)
    np.testing.assert_allclose(ours[inside], cropped[inside], atol=1e-6)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_layers_give_what_the_functions_give_and_know_their_shapes(rank, policy):
    image = keras.Input((None,) * rank + (2,))
    pooled, indices = MaxPoolingWithIndices(name="pool", dtype=policy)(image)
    back = MaxUnpooling(name="unpool", dtype=policy)([pooled, indices])
    model = keras.Model(image, [pooled, indices, back, LinearUpsampling(2, dtype=policy)(pooled)])
    again = keras.Model.from_config(model.get_config())
    x = np.random.default_rng(0).normal(size=(1, *(4, 8, 6)[:rank], 2)).astype("float32")
    for one, other in zip(model(x), again(x), strict=True):
        np.testing.assert_array_equal(array(one), array(other))
    fixed = keras.Input((*(4, 8, 6)[:rank], 2))
    outputs = model(fixed)
    assert [tuple(o.shape) for o in outputs] == [(None, *o.shape[1:]) for o in model(x)]
    if policy == "float32":
        np.testing.assert_array_equal(model(x)[2], max_unpool(*max_pool_with_indices(x)))
