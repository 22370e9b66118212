"""What every format's reader gives (a checked header, the way to its voxels), and the checks they share."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from mrseg._checks import InputError, error

_LOGGER = logging.getLogger(__name__)
# DEFLATE cannot compress by more than this (zlib.net/zlib_tech.html, "Maximum Compression Factor").
_LARGEST_COMPRESSION = 1032
_BAD_FILE = (
    ImageFileError, HeaderDataError, ValueError, KeyError, OverflowError, RuntimeError, OSError, EOFError,
    zlib.error,
)  # fmt: skip
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A scan whose header was read and checked; its voxels were not read yet.

    Attributes:
        path: what the user named: a file, or the folder of a DICOM series.
        shape: (x, y, z), or (x, y, z, t) of a series; trailing axes of length 1 are gone.
        affine: float64 4x4, native voxel index -> RAS+ mm.
        voxels: reads the float32 array of that shape.
        files: every file the scan consists of.
        interval_s: time from one volume of a series to the next, where the file tells it.
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    voxels: Callable[[], np.ndarray]
    files: tuple[Path, ...]
    interval_s: float | None = None


def spatial_shape(path: Path, shape: tuple[int, ...], *, series: bool | None) -> tuple[int, ...]:
    """Returns the shape without trailing axes of length 1, or raises what is wrong with it.

    Args:
        path: for the message.
        shape: as the header has it.
        series: whether (x, y, z, t) is needed, or (x, y, z); None takes either.
    """
    empty = min(shape, default=0) < 1
    rest = math.prod(shape[4:])
    if series and (len(shape) < 4 or empty or rest != 1 or shape[3] < 2):
        raise error(
            f"{path}: a series has four axes (x, y, z, t) and two time points or more.",
            f"shape {shape}",
            "Pass the whole series; join single volumes into one file (dcm2niix does).",
        )
    if series is False and (len(shape) < 3 or empty or math.prod(shape[3:]) != 1):
        raise error(
            f"{path}: an image has three axes (x, y, z); further axes have length 1.",
            f"shape {shape}",
            "Save one volume of a series as a file of its own.",
        )
    if len(shape) < 3 or empty or rest != 1:
        raise error(f"{path}: a scan has three axes, a series four.", f"shape {shape}")
    return shape[:4] if math.prod(shape[3:]) > 1 else shape[:3]


def check_stored_size(
    path: Path,
    expected: int,
    shape: tuple[int, ...],
    kind: object,
    *,
    packed: bool,
    footer: bool = False,
    data: Path | None = None,
) -> None:
    """Refuses a header that announces more than the file can hold, before memory is taken for it.

    A file that holds more is told in a warning: perhaps the header is the wrong one.

    Args:
        path: file with the header.
        expected: bytes that header and voxels take uncompressed.
        shape: for the message.
        kind: type of a voxel, for the message.
        packed: whether the file is compressed; how much it holds is then told by `unpacked`.
        footer: whether something may follow the voxels.
        data: file with the voxels, if another.
    """
    stored = (data or path).stat().st_size
    place = f" in {data.name}" if data and data != path else ""
    if expected > stored * (_LARGEST_COMPRESSION if packed else 1):
        raise error(
            f"{path}: the file holds the voxels its header announces.",
            f"{stored} bytes{place} for shape {shape} of {kind}, which takes {expected} uncompressed",
            "Copy the file again: it is truncated, or its header is damaged.",
        )
    if stored > expected and not packed and not footer:
        warn_of_more(path, stored - expected, shape)


def warn_of_more(path: Path, extra: int, shape: tuple[int, ...]) -> None:
    """Tells that a file holds more than its header announces."""
    _LOGGER.warning(
        "%s: the file goes on for %d bytes after the voxels that its header announces (shape %s): "
        "the shape may be wrong.", path, extra, shape,
    )  # fmt: skip


def unpacked(path: Path, expected: int, *, footer: int = 0) -> tuple[bytes, int]:
    """Reads a gzip file to its end, where the checksum is, and keeps what is asked for.

    Args:
        path: the file.
        expected: bytes that there must be.
        footer: bytes to keep beyond, if there are.

    Returns:
        The bytes kept, and how many came after them.

    Raises:
        EOFError, InputError: less than expected, or so much more that the header cannot be right.
    """
    with gzip.open(path) as stream:
        content = stream.read(expected + footer)
        extra = 0
        while block := stream.read(_BLOCK):
            extra += len(block)
            if extra > max(expected, 64 * _BLOCK):
                raise error(
                    f"{path}: the file holds the voxels its header announces.",
                    f"more than twice the {expected} bytes of its shape",
                    "Copy the file again: its header is damaged.",
                )
    if len(content) < expected:
        raise EOFError(f"{len(content)} of {expected} bytes")
    return content, extra


def finite_voxels(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns the array, or raises an error that counts its NaN and infinite voxels."""
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise error(
            f"{path}: every voxel is finite.",
            f"{broken} NaN or infinite voxels",
            "Export the scan again, or replace them (0 in MR, -2048 HU outside a CT's field of view).",
        )
    return array


def warn_of_no_orientation(path: Path, why: str) -> None:
    """Tells that left and right of this scan are not known from its header."""
    _LOGGER.warning("%s: the header has no orientation (%s); left and right are a guess.", path, why)


@contextmanager
def refusing(path: Path, kind: str, received: str, *, say_why: bool = True) -> Iterator[None]:
    """Turns whatever a reader raises into one line that names the file.

    Args:
        path: file that is read.
        kind: what is needed: "a NIfTI image".
        received: what it seems to be instead.
        say_why: repeat the reader's own reason; False where that could hold what identifies a patient.
    """
    try:
        # Numbers beyond float32 and signalling NaN become inf and NaN, which are refused later.
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (InputError, FileNotFoundError, PermissionError):
        raise
    except _BAD_FILE as reason:
        first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise error(
            f"{path}: {kind} is needed.",
            f"{received}: {first_line}" if say_why else received,
            "Copy or convert the scan again.",
        ) from (reason if say_why else None)


def beginning(path: Path, length: int) -> bytes:
    """The first bytes of a file, unpacked if its name ends in .gz or .mgz."""
    if not path.name.endswith((".gz", ".mgz")):
        with path.open("rb") as stream:
            return stream.read(length)
    with gzip.open(path) as stream:
        return stream.read(length)
