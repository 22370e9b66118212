"""Data sets from archives: SynthRAD2023 and TCGA-GBM. Public as ``mrseg.data.datasets``."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from mrseg._checks import error, existing_folder
from mrseg.data.cases import Case
from mrseg.data.layouts import ENDINGS, Layout, folders

_SYNTHRAD = re.compile(r"1B[A-Z]\d{3}")
_TCGA = re.compile(r"TCGA-\w{2}-\w{4}")


def synthrad2023(folder: str | Path, *, sequence: str = "T1w") -> list[Case]:
    """Returns the brain cases of SynthRAD2023, task 1: pairs of MR and CT. Any folder of such pairs will do.

    The publisher registered MR and CT rigidly and brought both onto one grid: ``mrseg prepare --registered``
    takes them as they are. Outside of the patient's outline, dilated (``mask``), the publisher's programs
    fill the CT with one value, usually -1000 HU, so the labels there are air. The mask is not used.

    Args:
        folder: holds ``1BA001/`` and so on, with ``mr.nii.gz``, ``ct.nii.gz`` and ``mask.nii.gz``; or has
            such folders in ``Task1/brain`` or ``brain``. ``overview`` beside them is left alone.
        sequence: what to call the MR. How each was acquired stands in the sheets of ``overview``.

    Returns:
        Cases with the MR, the CT where it is there (the challenge's validation cases came without), and no
        split.

    Raises:
        FileNotFoundError: the folder, or an MR or mask; all missing ones are named. So is a CT, if others
            have theirs.
        InputError: no subject in the folder.

    Reference:
        Thummerer et al. 2023, arXiv:2303.16320 and doi.org/10.5281/zenodo.7260705 (the abstract was read);
        github.com/SynthRAD2023, preprocessing (Readme.md) and algorithm-template
        (restructure_validation.py), which name the files.
    """
    folder = existing_folder(folder)
    layout = Layout(
        "SynthRAD2023", "Copy them again; SynthRAD2023 comes from doi.org/10.5281/zenodo.7260705."
    )
    cases = []
    subjects = synthrad_subjects(folder)
    with_ct = any((subject / f"ct{ending}").is_file() for subject in subjects for ending in ENDINGS)
    for subject in subjects:
        mr, _ = layout.volume(subject, "mr"), layout.volume(subject, "mask")
        ct = layout.volume(subject, "ct", needed=with_ct)
        cases.append(Case(subject.name, {sequence: mr}, ct if ct.is_file() else None))
    if not cases:
        raise error(
            "The SynthRAD2023 folder holds subjects 1BA001, ... with mr.nii.gz.",
            f"{folder} with {sorted(entry.name for entry in folder.iterdir())[:5]}",
            "Pass the folder Task1/brain.",
        )
    layout.close()
    return cases


@dataclass(frozen=True)
class SeriesFolder:
    """One DICOM series as it lies in a collection.

    Attributes:
        subject: name of the patient's folder.
        study: name of the study's folder.
        series: name of the series' folder.
        path: the folder.
        files: how many ``.dcm`` files it holds.
    """

    subject: str
    study: str
    series: str
    path: Path
    files: int


def series_folders(folder: str | Path) -> list[SeriesFolder]:
    """Lists the series of TCGA-GBM by the names of their folders; no DICOM file is opened.

    Args:
        folder: holds ``<patient>/<study>/<series>/*.dcm``, or a folder TCGA-GBM with these.

    Raises:
        FileNotFoundError: no such folder.
        InputError: no series of a TCGA patient.

    Reference:
        Layout of the Cancer Imaging Archive's downloads: names of folders as public programs have them, such
        as ``TCGA-02-0003/06-08-1997-MRI BRAIN WWO CONTRAMR-81239/1-3-P Localizer-98688/000000.dcm``; the
        archive's own description of them was not found.
    """
    folder = existing_folder(folder)
    found = [
        SeriesFolder(patient.name, study.name, series.name, series, files)
        for patient in tcga_patients(folder)
        for study in folders(patient, "*")
        for series in folders(study, "*")
        if (files := sum(path.suffix.lower() == ".dcm" for path in series.iterdir()))
    ]
    if not found:
        raise error(
            "The TCGA-GBM folder holds TCGA-xx-xxxx/<study>/<series>/*.dcm.",
            f"{folder} with {sorted(entry.name for entry in folder.iterdir())[:5]}",
            "Pass the folder of the collection.",
        )
    return found


def tcga_gbm(folder: str | Path, *, series: str, sequence: str = "dsc") -> list[Case]:
    """Returns one case per patient and study of TCGA-GBM: the folder of the series of that name.

    Args:
        folder: as for ``series_folders``.
        series: pattern of the series folder's name, in capitals or not, such as ``"*perf*"``.
        sequence: what to call it.

    Returns:
        Cases whose image is the folder of a DICOM series, without labels or split. A study is a session.

    Raises:
        InputError: no series fits, or several of one study; these are named.
    """
    fitting: dict[tuple[str, str], list[SeriesFolder]] = {}
    listed = series_folders(folder)
    for one in listed:
        if fnmatch.fnmatch(one.series.lower(), series.lower()):
            fitting.setdefault((one.subject, one.study), []).append(one)
    several = {key: found for key, found in fitting.items() if len(found) > 1}
    if several or not fitting:
        shown = [one.series for found in several.values() for one in found]
        names = shown or sorted({one.series for one in listed})
        raise error(
            f"One series of a study fits {series!r}.",
            f"{'several' if several else 'none'}, {', '.join(names[:5])}",
            "Choose another pattern; series_folders lists what there is.",
        )
    studies = {patient: [key for key in fitting if key[0] == patient] for patient, _ in fitting}
    return [
        Case(
            patient,
            {sequence: found[0].path},
            session=re.sub("[^a-zA-Z0-9]", "", study) if len(studies[patient]) > 1 else "",
        )
        for (patient, study), found in fitting.items()
    ]


def synthrad_subjects(folder: Path) -> list[Path]:
    """The folders of pairs, here or where the archive has them."""
    for inside in (folder, folder / "brain", folder / "Task1" / "brain"):
        subjects = [entry for entry in folders(inside, "*") if _is_pair(entry)]
        if subjects:
            return subjects
    return []


def _is_pair(folder: Path) -> bool:
    return bool(_SYNTHRAD.fullmatch(folder.name)) or any(
        (folder / f"mr{ending}").is_file() for ending in ENDINGS
    )


def tcga_patients(folder: Path) -> list[Path]:
    """The folders of patients, here or in the folder of the collection."""
    for inside in (folder, folder / "TCGA-GBM"):
        patients = [entry for entry in folders(inside, "TCGA-*") if _TCGA.fullmatch(entry.name)]
        if patients:
            return patients
    return []
