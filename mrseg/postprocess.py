"""Clean-up of label maps: stray regions (xu2017, Inference), largest components, holes, small pieces.

Labels in, labels out; the input is never changed. Voxels of 255 (nobody may judge them) belong to no region,
never change, and have no say in what a removed voxel becomes.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrseg._checks import IGNORE_LABEL, choice, error

#: What a removed voxel becomes: class 0, or the class most common on the faces around the removed piece.
REPLACEMENTS = ("background", "neighbours")

_TOUCHING = np.ones((3, 3, 3), bool)  # face, edge or corner


@dataclass(frozen=True)
class Postprocessing:
    """The clean-up of a segmenter's label maps, plain JSON values; as it stands it changes nothing.

    The steps that are asked for run in the order of the fields.

    Attributes:
        stray_regions: whether ``remove_stray_regions`` runs, with the next three numbers.
        slice_axis: axis of its slices.
        min_area_mm2: smallest area of a region in a slice.
        min_overlap: smallest share of a region that lies on the middle slice's largest region.
        largest_foreground: keep only the largest component of everything that is not background.
        largest_component: classes of which only the largest component is kept.
        min_volume_mm3: smallest volume of a piece of class i at place i; 0 keeps all. May be shorter than the
            classes.
        fill_holes: classes whose enclosed background is filled.
        replacement: what a voxel becomes that one of the ``largest_*`` steps or ``min_volume_mm3`` removes,
            one of ``REPLACEMENTS``. Stray regions always become background.

    Example:
        >>> clean = Postprocessing(largest_component=(1,), min_volume_mm3=(0.0, 0.0, 50.0))
        >>> labels = clean(labels, spacing_mm=(1.0, 1.0, 3.0))                         # doctest: +SKIP
    """

    stray_regions: bool = False
    slice_axis: int = 2
    min_area_mm2: float = 5.0
    min_overlap: float = 0.8
    largest_foreground: bool = False
    largest_component: tuple[int, ...] = ()
    min_volume_mm3: tuple[float, ...] = ()
    fill_holes: tuple[int, ...] = ()
    replacement: str = "neighbours"

    def __post_init__(self) -> None:
        for name in ("largest_component", "min_volume_mm3", "fill_holes"):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise error(f"postprocessing.{name} is a sequence of numbers.", repr(value))
            object.__setattr__(self, name, tuple(value))  # JSON has lists
        _check_stray(self.slice_axis, self.min_area_mm2, self.min_overlap)
        _check_classes("postprocessing.largest_component", self.largest_component)
        _check_classes("postprocessing.fill_holes", self.fill_holes)
        _check_volumes(dict(enumerate(self.min_volume_mm3)))
        choice("postprocessing.replacement", self.replacement, REPLACEMENTS)

    def __call__(self, labels: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Cleans a label map.

        Args:
            labels: integer (x, y, z), 0 to 255.
            spacing_mm: voxel size (x, y, z).

        Returns:
            uint8 (x, y, z), a new array.

        Raises:
            InputError: not a label map, or a bad spacing.
        """
        labels = _as_labels(labels).copy()
        _check_spacing(spacing_mm)
        if self.stray_regions:
            labels = remove_stray_regions(
                labels,
                spacing_mm,
                slice_axis=self.slice_axis,
                min_area_mm2=self.min_area_mm2,
                min_overlap=self.min_overlap,
            )
        if self.largest_foreground:
            labels = largest_component(labels, replacement=self.replacement)
        if self.largest_component:
            labels = largest_component(labels, self.largest_component, replacement=self.replacement)
        volumes = {c: volume for c, volume in enumerate(self.min_volume_mm3) if volume > 0}
        if volumes:
            labels = remove_small(labels, spacing_mm, volumes, replacement=self.replacement)
        return fill_holes(labels, self.fill_holes) if self.fill_holes else labels


