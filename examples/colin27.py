"""Scores an attenuation segmenter (air, soft tissue, bone) on Colin27, a real head, and draws the page.

    python examples/colin27.py --segmenter runs/demo/trainings/T1w/segmenter --output runs/colin27

The environment variable MRSEG_DATA names the folder that holds colin27/T1.nii.gz and colin27/labels.nii.gz.
Colin27's skull label is derived from MR and has marrow in it; a network that has seen BrainWeb, the same man,
is never scored here.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from mrseg.data.cases import Case
from mrseg.data.io import read_labels, write_labels
from mrseg.data.labels import ATTENUATION_CLASSES, merge_labels
from mrseg.pages import write_evaluation
from mrseg.segmenter import Segmenter

#: Colin27's labels: air, scalp, skull, CSF, grey matter, white matter, air cavities.
TO_ATTENUATION = {0: 0, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1, 6: 0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--segmenter", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--spacing-mm", type=float, nargs=3, metavar=("X", "Y", "Z"),
        help="voxels to segment on, for a network that was trained on its scans' own grid",
    )  # fmt: skip
    options = parser.parse_args()
    folder = Path(os.environ["MRSEG_DATA"]) / "colin27"
    labels, affine = read_labels(folder / "labels.nii.gz")
    path = options.output / "colin27_attenuation_dseg.nii.gz"
    merged = merge_labels(labels, TO_ATTENUATION)
    write_labels(path, merged, affine, ATTENUATION_CLASSES, {"source": "Colin27 labels, merged"})
    case = Case("colin27", {"T1w": folder / "T1.nii.gz"}, None, {"T1w": path}, "test")
    segmenter = Segmenter.load(options.segmenter)
    if options.spacing_mm:
        grid = {"grid": "spacing", "spacing_mm": tuple(options.spacing_mm)}
        preprocessing = dataclasses.replace(segmenter.preprocessing, **grid)
        segmenter = dataclasses.replace(segmenter, preprocessing=preprocessing)
    _, text = write_evaluation(segmenter, [case], options.output, sequence="T1w", distances=True)
    print(text)


if __name__ == "__main__":
    main()
