from __future__ import annotations

import csv
import math

import pytest

from mrseg._checks import InputError
from mrseg.formats import to_latex, to_text, write_csv, write_tables
from mrseg.tables import DASH, Column, Estimate, Missing, table

ROWS = [
    {"model": "none", "bone": Estimate(0.5, 0.01), "n": 1200},
    {"model": "open_7", "bone": Estimate(0.75, 0.02, 0.7, 0.8), "n": 7},
    {"model": "T1w on T1w", "bone": math.nan},
]
COLUMNS = [
    Column("model"),
    Column("bone", "Dice", group="bone", decimals=2, best="highest"),
    Column("n", unit="voxels"),
]
MADE = table(
    ROWS,
    COLUMNS,
    caption="Held-out subjects.",
    reference=["T1w on T1w"],
    missing="no bone",
    note="± is Wald.",
)


def test_text_is_aligned_and_says_why_a_value_is_missing():
    # Derived by hand: names flush left, numbers flush right, two blanks between columns.
    assert to_text(MADE, intervals=False).splitlines() == [
        "Held-out subjects.",
        "",
        "            bone",
        "model       Dice  n [voxels]",
        "----------  ----  ----------",
        "none        0.50       1,200",
        "open_7      0.75           7",
        "----------  ----  ----------",
        f"T1w on T1w     {DASH}           {DASH}",
        "",
        "± is Wald.",
        f"{DASH} no bone",
        f"{DASH} does not apply to this row",
    ]


def test_text_shows_intervals_when_asked():
    assert "0.75 ± 0.02 [0.70, 0.80]" in to_text(MADE)


def test_a_group_wider_than_its_columns_makes_room():
    made = table([{"m": "a", "x": 1}], [Column("m"), Column("x", group="a long class name")], caption="c")
    head, titles, rule, row = to_text(made).splitlines()[2:]
    assert head == "   a long class name"
    assert len(titles) == len(rule) == len(row) == len(head)


def test_text_of_a_table_without_rows_has_its_heading():
    assert to_text(table([], ["model", "dice"], caption="None.")).splitlines()[2] == "model  dice"


def test_latex_has_rules_groups_bold_and_escapes():
    latex = to_latex(MADE)
    assert r"\multicolumn{1}{c}{bone}" in latex and r"\cmidrule(lr){2-2}" in latex
    assert r"open\_7 & \textbf{0.75} $\pm$ 0.02 [0.70, 0.80] & 7 \\" in latex
    assert r"T1w on T1w & -- & -- \\" in latex
    assert latex.count(r"\midrule") == 2  # below the head, above the reference row
    assert latex.count("{") == latex.count("}")


def test_latex_has_as_many_cells_as_columns_in_every_line():
    lines = [line for line in to_latex(MADE).splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5
    assert {line.count("&") for line in lines} == {2}


def test_latex_escapes_every_special_character():
    special = r"\{}$&#%_~^<>"
    latex = to_latex(table([{"a": special}], caption=""))
    expected = r"\textbackslash{}\{\}\$\&\#\%\_\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    assert expected in latex


def test_csv_keeps_full_precision_and_tells_nan_from_absent(tmp_path):
    rows = [
        {"subject": 'a,"b"', "dice": 1 / 3, "n": 2},
        {"subject": "c", "dice": math.nan, "low": 0.1},
        {"subject": "d", "dice": Missing("no bone")},
    ]
    path = write_csv(rows, tmp_path / "new" / "rows.csv")
    with open(path, newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert float(read[0]["dice"]) == 1 / 3
    assert read[0]["subject"] == 'a,"b"' and read[0]["n"] == "2" and read[0]["low"] == ""
    assert read[1]["dice"] == "nan" and read[1]["low"] == "0.1"
    assert read[2]["dice"] == "nan"


def test_csv_spreads_an_estimate_over_columns(tmp_path):
    path = write_csv([{"m": "open", "dice": Estimate(0.7, 0.01, 0.6, 0.8)}], tmp_path / "a.csv")
    assert (
        path.read_text(encoding="utf-8")
        == "m,dice,dice_half_width,dice_low,dice_high\nopen,0.7,0.01,0.6,0.8\n"
    )


def test_csv_without_rows_is_refused_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(InputError, match="at least one row"):
        write_csv([], tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_tables_are_written_as_shown_and_with_full_precision(tmp_path):
    folder = write_tables({"bone": MADE}, tmp_path / "new" / "tables")
    assert (folder / "bone.tex").read_text(encoding="utf-8") == to_latex(MADE)
    with open(folder / "bone.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["none", "open_7", "T1w on T1w"]  # set apart: last
    assert rows[1] == {
        "model": "open_7", "bone": "0.75", "bone_half_width": "0.02", "bone_low": "0.7", "bone_high": "0.8",
        "n": "7",
    }  # fmt: skip
    with pytest.raises(InputError, match="at least one row"):
        write_tables({"none": table([], ["a"], caption="")}, folder)
