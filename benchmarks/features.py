"""An epoch of training with the frozen part computed once, beside an ordinary epoch, in one run.

    python benchmarks/features.py --output docs/results/features.csv

The two kinds of epoch take turns on the same network, data and batches, so that whatever else the machine
does hits both alike; a ratio is ordinary / cached within one round. The first round traces and is not
counted. What the cache costs once, in seconds and on disk, stands beside the ratio.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import mrseg
from mrseg.transfer import cache_features, find_cut, hybrid, train_last

COLUMNS = (
    "case", "input", "cases", "batch", "ordinary_s", "cached_s", "ratio", "ratio_min", "ratio_max", "goal",
    "once_s", "cache_mb", "rounds", "machine", "versions",
)  # fmt: skip


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


def seconds(model: keras.Model, data: tf.data.Dataset) -> float:
    """Of one epoch."""
    start = time.perf_counter()
    model.fit(data, epochs=1, verbose=0, shuffle=False)
    return time.perf_counter() - start


def measure(name: str, rounds: int) -> dict[str, object]:
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
            pairs = [(seconds(model, data), seconds(cut.suffix, features)) for _ in range(rounds + 1)][1:]
            ratios = [ordinary / kept for ordinary, kept in pairs]
            return {
                "case": name,
                "input": "x".join(map(str, model.input_shape[1:])),
                "cases": cases,
                "batch": batch,
                "ordinary_s": round(statistics.median(pair[0] for pair in pairs), 3),
                "cached_s": round(statistics.median(pair[1] for pair in pairs), 3),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_min": round(min(ratios), 2),
                "ratio_max": round(max(ratios), 2),
                "goal": goal,
                "once_s": round(once, 2),
                "cache_mb": round(cached.bytes / 1e6, 1),
                "rounds": rounds,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras")),
            }


def main() -> None:
    """Measures the cases that were asked for, prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    rows = []
    for name in options.cases:
        rows.append(measure(name, options.rounds))
        print("  ".join(f"{key} {rows[-1][key]}" for key in COLUMNS[:-3]), flush=True)
    if options.output:
        with open(options.output, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
