"""Conservative fine-tuning: which layers train and which stay bit for bit as they were (mecheter2023, 3.3.2).

A frozen layer's weights do not move, and its BatchNormalization runs in inference mode: it normalises with
its stored statistics and does not update them (Keras does so for ``trainable = False``). Its dropout drops
nothing, which Keras does not see to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import keras

from mrseg import _checks
from mrseg.models.quiet import set_quiet
from mrseg.transfer.grouping import HEAD, Groups, groups, is_adapted
from mrseg.transfer.listing import text_table

FROZEN_DROPOUT = ("silent", "live")
#: What happens to BatchNormalization, whichever layers train.
NORMS = ("follow", "frozen", "train")
_NORM_LAYERS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


@dataclass(frozen=True)
class FreezeReport:
    """The groups of a network before and after a change of what trains; prints as a table.

    Attributes:
        before: as it was.
        after: as it is now.
        must_compile: the model was compiled before the change. Keras would go on with the old set of layers,
            so the compilation was withdrawn: call ``model.compile`` again before ``fit``.
    """

    before: Groups
    after: Groups
    must_compile: bool

    def __str__(self) -> str:
        rows = [
            (old.name, len(old.convs), old.parameters, old.trainable, new.trainable, new.state, new.dropout)
            for old, new in zip(self.before, self.after, strict=True)
        ]
        total = ("total", sum(row[1] for row in rows), self.before.parameters)
        rows.append((*total, self.before.trainable, self.after.trainable, "", ""))
        header = ("group", "convs", "parameters", "trainable before", "trainable after", "state", "dropout")
        note = "\nCompile the model again before fit." if self.must_compile else ""
        columns = None if any(g.dropout for g in (*self.before, *self.after)) else -1
        return text_table(header[:columns], [row[:columns] for row in rows]) + note


def train_last(
    model: keras.Model, convs: int | str, *, frozen_dropout: str = "silent", norms: str = "follow"
) -> FreezeReport:
    """Freezes all but the last ``convs`` convolutions, counted from the output as the papers count.

    Convolutions with a kernel larger than 1 count. A convolution's BatchNormalization goes with it. Once all
    convolutions of a group train, the rest of that group trains too: its recalibration, its gate and the
    transposed convolution that feeds it. The head always trains. In ``se_unet3d``:

    =====  ==========================
    convs  trains
    =====  ==========================
    0      head (the paper's "FC")
    3      + decoder1
    6      + decoder2
    9      + decoder3 ("decoder")
    12     + bottleneck
    15     + encoder3
    18     + encoder2
    21     + encoder1 ("all": open)
    =====  ==========================

    Args:
        model: network named by the scheme of :func:`~mrseg.transfer.grouping.groups`; changed in place.
        convs: 0 up to the network's number of convolutions, "decoder" or "all". A hybrid's adapted encoder is
            not counted and stays frozen.
        frozen_dropout: "silent": dropout and noise in frozen layers pass their input on while training;
            "live": they go on as Keras leaves them.
        norms: "follow": a BatchNormalization is frozen with its convolution, statistics and all; "frozen":
            every one is, also between layers that train (for batches too small to estimate statistics);
            "train": none is, so frozen groups too move their statistics, gamma and beta.

    Returns:
        The groups with their trainable parameters before and after.

    Raises:
        InputError: ``convs`` is none of these (the message gives the network's number of convolutions), or an
            unknown option.

    Reference:
        mecheter2023, section 3.3.2 and Table 4; mecheter2020, Table III.
    """
    table = groups(model)
    own = [group for group in table if not is_adapted(group.name)]
    if convs == "all":
        return _train_only(model, {name for group in own for name in group.layers}, frozen_dropout, norms)
    if convs == "decoder":
        decoder = [g for g in own if g.name.startswith("decoder") or g.name == HEAD]
        return _train_only(model, {name for g in decoder for name in g.layers}, frozen_dropout, norms)
    counted = [name for group in own for name in group.convs]
    if type(convs) is not int or not 0 <= convs <= len(counted):
        raise _checks.error(
            f'convs is "decoder", "all" or a number from 0 to the {len(counted)} convolutions of '
            f"{model.name!r}, counted from the output.",
            repr(convs),
        )
    last = set(counted[len(counted) - convs :])
    trained = last | {norm for norm, conv in _norms_of_convs(model).items() if conv in last}
    first = next((i for i, group in enumerate(own) if last & set(group.convs)), len(own))
    for i, group in enumerate(own):
        if group.name == HEAD or (i >= first and last.issuperset(group.convs)):
            trained |= set(group.layers)
    return _train_only(model, trained, frozen_dropout, norms)


def freeze(
    model: keras.Model, names: Sequence[str], *, frozen_dropout: str = "silent", norms: str = "follow"
) -> FreezeReport:
    """Freezes the groups of these names and trains all others.

    Args:
        model: network named by the scheme of :func:`~mrseg.transfer.grouping.groups`; changed in place.
        names: such as ["encoder1", "encoder2"]; an empty list trains everything. A hybrid's adapted encoder
            is frozen whether named or not.
        frozen_dropout: as in :func:`train_last`.
        norms: as in :func:`train_last`.

    Returns:
        The groups with their trainable parameters before and after.

    Raises:
        InputError: an unknown group (the message lists the network's groups) or option.
    """
    if isinstance(names, str):
        raise _checks.error("The groups to freeze come as a list.", repr(names), f"Write [{names!r}].")
    table = groups(model)
    frozen = {table[name].name for name in names}
    trained = [g for g in table if g.name not in frozen and not is_adapted(g.name)]
    return _train_only(model, {name for group in trained for name in group.layers}, frozen_dropout, norms)


def train_all(model: keras.Model, *, norms: str = "follow") -> FreezeReport:
    """Trains every group ("open" fine-tuning, mecheter2023 section 3.3.1) but a hybrid's adapted encoders."""
    return freeze(model, [], norms=norms)


def train_norms(model: keras.Model, *, head: bool = False) -> FreezeReport:
    """Trains gamma and beta of every normalisation and nothing else; BatchNormalization's statistics move.

    Args:
        model: network named by the scheme of :func:`~mrseg.transfer.grouping.groups`; changed in place.
        head: the head trains as well.

    Returns:
        The groups with their trainable parameters before and after.

    Raises:
        InputError: the network has no normalisation of its own.
    """
    table = groups(model)
    norms = [layer.name for layer in model.layers if isinstance(layer, _NORM_LAYERS)]
    own = {name for name in norms if not is_adapted(name)}
    if not own:
        raise _checks.error(
            "train_norms trains a network that normalises.", f"{model.name!r}, which does not"
        )
    if head:
        own |= {name for group in table if group.name == HEAD for name in group.layers}
    return _train_only(model, own, "silent", "follow")


def _norms_of_convs(model: keras.Model) -> dict[str, str]:
    """Name of each BatchNormalization that stands right behind a layer -> name of that layer."""
    pairs = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            pairs[layer.name] = layer.input._keras_history.operation.name
    return pairs


def _train_only(model: keras.Model, names: Collection[str], frozen_dropout: str, norms: str) -> FreezeReport:
    _checks.choice("frozen_dropout", frozen_dropout, FROZEN_DROPOUT)
    _checks.choice("norms", norms, NORMS)
    before = groups(model)
    model.trainable = True  # a model frozen as a whole would report no trainable weight of any layer
    for layer in model.layers:
        trains = layer.name in names
        if isinstance(layer, keras.layers.BatchNormalization) and not is_adapted(layer.name):
            trains = {"follow": trains, "frozen": False, "train": True}[norms]
        layer.trainable = trains
        set_quiet(layer, frozen_dropout == "silent")
    after = groups(model)
    changed = before != after and model.compiled
    if changed:
        model.compiled = False
    return FreezeReport(before, after, must_compile=changed)
