"""The picture shows each group, as long as it is large, in the colour of its state."""

from __future__ import annotations

import math

from matplotlib.colors import to_rgba

from mrseg.models.islam2025 import unet
from mrseg.transfer.drawing import FROZEN, TRAINS, draw_groups
from mrseg.transfer.freezing import freeze, train_last
from mrseg.transfer.grouping import groups


def bars(figure):
    """Row -> [(colour, width)] of the bars that are seen."""
    rows = {}
    for patch in figure.axes[0].patches:
        if patch.get_width() > 0:
            row = round(patch.get_y() + patch.get_height() / 2)
            rows.setdefault(row, []).append((patch.get_facecolor(), patch.get_width()))
    return rows


def test_frozen_and_trained_groups_bear_their_colours_and_lengths(tmp_path):
    model = unet((16, 16, 1), filters=2)
    train_last(model, 2)
    table = groups(model)
    figure = draw_groups(model)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(table.names)
    for row, group in enumerate(table):
        seen = bars(figure)[row]
        assert sum(width for _, width in seen) == math.log10(group.parameters + 1)
        colours = {colour for colour, _ in seen}
        if group.state == "frozen":
            assert colours == {to_rgba(FROZEN)}
    assert {colour for colour, _ in bars(figure)[len(table) - 1]} == {to_rgba(TRAINS)}  # the head
    figure.savefig(tmp_path / "groups.svg")


def test_a_picture_is_drawn_of_a_table_too():
    model = unet((16, 16, 1), filters=2)
    freeze(model, ["encoder1"])
    assert bars(draw_groups(groups(model))) == bars(draw_groups(model))
