from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.augmentation import Augmentation
from mrseg.data.case_cache import OPEN_FILES
from mrseg.data.cases import Case
from mrseg.data.examples import (
    Contrasts,
    examples_mb,
    load_example,
    load_examples,
    load_image,
    load_images,
    random_contrast_examples,
)
from mrseg.data.io import write_labels, write_volume
from mrseg.data.patches import Sampling, channel_means
from mrseg.data.pipeline import build_dataset, grid_order
from mrseg.data.preprocessing import Preprocessing

NATIVE = Preprocessing(normalization="min_max")


def on_disk(folder: Path, image_affine, labels_affine, top=2) -> Case:
    image = np.random.default_rng(0).random((6, 6, 6)).astype(np.float32)
    write_volume(folder / "i.nii.gz", image, image_affine)
    write_labels(folder / "l.nii.gz", np.full((6, 6, 6), top, np.uint8), labels_affine, ["a"] * 9, {})
    return Case("s1", {"T1w": folder / "i.nii.gz"}, None, {"T1w": folder / "l.nii.gz"}, "train")


def test_image_and_labels_on_two_grids_are_refused_with_the_distance_in_mm(tmp_path):
    moved = np.eye(4)
    moved[0, 3] = 5.0
    case = on_disk(tmp_path, np.eye(4), moved)
    with pytest.raises(InputError, match=r"i\.nii\.gz.*l\.nii\.gz.*5 mm"):
        load_example(case, "T1w", NATIVE, 3)


@pytest.mark.parametrize("grid", ["native", "foreground"])
def test_images_of_random_contrast_lie_on_the_scans_own_grid_with_its_labels(tmp_path, grid):
    image = np.zeros((14, 12, 10), np.float32)
    image[3:11, 2:9, 4:8] = np.random.default_rng(0).uniform(40, 60, (8, 7, 4))
    labels = (image > 0).astype(np.uint8)
    write_volume(tmp_path / "i.nii.gz", image, np.eye(4))
    write_labels(tmp_path / "l.nii.gz", labels, np.eye(4), ("air", "soft"), {})
    case = Case("s1", {"T1w": tmp_path / "i.nii.gz"}, None, {"T1w": tmp_path / "l.nii.gz"})
    preprocessing = Preprocessing(grid=grid, normalization="min_max")
    real, truth = load_example(case, "T1w", preprocessing, 2)
    made = random_contrast_examples(case, "T1w", preprocessing, 2, Contrasts(2, seed=4))
    for one, same in made:
        assert one.shape == real.shape and one.dtype == np.float32
        np.testing.assert_array_equal(same, truth)
    assert not np.array_equal(made[0][0], made[1][0])
    (first,) = random_contrast_examples(case, "T1w", preprocessing, 2, Contrasts(1, seed=4))
    np.testing.assert_array_equal(first[0], made[0][0])  # image 0 does not depend on how many there are
    unlabelled, unknown = load_image(case, "T1w", preprocessing)
    np.testing.assert_array_equal(unlabelled, real)
    assert unknown.shape == real.shape and (unknown == 255).all()


def test_labels_outside_the_table_are_refused_with_the_file(tmp_path):
    case = on_disk(tmp_path, np.eye(4), np.eye(4), top=7)
    with pytest.raises(InputError, match=r"l\.nii\.gz.*7"):
        load_example(case, "T1w", NATIVE, 3)


def test_a_sequence_that_a_subject_lacks_is_named(tmp_path):
    case = on_disk(tmp_path, np.eye(4), np.eye(4))
    with pytest.raises(InputError, match=r"s1 needs a T2w image.*T1w"):
        load_example(case, "T2w", NATIVE, 3)


