from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import keras
import nibabel as nib
import numpy as np
import openvino
import pytest

import mrseg
from mrseg import engines
from mrseg._checks import InputError
from mrseg.cli import main
from mrseg.data import phantom
from mrseg.engines import Engine
from mrseg.graphs import convert
from mrseg.metrics import dice
from mrseg.models.builders import BUILDERS
from mrseg.quantization import Calibrator, quantize

SHAPE = (1, 8, 8, 3)


def two_convolutions(first, second):
    """(8, 8, 3) -> 4 -> 2 channels, kernels of size 3 and 1 without bias, no activation."""
    image = keras.Input(SHAPE[1:])
    inner = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
    outer = keras.layers.Conv2D(2, 1, use_bias=False)
    model = keras.Model(image, outer(inner(image)))
    inner.set_weights([first])
    outer.set_weights([second])
    return model


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3, 3, 3, 4)) * [0.01, 1, 100, 1]  # channels of very different sizes
    return first.astype(np.float32), rng.normal(size=(1, 1, 4, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    return convert(two_convolutions(*weights), SHAPE, "openvino", tmp_path_factory.mktemp("network"))


def batch(low=-1.0, high=3.0, seed=0):
    values = np.random.default_rng(seed).uniform(low, high, SHAPE).astype(np.float32)
    values[0, 0, 0], values[0, 0, 1] = low, high
    return values


def test_a_calibrator_answers_as_the_network_and_keeps_what_comes_in(file, weights):
    watched = Calibrator(file, threads=1)
    first = watched(batch(-1, 3))
    np.testing.assert_allclose(first, Engine("openvino").forward(file)(batch(-1, 3)), rtol=1e-5, atol=1e-4)
    kept = first.copy()
    watched(batch(0.5, 5))
    np.testing.assert_array_equal(first, kept)  # the second call left it alone
    assert len(watched.ranges) == 2
    assert next(iter(watched.ranges.values())) == (-1, 5)


def test_the_range_of_numbers_above_0_begins_at_0(file):
    watched = Calibrator(file)
    watched(batch(2, 4))
    assert next(iter(watched.ranges.values())) == (0, 4)


def naive(image, first, second, low, high):
    """What 8 bits give: input on 256 steps with 0 on one, each output channel's weights on 255."""
    step = (high - low) / 254
    below = np.ceil(-low / step)
    image = np.clip(np.round(image / step), -below, 255 - below) * step
    sizes = np.abs(first).max((0, 1, 2)) / 127
    first = np.round(first / sizes) * sizes
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    inner = np.zeros((8, 8, 4))
    for i in range(3):
        for j in range(3):
            inner += padded[i : i + 8, j : j + 8] @ first[i, j]
    return (inner @ second[0, 0])[None]


@pytest.mark.parametrize("rest", ["float32", "bfloat16"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 7.0), (-5.0, 0.0)])
def test_eight_bits_are_what_they_are_by_hand(low, high, rest, weights, tmp_path, monkeypatch):
    if rest == "float32":  # of a processor that has no bfloat16
        monkeypatch.setattr("mrseg.engines._refusal", _without_bfloat16)
    model = two_convolutions(*weights)
    watched = Calibrator(convert(model, SHAPE, "openvino", tmp_path))
    exact = watched(batch(low, high))
    coarse = Engine("openvino", "int8").forward(convert(model, SHAPE, "openvino", tmp_path, watched.ranges))(
        batch(low, high)
    )
    known = naive(batch(low, high).astype(np.float64), *weights, low, high)
    assert np.abs(known - exact).max() > 0.01  # 8 bits are seen
    # The last convolution is the rest; bfloat16 has 8 binary digits, and rounds what goes in and comes out.
    apart = 2e-3 if rest == "float32" else 2 * 2**-8
    np.testing.assert_allclose(coarse, known, rtol=1e-3, atol=apart * np.abs(known).max())


def _without_bfloat16(precision):
    return "no bfloat16 here" if precision == "bfloat16" else ""


def test_what_is_not_int8_is_bfloat16_where_the_processor_can(monkeypatch):
    asked = []
    monkeypatch.setattr("mrseg.engines._refusal", lambda precision: asked.append(precision) or "")
    assert [engines._rests_on_bfloat16(p) for p in ("float32", "bfloat16", "int8")] == [False, True, True]
    assert asked == ["bfloat16"]  # of int8 alone: float32 needs nothing, bfloat16 was checked before
    monkeypatch.setattr("mrseg.engines._refusal", _without_bfloat16)
    assert not engines._rests_on_bfloat16("int8")


def test_the_convolutions_of_a_network_compute_in_int8_but_for_the_last(tmp_path):
    keras.utils.set_random_seed(0)
    model = mrseg.models.unet((32, 32, 1), num_classes=3, filters=8, head="softmax")
    shape = (1, 32, 32, 1)
    watched = Calibrator(convert(model, shape, "openvino", tmp_path))
    watched(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    file = convert(model, shape, "openvino", tmp_path, watched.ranges)
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ordered_ops()
        if op.get_rt_info()["layerType"].astype(str) in ("Convolution", "Deconvolution")
    ]
    assert len(kinds) == len(watched.ranges)
    assert sum(kind in ("u8", "i8") for kind in kinds) >= len(kinds) - 1


@pytest.mark.parametrize("name", list(BUILDERS))
def test_every_network_answers_nearly_alike_in_int8(name, tmp_path):
    network = mrseg.models.list()[name]
    sizes = (2 * network.multiple, 2 * network.multiple, network.multiple)[: len(network.input_shape) - 1]
    keras.utils.set_random_seed(1)
    model = network.build((*sizes, network.input_shape[-1]), filters=4)
    shape = (1, *model.input_shape[1:])
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    watched = Calibrator(convert(model, shape, "openvino", tmp_path))
    exact = watched(image)
    file = convert(model, shape, "openvino", tmp_path, watched.ranges)
    coarse = Engine("openvino", "int8").forward(file)(image)
    assert np.ptp(exact) > 1e-3
    assert 0 < np.abs(coarse - exact).mean() < 0.02 * np.ptp(exact)


def test_ranges_of_other_weights_are_refused(file, weights):
    network = openvino.Core().read_model(file)
    with pytest.raises(InputError, match="calibration of these very weights.*mrseg calibrate"):
        quantize(network, {"00000000": (0, 1)})


def test_int8_is_openvino_s(weights, tmp_path):
    with pytest.raises(InputError, match="int8 is offered by the engine openvino alone"):
        convert(two_convolutions(*weights), SHAPE, "onnx", tmp_path, {})


def head(seed):
    made = phantom.head(seed, shape=(64, 72, 60))
    return phantom.mr_image(made, "T1w"), phantom.attenuation_labels(made)


@pytest.fixture(scope="module")
def fast():
    segmenter = mrseg.Segmenter.load("phantom_t1_se_unet3d")
    return segmenter.calibrated([head(seed)[0] for seed in (1, 2)])


@pytest.fixture(scope="module")
def saved(fast, tmp_path_factory):
    return fast.save(tmp_path_factory.mktemp("segmenters") / "fast")


def mean_dice(labels, truth):
    return np.mean([dice(truth == c, labels == c) for c in range(3)])


def test_trained_weights_keep_their_dice_in_int8(fast, saved):
    scan, truth = head(4242)  # unseen, by the network and by the calibration
    exact = dataclasses.replace(fast, precision="float32").predict(scan).labels
    loaded = mrseg.Segmenter.load(saved, engine="openvino", precision="int8")
    coarse = loaded.predict(scan).labels
    assert mean_dice(exact, truth) > 0.9
    assert (coarse != exact).any()  # it is another way of computing
    assert abs(mean_dice(coarse, truth) - mean_dice(exact, truth)) < 0.002
    whole = loaded.predict(scan, inference=mrseg.Inference(extent="whole")).labels
    assert abs(mean_dice(whole, truth) - mean_dice(exact, truth)) < 0.02  # the ranges serve at any size


def test_int8_without_a_calibration_is_refused():
    with pytest.raises(InputError, match="calibrated on scans.*mrseg calibrate"):
        mrseg.Segmenter.load("phantom_t1_unet", engine="openvino", precision="int8")
    with pytest.raises(InputError, match="needs a scan"):
        mrseg.Segmenter.load("phantom_t1_unet").calibrated([])


def test_a_calibration_does_not_outlive_a_change_of_the_weights(saved):
    segmenter = mrseg.Segmenter.load(saved, engine="openvino", precision="int8")
    kernel = segmenter.model.trainable_weights[0]
    kernel.assign(kernel + 1)
    with pytest.raises(InputError, match="these very weights"):
        segmenter.predict(head(1)[0])


def test_an_export_in_int8_gives_the_segmenter_s_labels_without_keras(fast, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(*head(3)[0]), scan)
    folder = fast.export(tmp_path / "export", format="openvino", precision="int8")
    assert json.loads((folder / "export.json").read_text(encoding="utf-8"))["precision"] == "int8"
    assert "compute in int8" in (folder / "README.md").read_text(encoding="utf-8")
    code = (
        "import sys, numpy as np, mrseg\n"
        f"labels = mrseg.Exported.load({str(folder)!r}).predict({str(scan)!r}).labels\n"
        f"np.save({str(tmp_path / 'labels.npy')!r}, labels)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), fast.predict(scan).labels)
    with pytest.raises(InputError, match="decided when a network is exported.*int8, to be run in float32"):
        mrseg.Exported.load(folder, precision="float32")


def test_an_export_in_float32_is_not_run_in_int8(fast, tmp_path):
    folder = fast.export(tmp_path / "export", format="openvino")
    with pytest.raises(InputError, match="float32, to be run in int8.*--precision int8"):
        mrseg.Exported.load(folder, precision="int8")


def test_the_commands_calibrate_predict_and_begin_again_with_another_calibration(tmp_path, capsys):
    scans = [tmp_path / f"sub-0{seed}_T1w.nii.gz" for seed in (1, 2)]
    for seed, scan in enumerate(scans, 1):
        nib.save(nib.Nifti1Image(*head(seed)[0]), scan)
    table = "subject\tT1w\n" + "".join(f"s{i}\t{scan.name}\n" for i, scan in enumerate(scans))
    (tmp_path / "cohort.tsv").write_text(table, encoding="utf-8")
    calibrate = ["calibrate", "--segmenter", "phantom_t1_unet", "--output", str(tmp_path / "fast"), "--input"]
    predict = [
        "predict",
        "--segmenter",
        str(tmp_path / "fast"),
        "--engine",
        "openvino",
        "--precision",
        "int8",
    ]
    predict += ["--data", str(tmp_path / "cohort.tsv"), "--output", str(tmp_path / "maps")]
    assert main([*calibrate, str(scans[0])]) == 0
    printed = capsys.readouterr().out
    assert "sub-01_T1w.nii.gz" in printed and "99." in printed
    assert main(predict) == 0 and "2 written" in capsys.readouterr().out
    assert main(predict) == 0 and "2 there already" in capsys.readouterr().out
    assert main([*calibrate, *map(str, scans)]) == 0
    capsys.readouterr()
    assert main(predict) == 0 and "2 written" in capsys.readouterr().out
    assert main([*calibrate[:4], str(tmp_path), "--input", str(scans[0])]) == 2
    assert "holds other files" in capsys.readouterr().err
