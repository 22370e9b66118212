"""Two methods side by side: what they are called, which test, and whose scores are refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from mrseg._checks import InputError
from mrseg.formats import write_csv, write_tables
from mrseg.opponent import Opponent, path_endings

SUBJECTS = [f"s{n}" for n in range(7)]


def rows(metric, values):
    return [
        {"subject": subject, "class": "bone", "metric": metric, "value": value}
        for subject, value in zip(SUBJECTS, values, strict=True)
    ]


def written(tmp_path, **options):
    """The comparison table of a method that is better by 0.1 in every subject; one distance is infinite."""
    mine = rows("dice", [0.9 + n / 1000 for n in range(7)]) + rows("hd95_mm", [1.0] * 7)
    theirs = rows("dice", [0.8] * 7) + rows("hd95_mm", [math.inf, *[2.0] * 6])
    other = tmp_path / "open" / "test" / "scores.csv"
    other.parent.mkdir(parents=True)
    write_csv(theirs, other)
    opponent = Opponent(other, **options)
    output = tmp_path / "hybrid" / "test"
    table, _ = opponent.compared(mine, opponent.read(SUBJECTS, output), output)
    write_tables({"comparison": table}, tmp_path)
    with open(tmp_path / "comparison.csv", encoding="utf-8", newline="") as file:
        return table, list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("/runs/t2", "/runs/none", ("t2", "none")),
        ("/runs/t2/test", "/runs/none/test", ("t2", "none")),
        ("/a/b/x/test", "/a/c/x/test", ("b/x", "c/x")),
        ("/test", "/a/test", ("test", "a")),
        ("/a/test", "/a/test", ("test (this)", "test (other)")),
    ],
)
def test_methods_are_named_by_the_shortest_endings_that_differ(one, other, names):
    assert path_endings(Path(one), Path(other)) == names


def test_a_table_of_scores_of_another_name_is_called_by_its_own(tmp_path):
    write_csv(rows("dice", [0.8] * 7), tmp_path / "unet.csv")
    opponent = Opponent(tmp_path / "unet.csv")
    table, _ = opponent.compared(
        rows("dice", [0.9] * 7), opponent.read(SUBJECTS, tmp_path), tmp_path / "hybrid"
    )
    assert table.caption.startswith("hybrid against unet,")


def test_wilcoxon_unless_another_test_is_asked_for(tmp_path):
    table, lines = written(tmp_path)
    assert table.caption.startswith("hybrid against open,")
    assert [line["test"] for line in lines] == ["wilcoxon", "wilcoxon"]
    assert float(lines[0]["p_value"]) == 2 / 2**7  # all seven signs alike


def test_permutation_leaves_infinite_distances_to_wilcoxon_and_says_so(tmp_path):
    table, lines = written(tmp_path, test="permutation", names=("Hybrid", "Open"))
    assert table.caption.startswith("Hybrid against Open,")
    assert [(line["metric"], line["test"]) for line in lines] == [
        ("Dice", "permutation"),
        ("HD95 [mm]", "wilcoxon"),
    ]
    assert float(lines[0]["p_value"]) == 2 / 2**7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test": "student"}, "wilcoxon, permutation"),
        ({"names": ("a", "a")}, "two different names"),
        ({"names": ("a", "")}, "two different names"),
    ],
)
def test_an_unknown_test_and_one_name_for_two_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Opponent("scores.csv", **options)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([{**row, "plane": "axial", "slice": 0} for row in rows("dice", [0.8] * 7)], "only in the first: s0"),
        (rows("dice", [0.8] * 7) * 2, "two of 's0'"),
        (rows("recall", [0.8] * 7), "Both methods have the metric 'dice'"),
    ],
    ids=["slices.csv", "two sequences", "no dice"],
)
def test_scores_that_cannot_be_compared_are_told_as_they_are_read(tmp_path, bad, words):
    write_csv(bad, tmp_path / "scores.csv")
    with pytest.raises(InputError, match=words):
        Opponent(tmp_path / "scores.csv").read(SUBJECTS, tmp_path / "out")


def test_scores_that_would_be_overwritten_and_other_subjects_are_refused(tmp_path):
    write_csv(rows("dice", [0.8] * 7), tmp_path / "scores.csv")
    with pytest.raises(InputError, match="Choose another output folder"):
        Opponent(tmp_path / "scores.csv").read(SUBJECTS, tmp_path)
    with pytest.raises(InputError, match="only in the second: s6"):
        Opponent(tmp_path / "scores.csv").read(SUBJECTS[:6], tmp_path / "out")
