"""From raw scans to training data: CT registered onto every MR scan and thresholded into labels.

Sources: mecheter2020 and mecheter2023 section 3.2 (Elastix: rigid Euler, then B-spline; bone > 600 HU, air <
-500 HU).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrseg._checks import InputError, error
from mrseg._files import checksum, writable_folder
from mrseg.data.cases import Case, write_cases
from mrseg.data.geometry import check_same_grid, to_canonical, voxel_sizes
from mrseg.data.io import read_ct, read_sidecar, read_volume, scan_files, write_labels
from mrseg.data.labels import ATTENUATION_CLASSES, class_fractions, hu_to_labels
from mrseg.data.registration import apply_transform, check_quality, register, save_registration
from mrseg.jobs import run_jobs
from mrseg.pictures import registration_check, save_png

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How labels are made; written into every label map's sidecar.

    Attributes:
        thresholds_hu: below the first is air, above the second bone.
        stages: of the registration; empty for CT that lies on the MR scan's grid already.
        seed: of the registration's random samples.
    """

    thresholds_hu: tuple[float, float] = (-500.0, 600.0)
    stages: tuple[str, ...] = ("rigid", "bspline")
    seed: int = 0


def prepare(
    cases: Sequence[Case],
    output: str | Path,
    *,
    labelling: Labelling = Labelling(),
    workers: int = 1,
    progress: bool = True,
) -> tuple[list[Case], list[Row]]:
    """Makes attenuation labels (air, soft, bone) on the grid of every MR scan of every case that has a CT.

    A scan whose labels exist already, made in the same way from the same files, is not done again.

    Args:
        cases: subjects with images and ``ct``.
        output: folder for ``labels/`` (NIfTI and sidecars), ``pictures/``, ``registrations/`` and
            ``cohort.tsv``.
        labelling: thresholds and registration.
        workers: processes that share the scans; more than one needs a script with the guard
            ``if __name__ == "__main__"``. The labels do not depend on it.
        progress: show a bar.

    Returns:
        The cases with ``labels`` filled in, and one quality row per scan: grid, registration figures, class
        fractions.

    Raises:
        InputError: a case has no CT; a registration failed; nothing of that scan is written.
    """
    output = writable_folder(output)
    for case in cases:
        if case.ct is None:
            raise error(
                f"Subject {case.subject} needs a CT to make labels from.", "none", "Add a column 'ct'."
            )
    scans = [
        _Scan(case.subject, name, image, case.ct, output)
        for case in cases
        for name, image in case.images.items()
        if case.ct
    ]
    job = functools.partial(_prepare_scan, labelling=labelling)
    quality = run_jobs(job, scans, workers=workers, desc="preparing", unit="scan", progress=progress)
    labels = {(scan.subject, scan.sequence): scan.labels for scan in scans}
    prepared = [
        dataclasses.replace(case, labels={name: labels[case.subject, name] for name in case.images})
        for case in cases
    ]
    write_cases(prepared, output / "cohort.tsv")
    return prepared, quality


@dataclasses.dataclass(frozen=True)
class _Scan:
    """One scan to label, and where its results go."""

    subject: str
    sequence: str
    image: Path
    ct: Path
    output: Path

    @property
    def stem(self) -> str:
        return f"{self.subject}_{self.sequence}"

    @property
    def labels(self) -> Path:
        return self.output / "labels" / f"{self.stem}_dseg.nii.gz"

    @property
    def picture(self) -> Path:
        return self.output / "pictures" / f"{self.stem}.png"

    @property
    def registration(self) -> Path:
        return self.output / "registrations" / f"{self.stem}.json"


def _prepare_scan(scan: _Scan, labelling: Labelling) -> Row:
    row = _done_already(scan, labelling)
    if row is None:
        try:
            row = _label_scan(scan, labelling)
        except InputError as reason:
            raise InputError(f"Subject {scan.subject}, {scan.sequence}: {reason}") from reason
    return {"subject": scan.subject, "sequence": scan.sequence, **row}


def _label_scan(scan: _Scan, labelling: Labelling) -> Row:
    mr, ct_volume = read_volume(scan.image), read_ct(scan.ct)
    row: Row = {"shape": "x".join(map(str, mr[0].shape))}
    row["spacing_mm"] = "x".join(f"{size:.3g}" for size in voxel_sizes(mr[1]))
    if labelling.stages:
        registration = register(mr, ct_volume, stages=labelling.stages, seed=labelling.seed)
        check_quality(registration)
        ct_hu = apply_transform(registration, ct_volume, (mr[0].shape, mr[1]))
        row.update(registration.quality)
        save_registration(registration, scan.registration)
    else:
        check_same_grid(str(scan.image), mr, str(scan.ct), ct_volume)
        ct_hu = ct_volume[0]
    labels = hu_to_labels(ct_hu, thresholds_hu=labelling.thresholds_hu)
    fractions = class_fractions(labels, len(ATTENUATION_CLASSES))
    row.update({f"fraction_{name}": float(f) for name, f in zip(ATTENUATION_CLASSES, fractions, strict=True)})
    figure = registration_check(
        to_canonical(mr)[0],
        {"CT on the MR grid": to_canonical((ct_hu, mr[1]))[0]},
        spacing_mm=voxel_sizes(to_canonical(mr)[1]),
        threshold_hu=labelling.thresholds_hu[1],
        title=scan.picture.stem,
    )
    save_png(figure, scan.picture, dpi=100)
    provenance = {**_sources(scan, labelling), "quality": row}
    write_labels(scan.labels, labels, mr[1], ATTENUATION_CLASSES, provenance)
    return row


def _sources(scan: _Scan, labelling: Labelling) -> dict[str, Any]:
    files = {
        role: {"name": file.name, "sha256": checksum(scan_files(file))}
        for role, file in (("image", scan.image), ("ct", scan.ct))
    }
    return json.loads(json.dumps({**files, "labelling": dataclasses.asdict(labelling)}))


def _done_already(scan: _Scan, labelling: Labelling) -> Row | None:
    """The quality row of labels that were made from the same files in the same way, else None."""
    if not scan.labels.exists():
        return None
    try:
        made = read_sidecar(scan.labels)["provenance"]
    except (FileNotFoundError, InputError, KeyError):
        return None
    wanted = _sources(scan, labelling)
    return made["quality"] if all(made.get(key) == value for key, value in wanted.items()) else None
