"""Where a network may be cut in two: what gives the same output in every epoch, and what training changes.

A tensor is fixed if it depends on the image and on fixed layers alone. A layer is fixed if it has nothing to
train, updates no statistics and draws no random numbers; so a frozen group is, and a silent dropout, but not
a live one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import tree

from mrseg import _checks
from mrseg.models.quiet import is_random, is_silent
from mrseg.models.resampling import MaxPoolingWithIndices
from mrseg.transfer.listing import text_table


@dataclass(frozen=True)
class Cut:
    """A network in two parts that share its layers; prints as a table.

    Attributes:
        prefix: from the image to the features; training does not change what it computes.
        suffix: from the features to the network's output; training it trains the network itself. Compile and
            fit it as any other model.
        tensors: of ``model``, that the prefix makes and the suffix receives.
    """

    prefix: keras.Model
    suffix: keras.Model
    tensors: tuple[Any, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers that make the features."""
        return tuple(tensor._keras_history.operation.name for tensor in self.tensors)

    @property
    def pays(self) -> bool:
        """Whether any layer with weights lies in the prefix, so that its work can be saved."""
        return any(layer.weights for layer in self.prefix.layers)

    def __str__(self) -> str:
        shapes = [
            ("x".join("any" if size is None else str(size) for size in tensor.shape[1:]), str(tensor.dtype))
            for tensor in self.tensors
        ]
        rows = [(name, *shape) for name, shape in zip(self.names, shapes, strict=True)]
        return text_table(("features of", "shape", "type"), rows)


def find_cut(model: keras.Model) -> Cut:
    """Cuts ``model`` at the frontier between the layers that training can change and those that it cannot.

    Where features have been enlarged on their way to the frontier by layers without weights (unpooling,
    upsampling), the cut lies before these, since the smaller features are the cheaper to keep.

    Args:
        model: Functional network of which something is trainable, each layer called once; not changed. Its
            layers are shared: freeze and thaw before cutting, not after.

    Raises:
        InputError: nothing is trainable; no Functional network; a layer called more than once.
    """
    if not hasattr(model, "operations"):
        raise _checks.error("Only a Functional network can be cut.", type(model).__name__)
    if not model.trainable_variables:
        raise _checks.error("A network is cut where training begins.", f"{model.name!r}, all of it frozen")
    fixed, makers = _fixed_tensors(model)
    needed: dict[int, Any] = {}
    for operation in model.operations:
        ends = [tensor for tensor in _flat(operation, "output") if id(tensor) not in fixed]
        if ends:
            needed |= {id(t): t for t in _flat(operation, "input") if id(t) in fixed}
    needed |= {id(tensor): tensor for tensor in model.outputs if id(tensor) in fixed}
    frontier = list(_retreat(needed, makers).values())
    return Cut(
        prefix=keras.Model(model.input, _unpacked(frontier), name=f"{model.name}_prefix"),
        suffix=keras.Model(_unpacked(frontier), model.output, name=model.name),
        tensors=tuple(frontier),
    )


def stored_bytes(tensor: Any, precision: str) -> float:
    """Bytes that one case of ``tensor`` takes in a cache; infinite where a size is not known.

    Pooling indices are smaller than 8 and take one byte; see `stored_type`.
    """
    sizes = tensor.shape[1:]
    if any(size is None for size in sizes):
        return math.inf
    return math.prod(sizes) * {"uint8": 1, "float16": 2}.get(stored_type(tensor, precision), 4)


def stored_type(tensor: Any, precision: str) -> str:
    """The type in which a tensor of features is kept: ``precision`` for numbers with a fraction."""
    if "float" in tensor.dtype:
        return precision
    is_index = isinstance(tensor._keras_history.operation, MaxPoolingWithIndices)
    return "uint8" if is_index else str(tensor.dtype)


def _fixed_tensors(model: keras.Model) -> tuple[dict[int, Any], dict[int, Any]]:
    """The tensors that training does not change, and the operation that makes each, both by ``id``."""
    fixed = {id(tensor): tensor for tensor in model.inputs}
    makers = {id(tensor): tensor._keras_history.operation for tensor in model.inputs}
    for operation in model.operations:
        inputs, outputs = _flat(operation, "input"), _flat(operation, "output")
        if isinstance(operation, keras.layers.InputLayer):
            continue
        _check_known(inputs, makers, operation.name)
        makers |= {id(tensor): operation for tensor in outputs}
        if not _varies(operation) and all(id(tensor) in fixed for tensor in inputs):
            fixed |= {id(tensor): tensor for tensor in outputs}
    _check_known(model.outputs, makers, model.name)
    return fixed, makers


def _check_known(tensors: list[Any], makers: dict[int, Any], name: str) -> None:
    """Raises InputError if a tensor is not what the first call of an operation made."""
    if any(id(tensor) not in makers for tensor in tensors):
        raise _checks.error(
            "A network is cut whose layers are each called once, and not already cut.", repr(name)
        )


def _unpacked(tensors: list[Any]) -> Any:
    return tensors if len(tensors) > 1 else tensors[0]


def _flat(operation: Any, which: str) -> list[Any]:
    return tree.flatten(getattr(operation, which))


def _varies(operation: Any) -> bool:
    """Whether what the operation computes can differ from epoch to epoch."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    if is_random(operation) and not is_silent(operation):
        return True
    constants = isinstance(operation, keras.layers.Normalization)
    # A trainable layer's other tensors are statistics that it may update.
    updates = operation.trainable and operation.non_trainable_weights and not constants
    return bool(operation.trainable_weights or updates)


def _retreat(frontier: dict[int, Any], makers: dict[int, Any]) -> dict[int, Any]:
    """Moves the frontier back over layers without weights while that makes the features smaller."""
    for key in list(frontier):
        operation = makers.get(key)
        if key not in frontier or isinstance(operation, keras.layers.InputLayer):
            continue
        if isinstance(operation, keras.layers.Layer) and operation.variables:
            continue
        ends = {id(tensor) for tensor in _flat(operation, "output")}
        moved = {k: t for k, t in frontier.items() if k not in ends}
        moved |= {id(tensor): tensor for tensor in _flat(operation, "input")}
        if _total(moved) < _total(frontier):
            return _retreat(moved, makers)
    return frontier


def _total(frontier: dict[int, Any]) -> float:
    return sum(stored_bytes(tensor, "float32") for tensor in frontier.values())
