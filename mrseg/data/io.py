"""Reading and writing NIfTI volumes: every bad input is refused with one line that says what to do.

Arrays cross this border in their native orientation; the affine is taken and written as it stands.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from mrseg._checks import IGNORE_LABEL, InputError, error, existing_file
from mrseg._files import atomic_file
from mrseg.data.geometry import Volume, check_affine, grid_distance_mm

#: CT numbers below air (-1000 HU) by more than noise: the scanner's padding outside the field of view.
CT_PADDING_BELOW_HU = -1024.0

_LOGGER = logging.getLogger(__name__)
_SUFFIXES = (".nii", ".nii.gz")
# DEFLATE cannot compress by more than this (zlib.net/zlib_tech.html, "Maximum Compression Factor").
_LARGEST_COMPRESSION = 1032
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # of the xyzt_units code (nifti1.h): s, ms, us
_FOREIGN_UNITS = {1: "metre", 3: "micrometre"}  # of the xyzt_units code (nifti1.h)
_PADDING_HU = -2048.0
_STORED_DTYPES = {
    "float32": np.float32,
    "float64": np.float32,
    "bool": np.uint8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
}
_BAD_FILE = (ImageFileError, HeaderDataError, ValueError, OverflowError, OSError, EOFError, zlib.error)


def read_volume(path: str | Path) -> Volume:
    """Reads one 3-D image.

    Args:
        path: ``.nii`` or ``.nii.gz``. A fourth axis of length 1 is accepted and dropped (IBSR18 has one).

    Returns:
        float32 array (x, y, z) in native orientation, scaled by the header's slope and intercept, and the
        float64 affine (the sform, else the qform).

    Raises:
        FileNotFoundError: no such file.
        InputError: not a NIfTI image, truncated, not 3-D, NaN or infinite voxels, a constant image, a voxel
            size that is zero or NaN, an affine that is not finite or not invertible.
    """
    array, affine = _read(path)
    if array.min() == array.max():
        raise error(
            f"{path}: an image shows contrast.",
            f"a constant image ({array.flat[0]:g} in every voxel)",
            "Check that this is the right file and that it was exported completely.",
        )
    return array, affine


@dataclass(frozen=True)
class Series:
    """One 4-D scan.

    Attributes:
        array: float32 (x, y, z, t) in native orientation.
        affine: float64, voxel index -> RAS+ mm.
        interval_s: time from one volume to the next (repetition time) in seconds; None where the header does
            not tell it: no unit of time, or a time that is not positive and finite.
    """

    array: np.ndarray
    affine: np.ndarray
    interval_s: float | None


def read_series(path: str | Path) -> Series:
    """Reads a 4-D scan: a DSC perfusion series.

    Args:
        path: ``.nii`` or ``.nii.gz`` with four axes (x, y, z, t), two time points or more; further axes of
            length 1 are dropped.

    Returns:
        The series, scaled by the header's slope and intercept. Its interval is a hint: some converters leave
        wrong times in the header.

    Raises:
        FileNotFoundError: no such file.
        InputError: a single volume, a constant time point, and as ``read_volume``.

    Example:
        >>> series = read_series("dsc.nii.gz")                                         # doctest: +SKIP
        >>> series.array.shape, series.interval_s                                      # doctest: +SKIP
        ((128, 128, 20, 60), 1.5)
    """
    path = Path(path)
    image = _load(path, series=True)
    array, affine = _voxels(path, image, 4)
    flat = np.flatnonzero(array.min(axis=(0, 1, 2)) == array.max(axis=(0, 1, 2)))
    if flat.size:
        raise error(
            f"{path}: every time point shows contrast.",
            f"a constant image at time points {_some(flat)} (from 0)",
            "Check that the series was exported completely; cut time points that were not measured.",
        )
    return Series(array, affine, _interval_s(image.header))


def _interval_s(header: nibabel.Nifti1Header) -> float | None:
    unit = _SECONDS.get(int(header["xyzt_units"]) & 0x38, math.nan)
    interval = round(float(header["pixdim"][4]) * unit, 6)  # the header's float32 of 0.1 is 0.1 again
    return interval if 0 < interval < math.inf else None


def read_ct(path: str | Path) -> Volume:
    """Reads a CT in Hounsfield units; what the scanner padded becomes NaN, "outside the field of view".

    Args:
        path: as for ``read_volume``; NaN in the file itself is refused.

    Returns:
        float32 array (x, y, z) in HU with NaN where the file holds less than -1024 HU, and the affine.

    Raises:
        FileNotFoundError, InputError: as ``read_volume``; also a CT that is padding throughout.
    """
    ct_hu, affine = read_volume(path)
    padding = ct_hu < CT_PADDING_BELOW_HU
    if padding.all():
        raise error(
            f"{path}: a CT has voxels of at least {CT_PADDING_BELOW_HU:g} HU.",
            f"a maximum of {ct_hu.max():g}",
            "Check the slope and intercept of the header.",
        )
    if ct_hu.min() > -500:
        _LOGGER.warning("%s: no voxel below -500 HU; air is -1000 in Hounsfield units.", path)
    ct_hu[padding] = np.nan
    return ct_hu, affine


def read_labels(path: str | Path, num_classes: int | None = None) -> Volume:
    """Reads a label map; an empty (all background) one is accepted.

    Args:
        path: as for ``read_volume``.
        num_classes: number of classes with the background; None accepts every label.

    Returns:
        uint8 array (x, y, z) and the affine. 255 marks voxels to ignore.

    Raises:
        FileNotFoundError, InputError: as ``read_volume``; also values that are not whole numbers in [0, 255],
            or not below ``num_classes`` (255 excepted).
    """
    values, affine = _read(path)
    labels = values.astype(np.uint8) if values.min() >= 0 and values.max() <= 255 else None
    if labels is None or not np.array_equal(labels, values):
        bad = np.unique(values[(values % 1 != 0) | (values < 0) | (values > 255)])
        raise error(
            f"{path}: labels are whole numbers from 0 to 255.",
            _some(bad),
            "Pass the label map, not an image; resample labels with order=0 only.",
        )
    if num_classes is not None:
        present = np.unique(labels)
        unknown = present[(present >= num_classes) & (present != IGNORE_LABEL)]
        if unknown.size:
            raise error(
                f"{path}: labels are below num_classes={num_classes} (or {IGNORE_LABEL}, ignore).",
                _some(unknown),
                "Correct the label table, or merge classes with mrseg.data.merge_labels.",
            )
    return labels, affine


def volume_count(path: str | Path) -> int:
    """Returns how many volumes the header announces: 1, or the time points of a series; reads no voxels."""
    path = existing_file(nifti_path(path))
    with _refusing(path, "not an image, or a damaged one"):
        return math.prod(int(n) for n in _raw_header(path).get_data_shape()[3:])


def volume_header(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Returns shape and affine without reading the voxels; checks what a header can tell."""
    image = _load(Path(path))
    x, y, z = image.shape[:3]
    return (x, y, z), _affine(path, image)


