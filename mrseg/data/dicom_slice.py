"""One DICOM file, read by SimpleITK (GDCM): the tags that place its slice, each checked, and its pixels.

Nothing here repeats what identifies a patient: of a file's text, only its series' description and UID leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from mrseg._checks import error
from mrseg.data.dicom_structure import Tag, walk_elements
from mrseg.data.sources import check_stored_size, finite_voxels, refusing

_KIND = "a DICOM image"
_SERIES_UID, _SOP_UID, _DESCRIPTION, _MODALITY = "0020|000e", "0008|0018", "0008|103e", "0008|0060"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_SLOPE, _INTERCEPT, _PADDING = "0028|1053", "0028|1052", "0028|0120"
#: Tags that tell one volume of a series from the next, in the order in which they are trusted: temporal
#: position, acquisition number, acquisition time, trigger time, instance number.
_TIME_TAGS = ("0020|0100", "0020|0012", "0008|0032", "0018|1060", "0020|0013")
_ACQUISITION_TIME, _REPETITION_MS, _ECHO_MS = "0008|0032", "0018|0080", "0018|0081"
# Service classes without a grid of voxels (DICOM PS3.4 B.5): folders' directory, waveforms, presentation
# states, structured reports, raw data, encapsulated documents, radiotherapy plans.
_NO_IMAGE = re.compile(r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(9|11|88|66|104|67|481\.[3-9])(\..*)?)")
_ENHANCED = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(2|4|128|130)\.[1-9].*")
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "")
_SOP_CLASS, _SYNTAX, _FRAMES, _SAMPLES = (2, 2), (2, 0x10), (0x28, 8), (0x28, 2)
_ROWS, _COLUMNS, _BITS, _PIXELS = (0x28, 0x10), (0x28, 0x11), (0x28, 0x100), (0x7FE0, 0x10)
_TAG_FAULT = "Export the series again from the archive."


@dataclass(frozen=True)
class SliceHeader:
    """Where one slice lies and which series it belongs to.

    Attributes:
        path: its file.
        uid: SeriesInstanceUID.
        sop_uid: SOPInstanceUID, the same in a second copy of the slice.
        description: SeriesDescription, "" if missing.
        modality: "CT", "MR", ...
        shape: voxels along x (columns) and y (rows).
        axes_mm: (3, 2), step along x and y, RAS+ mm.
        origin_mm: (3,), centre of voxel (0, 0), RAS+ mm.
        times: tag -> number, of those tags that order the volumes of a series.
        repetition_s: repetition time in seconds, None if missing.
        echo_ms: echo time as the file writes it, "" if missing.
        padding: PixelPaddingValue, scaled as the pixels are; None if missing.
    """

    path: Path
    uid: str
    sop_uid: str
    description: str
    modality: str
    shape: tuple[int, int]
    axes_mm: np.ndarray
    origin_mm: np.ndarray
    times: dict[str, float]
    repetition_s: float | None
    echo_ms: str
    padding: float | None

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice."""
        across = np.cross(self.axes_mm[:, 0], self.axes_mm[:, 1])
        return across / np.linalg.norm(across)


def is_dicom(path: Path) -> bool:
    """Whether the file is, or by its name ought to be, a DICOM file with an image."""
    with path.open("rb") as stream:
        block = stream.read(132)
    if block[128:] == b"DICM":
        with refusing(path, _KIND, "a file that is not one, or a damaged one", say_why=False):
            return not _NO_IMAGE.fullmatch(_uid(walk_elements(path).get(_SOP_CLASS, b"")))
    # Files without the preamble begin with a tag of group 8.
    return path.suffix.lower() in (".dcm", ".ima") or block[:2] == b"\x08\x00"


