"""FreeSurfer's MGH and MGZ files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader

from mrseg._checks import error
from mrseg.data.geometry import check_affine
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

_KIND = "an MGH image"
_FIXED = np.dtype(MGHHeader._hdrdtype)
_PARAMETERS = 20  # after the voxels: repetition time, flip angle, echo time, inversion time, field of view
_TAGS = range(1, 100)  # then tags, each with a number (FreeSurfer, tags.h)


def open_mgh(path: Path, series: bool | None) -> Source:
    """Opens ``.mgz`` or ``.mgh`` and checks its header (see `mrseg.data.sources.spatial_shape`).

    A header without orientation (FreeSurfer then assumes coronal slices) is read with a warning.
    """
    packed = path.name.endswith(".mgz")
    with refusing(path, _KIND, "not an image, or a damaged one"):
        block = beginning(path, _FIXED.itemsize)
        if len(block) < _FIXED.itemsize or int.from_bytes(block[:4], "big") != 1:
            raise error(
                f"{path}: {_KIND} is needed.",
                "a file that does not begin with an MGH header",
                "Copy or convert the scan again.",
            )
        fixed = np.frombuffer(block, _FIXED)[0]
        shape = spatial_shape(path, tuple(int(n) for n in fixed["dims"]), series=series)
        header = MGHHeader(block)
        dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
        expected = DATA_OFFSET + math.prod(shape) * dtype.itemsize
        check_stored_size(path, expected, shape, dtype, packed=packed, footer=True)
        _check_axes(path, fixed)
        affine = check_affine(str(path), np.asarray(header.get_affine(), dtype=np.float64))

    def voxels() -> np.ndarray:
        with refusing(path, _KIND, "a truncated or damaged file"):
            content, extra = _content(path, expected, packed)
            footer = content[expected:]
            tag = int.from_bytes(footer[_PARAMETERS:], "big")
            if len(footer) > _PARAMETERS and tag and tag not in _TAGS:
                warn_of_more(path, len(footer) + extra, shape)
            found = np.frombuffer(content, dtype, math.prod(shape), DATA_OFFSET)
            array = found.reshape(shape, order="F").astype(np.float32, order="C")
        return finite_voxels(path, array)

    return Source(path, shape, affine, voxels, (path,))


def _content(path: Path, expected: int, packed: bool) -> tuple[bytes, int]:
    kept = _PARAMETERS + 4
    if packed:
        return unpacked(path, expected, footer=kept)
    with path.open("rb") as stream:
        content = stream.read(expected + kept)
    return content, max(path.stat().st_size - expected - kept, 0)


def _check_axes(path: Path, fixed: np.void) -> None:
    if fixed["goodRASFlag"] != 1:
        warn_of_no_orientation(path, "no good RAS flag")
        return
    sizes, axes = fixed["delta"].astype(float), fixed["Mdc"].astype(float)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise error(
            f"{path}: voxel sizes are finite and above zero.",
            f"{sizes.tolist()} mm",
            "Convert the scan again.",
        )
    if not np.abs(axes @ axes.T - np.eye(3)).max() < 1e-3:
        raise error(
            f"{path}: the axes are unit vectors at right angles.", axes.tolist(), "Convert the scan again."
        )
