"""Tables of results: tidy rows in, a `Table` out that `mrseg.formats` and `mrseg.report` can write."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrseg._checks import choice, error

#: What an empty or NaN cell shows; the reason stands under the table.
DASH = "\N{EN DASH}"

#: The reason for the dash of a key that a row does not have.
ABSENT = "does not apply to this row"


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty.

    Attributes:
        value: the estimate, in the unit of its column.
        half_width: half the width of a symmetric interval (Wald), shown as ``± half_width``.
        low: lower end of an interval that need not be symmetric (bootstrap), shown as ``[low, high]``.
        high: its upper end.
    """

    value: float
    half_width: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Missing:
    """A cell without a number, and the reason (shown under the table)."""

    reason: str


@dataclass(frozen=True)
class Column:
    """How one key of the rows is shown.

    Attributes:
        key: the key in the rows.
        title: the heading; the key itself if empty.
        unit: shown after the heading in brackets, e.g. ``mm``.
        group: a heading shared by neighbouring columns, e.g. a class name.
        decimals: digits after the point of a float; whole numbers show none.
        best: ``highest`` or ``lowest`` marks the best number of the column; ``""`` marks none.
    """

    key: str
    title: str = ""
    unit: str = ""
    group: str = ""
    decimals: int = 3
    best: str = ""

    @property
    def heading(self) -> str:
        """The title, with the unit in brackets where there is one."""
        title = self.title or self.key
        return f"{title} [{self.unit}]" if self.unit else title


@dataclass(frozen=True)
class Table:
    """Rows with a caption, ready to be written as HTML, text, LaTeX or CSV. Made by `table`.

    Attributes:
        caption: one or two sentences; says what the numbers are and over what they were taken.
        columns: the columns, first the one that names the row.
        rows: one mapping per row; a key that is absent is a missing value.
        missing: the reason given for cells that are NaN.
        reference: names (first column) of rows set apart below a rule, never marked as best.
        note: a line under the table, e.g. what the intervals are.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    missing: str = "undefined"
    reference: frozenset[str] = frozenset()
    note: str = ""

    def is_reference(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is one of those set apart."""
        return str(row.get(self.columns[0].key)) in self.reference

    @property
    def ordered_rows(self) -> tuple[Mapping[str, Any], ...]:
        """The rows, the ones set apart last."""
        return tuple(sorted(self.rows, key=self.is_reference))


def table(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[Column | str] | None = None,
    *,
    caption: str,
    missing: str = "undefined",
    reference: Iterable[str] = (),
    note: str = "",
) -> Table:
    """Makes a `Table` from tidy rows.

    Args:
        rows: mappings from key to a number, an `Estimate`, a `Missing`, text, a tuple of texts, a bool or
            None; on a page also a `mrseg.report.Picture`.
        columns: which keys to show, in order, as `Column` or bare key; by default all keys in the order in
            which they first appear.
        caption: what the table shows.
        missing: the reason for the dash of a NaN; `Missing` in a cell gives a reason of its own.
        reference: names of rows to set apart at the end.
        note: a line under the table.

    Raises:
        InputError: there is nothing to show, a column is in no row, or a reference row is not there.

    Example:
        >>> from mrseg.formats import to_text
        >>> rows = [{"model": "open", "dice": 0.71}, {"model": "none", "dice": float("nan")}]
        >>> print(to_text(table(rows, caption="Bone.", missing="no bone in the truth")))
        Bone.
        <BLANKLINE>
        model   dice
        -----  -----
        open   0.710
        none       –
        <BLANKLINE>
        – no bone in the truth
    """
    rows = tuple(dict(row) for row in rows)
    keys = _keys(rows)
    chosen = tuple(c if isinstance(c, Column) else Column(c) for c in (keys if columns is None else columns))
    if not chosen:
        raise error("A table needs at least one column.", f"{len(rows)} rows, columns={columns!r}")
    for column in chosen:
        if rows:
            choice("A column of the table", column.key, keys)
        choice("Column.best", column.best, ("", "highest", "lowest"))
    made = Table(caption, chosen, rows, missing, frozenset(reference), note)
    for name in made.reference:
        choice("A reference row of the table", name, [str(row.get(chosen[0].key)) for row in rows])
    return made


