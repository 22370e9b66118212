"""A synthetic head on a voxel grid: tissue fractions, and the true label maps that follow from them."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrseg._checks import choice, error, positive_ints
from mrseg.data.labels import TISSUE_CLASSES, hu_to_labels
from mrseg.data.phantom_anatomy import tissue_fractions
from mrseg.data.phantom_motion import Misalignment
from mrseg.data.phantom_physics import tissue_hu
from mrseg.data.phantom_subject import LESIONS, TISSUES, WEEKS, Subject

#: Corners of the field of view of the average head (mm): skin and a margin of air, cut below at the mouth.
FIELD_OF_VIEW_MM = ((-100.0, -125.0, -90.0), (100.0, 117.0, 108.0))

_CLASS_OF_TISSUE = {"csf": "csf", "gm": "gm", "deep_gm": "gm", "wm": "wm", "lesion": "wm"}
_IN_THE_SKULL = (*_CLASS_OF_TISSUE, "vessel")
_COARSE_MM = 2.5  # voxels longer than this are sampled at two places along that axis
_CHUNK = 1 << 16  # voxels evaluated at a time: temporary arrays stay near the cache


@dataclass(frozen=True)
class Head:
    """A synthetic head on a grid.

    Attributes:
        fractions: (tissues, x, y, z) float16, partial-volume fractions that sum to 1 (to float16 precision).
        affine: (4, 4) voxel index -> world mm, RAS+.
        tissues: name of each fraction; sinuses, mastoid cells and airways belong to "air".
        seed: the subject.
        lesion: the kind that the subject has, of ``LESIONS``; False for none.
        weeks: postmenstrual age of a newborn; None for an adult.
    """

    fractions: np.ndarray
    affine: np.ndarray
    tissues: tuple[str, ...]
    seed: int
    lesion: bool | str = False
    weeks: float | None = None

    @property
    def subject(self) -> Subject:
        """The traits that the head was made from."""
        return Subject.random(self.seed, lesion=self.lesion, weeks=self.weeks)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.fractions.shape[1:]
        return x, y, z


def head(
    seed: int,
    *,
    shape: Sequence[int] = (64, 64, 48),
    spacing_mm: Sequence[float] | None = None,
    lesion: bool | str = False,
    weeks: float | None = None,
) -> Head:
    """Makes a synthetic head; nothing of it was measured on a person.

    Args:
        seed: the subject, a whole number from 0.
        shape: voxels of the grid.
        spacing_mm: voxel size; the grid is centred on the head. None lets the head with a margin of air
            (about 200 x 240 x 198 mm) fill the grid.
        lesion: True adds an oedematous tumour to the white matter of one side, "border" one that reaches the
            skull (bright in T2-w and T2*-w), "bleed" an old bleeding there (dark); the rest stays the same.
        weeks: makes a newborn of this postmenstrual age, 28 to 44: a small head with a thin skull and few
            shallow sulci. None makes an adult.

    Returns:
        The head with its tissue fractions.

    Raises:
        InputError: a seed that is no whole number from 0, a shape that is not three positive whole numbers, a
            spacing that is not three positive numbers, an unknown kind of lesion, an age out of range.

    Example:
        >>> head(1, shape=(32, 32, 24)).fractions.shape
        (11, 32, 32, 24)
    """
    seed = check_seed(seed)
    lesion = choice("lesion", lesion, LESIONS)
    size = positive_ints("shape", shape, 3)
    if weeks is not None and not (isinstance(weeks, numbers.Real) and WEEKS[0] <= weeks <= WEEKS[1]):
        raise error(f"weeks is a postmenstrual age, {WEEKS[0]:g} to {WEEKS[1]:g}, or None.", repr(weeks))
    subject = Subject.random(seed, lesion=lesion, weeks=weeks)
    low, high = (np.asarray(corner) * subject.scale + subject.shift_mm for corner in FIELD_OF_VIEW_MM)
    spacing = (high - low) / size if spacing_mm is None else check_spacing(spacing_mm)
    affine = centred_affine(size, spacing, (low + high) / 2)
    fractions = np.empty((len(TISSUES), int(np.prod(size))), np.float16)
    for start, part in evaluate(subject, size, affine, lambda shares: shares.astype(np.float16)):
        fractions[:, start : start + part.shape[1]] = part
    return Head(fractions.reshape(len(TISSUES), *size), affine, TISSUES, seed, lesion, weeks)


def tissue_labels(head: Head) -> np.ndarray:
    """Returns the true labels uint8 (x, y, z): 0 background, 1 csf, 2 gm (nuclei included), 3 wm.

    The class with the largest share of the voxel wins. A lesion counts as white matter, in which it grew; the
    fluid of the eyes counts as csf, vessels as background.
    """
    shares = np.zeros((len(TISSUE_CLASSES), *head.shape), np.float32)
    for tissue, share in zip(head.tissues, head.fractions, strict=True):
        shares[TISSUE_CLASSES.index(_CLASS_OF_TISSUE.get(tissue, "background"))] += share
    return shares.argmax(axis=0).astype(np.uint8)


def attenuation_labels(head: Head) -> np.ndarray:
    """Returns the true labels uint8 (x, y, z): 0 air, 1 soft, 2 bone.

    They are the noise-free CT of the head on the head's own grid, divided at the usual thresholds
    (``mrseg.data.labels.hu_to_labels``).
    """
    return hu_to_labels(mix(head, tissue_hu(head.lesion, head.weeks)))


def brain_labels(head: Head) -> np.ndarray:
    """Returns the true labels uint8 (x, y, z): 0 background, 1 brain, which is all that the skull encloses.

    Voxels of which csf, grey and white matter, nuclei, lesion and vessels together fill more than half, in
    their largest piece over faces: the fluid of the eyes is none of it.
    """
    inside = mix(head, np.isin(head.tissues, _IN_THE_SKULL).astype(np.float32)) > 0.5
    pieces, _ = ndimage.label(inside)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (inside & (pieces == sizes.argmax())).astype(np.uint8)


def mix(head: Head, values: np.ndarray) -> np.ndarray:
    """Returns the image float32 (x, y, z) of tissues that have ``values``, mixed by their fractions."""
    image = np.zeros(head.shape, np.float32)
    for value, share in zip(values, head.fractions, strict=True):
        if value != 0:
            image += np.float32(value) * share.astype(np.float32)
    return image


def evaluate(
    subject: Subject,
    shape: Sequence[int],
    affine: np.ndarray,
    reduce: Callable[[np.ndarray], np.ndarray],
    motion: Misalignment | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Evaluates the anatomy at the voxels of a grid, a few chunks in memory at a time.

    Args:
        subject: whose head.
        shape: voxels of the grid.
        affine: its axis-aligned affine.
        reduce: called on the (tissues, n) fractions of each chunk, on several threads.
        motion: maps the grid's world to the subject's (``to_mr``); None for the same world.

    Yields:
        (flat index of the chunk's first voxel, what ``reduce`` made of it), in rising order.
    """
    total = int(np.prod(shape))
    spacing = np.diag(affine)[:3]
    # Partial volume is computed in the frame of the average head, in which a newborn's voxels are larger.
    offsets, width_mm = _samples(spacing / subject.growth)

    def chunk(start: int) -> np.ndarray:
        flat = np.arange(start, min(start + _CHUNK, total))
        world = np.stack(np.unravel_index(flat, tuple(shape)), axis=1) * spacing + affine[:3, 3]
        shares = np.zeros((len(TISSUES), len(flat)), np.float32)
        for offset in offsets:
            points = world + offset * subject.growth
            points = points if motion is None else motion.to_mr(points)
            shares += tissue_fractions(subject, points.T, width_mm)
        return reduce(shares / np.float32(len(offsets)))

    starts = range(0, total, _CHUNK)
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(starts), 2 * threads):
            batch = starts[first : first + 2 * threads]
            yield from zip(batch, pool.map(chunk, batch), strict=True)


