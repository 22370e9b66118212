"""Weights from one network into another, tensor by tensor, with an account of each (mecheter2023, 3.3.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

import mrseg.models.batch_norm
import mrseg.models.quiet
import mrseg.models.resampling  # noqa: F401  (registers the layers that a .keras file may hold)
from mrseg import _checks
from mrseg.models.files import load_network
from mrseg.transfer.grouping import HEAD, counts_as_conv, group_name
from mrseg.transfer.listing import text_table
from mrseg.weight_files import check_weight_file

#: What a caller may allow, and what it means.
ALLOWANCES = {
    "head": "a head for another number of classes keeps the model's own initial values",
    "channels": "the first convolution is adapted to another number of input channels",
    "inflate": "kernels of a network for slices are extended along z, for a network for volumes",
    "missing": "tensors that the source lacks keep the model's own values",
    "unused": "tensors that the model lacks are left in the source",
}


#: Ways from one number of input channels to another.
CHANNELS = ("mean", "copy", "zero")


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


@dataclass(frozen=True)
class _Rules:
    """What may differ, and how it is adapted."""

    allowed: frozenset[str]
    channels: str
    classes: tuple[tuple[str, ...], tuple[str, ...]] | None


def load_weights(
    model: keras.Model,
    source: str | Path | keras.Model,
    *,
    allow: Collection[str] = (),
    channels: str = "mean",
    classes: tuple[Sequence[str], Sequence[str]] | None = None,
) -> WeightReport:
    """Copies the weights of ``source`` into the layers of ``model`` that bear the same names.

    Args:
        model: changed in place, or left as it was if anything does not fit.
        source: a network, a ``.keras`` file (loaded in Keras' safe mode) or a ``.weights.h5`` file.
        allow: what may differ, any of

            - "head": a head for another number of classes keeps the model's own initial values;
            - "channels": the first convolution is adapted to another number of input channels, as
              ``channels`` says;
            - "inflate": a network for slices (x, y) gives its kernels to one for volumes (x, y, z): each is
              repeated along z, a convolution's divided by its size there, so that a volume that is the same
              in every slice gives the same response away from its ends;
            - "missing": tensors that the source lacks keep the model's own values;
            - "unused": tensors that the model lacks are left in the source.
        channels: how the first kernel goes from one number of input channels to another:

            - "mean": from 1 to n each channel gets the kernel divided by n, from n to 1 the kernels are
              summed: an image repeated over the channels gives the same response;
            - "copy": from 1 to n each channel gets the whole kernel, from n to 1 the first one's is taken;
            - "zero": channels that both have keep their kernels (from any number to any), new ones begin with
              zero, so that a network for T1-w gives the same response once T2-w stands beside it.
        classes: names of the source's classes and of the model's, each in the order of the output channels.
            The head's rows then go by name: a class of the same name takes its row over, a new one keeps the
            model's own values. Needs no allowance "head".

    Returns:
        One record per tensor.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no weight file, a tensor does not fit and was not allowed, holds NaN or
            infinity, or nothing at all fits (the message names the tensors); class names that are not one for
            each output channel, or none in common.

    Example:
        >>> print(load_weights(se_unet3d((64, 64, 32, 1), num_classes=4), "t1.keras", allow=["head"]))
    """
    for word in [allow] if isinstance(allow, str) else allow:
        _checks.choice("allow", word, ALLOWANCES)
    allowed = {allow} if isinstance(allow, str) else set(allow)
    _checks.choice("channels", channels, CHANNELS)
    rules = _Rules(frozenset(allowed), channels, _class_names(classes))
    tensors = _source_tensors(source)
    label = f"model {source.name!r}" if isinstance(source, keras.Model) else str(source)

    records, values, problems = [], [], []
    for layer in model.layers:
        found = tensors.get(layer.name, [])
        for i, variable in enumerate(layer.weights):
            record, value = _fit(model, layer, variable, i, found[i] if i < len(found) else None, rules)
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
    rules: _Rules,
) -> tuple[TensorRecord, np.ndarray | None]:
    """Decides on tensor ``i`` of ``layer``: its record and its new value (None: it keeps its own)."""
    name, shape = f"{layer.name}/{variable.name}", tuple(variable.shape)

    def record(status: str, reason: str = "") -> TensorRecord:
        return TensorRecord(name, shape, status, reason)

    def unless(word: str, reason: str) -> TensorRecord:
        return record("skipped" if word in rules.allowed else "refused", f"{reason} [{word}]")

    if found is None:
        return unless("missing", "not in the source, keeps its own values"), None
    if not np.isfinite(found).all():
        return record("refused", "NaN or infinity in the source"), None
    reasons = []
    if len(found.shape) == 4 and len(shape) == 5:
        reasons.append(f"{shape[2]} slices made of one")
        if "inflate" not in rules.allowed:
            return unless("inflate", f"source is for slices, {reasons[0]}"), None
        found = _inflate(found, shape[2], layer)
    in_head = group_name(layer.name) == HEAD
    if in_head and rules.classes and found.shape[:-1] == shape[:-1]:
        value, reason = _rows_by_name(found, variable, rules.classes, name)
        return record("adapted", "; ".join([*reasons, reason])), value
    if found.shape == shape:
        return record("adapted" if reasons else "loaded", "; ".join(reasons)), found
    if in_head and found.shape[:-1] == shape[:-1]:
        reason = f"source has {found.shape[-1]} classes, head made anew for {shape[-1]}"
        return unless("head", reason), None
    first = i == 0 and counts_as_conv(layer) and layer.input is model.input
    if first and _only_channels_differ(found.shape, shape, rules.channels):
        reasons.append(f"source has {found.shape[-2]} input channels, made {shape[-2]} ({rules.channels})")
        if "channels" not in rules.allowed:
            return unless("channels", reasons[-1]), None
        return record("adapted", "; ".join(reasons)), _adapt_channels(found, shape[-2], rules.channels)
    return record("refused", f"shape in the source is {found.shape}"), None


def _only_channels_differ(found: tuple[int, ...], wanted: tuple[int, ...], how: str) -> bool:
    same = found[:-2] == wanted[:-2] and found[-1:] == wanted[-1:]
    return same and (how == "zero" or 1 in (found[-2], wanted[-2]))


def _adapt_channels(kernel: np.ndarray, channels: int, how: str) -> np.ndarray:
    """A kernel (*size, in, out) for another number of input channels."""
    if how == "mean":
        return np.repeat(kernel.sum(axis=-2, keepdims=True) / channels, channels, axis=-2)
    if how == "copy":
        return np.repeat(kernel[..., :1, :], channels, axis=-2)
    adapted = np.zeros((*kernel.shape[:-2], channels, kernel.shape[-1]), kernel.dtype)
    both = min(channels, kernel.shape[-2])
    adapted[..., :both, :] = kernel[..., :both, :]
    return adapted


def _inflate(kernel: np.ndarray, size: int, layer: keras.layers.Layer) -> np.ndarray:
    """A kernel (x, y, ., .) repeated to (x, y, z, ., .).

    A voxel of a convolution's output sees ``size`` slices; of a transposed one's, ``size / stride``.
    """
    stride = layer.strides[2] if isinstance(layer, keras.layers.Conv3DTranspose) else 1
    return np.repeat(kernel[:, :, None] * (stride / size), size, axis=2).astype(kernel.dtype)


def _class_names(
    classes: tuple[Sequence[str], Sequence[str]] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if classes is None:
        return None
    if len(classes) != 2 or any(isinstance(names, str) for names in classes):
        raise _checks.error("classes holds two lists of names: the source's and the model's.", repr(classes))
    theirs, ours = tuple(classes[0]), tuple(classes[1])
    for names in (theirs, ours):
        if len(set(names)) != len(names):
            raise _checks.error("Each class has a name of its own.", ", ".join(map(str, names)))
    if not set(theirs) & set(ours):
        raise _checks.error(
            "The source and the model have at least one class in common.",
            f"{', '.join(theirs)} and {', '.join(ours)}",
            'To make the head anew, leave classes out and pass allow=["head"].',
        )
    return theirs, ours


def _rows_by_name(
    found: np.ndarray, variable: Any, classes: tuple[tuple[str, ...], tuple[str, ...]], name: str
) -> tuple[np.ndarray, str]:
    """The head's tensor with the rows of the classes that both have, and an account of it."""
    theirs, ours = classes
    if (found.shape[-1], variable.shape[-1]) != (len(theirs), len(ours)):
        raise _checks.error(
            f"classes names every output channel: {found.shape[-1]} of the source, {variable.shape[-1]} of "
            f"the model, in {name}.",
            f"{len(theirs)} and {len(ours)} names",
        )
    value = np.array(keras.ops.convert_to_numpy(variable))
    for place, label in enumerate(ours):
        if label in theirs:
            value[..., place] = found[..., theirs.index(label)]
    kept = [label for label in ours if label in theirs]
    new = [label for label in ours if label not in theirs]
    return value, f"taken over: {', '.join(kept)}" + (f"; new: {', '.join(new)}" if new else "")


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
    if not isinstance(source, (str, Path)):
        raise _checks.error(
            "Weights come from a network or its file.",
            type(source).__name__,
            "Of a segmenter, pass segmenter.model.",
        )
    path = _checks.existing_file(source)
    if path.suffix not in (".keras", ".h5"):
        raise _checks.error("Weights come from a .keras file, a .weights.h5 file or a network.", path)
    check_weight_file(path)
    try:
        if path.suffix == ".keras":
            return _source_tensors(load_network(path))
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
