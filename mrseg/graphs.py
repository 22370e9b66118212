"""A Keras network as a graph of a fixed shape with its weights as constants, and as a file for an engine."""

from __future__ import annotations

import logging
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mrseg._checks import InputError, choice, error
from mrseg.engines import FILES, Engine, package
from mrseg.forward import compile_forward
from mrseg.models.batch_norm import BatchNormalization
from mrseg.models.layers import SpatialRecalibration
from mrseg.passes import Forward
from mrseg.quantization import Ranges, quantize

_INPUT = "image"
_OPSET = 18  # of ONNX; the converter's newest


def compile_engine(
    model: keras.Model, batch_shape: tuple[int, ...], engine: Engine, ranges: Ranges | None = None
) -> Forward:
    """One forward pass of a fixed shape on an engine: `mrseg.forward.compile_forward`, or a converted copy.

    Args:
        model: network with one input.
        batch_shape: (batch, *patch, channels).
        engine: who computes. Other than TensorFlow, it keeps the weights of this moment.
        ranges: of a calibration, which int8 needs.

    Returns:
        Function from a float32 array of ``batch_shape`` to the network's float32 output.

    Raises:
        InputError: the engine is not installed; the network cannot be converted; ranges of other weights.
    """
    if not engine.converts:
        return compile_forward(model, batch_shape)
    engine.check()
    ranges = ranges if engine.precision == "int8" else None
    # OpenVINO computes patches side by side, each by itself.
    shape = (1, *batch_shape[1:]) if engine.name == "openvino" else batch_shape
    with tempfile.TemporaryDirectory() as folder:
        return engine.forward(convert(model, shape, engine.name, folder, ranges), batch_shape[0])


def convert(
    model: keras.Model,
    batch_shape: tuple[int, ...],
    name: str,
    folder: str | Path,
    ranges: Ranges | None = None,
) -> Path:
    """Writes a network of a fixed input shape for an engine, in float32 under any policy, or in int8.

    BatchNormalization becomes part of the convolution before it: in the ONNX file, and for OpenVINO when the
    file is read.

    Args:
        model: network with one input and one output.
        batch_shape: (batch, *patch, channels).
        name: ``openvino`` or ``onnx``.
        folder: an existing one, for ``network.xml`` and ``network.bin``, or ``network.onnx``.
        ranges: of a calibration: the convolutions compute in int8 (openvino alone).

    Returns:
        The file to give to `mrseg.engines.Engine.forward`. Input and output have Keras' order of axes,
        channels last; the input's name is ``image``.

    Raises:
        InputError: Keras runs on another backend than TensorFlow; the engine is not installed; the network
            has a layer that the engine does not know; ranges of other weights, or for onnx.
    """
    choice("format", name, FILES)
    Engine(name, "float32" if ranges is None else "int8")  # refuses int8 for onnx
    if keras.backend.backend() != "tensorflow":
        raise error(
            "A network is converted by TensorFlow.",
            f"Keras on {keras.backend.backend()}",
            "Start with KERAS_BACKEND=tensorflow.",
        )
    package(name)
    if name == "onnx":
        package("onnx", "onnx", "tf2onnx")
    file = Path(folder) / FILES[name]
    graph, output = _graph(_plain(model), batch_shape)
    try:
        _WRITERS[name](graph, output, file, ranges)
    except (OSError, InputError):  # the disk's, not the converter's; ours
        raise
    except Exception as reason:  # whatever a converter raises: its types are its own
        said = " ".join(str(reason).split())[:200] or type(reason).__name__
        raise error(
            f"The engine {name} must know every layer of the network.",
            f"{model.name}, refused with: {said}",
            "Predict with engine='tensorflow', --engine tensorflow.",
        ) from reason
    return file


def fingerprint(model: keras.Model) -> int:
    """A number that changes with the weights: a copy made from others is out of date."""
    total = 0
    for weight in model.get_weights():
        total = zlib.crc32(np.ascontiguousarray(weight).data, total)
    return total


