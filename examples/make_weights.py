# %% [markdown]
# # The small weights that come with mrseg
#
# One T1-w network of each family, trained on synthetic heads to label air, soft tissue and bone, stored in
# float16 (at most 1 MB each). They are for trying things out and for tests: a network for patients is trained
# on patients.
#
#     python examples/make_weights.py --output mrseg/weights
#
# About 25 minutes on two cores. Interrupted, it goes on where it stopped (`--runs`).

# %%
import argparse
import dataclasses
import subprocess
from pathlib import Path

import numpy as np

from mrseg.data import phantom, read_cases
from mrseg.evaluation import evaluate
from mrseg.recipes import load_recipe, train_recipe
from mrseg.segmenter import Segmenter

#: Name of the weights -> recipe and what is changed in it.
WEIGHTS = {
    "phantom_t1_unet": ("phantom_t1_slices", []),
    "phantom_t1_sep_res_unet": (
        "phantom_t1_slices",
        ["network={builder: sep_res_unet, arguments: {filters: 16, head: softmax}}"],
    ),
    "phantom_t1_attention_unet": (
        "phantom_t1_slices",
        ["network={builder: attention_unet, arguments: {filters: 8, head: softmax}}"],
    ),
    "phantom_t1_segnet": (
        "phantom_t1_slices",
        ["network={builder: segnet, arguments: {filters: 8, dropout: 0.2}}"],
    ),
    "phantom_t1_res_unet": ("phantom_t1_slices", ["network={builder: res_unet, arguments: {filters: 6}}"]),
    "phantom_t1_vgg_fcn": (
        "phantom_t1_slices",
        [
            "network={builder: vgg_fcn, arguments: {filters: 8}}",
            "sampling.neighbours=1",
            # without BatchNormalization 5e-3 is too much, and Dice alone never finds bone
            "training.learning_rate=2.0e-3",
            "loss.name=dice_cross_entropy",
        ],
    ),
    "phantom_t1_se_unet3d": (
        "phantom_t1",
        ["network.arguments.filters=6", "training.epochs=20", "augmentation={flip_axes: [0]}"],
    ),
}
SUBJECTS = {"train": 12, "test": 3}
LIMIT_BYTES = 1_000_000


# %%
def commit() -> str:
    """The commit of the checkout this runs in."""
    told = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def make(name: str, runs: Path, output: Path) -> None:
    page, overrides = WEIGHTS[name]
    recipe = load_recipe(page, overrides)
    manifest = runs / "heads" / "cohort.tsv"
    if not manifest.exists():
        phantom.write_cohort(
            manifest.parent,
            subjects=SUBJECTS,
            sequences=["T1w"],
            registered=True,
            labels="attenuation",
            seed=77,
        )
    cases = read_cases(manifest)
    trained = train_recipe(recipe, cases, runs / name)
    provenance = trained.provenance | {
        "data": f"{SUBJECTS['train']} synthetic heads of mrseg.data.phantom, seed 77; nobody's scan",
        "licence": "Apache-2.0, as mrseg",
        "commit": commit(),
        "subject_digests": [],  # synthetic heads of every seed bear the same names; there is nobody to leak
    }
    folder = dataclasses.replace(trained, provenance=provenance).save(output / name, weights_dtype="float16")
    stored = Segmenter.load(folder)
    rows = evaluate(stored, [case for case in cases if case.split == "test"])
    values = {
        name: [r["value"] for r in rows if r["class"] == name and r["metric"] == "dice"]
        for name in stored.class_names
    }
    dice = {name: round(float(np.mean(found)), 3) for name, found in values.items()}
    stored.provenance["figures"] = {"dice_on_three_synthetic_heads": dice}
    stored.save(folder, weights_dtype="float16")
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size <= LIMIT_BYTES, f"{name}: {size} bytes"
    print(f"{name}: {stored.model.count_params():,} parameters, {size:,} bytes, Dice {dice}", flush=True)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the small weights that come with mrseg.")
    parser.add_argument("--output", type=Path, default=Path("mrseg/weights"))
    parser.add_argument("--runs", type=Path, default=Path("runs/weights"))
    parser.add_argument("--only", nargs="*", default=list(WEIGHTS), choices=list(WEIGHTS))
    options = parser.parse_args()
    for name in options.only:
        make(name, options.runs, options.output)
