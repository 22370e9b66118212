"""The one door for scans: the file's name, or that it is a folder, says which reader opens it.

Arrays cross this border in their native orientation; the affine is taken and written as it stands. Every bad
input is refused with one line that says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrseg._checks import IGNORE_LABEL, error, existing_file
from mrseg.data.dicom import open_dicom
from mrseg.data.geometry import Volume
from mrseg.data.itk_formats import open_itk
from mrseg.data.mgh import open_mgh
from mrseg.data.nifti import open_nifti
from mrseg.data.sources import Source
from mrseg.data.writing import (
    nifti_path,
    read_sidecar,
    sidecar_path,
    some_values,
    write_ct,
    write_labels,
    write_volume,
)

__all__ = [
    "CT_PADDING_BELOW_HU", "Series", "nifti_path", "read_ct", "read_labels", "read_series", "read_sidecar",
    "read_volume", "scan_files", "scan_name", "sidecar_path", "volume_count", "volume_header",
    "write_ct", "write_labels", "write_volume",
]  # fmt: skip

#: CT numbers below air (-1000 HU) by more than noise: the scanner's padding outside the field of view.
CT_PADDING_BELOW_HU = -1024.0

_LOGGER = logging.getLogger(__name__)
_SMALLEST_MM, _LARGEST_MM, _FARTHEST_MM = 0.01, 50.0, 5000.0  # of a voxel, and from the world's origin
#: Ending -> who opens it. A folder is a DICOM series.
_READERS: dict[tuple[str, ...], Callable[[Path, bool | None], Source]] = {
    (".nii", ".nii.gz"): open_nifti,
    (".mgz", ".mgh"): open_mgh,
    (".nrrd", ".nhdr", ".mha", ".mhd"): open_itk,
}


def read_volume(path: str | Path) -> Volume:
    """Reads one 3-D image.

    Args:
        path: NIfTI (``.nii``, ``.nii.gz``), FreeSurfer (``.mgz``, ``.mgh``), NRRD (``.nrrd``, ``.nhdr``) or
            MetaImage (``.mha``, ``.mhd``), or the folder of one DICOM series. A fourth axis of length 1 is
            accepted and dropped (IBSR18 has one).

    Returns:
        float32 array (x, y, z) in native orientation, scaled by the header's slope and intercept, and the
        float64 affine to RAS+ mm (of NIfTI the sform, else the qform).

    Raises:
        FileNotFoundError: no such file.
        InputError: not an image, truncated, not 3-D, NaN or infinite voxels, a constant image, a voxel size
            that is zero or NaN, an affine that is not finite or not invertible; of a DICOM folder also
            several series, or slices that do not lie at one distance (see `mrseg.data.read_slices`).
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
        path: as for ``read_volume``, with four axes (x, y, z, t), two time points or more; further axes of
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
    source = _open(path, series=True)
    array = source.voxels()
    flat = np.flatnonzero(array.min(axis=(0, 1, 2)) == array.max(axis=(0, 1, 2)))
    if flat.size:
        raise error(
            f"{path}: every time point shows contrast.",
            f"a constant image at time points {some_values(flat)} (from 0)",
            "Check that the series was exported completely; cut time points that were not measured.",
        )
    return Series(array, source.affine, source.interval_s)


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
            some_values(bad),
            "Pass the label map, not an image; resample labels with order=0 only.",
        )
    if num_classes is not None:
        present = np.unique(labels)
        unknown = present[(present >= num_classes) & (present != IGNORE_LABEL)]
        if unknown.size:
            raise error(
                f"{path}: labels are below num_classes={num_classes} (or {IGNORE_LABEL}, ignore).",
                some_values(unknown),
                "Correct the label table, or merge classes with mrseg.data.merge_labels.",
            )
    return labels, affine


def volume_count(path: str | Path) -> int:
    """Returns how many volumes the header announces: 1, or the time points of a series; reads no voxels."""
    shape = _open(path, series=None).shape
    return shape[3] if len(shape) > 3 else 1


def volume_header(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Returns shape and affine without reading the voxels; checks what a header can tell."""
    source = _open(path, series=False)
    x, y, z = source.shape
    return (x, y, z), source.affine


def scan_files(path: str | Path) -> tuple[Path, ...]:
    """Returns the files that a scan consists of: of a DICOM folder its slices, of ``.mhd`` two."""
    return _open(path, series=None).files


def scan_name(path: str | Path) -> str:
    """Returns what a scan is called where its origin is written down: a file's name.

    The folder of a DICOM series is often named after the patient; it is called "a DICOM series".
    """
    return "a DICOM series" if Path(path).is_dir() else Path(path).name


def _read(path: str | Path) -> Volume:
    source = _open(path, series=False)
    return source.voxels(), source.affine


def _open(path: str | Path, series: bool | None) -> Source:
    """Opens a scan and checks its header; reads no voxels."""
    path = Path(path)
    for endings, reader in _READERS.items():
        if path.name.endswith(endings):
            return _plausible(reader(existing_file(path), series))
    if path.is_dir():
        return _plausible(open_dicom(path, series))
    raise error(
        "Scans are NIfTI (.nii or .nii.gz), FreeSurfer (.mgz, .mgh), NRRD (.nrrd, .nhdr) or MetaImage (.mha, "
        ".mhd) files, or the folder of a DICOM series.",
        existing_file(path),
        "Name the folder of a DICOM file; convert other formats to NIfTI (DICOM: dcm2niix).",
    )


def _plausible(source: Source) -> Source:
    """Warns of a grid that no head was ever scanned on: damage, or another unit than mm."""
    sizes = np.linalg.norm(source.affine[:3, :3], axis=0)
    centre = source.affine @ [*(np.array(source.shape[:3]) - 1) / 2, 1]
    if sizes.min() < _SMALLEST_MM or sizes.max() > _LARGEST_MM or np.abs(centre[:3]).max() > _FARTHEST_MM:
        _LOGGER.warning(
            "%s: voxels of %s mm around %s mm; is the header in millimetres, and undamaged?",
            source.path, " x ".join(f"{size:.3g}" for size in sizes),
            ", ".join(f"{mm:.4g}" for mm in centre[:3]),
        )  # fmt: skip
    return source
