"""What the site holds besides the pages of this folder: API, notebooks, files of the repository.

MkDocs calls this module (`hooks` in mkdocs.yml). It needs neither mrseg's dependencies nor an installed
mrseg: the public names are read off the tables in the packages' `__init__.py`, the docstrings by
mkdocstrings.
"""

from __future__ import annotations

import ast
import base64
import html
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

#: File of the repository -> page of the site.
REPOSITORY = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff",
} | {
    f"examples/{path.stem}.ipynb": f"examples/{path.stem}.md"
    for path in sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
}
#: Packages and modules with public names, in the order of the site.
API = (
    "mrseg", "mrseg.data", "mrseg.data.datasets", "mrseg.data.phantom", "mrseg.models", "mrseg.transfer",
    "mrseg.metrics", "mrseg.baselines", "mrseg.postprocess", "mrseg.attenuation", "mrseg.perfusion",
    "mrseg.recipes", "mrseg.studies",
)  # fmt: skip

_FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made from the repository."""
    from mkdocs.structure.files import File

    for address, content in generated_pages().items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    return relink(markdown, page.file.src_uri)


def generated_pages() -> dict[str, str]:
    """Address -> Markdown (or text) of every page that is not a file of docs/."""
    pages = {address: api_page(name) for name, address in api_addresses().items()}
    for source, address in REPOSITORY.items():
        path = ROOT / source
        if path.exists():
            text = path.read_text(encoding="utf-8")
            pages[address] = notebook_page(json.loads(text)) if path.suffix == ".ipynb" else text
    return pages


def api_addresses() -> dict[str, str]:
    """Package or module -> its page."""
    return {name: f"api/{name.removeprefix('mrseg.').replace('.', '_')}.md" for name in API}


def public_names(package: str) -> dict[str, str]:
    """Public name -> where it is defined, read off the call of `attach` in the package's `__init__.py`."""
    tree = ast.parse(_source(package).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (table,) = [call.args[1] for call in calls if getattr(call.func, "id", "") == "attach"]
    return {
        name: f"{package}.{home}.{name}" for home, names in ast.literal_eval(table).items() for name in names
    }


def api_page(package: str) -> str:
    """A page with the docstring of the package and of every public name."""
    source = _source(package)
    summary, _, more = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition(
        "\n"
    )
    lines = [f"# {package}", "", summary, ""]
    if package == "mrseg":
        lines += ["```text", more.strip(), "```", ""]
    if source.name != "__init__.py":
        # A module is public itself: its functions and classes, in the order of the file.
        return "\n".join(
            [
                *lines,
                f"::: {package}",
                "    options:",
                "      show_root_heading: false",
                "      show_root_toc_entry: false",
                "      show_docstring_description: true",
                "",
            ]
        )
    for name, home in sorted(public_names(package).items(), key=lambda item: item[0].lower()):
        lines += [f"::: {home}", "    options:", f"      heading: {name}", f"      toc_label: {name}", ""]
    return "\n".join(lines)


def notebook_page(notebook: dict[str, Any]) -> str:
    """The cells of an executed notebook as Markdown, pictures within."""
    return "\n\n".join(part for cell in notebook["cells"] for part in _cell(cell)) + "\n"


def relink(markdown: str, address: str) -> str:
    """Rewrites the page's relative links that lead out of docs/ or come from outside of it."""
    origin = {page: file for file, page in REPOSITORY.items()}.get(address, f"docs/{address}")
    here = posixpath.dirname(address)

    def moved(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        page = REPOSITORY.get(file, file.removeprefix("docs/"))
        return f"{match[1]}{posixpath.relpath(page, here or '.')}{hash_sign}{anchor}{match[3]}"

    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def _source(package: str) -> Path:
    path = ROOT / package.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            picture = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
            yield f'<img alt="what the cell above draws" src="data:image/png;base64,{picture}">'
        else:
            text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            yield f"<pre><code>{html.escape(text)}</code></pre>"
