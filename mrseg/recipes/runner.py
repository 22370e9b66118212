"""Runs a recipe: network, weights carried over, mechanism of transfer, training, segmenter."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from mrseg.data.cases import Case, check_splits, write_cases
from mrseg.data.patches import Sampling, channel_means
from mrseg.data.pipeline import Example, build_dataset, load_examples
from mrseg.models.builders import BUILDERS
from mrseg.recipes.loader import Recipe
from mrseg.segmenter import Segmenter, subject_digest, trained_on
from mrseg.training import epochs_done, fit, precision
from mrseg.transfer.freezing import train_all, train_last
from mrseg.transfer.fusion import hybrid
from mrseg.transfer.weights import load_weights

log = logging.getLogger(__name__)


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
    if (recipe.transfer is None) != (source is None):
        needs = "needs a trained network to start from" if recipe.transfer else "trains from scratch"
        raise error(f"Recipe {recipe.name} {needs}.", "none" if source is None else source.name)
    with precision(recipe.training.precision):
        model = BUILDERS[recipe.network.builder](
            recipe.sampling.input_shape, len(recipe.class_names), **recipe.network.arguments
        )
        if recipe.transfer is None or source is None:
            return model, ""
        account = [str(load_weights(model, source))]
        if recipe.transfer.mechanism == "hybrid":
            model = hybrid(model, fuse=recipe.transfer.fuse, fuse_at=recipe.transfer.fuse_at)
            account.append(str(train_all(model)))
        elif recipe.transfer.mechanism == "open":
            account.append(str(train_all(model)))
        elif recipe.transfer.mechanism == "conservative":
            account.append(str(train_last(model, recipe.transfer.convs)))
    return model, "\n\n".join(account)


def train_recipe(
    recipe: Recipe,
    cases: Sequence[Case],
    output: str | Path,
    *,
    source: Segmenter | None = None,
    loggers: Sequence[str] = (),
    progress: bool = True,
) -> Segmenter:
    """Trains a recipe's network, or continues where a killed run stopped.

    Args:
        recipe: the experiment.
        cases: subjects with images and labels; those of the split ``test`` are not touched.
        output: folder for ``segmenter/``, ``recipe.yaml``, ``cohort.tsv``, ``log.csv``, ``checkpoint/`` and
            ``transfer.txt``.
        source: trained segmenter whose network is carried over, for recipes with ``transfer``.
        loggers: ``tensorboard``, ``wandb``.
        progress: show bars.

    Returns:
        The trained segmenter, as saved in ``output/segmenter``.

    Raises:
        InputError: another recipe was begun in ``output``; no training case; and all that `fit` and the
            readers raise.
    """
    output = writable_folder(output)
    train, validation = _split(recipe, cases)
    _check_source(recipe, source, cases)
    _claim(recipe, [*train, *validation], source, output)
    keras.utils.set_random_seed(recipe.training.seed)
    model, account = build_network(recipe, source.model if source else None)
    if account:
        with atomic_file(output / "transfer.txt") as path:
            path.write_text(account + "\n")
    sampling = recipe.sampling
    if source is not None:
        # The scans of the new sequence are centred as those the network was trained on.
        sampling = dataclasses.replace(sampling, channel_mean=source.sampling.channel_mean)
    if recipe.transfer is None or recipe.transfer.mechanism != "none":
        sampling = _fit(recipe, sampling, model, train, validation, output, loggers, progress)
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
    return segmenter


def _fit(
    recipe: Recipe,
    sampling: Sampling,
    model: keras.Model,
    train: Sequence[Case],
    validation: Sequence[Case],
    output: Path,
    loggers: Sequence[str],
    progress: bool,
) -> Sampling:
    """Trains ``model`` and returns the sampling it was trained with, its channel means filled in."""

    def examples(cases: Sequence[Case]) -> list[Example]:
        found: list[Example] = []
        for sequence in recipe.sequences:
            having = [case for case in cases if sequence in case.images and sequence in case.labels]
            found += load_examples(
                having, sequence, recipe.preprocessing, len(recipe.class_names), progress=progress
            )
        return found

    settings, scans = recipe.training, examples(train)
    if recipe.subtract_mean and not sampling.channel_mean:
        means = channel_means([image for image, _ in scans], sampling)
        sampling = dataclasses.replace(sampling, channel_mean=means)
    batches = build_dataset(
        scans,
        sampling,
        batch_size=settings.batch_size,
        augmentation=recipe.augmentation,
        seed=settings.seed,
        first_epoch=epochs_done(output),
    )
    checks = None
    if validation:
        checks = build_dataset(examples(validation), sampling, batch_size=settings.batch_size, shuffle=False)
    fit(
        model,
        batches,
        checks,
        settings,
        loss=recipe.loss,
        class_names=recipe.class_names,
        folder=output,
        loggers=loggers,
        progress=progress,
    )
    return sampling


def _split(recipe: Recipe, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Training and validation cases with the recipe's sequence; its validation subjects leave training."""
    check_splits(cases, required=("train",))
    names = {case.subject for case in cases if case.split == "train"}
    for subject in recipe.validation_subjects:
        if subject not in names:
            raise error("validation_subjects are subjects of the split 'train'.", subject)
    aside = set(recipe.validation_subjects)
    usable = [c for c in cases if any(s in c.images and s in c.labels for s in recipe.sequences)]
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
            "%d cases with a %s image have no labels for it and are left out of training",
            left_out,
            " or ".join(recipe.sequences),
        )
    if not any(recipe.sequence in case.images and recipe.sequence in case.labels for case in train):
        raise error(
            f"Training needs at least one case with a {recipe.sequence} image and its labels.",
            f"{len(names)} subjects of the split 'train'",
            f"The column {recipe.sequence} of the manifest names the images; `mrseg prepare` makes labels.",
        )
    return train, validation


