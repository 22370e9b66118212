"""One YAML page per study: its experiments, and the tables and figures that show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrseg import configuration
from mrseg._checks import choice, error, positive_ints
from mrseg.experiments import Experiment

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Phantom:
    """The synthetic cohort that a study runs on where no data are given.

    Attributes:
        sources: training subjects with a labelled scan of ``source_sequence`` alone.
        targets: training subjects with a labelled scan of the study's sequence, and one of
            ``source_sequence`` without labels.
        tests: test subjects with labelled scans of both.
        shape: voxels.
        source_sequence: of the networks that are carried over.
        seed: of the heads.
    """

    sources: int
    targets: int
    tests: int
    shape: tuple[int, int, int]
    source_sequence: str = "T1w"
    seed: int = 0

    def __post_init__(self) -> None:
        positive_ints("phantom.sources, targets and tests", (self.sources, self.targets, self.tests))


@dataclass(frozen=True)
class TablePage:
    """One table.

    Attributes:
        name: of its files.
        caption: what it shows.
        experiments: its rows.
        classes: its groups of columns; empty means all.
        metrics: of each class.
        split: ``test`` subjects, the same for every fold; or ``val``: every training subject, scored by the
            network of the fold that has not seen it.
        folds: with test subjects a row for every fold besides the mean.
        pairs: instead of experiments: before, after and the sequence of the test scans; two rows and their
            difference in percent.
    """

    name: str
    caption: str
    experiments: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("precision", "recall", "dice", "jaccard")
    split: str = "test"
    folds: bool = False
    pairs: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        choice(f"The split of table {self.name}", self.split, ("test", "val"))
        if bool(self.experiments) == bool(self.pairs):
            raise error("A table has experiments or pairs.", self.caption)

    @property
    def named(self) -> set[str]:
        """Every experiment that the table shows."""
        return {*self.experiments, *(name for pair in self.pairs for name in pair[:2])}


@dataclass(frozen=True)
class Study:
    """Experiments of a paper, or beyond it, and how they are shown.

    Attributes:
        name: of the page.
        title: one line.
        paper: key of the paper.
        command: how to run it.
        sequence: MR sequence whose training subjects are dealt into folds.
        experiments: trained and scored, see `mrseg.crossval.Experiment`; a mapping by name in YAML.
        tables: in the paper's layout; a mapping by name in YAML.
        classes: groups of columns of every table that names none, in order; empty takes all.
        folds: number of folds.
        choose: class whose Dice on validation subjects decides the grids; "" is the mean without the first.
        reference: experiment that the others are compared with on the validation subjects.
        seed: of folds and subsets.
        set: overrides for the recipe of every experiment, key -> value; an experiment's own win.
        depths: experiments from the shallowest to the deepest, for the figure of Dice by depth and subjects.
        timed: experiments of the figure of computation time.
        phantom: cohort to run on where no data are given.
    """

    name: str
    title: str
    paper: str
    command: str
    sequence: str
    experiments: tuple[Experiment, ...]
    tables: tuple[TablePage, ...]
    classes: tuple[str, ...] = ()
    folds: int = 3
    choose: str = ""
    reference: str = ""
    seed: int = 0
    set: dict[str, Any] = field(default_factory=dict)
    depths: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    phantom: Phantom | None = None

    def __post_init__(self) -> None:
        names = [experiment.name for experiment in self.experiments]
        shown: Iterable[str] = [name for page in self.tables for name in page.named]
        for name in [*shown, *self.depths, *self.timed, *([self.reference] if self.reference else [])]:
            choice("An experiment of the study", name, names)


def list_studies() -> list[str]:
    """Names of the studies that come with mrseg."""
    return configuration.list_pages(FOLDER)


def load_study(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a study by name, or from a YAML file of your own.

    Args:
        name_or_path: ``mecheter2023``, or ``my_study.yaml``. A page may name another as ``base`` and give
            only what differs.
        overrides: ``key=value`` with dots into the page, ``experiments.open.subjects=[2, 4]``.

    Raises:
        InputError: unknown study, key or experiment, or a value of the wrong type.
        FileNotFoundError: no such file.

    Example:
        >>> load_study("mecheter2023").folds
        3
    """
    page = configuration.read_page(name_or_path, FOLDER, "study")
    for text in overrides:
        configuration.override(page, text)
    for key in ("experiments", "tables"):
        named = page.get(key)
        if not isinstance(named, dict) or not all(isinstance(keys, dict) for keys in named.values()):
            raise error(f"{key} are groups of keys by name.", repr(named)[:80])
        page[key] = [{"name": str(name), **keys} for name, keys in named.items()]
    for keys in page["experiments"]:
        keys["set"] = {**(page.get("set") or {}), **(keys.get("set") or {})}
    return configuration.build(Study, page, "study")
