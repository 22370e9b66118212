"""How sure a mean is: the Wald interval of mecheter2023, the bootstrap over subjects, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mrseg import _checks

#: Two-sided 95 % quantile of the normal distribution as mecheter2023 rounds it.
_Z95 = 1.96

#: Up to this many pairs the signed-rank test runs through all sign patterns.
_EXACT_PAIRS = 13


def wald_ci(p: float | np.ndarray, n: int | np.ndarray) -> float | np.ndarray:
    """Returns the half-width ``1.96 sqrt(p (1 - p) / n)`` that mecheter2023 prints beside each pooled value.

    Far too narrow to compare methods: it takes neighbouring voxels as independent and the patients as the
    whole population. Report ``bootstrap_ci`` over subjects beside it. At p = 0 or 1 it is 0, which is wrong
    too.

    Args:
        p: pooled measure, in [0, 1] or NaN (then NaN); a number or an array.
        n: voxels of the class in the truth, at least 1; a number or an array that broadcasts with p.

    Returns:
        Half-width: the interval is ``p - width .. p + width``. A float if both arguments are numbers.

    Raises:
        InputError: p outside [0, 1] or n below 1.

    Example:
        >>> round(wald_ci(0.5, 100), 4)
        0.098

    Reference:
        mecheter2023, Metrics (the printed widths of T2 fit the voxel counts of the T1 test set).
    """
    share, count = np.asarray(p, np.float64), np.asarray(n, np.float64)
    if np.any((share < 0) | (share > 1)):
        raise _checks.error("p is a share in [0, 1].", p, "Divide percentages by 100.")
    if not np.all(count >= 1):
        raise _checks.error("n counts voxels, at least 1.", n)
    width = _Z95 * np.sqrt(share * (1 - share) / count)
    return float(width) if width.ndim == 0 else width


def bootstrap_ci(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Returns the bootstrap interval (BCa) of the mean over subjects.

    Args:
        values: one number per subject. NaN (a structure that does not count) is left out.
        level: coverage, in (0, 1).
        resamples: bootstrap samples, at least 1.
        seed: makes the interval reproducible.

    Returns:
        Lower and upper limit. NaN, NaN for fewer than two subjects, or if a value is infinite (then the
        mean is too); the value twice if all are equal.

    Raises:
        InputError: values are not one row of numbers, or level is outside (0, 1).

    Reference:
        Efron, "Better bootstrap confidence intervals", J. Am. Stat. Assoc. 1987.
    """
    row = _row("values", values)
    if not 0 < level < 1:
        raise _checks.error("level is a coverage in (0, 1).", level, "For 95 % write 0.95.")
    _checks.positive_ints("resamples", [resamples])
    row = row[~np.isnan(row)]
    if row.size < 2 or np.isinf(row).any():
        return float("nan"), float("nan")
    if np.ptp(row) == 0:
        return float(row.min()), float(row.max())
    interval = stats.bootstrap(
        (row,),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="BCa",
        random_state=np.random.default_rng(seed),  # SciPy 1.15 calls it rng, and takes both
    ).confidence_interval
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedTest:
    """Outcome of ``paired_test``.

    Attributes:
        subjects: pairs that were compared (both numbers known).
        difference: mean of ``values_a - values_b``; infinite if one method alone has an infinite distance,
            NaN if each has one where the other has none, or without pairs.
        p_value: two-sided, in (0, 1]; NaN without pairs.
        method: "wilcoxon" or "permutation".
    """

    subjects: int
    difference: float
    p_value: float
    method: str


def paired_test(
    values_a: Sequence[float] | np.ndarray,
    values_b: Sequence[float] | np.ndarray,
    *,
    method: str = "wilcoxon",
    resamples: int = 9999,
    seed: int = 0,
) -> PairedTest:
    """Tests whether two methods differ on the same subjects, two-sided.

    With n pairs the smallest possible p value is ``2 / 2^n``: below six subjects no difference is
    significant at 0.05, however large.

    Args:
        values_a: one number per subject for the first method.
        values_b: the same subjects in the same order for the second. A pair with NaN is left out.
        method: "wilcoxon" (signed ranks; pairs without a difference are dropped, an infinite difference is
            the largest) or "permutation" (signs of the differences flipped, mean difference; all ``2^n``
            flips where they are at most ``resamples``, else random ones).
        resamples: most sign flips tried by "permutation".
        seed: of the random flips.

    Returns:
        The p value and the mean difference. Equal values throughout give p = 1.

    Raises:
        InputError: rows of different length, an unknown method, or infinite values for "permutation".

    Reference:
        Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945; Fisher, "The design
        of experiments", 1935 (permutation).
    """
    _checks.choice("method", method, ("wilcoxon", "permutation"))
    _checks.positive_ints("resamples", [resamples])
    a, b = _row("values_a", values_a), _row("values_b", values_b)
    if a.size != b.size:
        raise _checks.error("Paired values belong to the same subjects.", f"{a.size} and {b.size} values")
    known = ~(np.isnan(a) | np.isnan(b))
    # Two infinite distances are as bad as each other; one alone is an infinite difference.
    with np.errstate(invalid="ignore"):
        differences = np.where(a == b, 0.0, a - b)[known]
    if method == "permutation" and np.isinf(differences).any():
        raise _checks.error(
            "The permutation test of means needs finite values.", "inf", 'Use method="wilcoxon".'
        )
    with np.errstate(invalid="ignore"):
        mean = float(differences.mean()) if differences.size else float("nan")
    if not differences.size:
        p_value = float("nan")
    elif not differences.any():
        p_value = 1.0
    elif method == "wilcoxon":
        p_value = _wilcoxon(differences)
    else:
        p_value = _sign_flips(differences, resamples, seed)
    return PairedTest(int(differences.size), mean, p_value, method)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Corrects the p values of one family of tests (as many classes) by Holm's step-down rule.

    Args:
        p_values: in [0, 1]; NaN is kept and does not count as a test.

    Returns:
        Adjusted p values in the same order, float64: significant where below the level for the whole family.

    Raises:
        InputError: a p value outside [0, 1].

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 1979.
    """
    row = _row("p_values", p_values)
    if np.any((row < 0) | (row > 1)):
        raise _checks.error("p_values are in [0, 1].", p_values)
    adjusted = row.copy()
    order = np.argsort(row, kind="stable")[: int(np.sum(~np.isnan(row)))]  # NaN is sorted last
    steps = row[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _row(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        row = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        row = None
    if row is None or row.ndim != 1:
        raise _checks.error(f"{name} is one row of numbers, one per subject.", values)
    return row


def _wilcoxon(differences: np.ndarray) -> float:
    """Signed-rank p value. Only ranks count, so infinite differences rank above all others."""
    changed = differences[differences != 0]
    ranks = np.sign(changed) * stats.rankdata(np.abs(changed))
    if changed.size <= _EXACT_PAIRS:
        return _sign_flips(ranks, 2**_EXACT_PAIRS, 0)  # exact with ties too, which SciPy's tables leave out
    return float(stats.wilcoxon(ranks).pvalue)


def _sign_flips(numbers: np.ndarray, resamples: int, seed: int) -> float:
    """Share of sign flips whose sum is at least as far from 0 as the one seen."""
    n = numbers.size
    exact = 2.0**n <= resamples
    if exact:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(resamples, n))
    # Sums of the same numbers in another order differ in the last digit.
    seen = abs(numbers.sum()) - 1e-12 * np.abs(numbers).sum()
    as_far = np.count_nonzero(np.abs(signs @ numbers) >= seen)
    return as_far / len(signs) if exact else (as_far + 1) / (resamples + 1)
