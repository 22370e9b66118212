"""Pages of studies: all that ship are whole, and what cannot be is refused with its name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mrseg import configuration
from mrseg._checks import InputError
from mrseg.recipes.loader import load_recipe
from mrseg.studies import list_studies, load_study
from mrseg.studies.loader import TablePage

PAGE = """
name: mine
title: mine
paper: phantom
command: mrseg study mine.yaml
sequence: T2w
set: {training.epochs: 3, network.arguments.filters: 4}
experiments:
  T1w: {recipe: mecheter2023_t1, folded: false}
  open:
    {recipe: mecheter2023_open, source: T1w, set: {training.epochs: 5}, grid: {training.batch_size: [1, 2]}}
tables:
  table3: {caption: "Open.", experiments: [open]}
"""


def page(tmp_path, text=PAGE):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list_studies())
def test_every_recipe_of_every_study_loads_with_what_the_study_sets(name):
    study = load_study(name)
    assert study.name == name and study.command.startswith(f"mrseg study {name}")
    for experiment in study.experiments:
        for point in experiment.points:
            page = load_recipe(experiment.recipe)
            for key in {**experiment.set, **point}:
                if key.split(".")[0] != "sequence":
                    assert hasattr(page, key.split(".")[0])


def test_mecheter2023_has_every_row_of_the_paper():
    study = load_study("mecheter2023")
    convs = {load_recipe(e.recipe).transfer.convs for e in study.experiments if e.name in study.depths}
    assert convs == {0, 3, 6, 9, 12, 15, 18} and study.folds == 3
    fusions = {e.recipe.removeprefix("mecheter2023_hybrid_") for e in study.experiments if "hybrid" in e.name}
    assert fusions == {"concat", "multiply", "average", "maximum"}
    assert [t.name for t in study.tables] == [f"table{n}" for n in range(3, 10)]


def test_the_study_on_the_phantom_has_the_stated_size():
    study = load_study("phantom_transfer")
    phantom = study.phantom
    assert (phantom.sources, phantom.targets, phantom.tests, phantom.shape) == (12, 11, 3, (64, 64, 32))
    sized = {e.name: e.subjects for e in study.experiments if len(e.subjects) > 1}
    assert len(sized) == 4 and {len(sizes) for sizes in sized.values()} == {3}
    assert sum(bool(e.grid) for e in study.experiments) == 1  # the rate is searched once
    assert {e.recipe for e in study.experiments} >= {e.recipe for e in load_study("mecheter2023").experiments}


def test_settings_of_the_study_hold_for_every_experiment_unless_it_has_its_own(tmp_path):
    t1, fine = load_study(page(tmp_path)).experiments
    assert t1.set == {"training.epochs": 3, "network.arguments.filters": 4}
    assert fine.set == {"training.epochs": 5, "network.arguments.filters": 4}


def test_a_page_gives_only_what_differs_from_its_base(tmp_path):
    page(tmp_path)
    text = f"base: {tmp_path / 'mine.yaml'}\nname: other\nfolds: 2\nexperiments: {{open: {{grid: null}}}}\n"
    (tmp_path / "other.yaml").write_text(text, encoding="utf-8")
    study = load_study(tmp_path / "other.yaml", ["experiments.open.subjects=[1, 2]"])
    assert (study.name, study.title, study.folds) == ("other", "mine", 2)
    assert study.experiments[1].grid == {} and study.experiments[1].subjects == (1, 2)
    assert study.experiments[1].source == "T1w"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("experiments: [open]", "experiments: [opne]", "An experiment of the study.*'opne'.*'open'"),
        ("folded: false", "foldde: false", "foldde.*folded"),
        ("sequence: T2w", "", "needs the key sequence"),
        ("experiments: [open]", "experiments: []", "experiments or pairs"),
        ("experiments: [open]", "experiments: [open], split: train", "split of table table3"),
        ("training.batch_size: [1, 2]", "training.batch_size: 2", "grid of training.batch_size is a list"),
    ],
)
def test_a_mistake_on_the_page_is_named(tmp_path, old, new, message):
    assert old in PAGE
    with pytest.raises(InputError, match=message):
        load_study(page(tmp_path, PAGE.replace(old, new)))


@pytest.mark.parametrize("text", ["experiments: [a]", "experiments: {a: 3}", ""])
def test_experiments_are_named_groups(tmp_path, text):
    head = PAGE[: PAGE.index("experiments:")]
    with pytest.raises(InputError, match="experiments are groups of keys by name"):
        load_study(page(tmp_path, head + text))


def test_the_page_in_the_guide_is_a_study(tmp_path):
    guide = Path(__file__).parents[2] / "docs/guides/studies.md"
    text = re.search(
        r"^```yaml\n(.*?)^```", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ).group(1)
    study = load_study(page(tmp_path, text))
    assert [e.name for e in study.experiments] == ["T1w", "open", "6 conv"]


def test_an_unknown_study_lists_those_there_are():
    with pytest.raises(InputError, match="mecheter2020_t1.*Did you mean 'mecheter2023'"):
        load_study("mecheter2032")


def test_a_table_names_all_that_it_shows():
    pairs = TablePage("t", "c", pairs=(("a", "b", "T1w"), ("a", "c", "T2w")))
    assert pairs.named == {"a", "b", "c"}


def test_a_page_is_utf_8_wherever_it_is_read(tmp_path):
    (tmp_path / "page.yaml").write_text("title: Kopf für Köpfe\n", encoding="utf-8")
    code = (
        "from mrseg.configuration import read_page as r; print(ascii(r('page.yaml', None, 'study')['title']))"
    )
    elsewhere = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    here = str(Path(configuration.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **elsewhere, "PYTHONPATH": here}, cwd=tmp_path,
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert found.stdout.strip() == "'Kopf f\\xfcr K\\xf6pfe'", found.stderr
