"""Trained weights by name: what is stored loads again, and nothing strange gets in."""

from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest

from mrseg import store
from mrseg._checks import InputError
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.models.builders import BUILDERS
from mrseg.models.islam2025 import unet
from mrseg.segmenter import Segmenter


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    monkeypatch.setenv(store.VARIABLE, str(folder))
    return folder


@pytest.fixture
def segmenter():
    keras.utils.set_random_seed(0)
    return Segmenter(
        unet((16, 16, 1), num_classes=2, filters=2),
        Preprocessing(normalization="min_max"),
        Sampling((16, 16, 1)),
        ("air", "head"),
        sequence="T1w",
        provenance={"data": "none", "licence": "Apache-2.0"},
    )


def scan():
    return np.random.default_rng(0).random((16, 16, 3)).astype("float32"), np.eye(4)


def outputs(one):
    return one.probabilities(scan())


def test_an_imported_segmenter_loads_by_name_and_segments_the_same(segmenter, tmp_path, place):
    folder = segmenter.save(tmp_path / "t1")
    stored = store.import_weights(folder, "my_t1")
    assert stored.folder == place / "my_t1" and not stored.built_in
    assert "my_t1" in {s.name for s in store.list_weights()}
    np.testing.assert_array_equal(outputs(Segmenter.load("my_t1")), outputs(segmenter))


@pytest.mark.parametrize("weights_dtype", ["float32", "float16"])
def test_an_exported_archive_imports_elsewhere(segmenter, tmp_path, weights_dtype):
    segmenter.save(tmp_path / "t1", weights_dtype=weights_dtype)
    archive = store.export_weights(tmp_path / "t1", tmp_path / "t1.zip")
    assert store.import_weights(archive).name == "t1"
    np.testing.assert_array_equal(outputs(Segmenter.load("t1")), outputs(Segmenter.load(tmp_path / "t1")))


def test_weights_leave_as_a_zip_file_alone(segmenter, tmp_path):
    segmenter.save(tmp_path / "t1")
    with pytest.raises(InputError, match=r"Write .*t1\.zip"):
        store.export_weights(tmp_path / "t1", tmp_path / "t1.tar")


def test_float16_keeps_11_binary_digits_of_every_weight_and_half_the_file(segmenter, tmp_path):
    whole = segmenter.save(tmp_path / "whole")
    half = segmenter.save(tmp_path / "half", weights_dtype="float16")
    for w, v in zip(segmenter.model.weights, Segmenter.load(half).model.weights, strict=True):
        assert w.path == v.path and v.dtype == "float32"
        np.testing.assert_allclose(v, w, rtol=2**-11, atol=2**-25)
    size = {f.name: f.stat().st_size for f in (*whole.iterdir(), *half.iterdir())}
    assert size["weights.npz"] < size["network.keras"]
    np.testing.assert_allclose(outputs(Segmenter.load(half)), outputs(segmenter), atol=0.01)


def test_a_weight_that_float16_cannot_hold_is_named(segmenter, tmp_path):
    segmenter.model.get_layer("head_logits").bias.assign([1e6, 0.0])
    with pytest.raises(InputError, match="65504.*head_logits/bias"):
        segmenter.save(tmp_path / "half", weights_dtype="float16")
    assert not (tmp_path / "half").exists()


def test_an_unknown_name_lists_the_names_and_a_path_is_a_path(segmenter, tmp_path):
    store.import_weights(segmenter.save(tmp_path / "t1"))
    with pytest.raises(FileNotFoundError, match="t1.*Received: 't2'"):
        Segmenter.load("t2")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Segmenter.load(tmp_path / "nowhere")


def test_a_folder_that_is_there_goes_before_a_name(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter.save(tmp_path / "t1")
    store.import_weights(tmp_path / "t1")
    (tmp_path / "t1" / store.CARD).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="card that mrseg wrote"):
        Segmenter.load("t1")


def test_stored_weights_are_not_replaced(segmenter, tmp_path):
    folder = segmenter.save(tmp_path / "t1")
    store.import_weights(folder)
    with pytest.raises(InputError, match="not replaced.*t1"):
        store.import_weights(folder)


def altered(folder, change):
    path = folder / store.CARD
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.pop("sampling"), "without sampling"),
        (lambda card: card.update(weights_dtype="float8"), "weights_dtype"),
        (lambda card: card.update(network_sha256="0"), "another checksum"),
    ],
)
def test_a_damaged_card_is_refused_and_nothing_is_stored(segmenter, tmp_path, place, change, words):
    folder = altered(segmenter.save(tmp_path / "t1"), change)
    with pytest.raises(InputError, match=words):
        store.import_weights(folder)
    assert not (place / "t1").exists()