def read_header(path: Path) -> SliceHeader:
    """Reads the tags of one slice.

    Raises:
        InputError: no DICOM image, several frames, a colour image, a missing or impossible tag; the message
            names the file and the tag, and repeats nothing else of the file.
    """
    reader = _reader(path)
    width, height = (int(n) for n in reader.GetSize()[:2])
    position = _numbers(path, reader, _POSITION, "ImagePositionPatient", 3)
    cosines = _numbers(path, reader, _ORIENTATION, "ImageOrientationPatient", 6).reshape(2, 3)
    row_mm, column_mm = _numbers(path, reader, _SPACING, "PixelSpacing", 2)
    if not np.abs(cosines @ cosines.T - np.eye(2)).max() < 1e-3:
        raise error(
            f"{path}: ImageOrientationPatient is two unit vectors at right angles.",
            cosines.tolist(),
            _TAG_FAULT,
        )
    if not (row_mm > 0 and column_mm > 0):
        raise error(f"{path}: PixelSpacing is above 0.", f"{row_mm:g}, {column_mm:g} mm", _TAG_FAULT)
    slope, intercept = (
        float(_numbers(path, reader, tag, name, 1)[0]) if reader.HasMetaDataKey(tag) else default
        for tag, name, default in ((_SLOPE, "RescaleSlope", 1.0), (_INTERCEPT, "RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise error(f"{path}: RescaleSlope is not 0.", slope, _TAG_FAULT)
    padding = _text(reader, _PADDING)
    uid = _text(reader, _SERIES_UID)
    if not re.fullmatch(r"[\d.]{1,64}", uid):
        raise error(f"{path}: a slice names its series (SeriesInstanceUID).", "none", _TAG_FAULT)
    to_ras = np.array([-1.0, -1.0, 1.0])
    return SliceHeader(
        path=path,
        uid=uid,
        sop_uid=_text(reader, _SOP_UID),
        description=_text(reader, _DESCRIPTION)[:64],
        modality=_text(reader, _MODALITY)[:16],
        shape=(width, height),
        axes_mm=(cosines * [[column_mm], [row_mm]] * to_ras).T + 0.0,  # no -0
        origin_mm=position * to_ras + 0.0,
        times={tag: value for tag in _TIME_TAGS if (value := _time(reader, tag)) is not None},
        repetition_s=_repetition_s(reader),
        echo_ms=_text(reader, _ECHO_MS)[:16],
        padding=float(padding) * slope + intercept if re.fullmatch(r"-?\d{1,9}", padding) else None,
    )


def read_pixels(header: SliceHeader) -> np.ndarray:
    """Returns the slice as float32 (x, y), scaled by its own RescaleSlope and RescaleIntercept."""
    with refusing(header.path, _KIND, "truncated or damaged pixels", say_why=False):
        stored = sitk.GetArrayFromImage(_reader(header.path).Execute())
        array = np.array(stored, dtype=np.float32).reshape(header.shape[::-1]).T
    return finite_voxels(header.path, array)


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    with refusing(path, _KIND, "a file that is not one, or a damaged one", say_why=False):
        _check_pixels(path, walk_elements(path))
        reader.ReadImageInformation()
    return reader


def _check_pixels(path: Path, elements: Mapping[Tag, bytes]) -> None:
    """Refuses what is not one slice of one number a pixel, or larger than its file, before GDCM sees it."""
    frames = elements.get(_FRAMES, b"1").strip(b"\0 ")
    if frames not in (b"", b"1") or _ENHANCED.fullmatch(_uid(elements.get(_SOP_CLASS, b""))):
        raise error(
            f"{path}: a DICOM file holds one slice.",
            "a file of several frames (enhanced DICOM)",
            "Convert it to NIfTI (dcm2niix).",
        )
    syntax = _uid(elements.get(_SYNTAX, b""))
    order: Literal["little", "big"] = "big" if syntax == _NATIVE[2] else "little"
    samples, rows, columns, bits = (
        int.from_bytes(elements.get(tag, b""), order) for tag in (_SAMPLES, _ROWS, _COLUMNS, _BITS)
    )
    if samples > 1:
        raise error(f"{path}: a voxel is one number.", "a colour image", "Choose another series.")
    if bits not in (8, 16, 32) or not rows or not columns:
        raise ValueError("no size")
    check_stored_size(
        path, rows * columns * bits // 8, (columns, rows), f"{bits} bits",
        packed=syntax not in _NATIVE, footer=True,
    )  # fmt: skip
    if _PIXELS not in elements:
        raise ValueError("no pixels")


def _uid(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")


def _text(reader: sitk.ImageFileReader, tag: str) -> str:
    try:
        value = reader.GetMetaData(tag) if reader.HasMetaDataKey(tag) else ""
    except (RuntimeError, UnicodeDecodeError):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _numbers(path: Path, reader: sitk.ImageFileReader, tag: str, name: str, count: int) -> np.ndarray:
    found = _text(reader, tag)
    try:
        numbers = np.array([float(word) for word in found.split("\\")])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        received = "no such tag" if not found else f"a value that is not {count} finite numbers"
        raise error(f"{path}: a slice has the tag {name} ({tag.replace('|', ',')}).", received, _TAG_FAULT)
    return numbers


def _time(reader: sitk.ImageFileReader, tag: str) -> float | None:
    """The tag as a number; a time of the day in seconds."""
    text = _text(reader, tag)
    if tag == _ACQUISITION_TIME:
        match = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)", text)
        return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else None
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else None


def _repetition_s(reader: sitk.ImageFileReader) -> float | None:
    text = _text(reader, _REPETITION_MS)
    return float(text) / 1000 if re.fullmatch(r"\d{1,6}(\.\d+)?", text) and float(text) > 0 else None
