"""Folders of DICOM files: which series there are, and one of them as slices, a volume or a time series."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrseg._checks import error, existing_folder
from mrseg.data.dicom_slice import SliceHeader, is_dicom, read_header, read_pixels
from mrseg.data.slices import Slices, slices_affine
from mrseg.data.sources import Source, spatial_shape

_LOGGER = logging.getLogger(__name__)
_PARALLEL_MM = 0.01
_SAME_PLACE_MM = 0.001


@dataclass(frozen=True)
class DicomSeries:
    """One series of a folder.

    Attributes:
        uid: SeriesInstanceUID.
        description: SeriesDescription, "" if missing.
        modality: "CT", "MR", ...
        files: its files.
        shape: columns, rows and files; without the columns and rows where they differ from file to file.
    """

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    shape: tuple[int, ...]


def list_series(folder: str | Path) -> list[DicomSeries]:
    """Returns the series in a folder and below, sorted by description and UID; reads no pixels.

    Files that are no DICOM images (reports, directories, text) are left out.

    Args:
        folder: as it came from the scanner or the archive.

    Raises:
        FileNotFoundError: no such folder.
        InputError: no DICOM image in it, or a damaged one, which is named.

    Example:
        >>> for series in list_series("study"):                                        # doctest: +SKIP
        ...     print(series.description, series.shape)
        HEAD (512, 512, 28)
    """
    found = []
    for uid, headers in _by_series(folder).items():
        sizes = {header.shape for header in headers}
        shape = (*(sizes.pop() if len(sizes) == 1 else ()), len(headers))
        files = tuple(header.path for header in headers)
        found.append(DicomSeries(uid, headers[0].description, headers[0].modality, files, shape))
    return sorted(found, key=lambda series: (series.description, series.uid))


def read_slices(folder: str | Path, series: str | None = None) -> Slices:
    """Reads one DICOM series with every slice where its own header puts it.

    Args:
        folder: holds the series, alone or among others.
        series: its description or UID; None for the only one.

    Returns:
        Slices in order along their normal, each scaled by its own RescaleSlope and RescaleIntercept (a CT is
        in HU). `mrseg.data.stack_slices` or `mrseg.data.resample_slices` makes a volume of them.

    Raises:
        FileNotFoundError: no such folder.
        InputError: several series to choose from; missing tags; slices that are not parallel or not of one
            size; two slices at one place; damaged pixels.
    """
    headers = _chosen(folder, series)
    volumes = _volumes(folder, headers)
    if len(volumes) > 1:
        raise error(
            f"{folder}: a stack has one slice at a place.",
            f"{len(volumes)} time points",
            "Read it with mrseg.data.read_series.",
        )
    first = volumes[0][0]
    padding = first.padding if all(header.padding == first.padding for header in headers) else None
    return Slices(str(folder), _read(volumes[0]), first.axes_mm, _origins(volumes[0]), padding)


def open_dicom(
    folder: Path, series: bool | None, chosen: str | None = None, *, tolerance_mm: float = 0.01
) -> Source:
    """Opens a DICOM folder as a volume, or as a time series where each place has several slices.

    Args:
        folder: holds the series.
        series: see `mrseg.data.sources.spatial_shape`.
        chosen: description or UID of the series; None for the only one.
        tolerance_mm: see `mrseg.data.stack_slices`.
    """
    headers = _chosen(folder, chosen)
    volumes = _volumes(folder, headers)
    origins = _origins(volumes[0])
    if len(origins) < 2:
        raise error(f"{folder}: a scan has two slices or more.", f"{len(origins)}", "Copy the whole series.")
    affine = slices_affine(folder, headers[0].axes_mm, origins, tolerance_mm=tolerance_mm)
    size = (*headers[0].shape, len(origins))
    shape = spatial_shape(folder, (*size, len(volumes)) if len(volumes) > 1 else size, series=series)

    def voxels() -> np.ndarray:
        if len(volumes) == 1:
            return _read(volumes[0])
        array = np.empty(shape, np.float32)
        for time, volume in enumerate(volumes):
            array[..., time] = _read(volume)
        return array

    files = tuple(header.path for volume in volumes for header in volume)
    return Source(folder, shape, affine, voxels, files, headers[0].repetition_s)


def _by_series(folder: str | Path) -> dict[str, list[SliceHeader]]:
    folder = existing_folder(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    # Hidden ones are what file systems leave beside the images.
    files = [path for path in files if not path.name.startswith(".") and path.name != "DICOMDIR"]
    headers = [read_header(path) for path in files if is_dicom(path)]
    if not headers:
        raise error(
            f"{folder}: a folder of DICOM images is needed.",
            f"{len(files)} files, no DICOM image among them",
            "Name the folder that the scanner or the archive wrote, or a file.",
        )
    groups: dict[str, list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault(header.uid, []).append(header)
    return groups


def _chosen(folder: str | Path, wanted: str | None) -> list[SliceHeader]:
    groups = _by_series(folder)
    if wanted is None:
        matching = list(groups)
    elif wanted in groups:
        matching = [wanted]
    else:
        matching = [
            uid for uid, headers in groups.items() if headers[0].description.lower() == wanted.strip().lower()
        ]
    if len(matching) == 1:
        return groups[matching[0]]
    shown = "; ".join(
        f"{headers[0].description!r} ({headers[0].modality}, {len(headers)} files, UID {uid})"
        for uid, headers in sorted(groups.items(), key=lambda item: (item[1][0].description, item[0]))
    )
    rule = "a folder holds one series, or it is named" if wanted is None else f"one series is {wanted!r}"
    raise error(
        f"{folder}: {rule}.",
        f"{len(groups)} series: {shown}",
        "Choose one by its description or UID: mrseg convert --series, or mrseg.data.read_slices.",
    )


def _volumes(folder: str | Path, headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """The slices in order along their normal, one list a time point."""
    _check_parallel(folder, headers)
    seen: dict[str, SliceHeader] = {}
    for header in headers:
        other = seen.setdefault(header.sop_uid, header)
        if other is not header and header.sop_uid:
            raise error(
                f"{folder}: a slice is there once.",
                f"{other.path.name} and {header.path.name}, copies of one slice (one SOPInstanceUID)",
                "Remove one.",
            )
    normal = headers[0].normal
    ordered = sorted(headers, key=lambda header: (float(header.origin_mm @ normal), str(header.path)))
    places: list[list[SliceHeader]] = []
    for header in ordered:
        if places and np.linalg.norm(header.origin_mm - places[-1][0].origin_mm) <= _SAME_PLACE_MM:
            places[-1].append(header)
        else:
            places.append([header])
    if len(places) == len(headers):
        return [ordered]
    return _time_points(folder, places)


def _time_points(folder: str | Path, places: list[list[SliceHeader]]) -> list[list[SliceHeader]]:
    echoes = sorted({header.echo_ms for header in places[0]})
    if len(echoes) > 1:
        raise error(
            f"{folder}: a place has one slice, or one slice a time point.",
            f"slices of echo times {', '.join(echo or 'none' for echo in echoes)} ms at one place",
            "Export each echo as a series of its own.",
        )
    counts = sorted({len(place) for place in places})
    if len(counts) == 1:
        for tag in places[0][0].times:
            keys = [[header.times.get(tag) for header in place] for place in places]
            if all(None not in key and len(set(key)) == counts[0] for key in keys):
                in_time = [sorted(place, key=lambda header: header.times[tag]) for place in places]
                return [list(volume) for volume in zip(*in_time, strict=True)]
    double = next(place for place in places if len(place) == counts[-1])
    raise error(
        f"{folder}: a place has one slice, or every place one slice a time point.",
        f"{' and '.join(header.path.name for header in double[:2])} at one place; "
        f"{', '.join(map(str, counts))} slices a place",
        "Remove the duplicates, or export each volume on its own.",
    )


def _check_parallel(folder: str | Path, headers: Sequence[SliceHeader]) -> None:
    first = headers[0]
    for header in headers[1:]:
        if header.shape != first.shape:
            raise error(
                f"{folder}: the slices of a series have one size.",
                f"{first.path.name} of {first.shape} and {header.path.name} of {header.shape}",
                "Export the localizer or the reformats as a series of their own.",
            )
        # The far corner of the slice, beside where the first slice's axes put it.
        apart = np.abs(header.axes_mm - first.axes_mm) @ np.array(header.shape)
        if np.linalg.norm(apart) > _PARALLEL_MM:
            raise error(
                f"{folder}: the slices of a series are parallel and of one pixel size.",
                f"{first.path.name} and {header.path.name}, {np.linalg.norm(apart):.3g} mm off at a corner",
                "Export each stack as a series of its own.",
            )


def _origins(headers: Sequence[SliceHeader]) -> np.ndarray:
    return np.array([header.origin_mm for header in headers])


def _read(headers: Sequence[SliceHeader]) -> np.ndarray:
    array = np.empty((*headers[0].shape, len(headers)), np.float32)
    for place, header in enumerate(headers):
        array[:, :, place] = read_pixels(header)
    return array
