"""Known data sets, from their folder to cases. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from mrseg._checks import error, existing_folder
from mrseg.data.cases import Case, read_cases

# The layout of the course that Islam and Tabassum (2025) took part in. Its test set was published without
# labels, so the
# validation set is what results are reported on: it is our test split and decides nothing in training.
_IBSR18_SETS = {"Training_Set": "train", "Validation_Set": "test", "Test_Set": ""}


def read_cohort(path: str | Path) -> list[Case]:
    """Returns the cases of a manifest (``.tsv``) or of a folder whose data set is known.

    Raises:
        FileNotFoundError: no such file or folder.
        InputError: a folder of no known layout, and what the readers raise.
    """
    path = Path(path)
    if not path.is_dir():
        return read_cases(path)
    if (path / "cohort.tsv").is_file():
        return read_cases(path / "cohort.tsv")
    if any((path / name).is_dir() for name in _IBSR18_SETS):
        return ibsr18(path)
    raise error(
        "A folder of scans holds cohort.tsv, or the layout of a known data set (IBSR18).",
        f"{path} with {sorted(entry.name for entry in path.iterdir())[:5]}",
        "Write a manifest: mrseg prepare --help shows one.",
    )


def ibsr18(folder: str | Path) -> list[Case]:
    """Returns the cases of IBSR18 in the layout of Islam and Tabassum 2025.

    Args:
        folder: holds ``Training_Set``, ``Validation_Set`` and ``Test_Set`` (at least one of them), each with
            ``IBSR_xx/IBSR_xx.nii.gz`` (skull-stripped T1-w) and ``IBSR_xx/IBSR_xx_seg.nii.gz``
            (``mrseg.data.labels.TISSUE_CLASSES``). The test set was published without labels.

    Returns:
        Cases sorted by set and subject, sequence "T1w"; split "train" for the training set, "test" for the
        validation set, and none for the unlabelled test set.

    Raises:
        FileNotFoundError: the folder, or files of it; all missing ones are named.
        InputError: no set or no subject in the folder.

    Reference:
        Islam and Tabassum 2025, Data; IBSR18: Center for Morphometric Analysis,
        Massachusetts General Hospital.
    """
    folder = existing_folder(folder)
    subjects = [
        (subject, split)
        for name, split in _IBSR18_SETS.items()
        for subject in sorted((folder / name).glob("IBSR_*"))
        if subject.is_dir()
    ]
    if not subjects:
        raise error(
            "The IBSR18 folder holds Training_Set/IBSR_xx, Validation_Set/IBSR_xx or Test_Set/IBSR_xx.",
            f"{folder} with {sorted(entry.name for entry in folder.iterdir())[:5]}",
            "Pass the folder above the sets; IBSR18 itself comes from www.nitrc.org/projects/ibsr.",
        )
    missing: list[Path] = []
    cases = []
    for subject, split in subjects:
        image, labels = (subject / f"{subject.name}{ending}.nii.gz" for ending in ("", "_seg"))
        needed = [image, labels] if split else [image]
        missing += [file for file in needed if not file.is_file()]
        labels_of = {"T1w": labels} if labels.is_file() else {}
        cases.append(Case(subject.name, {"T1w": image}, None, labels_of, split))
    if missing:
        raise FileNotFoundError(
            "Every IBSR18 subject has its image, and labels outside the test set. Received: a folder without "
            f"{', '.join(str(file) for file in missing)}. Copy the missing files again."
        )
    return cases
