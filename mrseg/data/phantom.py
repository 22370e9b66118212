"""The built-in phantom: synthetic heads made by code, with MR images, a displaced CT and true labels.

Nothing here is a scan of a person, and a figure measured on it says nothing about patients: it serves tests,
examples and the demo. Every subject differs (size, shape, asymmetry, folding, ventricles, skull, sinuses) and
is wholly determined by its seed. World coordinates are RAS+ mm, origin near the anterior commissure.

Example:
    >>> subject = head(1, shape=(24, 24, 20))
    >>> t1, affine = mr_image(subject, "T1w")
    >>> (ct_hu, ct_affine), truth = ct_image(subject)
    >>> truth.to_ct(np.zeros((1, 3))).shape  # where that point of the MR's world lies in the CT's
    (1, 3)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from mrseg._checks import choice, error, positive_ints
from mrseg.data import phantom_physics as physics
from mrseg.data.cases import Case, write_cases
from mrseg.data.geometry import Volume
from mrseg.data.io import write_labels, write_volume
from mrseg.data.labels import ATTENUATION_CLASSES, BRAIN_CLASSES, MRBRAINS13_CLASSES, TISSUE_CLASSES
from mrseg.data.phantom_head import (
    FIELD_OF_VIEW_MM,
    Head,
    attenuation_labels,
    brain_labels,
    centred_affine,
    check_seed,
    check_spacing,
    evaluate,
    head,
    mix,
    tissue_labels,
)
from mrseg.data.phantom_motion import Misalignment
from mrseg.data.phantom_structures import structure_labels
from mrseg.data.phantom_subject import LESIONS, TISSUES

__all__ = [
    "FIELD_OF_VIEW_MM",
    "LESIONS",
    "SEQUENCES",
    "TISSUES",
    "Head",
    "Misalignment",
    "attenuation_labels",
    "brain_labels",
    "ct_image",
    "dsc_series",
    "head",
    "mr_image",
    "structure_labels",
    "tissue_labels",
    "write_cohort",
]

SEQUENCES = ("T1w", "T2w", "dsc")
#: Kind of true labels -> how they are made, and their classes.
_TRUTHS = {
    "attenuation": (attenuation_labels, ATTENUATION_CLASSES),
    "tissue": (tissue_labels, TISSUE_CLASSES),
    "brain": (brain_labels, BRAIN_CLASSES),
    "structures": (structure_labels, MRBRAINS13_CLASSES),
}
#: Margin of the CT's field of view around the MR's, so that the displaced head stays inside.
_CT_MARGIN_MM = 20.0
_TEXTURE = 0.03  # tissue is not uniform: smooth variation of the signal, relative, over about 6 mm


def mr_image(
    head: Head, sequence: str, *, seed: int | None = None, noise: float = 0.02, bias: float = 0.2
) -> Volume:
    """Makes the synthetic T1-w or T2-w image of a head.

    Args:
        head: from ``head``.
        sequence: "T1w" (spoiled gradient echo) or "T2w" (spin echo); equations and constants in
            ``mrseg.data.phantom_physics``.
        seed: of noise, bias field and the subject's deviations from the table of constants; None takes the
            head's.
        noise: standard deviation of the (Rician) noise as a share of the white-matter signal, from 0.
        bias: largest logarithm of the smooth bias field, from 0 (0.2: the field stays within 0.82 and 1.22).

    Returns:
        (image, affine); image float32 (x, y, z), from 0.

    Raises:
        InputError: an unknown sequence, a negative noise or bias.
    """
    choice("sequence", sequence, SEQUENCES[:2])
    rng = _image_rng(head, sequence, seed, noise, bias)
    signals = physics.tissue_signals(sequence, rng, lesion=head.lesion, weeks=head.weeks)
    image = mix(head, signals) * _gain(head, rng, bias)
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
        seed: as for ``mr_image``; the baseline's tissue constants, noise and bias field.
        noise: as for ``mr_image``.
        bias: as for ``mr_image``.

    Returns:
        (series, affine); series float32 (x, y, z, timepoints).

    Raises:
        InputError: fewer than one time point, a negative arrival, noise or bias.
    """
    (timepoints,) = positive_ints("timepoints", (timepoints,), 1)
    if not arrival_s >= 0:
        raise error("arrival_s is a time in seconds, from 0.", arrival_s)
    rng = _image_rng(head, "dsc", seed, noise, bias)
    baseline = physics.tissue_signals("dsc", rng, lesion=head.lesion, weeks=head.weeks)
    times_s = np.arange(timepoints) * physics.DSC["tr_ms"] / 1000.0
    r2star = physics.bolus_r2star(times_s, arrival_s, head.lesion, head.weeks)
    loss = np.exp(-physics.DSC["te_ms"] / 1000.0 * r2star)
    gain = _gain(head, rng, bias)
    sigma = noise * float(baseline[TISSUES.index("wm")])
    series = np.empty((*head.shape, timepoints), np.float32)
    for t in range(timepoints):
        series[..., t] = physics.rician(mix(head, baseline * loss[:, t]) * gain, sigma, rng)
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
        spacing_mm: voxel size; None takes 0.75 of the MR's or, with ``shape``, what fills that field of view.
        seed: of noise and motion; None takes the head's.
        noise_hu: standard deviation of the noise; 0 gives the noise-free CT.
        misalignment: True draws a rigid motion of 10 mm and 4 degrees, False leaves the CT in place, or the
            motion itself, e.g. ``Misalignment.random(3, warp_mm=2.0)``.
        holder: adds the shell of a head holder behind the head.

    Returns:
        ((ct_hu, affine), truth): float32 (x, y, z) Hounsfield units, not below -1024, and the motion:
        ``truth.to_ct(points_mm)`` tells where points of the MR's world lie in the CT's.

    Raises:
        InputError: a bad shape or spacing, a negative noise.
    """
    if not noise_hu >= 0:
        raise error("noise_hu is a standard deviation in HU, from 0.", noise_hu)
    seed = head.seed if seed is None else check_seed(seed)
    if isinstance(misalignment, Misalignment):
        truth = misalignment
    else:
        truth = Misalignment.random(seed) if misalignment else Misalignment()
    size, affine = _ct_grid(head, shape, spacing_mm)
    hu = physics.tissue_hu(head.lesion, head.weeks)
    ct_hu = np.empty(int(np.prod(size)), np.float32)
    for start, part in evaluate(head.subject, size, affine, lambda shares: hu @ shares, truth):
        ct_hu[start : start + len(part)] = part
    ct_hu = ct_hu.reshape(size)
    if holder:
        _add_holder(ct_hu, affine)
    return (_noisy_ct(ct_hu, noise_hu, seed), affine), truth


def write_cohort(
    folder: str | Path,
    *,
    subjects: Mapping[str, int],
    sequences: Sequence[str] = ("T1w",),
    shape: Sequence[int] = (64, 64, 48),
    spacing_mm: Sequence[float] | None = None,
    seed: int = 0,
    ct: bool = True,
    registered: bool = False,
    labels: bool | str = False,
    lesions: float = 0.0,
    lesion_kinds: Sequence[bool | str] = (True,),
    weeks: float | None = None,
    prefix: str = "phantom",
) -> Path:
    """Writes a synthetic cohort as NIfTI files with a manifest, as a user's own data would lie on disk.

    Args:
        folder: made if missing.
        subjects: number of subjects of each split, e.g. ``{"train": 6, "val": 2, "test": 3}``.
        sequences: of "T1w", "T2w" and "dsc" (of a DSC series the fourth time point, before the bolus).
        shape: voxels of the MR images.
        spacing_mm: their size, as for ``head``.
        seed: of the cohort; cohorts of different seeds share no subject.
        ct: writes each subject's CT, on its own grid and displaced by a random motion.
        registered: writes that CT on the MR's grid and in place instead, and the true labels beside it.
        labels: which true labels to write: "attenuation" (air, soft, bone), "tissue" (background, csf, gm,
            wm), "brain" (background, brain) or "structures" (the eight of MRBrainS13); True means
            "attenuation", False none, unless ``registered``.
        lesions: share of the subjects that have a lesion, 0 to 1, spread evenly over the list.
        lesion_kinds: of ``head``; one after the other in turn.
        weeks: makes newborns of this postmenstrual age, as for ``head``.
        prefix: of the subjects' names, letters and digits; cohorts that meet need different ones.

    Returns:
        The manifest, ``folder/cohort.tsv``, for ``mrseg.data.cases.read_cases``.

    Raises:
        InputError: no subject, an unknown sequence or kind of labels or lesion, a bad shape, spacing, seed or
            share.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    for sequence in sequences:
        choice("sequence", sequence, SEQUENCES)
    kind = choice("labels", labels, (False, True, *_TRUTHS))
    if kind is True or (registered and not kind):
        kind = "attenuation"
    splits = [split for split, count in subjects.items() for _ in range(count)]
    if not splits or not sequences:
        raise error("A cohort has at least one subject and one sequence.", (dict(subjects), tuple(sequences)))
    if not 0 <= lesions <= 1:
        raise error("lesions is a share of the subjects, 0 to 1.", lesions)
    kinds = [choice("A kind of lesion", kind, [kind for kind in LESIONS if kind]) for kind in lesion_kinds]
    if not kinds:
        raise error("lesion_kinds names at least one kind.", lesion_kinds)
    if kinds != [True] and not lesions:
        raise error("lesion_kinds needs a share of subjects that have one.", "lesions=0", "Give lesions=0.5.")
    if not (prefix.isascii() and prefix.isalnum()):
        raise error("The prefix of subjects' names has letters and digits.", repr(prefix))
    cases = []
    for number, split in enumerate(splits):
        subject = head(
            _subject_seed(check_seed(seed), number),
            shape=shape,
            spacing_mm=spacing_mm,
            lesion=_lesion(number, lesions, kinds),
            weeks=weeks,
        )
        stem = folder / f"{prefix}{number + 1:03d}" / f"{prefix}{number + 1:03d}"
        images = {sequence: _write_image(stem, subject, sequence) for sequence in sequences}
        ct_path = _write_ct(stem, subject, registered) if ct else None
        truth = dict.fromkeys(sequences, _write_truth(stem, subject, kind)) if kind else {}
        cases.append(Case(subject=stem.name, images=images, ct=ct_path, labels=truth, split=split))
    manifest = folder / "cohort.tsv"
    write_cases(cases, manifest)
    return manifest


