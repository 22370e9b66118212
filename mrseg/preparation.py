"""From raw scans to training data: CT registered onto every MR scan and thresholded into labels.

Sources: mecheter2020 and mecheter2023 section 3.2 (Elastix: rigid Euler, then B-spline; bone > 600 HU, air <
-500 HU).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mrseg._checks import InputError, error
from mrseg._files import writable_folder
from mrseg.data.cases import Case, write_cases
from mrseg.data.geometry import check_same_grid, to_canonical, voxel_sizes
from mrseg.data.io import read_ct, read_sidecar, read_volume, write_labels
from mrseg.data.labels import ATTENUATION_CLASSES, class_fractions, hu_to_labels
from mrseg.data.registration import apply_transform, check_quality, register, save_registration
from mrseg.pictures import registration_check, save_png

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How labels are made; written into every label map's sidecar.

    Attributes:
        thresholds_hu: below the first is air, above the second bone.
        stages: of the registration; empty for CT that lies on the MR scan's grid already.
        seed: of the registration's random samples.
        threads: of the registration; another number gives slightly different labels.
    """

    thresholds_hu: tuple[float, float] = (-500.0, 600.0)
    stages: tuple[str, ...] = ("rigid", "bspline")
    seed: int = 0
    threads: int = 2


def prepare(
    cases: Sequence[Case],
    output: str | Path,
    *,
    labelling: Labelling = Labelling(),
    progress: bool = True,
) -> tuple[list[Case], list[Row]]:
    """Makes attenuation labels (air, soft, bone) on the grid of every MR scan of every case that has a CT.

    A scan whose labels exist already, made in the same way from the same files, is not done again.

    Args:
        cases: subjects with images and ``ct``.
        output: folder for ``labels/`` (NIfTI and sidecars), ``pictures/``, ``registrations/`` and
            ``cohort.tsv``.
        labelling: thresholds and registration.
        progress: show a bar.

    Returns:
        The cases with ``labels`` filled in, and one quality row per scan: grid, registration figures, class
        fractions.

    Raises:
        InputError: a case has no CT; a registration failed; nothing of that scan is written.
    """
    output = writable_folder(output)
    prepared, quality = [], []
    scans = sum(len(case.images) for case in cases)
    with tqdm(total=scans, desc="preparing", unit="scan", disable=not progress) as bar:
        for case in cases:
            if case.ct is None:
                raise error(
                    f"Subject {case.subject} needs a CT to make labels from.", "none", "Add a column 'ct'."
                )
            labels = {}
            for sequence, image in case.images.items():
                bar.set_postfix_str(f"{case.subject} {sequence}")
                stem = f"{case.subject}_{sequence}"
                files = _Files(
                    output / "labels" / f"{stem}_dseg.nii.gz",
                    output / "pictures" / f"{stem}.png",
                    output / "registrations" / f"{stem}.json",
                )
                row = _done_already(files.labels, image, case.ct, labelling)
                if row is None:
                    try:
                        row = _label_scan(image, case.ct, files, labelling)
                    except InputError as reason:
                        raise InputError(f"Subject {case.subject}, {sequence}: {reason}") from reason
                labels[sequence] = files.labels
                quality.append({"subject": case.subject, "sequence": sequence, **row})
                bar.update()
            prepared.append(dataclasses.replace(case, labels=labels))
    write_cases(prepared, output / "cohort.tsv")
    return prepared, quality


def _label_scan(image: Path, ct: Path, files: _Files, labelling: Labelling) -> Row:
    mr, ct_volume = read_volume(image), read_ct(ct)
    row: Row = {"shape": "x".join(map(str, mr[0].shape))}
    row["spacing_mm"] = "x".join(f"{size:.3g}" for size in voxel_sizes(mr[1]))
    if labelling.stages:
        registration = register(
            mr, ct_volume, stages=labelling.stages, seed=labelling.seed, threads=labelling.threads
        )
        check_quality(registration)
        ct_hu = apply_transform(registration, ct_volume, (mr[0].shape, mr[1]))
        row.update(registration.quality)
        save_registration(registration, files.registration)
    else:
        check_same_grid(str(image), mr, str(ct), ct_volume)
        ct_hu = ct_volume[0]
    labels = hu_to_labels(ct_hu, thresholds_hu=labelling.thresholds_hu)
    fractions = class_fractions(labels, len(ATTENUATION_CLASSES))
    row.update({f"fraction_{name}": float(f) for name, f in zip(ATTENUATION_CLASSES, fractions, strict=True)})
    figure = registration_check(
        to_canonical(mr)[0],
        {"CT on the MR grid": to_canonical((ct_hu, mr[1]))[0]},
        spacing_mm=voxel_sizes(to_canonical(mr)[1]),
        threshold_hu=labelling.thresholds_hu[1],
        title=files.picture.stem,
    )
    save_png(figure, files.picture, dpi=100)
    provenance = {**_sources(image, ct, labelling), "quality": row}
    write_labels(files.labels, labels, mr[1], ATTENUATION_CLASSES, provenance)
    return row


@dataclasses.dataclass(frozen=True)
class _Files:
    labels: Path
    picture: Path
    registration: Path


def _sources(image: Path, ct: Path, labelling: Labelling) -> dict[str, Any]:
    files = {role: [file.name, file.stat().st_size] for role, file in (("image", image), ("ct", ct))}
    return json.loads(json.dumps({**files, "labelling": dataclasses.asdict(labelling)}))


def _done_already(path: Path, image: Path, ct: Path, labelling: Labelling) -> Row | None:
    """The quality row of labels that were made from the same files in the same way, else None."""
    if not path.exists():
        return None
    try:
        made = read_sidecar(path)["provenance"]
    except (FileNotFoundError, InputError, KeyError):
        return None
    wanted = _sources(image, ct, labelling)
    return made["quality"] if all(made.get(key) == value for key, value in wanted.items()) else None
