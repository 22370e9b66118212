"""What a recipe trains on: the same from memory and from a cache, chosen by memory unless the user did."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.cases import read_cases, write_cases
from mrseg.recipes import load_recipe, reading, runner
from mrseg.recipes.runner import train_recipe
from mrseg.segmenter import Segmenter

TINY = [
    "network.arguments.filters=2", "training.epochs=1", "training.batch_size=2",
    "sampling={patch_shape: [16,16,16], overlap: 0.0, patches_per_volume: 2}",
    "preprocessing={grid: native, normalization: lcn}",
]  # fmt: skip


SLICES = [option.replace("[16,16,16]", "[16,16,1]") for option in TINY]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    manifest = phantom.write_cohort(
        tmp_path_factory.mktemp("raw"), subjects={"train": 3}, sequences=("T1w",), shape=(20, 18, 17),
        registered=True,
    )  # fmt: skip
    first, *rest = read_cases(manifest)
    return [dataclasses.replace(first, split="val"), *rest]


@pytest.fixture
def seen(monkeypatch):
    """Bytes of every batch of training and validation, in place of the training."""
    batches = []

    def look(model, train, validation, settings, **options):
        batches.append(
            [[np.asarray(t).tobytes() for t in batch] for data in (train, validation) for batch in data]
        )
        return []

    monkeypatch.setattr(runner, "fit", look)
    return batches


@pytest.mark.parametrize("option", ["subtract_mean=true", "random_contrasts=2"])
def test_a_recipe_sees_the_same_batches_and_means_from_memory_and_from_a_cache(tmp_path, cases, seen, option):
    recipe = load_recipe("phantom_t1", [*TINY, option])
    means = [
        train_recipe(recipe, cases, tmp_path / name, cache=cache, progress=False).sampling.channel_mean
        for name, cache in (("memory", None), ("disk", tmp_path / "cache"), ("again", tmp_path / "cache"))
    ]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) > 1
    assert means[0] == means[1] and bool(means[0]) == (option == "subtract_mean=true")
    assert len(list((tmp_path / "cache").glob("*.h5"))) == (3 if means[0] else 5)
    assert not (tmp_path / "memory/case_cache").exists()


def test_a_cohort_too_large_for_memory_lies_on_disk_until_its_training_has_ended(
    tmp_path, cases, seen, monkeypatch, caplog
):
    recipe = load_recipe("phantom_t1", TINY)
    train_recipe(recipe, cases, tmp_path / "plain", progress=False)
    needed_mb = 3 * 5 * 20 * 18 * 17 / 1e6
    monkeypatch.setattr(reading, "memory_mb", lambda: 1.99 * needed_mb)
    there = []
    fit = runner.fit
    monkeypatch.setattr(
        runner,
        "fit",
        lambda *a, **o: there.append([*(tmp_path / "run/case_cache").glob("*.h5")]) or fit(*a, **o),
    )
    with caplog.at_level("WARNING"):
        train_recipe(recipe, cases, tmp_path / "run", progress=False)
    assert "more than 50 % of the memory" in caplog.text and "--cache FOLDER" in caplog.text
    assert len(there[0]) == 3 and not (tmp_path / "run/case_cache").exists()
    assert seen[0] == seen[1]
    monkeypatch.setattr(reading, "memory_mb", lambda: 2.01 * needed_mb)
    caplog.clear()
    train_recipe(recipe, cases, tmp_path / "enough", progress=False)
    assert there[1] == [] and "of the memory" not in caplog.text


def test_random_contrasts_count_for_the_memory_and_a_named_cache_is_taken_whatever_the_size(
    tmp_path, cases, monkeypatch
):
    recipe = load_recipe("phantom_t1", [*TINY, "random_contrasts=4"])
    train, validation = cases[1:], cases[:1]
    one_mb = 5 * 20 * 18 * 17 / 1e6
    for factor, place in ((2 * 9.1, None), (2 * 8.9, tmp_path / "case_cache")):
        monkeypatch.setattr(reading, "memory_mb", lambda f=factor: f * one_mb)
        assert reading.place_of_examples(recipe, train, validation, None, tmp_path) == place
    assert reading.place_of_examples(recipe, train, validation, tmp_path / "c", tmp_path) == tmp_path / "c"


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, cases):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="must be writable.*file"):
        train_recipe(
            load_recipe("phantom_t1", TINY),
            cases,
            tmp_path / "run",
            cache=tmp_path / "file/c",
            progress=False,
        )


@pytest.mark.slow
def test_networks_trained_on_the_same_patches_from_disk_are_the_same(tmp_path, cases):
    recipe = load_recipe("phantom_t1", TINY)
    one, other = (
        train_recipe(recipe, cases, tmp_path / name, cache=cache, progress=False).model.get_weights()
        for name, cache in (("memory", None), ("disk", tmp_path / "cache"))
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # threads add up in any order


@pytest.mark.slow
def test_a_recipe_trains_on_jax_from_the_same_cache(tmp_path, cases):
    pytest.importorskip("jax")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import keras\n"
        "from mrseg.data.cases import read_cases\n"
        "from mrseg.recipes import load_recipe\n"
        "from mrseg.recipes.runner import train_recipe\n"
        "assert keras.backend.backend() == 'jax'\n"
        "folder, manifest, *options = sys.argv[1:]\n"
        "recipe = load_recipe('phantom_t1_slices', options)\n"
        "train_recipe(recipe, read_cases(manifest), Path(folder) / 'run', cache=Path(folder) / 'cache',\n"
        "             progress=False)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    write_cases(cases, tmp_path / "cohort.tsv")
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "cohort.tsv"), *SLICES]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.h5")}
    recipe = load_recipe("phantom_t1_slices", SLICES)
    reading.training_examples(recipe, cases[1:], cache=tmp_path / "cache", progress=False)
    assert len(files) == 3 and files == {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").glob("*.h5")}
    segmenter = Segmenter.load(tmp_path / "run/segmenter")  # here, on TensorFlow
    assert segmenter.provenance["versions"]["backend"] == "jax"
    assert all(np.isfinite(w).all() for w in segmenter.model.get_weights())


def test_the_scans_that_a_patch_does_not_fit_into_are_named(tmp_path, cases):
    smaller = phantom.write_cohort(
        tmp_path / "raw", subjects={"train": 1}, shape=(20, 12, 17), registered=True, prefix="small"
    )
    recipe = load_recipe("phantom_t1", [*TINY, "random_contrasts=2"])
    with pytest.raises(InputError, match=r"smaller are small001 of 3 scans. Every scan has \(20, 12, 17\)"):
        train_recipe(recipe, [*cases, *read_cases(smaller)], tmp_path / "run", progress=False)
