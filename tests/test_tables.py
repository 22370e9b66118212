from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.tables import (
    ABSENT,
    DASH,
    Column,
    Estimate,
    Missing,
    best_rows,
    by_class,
    cell_text,
    column_groups,
    interval_texts,
    is_numeric,
    missing_reasons,
    table,
)

DICE = Column("dice", best="highest")


def rows_of(*values):
    return [{"model": f"m{i}", "dice": value} for i, value in enumerate(values)]


def test_table_shows_all_keys_in_order_of_first_appearance_by_default():
    made = table([{"a": 1}, {"b": 2, "a": 3}], caption="")
    assert [column.key for column in made.columns] == ["a", "b"]


def test_reference_rows_come_last_and_never_win():
    made = table(rows_of(0.9, 0.5, 0.7), [Column("model"), DICE], caption="", reference=["m0"])
    assert [row["model"] for row in made.ordered_rows] == ["m1", "m2", "m0"]
    assert best_rows(made, DICE) == {1}


def test_numbers_that_look_equal_are_all_best():
    made = table(rows_of(0.70041, 0.70012, 0.1), [Column("model"), DICE], caption="")
    assert best_rows(made, DICE) == {0, 1}


@pytest.mark.parametrize("values", [(0.5,), (0.5, math.nan), (math.nan, math.nan)])
def test_nothing_is_best_without_a_competitor(values):
    made = table(rows_of(*values), [Column("model"), DICE], caption="")
    assert best_rows(made, DICE) == frozenset()


def test_lowest_is_best_where_the_column_says_so():
    column = Column("dice", best="lowest")
    made = table(rows_of(3.0, 1.0, 2.0), [Column("model"), column], caption="")
    assert best_rows(made, column) == {1}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=2, max_size=8))
def test_best_agrees_with_a_plain_loop(values):
    made = table(rows_of(*values), [Column("model"), DICE], caption="")
    shown = [float(f"{v:.3f}") for v in values if not math.isnan(v)]
    expected = set()
    if len(shown) >= 2:
        for i, value in enumerate(values):
            if not math.isnan(value) and float(f"{value:.3f}") == max(shown):
                expected.add(i)
    assert best_rows(made, DICE) == expected


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.12345, "0.123"),
        (-1.0, "\N{MINUS SIGN}1.000"),
        (1234567, "1,234,567"),
        (np.int64(12), "12"),
        (np.float32(0.5), "0.500"),
        (True, "yes"),
        (math.inf, "\N{INFINITY}"),
        (-math.inf, "\N{MINUS SIGN}\N{INFINITY}"),
        ("open", "open"),
        (math.nan, DASH),
        (np.float32("nan"), DASH),
        (None, DASH),
        (Missing("why"), DASH),
        (Estimate(math.nan, 0.1), DASH),
        (Estimate(0.5), "0.500"),
    ],
)
def test_cell_text_is_what_a_reader_expects(cell, text):
    assert cell_text(cell, Column("c")) == text


def test_several_texts_of_a_cell_are_one_line_of_text():
    assert cell_text(("cut above", "few voxels"), Column("warnings")) == "cut above; few voxels"


def test_intervals_are_shown_as_far_as_they_are_known():
    column = Column("dice", decimals=2)
    assert interval_texts(Estimate(0.7, 0.02, 0.66, 0.75), column) == ("± 0.02", "[0.66, 0.75]")
    assert interval_texts(Estimate(0.7, low=0.66), column) == ()
    assert interval_texts(Estimate(0.7, math.nan, math.nan, 0.8), column) == ()
    assert interval_texts(0.7, column) == ()


def test_a_narrow_interval_never_reads_as_nothing():
    assert interval_texts(Estimate(0.7, 0.00042), Column("dice")) == ("± 0.0004",)
    assert interval_texts(Estimate(0.7, 0.0), Column("dice")) == ("± 0.000",)


def test_every_dash_has_its_reason_once_in_reading_order():
    cells = [{"x": math.nan}, {"x": Missing("no bone")}, {}, {"x": math.nan}]
    rows = [{"m": str(i), **cell} for i, cell in enumerate(cells)]
    made = table(rows, caption="", missing="both masks are empty")
    assert missing_reasons(made) == ("both masks are empty", "no bone", ABSENT)


def test_text_columns_are_not_numeric_and_dashes_do_not_count():
    made = table([{"m": "a", "x": math.nan, "y": 1}, {"m": "b", "x": 2.0, "y": "?"}], caption="")
    assert [is_numeric(made, column) for column in made.columns] == [False, True, False]


def test_groups_are_runs_of_neighbours():
    columns = [Column(str(i), group=group) for i, group in enumerate(["", "bone", "bone", "", "bone"])]
    assert column_groups(columns) == [("", 1), ("bone", 2), ("", 1), ("bone", 1)]


def summary_row(model, name, metric, value, **more):
    return {"model": model, "class": name, "metric": metric, "value": value, **more}


def test_by_class_lays_models_down_and_classes_across():
    rows = [
        summary_row("none", "bone", "dice", 0.4, half_width=0.01),
        summary_row("none", "soft", "dice", 0.8),
        summary_row("open", "bone", "dice", 0.7, low=0.6, high=0.75),
        summary_row("open", "bone", "hd95", 3.0),
    ]
    wide, columns = by_class(rows, extra={"open": {Column("seconds"): 12.5}})
    heads = [(column.group, column.heading) for column in columns]
    assert heads == [("", "model"), ("bone", "Dice"), ("soft", "Dice"), ("", "seconds")]
    assert wide[0] == {"model": "none", "bone dice": Estimate(0.4, 0.01), "soft dice": Estimate(0.8)}
    assert wide[1] == {"model": "open", "bone dice": Estimate(0.7, None, 0.6, 0.75), "seconds": 12.5}


def test_two_rows_for_one_cell_are_refused():
    rows = [summary_row("open", "bone", "dice", 0.7), summary_row("open", "bone", "dice", 0.8)]
    with pytest.raises(InputError, match="two for open, bone dice"):
        by_class(rows)


def test_rows_without_the_metric_are_refused():
    with pytest.raises(InputError, match="none with it"):
        by_class([summary_row("open", "bone", "hd95", 3.0)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: table([], caption=""), "at least one column"),
        (lambda: table([{"dice": 1}], ["dicee"], caption=""), "Did you mean 'dice'"),
        (lambda: table([{"dice": 1}], [Column("dice", best="top")], caption=""), "highest, lowest"),
        (lambda: table([{"model": "open"}], caption="", reference=["opn"]), "Did you mean 'open'"),
    ],
)
def test_a_table_that_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
