"""Cross-validation by subject: experiments over folds, numbers of subjects and a grid of recipe keys.

A trial is one training and its scores, in a folder of its own; what is there already is not done again, so
that a killed run continues where it stopped. The grid is decided on validation subjects alone: test subjects
are scored once, by what was chosen. Sources: mecheter2023 section 3.5 (three folds, grid search of the
rate), mecheter2020.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml

from mrseg import store
from mrseg._checks import InputError, choice, error
from mrseg._files import atomic_file, checksum, writable_folder
from mrseg.data.cases import Case
from mrseg.data.io import read_labels
from mrseg.evaluation import evaluate
from mrseg.formats import write_csv
from mrseg.jobs import run_jobs
from mrseg.recipes.loader import Recipe, load_recipe
from mrseg.recipes.runner import train_recipe
from mrseg.segmenter import Segmenter
from mrseg.summaries import VOXELS, Row, read_rows, summarize
from mrseg.training import epochs_done


@dataclass(frozen=True)
class Experiment:
    """One row of a study: a recipe, and over what it is repeated.

    Attributes:
        name: of the row.
        recipe: name or file of a recipe.
        set: overrides of its keys, key -> value.
        source: experiment whose network is carried over; "" trains from scratch.
        folded: trained once for every fold, on its training subjects; False trains once, on all.
        grid: recipe key -> values; every combination is trained, and the best on the fold's validation
            subjects is kept.
        subjects: numbers of training subjects of the study's sequence to repeat with; 0 means all. A fixed
            number of epochs is raised in proportion, so that fewer subjects train as many steps.
        test: sequences of the test scans; empty means the recipe's.
    """

    name: str
    recipe: str
    set: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    folded: bool = True
    grid: dict[str, Any] = field(default_factory=dict)
    subjects: tuple[int, ...] = (0,)
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, values in self.grid.items():
            if not isinstance(values, list | tuple) or not values:
                raise error(f"The grid of {key} is a list of values.", repr(values))
        if self.grid and not self.folded:
            raise error(
                "A grid is decided on the validation subjects of a fold.", f"{self.name} with folded: false"
            )
        if not self.subjects or min(self.subjects) < 0 or len(set(self.subjects)) < len(self.subjects):
            raise error("subjects are different numbers from 0 (all).", self.subjects)

    @property
    def points(self) -> tuple[dict[str, Any], ...]:
        """Every combination of the grid; one that is empty where there is none."""
        combinations = itertools.product(*self.grid.values())
        return tuple(dict(zip(self.grid, values, strict=True)) for values in combinations)


@dataclass(frozen=True)
class Trial:
    """One training and what it is scored on."""

    experiment: str
    fold: int  # from 1; 0 is all training subjects
    subjects: int  # 0: all
    point: dict[str, Any]
    recipe: Recipe
    cases: tuple[Case, ...]
    source: Path | None
    scored: tuple[tuple[str, str], ...]  # (split, sequence)
    output: Path
    cache: Path | None = None  # changes no result


def folds(cases: Sequence[Case], count: int, *, sequence: str, seed: int = 0) -> list[list[Case]]:
    """Deals the training subjects of a sequence into folds.

    Args:
        cases: subjects; those of the splits train and val are dealt, all cases of a subject together.
        count: folds, from 2 to the number of subjects with labelled scans of ``sequence``.
        sequence: whose labelled scans are dealt. Other training cases (the T1-w scans that a T2-w network is
            trained with besides) stay in the split train of every fold.
        seed: of the dealing.

    Returns:
        For every fold the cases with ``split`` set anew: its subjects are val, the others train. Every
        subject is val in exactly one fold; the folds differ by one subject at most. Test cases are as they
        were.

    Raises:
        InputError: fewer subjects than folds, or fewer than two folds.
    """
    dealt = sorted({case.subject for case in cases if _deals(case, sequence)})
    if not 2 <= count <= len(dealt):
        raise error(
            "Folds are at least 2 and at most the training subjects.",
            f"{count} folds of {len(dealt)} subjects with labelled {sequence} scans to train on",
            "Take fewer folds, or fill the split column of the manifest.",
        )
    order = [dealt[place] for place in np.random.default_rng(seed).permutation(len(dealt))]
    aside = [set(order[fold::count]) for fold in range(count)]

    def split(case: Case, held: set[str]) -> str:
        if case.split not in ("train", "val"):
            return case.split
        return "val" if case.subject in held else "train"

    return [[dataclasses.replace(case, split=split(case, held)) for case in cases] for held in aside]


def subset(cases: Sequence[Case], count: int, *, sequence: str, seed: int = 0) -> list[Case]:
    """Keeps ``count`` training subjects of a sequence; the smaller of two such sets lies in the larger.

    Other cases stay. The subjects left out lose the scan of ``sequence`` and stay if they have another.

    Raises:
        InputError: there are fewer than ``count``.
    """
    having = sorted({case.subject for case in cases if case.split == "train" and _has(case, sequence)})
    if not 1 <= count <= len(having):
        raise error(
            f"There are as many training subjects with {sequence} as are asked for.",
            f"{count} of {len(having)}",
        )
    order = [having[place] for place in np.random.default_rng(seed).permutation(len(having))]
    left_out = set(order[count:])
    kept = []
    for case in cases:
        if case.split == "train" and case.subject in left_out:
            images = {name: file for name, file in case.images.items() if name != sequence}
            labels = {name: file for name, file in case.labels.items() if name != sequence}
            case = dataclasses.replace(case, images=images, labels=labels)
        kept += [case] if case.images else []
    return kept


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Values by key as ``key=value`` texts that `load_recipe` reads back as the same types."""

    def text(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()

    return [f"{key}={text(value)}" for key, value in values.items()]


def check_classes(dealt: Sequence[Sequence[Case]], sequence: str, class_names: Sequence[str]) -> None:
    """Raises InputError where a fold has no voxel of a class, in training or in validation."""
    present: dict[Path, set[int]] = {}
    for number, cases in enumerate(dealt, start=1):
        for split in ("train", "val"):
            found: set[int] = set()
            for case in cases:
                if case.split == split and _has(case, sequence):
                    file = case.labels[sequence]
                    if file not in present:
                        present[file] = set(np.unique(read_labels(file, len(class_names))[0]).tolist())
                    found |= present[file]
            for value, name in enumerate(class_names):
                if value not in found:
                    raise error(
                        "Every fold has voxels of every class, in training and in validation.",
                        f"no {name} in the {split} subjects of fold {number}",
                        "Take fewer folds or another seed, or mend the labels.",
                    )


def cross_validate(
    experiments: Sequence[Experiment],
    cases: Sequence[Case],
    output: str | Path,
    *,
    sequence: str,
    folds: int = 3,
    choose: str = "",
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
    seed: int = 0,
    workers: int = 1,
    scheduler: str = "",
    progress: bool = True,
) -> tuple[list[Row], list[Row]]:
    """Trains and scores experiments over folds by subject, or goes on where an earlier run stopped.

    Args:
        experiments: in any order; sources are trained before what starts from them.
        cases: subjects; test subjects are the same for every fold.
        output: folder for ``trials/`` (a folder each), ``scores.csv`` and ``trials.csv``.
        sequence: whose training subjects are dealt into folds.
        folds: how many.
        choose: class whose Dice, pooled over the validation subjects, decides a grid; "" takes the mean over
            all classes but the first.
        source: trained segmenter that experiments with ``source: given`` start from.
        overrides: ``key=value`` for the recipe of every experiment, above its own ``set``.
        cache: folder for the preprocessed scans, which all trainings share; as `train_recipe` takes it.
        seed: of the folds and of smaller numbers of subjects.
        workers, scheduler: as `mrseg.jobs.run_jobs` takes them.
        progress: show bars.

    Returns:
        Scores: the rows of `mrseg.evaluate` with ``experiment``, ``fold`` (0: trained once), ``subjects``
        (training subjects asked for, 0: all) and ``split`` (test, or val: the fold's own subjects). Trials:
        experiment, fold, subjects, ``point`` of the grid, ``epochs``, ``seconds``, ``trainable`` and all
        ``parameters``, ``validation_decides`` (its validation scores flatter) and ``chosen``.

    Raises:
        InputError: an unknown source, a circle of sources, a fold without a class, and what `folds`,
            `load_recipe` and `train_recipe` raise.
    """
    output = writable_folder(output)
    given = None if source is None else store.find(source)
    plan = _Plan(experiments, cases, output, sequence, folds, overrides, seed, given)
    place = None if cache is None else writable_folder(cache)
    options: dict[str, Any] = {
        "workers": workers, "scheduler": scheduler, "unit": "training", "progress": progress,
    }  # fmt: skip
    rows: list[Row] = []
    done: list[Row] = []
    for wave in _waves(experiments, given is not None):
        trials = [
            dataclasses.replace(trial, cache=place)
            for experiment in wave
            for trial in plan.trials(experiment)
        ]
        run_jobs(run_trial, _unfinished(trials), desc=_short([e.name for e in wave]), **options)
        chosen = [_best(points, choose) for points in _by_cell(trials)]
        finals = [dataclasses.replace(trial, scored=plan.scored(trial)) for trial in chosen]
        run_jobs(run_trial, _unfinished(finals), desc="test scores of the chosen", **options)
        for trial in finals:
            plan.keep(trial)
            rows += [{**_names(trial), **row} for row in run_trial(trial)]
        picked = {trial.output for trial in chosen}
        for trial in trials:
            where = {"folder": str(trial.output.relative_to(output)), "chosen": trial.output in picked}
            decisive = {"validation_dice": _validation_dice(trial, choose)} if trial.point else {}
            done.append({**_names(trial), **_record(trial), **where, **decisive})
    write_csv(rows, output / "scores.csv")
    write_csv(done, output / "trials.csv")
    return rows, done


def run_trial(trial: Trial) -> list[Row]:
    """Trains and scores one trial as far as that is not done, and returns its scores.

    Raises:
        InputError: what training and scoring raise, with the name of the trial.
    """
    try:
        return _train_and_score(trial)
    except InputError as reason:
        raise InputError(f"{trial.output.parent.name}/{trial.output.name}: {reason}") from reason


def _train_and_score(trial: Trial) -> list[Row]:
    folder = writable_folder(trial.output)
    decides = trial.recipe.training.needs_validation
    # Subjects that decide nothing stay out of the training: their scores are those of people never seen.
    cases = [case for case in trial.cases if decides or case.split != "val"]
    segmenter: Segmenter | None = None
    if not _record(trial):
        keras.utils.clear_session()
        logging.getLogger("tensorflow").addFilter(_not_retracing)  # every trial has a network of its own
        segmenter = _train(trial, cases)
    rows: list[Row] = []
    for split, sequence in trial.scored:
        file = _scores_file(trial, split, sequence)
        if not file.exists():
            segmenter = segmenter or Segmenter.load(folder / "segmenter")
            chosen = [case for case in trial.cases if case.split == split and _has(case, sequence)]
            seen_too = split == "val" and decides
            write_csv(evaluate(segmenter, chosen, sequence=sequence, seen_too=seen_too), file)
        rows += [{"split": split, **row} for row in read_rows(file)]
    return rows


def _train(trial: Trial, cases: Sequence[Case]) -> Segmenter:
    folder = trial.output
    resumed = epochs_done(folder) > 0
    source = Segmenter.load(trial.source) if trial.source else None
    started = time.perf_counter()
    segmenter = train_recipe(trial.recipe, cases, folder, source=source, cache=trial.cache, progress=False)
    record = {
        "point": ", ".join(f"{key}={value}" for key, value in trial.point.items()),
        "epochs": epochs_done(folder),
        # Of a training that was interrupted only the last part was timed.
        "seconds": float("nan") if resumed else time.perf_counter() - started,
        "trainable": _trained_parameters(segmenter, trial.recipe),
        "parameters": segmenter.model.count_params(),
        "validation_decides": bool(trial.point) or trial.recipe.training.needs_validation,
    }
    with atomic_file(folder / "trial.json") as path:
        path.write_text(json.dumps({"signature": _signature(trial), "record": record}))
    return segmenter


def _trained_parameters(segmenter: Segmenter, recipe: Recipe) -> int:
    if recipe.transfer is not None and not recipe.transfer.trains:
        return 0
    return sum(int(np.prod(v.shape)) for v in segmenter.model.trainable_variables)


def _unfinished(trials: Sequence[Trial]) -> list[Trial]:
    return [
        trial
        for trial in trials
        if not _record(trial) or not all(_scores_file(trial, *which).exists() for which in trial.scored)
    ]


def _scores_file(trial: Trial, split: str, sequence: str) -> Path:
    return trial.output / f"scores_{split}_{sequence}.csv"


class _Plan:
    """Which trials an experiment means, and where their networks lie afterwards."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        cases: Sequence[Case],
        output: Path,
        sequence: str,
        count: int,
        overrides: Sequence[str],
        seed: int,
        given: Path | None,
    ):
        self.cases, self.output, self.sequence, self.seed = cases, output, sequence, seed
        self.experiments = {experiment.name: experiment for experiment in experiments}
        self.overrides = tuple(overrides)
        self.dealt = folds(cases, count, sequence=sequence, seed=seed)
        self.recipes = {e.name: [self._recipe(e, point) for point in e.points] for e in experiments}
        check_classes(self.dealt, sequence, next(iter(self.recipes.values()))[0].class_names)
        self.networks: dict[tuple[str, int], Path] = {}
        if given is not None:
            self.networks["given", 0] = given

    def _recipe(self, experiment: Experiment, point: Mapping[str, Any]) -> Recipe:
        own = overrides_of({**experiment.set, **point})
        recipe = load_recipe(experiment.recipe, [*own, *self.overrides])
        return dataclasses.replace(recipe, validation_subjects=())  # the fold's are

    def trials(self, experiment: Experiment) -> list[Trial]:
        """Every training of an experiment, scored where its grid is decided."""
        found = []
        for fold, cases in enumerate(self.dealt, start=1) if experiment.folded else [(0, self._once())]:
            source = None
            if experiment.source:
                of_fold = self.networks.get((experiment.source, fold))
                source = of_fold or self.networks[experiment.source, 0]
            for size in experiment.subjects:
                kept, longer = cases, 1.0
                if size:
                    kept = subset(cases, size, sequence=self.sequence, seed=self.seed)
                    longer = _training_subjects(cases, self.sequence) / size
                for number, (point, recipe) in enumerate(
                    zip(experiment.points, self.recipes[experiment.name], strict=True)
                ):
                    trial = Trial(
                        experiment.name, fold, size, point, _lengthened(recipe, longer), tuple(kept), source,
                        (), self.output,
                    )  # fmt: skip
                    folder = self._folder(trial, number if experiment.grid else None)
                    scored = self.scored(trial, tests=len(experiment.points) == 1)
                    found.append(dataclasses.replace(trial, output=folder, scored=scored))
        return found

    def scored(self, trial: Trial, tests: bool = True) -> tuple[tuple[str, str], ...]:
        """What a trial is scored on: its validation subjects, and (once it is chosen) the test subjects."""
        sequences = self.experiments[trial.experiment].test or (trial.recipe.sequence,)
        having = {s for case in trial.cases if case.split == "test" for s in case.labels if s in case.images}
        validation = (("val", self.sequence),) if trial.fold else ()
        return (*validation, *(("test", name) for name in sequences if tests and name in having))

    def keep(self, trial: Trial) -> None:
        """Remembers the network that others start from: the one of all training subjects."""
        if trial.subjects == 0:
            self.networks[trial.experiment, trial.fold] = trial.output / "segmenter"

    def _once(self) -> list[Case]:
        return [dataclasses.replace(c, split="train") if c.split == "val" else c for c in self.cases]

    def _folder(self, trial: Trial, point: int | None) -> Path:
        parts = [f"fold{trial.fold}" if trial.fold else "once"]
        parts += [f"{trial.subjects}subjects"] if trial.subjects else []
        parts += [f"point{point + 1}"] if point is not None else []
        return self.output / "trials" / _slug(trial.experiment) / "_".join(parts)


def _waves(experiments: Sequence[Experiment], given: bool) -> Iterable[list[Experiment]]:
    """Experiments in an order in which every source comes before what starts from it."""
    names = [experiment.name for experiment in experiments]
    for name in names:
        if names.count(name) > 1 or _slug(name) in map(_slug, set(names) - {name}):
            raise error("Every experiment has a name of its own.", name)
    known = {"given"} if given else set()
    folded = {experiment.name for experiment in experiments if experiment.folded}
    for experiment in experiments:
        if experiment.source:
            choice(f"The source of {experiment.name}", experiment.source, [*names, *known])
        if experiment.source in folded and not experiment.folded:
            raise error(
                "What is trained once starts from what is trained once.",
                f"{experiment.name} from {experiment.source}, which has a network for every fold",
                f"Leave out folded: false of {experiment.name}.",
            )
    left = list(experiments)
    while left:
        wave = [experiment for experiment in left if not experiment.source or experiment.source in known]
        if not wave:
            raise error("Sources form no circle.", ", ".join(experiment.name for experiment in left))
        yield wave
        known |= {experiment.name for experiment in wave}
        left = [experiment for experiment in left if experiment not in wave]


def _by_cell(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that differ by their grid point alone."""
    cells: dict[tuple[str, int, int], list[Trial]] = {}
    for trial in trials:
        cells.setdefault((trial.experiment, trial.fold, trial.subjects), []).append(trial)
    return list(cells.values())


def _best(points: Sequence[Trial], choose: str) -> Trial:
    """The trial with the highest Dice on the fold's validation subjects; the first of equals."""
    if len(points) == 1:
        return points[0]
    values = [_validation_dice(trial, choose) for trial in points]
    if np.isnan(values).all():
        raise error("A grid is decided by a Dice that is defined.", f"NaN for all of {points[0].experiment}")
    return points[int(np.nanargmax(values))]


def _validation_dice(trial: Trial, choose: str) -> float:
    """Dice of the class that decides (or the mean without the first), pooled over the validation subjects."""
    names = trial.recipe.class_names
    deciding = [choice("choose", choose, names)] if choose else names[1:]
    of_validation = [row for row in run_trial(trial) if row["split"] == "val"]
    dice = {
        row["class"]: row["value"]
        for row in summarize(of_validation)
        if row["metric"] == "dice" and row["pooling"] == VOXELS
    }
    return float(np.mean([dice[name] for name in deciding]))


def _record(trial: Trial) -> Row:
    """What an earlier run noted of this very trial; empty if it is not done.

    Raises:
        InputError: the folder holds the trial of another recipe, other cases or another source.
    """
    file = trial.output / "trial.json"
    if not file.exists():
        return {}
    noted = json.loads(file.read_text())
    if noted["signature"] != _signature(trial):
        raise error(
            "A folder holds one study: its recipes, cases, folds and sources.",
            f"{trial.output}, done with others",
            "Choose another output folder, or remove that one.",
        )
    return noted["record"]


def _signature(trial: Trial) -> str:
    """Names a trial by its recipe, cases and the trial or files that it starts from."""
    cases = [
        [case.subject, case.split, *(file.name for file in (*case.images.values(), *case.labels.values()))]
        for case in trial.cases
    ]
    source = ""
    if trial.source:
        noted = trial.source.parent / "trial.json"
        source = (
            json.loads(noted.read_text())["signature"]
            if noted.exists()
            else checksum(sorted(file for file in trial.source.rglob("*") if file.is_file()))
        )
    text = json.dumps([trial.recipe.as_dict(), cases, source])
    return hashlib.sha256(text.encode()).hexdigest()


def _training_subjects(cases: Sequence[Case], sequence: str) -> int:
    return len({case.subject for case in cases if case.split == "train" and _has(case, sequence)})


def _lengthened(recipe: Recipe, factor: float) -> Recipe:
    """As many steps with fewer subjects; where the loss or a metric ends the training, it ends it."""
    if recipe.training.early_stopping or factor == 1:
        return recipe
    epochs = round(factor * recipe.training.epochs)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=epochs))


def _not_retracing(record: logging.LogRecord) -> bool:
    return "tf.function retracing" not in record.getMessage()


def _names(trial: Trial) -> Row:
    return {"experiment": trial.experiment, "fold": trial.fold, "subjects": trial.subjects}


def _short(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def _deals(case: Case, sequence: str) -> bool:
    return case.split in ("train", "val") and _has(case, sequence)


def _has(case: Case, sequence: str) -> bool:
    return sequence in case.images and sequence in case.labels
