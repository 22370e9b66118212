"""The built-in phantom: synthetic heads made by code, with MR images, a displaced CT and true labels.

Nothing here is a scan of a person, and a figure measured on it says nothing about patients: it serves tests,
examples and the demo. Every subject differs (size, shape, asymmetry, folding, ventricles, skull, sinuses) and
is wholly determined by its seed. World coordinates are RAS+ mm, origin near the anterior commissure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrseg._checks import choice, error, positive_ints
from mrseg.data import phantom_physics as physics
from mrseg.data.cases import Case, write_cases
from mrseg.data.geometry import Volume
from mrseg.data.io import write_labels, write_volume
from mrseg.data.labels import ATTENUATION_CLASSES, TISSUE_CLASSES, hu_to_labels
from mrseg.data.phantom_anatomy import tissue_fractions
from mrseg.data.phantom_motion import Misalignment
from mrseg.data.phantom_subject import TISSUES, Subject

SEQUENCES = ("T1w", "T2w", "dsc")
#: Corners of the field of view of the average head (mm): skin and a margin of air, cut below at the mouth.
FIELD_OF_VIEW_MM = ((-100.0, -128.0, -90.0), (100.0, 112.0, 108.0))
_CHUNK = 1 << 16
_LABEL_OF_TISSUE = {"csf": 1, "gm": 2, "deep_gm": 2, "wm": 3, "lesion": 3}


@dataclass(frozen=True)
class Head:
    """A synthetic head on a grid.

    Attributes:
        fractions: (tissues, x, y, z) float16, partial-volume fractions that sum to 1 (to float16 precision).
        affine: (4, 4) voxel index -> world mm, RAS+.
        tissues: name of each fraction; sinuses, mastoid cells and airways belong to "air".
        seed: the subject.
        lesion: whether the subject has one.
    """

    fractions: np.ndarray
    affine: np.ndarray
    tissues: tuple[str, ...]
    seed: int
    lesion: bool = False

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
    lesion: bool = False,
) -> Head:
    """Makes a synthetic head.

    Args:
        seed: the subject, a whole number from 0.
        shape: voxels of the grid.
        spacing_mm: voxel size; None lets the head with a margin of air (about 200 x 240 x 198 mm) fill the grid.
        lesion: adds an oedematous tumour to the white matter of one side; the rest of the head stays the same.

    Returns:
        The head with its tissue fractions.

    Raises:
        InputError: a negative seed, a shape that is not three positive whole numbers, a spacing that is not
            three positive numbers.

    Example:
        >>> subject = head(1, shape=(32, 32, 24))
        >>> image, affine = mr_image(subject, "T1w")
        >>> image.shape
        (32, 32, 24)
    """
    seed = _seed(seed)
    anatomy = Subject.random(seed, lesion=lesion)
    shape, affine = _grid(anatomy, positive_ints("shape", shape, 3), spacing_mm)
    fractions = np.empty((len(TISSUES), int(np.prod(shape))), np.float16)
    for start, part in _chunks(anatomy, shape, affine, lambda part: part.astype(np.float16)):
        fractions[:, start : start + part.shape[1]] = part
    return Head(fractions.reshape(len(TISSUES), *shape), affine, TISSUES, seed, lesion)


def mr_image(head: Head, sequence: str, *, seed: int | None = None, noise: float = 0.02, bias: float = 0.2) -> Volume:
    """Makes the synthetic "T1w" or "T2w" image of a head.

    Args:
        head: from ``head``.
        sequence: "T1w" (spoiled gradient echo) or "T2w" (spin echo); equations and constants in
            ``mrseg.data.phantom_physics``.
        seed: of noise, bias field and the subject's deviations from the table of constants; None takes the head's.
        noise: standard deviation of the (Rician) noise as a share of the white-matter signal, from 0.
        bias: largest logarithm of the smooth bias field, from 0 (0.2: the field stays within 0.82 to 1.22).

    Returns:
        (image, affine); image float32 (x, y, z), from 0.

    Raises:
        InputError: an unknown sequence, a negative noise or bias.
    """
    choice("sequence", sequence, SEQUENCES[:2])
    rng = _image_rng(head, sequence, seed, noise, bias)
    signals = physics.tissue_signals(sequence, rng)
    image = _mix(head, signals) * physics.bias_field(head.shape, rng, bias)
    sigma = noise * float(signals[TISSUES.index("wm")])
    return physics.rician(image, sigma, rng), head.affine.copy()


def dsc_series(
    head: Head,
    *,
    timepoints: int = 40,
    arrival_s: float = 15.0,
    seed: int | None = None,
    noise: float = 0.02,
    bias: float = 0.2,
) -> Volume:
    """Makes a synthetic T2*-weighted DSC perfusion series of a head: the first pass of a contrast agent.

    Args:
        head: from ``head``; perfusion scans have few thick slices, e.g. ``shape=(128, 128, 20)``.
        timepoints: number of volumes, one every 1.5 s.
        arrival_s: when the bolus reaches the brain; before it the signal is steady.
        seed, noise, bias: as for ``mr_image``.

    Returns:
        (series, affine); series float32 (x, y, z, timepoints).

    Raises:
        InputError: fewer than one time point, a negative arrival, noise or bias.
    """
    (timepoints,) = positive_ints("timepoints", (timepoints,), 1)
    if not arrival_s >= 0:
        raise error("arrival_s is a time in seconds, from 0.", arrival_s)
    rng = _image_rng(head, "dsc", seed, noise, bias)
    baseline = physics.tissue_signals("dsc", rng)
    times = np.arange(timepoints) * physics.DSC["tr_ms"] / 1000.0
    loss = np.exp(-physics.DSC["te_ms"] / 1000.0 * physics.bolus_r2star(times, arrival_s))
    field = physics.bias_field(head.shape, rng, bias)
    sigma = noise * float(baseline[TISSUES.index("wm")])
    series = np.empty((*head.shape, timepoints), np.float32)
    for t in range(timepoints):
        series[..., t] = physics.rician(_mix(head, baseline * loss[:, t]) * field, sigma, rng)
    return series, head.affine.copy()


def ct_image(
    head: Head,
    *,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    seed: int | None = None,
    noise_hu: float = 12.0,
    misalignment: bool | Misalignment = True,
    holder: bool = False,
) -> tuple[Volume, Misalignment]:
    """Makes the synthetic CT of a head, on its own grid and displaced by a known motion.

    The anatomy is evaluated anew at the CT's voxels; nothing is resampled from the MR's grid.

    Args:
        head: from ``head``.
        shape: voxels of the CT's grid; None covers the MR's field of view and 20 mm more on every side.
        spacing_mm: voxel size; None takes 0.75 of the MR's, or what fills the field of view with ``shape``.
        seed: of noise and motion; None takes the head's.
        noise_hu: standard deviation of the noise; 0 gives the noise-free CT.
        misalignment: True draws a rigid motion of 10 mm and 4 degrees, False leaves the CT in place, or the
            motion itself, e.g. ``Misalignment.random(3, warp_mm=2.0)``.
        holder: adds the shell of a head holder behind the head.

    Returns:
        ((ct_hu, affine), truth): float32 Hounsfield units, not below -1024, and the motion, whose
        ``truth.to_ct(points_mm)`` tells where points of the MR's world lie in the CT.

    Raises:
        InputError: a bad shape or spacing, a negative noise.
    """
    if not noise_hu >= 0:
        raise error("noise_hu is a standard deviation in HU, from 0.", noise_hu)
    seed = head.seed if seed is None else _seed(seed)
    truth = misalignment
    if not isinstance(truth, Misalignment):
        truth = Misalignment.random(seed) if misalignment else Misalignment()
    anatomy = Subject.random(head.seed, lesion=head.lesion)
    ct_shape, affine = _ct_grid(head, shape, spacing_mm)
    hu = physics.tissue_hu()
    ct = np.empty(int(np.prod(ct_shape)), np.float32)
    for start, part in _chunks(anatomy, ct_shape, affine, lambda part: hu @ part, truth):
        ct[start : start + len(part)] = part
    ct = ct.reshape(ct_shape)
    if holder:
        _add_holder(ct, affine)
    ct += physics.ct_noise(ct_shape, noise_hu, np.random.default_rng([seed, 5]))
    return (np.maximum(ct, np.float32(-1024.0)), affine), truth


def tissue_labels(head: Head) -> np.ndarray:
    """True labels uint8 (x, y, z): 0 background, 1 csf (also in the eyes), 2 gm (with nuclei), 3 wm.

    The tissue with the largest share wins. A lesion counts as white matter, the tissue it grew in.
    """
    lookup = np.array([_LABEL_OF_TISSUE.get(name, 0) for name in head.tissues], np.uint8)
    shares = np.zeros((len(TISSUE_CLASSES), *head.shape), np.float32)
    for label, share in zip(lookup, head.fractions, strict=True):
        shares[label] += share
    return shares.argmax(axis=0).astype(np.uint8)


def attenuation_labels(head: Head) -> np.ndarray:
    """True labels uint8 (x, y, z): 0 air, 1 soft, 2 bone: the noise-free CT on the MR's grid, thresholded."""
    return hu_to_labels(_mix(head, physics.tissue_hu()))


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise error("seed is a whole number from 0.", repr(seed))
    return int(seed)


