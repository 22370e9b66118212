"""Tables as text for the terminal and as LaTeX, and rows as CSV (`mrseg.report` writes the HTML)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrseg._checks import error
from mrseg._files import atomic_file
from mrseg.tables import (
    DASH,
    Column,
    Estimate,
    Missing,
    Table,
    best_rows,
    cell_text,
    column_groups,
    interval_texts,
    is_numeric,
    missing_reasons,
    plain_value,
)


def to_text(made: Table, *, intervals: bool = True) -> str:
    """The table as aligned plain text for the terminal.

    Args:
        made: the table.
        intervals: whether each `Estimate` shows its intervals; without them a wide table fits a terminal.
    """
    columns, rows = made.columns, made.ordered_rows
    body = [[_flat(row.get(c.key), c, intervals) for c in columns] for row in rows]
    widths = [max(len(c.heading), *(len(line[i]) for line in body), 1) for i, c in enumerate(columns)]
    right = [is_numeric(made, c) for c in columns]
    groups = column_groups(columns)
    at = 0
    for name, count in groups:  # a group's name may be wider than its columns
        widths[at + count - 1] += max(0, len(name) - sum(widths[at : at + count]) - 2 * (count - 1))
        at += count

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    lines = [made.caption, ""]
    if any(name for name, _ in groups):
        spans, at = [], 0
        for name, count in groups:
            spans.append(name.center(sum(widths[at : at + count]) + 2 * (count - 1)))
            at += count
        lines.append("  ".join(spans).rstrip())
    lines += [line([c.heading for c in columns]), line(["-" * w for w in widths])]
    for index, (row, cells) in enumerate(zip(rows, body, strict=True)):
        if index and made.is_reference(row) and not made.is_reference(rows[index - 1]):
            lines.append(line(["-" * w for w in widths]))
        lines.append(line(cells))
    footer = [made.note] if made.note else []
    footer += [f"{DASH} {reason}" for reason in missing_reasons(made)]
    return "\n".join(lines + ([""] + footer if footer else []))


def to_latex(made: Table) -> str:
    """The table as a LaTeX ``table`` with booktabs rules; the best numbers are bold."""
    columns, rows = made.columns, made.ordered_rows
    spec = "".join("r" if is_numeric(made, c) else "l" for c in columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(made.caption)}}}",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
    ]
    groups = column_groups(columns)
    if any(name for name, _ in groups):
        heads = [
            rf"\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" if name else " & ".join([""] * n)
            for name, n in groups
        ]
        lines.append(" & ".join(heads) + r" \\")
        at = 1
        for name, count in groups:
            if name:
                lines.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
            at += count
    lines += [" & ".join(_latex(c.heading) for c in columns) + r" \\", r"\midrule"]
    best = {c.key: best_rows(made, c) for c in columns}
    for index, row in enumerate(rows):
        if index and made.is_reference(row) and not made.is_reference(rows[index - 1]):
            lines.append(r"\midrule")
        cells = []
        for c in columns:
            value = _latex(cell_text(row.get(c.key), c))
            value = rf"\textbf{{{value}}}" if index in best[c.key] else value
            cells.append(" ".join([value, *map(_latex, interval_texts(row.get(c.key), c))]))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = ([made.note] if made.note else []) + [f"{DASH} {r}" for r in missing_reasons(made)]
    lines += [rf"\par\smallskip\footnotesize {_latex(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])


def write_tables(tables: Mapping[str, Table], folder: str | Path) -> Path:
    """Writes every table twice into a folder: ``<name>.tex`` as shown, ``<name>.csv`` with full precision.

    Raises:
        InputError: a table has no rows.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    for name, made in tables.items():
        keys = [column.key for column in made.columns]
        write_csv([{key: row.get(key) for key in keys} for row in made.ordered_rows], folder / f"{name}.csv")
        with atomic_file(folder / f"{name}.tex") as temporary:
            temporary.write_text(to_latex(made), encoding="utf-8")
    return folder


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Writes rows as CSV (UTF-8, header line), whole or not at all.

    Numbers keep full precision; NaN is written ``nan`` and an absent key leaves its field empty. An
    `Estimate` under key ``k`` fills the columns ``k``, ``k_half_width``, ``k_low`` and ``k_high``, as far as
    known.

    Raises:
        InputError: there are no rows, so that not even a header could be written.
        OSError: the folder cannot be written.
    """
    flat = [_csv_row(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if not names:
        raise error("A CSV file needs at least one row with one key.", f"{len(flat)} rows for {path}")
    path = Path(path)
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return path


def _flat(cell: Any, column: Column, intervals: bool) -> str:
    return " ".join([cell_text(cell, column), *(interval_texts(cell, column) if intervals else ())])


def _csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, cell in row.items():
        if isinstance(cell, Missing):
            cell = float("nan")
        flat[key] = "" if cell is None else plain_value(cell)
        if isinstance(cell, Estimate):
            for part in ("half_width", "low", "high"):
                if getattr(cell, part) is not None:
                    flat[f"{key}_{part}"] = getattr(cell, part)
    return flat


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", DASH: "--", "\N{MINUS SIGN}": "$-$", "\N{INFINITY}": r"$\infty$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
