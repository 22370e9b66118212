"""What a scan costs, and on paper what 100,000 of them would: core hours, storage, files, where it breaks.

    python benchmarks/estimate.py --output docs/results/estimate.csv

One synthetic head of a clinical size goes through preparation (registration of its CT), prediction by the
network of mecheter2023 at the paper's width (random weights), and evaluation with surface distances. Costs
are seconds of all threads together, which other work on the machine disturbs less than the clock. What a
cohort of many rows takes before the first scan is measured on 10,000 rows.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from machine import processor

from mrseg import Segmenter
from mrseg.data import read_cases
from mrseg.data.examples import examples_mb
from mrseg.data.phantom import write_cohort
from mrseg.evaluation import evaluate
from mrseg.formats import write_csv
from mrseg.models.builders import BUILDERS
from mrseg.prediction import predict_cohort
from mrseg.preparation import prepare
from mrseg.recipes.loader import load_recipe

SHAPE, SPACING_MM = (256, 256, 48), (0.9, 0.9, 3.0)
COHORT, ROWS = 100_000, 10_000
RECIPE = "mecheter2023_t1"


def main() -> None:
    """Measures, multiplies, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/estimate.csv"))
    parser.add_argument("--cores", type=int, default=512, help="of the cluster (default: 512)")
    parser.add_argument("--small", action="store_true", help="a small head and a narrow network")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        table = measured(Path(scratch), options.small)
    for row in table:
        row |= scaled(row, options.cores) | {"machine": processor()}
        print(*row.values(), sep="  ", flush=True)
    write_csv(table, options.output)


def measured(folder: Path, small: bool) -> list[dict[str, Any]]:
    """One row a step: seconds, MB and files of a scan."""
    shape, spacing_mm = ((64, 64, 24), (3.6, 3.6, 6.0)) if small else (SHAPE, SPACING_MM)
    manifest = write_cohort(folder / "raw", subjects={"test": 1}, shape=shape, spacing_mm=spacing_mm)
    recipe = load_recipe(RECIPE, ["network.arguments.filters=4"] if small else [])
    keras.utils.set_random_seed(0)
    network = BUILDERS[recipe.network.builder](
        recipe.sampling.input_shape, len(recipe.class_names), **recipe.network.arguments
    )
    segmenter = Segmenter(
        network, recipe.preprocessing, recipe.sampling, recipe.class_names, sequence=recipe.sequence
    )
    prepared = folder / "prepared"
    predict_cohort(segmenter, manifest, folder / "first")  # traces
    table = [
        step("prepare", lambda: prepare(read_cases(manifest), prepared, progress=False), prepared),
        step(
            "predict", lambda: predict_cohort(segmenter, manifest, folder / "predicted"), folder / "predicted"
        ),
    ]
    cases = read_cases(prepared / "cohort.tsv")
    scores = folder / "scores" / "scores.csv"
    table.append(
        step("evaluate", lambda: write_csv(evaluate(segmenter, cases, distances=True), scores), scores.parent)
    )
    page = prepared / "quality.html"
    table.append({"step": "quality.html", "mb": page.stat().st_size / 1e6})
    table.append({"step": "case cache", "mb": examples_mb(cases, recipe.sequence, recipe.preprocessing)})
    table.append({"step": "scan and CT", **size(folder / "raw")})
    return [*table, listing(manifest)]


def step(name: str, work: Callable[[], Any], output: Path) -> dict[str, Any]:
    """Costs of one scan."""
    start, worked = time.perf_counter(), time.process_time()
    work()
    cpu, seconds = time.process_time() - worked, time.perf_counter() - start
    return {"step": name, "cpu_seconds": cpu, "seconds": seconds, **size(output)}


def size(folder: Path) -> dict[str, float]:
    """MB and number of the files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"mb": sum(path.stat().st_size for path in files) / 1e6, "files": len(files)}


def listing(manifest: Path) -> dict[str, Any]:
    """Reading a manifest of many rows, divided by their number."""
    header, row = manifest.read_text(encoding="utf-8").splitlines()[:2]
    subject, rest = row.split("\t", 1)
    many = manifest.with_name("many.tsv")
    lines = [header, *(f"{subject}x{number:06d}\t{rest}" for number in range(ROWS))]
    many.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = step("read the manifest", lambda: read_cases(many), many)
    return {
        "step": made["step"],
        "cpu_seconds": made["cpu_seconds"] / ROWS,
        "seconds": made["seconds"] / ROWS,
    }


def scaled(row: dict[str, Any], cores: int) -> dict[str, Any]:
    """The same for the cohort; what runs in one process is not divided by the cores."""
    alone = row["step"] in ("evaluate", "read the manifest")
    hours = row.get("cpu_seconds", np.nan) * COHORT / 3600
    wall = row.get("seconds", np.nan) * COHORT / 3600 if alone else hours / cores
    whole = {"core_hours": hours, "hours": wall, "tb": row.get("mb", np.nan) * COHORT / 1e6}
    whole["million_files"] = row.get("files", np.nan) * COHORT / 1e6
    shown = {key: "" if np.isnan(value) else round(value, 3) for key, value in whole.items()}
    rounded = {key: round(value, 5) for key, value in row.items() if isinstance(value, float)}
    about = {"cohort": COHORT, "cores": 1 if alone else cores, "threads": os.cpu_count()}
    return {**rounded, **shown, **about}


if __name__ == "__main__":
    main()