def _image_rng(head: Head, sequence: str, seed: int | None, noise: float, bias: float) -> np.random.Generator:
    if not noise >= 0 or not bias >= 0:
        raise error("noise and bias are numbers from 0.", (noise, bias))
    return np.random.default_rng([head.seed if seed is None else _seed(seed), SEQUENCES.index(sequence)])


def _mix(head: Head, values: np.ndarray) -> np.ndarray:
    image = np.zeros(head.shape, np.float32)
    for value, share in zip(values, head.fractions, strict=True):
        if value != 0:
            image += np.float32(value) * share.astype(np.float32)
    return image


def _spacing(spacing_mm: Sequence[float]) -> np.ndarray:
    try:
        spacing = np.asarray(spacing_mm, np.float64)
    except (TypeError, ValueError):
        spacing = np.zeros(0)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing)) or not np.all(spacing > 0):
        raise error("spacing_mm is three positive numbers (mm).", repr(spacing_mm))
    return spacing


def _grid(subject: Subject, shape: tuple[int, ...], spacing_mm: Sequence[float] | None) -> tuple[tuple[int, ...], np.ndarray]:
    low, high = (np.asarray(c) * anatomy.scale + anatomy.shift_mm for c in FIELD_OF_VIEW_MM)
    spacing = (high - low) / shape if spacing_mm is None else _spacing(spacing_mm)
    return shape, _affine(shape, spacing, (low + high) / 2)


