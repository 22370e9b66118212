"""BIDS folders: which of their files are scans and label maps, and the cases these make.

Names are checked by the bids-validator where it is installed (``pip install 'mrseg[bids]'``); a name that it
refuses is told, and read all the same if its parts are clear. BIDS has neither CT nor DSC perfusion:
``ct/..._ct`` and ``perf/..._dsc`` are read in the form of its other names.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mrseg._checks import error, existing_folder
from mrseg.data.cases import Case

_NAME = re.compile(
    r"sub-(?P<subject>[a-zA-Z0-9]+)(?:_ses-(?P<session>[a-zA-Z0-9]+))?(?P<entities>(?:_[a-z]+-[a-zA-Z0-9]+)*)"
    r"_(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?"
)
_FORM = "the name is not sub-<label>[_ses-<label>][_<key>-<value>...]_<suffix>"
#: Folder of a datatype -> whether its names are in the BIDS standard; of "perf" only those of ASL are.
_DATATYPES = {"anat": True, "ct": False, "perf": False}
_LABELS = "dseg"
_NO_SCANS = frozenset((_LABELS, "mask", "probseg", "defacemask"))

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BidsFile:
    """One NIfTI file of a BIDS folder, taken apart.

    Attributes:
        path: the file.
        subject: label after ``sub-``.
        session: label after ``ses-``, or "".
        entities: the other keys and values, such as ``{"run": "1"}``.
        suffix: ``T1w``, ``ct``, ``dseg``, ...
        place: ``sub-01/ses-2/anat``: its folder.
    """

    path: Path
    subject: str
    session: str
    entities: dict[str, str]
    suffix: str
    place: Path

    @property
    def stem(self) -> str:
        """The name without suffix and ending: ``sub-01_ses-2_run-1``."""
        return self.path.name.split(".")[0].removesuffix(f"_{self.suffix}")


def is_bids(folder: str | Path) -> bool:
    """Whether a folder looks like BIDS: it has ``sub-*`` folders with a folder of scans."""
    folder = Path(folder)
    return any(any(folder.glob(f"sub-*/{way}{kind}")) for kind in _DATATYPES for way in ("", "ses-*/"))


def bids_files(
    folder: str | Path, *, datatypes: tuple[str, ...] = tuple(_DATATYPES), derivative: bool = False
) -> tuple[list[BidsFile], dict[str, str]]:
    """Takes the names of all NIfTI files in a BIDS folder apart.

    Args:
        folder: holds ``sub-<label>[/ses-<label>]/<datatype>/``.
        datatypes: folders to look into.
        derivative: whether the folder is one of derivatives, whose names BIDS leaves freer.

    Returns:
        The files sorted by folder and name, and file -> reason of those whose names were not understood.
    """
    folder = Path(folder)
    valid = None if derivative else _validator()
    files: dict[tuple[Path, str], BidsFile] = {}
    unknown: dict[str, str] = {}
    for datatype, path in _volumes(folder, datatypes):
        name = path.relative_to(folder).as_posix()
        match = _NAME.fullmatch(path.name)
        if not match:
            unknown[name] = _FORM
            continue
        session = match["session"] or ""
        place = Path(f"sub-{match['subject']}", *([f"ses-{session}"] if session else []), datatype)
        entities = dict(part.split("-") for part in match["entities"].split("_")[1:])
        file = BidsFile(path, match["subject"], session, entities, match["suffix"], place)
        key = (place, f"{file.stem}_{file.suffix}")
        if place != path.parent.relative_to(folder):
            unknown[name] = f"the name belongs into {place}"
        elif not derivative and "desc" in entities:
            unknown[name] = "a derivative (desc-), not a scan"
        elif key in files:
            unknown[name] = "a second file of one name, .nii and .nii.gz"
        else:
            files[key] = file
            if valid and _DATATYPES[datatype] and not valid(f"/{name}"):
                _LOGGER.warning("%s is no name of BIDS, says the bids-validator; read all the same.", name)
    return list(files.values()), unknown


def bids_names(case: Case) -> tuple[str, Path]:
    """The BIDS name of a case and the folder of its derivatives: ``sub-01_ses-2``, ``sub-01/ses-2/anat``.

    Raises:
        InputError: nothing of a name is a letter or digit, which is what BIDS keeps.
    """
    parts = [("sub", case.subject), *([("ses", case.session)] if case.session else [])]
    labels = [f"{key}-{re.sub('[^a-zA-Z0-9]', '', value.removeprefix(f'{key}-'))}" for key, value in parts]
    if any(label.endswith("-") for label in labels):
        raise error(
            "A subject's name has letters or digits, which BIDS keeps.", repr(case.name), "Rename it."
        )
    return "_".join(labels), Path(*labels, "anat")


def bids(folder: str | Path, *, labels: str | Path | None = None) -> list[Case]:
    """Returns the cases of a BIDS folder, one per subject and session.

    Args:
        folder: holds ``sub-<label>[/ses-<label>]/`` with ``anat/`` (``_T1w``, ``_T2w``, ``_FLAIR``, ...),
            ``ct/`` (``_ct``) and ``perf/`` (``_dsc``). A session without CT takes that of another session,
            if the subject has one CT only.
        labels: folder of the derivatives that hold the label maps, ``*_dseg.nii.gz``; by default the one in
            ``folder/derivatives`` that has any. A map belongs to the sequence that its entity ``space`` or
            ``orig`` names, or to the scan whose name it continues.

    Returns:
        Cases whose sequences are the suffixes, without split. What is left out (a name not understood, a
        second run of a sequence) is logged.

    Raises:
        FileNotFoundError: no such folder.
        InputError: no scan in the folder; label maps in several derivatives.

    Reference:
        BIDS 1.9.0, bids-specification.readthedocs.io: "Magnetic Resonance Imaging", "Derivatives".
    """
    folder = existing_folder(folder)
    files, unknown = bids_files(folder)
    maps, unknown_maps = _label_maps(folder, labels)
    images: dict[tuple[str, str], dict[str, BidsFile]] = {}
    cts: dict[str, dict[str, Path]] = {}
    for file in files:
        if file.place.name == "ct" and file.suffix == "ct":
            first = cts.setdefault(file.subject, {}).setdefault(file.session, file.path)
            if first != file.path:
                unknown[file.path.name] = f"a second CT, beside {first.name}"
        elif file.suffix not in _NO_SCANS and file.place.name != "ct":
            scans = images.setdefault((file.subject, file.session), {})
            if scans.setdefault(file.suffix, file) is not file:
                unknown[file.path.name] = f"a second {file.suffix}, beside {scans[file.suffix].path.name}"
    for name, reason in {**unknown, **unknown_maps}.items():
        _LOGGER.warning("%s is left out: %s.", name, reason)
    if not images:
        raise error(
            "A BIDS folder has scans in sub-<label>[/ses-<label>]/anat or perf.",
            f"{folder} with {', '.join(sorted(entry.name for entry in folder.iterdir())[:5]) or 'nothing'}",
            "Name the files as BIDS does, or write a manifest.",
        )
    return [
        Case(
            subject,
            {suffix: file.path for suffix, file in scans.items()},
            _ct_of(cts.get(subject, {}), session),
            {s: found for s, file in scans.items() if (found := _labels_of(file, len(scans), maps))},
            session=session,
        )
        for (subject, session), scans in images.items()
    ]


def _volumes(folder: Path, datatypes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for datatype in datatypes:
        for place in sorted([*folder.glob(f"sub-*/{datatype}"), *folder.glob(f"sub-*/ses-*/{datatype}")]):
            for path in sorted(place.iterdir()):
                if path.name.endswith((".nii", ".nii.gz")):
                    yield datatype, path


def _ct_of(cts: dict[str, Path], session: str) -> Path | None:
    return cts.get(session) or (next(iter(cts.values())) if len(cts) == 1 else None)


def _label_maps(folder: Path, labels: str | Path | None) -> tuple[list[BidsFile], dict[str, str]]:
    """The label maps of the derivatives, and what was not understood there."""
    places = [existing_folder(labels)] if labels else sorted((folder / "derivatives").glob("*"))
    found = {}
    for place in places:
        files, unknown = bids_files(place, datatypes=("anat", "perf"), derivative=True)
        maps = [file for file in files if file.suffix == _LABELS]
        if maps:
            found[place] = maps, unknown
    if len(found) > 1:
        raise error(
            "Label maps come from one folder of derivatives.",
            f"some in {', '.join(place.name for place in found)}",
            "Name one: mrseg.data.datasets.bids(folder, labels=...), written as a manifest by write_cases.",
        )
    return next(iter(found.values()), ([], {}))


def _labels_of(scan: BidsFile, sequences: int, maps: list[BidsFile]) -> Path | None:
    """The label map of a scan; one that names no sequence belongs to the only sequence there is."""
    own = [file for file in maps if (file.subject, file.session) == (scan.subject, scan.session)]
    named = [file for file in own if scan.suffix in (file.entities.get("space"), file.entities.get("orig"))]
    plain = [file for file in own if sequences == 1 and not {"space", "orig"} & set(file.entities)]
    chosen = named or plain
    if len(chosen) > 1:
        raise error(
            f"{scan.path.name} has one label map.",
            ", ".join(file.path.name for file in chosen),
            "Move the others away, or write a manifest.",
        )
    return chosen[0].path if chosen else None


@functools.cache
def _validator() -> Callable[[str], bool] | None:
    """Says of a path from the folder's root, with a slash before it, if BIDS has it; None: not installed."""
    try:
        from bids_validator import BIDSValidator
    except ImportError:
        _LOGGER.info("bids-validator is not installed: names of BIDS files are read, but not validated.")
        return None
    return BIDSValidator().is_bids
