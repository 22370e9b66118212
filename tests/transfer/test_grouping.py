"""Groups are the stages of the paper's figure, read off the layer names."""

from __future__ import annotations

import keras
import pytest

from mrseg._checks import InputError
from mrseg.models.builders import NETWORKS
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.models.quiet import set_quiet
from mrseg.transfer.grouping import counts_as_conv, group_name, groups


@pytest.fixture(scope="module")
def network():
    return se_unet3d((16, 16, 8, 1), filters=2)


def test_groups_run_from_the_first_encoder_to_the_head(network):
    assert groups(network).names == (
        "encoder1", "encoder2", "encoder3", "bottleneck", "decoder3", "decoder2", "decoder1", "head",
    )  # fmt: skip


def test_se_unet3d_has_three_convolutions_in_each_group_and_none_in_the_head(network):
    assert [len(group.convs) for group in groups(network)] == [3] * 7 + [0]
    assert groups(network)["decoder2"].convs == ("decoder2_conv1", "decoder2_conv2", "decoder2_conv3")


def test_a_group_s_parameters_worked_out_by_hand():
    # unet with 2 filters on 1 channel, encoder1: kernels 9*1*2 + 9*2*2, no bias; two norms of 4 * 2 each,
    # half of it statistics. head: 2 * 4 + 4.
    table = groups(unet((16, 16, 1), filters=2))
    assert (table["encoder1"].parameters, table["encoder1"].trainable) == (18 + 36 + 16, 18 + 36 + 8)
    assert (table["head"].parameters, table["head"].trainable) == (12, 12)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_groups_of_every_network_hold_all_parameters_once(network):
    sizes = (network.multiple,) * (len(network.input_shape) - 1)
    model = network.build((*sizes, network.input_shape[-1]), filters=2)
    table = groups(model)
    assert table.parameters == model.count_params()
    named = [layer for group in table for layer in group.layers]
    assert sorted(named) == sorted(layer.name for layer in model.layers if layer.name != "image")


def test_the_attention_and_the_deconvolution_belong_to_the_stage_they_serve(network):
    members = groups(network)["decoder3"].layers
    assert "decoder3_upsample" in members and "decoder3_recalibration_channel" in members


@pytest.mark.parametrize(
    ("layer_name", "expected"),
    [
        ("encoder1_conv2", "encoder1"),
        ("encoder12_conv1_bn", "encoder12"),
        ("bottleneck_conv1", "bottleneck"),
        ("decoder3_upsample", "decoder3"),
        ("stem_conv1", "stem"),
        ("head_logits", "head"),
        ("head", "head"),
        ("adapted_encoder1_conv1", "adapted_encoder1"),
        ("image", None),
        ("header_conv", None),
        ("encoder_conv1", None),
    ],
)
def test_group_name_is_the_stage_before_the_first_underscore(layer_name, expected):
    assert group_name(layer_name) == expected


def test_only_convolutions_with_a_kernel_larger_than_one_count():
    kinds = keras.layers
    assert counts_as_conv(kinds.Conv3D(2, 3)) and counts_as_conv(kinds.SeparableConv2D(2, 3))
    assert counts_as_conv(kinds.Conv2D(2, (1, 3)))
    assert not counts_as_conv(kinds.Conv3D(2, 1)) and not counts_as_conv(kinds.Conv2DTranspose(2, 2))


@pytest.mark.parametrize(
    ("build", "first", "last", "count"),
    [
        # blocks and convolutions as the families' papers have them: 13 in VGG16, 16 blocks in ResNet50
        ("VGG16", "encoder1", "encoder5", 13),
        ("ResNet50", "stem", "encoder4", 1 + 16),
        ("MobileNet", "stem", "encoder13", 1 + 13),
        ("EfficientNetB0", "stem", "bottleneck", 1 + 16),
    ],
)
def test_backbones_of_keras_applications_have_groups_too(build, first, last, count):
    model = getattr(keras.applications, build)(weights=None, input_shape=(32, 32, 3), include_top=False)
    table = groups(model)
    assert (table.names[0], table.names[-1]) == (first, last)
    assert sum(len(group.convs) for group in table) == count
    assert table.parameters == model.count_params()


