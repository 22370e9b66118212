"""One table from the CSVs of all benchmarks: work, ours, peer, ratio, range, goal, threads, versions.

    python benchmarks/table.py runs/bench                  # as text, for a terminal
    python benchmarks/table.py runs/bench --goals          # what has a goal alone
    python benchmarks/table.py docs/results/bench docs/results --markdown     # for a page

Of a benchmark with CSVs in several folders the first is read.

A ratio is peer / mrseg, the median over interleaved rounds; of pipelines it is what they deliver over what
the network consumes. Growth has exponents in the place of ratios. Benchmarks whose CSV is not there are named
at the end.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

#: In the order of the table; `make bench` runs those scripts.
FILES = (
    "metrics", "inference", "preprocessing", "features", "engines", "training", "input", "growth", "scaling",
    "gpu",
)  # fmt: skip
#: Those that name no goal of their own.
GOALS = {"inference": 3.0}
COLUMNS = ("work", "ours", "peer", "ratio", "range", "goal", "reached", "threads", "measured with")
_SLACK = 0.15  # of a fitted exponent: caches and pages, at eight sizes

Row = dict[str, str]


class Line(NamedTuple):
    """A line of the table; ``COLUMNS`` without the last two, then what was told about the machine."""

    work: str
    ours: str
    peer: str
    ratio: str
    range: str
    goal: str
    reached: str
    threads: str
    about: str


def main() -> None:
    """Prints the table and the notes below it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--goals", action="store_true", help="lines that have a goal alone")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    lines: list[Line] = []
    missing = []
    for name in FILES:
        paths = [folder / f"{name}.csv" for folder in options.folder]
        if path := next(filter(Path.is_file, paths), None):
            lines += read(name, path)
        else:
            missing.append(name)
    if options.goals:
        lines = [line for line in lines if line.goal]
    notes = list(dict.fromkeys(line.about for line in lines))
    cells = [[*line[:-1], f"[{notes.index(line.about) + 1}]"] for line in lines]
    print(*(markdown(cells) if options.markdown else text(cells)), sep="\n")
    print(*("", *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))), sep="\n")
    if missing:
        print(f"\nnot measured: {', '.join(missing)}")


def read(name: str, path: Path) -> Iterator[Line]:
    """The lines of one benchmark's CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    goal = str(GOALS.get(name, ""))
    if name == "input":
        return of_pipelines(rows)
    if name == "growth":
        return of_growth(rows)
    if rows and "method" in rows[0]:
        return of_methods(name, rows, goal)
    return of_peers(rows, goal)


def of_methods(name: str, rows: Iterable[Row], goal: str) -> Iterator[Line]:
    """Rows of `rounds.rows`: the first method of every work is ours."""
    ours: tuple[str, Row] | None = None
    for row in rows:
        columns = list(row)
        work = f"{name}: " + ", ".join(row[c] for c in columns[: columns.index("method")] if row[c])
        if ours is None or ours[0] != work:
            ours = work, row
        elif row["seconds"]:  # a peer that could not run has none
            mine = ours[1]
            wanted = "" if row["method"].startswith("mrseg") else row.get("goal") or mine.get("goal") or goal
            yield Line(
                work, f"{mine['method']} {duration(mine['seconds'])}",
                f"{row['method']} {duration(row['seconds'])}", row["ratio"],
                f"{row['ratio_low']} to {row['ratio_high']}", wanted, reached(row["ratio"], wanted),
                row["threads"], about(row),
            )  # fmt: skip


def of_peers(rows: Iterable[Row], goal: str) -> Iterator[Line]:
    """A row a peer, milliseconds of mrseg and of the peer; or an ordinary epoch beside one on features."""
    for row in rows:
        if "once_s" in row:
            work = f"epoch: {row['case']}, {row['input']}"
            ours, peer = f"features kept {row['cached_s']} s", f"ordinary {row['ordinary_s']} s"
        else:
            work = ", ".join(row[c] for c in ("what", "shape") if row.get(c))
            ours, peer = f"{row['mrseg_ms']} ms", f"{row['peer']} {row['peer_ms']} ms"
        wanted = row.get("goal") or goal
        yield Line(
            work, ours, peer, row["ratio"], f"{row['ratio_low']} to {row['ratio_high']}", wanted,
            reached(row["ratio"], wanted), row.get("threads", ""), about(row),
        )  # fmt: skip


def of_pipelines(rows: Iterable[Row]) -> Iterator[Line]:
    """What a pipeline delivers beside what its network consumes."""
    for row in rows:
        fast = "" if row["feeds_a_fast_gpu"] == "yes" else " (below 100)"
        yield Line(
            f"input of {row['recipe']}, {row['input']}, augmentation {row['augmentation']}",
            f"pipeline {row['patches_per_s']}/s{fast}",
            f"training {row['network_patches_per_s']}/s", row["ratio"],
            f"{row['ratio_low']} to {row['ratio_high']}", row["goal"], reached(row["ratio"], row["goal"]),
            row["threads"], about(row),
        )  # fmt: skip


def of_growth(rows: list[Row]) -> Iterator[Line]:
    """One line for time and one for memory of every work, at the largest size."""
    last = {(row["against"], row["work"]): row for row in rows}
    for (against, work), row in last.items():
        for what, value in (("time", f"{row['seconds']} s"), ("memory", f"{row['peak_mb']} MB")):
            found, wanted = float(row[f"{what}_exponent"]), float(row[f"{what}_expected"])
            yield Line(
                f"{what} of {work} against {against}", f"{value} at {row['case']}",
                "linear" if wanted else "constant", f"size^{found}", "", f"size^{wanted:g}",
                "yes" if found <= wanted + _SLACK else "no", row["threads"], about(row),
            )  # fmt: skip


def duration(seconds: str) -> str:
    """Seconds, or milliseconds below one."""
    value = float(seconds)
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def reached(ratio: str, goal: str) -> str:
    """Whether a ratio reaches its goal; nothing where there is none."""
    return "" if not goal or not ratio else "yes" if float(ratio) >= float(goal) else "no"


def about(row: Row) -> str:
    """Versions, and the machine."""
    return "; ".join(part for part in (row.get("versions", ""), row.get("machine", "")) if part)


def markdown(cells: list[list[str]]) -> Iterator[str]:
    """Lines of a table for a page."""
    for row in [list(COLUMNS), ["---"] * len(COLUMNS), *cells]:
        yield f"| {' | '.join(row)} |"


def text(cells: list[list[str]]) -> Iterator[str]:
    """Lines in columns as wide as what they hold."""
    table = [list(COLUMNS), *cells]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    main()
