"""The documentation says what is so: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import mrseg
from mrseg.cli import _parser
from mrseg.models import BUILDERS
from mrseg.recipes.loader import load_recipe

ROOT = Path(__file__).resolve().parents[1]
FRONT = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = (
    "demo", "prepare", "train", "transfer", "predict", "evaluate", "recipes", "weights", "clean",
    "attenuation", "brainmask", "perfusion", "crossval", "study", "phantom", "series", "convert", "export",
)  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Paths of somebody's machine, and hosts that packages come from.
FORBIDDEN = (
    r"/(?:work|home|root|tmp|opt|mnt|Users)/", r"pypi", r"pythonhosted", r"anaconda\.org", r"index-url",
)  # fmt: skip


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> list[str]:
    """Every line of a shell block and every inline code that begins with mrseg."""
    console = [re.sub(r"^\$ ", "", code, flags=re.MULTILINE) for code in blocks(page, "console")]
    shell = "\n".join([*blocks(page, "sh"), *console]).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(mrseg [^`]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    return [line.strip() for line in [*shell, *inline] if line.strip().startswith("mrseg ")]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.fixture
def builders_kept():
    """A page may add a builder of its own; other tests look at mrseg's."""
    before = dict(BUILDERS)
    yield
    BUILDERS.clear()
    BUILDERS.update(before)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys, builders_kept):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, code in enumerate(blocks(page, "python"), start=1):
        if not code.startswith("# not run: "):
            exec(compile(code, f"{name(page)}, block {number}", "exec"), namespace)


def test_python_that_is_not_run_compiles_and_says_why():
    for page in WITH_PYTHON:
        for code in blocks(page, "python"):
            compile(code, name(page), "exec")
            if code.startswith("# not run:"):
                assert len(code.splitlines()[0]) > len("# not run: because"), name(page)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_of_a_page_are_understood(page, capsys):
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        if words[0] in COMMANDS and len(words) == 1 or words == ["COMMAND", "--help"]:
            continue  # the command is only named
        try:
            options = _parser().parse_args(words)
        except SystemExit as ended:
            assert ended.code == 0, f"{name(page)}: {command}\n{capsys.readouterr().err}"
            continue
        recipe = getattr(options, "recipe", None) or (options.name if words[0] == "recipes" else None)
        if recipe and not recipe.endswith(".yaml"):
            load_recipe(recipe, getattr(options, "overrides", ()))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:|#", target):
            file = page.parent / target.split("#")[0]
            assert file.exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_no_machine_and_no_package_host(page):
    found = [pattern for pattern in FORBIDDEN if re.search(pattern, page.read_text(encoding="utf-8"))]
    assert not found


def test_every_page_under_docs_is_linked_from_another_page():
    linked = {
        (page.parent / target.split("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", page.read_text(encoding="utf-8"))
    }
    for page in PAGES[len(FRONT) :]:
        assert page.name == "index.md" or page in linked, name(page)


@pytest.mark.parametrize("page", sorted((ROOT / "docs/papers").glob("*.md")), ids=name)
def test_files_and_symbols_that_a_paper_page_names_exist(page):
    for file, symbols in re.findall(
        r"`(mrseg/[\w/]+\.(?:py|yaml))(?::(\w+))?`", page.read_text(encoding="utf-8")
    ):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not symbols or re.search(rf"(?:def|class) {symbols}\b|^{symbols}\b", text, re.MULTILINE), (
            symbols
        )


def test_the_table_of_networks_in_the_docs_is_that_of_the_code():
    assert str(mrseg.models.list()) in (ROOT / "docs/models.md").read_text(encoding="utf-8")


def test_every_deviation_in_the_code_is_told_on_a_paper_page():
    """The rows about a file say Deviation at least as often as the file does."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/papers").glob("*.md"))
    for file in sorted((ROOT / "mrseg").rglob("*.py")):
        count = len(re.findall(r"^\s*Deviation:", file.read_text(encoding="utf-8"), re.MULTILINE))
        rows = [row for row in pages.splitlines() if f"`{name(file)}:" in row]
        assert sum(row.count("Deviation:") for row in rows) >= count, name(file)
