"""What must be so before a recipe trains: its source, its scans' patches, its devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from mrseg._checks import error
from mrseg.data.cases import Case
from mrseg.data.examples import Example
from mrseg.distribution import share
from mrseg.recipes.loader import Recipe
from mrseg.segmenter import Segmenter, trained_on
from mrseg.store import builder_of


def check_start(recipe: Recipe, source: keras.Model | None) -> None:
    """A recipe that transfers needs a source, one that does not takes none."""
    if (recipe.transfer is None) != (source is None):
        needs = "needs a trained network to start from" if recipe.transfer else "trains from scratch"
        raise error(f"Recipe {recipe.name} {needs}.", "none" if source is None else source.name)


def check_scale(model: keras.Model, source: keras.Model) -> None:
    """What divides the input has no weights, so that `load_weights` would not miss it."""
    ours, theirs = (
        [layer.scale for layer in network.layers if isinstance(layer, keras.layers.Rescaling)]
        for network in (model, source)
    )
    if ours != theirs:
        raise error(
            "A network is carried over with the scale of its input (input_deviation).",
            f"factors {theirs} there, {ours} in the recipe",
            "Pass the same --set options as for its training.",
        )


def check_source(recipe: Recipe, source: Segmenter | None, cases: Sequence[Case]) -> None:
    """A network is carried over only to the same classes and grid, and never scored on what it has seen."""
    if source is None:
        return
    builder = builder_of(source.provenance)
    if builder not in ("", recipe.network.builder):
        raise error(
            "A recipe carries over weights of its own network.",
            f"those of a {builder}; recipe {recipe.name} builds a {recipe.network.builder}",
            f"Take weights of that network, or a recipe of {builder} (`mrseg recipes`).",
        )
    if recipe.class_names != source.class_names:
        raise error(
            "A network is carried over with the class_names it was trained with.",
            f"{source.class_names} there, {recipe.class_names} in recipe {recipe.name}",
            "For other classes see `mrseg.transfer.load_weights`, which carries the layers over one by one.",
        )
    ours, theirs = dataclasses.asdict(recipe.preprocessing), dataclasses.asdict(source.preprocessing)
    apart = [name for name in ours if ours[name] != theirs[name]]
    if apart:
        raise error(
            "A network is carried over with the preprocessing it was trained with.",
            "; ".join(f"{name} {theirs[name]} there, {ours[name]} in recipe {recipe.name}" for name in apart),
            "Take the recipe that is made for these weights (`mrseg weights NAME` names its own), or pass "
            "the same --set options as for their training.",
        )
    seen = trained_on(source, [case for case in cases if case.split == "test"])
    if seen:
        raise error(
            "A test subject is one that no network of the chain has seen.",
            f"{seen[0]}, which the source was trained on",
            "Give it another split, or rename it if it is another person.",
        )


def check_devices(recipe: Recipe) -> None:
    """Several devices share a training alone, not what comes before it."""
    transfer, devices = recipe.transfer, share().devices
    if devices > 1 and transfer is not None and (transfer.labels_from or not transfer.trains):
        raise error(
            "Several devices share a training.",
            f"{devices}, and recipe {recipe.name} {'labels scans' if transfer.trains else 'trains nothing'}",
            "Run it on one device.",
        )


def check_patch(recipe: Recipe, cases: Sequence[Case], examples: Sequence[Example]) -> None:
    """Names the scans that a patch does not fit into, before an hour of training meets them."""
    patch, copies = recipe.sampling.patch_shape, max(1, len(examples) // max(1, len(cases)))
    shapes = [image.shape for image, _ in examples[::copies]]
    small = [
        case.name
        for case, shape in zip(cases, shapes, strict=True)
        if any(n < needed for n, needed in zip(shape, patch, strict=True))
    ]
    if small:
        least = tuple(map(min, zip(*shapes, strict=True)))
        raise error(
            "A patch fits into every scan that is trained on, on the network's grid.",
            f"patches of {patch} voxels; smaller are {', '.join(small[:5])} of {len(shapes)} scans",
            f"Every scan has {least} voxels or more: set sampling.patch_shape to no more, along each axis a "
            "multiple of what the network divides by.",
        )
