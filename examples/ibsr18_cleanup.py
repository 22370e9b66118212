# %% [markdown]
# # Which clean-up, decided on training subjects alone
#
# The networks of a cross-validation each segment the subjects that they have not seen, with and without the
# mean over the left-right mirrored scan. Every label map then goes through each clean-up of the list; the
# table has the smallest mean Hausdorff distance first. Test subjects are not in it, so that they decide
# nothing.
#
#     mrseg crossval islam2025_views_coronal --data runs/views/coronal/cohort.tsv --folds 5 \
#         --set training.epochs=6 --output runs/views/folds
#     python examples/ibsr18_cleanup.py --folds runs/views/folds --data runs/views/coronal/cohort.tsv \
#         --output runs/views/cleanup
#
# The table of a training's subjects, `cohort.tsv` in its folder, holds no test subject.

# %%
import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrseg import Segmenter
from mrseg.data import Case, read_cases, read_labels, read_volume, voxel_sizes
from mrseg.formats import to_text, write_csv
from mrseg.metrics import dice, hausdorff, mask_hausdorff
from mrseg.passes import Inference
from mrseg.postprocess import Postprocessing
from mrseg.segmenter import trained_on
from mrseg.summaries import Row
from mrseg.tables import Column, table

#: Classes: 1 CSF, 2 grey matter, 3 white matter.
CLEANUPS = {
    "none": Postprocessing(),
    "foreground": Postprocessing(largest_foreground=True),
    "CSF 10 mm3": Postprocessing(min_volume_mm3=(0, 10)),
    "CSF 50 mm3": Postprocessing(min_volume_mm3=(0, 50)),
    "CSF 200 mm3": Postprocessing(min_volume_mm3=(0, 200)),
    "CSF largest": Postprocessing(largest_component=(1,)),
    "GM, WM largest": Postprocessing(largest_component=(2, 3)),
    "GM, WM largest, CSF 50 mm3": Postprocessing(largest_component=(2, 3), min_volume_mm3=(0, 50)),
    "GM, WM largest, CSF 200 mm3": Postprocessing(largest_component=(2, 3), min_volume_mm3=(0, 200)),
    "all largest": Postprocessing(largest_component=(1, 2, 3)),
}

METRICS = ("dice", "hausdorff_mm", "hausdorff_voxels")


# %%
def scores(case: Case, segmenter: Segmenter, mirror: bool) -> list[Row]:
    """Dice and Hausdorff distances of one subject, by clean-up and tissue."""
    scan, (true, affine) = read_volume(case.images["T1w"]), read_labels(case.labels["T1w"])
    spacing_mm = voxel_sizes(affine)
    predicted = segmenter.predict(scan, inference=Inference(mirror_axes=(0,) if mirror else ())).labels
    rows: list[Row] = []
    for name, cleanup in CLEANUPS.items():
        cleaned = cleanup(predicted, spacing_mm)
        for number, tissue in enumerate(segmenter.class_names[1:], start=1):
            masks = true == number, cleaned == number
            rows.append(
                {
                    "subject": case.subject,
                    "mirror": mirror,
                    "cleanup": name,
                    "class": tissue,
                    "dice": dice(*masks),
                    "hausdorff_mm": hausdorff(*masks, spacing_mm),
                    "hausdorff_voxels": mask_hausdorff(*masks),
                }
            )
    return rows


def means(rows: Sequence[Row]) -> list[Row]:
    """Means over subjects and tissues, the smallest Hausdorff distance first."""
    found = []
    for mirror, name in itertools.product((False, True), CLEANUPS):
        chosen = [row for row in rows if (row["mirror"], row["cleanup"]) == (mirror, name)]
        metrics = {key: float(np.mean([row[key] for row in chosen])) for key in METRICS}
        found.append({"cleanup": name, "mirrored": "yes" if mirror else "no", **metrics})
    return sorted(found, key=lambda row: row["hausdorff_mm"])


# %%
def main(arguments: Sequence[str] | None = None) -> None:
    """Scores every subject by the network that has not seen it, prints the table, writes both."""
    parser = argparse.ArgumentParser(description="Score clean-ups on the subjects of a cross-validation.")
    parser.add_argument("--folds", type=Path, required=True, help="folder of `mrseg crossval`")
    parser.add_argument("--data", type=Path, required=True, help="its manifest")
    parser.add_argument("--output", type=Path, required=True, help="folder for scores.csv and means.csv")
    options = parser.parse_args(arguments)
    segmenters = [Segmenter.load(path) for path in sorted(options.folds.glob("trials/*/*/segmenter"))]
    rows: list[Row] = []
    for case in tqdm(read_cases(options.data), unit="subject"):
        (segmenter,) = (s for s in segmenters if not trained_on(s, [case]))
        for mirror in (False, True):
            rows += scores(case, segmenter, mirror)
    write_csv(rows, options.output / "scores.csv")
    summary = means(rows)
    write_csv(summary, options.output / "means.csv")
    columns = (
        Column("cleanup"),
        Column("mirrored"),
        Column("dice", "Dice", decimals=4, best="highest"),
        Column("hausdorff_mm", "Hausdorff", "mm", decimals=2, best="lowest"),
        Column("hausdorff_voxels", "mask Hausdorff", "voxels", decimals=2, best="lowest"),
    )
    print(to_text(table(summary, columns, caption="Means over subjects and tissues.")))


if __name__ == "__main__":
    main()
