from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pytest

import mrseg
from mrseg import memory
from mrseg._checks import InputError
from mrseg.baselines.crf import dense_crf_volume
from mrseg.data.io import write_volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.metrics.losses import CategoricalDice
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.passes import Inference
from mrseg.postprocess import Postprocessing
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
    (tmp_path / "log.csv").write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match="which holds other files"):
        segmenter().save(tmp_path)
    assert (tmp_path / "log.csv").read_text(encoding="utf-8") == "precious"


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
    card = json.loads(path.read_text(encoding="utf-8"))
    damage(card)
    path.write_text(json.dumps(card), encoding="utf-8")
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
        env=environment, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout.count("bright") == 2


def random_scan(shape=(13, 18, 11)):
    return np.random.default_rng(0).random(shape).astype(np.float32), LPS


def test_predict_gives_all_maps_on_the_scans_grid_and_says_the_memory_before(caplog):
    volume = scan()
    with caplog.at_level(logging.INFO, logger="mrseg.segmenting"):
        maps = segmenter().predict(volume, inference=Inference(uncertainty="entropy"), probabilities=True)
    assert "MB besides the network" in caplog.text
    np.testing.assert_array_equal(maps.labels, volume[0] > 45)
    np.testing.assert_array_equal(maps.probabilities.argmax(-1), maps.labels)
    assert maps.uncertainty.shape == volume[0].shape and maps.uncertainty.max() < 0.01
    np.testing.assert_array_equal(maps.affine, LPS)


def test_a_prediction_does_not_change_the_scan():
    image = random_scan()[0]
    kept = image.copy()
    segmenter()((image, np.eye(4)))
    np.testing.assert_array_equal(image, kept)


def test_the_memory_stated_for_a_scan_s_header_is_that_logged_for_the_scan(caplog):
    volume, made = random_scan(), segmenter()
    with caplog.at_level(logging.INFO, logger="mrseg.segmenting"):
        made.predict(volume, probabilities=True)
    stated = made.memory_mb((volume[0].shape, LPS), probabilities=True)
    assert f"at most {stated:.0f} MB" in caplog.text


def test_a_scan_too_large_for_the_memory_is_refused_before_any_work(monkeypatch):
    made, volume = segmenter(), random_scan()
    needed_mb = made.memory_mb((volume[0].shape, LPS))
    monkeypatch.setattr(memory, "_STATE", Path("nowhere"))
    monkeypatch.setattr(memory, "_machine_mb", lambda: 0.99 * needed_mb)
    monkeypatch.setattr(Preprocessing, "image", None)  # not reached
    with pytest.raises(InputError, match="maps must fit into the memory.*smaller --batch-size"):
        made.predict(volume)


