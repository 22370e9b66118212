"""se_unet3d beside the paper: stages, sizes, counts, and that it can learn."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.mecheter2023 import se_unet3d

#: section 3.3 and Figure 1 at the paper's patch, 32 filters: last layer of each block -> its features.
SHAPES = {
    "encoder1_recalibration_spatial": (128, 128, 48, 32),
    "encoder1_pool": (64, 64, 24, 32),
    "encoder2_recalibration_spatial": (64, 64, 24, 64),
    "encoder2_pool": (32, 32, 12, 64),
    "encoder3_recalibration_spatial": (32, 32, 12, 128),
    "encoder3_pool": (16, 16, 6, 128),
    "bottleneck_recalibration_spatial": (16, 16, 6, 256),
    "decoder3_upsample": (32, 32, 12, 128),
    "decoder3_skip": (32, 32, 12, 256),
    "decoder3_recalibration_spatial": (32, 32, 12, 128),
    "decoder2_upsample": (64, 64, 24, 64),
    "decoder2_recalibration_spatial": (64, 64, 24, 64),
    "decoder1_upsample": (128, 128, 48, 32),
    "decoder1_skip": (128, 128, 48, 64),
    "decoder1_recalibration_spatial": (128, 128, 48, 32),
    "head_logits": (128, 128, 48, 3),
    "head_probabilities": (128, 128, 48, 3),
}


@pytest.fixture(scope="module")
def paper_network():
    return se_unet3d((128, 128, 48, 1))


def test_features_have_the_paper_s_sizes_layer_by_layer(paper_network):
    assert {name: paper_network.get_layer(name).output.shape[1:] for name in SHAPES} == SHAPES


def test_there_are_21_convolutions_7_recalibrations_3_poolings_3_deconvolutions_and_a_head(paper_network):
    kinds = [type(layer).__name__ for layer in paper_network.layers]
    counts = {kind: kinds.count(kind) for kind in ("Conv3D", "BatchNormalization", "ChannelRecalibration",
              "SpatialRecalibration", "MaxPooling3D", "Conv3DTranspose")}  # fmt: skip
    assert counts == {
        "Conv3D": 22, "BatchNormalization": 21, "ChannelRecalibration": 7, "SpatialRecalibration": 7,
        "MaxPooling3D": 3, "Conv3DTranspose": 3,
    }  # fmt: skip


def test_encoder_and_bottleneck_have_5957684_parameters(paper_network):
    encoder = [w for w in paper_network.weights if w.path.startswith(("encoder", "bottleneck"))]
    assert sum(int(np.prod(w.shape)) for w in encoder) == 5_957_684


def test_sixteen_filters_give_2165866_parameters():
    assert se_unet3d((None, None, None, 1), filters=16).count_params() == 2_165_866


@pytest.mark.parametrize("recalibration", ["sequential", "add", "max"])
def test_the_recalibrations_that_keep_the_channels_need_the_same_parameters(recalibration):
    # 3-D and 2-D differ by the kernels alone; add and max by no parameter at all
    model = se_unet3d((None, None, None, 1), recalibration=recalibration)
    assert model.count_params() == 8_649_930


def test_the_channels_are_recalibrated_before_the_voxels(paper_network):
    channel = paper_network.get_layer("encoder1_recalibration_channel")
    assert paper_network.get_layer("encoder1_recalibration_spatial").input is channel.output


def test_the_skip_leaves_after_the_recalibration_and_before_the_pooling(paper_network):
    skip = paper_network.get_layer("encoder2_recalibration_spatial").output
    assert paper_network.get_layer("decoder2_skip").input[1] is skip
    assert paper_network.get_layer("encoder2_pool").input is skip


def test_kernels_start_from_glorot_uniform_and_biases_from_zero(paper_network):
    for layer in paper_network.layers:
        if isinstance(layer, keras.layers.Conv3D):
            kernel, bias = layer.get_weights()
            fan = np.prod(kernel.shape[:3]) * (kernel.shape[3] + kernel.shape[4])
            limit = np.sqrt(6 / fan) * (1 + 1e-6)  # float32
            assert np.abs(kernel).max() <= limit and not bias.any()
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)


def test_weight_decay_covers_the_25_convolution_kernels_and_no_bias():
    model = se_unet3d((16, 16, 8, 1), filters=2, weight_decay=5e-4)
    # 21 convolutions, 3 deconvolutions, 1 head
    assert len(model.losses) == 25
    kernels = [w for w in model.trainable_weights if w.name == "kernel" and len(w.shape) == 5]
    expected = 5e-4 * sum(float(np.sum(keras.ops.convert_to_numpy(w) ** 2)) for w in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-5)


def test_an_unknown_recalibration_lists_the_known_ones():
    with pytest.raises(InputError, match="sequential, add, max, concat.*Did you mean 'sequential'"):
        se_unet3d((16, 16, 8, 1), recalibration="sequentiel")


def test_probabilities_of_a_voxel_sum_to_one():
    model = se_unet3d((16, 16, 8, 1), filters=2)
    p = np.asarray(model(np.random.default_rng(0).normal(size=(1, 16, 16, 8, 1)).astype("float32")))
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-6)
