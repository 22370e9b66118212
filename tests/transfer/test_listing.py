"""How the reports of mrseg.transfer are laid out."""

from __future__ import annotations

from mrseg.transfer.listing import text_table


def test_numbers_stand_right_with_thousands_apart_and_words_left():
    text = text_table(("group", "parameters"), [("head", 1234), ("bottleneck", 5)])
    assert text.split("\n") == ["group       parameters", "head             1,234", "bottleneck           5"]


def test_a_table_without_rows_is_its_header():
    assert text_table(("group", "parameters"), []) == "group  parameters"