def test_volumes_of_all_sizes_and_options_share_one_trace():
    traces = []

    @keras.saving.register_keras_serializable("tests")
    class Note(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return keras.ops.concatenate([x, 1 - x], -1)

    image = keras.Input((8, 8, 8, 1))
    made = segmenter(model=keras.Model(image, Note()(image)))
    traces.clear()
    for shape in [(8, 8, 8), (13, 18, 11), (5, 30, 9)]:
        made(random_scan(shape))
        made.predict(
            random_scan(shape), inference=Inference(mirror_axes=(0,), overlap=0.25, blending="constant")
        )
    assert len(traces) == 1


def direction_network():
    """Probability of class 1: the left neighbour's image value, so that mirrors disagree at edges."""
    image = keras.Input((8, 8, 8, 1))
    conv = keras.layers.Conv3D(1, 3, padding="same", use_bias=False)
    left = conv(image)
    kernel = np.zeros((3, 3, 3, 1, 1))
    kernel[0, 1, 1] = 1
    conv.set_weights([kernel])
    return keras.Model(image, keras.layers.Concatenate()([1 - left, left]))


def test_the_variance_over_mirrors_is_that_of_the_neighbours_left_and_right():
    """One patch: p is x[i-1], its mirrored pass x[i+1]; the variance of two values is ((a - b) / 2)^2."""
    image = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    image[0, 0, 0], image[7, 7, 7] = 0, 1  # min_max changes nothing
    made = segmenter(model=direction_network())
    inference = Inference(mirror_axes=(0,), uncertainty="mirror")
    maps = made.predict((image, np.eye(4)), inference=inference, probabilities=True)
    padded = np.pad(image, ((1, 1), (0, 0), (0, 0)))
    left, right = padded[:-2], padded[2:]
    np.testing.assert_allclose(maps.probabilities[..., 1], (left + right) / 2, atol=1e-5)
    np.testing.assert_allclose(maps.uncertainty, ((left - right) / 2) ** 2, atol=1e-5)


def sampled_segmenter():
    return segmenter(model=segnet((32, 32, 1), 2, filters=2), sampling=Sampling((32, 32, 1)))


def test_monte_carlo_dropout_gives_the_same_maps_for_one_seed_whatever_was_predicted_before():
    inference = Inference(dropout_samples=3, uncertainty="dropout")
    made = sampled_segmenter()
    first = made.predict(random_scan(), inference=inference)
    made.predict(random_scan((9, 9, 4)), inference=inference)
    again = made.predict(random_scan(), inference=inference)
    np.testing.assert_array_equal(first.uncertainty, again.uncertainty)
    assert 0 < first.uncertainty.max() <= 0.25
    other = made.predict(random_scan(), inference=dataclasses.replace(inference, seed=1))
    assert (other.uncertainty != first.uncertainty).any()


def test_a_network_that_cannot_be_asked_so_says_it_before_any_scan_is_read():
    with pytest.raises(InputError, match="needs a network with dropout"):
        segmenter().check(Inference(dropout_samples=2))
    sampled_segmenter().check(Inference(dropout_samples=2, extent="whole"))


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8, 1), (8, 1, 8)])
def test_a_whole_volume_at_once_is_the_network_on_the_padded_volume(patch):
    """13 x 18 x 11 in 16 x 24 x 16 with the volume in the middle; slices in 16 x 24 and so on."""
    shape = tuple(n for n in patch if n != 1)
    model = unet((*shape, 1), 2, filters=2, head="softmax")
    made = segmenter(model=model, sampling=Sampling(patch))
    volume = random_scan()[0], np.eye(4)
    out = made.predict(volume, inference=Inference(extent="whole"), probabilities=True).probabilities
    image = (volume[0] - volume[0].min()) / (volume[0].max() - volume[0].min())
    wanted = [1 if thick == 1 else -(-n // 8) * 8 for n, thick in zip(image.shape, patch, strict=True)]
    before = [max(0, w - n) // 2 for w, n in zip(wanted, image.shape, strict=True)]
    padded = np.pad(
        image, [(b, max(0, w - n) - b) for b, w, n in zip(before, wanted, image.shape, strict=True)]
    )
    open_model = unet((*[None for _ in shape], 1), 2, filters=2, head="softmax")
    open_model.set_weights(model.get_weights())
    axis = patch.index(1) if 1 in patch else None
    if axis is None:
        answer = open_model(padded[None, ..., None], training=False).numpy()[0]
    else:
        slices = np.moveaxis(padded, axis, 0)[..., None]
        answer = np.moveaxis(open_model(slices, training=False).numpy(), 0, axis)
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    np.testing.assert_allclose(out, answer[inside], atol=1e-5)


def test_the_digest_is_that_of_what_decides_a_label_map(tmp_path):
    made = segmenter()
    made.save(tmp_path / "s")
    assert Segmenter.load(tmp_path / "s").digest == Segmenter.load(tmp_path / "s").digest == made.digest
    made.provenance, made.batch_size = {"other": 1}, 5
    assert Segmenter.load(tmp_path / "s").digest == made.digest
    others = [
        segmenter(class_names=("a", "b")),
        segmenter(sampling=Sampling((8, 8, 8), 0.25)),
        segmenter(preprocessing=Preprocessing()),
    ]
    made.model.layers[-1].set_weights([w + 1 for w in made.model.layers[-1].get_weights()])
    assert len({made.digest, *(other.digest for other in others)}) == 4


PEAK = """
import sys
import keras, numpy as np
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.passes import Inference
from mrseg.segmenter import Segmenter

size, classes = int(sys.argv[1]), int(sys.argv[2])
image = keras.Input((64, 64, 64, 1))
model = keras.Model(image, keras.layers.Conv3D(classes, 1, activation="softmax")(image))
names = tuple(f"class{c}" for c in range(classes))
made = Segmenter(model, Preprocessing(normalization="min_max"), Sampling((64, 64, 64), 0.25), names)
native = ((size,) * 3, np.diag([-1.0, -1.0, 1.0, 1.0]))
print(made.memory_mb(native, inference=Inference(uncertainty="entropy")))
scan = np.random.default_rng(0).random(native[0], np.float32), native[1]

def peak_mb():  # ru_maxrss begins with what the process had that started this one
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6

before = peak_mb()
maps = made.predict(scan, inference=Inference(uncertainty="entropy"))
assert maps.labels.shape == native[0]
print(before, peak_mb())
"""


def peak_rss(size, classes):
    """MB: the statement, the process with scan and network, and its peak."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PEAK, str(size), str(classes)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_a_volume_of_256_cubed_with_4_classes_takes_less_than_2500_mb_in_all():
    stated, before, peak = peak_rss(256, 4)
    assert peak < 2500
    assert peak - before < stated


@pytest.mark.slow
def test_class_probabilities_of_512_cubed_with_10_classes_never_exist_whole():
    """They would take 5369 MB by themselves."""
    stated, before, peak = peak_rss(512, 10)
    assert peak - before < stated < 5369
    assert peak < 5369


def test_postprocessing_is_saved_and_runs_in_ras_on_the_scan_s_grid(tmp_path):
    """A speck of one voxel beside the large bright box goes; the scan lies left-right turned."""
    volume = scan()
    array = volume[0].copy()
    array[0, 0, 0] = array.max()
    plain = segmenter()
    clean = segmenter(postprocessing=Postprocessing(largest_component=(1,)))
    clean = Segmenter.load(clean.save(tmp_path / "clean"))
    before, after = (np.asarray(one((array, volume[1])).dataobj) for one in (plain, clean))
    assert before[0, 0, 0] == 1 and after[0, 0, 0] == 0
    before[0, 0, 0] = 0
    np.testing.assert_array_equal(before, after)
    assert clean.digest != plain.digest


def test_the_slices_of_the_clean_up_are_those_of_ras_however_the_scan_lies():
    kept = np.zeros((12, 12, 12), np.float32)
    kept[2:6, :, 2:6] = 80
    stray = kept.copy()
    stray[8:11, 4, 8:11] = 80  # in one coronal slice, beside the middle slice's largest region
    affine = np.array([[0.0, 0, -1, 5], [-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 0, 1]])

    def turned(array):  # x y z -> -y z -x
        return np.ascontiguousarray(np.transpose(array, (1, 2, 0))[::-1, :, ::-1])

    clean = segmenter(postprocessing=Postprocessing(stray_regions=True, slice_axis=1, min_area_mm2=1.0))
    np.testing.assert_array_equal(np.asarray(clean((turned(stray), affine)).dataobj), turned(kept) > 0)


@pytest.mark.parametrize("axis", [0, 2])
def test_the_crf_sees_every_slice_with_its_image_however_the_slabs_lie(axis, tmp_path):
    volume = random_scan((16, 16, 16))
    patch = tuple(1 if a == axis else 8 for a in range(3))
    image = keras.Input((8, 8, 1))
    conv = keras.layers.Conv2D(2, 1, activation="softmax")
    made = {"model": keras.Model(image, conv(image)), "sampling": Sampling(patch)}
    conv.set_weights([np.array([-2.0, 2.0]).reshape(1, 1, 1, 2), np.array([1.0, -1.0])])
    plain, refined = segmenter(**made), segmenter(**made, crf=True)
    refined = Segmenter.load(refined.save(tmp_path / "crf"))
    image, _ = plain.preprocessing.image((volume[0], np.eye(4)))
    expected = dense_crf_volume(plain.probabilities((volume[0], np.eye(4))), image, slice_axis=axis)
    np.testing.assert_allclose(refined.probabilities((volume[0], np.eye(4))), expected, atol=1e-5)


def test_a_label_map_given_as_a_scan_is_asked_about(caplog):
    image, affine = scan((40, 40, 20))
    segmenter().predict((np.round(image / 30), affine))
    assert "is it a label map?" in caplog.text
    caplog.clear()
    segmenter().predict((image + np.random.default_rng(0).random(image.shape).astype(np.float32), affine))
    assert "label map" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ("a", "a")}, "different"),
        ({"class_names": ("a", "")}, "none is empty"),
        ({"sampling": Sampling((4, 8, 8))}, r"network for \(8, 8, 8, 1\), patches of \(4, 8, 8, 1\)"),
        ({"sampling": Sampling((8, 1, 8))}, "input is a patch of the sampling"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, words):
    image = keras.Input((8, 8, 8, 1))
    parts = {
        "model": keras.Model(image, keras.layers.Conv3D(2, 1, activation="softmax")(image)),
        "preprocessing": Preprocessing(normalization="min_max"),
        "sampling": Sampling((8, 8, 8)),
        "class_names": ("a", "b"),
    }
    assert Segmenter(**parts)
    with pytest.raises(InputError, match=words):
        Segmenter(**parts | changes)


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        ((np.zeros((8, 8)), np.eye(4)), r"three axes.*\(8, 8\)"),
        ((np.zeros((8, 8, 8, 2)), np.eye(4)), "three axes"),
        ((np.zeros((8, 8, 8), complex), np.eye(4)), "real numbers.*complex128"),
        (nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), r"np.asarray\(image.dataobj\)"),
        ([1, 2], "list"),
    ],
    ids=["2-D", "4-D", "complex", "nibabel", "list"],
)
def test_what_is_no_scan_is_told(scan, words):
    image = keras.Input((8, 8, 8, 1))
    segmenter = Segmenter(
        model=keras.Model(image, keras.layers.Conv3D(2, 1, activation="softmax")(image)),
        preprocessing=Preprocessing(normalization="min_max"),
        sampling=Sampling((8, 8, 8)),
        class_names=("a", "b"),
    )
    with pytest.raises(InputError, match=words):
        segmenter.predict(scan)


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_a_converted_network_follows_the_weights_of_the_model(engine):
    made = segmenter(engine=engine)
    before = made.predict(scan()).labels
    np.testing.assert_array_equal(before, segmenter().predict(scan()).labels)
    assert 0 < before.sum() < before.size
    logits = made.model.get_layer("head_logits")
    kernel, bias = logits.get_weights()
    logits.set_weights([-kernel, -bias])  # bright and background change places
    np.testing.assert_array_equal(made.predict(scan()).labels, 1 - before)


def test_a_whole_volume_is_converted_at_its_size():
    whole = Inference(extent="whole")
    ours = segmenter(engine="onnx").predict(scan(), inference=whole)
    np.testing.assert_array_equal(ours.labels, segmenter().predict(scan(), inference=whole).labels)


def test_random_passes_are_refused_by_a_converted_network():
    with pytest.raises(InputError, match="Monte-Carlo dropout.*engine onnx.*engine='tensorflow'"):
        segmenter(engine="onnx").check(Inference(dropout_samples=3))


def test_an_engine_that_cannot_be_is_refused_when_the_segmenter_is_made():
    with pytest.raises(InputError, match="engine is one of"):
        segmenter(engine="theano")
    with pytest.raises(InputError, match="offered by the engine openvino alone"):
        segmenter(precision="bfloat16")