def _ct_grid(head: Head, shape: Sequence[int] | None, spacing_mm: Sequence[float] | None) -> tuple[tuple[int, ...], np.ndarray]:
    mr_spacing = np.diag(head.affine)[:3]
    extent = mr_spacing * head.shape
    centre = (head.affine @ [*((np.asarray(head.shape) - 1) / 2), 1.0])[:3]
    if shape is None:
        spacing = 0.75 * mr_spacing if spacing_mm is None else _spacing(spacing_mm)
        size = tuple(int(n) for n in np.ceil((extent + 40.0) / spacing))
    else:
        size = positive_ints("shape", shape, 3)
        spacing = (extent + 40.0) / size if spacing_mm is None else _spacing(spacing_mm)
    return size, _affine(size, spacing, centre)


def _affine(shape: Sequence[int], spacing: np.ndarray, centre: np.ndarray) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = centre - spacing * (np.asarray(shape) - 1) / 2
    return affine


def _chunks(
    subject: Subject,
    shape: Sequence[int],
    affine: np.ndarray,
    reduce: Callable[[np.ndarray], np.ndarray],
    motion: Misalignment | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first flat index, reduced fractions) over the grid, a few chunks in memory at a time."""
    total = int(np.prod(shape))
    spacing = np.diag(affine)[:3]
    samples, width = _samples(spacing)

    def evaluate(start: int) -> np.ndarray:
        flat = np.arange(start, min(start + _CHUNK, total))
        index = np.stack(np.unravel_index(flat, tuple(shape))).T
        world = index * spacing + affine[:3, 3]
        mean = 0.0
        for sample in samples:
            points = world + sample
            if motion is not None:
                points = motion.to_mr(points)
            mean = mean + tissue_fractions(anatomy, points.T, width)
        return reduce(mean / np.float32(len(samples)))

    starts = range(0, total, _CHUNK)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for first in range(0, len(starts), 8):
            batch = starts[first : first + 8]
            yield from zip(batch, pool.map(evaluate, batch), strict=True)


def _samples(spacing: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Sub-voxel positions (mm) and blur width: axes coarser than 2 mm are sampled at two depths."""
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    coarse = spacing > 2.0
    steps = np.unique(signs * coarse, axis=0) * spacing / 4
    width = np.where(coarse, spacing / 2, spacing)
    return list(steps), float(np.cbrt(np.prod(width)))


