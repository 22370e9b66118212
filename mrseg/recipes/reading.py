"""The scans that a recipe trains on, as examples in memory or in a cache on disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mrseg._files import writable_folder
from mrseg.data.cases import Case
from mrseg.data.examples import Contrasts, Example, examples_mb, load_examples, load_images
from mrseg.memory import memory_mb
from mrseg.recipes.checks import check_patch
from mrseg.recipes.loader import Recipe

log = logging.getLogger(__name__)

#: Of the machine's memory (or of what its container may take); examples that need more lie on disk.
MEMORY_SHARE = 0.5
#: Where they lie, in the folder of the run, unless a cache was named.
CASE_CACHE = "case_cache"


def having(recipe: Recipe, cases: Sequence[Case], sequence: str) -> list[Case]:
    """The cases whose scan of ``sequence`` the recipe can use."""
    return [c for c in cases if sequence in c.images and (sequence in c.labels or not recipe.needs_labels)]


def training_examples(
    recipe: Recipe, cases: Sequence[Case], *, cache: Path | None, progress: bool
) -> list[Example]:
    """The training scans of every sequence of the recipe, or the images of random contrast in their place."""
    dark = tuple(recipe.class_names.index(name) for name in recipe.dark_classes)
    contrasts = Contrasts(recipe.random_contrasts, dark, recipe.training.seed)
    return _examples(recipe, cases, contrasts, cache, progress)


def validation_examples(
    recipe: Recipe, cases: Sequence[Case], *, cache: Path | None, progress: bool
) -> list[Example]:
    """The scans of every sequence of the recipe, as they are."""
    return _examples(recipe, cases, Contrasts(), cache, progress)


def unlabelled_examples(
    recipe: Recipe, cases: Sequence[Case], *, cache: Path | None, progress: bool
) -> list[Example]:
    """The scans of every sequence of the recipe, with labels that say nothing."""
    return [
        example
        for sequence in recipe.sequences
        for example in load_images(
            having(recipe, cases, sequence), sequence, recipe.preprocessing, cache=cache, progress=progress
        )
    ]


def _examples(
    recipe: Recipe, cases: Sequence[Case], contrasts: Contrasts, cache: Path | None, progress: bool
) -> list[Example]:
    examples: list[Example] = []
    for sequence in recipe.sequences:
        of_sequence = having(recipe, cases, sequence)
        found = load_examples(
            of_sequence,
            sequence,
            recipe.preprocessing,
            len(recipe.class_names),
            contrasts=contrasts,
            cache=cache,
            progress=progress,
        )
        check_patch(recipe, of_sequence, found)
        examples += found
    return examples


def place_of_examples(
    recipe: Recipe, train: Sequence[Case], validation: Sequence[Case], cache: str | Path | None, output: Path
) -> Path | None:
    """The folder for the examples; None keeps them in memory.

    Args:
        recipe: says what is made of the cases.
        train, validation: cases.
        cache: what the user named, or None: then examples of more than `MEMORY_SHARE` of the memory go into
            the folder of the run, and the log says so.
        output: folder of the run.

    Raises:
        OSError: the cache cannot be made or written.
    """
    if cache is not None:
        return writable_folder(cache)
    needed_mb = 0.0
    for sequence in recipe.sequences:
        for cases, copies in ((train, max(1, recipe.random_contrasts)), (validation, 1)):
            of_sequence = having(recipe, cases, sequence)
            needed_mb += copies * examples_mb(of_sequence, sequence, recipe.preprocessing)
    limit_mb = MEMORY_SHARE * memory_mb()
    if needed_mb <= limit_mb:
        return None
    log.warning(
        "The preprocessed scans take about %.1f GB, more than %.0f %% of the memory (%.1f GB): they lie in "
        "%s until the training has ended. --cache FOLDER keeps them for other trainings.",
        needed_mb / 1e3, 100 * MEMORY_SHARE, memory_mb() / 1e3, output / CASE_CACHE,
    )  # fmt: skip
    return output / CASE_CACHE
