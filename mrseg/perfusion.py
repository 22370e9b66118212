"""Curves of a DSC perfusion series over a region: mean signal and change of the relaxation rate."""

from __future__ import annotations

import math
import numbers
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrseg._checks import error


def region_curve(
    series: np.ndarray,
    mask: np.ndarray,
    *,
    te_ms: float,
    interval_s: float,
    baseline: Sequence[int],
) -> list[dict[str, Any]]:
    """Measures the mean signal of a region at every time point, and the change of R2* that it tells of.

    ``delta_r2star = -ln(S / S0) / TE`` with S the mean over the region (the curve of the mean signal, not the
    mean of the voxels' curves, which noise biases) and S0 the mean of S over the baseline.

    Args:
        series: (x, y, z, t), signal from 0, free of motion (``mrseg.data.correct_motion``).
        mask: bool (x, y, z), e.g. from ``mrseg.baselines.brain_mask_series``.
        te_ms: echo time.
        interval_s: time from one volume to the next (the repetition time of single-shot EPI).
        baseline: time points, from 0, whose mean is S0: after the first ones, in which the signal still
            settles, and before the bolus. Stated by the user, never guessed.

    Returns:
        A row per time point: ``time_s`` from the first volume, ``mean_signal``, ``sd`` over the region's
        voxels (ddof 1; NaN for one voxel), ``delta_r2star`` in 1/s (NaN where S or S0 is not positive),
        ``baseline`` 1 or 0. ``mrseg.report.write_csv`` writes them.

    Raises:
        InputError: shapes that do not agree, an empty mask, NaN inside it, no or unknown baseline points, a
            time that is not positive.

    Example:
        >>> series = np.array([100.0, 100.0, 50.0]).reshape(1, 1, 1, 3)
        >>> rows = region_curve(series, np.ones((1, 1, 1), bool), te_ms=50, interval_s=2, baseline=(0, 1))
        >>> round(rows[2]["delta_r2star"], 3)  # ln 2 / 0.05 s
        13.863

    Reference:
        Ostergaard et al. 1996, Magn. Reson. Med. 36:715: signal and concentration of a T2*-weighted series
        (as in common use; not read again).
    """
    series, mask = np.asarray(series), np.asarray(mask)
    if series.ndim != 4 or mask.shape != series.shape[:3]:
        raise error(
            "A series (x, y, z, t) and a mask (x, y, z) lie on one grid.",
            f"shapes {series.shape} and {mask.shape}",
        )
    if mask.dtype != bool or not mask.any():
        raise error("mask is of dtype bool and true somewhere.", f"{mask.dtype}, {int(mask.sum())} voxels")
    times = (te_ms, interval_s)
    if not all(isinstance(time, numbers.Real) and 0 < time < math.inf for time in times):
        raise error("te_ms and interval_s are above 0 (ms, s).", f"{te_ms} and {interval_s}")
    points = _baseline(baseline, series.shape[3])
    inside = series[mask].astype(np.float64)  # (voxels, t)
    if not np.isfinite(inside).all():
        raise error(
            "The region has finite voxels.", f"{np.count_nonzero(~np.isfinite(inside))} NaN or infinite"
        )
    mean = inside.mean(axis=0)
    sd = inside.std(axis=0, ddof=1) if len(inside) > 1 else np.full(len(mean), np.nan)
    steady = mean[points].mean()
    ratio = np.where((mean > 0) & (steady > 0), mean / steady if steady > 0 else np.nan, np.nan)
    change = -np.log(ratio) / (te_ms / 1000.0)
    return [
        {
            "time_s": t * interval_s,
            "mean_signal": float(mean[t]),
            "sd": float(sd[t]),
            "delta_r2star": float(change[t]),
            "baseline": int(t in points),
        }
        for t in range(len(mean))
    ]


def _baseline(baseline: Sequence[int], timepoints: int) -> list[int]:
    points = list(baseline) if isinstance(baseline, Sequence | np.ndarray) else []
    whole = all(isinstance(t, numbers.Integral) for t in points)
    if (
        not whole
        or not points
        or len(set(points)) < len(points)
        or not all(0 <= t < timepoints for t in points)
    ):
        raise error(
            f"baseline names different time points of the series, 0 to {timepoints - 1}.",
            baseline if points == [] else textwrap.shorten(", ".join(map(str, points)), 60),
            "Name those after the signal has settled and before the bolus, say range(3, 9), --baseline 3-8.",
        )
    return [int(t) for t in points]
