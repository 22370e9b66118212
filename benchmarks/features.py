"""An epoch of training with the frozen part computed once, beside an ordinary epoch, in one run.

    python benchmarks/features.py --output docs/results/features.csv

The two kinds of epoch take turns on the same network, data and batches, so that whatever else the machine
does hits both alike; a ratio is ordinary / cached within one round. The first round traces and is not
counted. What the cache costs once, in seconds and on disk, stands beside the ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import rounds
import tensorflow as tf
from machine import processor

import mrseg
from mrseg.formats import write_csv
from mrseg.transfer import cache_features, find_cut, hybrid, train_last


def segnet(convs: int) -> keras.Model:
    """mecheter2020 in its own width on slices of 128 x 128, the last convolutions trained."""
    model = mrseg.models.segnet((128, 128, 1))
    train_last(model, convs)
    return model


def volumes_head() -> keras.Model:
    """mecheter2023 with 16 filters on small patches, the head alone trained."""
    model = mrseg.models.se_unet3d((64, 64, 24, 1), filters=16)
    train_last(model, 0)
    return model


def volumes_hybrid() -> keras.Model:
    """The hybrid of the same network: a frozen encoder beside one that trains."""
    return hybrid(mrseg.models.se_unet3d((64, 64, 24, 1), filters=16))


#: name -> network, cases, batch size, goal for the ratio
CASES: dict[str, tuple[Callable[[], keras.Model], int, int, float]] = {
    "segnet head": (lambda: segnet(0), 8, 2, 10.0),
    "segnet last 2": (lambda: segnet(2), 8, 2, 3.0),
    "se_unet3d head": (volumes_head, 12, 2, 10.0),
    "se_unet3d hybrid": (volumes_hybrid, 4, 2, 1.0),
}


def data_for(model: keras.Model, cases: int, batch: int) -> tf.data.Dataset:
    """Noise and labels in memory, in batches, without tf.data's tuner (see `mrseg.transfer.features`)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(cases, *model.input_shape[1:])).astype("float32")
    y = rng.integers(0, model.output_shape[-1], size=x.shape[:-1]).astype("uint8")
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).with_options(options)


def epoch(model: keras.Model, data: tf.data.Dataset) -> None:
    """One epoch of training."""
    model.fit(data, epochs=1, verbose=0, shuffle=False)


def measure(name: str, count: int) -> dict[str, object]:
    """One row: medians over the rounds."""
    build, cases, batch, goal = CASES[name]
    model = build()
    data = data_for(model, cases, batch)
    cut = find_cut(model)
    for part in (model, cut.suffix):
        part.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with cache_features(cut, data, Path(folder) / "cache") as cached:
            once = time.perf_counter() - start
            features = cached.dataset()
            timings = rounds.compare(
                {"cached": lambda: epoch(cut.suffix, features), "ordinary": lambda: epoch(model, data)}, count
            )
            ordinary, kept = timings["ordinary"], timings["cached"]
            return {
                "case": name,
                "input": "x".join(map(str, model.input_shape[1:])),
                "cases": cases,
                "batch": batch,
                "ordinary_s": round(ordinary.seconds, 3),
                "cached_s": round(kept.seconds, 3),
                "ratio": round(ordinary.ratio, 2),
                "ratio_low": round(ordinary.ratio_low, 2),
                "ratio_high": round(ordinary.ratio_high, 2),
                "goal": goal,
                "once_s": round(once, 2),
                "cache_mb": round(cached.bytes / 1e6, 1),
                "rounds": count,
                "threads": os.cpu_count(),
                "machine": processor(),
                "versions": ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras")),
            }


def main() -> None:
    """Measures the cases that were asked for, prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    table: list[dict[str, object]] = []
    for name in options.cases:
        table.append(measure(name, options.rounds))
        print("  ".join(f"{key} {table[-1][key]}" for key in list(table[-1])[:-4]), flush=True)
    if options.output:
        write_csv(table, options.output)


if __name__ == "__main__":
    main()
