"""The recipes of xu2017: their stated rates, and training from the challenges' own folders."""

from __future__ import annotations

import keras
import nibabel
import numpy as np
import pytest

from mrseg.cli import main
from mrseg.data import datasets, phantom, write_cases
from mrseg.data.writing import write_volume
from mrseg.metrics import mean_loss_rates
from mrseg.recipes import load_recipe
from mrseg.recipes.runner import build_network
from mrseg.segmenter import Segmenter
from mrseg.training import _compile

NEWBORN_CLASSES = np.array([0, 1, 2, 3, 3, 7, 6, 5, 4], np.uint8)  # of the phantom's structures
SMALL = (
    "network.arguments.filters=2", "sampling.patch_shape=[32,32,1]", "sampling.patches_per_volume=1",
    "training.epochs=1",
)  # fmt: skip


def step(overrides):
    """Weights of EXP1's network after one step, and before it, on one slice."""
    recipe = load_recipe("xu2017_exp1", [*SMALL, *overrides])
    keras.utils.set_random_seed(1)
    model, _ = build_network(recipe)
    before = [keras.ops.convert_to_numpy(w) for w in model.weights]
    _compile(model, recipe.training, recipe.loss, recipe.class_names, steps=1)
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.random((1, 32, 32, 3), np.float32), rng.integers(0, 8, (1, 32, 32)))
    return before, [keras.ops.convert_to_numpy(w) for w in model.weights]


def test_a_step_of_the_stated_recipe_is_that_of_a_mean_loss_with_the_turned_rates():
    stated = load_recipe("xu2017_exp1")
    assert (stated.loss.over_voxels, stated.training.learning_rate) == ("sum", 1e-10)
    penalty = stated.network.arguments["weight_decay"]
    rate, decay = mean_loss_rates(
        1e-4, 2 * penalty, 32 * 32
    )  # 1e-10 moves float32 weights by a digit at most
    before, summed = step(["training.learning_rate=1.0e-4"])
    same, mean = step(
        [
            "loss.over_voxels=mean",
            f"training.learning_rate={rate}",
            f"network.arguments.weight_decay={decay / 2}",
        ]
    )
    for start, one, other, again in zip(before, summed, mean, same, strict=True):
        np.testing.assert_array_equal(start, again)
        np.testing.assert_allclose(one - start, other - start, atol=2e-4 * np.abs(one - start).max() + 1e-8)
    assert max(np.abs(one - start).max() for start, one in zip(before, summed, strict=True)) > 1e-5


def write_head(folder, number, images, labels, *, weeks=None, classes=None):
    """A phantom's files: every image under its name, the structures under each of ``labels``."""
    spacing_mm = (4.0, 4.0, 16.0) if weeks else (7.0, 8.0, 24.0)
    head = phantom.head(number, shape=(32, 32, 8), spacing_mm=spacing_mm, weeks=weeks)
    for name, sequence in images.items():
        image, affine = phantom.mr_image(head, sequence)
        write_volume(folder / name, image.astype(np.int16), affine)
    structures = phantom.structure_labels(head)
    for name in labels:
        truth = structures if classes is None else classes[structures]
        write_volume(folder / name, truth, head.affine)


def test_adults_train_and_are_segmented_from_a_folder_of_mrbrains13_by_one_command(tmp_path):
    images = {"T1.nii": "T1w", "T1_IR.nii": "T1w", "T2_FLAIR.nii": "T2w"}
    for number in (1, 2):
        labels = ("LabelsForTraining.nii", "LabelsForTesting.nii")
        write_head(tmp_path / "MRBrainS13" / "TrainingData" / str(number), number, images, labels)
    write_head(tmp_path / "MRBrainS13" / "TestData" / "1", 3, images, ())
    options = [word for key in SMALL for word in ("--set", key)]
    run = tmp_path / "run"
    command = ["train", "xu2017_exp4", "--data", tmp_path / "MRBrainS13", "--output", run, *options]
    assert main([str(word) for word in command]) == 0
    segmenter = Segmenter.load(run / "segmenter")
    assert segmenter.provenance["subjects"] == {"train": 2, "validation": 0}
    assert segmenter.class_names == load_recipe("xu2017_exp4").class_names
    assert len(segmenter.sampling.channel_mean) == 3
    scan = tmp_path / "MRBrainS13" / "TestData" / "1" / "T1.nii"
    assert segmenter(scan).shape == nibabel.load(scan).shape


@pytest.mark.parametrize(
    ("recipe", "acquisition", "subjects"), [("xu2017_exp1", "40wAxial", 1), ("xu2017_exp3", None, 2)]
)
def test_newborns_train_from_a_folder_of_neobrains12(tmp_path, recipe, acquisition, subjects):
    """EXP1 takes one acquisition of the folder; EXP3 trains on all that has labels."""
    training = tmp_path / "NeoBrainS12" / "trainingDataNeoBrainS12"
    images = {"T1_1-2.nii.gz": "T1w", "T2_1-1.nii.gz": "T2w"}
    for number, place in enumerate(("40wAxial/example1", "30wCoronal/example1")):
        write_head(
            training / place, number, images, ("manualSegm.nii.gz",),
            weeks=40 - 10 * number, classes=NEWBORN_CLASSES,
        )  # fmt: skip
    data = tmp_path / "NeoBrainS12"
    if acquisition:
        cases = datasets.neobrains12(data, acquisition=acquisition)
        data = tmp_path / "some.tsv"
        write_cases(cases, data)
    options = [word for key in SMALL for word in ("--set", key)]
    command = ["train", recipe, "--data", data, "--output", tmp_path / "run", *options]
    assert main([str(word) for word in command]) == 0
    assert Segmenter.load(tmp_path / "run" / "segmenter").provenance["subjects"]["train"] == subjects
