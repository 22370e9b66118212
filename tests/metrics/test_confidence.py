"""Intervals and tests by hand and against their textbook definitions written out naively."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mrseg._checks import InputError
from mrseg.metrics.confidence import bootstrap_ci, holm, paired_test, wald_ci


def test_the_wald_width_is_the_printed_formula():
    assert wald_ci(0.5, 100) == pytest.approx(1.96 * 0.05, rel=1e-12)
    assert wald_ci(0.2, 1) == pytest.approx(1.96 * 0.4, rel=1e-12)
    assert type(wald_ci(0.5, 100)) is float


def test_the_wald_width_takes_a_table_of_classes():
    widths = wald_ci(np.array([[0.5, 0.2], [0.8, math.nan]]), np.array([25, 16]))
    np.testing.assert_allclose(widths, 1.96 * np.array([[0.1, 0.1], [0.08, math.nan]]), rtol=1e-12)


def test_the_wald_width_has_the_size_of_the_papers():
    # mecheter2023, Metrics: 2.23 to 2.26 million bone voxels; a measure near one half gets +-0.0007.
    assert round(wald_ci(0.5, 2_240_000), 4) == 0.0007


@pytest.mark.parametrize("p, n, message", [(50.0, 10, "share"), (-0.1, 10, "share"), (0.5, 0, "at least 1")])
def test_percentages_and_empty_classes_are_refused(p, n, message):
    with pytest.raises(InputError, match=message):
        wald_ci(p, n)


def naive_bca(values, level, resamples, seed):
    """Efron's interval step by step, with the resampling order of SciPy."""
    rng, n = np.random.default_rng(seed), len(values)
    means = np.sort([values[rng_row].mean() for rng_row in rng.integers(0, n, (resamples, n))])
    below = (np.sum(means < values.mean()) + np.sum(means <= values.mean())) / (2 * resamples)
    bias = stats.norm.ppf(below)
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    spread = left_out.mean() - left_out
    acceleration = np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5)
    limits = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + stats.norm.ppf(tail)
        share = stats.norm.cdf(bias + z / (1 - acceleration * z))
        limits.append(np.quantile(means, share))
    return limits


def test_the_bootstrap_is_efrons_bca_interval():
    values = np.array([0.61, 0.72, 0.75, 0.78, 0.80, 0.81, 0.83, 0.84, 0.86, 0.90])
    low, high = bootstrap_ci(values, level=0.9, seed=3)
    expected = naive_bca(values, 0.9, 9999, 3)
    # Two draws of 9999 resamples differ by Monte-Carlo error: a few thousandths of the width.
    assert (low, high) == pytest.approx(expected, abs=0.003)
    assert low < values.mean() < high
    assert values.mean() - low > high - values.mean()  # the low outlier stretches the lower side


def test_the_bootstrap_is_reproducible_and_wider_for_a_higher_level():
    values = [0.7, 0.8, 0.85, 0.9, 0.6]
    assert bootstrap_ci(values, seed=5) == bootstrap_ci(values, seed=5)
    narrow, wide = bootstrap_ci(values, level=0.8), bootstrap_ci(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_bootstrap_leaves_structures_that_do_not_count_out():
    assert bootstrap_ci([0.7, math.nan, 0.8, 0.9]) == bootstrap_ci([0.7, 0.8, 0.9])


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan], [1.0, 2.0, math.inf]])
def test_the_bootstrap_says_nan_where_nothing_can_be_said(values):
    assert all(math.isnan(limit) for limit in bootstrap_ci(values))


def test_defaults_are_those_of_the_documentation():
    values = [0.7, 0.8, 0.85, 0.9, 0.6]
    assert bootstrap_ci(values) == bootstrap_ci(values, level=0.95, resamples=9999, seed=0)
    a = np.random.default_rng(1).normal(0.4, 1, 14)  # 2^14 sign patterns are more than 9999
    drawn = paired_test(a, np.zeros(14), method="permutation")
    assert drawn == paired_test(a, np.zeros(14), method="permutation", resamples=9999, seed=0)
    assert drawn.p_value * 10_000 == pytest.approx(round(drawn.p_value * 10_000), abs=1e-9)
    assert paired_test(a, np.zeros(14)).method == "wilcoxon"


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_ci([0.8, 0.8, 0.8]) == (0.8, 0.8)


def test_six_subjects_that_agree_have_the_smallest_exact_p_value():
    a = np.array([0.9, 0.8, 0.7, 0.95, 0.85, 0.75])
    found = paired_test(a, a - np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]))
    assert found.p_value == 2 / 2**6
    assert found.subjects == 6
    assert found.difference == pytest.approx(0.035)


def test_permutation_of_three_differences_worked_out_by_hand():
    # |1 + 2 + 3| = 6 is reached by 2 of the 8 sign patterns; |1 + 2 - 3| = 0 by all.
    assert paired_test([1, 2, 3], [0, 0, 0], method="permutation").p_value == 2 / 8
    assert paired_test([1, 2, -3], [0, 0, 0], method="permutation").p_value == 1.0


