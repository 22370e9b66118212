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
# # Labels from CT
#
# A CT says where air, soft tissue and bone are, and so labels an MR scan of the same head. We register a CT
# that lies elsewhere onto the MR, judge the registration, make labels, see what the thresholds do, and turn
# the labels into an attenuation map.
#
# The head is made by code, so that the true labels are known. The figures say nothing about patients.

# %%
import matplotlib.pyplot as plt
import numpy as np

import mrseg
from mrseg.attenuation import mu_difference, mu_from_hu, mu_from_labels
from mrseg.data import phantom
from mrseg.data.labels import ATTENUATION_CLASSES
from mrseg.pictures import overlay, registration_check

plt.switch_backend(plt.get_backend())  # now, so that a notebook shows the first figure too
plt.rcParams["figure.dpi"] = 60  # small pictures

# %% [markdown]
# ## 1. A head, scanned twice
#
# The CT has its own grid, and the head lay otherwise in that scanner.

# %%
head = phantom.head(3, shape=(72, 88, 48), spacing_mm=(2.8, 2.8, 4.0))
mr = t1, affine = phantom.mr_image(head, "T1w")
ct, _ = phantom.ct_image(head, shape=(96, 112, 64))
spacing_mm = mrseg.data.voxel_sizes(affine)
truth = phantom.attenuation_labels(head)
print("MR", t1.shape, "voxels of", spacing_mm, "mm")
print("CT", ct[0].shape, "voxels of", mrseg.data.voxel_sizes(ct[1]), "mm")

# %% [markdown]
# ## 2. Registration
#
# `register` finds where each point of the MR lies in the CT. A head that keeps still needs the rigid stage
# alone; `mrseg prepare` adds a B-spline. `check_quality` refuses what its own figures speak against. That
# is no proof: look at the picture.

# %%
registration = mrseg.data.register(fixed=mr, moving=ct, stages=("rigid",))
mrseg.data.check_quality(registration)
registration.quality

# %%
grid = (t1.shape, affine)
by_header = mrseg.data.resample(ct, *grid, fill=-1000.0)
on_mr = mrseg.data.apply_transform(registration, ct, grid)
registration_check(
    t1, {"by the headers": by_header, "registered": on_mr}, spacing_mm=spacing_mm, title="CT's bone on the MR"
)

# %% [markdown]
# ## 3. Labels
#
# Below -500 HU is air, above 600 HU is bone, all else is soft tissue. Voxels outside the CT's field of view
# are 255: nobody may judge them, and no loss and no metric counts them.

# %%
labels = mrseg.data.hu_to_labels(on_mr, thresholds_hu=(-500, 600))
shares = dict(zip(ATTENUATION_CLASSES, mrseg.data.class_fractions(labels, 3), strict=True))
print({name: f"{share:.1%}" for name, share in shares.items()}, f"unjudged {(labels == 255).mean():.1%}")
overlay(t1, labels, class_names=ATTENUATION_CLASSES, spacing_mm=spacing_mm, title="labels from CT")

# %% [markdown]
# ## 4. What the labels are worth
#
# Labels from CT are no truth: they carry the registration's error, and thin bone is lost where a voxel is
# larger than the bone. A lower threshold finds more of it and takes soft tissue for bone elsewhere.


# %%
def bone_dice(ct_hu, threshold_hu):
    """Dice of bone between labels of this threshold and the phantom's truth, where both can be judged."""
    found = mrseg.data.hu_to_labels(ct_hu, thresholds_hu=(-500, threshold_hu))
    judged = found != 255
    return mrseg.metrics.dice(truth[judged] == 2, found[judged] == 2)


thresholds_hu = np.arange(100, 1001, 100)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(thresholds_hu, [bone_dice(on_mr, t) for t in thresholds_hu], label="registered")
axes.plot(thresholds_hu, [bone_dice(by_header, t) for t in thresholds_hu], label="by the headers")
axes.set(xlabel="threshold of bone (HU)", ylabel="Dice of bone", ylim=(0, 1))
axes.legend()
plt.show()

# %% [markdown]
# ## 5. An attenuation map
#
# What PET reconstruction needs: 1/cm at 511 keV. The map of three classes beside that of the CT itself.

# %%
mu_true, mu_classes = mu_from_hu(on_mr, tube_kvp=120), mu_from_labels(labels)
inside = mrseg.data.head_mask(np.nan_to_num(on_mr, nan=-1000.0))
difference = mu_difference(mu_true, mu_classes, inside)
figure, panels = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
level = t1.shape[2] // 2
maps = {"from CT": mu_true, "three classes": mu_classes, "difference": mu_classes - mu_true}
for axes, (name, values) in zip(panels, maps.items(), strict=True):
    low, cmap = (-0.1, "RdBu_r") if name == "difference" else (0.0, "gray")
    image = axes.imshow(values[..., level].T, origin="lower", cmap=cmap, vmin=low, vmax=abs(low) or 0.16)
    axes.set(title=name, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, shrink=0.8, label="1/cm")
plt.show()

# %% [markdown]
# ## Recap
#
# - `register`, `check_quality`, `apply_transform`: a CT onto the MR's grid. `registration_check` shows it.
# - `hu_to_labels` makes labels; 255 is what nobody may judge.
# - `mu_from_labels` and `mu_from_hu` make attenuation maps, `mu_difference` compares them.
#
# The same for a cohort, with a page to look at: `mrseg prepare cohort.tsv --output prepared`.

# %%
print("Dice of bone against the phantom's truth")
for name, image in {"CT by the headers": by_header, "CT registered": on_mr}.items():
    print(f"  {name:36} {bone_dice(image, 600):.3f}")
print(
    f"mean error of the three-class map: {difference['mean_absolute_difference_percent']:.1f} % of the mean"
)
