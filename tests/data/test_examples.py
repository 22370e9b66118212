from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.cases import Case
from mrseg.data.examples import Contrasts, load_example, load_image, random_contrast_examples
from mrseg.data.io import write_labels, write_volume
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
