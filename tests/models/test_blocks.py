"""What the builders share: the checks on their arguments, and the blocks by rank."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models import blocks


def block_output(step, shape, **options):
    x = keras.Input(shape)
    return keras.Model(x, step(x, name="stage", **options))


@pytest.mark.parametrize("sizes", [(8, 16), (8, 16, 4)], ids=["2-D", "3-D"])
def test_pool_halves_upsample_doubles_and_convolution_keeps_every_size(sizes):
    shape = (*sizes, 2)
    assert block_output(blocks.pool, shape).output_shape == (None, *(s // 2 for s in sizes), 2)
    assert block_output(blocks.upsample, shape, filters=3).output_shape == (None, *(2 * s for s in sizes), 3)
    assert block_output(blocks.convolution, shape, filters=3).output_shape == (None, *sizes, 3)


@pytest.mark.parametrize("mode", blocks.RECALIBRATIONS)
def test_recalibration_modes_combine_the_two_recalibrations_as_named(mode):
    model = block_output(blocks.recalibrate, (4, 4, 4), mode=mode)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype("float32")
    channel, spatial = model.get_layer("stage_channel"), model.get_layer("stage_spatial")
    expected = {
        "sequential": lambda: spatial(channel(x)),
        "add": lambda: channel(x) + spatial(x),
        "max": lambda: np.maximum(channel(x), spatial(x)),
        "concat": lambda: np.concatenate([channel(x), spatial(x)], axis=-1),
    }[mode]()
    np.testing.assert_allclose(model(x), expected, rtol=1e-6)


def test_convolutions_are_named_and_ordered_convolution_norm_relu():
    model = block_output(blocks.convolutions, (8, 8, 1), filters=2, depth=2)
    assert [layer.name for layer in model.layers[1:]] == [
        "stage_conv1", "stage_conv1_bn", "stage_conv1_relu",
        "stage_conv2", "stage_conv2_bn", "stage_conv2_relu",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(12, 16, 1), (16, 16, 6, 1)])
def test_sizes_that_do_not_divide_name_the_multiple_and_the_next_size_that_does(shape):
    with pytest.raises(InputError, match=r"multiples of 8.*Pad or crop to \(16, 16"):
        blocks.image_input(shape, 3, 4, multiple=8)


@pytest.mark.parametrize(
    "shape", [(16, 1), (16, 16, 16, 16, 1), (16, 16, None), (0, 16, 1), (16.0, 16, 1), 16, "16"]
)
def test_input_shapes_that_are_no_image_are_refused_with_an_example(shape):
    with pytest.raises(InputError, match=r"input_shape is .* Received: .*Write for example"):
        blocks.image_input(shape, 3, 4, multiple=8)


@pytest.mark.parametrize("num_classes", [1, 0, -3, 2.0, True, None])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(InputError, match="num_classes counts the background"):
        blocks.image_input((16, 16, 1), num_classes, 4, multiple=8)


@pytest.mark.parametrize("filters", [0, -1, 1.5])
def test_filters_that_are_no_positive_whole_number_are_refused(filters):
    with pytest.raises(InputError, match="filters"):
        blocks.image_input((16, 16, 1), 3, filters, multiple=8)


def test_float16_volumes_are_refused_on_a_cpu_with_a_policy_that_works():
    if keras.backend.backend() != "tensorflow" or keras.distribution.list_devices("gpu"):
        pytest.skip("float16 pooling of volumes is missing from TensorFlow on a CPU only")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(InputError, match="float16 pooling of volumes on a CPU.*mixed_bfloat16"):
            blocks.image_input((16, 16, 8, 1), 3, 4, multiple=8)
        blocks.image_input((16, 16, 1), 3, 4, multiple=8)
    finally:
        keras.config.set_dtype_policy(before)


def test_weight_decay_penalises_the_kernel_and_nothing_else():
    model = block_output(blocks.convolution, (4, 4, 1), filters=2, weight_decay=0.5)
    kernel, _ = model.get_weights()
    model.set_weights([kernel, np.array([3.0, -3.0])])
    np.testing.assert_allclose(float(sum(model.losses)), 0.5 * np.sum(kernel**2), rtol=1e-5)
