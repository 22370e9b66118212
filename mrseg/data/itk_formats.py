"""NRRD and MetaImage (3D Slicer, ITK): SimpleITK reads what a look at the header's text has found sound.

ITK trusts a header: it allocates what the header announces, and reads a short file to its end. The size of
the voxels' file, and of the voxels in it, is therefore checked first.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mrseg._checks import error
from mrseg.data.geometry import check_affine
from mrseg.data.sources import (
    Source,
    check_stored_size,
    finite_voxels,
    refusing,
    spatial_shape,
    warn_of_more,
    warn_of_no_orientation,
)

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LONGEST_HEADER = 1 << 16
_BLOCK = 1 << 20
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NRRD_BYTES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2, "int": 4,
    "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "int64": 8, "int64_t": 8, "uint64": 8, "uint64_t": 8, "float": 4, "double": 8,
}  # fmt: skip
_NRRD_ORIENTED = {
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
_META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


@dataclass(frozen=True)
class _Header:
    """What the text of a header says about where the voxels are."""

    sizes: tuple[int, ...]
    bytes_per_voxel: int
    data: Path
    offset: int
    packed: bool
    oriented: bool
    as_series: bool = False  # one axis is a list of volumes


def open_itk(path: Path, series: bool | None) -> Source:
    """Opens ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` and checks its header.

    World coordinates are turned from ITK's LPS+ to RAS+.
    """
    nrrd = path.name.endswith(("rrd", "hdr"))
    kind = "an NRRD image" if nrrd else "a MetaImage"
    with refusing(path, kind, "not an image, or a damaged one"):
        header = _nrrd_header(path) if nrrd else _meta_header(path)
        voxels = math.prod(header.sizes)
        expected = header.offset + voxels * header.bytes_per_voxel
        check_stored_size(
            path, expected, header.sizes, "the type named", packed=header.packed, data=header.data
        )
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
        reader.ReadImageInformation()
        stored = tuple(int(n) for n in reader.GetSize())
        components = reader.GetNumberOfComponents()
        if math.prod(stored) * components != voxels or (components > 1 and not header.as_series):
            raise error(
                f"{path}: a voxel is one real number.",
                f"{components} components in a header of sizes {header.sizes}",
                "Convert colour, vector or complex images to one channel.",
            )
        if components > 1:
            stored = (*stored, components)
        shape = spatial_shape(path, stored, series=series)
        affine = check_affine(str(path), _affine(reader))
    if not header.oriented:
        warn_of_no_orientation(path, "no space" if nrrd else "no TransformMatrix")

    def read() -> np.ndarray:
        with refusing(path, kind, "a truncated or damaged file"):
            if header.packed:
                _check_unpacked(header, voxels * header.bytes_per_voxel)
            array = sitk.GetArrayFromImage(reader.Execute())
            axes = tuple(range(array.ndim))[::-1]
            if components > 1:  # (z, y, x, components)
                axes = (2, 1, 0, 3)
            array = np.array(array.transpose(axes), dtype=np.float32, order="C").reshape(shape)
        return finite_voxels(path, array)

    return Source(path, shape, affine, read, tuple(dict.fromkeys((path, header.data))))


def _affine(reader: sitk.ImageFileReader) -> np.ndarray:
    rank = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(rank, rank)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing())[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine


def _check_unpacked(header: _Header, expected: int) -> None:
    """Counts the voxels' bytes in a compressed file, block by block."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib and gzip alike
    count = 0
    with header.data.open("rb") as stream:
        stream.seek(header.offset)
        while not unpacker.eof and (block := unpacker.unconsumed_tail or stream.read(_BLOCK)):
            count += len(unpacker.decompress(block, _BLOCK))
            if count > max(2 * expected, 64 * _BLOCK):
                break
    if not unpacker.eof or count < expected:
        raise EOFError(f"{count} of {expected} bytes")
    if count > expected:
        warn_of_more(header.data, count - expected, header.sizes)


def _nrrd_header(path: Path) -> _Header:
    text, offset = _text(path, r"\r?\n\r?\n", detached=path.name.endswith(".nhdr"))
    if not re.match(r"NRRD000\d\s", text):
        raise _no_header(path, "NRRD")
    fields = _fields(path, (line for line in text.splitlines()[1:] if ":=" not in line), ":")
    kinds = fields.get("kinds", "").split()
    sizes = _sizes(path, fields.get("sizes", ""), fields.get("dimension", ""))
    kind = fields.get("type", "").lower()
    encoding = fields.get("encoding", "").lower()
    bad = {
        "type": kind not in _NRRD_BYTES,
        "encoding": encoding not in ("raw", "gzip", "gz"),
        "line skip": fields.get("line skip", "0") != "0",
        "byte skip": fields.get("byte skip", "0") != "0",
        "space units": not set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) <= {"mm", ""},
        "kinds": any("color" in kind or "complex" in kind for kind in kinds),
    }
    for name in (name for name, wrong in bad.items() if wrong):
        raise _unsupported(path, name, fields.get(name, "nothing"))
    oriented = fields.get("space", "").lower() in _NRRD_ORIENTED
    vectors = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    numbers = [
        re.fullmatch(rf"\(\s*{_NUMBER}(\s*,\s*{_NUMBER}){{2}}\s*\)", v) for v in vectors if v != "none"
    ]
    origin = re.fullmatch(
        rf"\(\s*{_NUMBER}(\s*,\s*{_NUMBER}){{2}}\s*\)", fields.get("space origin", "(0,0,0)")
    )
    if oriented and not (len(vectors) == len(sizes) and len(numbers) == 3 and all(numbers) and origin):
        raise _unsupported(path, "space directions", fields.get("space directions", "nothing"))
    data = fields.get("data file", fields.get("datafile"))
    packed = encoding != "raw"
    if data is None:
        return _Header(sizes, _NRRD_BYTES[kind], path, offset, packed, oriented, "list" in kinds)
    return _Header(sizes, _NRRD_BYTES[kind], _beside(path, data), 0, packed, oriented, "list" in kinds)


def _meta_header(path: Path) -> _Header:
    text, offset = _text(path, r"ElementDataFile\s*=[^\n]*\n?", detached=path.name.endswith(".mhd"))
    fields = _fields(path, iter(text.splitlines()), "=")
    if "ElementDataFile" not in fields or "DimSize" not in fields:
        raise _no_header(path, "MetaImage")
    sizes = _sizes(path, fields["DimSize"], fields.get("NDims", ""))
    kind, packed = fields.get("ElementType", ""), fields.get("CompressedData", "False").lower() == "true"
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", ""))
    matrix = [name for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields]
    bad: dict[str, bool] = {
        "ElementType": kind not in _META_BYTES,
        "BinaryData": fields.get("BinaryData", "True").lower() != "true",
        "HeaderSize": fields.get("HeaderSize", "0") != "0",
        "ElementNumberOfChannels": fields.get("ElementNumberOfChannels", "1") != "1",
        "ElementSpacing": not _all_numbers(spacing, len(sizes), positive=True),
        **{name: not _all_numbers(fields[name], len(sizes) ** 2) for name in matrix},
        **{
            name: not _all_numbers(fields[name], len(sizes))
            for name in ("Offset", "Position", "Origin")
            if name in fields
        },
    }
    for name in (name for name, wrong in bad.items() if wrong):
        raise _unsupported(path, name, fields.get(name, "nothing"))
    data = fields["ElementDataFile"]
    if data.upper() == "LOCAL":
        return _Header(sizes, _META_BYTES[kind], path, offset, packed, bool(matrix))
    return _Header(sizes, _META_BYTES[kind], _beside(path, data), 0, packed, bool(matrix))


def _text(path: Path, end: str, *, detached: bool) -> tuple[str, int]:
    """The header's text and the byte after it."""
    with path.open("rb") as stream:
        text = stream.read(_LONGEST_HEADER).decode("latin-1")
    match = re.search(end, text)
    if match is None and not detached:
        raise error(
            f"{path}: a header ends within {_LONGEST_HEADER} bytes.",
            "a file without the end of a header",
            "Copy or convert the scan again.",
        )
    stop = match.end() if match else len(text)
    return text[:stop], stop


def _fields(path: Path, lines: object, mark: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:  # type: ignore[attr-defined]
        name, found, value = line.partition(mark)
        if not found or line.startswith("#"):
            continue
        if name.strip() in fields:
            raise error(f"{path}: a header has each field once.", f"two of {name.strip()!r}")
        fields[name.strip()] = value.strip()
    return fields


def _sizes(path: Path, text: str, rank: str) -> tuple[int, ...]:
    sizes = text.split()
    if not all(re.fullmatch(r"[1-9]\d{0,9}", size) for size in sizes) or str(len(sizes)) != rank:
        raise error(
            f"{path}: a header has one positive size an axis.", f"sizes {text!r} of {rank!r} axes",
            "Copy or convert the scan again.",
        )  # fmt: skip
    return tuple(int(size) for size in sizes)


def _all_numbers(text: str, count: int, *, positive: bool = False) -> bool:
    words = text.split()
    if len(words) != count or not all(re.fullmatch(_NUMBER, word) for word in words):
        return False
    return all(math.isfinite(float(word)) and (float(word) > 0 or not positive) for word in words)


def _beside(path: Path, name: str) -> Path:
    """The file of the voxels, which lies in the header's folder."""
    data = path.with_name(Path(name).name)
    if Path(name).name != name or re.search(r"[%*]|^LIST", name):
        raise _unsupported(path, "data file", name)
    if not data.is_file():
        raise FileNotFoundError(
            f"{path}: the file of the voxels lies beside its header. Received: no {data}. Copy it there."
        )
    return data


def _no_header(path: Path, kind: str) -> Exception:
    return error(f"{path}: {kind} is needed.", f"a file without a {kind} header", "Convert the scan again.")


def _unsupported(path: Path, name: str, value: str) -> Exception:
    shown = value if len(value) <= 60 else f"{value[:60]}..."
    return error(
        f"{path}: the header's {name!r} is one that mrseg reads.",
        repr(shown),
        "Save the scan again (3D Slicer, or SimpleITK.WriteImage) as .nrrd or .nii.gz.",
    )
