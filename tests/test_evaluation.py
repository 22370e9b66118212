from __future__ import annotations

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.cases import Case
from mrseg.data.io import write_labels, write_volume
from mrseg.evaluation import evaluate, score, score_slices
from mrseg.maps import Maps
from mrseg.segmenter import subject_digest

NAMES = ("background", "bright")


def value(rows, name, metric, **where):
    found = [r for r in rows if r["class"] == name and r["metric"] == metric and where.items() <= r.items()]
    assert len(found) == 1
    return found[0]["value"]


def test_overlap_of_a_row_of_voxels_by_hand():
    """truth 1 1 1 0 0, prediction 1 1 0 0 1: two in both, three true, three predicted."""
    true = np.array([1, 1, 1, 0, 0]).reshape(5, 1, 1)
    pred = np.array([1, 1, 0, 0, 1]).reshape(5, 1, 1)
    rows = score(true, pred, NAMES)
    assert value(rows, "bright", "voxels_both") == 2
    assert value(rows, "bright", "precision") == pytest.approx(2 / 3)
    assert value(rows, "bright", "dice") == pytest.approx(2 / 3)
    assert value(rows, "bright", "jaccard") == pytest.approx(1 / 2)
    # One of two outside is found outside, three of five voxels are right, and the volumes are equal.
    assert value(rows, "bright", "specificity") == 1 / 2
    assert value(rows, "bright", "accuracy") == 3 / 5
    assert value(rows, "bright", "avd_percent") == 0
    assert value(rows, "bright", "voxels_all") == 5
    assert value(rows, "bright", "voxels_as_background") == value(rows, "background", "voxels_as_bright") == 1


def test_ignored_voxels_count_nowhere():
    true = np.array([1, 1, 255, 255]).reshape(4, 1, 1)
    pred = np.array([1, 0, 1, 0]).reshape(4, 1, 1)
    rows = score(true, pred, NAMES, spacing_mm=(1.0, 1.0, 1.0))
    assert value(rows, "bright", "voxels_predicted") == 1
    assert value(rows, "bright", "recall") == 0.5
    assert value(rows, "bright", "mask_hausdorff_voxels") == 1.0


def test_distances_are_in_mm_along_each_axis():
    true, pred = (np.zeros((4, 4, 4), np.uint8) for _ in range(2))
    true[1, 1, 1] = pred[1, 1, 3] = 1
    rows = score(true, pred, NAMES, spacing_mm=(1.0, 1.0, 3.0))
    assert value(rows, "bright", "hausdorff_mm") == pytest.approx(6.0)
    assert value(rows, "bright", "mask_hausdorff_voxels") == pytest.approx(2.0)
    assert value(rows, "bright", "mean_true_to_pred_mm") == value(rows, "bright", "assd_mm") == 6.0
    assert value(rows, "bright", "surface_dice_1mm") == 0.0
    assert not any(r["class"] == "background" and r["metric"].endswith("_mm") for r in rows)


def test_every_slice_is_scored_by_itself_along_the_axis():
    true, pred = (np.zeros((3, 2, 2), np.uint8) for _ in range(2))
    true[0], pred[0, 0] = 1, 1  # two of four: Dice 2 * 2 / 6
    true[1, 0, 0] = 1  # missed: 0
    rows = score_slices(true, pred, NAMES, axis=0)
    assert [r["slice"] for r in rows if r["class"] == "bright" and r["metric"] == "dice"] == [0, 1, 2]
    found = [value(rows, "bright", "dice", slice=number) for number in range(3)]
    assert found[:2] == [pytest.approx(2 / 3), 0.0] and np.isnan(found[2])
    assert value(rows, "background", "dice", slice=2) == 1.0
    assert len(score_slices(true, pred, NAMES, axis=2)) == 2 * 2 * 6  # slices, classes, metrics


def bright_case(folder, subject, split="test"):
    image = np.random.default_rng(len(subject)).random((8, 8, 8)).astype(np.float32)
    write_volume(folder / f"{subject}.nii.gz", image, np.eye(4))
    write_labels(folder / f"{subject}_l.nii.gz", (image > 0.5).astype(np.uint8), np.eye(4), NAMES, {})
    return Case(
        subject, {"T2w": folder / f"{subject}.nii.gz"}, None, {"T2w": folder / f"{subject}_l.nii.gz"}, split
    )


