# %% [markdown]
# # Tables 2 and 3 of xu2017 on synthetic heads
#
# The paper's four experiments on heads made by code: newborns on T2-w at 40 weeks (axial), at 30 weeks
# (coronal), coronal at 40 weeks after training on both others, and adults on T1-w. Numbers of scans, slices
# and their thickness are the paper's; a slice has fewer pixels. The networks have a quarter of the paper's
# filters and begin at random: weights of ImageNet are not part of mrseg. Besides, EXP1 with one and with four
# training heads. Nothing here is a scan of a person.
#
#     python examples/xu2017_phantoms.py --output runs/xu2017
#
# Interrupted, it goes on where it stopped. The settings of the training are chosen first, on a validation
# head that no other figure uses.

# %%
import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mrseg.data import (
    Case,
    class_colours,
    merge_labels,
    phantom,
    read_cases,
    read_labels,
    read_volume,
    relabel,
    select,
    voxel_sizes,
    write_labels,
)
from mrseg.data.labels import MRBRAINS13_TO_TISSUE, TISSUE_CLASSES
from mrseg.formats import to_text, write_csv
from mrseg.metrics import assd, dice, hd95_in_plane, mean_loss_rates
from mrseg.pictures import save_png
from mrseg.recipes import load_recipe, train_recipe
from mrseg.recipes.loader import Recipe
from mrseg.recipes.runner import build_network
from mrseg.segmenter import Segmenter
from mrseg.summaries import Row, read_rows
from mrseg.tables import Column, Table, table