def cohort(folder: Path, count: int, shape=(14, 12, 10)) -> list[Case]:
    """Bright boxes in the dark, scanned from right to left so that arrays are turned when read."""
    cases = []
    affine = np.array([[0.0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.uniform(0, 10, shape).astype(np.float32)
        image[3:-3, 2:-3, 3:-2] += 50
        files = folder / f"{number}.nii", folder / f"{number}_dseg.nii"
        write_volume(files[0], image, affine)
        write_labels(files[1], (image > 40).astype(np.uint8), affine, ("air", "soft"), {})
        cases.append(Case(f"s{number}", {"T1w": files[0]}, None, {"T1w": files[1]}, "train"))
    return cases


VIEWS = {
    "patches": Sampling((6, 4, 5), 0.5, 3),
    "grid": Sampling((6, 4, 5), 0.5),
    "slices": Sampling((8, 1, 8), 0.0),
    "neighbours": Sampling((8, 8, 1), 0.0, neighbours=1),
}


@pytest.mark.parametrize("kind", ["scans", "contrasts", "images"])
def test_the_cache_gives_every_example_to_the_bit(tmp_path, kind):
    cases, how = cohort(tmp_path, 3), Preprocessing()

    def load(cache):
        if kind == "images":
            return load_images(cases, "T1w", how, cache=cache)
        drawn = Contrasts(2, (0,), 3) if kind == "contrasts" else Contrasts()
        return load_examples(cases, "T1w", how, 2, contrasts=drawn, cache=cache)

    plain, cached, again = load(None), load(tmp_path / "cache"), load(tmp_path / "cache")
    assert len(plain) == len(cached) == len(again) == (6 if kind == "contrasts" else 3)
    for kept in (cached, again):
        for one, other in zip(kept, plain, strict=True):
            for a, b in zip(one, other, strict=True):
                assert not isinstance(a, np.ndarray) and a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    view = VIEWS["neighbours"]
    assert channel_means([x for x, _ in cached], view) == channel_means([x for x, _ in plain], view)


@pytest.mark.parametrize("view", VIEWS)
def test_batches_from_the_cache_are_those_from_memory_to_the_bit(tmp_path, view):
    cases, how, sampling = cohort(tmp_path, 3), Preprocessing(normalization="min_max"), VIEWS[view]
    changes = Augmentation(flip_axes=(0,), intensity_scale=0.1)
    epochs = []
    for cache in (None, tmp_path / "cache"):
        examples = load_examples(cases, "T1w", how, 2, cache=cache)
        batches = build_dataset(examples, sampling, batch_size=4, augmentation=changes, seed=2)
        epochs.append(
            [[x.tobytes() for x in batch] for _ in range(2) for batch in batches.as_numpy_iterator()]
        )
        assert view == "patches" or len(grid_order(examples, sampling)(0)) > 0
    assert epochs[0] == epochs[1] and len(epochs[0]) > 2


def test_one_folder_serves_images_of_both_kinds_and_other_seeds_make_others(tmp_path):
    cases, how = cohort(tmp_path, 1), Preprocessing(normalization="min_max")
    drawn = [Contrasts(), Contrasts(1), Contrasts(1, seed=1), Contrasts(1, (1,)), Contrasts(2)]
    images = [
        np.asarray(load_examples(cases, "T1w", how, 2, contrasts=c, cache=tmp_path / "cache")[-1][0])
        for c in drawn
    ]
    assert len({image.tobytes() for image in images}) == 5
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 5  # the first of two is that of one


def test_the_size_of_a_cohort_is_read_off_its_headers(tmp_path):
    cases = cohort(tmp_path, 3)
    voxels = 14 * 12 * 10
    assert examples_mb(cases, "T1w", Preprocessing()) == pytest.approx(3 * 5 * voxels / 1e6)
    half = Preprocessing(grid="spacing", spacing_mm=(2.0, 2.0, 2.0))
    assert examples_mb(cases, "T1w", half) == pytest.approx(3 * 5 * 7 * 6 * 5 / 1e6)
    assert examples_mb(40 * cases, "T1w", Preprocessing()) == pytest.approx(120 * 5 * voxels / 1e6)
    assert examples_mb(cases, "T2w", Preprocessing()) == 0


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from mrseg.data import case_cache
from mrseg.data.cases import Case
from mrseg.data.examples import load_examples
from mrseg.data.io import write_labels, write_volume
from mrseg.data.patches import cut, cut_input, Sampling
from mrseg.data.preprocessing import Preprocessing

folder, count, size, cache = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
shape, sampling, rng = (size,) * 3, Sampling((size // 2,) * 3), np.random.default_rng(0)
volume, labels = rng.random(shape, np.float32), rng.integers(0, 2, shape, np.uint8)
cases = []
for number in range(count):
    files = folder / f"{number}.nii", folder / f"{number}_dseg.nii"
    if not files[1].exists():
        volume[0, 0, 0] = number
        write_volume(files[0], volume, np.eye(4))
        write_labels(files[1], labels, np.eye(4), "ab", {})
    cases.append(Case(str(number), {"T1w": files[0]}, None, {"T1w": files[1]}))


def peak_mb():
    # Not ru_maxrss: it begins with what the process had that started this one.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def use(cases):
    examples = load_examples(
        cases, "T1w", Preprocessing(normalization="min_max"), 2, cache=folder / "cache" if cache else None
    )
    for number in rng.permutation(np.repeat(np.arange(len(examples)), 2)):
        image, truth = examples[number]
        start = rng.integers(0, size // 2, 3)
        cut_input(image, start, sampling).sum() + cut(truth, start, sampling.patch_shape).sum()


use(cases[:2])
before = peak_mb()
use(cases)
print(peak_mb() - before)
"""


def growth_mb(folder: Path, count: int, size: int, cache: bool) -> float:
    """How far the peak of memory rises from 2 cases to all, in MB (2^20 bytes)."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", MEMORY, str(folder), str(count), str(size), "yes" * cache]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


#: About 1 MB for each file that is held open, which is HDF5's own, and one case that is being made.
BOUND_MB = 1.5 * OPEN_FILES


def test_memory_does_not_grow_with_the_cohort(tmp_path):
    in_memory_mb = 70 * 5 * 64**3 / 2**20  # 88
    assert growth_mb(tmp_path / "scans", 70, 64, cache=True) < BOUND_MB  # 48
    assert growth_mb(tmp_path / "scans", 70, 64, cache=False) > 0.8 * in_memory_mb  # 70


@pytest.mark.slow
def test_memory_stays_bounded_for_a_large_cohort(tmp_path):
    grown = {cache: growth_mb(tmp_path / "scans", 240, 96, cache) for cache in (True, False)}
    print(f"peak memory of 240 cases of 96^3 above that of 2: {grown}")
    assert grown[True] < BOUND_MB
    assert grown[False] > 0.8 * 240 * 5 * 96**3 / 2**20