def check_seed(seed: int) -> int:
    """Returns ``seed`` as an int, or raises an error."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise error("seed is a whole number from 0.", repr(seed))
    return int(seed)


def check_spacing(spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns ``spacing_mm`` as a float64 array of three positive numbers, or raises an error."""
    try:
        spacing = np.asarray(spacing_mm, np.float64)
    except (TypeError, ValueError):
        spacing = np.zeros(0)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise error("spacing_mm is three positive numbers (mm).", repr(spacing_mm))
    return spacing


def centred_affine(shape: Sequence[int], spacing: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Returns the RAS+ affine of a grid whose middle lies at ``centre_mm``."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = centre_mm - spacing * (np.asarray(shape) - 1) / 2
    return affine


def _samples(spacing: np.ndarray) -> tuple[np.ndarray, float]:
    """Places within a voxel (n, 3) mm that are averaged, and the width of the analytic blur at each.

    Along each coarse axis the places lie a quarter voxel to either side: the four corners of a tetrahedron if
    all axes are coarse, else two opposite places.
    """
    coarse = spacing > _COARSE_MM
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    if not coarse.all():
        signs = np.array([[1, 1, 1], [-1, -1, -1]]) if coarse.any() else np.zeros((1, 3), int)
    width = np.where(coarse, spacing / 2, spacing)
    return signs * coarse * spacing / 4, float(np.cbrt(np.prod(width)))
