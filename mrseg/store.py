"""Trained weights on disk: the segmenter folder's parts, a local store with names, import and export.

A segmenter folder holds a card (``segmenter.json``: data, recipe, versions, licence, checksum) and the
network. The store is the folder that the environment variable MRSEG_WEIGHTS names, or ``~/.mrseg/weights``;
a few small networks come with mrseg itself. Nothing is ever fetched from a network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrseg._checks import choice, error, existing_file, existing_folder, nearest
from mrseg._files import atomic_file, atomic_folder, checksum

VARIABLE = "MRSEG_WEIGHTS"
BUILT_IN = Path(__file__).parent / "weights"
CARD = "segmenter.json"
#: The files that hold the network, by the type its weights are stored in.
NETWORK_FILES = {
    "float32": ("network.keras",),
    "float16": ("network.json", "weights.npz"),
}
#: An archive that unpacks to more is refused.
LARGEST_BYTES = 4 * 1024**3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_KEYS = ("class_names", "sequence", "preprocessing", "sampling", "provenance", "network_sha256")


@dataclass(frozen=True)
class Stored:
    """One trained segmenter that can be loaded by name.

    Attributes:
        name: for ``mrseg.Segmenter.load(name)``.
        folder: where it lies.
        card: all that its card says.
    """

    name: str
    folder: Path
    card: dict[str, Any]

    @property
    def builder(self) -> str:
        """Name of the network's builder, as far as the card tells."""
        return builder_of(self.card["provenance"])

    @property
    def built_in(self) -> bool:
        """Whether it came with mrseg."""
        return self.folder.parent == BUILT_IN


def builder_of(provenance: Mapping[str, Any]) -> str:
    """Name of the builder that a segmenter's provenance tells, or ""."""
    place: Any = provenance
    for key in ("recipe", "network", "builder"):
        place = place.get(key, "") if isinstance(place, Mapping) else ""
    return str(place)


def store_folder() -> Path:
    """Where imported weights lie: $MRSEG_WEIGHTS, or ``~/.mrseg/weights``."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".mrseg" / "weights")


def list_weights() -> tuple[Stored, ...]:
    """Every segmenter that loads by name: those of the store, then those that come with mrseg.

    A folder of the store whose card cannot be read is left out.
    """
    found: dict[str, Stored] = {}
    for place in (store_folder(), BUILT_IN):
        for card in sorted(place.glob(f"*/{CARD}")):
            name = card.parent.name
            if name not in found and not name.startswith("."):
                try:
                    found[name] = Stored(name, card.parent, _card(card.parent))
                except (ValueError, OSError):
                    continue
    return tuple(found.values())


def find(name_or_folder: str | Path) -> Path:
    """The folder of weights by name; anything that is a path stays as it is.

    Raises:
        InputError: neither a folder nor a name of the store; the message lists the names.
    """
    text = str(name_or_folder)
    if Path(name_or_folder).exists() or not _NAME.fullmatch(text):
        return Path(name_or_folder)
    by_name = {stored.name: stored.folder for stored in list_weights()}
    if text not in by_name:
        remedy = nearest(text, by_name) or "Is the path right? `mrseg weights` lists the names."
        raise FileNotFoundError(
            f"A segmenter is a folder or the name of stored weights ({', '.join(by_name) or 'none'}). "
            f"Received: {text!r}. {remedy}"
        )
    return by_name[text]


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a segmenter folder, once its network is known to be the one it describes.

    Raises:
        FileNotFoundError: a part is missing; the message names it.
        InputError: the card is damaged, or the checksum is another.
    """
    card = _card(folder)
    check_network(folder / CARD, card, network_files(folder, card))
    return card


def parse_card(file: Path, keys: Iterable[str], check: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """A card's JSON, every key there; ``check`` raises for what else must hold.

    Raises:
        InputError: it is damaged, or a key is missing.
    """
    rule = f"{file.name} must be the card that mrseg wrote."
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in keys if key not in card]
        check(card)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as reason:
        raise error(rule, f"{file} ({reason!r})") from None
    if missing:
        raise error(rule, f"{file} without {missing[0]}")
    return card


