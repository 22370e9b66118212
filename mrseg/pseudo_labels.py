"""Labels of a new sequence without a CT: what a trained network says on another scan of the same head.

Beyond the five papers. The network segments the sequence it knows; that scan is registered rigidly to the new
one; the class probabilities are carried over and the most probable class is the label. Probabilities and not
labels, since their borders fall between voxels, where nearest neighbours leave steps.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mrseg._checks import IGNORE_LABEL, InputError, error
from mrseg._files import checksum, writable_folder
from mrseg.data.cases import Case
from mrseg.data.geometry import Grid, Volume
from mrseg.data.io import read_sidecar, read_volume, scan_files, scan_name, write_labels
from mrseg.data.registration import Registration, apply_transform, check_quality, register
from mrseg.segmenter import Asked

log = logging.getLogger(__name__)

_STAGES = ("rigid",)  # the same head on the same day; more would bend one sequence onto the other
#: A pair that lay on each other from the start loses some mutual information to interpolation: if the
#: registration has at least this share of it left, but not all, the headers' placement is the better one.
_NEARLY = 0.9


def pseudo_label(
    segmenter: Asked,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sequence: str,
    labels_from: str,
    seed: int = 0,
    progress: bool = True,
) -> list[Case]:
    """Labels the scans of one sequence by what the segmenter says on another sequence of the same subjects.

    Scans that were labelled in the same way from the same files before are not done again.

    Args:
        segmenter: trained on ``labels_from``. The probabilities are taken as it gives them, before its
            clean-up of label maps.
        cases: subjects; those with both scans are labelled, whatever labels and CT they have.
        output: folder for the label maps and their sidecars, ``<subject>_<sequence>_dseg.nii.gz``
            (with ``_ses-<session>`` after the subject where there are sessions).
        sequence: of the scans to label.
        labels_from: sequence that is segmented.
        seed: of the registration's random samples.
        progress: show a bar.

    Returns:
        The cases with ``labels`` of ``sequence`` replaced; a case without both scans has none of it. Voxels
        outside the field of view of the segmented scan are 255 (ignore).

    Raises:
        InputError: the two sequences are one; two sessions of one subject; a poor registration (the
            message names the subject).

    Example:
        >>> labelled = pseudo_label(t1_segmenter, cases, "pseudo", sequence="T2w", labels_from="T1w")
    """
    if sequence == labels_from:
        raise error("Labels come from another sequence than the one to label.", sequence)
    if segmenter.sequence and segmenter.sequence != labels_from:
        log.warning("a network for %s labels %s scans", segmenter.sequence, labels_from)
    output = writable_folder(output)
    planned = plan(cases, output, sequence=sequence, labels_from=labels_from)
    both = [case for case in planned if sequence in case.labels]
    digest = segmenter.digest if both else ""
    for case in tqdm(both, desc="pseudo-labels", unit="scan", disable=not progress, leave=False):
        origin = _origin(case, sequence, labels_from, digest, seed)
        if not _made_already(case.labels[sequence], origin):
            try:
                _label(segmenter, case, sequence, labels_from, origin)
            except InputError as reason:
                raise InputError(f"Subject {case.name}, {labels_from} to {sequence}: {reason}") from reason
    return planned


def plan(cases: Sequence[Case], output: str | Path, *, sequence: str, labels_from: str) -> list[Case]:
    """The cases as `pseudo_label` returns them, before any label map is made."""
    planned: list[Case] = []
    named: set[str] = set()
    for case in cases:
        labels = {name: file for name, file in case.labels.items() if name != sequence}
        if sequence in case.images and labels_from in case.images:
            if case.name in named:
                raise error(
                    "A subject (or a session of one) has one pair of scans to label.",
                    f"several of {case.name}",
                    "Name the sessions in the manifest's column session.",
                )
            named.add(case.name)
            labels[sequence] = Path(output) / f"{case.name}_{sequence}_dseg.nii.gz"
        planned.append(dataclasses.replace(case, labels=labels))
    return planned


def _label(segmenter: Asked, case: Case, sequence: str, labels_from: str, origin: dict[str, Any]) -> None:
    fixed, moving = read_volume(case.images[sequence]), read_volume(case.images[labels_from])
    registration = _aligned(fixed, moving, origin["registration"]["seed"])
    probabilities = segmenter.probabilities(moving)
    labels = _carried(registration, probabilities, moving[1], (fixed[0].shape, fixed[1]))
    placement = "registration" if registration.parameters else "headers"
    provenance = {**origin, "placement": placement, "quality": registration.quality}
    write_labels(case.labels[sequence], labels, fixed[1], segmenter.class_names, provenance)


def _aligned(fixed: Volume, moving: Volume, seed: int) -> Registration:
    """The registration, or the headers' own placement where that is as good: scans of one session."""
    found = register(fixed, moving, stages=_STAGES, seed=seed)
    before, after = (found.quality[f"mutual_information_{when}"] for when in ("before", "after"))
    if _NEARLY * before <= after < before:
        return dataclasses.replace(found, parameters=())
    check_quality(found)
    return found


def _carried(
    registration: Registration, probabilities: np.ndarray, affine: np.ndarray, grid: Grid
) -> np.ndarray:
    """The most probable class on ``grid`` of probabilities (x, y, z, classes) elsewhere; 255 outside them."""
    labels = np.full(grid[0], IGNORE_LABEL, np.uint8)
    highest = np.full(grid[0], -1.0, np.float32)
    for c in range(probabilities.shape[-1]):
        there = apply_transform(registration, (probabilities[..., c], affine), grid)
        higher = there > highest  # never where it is NaN
        labels[higher], highest[higher] = c, there[higher]
    return labels


def _origin(case: Case, sequence: str, labels_from: str, digest: str, seed: int) -> dict[str, Any]:
    files = {
        role: {"name": scan_name(case.images[name]), "sha256": checksum(scan_files(case.images[name]))}
        for role, name in (("image", sequence), ("segmented", labels_from))
    }
    return {
        **files,
        "segmenter": digest,
        "registration": {"stages": list(_STAGES), "seed": seed},
        "carried": "probabilities, linearly; then the most probable class",
    }


def _made_already(labels: Path, origin: dict[str, Any]) -> bool:
    if not labels.exists():
        return False
    try:
        made = read_sidecar(labels)["provenance"]
    except (FileNotFoundError, InputError, KeyError):
        return False
    return all(made.get(key) == value for key, value in origin.items())
