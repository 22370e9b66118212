"""The examples run from top to bottom, and the notebooks hold their source."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrseg.data import Case, write_labels

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


#: Script -> pairs of lines that it prints: the first has the higher Dice.
HIGHER = {
    "01_first_steps": [
        ("T1-w network on T1-w", "T1-w network on T2-w"),
        ("fine-tuned network on T2-w", "T1-w network on T2-w"),
    ],
    "02_labels_from_ct": [("CT registered", "CT by the headers")],
    "03_train_segnet_t1": [("soft", "bone"), ("air", "bone")],
    "04_fine_tune_t2": [
        ("last 4 convolutions", "as it is"),
        ("open (all layers)", "as it is"),
        ("affine (gamma, beta)", "as it is"),
    ],
    "05_hybrid": [("hybrid, multiply", "T1-w network as it is")],
    "06_evaluate_and_compare": [("unet", "segnet")],
    "07_your_own_network": [
        ("T1-w network on T1-w", "T1-w network on T2-w"),
        ("fine-tuned network on T2-w", "T1-w network on T2-w"),
    ],
}


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def builder():
    return loaded("build_notebooks")


@pytest.fixture(scope="module")
def brain_masks():
    return loaded("dsc_brain_masks")


@pytest.fixture(scope="module")
def pages():
    return loaded("build_pages")


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
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    dice = dict(re.findall(r"^  (.+?) +(\d\.\d{3})$", run.stdout, re.MULTILINE))
    for better, worse in HIGHER[script.stem]:
        assert float(dice[better]) > float(dice[worse]), run.stdout[-600:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_holds_the_source_of_its_script(script):
    """Without jupytext: every cell of the notebook stands in the script, in order, and nothing else does."""
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    parts = re.split(r"^# %%(.*)\n", script.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
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
    text = path.read_text(encoding="utf-8")
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
    script.write_text("# %%\n1 + 1\n", encoding="utf-8")
    assert builder.is_stale(script)
    nbformat = pytest.importorskip("nbformat")
    nbformat.write(builder.converted(script), script.with_suffix(".ipynb"))
    assert not builder.is_stale(script)
    script.write_text("# %%\n1 + 2\n", encoding="utf-8")
    assert builder.is_stale(script)


def test_the_table_of_brain_masks_tells_means_from_pooled_figures(brain_masks, tmp_path):
    """Of subject a 2 of 4 brain voxels are found and none invented; of subject b both."""
    truths = {"a": [1, 1, 1, 1, 0, 0, 0, 0], "b": [1, 1, 0, 0, 0, 0, 0, 0]}
    found = {"a": [1, 1, 0, 0, 0, 0, 0, 0], "b": [1, 1, 0, 0, 0, 0, 0, 0]}
    cube = {name: np.array(values, np.uint8).reshape(2, 2, 2) for name, values in truths.items()}
    cases = []
    for name, truth in cube.items():
        path = tmp_path / f"{name}.nii"
        write_labels(path, truth, np.eye(4), ("background", "brain"), {})
        cases.append(Case(name, {"dsc": path}, None, {"dsc": path}, "test"))
    masks = {"half": {name: np.array(values, np.uint8).reshape(2, 2, 2) for name, values in found.items()}}
    made = brain_masks.table_1(brain_masks.summaries(brain_masks.scores(cases, masks)))
    (row,) = made.rows
    assert row["method"] == "half"
    assert row["mean dice"].value == pytest.approx((2 / 3 + 1) / 2)
    assert row["mean dice"].half_width == pytest.approx((1 / 3) / 2**0.5)  # standard deviation of two values
    assert row["mean recall"].value == pytest.approx(0.75)
    assert row["pooled dice"] == pytest.approx(2 * 4 / (6 + 4))
    assert row["pooled recall"] == pytest.approx(4 / 6)
    assert row["pooled accuracy"] == pytest.approx(14 / 16)
    assert row["pooled specificity"] == row["mean specificity"].value == 1


def test_dice_by_height_looks_at_its_own_slices_alone(brain_masks, tmp_path):
    truth = np.ones((2, 2, 8), np.uint8)
    write_labels(tmp_path / "a.nii", truth, np.eye(4), ("background", "brain"), {})
    case = Case("a", {"dsc": tmp_path / "a.nii"}, None, {"dsc": tmp_path / "a.nii"}, "test")
    mask = truth.copy()
    mask[..., 0] = 0  # one of the two lowest slices
    mask[..., -2:] = 0  # both of the highest
    (row,) = brain_masks.height_table([case], {"m": {"a": mask}}).rows
    assert row == {
        "method": "m",
        "lowest quarter": pytest.approx(2 / 3),
        "middle half": 1,
        "highest quarter": 0,
    }


def test_the_share_of_lesions_counts_voxels_by_kind(brain_masks, tmp_path):
    """Two subjects of one kind with 1 of 2 and 0 of 6 lesion voxels found; one without a lesion."""
    where = {name: np.zeros((2, 2, 2), bool) for name in "abc"}
    where["a"][0, 0] = True
    where["b"][0], where["b"][1, 0] = True, True
    lesions = {name: ("at the border, dark" if name != "c" else "", where[name]) for name in "abc"}
    mask = np.zeros((2, 2, 2), np.uint8)
    mask[0, 0, 0] = 1
    masks = {"m": {"a": mask, "b": np.zeros_like(mask), "c": mask}}
    cases = [Case(name, {"dsc": tmp_path / name}, None, {}, "test") for name in "abc"]
    rows = brain_masks.lesion_rows(cases, masks, lesions)
    assert [(row["subject"], row["voxels"], row["found"]) for row in rows] == [("a", 2, 1), ("b", 6, 0)]
    assert brain_masks.lesion_table(rows).rows == ({"method": "m", "at the border, dark": 1 / 8},)


@pytest.mark.slow  # a minute on two cores
def test_the_brain_mask_example_runs_and_goes_on_where_it_stopped(brain_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(brain_masks, "SUBJECTS_OF_SPLIT", {"train": 2, "val": 1, "test": 2})
    monkeypatch.setattr(brain_masks, "SHAPE", (64, 64, 10))
    monkeypatch.setattr(brain_masks, "SPACING_MM", (3.75, 3.75, 12.0))
    small = ["training.epochs=1", "training.batch_size=4", "network.arguments.filters=2"]
    small += ["preprocessing.shape=[64,64]", "sampling.patch_shape=[64,64,1]"]
    arguments = ["x", "--output", str(tmp_path), *(word for key in small for word in ("--set", key))]
    monkeypatch.setattr(sys, "argv", arguments)
    brain_masks.main()
    first = capsys.readouterr().out
    mask = tmp_path / "masks" / "cusum" / "phantom004_dseg.nii.gz"
    written = mask.stat().st_mtime_ns
    (tmp_path / "masks" / "aabl" / "phantom005_dseg.nii.gz").unlink()
    brain_masks.main()
    assert capsys.readouterr().out.splitlines()[1:] == first.splitlines()[1:]  # but for the seconds
    assert mask.stat().st_mtime_ns == written
    assert (tmp_path / "masks" / "aabl" / "phantom005_dseg.nii.gz").exists()
    for name in ("table1.txt", "table1.csv", "table1.tex", "heights.csv", "scores.csv", "report.html"):
        assert (tmp_path / name).exists()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


PAGE = """# A page

