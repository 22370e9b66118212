"""Any scan to NIfTI on its own grid; of a DICOM folder one series, unequal steps resampled if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrseg import __version__
from mrseg._checks import error
from mrseg.data.dicom import open_dicom, read_slices
from mrseg.data.geometry import Volume
from mrseg.data.io import nifti_path, read_series, read_volume, scan_name, volume_count, write_volume
from mrseg.data.slices import describe_steps, resample_slices, stack_slices


def convert_scan(
    scan: str | Path,
    output: str | Path,
    *,
    series: str | None = None,
    spacing_mm: float | Literal["median"] | None = None,
    tolerance_mm: float = 0.01,
) -> Volume:
    """Writes a scan of any format as NIfTI, with a JSON file that says how it was made.

    Voxels are stored as int16 where that holds them exactly, else as float32. Nothing that identifies a
    patient is written, nor a DICOM folder's name.

    Args:
        scan: as `mrseg.data.read_volume` takes it, or a series (x, y, z, t).
        output: ``.nii`` or ``.nii.gz``.
        series: description or UID of one series of a DICOM folder; None for the only one.
        spacing_mm: distance of new slices of a DICOM series of unequal steps ("median": of the steps); None
            refuses such a series.
        tolerance_mm: largest distance of a DICOM slice from an even grid.

    Returns:
        The array and affine as written.

    Raises:
        FileNotFoundError, InputError: as the readers; DICOM options for a file.
    """
    scan, output = Path(scan), nifti_path(output)
    made: dict[str, Any] = {"mrseg": __version__}
    interval_s = None
    if not scan.is_dir():
        if series is not None or spacing_mm is not None:
            raise error("A series and a spacing are chosen of a DICOM folder.", f"a file: {scan}")
        made["input"] = scan_name(scan)
        if volume_count(scan) > 1:
            found = read_series(scan)
            array, affine, interval_s = found.array, found.affine, found.interval_s
        else:
            array, affine = read_volume(scan)
    else:
        array, affine, interval_s = _dicom(scan, series, spacing_mm, tolerance_mm, made)
    write_volume(output, _compact(array), affine, made, interval_s=interval_s)
    return array, affine


def _dicom(
    folder: Path,
    series: str | None,
    spacing_mm: float | Literal["median"] | None,
    tolerance_mm: float,
    made: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, float | None]:
    source = open_dicom(folder, None, series, tolerance_mm=tolerance_mm if spacing_mm is None else np.inf)
    made |= {"input": scan_name(folder), "files": len(source.files)}
    if len(source.shape) > 3:
        if spacing_mm is not None:
            raise error(f"{folder}: slices of a time series are not resampled.", f"{source.shape[3]} volumes")
        return source.voxels(), source.affine, source.interval_s
    slices = read_slices(folder, series)
    made["steps"] = describe_steps(slices.origins_mm)
    if spacing_mm is None:
        return *stack_slices(slices, tolerance_mm=tolerance_mm), None
    step = None if spacing_mm == "median" else float(spacing_mm)
    array, affine = resample_slices(slices, step, tolerance_mm=tolerance_mm)
    made["resampled_to_mm"] = round(float(np.linalg.norm(affine[:3, 2])), 6)
    return array, affine, None


def _compact(array: np.ndarray) -> np.ndarray:
    """As int16 where nothing is lost."""
    if array.min() < -32768 or array.max() > 32767:
        return array
    whole = array.astype(np.int16)
    return whole if np.array_equal(whole, array) else array
