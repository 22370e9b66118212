"""What runs a network: Keras' own backend, OpenVINO or ONNX Runtime, all behind one call.

Nothing here needs TensorFlow, so that an exported network runs without it; `mrseg.graphs` makes the files
that are read here.
"""

from __future__ import annotations

import functools
import importlib
import numbers
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrseg._checks import InputError, choice, error
from mrseg.passes import Forward

ENGINES = ("tensorflow", "openvino", "onnx")
PRECISIONS = ("float32", "bfloat16", "int8")
#: Engine -> the file that its network is written to (OpenVINO's weights lie beside it, ``network.bin``).
FILES = {"openvino": "network.xml", "onnx": "network.onnx"}


@dataclass(frozen=True)
class Engine:
    """Who computes the network's answers, and in what numbers.

    Attributes:
        name: ``tensorflow`` is Keras as it is (also on its JAX backend), in the types that the network was
            built with; ``openvino`` and ``onnx`` convert the network and need
            ``pip install 'mrseg[openvino]'`` or ``'mrseg[onnx]'``.
        precision: ``float32``, or of OpenVINO alone ``bfloat16`` (8 binary digits instead of 24; faster where
            the processor multiplies in it, AVX512_BF16 or AMX) and ``int8`` (convolutions in whole numbers of
            8 bits, after a calibration, `mrseg.quantization`; faster on processors with VNNI too; the last
            and the depthwise convolutions, and all else, in bfloat16 where the processor can, or float32).
        threads: of the processor; None takes all of its cores. TensorFlow takes the number from the
            environment variable TF_NUM_INTRAOP_THREADS when it starts.

    Raises:
        InputError: an unknown engine or precision; bfloat16, int8 or threads with an engine that takes none.
    """

    name: str = "tensorflow"
    precision: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        choice("engine", self.name, ENGINES)
        choice("precision", self.precision, PRECISIONS)
        if self.precision != "float32" and self.name != "openvino":
            raise error(
                f"{self.precision} is offered by the engine openvino alone.",
                f"the engine {self.name}",
                "Take engine='openvino', --engine openvino, or float32.",
            )
        if self.threads is None:
            return
        if (
            not isinstance(self.threads, numbers.Integral)
            or isinstance(self.threads, bool)
            or self.threads < 1
        ):
            raise error("threads is a whole number, 1 or more.", repr(self.threads))
        if self.name == "tensorflow":
            raise error(
                "TensorFlow takes its number of threads when it starts.",
                f"threads={self.threads}",
                f"Set TF_NUM_INTRAOP_THREADS={self.threads} before the program starts.",
            )

    @property
    def converts(self) -> bool:
        """Whether it runs a converted copy of the network, made once."""
        return self.name != "tensorflow"

    def check(self) -> None:
        """Raises InputError where it is not installed, or this processor cannot compute in its precision."""
        if self.converts:
            package(self.name)
        if self.precision != "float32" and (refusal := _refusal(self.precision)):
            raise InputError(refusal)

    def forward(self, file: str | Path, batch_size: int | None = None) -> Forward:
        """The network of a file as one call.

        Args:
            file: ``network.xml`` for openvino, ``network.onnx`` for onnx, of a fixed input shape.
            batch_size: patches in a call, a multiple of the file's own for openvino, which computes the parts
                side by side; None takes the file's own.

        Returns:
            Function from a float32 array (batch, *patch, channels) to the float32 output (batch, *patch,
            classes).

        Raises:
            InputError: the engine is not installed, or the processor cannot compute in the precision.
        """
        self.check()
        return _READERS[self.name](Path(file), self, batch_size)


def package(engine: str, *more: str) -> Any:
    """The Python package of an engine; ``more`` names others that it needs besides.

    Raises:
        InputError: one is not installed; the message names the extra.
    """
    try:
        for name in more:
            importlib.import_module(name)
        return importlib.import_module({"openvino": "openvino", "onnx": "onnxruntime"}[engine])
    except ImportError as reason:
        raise error(
            f"The engine {engine} must be installed.",
            f"none that can be imported ({reason})",
            f"Install it: pip install 'mrseg[{engine}]'.",
        ) from None


