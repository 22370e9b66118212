"""Runs a recipe: network, weights carried over, mechanism of transfer, training, segmenter."""

from __future__ import annotations

import dataclasses
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
from mrseg.data.cases import Case, check_splits, select, write_cases
from mrseg.data.pipeline import build_dataset, load_examples
from mrseg.models.builders import BUILDERS
from mrseg.recipes.loader import Recipe
from mrseg.segmenter import Segmenter
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
        model = BUILDERS[recipe.network.builder].build(
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
    _keep_recipe(recipe, output)
    train, validation = _split(recipe, cases)
    write_cases([*train, *validation], output / "cohort.tsv")
    keras.utils.set_random_seed(recipe.training.seed)
    model, account = build_network(recipe, source.model if source else None)
    if account:
        with atomic_file(output / "transfer.txt") as path:
            path.write_text(account + "\n")
    if recipe.transfer is None or recipe.transfer.mechanism != "none":
        _fit(recipe, model, train, validation, output, loggers, progress)
    segmenter = Segmenter(
        model=model,
        preprocessing=recipe.preprocessing,
        sampling=recipe.sampling,
        class_names=recipe.class_names,
        sequence=recipe.sequence,
        provenance=_provenance(recipe, train, validation, source),
    )
    segmenter.save(output / "segmenter")
    return segmenter


def _fit(
    recipe: Recipe,
    model: keras.Model,
    train: Sequence[Case],
    validation: Sequence[Case],
    output: Path,
    loggers: Sequence[str],
    progress: bool,
) -> None:
    def examples(cases: Sequence[Case]) -> list[tuple[np.ndarray, np.ndarray]]:
        return load_examples(
            cases, recipe.sequence, recipe.preprocessing, len(recipe.class_names), progress=progress
        )

    settings = recipe.training
    batches = build_dataset(
        examples(train),
        recipe.sampling,
        batch_size=settings.batch_size,
        augmentation=recipe.augmentation,
        seed=settings.seed,
        first_epoch=epochs_done(output),
    )
    checks = None
    if validation:
        checks = build_dataset(
            examples(validation), recipe.sampling, batch_size=settings.batch_size, shuffle=False
        )
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


def _split(recipe: Recipe, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; the recipe's validation subjects are taken out of training."""
    check_splits(cases, required=("train",))
    names = {case.subject for case in cases if case.split == "train"}
    for subject in recipe.validation_subjects:
        if subject not in names:
            raise error("validation_subjects are subjects of the split 'train'.", subject)
    aside = set(recipe.validation_subjects)
    train = [case for case in select(cases, "train") if case.subject not in aside]
    validation = [
        dataclasses.replace(case, split="val")
        for case in cases
        if case.split == "val" or case.subject in aside
    ]
    if not train:
        raise error("Training needs at least one case.", "only validation subjects")
    return train, validation


def _keep_recipe(recipe: Recipe, output: Path) -> None:
    text = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
    path = output / "recipe.yaml"
    if path.exists() and path.read_text() != text:
        raise error(
            "A folder holds the run of one recipe.",
            f"{output}, begun with other settings (see its recipe.yaml)",
            "Choose another output folder, or remove this one.",
        )
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _provenance(
    recipe: Recipe, train: Sequence[Case], validation: Sequence[Case], source: Segmenter | None
) -> dict[str, Any]:
    return {
        "recipe": recipe.as_dict(),
        "subjects": {"train": len(train), "validation": len(validation)},
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
