"""Damages scans of every format by seeded chance and reads them, in a process of its own (test_scan_fuzz.py).

    python tests/data/fuzz_scans.py FOLDER SEED COUNT

Prints one JSON object: cases, how many were refused and read by format, the longest time, the largest growth
of the process's address space in one case, and every violation.
"""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from mrseg.data import io
from mrseg.data.geometry import grid_distance_mm

sys.path.insert(0, str(Path(__file__).parent))
import dicom_files

SHAPE = (9, 8, 5)
AFFINE = np.array([[-0.9, 0, 0, 40.0], [0, -1.1, 0, 30], [0, 0, 3.3, -20], [0, 0, 0, 1]])
#: Whose grid is told twice (sform and qform, the neighbours of a slice) or guarded by a checksum (a damaged
#: gzip file): what is read without a warning has the undamaged grid. The others hold position and spacing
#: once, so that only a wrong shape can be found.
REDUNDANT = ("nii", "nii.gz", "dicom", "mgz")
KINDS = ("nii", "nii.gz", "mgh", "mgz", "nrrd", "packed.nrrd", "nhdr", "mha", "packed.mha", "mhd", "dicom")
LIMIT_S, LIMIT_MB = 5.0, 200.0


class Flags(logging.Handler):
    """Whether anything was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def address_space_mb() -> float:
    """Largest address space of the process so far: what was asked for counts, used or not."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(text.split("VmPeak:")[1].split()[0]) / 1024


def sound(folder: Path) -> dict[str, bytes]:
    """One undamaged file of every format."""
    array = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((0.9, 1.1, 3.3))
    image.SetOrigin((-40.0, -30.0, -20.0))
    for kind in KINDS[4:10]:
        sitk.WriteImage(image, str(folder / f"sound.{kind}"), kind.startswith("packed"))
    nifti = nibabel.Nifti1Image(array, AFFINE)
    nifti.set_sform(AFFINE, 1)
    nifti.set_qform(AFFINE, 1)
    for kind in ("nii", "nii.gz"):
        nibabel.save(nifti, folder / f"sound.{kind}")
    for kind in ("mgh", "mgz"):
        nibabel.save(nibabel.MGHImage(array, AFFINE), folder / f"sound.{kind}")
    origins = np.array([-40.0, -30.0, -20.0]) + 3.3 * np.arange(SHAPE[2])[:, None] * [0, 0, 1]
    dicom_files.write_stack(folder / "sound.dicom", array, np.diag([0.9, 1.1, 1])[:, :2], origins)
    found = {kind: (folder / f"sound.{kind}").read_bytes() for kind in KINDS[:-1]}
    found["dicom"] = (folder / "sound.dicom" / "002.dcm").read_bytes()
    return found


def header_bytes(kind: str, content: bytes) -> int:
    """How many bytes at the beginning say what the rest means."""
    if kind == "nii":
        return 352
    if kind == "mgh":
        return 90
    marks = {"nrrd": b"\n\n", "packed.nrrd": b"\n\n", "mha": b"= LOCAL\n", "packed.mha": b"= LOCAL\n"}
    marks["dicom"] = b"\xe0\x7f\x10\x00"
    return content.find(marks[kind]) + 12 if kind in marks else len(content)


