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
# # Fine-tune T1-w weights on new T2-w data
#
# The usual case: trained T1-w weights are there, and a few labelled scans of another sequence. We take the
# weights that come with mrseg, see them fail on T2-w, and carry them over in three ways.
#
# The heads are made by code. The figures say nothing about patients.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import mrseg
from mrseg.data import phantom
from mrseg.pictures import View, comparison
from mrseg.plots import dot_plot, learning_curves
from mrseg.transfer import draw_groups

plt.switch_backend(plt.get_backend())  # now, so that a notebook shows the first figure too
plt.rcParams["figure.dpi"] = 60  # small pictures
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## 1. What is there
#
# A segmenter by name: network, preprocessing, class names and where it comes from. Yours would be a folder.

# %%
t1 = mrseg.Segmenter.load("phantom_t1_unet")
print(t1.sequence, t1.class_names, t1.sampling.input_shape, t1.provenance["data"], sep="\n")

# %%
manifest = phantom.write_cohort(
    folder / "heads", subjects={"train": 3, "test": 3}, sequences=("T2w",), registered=True, seed=21
)
cases = mrseg.data.read_cases(manifest)
test = mrseg.data.select(cases, "test")

# %% [markdown]
# ## 2. As it is
#
# In T2-w the contrast is another: liquid is bright, fat and marrow are dark.

# %%
rows = [{"model": "as it is", **row} for row in mrseg.evaluate(t1, test, sequence="T2w")]

# %% [markdown]
# ## 3. What trains
#
# `load_weights` tells tensor by tensor what arrived. `train_last` freezes all but the last convolutions; what
# is frozen stays as it is, bit for bit, with its BatchNormalization statistics.

# %%
recipe = mrseg.recipes.load_recipe("phantom_t2_slices")
model = mrseg.models.BUILDERS[recipe.network.builder](
    recipe.sampling.input_shape, len(recipe.class_names), **recipe.network.arguments
)
report = str(mrseg.transfer.load_weights(model, t1.model)).splitlines()
print(*report[:4], "...", *report[-3:], sep="\n")
mrseg.transfer.train_last(model, convs=4)
draw_groups(model)

# %% [markdown]
# ## 4. Three ways
#
# The mechanism is one key of the recipe: the last four convolutions, all, or gamma and beta of the
# normalisations alone.

# %%
ways = {
    "last 4 convolutions": "transfer={mechanism: conservative, convs: 4}",
    "open (all layers)": "transfer={mechanism: open}",
    "affine (gamma, beta)": "transfer={mechanism: affine}",
}
segmenters, logs = {}, {}
for name, transfer in ways.items():
    own = mrseg.recipes.load_recipe("phantom_t2_slices", [transfer])
    place = folder / name.split()[0]
    segmenters[name] = mrseg.recipes.train_recipe(own, cases, place, source=t1, progress=False)
    logs[name] = place / "log.csv"
    rows += [{"model": name, **row} for row in mrseg.evaluate(segmenters[name], test)]
learning_curves(logs)

# %% [markdown]
# ## 5. What it brought

# %%
dot_plot(rows, classes=("bone", "soft", "air"), title="Dice of three T2-w heads")

# %%
case = test[0]
t2, affine = mrseg.data.read_volume(case.images["T2w"])
predicted = segmenters["last 4 convolutions"]((t2, affine))
comparison(
    t2,
    mrseg.data.read_labels(case.labels["T2w"])[0],
    predicted.get_fdata().astype("uint8"),
    class_names=t1.class_names,
    spacing_mm=mrseg.data.voxel_sizes(affine),
    title=f"{case.subject}, T2-w, last 4 convolutions",
    view=View(focus="bone"),
)

# %% [markdown]
# ## Recap
#
# - `Segmenter.load` takes a folder or a name; `load_weights`, `train_last` and `draw_groups` say what is
#   carried over and what trains.
# - `transfer.mechanism` of a recipe: `conservative`, `open`, `affine`, `hybrid`, `statistics`, `none`.
#
# From a shell: `mrseg transfer phantom_t2_slices --from phantom_t1_unet --data heads/cohort.tsv --output
# runs/t2`.


# %%
def pooled(name, label):
    """Dice of a class over all voxels of the test heads."""
    own = [row for row in rows if row["model"] == name]
    (found,) = [
        row["value"]
        for row in mrseg.summarize(own)
        if (row["class"], row["metric"], row["pooling"]) == (label, "dice", "voxels pooled")
    ]
    return found


print("Dice of bone, all voxels of three synthetic T2-w heads")
for name in ("as it is", *ways):
    print(f"  {name:36} {pooled(name, 'bone'):.3f}")
scratch.cleanup()
