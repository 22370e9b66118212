"""The stages of a network, read off its layer names: what transfer freezes, thaws and reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
from keras import layers

from mrseg import _checks
from mrseg.models.quiet import is_random, is_silent
from mrseg.transfer.listing import text_table

HEAD = "head"

_GROUP = re.compile(rf"((?:adapted\d*_)?(?:stem|encoder\d+|bottleneck|decoder\d+|{HEAD}))(?:_|$)")
_Patterns = tuple[tuple[str, str, *tuple[int, ...]], ...]
#: How the families of keras.applications name their stages: pattern -> group; "{}" is the pattern's number,
#: plus the last item where there is one. Inception, Xception, NASNet and MobileNetV3 have layers without a
#: stage in the name.
_BACKBONES: dict[str, _Patterns] = {
    "VGG": ((r"block(\d+)_", "encoder{}"), (r"flatten$|fc\d$|predictions$", HEAD)),
    "ResNet, DenseNet": (
        (r"conv1_|pool1_", "stem"),
        (r"(?:conv|pool)([2-5])_", "encoder{}", -1),
        (r"post_|bn$|relu$", "bottleneck"),
        (r"avg_pool$|predictions$", HEAD),
    ),
    "EfficientNet": (
        (r"stem_|normalization(?:_\d+)?$|rescaling", "stem"),
        (r"block(\d+)", "encoder{}"),
        (r"top_(?:conv|bn|activation)", "bottleneck"),
        (r"avg_pool$|top_dropout$|predictions$", HEAD),
    ),
    "MobileNet": (
        (r"conv1(?:_|$)", "stem"),
        (r"conv_(?:dw|pw|pad)_(\d+)", "encoder{}"),
        (r"global_|dropout|conv_preds|predictions$", HEAD),
    ),
    "MobileNetV2": (
        (r"Conv1|bn_Conv1", "stem"),
        (r"expanded_conv_", "encoder1"),
        (r"block_(\d+)_", "encoder{}", 1),
        (r"Conv_1|out_relu", "bottleneck"),
        (r"global_|predictions$", HEAD),
    ),
    "ConvNeXt": (
        (r".+_stem$", "stem"),
        (r".+_stage_(\d)_", "encoder{}", 1),
        (r".+_downsampling_block_(\d)", "encoder{}", 2),
        (r"layer_normalization", "bottleneck"),
        (r".+_head_", HEAD),
    ),
}
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
        dropout: "silent" or "live" for dropout and noise in training; "" where there is none.
    """

    name: str
    layers: tuple[str, ...]
    convs: tuple[str, ...]
    parameters: int
    trainable: int
    state: str
    dropout: str = ""


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
        rows = [(g.name, len(g.convs), g.parameters, g.trainable, g.state, g.dropout) for g in self.rows]
        total = ("total", sum(row[1] for row in rows), self.parameters, self.trainable, "", "")
        header = ("group", "convs", "parameters", "trainable", "state", "dropout")
        columns = None if any(g.dropout for g in self.rows) else -1
        return text_table(header[:columns], [row[:columns] for row in (*rows, total)])