def check_network(file: Path, card: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Raises InputError unless the network's files have the checksum that the card names."""
    if checksum(files) != card.get("network_sha256"):
        raise error(
            f"The network must be the one that {file.name} describes.",
            f"{file.parent}, whose network has another checksum",
            "A file is damaged or was exchanged; copy the folder again.",
        )


def check_replaceable(folder: Path, card: str, what: str, named: str) -> None:
    """Raises InputError if a folder holds something that is no ``what``, which writing one would lose.

    Args:
        folder: where one is to be written.
        card: the file that marks one.
        what: with its article, say ``a segmenter``.
        named: a folder's usual name.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / card).is_file():
        raise error(
            f"{what[0].upper()}{what[1:]} replaces {what} or an empty folder only.",
            f"{folder}, which holds other files",
            f"Name a folder of its own, say {folder / named}.",
        )


def network_files(folder: Path, card: dict[str, Any]) -> tuple[Path, ...]:
    """The files of a segmenter folder that hold the network."""
    return tuple(folder / file for file in NETWORK_FILES[card.get("weights_dtype", "float32")])


def import_weights(
    source: str | Path, name: str = "", *, check: Callable[[Path], object] | None = None
) -> Stored:
    """Copies a segmenter folder or an archive from `export_weights` into the store, as a whole.

    Args:
        source: folder, or ``.zip``.
        name: under which it will load; the folder's or the archive's own unless given.
        check: called with the copied folder before it is stored, to raise if the network does not load
            (``Segmenter.load``).

    Returns:
        What was stored.

    Raises:
        FileNotFoundError: no such file, or a part is missing in it.
        InputError: a damaged card, another checksum, a name that is taken or impossible, an archive that
            holds other files, leads out of its folder or unpacks to more than 4 GiB.
    """
    source = Path(source)
    name = name or source.name.removesuffix(".zip")
    if not _NAME.fullmatch(name):
        raise error("A name has letters, digits, '_', '-' and '.'.", repr(name), "Give another name.")
    target = store_folder() / name
    if target.exists() or (BUILT_IN / name).exists():
        raise error(
            "Stored weights are not replaced.", f"{name}, which is there already", "Give another name."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target, replace=False) as temporary:
        if source.suffix == ".zip":
            _unpack(existing_file(source), temporary)
        else:
            card = _card(existing_folder(source))
            for file in (source / CARD, *network_files(source, card)):
                shutil.copyfile(file, temporary / file.name)
        card = read_card(temporary)
        if check is not None:
            check(temporary)
    return Stored(name, target, card)


def export_weights(name_or_folder: str | Path, archive: str | Path) -> Path:
    """Packs a segmenter into one ``.zip`` to hand on; it holds the card and the network, and no scan.

    Raises:
        InputError: the archive's name does not end in ``.zip``, or the segmenter is damaged.
        OSError: the archive cannot be written.
    """
    folder, archive = existing_folder(find(name_or_folder)), Path(archive)
    if archive.suffix != ".zip":
        raise error("Weights are exported as .zip.", archive, f"Write {archive.with_suffix('.zip')}.")
    card = read_card(folder)
    with atomic_file(archive) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in (folder / CARD, *network_files(folder, card)):
            packed.write(file, file.name)
    return archive


def _card(folder: Path) -> dict[str, Any]:
    """The card alone, every key there and every file it names."""
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"A segmenter folder holds {CARD} and its network. Received: {folder} without {CARD}. "
            + (
                f"Did you mean {folder / 'segmenter'}?"
                if (folder / "segmenter" / CARD).is_file()
                else "Copy the whole folder, or save the segmenter again."
            )
        )
    card = parse_card(
        folder / CARD,
        _KEYS,
        lambda card: choice("weights_dtype", card.get("weights_dtype", "float32"), NETWORK_FILES),
    )
    for file in network_files(folder, card):
        if not file.is_file():
            raise FileNotFoundError(
                f"A segmenter folder holds {CARD} and its network. Received: {folder} without {file.name}. "
                "Copy the whole folder, or save the segmenter again."
            )
    return card


def _unpack(archive: Path, folder: Path) -> None:
    known = {CARD, *(file for files in NETWORK_FILES.values() for file in files)}
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            for member in members:
                _check_member(member, known, archive)
            if sum(member.file_size for member in members) > LARGEST_BYTES:
                raise error("An archive of weights unpacks to at most 4 GiB.", archive)
            for member in members:
                with (
                    packed.open(member) as packed_file,
                    open(folder / Path(member.filename).name, "wb") as file,
                ):
                    shutil.copyfileobj(packed_file, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as reason:
        raise error("Weights come as a .zip that mrseg exported.", f"{archive} ({reason})") from None


def _check_member(member: zipfile.ZipInfo, known: set[str], archive: Path) -> None:
    """One plain file of a known name, at the top or in one folder, on no way out."""
    parts = member.filename.replace("\\", "/").split("/")
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if (
        is_link
        or ".." in parts
        or member.filename.startswith("/")
        or len(parts) > 2
        or parts[-1] not in known
    ):
        raise error(
            f"An archive of weights holds {', '.join(sorted(known))} and nothing else.",
            f"{member.filename!r} in {archive}",
            "Make it with `mrseg weights --export`.",
        )
