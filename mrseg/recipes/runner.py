"""Runs a recipe: network, weights carried over, mechanism of transfer, training, segmenter."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml

import mrseg
from mrseg._checks import error
from mrseg._files import atomic_file, writable_folder
from mrseg.claims import claimed
from mrseg.data.augmentation import Augmentation
from mrseg.data.case_cache import CaseCache
from mrseg.data.cases import Case, check_splits, write_cases
from mrseg.data.examples import Example
from mrseg.data.patches import Sampling, channel_means
from mrseg.data.pipeline import build_dataset, grid_order
from mrseg.distribution import share, whole_batch_statistics
from mrseg.models.builders import BUILDERS
from mrseg.pseudo_labels import plan, pseudo_label
from mrseg.recipes.checks import check_devices, check_scale, check_source, check_start
from mrseg.recipes.loader import Recipe
from mrseg.recipes.reading import (
    having,
    place_of_examples,
    training_examples,
    unlabelled_examples,
    validation_examples,
)
from mrseg.segmenter import Segmenter, subject_digest
from mrseg.training import SameEveryEpoch, epochs_done, fit, precision, seeded
from mrseg.transfer.freezing import train_all, train_last, train_norms
from mrseg.transfer.fusion import hybrid
from mrseg.transfer.listing import text_table
from mrseg.transfer.statistics import adapt_statistics
from mrseg.transfer.weights import load_weights

log = logging.getLogger(__name__)

PSEUDO_LABELS = "pseudo_labels"
ONE_RUN = "A folder holds one run: one recipe, its cases and the network it started from."


def build_network(recipe: Recipe, source: keras.Model | None = None) -> tuple[keras.Model, str]:
    """The recipe's network, with the weights of ``source`` and the recipe's mechanism of transfer applied.

    Args:
        recipe: what to build.
        source: trained network of the same builder and arguments; needed exactly when the recipe transfers.

    Returns:
        The network ready for `fit`, and a text that says tensor by tensor and group by group what was carried
        over and what trains.

    Raises:
        InputError: a transfer without source or a source without transfer; weights that do not fit.
    """
    check_start(recipe, source)
    with precision(recipe.training.precision):
        model = BUILDERS[recipe.network.builder](
            recipe.sampling.input_shape, len(recipe.class_names), **recipe.network.arguments
        )
        if recipe.transfer is None or source is None:
            return model, ""
        check_scale(model, source)
        account = [str(load_weights(model, source))]
        if recipe.transfer.mechanism == "hybrid":
            model = hybrid(model, fuse=recipe.transfer.fuse, fuse_at=recipe.transfer.fuse_at)
            account.append(str(train_all(model)))
        elif recipe.transfer.mechanism == "open":
            account.append(str(train_all(model)))
        elif recipe.transfer.mechanism == "conservative":
            account.append(str(train_last(model, recipe.transfer.convs)))
        elif recipe.transfer.mechanism == "affine":
            account.append(str(train_norms(model, head=recipe.transfer.head)))
    return model, "\n\n".join(account)


def train_recipe(
    recipe: Recipe,
    cases: Sequence[Case],
    output: str | Path,
    *,
    source: Segmenter | str | Path | None = None,
    cache: str | Path | None = None,
    loggers: Sequence[str] = (),
    progress: bool = True,
) -> Segmenter:
    """Trains a recipe's network, or continues where a killed run stopped.

    Inside of `mrseg.distribution.distributed` it trains on several devices.

    Args:
        recipe: the experiment.
        cases: subjects with images and labels (without labels where the recipe needs none: mechanism
            ``statistics``, ``labels_from``); those of the split ``test`` are not touched.
        output: folder for ``segmenter/``, ``recipe.yaml``, ``cohort.tsv``, ``log.csv``, ``checkpoint/``,
            ``transfer.txt`` and, with ``labels_from``, ``pseudo_labels/``.
        source: trained segmenter whose network is carried over, for recipes with ``transfer``; or its folder
            or name, as `Segmenter.load` takes it.
        cache: folder for the preprocessed scans, which then need not fit into memory; other trainings and
            processes may use it too. It changes no result. None keeps them in memory, or in
            ``output/case_cache`` until the training has ended, if they take more than half of it.
        loggers: ``tensorboard``, ``wandb``.
        progress: show bars.

    Returns:
        The trained segmenter, as saved in ``output/segmenter``.

    Raises:
        InputError: another recipe was begun in ``output``; no training case; and all that `fit` and the
            readers raise.
        OSError: a folder cannot be written.
    """
    output = writable_folder(output)
    if isinstance(source, (str, Path)):
        source = Segmenter.load(source)
    check_start(recipe, source.model if source else None)
    check_source(recipe, source, cases)
    check_devices(recipe)
    train, validation = _split(recipe, _with_pseudo_labels(recipe, cases, output))
    run = _run(recipe, [*train, *validation], source)

    def begun() -> bool:
        return bool(epochs_done(output)) or (output / "segmenter").exists()

    with claimed(output, run, ONE_RUN, binding=begun):
        with atomic_file(output / "recipe.yaml") as page:
            page.write_text(run["recipe"], encoding="utf-8")
        write_cases([*train, *validation], output / "cohort.tsv")
        return _train(recipe, train, validation, output, source, cache, loggers, progress)


def _train(
    recipe: Recipe,
    train: Sequence[Case],
    validation: Sequence[Case],
    output: Path,
    source: Segmenter | None,
    cache: str | Path | None,
    loggers: Sequence[str],
    progress: bool,
) -> Segmenter:
    """Trains in a folder that is this run's own."""
    place = place_of_examples(recipe, train, validation, cache, output)
    if source is not None and recipe.transfer is not None and recipe.transfer.labels_from:
        pseudo_label(
            source, [*train, *validation], output / PSEUDO_LABELS, sequence=recipe.sequence,
            labels_from=recipe.transfer.labels_from, seed=recipe.training.seed, progress=progress,
        )  # fmt: skip
    with seeded(recipe.training.seed):
        model, account = build_network(recipe, source.model if source else None)
    sampling = recipe.sampling
    if source is not None:
        # The scans of the new sequence are centred as those the network was trained on.
        sampling = dataclasses.replace(sampling, channel_mean=source.sampling.channel_mean)
    if recipe.transfer is not None and recipe.transfer.mechanism == "statistics":
        account += "\n\n" + _adapt(recipe, sampling, model, train, place, progress)
    if account:
        with atomic_file(output / "transfer.txt") as path:
            path.write_text(account + "\n", encoding="utf-8")
    if recipe.transfer is None or recipe.transfer.trains:
        scans = training_examples(recipe, train, cache=place, progress=progress)
        if recipe.subtract_mean and not sampling.channel_mean:
            means = channel_means([image for image, _ in scans], sampling)
            sampling = dataclasses.replace(sampling, channel_mean=means)
        checks = validation_examples(recipe, validation, cache=place, progress=progress)
        _fit(recipe, sampling, model, scans, checks, output, loggers, progress)
    segmenter = Segmenter(
        model=model,
        preprocessing=recipe.preprocessing,
        sampling=sampling,
        class_names=recipe.class_names,
        sequence=recipe.sequence,
        crf=recipe.crf,
        postprocessing=recipe.postprocessing,
        provenance=_provenance(recipe, train, validation, source),
    )
    segmenter.save(output / "segmenter")
    if cache is None and place is not None:
        CaseCache(place).remove()
    # Training on kept features leaves the layers of the network in two graphs; read back, they are in one.
    cached = recipe.training.cache_features != "none"
    return Segmenter.load(output / "segmenter") if cached else segmenter


