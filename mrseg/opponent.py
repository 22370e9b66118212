"""The other method of an evaluation: its scores, what both are called, and the test between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrseg._checks import choice, error
from mrseg.plots import dot_plot
from mrseg.report import Picture
from mrseg.score_tables import comparison_table
from mrseg.summaries import Row, check_same_subjects, compare, read_rows, whole_rows
from mrseg.tables import Table
from mrseg.theme import to_svg

TESTS = ("wilcoxon", "permutation")

#: Metrics that are tested, where both methods have them.
_COMPARED = ("dice", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class Opponent:
    """Another method, scored on the same subjects.

    Attributes:
        scores: its ``scores.csv``.
        names: of the evaluated and of the other method; None takes the ends of their folders' paths, as much
            of them as tells them apart.
        test: ``wilcoxon`` or ``permutation``, see `mrseg.metrics.paired_test`. A metric with infinite values
            (the distances of a missed structure) has no mean to permute and is tested by Wilcoxon; every row
            names its test.
    """

    scores: str | Path
    names: tuple[str, str] | None = None
    test: str = "wilcoxon"

    def __post_init__(self) -> None:
        choice("The test", self.test, TESTS)
        if self.names is not None and (len(set(self.names)) != 2 or not all(self.names)):
            raise error("Two compared methods have two different names.", " and ".join(map(repr, self.names)))

    def read(self, subjects: Sequence[str], output: Path) -> list[Row]:
        """Rows of the other method.

        Args:
            subjects: those that are evaluated.
            output: folder that the evaluation will write to.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: no table of scores, one without Dice or with two scans of a subject, other subjects,
                or the very file that would be overwritten.
        """
        if Path(self.scores).resolve() == (output / "scores.csv").resolve():
            raise error(
                "The other method's scores are another file than the one to be written.",
                self.scores,
                "Choose another output folder.",
            )
        rows = whole_rows(read_rows(self.scores))
        check_same_subjects(subjects, [row["subject"] for row in rows])
        # Rows that cannot be compared, here with themselves, are told before minutes of prediction.
        compare(rows, rows)
        return rows

    def compared(self, rows: Sequence[Row], rows_other: Sequence[Row], output: Path) -> tuple[Table, Picture]:
        """The paired tests, and a picture of the subjects of both methods.

        Args:
            rows: of whole subjects, for the evaluated method.
            rows_other: what `read` gave.
            output: folder of the evaluation, which names the method.
        """
        names = self.names or path_endings(output, _folder(Path(self.scores)))
        shared = {row["metric"] for row in rows} & {row["metric"] for row in rows_other}
        tested: list[Row] = []
        for metric in [metric for metric in _COMPARED if metric in shared] or ["dice"]:
            infinite = any(
                row["metric"] == metric and math.isinf(row["value"]) for row in (*rows, *rows_other)
            )
            test = "wilcoxon" if infinite else self.test
            tested += compare(rows, rows_other, metrics=[metric], method=test)
        both = [
            {**row, "method": name}
            for name, of_one in zip(names, (rows, rows_other), strict=True)
            for row in of_one
        ]
        dots = dot_plot(both, by="method", title="Dice of every subject")
        return comparison_table(tested, names=names), Picture("Every dot is a subject.", to_svg(dots))


def path_endings(one: Path, other: Path) -> tuple[str, str]:
    """The shortest endings of two paths that differ: ``t2`` and ``none`` of runs/t2/test and runs/none/test.

    A last folder ``test`` names nobody and is left out. One path twice (scores of another name in one folder)
    is told apart by words.
    """
    ends = [path.resolve().parts[::-1] for path in (one, other)]
    ends = [parts[parts[0] == "test" and len(parts) > 2 :] for parts in ends]
    for length in range(1, max(map(len, ends)) + 1):
        names = ["/".join(parts[:length][::-1]).replace("//", "/") for parts in ends]
        if names[0] != names[1]:
            return names[0], names[1]
    return f"{one.resolve().name} (this)", f"{other.resolve().name} (other)"


def _folder(scores: Path) -> Path:
    """What names a method: the folder of its ``scores.csv``, or the file where it is called otherwise."""
    return scores.parent if scores.name == "scores.csv" else scores.with_suffix("")
