"""Poolings, paired comparison, confusion and volumes from tidy rows, by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.formats import write_csv
from mrseg.metrics.overlap import confusion_matrix, scores
from mrseg.summaries import (
    SUBJECTS,
    VOXELS,
    compare,
    pooled_confusion,
    read_rows,
    summarize,
    volume_agreement,
)


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
            rows.append({"subject": subject, "class": "bone", "metric": metric, "value": float(number)})
    return rows


def dice_rows(values, name="bone"):
    return [
        {"subject": subject, "class": name, "metric": "dice", "value": value}
        for subject, value in values.items()
    ]


def by_pooling(rows):
    return {row["pooling"]: row for row in rows}


def test_pooled_and_mean_over_subjects_are_told_apart_by_name():
    """Subject a: dice 2*90/200 = 0.9 of 100 voxels; b: 2*1/20 = 0.1 of 10. Pooled 2*91/220."""
    found = by_pooling(summarize(rows_of({"a": (100, 100, 90), "b": (10, 10, 1)})))
    assert set(found) == {VOXELS, SUBJECTS}
    p = found[VOXELS]["value"]
    assert p == pytest.approx(2 * 91 / 220)
    assert found[VOXELS]["half_width"] == pytest.approx(1.96 * math.sqrt(p * (1 - p) / 110), rel=1e-12)
    assert (found[VOXELS]["count"], found[VOXELS]["unit"]) == (110, "voxels")
    mean = found[SUBJECTS]
    assert mean["value"] == pytest.approx(0.5) and (mean["count"], mean["unit"]) == (2, "subjects")
    assert mean["low"] <= 0.5 <= mean["high"] and math.isnan(mean["half_width"])
    assert mean["sd"] == pytest.approx(math.sqrt(2 * 0.4**2))  # n - 1 = 1


def test_the_mean_over_slices_counts_every_slice_alike():
    """Subject a has one slice with a value, b has three: not the mean of the subjects' means."""
    rows = dice_rows({"a": 0.9, "b": 0.5})
    for subject, number, value in (
        ("a", 0, 1.0),
        ("a", 1, math.nan),
        ("b", 0, 0.2),
        ("b", 1, 0.4),
        ("b", 2, 0.0),
    ):
        rows.append(
            {"subject": subject, "plane": "axial", "slice": number, "class": "bone", "metric": "dice",
             "value": value}
        )  # fmt: skip
    found = by_pooling(summarize(rows))
    assert set(found) == {SUBJECTS, "mean over axial slices"}  # no voxel counts, nothing pooled
    row = found["mean over axial slices"]
    assert row["value"] == pytest.approx((1.0 + 0.2 + 0.4 + 0.0) / 4)
    assert (row["count"], row["unit"]) == (4, "slices") and math.isnan(row["low"])
    assert found[SUBJECTS]["value"] == pytest.approx(0.7)


def test_one_subject_has_no_interval_over_subjects():
    mean = by_pooling(summarize(rows_of({"a": (100, 100, 90)})))[SUBJECTS]
    assert math.isnan(mean["low"]) and math.isnan(mean["sd"]) and mean["value"] == pytest.approx(0.9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5))
def test_a_missed_structure_never_improves_a_mean(values):
    known = dice_rows(dict(enumerate(values)))
    missed = [*known, *dice_rows({"missed": 0.0})]
    absent = [*known, *dice_rows({"absent": math.nan})]
    mean = by_pooling(summarize(known))[SUBJECTS]["value"]
    assert by_pooling(summarize(missed))[SUBJECTS]["value"] < mean
    assert by_pooling(summarize(absent))[SUBJECTS]["value"] == mean
    far = [{**row, "metric": "hd95_mm"} for row in known] + [
        {"subject": "missed", "class": "bone", "metric": "hd95_mm", "value": math.inf}
    ]
    row = by_pooling(summarize(far))[SUBJECTS]
    assert row["value"] == math.inf and row["count"] == len(values) + 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_pooled_measure_is_that_of_the_summed_confusion_matrix(subjects, random):
    names, total, rows = ("air", "soft", "bone"), np.zeros((3, 3), int), []
    for subject in range(subjects):
        true, pred = (np.array([random.randrange(3) for _ in range(20)]) for _ in range(2))
        counts = confusion_matrix(true, pred, 3)
        total += counts
        for c, name in enumerate(names):
            values = {
                "voxels_true": counts[c].sum(), "voxels_predicted": counts[:, c].sum(),
                "voxels_both": counts[c, c], "voxels_all": counts.sum(),
                **{f"voxels_as_{other}": counts[c, d] for d, other in enumerate(names)},
                **dict.fromkeys(("precision", "recall", "dice", "jaccard", "specificity", "accuracy"), 0.5),
            }  # fmt: skip
            rows += [
                {"subject": subject, "class": name, "metric": metric, "value": float(value)}
                for metric, value in values.items()
            ]
    classes, confusion = pooled_confusion(rows)
    assert classes == list(names)
    np.testing.assert_array_equal(confusion, total)
    expected = scores(total)
    for row in summarize(rows):
        if row["pooling"] == VOXELS:
            want = expected[row["metric"]][names.index(row["class"])]
            assert row["value"] == pytest.approx(want, nan_ok=True)


def test_two_rows_of_one_subject_are_refused_not_merged():
    rows = dice_rows({"a": 0.5}) + dice_rows({"a": 0.7})
    with pytest.raises(
        InputError, match="one value per class and metric. Received: two of 'a' for bone dice"
    ):
        summarize(rows)
    with pytest.raises(InputError, match="two of 'a'"):
        compare(rows, dice_rows({"a": 0.5}))


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(InputError, match="at least one subject"):
        summarize([])


