"""Groups are the stages of the paper's figure, read off the layer names."""

from __future__ import annotations

import keras
import pytest

from mrseg._checks import InputError
from mrseg.models.builders import NETWORKS
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2023 import se_unet3d
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


def test_groups_print_as_a_table_with_a_total(network):
    lines = str(groups(network)).split("\n")
    assert lines[0].split() == ["group", "convs", "parameters", "trainable", "state"]
    assert lines[1].split()[0] == "encoder1" and lines[-1].split()[:2] == ["total", "21"]
    assert lines[-1].split()[2] == f"{network.count_params():,}"
