"""NIfTI files: every bad header is refused with one line that says what to do."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np

from mrseg._checks import error
from mrseg.data.geometry import check_affine, grid_distance_mm
from mrseg.data.sources import (
    Source,
    beginning,
    check_stored_size,
    finite_voxels,
    refusing,
    spatial_shape,
    unpacked,
    warn_of_more,
    warn_of_no_orientation,
)

_LOGGER = logging.getLogger(__name__)
_KIND = "a NIfTI image"
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # of the xyzt_units code (nifti1.h): s, ms, us
_FOREIGN_UNITS = {1: "metre", 3: "micrometre"}  # of the xyzt_units code (nifti1.h)
_CONFLICT_MM = 0.1  # a quaternion in float32 moves the corner of a head by less


def open_nifti(path: Path, series: bool | None) -> Source:
    """Opens ``.nii`` or ``.nii.gz`` and checks its header (see `mrseg.data.sources.spatial_shape`).

    The affine is the sform, else the qform. Where a header has both and they disagree, a warning gives the
    distance; where it has neither, a warning says so.
    """
    with refusing(path, _KIND, "not an image, or a damaged one"), _warnings_logged(path):
        # Before nibabel, which would set a voxel size of zero to 1 and go on.
        raw = _raw_header(path)
        shape = spatial_shape(path, tuple(int(n) for n in raw.get_data_shape()), series=series)
        expected = _check_header(path, raw)
        kind = nibabel.Nifti2Image if raw.sizeof_hdr == 540 else nibabel.Nifti1Image
        image = kind.from_filename(path)
        affine = _affine(path, image, shape)

    def voxels() -> np.ndarray:
        with refusing(path, _KIND, "a truncated or damaged file"), _warnings_logged(path):
            opened = image
            if path.name.endswith(".gz"):
                content, extra = unpacked(path, expected)
                if extra:
                    warn_of_more(path, extra, shape)
                opened = kind.from_bytes(content)
            found = opened.get_fdata(caching="unchanged", dtype=np.float32)
            array = np.array(found, dtype=np.float32, order="C").reshape(shape)
        return finite_voxels(path, array)

    return Source(path, shape, affine, voxels, (path,), _interval_s(image.header))


@contextmanager
def _warnings_logged(path: Path) -> Iterator[None]:
    """Tells what nibabel warns of (header extensions of odd size) together with the file's name."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in found):
        _LOGGER.warning("%s: %s", path, text)


def _interval_s(header: nibabel.Nifti1Header) -> float | None:
    unit = _SECONDS.get(int(header["xyzt_units"]) & 0x38, math.nan)
    interval = round(float(header["pixdim"][4]) * unit, 6)  # the header's float32 of 0.1 is 0.1 again
    return interval if 0 < interval < math.inf else None


def _raw_header(path: Path) -> nibabel.Nifti1Header:
    block = beginning(path, nibabel.Nifti2Header.sizeof_hdr)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        size = (int.from_bytes(block[:4], order) for order in ("little", "big"))
        if kind.sizeof_hdr in size and len(block) >= kind.sizeof_hdr:
            return kind.from_fileobj(io.BytesIO(block), check=False)
    raise error(
        f"{path}: a NIfTI image is needed.",
        "a file that does not begin with a NIfTI header",
        "Convert the scan to NIfTI (DICOM: dcm2niix).",
    )


def _check_header(path: Path, header: nibabel.Nifti1Header) -> int:
    """Checks what a header can tell; returns the bytes of header and voxels."""
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
    if header["magic"].item()[:2] not in (b"n+", b""):
        raise error(
            f"{path}: header and voxels are in one file.",
            f"magic {header['magic'].item()!r}",
            "Convert a pair of .hdr and .img to .nii.",
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
    check_stored_size(path, expected, shape, dtype, packed=path.name.endswith(".gz"))
    return expected


def _affine(path: Path, image: nibabel.Nifti1Image, shape: tuple[int, ...]) -> np.ndarray:
    header = image.header
    affine = check_affine(str(path), image.affine)
    if not header["sform_code"] and not header["qform_code"]:
        warn_of_no_orientation(path, "sform and qform code 0")
    if header["sform_code"] and header["qform_code"]:
        try:
            distance = grid_distance_mm(shape, affine, shape, header.get_qform())
        except ValueError:  # no rotation
            distance = math.inf
        if not distance <= _CONFLICT_MM:
            _LOGGER.warning(
                "%s: sform and qform of the header lie %.4g mm apart (codes %d and %d); the sform is used.",
                path, distance, header["sform_code"], header["qform_code"],
            )  # fmt: skip
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(sizes, np.abs(header["pixdim"][1:4]), rtol=0.01):
        _LOGGER.warning(
            "%s: the affine has voxels of %s mm, the header's pixdim %s mm; the affine is used.",
            path, np.round(sizes, 4).tolist(), np.round(header["pixdim"][1:4], 4).tolist(),
        )  # fmt: skip
    return affine
