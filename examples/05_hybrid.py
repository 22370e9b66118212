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
# # The hybrid: two encoders, one decoder
#
# mecheter2023's third way. The T1-w encoder stays frozen, a new encoder learns T2-w beside it, their features
# are fused (here multiplied), and one decoder follows.
#
# The heads are made by code. The figures say nothing about patients.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mrseg
from mrseg.data import phantom
from mrseg.pictures import View, comparison
from mrseg.plots import learning_curves
from mrseg.transfer import draw_groups

plt.switch_backend(plt.get_backend())  # now, so that a notebook shows the first figure too
plt.rcParams["figure.dpi"] = 60  # small pictures
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## 1. The T1-w network
#
# Small weights that come with mrseg, for slices of 64 x 96 pixels.

# %%
t1 = mrseg.Segmenter.load("phantom_t1_unet")
print(mrseg.transfer.groups(t1.model))

# %% [markdown]
# ## 2. The hybrid made from it
#
# `adapted_encoder1` and so on are the T1-w stages; they never train. The decoder is as wide as before for the
# fusions multiply, average and maximum, and wider for concat.

# %%
hybrid = mrseg.transfer.hybrid(t1.model, fuse="multiply")
draw_groups(hybrid)

# %%
for fuse in ("multiply", "average", "maximum", "concat"):
    print(f"{fuse:10} {mrseg.transfer.hybrid(t1.model, fuse=fuse).count_params():,} parameters")

# %% [markdown]
# ## 3. Training on T2-w
#
# A recipe as for any transfer, with `mechanism: hybrid`. New encoder and decoder begin from nothing, so that
# it needs more epochs than fine-tuning.

# %%
manifest = phantom.write_cohort(
    folder / "heads", subjects={"train": 3, "test": 2}, sequences=("T2w",), registered=True, seed=31
)
cases = mrseg.data.read_cases(manifest)
recipe = mrseg.recipes.load_recipe(
    "phantom_t2_slices",
    ["transfer={mechanism: hybrid, fuse: multiply}", "training.epochs=8", "training.learning_rate=5.0e-3"],
)
t2 = mrseg.recipes.train_recipe(recipe, cases, folder / "hybrid", source=t1, progress=False)
learning_curves({"hybrid, multiply": folder / "hybrid" / "log.csv"})

# %% [markdown]
# ## 4. Frozen means bit-identical
#
# Every tensor of the adapted encoder is what it was, the statistics of BatchNormalization among them.

# %%
before = {layer.name: layer.get_weights() for layer in t1.model.layers}
adapted = [layer for layer in t2.model.layers if layer.name.startswith("adapted_") and layer.weights]
for layer in adapted:
    for old, new in zip(before[layer.name.removeprefix("adapted_")], layer.get_weights(), strict=True):
        assert np.array_equal(old, new), layer.name
print(f"{len(adapted)} layers, bit for bit as in the T1-w network")

# %% [markdown]
# ## 5. What both encoders see
#
# The same slice through the first stage of each.

# %%
import keras

test = mrseg.data.select(cases, "test")
image, affine = mrseg.data.read_volume(test[0].images["T2w"])
working, _ = t2.preprocessing.image((image, affine))
encoders = {"adapted (T1-w, frozen)": "adapted_encoder1_conv2_relu", "new (T2-w)": "encoder1_conv2_relu"}
figure, panels = plt.subplots(2, 4, figsize=(8, 4.6), layout="constrained")
for row, (name, layer) in zip(panels, encoders.items(), strict=True):
    stage = keras.Model(t2.model.input, t2.model.get_layer(layer).output)
    features = keras.ops.convert_to_numpy(stage(working[None, :, :, working.shape[2] // 2, None]))
    for channel, axes in enumerate(row):
        axes.imshow(features[0, ..., channel].T, origin="lower", cmap="magma")
        axes.set(xticks=[], yticks=[], title=f"{name}, {channel}" if channel == 0 else f"{channel}")
plt.show()

# %% [markdown]
# ## 6. Scores

# %%
rows = {
    "T1-w network as it is": mrseg.evaluate(t1, test, sequence="T2w"),
    "hybrid, multiply": mrseg.evaluate(t2, test),
}
predicted = np.asarray(t2((image, affine)).dataobj)
comparison(
    image,
    mrseg.data.read_labels(test[0].labels["T2w"])[0],
    predicted,
    class_names=t2.class_names,
    spacing_mm=mrseg.data.voxel_sizes(affine),
    title=f"{test[0].subject}, hybrid",
    view=View(focus="bone"),
)

# %% [markdown]
# ## Recap
#
# - `hybrid(model, fuse=...)` makes two encoders of any network; `transfer.mechanism: hybrid` trains it.
# - Several trained networks may be given at once: `hybrid([t1, t2], fuse="average")` for a third sequence.
# - What is frozen stays as it is, and `groups` and `draw_groups` show it.

# %%
print("Dice of bone, all voxels of two synthetic T2-w heads")
for name, found in rows.items():
    for row in mrseg.summarize(found):
        if (row["class"], row["metric"], row["pooling"]) == ("bone", "dice", "voxels pooled"):
            print(f"  {name:36} {row['value']:.3f}")
scratch.cleanup()
