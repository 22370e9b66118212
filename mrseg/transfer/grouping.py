"""The stages of a network, read off its layer names: what transfer freezes, thaws and reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import keras
from keras import layers

from mrseg import _checks
from mrseg.transfer.listing import text_table

#: Groups of the frozen encoder that a hybrid carries; they are never trained.
ADAPTED = "adapted_"
HEAD = "head"

_GROUP = re.compile(rf"((?:{ADAPTED})?(?:stem|encoder\d+|bottleneck|decoder\d+|{HEAD}))(?:_|$)")
_CONVOLUTIONS = (layers.Conv2D, layers.Conv3D, layers.DepthwiseConv2D, layers.SeparableConv2D)


@dataclass(frozen=True)
class Group:
    """One stage of a network.

    Attributes:
        name: "encoder1", "bottleneck", "decoder3", "head", "adapted_encoder1".
        layers: names of all its layers, from input to output.
        convs: names of those that count as convolutions (:func:`counts_as_conv`).
        parameters: numbers in all its tensors, BatchNormalization's moving statistics among them.
        trainable: those of them that training changes now.
        state: "trains", "frozen", or "partly" when only some of its layers train.
    """

    name: str
    layers: tuple[str, ...]
    convs: tuple[str, ...]
    parameters: int
    trainable: int
    state: str


@dataclass(frozen=True)
class Groups:
    """The groups of a network from input to output (a hybrid's adapted encoder first); prints as a table."""

    rows: tuple[Group, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(group.name for group in self.rows)

    @property
    def trainable(self) -> int:
        """Trainable parameters of the network."""
        return sum(group.trainable for group in self.rows)

    @property
    def parameters(self) -> int:
        """All parameters of the network."""
        return sum(group.parameters for group in self.rows)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Group:
        """The group of that name; an unknown name is an InputError that lists the names."""
        return self.rows[self.names.index(_checks.choice("A group of this network", name, self.names))]

    def __str__(self) -> str:
        rows = [(g.name, len(g.convs), g.parameters, g.trainable, g.state) for g in self.rows]
        total = ("total", sum(row[1] for row in rows), self.parameters, self.trainable, "")
        return text_table(("group", "convs", "parameters", "trainable", "state"), [*rows, total])


def groups(model: keras.Model) -> Groups:
    """The stages of ``model`` in order, with their convolutions and parameters.

    Args:
        model: network whose layer names start with the stage (``encoder1_conv2``, ``bottleneck_conv1``,
            ``decoder3_upsample``, ``head_logits``). Layers without weights may have any name.

    Raises:
        InputError: a layer that has weights bears no stage in its name.

    Example:
        >>> groups(se_unet3d((16, 16, 8, 1))).names
        ('encoder1', 'encoder2', 'encoder3', 'bottleneck', 'decoder3', 'decoder2', 'decoder1', 'head')
    """
    members: dict[str, list[keras.layers.Layer]] = {}
    for layer in model.layers:
        name = group_name(layer.name)
        if name is not None:
            members.setdefault(name, []).append(layer)
        elif layer.weights:
            raise _checks.error(
                "Stages are read off layer names such as encoder1_conv2, bottleneck_conv1, decoder3_conv1, "
                "head_logits.",
                f"layer {layer.name!r} of model {model.name!r}",
                "Name the layers by their stage.",
            )
    # sorted() is stable: only the adapted encoder's groups, which run beside the others, move to the front.
    ordered = sorted(members, key=lambda name: not name.startswith(ADAPTED))
    return Groups(tuple(_group(name, members[name]) for name in ordered))


def group_name(layer_name: str) -> str | None:
    """The group that a layer's name puts it in, or None.

    Example:
        >>> group_name("decoder3_conv1_bn")
        'decoder3'
    """
    match = _GROUP.match(layer_name)
    return match.group(1) if match else None


def counts_as_conv(layer: keras.layers.Layer) -> bool:
    """Whether the papers' "last k convolutions" count this layer: a convolution with a kernel larger than 1.

    Heads, shortcuts and gates of size 1, recalibration and transposed convolutions do not count.
    """
    return isinstance(layer, _CONVOLUTIONS) and max(layer.kernel_size) > 1


def _group(name: str, members: list[keras.layers.Layer]) -> Group:
    training = [bool(layer.trainable_weights) for layer in members if layer.weights]
    state = "trains" if all(training) else "partly" if any(training) else "frozen"
    return Group(
        name=name,
        layers=tuple(layer.name for layer in members),
        convs=tuple(layer.name for layer in members if counts_as_conv(layer)),
        parameters=sum(_size(layer.weights) for layer in members),
        trainable=sum(_size(layer.trainable_weights) for layer in members),
        state=state,
    )


def _size(variables: list[keras.Variable]) -> int:
    total = 0
    for variable in variables:
        count = 1
        for length in variable.shape:
            count *= length
        total += count
    return total
