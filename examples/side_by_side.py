"""Draws one labelled scan and what several segmenters make of it, side by side.

    python examples/side_by_side.py --data cohort.tsv --subject sub-01 --sequence T2w --output t2.png \\
        --segmenter "none=runs/none/segmenter" "2 conv=runs/convs2/segmenter"

An axial and a sagittal slice, the same for all; over each column the Dice of one class (the last, or
``--focus``), which the sagittal slice runs through. Some seconds a segmenter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import mrseg
from mrseg.data import read_cases, read_labels, read_volume, voxel_sizes
from mrseg.data.labels import class_colours
from mrseg.metrics import dice
from mrseg.panels import Frame, Layer, Panel, View, draw_panels, slices_through
from mrseg.pictures import save_png

AXIAL, SAGITTAL = 2, 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Segments the scan with every segmenter, and writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="manifest (TSV)")
    parser.add_argument("--subject", required=True)
    parser.add_argument("--sequence", required=True, help="T1w, T2w, ...")
    parser.add_argument("--segmenter", nargs="+", required=True, metavar="TITLE=FOLDER")
    parser.add_argument("--focus", help="class in the headings (default: the last)")
    parser.add_argument(
        "--height", type=float, help="of the axial slice, 0 to 1 (default: where the class is)"
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)

    folders = dict(entry.split("=", 1) for entry in options.segmenter)
    segmenters = {title: mrseg.Segmenter.load(folder) for title, folder in folders.items()}
    class_names = next(iter(segmenters.values())).class_names
    focus = class_names.index(options.focus or class_names[-1])
    (case,) = (case for case in read_cases(options.data) if case.subject == options.subject)
    image, affine = read_volume(case.images[options.sequence])
    truth, _ = read_labels(case.labels[options.sequence], len(class_names))

    colours = class_colours(class_names)
    alphas = [0.9 if number == focus else 0.3 for number in range(len(class_names))]
    columns: dict[str, tuple[Layer, ...]] = {options.sequence: (), "truth": (Layer(truth, colours, alphas),)}
    for title, segmenter in segmenters.items():
        found = segmenter.predict((image, affine)).labels
        score = dice(truth == focus, found == focus)
        columns[f"{title}: {class_names[focus]} {score:.3f}"] = (Layer(found, colours, alphas),)

    x, y, z = slices_through(truth == focus)
    if options.height is not None:
        z = int(options.height * (truth.shape[AXIAL] - 1))
    frame = Frame(image, truth, truth == focus, voxel_sizes(affine), View(slices=(x, y, z)))
    panels = [
        [
            Panel(
                axis,
                layers,
                note="" if layers else frame.position(axis),
                heading=heading if axis == AXIAL else "",
            )
            for heading, layers in columns.items()
        ]
        for axis in (AXIAL, SAGITTAL)
    ]
    key = {name: colour for name, colour in zip(class_names, colours, strict=True) if colour}
    save_png(draw_panels(panels, frame, title=case.subject, key=key), options.output, dpi=90)
    print(options.output)


if __name__ == "__main__":
    main()