def remove_stray_regions(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    slice_axis: int,
    min_area_mm2: float = 5.0,
    min_overlap: float = 0.8,
) -> np.ndarray:
    """Removes regions of a slice that are tiny, or that do not lie over the brain of the middle slice.

    A region R is an 8-connected component of a slice's foreground, all classes together. M is the largest
    region of the middle slice. R becomes background if its area is below ``min_area_mm2`` or
    ``|R and M| / |R|`` is below ``min_overlap``; if the middle slice is empty the second rule is left out.

    Args:
        labels: integer (x, y, z), 0 to 255.
        spacing_mm: voxel size (x, y, z).
        slice_axis: axis of the slices, 0 to 2: the axis of thick slices.
        min_area_mm2: from 0.
        min_overlap: 0 to 1.

    Returns:
        uint8 (x, y, z), a new array.

    Raises:
        InputError: not a label map, or a number outside its range.

    Deviation:
        The paper does not define region, largest or middle: 8-connected, all classes as one, slice n // 2 of
        n, the first of two regions of equal size.

    Reference:
        Xu, Geraud and Bloch 2017, Inference: |R| < 5 mm^2 or |R and M| / |R| < 0.8.
    """
    _check_stray(slice_axis, min_area_mm2, min_overlap)
    cleaned = _as_labels(labels).copy()
    in_plane = np.delete(_check_spacing(spacing_mm), slice_axis)
    slices = np.moveaxis(cleaned, slice_axis, 0)
    middle = slices[len(slices) // 2]
    regions, sizes = _regions(_foreground(middle))
    main = regions == sizes[1:].argmax() + 1 if len(sizes) > 1 else None
    for plane in slices:
        regions, sizes = _regions(_foreground(plane))
        stray = sizes * in_plane.prod() < min_area_mm2
        if main is not None:
            over = np.bincount(regions[main], minlength=len(sizes))
            # A quotient, since that of 7 and 10 is the very float 0.7; 0.7 times a size is rounded once more.
            stray |= over / np.maximum(sizes, 1) < min_overlap
        stray[0] = False  # 0 is the background
        plane[stray[regions]] = 0
    return cleaned


def largest_component(
    labels: np.ndarray, classes: Sequence[int] | None = None, *, replacement: str = "neighbours"
) -> np.ndarray:
    """Keeps the largest component of each class, and removes the rest of that class.

    Voxels are connected by face, edge or corner; of two equal components the first in memory is kept.

    Args:
        labels: integer (x, y, z), 0 to 255.
        classes: labels to clean, each by itself; None takes everything that is not background as one.
        replacement: what a removed piece becomes: ``neighbours``, the class most common on the faces around
            it (the lower class of equals; background where only 255 or the border is around), or
            ``background``.

    Returns:
        uint8 (x, y, z), a new array.

    Raises:
        InputError: not a label map, a class outside 0 to 254, an unknown replacement.
    """
    labels = _as_labels(labels)
    if classes is not None:
        _check_classes("classes", classes)
    masks = [_foreground(labels)] if classes is None else [labels == c for c in classes]
    removed = np.zeros(labels.shape, bool)
    for mask in masks:
        components, sizes = _components(mask)
        if len(sizes) > 2:
            removed |= mask & (components != sizes[1:].argmax() + 1)
    return _replaced(labels, removed, replacement)


def remove_small(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    min_volume_mm3: float | Mapping[int, float],
    *,
    replacement: str = "neighbours",
) -> np.ndarray:
    """Removes pieces below a volume, class by class.

    With class 0 in the mapping small holes are filled: a piece of background becomes what is around it.

    Args:
        labels: integer (x, y, z), 0 to 255.
        spacing_mm: voxel size (x, y, z).
        min_volume_mm3: class -> smallest volume that stays, or one number for every class but 0.
        replacement: as for ``largest_component``.

    Returns:
        uint8 (x, y, z), a new array.

    Raises:
        InputError: not a label map, a negative volume, a class outside 0 to 254, an unknown replacement.
    """
    labels = _as_labels(labels)
    voxel_mm3 = _check_spacing(spacing_mm).prod()
    if not isinstance(min_volume_mm3, Mapping):
        present = np.unique(labels).tolist()
        min_volume_mm3 = {c: min_volume_mm3 for c in present if c not in (0, IGNORE_LABEL)}
    _check_volumes(min_volume_mm3)
    removed = np.zeros(labels.shape, bool)
    for label, least in min_volume_mm3.items():
        components, sizes = _components(labels == label)
        small = sizes * voxel_mm3 < least
        small[0] = False
        removed |= small[components]
    return _replaced(labels, removed, replacement)


def fill_holes(
    labels: np.ndarray,
    classes: Sequence[int],
    *,
    fillable: Sequence[int] = (0,),
    slice_axis: int | None = None,
) -> np.ndarray:
    """Fills what a class encloses.

    A hole is what no face-connected path outside the class joins to the border of the volume. True cavities
    (sinuses inside bone) are holes too: where they must stay, fill small ones with ``remove_small`` and class
    0 instead.

    Args:
        labels: integer (x, y, z), 0 to 255.
        classes: labels to fill, one after another.
        fillable: labels that may be overwritten in a hole, background alone by default: the brain inside a
            closed skull is not filled with bone.
        slice_axis: None: holes of the volume; 0 to 2: holes of each slice along that axis.

    Returns:
        uint8 (x, y, z), a new array.

    Raises:
        InputError: not a label map, or a class outside 0 to 254.
    """
    filled = _as_labels(labels).copy()
    _check_classes("classes", classes)
    _check_classes("fillable", fillable)
    cross = ndimage.generate_binary_structure(3, 1)
    if slice_axis is not None:
        choice("slice_axis", slice_axis, (0, 1, 2))
        np.moveaxis(cross, slice_axis, 0)[[0, 2]] = False  # no way from slice to slice
    for label in classes:
        mask = filled == label
        holes = _holes(mask, cross, slice_axis)
        filled[holes & np.isin(filled, np.array(fillable, np.uint8))] = label
    return filled


def _holes(mask: np.ndarray, structure: np.ndarray, slice_axis: int | None) -> np.ndarray:
    """Components of the rest that touch no face of the volume (with slices: no edge of their slice)."""
    components, count = ndimage.label(~mask, structure)
    open_ = np.zeros(count + 1, bool)
    open_[0] = True  # 0 is the mask itself
    for axis in range(3):
        if axis != slice_axis:
            open_[np.take(components, (0, -1), axis)] = True
    return ~open_[components]


def _replaced(labels: np.ndarray, removed: np.ndarray, replacement: str) -> np.ndarray:
    choice("replacement", replacement, REPLACEMENTS)
    cleaned = labels.copy()
    if replacement == "background" or not removed.any():
        cleaned[removed] = 0
        return cleaned
    pieces, count = ndimage.label(removed, _TOUCHING)
    valid = ~removed & (labels != IGNORE_LABEL)
    ballots = []  # piece * 256 + class, one per face between a removed voxel and a judged one
    for axis in range(3):
        first, second = (_shifted(axis, side) for side in (0, 1))
        for piece, voter in ((first, second), (second, first)):
            counted = removed[piece] & valid[voter]
            ballots.append(pieces[piece][counted].astype(np.int64) * 256 + labels[voter][counted])
    pairs, votes = np.unique(np.concatenate(ballots), return_counts=True)
    # The last of a piece's rows wins below: most votes, and of equals the lower class.
    pairs = pairs[np.lexsort((-pairs, votes))]
    winner = np.zeros(count + 1, np.uint8)
    winner[pairs // 256] = pairs % 256
    cleaned[removed] = winner[pieces[removed]]
    return cleaned


def _shifted(axis: int, side: int) -> tuple[slice, ...]:
    cut = slice(1, None) if side else slice(None, -1)
    return tuple(cut if a == axis else slice(None) for a in range(3))


def _foreground(labels: np.ndarray) -> np.ndarray:
    return (labels != 0) & (labels != IGNORE_LABEL)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Component number of every voxel, 0 outside, and the voxels of each number."""
    components, count = ndimage.label(mask, _TOUCHING[(0,) * (3 - mask.ndim)])
    return components, np.bincount(components.ravel(), minlength=count + 1)


_regions = _components  # in a slice: 8-connected


def _as_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 3 or labels.dtype.kind not in "biu":
        raise error("Labels are whole numbers (x, y, z).", f"{labels.dtype} of shape {labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() > IGNORE_LABEL):
        raise error("Labels lie between 0 and 255.", f"{labels.min()} to {labels.max()}")
    return labels.astype(np.uint8)


def _check_spacing(spacing_mm: Sequence[float]) -> np.ndarray:
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise error("spacing_mm is three positive numbers (mm).", repr(spacing_mm))
    return spacing


def _check_stray(slice_axis: int, min_area_mm2: float, min_overlap: float) -> None:
    choice("slice_axis", slice_axis, (0, 1, 2))
    if not (min_area_mm2 >= 0 and 0 <= min_overlap <= 1):
        raise error(
            "min_area_mm2 is from 0 and min_overlap from 0 to 1.", f"{min_area_mm2:g} and {min_overlap:g}"
        )


def _check_classes(name: str, classes: Sequence[int]) -> None:
    for label in classes:
        whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
        if not whole or not 0 <= label < IGNORE_LABEL:
            raise error(f"{name} holds labels from 0 to 254.", repr(label))


def _check_volumes(volumes: Mapping[int, float]) -> None:
    _check_classes("min_volume_mm3", list(volumes))
    for label, volume in volumes.items():
        if not isinstance(volume, numbers.Real) or not 0 <= volume < math.inf:
            raise error("min_volume_mm3 is a finite volume in mm^3, from 0.", f"{volume} for class {label}")
