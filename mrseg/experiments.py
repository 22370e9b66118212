"""Experiments of a study, and the trials (one training each) that they mean."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mrseg._checks import choice, error
from mrseg.data.cases import Case
from mrseg.dealing import check_classes, folds, is_dealt, subset, training_subjects
from mrseg.recipes.loader import Recipe, load_recipe
from mrseg.recipes.reading import having
from mrseg.segmenter import Segmenter, trained_on


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


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Values by key as ``key=value`` texts that `load_recipe` reads back as the same types."""

    def text(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()

    return [f"{key}={text(value)}" for key, value in values.items()]


class Plan:
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
        self._check_unseen()

    def _recipe(self, experiment: Experiment, point: Mapping[str, Any]) -> Recipe:
        for text in self.overrides:
            key = text.partition("=")[0]
            for searched in point:
                if f"{searched}.".startswith(f"{key}."):
                    raise error(
                        "A key is searched over a grid or set for all.",
                        f"{text} and the grid of {searched} in {experiment.name}",
                        "Leave out one of them.",
                    )
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
                    longer = training_subjects(cases, self.sequence) / size
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

    def decided(self, name: str) -> bool:
        """Whether validation subjects decided something in an experiment or where its network comes from."""
        experiment = self.experiments.get(name)
        if experiment is None:
            return False
        own = bool(experiment.grid) or any(r.training.needs_validation for r in self.recipes[name])
        return own or self.decided(experiment.source)

    def keep(self, trial: Trial) -> None:
        """Remembers the network that others start from: the one of all training subjects."""
        if trial.subjects == 0:
            self.networks[trial.experiment, trial.fold] = trial.output / "segmenter"

    def _check_unseen(self) -> None:
        """Refuses a source that is trained once, on subjects who are dealt into folds."""
        dealt = [case for case in self.dealt[0] if is_dealt(case, self.sequence)]
        seen: dict[str, list[str]] = {}
        for experiment in self.experiments.values():
            source = experiment.source
            while source in self.experiments and self.experiments[source].folded:
                source = self.experiments[source].source
            if not source or not experiment.folded:
                continue
            remedy = f"Train {source} for every fold: folded: true."
            if source not in seen and source in self.experiments:
                seen[source] = self._trained_once(source, dealt)
            elif source not in seen:
                seen[source] = trained_on(Segmenter.load(self.networks["given", 0]), dealt)
                remedy = "Leave these subjects out, or start from another network."
            if seen[source]:
                raise error(
                    "A fold's subjects are scored by a network that has not seen them.",
                    f"{seen[source][0]}, whom the source {source} of {experiment.name} has seen",
                    remedy,
                )

    def _trained_once(self, name: str, dealt: Sequence[Case]) -> list[str]:
        """Which of the subjects an experiment that is trained once, or one before it, trains on."""
        subjects = {case.subject for case in dealt}
        recipe, experiment = self.recipes[name][0], self.experiments[name]
        training = [case for case in self._once() if case.split == "train"]
        usable = {case.subject for s in recipe.sequences for case in having(recipe, training, s)}
        earlier = self._trained_once(experiment.source, dealt) if experiment.source in self.recipes else []
        return sorted(usable & subjects) or earlier

    def _once(self) -> list[Case]:
        return [dataclasses.replace(c, split="train") if c.split == "val" else c for c in self.cases]

    def _folder(self, trial: Trial, point: int | None) -> Path:
        parts = [f"fold{trial.fold}" if trial.fold else "once"]
        parts += [f"{trial.subjects}subjects"] if trial.subjects else []
        parts += [f"point{point + 1}"] if point is not None else []
        return self.output / "trials" / _slug(trial.experiment) / "_".join(parts)


def in_waves(experiments: Sequence[Experiment], given: bool) -> Iterable[list[Experiment]]:
    """Experiments in an order in which every source comes before what starts from it."""
    names = [experiment.name for experiment in experiments]
    for name in names:
        # "Open" and "open" are one folder on some disks.
        same = [other for other in names if _slug(other).casefold() == _slug(name).casefold()]
        if len(same) > 1 or name == "given" or not _slug(name).strip("._"):
            raise error("Every experiment has a name of its own, with a letter or digit.", repr(name))
    known = {"given"} if given else set()
    folded = {experiment.name for experiment in experiments if experiment.folded}
    partly = {experiment.name for experiment in experiments if 0 not in experiment.subjects}
    for experiment in experiments:
        if experiment.source:
            choice(f"The source of {experiment.name}", experiment.source, [*names, *known])
        if experiment.source in partly:
            raise error(
                "A network that is carried over was trained on all subjects.",
                f"{experiment.source} with subjects that lack 0",
                f"Add 0 to the subjects of {experiment.source}.",
            )
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


def _lengthened(recipe: Recipe, factor: float) -> Recipe:
    """As many steps with fewer subjects; where the loss or a metric ends the training, it ends it."""
    if recipe.training.early_stopping or factor == 1:
        return recipe
    epochs = round(factor * recipe.training.epochs)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=epochs))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