@pytest.mark.parametrize(
    "stages",
    [
        {"block1_conv1": "encoder1", "block5_conv3": "encoder5", "fc2": "head", "predictions": "head"},
        {"conv1_conv": "stem", "conv2_block1_1_conv": "encoder1", "conv5_block3_out": "encoder4"},
        {"conv1_conv": "stem", "pool2_conv": "encoder1", "pool4_conv": "encoder3", "bn": "bottleneck"},
        {"stem_conv": "stem", "block1a_dwconv": "encoder1", "block7a_bn": "encoder7", "top_bn": "bottleneck"},
        {"conv1": "stem", "conv_dw_1": "encoder1", "conv_pw_13": "encoder13", "conv_preds": "head"},
        {
            "Conv1": "stem",
            "expanded_conv_project": "encoder1",
            "block_1_expand": "encoder2",
            "block_16_project": "encoder17",
            "Conv_1": "bottleneck",
            "predictions": "head",
        },
        {
            "convnext_tiny_stem": "stem",
            "convnext_tiny_stage_0_block_0_conv": "encoder1",
            "convnext_tiny_downsampling_block_0": "encoder2",
            "convnext_tiny_stage_3_block_2_conv": "encoder4",
            "layer_normalization": "bottleneck",
            "convnext_tiny_head_dense": "head",
        },
    ],
    ids=["VGG", "ResNet", "DenseNet", "EfficientNet", "MobileNet", "MobileNetV2", "ConvNeXt"],
)
def test_the_stages_of_each_family_are_numbered_from_one(stages):
    x = image = keras.Input((4, 4, 1), name="image")
    for name in stages:
        x = keras.layers.Conv2D(1, 1, name=name)(x)
    table = groups(keras.Model(image, x))
    assert {layer: group.name for group in table for layer in group.layers} == stages
    assert list(table.names) == list(dict.fromkeys(stages.values()))


def test_the_classifier_of_a_backbone_is_its_head():
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3))
    assert {"fc1", "fc2", "predictions"} <= set(groups(model)["head"].layers)


def test_adapted_encoders_come_first_and_in_the_order_of_their_number():
    image = keras.Input((4, 4, 1), name="image")
    names = ["encoder1", "adapted2_encoder1", "adapted_encoder1", "head", "adapted10_encoder1"]
    outputs = [keras.layers.Conv2D(1, 1, name=f"{name}_conv1")(image) for name in names]
    assert groups(keras.Model(image, outputs)).names == (
        "adapted_encoder1", "adapted2_encoder1", "adapted10_encoder1", "encoder1", "head",
    )  # fmt: skip


def test_an_unknown_group_lists_the_groups(network):
    with pytest.raises(InputError, match="encoder1, encoder2, .*head.*Did you mean 'encoder3'"):
        groups(network)["encoder33"]


def test_a_layer_with_weights_and_no_stage_in_its_name_is_named():
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="mystery")(image), name="odd")
    with pytest.raises(InputError, match="encoder1_conv2.*layer 'mystery' of model 'odd'"):
        groups(model)


def test_what_is_no_network_is_refused():
    with pytest.raises(InputError, match="Received: str. Of a segmenter, pass segmenter.model"):
        groups("unet")


def test_states_of_groups_with_and_without_weights():
    x = image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.AveragePooling2D(2, name="encoder1_pool")(x)
    for name in ("bottleneck_conv1", "bottleneck_conv2", "head_logits"):
        x = keras.layers.Conv2D(1, 1, name=name)(x)
        x = keras.layers.Dropout(0.5, name=f"{name}_dropout")(x)
    model = keras.Model(image, x)
    assert [group.state for group in groups(model)] == ["trains", "trains", "trains"]
    for name in ("encoder1_pool", "bottleneck_conv1", "bottleneck_conv1_dropout", "head_logits"):
        model.get_layer(name).trainable = False
    set_quiet(model.get_layer("bottleneck_conv1_dropout"), True)
    table = groups(model)
    assert [group.state for group in table] == ["frozen", "partly", "frozen"]
    assert [group.dropout for group in table] == ["", "live", "live"]  # one of two is silent
    other = model.get_layer("bottleneck_conv2_dropout")
    other.trainable = False
    set_quiet(other, True)
    assert groups(model)["bottleneck"].dropout == "silent"
    assert (len(table), table.parameters, table.trainable) == (3, 3 * 2, 2)


def test_groups_print_as_a_table_with_a_total(network):
    lines = str(groups(network)).split("\n")
    assert lines[0].split() == ["group", "convs", "parameters", "trainable", "state"]
    assert lines[1].split()[0] == "encoder1" and lines[-1].split()[:2] == ["total", "21"]
    assert lines[-1].split()[2] == f"{network.count_params():,}"
    dropout = segnet((32, 32, 1), filters=2)
    assert str(groups(dropout)).split("\n")[0].split()[-1] == "dropout"
