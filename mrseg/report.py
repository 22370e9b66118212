"""The report: one self-contained HTML page of text, tables and pictures.

The page asks nothing of the network (its content security policy forbids it), follows the reader's light or
dark theme, and prints. Text given to it is text: all of it is escaped.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from mrseg._checks import error
from mrseg._files import atomic_file
from mrseg.formats import to_latex, to_text, write_csv
from mrseg.pictures import to_png
from mrseg.tables import (
    DASH,
    Column,
    Estimate,
    Missing,
    Table,
    best_rows,
    by_class,
    cell_text,
    column_groups,
    interval_texts,
    is_missing,
    is_numeric,
    missing_reason,
    missing_reasons,
    table,
)
from mrseg.theme import to_svg

__all__ = [
    "Column", "Details", "Estimate", "Missing", "Notice", "Picture", "Section", "Table", "by_class",
    "table", "to_latex", "to_png", "to_svg", "to_text", "write_csv", "write_report",
]  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        caption: says what is seen; it is also what a screen reader reads.
        data: PNG (`to_png`) or SVG (`to_svg`).
        link: file beside the page that a click opens, e.g. the same in large.
    """

    caption: str
    data: bytes
    link: str = ""


@dataclass(frozen=True)
class Notice:
    """A paragraph set apart that the reader must not miss, e.g. that the data are synthetic."""

    text: str


@dataclass(frozen=True)
class Details:
    """Items folded away under a line that opens them.

    Attributes:
        summary: the line.
        items: what it opens; a mapping is shown as names and values.
    """

    summary: str
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        title: the heading.
        items: text (a paragraph each; with line breaks as it stands), `Table`, `Picture`, `Notice`,
            `Details`, or a mapping of names to values.
    """

    title: str
    items: tuple[Any, ...]


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    sections: Sequence[Section],
    notice: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page, whole or not at all.

    Args:
        path: where to; missing folders are made.
        title: the heading of the page.
        summary: paragraphs; the first is the verdict and is set larger.
        sections: the page in order, with a line of links to them on top.
        notice: what must be known before any number is read, e.g. that the data are synthetic.
        provenance: names to values (versions, command, seed, data, commit), folded away at the end; a value
            may be a mapping or a sequence.

    Returns:
        The path.

    Raises:
        InputError: an item is of a kind that the page cannot show, or a picture is neither PNG nor SVG.
        OSError: the folder cannot be written.

    Example:
        >>> made = table([{"model": "open", "dice": 0.71}], caption="Bone.")
        >>> write_report("report.html", title="T1-w to T2-w", summary=["It works."],
        ...              sections=[Section("Results", (made,))], provenance={"seed": 0})
    """
    content = "".join(_section(number, section) for number, section in enumerate(sections, start=1))
    links = "".join(
        f'<a href="#section-{number}">{_escape(section.title)}</a>'
        for number, section in enumerate(sections, start=1)
    )
    first, *others = summary or ("",)
    opening = (f'<p class="verdict">{_escape(first)}</p>' if first else "") + "".join(map(_item, others))
    body = [
        f"<header><h1>{_escape(title)}</h1>",
        _item(Notice(notice)) if notice else "",
        opening,
        f'<nav aria-label="Sections">{links}</nav>' if len(sections) > 1 else "",
        f"</header><main>{content}</main>",
        f"<footer>{_item(Details('Provenance', (provenance,)))}</footer>" if provenance else "",
    ]
    page = _PAGE.substitute(title=_escape(title), style=_STYLE, body="".join(body))
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _section(number: int, section: Section) -> str:
    items = "".join(map(_item, section.items))
    return f'<section id="section-{number}"><h2>{_escape(section.title)}</h2>{items}</section>'


def _item(item: Any) -> str:
    if isinstance(item, str):  # lines that stand below each other keep their columns
        return f"<pre>{_escape(item)}</pre>" if "\n" in item else f"<p>{_escape(item)}</p>"
    if isinstance(item, Table):
        return _table(item)
    if isinstance(item, Picture):
        return _picture(item)
    if isinstance(item, Notice):
        return f'<p class="notice" role="note">{_escape(item.text)}</p>'
    if isinstance(item, Details):
        inside = "".join(map(_item, item.items))
        return f"<details><summary>{_escape(item.summary)}</summary>{inside}</details>"
    if isinstance(item, Mapping):
        return _definitions(item)
    raise error(
        "A report shows text, Table, Picture, Notice, Details and mappings.", type(item).__name__,
        "Wrap a figure as Picture(caption, to_png(figure)) and rows as table(rows, caption=...).",
    )  # fmt: skip


