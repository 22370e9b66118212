"""The scans of a cohort to be segmented: from a manifest or by their names in a BIDS folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrseg._checks import error
from mrseg.data.bids import bids_files, bids_names, is_bids
from mrseg.data.datasets import read_cohort


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
    as_bids = data.is_dir() and not (data / "cohort.tsv").is_file() and is_bids(data)
    scans, unknown, other = _bids_scans(data, sequence) if as_bids else _manifest_scans(data, sequence)
    if not scans:
        left_out = "; ".join(f"{name}: {reason}" for name, reason in list(unknown.items())[:3])
        raise error(
            f"A cohort has at least one {sequence} scan.",
            f"{data} with {', '.join(sorted(other)) or 'no scans'}" + (f" ({left_out})" if left_out else ""),
            "Name another sequence, or correct the file names.",
        )
    return scans, unknown


def _bids_scans(data: Path, sequence: str) -> tuple[list[Scan], dict[str, str], set[str]]:
    files, unknown = bids_files(data, datatypes=("anat",))
    scans = [Scan(file.path, file.stem, file.place) for file in files if file.suffix == sequence]
    return scans, unknown, {file.suffix for file in files if file.suffix != sequence}


def _manifest_scans(data: Path, sequence: str) -> tuple[list[Scan], dict[str, str], set[str]]:
    scans: dict[str, Scan] = {}
    unknown: dict[str, str] = {}
    other: set[str] = set()
    names: dict[str, str] = {}
    for case in read_cohort(data):
        stem, folder = bids_names(case)
        if stem in names:
            raise error(
                "Subjects' names differ in their letters and digits, which BIDS keeps.",
                f"{case.name!r} and {names[stem]!r}",
                "Rename one in the manifest.",
            )
        names[stem] = case.name
        if sequence in case.images:
            scans[stem] = Scan(case.images[sequence], stem, folder)
        else:
            other |= set(case.images)
            unknown[case.name] = f"no {sequence} image in the manifest"
    return list(scans.values()), unknown, other
