"""What a reader of a known data set finds in its folder: the files it needs, those missing, those extra."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

#: Endings a volume of a data set may have: as published, unpacked, or converted.
ENDINGS = (".nii.gz", ".nii", ".mhd", ".mha")

_LOGGER = logging.getLogger(__name__)
_SHOWN = 10  # names in a warning


class Layout:
    """The account of one reader: it asks for files by their published names, and closes the account.

    Args:
        name: of the data set, for the messages.
        remedy: what a user does when files are missing.
    """

    def __init__(self, name: str, remedy: str):
        self.name = name
        self.remedy = remedy
        self._known: set[Path] = set()
        self._folders: set[Path] = set()
        self._missing: list[Path] = []
        self._absent: list[str] = []

    def volume(self, folder: Path, stem: str, *, needed: bool = True) -> Path:
        """The file ``folder/stem`` with one of the endings; a needed one that is not there is noted.

        Returns:
            The file, or the name it has as published, whether it is there or not.
        """
        self._folders.add(folder)
        for ending in ENDINGS:
            path = folder / f"{stem}{ending}"
            if path.is_file():
                self._known |= {path, folder / f"{stem}.raw", folder / f"{stem}.zraw"}  # beside an .mhd
                return path
        path = folder / f"{stem}{ENDINGS[0]}"
        if needed:
            self._missing.append(path)
        return path

    def allow(self, folder: Path, stems: Iterable[str]) -> None:
        """Notes files that the data set has and the reader does not use."""
        for stem in stems:
            self.volume(folder, stem, needed=False)

    def subjects(self, found: Collection[str], published: Iterable[str]) -> None:
        """Compares the subjects that are there with those the data set has."""
        published = list(published)
        self._absent += [name for name in published if name not in found]
        strange = sorted(set(found) - set(published))
        if strange:
            _LOGGER.warning("%s has no subject %s; read all the same.", self.name, _some(strange))

    def close(self) -> None:
        """Says what is extra or absent, and raises if a needed file is missing.

        Raises:
            FileNotFoundError: names every missing file.
        """
        extra = sorted(
            path
            for folder in self._folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path not in self._known and not path.name.startswith(".")
        )
        if extra:
            _LOGGER.warning("%s: files of no known name, not used: %s.", self.name, _some(map(str, extra)))
        if self._absent:
            _LOGGER.warning("%s is not complete here: without %s.", self.name, _some(self._absent))
        if self._missing:
            raise FileNotFoundError(
                f"Every subject of {self.name} has its files. Received: a folder without "
                f"{', '.join(map(str, self._missing))}. {self.remedy}"
            )


def folders(folder: Path, pattern: str) -> list[Path]:
    """The folders in a folder whose names fit the pattern, sorted; none where there is no such folder."""
    return sorted(entry for entry in folder.glob(pattern) if entry.is_dir()) if folder.is_dir() else []


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