def _picture(picture: Picture) -> str:
    return f"<figure>{_image(picture)}<figcaption>{_escape(picture.caption)}</figcaption></figure>"


def _image(picture: Picture) -> str:
    data = picture.data
    if data.startswith(b"\x89PNG"):
        kind = "image/png"
    elif b"<svg" in data[:1000]:
        kind = "image/svg+xml"
    else:
        raise error("A picture is PNG or SVG.", f"{len(data)} bytes that begin {data[:8]!r}")
    encoded = base64.b64encode(data).decode("ascii")
    image = f'<img alt="{_escape(picture.caption)}" src="data:{kind};base64,{encoded}">'
    return f'<a href="{_escape(quote(picture.link))}">{image}</a>' if picture.link else image


def _definitions(entries: Mapping[str, Any]) -> str:
    lines = []
    for name, value in entries.items():
        if isinstance(value, Mapping):
            shown = _definitions(value)
        elif isinstance(value, (list, tuple)):
            shown = "<br>".join(_escape(part) for part in value)
        else:
            shown = _escape(value)
        lines.append(f"<div><dt>{_escape(name)}</dt><dd>{shown}</dd></div>")
    return f"<dl>{''.join(lines)}</dl>"


def _table(made: Table) -> str:
    columns, rows = made.columns, made.ordered_rows
    right = {c.key: is_numeric(made, c) for c in columns}
    starts = {
        c.key
        for before, c in zip((None, *columns[:-1]), columns, strict=True)
        if before is not None and before.group != c.group
    }  # a rule between groups
    best = {c.key: best_rows(made, c) for c in columns}
    body = []
    for index, row in enumerate(rows):
        apart = made.is_reference(row) and (not index or not made.is_reference(rows[index - 1]))
        cells = "".join(
            _cell(
                made,
                row,
                c,
                index in best[c.key],
                _classes(right[c.key], c.key in starts),
                "th" if i == 0 else "td",
            )
            for i, c in enumerate(columns)
        )
        body.append(f'<tr class="reference">{cells}</tr>' if apart else f"<tr>{cells}</tr>")
    notes = [made.note] if made.note else []
    notes += ["Bold: the best of the compared rows."] if any(best.values()) else []
    notes += [f"{DASH} {reason}" for reason in missing_reasons(made)]
    foot = f'<p class="note">{"<br>".join(map(_escape, notes))}</p>' if notes else ""
    return (
        '<div class="table"><div class="scroll" tabindex="0"><table>'
        f"<caption>{_escape(made.caption)}</caption>{_head(columns, right, starts)}"
        f"<tbody>{''.join(body)}</tbody></table></div>{foot}</div>"
    )


def _head(columns: Sequence[Column], right: Mapping[str, bool], starts: set[str]) -> str:
    groups = ""
    if any(c.group for c in columns):
        for index, (name, count) in enumerate(column_groups(columns)):
            edge = " start" if index else ""
            groups += (
                f'<th colspan="{count}" scope="colgroup" class="group{edge}">{_escape(name)}</th>'
                if name
                else f'<td colspan="{count}" class="group{edge}"></td>'
            )
        groups = f"<tr>{groups}</tr>"
    heads = "".join(
        f'<th scope="col"{_classes(right[c.key], c.key in starts)}>{_escape(c.title or c.key)}'
        + (f' <span class="unit">{_escape(c.unit)}</span>' if c.unit else "") + "</th>"
        for c in columns
    )  # fmt: skip
    return f"<thead>{groups}<tr>{heads}</tr></thead>"


def _cell(made: Table, row: Mapping[str, Any], column: Column, best: bool, classes: str, tag: str) -> str:
    cell = row.get(column.key)
    if isinstance(cell, Picture):
        return f'<{tag} class="picture">{_image(cell)}</{tag}>'
    if isinstance(cell, tuple):
        kind = "list text" if any(len(line) > _SHORT for line in cell) else "list"
        return f'<{tag} class="{kind}">{"".join(f"<div>{_escape(line)}</div>" for line in cell)}</{tag}>'
    text = _escape(cell_text(cell, column))
    if is_missing(cell):
        text = f'<abbr title="{_escape(missing_reason(made, cell))}">{text}</abbr>'
    if best:
        text = f"<strong>{text}</strong>"
    small = "".join(f"<small>{_escape(part)}</small>" for part in interval_texts(cell, column))
    scope = ' scope="row"' if tag == "th" else ""
    return f"<{tag}{scope}{classes}>{text}{small}</{tag}>"


