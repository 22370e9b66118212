"""Cross-validation by subject: experiments over folds, numbers of subjects and a grid of recipe keys.

A trial is one training and its scores, in a folder of its own; what is there already is not done again, so
that a killed run continues where it stopped. The grid is decided on validation subjects alone: test subjects
are scored once, by what was chosen. Sources: mecheter2023 section 3.5 (three folds, grid search of the
rate), mecheter2020.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mrseg import store
from mrseg._checks import InputError, choice, error
from mrseg._files import atomic_file, checksum, read_json, writable_folder
from mrseg.claims import alone
from mrseg.data.cases import Case
from mrseg.dealing import has_labelled
from mrseg.evaluation import evaluate
from mrseg.experiments import Experiment, Plan, Trial, in_waves
from mrseg.formats import write_csv
from mrseg.jobs import check_shared, run_jobs
from mrseg.recipes.loader import Recipe
from mrseg.recipes.runner import train_recipe
from mrseg.segmenter import Segmenter
from mrseg.summaries import VOXELS, Row, read_rows, summarize
from mrseg.training import epochs_done


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
        workers: as `mrseg.jobs.run_jobs` takes it.
        scheduler: as `mrseg.jobs.run_jobs` takes it.
        progress: show bars.

    Returns:
        Scores: the rows of `mrseg.evaluate` with ``experiment``, ``fold`` (0: trained once), ``subjects``
        (training subjects asked for, 0: all) and ``split`` (test, or val: the fold's own subjects). Trials:
        experiment, fold, subjects, ``point`` of the grid, ``epochs``, ``seconds``, ``trainable`` and all
        ``parameters``, ``validation_decides`` (its validation scores flatter) and ``chosen``.

    Raises:
        InputError: an unknown source, a circle of sources, a fold without a class, another process that
            writes ``output`` and goes on for a minute, and what `folds`, `load_recipe` and `train_recipe`
            raise.
    """
    # Workers elsewhere may have been started in another folder.
    output = writable_folder(Path(output).absolute())
    cases = [_absolute(case) for case in cases]
    given = None if source is None else store.find(source).absolute()
    waves = list(in_waves(experiments, given is not None))
    plan = Plan(experiments, cases, output, sequence, folds, overrides, seed, given)
    place = None if cache is None else writable_folder(Path(cache).absolute())
    options: dict[str, Any] = {
        "workers": workers, "scheduler": scheduler, "unit": "training", "progress": progress,
    }  # fmt: skip
    rows: list[Row] = []
    done: list[Row] = []
    with alone(writable_folder(output / "trials")):
        for wave in waves:
            trials = [
                dataclasses.replace(trial, cache=place)
                for experiment in wave
                for trial in plan.trials(experiment)
            ]
            _run_all(trials, _short([e.name for e in wave]), options)
            chosen = [_best(points, choose) for points in _by_cell(trials)]
            finals = [dataclasses.replace(trial, scored=plan.scored(trial)) for trial in chosen]
            _run_all(finals, "test scores of the chosen", options)
            for trial in finals:
                plan.keep(trial)
                rows += [{**_names(trial), **row} for row in run_trial(trial)]
            picked = {trial.output for trial in chosen}
            for trial in trials:
                where = {"folder": str(trial.output.relative_to(output)), "chosen": trial.output in picked}
                decisive = {"validation_dice": _validation_dice(trial, choose)} if trial.point else {}
                done.append({**_names(trial), **_record(trial), **where, **decisive})
                done[-1]["validation_decides"] |= plan.decided(trial.experiment)
        write_csv(rows, output / "scores.csv")
        write_csv(done, output / "trials.csv")
    return rows, done


def _run_all(trials: Sequence[Trial], desc: str, options: Mapping[str, Any]) -> None:
    """Does what is not done yet, here or elsewhere, and makes sure that it lies here."""
    if unfinished := _unfinished(trials):
        run_jobs(run_trial, unfinished, desc=desc, **options)
    check_shared(trial.output / "trial.json" for trial in trials)
    check_shared(_scores_file(trial, *which) for trial in trials for which in trial.scored)


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
            chosen = [case for case in trial.cases if case.split == split and has_labelled(case, sequence)]
            seen_too = split == "val" and decides
            try:
                found = evaluate(segmenter, chosen, sequence=sequence, seen_too=seen_too)
            except InputError:
                if not (trial.point and _diverged(segmenter)):
                    raise
                # One point of a grid that leads to NaN is not chosen, and stops no study.
                which = [{"subject": c.subject, "sequence": sequence, "metric": "dice"} for c in chosen]
                found = [
                    {**row, "class": name, "value": float("nan")}
                    for row in which
                    for name in trial.recipe.class_names
                ]
            write_csv(found, file)
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
        path.write_text(json.dumps({"signature": _signature(trial), "record": record}), encoding="utf-8")
    return segmenter


def _diverged(segmenter: Segmenter) -> bool:
    return not all(np.isfinite(weights).all() for weights in segmenter.model.get_weights())


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
    return float(np.mean([dice.get(name, float("nan")) for name in deciding]))


def _record(trial: Trial) -> Row:
    """What an earlier run noted of this very trial; empty if it is not done.

    Raises:
        InputError: the folder holds the trial of another recipe, other cases or another source.
    """
    file = trial.output / "trial.json"
    if not file.exists():
        return {}
    noted = read_json(file, f"Remove {file}: the trial is done again.")
    if noted.get("signature") != _signature(trial):
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
            read_json(noted, f"Remove {noted}: the trial is done again.")["signature"]
            if noted.exists()
            else checksum(sorted(file for file in trial.source.rglob("*") if file.is_file()))
        )
    text = json.dumps([trial.recipe.as_dict(), cases, source])
    return hashlib.sha256(text.encode()).hexdigest()


def _not_retracing(record: logging.LogRecord) -> bool:
    return "tf.function retracing" not in record.getMessage()


def _names(trial: Trial) -> Row:
    return {"experiment": trial.experiment, "fold": trial.fold, "subjects": trial.subjects}


def _short(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _absolute(case: Case) -> Case:
    images, labels = (
        {name: file.absolute() for name, file in files.items()} for files in (case.images, case.labels)
    )
    return dataclasses.replace(case, images=images, labels=labels)