def groups(model: keras.Model) -> Groups:
    """The stages of ``model`` in order, with their convolutions and parameters.

    Args:
        model: network whose layer names start with the stage (``encoder1_conv2``, ``bottleneck_conv1``,
            ``decoder3_upsample``, ``head_logits``), or a backbone of ``keras.applications`` (VGG, ResNet,
            DenseNet, EfficientNet, MobileNet, ConvNeXt), whose blocks are listed as stem, encoder1, encoder2,
            ..., bottleneck and head. Layers without weights may have any name.

    Raises:
        InputError: no network; a layer that has weights bears no stage in its name.

    Example:
        >>> groups(se_unet3d((16, 16, 8, 1))).names
        ('encoder1', 'encoder2', 'encoder3', 'bottleneck', 'decoder3', 'decoder2', 'decoder1', 'head')
    """
    if not isinstance(model, keras.Model):
        raise _checks.error(
            "Groups are those of a Keras network.",
            type(model).__name__,
            "Of a segmenter, pass segmenter.model.",
        )
    members: dict[str, list[keras.layers.Layer]] = {}
    stage = _naming(model)
    for layer in model.layers:
        name = stage(layer.name)
        if name is not None:
            members.setdefault(name, []).append(layer)
        elif layer.weights:
            raise _checks.error(
                "Stages are read off layer names such as encoder1_conv2, bottleneck_conv1, decoder3_conv1, "
                "head_logits.",
                f"layer {layer.name!r} of model {model.name!r}",
                "Name the layers by their stage.",
            )
    # sorted() is stable: only the adapted encoders' groups, which run beside the others, move to the front.
    ordered = sorted(
        members, key=lambda name: (not is_adapted(name), len(adapted_prefix(name)), adapted_prefix(name))
    )
    return Groups(tuple(_group(name, members[name]) for name in ordered))


def group_name(layer_name: str) -> str | None:
    """The group that a layer's name puts it in, or None.

    Example:
        >>> group_name("decoder3_conv1_bn")
        'decoder3'
    """
    match = _GROUP.match(layer_name)
    return match.group(1) if match else None


def adapted_prefix(name: str) -> str:
    """What a frozen encoder's layer or group in a hybrid is marked by; "" for all others.

    Example:
        >>> adapted_prefix("adapted2_encoder1_conv1")
        'adapted2_'
    """
    match = re.match(r"adapted\d*_", name)
    return match.group() if match else ""


def is_adapted(name: str) -> bool:
    """Whether a layer or group belongs to a frozen encoder that a hybrid carries; these are never trained."""
    return bool(adapted_prefix(name))


def _naming(model: keras.Model) -> Callable[[str], str | None]:
    """How this model's layers are named: by the scheme, or as a family of keras.applications does."""
    weighted = [layer.name for layer in model.layers if layer.weights]
    for patterns in _BACKBONES.values():
        if any(group_name(name) is None for name in weighted):
            found = [_backbone_group(name, patterns) for name in weighted]
            if all(found):
                return lambda name, patterns=patterns: _backbone_group(name, patterns)  # type: ignore[misc]
    return group_name


def _backbone_group(layer_name: str, patterns: _Patterns) -> str | None:
    for pattern, group, *shift in patterns:
        match = re.match(pattern, layer_name)
        if match:
            return group.format(int(match.group(1)) + sum(shift)) if match.groups() else group
    return None


def counts_as_conv(layer: keras.layers.Layer) -> bool:
    """Whether the papers' "last k convolutions" count this layer: a convolution with a kernel larger than 1.

    Heads, shortcuts and gates of size 1, recalibration and transposed convolutions do not count.
    """
    return isinstance(layer, _CONVOLUTIONS) and max(layer.kernel_size) > 1


def _group(name: str, members: list[keras.layers.Layer]) -> Group:
    training = [bool(layer.trainable_weights) for layer in members if layer.weights]
    training = training or [any(layer.trainable for layer in members)]  # a pooling, a dropout
    state = "trains" if all(training) else "partly" if any(training) else "frozen"
    random = [layer for layer in members if is_random(layer)]
    silent = bool(random) and all(map(is_silent, random))
    return Group(
        name=name,
        layers=tuple(layer.name for layer in members),
        convs=tuple(layer.name for layer in members if counts_as_conv(layer)),
        parameters=sum(_size(layer.weights) for layer in members),
        trainable=sum(_size(layer.trainable_weights) for layer in members),
        state=state,
        dropout="silent" if silent else "live" if random else "",
    )


def _size(variables: list[keras.Variable]) -> int:
    total = 0
    for variable in variables:
        count = 1
        for length in variable.shape:
            count *= length
        total += count
    return total