def _classes(right: bool, start: bool) -> str:
    names = " ".join(name for name, on in (("number", right), ("start", start)) if on)
    return f' class="{names}"' if names else ""


_SHORT = 30  # letters of a line in a cell; longer ones are broken

# Control characters are not allowed in HTML, escaped or not.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def _escape(text: Any) -> str:
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True)


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>$body</body>
</html>
""")

_STYLE = """
:root{--paper:#fff;--ink:#1c2024;--soft:#5b636c;--rule:#d5d9de;--tint:#f5f6f8;--link:#0b5cad;
--warn:#fff6e0;--warn-edge:#e69f00}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e8eb;--soft:#9aa3ad;--rule:#343a41;
--tint:#1c2025;--link:#7cb8f2;--warn:#2b2413;--warn-edge:#b57f0b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:2.5rem 1.5rem 4rem;max-width:92rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .8rem;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:3rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--rule)}
p{max-width:46rem;margin:.7rem 0}
.verdict{font-size:1.17rem;line-height:1.5}
.notice{max-width:60rem;padding:.7rem 1rem;background:var(--warn);border-left:4px solid var(--warn-edge)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1.2rem;font-size:.93rem}
a{color:var(--link);text-decoration:none}
a:hover,a:focus{text-decoration:underline}
.table{margin:1.4rem 0 1.8rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;line-height:1.35;font-variant-numeric:tabular-nums;
border-bottom:1.5px solid var(--ink);overflow-wrap:normal}
caption{caption-side:top;text-align:left;font-size:.95rem;padding-bottom:.6rem}
thead{border-top:1.5px solid var(--ink);border-bottom:1px solid var(--ink)}
th,td{padding:.38rem .45rem;text-align:left;vertical-align:top;white-space:nowrap}
th{font-weight:600}
thead th{vertical-align:bottom;white-space:normal}
tbody th{font-weight:500;position:sticky;left:0;background:var(--paper);overflow-wrap:normal}
tbody tr+tr{border-top:1px solid var(--rule)}
tbody tr.reference{border-top:1.5px solid var(--ink)}
tbody tr:hover>*{background:var(--tint)}
.number{text-align:right}
.group{text-align:center;padding-bottom:.1rem}
.start{border-left:1px solid var(--rule)}
.unit{font-weight:400;color:var(--soft)}
.unit::before{content:"["}.unit::after{content:"]"}
td.picture{min-width:17rem}
td.text{white-space:normal;min-width:14rem;max-width:22rem}
td.text div+div{margin-top:.35rem}
td small{display:block;white-space:normal;color:var(--soft);font-size:.73em;line-height:1.3}
abbr{text-decoration:none;color:var(--soft);cursor:help}
.note{font-size:.85rem;color:var(--soft);margin:.5rem 0 0;max-width:60rem}
figure{margin:1.4rem 0 2rem;max-width:72rem}
img{display:block;width:100%;height:auto;border-radius:4px}
figcaption{font-size:.9rem;color:var(--soft);margin-top:.5rem;max-width:60rem}
details{margin:1.5rem 0;border:1px solid var(--rule);border-radius:4px;padding:.2rem 1rem}
summary{cursor:pointer;padding:.5rem 0;font-weight:600}
footer{margin-top:3rem}
dl{margin:.2rem 0 .8rem;font-size:.9rem}
dl>div{display:grid;grid-template-columns:minmax(7rem,13rem) 1fr;gap:0 1rem;padding:.25rem 0;
border-top:1px solid var(--rule)}
dl>div:first-child{border-top:0}
dt{color:var(--soft)}
dd{margin:0;font-variant-numeric:tabular-nums}
dd>dl{margin:0}
@media print{:root{--paper:#fff;--ink:#000;--soft:#444;--rule:#bbb;--tint:#fff;--link:#000;--warn:#fff}
body{max-width:none;padding:0;font-size:10pt}nav{display:none}figure,.table,tr{break-inside:avoid}
img{width:auto;max-width:100%;max-height:150mm}
h2{break-after:avoid}.scroll{overflow:visible}table{font-size:7.5pt}th,td{padding:.2rem .3rem}
@page{size:A4 landscape;margin:14mm}}
"""