def by_class(
    rows: Iterable[Mapping[str, Any]],
    *,
    by: str = "model",
    metrics: Sequence[str] = ("precision", "recall", "dice", "jaccard"),
    classes: Sequence[str] | None = None,
    extra: Mapping[str, Mapping[Column, Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[Column]]:
    """Lays tidy summary rows out as the papers do: one row per model, a group of metrics per class.

    Args:
        rows: tidy rows with keys ``by``, class, metric, value and, where known, half_width, low, high.
            One row per (model, class, metric): summarise over subjects first.
        by: the key that names a row of the table.
        metrics: the metrics of each class, in order. The highest of each is marked.
        classes: the classes, in order; by default as they first appear.
        extra: more cells per row name, e.g. ``{"open": {Column("parameters"): 12345}}``.

    Returns:
        The rows and the columns for `table`. The key of a cell is ``"<class> <metric>"``.

    Raises:
        InputError: two rows claim the same cell, or no row has one of the metrics.

    Example:
        >>> rows = [{"model": "open", "class": "bone", "metric": "dice", "value": 0.71}]
        >>> table(*by_class(rows, metrics=["dice"]), caption="Held-out subjects.").rows[0]["bone dice"].value
        0.71
    """
    rows = list(rows)
    classes = list(dict.fromkeys(row["class"] for row in rows)) if classes is None else list(classes)
    wide: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["metric"] not in metrics or row["class"] not in classes:
            continue
        cells = wide.setdefault(row[by], {by: row[by]})
        key = f"{row['class']} {row['metric']}"
        if key in cells:
            raise error(
                f"The table has one value per {by}, class and metric.",
                f"two for {row[by]}, {key}",
                "Average over the subjects first, or keep one aggregation.",
            )
        cells[key] = Estimate(row["value"], row.get("half_width"), row.get("low"), row.get("high"))
    if not wide:
        raise error(
            f"The rows hold one of the metrics {', '.join(metrics)}.", f"{len(rows)} rows, none with it"
        )
    columns = [Column(by)]
    columns += [
        Column(f"{c} {m}", metric_title(m), group=c, best="highest") for c in classes for m in metrics
    ]
    for name, more in (extra or {}).items():
        for column, value in more.items():
            wide.setdefault(name, {by: name})[column.key] = value
            columns += [] if column in columns else [column]
    shown = _keys(wide.values())
    return list(wide.values()), [column for column in columns if column.key in shown]


def metric_title(metric: str) -> str:
    """How a metric is written: names of people and abbreviations with capitals, the unit in brackets."""
    return _TITLES.get(metric, metric)


_TITLES = {
    "dice": "Dice", "jaccard": "Jaccard", "hd95": "HD95", "assd": "ASSD", "avd": "AVD",
    "avd_percent": "AVD [%]", "hausdorff_mm": "Hausdorff [mm]", "hd95_mm": "HD95 [mm]",
    "assd_mm": "ASSD [mm]",
    "mean_true_to_pred_mm": "mean distance, truth to prediction [mm]",
    "mean_pred_to_true_mm": "mean distance, prediction to truth [mm]",
    "surface_dice_1mm": "surface Dice at 1 mm",
    "mask_hausdorff_voxels": "mask Hausdorff [voxels]",
}  # fmt: skip


def best_rows(made: Table, column: Column) -> frozenset[int]:
    """Indices into ``made.ordered_rows`` of the best number of a column, as shown; ties are all best.

    Reference rows and missing values do not compete; with fewer than two competitors nothing is marked.
    """
    if not column.best:
        return frozenset()
    shown = {
        index: round(float(plain_value(row.get(column.key))), column.decimals)
        for index, row in enumerate(made.ordered_rows)
        if not made.is_reference(row)
        and not is_missing(row.get(column.key))
        and isinstance(plain_value(row.get(column.key)), numbers.Real)
    }
    if len(shown) < 2:
        return frozenset()
    best = max(shown.values()) if column.best == "highest" else min(shown.values())
    return frozenset(index for index, value in shown.items() if value == best)


def is_missing(cell: Any) -> bool:
    """Whether a cell holds no value: None, NaN, an estimate of NaN, or `Missing`."""
    number = plain_value(cell)
    if number is None or isinstance(number, Missing):
        return True
    return isinstance(number, numbers.Real) and math.isnan(float(number))


def missing_reason(made: Table, cell: Any) -> str:
    """The reason for one dash: the cell's own, or that the row has no such key, or the table's for NaN."""
    if isinstance(cell, Missing):
        return cell.reason
    return ABSENT if cell is None else made.missing


def missing_reasons(made: Table) -> tuple[str, ...]:
    """The distinct reasons for the dashes of a table, in reading order; empty if there is no dash."""
    cells = [row.get(column.key) for row in made.ordered_rows for column in made.columns]
    return tuple(dict.fromkeys(missing_reason(made, cell) for cell in cells if is_missing(cell)))


def is_numeric(made: Table, column: Column) -> bool:
    """Whether every value of a column that is there is a number; such a column is set flush right."""
    cells = [row.get(column.key) for row in made.rows]
    kept = [plain_value(cell) for cell in cells if not is_missing(cell)]
    return bool(cells) and all(isinstance(c, numbers.Real) and not isinstance(c, bool) for c in kept)


def plain_value(cell: Any) -> Any:
    """What a cell holds without its interval, as a plain Python object."""
    cell = cell.value if isinstance(cell, Estimate) else cell
    return cell.item() if type(cell).__module__ == "numpy" and hasattr(cell, "item") else cell


def cell_text(cell: Any, column: Column) -> str:
    """The value of a cell as text, without its interval. A whole number gets thousands separators."""
    if is_missing(cell):
        return DASH
    number = plain_value(cell)
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, numbers.Integral):
        return _minus(f"{int(number):,}")
    if isinstance(number, numbers.Real):
        value = float(number)
        return _minus(f"{value:,.{column.decimals}f}") if math.isfinite(value) else _minus(f"{value}")
    return "; ".join(map(str, number)) if isinstance(number, tuple) else str(number)


def interval_texts(cell: Any, column: Column) -> tuple[str, ...]:
    """The intervals of an `Estimate` as text: ``± 0.012`` and ``[0.70, 0.79]``, each where known.

    A half-width too small for the column's decimals is shown with as many as its first digit needs: an
    interval of 0.0004 never reads as nothing.
    """
    if not isinstance(cell, Estimate) or is_missing(cell):
        return ()
    texts = []
    if cell.half_width is not None and math.isfinite(cell.half_width):
        size = abs(cell.half_width)
        decimals = max(column.decimals, -math.floor(math.log10(size))) if size else column.decimals
        texts.append(f"± {size:.{decimals}f}")
    ends = (cell.low, cell.high)
    if cell.low is not None and cell.high is not None and not any(map(math.isnan, (cell.low, cell.high))):
        texts.append("[" + ", ".join(_minus(f"{end:.{column.decimals}f}") for end in ends) + "]")
    return tuple(texts)


def column_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Runs of neighbouring columns that share a group: (name of the group, how many columns)."""
    runs: list[tuple[str, int]] = []
    for column in columns:
        if runs and runs[-1][0] == column.group:
            runs[-1] = (column.group, runs[-1][1] + 1)
        else:
            runs.append((column.group, 1))
    return runs


def _keys(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}").replace("inf", "\N{INFINITY}")
