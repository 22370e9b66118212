"""Writing NIfTI volumes and what lies beside them: whole or not at all, with label table and provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mrseg._checks import IGNORE_LABEL, error, existing_file
from mrseg._files import atomic_file
from mrseg.data.geometry import check_affine, grid_distance_mm

_SUFFIXES = (".nii", ".nii.gz")
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


def write_volume(
    path: str | Path,
    array: np.ndarray,
    affine: np.ndarray,
    provenance: Mapping[str, Any] | None = None,
    *,
    interval_s: float | None = None,
) -> None:
    """Writes an image whole or not at all; an older file of that name is replaced.

    Args:
        path: ``.nii`` or ``.nii.gz``; missing folders are made.
        array: (x, y, z), or (x, y, z, channels); finite. float64 is stored as float32, bool as uint8; the
            other dtypes NIfTI and this library share (float32, uint8, int16, uint16, int32) as they are.
        affine: voxel index -> RAS+ mm. Kept in float32 precision, which is what NIfTI holds.
        provenance: where the image comes from; given, it is stored beside it in ``<stem>.json``, as
            ``write_labels`` does.
        interval_s: of a series (x, y, z, t): seconds from one volume to the next, kept in the header.

    Raises:
        InputError: another suffix, rank or dtype, NaN or infinite voxels, a bad affine.
        OSError: the folder cannot be written.
    """
    path = nifti_path(path)
    image = _image(path, array, affine)
    if interval_s is not None and image.ndim == 4:
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = interval_s
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
            f"Labels are below {len(class_names)}, the number of class names, or 255.", some_values(unknown)
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
        disown(path)


def disown(path: Path) -> None:
    """Removes the sidecar of an image that is about to be replaced, with the files beside it.

    A kill in between then leaves files that nothing vouches for, not new ones with the older ones' origin.

    Raises:
        InputError: the JSON file beside the image is no sidecar of ours.
    """
    _keep_foreign_sidecar(sidecar_path(path))
    sidecar_path(path).unlink(missing_ok=True)


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
            "Images are written as NIfTI: the name ends in .nii or .nii.gz.", path, f"Say {path.name}.nii.gz."
        )
    return path


def some_values(values: np.ndarray) -> str:
    """The first five values as text, and how many there are if more."""
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
