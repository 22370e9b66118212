"""segnet beside the paper: 26 convolutions, sizes, where dropout and unpooling stand."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.mecheter2020 import segnet
from mrseg.models.resampling import MaxPoolingWithIndices, MaxUnpooling
from mrseg.transfer.freezing import train_last
from mrseg.transfer.grouping import groups

#: Last layer of every block -> its features, at the paper's image.
SHAPES = {
    "encoder1_conv2_relu": (256, 256, 64),
    "encoder2_conv2_relu": (128, 128, 128),
    "encoder3_conv3_relu": (64, 64, 256),
    "encoder4_conv3_relu": (32, 32, 512),
    "encoder5_conv3_relu": (16, 16, 512),
    "bottleneck_dropout": (8, 8, 512),
    "decoder5_unpool": (16, 16, 512),
    "decoder5_conv3_relu": (16, 16, 512),
    "decoder4_conv3_relu": (32, 32, 256),
    "decoder3_conv3_relu": (64, 64, 128),
    "decoder2_conv2_relu": (128, 128, 64),
    "decoder1_unpool": (256, 256, 64),
    "decoder1_conv1_relu": (256, 256, 64),
    "head_logits": (256, 256, 3),
}
#: Convolution parameters of each stage, and those of the last k convolutions with their norms.
STAGE_KERNELS = {
    "encoder1": 640 + 36_928,
    "encoder2": 73_856 + 147_584,
    "encoder3": 295_168 + 2 * 590_080,
    "encoder4": 1_180_160 + 2 * 2_359_808,
    "encoder5": 3 * 2_359_808,
    "decoder5": 3 * 2_359_808,
    "decoder4": 2 * 2_359_808 + 1_179_904,
    "decoder3": 2 * 590_080 + 295_040,
    "decoder2": 147_584 + 73_792,
    "decoder1": 36_928,
    "head": 1_731,
}
LAST = {
    2: (38_659, 128),
    4: (260_035, 512),
    6: (1_145_155, 1_280),
    8: (2_915_139, 2_304),
    13: (14_714_179, 7_424),
    "decoder": (14_714_179, 7_424),
}


@pytest.fixture(scope="module")
def paper_network():
    return segnet((256, 256, 1))


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def test_features_have_the_paper_s_sizes_layer_by_layer(paper_network):
    assert {name: paper_network.get_layer(name).output.shape[1:] for name in SHAPES} == SHAPES


def test_there_are_13_and_13_convolutions_of_size_3_five_poolings_and_five_unpoolings(paper_network):
    found = convolutions(paper_network)
    assert len(found) == 26 and {layer.kernel_size for layer in found} == {(3, 3)}
    assert sum(layer.name.startswith("encoder") for layer in found) == 13
    kinds = [type(layer) for layer in paper_network.layers]
    assert (kinds.count(MaxPoolingWithIndices), kinds.count(MaxUnpooling)) == (5, 5)


@pytest.mark.parametrize("stage", STAGE_KERNELS)
def test_convolution_parameters_stage_by_stage(paper_network, stage):
    found = [layer for layer in convolutions(paper_network) if layer.name.startswith(stage)]
    assert sum(layer.count_params() for layer in found) == STAGE_KERNELS[stage]


@pytest.mark.parametrize("convs", LAST)
def test_the_rows_of_table_iii_train_these_parameters(paper_network, convs):
    train_last(paper_network, convs)
    kernels = sum(
        int(np.prod(w.shape)) for w in paper_network.trainable_weights if w.name in ("kernel", "bias")
    )
    assert (kernels, groups(paper_network).trainable - kernels) == LAST[convs]


def test_every_unpooling_uses_the_indices_of_its_own_stage(paper_network):
    for level in range(1, 6):
        indices = paper_network.get_layer(f"decoder{level}_unpool").input[1]
        assert indices is paper_network.get_layer(f"encoder{level}_pool").output[1]


def test_kernels_start_from_he_normal(paper_network):
    assert all(
        isinstance(c.kernel_initializer, keras.initializers.HeNormal) for c in convolutions(paper_network)
    )
    kernel = paper_network.get_layer("encoder5_conv1").get_weights()[0]
    # 2.4 million samples: the deviation is known to 0.1 %
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.005)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("bottleneck", {"bottleneck"}),
        ("head", {"decoder1"}),
        ("bayesian", {"encoder3", "encoder4", "bottleneck", "decoder5", "decoder4", "decoder3"}),
    ],
)
def test_dropout_stands_where_it_is_said_to_and_drops_what_it_is_said_to(where, names):
    model = segnet((32, 32, 1), filters=2, dropout=0.4, dropout_at=where)
    found = {layer.name: layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}
    assert found == {f"{name}_dropout": 0.4 for name in names}


def test_plain_upsampling_repeats_and_needs_no_indices():
    model = segnet((32, 32, 1), filters=2, unpool="upsample")
    assert not any(isinstance(layer, MaxUnpooling) for layer in model.layers)
    assert type(model.get_layer("decoder3_unpool")).__name__ == "UpSampling2D"


def test_the_1x1_head_keeps_a_13th_convolution_of_the_stage_s_width():
    model = segnet((32, 32, 1), filters=2, head="1x1")
    assert model.get_layer("head_logits").kernel_size == (1, 1)
    assert model.get_layer("decoder1_conv2").filters == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unpool": "index"}, "indices, upsample.*Did you mean 'indices'"),
        ({"dropout": 1.0}, r"dropout is the fraction dropped, in \[0, 1\).*1.0"),
        ({"dropout_at": "everywhere"}, "bottleneck, bayesian, head"),
        ({"head": "5x5"}, "3x3, 1x1"),
    ],
)
def test_unknown_options_list_the_known_ones(options, words):
    with pytest.raises(InputError, match=words):
        segnet((32, 32, 1), **options)
