"""The card of trained weights in a dozen lines, for a user who asks what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrseg.store import CARD, network_files

_UNKNOWN = "not stated"


def card_lines(folder: Path, card: Mapping[str, Any]) -> list[str]:
    """What a card says, one line a subject; what it does not say is called so.

    Args:
        folder: of the segmenter.
        card: as `mrseg.store.read_card` gives it. Its provenance may hold anything.

    Returns:
        Lines of ``name  value``, aligned.
    """
    provenance = _dict(card["provenance"])
    recipe = _dict(provenance.get("recipe"))
    names = enumerate(map(str, card["class_names"]))
    said = {
        "sequence": card["sequence"] or _UNKNOWN,
        "classes": ", ".join(f"{number} {name}" for number, name in names),
        "network": _network(_dict(recipe.get("network"))),
        "recipe": _titled(recipe),
        "carried from": _carried(provenance),
        "data": _flat(provenance.get("data")),
        "subjects": _flat(provenance.get("subjects")),
        "figures": _flat(provenance.get("figures")),
        "grid": _grid(_dict(card["preprocessing"])),
        "patches": _patches(_dict(card["sampling"])),
        "licence": _flat(provenance.get("licence")),
        "made with": _flat({k: v for k, v in _dict(provenance.get("versions")).items() if k in _TOLD}),
        "size": _size(folder, dict(card)),
        "full card": str(folder / CARD),
    }
    width = max(map(len, said))
    return [f"{name.ljust(width)}  {value}" for name, value in said.items()]


_TOLD = ("mrseg", "keras", "tensorflow")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _network(network: Mapping[str, Any]) -> str:
    builder, arguments = network.get("builder"), _flat(network.get("arguments"))
    if not builder:
        return _UNKNOWN
    return f"{builder}, {arguments}" if arguments != _UNKNOWN else str(builder)


def _carried(provenance: Mapping[str, Any]) -> str:
    if provenance.get("source", _UNKNOWN) is None:
        return "nothing, trained from scratch"
    return _titled(_dict(_dict(provenance.get("source")).get("recipe")))


def _titled(recipe: Mapping[str, Any]) -> str:
    return ": ".join(str(recipe[key]) for key in ("name", "title") if recipe.get(key)) or _UNKNOWN


def _grid(preprocessing: Mapping[str, Any]) -> str:
    parts = [str(preprocessing.get("grid", _UNKNOWN))]
    if preprocessing.get("shape"):
        parts.append(f"{_times(preprocessing['shape'])} voxels")
    if preprocessing.get("spacing_mm"):
        parts.append(f"{_times(preprocessing['spacing_mm'])} mm")
    if preprocessing.get("normalization"):
        parts.append(f"normalised by {preprocessing['normalization']}")
    return ", ".join(parts)


def _patches(sampling: Mapping[str, Any]) -> str:
    shape = sampling.get("patch_shape")
    if not shape:
        return _UNKNOWN
    return f"{_times(shape)} voxels, overlap {_flat(sampling.get('overlap'))}"


def _times(numbers: Any) -> str:
    return "x".join(_flat(number) for number in numbers) if isinstance(numbers, list) else _flat(numbers)


def _size(folder: Path, card: dict[str, Any]) -> str:
    bytes_ = sum(file.stat().st_size for file in network_files(folder, card))
    return f"{bytes_ / 1e6:.1f} MB, {card.get('weights_dtype', 'float32')}"


def _flat(value: Any) -> str:
    """Any JSON value on one line; a dictionary as ``key value`` pairs."""
    if value is None or value == "" or value == {} or value == []:
        return _UNKNOWN
    if isinstance(value, dict):
        return ", ".join(
            f"{str(key).replace('_', ' ')}{': ' if isinstance(inner, dict) else ' '}{_flat(inner)}"
            for key, inner in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(str(value).split())
