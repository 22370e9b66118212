"""Draws the picture of the start page: a T1-w network on T1-w, on T2-w, and after fine-tuning on T2-w.

    python examples/start_picture.py --output docs/images/start.png

Synthetic heads, the weights that come with mrseg, and the recipe ``phantom_t2_slices`` with three T2-w
heads to train on. The head of the picture was seen by neither network. About a minute on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import mrseg
from mrseg.data import phantom
from mrseg.data.labels import ATTENUATION_CLASSES, CLASS_COLOURS
from mrseg.pictures import save_png

SHAPE, SPACING_MM = (128, 156, 100), (1.6, 1.6, 2.0)
#: A seed that neither the weights' training heads nor those below were drawn from.
TEST_SEED, TRAIN_SEED = 7001, 5
BONE = ATTENUATION_CLASSES.index("bone")
GREY = "0.35"


def fine_tuned(t1: mrseg.Segmenter, folder: Path) -> mrseg.Segmenter:
    """The T1-w network, all of it trained on with three T2-w heads."""
    manifest = phantom.write_cohort(
        folder / "heads", subjects={"train": 3}, sequences=("T2w",), registered=True, seed=TRAIN_SEED
    )
    recipe = mrseg.recipes.load_recipe(
        "phantom_t2_slices", ["transfer={mechanism: open}", "training.epochs=12"]
    )
    cases = mrseg.data.read_cases(manifest)
    return mrseg.recipes.train_recipe(recipe, cases, folder / "run", source=t1, progress=False)


def draw(columns: list[tuple[str, str, np.ndarray, np.ndarray | None]]) -> Figure:
    """One panel a column: title, line below, grey slice, labels over it."""
    figure = Figure(figsize=(2.2 * len(columns), 3.3), dpi=110, layout="constrained")
    for place, (title, note, image, labels) in enumerate(columns, start=1):
        axes = figure.add_subplot(1, len(columns), place)
        extent = (0, image.shape[0] * SPACING_MM[0], 0, image.shape[1] * SPACING_MM[1])
        axes.imshow(image.T, cmap="gray", origin="lower", extent=extent, vmax=np.percentile(image, 99.5))
        if labels is not None:
            shown = np.zeros((*labels.shape, 4))
            for index, name in enumerate(ATTENUATION_CLASSES):
                colour = CLASS_COLOURS.get(name)
                if index and colour:
                    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
                    shown[labels == index] = (*rgb, 0.9 if index == BONE else 0.3)
            axes.imshow(shown.transpose(1, 0, 2), origin="lower", extent=extent, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(note, fontsize=9, color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.supxlabel(
        "Bone and soft tissue of a synthetic head that no network has seen.", fontsize=9, color=GREY
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    head = phantom.head(TEST_SEED, shape=SHAPE, spacing_mm=SPACING_MM)
    scans = {name: phantom.mr_image(head, name) for name in ("T1w", "T2w")}
    truth = phantom.attenuation_labels(head)
    level = int(0.45 * SHAPE[2])  # through the eyes' sockets and the temporal bones
    t1 = mrseg.Segmenter.load("phantom_t1_unet")
    with tempfile.TemporaryDirectory() as folder:
        t2 = fine_tuned(t1, Path(folder))

    def column(title: str, segmenter: mrseg.Segmenter, sequence: str):
        labels = np.asarray(segmenter(scans[sequence]).dataobj)
        dice = mrseg.metrics.dice(truth == BONE, labels == BONE)
        return title, f"bone Dice {dice:.2f}", scans[sequence][0][..., level], labels[..., level]

    columns = [
        ("T1-w scan", "", scans["T1w"][0][..., level], None),
        column("T1-w network on T1-w", t1, "T1w"),
        ("T2-w scan", "", scans["T2w"][0][..., level], None),
        column("same network on T2-w", t1, "T2w"),
        column("fine-tuned, on T2-w", t2, "T2w"),
        ("truth", "", scans["T2w"][0][..., level], truth[..., level]),
    ]
    save_png(draw(columns), options.output)
    for title, note, *_ in columns:
        print(f"{title:22} {note}")


if __name__ == "__main__":
    main()