def archive(path, members):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name",
    ["../segmenter.json", "/etc/segmenter.json", "a/../../segmenter.json", "a/b/segmenter.json",
     "run.py", "weights/../../x.npz", "..\\segmenter.json"],
)  # fmt: skip
def test_an_archive_that_leads_out_or_holds_other_files_is_refused(tmp_path, place, name):
    with pytest.raises(InputError, match="holds network.json.*and nothing else"):
        store.import_weights(archive(tmp_path / "evil.zip", {name: "{}"}))
    assert not place.exists() or not any(place.iterdir())
    assert not (tmp_path / "segmenter.json").exists()


def test_a_link_in_an_archive_is_refused(tmp_path):
    member = zipfile.ZipInfo("segmenter.json")
    member.external_attr = 0o120777 << 16
    with pytest.raises(InputError, match="nothing else"):
        store.import_weights(archive(tmp_path / "link.zip", {member: "/etc/passwd"}))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LARGEST_BYTES", 10)
    with pytest.raises(InputError, match="at most 4 GiB"):
        store.import_weights(archive(tmp_path / "bomb.zip", {"segmenter.json": "0" * 100}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"no archive"])
def test_a_file_that_is_no_archive_is_told_in_one_line(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match="x.zip"):
        store.import_weights(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["../up", "a b", "", ".hidden"])
def test_a_name_that_is_no_name_is_refused(segmenter, tmp_path, name):
    folder = segmenter.save(tmp_path / "x y" if name == "" else tmp_path / "t1")
    with pytest.raises(InputError, match="A name has letters"):
        store.import_weights(folder, name)


def test_code_inside_a_network_file_is_not_run(segmenter, tmp_path):
    image = keras.Input((16, 16, 1))
    code = keras.layers.Lambda(lambda x: x, output_shape=(16, 16, 2), name="head_logits")
    segmenter.model = keras.Model(image, code(keras.layers.Conv2D(2, 1)(image)))
    folder = segmenter.save(tmp_path / "evil")
    with pytest.raises(InputError, match="(?i)no code of its own.*(unsafe|safe_mode)"):
        Segmenter.load(folder)
    half = segmenter.save(tmp_path / "half", weights_dtype="float16")
    with pytest.raises(InputError, match="(?i)no code of its own.*(unsafe|safe_mode)"):
        Segmenter.load(half)


@pytest.mark.parametrize("builder", BUILDERS)
def test_weights_that_come_with_mrseg_are_small_carry_a_card_and_segment(builder):
    stored = {stored.name: stored for stored in store.list_weights()}[f"phantom_t1_{builder}"]
    assert stored.built_in and stored.builder == builder
    assert min(stored.card["provenance"]["figures"]["dice_on_three_synthetic_heads"].values()) > 0.7
    assert sum(file.stat().st_size for file in stored.folder.iterdir()) <= 1_000_000
    assert {"data", "licence", "recipe", "versions", "figures"} <= set(stored.card["provenance"])
    segmenter = Segmenter.load(stored.name)
    assert np.isfinite(segmenter.model(np.zeros((1, *segmenter.sampling.input_shape), "float32"))).all()


def signed_anew(folder):
    """The card with the checksum of the network as it lies there now."""
    return altered(
        folder,
        lambda card: card.update(network_sha256=store.checksum(store.network_files(folder, card))),
    )


def test_of_two_imports_under_one_name_one_is_refused(segmenter, tmp_path):
    folder = segmenter.save(tmp_path / "t1")

    def another_comes_first(copied):
        store.import_weights(folder, "t1")

    with pytest.raises(InputError, match="not replaced"):
        store.import_weights(folder, "t1", check=another_comes_first)
    assert Segmenter.load("t1").class_names == ("air", "head")


def test_a_network_that_does_not_load_is_not_stored(segmenter, tmp_path, place):
    folder = segmenter.save(tmp_path / "half", weights_dtype="float16")
    (folder / "weights.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="layers of Keras and mrseg"):
        store.import_weights(signed_anew(folder), "half", check=Segmenter.load)
    assert not list(place.iterdir())


def test_a_card_with_a_provenance_of_its_own_is_listed(segmenter, tmp_path):
    segmenter.provenance = {"recipe": "my own"}
    assert store.import_weights(segmenter.save(tmp_path / "mine")).builder == ""


def test_a_tensor_that_is_missing_in_the_weights_is_named(segmenter, tmp_path):
    folder = segmenter.save(tmp_path / "half", weights_dtype="float16")
    with np.load(folder / "weights.npz") as halves:
        kept = {name: halves[name] for name in halves.files if name != "encoder1_conv1/kernel"}
    np.savez_compressed(folder / "weights.npz", **kept)
    with pytest.raises(InputError, match="same tensors.*encoder1_conv1/kernel"):
        Segmenter.load(signed_anew(folder))


def test_a_name_or_a_folder_that_is_nearly_right_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Did you mean 'phantom_t1_unet'"):
        Segmenter.load("phantom_t1_unett")
    Segmenter.load("phantom_t1_unet").save(tmp_path / "t2/segmenter")
    with pytest.raises(FileNotFoundError, match="Did you mean .*t2/segmenter"):
        Segmenter.load(tmp_path / "t2")