def _plain(model: keras.Model) -> keras.Model:
    """A copy without mixed precision, of layers that the converters know best."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind = _AS_CONVERTED.get(type(layer), type(layer))
        return kind.from_config(layer.get_config() | {"dtype": "float32"})

    copied = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copied.set_weights(model.get_weights())
    return copied


class _Convolved(SpatialRecalibration):
    """The same as a convolution; the product of matrices costs OpenVINO a turn of the axes and back."""

    def call(self, x: Any) -> Any:
        kernel = keras.ops.reshape(self.kernel, (1,) * (len(x.shape) - 2) + (-1, 1))
        return x * keras.ops.sigmoid(keras.ops.conv(x, kernel, data_format="channels_last") + self.bias)


#: Layer -> what stands for it: of Keras' own norm the parts are folded into convolutions.
_AS_CONVERTED = {
    BatchNormalization: keras.layers.BatchNormalization,
    SpatialRecalibration: _Convolved,
}


def _graph(model: keras.Model, batch_shape: tuple[int, ...]) -> tuple[Any, str]:
    """TensorFlow's GraphDef of the network at prediction, and the name of its output."""
    import tensorflow as tf

    trainable = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    rest = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]

    def answer(image: Any) -> Any:
        # Constants are made in here; made outside, they would be further inputs.
        weights = [[tf.constant(value) for value in values] for values in (trainable, rest)]
        return model.stateless_call(*weights, image, training=False)[0]

    traced = tf.function(
        answer, input_signature=[tf.TensorSpec(batch_shape, tf.float32, name=_INPUT)], autograph=False
    ).get_concrete_function()
    return traced.graph.as_graph_def(), traced.outputs[0].name


def _write_openvino(graph: Any, output: str, file: Path, ranges: Ranges | None) -> None:
    # Not openvino.convert_model, which reports its use to its makers.
    openvino = package("openvino")
    protobuf = file.with_suffix(".pb")
    protobuf.write_bytes(graph.SerializeToString())
    try:
        read = openvino.Core().read_model(protobuf)
        # What only training needs dangles as further outputs.
        answer = read.output(output).get_node().input_value(0)
        network = openvino.Model([answer], read.get_parameters(), "network")
        _soften_by_channel(openvino, network)
        if ranges is not None:
            quantize(network, ranges)
        openvino.save_model(network, file, compress_to_fp16=False)
    finally:
        protobuf.unlink()


def _soften_by_channel(openvino: Any, network: Any) -> None:
    """A softmax over classes that come last becomes one over classes that come first, which is faster."""
    ops = openvino.opset13
    for node in network.get_ordered_ops():
        axes = len(node.get_output_partial_shape(0))
        if node.get_type_name() != "Softmax" or node.get_attributes()["axis"] % axes != axes - 1:
            continue
        first = ops.transpose(node.input_value(0), np.array([0, axes - 1, *range(1, axes - 1)]))
        last = ops.transpose(ops.softmax(first, 1), np.array([0, *range(2, axes), 1]))
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(last.output(0))
    network.validate_nodes_and_infer_types()


def _write_onnx(graph: Any, output: str, file: Path, _: Ranges | None) -> None:
    tensorflow_log, converter_log = logging.getLogger("tensorflow"), logging.getLogger("tf2onnx")
    levels = tensorflow_log.level, converter_log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own, about interfaces that TensorFlow will drop
        try:
            import onnx
            import tf2onnx

            tensorflow_log.setLevel(logging.ERROR)
            converter_log.setLevel(logging.ERROR)
            made, _ = tf2onnx.convert.from_graph_def(
                graph, input_names=[f"{_INPUT}:0"], output_names=[output], opset=_OPSET
            )
        finally:
            tensorflow_log.setLevel(levels[0])
            converter_log.setLevel(levels[1])
    onnx.checker.check_model(made)  # the converter passes on what it does not know
    file.write_bytes(made.SerializeToString())


_WRITERS: dict[str, Callable[[Any, str, Path, Ranges | None], None]] = {
    "openvino": _write_openvino,
    "onnx": _write_onnx,
}