#: Name -> how its heads are made, and how many of them train, validate (a choice of settings) and test.
COHORTS: dict[str, dict[str, Any]] = {
    "axial40": {
        "weeks": 40, "shape": (128, 160, 50), "spacing_mm": (1.0, 1.0, 2.0),
        "subjects": {"train": 4, "val": 1, "test": 5},
    },
    "coronal30": {
        "weeks": 30, "shape": (128, 50, 128), "spacing_mm": (0.8, 2.0, 0.8),
        "subjects": {"train": 2, "test": 5},
    },
    "coronal40": {
        "weeks": 40, "shape": (128, 110, 128), "spacing_mm": (1.0, 1.2, 1.0),
        "subjects": {"test": 5},
    },
    "adult": {
        "weeks": None, "shape": (160, 192, 48), "spacing_mm": (1.3, 1.3, 3.0),
        "subjects": {"train": 5, "val": 1, "test": 15},
    },
}  # fmt: skip
#: The phantom's structures (numbered as in MRBrainS13) -> classes of the paper's newborns.
NEWBORN_CLASSES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 7, 6: 6, 7: 5, 8: 4}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A row of the paper's Table 1.

    Attributes:
        recipe: with the paper's settings.
        trains_on: cohort -> how many of its training heads.
        tested_on: cohort.
        pixels: of a slice that trains.
        paper_voxels, paper_mm: grid of the paper's test scans.
        paper_seconds: per volume, on a GPU of 2016.
    """

    recipe: str
    trains_on: Mapping[str, int]
    tested_on: str
    pixels: tuple[int, int]
    paper_voxels: tuple[int, int, int]
    paper_mm: tuple[float, float, float]
    paper_seconds: float


EXPERIMENTS = {
    "EXP1": Experiment(
        "xu2017_exp1", {"axial40": 2}, "axial40", (128, 160), (512, 512, 50), (0.35, 0.35, 2.0), 3.5
    ),
    "EXP2": Experiment(
        "xu2017_exp2", {"coronal30": 2}, "coronal30", (128, 128), (384, 50, 384), (0.34, 2.0, 0.34), 2.2
    ),
    "EXP3": Experiment(
        "xu2017_exp3", {"axial40": 2, "coronal30": 2}, "coronal40", (128, 128),
        (512, 110, 512), (0.35, 1.2, 0.35), 6.5,
    ),
    "EXP4": Experiment(
        "xu2017_exp4", {"adult": 5}, "adult", (160, 192), (240, 240, 48), (0.96, 0.96, 3.0), 1.7
    ),
}  # fmt: skip
#: EXP1 with other numbers of training heads.
FEWER_AND_MORE = {
    f"EXP1, {heads} training head{'s' if heads > 1 else ''}": dataclasses.replace(
        EXPERIMENTS["EXP1"], trains_on={"axial40": heads}
    )
    for heads in (1, 4)
}

EPOCHS, STEPS = 8, 300  # 2,400 iterations of the paper's 100,000
#: Settings of the training that are compared on EXP1's validation head.
_ADAM = ("training.optimizer=adam", "training.learning_rate=5.0e-4", "training.schedule=cosine")
CHOICES: dict[str, tuple[str, ...]] = {
    "SGD, the paper's rate": (),
    "SGD, 100 times that": ("training.learning_rate=2.0e-4",),
    "Adam": _ADAM,
    "Adam, rare classes weigh more": (*_ADAM, "loss.class_weights={weights}"),
}
RARE = {"bgt": 4, "bg": 4, "bs": 4, "brainstem": 4, "vent": 8, "ventricles": 8}
NOTICE = "Synthetic heads: these figures say nothing about patients."


# %% [markdown]
# ## Heads
#
# The phantom's labels are the eight structures of MRBrainS13. The paper's newborns have the same structures
# in another order, without lesions.


# %%
def cohort(name: str, folder: Path, seed: int) -> list[Case]:
    manifest = folder / name / "cohort.tsv"
    newborn = COHORTS[name]["weeks"] is not None
    sequence = "T2w" if newborn else "T1w"
    if not manifest.exists():
        phantom.write_cohort(
            folder / name,
            sequences=[sequence],
            labels="structures",
            ct=False,
            prefix=name,
            seed=len(COHORTS) * seed + list(COHORTS).index(name),
            **COHORTS[name],
        )
    cases = read_cases(manifest)
    return [_renumbered(case, sequence) for case in cases] if newborn else cases


def _renumbered(case: Case, sequence: str) -> Case:
    source = case.labels[sequence]
    path = source.with_name(f"{case.subject}_labels-newborn.nii.gz")
    if not path.exists():
        relabel(source, path, NEWBORN_CLASSES, load_recipe("xu2017_exp1").class_names)
    return dataclasses.replace(case, labels={sequence: path})


def training_heads(experiment: Experiment, cohorts: Mapping[str, Sequence[Case]]) -> list[Case]:
    return [
        case
        for name, count in experiment.trains_on.items()
        for case in select(cohorts[name], "train")[:count]
    ]


# %% [markdown]
# ## The recipe
#
# The paper's, but for the pixels, the filters, the number of iterations, the mean in place of the sum over
# pixels, and what `CHOICES` says. `mean_loss_rates` turns rate and weight decay into those of a mean loss.


# %%
def recipe_of(experiment: Experiment, overrides: Sequence[str]) -> Recipe:
    stated = load_recipe(experiment.recipe)
    x, y = experiment.pixels
    weights = [RARE.get(name, 1) for name in stated.class_names]
    penalty = stated.network.arguments["weight_decay"]
    rate, decay = mean_loss_rates(stated.training.learning_rate, 2 * penalty, x * y)  # Caffe's is twice L2's
    return load_recipe(
        experiment.recipe,
        [
            f"network.arguments.weight_decay={decay / 2:.3e}",
            f"sampling.patch_shape=[{x},{y},1]",
            f"sampling.patches_per_volume={STEPS // sum(experiment.trains_on.values())}",
            "network.arguments.filters=16",  # of 64
            "network.arguments.input_deviation=74",  # a random start is made for an input of deviation 1
            "loss.over_voxels=mean",
            f"training.learning_rate={rate:.3e}",
            f"training.epochs={EPOCHS}",
            "training.precision=mixed_bfloat16",
            *(override.format(weights=weights) for override in overrides),
        ],
    )


# %% [markdown]
# ## Scores
#
# Newborns as in Table 2: Dice and mean surface distance of every class. Adults as in Table 3: classes merged
# to CSF, grey and white matter, Dice and the challenge's 95th percentile; cerebellum and brain stem do not
# count.


# %%
def rows_of(truth: np.ndarray, found: np.ndarray, spacing_mm: Any, recipe: Recipe) -> Iterator[Row]:
    names, distance = recipe.class_names, assd
    if "gm" in recipe.expected:
        truth, found = (merge_labels(labels, MRBRAINS13_TO_TISSUE) for labels in (truth, found))
        names, distance = TISSUE_CLASSES, hd95_in_plane
    for index, name in enumerate(names[1:], start=1):
        masks = truth == index, (found == index) & (truth != 255)
        yield {"class": name, "metric": "dice", "value": dice(*masks)}
        yield {"class": name, "metric": distance.__name__, "value": distance(*masks, spacing_mm)}


def scores(cases: Sequence[Case], segmenter: Segmenter, recipe: Recipe, folder: Path) -> list[Row]:
    """Scores and seconds of every head, whose label map is kept in ``folder``."""
    rows: list[Row] = []
    segmenter(read_volume(cases[0].images[recipe.sequence]))  # the first call builds the graph
    for case in cases:
        scan = read_volume(case.images[recipe.sequence])
        begun = time.perf_counter()
        found = np.asarray(segmenter(scan).dataobj)
        seconds = time.perf_counter() - begun
        truth, affine = read_labels(case.labels[recipe.sequence], len(recipe.class_names))
        path = folder / f"{case.subject}_dseg.nii.gz"
        write_labels(path, found, affine, recipe.class_names, {"recipe": recipe.name, "data": "phantom"})
        made = [
            {"class": "all", "metric": "seconds", "value": seconds},
            *rows_of(truth, found, voxel_sizes(affine), recipe),
        ]
        rows += [{"subject": case.subject, **row} for row in made]
    return rows


def seconds_at_paper_size(experiment: Experiment) -> float:
    """Seconds of one head on the paper's own grid, by the paper's own network with random weights.

    The first call's graph is included. What the post-processing takes depends on what the network says.
    """
    weeks = COHORTS[experiment.tested_on]["weeks"]
    head = phantom.head(1, shape=experiment.paper_voxels, spacing_mm=experiment.paper_mm, weeks=weeks)
    across = int(np.argmax(experiment.paper_mm))
    x, y = (n for axis, n in enumerate(experiment.paper_voxels) if axis != across)
    recipe = load_recipe(
        experiment.recipe, [f"sampling.patch_shape=[{x},{y},1]", "training.precision=mixed_bfloat16"]
    )
    model, _ = build_network(recipe)
    segmenter = Segmenter(
        model,
        recipe.preprocessing,
        dataclasses.replace(recipe.sampling, channel_mean=(128.0,) * 3),
        recipe.class_names,
        recipe.sequence,
        postprocessing=recipe.postprocessing,
    )
    scan = phantom.mr_image(head, recipe.sequence)
    begun = time.perf_counter()
    segmenter(scan)
    return time.perf_counter() - begun


def trained(
    name: str,
    choice: str,
    cohorts: Mapping[str, Sequence[Case]],
    output: Path,
    overrides: Sequence[str],
) -> tuple[Segmenter, Recipe, Path]:
    experiment = {**EXPERIMENTS, **FEWER_AND_MORE}[name]
    recipe = recipe_of(experiment, [*CHOICES[choice], *overrides])
    folder = output / _file_name(name) / _file_name(choice)
    return train_recipe(recipe, training_heads(experiment, cohorts), folder), recipe, folder


def _file_name(text: str) -> str:
    return "_".join(text.replace(",", "").replace("'", "").split())


def run(
    name: str,
    choice: str,
    cohorts: Mapping[str, Sequence[Case]],
    output: Path,
    overrides: Sequence[str],
) -> list[Row]:
    path = output / _file_name(name) / "scores.csv"
    if path.exists():
        return read_rows(path)
    experiment = {**EXPERIMENTS, **FEWER_AND_MORE}[name]
    segmenter, recipe, _ = trained(name, choice, cohorts, output, overrides)
    rows = scores(select(cohorts[experiment.tested_on], "test"), segmenter, recipe, path.parent / "labels")
    if name in EXPERIMENTS:
        seconds = seconds_at_paper_size(experiment)
        rows.append({"subject": "paper's grid", "class": "all", "metric": "seconds", "value": seconds})
    rows = [{"experiment": name, **row} for row in rows]
    write_csv(rows, path)
    print(f"{name}: scored", flush=True)
    return rows


# %% [markdown]
# ## The choice of the training's settings
#
# The highest mean Dice on EXP1's validation head decides, for all experiments.


# %%
def choose(cohorts: Mapping[str, Sequence[Case]], output: Path, overrides: Sequence[str]) -> Table:
    lines = []
    for choice in CHOICES:
        segmenter, recipe, folder = trained("EXP1", choice, cohorts, output, overrides)
        path = folder / "scores.csv"
        if not path.exists():
            write_csv(scores(select(cohorts["axial40"], "val"), segmenter, recipe, folder), path)
        found = {row["class"]: row["value"] for row in read_rows(path) if row["metric"] == "dice"}
        lines.append({"settings": choice, **found, "mean": fmean(found.values())})
    columns = [Column(key, best="highest" if key == "mean" else "") for key in list(lines[0])[1:]]
    return table(lines, [Column("settings"), *columns], caption="Dice of EXP1's validation head.")


# %% [markdown]
# ## The tables
#
# Means over the test heads beside the paper's figures, which are of other heads.


# %%
def line_of(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["experiment"] == name and row["metric"] != "seconds":
            values.setdefault(f"{row['class']} {row['metric']}", []).append(row["value"])
    return {"experiment": name, **{key: fmean(found) for key, found in values.items()}}


def paper_line(name: str) -> dict[str, Any]:
    expected = load_recipe(EXPERIMENTS[name].recipe).expected
    figures = {f"{one} {metric}": value for one, of in expected.items() for metric, value in of.items()}
    return {"experiment": f"{name}, paper", **figures}


def figures(names: Sequence[str], rows: Sequence[Row], caption: str) -> Table:
    lines = []
    for name in names:
        lines += [line_of(name, rows)] + ([paper_line(name)] if name in EXPERIMENTS else [])
    columns = [
        Column(key, "Dice" if metric == "dice" else "mm", group=group, decimals=3)
        for key in list(lines[0])[1:]
        for group, metric in [key.split(" ")]
    ]
    return table(lines, [Column("experiment"), *columns], caption=caption, note=NOTICE)


def times(rows: Sequence[Row]) -> Table:
    lines = []
    for name, experiment in EXPERIMENTS.items():
        found = [row for row in rows if row["experiment"] == name and row["metric"] == "seconds"]
        here = [row["value"] for row in found if row["subject"] != "paper's grid"]
        (large,) = (row["value"] for row in found if row["subject"] == "paper's grid")
        lines.append(
            {
                "experiment": name,
                "here": "x".join(map(str, COHORTS[experiment.tested_on]["shape"])),
                "seconds here": median(here),
                "paper": "x".join(map(str, experiment.paper_voxels)),
                "seconds there": large,
                "paper's seconds": experiment.paper_seconds,
            }
        )
    columns = [
        Column("experiment"),
        Column("here", "grid here"),
        Column("seconds here", "median", "s", decimals=1),
        Column("paper", "the paper's grid"),
        Column("seconds there", "the paper's network here", "s", decimals=1),
        Column("paper's seconds", "the paper, on a GPU", "s", decimals=1),
    ]
    return table(lines, columns, caption="Seconds per volume.")


# %% [markdown]
# ## Pictures
#
# Two slices of the first test head of every experiment: image, truth, prediction.


# %%
def picture(cohorts: Mapping[str, Sequence[Case]], output: Path) -> Figure:
    figure = Figure(figsize=(11, 8.5), facecolor="black")
    for row, (name, experiment) in enumerate(EXPERIMENTS.items()):
        recipe = load_recipe(experiment.recipe)
        case = select(cohorts[experiment.tested_on], "test")[0]
        image, affine = read_volume(case.images[recipe.sequence])
        truth, _ = read_labels(case.labels[recipe.sequence], len(recipe.class_names))
        found, _ = read_labels(output / name / "labels" / f"{case.subject}_dseg.nii.gz")
        spacing = voxel_sizes(affine)
        across = int(np.argmax(spacing))
        for half, height in enumerate((0.35, 0.6)):
            index = int(height * image.shape[across])
            planes = [np.take(volume, index, across).T[::-1] for volume in (image, truth, found)]
            headings = (f"{name}, slice {index}", "truth", "prediction")
            for column, (plane, heading) in enumerate(zip(planes, headings, strict=True)):
                axes = figure.add_axes((half / 2 + column / 6, 0.04 + 0.24 * (3 - row), 1 / 6, 0.215))
                axes.set_axis_off()
                axes.set_title(heading, color="white", fontsize=8, pad=2)
                if column == 0:
                    axes.imshow(plane, cmap="gray", vmax=np.percentile(image, 99.5))
                else:
                    axes.imshow(_painted(plane, recipe.class_names), interpolation="nearest")
    key = [Patch(color=colour, label=name) for name, colour in _colours().items() if colour]
    figure.legend(
        handles=key, loc="lower center", ncols=len(key), fontsize=9, labelcolor="white", frameon=False
    )
    return figure


# Cortex, nuclei, white matter ... have one colour in newborns and adults.
_COLOUR_OF = {
    "bg": "bgt", "wm": "uwm", "wml": "uwm", "ventricles": "vent", "cerebellum": "cb", "brainstem": "bs",
}  # fmt: skip


def _colours() -> dict[str, str | None]:
    newborn = load_recipe("xu2017_exp1").class_names
    return dict(zip(newborn, class_colours(newborn), strict=True))


def _painted(plane: np.ndarray, names: Sequence[str]) -> np.ndarray:
    colours = _colours()
    return np.array([to_rgb(colours[_COLOUR_OF.get(name, name)] or "black") for name in names])[plane]


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="Tables 2 and 3 of xu2017 on synthetic heads.")
    parser.add_argument("--output", type=Path, default=Path("runs/xu2017"), help="default: runs/xu2017")
    parser.add_argument("--seed", type=int, default=0, help="of heads and training (default: 0)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change a key of the recipes besides",
    )  # fmt: skip
    options = parser.parse_args()
    output = options.output
    overrides = [f"training.seed={options.seed}", *options.overrides]
    cohorts = {name: cohort(name, output / "heads", options.seed) for name in COHORTS}
    choices = choose(cohorts, output, overrides)
    choice = max(choices.rows, key=lambda row: row["mean"])["settings"]
    print(f"{to_text(choices)}\n\ntaken: {choice}", flush=True)
    rows: list[Row] = []
    for name in (*EXPERIMENTS, *FEWER_AND_MORE):
        rows += run(name, choice, cohorts, output, overrides)
    write_csv(rows, output / "scores.csv")
    save_png(picture(cohorts, output), output / "slices.png", dpi=110)
    made = {
        "choices": choices,
        "table2": figures(["EXP1", "EXP2", "EXP3"], rows, "Newborns: Dice, mean surface distance."),
        "table3": figures(["EXP4"], rows, "Adults: Dice, 95th percentile of the Hausdorff distance."),
        "heads": figures([*FEWER_AND_MORE, "EXP1"], rows, "EXP1 with 1, 4 and 2 training heads."),
        "seconds": times(rows),
    }
    for name, one in made.items():
        write_csv(one.rows, output / f"{name}.csv")
        print(f"\n{to_text(one)}")


if __name__ == "__main__":
    main()
