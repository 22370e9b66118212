"""The site holds every page and every public name. `make docs` builds it, warnings as errors."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def addresses(entry) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from addresses(inner)


def test_the_menu_lists_every_page_once(site):
    listed = list(addresses(SETTINGS["nav"]))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {address for address in site.generated_pages() if address.endswith(".md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == written | made


def test_the_site_asks_no_other_host():
    theme = SETTINGS["theme"]
    assert theme["font"] is False
    assert not {"extra_css", "extra_javascript"} & set(SETTINGS)
    assert "analytics" not in SETTINGS.get("extra", {})


def test_the_site_is_strict():
    assert SETTINGS["strict"] is True
    levels = [level for checks in SETTINGS["validation"].values() for level in checks.values()]
    assert set(levels) == {"warn"}


def test_the_api_names_what_the_packages_offer(site):
    """Read off the tables without importing, compared with what an import gives."""
    for name in site.API:
        module = importlib.import_module(name)
        if not (ROOT / name.replace(".", "/")).is_dir():
            continue
        modules = {
            public for public in module.__all__ if isinstance(getattr(module, public), types.ModuleType)
        }
        assert set(site.public_names(name)) == set(module.__all__) - modules
        for public in modules:
            assert f"{name}.{public}" in site.API


def test_every_public_name_stands_on_its_page_with_where_it_lives(site):
    for name in site.API:
        page = site.api_page(name)
        if (ROOT / name.replace(".", "/")).is_dir():
            for public, home in site.public_names(name).items():
                assert f"::: {home}\n" in page and f"heading: {public}\n" in page
        else:
            assert f"::: {name}\n" in page


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "../README.md", "readme.md"),
        ("guides/train.md", "prepare.md#bids", "prepare.md#bids"),
        ("guides/train.md", "../concepts.md", "../concepts.md"),
        ("results/metrics.md", "../../benchmarks/README.md", "../benchmarks.md"),
        ("guides/own_network.md", "../../examples/05_hybrid.ipynb", "../examples/05_hybrid.md"),
        ("readme.md", "docs/guides/train.md", "guides/train.md"),
        ("readme.md", "docs/images/start.png", "images/start.png"),
        ("readme.md", "LICENSE", "LICENSE.txt"),
        ("benchmarks.md", "../docs/results/metrics.md", "results/metrics.md"),
        ("index.md", "https://example.org/a", "https://example.org/a"),
        ("index.md", "#here", "#here"),
    ],
)  # fmt: skip
def test_links_between_files_become_links_between_pages(site, page, link, expected):
    assert site.relink(f"see [it]({link}).", page) == f"see [it]({expected})."


def test_code_is_not_taken_for_a_link(site):
    text = "```python\nx = table[0](../README.md)\n```\n"
    assert site.relink(text, "index.md") == text


def test_a_notebook_becomes_text_code_output_and_pictures(site):
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "words"]},
            {
                "cell_type": "code",
                "source": ["1 < 2"],
                "outputs": [
                    {"output_type": "execute_result", "data": {"text/plain": ["True < 3"]}},
                    {
                        "output_type": "display_data",
                        "data": {"image/png": "QUJD\n", "text/plain": ["<Figure>"]},
                    },
                ],
            },
        ]
    }
    page = site.notebook_page(notebook)
    assert page.startswith("# Title\nwords\n\n```python\n1 < 2\n```")
    assert "<pre><code>True &lt; 3</code></pre>" in page
    assert 'src="data:image/png;base64,QUJD"' in page and "Figure" not in page


def test_docstrings_lose_the_marks_of_another_tool():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("site_docstrings", ROOT / "docs/site_docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.shown("as :func:`~mrseg.transfer.grouping.groups` does") == "as `groups` does"
    assert module.shown("Example:\n    >>> 1") == "Examples:\n    >>> 1"


def test_the_notebooks_of_the_site_are_those_of_the_examples(site):
    made = site.generated_pages()
    for path in sorted((ROOT / "examples").glob("[0-9][0-9]_*.ipynb")):
        title = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0]
        page = made[f"examples/{path.stem}.md"]
        assert page.startswith(title) and re.search("data:image/png", page)
