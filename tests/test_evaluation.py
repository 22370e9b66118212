from __future__ import annotations

import math

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.cases import Case
from mrseg.data.io import write_labels, write_volume
from mrseg.evaluation import evaluate, score, summarize
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
    assert not any(r["class"] == "background" and r["metric"].endswith("_mm") for r in rows)


def rows_of(counts):
    """counts: subject -> (true, predicted, both)."""
    rows = []
    for subject, (true, predicted, both) in counts.items():
        for metric, number in (
            ("voxels_true", true),
            ("voxels_predicted", predicted),
            ("voxels_both", both),
            ("dice", 2 * both / (true + predicted)),
        ):
            rows.append({"subject": subject, "class": "bright", "metric": metric, "value": float(number)})
    return rows


def test_pooled_and_mean_over_subjects_are_told_apart():
    """Subject a: dice 2*90/200 = 0.9 of 100 voxels; b: 2*1/20 = 0.1 of 10. Pooled 2*91/220."""
    (dice,) = summarize(rows_of({"a": (100, 100, 90), "b": (10, 10, 1)}))
    assert dice["mean"] == pytest.approx(0.5)
    assert dice["pooled"] == pytest.approx(2 * 91 / 220)
    p = dice["pooled"]
    assert dice["pooled_halfwidth"] == pytest.approx(1.96 * math.sqrt(p * (1 - p) / 110), rel=1e-3)
    assert dice["low"] <= 0.5 <= dice["high"]
    assert dice["subjects"] == 2


def test_one_subject_has_no_interval_over_subjects():
    (dice,) = summarize(rows_of({"a": (100, 100, 90)}))
    assert math.isnan(dice["low"]) and dice["mean"] == pytest.approx(0.9)


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

    def __call__(self, scan):
        import nibabel as nib

        return nib.Nifti1Image((scan[0] > 0.5).astype(np.uint8), scan[1])


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


def test_no_case_is_an_error():
    with pytest.raises(InputError, match="at least one case"):
        evaluate(Fixed(), [])


def test_a_case_without_labels_is_named(tmp_path):
    case = bright_case(tmp_path, "s1")
    unlabelled = Case("s1", case.images, None, {}, "test")
    with pytest.raises(InputError, match="s1 needs a T2w image with labels"):
        evaluate(Fixed(), [unlabelled])
