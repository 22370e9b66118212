"""Writes DICOM files byte by byte (part 10, explicit VR little endian), apart from any DICOM library."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
LONG = ("OB", "OW", "UN", "SQ", "UT")


def element(tag: str, vr: str, value: bytes) -> bytes:
    group, number = (int(part, 16) for part in tag.split("|"))
    value += (b"\0" if vr in ("UI", "OB", "OW") else b" ") * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if vr in LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr.encode() + length + value


def encoded(tag: str, vr: str, value: object) -> bytes:
    if vr in ("US", "SS"):
        return element(tag, vr, struct.pack("<H" if vr == "US" else "<h", value))
    return element(tag, vr, value if isinstance(value, bytes) else str(value).encode("latin-1"))


VR = {
    "0008|0016": "UI", "0008|0018": "UI", "0008|0020": "DA", "0008|0032": "TM", "0008|0060": "CS",
    "0008|103e": "LO", "0010|0010": "PN", "0010|0020": "LO", "0010|0030": "DA", "0018|0050": "DS",
    "0018|0080": "DS", "0018|0081": "DS", "0018|1060": "DS",
    "0018|0088": "DS", "0020|000d": "UI", "0020|000e": "UI", "0020|0012": "IS",
    "0020|0013": "IS", "0020|0032": "DS", "0020|0037": "DS", "0020|0100": "IS", "0028|0002": "US",
    "0028|0004": "CS", "0028|0008": "IS", "0028|0010": "US", "0028|0011": "US", "0028|0030": "DS",
    "0028|0100": "US", "0028|0101": "US", "0028|0102": "US", "0028|0103": "US", "0028|0120": "SS",
    "0028|1052": "DS", "0028|1053": "DS",
}  # fmt: skip
#: What must never leave a file: name, patient ID, date of birth, date of the scan.
SECRETS = {"0010|0010": "Doe^Janet", "0010|0020": "MRN4711", "0010|0030": "19520617", "0008|0020": "20240229"}


def write_slice(
    path: Path, pixels: np.ndarray, tags: dict[str, object], *, drop: tuple[str, ...] = ()
) -> Path:
    """Writes one slice of int16 ``pixels`` (rows, columns), with ``tags`` over what a CT slice has."""
    rows, columns = pixels.shape
    sop = str(tags.get("0008|0016", CT))
    number = tags.get("0020|0013", path.stem.strip("abcdefghijklmnopqrstuvwxyz_") or 1)
    values: dict[str, object] = {
        "0008|0016": sop, "0008|0018": f"1.2.3.{int.from_bytes(str(path).encode()[-12:], 'big')}",
        "0008|0060": "CT", "0008|103e": "HEAD", **SECRETS, "0018|0050": "4", "0020|000d": "1.2.3",
        "0020|000e": "1.2.3.1", "0020|0013": number, "0020|0032": "0\\0\\0",
        "0020|0037": "1\\0\\0\\0\\1\\0", "0028|0002": 1, "0028|0004": "MONOCHROME2", "0028|0010": rows,
        "0028|0011": columns, "0028|0030": "1\\1", "0028|0100": 16, "0028|0101": 16, "0028|0102": 15,
        "0028|0103": 1, **tags,
    }  # fmt: skip
    data = b"".join(encoded(tag, VR[tag], values[tag]) for tag in sorted(values) if tag not in drop)
    if "7fe0|0010" not in drop:
        data += element("7fe0|0010", "OW", pixels.astype("<i2").tobytes())
    meta = (
        element("0002|0001", "OB", b"\0\1")
        + element("0002|0002", "UI", sop.encode())
        + element("0002|0003", "UI", str(values["0008|0018"]).encode())
        + element("0002|0010", "UI", b"1.2.840.10008.1.2.1")
        + element("0002|0012", "UI", b"1.2.3.9")
    )
    meta = element("0002|0000", "UL", struct.pack("<I", len(meta))) + meta
    path.write_bytes(bytes(128) + b"DICM" + meta + data)
    return path


def text(values: object) -> str:
    """Numbers as a multi-valued decimal string."""
    return "\\".join(f"{float(value):.10g}" for value in values)  # type: ignore[attr-defined]


def write_stack(
    folder: Path,
    array: np.ndarray,
    axes_lps: np.ndarray,
    origins_lps: np.ndarray,
    tags: dict[str, object] | None = None,
    prefix: str = "",
) -> Path:
    """Writes the int16 array (x, y, n) as one file a slice.

    Args:
        folder: made if missing.
        array: stored values.
        axes_lps: (3, 2): step in mm along x and along y.
        origins_lps: (n, 3).
        tags: over the defaults.
        prefix: of the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = np.linalg.norm(axes_lps, axis=0)
    for k in range(array.shape[2]):
        own = {
            "0020|0013": k + 1,
            "0020|0032": text(origins_lps[k]),
            "0020|0037": text([*(axes_lps[:, 0] / sizes[0]), *(axes_lps[:, 1] / sizes[1])]),
            "0028|0030": text(sizes[::-1]),
        }
        write_slice(folder / f"{prefix}{k:03d}.dcm", array[:, :, k].T, {**own, **(tags or {})})
    return folder
