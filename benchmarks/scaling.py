"""What a second worker brings: preparation, prediction and cross-validation on one and on two Dask workers.

    python benchmarks/scaling.py --output docs/results/scaling.csv

The workers are processes of this machine with one thread each. Both clusters stay up and take turns, so that
whatever else the machine does hits both alike; the first run of each, in which the workers load their
libraries, is not counted. A ratio is one worker / two within one round. Every run has an empty folder.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import rounds
from distributed import LocalCluster

from mrseg import Segmenter
from mrseg.crossval import cross_validate
from mrseg.data import read_cases
from mrseg.data.phantom import write_cohort
from mrseg.experiments import Experiment
from mrseg.formats import write_csv
from mrseg.prediction import WRITTEN, predict_cohort
from mrseg.preparation import Labelling, prepare

GOAL = 1.7
#: Scans to prepare and to predict, subjects to cross-validate; the small number is for trying.
SCANS, FEW = {"prepare": 4, "predict": 16, "crossval": 8}, {"prepare": 2, "predict": 4, "crossval": 4}
EPOCHS = 4


def main() -> None:
    """Times everything, prints the ratios and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/scaling.csv"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="few scans")
    parser.add_argument("--only", nargs="+", default=list(SCANS), choices=SCANS)
    options = parser.parse_args()
    counts = FEW if options.small else SCANS
    table = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as two,
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as one,
    ):
        places = {"2 workers": two.scheduler_address, "1 worker": one.scheduler_address}
        for name in options.only:
            run = RUNS[name](Path(scratch) / name, counts[name])
            methods = {workers: _on(run, address) for workers, address in places.items()}
            timings = rounds.compare(methods, options.rounds)
            work = {"work": name, "jobs": run(places["2 workers"])}
            made = rounds.rows(
                work, timings, rounds=options.rounds, threads="1 a worker",
                packages=("tensorflow", "keras", "distributed"),
            )  # fmt: skip
            for row in made:
                del row["cpu_seconds"]  # that of the process which waits
                row["goal"] = GOAL if row["method"] == "1 worker" else ""
                print(
                    *(row[key] for key in ("work", "jobs", "method", "seconds", "ratio")),
                    sep="  ",
                    flush=True,
                )
            table += made
            write_csv(table, options.output)


def _on(run: Callable[[str], int], address: str) -> Callable[[], int]:
    return lambda: run(address)


def preparation(folder: Path, scans: int) -> Callable[[str], int]:
    """Rigid registration of the CT, labels, pictures."""
    cases = read_cases(write_cohort(folder / "raw", subjects={"train": scans}))
    numbers = itertools.count()

    def run(address: str) -> int:
        output = folder / f"run{next(numbers)}"
        _, quality = prepare(
            cases, output, labelling=Labelling(stages=("rigid",)), scheduler=address, progress=False
        )
        return len(quality)

    return run


def prediction(folder: Path, scans: int) -> Callable[[str], int]:
    """A small network over whole heads."""
    data = write_cohort(folder / "raw", subjects={"test": scans}, shape=(128, 128, 96), ct=False)
    segmenter, numbers = Segmenter.load("phantom_t1_unet"), itertools.count()

    def run(address: str) -> int:
        rows = predict_cohort(segmenter, data, folder / f"run{next(numbers)}", scheduler=address)
        assert {row["status"] for row in rows} == {WRITTEN}, rows
        return len(rows)

    return run


def crossvalidation(folder: Path, subjects: int) -> Callable[[str], int]:
    """Two folds and a grid of two rates: four trainings and their scores."""
    cases = read_cases(write_cohort(folder / "raw", subjects={"train": subjects}, ct=False, labels=True))
    grid = {"training.learning_rate": [1.0e-3, 1.0e-2]}
    experiment = Experiment("grid", "phantom_t1_slices", grid=grid, set={"training.epochs": EPOCHS})
    numbers = itertools.count()

    def run(address: str) -> int:
        _, trials = cross_validate(
            [experiment], cases, folder / f"run{next(numbers)}", sequence="T1w", folds=2, scheduler=address,
            progress=False,
        )  # fmt: skip
        return len(trials)

    return run


RUNS = {"prepare": preparation, "predict": prediction, "crossval": crossvalidation}

if __name__ == "__main__":
    main()
