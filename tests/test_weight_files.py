"""Weights from strangers: a file that leads elsewhere or claims more than it holds is refused unread."""

from __future__ import annotations

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from mrseg import weight_files
from mrseg._checks import InputError
from mrseg._files import checksum
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.models import files
from mrseg.models.files import load_network
from mrseg.models.islam2025 import unet
from mrseg.segmenter import Segmenter
from mrseg.transfer.weights import load_weights
from mrseg.weight_files import check_weight_file


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return unet((16, 16, 1), num_classes=2, filters=2)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    return folder


@pytest.fixture
def secret(tmp_path):
    """A file of the reader's disk that nobody may carry away as weights."""
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["private"] = np.arange(18.0).reshape(3, 3, 1, 2)
    (tmp_path / "secret.bin").write_bytes(np.arange(18, dtype="f4").tobytes())
    return tmp_path


def kernel_of(file):
    """Place of the first kernel, wherever this version of Keras puts it."""
    found = []
    file.visititems(
        lambda name, item: found.append(name) if getattr(item, "shape", None) == (3, 3, 1, 2) else None
    )
    return found[0]


def by_external_link(file, folder):
    place = kernel_of(file)
    del file[place]
    file[place] = h5py.ExternalLink(str(folder / "secret.h5"), "/private")


def by_soft_link(file, folder):
    place = kernel_of(file)
    file["elsewhere"] = file[place][...]
    del file[place]
    file[place] = h5py.SoftLink("/elsewhere")


def by_external_storage(file, folder):
    place = kernel_of(file)
    del file[place]
    raw = [(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(place, shape=(3, 3, 1, 2), dtype="f4", external=raw)


def by_virtual_data_set(file, folder):
    place = kernel_of(file)
    del file[place]
    layout = h5py.VirtualLayout((3, 3, 1, 2), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "private", (3, 3, 1, 2))
    file.create_virtual_dataset(place, layout)


def by_a_claim(file, folder):
    """Half a terabyte in a file of kilobytes."""
    place = kernel_of(file)
    del file[place]
    file.create_dataset(place, shape=(2**20, 2**17), dtype="f4", chunks=(1024, 1024))


TRICKS = (by_external_link, by_soft_link, by_external_storage, by_virtual_data_set, by_a_claim)


def changed(saved, folder, name, trick):
    """A copy of the saved file with its HDF5 part changed."""
    target = folder / name
    if name.endswith(".h5"):
        target.write_bytes((saved / name).read_bytes())
        with h5py.File(target, "r+") as file:
            trick(file, folder)
        return target
    with zipfile.ZipFile(saved / name) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member.endswith(".h5"):
                inner = io.BytesIO(content)
                with h5py.File(inner, "r+") as file:
                    trick(file, folder)
                content = inner.getvalue()
            new.writestr(member, content)
    return target


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_tensors_that_lie_elsewhere_are_refused_and_the_model_stays(model, saved, secret, name, trick):
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(InputError, match="A file of weights is whole") as caught:
        load_weights(model, changed(saved, secret, name, trick))
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_segmenter_with_such_a_network_is_refused_though_its_card_agrees(model, saved, secret):
    one = Segmenter(model, Preprocessing(normalization="min_max"), Sampling((16, 16, 1)), ("air", "head"))
    folder = one.save(secret / "segmenter")
    network = changed(saved, secret, "model.keras", by_external_link)
    (folder / "network.keras").write_bytes(network.read_bytes())
    card = (folder / "segmenter.json").read_text(encoding="utf-8")
    old = json.loads(card)["network_sha256"]
    new = card.replace(old, checksum([folder / "network.keras"]))
    (folder / "segmenter.json").write_text(new, encoding="utf-8")
    with pytest.raises(InputError, match="A file of weights is whole"):
        Segmenter.load(folder)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_what_keras_saved_passes(saved, name):
    check_weight_file(saved / name)


def test_what_is_neither_archive_nor_hdf5_is_left_to_its_reader(tmp_path):
    (tmp_path / "x.keras").write_bytes(b"nothing")
    check_weight_file(tmp_path / "x.keras")


@pytest.mark.parametrize("member", ["../config.json", "/etc/config.json", "a\\..\\..\\config.json"])
def test_an_archive_that_leads_out_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr(member, "{}")
    with pytest.raises(InputError, match="its parts lie inside of it"):
        check_weight_file(tmp_path / "x.keras")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    """A megabyte of zeros deflates to about a kilobyte: more than a hundredfold."""
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(1_000_000))
    with pytest.raises(InputError, match="it holds what it unpacks to"):
        check_weight_file(tmp_path / "x.keras")


def test_groups_that_hold_each_other_end_the_walk(tmp_path):
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        group = file.create_group("layers")
        group["again"] = file["/"]
        group["vars"] = np.zeros(3)
    check_weight_file(tmp_path / "x.weights.h5")


def test_a_part_that_is_no_hdf5_is_told_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"no tensors")
    with pytest.raises(InputError, match="can be read") as caught:
        check_weight_file(tmp_path / "x.keras")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "understood"), [(7, True), (8, False)])
def test_what_a_newer_keras_adds_is_left_out_where_it_is_the_default(
    value, understood, saved, model, tmp_path, monkeypatch
):
    monkeypatch.setitem(files.NEWER_ARGUMENTS, "from_the_future", 7)
    future = tmp_path / "future.keras"
    with zipfile.ZipFile(saved / "model.keras") as old, zipfile.ZipFile(future, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                network = json.loads(content)
                network["config"]["layers"][1]["config"]["from_the_future"] = value
                content = json.dumps(network).encode()
            new.writestr(name, content)
    if understood:
        for read, written in zip(load_network(future).weights, model.weights, strict=True):
            np.testing.assert_array_equal(read, written)
    else:
        with pytest.raises((TypeError, ValueError), match="from_the_future"):
            load_network(future)
