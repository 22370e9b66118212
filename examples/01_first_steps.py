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
# # First steps: from T1-w to T2-w in a minute
#
# We make synthetic heads, make labels from their CT, train a small network on T1-w, see it fail on T2-w, and
# carry it over with a few T2-w heads.
#
# The heads are made by code. The figures below show how the software is used; they say nothing about
# patients.

# %%
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt

import mrseg
from mrseg.data import phantom
from mrseg.data.labels import ATTENUATION_CLASSES
from mrseg.pictures import View, comparison, overlay

keras.utils.set_random_seed(0)
plt.switch_backend(plt.get_backend())  # now, so that a notebook shows the first figure too
plt.rcParams["figure.dpi"] = 60  # small pictures
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## 1. Scans
#
# `write_cohort` writes what a user's own data would be: NIfTI files and a manifest, one row a subject. With
# `registered=True` the CT lies on the MR grid already, so that this page needs no registration.

# %%
manifest = phantom.write_cohort(
    folder / "heads",
    subjects={"train": 4, "test": 2},
    sequences=("T1w", "T2w"),
    shape=(56, 64, 48),
    seed=1,
    registered=True,
)
cases = mrseg.data.read_cases(manifest)
[(case.subject, case.split, *case.images) for case in cases]

# %% [markdown]
# ## 2. Labels from CT
#
# Below -500 HU is air, above 600 HU is bone, all else is soft tissue. The phantom knows the true labels as
# well: the noise of the CT moves few voxels to another class.

# %%
head = cases[0]
t1, affine = mrseg.data.read_volume(head.images["T1w"])
ct_hu, _ = mrseg.data.read_ct(head.ct)
labels = mrseg.data.hu_to_labels(ct_hu, thresholds_hu=(-500, 600))
truth, _ = mrseg.data.read_labels(head.labels["T1w"])
print(f"Dice of bone, CT against the noise-free truth: {mrseg.metrics.dice(truth == 2, labels == 2):.3f}")
spacing_mm = mrseg.data.voxel_sizes(affine)
overlay(t1, labels, class_names=ATTENUATION_CLASSES, spacing_mm=spacing_mm, title="T1-w, labels from CT")

# %% [markdown]
# ## 3. Data for the network
#
# `Preprocessing` brings a scan onto the network's grid, `Sampling` says which patches the network sees. Both
# are stored with the weights, so that a scan meets the same at prediction.

# %%
preprocessing = mrseg.data.Preprocessing(grid="spacing", spacing_mm=(5.0, 5.0, 5.0), normalization="lcn")
sampling = mrseg.data.Sampling(patch_shape=(24, 24, 24), overlap=0.5, patches_per_volume=16)


def batches(sequence):
    """Batches of patches of the training heads, other patches in every epoch."""
    train = mrseg.data.select(cases, "train")
    examples = mrseg.data.load_examples(train, sequence, preprocessing, num_classes=3)
    return mrseg.data.build_dataset(examples, sampling, batch_size=4, seed=0)


images, targets = next(iter(batches("T1w")))
images.shape, targets.shape

# %% [markdown]
# ## 4. A network, trained on T1-w
#
# A builder returns a plain `keras.Model`. Compile and fit are Keras' own.

# %%
t1_model = mrseg.models.se_unet3d((24, 24, 24, 1), num_classes=3, filters=8)
print(mrseg.transfer.groups(t1_model))


# %%
def train(model, sequence, epochs):
    """Trains in place, the rate falling to 0 on a cosine, and returns the loss of every epoch."""
    data = batches(sequence)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, epochs * int(data.cardinality()))
    model.compile(
        keras.optimizers.Adam(rate),
        loss=mrseg.metrics.CategoricalDice(),
        jit_compile=False,  # XLA is slow for volumes on a CPU
    )
    # shuffle=False: the dataset shuffles by itself.
    return model.fit(data, epochs=epochs, shuffle=False, verbose=0).history["loss"]


loss = {"T1-w": train(t1_model, "T1w", epochs=6)}

