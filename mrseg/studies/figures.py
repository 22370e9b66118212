"""Figures of a study: Dice by depth of fine-tuning and number of subjects, and time of computation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mrseg._checks import error
from mrseg.data.labels import OKABE_ITO
from mrseg.theme import FAINT, INK, WIDTH_IN, headline, new_figure, plain_axes

_COLOURS = ("vermillion", "orange", "blue", "purple", "green", "sky")


def depth_figure(
    dice: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], *, title: str = "Dice by depth"
) -> Figure:
    """Draws Dice by depth of fine-tuning, a panel per class and a line per number of subjects.

    Args:
        dice: class -> number of subjects (as text) -> depth -> Dice of every fold. The line is the mean, dots
            are folds.
        title: a line above the panels.

    Raises:
        InputError: no class, or more numbers of subjects than there are colours.

    Reference:
        mecheter2023, Figure 5, which has one line.
    """
    sizes = list(dict.fromkeys(size for of_class in dice.values() for size in of_class))
    if not dice or not 0 < len(sizes) <= len(_COLOURS):
        raise error(f"The figure has 1 to {len(_COLOURS)} numbers of subjects.", sizes)
    depths = list(dict.fromkeys(d for of_class in dice.values() for of in of_class.values() for d in of))
    height = 3.5
    figure = new_figure(height)
    panels = figure.subplots(1, len(dice), squeeze=False)[0]
    for axes, (name, of_class) in zip(panels, dice.items(), strict=True):
        plain_axes(axes, name)
        for number, size in enumerate(sizes):
            colour = OKABE_ITO[_COLOURS[number]]
            found = of_class.get(size, {})
            places = [place for place, depth in enumerate(depths) if depth in found]
            means = [float(np.mean(found[depths[place]])) for place in places]
            axes.plot(places, means, color=colour, linewidth=1.8)
            for place in places:
                folds = found[depths[place]]
                axes.plot([place] * len(folds), folds, "o", color=colour, markersize=4, alpha=0.6)
        axes.set_xticks(range(len(depths)), depths, parse_math=False)
        axes.set_xlabel("trained from the output", color=INK, fontsize=10)
    panels[0].set_ylabel("Dice", color=INK, fontsize=10)
    key = [(OKABE_ITO[_COLOURS[number]], "-", f"{size} subjects") for number, size in enumerate(sizes)]
    headline(figure, title, [*key, (FAINT, "o", "fold")])
    figure.subplots_adjust(left=0.065, right=0.985, top=1 - 0.85 / height, bottom=0.55 / height, wspace=0.2)
    return figure


def time_figure(seconds: Mapping[str, tuple[float, float]], *, title: str = "Time of computation") -> Figure:
    """Draws a bar per experiment: the whole training, and the part until convergence.

    Args:
        seconds: experiment -> seconds of one training, and seconds until its loss had made 95 % of its fall.
            An experiment without a time has no bar.
        title: a line above.

    Raises:
        InputError: no experiment has a time.

    Reference:
        mecheter2023, Figure 7.
    """
    known = {name: both for name, both in seconds.items() if not math.isnan(both[0])}
    if not known:
        raise error("The figure needs the time of one experiment or more.", "none")
    height = 1.3 + 0.32 * len(known)
    figure = new_figure(height)
    axes = figure.subplots()
    plain_axes(axes, "")
    axes.grid(visible=False)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.7)
    for place, (whole, converged) in enumerate(known.values()):
        axes.barh(place, whole, height=0.62, color=OKABE_ITO["sky"], alpha=0.45)
        if not math.isnan(converged):
            axes.barh(place, converged, height=0.62, color=OKABE_ITO["blue"])
        axes.text(whole, place, f" {whole:.0f} s", color=INK, fontsize=9.5, va="center")
    axes.set_yticks(range(len(known)), list(known), parse_math=False)
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * max(whole for whole, _ in known.values()))
    axes.set_xlabel("seconds of one training", color=INK, fontsize=10)
    headline(
        figure, title, [(OKABE_ITO["blue"], "s", "until convergence"), (OKABE_ITO["sky"], "s", "to the end")]
    )
    left = min(0.3, (0.35 + 0.083 * max(map(len, known))) / WIDTH_IN)
    figure.subplots_adjust(left=left, right=0.985, top=1 - 0.6 / height, bottom=0.55 / height)
    return figure
