"""Weights from one network into another, tensor by tensor, with an account of each (mecheter2023, 3.3.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

import mrseg.models.layers  # noqa: F401  (registers the layers that a .keras file may hold)
from mrseg import _checks
from mrseg.transfer.grouping import HEAD, counts_as_conv, group_name
from mrseg.transfer.listing import text_table

#: What a caller may allow, and what it means.
ALLOWANCES = {
    "head": "a head for another number of classes keeps the model's own initial values",
    "channels": "the first convolution is adapted to another number of input channels",
    "missing": "tensors that the source lacks keep the model's own values",
    "unused": "tensors that the model lacks are left in the source",
}


@dataclass(frozen=True)
class TensorRecord:
    """What became of one tensor: ``status`` is "loaded", "adapted" or "skipped", ``reason`` says why."""

    name: str
    shape: tuple[int, ...]
    status: str
    reason: str = ""


@dataclass(frozen=True)
class WeightReport:
    """Every tensor of the model and of the source, each loaded, adapted or skipped; prints as a table."""

    source: str
    records: tuple[TensorRecord, ...]

    def names(self, status: str) -> tuple[str, ...]:
        """Names of the tensors with this status."""
        return tuple(record.name for record in self.records if record.status == status)

    def __str__(self) -> str:
        rows = [(r.name, "x".join(map(str, r.shape)), r.status, r.reason) for r in self.records]
        count = Counter(record.status for record in self.records)
        summary = ", ".join(f"{count[status]} {status}" for status in ("loaded", "adapted", "skipped"))
        return text_table(("tensor", "shape", "status", "reason"), rows) + f"\nfrom {self.source}: {summary}"


def load_weights(
    model: keras.Model, source: str | Path | keras.Model, *, allow: Collection[str] = ()
) -> WeightReport:
    """Copies the weights of ``source`` into the layers of ``model`` that bear the same names.

    Args:
        model: changed in place, or left as it was if anything does not fit.
        source: a network, a ``.keras`` file (loaded in Keras' safe mode) or a ``.weights.h5`` file.
        allow: what may differ, any of

            - "head": a head for another number of classes keeps the model's own initial values;
            - "channels": the first convolution is adapted to another number of input channels: from 1 to n
              each channel gets the kernel divided by n, from n to 1 the kernels are summed, so that an image
              repeated over the channels gives the same response;
            - "missing": tensors that the source lacks keep the model's own values;
            - "unused": tensors that the model lacks are left in the source.

    Returns:
        One record per tensor.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no weight file, a tensor does not fit and was not allowed, holds NaN or
            infinity, or nothing at all fits. The message names the tensors.

    Example:
        >>> print(load_weights(se_unet3d((64, 64, 32, 1), num_classes=4), "t1.keras", allow=["head"]))
    """
    for word in [allow] if isinstance(allow, str) else allow:
        _checks.choice("allow", word, ALLOWANCES)
    allowed = {allow} if isinstance(allow, str) else set(allow)
    tensors = _source_tensors(source)
    label = f"model {source.name!r}" if isinstance(source, keras.Model) else str(source)

    records, values, problems = [], [], []
    for layer in model.layers:
        found = tensors.get(layer.name, [])
        for i, variable in enumerate(layer.weights):
            record, value = _fit(model, layer, variable, i, found[i] if i < len(found) else None, allowed)
            records.append(record)
            if record.status == "refused":
                problems.append(record)
            elif value is not None:
                values.append((variable, value))
    unused = _unused(model, tensors, "skipped" if "unused" in allowed else "refused")
    problems += [record for record in unused if record.status == "refused"]
    if problems or not values:
        raise _refusal(label, problems)
    for variable, value in values:
        variable.assign(value)
    return WeightReport(label, (*records, *unused))


def _fit(
    model: keras.Model,
    layer: keras.layers.Layer,
    variable: keras.Variable,
    i: int,
    found: Any,
    allowed: set[str],
) -> tuple[TensorRecord, np.ndarray | None]:
    """Decides on tensor ``i`` of ``layer``: its record and its new value (None: it keeps its own)."""
    name, shape = f"{layer.name}/{variable.name}", tuple(variable.shape)

    def record(status: str, reason: str = "") -> TensorRecord:
        return TensorRecord(name, shape, status, reason)

    def unless(word: str, reason: str) -> TensorRecord:
        return record("skipped" if word in allowed else "refused", f"{reason} [{word}]")

    if found is None:
        return unless("missing", "not in the source, keeps its own values"), None
    if not np.isfinite(found).all():
        return record("refused", "NaN or infinity in the source"), None
    if found.shape == shape:
        return record("loaded"), found
    if group_name(layer.name) == HEAD and found.shape[:-1] == shape[:-1]:
        reason = f"source has {found.shape[-1]} classes, head made anew for {shape[-1]}"
        return unless("head", reason), None
    first = i == 0 and counts_as_conv(layer) and layer.input is model.input
    if first and _only_channels_differ(found.shape, shape):
        reason = f"source has {found.shape[-2]} input channels, made {shape[-2]}"
        if "channels" not in allowed:
            return unless("channels", reason), None
        return record("adapted", reason), _adapt_channels(found, shape[-2])
    return record("refused", f"shape in the source is {found.shape}"), None


def _only_channels_differ(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    same = found[:-2] == wanted[:-2] and found[-1:] == wanted[-1:]
    return same and 1 in (found[-2], wanted[-2])


def _adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    summed = kernel.sum(axis=-2, keepdims=True)
    return np.repeat(summed / channels, channels, axis=-2)


def _unused(model: keras.Model, tensors: dict[str, list[np.ndarray]], status: str) -> list[TensorRecord]:
    own = {layer.name: len(layer.weights) for layer in model.layers}
    return [
        TensorRecord(f"{name}/{i}", tuple(value.shape), status, "not in the model [unused]")
        for name, values in tensors.items()
        for i, value in enumerate(values)
        if i >= own.get(name, 0)
    ]


def _refusal(label: str, problems: list[TensorRecord]) -> _checks.InputError:
    if not problems:
        return _checks.error("The source must share at least one tensor with the model.", label)
    shown = "; ".join(f"{r.name} {r.shape}: {r.reason}" for r in problems[:4])
    rest = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    words = sorted({word for word in ALLOWANCES for r in problems if r.reason.endswith(f"[{word}]")})
    remedy = f"The model is unchanged. To permit what is marked, pass allow={words}." if words else ""
    return _checks.error(
        f"Every tensor of model and source must fit; {len(problems)} do not: {shown}{rest}.",
        label,
        remedy or "The model is unchanged. Build it with the arguments that the source was built with.",
    )


def _source_tensors(source: str | Path | keras.Model) -> dict[str, list[np.ndarray]]:
    """The tensors of each layer by the layer's name, in the layer's own order."""
    if isinstance(source, keras.Model):
        return {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    path = _checks.existing_file(source)
    if path.suffix not in (".keras", ".h5"):
        raise _checks.error("Weights come from a .keras file, a .weights.h5 file or a network.", path)
    try:
        if path.suffix == ".keras":
            return _source_tensors(keras.saving.load_model(path, compile=False, safe_mode=True))
        return _tensors_of_h5(path)
    except (OSError, ValueError, TypeError, KeyError) as reason:
        raise _checks.error(
            f"The file must be one that Keras saved ({_first_line(reason)}).",
            path,
            "Save it again from the network.",
        ) from reason


def _tensors_of_h5(path: Path) -> dict[str, list[np.ndarray]]:
    """Keras writes each layer's tensors as vars/0, vars/1, ... and the layer's name beside them."""
    tensors: dict[str, list[np.ndarray]] = {}

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and "name" in item.attrs and len(item):
            tensors[str(item.attrs["name"])] = [np.asarray(item[str(i)]) for i in range(len(item))]

    with h5py.File(path) as file:
        file.visititems(visit)
    return tensors


def _first_line(reason: Exception) -> str:
    return str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
