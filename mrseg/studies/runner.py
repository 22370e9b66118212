"""Runs a study: its cohort, its experiments, its tables and figures, one page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrseg import configuration
from mrseg._checks import error
from mrseg._files import atomic_file
from mrseg.claims import claimed
from mrseg.crossval import cross_validate
from mrseg.data.cases import Case, read_cases, write_cases
from mrseg.data.phantom import write_cohort
from mrseg.experiments import overrides_of
from mrseg.formats import to_text, write_tables
from mrseg.recipes.loader import load_recipe
from mrseg.recipes.runner import versions
from mrseg.report import Picture, Section, write_report
from mrseg.studies import tables
from mrseg.studies.figures import depth_figure, time_figure
from mrseg.studies.loader import Phantom, Study
from mrseg.summaries import Row
from mrseg.tables import Table
from mrseg.theme import to_svg

NOTICE = (
    "These heads are synthetic, made by code. The figures compare methods on them; they say nothing about "
    "how well any does on patients."
)
#: What of a study's page decides its trainings; how they are shown may change later.
DECISIVE = ("sequence", "folds", "choose", "seed", "phantom")


def run_study(
    study: Study,
    cases: Sequence[Case] | None,
    output: str | Path,
    *,
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
    workers: int = 1,
    scheduler: str = "",
    progress: bool = True,
) -> tuple[Path, str]:
    """Trains and scores every experiment of a study and writes its tables, figures and page.

    A study that was stopped goes on where it stopped and ends with the same tables.

    Args:
        study: experiments and layout.
        cases: subjects with labels and splits; None makes the study's synthetic cohort.
        output: folder for ``trials/``, ``scores.csv``, ``trials.csv``, ``tables/``, ``figures/`` (SVG),
            ``report.html`` and, without cases, ``cohort/``.
        source: trained segmenter for experiments with ``source: given``.
        overrides: ``key=value`` for the recipe of every experiment, above all that the page says.
        cache: folder for the preprocessed scans, as `mrseg.recipes.train_recipe` takes it.
        workers: as `mrseg.jobs.run_jobs` takes it.
        scheduler: as `mrseg.jobs.run_jobs` takes it.
        progress: show bars.

    Returns:
        The page, and the tables as text, those of scores with Dice alone.

    Raises:
        InputError: no cases for a study without a synthetic cohort, another study begun in ``output``, and
            what `mrseg.crossval.cross_validate` raises.
    """
    if cases is None and study.phantom is None:
        raise error(f"Study {study.name} needs scans.", "none", "Name a manifest: --data cohort.tsv.")
    page = configuration.as_plain(dataclasses.asdict(study))
    decisive = {key: page[key] for key in DECISIVE}
    with claimed(output, decisive, "A folder holds one study.", file="study.json") as folder:
        scans = cases
        if scans is None:
            assert study.phantom is not None
            scans = make_cohort(study.phantom, study.sequence, folder / "cohort")
        _check_shown(study, scans, overrides)
        scores, trials = cross_validate(
            study.experiments,
            scans,
            folder,
            sequence=study.sequence,
            folds=study.folds,
            choose=study.choose,
            source=source,
            overrides=overrides,
            cache=cache,
            seed=study.seed,
            workers=workers,
            scheduler=scheduler,
            progress=progress,
        )
        return _published(study, scores, trials, folder, NOTICE if cases is None else "")


def _published(
    study: Study, scores: Sequence[Row], trials: Sequence[Row], output: Path, notice: str
) -> tuple[Path, str]:
    """Writes tables, figures and the page; the page, and the tables as text."""
    made, said = _tables(study, scores, trials, output)
    pictures = _figures(study, scores, trials, output)
    write_tables(made, output / "tables")
    own = [page.name for page in study.tables]
    sections = [
        Section("In the paper's layout", tuple(made[name] for name in own)),
        Section("Figures", tuple(pictures)),
        Section(
            "Beside the paper, and on unseen subjects", tuple(t for n, t in made.items() if n not in own)
        ),
    ]
    page = write_report(
        output / "report.html",
        title=study.title,
        summary=(
            f"{len(study.experiments)} experiments, {len(trials)} trainings, {study.folds} folds.",
            said,
        ),
        sections=[section for section in sections if section.items],
        notice=notice,
        provenance={"study": configuration.as_plain(dataclasses.asdict(study)), "versions": versions()},
    )
    short = {name: tables.dice_alone(made[name]) for name in own}
    return page, "\n\n".join([*(to_text(table) for table in (made | short).values()), said]).strip()


def make_cohort(phantom: Phantom, sequence: str, folder: Path) -> list[Case]:
    """The synthetic cohort of a study, made once; labels are the phantom's own, not from a CT."""
    manifest = folder / "cohort.tsv"
    if manifest.exists():
        return read_cases(manifest)
    first = phantom.source_sequence
    parts = {
        "source": ("train", phantom.sources),
        "target": ("train", phantom.targets),
        "test": ("test", phantom.tests),
    }
    cases: list[Case] = []
    for number, (name, (split, count)) in enumerate(parts.items()):
        part = write_cohort(
            folder / name,
            subjects={split: count},
            sequences=(first, sequence),
            shape=phantom.shape,
            seed=len(parts) * phantom.seed + number,
            ct=False,
            labels=True,
        )
        for case in read_cases(part):
            labelled = {"source": [first], "target": [sequence], "test": [first, sequence]}[name]
            images = {s: file for s, file in case.images.items() if name != "source" or s == first}
            labels = {s: file for s, file in case.labels.items() if s in labelled}
            subject = f"{name}-{case.subject}"
            cases.append(dataclasses.replace(case, subject=subject, images=images, labels=labels))
    write_cases(cases, manifest)
    return read_cases(manifest)