def naive_signed_ranks(differences):
    """Two-sided exact p of Wilcoxon's test: all sign patterns of the ranks (no ties, no zeros)."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    seen = abs(np.sum(np.sign(differences) * ranks))
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return np.mean(np.array(sums) >= seen)


def test_two_methods_are_compared_by_subject_and_corrected_over_the_classes():
    subjects = [f"s{i}" for i in range(7)]
    gains = {
        "bone": (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07),
        "soft": (0.01, -0.02, 0.03, -0.04, 0.05, 0.06, -0.07),
    }
    rows_a, rows_b = [], []
    for name, gain in gains.items():
        base = dict(zip(subjects, np.linspace(0.5, 0.8, 7), strict=True))
        rows_b += dice_rows(base, name)
        rows_a += dice_rows({s: base[s] + g for s, g in zip(subjects, gain, strict=True)}, name)[::-1]
    bone, soft = compare(rows_a, rows_b)
    assert (bone["class"], soft["class"]) == ("bone", "soft")
    assert bone["difference"] == pytest.approx(0.04) == bone["mean_a"] - bone["mean_b"]
    assert bone["low"] <= 0.04 <= bone["high"]
    raw = {name: naive_signed_ranks(np.array(gain)) for name, gain in gains.items()}
    assert (bone["p_value"], soft["p_value"]) == (pytest.approx(raw["bone"]), pytest.approx(raw["soft"]))
    assert raw["bone"] == 2 / 2**7
    assert bone["p_holm"] == pytest.approx(2 * raw["bone"]) and soft["p_holm"] == pytest.approx(raw["soft"])
    assert bone["subjects"] == 7 and bone["test"] == "wilcoxon"
    assert compare(rows_a, rows_b, method="permutation")[0]["p_value"] == 2 / 2**7


def test_a_pair_without_one_value_is_left_out_of_both_means():
    a = dice_rows({"x": 0.5, "y": math.nan, "z": 0.7})
    b = dice_rows({"x": 0.4, "y": 0.9, "z": 0.6})
    (row,) = compare(a, b)
    assert row["subjects"] == 2
    assert row["mean_a"] == pytest.approx(0.6) and row["mean_b"] == pytest.approx(0.5)


def test_an_infinite_distance_of_both_is_no_difference():
    (row,) = compare(dice_rows({"x": math.inf, "y": 1.0}), dice_rows({"x": math.inf, "y": 3.0}))
    assert row["difference"] == -1.0 and row["mean_a"] == math.inf


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ({"x": 1.0}, {"y": 1.0}, {}, "only in the first: x; only in the second: y"),
        ({"x": 1.0}, {"x": 1.0, "y": 1.0}, {}, "only in the first: none; only in the second: y"),
        ({"x": 1.0}, {"x": 1.0}, {"metrics": ["hd95_mm"]}, "metric 'hd95_mm'.*in both: dice"),
        ({"x": 1.0}, {"x": 1.0}, {"method": "t"}, "wilcoxon, permutation"),
        ({}, {"x": 1.0}, {}, "at least one subject"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, options, message):
    with pytest.raises(InputError, match=message):
        compare(dice_rows(a), dice_rows(b), **options)


def volume_rows(values):
    return [
        {"subject": subject, "class": "bone", "metric": f"volume_{which}_ml", "value": value}
        for subject, pair in values.items()
        for which, value in zip(("true", "predicted"), pair, strict=True)
    ]


def test_bias_and_limits_of_agreement_by_hand():
    """Differences 2, 4 and 0 ml: mean 2, standard deviation 2."""
    (row,) = volume_agreement(volume_rows({"a": (10, 12), "b": (20, 24), "c": (30, 30)}))
    assert row["bias_ml"] == 2 and row["mean_true_ml"] == 20 and row["subjects"] == 3
    assert row["lower_ml"] == pytest.approx(2 - 1.96 * 2) and row["upper_ml"] == pytest.approx(2 + 1.96 * 2)
    (one,) = volume_agreement(volume_rows({"a": (10, 0)}))
    assert one["bias_ml"] == -10 and math.isnan(one["lower_ml"])


def test_a_confusion_matrix_without_its_counts_is_refused():
    with pytest.raises(InputError, match="no voxels_as_bone of bone"):
        pooled_confusion(rows_of({"a": (1, 1, 1)}))


def test_rows_come_back_from_their_file(tmp_path):
    rows = [*dice_rows({"a": 0.1 + 0.2, "b": math.nan}), *dice_rows({"a": math.inf}, "soft")]
    back = read_rows(write_csv(rows, tmp_path / "scores.csv"))
    assert [{**row, "value": repr(row["value"])} for row in back] == [
        {**row, "value": repr(row["value"])} for row in rows
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 rows, without class, metric, subject, value"),
        ("subject,class,metric\na,bone,dice\n", "without value"),
        ("subject,class,metric,value\na,bone,dice,high\n", "'high' in line 2"),
    ],
)
def test_a_file_that_holds_no_scores_is_refused(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_rows(path)
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "none.csv")


def test_a_row_without_a_class_is_named_and_half_a_pair_of_volumes_left_out():
    with pytest.raises(InputError, match="one without class"):
        summarize([{"subject": "a", "metric": "dice", "value": 1.0}])
    rows = [{"subject": "a", "class": "bone", "metric": "volume_true_ml", "value": 1.0}]
    assert volume_agreement(rows) == []
