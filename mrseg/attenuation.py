"""Attenuation maps at 511 keV in 1/cm, from class labels or from CT, and how far two of them differ.

The PET scanner's reconstruction takes such a map. Write it with ``mrseg.data.write_volume``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrseg._checks import IGNORE_LABEL, choice, error
from mrseg.data.io import CT_PADDING_BELOW_HU

#: 1/cm at 511 keV of air, soft tissue and bone, in the order of ``ATTENUATION_CLASSES``. A choice among the
#: published sets that Wagenknecht et al. 2013 (Magn. Reson. Mater. Phy. 26:99, doi
#: 10.1007/s10334-012-0353-4) list in Table 2: air 0.0, brain 0.096 (0.095 to 0.0993), bone 0.151 (0.116 to
#: 0.172).
CLASS_MU_PER_CM = (0.0, 0.096, 0.151)


@dataclass(frozen=True)
class BoneLine:
    """Above ``break_hu``: ``mu = slope_per_cm * (HU + 1000) + offset_per_cm``."""

    slope_per_cm: float
    offset_per_cm: float
    break_hu: float


#: Below the break: water and air, 1/cm per unit of (HU + 1000).
WATER_SLOPE_PER_CM = 9.6e-5

#: Tube voltage (kVp) -> the line above the break. The coefficients of Carney, Townsend, Rappoport and
#: Bendriem 2006, Med. Phys. 33:976 (doi 10.1118/1.2174132). The article itself was not at hand; they were
#: read in three public programs that agree (one is rbayerlein/SensitivityImage, make_mumap.m, which has 80,
#: 120 and 140 kVp), and the two lines meet at the break to within 0.1 %, as a test checks.
BONE_LINES = {
    80: BoneLine(3.64e-5, 6.26e-2, 50.0),
    100: BoneLine(4.43e-5, 5.44e-2, 52.0),
    110: BoneLine(4.92e-5, 4.88e-2, 43.0),
    120: BoneLine(5.10e-5, 4.71e-2, 47.0),
    130: BoneLine(5.51e-5, 4.24e-2, 37.0),
    140: BoneLine(5.64e-5, 4.08e-2, 30.0),
}


def mu_from_labels(
    labels: np.ndarray,
    *,
    mu_per_cm: Sequence[float] = CLASS_MU_PER_CM,
    ignore_mu_per_cm: float = math.nan,
) -> np.ndarray:
    """Gives every voxel the attenuation coefficient of its class.

    Args:
        labels: integer array of any shape, values below ``len(mu_per_cm)`` or 255.
        mu_per_cm: coefficient of class i at place i, 1/cm at 511 keV, from 0. The default is for air, soft
            tissue, bone.
        ignore_mu_per_cm: for voxels of 255, which nobody may judge. NaN says that nothing is known there;
            ``mu_difference`` leaves such voxels out and ``write_volume`` refuses them. To write a map, name a
            value, e.g. 0.0 outside the head.

    Returns:
        float32 of the same shape, 1/cm.

    Raises:
        InputError: labels that are not whole numbers or have no coefficient, a negative coefficient.

    Example:
        >>> mu_from_labels(np.array([0, 1, 2, 255]))
        array([0.   , 0.096, 0.151,   nan], dtype=float32)
    """
    labels = np.asarray(labels)
    try:
        table = np.asarray(mu_per_cm, np.float32)
    except (TypeError, ValueError):
        table = np.empty(0, np.float32)
    if table.ndim != 1 or not table.size or not (np.isfinite(table) & (table >= 0)).all():
        raise error("mu_per_cm is one coefficient per class in 1/cm, from 0.", mu_per_cm)
    if labels.dtype.kind not in "biu":
        raise error("Labels are of an integer dtype.", labels.dtype)
    unjudged = labels == IGNORE_LABEL
    unknown = np.unique(labels[~unjudged & ((labels < 0) | (labels >= len(table)))])
    if unknown.size:
        raise error(
            f"Labels are below {len(table)}, the number of coefficients, or {IGNORE_LABEL}.",
            unknown[:5].tolist(),
            "Give one coefficient per class: mu_per_cm=(0, 0.096, ...), --mu-per-cm 0 0.096 ...",
        )
    mu = table[np.where(unjudged, 0, labels).astype(np.intp)]
    return np.where(unjudged, np.float32(ignore_mu_per_cm), mu)


def mu_from_hu(ct_hu: np.ndarray, *, tube_kvp: int = 120) -> np.ndarray:
    """Turns a CT into attenuation coefficients by the bilinear rule.

    Up to the break (30 to 52 HU) a voxel is a mixture of air and water: ``9.6e-5 (HU + 1000)``. Above it, of
    water and bone: a lower slope, which depends on the tube voltage.

    Args:
        ct_hu: any shape, Hounsfield units. NaN, infinity and padding (below -1024 HU) lie outside the field
            of view.
        tube_kvp: one of ``BONE_LINES``; the DICOM tag KVP (0018,0060). Other voltages are not interpolated.

    Returns:
        float32 of the same shape, 1/cm at 511 keV; 0 below -1000 HU (noise of air), NaN outside the field of
        view.

    Raises:
        InputError: a voltage without coefficients.

    Example:
        >>> mu_from_hu(np.array([-1000.0, 0.0, 1000.0]))
        array([0.    , 0.096 , 0.1491], dtype=float32)

    Reference:
        Carney et al. 2006; see ``BONE_LINES`` for what was read.
    """
    line = BONE_LINES[choice("tube_kvp", tube_kvp, BONE_LINES)]
    above_air = np.asarray(ct_hu, np.float64) + 1000.0
    with np.errstate(invalid="ignore"):
        mu = np.where(
            above_air <= line.break_hu + 1000.0,
            WATER_SLOPE_PER_CM * above_air,
            line.slope_per_cm * above_air + line.offset_per_cm,
        )
        unseen = (above_air < CT_PADDING_BELOW_HU + 1000.0) | np.isinf(above_air)
        mu = np.where(unseen, np.nan, np.maximum(mu, 0.0))
    return mu.astype(np.float32)


def mu_difference(mu_true: np.ndarray, mu_pred: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Measures how far an attenuation map is from the CT's inside a mask.

    Args:
        mu_true: the reference (from CT), 1/cm, any shape; NaN voxels count nothing.
        mu_pred: the map to judge, same shape, likewise.
        mask: bool, same shape: the head (``mrseg.data.head_mask`` of the CT). Without it air around the head
            would dilute every figure.

    Returns:
        ``voxels`` counted; ``mean_difference_per_cm`` (pred - true); ``mean_absolute_difference_per_cm``;
        both again as ``mean_difference_percent`` and ``mean_absolute_difference_percent`` of the mean of
        ``mu_true`` over the same voxels. A ratio of means: voxel by voxel air would divide by nearly nothing.
        All but ``voxels`` are NaN if no voxel counts; percentages also if the reference is 0 throughout.

    Raises:
        InputError: shapes that differ, or a mask that is not bool.
    """
    mu_true, mu_pred, mask = np.asarray(mu_true), np.asarray(mu_pred), np.asarray(mask)
    if not mu_true.shape == mu_pred.shape == mask.shape:
        raise error(
            "Both maps and the mask lie on one grid.",
            f"shapes {mu_true.shape}, {mu_pred.shape} and {mask.shape}",
            "Resample with mrseg.data.resample.",
        )
    if mask.dtype != bool:
        raise error("mask is of dtype bool.", mask.dtype)
    counted = mask & np.isfinite(mu_true) & np.isfinite(mu_pred)
    true, pred = mu_true[counted].astype(np.float64), mu_pred[counted].astype(np.float64)
    names = ("mean_difference", "mean_absolute_difference")
    if not true.size:
        return {"voxels": 0, **{f"{n}_{unit}": math.nan for unit in ("per_cm", "percent") for n in names}}
    values = (float((pred - true).mean()), float(np.abs(pred - true).mean()))
    mean = float(true.mean())
    return {
        "voxels": int(true.size),
        **{f"{n}_per_cm": v for n, v in zip(names, values, strict=True)},
        **{f"{n}_percent": 100 * v / mean if mean else math.nan for n, v in zip(names, values, strict=True)},
    }