def damaged(kind: str, content: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """One of ten kinds of damage, and whether it was done before the file was packed."""
    wrapped = kind in ("nii.gz", "mgz") and rng.random() < 0.5  # a header gone wrong before it was packed
    changed = bytearray(gzip.decompress(content) if wrapped else content)
    head = header_bytes(kind.removesuffix(".gz").replace("mgz", "mgh") if wrapped else kind, bytes(changed))
    place, length = int(rng.integers(head)), int(rng.integers(1, 24))
    anywhere = int(rng.integers(len(changed)))
    match rng.integers(10):
        case 0:
            del changed[anywhere:]
        case 1:
            changed[place] = rng.integers(256)
        case 2:
            for _ in range(int(rng.integers(2, 8))):
                changed[int(rng.integers(head))] = rng.integers(256)
        case 3:
            changed[place : place + length] = rng.bytes(length)
        case 4:
            changed[place : place + length] = bytes(length)
        case 5:
            changed[place : place + length] = b"\xff" * length
        case 6:
            del changed[anywhere : anywhere + length]
        case 7:
            changed[anywhere:anywhere] = rng.bytes(length)
        case 8:
            special(kind, changed, rng, wrapped)
        case _:
            odd = (b"", b"hello\n", bytes(400), rng.bytes(3000), bytes(changed[:head]), bytes(changed) * 2)
            changed = bytearray(odd[rng.integers(len(odd))])
    return (gzip.compress(bytes(changed)) if wrapped else bytes(changed)), wrapped


def special(kind: str, content: bytearray, rng: np.random.Generator, wrapped: bool) -> None:
    """Damage that knows the format: enormous sizes, NaN, zero and negative voxels, missing tags."""
    if kind == "nii" or (kind == "nii.gz" and wrapped):
        offset, form, values = (
            (40, "<4h", (3, 32767, 32767, 32767)), (76 + 4, "<3f", (-0.9, 1.1, 3.3)), (76 + 8, "<f", (0.0,)),
            (280, "<4f", (np.nan, 0, 0, 0)), (280, "<4f", (0.9, 0, 0, 40)), (42, "<2h", (8, 7)),
            (70, "<2h", (2, 8)), (108, "<f", (1e9,)), (108, "<f", (np.nan,)), (256, "<f", (3.0,)),
        )[rng.integers(10)]  # fmt: skip
        struct.pack_into(form, content, offset, *values)
    elif kind == "mgh" or (kind == "mgz" and wrapped):
        offset, form, values = (
            (4, ">3i", (2**31 - 1, 2**31 - 1, 2)), (4, ">i", (-9,)), (30, ">f", (np.nan,)),
            (30, ">f", (-0.9,)), (30, ">f", (0.0,)), (42, ">f", (0.5,)), (20, ">i", (77,)),
        )[rng.integers(7)]  # fmt: skip
        struct.pack_into(form, content, offset, *values)
    elif kind == "dicom":
        tags = (
            b"\x20\x00\x32\x00", b"\x20\x00\x37\x00", b"\x28\x00\x30\x00", b"\x28\x00\x10\x00",
            b"\x28\x00\x11\x00", b"\x28\x00\x00\x01", b"\x20\x00\x0e\x00", b"\xe0\x7f\x10\x00",
        )  # fmt: skip
        place = content.find(tags[rng.integers(len(tags))])
        if rng.random() < 0.5:
            content[place : place + 4] = b"\x29\x00\x99\x10"  # another tag
        else:
            content[place + 8 : place + 12] = rng.bytes(4)
    else:
        swaps = (
            (b"9 8 5", b"99999 99999 99999"), (b"9 8 5", b"9 8 4"), (b"9 8 5", b"-9 8 5"),
            (b"9 8 5", b"9 8"), (b"MET_SHORT", b"MET_DOUBLE"), (b"type: short", b"type: double"),
            (b"0.9", b"nan"), (b"0.9", b"0"), (b"0.9", b"-0.9"), (b"0.9", b"1e999"), (b".raw", b".gone"),
            (b"NDims = 3", b"NDims = 900"), (b"dimension: 3", b"dimension: 16"), (b"raw", b"gzip"),
            (b"CompressedData = False", b"CompressedData = True"), (b"short", b"block"),
        )  # fmt: skip
        old, new = swaps[rng.integers(len(swaps))]
        place = content.find(old)
        if place >= 0:
            content[place : place + len(old)] = new


def run(folder: Path, seed: int, count: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    contents = sound(folder)
    flags = Flags()
    logging.getLogger().addHandler(flags)
    grids = {kind: io.volume_header(folder / f"sound.{kind}") for kind in KINDS}
    totals: Counter[str] = Counter()
    violations: list[str] = []
    longest = largest = 0.0
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        path = folder / (f"sound.{kind}" if kind == "dicom" else f"damaged.{kind}")
        target = path / "002.dcm" if kind == "dicom" else path
        content, wrapped = damaged(kind, contents[kind], rng)
        target.write_bytes(content)
        flags.texts.clear()
        memory, start = address_space_mb(), time.perf_counter()
        try:
            array, affine = io.read_volume(path)
        except (ValueError, OSError) as reason:
            totals[f"{kind} refused"] += 1
            if str(path) not in str(reason) or "\n" in str(reason):
                violations.append(f"{number} {kind}: message {str(reason)[:200]!r}")
        except BaseException as reason:
            violations.append(f"{number} {kind}: {reason!r:.200}")
        else:
            shape, sound_affine = grids[kind]
            off = grid_distance_mm(shape, sound_affine, array.shape, affine)
            told_twice = kind in REDUNDANT and not (kind == "mgz" and wrapped)
            wrong = off > 0.1 if told_twice else array.shape != shape
            flagged = bool(flags.texts)
            totals[f"{kind} {'read with a warning' if flagged else 'read'}"] += 1
            if wrong and not flagged:
                violations.append(f"{number} {kind}: read in silence, {array.shape}, {off:.3g} mm off")
        seconds, growth = time.perf_counter() - start, address_space_mb() - memory
        longest, largest = max(longest, seconds), max(largest, growth)
        if seconds > LIMIT_S or growth > LIMIT_MB:
            violations.append(f"{number} {kind}: {seconds:.1f} s, {growth:.0f} MB")
        if kind == "dicom":
            target.write_bytes(contents[kind])
    return {
        "cases": count, "totals": dict(sorted(totals.items())), "longest_s": longest, "largest_mb": largest,
        "violations": violations,
    }  # fmt: skip


if __name__ == "__main__":
    where = Path(sys.argv[1])
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    print(json.dumps(run(where, int(sys.argv[2]), int(sys.argv[3]))))
