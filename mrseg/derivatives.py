"""What makes a folder one of BIDS derivatives: its description, and who made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrseg import __version__
from mrseg._checks import error
from mrseg._files import atomic_file

_BIDS_VERSION = "1.9.0"


def describe(output: Path, name: str) -> None:
    """Writes ``dataset_description.json``, unless the folder is somebody else's.

    Args:
        output: folder of derivatives.
        name: of the data set.

    Raises:
        InputError: there is a description that mrseg did not write.
    """
    path = output / "dataset_description.json"
    if path.exists():
        try:
            makers = [maker["Name"] for maker in json.loads(path.read_text(encoding="utf-8"))["GeneratedBy"]]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
            makers = []
        if "mrseg" not in makers:
            raise error(
                "Derivatives go into a folder of their own.",
                f"{output}, whose dataset_description.json is not mrseg's",
                f"Name another folder, say {output / 'derivatives' / 'mrseg'}.",
            )
    content = {
        "Name": name,
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": generated_by(),
    }
    write_json(path, content)


def generated_by() -> list[dict[str, str]]:
    """Name and version of this program, as BIDS writes them."""
    return [{"Name": "mrseg", "Version": __version__}]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