# %% [markdown]
# ## 5. A segmenter, scored on both sequences
#
# A segmenter is the network with its preprocessing, sampling and class names. It takes a scan on any grid and
# answers on the scan's own grid. `evaluate` returns tidy rows: subject, class, metric, value.


# %%
def segmenter_of(model, sequence):
    """The network with all it needs to segment a scan."""
    return mrseg.Segmenter(model, preprocessing, sampling, ATTENUATION_CLASSES, sequence)


def bone_dice(segmenter, sequence):
    """Dice of bone, mean over the test heads."""
    rows = mrseg.evaluate(segmenter, mrseg.data.select(cases, "test"), sequence=sequence)
    values = [row["value"] for row in rows if (row["class"], row["metric"]) == ("bone", "dice")]
    return sum(values) / len(values)


t1_segmenter = segmenter_of(t1_model, "T1w")
dice = {
    "T1-w network on T1-w": bone_dice(t1_segmenter, "T1w"),
    "T1-w network on T2-w": bone_dice(t1_segmenter, "T2w"),
}
dice

# %% [markdown]
# ## 6. The way to T2-w
#
# Conservative fine-tuning: the last 9 convolutions (the decoder) and the head train on T2-w, all else stays
# as it was, bit for bit. The report says what trains.

# %%
model = mrseg.models.se_unet3d((24, 24, 24, 1), num_classes=3, filters=8)
mrseg.transfer.load_weights(model, t1_model)
print(mrseg.transfer.train_last(model, convs=9))
loss["T2-w, last 9 convolutions"] = train(model, "T2w", epochs=4)
t2_segmenter = segmenter_of(model, "T2w")
dice["fine-tuned network on T2-w"] = bone_dice(t2_segmenter, "T2w")

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, values in loss.items():
    axes.plot(range(1, len(values) + 1), values, label=name)
axes.set(xlabel="epoch", ylabel="loss")
axes.legend()
plt.show()

# %% [markdown]
# The hybrid has two encoders side by side: `adapted_encoder1` and so on keep the T1-w weights and stay
# frozen, a new encoder learns T2-w from nothing, one decoder follows. It needs more steps than this page
# takes; `mrseg demo` trains it with each of its four fusions.

# %%
print(mrseg.transfer.groups(mrseg.transfer.hybrid(t1_model, fuse="multiply")))

# %% [markdown]
# ## 7. Look at it
#
# The last column shows bone that was missed and bone that was added.

# %%
test_head = mrseg.data.select(cases, "test")[0]
t2, affine = mrseg.data.read_volume(test_head.images["T2w"])
truth, _ = mrseg.data.read_labels(test_head.labels["T2w"])
predicted = t2_segmenter((t2, affine))  # a nibabel image on the scan's own grid
comparison(
    t2,
    truth,
    predicted.get_fdata().astype("uint8"),
    class_names=ATTENUATION_CLASSES,
    spacing_mm=mrseg.data.voxel_sizes(affine),
    title=f"{test_head.subject}, T2-w, fine-tuned",
    view=View(focus="bone"),
)

# %% [markdown]
# ## 8. Keep it
#
# A segmenter is saved as one folder and loaded from it.

# %%
t2_segmenter.save(folder / "segmenter")
again = mrseg.Segmenter.load(folder / "segmenter")
assert (again((t2, affine)).get_fdata() == predicted.get_fdata()).all()
sorted(path.name for path in (folder / "segmenter").iterdir())

# %% [markdown]
# ## Recap
#
# - A manifest lists scans; `read_cases` reads it. Labels come from CT by `hu_to_labels`.
# - `Preprocessing` and `Sampling` travel with the network in a `Segmenter`.
# - Builders return `keras.Model`; `train_last`, `freeze`, `load_weights` and `hybrid` carry a network over.
#   `groups` shows what trains.
# - `evaluate` gives tidy rows on the scans' own grid.
#
# The same with schedules, checkpoints and a report: `mrseg demo`, or `mrseg train` and `mrseg transfer` with
# a recipe.

# %%
print(f"{'Dice of bone, two synthetic test heads':40}")
for name, value in dice.items():
    print(f"  {name:36} {value:.3f}")
scratch.cleanup()
