"""Makes the notebooks of this folder from its numbered scripts, and runs them.

    python examples/build_notebooks.py            writes examples/*.ipynb, executed
    python examples/build_notebooks.py --check    executes into a temporary folder; fails if a notebook here
                                                  does not hold the source of its script

Needs the extra ``notebooks``: pip install 'mrseg[notebooks]'.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
LARGEST_BYTES = 1_500_000


def scripts(folder: Path = FOLDER) -> list[Path]:
    """The numbered scripts, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def sources(notebook: Any) -> list[tuple[str, str]]:
    """Kind and text of every cell: what script and notebook must have in common."""
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def converted(script: Path) -> Any:
    """The script as a notebook without outputs; cell identifiers are numbers, so that they do not change."""
    import jupytext

    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    notebook.metadata.pop("jupytext", None)
    notebook.nbformat_minor = 5
    return notebook


def executed(script: Path) -> Any:
    """The script as a notebook with the outputs of a fresh kernel that starts in an empty folder."""
    from nbclient import NotebookClient

    notebook = converted(script)
    path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    before = dict(os.environ)
    os.environ.update(quiet | {"PYTHONPATH": path})
    try:
        with tempfile.TemporaryDirectory() as empty:
            NotebookClient(
                notebook,
                timeout=1800,  # a cell; far more than it takes, for machines with other work
                kernel_name="python3",
                record_timing=False,
                resources={"metadata": {"path": empty}},
            ).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_log(output)]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def is_stale(script: Path) -> bool:
    """Whether the notebook beside the script is missing or holds another source."""
    import nbformat

    path = script.with_suffix(".ipynb")
    return not path.exists() or sources(nbformat.read(path, as_version=4)) != sources(converted(script))


def build(script: Path, folder: Path) -> Path:
    """Writes the executed notebook of ``script`` into ``folder``."""
    import nbformat

    target = folder / script.with_suffix(".ipynb").name
    nbformat.write(executed(script), target)
    size = target.stat().st_size
    if size > LARGEST_BYTES:
        sys.exit(f"{target.name} has {size:,} bytes, more than {LARGEST_BYTES:,}: take smaller pictures.")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds or checks every notebook; returns 1 if one is stale."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a stale notebook")
    options = parser.parse_args(arguments)
    stale = [script.name for script in scripts() if options.check and is_stale(script)]
    with tempfile.TemporaryDirectory() as temporary:
        for script in scripts():
            begun = time.perf_counter()
            made = build(script, Path(temporary) if options.check else FOLDER)
            seconds = time.perf_counter() - begun
            print(f"{made.name}: {made.stat().st_size:,} bytes, {seconds:.0f} s", flush=True)
    if stale:
        print(f"stale: {', '.join(stale)}. Run python examples/build_notebooks.py.", file=sys.stderr)
    return 1 if stale else 0


def _is_log(output: Any) -> bool:
    """What libraries say on stderr: it names the machine and changes with every run."""
    return output.output_type == "stream" and output.name == "stderr"


if __name__ == "__main__":
    sys.exit(main())
