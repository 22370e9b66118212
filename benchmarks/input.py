"""How fast each recipe's data pipeline is, beside what its network consumes in training, in one run.

    python benchmarks/input.py --output docs/results/input.csv

The pipeline is the one that `mrseg train` builds, on noise of the paper's size in memory: without
augmentation, with the recipe's own, with every change switched on, and with that from a case cache on disk. A
run of it is a whole epoch, its start and end included; a run of the network is one step of training. They
take turns, each with all the cores, so that a ratio above 1 says how many such machines the pipeline could
feed. Whether it feeds a fast GPU too, 100 patches a second, stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from machine import processor
from rounds import compare

from mrseg.data.augmentation import Augmentation
from mrseg.formats import write_csv
from mrseg.recipes.loader import Recipe, load_recipe

#: One recipe a network -> shape of a scan on its grid, and how many make an epoch of a second or two.
RECIPES = {
    "mecheter2023_t1": ((256, 256, 48), 8),
    "mecheter2020_t1": ((256, 256, 48), 6),
    "islam2025_unet": ((256, 128, 256), 2),
    "islam2025_sep_res_unet": ((256, 128, 256), 2),
    "islam2025_attention_unet": ((256, 128, 256), 2),
    "xu2017_exp1": ((512, 512, 50), 2),
    "alkhimova2022": ((128, 128, 22), 16),
}
KINDS = ("none", "recipe", "all", "all, from disk")
PACKAGES = ("tensorflow", "keras", "numpy")
GOAL, GPU_RATE = 3.0, 100.0
STEP = 2  # patches in a step of the network at most: SegNet's ten slices at once take many seconds


def main() -> None:
    """Measures the recipes that were asked for, prints and writes the rates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/input.csv"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    table = []
    for name in options.recipes:
        table += rates(name, options.rounds)
        write_csv(table, options.output)


def rates(name: str, count: int) -> list[dict[str, object]]:
    """One row for every kind of pipeline of a recipe."""
    recipe = load_recipe(name)
    step = min(STEP, recipe.training.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        pipelines = {kind: pipeline(name, kind, folder) for kind in KINDS}
        patches = pipelines["none"]()
        timings = compare({"network": network(name, step), **pipelines}, count)
    consumed = timings.pop("network")
    table = []
    for kind, timing in timings.items():
        # seconds a patch in the pipeline / in the network; the pipeline's rate / the network's is one over it
        ratio, low, high = (
            round(patches / step / value, 2) for value in (timing.ratio, timing.ratio_high, timing.ratio_low)
        )
        rate = patches / timing.seconds
        table.append(
            {
                "recipe": name,
                "network": recipe.network.builder,
                "input": "x".join(map(str, recipe.sampling.input_shape)),
                "augmentation": kind,
                "patches_per_s": round(rate, 1),
                "cpu_ms_per_patch": round(1000 * timing.cpu_seconds / patches, 2),
                "network_patches_per_s": round(step / consumed.seconds, 3),
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "goal": GOAL,
                "feeds_a_fast_gpu": "yes" if rate >= GPU_RATE else "no",
                "rounds": count,
                "threads": os.cpu_count(),
                "machine": processor(),
                "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
            }
        )
        print(*list(table[-1].values())[:12], sep="  ", flush=True)
    return table


def pipeline(name: str, kind: str, folder: str) -> Callable[[], int]:
    """One epoch of a recipe's pipeline, whatever becomes of the batches; returns how many patches it had."""
    from mrseg.data.case_cache import CaseCache
    from mrseg.data.pipeline import build_dataset

    recipe, (shape, count) = load_recipe(name), RECIPES[name]
    sampling = recipe.sampling
    if sampling.patches_per_volume:  # xu2017's epochs are 1,000 slices long
        sampling = dataclasses.replace(sampling, patches_per_volume=40)
    sampling = dataclasses.replace(
        sampling, channel_mean=(0.5,) * sampling.channels if recipe.subtract_mean else ()
    )
    rng = np.random.default_rng(0)
    examples = [
        (rng.random(shape, np.float32), rng.integers(0, len(recipe.class_names), shape).astype(np.uint8))
        for _ in range(count)
    ]
    if kind == "all, from disk":
        cache = CaseCache(folder)
        examples = [cache.get([], {"number": n}, lambda n=n: examples[n]) for n in range(count)]
    data = build_dataset(
        examples,
        sampling,
        batch_size=recipe.training.batch_size,
        augmentation=augmentation(recipe, kind),
    )

    def epoch() -> int:
        return sum(len(images) for images, _ in data)

    return epoch


def augmentation(recipe: Recipe, kind: str) -> Augmentation | None:
    """None, the recipe's own, or that with every change that it leaves out."""
    if kind == "none":
        return None
    if kind == "recipe":
        return recipe.augmentation
    own = recipe.augmentation
    return dataclasses.replace(
        own,
        flip_axes=tuple(range(len(recipe.sampling.input_shape) - 1)),
        rotation_deg=own.rotation_deg or 15.0,
        scale=own.scale or 0.1,
        intensity_scale=0.1,
        bias_field=0.3,
        gamma=0.3,
        noise=0.1,
    )


def network(name: str, step: int) -> Callable[[], None]:
    """One step of training of a recipe's network as `mrseg train` compiles it, on a batch that is there."""
    import keras

    from mrseg.recipes.runner import build_network
    from mrseg.training import _compile

    recipe = load_recipe(name)
    keras.utils.set_random_seed(0)
    model, _ = build_network(recipe)
    _compile(model, recipe.training, recipe.loss, recipe.class_names, steps=1)
    rng = np.random.default_rng(0)
    images = rng.random((step, *recipe.sampling.input_shape), np.float32)
    labels = rng.integers(0, len(recipe.class_names), images.shape[:-1]).astype(np.uint8)

    def train() -> None:
        model.train_on_batch(images, labels)

    return train


if __name__ == "__main__":
    main()