def _check_source(recipe: Recipe, source: Segmenter | None, cases: Sequence[Case]) -> None:
    """A network is carried over only to the same classes and grid, and never scored on what it has seen."""
    if source is None:
        return
    for name in ("class_names", "preprocessing"):
        ours, theirs = getattr(recipe, name), getattr(source, name)
        if ours != theirs:
            raise error(
                f"A network is carried over with the {name} it was trained with.",
                f"{theirs} there, {ours} in recipe {recipe.name}",
                "Pass the same --set options as for its training.",
            )
    seen = trained_on(source, [case for case in cases if case.split == "test"])
    if seen:
        raise error(
            "A test subject is one that no network of the chain has seen.",
            f"{seen[0]}, which the source was trained on",
            "Give it another split, or rename it if it is another person.",
        )


def _claim(recipe: Recipe, cases: Sequence[Case], source: Segmenter | None, output: Path) -> None:
    """Writes what this run is; refuses to go on with one of another recipe, other cases or another source."""
    page = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
    files = [
        [c.subject, c.split, c.images[sequence].name, c.labels[sequence].name]
        for c in cases
        for sequence in recipe.sequences
        if sequence in c.images and sequence in c.labels
    ]
    run = {
        "recipe": page,
        "cases": sorted(files),
        "source": None if source is None else _weights_digest(source.model),
    }
    path = output / "run.json"
    begun = epochs_done(output) or (output / "segmenter").exists()
    if begun and path.exists():
        earlier = json.loads(path.read_text())
        other = [key for key in run if earlier.get(key) != run[key]]
        if other:
            raise error(
                "A folder holds one run: one recipe, its cases and the network it started from.",
                f"{output}, begun with another {' and '.join(other)}",
                "Choose another output folder, or remove this one.",
            )
    for file, text in (("run.json", json.dumps(run, indent=1)), ("recipe.yaml", page)):
        with atomic_file(output / file) as temporary:
            temporary.write_text(text)
    write_cases(cases, output / "cohort.tsv")


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
