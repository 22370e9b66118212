from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest

import mrseg
from mrseg import engines
from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.engines import Engine
from mrseg.graphs import convert
from mrseg.metrics import dice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "opencl"}, "engine is one of tensorflow, openvino, onnx"),
        ({"name": "openvno"}, "Did you mean 'openvino'"),
        ({"precision": "float16"}, "precision is one of float32, bfloat16, int8"),
        (
            {"precision": "bfloat16"},
            "bfloat16 is offered by the engine openvino alone.*tensorflow",
        ),
        (
            {"name": "onnx", "precision": "int8"},
            "int8 is offered by the engine openvino alone.*onnx",
        ),
        ({"threads": 2}, "TF_NUM_INTRAOP_THREADS=2"),
        ({"name": "onnx", "threads": 0}, "threads is a whole number, 1 or more"),
        ({"name": "onnx", "threads": True}, "threads is a whole number, 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Engine(**settings)


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_an_engine_that_is_not_installed_names_its_extra(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, {"openvino": "openvino", "onnx": "onnxruntime"}[engine], None)
    with pytest.raises(
        InputError, match=rf"engine {engine} must be installed.*pip install 'mrseg\[{engine}\]'"
    ):
        mrseg.Segmenter.load("phantom_t1_unet", engine=engine)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twice the input and its half, as a network of each format."""
    image = keras.Input((4, 4, 1))
    conv = keras.layers.Conv2D(2, 1)
    model = keras.Model(image, conv(image))
    conv.set_weights([np.array([2.0, 0.5]).reshape(1, 1, 1, 2), np.zeros(2)])
    folder = tmp_path_factory.mktemp("networks")
    return {name: convert(model, (2, 4, 4, 1), name, folder) for name in ("openvino", "onnx")}


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_a_file_is_run_with_keras_order_of_axes(engine, files):
    forward = Engine(engine, threads=1).forward(files[engine])
    batch = np.arange(32, dtype=np.float32).reshape(2, 4, 4, 1)
    known = np.concatenate([2 * batch, batch / 2], -1)
    first = forward(batch)
    np.testing.assert_array_equal(first, known)
    np.testing.assert_array_equal(forward(batch[:, ::-1]), known[:, ::-1])  # a view, not in one piece
    np.testing.assert_array_equal(first, known)  # and the first answer is still the first


@pytest.mark.parametrize(("threads", "size"), [(1, 4), (2, 4), (2, 6), (4, 2)])
def test_parts_of_a_batch_side_by_side_come_back_in_their_order(threads, size, files):
    forward = Engine("openvino", threads=threads).forward(files["openvino"], size)
    batch = np.arange(16 * size, dtype=np.float32).reshape(size, 4, 4, 1)
    first = forward(batch)
    np.testing.assert_array_equal(first, np.concatenate([2 * batch, batch / 2], -1))
    kept = first.copy()
    forward(-batch)
    np.testing.assert_array_equal(first, kept)


@pytest.fixture
def untried():
    """What was found out about the processor is forgotten, before and after."""
    engines._refusal.cache_clear()
    yield
    engines._refusal.cache_clear()


@pytest.mark.parametrize(("precision", "able"), [("bfloat16", "INT8"), ("int8", "BF16")])
def test_a_processor_without_the_precision_is_told(precision, able, untried, monkeypatch):
    class Core:
        def get_property(self, device, name):
            return ["FP32", able]

    monkeypatch.setattr(engines, "package", lambda name: type("openvino", (), {"Core": Core}))
    with pytest.raises(
        InputError, match=f"{precision} needs a processor that computes in it.*FP32, {able}.*Take float32"
    ):
        Engine("openvino", precision).check()


def capable():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bfloat16 = pytest.mark.skipif(not capable(), reason="the processor has no bfloat16")


LOW = [pytest.param("bfloat16", marks=needs_bfloat16), "int8"]


@pytest.mark.parametrize("precision", LOW)
def test_a_precision_that_ends_a_process_ends_one_trial_and_not_this_one(precision, untried, monkeypatch):
    monkeypatch.setattr(engines, "_TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    for _ in range(2):
        with pytest.raises(InputError, match=f"{precision} needs.*matrix units.*signal 4.*ONEDNN_MAX_CPU"):
            Engine("openvino", precision).check()
        monkeypatch.setattr(engines.subprocess, "run", None)  # what was found out is not tried again


@pytest.mark.parametrize("precision", LOW)
def test_the_trial_of_a_precision_runs_where_amx_is_left_alone(precision, untried):
    Engine("openvino", precision).check()


def test_engines_load_neither_tensorflow_nor_keras(files):
    code = (
        "import sys, numpy as np, mrseg\n"
        "from mrseg.engines import Engine\n"
        f"forward = Engine('onnx').forward({str(files['onnx'])!r})\n"
        "assert forward(np.ones((2, 4, 4, 1), np.float32)).sum() == 2 * 16 * 2.5\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def head():
    """A synthetic head that the shipped networks have not seen, and its true labels."""
    made = phantom.head(4242, shape=(64, 72, 60))
    return phantom.mr_image(made, "T1w"), phantom.attenuation_labels(made)


def mean_dice(segmenter, head):
    scan, truth = head
    labels = segmenter.predict(scan).labels
    return np.mean([dice(truth == c, labels == c) for c in range(len(segmenter.class_names))])


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("openvino", "float32"),
        ("onnx", "float32"),
        pytest.param("openvino", "bfloat16", marks=needs_bfloat16),
    ],
)
def test_trained_weights_segment_as_well_on_every_engine(engine, precision, head):
    known = mean_dice(mrseg.Segmenter.load("phantom_t1_se_unet3d"), head)
    asked = mrseg.Segmenter.load("phantom_t1_se_unet3d", engine=engine, precision=precision)
    assert known > 0.6  # trained, so that a difference means something
    assert mean_dice(asked, head) == pytest.approx(known, abs=1e-4 if precision == "float32" else 0.002)
