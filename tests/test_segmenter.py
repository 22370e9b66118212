from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pytest

import mrseg
from mrseg._checks import InputError
from mrseg.data.io import write_volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.metrics.losses import CategoricalDice
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.segmenter import Segmenter

LPS = np.array([[-1.0, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def threshold_network(patch=(8, 8, 8)):
    """Class 1 where the normalised image is above 0.5: logits -100 (x - 0.5) and +100 (x - 0.5)."""
    image = keras.Input((*patch, 1))
    conv = keras.layers.Conv3D(2, 1, activation="softmax", name="head_logits")
    model = keras.Model(image, conv(image))
    conv.set_weights([np.array([-100.0, 100.0]).reshape(1, 1, 1, 1, 2), np.array([50.0, -50.0])])
    return model


def segmenter(**changes):
    parts = {
        "model": threshold_network(),
        "preprocessing": Preprocessing(normalization="min_max"),
        "sampling": Sampling((8, 8, 8)),
        "class_names": ("background", "bright"),
        "sequence": "T2w",
        "provenance": {"seed": 3, "recipe": {"name": "test"}},
    }
    return Segmenter(**{**parts, **changes})


def scan(shape=(13, 11, 6)):
    image = np.zeros(shape, np.float32)
    image[2:9, 3:8, 1:4] = 90.0  # not symmetric, so that a wrong flip shows
    return image, LPS


def test_labels_come_back_on_the_scans_own_grid_and_orientation(tmp_path):
    volume = scan()
    write_volume(tmp_path / "t2.nii.gz", *volume)
    made = segmenter()(tmp_path / "t2.nii.gz")
    np.testing.assert_array_equal(np.asarray(made.dataobj), volume[0] > 45)
    np.testing.assert_allclose(made.affine, nib.load(tmp_path / "t2.nii.gz").affine)
    assert nib.aff2axcodes(made.affine) == ("L", "P", "S")
    assert made.get_data_dtype() == np.uint8


def test_an_array_with_its_affine_does_as_well_as_a_file():
    volume = scan((8, 8, 8))
    np.testing.assert_array_equal(np.asarray(segmenter()(volume).dataobj), volume[0] > 45)


def test_a_saved_segmenter_loads_with_all_it_knows_and_gives_the_same_probabilities(tmp_path):
    before = segmenter(preprocessing=Preprocessing("spacing", (2.0, 2.0, 2.0), normalization="min_max"))
    before.save(tmp_path / "segmenter")
    after = mrseg.Segmenter.load(tmp_path / "segmenter")
    for name in ("preprocessing", "sampling", "class_names", "sequence", "provenance"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_array_equal(after.probabilities(scan()), before.probabilities(scan()))


def test_saving_again_replaces_the_folder_as_a_whole(tmp_path):
    segmenter().save(tmp_path / "s")
    segmenter(sequence="T1w").save(tmp_path / "s")
    assert Segmenter.load(tmp_path / "s").sequence == "T1w"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "log.csv").write_text("precious")
    with pytest.raises(InputError, match="which holds other files"):
        segmenter().save(tmp_path)
    assert (tmp_path / "log.csv").read_text() == "precious"


@pytest.mark.parametrize("part", ["segmenter.json", "network.keras"])
def test_a_missing_part_is_named(tmp_path, part):
    segmenter().save(tmp_path / "s")
    (tmp_path / "s" / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"without {part}"):
        Segmenter.load(tmp_path / "s")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Segmenter.load(tmp_path / "nowhere")


def test_a_network_that_was_exchanged_is_refused(tmp_path):
    segmenter().save(tmp_path / "s")
    threshold_network((4, 4, 4)).save(tmp_path / "s" / "network.keras")
    with pytest.raises(InputError, match="another checksum"):
        Segmenter.load(tmp_path / "s")


@pytest.mark.parametrize(
    "damage", [lambda card: card.pop("sampling"), lambda card: card.update(sampling={"a": 1})]
)
def test_a_damaged_card_is_refused_with_its_name(tmp_path, damage):
    path = segmenter().save(tmp_path / "s") / "segmenter.json"
    card = json.loads(path.read_text())
    damage(card)
    path.write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"segmenter\.json"):
        Segmenter.load(tmp_path / "s")


def test_every_channel_needs_a_name():
    with pytest.raises(InputError, match="2 channels"):
        segmenter(class_names=("a", "b", "c"))


def test_a_fresh_process_loads_a_network_with_layers_of_our_own_trained_with_a_loss_of_our_own(tmp_path):
    model = se_unet3d((8, 8, 8, 1), 2, filters=2)
    model.compile("adam", CategoricalDice())
    segmenter(model=model).save(tmp_path / "whole")
    segmenter(model=model).save(tmp_path / "half", weights_dtype="float16")
    code = "import mrseg, sys; [print(mrseg.Segmenter.load(f).class_names) for f in sys.argv[1:]]"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "whole"), str(tmp_path / "half")],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.count("bright") == 2
