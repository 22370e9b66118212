"""Label tables and the step from CT to attenuation classes (Mecheter et al. 2020 and 2023, Preprocessing)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mrseg._checks import IGNORE_LABEL, error
from mrseg.data.io import CT_PADDING_BELOW_HU

#: Class i of a label map is ``ATTENUATION_CLASSES[i]``: what attenuates photons in PET.
ATTENUATION_CLASSES = ("air", "soft", "bone")
#: The tissue classes of IBSR18, in its own numbering.
TISSUE_CLASSES = ("background", "csf", "gm", "wm")
#: The classes of MRBrainS13's LabelsForTraining, in their own numbering (mrbrains13.isi.uu.nl/data).
MRBRAINS13_CLASSES = (
    "background", "cogm", "bg", "wm", "wml", "csf", "ventricles", "cerebellum", "brainstem",
)  # fmt: skip
#: How MRBrainS13 merges them to ``TISSUE_CLASSES``: cortex and basal ganglia, white matter and its lesions,
#: CSF outside and inside. Cerebellum and brain stem, which it does not score, become 255 (ignore).
MRBRAINS13_TO_TISSUE = {0: 0, 1: 2, 2: 2, 3: 3, 4: 3, 5: 1, 6: 1, 7: 255, 8: 255}
#: The classes of a brain mask (alkhimova2022).
BRAIN_CLASSES = ("background", "brain")
#: Air below -500 HU and bone above 600 HU (Mecheter et al. 2020 and 2023).
THRESHOLDS_HU = (-500.0, 600.0)


def hu_to_labels(ct_hu: np.ndarray, *, thresholds_hu: tuple[float, float] = THRESHOLDS_HU) -> np.ndarray:
    """Divides a CT into air, soft tissue and bone.

    Args:
        ct_hu: any shape, Hounsfield units. NaN and padding (below -1024 HU) lie outside the field of view.
        thresholds_hu: (lower, upper): below lower is air, above upper is bone, all else soft tissue,
            a voxel equal to a threshold included.

    Returns:
        uint8 array of the same shape: 0 air, 1 soft, 2 bone, 255 outside the field of view.

    Raises:
        InputError: thresholds that are not two rising, finite numbers above -1024.

    Example:
        >>> hu_to_labels(np.array([-1000.0, -500.0, 40.0, 600.0, 601.0, np.nan]))
        array([  0,   1,   1,   1,   2, 255], dtype=uint8)

    Reference:
        Mecheter et al. 2023, Preprocessing: bone > 600 HU, air < -500 HU, else soft tissue.
    """
    values = tuple(float(t) for t in thresholds_hu)
    if len(values) != 2 or not CT_PADDING_BELOW_HU < values[0] < values[1] < math.inf:
        raise error("thresholds_hu is (lower, upper) in HU, rising and above -1024.", thresholds_hu)
    ct_hu = np.asarray(ct_hu)
    labels = np.ones(ct_hu.shape, dtype=np.uint8)
    labels[ct_hu < values[0]] = 0
    labels[ct_hu > values[1]] = 2
    labels[np.isnan(ct_hu) | (ct_hu < CT_PADDING_BELOW_HU)] = IGNORE_LABEL
    return labels


def merge_labels(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """Renumbers a label map, several old labels to one new label if wanted.

    Args:
        labels: integer array of any shape, values 0..255.
        mapping: new label of every old label that occurs; 255 (ignore) stays unless it is mapped.

    Returns:
        uint8 array of the same shape.

    Raises:
        InputError: a label that occurs has no place in ``mapping``, or a value outside 0..255.

    Example:
        >>> merge_labels(np.array([0, 1, 2, 6, 255]), {0: 0, 1: 1, 2: 2, 6: 0})
        array([  0,   1,   2,   0, 255], dtype=uint8)
    """
    labels = _label_array(labels)
    full = {IGNORE_LABEL: IGNORE_LABEL, **mapping}
    outside = sorted(v for v in (*full, *full.values()) if not 0 <= v <= 255)
    if outside:
        raise error("mapping holds labels from 0 to 255.", outside)
    present = np.unique(labels).tolist()
    missing = [value for value in present if value not in full]
    if missing:
        raise error("mapping names every label that occurs.", f"no entry for {missing}")
    table = np.zeros(256, dtype=np.uint8)
    table[list(full)] = list(full.values())
    return table[labels]


def class_fractions(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns each class's share of the voxels that may be judged; NaN throughout if there are none.

    Args:
        labels: integer array of any shape, values below ``num_classes`` or 255 (not counted).
        num_classes: with the background.

    Returns:
        float64 array (num_classes,) that sums to 1.
    """
    labels = _label_array(labels)
    counts = np.bincount(labels.ravel(), minlength=256)
    judged = counts[:num_classes]
    unknown = np.flatnonzero(counts[num_classes:IGNORE_LABEL]) + num_classes
    if unknown.size:
        raise error(f"Labels are below num_classes={num_classes}, or {IGNORE_LABEL}.", unknown.tolist())
    if judged.sum() == 0:
        return np.full(num_classes, np.nan)
    return judged / judged.sum()


def _label_array(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise error("Labels are of an integer dtype.", labels.dtype)
    if labels.size and (labels.min() < 0 or labels.max() > IGNORE_LABEL):
        raise error("Labels lie between 0 and 255.", f"{labels.min()} to {labels.max()}")
    return labels.astype(np.uint8)