def _fit(
    recipe: Recipe,
    sampling: Sampling,
    model: keras.Model,
    scans: Sequence[Example],
    checks: Sequence[Example],
    output: Path,
    loggers: Sequence[str],
    progress: bool,
) -> None:
    """Trains ``model`` on ``scans``; ``checks`` are the validation's, if there are any."""
    settings = recipe.training
    batches = build_dataset(
        scans,
        sampling,
        batch_size=settings.batch_size,
        augmentation=recipe.augmentation,
        seed=settings.seed,
        first_epoch=epochs_done(output),
        share=share(),
    )
    validation = None
    if checks:
        validation = build_dataset(
            checks, sampling, batch_size=settings.batch_size, shuffle=False, share=share()
        )
    with whole_batch_statistics(model):
        fit(
            model,
            batches,
            validation,
            settings,
            loss=recipe.loss,
            class_names=recipe.class_names,
            folder=output,
            same=_same_every_epoch(recipe, sampling, scans),
            loggers=loggers,
            progress=progress,
        )


def _same_every_epoch(recipe: Recipe, sampling: Sampling, scans: Sequence[Example]) -> SameEveryEpoch | None:
    """The training data for a cache of features; None, and a word in the log, where no cache can serve."""
    settings = recipe.training
    if settings.cache_features == "none":
        return None
    if share().devices > 1 or share().looks_ahead:
        log.warning("Training without a cache of features: the training is distributed.")
        return None
    random = "augmentation" if recipe.augmentation != Augmentation() else ""
    random = random or ("random patches" if sampling.patches_per_volume else "")
    if random:
        log.warning("Training without a cache of features: %s differ from epoch to epoch.", random)
        return None
    data = build_dataset(scans, sampling, batch_size=settings.batch_size, shuffle=False)
    return SameEveryEpoch(data, grid_order(scans, sampling, seed=settings.seed))


