"""Known data sets, from their folder to cases. Nothing is downloaded.

A reader names every file that it needs and does not find, and logs what it does not know. Its docstring says
where the layout was read. Of these sets only IBSR18, in the course's layout, was at hand when it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mrseg._checks import error
from mrseg.data.archive_sets import (
    SeriesFolder,
    series_folders,
    synthrad2023,
    synthrad_subjects,
    tcga_gbm,
    tcga_patients,
)
from mrseg.data.bids import bids, is_bids
from mrseg.data.cases import Case, read_cases
from mrseg.data.tissue_sets import (
    ibsr18,
    is_ibsr18,
    is_mrbrains13,
    is_neobrains12,
    mrbrains13,
    neobrains12,
)

__all__ = [
    "SeriesFolder", "bids", "ibsr18", "mrbrains13", "neobrains12", "read_cohort", "series_folders",
    "synthrad2023", "tcga_gbm",
]  # fmt: skip

_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path], list[Case]]], ...] = (
    (is_bids, bids),
    (is_ibsr18, ibsr18),
    (is_mrbrains13, mrbrains13),
    (is_neobrains12, neobrains12),
    (lambda folder: bool(synthrad_subjects(folder)), synthrad2023),
)


def read_cohort(path: str | Path) -> list[Case]:
    """Returns the cases of a manifest (``.tsv``), a BIDS folder, or a folder whose data set is known.

    Raises:
        FileNotFoundError: no such file or folder.
        InputError: a folder of no known layout, and what the readers raise.
    """
    path = Path(path)
    if not path.is_dir():
        return read_cases(path)
    if (path / "cohort.tsv").is_file():
        return read_cases(path / "cohort.tsv")
    for known, reader in _READERS:
        if known(path):
            return reader(path)
    if tcga_patients(path):
        raise error(
            "TCGA-GBM holds many DICOM series of a patient, and one has to be chosen.",
            path,
            "mrseg.data.datasets.series_folders lists them; tcga_gbm(folder, series='*PERF*') makes cases.",
        )
    raise error(
        "A folder of scans holds cohort.tsv, BIDS (sub-*), or the layout of a known data set (IBSR18, "
        "MRBrainS13, NeoBrainS12, SynthRAD2023).",
        f"{path} with {sorted(entry.name for entry in path.iterdir())[:5]}",
        "Write a manifest: mrseg prepare --help shows one.",
    )
