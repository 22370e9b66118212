"""The scans of a cohort to be segmented: from a manifest or by their names in a BIDS folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mrseg._checks import error
from mrseg.data.datasets import read_cohort

_NAME = re.compile(
    r"sub-(?P<subject>[a-zA-Z0-9]+)(?:_ses-(?P<session>[a-zA-Z0-9]+))?(?P<entities>(?:_[a-z]+-[a-zA-Z0-9]+)*)"
    r"_(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?"
)


@dataclass(frozen=True)
class Scan:
    """One scan of a cohort.

    Attributes:
        path: the file.
        stem: ``sub-01`` or ``sub-01_ses-2_run-1``: its BIDS name without the suffix.
        folder: ``sub-01/anat`` or ``sub-01/ses-2/anat``: where its derivatives go.
    """

    path: Path
    stem: str
    folder: Path


def find_scans(data: str | Path, sequence: str) -> tuple[list[Scan], dict[str, str]]:
    """The scans of one sequence in a cohort, and what was not understood.

    Args:
        data: a manifest or the folder of a known data set (`mrseg.data.datasets.read_cohort`), or a BIDS
            folder with ``sub-<label>[_ses-<label>][_<key>-<value>...]_<suffix>.nii[.gz]`` in
            ``sub-<label>[/ses-<label>]/anat``.
        sequence: column of the manifest, or suffix in the BIDS folder (``T1w``, ``T2w``, ``FLAIR``).

    Returns:
        Scans sorted by name, and name -> reason of subjects and files that were left out.

    Raises:
        InputError: no scan of the sequence, or two subjects of a manifest whose names become one BIDS label.
    """
    data = Path(data)
    is_bids = data.is_dir() and not (data / "cohort.tsv").is_file() and any(data.glob("sub-*"))
    scans, unknown, other = _bids_scans(data, sequence) if is_bids else _manifest_scans(data, sequence)
    if not scans:
        left_out = "; ".join(f"{name}: {reason}" for name, reason in list(unknown.items())[:3])
        raise error(
            f"A cohort has at least one {sequence} scan.",
            f"{data} with {', '.join(sorted(other)) or 'no scans'}" + (f" ({left_out})" if left_out else ""),
            "Name another sequence, or correct the file names.",
        )
    return scans, unknown


def _bids_scans(data: Path, sequence: str) -> tuple[list[Scan], dict[str, str], set[str]]:
    scans: dict[str, Scan] = {}
    unknown: dict[str, str] = {}
    other: set[str] = set()
    for folder in sorted([*data.glob("sub-*/anat"), *data.glob("sub-*/ses-*/anat")]):
        for path in sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz"))):
            name = path.relative_to(data).as_posix()
            match = _NAME.fullmatch(path.name)
            if not match:
                unknown[name] = "the name is not sub-<label>[_ses-<label>][_<key>-<value>...]_<suffix>"
                continue
            session = match["session"]
            place = Path(f"sub-{match['subject']}", *([f"ses-{session}"] if session else []), "anat")
            stem = path.name.split(".")[0].removesuffix(f"_{match['suffix']}")
            if place != folder.relative_to(data):
                unknown[name] = f"the name belongs into {place}"
            elif match["suffix"] != sequence:
                other.add(match["suffix"])
            elif "_desc-" in stem:
                unknown[name] = "a derivative (desc-), not a scan"
            elif stem in scans:
                unknown[name] = "a second file of one name, .nii and .nii.gz"
            else:
                scans[stem] = Scan(path, stem, place)
    return list(scans.values()), unknown, other


def _manifest_scans(data: Path, sequence: str) -> tuple[list[Scan], dict[str, str], set[str]]:
    scans: dict[str, Scan] = {}
    unknown: dict[str, str] = {}
    other: set[str] = set()
    names: dict[str, str] = {}
    for case in read_cohort(data):
        label = re.sub("[^a-zA-Z0-9]", "", case.subject.removeprefix("sub-"))
        stem = f"sub-{label}"
        if not label or stem in names:
            raise error(
                "Subjects' names differ in their letters and digits, which BIDS keeps.",
                f"{case.subject!r}" + (f" and {names[stem]!r}" if stem in names else ""),
                "Rename one in the manifest.",
            )
        names[stem] = case.subject
        if sequence in case.images:
            scans[stem] = Scan(case.images[sequence], stem, Path(stem, "anat"))
        else:
            other |= set(case.images)
            unknown[case.subject] = f"no {sequence} image in the manifest"
    return list(scans.values()), unknown, other
