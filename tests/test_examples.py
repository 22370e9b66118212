"""The examples run from top to bottom, and the notebooks hold their source."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell_texts(notebook: dict) -> list[str]:
    return ["".join(cell["source"]).strip() for cell in notebook["cells"]]


@pytest.mark.slow  # a minute on two cores
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_from_top_to_bottom(script, tmp_path):
    path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    dice = dict(re.findall(r"^  (.+?) +(\d\.\d{3})$", run.stdout, re.MULTILINE))
    lost, won = float(dice["T1-w network on T2-w"]), float(dice["fine-tuned network on T2-w"])
    assert float(dice["T1-w network on T1-w"]) > lost
    assert won > lost
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_holds_the_source_of_its_script(script):
    """Without jupytext: every cell of the notebook stands in the script, in order, and nothing else does."""
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    parts = re.split(r"^# %%(.*)\n", script.read_text(), flags=re.MULTILINE)[1:]
    expected = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        lines = text.strip().splitlines()
        if "[markdown]" in kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        expected.append("\n".join(lines))
    assert cell_texts(notebook) == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_executed_small_and_names_no_machine(script, builder):
    path = script.with_suffix(".ipynb")
    text = path.read_text()
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert path.stat().st_size <= builder.LARGEST_BYTES
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not re.search(r"/(?:work|home|root|tmp|opt)/", text)


def test_a_changed_script_makes_its_notebook_stale(builder, tmp_path):
    pytest.importorskip("jupytext")
    script = tmp_path / "01_x.py"
    script.write_text("# %%\n1 + 1\n")
    assert builder.is_stale(script)
    nbformat = pytest.importorskip("nbformat")
    nbformat.write(builder.converted(script), script.with_suffix(".ipynb"))
    assert not builder.is_stale(script)
    script.write_text("# %%\n1 + 2\n")
    assert builder.is_stale(script)
