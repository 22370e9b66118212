"""Overlap by hand, against a count voxel by voxel, and under the policy for empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrseg._checks import InputError
from mrseg.metrics import overlap

MEASURES = ("dice", "jaccard", "precision", "recall", "specificity", "accuracy", "avd")

masks = st.tuples(hnp.arrays(bool, 12), hnp.arrays(bool, 12))
label_maps = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.just(n),
        hnp.arrays(np.uint8, (3, 5), elements=st.sampled_from([*range(n), 255])),
        hnp.arrays(np.uint8, (3, 5), elements=st.integers(0, n - 1)),
    )
)


def naive_confusion(true, pred, num_classes):
    counts = np.zeros((num_classes, num_classes), int)
    for t, p in zip(np.ravel(true).tolist(), np.ravel(pred).tolist(), strict=True):
        if t != 255:
            counts[t, p] += 1
    return counts


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 15, 16, 40])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 1023, 2**20 + 3])
def test_counting_several_voxels_at_once_loses_none(num_classes, size):
    """Up to 4 classes four voxels are counted as one number, up to 16 two, beyond that one."""
    rng = np.random.default_rng(size)
    true, pred = rng.integers(0, num_classes, (2, size), np.uint8)
    expected = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(expected, (true, pred), 1)
    np.testing.assert_array_equal(overlap.confusion_matrix(true, pred, num_classes), expected)


def mask_pair(tp, fp, fn, tn):
    true = np.repeat([True, False, True, False], [tp, fp, fn, tn])
    pred = np.repeat([True, True, False, False], [tp, fp, fn, tn])
    return true, pred


def test_rows_are_truth_and_columns_are_prediction():
    counts = overlap.confusion_matrix(np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2]), 3)
    assert counts.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dice", 6 / 9),
        ("jaccard", 3 / 6),
        ("precision", 3 / 4),
        ("recall", 3 / 5),
        ("specificity", 4 / 5),
        ("accuracy", 7 / 10),
        ("avd", 20.0),
    ],
)
def test_every_measure_has_the_value_worked_out_by_hand(name, value):
    true, pred = mask_pair(tp=3, fp=1, fn=2, tn=4)
    assert getattr(overlap, name)(true, pred) == pytest.approx(value, rel=1e-12)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # both empty: the structure does not count
        ({"tp": 0, "fp": 0, "fn": 0, "tn": 9}, (NAN, NAN, NAN, NAN, NAN, NAN, NAN)),
        # missed
        ({"tp": 0, "fp": 0, "fn": 3, "tn": 6}, (0, 0, 0, 0, 1, 6 / 9, 100)),
        # invented
        ({"tp": 0, "fp": 3, "fn": 0, "tn": 6}, (0, 0, 0, NAN, 6 / 9, 6 / 9, INF)),
        # found, and the truth fills the image: no voxel is outside
        ({"tp": 9, "fp": 0, "fn": 0, "tn": 0}, (1, 1, 1, 1, NAN, 1, 0)),
    ],
)
def test_empty_masks_follow_the_stated_policy(counts, expected):
    measured = overlap.mask_scores(*mask_pair(**counts))
    assert tuple(measured) == MEASURES
    np.testing.assert_allclose(list(measured.values()), expected, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(masks)
def test_a_missed_structure_never_improves_a_measure_of_overlap(pair):
    true, pred = pair
    before, missed = overlap.mask_scores(true, pred), overlap.mask_scores(true, np.zeros_like(pred))
    for name in ("dice", "jaccard", "precision", "recall"):
        assert math.isnan(missed[name]) == (not true.any())
        assert not missed[name] > before[name]


@settings(max_examples=25, deadline=None)
@given(masks)
def test_the_identities_between_measures_hold(pair):
    true, pred = pair
    m = overlap.mask_scores(true, pred)
    assert m["dice"] == pytest.approx(2 * m["jaccard"] / (1 + m["jaccard"]), nan_ok=True)
    assert m["dice"] == pytest.approx(overlap.dice(pred, true), nan_ok=True)
    if true.any() and not true.all():
        prevalence = true.mean()
        by_rates = prevalence * m["recall"] + (1 - prevalence) * m["specificity"]
        assert m["accuracy"] == pytest.approx(by_rates)


@settings(max_examples=25, deadline=None)
@given(label_maps)
def test_the_matrix_equals_a_count_voxel_by_voxel_without_ignored_voxels(case):
    n, true, pred = case
    assert np.array_equal(overlap.confusion_matrix(true, pred, n), naive_confusion(true, pred, n))


@settings(max_examples=25, deadline=None)
@given(label_maps)
def test_scores_of_a_class_equal_those_of_its_mask(case):
    n, true, pred = case
    measured = overlap.scores(overlap.confusion_matrix(true, pred, n))
    judged = true != 255
    for i in range(n):
        by_mask = overlap.mask_scores(true[judged] == i, pred[judged] == i)
        for name in MEASURES:
            assert measured[name][i] == pytest.approx(by_mask[name], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("num_classes", [2, 15, 16, 40, 255])
def test_any_number_of_classes_and_any_chunk_is_counted_exactly(num_classes, monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", 64)
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, num_classes, (2, 7, 9, 5)).astype(np.uint8)  # 315 voxels: odd last chunk
    counts = overlap.confusion_matrix(true, pred, num_classes)
    assert np.array_equal(counts, naive_confusion(true, pred, num_classes))


@pytest.mark.parametrize(
    "lay",
    [np.asfortranarray, lambda a: a[::-1], lambda a: a.transpose(2, 0, 1), lambda a: a.astype(np.int64)],
    ids=["fortran", "reversed", "transposed", "int64"],
)
@pytest.mark.parametrize("which", ["both", "truth", "prediction"])
def test_memory_layout_and_dtype_do_not_matter(lay, which):
    rng = np.random.default_rng(1)
    true, pred = rng.integers(0, 3, (2, 4, 5, 6)).astype(np.uint8)
    laid_true, laid_pred = lay(true), lay(pred)
    if which == "truth":
        laid_pred = np.ascontiguousarray(laid_pred).astype(np.uint8)
    if which == "prediction":
        laid_true = np.ascontiguousarray(laid_true).astype(np.uint8)
    assert np.array_equal(overlap.confusion_matrix(laid_true, laid_pred, 3), naive_confusion(true, pred, 3))


def test_half_a_volume_ignored_gives_the_scores_of_the_other_half():
    rng = np.random.default_rng(2)
    true, pred = rng.integers(0, 4, (2, 8, 8, 8)).astype(np.uint8)
    half = true.copy()
    half[:4] = 255
    assert np.array_equal(
        overlap.confusion_matrix(half, pred, 4), overlap.confusion_matrix(true[4:], pred[4:], 4)
    )


def test_the_sum_of_matrices_is_the_matrix_of_the_pooled_voxels():
    rng = np.random.default_rng(3)
    true, pred = rng.integers(0, 3, (2, 2, 50)).astype(np.uint8)
    parts = sum(overlap.confusion_matrix(t, p, 3) for t, p in zip(true, pred, strict=True))
    assert np.array_equal(parts, overlap.confusion_matrix(true, pred, 3))


def test_overall_accuracy_is_the_share_of_the_diagonal():
    assert overlap.overall_accuracy(np.array([[3, 1], [2, 4]])) == 0.7
    assert math.isnan(overlap.overall_accuracy(np.zeros((2, 2), int)))


def test_masks_are_label_maps_of_two_classes():
    true, pred = mask_pair(tp=3, fp=1, fn=2, tn=4)
    assert overlap.confusion_matrix(true, pred, 2).tolist() == [[4, 1], [2, 3]]


def test_maps_without_voxels_count_nothing():
    nothing = np.zeros((0, 3), np.uint8)
    assert overlap.confusion_matrix(nothing, nothing, 2).tolist() == [[0, 0], [0, 0]]


def test_a_wholly_ignored_volume_scores_nan_everywhere():
    counts = overlap.confusion_matrix(np.full(5, 255, np.uint8), np.zeros(5, np.uint8), 2)
    assert not counts.any()
    assert all(np.isnan(values).all() for values in overlap.scores(counts).values())


def test_a_prediction_may_be_unknown_only_where_nobody_judges():
    true, pred = np.array([0, 1, 255]), np.array([0, 1, 255])
    assert overlap.confusion_matrix(true, pred, 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(InputError, match=r"labels_pred has labels 0 to 1 .* 1 voxels with labels \[255\]"):
        overlap.confusion_matrix(true, np.array([0, 255, 255]), 2)


ZEROS = np.zeros(4, np.uint8)


@pytest.mark.parametrize(
    ("true", "pred", "options", "message"),
    [
        (ZEROS, np.zeros(5, np.uint8), {}, r"on one grid.*\(4,\) and \(5,\)"),
        (np.zeros(5, np.uint8), ZEROS, {}, r"on one grid.*\(5,\) and \(4,\)"),
        (ZEROS.astype(float), ZEROS, {}, "labels_true is a label map of whole numbers.*float64"),
        (ZEROS, np.array([0, -1, 0, 0]), {}, "labels_pred has labels 0 to 255.*-1 to 0"),
        (np.array([0, 3, 3, 7]), ZEROS, {}, r"labels_true has labels 0 to 1.*3 voxels with labels \[3, 7\]"),
        (np.array([0, 255, 0, 0]), ZEROS, {"ignore_label": None}, "labels_true has labels"),
        (ZEROS, ZEROS, {"ignore_label": 1}, "ignore_label is 2 to 255"),
        (ZEROS, ZEROS, {"num_classes": 1}, "num_classes counts the background.*Received: 1"),
    ],
)
def test_bad_label_maps_are_refused_with_the_reason(true, pred, options, message):
    with pytest.raises(InputError, match=message):
        overlap.confusion_matrix(true, pred, **{"num_classes": 2, **options})


def test_what_is_not_a_mask_is_refused_with_the_remedy():
    with pytest.raises(InputError, match="labels == class_id"):
        overlap.dice(np.array([0, 1, 2]), np.array([0, 1, 1]))
    with pytest.raises(InputError, match="on one grid"):
        overlap.dice(np.zeros(3, bool), np.zeros(4, bool))
    assert overlap.dice(np.array([0.0, 1.0]), np.array([0, 1])) == 1.0


def test_scores_refuse_what_is_not_a_matrix_of_counts():
    for wrong in (
        np.zeros((2, 3)),
        np.zeros(4),
        np.zeros((2, 2, 2)),
        [[1.0, np.nan], [0, 1]],
        [[1, -1], [0, 1]],
    ):
        with pytest.raises(InputError, match="square"):
            overlap.scores(np.array(wrong))
