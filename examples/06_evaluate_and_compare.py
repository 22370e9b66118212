# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate and compare
#
# Two trained networks, the same eight heads: overlap, distances, intervals, a paired test, volumes, and where
# each of them errs.
#
# The heads are made by code. The figures say nothing about patients.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mrseg
from mrseg.data import phantom
from mrseg.formats import to_text
from mrseg.pictures import View, comparison
from mrseg.plots import bland_altman, dot_plot
from mrseg.score_tables import comparison_table, confusion_table, summary_table
from mrseg.summaries import volumes

plt.switch_backend(plt.get_backend())  # now, so that a notebook shows the first figure too
plt.rcParams["figure.dpi"] = 60  # small pictures
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## 1. Two networks, eight heads

# %%
manifest = phantom.write_cohort(
    folder / "heads", subjects={"test": 8}, shape=(48, 56, 36), registered=True, seed=41
)
cases = mrseg.data.read_cases(manifest)
methods = {name: mrseg.Segmenter.load(f"phantom_t1_{name}") for name in ("unet", "segnet")}

# %% [markdown]
# ## 2. Tidy rows
#
# One row a subject, class and metric. Everything below is made from these rows, and could be made again from
# the CSV that `mrseg evaluate` writes.

# %%
rows, maps = {}, {}
for name, segmenter in methods.items():
    found = maps.setdefault(name, {})
    rows[name] = mrseg.evaluate(
        segmenter,
        cases,
        distances=True,
        on_result=lambda case, labels, to=found: to.update({case.subject: labels}),
    )
print(len(rows["unet"]), "rows of each network")
rows["unet"][:2]

# %% [markdown]
# ## 3. Means, and what they are means of
#
# Voxels pooled, or a mean over subjects with its bootstrap interval. The second is the one to compare by: the
# subjects are independent, the voxels are not.

# %%
bone = [row for row in mrseg.summarize(rows["unet"]) if row["class"] == "bone"]
wanted = ("dice", "precision", "recall", "hd95_mm", "assd_mm")
print(to_text(summary_table([row for row in bone if row["metric"] in wanted], caption="U-Net, bone")))

# %%
intervals = [
    {"model": name, **row}
    for name, found in rows.items()
    for row in mrseg.summarize(found)
    if row["pooling"] == "mean over subjects"
]
dot_plot(
    [{"model": name, **row} for name, found in rows.items() for row in found],
    summary=intervals,
    classes=("bone", "soft", "air"),
    title="Dice of eight heads",
)

# %% [markdown]
# ## 4. Which is better?
#
# The same subjects went through both, so the differences are paired: Wilcoxon's signed-rank test, corrected
# for the number of classes (Holm), with the bootstrap interval of the difference.

# %%
compared = mrseg.compare(rows["unet"], rows["segnet"], metrics=("dice", "hd95_mm"))
print(to_text(comparison_table(compared, names=("U-Net", "SegNet"))))

# %% [markdown]
# ## 5. What is taken for what

# %%
print(to_text(confusion_table(rows["segnet"], caption="SegNet")))

# %% [markdown]
# ## 6. Volumes
#
# A network may miss here and invent there and still have the right volume. Bland and Altman's plot shows the
# bias and the limits of agreement.

# %%
bland_altman(volumes(rows["unet"]), title="U-Net")

# %% [markdown]
# ## 7. The worst case

# %%
dice = {
    row["subject"]: row["value"] for row in rows["unet"] if (row["class"], row["metric"]) == ("bone", "dice")
}
worst = min(cases, key=lambda case: dice[case.subject])
image, affine = mrseg.data.read_volume(worst.images["T1w"])
truth, _ = mrseg.data.read_labels(worst.labels["T1w"])
spacing_mm = mrseg.data.voxel_sizes(affine)
comparison(
    image,
    truth,
    maps["unet"][worst.subject],
    class_names=methods["unet"].class_names,
    spacing_mm=spacing_mm,
    title=f"{worst.subject}, the lowest Dice of bone",
    view=View(focus="bone"),
)

# %% [markdown]
# ## 8. One pair of masks by hand
#
# Masks are NumPy arrays, distances are in mm. A structure that is missed scores 0 in overlap and infinity in
# distance, so that it never improves a mean.

# %%
mask_true, mask_pred = truth == 2, maps["unet"][worst.subject] == 2
print(f"HD95 {mrseg.metrics.hd95(mask_true, mask_pred, spacing_mm=spacing_mm):.2f} mm")
print(
    f"missed altogether: {mrseg.metrics.hd95(mask_true, np.zeros_like(mask_true), spacing_mm=spacing_mm)} mm"
)

# %% [markdown]
# ## Recap
#
# - `evaluate` gives rows, `summarize` means that say what they are means of, `compare` a paired test.
# - `summary_table`, `confusion_table`, `comparison_table` print; `dot_plot`, `bland_altman`, `comparison`
#   draw.
#
# From a shell, with a page: `mrseg evaluate --segmenter phantom_t1_unet --data heads/cohort.tsv --output
# runs/unet --distances`, and `--compare runs/segnet/scores.csv` for the test.

# %%
print("Dice of bone, mean over eight synthetic heads")
for row in intervals:
    if (row["class"], row["metric"]) == ("bone", "dice"):
        print(f"  {row['model']:36} {row['value']:.3f}")
scratch.cleanup()
