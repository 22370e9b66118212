from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text

from mrseg._checks import InputError
from mrseg.plots import bland_altman, dot_plot, learning_curves, read_log, signal_curves
from mrseg.theme import to_svg

LOG = {"epoch": [1, 2, 3, 4], "loss": [4.0, 3.0, 2.0, 1.0], "val_loss": [4.0, 2.0, math.nan, 3.0]}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_log_is_read_column_by_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss,val_loss\n0,1.5,2.5\n1,1.25,\n", encoding="utf-8")
    log = read_log(path)
    np.testing.assert_array_equal(log["epoch"], [0, 1])
    np.testing.assert_array_equal(log["loss"], [1.5, 1.25])
    np.testing.assert_array_equal(log["val_loss"], [2.5, math.nan])


def test_a_log_without_epochs_column_counts_from_zero(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("loss\n3\n2\n", encoding="utf-8")
    np.testing.assert_array_equal(read_log(path)["epoch"], [0, 1])


@pytest.mark.parametrize(
    ("text", "message"), [("", "0 epochs"), ("loss\n", "0 epochs"), ("loss\nx\n", "'x'")]
)
def test_a_log_without_numbers_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_log(path)
    assert "log.csv" in str(caught.value)


def test_the_best_epoch_is_marked_where_the_monitor_is_lowest():
    assert "best epoch 2: 2.000" in texts(learning_curves({"T1w": LOG}))


def test_the_best_epoch_can_be_the_highest():
    assert "best epoch 1: 4.000" in texts(learning_curves({"T1w": LOG}, best="highest"))


def test_a_log_without_validation_is_marked_on_the_training_curve():
    assert "best epoch 2: 1.000" in texts(learning_curves({"T1w": {"loss": [3.0, 2.0, 1.0]}}))


def test_a_training_that_was_never_finite_says_so():
    shown = texts(learning_curves({"T1w": {"loss": [math.nan, math.nan]}}))
    assert "loss was never finite" in shown and not any(t.startswith("best") for t in shown)


def test_all_trainings_have_a_panel_on_one_scale():
    figure = learning_curves({f"run {i}": {"loss": [i + 1.0, i + 0.5]} for i in range(5)})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [f"run {i}" for i in range(5)]
    assert len({axes.get_ylim() for axes in shown}) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learning_curves({}), "at least one log"),
        (lambda: learning_curves({"a": LOG}, metric="los"), "Did you mean 'loss'"),
        (lambda: learning_curves({"a": LOG}, best="best"), "lowest, highest"),
        (lambda: learning_curves({"a": {"loss": [1.0], "val_loss": []}}), "lengths"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def subject_rows(**values):
    return [
        {"model": model, "subject": f"sub-{i}", "class": "bone", "metric": "dice", "value": value}
        for model, found in values.items()
        for i, value in enumerate(found)
    ]


def dots(axes):
    return [line for line in axes.lines if line.get_marker() == "o"]


def test_every_subject_is_a_dot_and_nan_is_none():
    figure = dot_plot(subject_rows(none=[0.2, 0.4, math.nan], open=[0.5, 0.7, 0.9]))
    first, second = dots(figure.axes[0])
    np.testing.assert_array_equal(first.get_xdata(), [0.2, 0.4])
    np.testing.assert_array_equal(second.get_xdata(), [0.5, 0.7, 0.9])


def test_the_mean_is_marked_unless_a_summary_says_otherwise():
    rows = subject_rows(none=[0.25, 0.75], open=[0.5, 0.75])
    summary = [{"model": "open", "class": "bone", "metric": "dice", "value": 0.6, "low": 0.55, "high": 0.7}]
    lines = {tuple(line.get_xdata()) for line in dot_plot(rows, summary=summary).axes[0].lines}
    assert {(0.5, 0.5), (0.6, 0.6), (0.55, 0.7)} <= lines


def test_a_model_without_any_value_keeps_its_line_and_says_so():
    assert "no value" in texts(dot_plot(subject_rows(none=[math.nan], open=[0.5])))


def test_the_reference_is_a_line_through_the_others():
    figure = dot_plot(subject_rows(open=[0.5, 0.7], ideal=[0.8, 0.9]), reference="ideal")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["open"]
    assert any(np.allclose(line.get_xdata(), 0.85) for line in figure.axes[0].lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"metric": "hd95"}, "metric 'hd95'"), ({"reference": "opn"}, "Did you mean 'open'")],
)
def test_dots_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        dot_plot(subject_rows(open=[0.5]), **options)


