"""Convolutions in whole numbers of 8 bits: the ranges they are laid over, and the network that computes so.

A range of real numbers becomes 256 steps, with 0 on a step, so that padding stays exact. Weights have a range
for each output channel; what comes into a convolution has one range, seen on scans beforehand.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrseg._checks import error
from mrseg.engines import Engine, compile_openvino, package

#: Checksum of a convolution's weights -> smallest and largest number that came into it.
Ranges = dict[str, tuple[float, float]]

#: Kind of convolution -> axis of its weights along which output channels lie. None for depthwise ones.
_CHANNELS = {"Convolution": 0, "ConvolutionBackpropData": 1}
_STEPS = 256


class Calibrator:
    """A network that answers in float32 and keeps the range of what comes into its convolutions.

    Args:
        file: ``network.xml``, as `mrseg.graphs.convert` writes it.
        threads: of the processor; None takes all cores.

    Attributes:
        ranges: those of all calls so far.
    """

    def __init__(self, file: str | Path, threads: int | None = None) -> None:
        openvino = package("openvino")
        import openvino.opset13 as ops

        network = openvino.Core().read_model(file)
        found = list(_convolutions(network))
        self._keys = [key for _, _, key in found]
        seen = []
        for node, _, _ in found:
            into = node.input_value(0)
            axes = ops.constant(np.arange(len(into.get_partial_shape())))
            seen += [reduce(into, axes).output(0) for reduce in (ops.reduce_min, ops.reduce_max)]
        watched = openvino.Model([network.output(0), *seen], network.get_parameters(), "watched")
        compiled = compile_openvino(watched, Engine("openvino", threads=threads))
        self._request = compiled.create_infer_request()
        self.ranges: Ranges = {}

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Answers as the network does, and widens the ranges."""
        self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)
        outputs = [self._request.get_output_tensor(i).data for i in range(1 + 2 * len(self._keys))]
        answer, *seen = map(np.array, outputs)  # the next call overwrites the tensors
        for key, low, high in zip(self._keys, seen[::2], seen[1::2], strict=True):
            known = self.ranges.get(key, (0.0, 0.0))  # 0 belongs to every range
            self.ranges[key] = (min(known[0], float(low)), max(known[1], float(high)))
        return answer


def quantize(network: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Lays a network's convolutions, but for the last, over steps of 8 bits, and nothing else.

    The last one makes the classes' logits, where a step would show most and time is spent least.

    Args:
        network: ``openvino.Model``, changed in place.
        ranges: of a `Calibrator` on the same weights, at any input shape.

    Raises:
        InputError: ranges of other weights.
    """
    import openvino.opset13 as ops

    for node, weights, key in list(_convolutions(network))[:-1]:
        if key not in ranges:
            raise error(
                "int8 needs a calibration of these very weights.",
                "one of others",
                "Calibrate again: mrseg calibrate, Segmenter.calibrated.",
            )
        low, high = _with_zero_on_a_step(*ranges[key])
        ends = np.array([low, high], np.float32).reshape(2, *[1] * weights.ndim)
        node.input(0).replace_source_output(_stepped(node.input_value(0), ends, _STEPS))
        own = _CHANNELS[node.get_type_name()]
        others = tuple(axis for axis in range(weights.ndim) if axis != own)
        largest = np.maximum(np.abs(weights).max(others, keepdims=True), np.finfo(np.float32).tiny)
        # An odd number of steps: one of them is 0.
        stepped = _stepped(ops.constant(weights), np.stack([-largest, largest]), _STEPS - 1)
        node.input(1).replace_source_output(stepped)
    network.validate_nodes_and_infer_types()


def _convolutions(network: Any) -> Iterator[tuple[Any, np.ndarray, str]]:
    """Every convolution whose weights are constant, from the input on, its weights, and their checksum."""
    from openvino.passes import ConstantFolding, Manager

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(network)
    for node in network.get_ordered_ops():
        if node.get_type_name() not in _CHANNELS:
            continue
        source = node.input_value(1).get_node()
        if source.get_type_name() == "Constant":
            weights = np.ascontiguousarray(source.data, np.float32)
            yield node, weights, f"{zlib.crc32(weights.data):08x}"


def _with_zero_on_a_step(low: float, high: float) -> tuple[float, float]:
    """The range, widened by less than a step at either end, or [0, 1] where nothing but 0 was seen."""
    if low == high == 0:
        return 0.0, 1.0
    step = (high - low) / (_STEPS - 2)
    below = int(np.ceil(-low / step))
    return -below * step, (_STEPS - 1 - below) * step


def _stepped(values: Any, ends: np.ndarray, steps: int) -> Any:
    """``values`` on so many steps from ``ends[0]`` to ``ends[1]``."""
    import openvino.opset13 as ops

    low, high = (ops.constant(end) for end in ends)
    return ops.fake_quantize(values, low, high, low, high, steps).output(0)
