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
# # Your own network
#
# Any Keras network from images to class probabilities takes part in everything: training, transfer,
# segmenter, evaluation. Its layers are named by their stage, and that is all.
#
# The heads are made by code. The figures say nothing about patients.

# %%
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
from keras import layers, ops

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
# ## 1. A layer of your own
#
# A layer that Keras does not know is registered, so that a saved network can be loaded again.


# %%
@keras.saving.register_keras_serializable(package="mine")
class LargeContext(layers.Layer):
    """Adds to every voxel the mean of its channel over the whole slice, weighted by a learned number."""

    def build(self, input_shape):
        self.weight = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="weight")

    def call(self, x):
        return x + self.weight * ops.mean(x, axis=(1, 2), keepdims=True)


# %% [markdown]
# ## 2. A builder
#
# A function from input shape and number of classes to a `keras.Model`. The name of a layer begins with its
# stage: `stem`, `encoder1`, `bottleneck`, `decoder1`, `head`. Probabilities are float32.


# %%
def tiny_net(input_shape, num_classes, *, filters=8):
    """A U-Net of two stages with dilated convolutions at the bottom."""

    def step(x, width, name, **options):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name, **options)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    image = keras.Input(input_shape, name="image")
    x = skip1 = step(image, filters, "encoder1_conv1")
    x = layers.MaxPooling2D(name="encoder1_pool")(x)
    x = skip2 = step(x, 2 * filters, "encoder2_conv1")
    x = layers.MaxPooling2D(name="encoder2_pool")(x)
    for number, rate in enumerate((1, 2, 4), start=1):
        x = step(x, 4 * filters, f"bottleneck_conv{number}", dilation_rate=rate)
    x = LargeContext(name="bottleneck_context")(x)
    x = layers.Conv2DTranspose(2 * filters, 2, strides=2, name="decoder2_upsample")(x)
    x = step(layers.Concatenate(name="decoder2_skip")([x, skip2]), 2 * filters, "decoder2_conv1")
    x = layers.Conv2DTranspose(filters, 2, strides=2, name="decoder1_upsample")(x)
    x = step(layers.Concatenate(name="decoder1_skip")([x, skip1]), filters, "decoder1_conv1")
    x = layers.Conv2D(num_classes, 1, name="head_logits", dtype="float32")(x)
    return keras.Model(image, layers.Softmax(name="head_probabilities", dtype="float32")(x), name="tiny_net")


print(mrseg.transfer.groups(tiny_net((64, 96, 1), 3)))

# %% [markdown]
# ## 3. Recipes know it by name
#
# One line, and every recipe, cross-validation and study can train it.

# %%
mrseg.models.BUILDERS["tiny_net"] = tiny_net
mine = "network={builder: tiny_net, arguments: {filters: 8}}"

manifest = phantom.write_cohort(
    folder / "heads",
    subjects={"train": 4, "test": 2},
    sequences=("T1w", "T2w"),
    registered=True,
    seed=51,
)
cases = mrseg.data.read_cases(manifest)
test = mrseg.data.select(cases, "test")
recipe = mrseg.recipes.load_recipe("phantom_t1_slices", [mine, "training.epochs=8"])
t1 = mrseg.recipes.train_recipe(recipe, cases, folder / "t1", progress=False)

# %% [markdown]
# ## 4. Carried to T2-w
#
# Groups, freezing and the hybrid are read off the names. Layers with other names are refused with a message
# that says how they should be called.

# %%
hybrid = mrseg.transfer.hybrid(t1.model, fuse="concat")
print(mrseg.transfer.groups(hybrid).names)
t2_recipe = mrseg.recipes.load_recipe(
    "phantom_t2_slices", [mine, "transfer={mechanism: conservative, convs: 2}", "training.epochs=6"]
)
t2 = mrseg.recipes.train_recipe(t2_recipe, cases, folder / "t2", source=t1, progress=False)
draw_groups(t2.model)

# %%
learning_curves({"T1-w": folder / "t1" / "log.csv", "T2-w": folder / "t2" / "log.csv"})

# %% [markdown]
# ## 5. Kept and loaded
#
# The folder holds no code. Where `LargeContext` is not imported, loading is refused: a network from a
# stranger runs nothing of its own.

# %%
again = mrseg.Segmenter.load(folder / "t2" / "segmenter")
t2_image, affine = mrseg.data.read_volume(test[0].images["T2w"])
predicted = again((t2_image, affine)).get_fdata().astype("uint8")
comparison(
    t2_image,
    mrseg.data.read_labels(test[0].labels["T2w"])[0],
    predicted,
    class_names=again.class_names,
    spacing_mm=mrseg.data.voxel_sizes(affine),
    title=f"{test[0].subject}, T2-w, tiny_net",
    view=View(focus="bone"),
)

# %% [markdown]
# ## Recap
#
# - A builder returns a `keras.Model`; layer names begin with the stage. `mrseg.models.BUILDERS[name] =
#   builder` makes it known to recipes.
# - Layers of your own are registered with `keras.saving.register_keras_serializable` and imported before
#   loading.
# - `groups`, `freeze`, `train_last`, `load_weights`, `hybrid` and `Segmenter` need nothing more.
#
# The rules in full: docs/guides/own_network.md.


# %%
def bone_dice(segmenter, sequence):
    """Dice of bone over all voxels of the test heads."""
    found = mrseg.summarize(mrseg.evaluate(segmenter, test, sequence=sequence))
    keys = ("bone", "dice", "voxels pooled")
    return next(row["value"] for row in found if (row["class"], row["metric"], row["pooling"]) == keys)


print("Dice of bone, all voxels of two synthetic heads")
print(f"  {'T1-w network on T1-w':36} {bone_dice(t1, 'T1w'):.3f}")
print(f"  {'T1-w network on T2-w':36} {bone_dice(t1, 'T2w'):.3f}")
print(f"  {'fine-tuned network on T2-w':36} {bone_dice(t2, 'T2w'):.3f}")
scratch.cleanup()
