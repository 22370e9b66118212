"""How plots look: one width, ink that follows the light or dark theme of the page, titles and keys above."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

WIDTH_IN = 11.0
# Sentinels: `to_svg` replaces them by variables that the page's theme sets.
INK, FAINT = "#24292f", "#8a9199"
_DARK = {INK: "#e6e8eb", FAINT: "#7d858f"}


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG with a transparent ground, its ink following the reader's light or dark theme.

    Letters are drawn as outlines, so that it looks the same everywhere; the same figure gives the same bytes.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mrseg", "svg.fonttype": "path"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().decode("utf-8")
    names = {INK: "--ink", FAINT: "--faint"}
    for colour, name in names.items():
        text = text.replace(colour, f"var({name})")
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{name}:{_DARK[colour]};" for colour, name in names.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    head, opened, rest = text.partition("<svg ")
    tag, closed, body = rest.partition(">")
    return (head + opened + tag + closed + style + body).encode("utf-8")


def new_figure(height_in: float) -> Figure:
    """An empty figure of the common width, without global state."""
    figure = Figure(figsize=(WIDTH_IN, height_in), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def headline(figure: Figure, title: str, key: Sequence[tuple[str, str, str]]) -> None:
    """Title on the left, the key to the marks on the right, both above the panels."""
    height = figure.get_figheight()
    figure.text(
        0.008,
        1 - 0.1 / height,
        title,
        color=INK,
        fontsize=12.5,
        fontweight="bold",
        va="top",
        parse_math=False,
    )
    handles = []
    for colour, mark, label in key:
        kind: dict[str, Any] = (
            {"linestyle": mark} if mark in ("-", "--") else {"linestyle": "", "marker": mark}
        )
        width = 2.0 if mark == "|" else 0.0
        handles.append(
            Line2D(
                [], [], color=colour, linewidth=1.8, markersize=8, markeredgewidth=width, label=label, **kind
            )
        )
    legend = figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(0.993, 1 - 0.06 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.5,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def plain_axes(axes: Any, name: str) -> None:
    """Axes with a name on the left, two spines and a faint grid."""
    axes.set_facecolor("none")
    axes.set_title(name, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.tick_params(colors=INK, labelsize=9.5, length=3, color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
