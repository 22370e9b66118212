"""Figures of a study: what is drawn is what is given."""

import math

import pytest

from mrseg._checks import InputError
from mrseg.studies.figures import depth_figure, time_figure
from mrseg.theme import to_svg

DICE = {
    "bone": {"2": {"FC": [0.1, 0.3], "18 conv": [0.5, 0.7]}, "all": {"FC": [0.2], "18 conv": [0.8]}},
    "air": {"2": {"FC": [0.9, 0.9]}},
}


def test_a_line_is_the_mean_over_folds_and_a_dot_a_fold():
    figure = depth_figure(DICE)
    bone, air = figure.axes
    lines = [line for line in bone.lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx([0.2, 0.6]), [0.2, 0.8]]
    dots = sorted(float(y) for line in bone.lines if line.get_marker() == "o" for y in line.get_ydata())
    assert dots == [0.1, 0.2, 0.3, 0.5, 0.7, 0.8]
    assert [text.get_text() for text in bone.get_xticklabels()] == ["FC", "18 conv"]
    assert [list(line.get_xdata()) for line in air.lines if line.get_linestyle() == "-"] == [[0], []]
    assert to_svg(figure).startswith(b"<?xml")


def test_a_bar_is_the_training_and_its_part_until_convergence():
    figure = time_figure({"open": (20.0, 5.0), "none": (math.nan, math.nan), "hybrid": (10.0, math.nan)})
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [20.0, 5.0, 10.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["open", "hybrid"]
    assert {"20 s", "10 s"} <= {text.get_text().strip() for text in axes.texts}


def test_nothing_to_draw_is_told():
    with pytest.raises(InputError, match="1 to 6 numbers of subjects"):
        depth_figure({})
    with pytest.raises(InputError, match="1 to 6 numbers of subjects"):
        depth_figure({"bone": {str(i): {"FC": [0.1]} for i in range(7)}})
    with pytest.raises(InputError, match="time of one experiment"):
        time_figure({"none": (math.nan, math.nan)})