def _subject_seed(cohort: int, number: int) -> int:
    if number >= 1000:
        raise error("A cohort has at most 1000 subjects.", number + 1)
    return cohort * 1000 + number


def _lesion(number: int, share: float, kinds: Sequence[bool | str]) -> bool | str:
    """This subject's lesion: of the first n subjects floor(n * share) have one, of the kinds in turn."""
    before, after = (math.floor(round(n * share, 6)) for n in (number, number + 1))
    return kinds[before % len(kinds)] if after > before else False


def _write_image(stem: Path, subject: Head, sequence: str) -> Path:
    if sequence == "dsc":
        series, affine = dsc_series(subject, timepoints=4)
        image = series[..., 3]
    else:
        image, affine = mr_image(subject, sequence)
    return _write_int16(stem, sequence, image, affine)


def _write_ct(stem: Path, subject: Head, registered: bool) -> Path:
    if registered:
        hu = physics.tissue_hu(subject.lesion, subject.weeks)
        ct_hu, affine = _noisy_ct(mix(subject, hu), 12.0, subject.seed), subject.affine
    else:
        (ct_hu, affine), _ = ct_image(subject)
    return _write_int16(stem, "ct", ct_hu, affine)


def _write_int16(stem: Path, sequence: str, image: np.ndarray, affine: np.ndarray) -> Path:
    path = stem.with_name(f"{stem.name}_{sequence}.nii.gz")
    write_volume(path, np.rint(image).astype(np.int16), affine)  # whole numbers, as scanners store them
    return path