def _check_shown(study: Study, cases: Sequence[Case], overrides: Sequence[str]) -> None:
    """Refuses, before any training, tables of scores that there will not be."""
    labelled = {name for c in cases if c.split == "test" for name in c.labels if name in c.images}
    tested: dict[str, set[str]] = {}
    for e in study.experiments:
        changed = [
            *overrides_of({key: value for key, value in e.set.items() if key == "sequence"}),
            *overrides,
        ]
        tested[e.name] = {*(e.test or (load_recipe(e.recipe, changed).sequence,))} & labelled
    once = {e.name for e in study.experiments if not e.folded}
    partly = {e.name for e in study.experiments if 0 not in e.subjects}
    for page in study.tables:
        pairs = [(name, sequence) for *names, sequence in page.pairs for name in names]
        missing = [
            f"{name} on {sequence} test scans" for name, sequence in pairs if sequence not in tested[name]
        ]
        missing += [f"{name} on all subjects" for name in sorted(page.named & partly)]
        if page.split == "test":
            missing += [f"{name} on test scans" for name in page.experiments if not tested[name]]
        else:
            missing += [f"{name} on subjects of a fold" for name in page.experiments if name in once]
        if missing:
            raise error(
                f"Table {page.name} has scores of every experiment that it names.",
                f"none of {missing[0]}",
                "Label test scans of that sequence (split: test), or change the table.",
            )


def _tables(
    study: Study, scores: Sequence[Row], trials: Sequence[Row], output: Path
) -> tuple[dict[str, Table], str]:
    made: dict[str, Table] = {}
    for page in study.tables:
        made[page.name] = tables.scores_table(page, scores, study, trials)
    compared = tables.paper_table(scores, study)
    said = ""
    if compared:
        made["paper"], said = compared
    for name in study.classes or _class_names(study)[1:]:
        found = tables.validation_table(scores, trials, study, name)
        if found:
            made[f"validation_{name}"] = found
    grid = tables.grid_table(trials)
    if grid:
        made["grid"] = grid
    made["trainings"] = tables.training_table(trials, study, output)
    return made, said


def _figures(study: Study, scores: Sequence[Row], trials: Sequence[Row], output: Path) -> list[Picture]:
    pictures = []
    if study.depths:
        split = "test" if any(row["split"] == "test" for row in scores) else "val"
        who = {"test": "the test subjects", "val": "the training subjects, each unseen,"}[split]
        caption = f"Dice on {who} by depth of fine-tuning and number of training subjects."
        pictures.append(_picture(depth_figure(_depth_dice(study, scores, split)), "depth", caption, output))
    times: dict[str, tuple[float, float]] = {}
    for name in study.timed:
        own = [t for t in trials if t["experiment"] == name and t["chosen"] and t["subjects"] == 0]
        converged = tables.median([tables.converged_seconds(t, output) for t in own])
        times[name] = (tables.median([float(t["seconds"]) for t in own]), converged)
    if any(not math.isnan(both[0]) for both in times.values()):
        caption = "Seconds of one training, median over the folds."
        pictures.append(_picture(time_figure(times), "time", caption, output))
    return pictures


def _picture(figure: Any, name: str, caption: str, output: Path) -> Picture:
    picture = Picture(caption, to_svg(figure))
    with atomic_file(output / "figures" / f"{name}.svg") as path:
        path.write_bytes(picture.data)
    return picture


def _depth_dice(
    study: Study, scores: Sequence[Row], split: str = "test"
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Class -> number of subjects -> depth -> pooled Dice of every fold."""
    dice: dict[str, dict[str, dict[str, list[float]]]] = {
        name: {} for name in study.classes or _class_names(study)
    }
    sizes = sorted({s for e in study.experiments if e.name in study.depths for s in e.subjects if s})
    for size in [*sizes, 0]:
        for name in study.depths:
            if (
                sizes
                and size == 0
                and not any(tables.fold_scores(scores, name, study.sequence, s, split) for s in sizes)
            ):
                continue  # a line has the depths that were repeated with fewer subjects
            for rows in tables.fold_scores(scores, name, study.sequence, size, split).values():
                for (kind, metric), (value, _) in tables.pooled(rows).items():
                    if metric == "dice" and kind in dice:
                        by_depth = dice[kind].setdefault(str(size or "all"), {})
                        by_depth.setdefault(name, []).append(value)
    return dice


def _class_names(study: Study) -> tuple[str, ...]:
    return load_recipe(study.experiments[0].recipe).class_names