```console
$ mrseg phantom --output heads --train 1 \\
    --shape 12 12 12
old words
```

```sh
mrseg not run
```
"""


def test_a_page_shows_what_its_commands_print(pages):
    page = pages.run_page(PAGE)
    assert "    --shape 12 12 12\n1 head: heads/cohort.tsv\n```" in page
    assert "old words" not in page and "mrseg not run" in page
    assert pages.run_page(page) == page


def test_a_page_s_commands_must_succeed(pages):
    with pytest.raises(RuntimeError, match="exit code 2"):
        pages.run_page("```console\n$ mrseg phantom --output heads\n```\n")
    with pytest.raises(ValueError, match="commands of mrseg"):
        pages.run_page("```console\n$ rm -r heads\n```\n")


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("dice  0.512 [0.40, 0.60]", "dice 0.530  [0.42, 0.61]", True),  # within a tenth
        ("minus open -0.30", "minus open 0.30", False),
        ("minus open \N{MINUS SIGN}0.30", "minus open 0.30", False),
        ("minus open -0.01", "minus open 0.01", True),
        ("mrseg 0.1.0", "mrseg 0.1.0", True),
        ("mrseg 0.1.0", "mrseg 0.2.0", False),
        ("fold-1 of 10-12", "fold-1 of 10-12", True),
        ("bone", "soft", False),
        ("12 s", "99 s", True),  # times are no figures
        ("bone 0.75", "bone 0.75\nmore", False),
    ],
)
def test_a_check_of_a_page_sees_other_words_and_other_numbers(pages, old, new, same):
    block = "```console\n$ mrseg x\n{}\n```\n"
    assert (pages.differences(block.format(old), block.format(new)) == []) is same
