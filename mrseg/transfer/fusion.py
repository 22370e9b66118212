"""Hybrid transfer: the T1-w encoder frozen, a new encoder beside it, one decoder (mecheter2023, 3.3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import keras
from keras import layers, tree

from mrseg import _checks
from mrseg.models.layers import StopGradient
from mrseg.models.quiet import set_quiet
from mrseg.transfer.grouping import HEAD, group_name, groups, is_adapted

FUSIONS = {
    "multiply": layers.Multiply,
    "average": layers.Average,
    "maximum": layers.Maximum,
    "concat": layers.Concatenate,
}
FUSE_AT = ("all", "bottleneck")
DEDICATED_FROM = ("scratch", "adapted")


def hybrid(
    t1_model: keras.Model | Sequence[keras.Model],
    *,
    fuse: str = "multiply",
    fuse_at: str = "all",
    dedicated_from: str = "scratch",
    name: str = "hybrid",
) -> keras.Model:
    """Two or more encoders that see the same image, fused, and one decoder.

    ::

        image ─┬─► adapted encoder (T1-w weights, frozen) ─┐
               │                                           ├─► fuse ─► decoder ─► head
               └─► dedicated encoder (new) ────────────────┘

    Args:
        t1_model: trained network whose layer names follow the scheme of
            :func:`~mrseg.transfer.grouping.groups`, each layer called once; it is copied, not changed. Or
            several of one design (say of T1-w and of T2-w, for a network for FLAIR): each gives a frozen
            adapted encoder, and all are fused with the dedicated one.
        fuse: "multiply" (the paper's best for bone), "average", "maximum" or "concat" (channel after channel,
            adapted first: twice the channels, so the decoder grows). With n encoders all n are fused.
        fuse_at: "all": at every tensor that the encoder hands to the decoder (each skip and the
            bottleneck). "bottleneck": only the deepest; skips then come from the dedicated encoder.
        dedicated_from: "scratch": new initial weights, as the paper; "adapted": starts as a copy of the T1-w
            encoder.
        name: of the model.

    Returns:
        keras.Model with the input and output shapes of ``t1_model``. The adapted encoder's layers are called
        ``adapted_encoder1_conv1`` and so on (those of a second one ``adapted2_encoder1_conv1``) and are
        frozen, BatchNormalization in inference mode, dropout silent; no gradient enters them. The dedicated
        encoder and the decoder keep the names of ``t1_model``'s layers and start anew. Fusion layers are
        called ``encoder1_fusion``, ..., ``bottleneck_fusion``.

    Raises:
        InputError: an unknown option; a network without encoder or decoder; a layer called more than once;
            encoders of different shapes (the message names the first layer that differs).
            concat for a decoder that adds or unpools the encoder's features.

    Deviation: fusing at every level is inferred. The paper states that concatenation allowed batch size 1
        only, which fusion at the bottleneck alone would not explain.

    Reference:
        mecheter2023, section 3.3.3, Figure 4 and Table 5.
    """
    _checks.choice("fuse", fuse, FUSIONS)
    _checks.choice("fuse_at", fuse_at, FUSE_AT)
    _checks.choice("dedicated_from", dedicated_from, DEDICATED_FROM)
    sources = [t1_model] if isinstance(t1_model, keras.Model) else list(t1_model)
    if not sources:
        raise _checks.error("A hybrid is made from at least one trained network.", "none")
    first = sources[0]
    encoder, decoder = _halves(first)
    for other in sources[1:]:
        _check_same_encoder(first, other)
    image = keras.Input(first.input_shape[1:], name=first.layers[0].name, dtype=first.input.dtype)

    marks = ["adapted_", *(f"adapted{i}_" for i in range(2, len(sources) + 1))]
    start = {id(first.input): image}
    adapted = [_replay(encoder, start, partial(_frozen_copy, mark=mark)) for mark in marks]
    dedicated = _replay(encoder, start, lambda layer: _copy(layer, layer.name))
    fused = _fuse_crossing(
        encoder, decoder, dict(zip(marks, adapted, strict=True)), dedicated, FUSIONS[fuse], fuse_at
    )
    try:
        whole = _replay(decoder, fused, lambda layer: _copy(layer, layer.name))
    except ValueError as reason:
        if fuse != "concat":
            raise
        raise _checks.error(
            "fuse='concat' multiplies the channels, so the decoder must convolve what it receives.",
            f"{first.name!r}, which adds or unpools it ({' '.join(str(reason).split())[:160]})",
            "Take multiply, average or maximum.",
        ) from None

    model = keras.Model(image, whole[id(first.output)], name=name)
    for layer in encoder:
        for mark, source in zip(marks, sources, strict=True):
            twin = model.get_layer(mark + layer.name)
            twin.set_weights(source.get_layer(layer.name).get_weights())
            twin.trainable = False
        if dedicated_from == "adapted":
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def _check_same_encoder(first: keras.Model, other: keras.Model) -> None:
    """Raises InputError unless the encoders have the same layers, outputs and weights of the same shapes."""

    def shapes(layer: keras.layers.Layer) -> list[Any]:
        outputs = [tuple(tensor.shape[1:]) for tensor in tree.flatten(layer.output)]
        return [outputs, [tuple(w.shape) for w in layer.weights]]

    ours, theirs = _halves(first)[0], _halves(other)[0]
    rule = "The encoders of a hybrid are of one design and for images of one shape."
    if first.input_shape != other.input_shape:
        raise _checks.error(rule, f"inputs {first.input_shape[1:]} and {other.input_shape[1:]}")
    names = [layer.name for layer in ours], [layer.name for layer in theirs]
    if names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1])) or ["the order of layers"]
        raise _checks.error(rule, f"{odd[0]!r} in one of {first.name!r} and {other.name!r} alone")
    for layer, twin in zip(ours, theirs, strict=True):
        if shapes(layer) != shapes(twin):
            mine, its = shapes(layer)[0][0], shapes(twin)[0][0]
            raise _checks.error(rule, f"{layer.name!r} with features of {mine} and {its}")


def _halves(model: keras.Model) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    """The layers up to the bottleneck, and those from the first decoder on."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise _checks.error(
            "A hybrid is made from a network with one input and one output.",
            f"{len(model.inputs)} inputs, {len(model.outputs)} outputs",
        )
    names = groups(model).names
    if not any(n.startswith("encoder") for n in names) or not any(n.startswith("decoder") for n in names):
        raise _checks.error(
            "A hybrid needs a network with encoder and decoder stages.", f"groups {', '.join(names)}"
        )
    if any(map(is_adapted, names)):
        raise _checks.error("A hybrid is made from a network with one encoder.", f"the hybrid {model.name!r}")
    inner = [layer for layer in model.layers if not isinstance(layer, layers.InputLayer)]
    nameless = [layer.name for layer in inner if group_name(layer.name) is None]
    if nameless:
        raise _checks.error("Every layer's name starts with its stage.", f"layer {nameless[0]!r}")
    decoder = [layer for layer in inner if _in_decoder(layer)]
    return [layer for layer in inner if not _in_decoder(layer)], decoder