def _read_openvino(file: Path, engine: Engine, batch_size: int | None) -> Forward:
    network = package("openvino").Core().read_model(file)
    rows = network.input(0).get_shape()[0]
    parts = 1 if batch_size is None else batch_size // rows
    # Cores that each have a patch of their own do not wait for each other.
    streams = min(parts, engine.threads or os.cpu_count() or 1)
    compiled = compile_openvino(network, engine, streams)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    out_shape = tuple(compiled.output(0).get_shape())

    def forward(batch: np.ndarray) -> np.ndarray:
        own = np.ascontiguousarray(batch).reshape(parts, rows, *batch.shape[1:])
        answers = np.empty((parts, *out_shape), np.float32)
        for first in range(0, parts, streams):
            begun = requests[: parts - first]
            for i, request in enumerate(begun, start=first):
                request.start_async([own[i]], share_inputs=True)
            for i, request in enumerate(begun, start=first):
                request.wait()
                answers[i] = request.get_output_tensor().data  # the next call overwrites it
        return answers.reshape(-1, *out_shape[1:])

    return forward


def compile_openvino(network: Any, engine: Engine, streams: int = 1) -> Any:
    """An ``openvino.Model`` compiled for the processor, for so many requests side by side."""
    settings: dict[str, Any] = {
        # Named in any case: left to itself, OpenVINO computes in bfloat16 where the processor can.
        # Where a file's numbers are laid over int8, that stands in the file; this is for the rest of it.
        "INFERENCE_PRECISION_HINT": "bf16" if _rests_on_bfloat16(engine.precision) else "f32",
        "NUM_STREAMS": streams,
    }
    if engine.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = engine.threads
    return package("openvino").Core().compile_model(network, "CPU", settings)


def _rests_on_bfloat16(precision: str) -> bool:
    """Whether what is not int8 is computed in bfloat16: in int8 too, where the processor can."""
    return precision == "bfloat16" or (precision == "int8" and not _refusal("bfloat16"))


def _read_onnx(file: Path, engine: Engine, _: int | None) -> Forward:
    onnxruntime = package("onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    if engine.threads is not None:
        options.intra_op_num_threads = engine.threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: np.ascontiguousarray(batch)})[0]


_READERS: dict[str, Callable[[Path, Engine, int | None], Forward]] = {
    "openvino": _read_openvino,
    "onnx": _read_onnx,
}

#: A convolution in the precision; where the machine announces matrix units that it does not have, this ends
#: the process that asks.
_TRIAL = """
import numpy as np, openvino, openvino.opset13 as ops
number = lambda value: ops.constant(np.full([1] * 5, value, np.float32))
ends = lambda least: [number(least), number(1)] * 2
steps = lambda values, least: ops.fake_quantize(values, *ends(least), 255)
precision = {precision!r}
image = ops.parameter([1, 32, 8, 8, 8], np.float32)
kernel = ops.constant(np.ones((32, 32, 3, 3, 3), np.float32))
into, kernel = (steps(image, 0), steps(kernel, -1)) if precision == "int8" else (image, kernel)
conv = ops.convolution(into, kernel, [1] * 3, [1] * 3, [1] * 3, [1] * 3)
hint = {{"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}}
compiled = openvino.Core().compile_model(openvino.Model([conv], [image]), "CPU", hint)
compiled(np.ones((1, 32, 8, 8, 8), np.float32))
"""
_CAPABILITIES = {"bfloat16": "BF16", "int8": "INT8"}  # as OpenVINO calls them


@functools.cache
def _refusal(precision: str) -> str:
    """Why not: a processor without the precision, or one on which it ends the process (tried in another)."""
    able = package("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in able:
        return str(
            error(
                f"{precision} needs a processor that computes in it.",
                f"one with {', '.join(able)}",
                "Take float32.",
            )
        )
    tried = subprocess.run(
        [sys.executable, "-c", _TRIAL.format(precision=precision)],
        capture_output=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [""])[-1]
        how = f"signal {-tried.returncode}" if tried.returncode < 0 else said
        return str(
            error(
                f"{precision} needs a machine whose matrix units (AMX) work.",
                f"one on which a trial of it ended with {how}",
                "Take float32, or set ONEDNN_MAX_CPU_ISA=AVX10_1_512 before the program starts (no AMX).",
            )
        )
    return ""