def _add_holder(ct: np.ndarray, affine: np.ndarray) -> None:
    x, y, _ = (affine[i, i] * np.arange(n) + affine[i, 3] for i, n in enumerate(ct.shape))
    radius = np.hypot(x[:, None] / 1.1, y[None, :] + 10.0)
    shell = (np.abs(radius - 126.0) < 2.5) & (y[None, :] < -60.0)
    ct[shell] = np.maximum(ct[shell], np.float32(-250.0))


def write_cohort(
    folder: str | Path,
    *,
    subjects: Mapping[str, int],
    sequences: Sequence[str] = ("T1w",),
    shape: Sequence[int] = (64, 64, 48),
    seed: int = 0,
    ct: bool = True,
    registered: bool = False,
    labels: str | None = None,
) -> Path:
    """Writes a synthetic cohort as NIfTI files with a manifest, as a user's own data would lie on disk.

    Args:
        folder: made if missing.
        subjects: number of subjects of each split, e.g. ``{"train": 6, "val": 2, "test": 3}``.
        sequences: of "T1w", "T2w" and "dsc" (of a DSC series the fourth time point, before the bolus).
        shape: voxels of the MR images.
        seed: of the cohort; no two subjects and no two cohorts of nearby seeds share a head.
        ct: writes each subject's CT on its own grid, displaced by a random motion.
        registered: writes the CT in place on the MR's grid, and the true labels unless ``labels`` says which.
        labels: writes true labels: "attenuation" (air, soft, bone) or "tissue" (background, csf, gm, wm).

    Returns:
        The manifest, ``folder/cohort.tsv``.

    Raises:
        InputError: no subject, an unknown sequence or kind of labels, a bad shape.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    for sequence in sequences:
        choice("sequence", sequence, SEQUENCES)
    choice("labels", labels, (None, "attenuation", "tissue"))
    kind = labels or ("attenuation" if registered else None)
    splits = [split for split, count in subjects.items() for _ in range(count)]
    if not splits or not sequences:
        raise error("A cohort has at least one subject and one sequence.", (dict(subjects), tuple(sequences)))
    cases = []
    for number, split in enumerate(splits):
        subject = head(_seed(seed) * 1009 + number, shape=shape)
        name = f"phantom{number + 1:03d}"
        cases.append(_write_subject(folder, name, split, subject, tuple(sequences), ct, registered, kind))
    manifest = folder / "cohort.tsv"
    write_cases(cases, manifest)
    return manifest


def _write_subject(
    folder: Path, name: str, split: str, subject: Head, sequences: tuple[str, ...], ct: bool, registered: bool, kind: str | None
) -> Case:
    images, labels = {}, {}
    for sequence in sequences:
        images[sequence] = folder / name / f"{name}_{sequence}.nii.gz"
        if sequence == "dsc":
            series, affine = dsc_series(subject, timepoints=4)
            image = series[..., 3]
        else:
            image, affine = mr_image(subject, sequence)
        write_volume(images[sequence], image, affine)
    if kind is not None:
        path = folder / name / f"{name}_labels-{kind}.nii.gz"
        names = ATTENUATION_CLASSES if kind == "attenuation" else TISSUE_CLASSES
        truth = attenuation_labels(subject) if kind == "attenuation" else tissue_labels(subject)
        write_labels(path, truth, subject.affine, names, {"source": "mrseg phantom (synthetic)", "seed": subject.seed})
        labels = {sequence: path for sequence in sequences}
    ct_path = None
    if ct:
        ct_path = folder / name / f"{name}_ct.nii.gz"
        if registered:
            ct_hu, affine = _ct_in_place(subject)
        else:
            (ct_hu, affine), _ = ct_image(subject)
        write_volume(ct_path, ct_hu, affine)
    return Case(subject=name, images=images, ct=ct_path, labels=labels, split=split)


def _ct_in_place(subject: Head) -> Volume:
    ct = _mix(subject, physics.tissue_hu()) + physics.ct_noise(subject.shape, 12.0, np.random.default_rng([subject.seed, 5]))
    return np.maximum(ct, np.float32(-1024.0)), subject.affine.copy()
