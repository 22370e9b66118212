from __future__ import annotations

import base64
import html.parser
import io
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from mrseg._checks import InputError
from mrseg.plots import learning_curves
from mrseg.report import (
    Column,
    Details,
    Estimate,
    Missing,
    Notice,
    Picture,
    Section,
    by_class,
    table,
    to_svg,
    write_report,
)

EVIL = "<script>alert('x')</script> & \"q\" $title"
VOID = {"meta", "img", "br", "col", "link"}


class Page(html.parser.HTMLParser):
    """Reads a page, insists that tags nest, and keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def solid_png(colour, size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def full_report(path):
    values = {("none", "bone"): 0.4, ("open", "bone"): 0.7, (EVIL, "bone"): math.nan, ("none", "soft"): 0.9}
    intervals = {"half_width": 0.01, "low": 0.1, "high": 0.9}
    rows = [
        {"model": model, "class": name, "metric": "dice", "value": value, **intervals}
        for (model, name), value in values.items()
    ]
    made = table(
        *by_class(rows, extra={"open": {Column("seconds", unit="s"): 12.5}}),
        caption=f"Caption {EVIL}", missing="both masks are empty", reference=["none"], note=f"Note {EVIL}",
    )  # fmt: skip
    curves = to_svg(learning_curves({EVIL: {"loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.0, 2.0]}}))
    return write_report(
        path,
        title=f"Title {EVIL}",
        notice=f"Synthetic {EVIL}",
        summary=[f"Verdict {EVIL}", "More."],
        sections=[
            Section(f"Results {EVIL}", (made, Notice("Mind this."))),
            Section("Pictures", (Picture(f"Red {EVIL}", solid_png("red")), Picture("Curves", curves))),
            Section("Rest", ("Words.", Details(f"More {EVIL}", (made,)), {"threshold": EVIL})),
        ],
        provenance={"seed": 0, "versions": {"mrseg": "1"}, "data": ["a", EVIL]},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return full_report(tmp_path_factory.mktemp("report") / "new" / "report.html").read_text(encoding="utf-8")


def test_page_parses_and_its_tags_nest(page):
    read = Page(page)
    assert len(read.all("h1")) == 1 and len(read.all("h2")) == 3
    assert len(read.all("table")) == 2 and len(read.all("figure")) == 2


def test_page_asks_nothing_of_the_network(page):
    assert not re.search(r"https?://|//[a-z]|@import|url\(", page)
    read = Page(page)
    keys = ("src", "href", "srcset", "data", "action")
    loads = [attrs[key] for _, attrs in read.tags for key in keys if key in attrs]
    assert loads and all(value.startswith(("data:image/", "#")) for value in loads)
    (policy,) = [attrs["content"] for attrs in read.all("meta") if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")


def test_every_picture_is_inside_the_page_as_it_was_given(page):
    sources = [attrs["src"].split(",", 1) for attrs in Page(page).all("img")]
    assert [head for head, _ in sources] == ["data:image/png;base64", "data:image/svg+xml;base64"]
    assert base64.b64decode(sources[0][1]) == solid_png("red")
    svg = base64.b64decode(sources[1][1]).decode()
    assert not re.search(r"href=\"(?!#)|<script", svg)


def test_every_text_is_escaped_and_comes_out_as_it_went_in(page):
    read = Page(page)
    assert read.all("script") == []
    text = "\n".join(read.text)
    for place in ("Title", "Synthetic", "Verdict", "Results", "Caption", "Note", "Red", "More"):
        assert f"{place} {EVIL}" in text
    assert text.count(EVIL) >= 12  # besides: row name (twice), definition, provenance


def test_a_missing_value_is_a_dash_with_its_reason(page):
    read = Page(page)
    reasons = {attrs["title"] for attrs in read.all("abbr")}
    assert reasons == {"both masks are empty", "does not apply to this row"}
    assert "– both masks are empty" in read.text
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_the_reason_of_a_cell_wins_over_the_reason_of_its_table(tmp_path):
    made = table([{"a": "x", "b": Missing("not trained")}], caption="", missing="undefined")
    path = write_report(tmp_path / "r.html", title="t", summary=[], sections=[Section("s", (made,))])
    assert [attrs["title"] for attrs in Page(path.read_text(encoding="utf-8")).all("abbr")] == ["not trained"]


def test_numbers_are_flush_right_and_the_best_is_bold(tmp_path):
    rows = [{"model": "a", "dice": Estimate(0.5, 0.1)}, {"model": "b", "dice": 0.75}]
    made = table(rows, [Column("model"), Column("dice", best="highest", unit="%")], caption="c")
    path = write_report(tmp_path / "r.html", title="t", summary=[], sections=[Section("s", (made,))])
    text = path.read_text(encoding="utf-8")
    assert '<td class="number">0.500<small>± 0.100</small></td>' in text
    assert '<td class="number"><strong>0.750</strong></td>' in text
    assert '<th scope="col" class="number">dice <span class="unit">%</span></th>' in text


def test_heads_and_rows_of_a_grouped_table_have_equally_many_cells(page):
    body = page[page.index("<thead>") : page.index("</table>")]
    counts = []
    for line in re.findall(r"<tr.*?</tr>", body):
        spans = [int(n) for n in re.findall(r'colspan="(\d+)"', line)]
        counts.append(sum(spans) if spans else len(re.findall(r"<t[dh][ >]", line)))
    assert len(counts) == 5 and set(counts) == {4}  # model, bone Dice, soft Dice, seconds


def test_cells_hold_pictures_that_open_a_file_and_lists_of_texts(tmp_path):
    small = solid_png("red")
    long = "a line of more than thirty letters, broken where it must be"
    rows = [
        {"scan": "s1", "picture": Picture("red <b>", small, link="big pictures/s1.png"), "said": (EVIL, long)}
    ]
    path = write_report(
        tmp_path / "a.html", title="t", summary=(), sections=[Section("s", (table(rows, caption="c"),))]
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.all("img") == [
        {"alt": "red <b>", "src": "data:image/png;base64," + base64.b64encode(small).decode()}
    ]
    assert {"href": "big%20pictures/s1.png"} in page.all("a")
    assert EVIL in page.text and long in page.text
    assert {"class": "list text"} in page.all("td") and {"class": "picture"} in page.all("td")


def test_a_picture_without_link_opens_nothing(tmp_path):
    section = Section("s", (Picture("red", solid_png("red")),))
    path = write_report(tmp_path / "a.html", title="t", summary=(), sections=[section])
    assert Page(path.read_text(encoding="utf-8")).all("a") == []


def test_links_on_top_lead_to_the_sections(page):
    read = Page(page)
    targets = {f"#{attrs['id']}" for attrs in read.all("section")}
    assert [attrs["href"] for attrs in read.all("a")] == ["#section-1", "#section-2", "#section-3"]
    assert targets == {"#section-1", "#section-2", "#section-3"}


def test_the_same_report_is_the_same_bytes(tmp_path, page):
    assert full_report(tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_characters_that_html_forbids_are_replaced(tmp_path):
    path = write_report(tmp_path / "r.html", title="a\x00b\ud800c", summary=[], sections=[])
    assert "<h1>a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c</h1>" in path.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [(3.0, "Received: float"), (Picture("c", b"GIF89a"), "PNG or SVG"), (np.zeros(3), "Received: ndarray")],
)
def test_what_cannot_be_shown_is_refused_and_the_old_page_stays(tmp_path, item, message):
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        write_report(path, title="t", summary=[], sections=[Section("s", (item,))])
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_a_browser_shows_the_page_with_both_kinds_of_picture(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH: the page is not opened in a browser")
    png, svg = (255, 0, 200), (0, 200, 255)
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 30"><style>:root{--c:#00c8ff}</style>'
        '<rect width="40" height="30" style="fill: var(--c)"/></svg>'
    )
    pictures = (Picture("png", solid_png(png)), Picture("svg", drawing.encode()))
    page = write_report(tmp_path / "r.html", title="t", summary=["v"], sections=[Section("s", pictures)])
    shot = tmp_path / "shot.png"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --window-size=700,1400"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run([browser, *flags.split(), *places], check=True, capture_output=True, timeout=60)
    seen = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    for colour in (png, svg):
        share = (np.abs(seen - colour).max(axis=-1) < 12).mean()
        assert share > 0.2  # each fills about a third of the window