class Fixed:
    """Answers every scan with the same labels."""

    class_names = NAMES
    sequence = "T2w"

    def __init__(self, provenance=None):
        self.provenance = provenance or {}

    def predict(self, scan, *, inference):
        return Maps((scan[0] > 0.5).astype(np.uint8), scan[1])


def test_a_perfect_segmenter_scores_one_for_every_subject_and_hands_out_its_labels(tmp_path):
    cases = [bright_case(tmp_path, "s1"), bright_case(tmp_path, "s22")]
    kept = {}
    rows = evaluate(Fixed(), cases, on_result=lambda case, labels: kept.update({case.subject: labels}))
    assert value(rows, "bright", "dice", subject="s1") == 1.0
    assert value(rows, "bright", "dice", subject="s22") == 1.0
    assert set(kept) == {"s1", "s22"} and kept["s1"].shape == (8, 8, 8)


def test_a_subject_seen_anywhere_in_the_chain_is_refused_unless_asked_for(tmp_path):
    case = bright_case(tmp_path, "s1")
    t1 = {"subject_digests": [subject_digest(case)], "source": None}
    carried = Fixed({"subject_digests": [], "source": t1})
    with pytest.raises(InputError, match="not trained on.*s1"):
        evaluate(carried, [case])
    assert value(evaluate(carried, [case], seen_too=True), "bright", "dice") == 1.0


def test_a_case_without_labels_is_told_before_the_first_prediction(tmp_path):
    good, bad = bright_case(tmp_path, "s1"), Case("s2", {}, None, {}, "test")
    predicted = []
    with pytest.raises(InputError, match="s2 needs a T2w image"):
        evaluate(Fixed(), [good, bad], on_result=lambda case, labels: predicted.append(case))
    assert predicted == []


def test_slices_run_along_the_body_axis_whatever_the_orientation_of_the_file(tmp_path):
    """The third axis of this file runs to the left: axial slices lie along the second, 6 of them."""
    affine = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]], float)
    image = np.random.default_rng(1).random((4, 6, 8)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", image, affine)
    write_labels(tmp_path / "l.nii.gz", (image > 0.5).astype(np.uint8), affine, NAMES, {})
    case = Case("a", {"T2w": tmp_path / "a.nii.gz"}, None, {"T2w": tmp_path / "l.nii.gz"}, "test")
    for plane, slices in (("axial", 6), ("coronal", 4), ("sagittal", 8)):
        rows = evaluate(Fixed(), [case], plane=plane)
        assert {row["slice"] for row in rows if row.get("plane") == plane} == set(range(slices))
    # A voxel is 1 x 1 x 2 mm.
    assert value(rows, "bright", "volume_true_ml") == pytest.approx((image > 0.5).sum() * 0.002)
    with pytest.raises(InputError, match="plane is one of sagittal, coronal, axial"):
        evaluate(Fixed(), [case], plane="oblique")


def test_two_sessions_of_a_subject_are_not_merged_into_one(tmp_path):
    case = bright_case(tmp_path, "s1")
    with pytest.raises(InputError, match="one case per subject. Received: several of s1"):
        evaluate(Fixed(), [case, case])


def test_no_case_is_an_error():
    with pytest.raises(InputError, match="at least one case"):
        evaluate(Fixed(), [])


def test_a_case_without_labels_is_named(tmp_path):
    case = bright_case(tmp_path, "s1")
    unlabelled = Case("s1", case.images, None, {}, "test")
    with pytest.raises(InputError, match="s1 needs a T2w image with labels"):
        evaluate(Fixed(), [unlabelled])


@pytest.mark.parametrize(
    ("true", "pred", "axis", "words"),
    [
        ((4, 4, 4), (4, 4, 3), 2, r"one grid.*\(4, 4, 4\) and \(4, 4, 3\)"),
        ((4, 4), (4, 4), 2, "volumes"),
        ((4, 4, 4), (4, 4, 4), 3, "axis is one of 0, 1, 2"),
    ],
)
def test_slices_of_volumes_that_do_not_agree_are_refused(true, pred, axis, words):
    with pytest.raises(InputError, match=words):
        score_slices(np.zeros(true, np.uint8), np.zeros(pred, np.uint8), ("a", "b"), axis=axis)