def _in_decoder(layer: keras.layers.Layer) -> bool:
    name = group_name(layer.name) or ""
    return name.startswith("decoder") or name == HEAD


def _replay(
    chain: Iterable[keras.layers.Layer],
    tensors: dict[int, Any],
    new_layer: Callable[[keras.layers.Layer], keras.layers.Layer],
) -> dict[int, Any]:
    """Calls a new layer for each layer of ``chain`` on the counterparts of its inputs.

    Args:
        chain: layers of one network, inputs before outputs.
        tensors: counterpart of each tensor that enters the chain, by the ``id`` of the tensor.
        new_layer: makes the new layer from the old.

    Returns:
        ``tensors`` and the counterparts of all tensors that the chain makes.
    """
    tensors = dict(tensors)
    for layer in chain:
        try:
            old_input, old_output = layer.input, layer.output
            new_input = tree.map_structure(lambda tensor: tensors[id(tensor)], old_input)
        except (AttributeError, ValueError, KeyError) as reason:
            raise _checks.error(
                "A hybrid is made from a network whose layers are each called once.",
                f"{layer.name!r}, an input of which no first call of a layer makes",
            ) from reason
        new_output = new_layer(layer)(new_input)
        for old, new in zip(tree.flatten(old_output), tree.flatten(new_output), strict=True):
            tensors[id(old)] = new
    return tensors


def _copy(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """A new layer with the options of ``layer``, trainable, with initial weights."""
    return layer.__class__.from_config(layer.get_config() | {"name": name, "trainable": True})


def _frozen_copy(layer: keras.layers.Layer, mark: str) -> keras.layers.Layer:
    """The layer's counterpart in an adapted encoder; dropout drops nothing there, in training either."""
    copy = _copy(layer, mark + layer.name)
    set_quiet(copy, True)
    return copy


def _fuse_crossing(
    encoder: list[keras.layers.Layer],
    decoder: list[keras.layers.Layer],
    adapted: dict[str, dict[int, Any]],
    dedicated: dict[int, Any],
    fusion: type[keras.layers.Layer],
    fuse_at: str,
) -> dict[int, Any]:
    """What the decoder receives in place of each tensor that the encoder hands it, by its ``id``."""
    needed = {id(tensor) for layer in decoder for tensor in tree.flatten(layer.input)}
    deepest = group_name(encoder[-1].name)
    received = {}
    for layer in encoder:
        for i, tensor in enumerate(tree.flatten(layer.output)):
            key = id(tensor)
            if key not in needed:
                continue
            received[key] = dedicated[key]
            group = group_name(layer.name)
            # Pooling indices are no features: the dedicated encoder's are used.
            if "float" in tensor.dtype and (fuse_at == "all" or group == deepest):
                number, policy = i or "", layer.dtype_policy.name
                stopped = [
                    StopGradient(name=f"{mark}{layer.name}_stop{number}", dtype=policy)(tensors[key])
                    for mark, tensors in adapted.items()
                ]
                join = fusion(name=f"{group}_fusion{number}", dtype=policy)
                received[key] = join([*stopped, dedicated[key]])
    return received
