"""From raw scans to training data: CT registered onto every MR scan and thresholded into labels.

Sources: mecheter2020 and mecheter2023 section 3.2 (Elastix: rigid Euler, then B-spline; bone > 600 HU, air <
-500 HU).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrseg import __version__
from mrseg._checks import IGNORE_LABEL, InputError, error
from mrseg._files import atomic_file, checksum, clear_abandoned, writable_folder
from mrseg.data.bids import bids_names
from mrseg.data.cases import Case, write_cases
from mrseg.data.geometry import Volume, check_same_grid, to_canonical, voxel_sizes
from mrseg.data.io import read_ct, read_sidecar, read_volume, scan_files, scan_name, write_labels
from mrseg.data.labels import ATTENUATION_CLASSES, class_fractions, hu_to_labels, write_label_table
from mrseg.data.registration import apply_transform, check_quality, register, save_registration
from mrseg.data.writing import disown
from mrseg.derivatives import describe
from mrseg.formats import write_csv
from mrseg.jobs import LOST, check_shared, run_jobs
from mrseg.pictures import View, registration_check, save_png, thumbnail
from mrseg.quality import scan_figures, write_quality

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
    scheduler: str = "",
    progress: bool = True,
) -> tuple[list[Case], list[Row]]:
    """Makes attenuation labels (air, soft, bone) on the grid of every MR scan of every case that has a CT.

    A scan whose labels exist already, made in the same way from the same files, is not done again.

    Args:
        cases: subjects with images and ``ct``.
        output: folder of BIDS derivatives: ``sub-01/anat/sub-01_space-T1w_dseg.nii.gz`` (labels on the grid
            of the T1-w scan) with ``.tsv`` (label table) and ``.json`` (origin); beside them ``pictures/``,
            ``registrations/``, ``cohort.tsv``, and the page ``quality.html`` with its figures,
            ``quality.csv``.
        labelling: thresholds and registration.
        workers, scheduler: who shares the scans, as `mrseg.jobs.run_jobs` takes them. The labels do not
            depend on it.
        progress: show a bar.

    Returns:
        The cases with ``labels`` filled in, and one quality row per scan: grid, intensities, registration
        figures, class fractions.

    Raises:
        InputError: a case has no CT; two have one name in BIDS; the folder is another data set's; a
            registration failed: nothing of that scan is written, the others are, and ``quality.html`` has
            all.
    """
    for case in cases:
        if case.ct is None:
            raise error(f"Subject {case.name} needs a CT to make labels from.", "none", "Add a column 'ct'.")
    # Workers elsewhere may have been started in another folder.
    folder = Path(output).absolute()
    scans = [
        _Scan(case.name, *bids_names(case), name, image.absolute(), case.ct.absolute(), folder)
        for case in cases
        for name, image in case.images.items()
        if case.ct
    ]
    twice = [name for name, count in Counter(scan.stem for scan in scans).items() if count > 1]
    if twice:
        raise error(
            "Names of subjects and sequences differ in their letters and digits, which BIDS keeps.",
            f"several {', '.join(twice[:5])}",
            "Rename one, or fill the column 'session'.",
        )
    output = writable_folder(output)
    describe(output, "mrseg: labels from CT")
    clear_abandoned(output)
    job = functools.partial(_prepare_scan, labelling=labelling)
    quality = run_jobs(
        job, scans, workers=workers, scheduler=scheduler, desc="preparing", unit="scan", progress=progress,
        lost=_lost,
    )  # fmt: skip
    check_shared(s.labels for s, row in zip(scans, quality, strict=True) if "refused" not in row)
    write_csv(quality, output / "quality.csv")
    shown = [{**row, **scan.pictures} for row, scan in zip(quality, scans, strict=True)]
    write_quality(shown, output, {"mrseg": __version__, **dataclasses.asdict(labelling)})
    refused = [row for row in quality if "refused" in row]
    if refused:
        raise InputError(
            f"Subject {refused[0]['subject']}, {refused[0]['sequence']}: {refused[0]['refused']}"
            + (f" ({len(refused) - 1} more in {output / 'quality.html'})" if len(refused) > 1 else "")
        )
    labels = {(scan.subject, scan.sequence): output / scan.labels.relative_to(scan.output) for scan in scans}
    prepared = [
        dataclasses.replace(case, labels={name: labels[case.name, name] for name in case.images})
        for case in cases
    ]
    write_cases(prepared, output / "cohort.tsv")
    return prepared, quality


@dataclasses.dataclass(frozen=True)
class _Scan:
    """One scan to label, and where its results go."""

    subject: str
    bids: str
    place: Path
    sequence: str
    image: Path
    ct: Path
    output: Path

    @property
    def stem(self) -> str:
        return f"{self.bids}_space-{re.sub('[^a-zA-Z0-9]', '', self.sequence)}"

    @property
    def labels(self) -> Path:
        return self.output / self.place / f"{self.stem}_dseg.nii.gz"

    @property
    def table(self) -> Path:
        return self.output / self.place / f"{self.stem}_dseg.tsv"

    @property
    def picture(self) -> Path:
        return self.output / "pictures" / f"{self.stem}.png"

    @property
    def thumbnail(self) -> Path:
        return self.output / "pictures" / "small" / f"{self.stem}.png"

    @property
    def pictures(self) -> dict[str, str]:
        """Of the quality page, as seen from there."""
        files = {"picture": self.picture, "thumbnail": self.thumbnail}
        return {key: file.relative_to(self.output).as_posix() for key, file in files.items()}

    @property
    def registration(self) -> Path:
        return self.output / "registrations" / f"{self.stem}.json"


def _prepare_scan(scan: _Scan, labelling: Labelling) -> Row:
    row = _done_already(scan, labelling)
    if row is None:
        try:
            row = _label_scan(scan, labelling)
        except InputError as reason:  # told at the end: the other scans do not suffer from it
            row = {"refused": str(reason)}
    return {"subject": scan.subject, "sequence": scan.sequence, **row}


def _lost(scan: _Scan) -> Row:
    return {"subject": scan.subject, "sequence": scan.sequence, "refused": LOST}


def _label_scan(scan: _Scan, labelling: Labelling) -> Row:
    mr, ct_volume = read_volume(scan.image), read_ct(scan.ct)
    row: Row = scan_figures(mr)
    if labelling.stages:
        registration = register(mr, ct_volume, stages=labelling.stages, seed=labelling.seed)
        check_quality(registration)
        ct_hu = apply_transform(registration, ct_volume, (mr[0].shape, mr[1]))
        row.update(registration.quality)
        disown(scan.labels)
        save_registration(registration, scan.registration)
    else:
        check_same_grid(str(scan.image), mr, str(scan.ct), ct_volume)
        ct_hu = ct_volume[0]
    labels = hu_to_labels(ct_hu, thresholds_hu=labelling.thresholds_hu)
    fractions = class_fractions(labels, len(ATTENUATION_CLASSES))
    row.update({f"fraction_{name}": float(f) for name, f in zip(ATTENUATION_CLASSES, fractions, strict=True)})
    row["ignored"] = float((labels == IGNORE_LABEL).mean())
    disown(scan.labels)
    _draw(scan, mr, ct_hu, labels, labelling.thresholds_hu[1])
    write_label_table(scan.table, ATTENUATION_CLASSES)
    provenance = {"mrseg": __version__, **_sources(scan, labelling), "quality": row}
    write_labels(scan.labels, labels, mr[1], ATTENUATION_CLASSES, provenance)
    return row


def _draw(scan: _Scan, mr: Volume, ct_hu: np.ndarray, labels: np.ndarray, threshold_hu: float) -> None:
    """The picture to look at, and a small one for the page."""
    array, affine = to_canonical(mr)
    spacing_mm = voxel_sizes(affine)
    figure = registration_check(
        array,
        {"CT on the MR grid": to_canonical((ct_hu, mr[1]))[0]},
        spacing_mm=spacing_mm,
        threshold_hu=threshold_hu,
        title=scan.picture.stem,
    )
    save_png(figure, scan.picture, dpi=100)
    small = thumbnail(
        array,
        to_canonical((labels, mr[1]))[0],
        class_names=ATTENUATION_CLASSES,
        spacing_mm=spacing_mm,
        view=View(focus="bone", colours={"soft": None}),
    )
    with atomic_file(scan.thumbnail) as temporary:
        temporary.write_bytes(small)


def _sources(scan: _Scan, labelling: Labelling) -> dict[str, Any]:
    files = {
        role: {"name": scan_name(file), "sha256": checksum(scan_files(file))}
        for role, file in (("image", scan.image), ("ct", scan.ct))
    }
    return json.loads(json.dumps({**files, "labelling": dataclasses.asdict(labelling)}))


def _done_already(scan: _Scan, labelling: Labelling) -> Row | None:
    """The quality row of labels that were made from the same files in the same way, else None."""
    if not all(path.exists() for path in (scan.labels, scan.table, scan.picture, scan.thumbnail)):
        return None
    try:
        made = read_sidecar(scan.labels)["provenance"]
    except (FileNotFoundError, InputError, KeyError):
        return None
    wanted = _sources(scan, labelling)
    return made["quality"] if all(made.get(key) == value for key, value in wanted.items()) else None
