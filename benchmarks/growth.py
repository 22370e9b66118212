"""Time and memory of prepare, train, predict and evaluate against the size of volumes and of cohorts.

    python benchmarks/growth.py --output docs/results/growth.csv

Each point runs in a process of its own, forked from one that has loaded everything and computed nothing;
the work is done once on a small case before it is measured. Memory is the peak of the resident set during
the work, without what the process held before. The exponent of a line is the slope of log seconds against
log size over its larger half, where what happens once no longer shows: 1 is linear, 0 constant. Beside the
CSV a plot of the same name is written (.svg).

The sizes are of synthetic heads: one, coarsened or refined to the grid. Prediction slides a small network;
evaluation's network does next to nothing, so that what is seen is reading, blending and scoring. A cohort's
CTs lie on the grid of its scans, so that prepare registers nothing; a volume's is registered rigidly.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mrseg.data.labels import OKABE_ITO
from mrseg.formats import write_csv
from mrseg.theme import FAINT, INK, headline, new_figure, plain_axes, to_svg

COLOURS = ("blue", "vermillion", "green", "purple", "orange", "sky")
VOLUMES = (
    (32, 32, 32), (48, 48, 48), (64, 64, 64), (80, 80, 64), (96, 96, 80), (128, 128, 96), (160, 160, 128),
    (192, 192, 160),
)  # fmt: skip
#: A step of training takes far more memory a voxel than anything else.
PATCHES = (
    (16, 16, 16), (32, 16, 16), (32, 32, 16), (32, 32, 32), (64, 32, 32), (64, 64, 32), (64, 64, 64),
    (128, 64, 64),
)  # fmt: skip
COHORTS = (1, 2, 4, 6, 8, 12, 16, 24)
SMALL = (32, 32, 24)
NAMES = ("air", "soft", "bone")
#: work -> exponents of time and of memory that it should have
VOLUME_WORKS = {"prepare": (1, 1), "train step": (1, 1), "predict": (1, 1), "evaluate": (1, 1)}
COHORT_WORKS = {
    "prepare": (1, 0), "train epoch, in memory": (1, 1), "train epoch, from disk": (1, 0),
    "predict": (1, 0), "evaluate": (1, 0),
}  # fmt: skip


def main() -> None:
    """Measures all points, prints and writes them, and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/growth.csv"))
    parser.add_argument("--points", type=int, default=8, help="the smallest ones of each line")
    parser.add_argument("--works", nargs="+", choices={**VOLUME_WORKS, **COHORT_WORKS})
    options = parser.parse_args()
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["growth", "mrseg.recipes.runner", "mrseg.evaluation"])
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for against, works in (("voxels", VOLUME_WORKS), ("subjects", COHORT_WORKS)):
            for work in works:
                if options.works and work not in options.works:
                    continue
                sizes = COHORTS if against == "subjects" else PATCHES if "train" in work else VOLUMES
                lines = [_point(work, against, size, Path(folder)) for size in sizes[: options.points]]
                table += _with_exponents(lines, works[work])
                write_csv(table, options.output)
    options.output.with_suffix(".svg").write_bytes(to_svg(draw(table)))