def write_volume(
    path: str | Path, array: np.ndarray, affine: np.ndarray, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes an image whole or not at all; an older file of that name is replaced.

    Args:
        path: ``.nii`` or ``.nii.gz``; missing folders are made.
        array: (x, y, z), or (x, y, z, channels); finite. float64 is stored as float32, bool as uint8; the
            other dtypes NIfTI and this library share (float32, uint8, int16, uint16, int32) as they are.
        affine: voxel index -> RAS+ mm. Kept in float32 precision, which is what NIfTI holds.
        provenance: where the image comes from; given, it is stored beside it in ``<stem>.json``, as
            ``write_labels`` does.

    Raises:
        InputError: another suffix, rank or dtype, NaN or infinite voxels, a bad affine.
        OSError: the folder cannot be written.
    """
    path = nifti_path(path)
    image = _image(path, array, affine)
    if provenance is not None:
        _save_with_sidecar(path, image, {"provenance": _plain(provenance)})
        return
    with atomic_file(path) as temporary:
        nibabel.save(image, temporary)


def write_ct(path: str | Path, ct_hu: np.ndarray, affine: np.ndarray) -> None:
    """Writes a CT; NaN (outside the field of view) is stored as -2048 HU, which ``read_ct`` undoes."""
    write_volume(path, np.where(np.isnan(ct_hu), np.float32(_PADDING_HU), ct_hu), affine)


def write_labels(
    path: str | Path,
    labels: np.ndarray,
    affine: np.ndarray,
    class_names: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Writes a label map and, beside it, ``<stem>.json`` with its label table and provenance.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        labels: integer array (x, y, z), values below ``len(class_names)`` or 255 (ignore); stored as uint8.
        affine: as for ``write_volume``.
        class_names: name of class i at place i.
        provenance: where the labels come from (source files, thresholds, registration quality, versions);
            arrays and paths are turned into plain JSON, NaN into null.

    Raises:
        InputError: labels outside the table or not of integer type, and as ``write_volume``.
        OSError: the folder cannot be written.
    """
    path = nifti_path(path)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise error(
            "Labels are of an integer dtype.", labels.dtype, "Take the argmax of probabilities first."
        )
    unknown = np.unique(labels[((labels < 0) | (labels >= len(class_names))) & (labels != IGNORE_LABEL)])
    if unknown.size:
        raise error(
            f"Labels are below {len(class_names)}, the number of class names, or 255.", _some(unknown)
        )
    table = {str(i): name for i, name in enumerate(class_names)} | {str(IGNORE_LABEL): "ignore"}
    content = {"labels": table, "provenance": _plain(provenance)}
    _save_with_sidecar(path, _image(path, labels.astype(np.uint8), affine), content)


def _save_with_sidecar(path: Path, image: nibabel.Nifti1Image, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False)
    _keep_foreign_sidecar(sidecar_path(path))
    # Left in reverse: the image is renamed before the sidecar that vouches for it.
    with atomic_file(sidecar_path(path)) as temporary_json, atomic_file(path) as temporary:
        nibabel.save(image, temporary)
        temporary_json.write_text(text + "\n", encoding="utf-8")


def _keep_foreign_sidecar(path: Path) -> None:
    """Refuses to replace a JSON file that is no sidecar of ours, say the scan's own in a BIDS folder."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ours = isinstance(content, dict) and "provenance" in content
    except (UnicodeDecodeError, json.JSONDecodeError):
        ours = True  # half a sidecar
    if not ours:
        raise error(
            f"{path}: the sidecar of an image replaces no other file.",
            "a JSON file without the key 'provenance'",
            "Choose another name for the image.",
        )


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """Returns what lies beside an image as JSON: "provenance", and of a label map its table, "labels"."""
    file = existing_file(sidecar_path(nifti_path(path)))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as reason:
        raise error(f"{file}: a sidecar is a JSON object.", reason) from reason
    if not isinstance(content, dict):
        raise error(f"{file}: a sidecar is a JSON object.", type(content).__name__)
    return content


def sidecar_path(path: str | Path) -> Path:
    """Returns the name of the JSON file beside an image: ``a/b.nii.gz`` -> ``a/b.json``."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def _read(path: str | Path) -> Volume:
    path = Path(path)
    return _voxels(path, _load(path), 3)


def _voxels(path: Path, image: nibabel.Nifti1Image, axes: int) -> Volume:
    """The finite voxels with the first ``axes`` axes, and the affine."""
    affine = _affine(path, image)
    with _refusing(path, "a truncated or damaged file"):
        if path.name.endswith(".gz"):
            # Read to the end, where gzip keeps its checksum; nibabel stops after the last voxel.
            with gzip.open(path) as stream:
                image = type(image).from_bytes(stream.read())
        voxels = image.get_fdata(caching="unchanged", dtype=np.float32)
        array = np.array(voxels, dtype=np.float32, order="C").reshape(image.shape[:axes])
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise error(
            f"{path}: every voxel is finite.",
            f"{broken} NaN or infinite voxels",
            "Export the scan again, or replace them (0 in MR, -2048 HU outside a CT's field of view).",
        )
    return array, affine


def _load(path: Path, *, series: bool = False) -> nibabel.Nifti1Image:
    """Opens the file and checks its header; reads no voxels."""
    existing_file(nifti_path(path))
    with _refusing(path, "not an image, or a damaged one"):
        # Before nibabel, which would set a voxel size of zero to 1 and go on.
        header = _raw_header(path)
        _check_axes(path, header, series)
        _check_header(path, header)
        kind = nibabel.Nifti2Image if header.sizeof_hdr == 540 else nibabel.Nifti1Image
        return kind.from_filename(path)


@contextmanager
def _refusing(path: Path, received: str) -> Iterator[None]:
    """Turns whatever the reader raises into one line that names the file."""
    try:
        # Numbers beyond float32 and signalling NaN become inf and NaN, which are refused later.
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (InputError, FileNotFoundError, PermissionError):
        raise
    except _BAD_FILE as reason:
        first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise error(
            f"{path}: a NIfTI image is needed.",
            f"{received}: {first_line}",
            "Copy or convert the scan again.",
        ) from reason


def _raw_header(path: Path) -> nibabel.Nifti1Header:
    with nibabel.openers.ImageOpener(str(path)) as stream:
        block = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        size = (int.from_bytes(block[:4], order) for order in ("little", "big"))
        if kind.sizeof_hdr in size and len(block) >= kind.sizeof_hdr:
            return kind.from_fileobj(io.BytesIO(block), check=False)
    raise error(
        f"{path}: a NIfTI image is needed.",
        "a file that does not begin with a NIfTI header",
        "Convert the scan to NIfTI (DICOM: dcm2niix).",
    )


def _check_axes(path: Path, header: nibabel.Nifti1Header, series: bool) -> None:
    shape = tuple(int(n) for n in header.get_data_shape())
    if series and (len(shape) < 4 or math.prod(shape[4:]) != 1 or min(shape) < 1 or shape[3] < 2):
        raise error(
            f"{path}: a series has four axes (x, y, z, t) and two time points or more.",
            f"shape {shape}",
            "Pass the whole series; join single volumes into one file (dcm2niix does).",
        )
    if not series and (len(shape) < 3 or math.prod(shape[3:]) != 1 or min(shape) < 1):
        raise error(
            f"{path}: an image has three axes (x, y, z); further axes have length 1.",
            f"shape {shape}",
            "Save one volume of a series as a file of its own.",
        )


def _check_header(path: Path, header: nibabel.Nifti1Header) -> None:
    shape = tuple(int(n) for n in header.get_data_shape())
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        dtype = np.dtype("V")
    if dtype.kind not in "iuf":
        raise error(
            f"{path}: voxels are real numbers.",
            f"datatype code {header['datatype']}",
            "Convert colour or complex images to one channel.",
        )
    sizes = header["pixdim"][1:4]
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise error(
            f"{path}: voxel sizes are finite and not zero.",
            f"pixdim {sizes.tolist()} mm",
            "Repair the header, or convert the scan again.",
        )
    unit = _FOREIGN_UNITS.get(int(header["xyzt_units"]) % 8)
    if unit:
        raise error(f"{path}: voxel sizes are in mm.", f"{unit} as unit", "Convert the header to mm.")
    expected = max(int(header["vox_offset"]), 0) + math.prod(shape) * dtype.itemsize
    stored = path.stat().st_size
    largest = stored * _LARGEST_COMPRESSION if path.name.endswith(".gz") else stored
    if expected > largest:
        raise error(
            f"{path}: the file holds the voxels its header announces.",
            f"{stored} bytes for shape {shape} of {dtype}, which takes {expected} uncompressed",
            "Copy the file again: it is truncated, or its header is damaged.",
        )


def _affine(path: str | Path, image: nibabel.Nifti1Image) -> np.ndarray:
    if not image.header["sform_code"] and not image.header["qform_code"]:
        _LOGGER.warning(
            "%s: the header has no orientation (sform and qform code 0); left and right are a guess.", path
        )
    return check_affine(str(path), image.affine)


def _image(path: Path, array: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    array = np.asarray(array)
    dtype = _STORED_DTYPES.get(array.dtype.name)
    if dtype is None:
        raise error(
            f"{path}: dtypes that can be written are {', '.join(_STORED_DTYPES)}.",
            array.dtype,
            "Cast it first.",
        )
    if array.ndim not in (3, 4) or not array.size:
        raise error(f"{path}: an image is (x, y, z) or (x, y, z, channels).", f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise error(
            f"{path}: every voxel is finite.",
            f"{np.count_nonzero(~np.isfinite(array))} NaN or infinite voxels",
            "Replace them first; for a CT use write_ct.",
        )
    affine = check_affine(str(path), affine)
    image = nibabel.Nifti1Image(array.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    # Both forms, so that readers that prefer either see one geometry; the qform cannot hold a shear.
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    if grid_distance_mm(array.shape, affine, array.shape, image.get_qform()) > 0.01:
        image.set_qform(None, code="unknown")
    return image


def nifti_path(path: str | Path) -> Path:
    """Returns ``path`` as a Path if its name ends as a NIfTI file's does, else raises."""
    path = Path(path)
    if not path.name.endswith(_SUFFIXES):
        raise error(
            "Images are NIfTI files: .nii or .nii.gz.", path, "Convert the scan to NIfTI (DICOM: dcm2niix)."
        )
    return path


def _some(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return f"{shown}, ... ({values.size} different values)" if values.size > 5 else shown


def _plain(value: Any) -> Any:
    """The value as JSON knows it; NaN and infinities, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
