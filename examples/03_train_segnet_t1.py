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
# # Train SegNet on T1-w
#
# SegNet of mecheter2020, made narrow, learns air, soft tissue and bone on axial slices of T1-w heads. A
# recipe holds every setting; `train_recipe` runs it, keeps checkpoints and goes on where it was stopped.
#
# The heads are made by code. The figures say nothing about patients.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import mrseg
from mrseg.data import phantom
from mrseg.formats import to_text
from mrseg.pictures import View, comparison
from mrseg.plots import learning_curves
from mrseg.score_tables import confusion_table

plt.switch_backend(plt.get_backend())  # now, so that a notebook shows the first figure too
plt.rcParams["figure.dpi"] = 60  # small pictures
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## 1. Heads with labels
#
# Splits are by subject. The validation head decides nothing here; it shows how the training goes.

# %%
manifest = phantom.write_cohort(
    folder / "heads", subjects={"train": 5, "val": 1, "test": 2}, registered=True, seed=11
)
cases = mrseg.data.read_cases(manifest)
[(case.subject, case.split) for case in cases]

# %% [markdown]
# ## 2. The recipe
#
# A page of the library with what we change on top. A misspelt key or a value of the wrong type is an error
# that names the nearest key.

# %%
recipe = mrseg.recipes.load_recipe(
    "phantom_t1_slices",
    [
        "network={builder: segnet, arguments: {filters: 8, dropout: 0.2}}",
        "training.epochs=8",
        "preprocessing.spacing_mm=[4.0,4.0,4.0]",
        "preprocessing.shape=[64,64,48]",
        "sampling.patch_shape=[64,64,1]",
    ],
)
print(recipe.title)
print(recipe.network, recipe.loss, recipe.training.epochs, "epochs", sep="\n")

# %% [markdown]
# ## 3. The network
#
# The papers' SegNet has 29 million parameters; `filters=8` of 64 leaves 1/64 of them. Maxima are put back
# where they were found (`unpool="indices"`), so that the decoder knows where edges lie.

# %%
model, _ = mrseg.recipes.build_network(recipe)
print(mrseg.transfer.groups(model))

# %% [markdown]
# ## 4. Training

# %%
segmenter = mrseg.recipes.train_recipe(recipe, cases, folder / "t1", progress=False)
learning_curves({"SegNet on T1-w": folder / "t1" / "log.csv"})

# %% [markdown]
# ## 5. Scores on heads that were not seen
#
# On the scan's own grid, not on the network's. `summarize` names what was averaged over.

# %%
test = mrseg.data.select(cases, "test")
kept = {}
rows = mrseg.evaluate(segmenter, test, on_result=lambda case, labels: kept.setdefault(case.subject, labels))
print(to_text(confusion_table(rows)))

# %%
case = test[0]
image, affine = mrseg.data.read_volume(case.images["T1w"])
comparison(
    image,
    mrseg.data.read_labels(case.labels["T1w"])[0],
    kept[case.subject],
    class_names=segmenter.class_names,
    spacing_mm=mrseg.data.voxel_sizes(affine),
    title=f"{case.subject}, SegNet on T1-w",
    view=View(focus="bone"),
)

# %% [markdown]
# ## 6. Which convolution sees what
#
# Features of the first stage for one slice: edges and tissue classes, before any pooling.

# %%
import keras

first = keras.Model(segmenter.model.input, segmenter.model.get_layer("encoder1_conv2_relu").output)
working, _ = segmenter.preprocessing.image((image, affine))
features = first(working[None, :, :, working.shape[2] // 2, None])
figure, panels = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for channel, axes in enumerate(panels.flat):
    axes.imshow(keras.ops.convert_to_numpy(features)[0, ..., channel].T, origin="lower", cmap="magma")
    axes.set(title=f"channel {channel}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Recap
#
# - `load_recipe(name, overrides)` gives one experiment; `train_recipe` trains it and saves a segmenter.
# - `learning_curves` reads the log, `evaluate` scores, `confusion_table` and `comparison` show where it errs.
#
# The paper's own experiment, for a GPU and your scans: `mrseg train mecheter2020_t1 --data cohort.tsv
# --output runs/t1`.

# %%
print("Dice, all voxels of two synthetic test heads")
for row in mrseg.summarize(rows):
    if (row["metric"], row["pooling"]) == ("dice", "voxels pooled"):
        print(f"  {row['class']:36} {row['value']:.3f}")
scratch.cleanup()