def _with_exponents(line: list[dict[str, Any]], wanted: tuple[int, int]) -> list[dict[str, Any]]:
    half = line[-max(2, (len(line) + 1) // 2) :]
    sizes = [row["size"] for row in half]
    for name, column, target in zip(("time", "memory"), ("seconds", "peak_mb"), wanted, strict=True):
        slope = exponent(sizes, [row[column] for row in half])
        for row in line:
            row |= {f"{name}_exponent": slope, f"{name}_expected": target}
    for row in line:
        row |= {
            "threads": os.cpu_count(),
            "machine": processor(),
            "versions": f"tensorflow {version('tensorflow')}, keras {version('keras')}",
        }
    last = line[-1]
    print(
        f"{last['work']} against {last['against']}: time ~ size^{last['time_exponent']}, "
        f"memory ~ size^{last['memory_exponent']}",
        flush=True,
    )
    return line


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log value against log size."""
    values = np.maximum(values, 0.1)  # a tenth of a megabyte is no growth
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


def _point(work: str, against: str, size: Any, folder: Path) -> dict[str, Any]:
    """Measures one point in a process of its own."""
    near, far = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_measure, args=(far, work, against, size, folder))
    process.start()
    far.close()
    try:
        seconds, peak_mb = near.recv()
    except EOFError:
        raise SystemExit(f"{work} of {size} ended without an answer") from None
    process.join()
    number = math.prod(size) if against == "voxels" else size
    row = {
        "against": against, "work": work, "case": "x".join(map(str, np.atleast_1d(size))), "size": number,
        "seconds": round(seconds, 4), "peak_mb": round(peak_mb, 1),
    }  # fmt: skip
    print(*row.values(), sep="  ", flush=True)
    return row


def _measure(pipe: Any, work: str, against: str, size: Any, folder: Path) -> None:
    """Runs a work on a small case, then on the case that counts."""
    make = MAKERS["register" if work == "prepare" and against == "voxels" else work]
    shape, subjects = (size, 1) if against == "voxels" else (SMALL, size)
    make((16, 16, 16) if work == "train step" else SMALL, 1, folder)()
    run = make(shape, subjects, folder)
    before = _peak_mb(reset=True)
    start = time.perf_counter()
    own = run()
    seconds = own if isinstance(own, float) else time.perf_counter() - start
    pipe.send((seconds, _peak_mb() - before))


def _peak_mb(reset: bool = False) -> float:
    """Peak of the resident set in MB; with ``reset``, from now on, where the system can do that."""
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def scans(shape: tuple[int, ...], subjects: int, folder: Path, *, registered: bool = True) -> list[Any]:
    """A cohort of one head in many copies; made once."""
    from mrseg.data.cases import read_cases
    from mrseg.data.phantom import write_cohort

    place = folder / f"{'x'.join(map(str, shape))}-{registered}"
    if not place.exists():
        base = write_cohort(
            folder / f"head-{registered}", subjects={"train": 1}, shape=(64, 64, 48), registered=registered,
            labels=True,
        )  # fmt: skip
        (case,) = read_cases(base)
        place.mkdir()
        for kind, path in (("T1w", case.images["T1w"]), ("labels", case.labels["T1w"]), ("ct", case.ct)):
            _write_at(path, shape, place / f"{kind}.nii.gz")
    image, labels, ct = (place / f"{kind}.nii.gz" for kind in ("T1w", "labels", "ct"))
    return [
        dataclasses.replace(_case(number), images={"T1w": image}, labels={"T1w": labels}, ct=ct)
        for number in range(subjects)
    ]


def _case(number: int) -> Any:
    from mrseg.data.cases import Case

    return Case(subject=f"head{number:03d}", images={"T1w": Path()}, split="train")


def _write_at(path: Path, shape: Sequence[int], target: Path) -> None:
    """The volume of a file on a grid of ``shape`` over the same field of view, noise on what is no label."""
    import nibabel as nib

    image = nib.load(path)
    array = np.asarray(image.dataobj)
    places = [np.arange(n) * old // n for n, old in zip(shape, array.shape, strict=True)]
    fine = array[np.ix_(*places)]
    if "dseg" not in path.name and "label" not in path.name:
        noise = np.random.default_rng(0).normal(0, 0.02 * float(np.ptp(array)), fine.shape)
        fine = (fine + noise).astype(array.dtype)
    affine = image.affine @ np.diag([*(o / n for o, n in zip(array.shape, shape, strict=True)), 1])
    nib.save(nib.Nifti1Image(fine, affine), target)


def prepare(
    shape: tuple[int, ...], subjects: int, folder: Path, *, stages: tuple[str, ...] = ()
) -> Callable[[], Any]:
    """Labels from CT, registered in ``stages``."""
    from mrseg.preparation import Labelling
    from mrseg.preparation import prepare as run

    cases = scans(shape, subjects, folder, registered=not stages)
    output = folder / "prepared"
    shutil.rmtree(output, ignore_errors=True)
    return functools.partial(run, cases, output, labelling=Labelling(stages=stages), progress=False)


def train_step(shape: tuple[int, ...], subjects: int, folder: Path) -> Callable[[], Any]:
    """A step on one patch; the first, which traces, counts for the memory and not for the time."""
    import mrseg

    model = mrseg.models.se_unet3d((*shape, 1), 3, filters=4)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    x, y = rng.random((1, *shape, 1), np.float32), rng.integers(0, 3, (1, *shape))
    return functools.partial(_second, functools.partial(model.train_on_batch, x, y))


def train_epoch(shape: tuple[int, ...], subjects: int, folder: Path, *, disk: bool) -> Callable[[], Any]:
    """An epoch of training on a cohort; reading it and the first epoch count for the memory alone."""
    import mrseg
    from mrseg.data.examples import load_examples
    from mrseg.data.patches import Sampling
    from mrseg.data.pipeline import build_dataset
    from mrseg.data.preprocessing import Preprocessing

    cases = scans(SMALL, subjects, folder)
    model = mrseg.models.se_unet3d((16, 16, 16, 1), 3, filters=4)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)

    def run() -> float:
        cache = folder / f"cache-{subjects}" if disk else None
        examples = load_examples(cases, "T1w", Preprocessing(), 3, cache=cache)
        data = build_dataset(examples, Sampling((16, 16, 16), 0.0), batch_size=2)
        return _second(lambda: model.fit(data, epochs=1, verbose=0, shuffle=False))

    return run


def _second(work: Callable[[], Any]) -> float:
    """Seconds of the second of two runs."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def segmenter(network: Any, patch: tuple[int, int, int], normalization: str = "lcn") -> Any:
    """A segmenter of a network for patches."""
    import mrseg
    from mrseg.data.patches import Sampling
    from mrseg.data.preprocessing import Preprocessing

    how = Preprocessing(normalization=normalization)
    return mrseg.Segmenter(network, how, Sampling(patch, 0.25), NAMES, sequence="T1w")


@functools.cache
def small_network() -> Any:
    """A narrow network of mecheter2023 for patches of 32 x 32 x 24."""
    import mrseg

    return segmenter(mrseg.models.se_unet3d((32, 32, 24, 1), 3, filters=4), SMALL)


@functools.cache
def no_network() -> Any:
    """One voxel decides for itself, by the nearest of three intensities in [0, 1]."""
    import keras

    patch = keras.Input((*SMALL, 1))
    layer = keras.layers.Conv3D(len(NAMES), 1, activation="softmax")
    network = keras.Model(patch, layer(patch))
    means = np.array([0.0, 0.5, 0.15])  # air, soft, bone
    layer.set_weights([100 * means.reshape(1, 1, 1, 1, -1), -50 * means**2])
    return segmenter(network, SMALL, "min_max")


def predict(shape: tuple[int, ...], subjects: int, folder: Path) -> Callable[[], Any]:
    """Label maps of scans, one after the other."""
    cases = scans(shape, subjects, folder)
    network = small_network()

    def run() -> None:
        for case in cases:
            network(case.images["T1w"])

    return run


def evaluate(shape: tuple[int, ...], subjects: int, folder: Path) -> Callable[[], Any]:
    """Scores with surface distances."""
    from mrseg.evaluation import evaluate as run

    return functools.partial(run, no_network(), scans(shape, subjects, folder), distances=True)


MAKERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "prepare": prepare,
    "register": functools.partial(prepare, stages=("rigid",)),
    "train step": train_step,
    "train epoch, in memory": functools.partial(train_epoch, disk=False),
    "train epoch, from disk": functools.partial(train_epoch, disk=True),
    "predict": predict,
    "evaluate": evaluate,
}


def draw(table: Sequence[dict[str, Any]]) -> Figure:
    """Seconds and memory against voxels and subjects, both axes logarithmic, with a line of slope 1."""
    works = list(dict.fromkeys(row["work"] for row in table))
    colours = dict(zip(works, COLOURS, strict=False))
    figure = new_figure(7.4)
    panels = figure.subplots(2, 2)
    for column, against in zip(panels.T, ("voxels", "subjects"), strict=True):
        for axes, value in zip(column, ("seconds", "peak_mb"), strict=True):
            plain_axes(axes, {"seconds": "time [s]", "peak_mb": "peak memory [MB]"}[value])
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
            for work in works:
                line = [row for row in table if (row["work"], row["against"]) == (work, against)]
                sizes = [row["size"] for row in line]
                values = [max(row[value], 0.1 if value == "peak_mb" else 1e-3) for row in line]
                axes.plot(
                    sizes, values, color=OKABE_ITO[colours[work]], linewidth=1.6, marker="o", markersize=4
                )
            if axes.lines:
                low, high = axes.get_xlim()
                bottom, top = axes.get_ylim()
                axes.plot([low, high], [bottom, bottom * high / low], color=FAINT, dashes=(4, 2), linewidth=1)
                axes.set_xlim(low, high)
                axes.set_ylim(bottom, top)
        column[-1].set_xlabel(
            {"voxels": "voxels of a volume or patch", "subjects": "subjects of 32x32x24 voxels"}[against],
            color=INK, fontsize=10,
        )  # fmt: skip
    headline(figure, "", [*((OKABE_ITO[colours[w]], "-", w) for w in works), (FAINT, "--", "linear")])
    figure.subplots_adjust(left=0.06, right=0.985, top=0.9, bottom=0.075, wspace=0.14, hspace=0.25)
    return figure


if __name__ == "__main__":
    main()
