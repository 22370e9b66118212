"""A picture of a network's groups: what is frozen in one colour, what trains in another."""

from __future__ import annotations

import math

import keras
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mrseg.transfer.grouping import Group, Groups, groups

FROZEN, TRAINS = "#0072B2", "#D55E00"  # blue and vermillion of Okabe and Ito, told apart by everybody
_ROW_IN, _WIDTH_IN = 0.34, 7.0


def draw_groups(model: keras.Model | Groups) -> Figure:
    """One bar for each group, from input (top) to output, as long as its parameters are many (logarithmic).

    The part of a bar that training changes bears one colour, the rest another; the numbers of convolutions
    and parameters stand beside it.

    Args:
        model: network, or its groups.

    Returns:
        A matplotlib figure; ``figure.savefig("groups.svg")`` writes it.
    """
    table = model if isinstance(model, Groups) else groups(model)
    figure = Figure(figsize=(_WIDTH_IN, _ROW_IN * (len(table) + 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, group in enumerate(table):
        length = _length(group.parameters)
        share = group.trainable / group.parameters if group.parameters else 0.0
        axes.barh(place, length * share, color=TRAINS)
        axes.barh(place, length * (1 - share), left=length * share, color=FROZEN)
        axes.text(length + 0.05, place, _words(group), va="center", fontsize=8)
    axes.set_yticks(range(len(table)), table.names)
    axes.set_ylim(len(table) - 0.4, -0.6)
    longest = max((_length(group.parameters) for group in table), default=0)
    axes.set_xlim(0, longest * 1.6 + 1)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(
        handles=[Patch(color=TRAINS, label="trains"), Patch(color=FROZEN, label="frozen")],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure


def _length(parameters: int) -> float:
    """Logarithmic, so that a head of 99 parameters is seen beside a bottleneck of millions."""
    return math.log10(parameters + 1)


def _words(group: Group) -> str:
    convs = f"{len(group.convs)} convolution{'' if len(group.convs) == 1 else 's'}"
    dropout = f", dropout {group.dropout}" if group.dropout else ""
    return f"{convs}, {group.parameters:,} parameters{dropout}"
