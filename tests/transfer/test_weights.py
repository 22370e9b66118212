"""Every tensor is accounted for; what does not fit is an error that names it and changes nothing."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.transfer.grouping import groups
from mrseg.transfer.weights import load_weights

#: of a unet: 14 convolutions of a kernel and a norm of four, three deconvolutions and a head of two each.
TENSORS = 14 * 5 + 3 * 2 + 2


@pytest.fixture
def t1_model():
    model = unet((16, 16, 1), filters=2)
    rng = np.random.default_rng(0)
    model.set_weights([np.abs(rng.normal(size=w.shape)) + 0.1 for w in model.get_weights()])
    return model


def saved(model, folder, kind):
    if kind == "model":
        return model
    path = folder / f"t1{kind}"
    model.save(path) if kind == ".keras" else model.save_weights(path)
    return path


def same(model, weights):
    return all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


@pytest.mark.parametrize("kind", ["model", ".keras", ".weights.h5"])
def test_all_tensors_arrive_from_every_kind_of_source(t1_model, tmp_path, kind):
    model = unet((16, 16, 1), filters=2)
    report = load_weights(model, saved(t1_model, tmp_path, kind))
    assert same(model, t1_model.get_weights())
    assert report.names("loaded") == tuple(w.path for w in model.weights)
    assert len(report.records) == TENSORS


def test_tensors_go_by_layer_name_and_not_by_order(t1_model, tmp_path):
    image = keras.Input((16, 16, 2), name="image")
    x = keras.layers.Conv2D(2, 3, padding="same", use_bias=False, name="encoder1_conv2")(image)
    model = keras.Model(image, x)
    load_weights(model, saved(t1_model, tmp_path, ".weights.h5"), allow=["unused"])
    np.testing.assert_array_equal(
        model.get_weights()[0], t1_model.get_layer("encoder1_conv2").get_weights()[0]
    )


def test_a_frozen_and_compiled_t1_file_loads_without_its_loss(t1_model, tmp_path):
    def private_loss(y_true, y_pred):
        return keras.ops.mean((y_true - y_pred) ** 2)

    t1_model.compile("adam", loss=private_loss)
    path = saved(t1_model, tmp_path, ".keras")
    model = unet((16, 16, 1), filters=2)
    load_weights(model, path)
    assert same(model, t1_model.get_weights())


@pytest.mark.parametrize("kind", ["model", ".keras", ".weights.h5"])
def test_another_number_of_classes_needs_leave_and_keeps_the_new_head(t1_model, tmp_path, kind):
    model = unet((16, 16, 1), num_classes=3, filters=2)
    before = model.get_weights()
    source = saved(t1_model, tmp_path, kind)
    with pytest.raises(InputError, match=r"head_logits/kernel.*4 classes.*unchanged.*allow=\['head'\]"):
        load_weights(model, source)
    assert same(model, before)
    report = load_weights(model, source, allow=["head"])
    assert report.names("skipped") == ("head_logits/kernel", "head_logits/bias")
    assert len(report.names("loaded")) == TENSORS - 2
    assert same(model, [*t1_model.get_weights()[:-2], *before[-2:]])


@pytest.mark.parametrize("channels", [2, 3])
def test_one_channel_to_many_gives_the_same_response_to_a_repeated_image(t1_model, channels):
    model = unet((16, 16, channels), filters=2)
    with pytest.raises(InputError, match=r"encoder1_conv1/kernel.*1 input channels.*allow=\['channels'\]"):
        load_weights(model, t1_model)
    report = load_weights(model, t1_model, allow=["channels"])
    assert report.names("adapted") == ("encoder1_conv1/kernel",)
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    np.testing.assert_allclose(model(np.repeat(x, channels, -1)), t1_model(x), atol=1e-5)


def test_many_channels_to_one_sum_the_kernels():
    rgb, grey = unet((16, 16, 3), filters=2), unet((16, 16, 1), filters=2)
    load_weights(grey, rgb, allow=["channels"])
    kernel = rgb.get_layer("encoder1_conv1").get_weights()[0]
    summed = grey.get_layer("encoder1_conv1").get_weights()[0]
    np.testing.assert_allclose(summed[:, :, 0], kernel.sum(axis=2), rtol=1e-6)


def test_two_channels_to_three_have_no_mean_and_are_refused_even_with_leave():
    with pytest.raises(InputError, match=r"encoder1_conv1/kernel \(3, 3, 3, 2\).*\(3, 3, 2, 2\)"):
        load_weights(unet((16, 16, 3), filters=2), unet((16, 16, 2), filters=2), allow=["channels"])


@pytest.mark.parametrize(
    ("how", "found", "wanted", "expected"),
    [
        ("mean", [6], 3, [2, 2, 2]),
        ("copy", [6], 3, [6, 6, 6]),
        ("zero", [6], 3, [6, 0, 0]),
        ("mean", [1, 2, 6], 1, [9]),
        ("copy", [1, 2, 6], 1, [1]),
        ("zero", [1, 2, 6], 1, [1]),
        ("zero", [1, 2], 3, [1, 2, 0]),
    ],
)
def test_each_way_from_channels_to_channels_by_hand(how, found, wanted, expected):
    def network(channels):
        tensor = keras.Input((4, 4, channels), name="image")
        x = keras.layers.Conv2D(1, 3, padding="same", name="encoder1_conv1")(tensor)
        return keras.Model(tensor, keras.layers.Conv2D(2, 1, name="head_logits")(x))

    source, model = network(len(found)), network(wanted)
    kernel = np.tile(np.array(found, "float32")[:, None], (3, 3, 1, 1))
    source.get_layer("encoder1_conv1").set_weights([kernel, np.zeros(1)])
    report = load_weights(model, source, allow=["channels"], channels=how)
    adapted = model.get_layer("encoder1_conv1").get_weights()[0]
    assert adapted[1, 1, :, 0].tolist() == expected
    assert f"{len(found)} input channels, made {wanted} ({how})" in report.records[0].reason


def test_a_channel_that_begins_with_zero_says_nothing_yet(t1_model):
    model = unet((16, 16, 2), filters=2)
    load_weights(model, t1_model, allow=["channels"], channels="zero")
    rng = np.random.default_rng(0)
    t1, t2 = rng.normal(size=(2, 1, 16, 16, 1)).astype("float32")
    np.testing.assert_allclose(model(np.concatenate([t1, t2], -1)), t1_model(t1), atol=1e-6)


def test_rows_of_the_head_go_by_the_names_of_the_classes(t1_model, tmp_path):
    model = unet((16, 16, 1), num_classes=3, filters=2)
    own = model.get_layer("head_logits").get_weights()
    names = (["air", "soft", "bone", "fat"], ["bone", "lesion", "air"])
    report = load_weights(model, saved(t1_model, tmp_path, ".weights.h5"), classes=names)
    kernel, bias = model.get_layer("head_logits").get_weights()
    source_kernel, source_bias = t1_model.get_layer("head_logits").get_weights()
    for place, row in ((0, 2), (2, 0)):
        np.testing.assert_array_equal(kernel[..., place], source_kernel[..., row])
        assert bias[place] == source_bias[row]
    np.testing.assert_array_equal(kernel[..., 1], own[0][..., 1])
    assert report.names("adapted") == ("head_logits/kernel", "head_logits/bias")
    assert report.records[-1].reason == "taken over: bone, air; new: lesion"


def test_the_same_classes_in_another_order_are_put_in_order(t1_model):
    model = unet((16, 16, 1), filters=2)
    load_weights(model, t1_model, classes=(list("abcd"), list("dcba")))
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    np.testing.assert_allclose(model(x)[..., ::-1], t1_model(x), atol=1e-6)


def test_class_names_that_cannot_be_right_are_refused(t1_model):
    model = unet((16, 16, 1), num_classes=3, filters=2)
    before = model.get_weights()
    four = ["air", "soft", "bone", "fat"]
    with pytest.raises(InputError, match="4 of the source, 3 of the model.*Received: 4 and 2 names"):
        load_weights(model, t1_model, classes=(four, ["air", "bone"]))
    with pytest.raises(InputError, match="at least one class in common"):
        load_weights(model, t1_model, classes=(four, ["csf", "grey", "white"]))
    with pytest.raises(InputError, match="name of its own"):
        load_weights(model, t1_model, classes=(four, ["air", "air", "bone"]))
    with pytest.raises(InputError, match="two lists of names"):
        load_weights(model, t1_model, classes=("airs", "bone"))
    assert same(model, before)


def test_a_network_for_slices_gives_its_response_to_a_volume_of_equal_slices(t1_model):
    # 128 slices: the middle one is farther from both ends than the network sees
    model = unet((16, 16, 128, 1), filters=2)
    with pytest.raises(InputError, match=r"encoder1_conv1/kernel.*3 slices made of one.*'inflate'"):
        load_weights(model, t1_model)
    report = load_weights(model, t1_model, allow=["inflate"])
    assert "decoder1_upsample/kernel" in report.names("adapted")
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
    volume = np.repeat(x[:, :, :, None], 128, axis=3)
    np.testing.assert_allclose(model(volume)[:, :, :, 64], t1_model(x), atol=1e-4)


def test_a_network_of_another_width_names_tensors_and_leaves_the_model_unchanged(t1_model):
    model = unet((16, 16, 1), filters=4)
    before = model.get_weights()
    with pytest.raises(InputError, match="encoder1_conv1/kernel.*more.*The model is unchanged"):
        load_weights(model, t1_model, allow=["head", "channels", "missing", "unused"])
    assert same(model, before)


def test_another_network_is_refused_by_the_names_that_each_lacks(t1_model):
    model = se_unet3d((16, 16, 1), filters=2, num_classes=4)
    with pytest.raises(InputError, match=r"not in the source.*\['missing'\]"):
        load_weights(model, t1_model)
    with pytest.raises(InputError, match=r"not in the model.*\['unused'\]"):
        smaller = keras.Model(t1_model.input, t1_model.get_layer("decoder1_conv2_relu").output)
        load_weights(smaller, t1_model)


def test_a_source_that_shares_nothing_is_refused_even_with_leave(t1_model):
    image = keras.Input((8, 8, 1))
    other = keras.Model(image, keras.layers.Conv2D(2, 3, name="other")(image))
    with pytest.raises(InputError, match="share at least one tensor"):
        load_weights(other, t1_model, allow=["missing", "unused"])


def test_nan_in_a_source_is_refused_by_name(t1_model):
    source = keras.models.clone_model(t1_model)
    weights = source.get_weights()
    weights[0][0, 0, 0, 0] = np.nan
    source.set_weights(weights)
    with pytest.raises(InputError, match="encoder1_conv1/kernel.*NaN"):
        load_weights(unet((16, 16, 1), filters=2), source)


def test_files_that_are_missing_cut_short_or_of_another_kind_are_refused(t1_model, tmp_path):
    model = unet((16, 16, 1), filters=2)
    with pytest.raises(FileNotFoundError, match="nowhere.keras"):
        load_weights(model, tmp_path / "nowhere.keras")
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.keras file, a \.weights\.h5"):
        load_weights(model, tmp_path / "scan.nii.gz")
    for kind in (".keras", ".weights.h5"):
        whole = saved(t1_model, tmp_path, kind)
        cut = tmp_path / f"cut{kind}"
        cut.write_bytes(whole.read_bytes()[:1000])
        with pytest.raises(InputError, match=f"(one that Keras saved|can be read).*cut{kind}"):
            load_weights(model, cut)


def test_what_is_no_network_is_told_where_its_network_is(t1_model):
    with pytest.raises(InputError, match=r"object.*segmenter\.model"):
        load_weights(t1_model, object())
    with pytest.raises(InputError, match=r"object.*segmenter\.model"):
        groups(object())


def test_a_file_that_carries_code_is_refused(t1_model, tmp_path):
    image = keras.Input((16, 16, 1), name="image")
    model = keras.Model(image, keras.layers.Lambda(lambda x: x, name="encoder1_code")(image))
    model.save(tmp_path / "code.keras")
    with pytest.raises(InputError, match="code.keras"):
        load_weights(t1_model, tmp_path / "code.keras")


def test_an_unknown_allowance_lists_the_known_ones(t1_model):
    with pytest.raises(InputError, match="head, channels, inflate, missing, unused"):
        load_weights(t1_model, t1_model, allow=["everything"])


def test_the_report_prints_every_tensor_and_a_summary(t1_model):
    report = load_weights(unet((16, 16, 1), num_classes=2, filters=2), t1_model, allow="head")
    lines = str(report).split("\n")
    assert len(lines) == 1 + TENSORS + 1
    assert lines[1].split() == ["encoder1_conv1/kernel", "3x3x1x2", "loaded"]
    assert lines[-1] == f"from model 'unet': {TENSORS - 2} loaded, 0 adapted, 2 skipped"
