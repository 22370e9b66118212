"""Label tables and the step from CT to attenuation classes (Mecheter et al. 2020 and 2023, Preprocessing)."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrseg._checks import IGNORE_LABEL, InputError, choice, error
from mrseg._files import atomic_file
from mrseg.data.io import CT_PADDING_BELOW_HU, read_labels, read_sidecar, sidecar_path, write_labels

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
#: Colours that stay apart for the colour-blind. M. Okabe and K. Ito, "Color Universal Design", 2008.
OKABE_ITO = {
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
#: The colour of a class by its name; None is not drawn. Other names take the palette in order.
CLASS_COLOURS: dict[str, str | None] = {
    "air": None,
    "background": None,
    "soft": OKABE_ITO["sky"],
    "bone": OKABE_ITO["orange"],
    "csf": OKABE_ITO["sky"],
    "gm": OKABE_ITO["orange"],
    "wm": OKABE_ITO["purple"],
}
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


def relabel(
    source: str | Path, path: str | Path, mapping: Mapping[int, int], class_names: Sequence[str]
) -> None:
    """Writes a label map renumbered (`merge_labels`), with its label table and where it comes from.

    Args:
        source: label map, with or without a sidecar; whatever provenance it has is kept.
        path: label map to write, ``.nii`` or ``.nii.gz``; ``.json`` and ``.tsv`` are written beside it.
        mapping: new label of every old label that occurs.
        class_names: name of new class i at place i.

    Raises:
        FileNotFoundError, InputError: as `merge_labels`, `read_labels` and `write_labels`; ``path`` is
            ``source``.

    Example:
        >>> relabel("LabelsForTraining.nii", "tissue_dseg.nii.gz",
        ...         MRBRAINS13_TO_TISSUE, TISSUE_CLASSES)                              # doctest: +SKIP
    """
    source, path = Path(source), Path(path)
    if source.resolve() == path.resolve():
        raise error("The renumbered label map is another file than its source.", path, "Name another output.")
    labels, affine = read_labels(source)
    provenance: dict[str, Any] = {"input": source.name, "mapping": dict(mapping)}
    with contextlib.suppress(FileNotFoundError, InputError):  # most label maps come without
        provenance["source"] = read_sidecar(source).get("provenance")
    write_labels(path, merge_labels(labels, mapping), affine, class_names, provenance)
    write_label_table(sidecar_path(path).with_suffix(".tsv"), class_names)


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


def class_colours(
    class_names: Sequence[str], colours: Mapping[str, str | None] | None = None
) -> tuple[str | None, ...]:
    """The colour of each class: from ``colours``, else `CLASS_COLOURS`, else the palette.

    A class 0 that is in neither is not drawn. Up to seven classes have colours of their own.

    Raises:
        InputError: ``colours`` names a class that is not there.
    """
    for name in colours or {}:
        choice("A class with a colour", name, class_names)
    known = {**CLASS_COLOURS, **(colours or {})}
    taken = {known.get(name) for name in class_names}
    spare = [colour for colour in OKABE_ITO.values() if colour not in taken] or list(OKABE_ITO.values())
    chosen: list[str | None] = []
    used = 0
    for index, name in enumerate(class_names):
        if name in known or index == 0:
            chosen.append(known.get(name))
        else:
            chosen.append(spare[used % len(spare)])
            used += 1
    return tuple(chosen)


def write_label_table(path: str | Path, class_names: Sequence[str]) -> None:
    """Writes the table beside a label map that BIDS asks for: index, name and colour of every label.

    Args:
        path: ``..._dseg.tsv``, written whole or not at all.
        class_names: name of class i at place i. A last row says that 255 is to be ignored.
    """
    colours = class_colours(class_names)
    rows = [
        (i, name, colour or "n/a") for i, (name, colour) in enumerate(zip(class_names, colours, strict=True))
    ]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerows([("index", "name", "color"), *rows, (IGNORE_LABEL, "ignore", "n/a")])


def _label_array(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise error("Labels are of an integer dtype.", labels.dtype)
    if labels.size and (labels.min() < 0 or labels.max() > IGNORE_LABEL):
        raise error("Labels lie between 0 and 255.", f"{labels.min()} to {labels.max()}")
    return labels.astype(np.uint8)
