"""The commands that train more than once: study and crossval."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mrseg._checks import error
from mrseg.commands import AddCommand, add_workers

STUDY = """\
Trains and scores every experiment of a study over folds by subject, and writes the paper's tables and
figures, report.html, scores.csv and trials.csv. Stopped, the same command goes on. Without a name, the
studies are listed; without --data, a study that has a synthetic cohort makes it.

  mrseg study
  mrseg study phantom_transfer --output runs/phantom_transfer --workers 2
  mrseg study mecheter2023 --data prepared/cohort.tsv --output runs/mecheter2023 --set training.epochs=100
  mrseg study mecheter2023 --data prepared/cohort.tsv --output runs/sizes \\
      --change "experiments.open.subjects=[2, 4, 8]"

On a cluster: start `dask scheduler`, and workers (`dask worker ADDRESS --nthreads 1`) that see the same
folders, then add --scheduler ADDRESS.
"""

CROSSVAL = """\
Deals the subjects of the splits train and val into folds, trains a recipe for each, and scores every subject
by the network that has not seen it; test subjects, where there are any, are scored by every fold's network.
A grid is decided on each fold's validation subjects alone. Stopped, the same command goes on.

  mrseg crossval islam2025_unet_short --data cohort.tsv --output runs/folds --folds 5 --workers 2
  mrseg crossval mecheter2023_open --from runs/t1/segmenter --data prepared/cohort.tsv --output runs/open \\
      --grid training.learning_rate=1.0e-3,1.0e-4,1.0e-5 --choose bone
"""


def add_study_commands(command: AddCommand) -> None:
    """Adds both parsers."""
    study = command("study", _study, "run the experiments of a paper over folds, with its tables", STUDY)
    study.add_argument("name", nargs="?", help="name or YAML file; none lists the studies")
    study.add_argument("--data", type=Path, help="manifest (TSV) or folder of a known data set")
    study.add_argument(
        "--change", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="change a key of the study: --change folds=5",
    )  # fmt: skip
    crossval = command("crossval", _crossval, "cross-validate a recipe by subject, with a grid", CROSSVAL)
    crossval.add_argument("recipe", help="name (see `mrseg recipes`) or YAML file")
    crossval.add_argument("--data", type=Path, required=True, help="manifest (TSV), or a known data set")
    crossval.add_argument(
        "--from",
        dest="source",
        type=Path,
        help="trained segmenter for a transfer: its folder, or a name of `mrseg weights`",
    )
    crossval.add_argument("--folds", type=int, default=3, help="default: 3")
    crossval.add_argument("--seed", type=int, default=0, help="of the folds (default: 0)")
    crossval.add_argument(
        "--grid", action="append", default=[], metavar="KEY=V1,V2,...",
        help="train every combination of the values of these keys of the recipe",
    )  # fmt: skip
    crossval.add_argument("--choose", default="", metavar="CLASS", help="whose Dice decides (default: mean)")
    crossval.add_argument(
        "--subjects", type=int, nargs="+", default=[0], metavar="N",
        help="repeat with so many training subjects; 0 is all (default)",
    )  # fmt: skip
    for parser in (study, crossval):
        parser.add_argument("--output", type=Path, required=parser is crossval, help="folder")
        parser.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
            help="change a key of every recipe: --set training.epochs=12",
        )  # fmt: skip
        parser.add_argument(
            "--cache", type=Path, metavar="FOLDER",
            help="keep preprocessed scans there, for all trainings (default: in memory)",
        )  # fmt: skip
        add_workers(parser)


def _study(options: argparse.Namespace) -> None:
    from mrseg.data.datasets import read_cohort
    from mrseg.formats import to_text
    from mrseg.studies.loader import list_studies, load_study
    from mrseg.tables import table

    if options.name is None:
        rows = [
            {"study": study.name, "experiments": len(study.experiments), "folds": study.folds,
             "scans": "its own" if study.phantom else "--data", "title": study.title}
            for study in map(load_study, list_studies())
        ]  # fmt: skip
        print(to_text(table(rows, caption="Studies; `mrseg study NAME --output FOLDER` runs one.")))
        return
    if options.output is None:
        raise error("A study has a folder to write to.", "no --output", "Add --output runs/NAME.")
    cases = None if options.data is None else read_cohort(options.data)
    _run(load_study(options.name, options.changes), cases, options)


def _crossval(options: argparse.Namespace) -> None:
    from mrseg.data.datasets import read_cohort
    from mrseg.experiments import Experiment
    from mrseg.recipes.loader import load_recipe
    from mrseg.studies.loader import Study, TablePage

    recipe = load_recipe(options.recipe, options.overrides)
    experiment = Experiment(
        recipe.name,
        options.recipe,
        source="given" if options.source else "",
        grid=dict(_values(text) for text in options.grid),
        subjects=tuple(options.subjects),
    )
    unseen = TablePage("unseen", "Every training subject.", (recipe.name,), split="val")
    cases = read_cohort(options.data)
    tested = any(case.split == "test" and recipe.sequence in case.labels for case in cases)
    study = Study(
        name="crossval",
        title=f"{recipe.name}, {options.folds} folds",
        paper=recipe.paper,
        command="mrseg crossval",
        sequence=recipe.sequence,
        experiments=(experiment,),
        tables=(
            unseen,
            *([TablePage("test", "Test subjects.", (recipe.name,), folds=True)] if tested else []),
        ),
        folds=options.folds,
        choose=options.choose,
        seed=options.seed,
    )
    _run(study, cases, options, options.source)


def _values(text: str) -> tuple[str, list[Any]]:
    import yaml

    key, equals, values = text.partition("=")
    if not equals or not values:
        raise error(
            "A grid is KEY=V1,V2,...", repr(text), "Write --grid training.learning_rate=1.0e-3,1.0e-4."
        )
    try:
        return key, yaml.safe_load(values if values.startswith("[") else f"[{values}]")
    except yaml.YAMLError:
        raise error(f"The values of {key} are YAML.", repr(values), "Write V1,V2,... or [V1, V2].") from None


def _run(study: Any, cases: Any, options: argparse.Namespace, source: Path | None = None) -> None:
    from mrseg.studies.runner import run_study

    page, text = run_study(
        study,
        cases,
        options.output,
        source=source,
        overrides=options.overrides,
        cache=options.cache,
        workers=options.workers,
        scheduler=options.scheduler,
    )
    print(f"\n{text}\n\nreport: {page}")