def _write_truth(stem: Path, subject: Head, kind: str) -> Path:
    path = stem.with_name(f"{stem.name}_labels-{kind}.nii.gz")
    provenance = {"source": "built-in phantom (synthetic)", "seed": subject.seed, "lesion": subject.lesion}
    if subject.weeks is not None:
        provenance["weeks"] = subject.weeks
    make, class_names = _TRUTHS[kind]
    write_labels(path, make(subject), subject.affine, class_names, provenance)
    return path


def _image_rng(head: Head, sequence: str, seed: int | None, noise: float, bias: float) -> np.random.Generator:
    if not (noise >= 0 and bias >= 0):
        raise error("noise and bias are numbers from 0.", (noise, bias))
    return np.random.default_rng([head.seed if seed is None else check_seed(seed), SEQUENCES.index(sequence)])


def _gain(head: Head, rng: np.random.Generator, bias: float) -> np.ndarray:
    """Bias field times the fine variation within tissues, (x, y, z)."""
    sigma = 3.0 / np.diag(head.affine)[:3]
    texture = ndimage.gaussian_filter(rng.standard_normal(head.shape, dtype=np.float32), sigma, mode="wrap")
    spread = float(texture.std())
    texture *= np.float32(_TEXTURE / spread if spread > 0 else 0.0)
    return physics.bias_field(head.shape, rng, bias) * (1 + np.clip(texture, -0.5, 0.5))


def _ct_grid(
    head: Head, shape: Sequence[int] | None, spacing_mm: Sequence[float] | None
) -> tuple[tuple[int, ...], np.ndarray]:
    mr_spacing = np.diag(head.affine)[:3]
    extent = mr_spacing * head.shape + 2 * _CT_MARGIN_MM
    centre = head.affine[:3, 3] + mr_spacing * (np.asarray(head.shape) - 1) / 2
    if shape is None:
        spacing = 0.75 * mr_spacing if spacing_mm is None else check_spacing(spacing_mm)
        size = tuple(int(n) for n in np.ceil(extent / spacing))
    else:
        size = positive_ints("shape", shape, 3)
        spacing = extent / size if spacing_mm is None else check_spacing(spacing_mm)
    return size, centred_affine(size, spacing, centre)


def _noisy_ct(ct_hu: np.ndarray, noise_hu: float, seed: int) -> np.ndarray:
    noise = physics.ct_noise(ct_hu.shape, noise_hu, np.random.default_rng([seed, 5]))
    return np.maximum(ct_hu + noise, np.float32(-1024.0))  # scanners store nothing below


def _add_holder(ct_hu: np.ndarray, affine: np.ndarray) -> None:
    x, y, _ = (affine[i, i] * np.arange(n) + affine[i, 3] for i, n in enumerate(ct_hu.shape))
    radius = np.hypot(x[:, None] / 1.1, y[None, :] + 10.0)
    shell = (np.abs(radius - 128.0) < 3.0) & (y[None, :] < -60.0)
    ct_hu[shell] = np.maximum(ct_hu[shell], np.float32(-250.0))