def _adapt(
    recipe: Recipe,
    sampling: Sampling,
    model: keras.Model,
    train: Sequence[Case],
    cache: Path | None,
    progress: bool,
) -> str:
    """Estimates the statistics of ``model`` anew on one epoch of the training scans; says how far they moved.

    The patches are those of the first epoch of a training, without augmentation.
    """
    scans = unlabelled_examples(recipe, train, cache=cache, progress=progress)
    settings = recipe.training
    batches = build_dataset(scans, sampling, batch_size=settings.batch_size, seed=settings.seed)
    moved = adapt_statistics(model, (images for images, _ in batches))
    rows = [(name, f"{distance:.3f}") for name, distance in moved.items()]
    return text_table(("statistics of", "mean moved by (old standard deviations)"), rows)


def _with_pseudo_labels(recipe: Recipe, cases: Sequence[Case], output: Path) -> Sequence[Case]:
    """The cases with the labels that the recipe trains on, made or still to be made."""
    if recipe.transfer is None or not recipe.transfer.labels_from:
        return cases
    return plan(
        cases, output / PSEUDO_LABELS, sequence=recipe.sequence, labels_from=recipe.transfer.labels_from
    )


def _split(recipe: Recipe, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Training and validation cases with the recipe's sequence; its validation subjects leave training."""
    check_splits(cases, required=("train",))
    names = {case.subject for case in cases if case.split == "train"}
    for subject in recipe.validation_subjects:
        if subject not in names:
            raise error("validation_subjects are subjects of the split 'train'.", subject)
    aside = set(recipe.validation_subjects)
    usable = [c for c in cases if any(having(recipe, [c], sequence) for sequence in recipe.sequences)]
    train = [case for case in usable if case.split == "train" and case.subject not in aside]
    validation = [
        dataclasses.replace(case, split="val")
        for case in usable
        if case.split == "val" or case.subject in aside
    ]
    left_out = (
        sum(
            case.split in ("train", "val") and any(s in case.images for s in recipe.sequences)
            for case in cases
        )
        - len(train)
        - len(validation)
    )
    if left_out:
        log.warning(
            "%d cases with a %s image have no %s and are left out of training",
            left_out,
            " or ".join(recipe.sequences),
            f"{recipe.transfer.labels_from} image to label it by"
            if recipe.transfer and recipe.transfer.labels_from
            else "labels for it",
        )
    if not having(recipe, train, recipe.sequence):
        source = recipe.transfer.labels_from if recipe.transfer else ""
        besides = f" and one of {source}" if source else " and its labels" if recipe.needs_labels else ""
        remedy = f"The column {recipe.sequence} of the manifest names the images"
        raise error(
            f"Training needs at least one case with a {recipe.sequence} image{besides}.",
            f"{len(names)} subjects of the split 'train', with images {_sequences(cases)}",
            remedy + ("." if source or not recipe.needs_labels else "; `mrseg prepare` makes labels."),
        )
    return train, validation


def _sequences(cases: Sequence[Case]) -> str:
    return ", ".join(sorted({name for case in cases for name in case.images})) or "of no sequence"


def _run(recipe: Recipe, cases: Sequence[Case], source: Segmenter | None) -> dict[str, Any]:
    """What this run is: one of another recipe, other cases or another source has a folder of its own."""
    files = [
        [c.subject, c.split, c.images[sequence].name, c.labels[sequence].name if sequence in c.labels else ""]
        for sequence in recipe.sequences
        for c in having(recipe, cases, sequence)
    ]
    return {
        "recipe": yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True),
        "cases": sorted(files),
        "source": None if source is None else _weights_digest(source.model),
    }


def _weights_digest(model: keras.Model) -> str:
    """Names a network by its weights: the file of one and the same network differs by the date inside."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _provenance(
    recipe: Recipe, train: Sequence[Case], validation: Sequence[Case], source: Segmenter | None
) -> dict[str, Any]:
    # Names of subjects and paths stay in the run's own folder; the segmenter may be passed on.
    page = recipe.as_dict()
    page["validation_subjects"] = len(page["validation_subjects"])
    del page["command"]
    arguments = page["network"]["arguments"]
    if arguments.get("weights"):
        arguments["weights"] = Path(arguments["weights"]).name
    return {
        "recipe": page,
        "subjects": {"train": len(train), "validation": len(validation)},
        "subject_digests": sorted({subject_digest(case) for case in (*train, *validation)}),
        "source": source.provenance if source else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    packages = ("tensorflow", "keras", "numpy", "nibabel", "itk-elastix")
    return {
        "mrseg": mrseg.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "backend": keras.backend.backend(),
    }
