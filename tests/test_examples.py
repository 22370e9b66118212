"""The examples run from top to bottom, and the notebooks hold their source."""

from __future__ import annotations

import dataclasses
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
from mrseg.recipes import load_recipe

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
def newborns_and_adults():
    return loaded("xu2017_phantoms")


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


def figures_of(example, name, truth, found):
    recipe = load_recipe(name)
    shape = (1, -1, 1)
    rows = example.rows_of(
        np.array(truth, np.uint8).reshape(shape), np.array(found, np.uint8).reshape(shape), (1, 2, 3), recipe
    )
    return {(row["class"], row["metric"]): row["value"] for row in rows}


def test_adults_are_scored_after_merging_and_without_cerebellum_and_brain_stem(newborns_and_adults):
    """cogm 1, bg 2 | wm 3, wml 4 | csf 5, ventricles 6 | cerebellum 7, brain stem 8."""
    found = figures_of(
        newborns_and_adults, "xu2017_exp4", [1, 2, 3, 4, 5, 6, 7, 8, 1, 1], [2, 1, 4, 3, 6, 5, 1, 3, 7, 0]
    )
    assert found["wm", "dice"] == found["csf", "dice"] == 1
    assert found["gm", "dice"] == pytest.approx(2 * 2 / (4 + 2))  # what is grey in the cerebellum is no error
    assert {metric for _, metric in found} == {"dice", "hd95_in_plane"}


def test_newborns_are_scored_class_by_class_in_mm(newborns_and_adults):
    found = figures_of(newborns_and_adults, "xu2017_exp1", [0, 1, 1, 0, 3, 3], [1, 1, 0, 0, 3, 3])
    assert found["cogm", "dice"] == 0.5
    assert found["cogm", "assd"] == pytest.approx(1.0)  # both borders: 0 and 2 mm, either way
    assert found["uwm", "dice"] == 1 and np.isnan(found["csf", "dice"])


def test_the_training_of_newborns_and_adults_says_what_it_changes(newborns_and_adults):
    example = newborns_and_adults
    for experiment in {**example.EXPERIMENTS, **example.FEWER_AND_MORE}.values():
        stated = load_recipe(experiment.recipe)
        made = example.recipe_of(experiment, example.CHOICES["SGD, the paper's rate"])
        pixels = np.prod(experiment.pixels)
        assert made.training.learning_rate == pytest.approx(stated.training.learning_rate * pixels, rel=1e-3)
        assert (made.training.optimizer, made.training.momentum) == ("sgd", 0.99)
        heads = sum(experiment.trains_on.values())
        iterations = made.training.epochs * made.sampling.patches_per_volume * heads
        assert iterations == example.EPOCHS * example.STEPS <= 3000  # the same for any number of heads
        assert made.postprocessing == stated.postprocessing and made.augmentation == stated.augmentation
        (rare,) = (c for name, c in example.CHOICES.items() if "rare" in name)
        weights = dict(
            zip(made.class_names, example.recipe_of(experiment, rare).loss.class_weights, strict=True)
        )
        assert weights["background"] == weights["csf"] == 1 and max(weights.values()) == 8


@pytest.mark.slow  # a minute on two cores
def test_the_example_of_newborns_and_adults_runs_and_goes_on_where_it_stopped(
    newborns_and_adults, tmp_path, monkeypatch, capsys
):
    example = newborns_and_adults
    small = {}
    for name, cohort in example.COHORTS.items():
        shape = tuple(32 if n > 60 else 8 for n in cohort["shape"])
        extent = np.multiply(cohort["spacing_mm"], cohort["shape"])
        subjects = {split: min(n, 2) for split, n in cohort["subjects"].items()}
        small[name] = {**cohort, "shape": shape, "spacing_mm": tuple(extent / shape), "subjects": subjects}
    monkeypatch.setattr(example, "COHORTS", small)
    for table in ("EXPERIMENTS", "FEWER_AND_MORE"):
        shrunk = {
            name: dataclasses.replace(
                experiment,
                pixels=(32, 32),
                trains_on={cohort: min(n, 2) for cohort, n in experiment.trains_on.items()},
                paper_voxels=tuple(32 if mm < 1 else 4 for mm in experiment.paper_mm),
                paper_mm=tuple(6.0 if mm < 1 else 30.0 for mm in experiment.paper_mm),
            )
            for name, experiment in getattr(example, table).items()
        }
        monkeypatch.setattr(example, table, shrunk)
    monkeypatch.setattr(example, "EPOCHS", 1)
    monkeypatch.setattr(example, "STEPS", 4)
    chosen = {name: example.CHOICES[name] for name in ("Adam", "Adam, rare classes weigh more")}
    monkeypatch.setattr(example, "CHOICES", chosen)
    arguments = ["x", "--output", str(tmp_path), "--set", "network.arguments.filters=2"]
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()
    first = capsys.readouterr().out
    (log,) = (tmp_path / "EXP3").glob("*/log.csv")
    written = log.stat().st_mtime_ns
    (tmp_path / "EXP4" / "scores.csv").unlink()
    example.main()
    again = capsys.readouterr().out
    tables = [text.split("Seconds per volume.")[0].split("Newborns:")[1] for text in (first, again)]
    assert tables[0] == tables[1] and log.stat().st_mtime_ns == written
    for name in ("choices", "table2", "table3", "heads", "seconds", "scores"):
        assert (tmp_path / f"{name}.csv").exists()
    assert (tmp_path / "slices.png").exists() and "EXP1, paper" in first


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