numbers = st.lists(st.integers(-4, 4), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(numbers)
def test_both_tests_equal_the_count_over_all_sign_patterns(differences):
    changed = [d for d in differences if d]
    size = np.abs(changed)
    ranks = np.array([(np.sum(size < s) + np.sum(size <= s) + 1) / 2 for s in size])  # ties share a rank
    for method, weights in (("wilcoxon", ranks), ("permutation", size)):
        sums = [abs(np.dot(signs, weights)) for signs in itertools.product((-1, 1), repeat=len(changed))]
        expected = np.mean(np.array(sums) >= abs(np.dot(np.sign(changed), weights)))
        found = paired_test(differences, np.zeros(len(differences)), method=method)
        assert found.p_value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [8, 13, 14, 25])
def test_signed_ranks_equal_scipys_exact_test_where_it_has_one(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert paired_test(differences, np.zeros(n)).p_value == pytest.approx(expected, rel=1e-9)


def test_the_pattern_that_was_seen_counts_beside_the_random_ones():
    # Either sign of a single difference is as far from 0: 1 of 1, and itself.
    assert paired_test([1.0], [0.0], method="permutation", resamples=1).p_value == (1 + 1) / (1 + 1)


def test_signed_ranks_with_ties_are_exact_up_to_thirteen_pairs():
    differences = np.array([1, -1, 2, 2, -2, 3, 3, 3, -3, 4, 4, 5, 6.0])
    ranks = np.array([1.5, -1.5, 4, 4, -4, 7.5, 7.5, 7.5, -7.5, 10.5, 10.5, 12, 13])  # ties share a rank
    signs = np.array(list(itertools.product((-1, 1), repeat=13)))
    expected = np.mean(np.abs(signs @ np.abs(ranks)) >= ranks.sum())
    assert paired_test(differences, np.zeros(13)).p_value == expected


def test_random_sign_flips_come_near_the_exact_p_value():
    differences = np.random.default_rng(0).normal(0.4, 1, 12)
    exact = paired_test(differences, np.zeros(12), method="permutation").p_value
    drawn = paired_test(differences, np.zeros(12), method="permutation", resamples=4000).p_value
    # Standard error sqrt(p (1 - p) / 4000) is at most 0.008: four of them.
    assert drawn == pytest.approx(exact, abs=0.032)
    assert drawn != exact


def test_a_missed_structure_is_the_largest_difference_and_never_dropped():
    found = paired_test([math.inf, 2.0, 3.0, 4.0, 5.0, 6.5], [1.0, 1.5, 2.2, 3.1, 4.3, 5.1])
    assert found.p_value == 2 / 2**6
    assert found.difference == math.inf
    both = paired_test([math.inf, 2.0, 3.0], [math.inf, 1.0, 1.0])
    assert (both.subjects, both.p_value) == (3, 0.5)  # a tie is dropped, two differences agree
    with pytest.raises(InputError, match="wilcoxon"):
        paired_test([math.inf, 1.0], [1.0, 1.0], method="permutation")


def test_pairs_without_a_number_do_not_count():
    with_nan = paired_test([0.9, math.nan, 0.7], [0.8, 0.1, math.nan])
    assert (with_nan.subjects, with_nan.p_value) == (1, 1.0)
    nothing = paired_test([math.nan], [1.0])
    assert nothing.subjects == 0
    assert math.isnan(nothing.p_value) and math.isnan(nothing.difference)


@pytest.mark.parametrize("method", ["wilcoxon", "permutation"])
def test_equal_methods_have_p_one(method):
    assert paired_test([0.5, 0.6], [0.5, 0.6], method=method).p_value == 1.0


def test_holm_corrects_three_tests_as_worked_out_by_hand():
    # sorted .01 .03 .04: times 3, 2, 1 is .03 .06 .04, and a later one is never smaller: .03 .06 .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06], rtol=1e-12)
    np.testing.assert_allclose(holm([0.5, math.nan, 0.6]), [1.0, math.nan, 1.0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_exceeds_bonferroni(p_values):
    adjusted, row = holm(p_values), np.array(p_values)
    assert np.all(adjusted >= row)
    assert np.all(adjusted <= np.minimum(row * len(row), 1) + 1e-15)


def test_bad_rows_are_refused():
    for a, b in (([1, 2], [1]), ([1], [1, 2])):
        with pytest.raises(InputError, match="same subjects"):
            paired_test(a, b)
    for values in ([[0.1, 0.2]], 0.1, ["a", "b"], [[0.1], [0.1, 0.2]]):
        with pytest.raises(InputError, match="one row"):
            bootstrap_ci(values)
    for level in (95, 1, 0):
        with pytest.raises(InputError, match="For 95 % write 0.95"):
            bootstrap_ci([0.1, 0.2], level=level)
    with pytest.raises(InputError, match="Did you mean 'wilcoxon'"):
        paired_test([1], [1], method="wilcoxn")
    for p_value in (1.001, -0.001):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            holm([0.5, p_value])