def test_svg_follows_the_theme_and_is_the_same_each_time():
    made = to_svg(learning_curves({"a $x$ <b>": LOG}, title="100 $ & <more>"))
    assert made == to_svg(learning_curves({"a $x$ <b>": LOG}, title="100 $ & <more>"))
    text = made.decode()
    assert "prefers-color-scheme:dark" in text and "var(--ink)" in text
    assert "#24292f" not in text.split("</style>", 1)[1]
    assert ElementTree.fromstring(text).tag.endswith("svg")


CURVE = [
    {"time_s": 0.0, "mean_signal": 100.0, "sd": 5.0, "delta_r2star": 0.0, "baseline": 1},
    {"time_s": 1.5, "mean_signal": 60.0, "sd": 4.0, "delta_r2star": 11.4, "baseline": 0},
    {"time_s": 3.0, "mean_signal": 0.0, "sd": 0.0, "delta_r2star": math.nan, "baseline": 0},
]


def test_signal_curves_draw_what_the_rows_say():
    figure = signal_curves({"brain": CURVE}, title="Case 1")
    signal, change = figure.axes
    np.testing.assert_array_equal(signal.lines[0].get_xydata(), [[0, 100], [1.5, 60], [3, 0]])
    np.testing.assert_array_equal(change.lines[0].get_ydata(), [0, 11.4, math.nan])
    assert {"Case 1", "brain", "baseline", "time [s]"} <= set(texts(figure))
    ElementTree.fromstring(to_svg(figure))


def test_the_baseline_is_marked_at_its_times_alone():
    marks = [line for line in signal_curves({"brain": CURVE}).axes[0].lines if line.get_marker() == "|"]
    np.testing.assert_array_equal(marks[0].get_xdata(), [0.0])


@pytest.mark.parametrize("curves", [{}, {"brain": []}, {str(i): CURVE for i in range(7)}])
def test_signal_curves_without_rows_or_colours_are_refused(curves):
    with pytest.raises(InputError, match="one to 6 regions"):
        signal_curves(curves)


def lines_at(axes):
    """Heights of the horizontal lines across a panel."""
    return sorted(float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() != "None")


def test_bias_and_limits_are_drawn_where_they_are():
    """Differences 2, 4, 0 ml: bias 2, standard deviation 2."""
    true = np.array([10.0, 20.0, 30.0])
    figure = bland_altman({"bone": (true, true + [2.0, 4.0, 0.0]), "air": (true[:1], true[:1])})
    bone, air = (axes for axes in figure.axes if axes.get_visible())
    assert lines_at(bone) == pytest.approx([2 - 1.96 * 2, 0.0, 2.0, 2 + 1.96 * 2])
    (dots,) = [line for line in bone.lines if line.get_linestyle() == "None"]
    np.testing.assert_allclose(dots.get_xdata(), [11.0, 22.0, 30.0])
    np.testing.assert_allclose(dots.get_ydata(), [2.0, 4.0, 0.0])
    assert lines_at(air) == [0.0, 0.0]  # one subject has no limits


def test_agreement_without_a_subject_is_refused():
    with pytest.raises(InputError, match="at least one subject"):
        bland_altman({})
    with pytest.raises(InputError, match="at least one subject"):
        bland_altman({"bone": (np.array([]), np.array([]))})
