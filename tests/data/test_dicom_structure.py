"""The walk over a DICOM file's elements, on bytes laid out by hand after PS3.5, section 7."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrseg.data import io
from mrseg.data.dicom_structure import walk_elements

UNDEFINED = 0xFFFFFFFF
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def meta(syntax):
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    return bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value


def short(group, number, kind, value, order="<"):
    return struct.pack(order + "HH2sH", group, number, kind, len(value)) + value


def long(group, number, kind, value, length=None):
    return struct.pack("<HH2sHI", group, number, kind, 0, len(value) if length is None else length) + value


def item(content, length=None, number=0xE000):
    return struct.pack("<HHI", 0xFFFE, number, len(content) if length is None else length) + content


END_ITEM, END_SEQUENCE = item(b"", number=0xE00D), item(b"", number=0xE0DD)
ROWS, PIXELS = short(0x28, 0x10, b"US", b"\x04\0"), long(0x7FE0, 0x10, b"OW", bytes(8))


def walked(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    return walk_elements(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "sequence",
    [
        b"",
        long(0x8, 0x1140, b"SQ", b""),
        long(0x8, 0x1140, b"SQ", item(ROWS) + item(b"")),
        long(0x8, 0x1140, b"SQ", item(ROWS, UNDEFINED) + END_ITEM),
        long(0x8, 0x1140, b"SQ", item(ROWS) + END_SEQUENCE, UNDEFINED),
        long(0x8, 0x1140, b"SQ", item(ROWS, UNDEFINED) + END_ITEM + END_SEQUENCE, UNDEFINED),
        long(0x8, 0x1140, b"SQ", item(long(0x8, 0x1140, b"SQ", item(ROWS))) + END_SEQUENCE, UNDEFINED),
        long(0x9, 0x10, b"UN", item(struct.pack("<HHI2s", 0x9, 0x11, 2, b"x ")) + END_SEQUENCE, UNDEFINED),
    ],
    ids=range(8),
)
def test_sequences_are_stepped_over_however_their_ends_are_told(tmp_path, sequence):
    found = walked(tmp_path, meta(EXPLICIT) + sequence + ROWS + PIXELS)
    assert found[0x28, 0x10] == b"\x04\0" and found[0x7FE0, 0x10] == b""
    assert list(found) == sorted(found)


def test_fragments_of_packed_pixels_and_padding_at_the_end_are_stepped_over(tmp_path):
    packed = long(0x7FE0, 0x10, b"OB", item(b"") + item(bytes(6)) + END_SEQUENCE, UNDEFINED)
    assert walked(tmp_path, meta(EXPLICIT) + ROWS + packed)[0x28, 0x10] == b"\x04\0"
    assert walked(tmp_path, meta(EXPLICIT) + ROWS + packed + bytes(30))[0x28, 0x10] == b"\x04\0"


def test_implicit_and_big_endian_files_are_walked(tmp_path):
    implicit = (
        struct.pack("<HHI2s", 0x28, 0x10, 2, b"\x04\0") + struct.pack("<HHI", 0x7FE0, 0x10, 8) + bytes(8)
    )
    assert walked(tmp_path, meta(IMPLICIT) + implicit)[0x28, 0x10] == b"\x04\0"
    assert walked(tmp_path, meta(BIG) + short(0x28, 0x10, b"US", b"\0\x04", ">"))[0x28, 0x10] == b"\0\x04"
    # Without preamble: as the kind of the first value tells.
    first = struct.pack("<HHI2s", 0x8, 0x5, 2, b"x ")
    assert walked(tmp_path, first + implicit)[0x28, 0x10] == b"\x04\0"
    assert walked(tmp_path, short(0x8, 0x5, b"CS", b"x ") + ROWS)[0x28, 0x10] == b"\x04\0"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (long(0x8, 0x1140, b"OB", b"", 3_000_000_000), "3000000000 bytes"),
        (short(0x28, 0x10, b"US", b"")[:-1] + b"\x09", "are left"),
        (short(0x28, 0x10, b"Q?", b"ab"), "no kind of value"),
        (ROWS[:3], "the end"),
        (PIXELS + ROWS, "out of order"),
        (ROWS + ROWS, "out of order"),
        (long(0x8, 0x1140, b"SQ", item(ROWS)[:-1]), "are left"),
        (long(0x8, 0x1140, b"SQ", item(ROWS), UNDEFINED), "the end"),
        (long(0x8, 0x1140, b"SQ", ROWS + bytes(2)), "no item"),
        (long(0x8, 0x1140, b"SQ", item(long(0x9, 0x1, b"OB", b"", 10**9))), "1000000000 bytes"),
        (long(0x7FE0, 0x10, b"OB", item(bytes(4), 10**9) + END_SEQUENCE, UNDEFINED), "1000000000 bytes"),
    ],
)  # fmt: skip
def test_what_goes_beyond_the_file_or_its_sequence_is_refused(tmp_path, content, word):
    with pytest.raises(ValueError, match=word):
        walked(tmp_path, meta(EXPLICIT) + content)


def test_sequences_without_end_of_depth_are_refused(tmp_path):
    nested = b""
    for _ in range(200):
        nested = long(0x8, 0x1140, b"SQ", item(nested + b"", UNDEFINED) + END_ITEM + END_SEQUENCE, UNDEFINED)
    with pytest.raises(ValueError, match="32 deep"):
        walked(tmp_path, meta(EXPLICIT) + nested)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_a_value_error(tmp_path, content):
    for syntax in (EXPLICIT, IMPLICIT, BIG):
        with contextlib.suppress(ValueError):
            walked(tmp_path, meta(syntax) + content)


@pytest.mark.parametrize("packing", ["JPEGLS", "JPEG2000"])
def test_losslessly_packed_slices_are_read(tmp_path, packing):
    """GDCM, through SimpleITK, writes them: sequences, fragments and all."""
    array = np.random.default_rng(0).integers(-1000, 2000, (3, 16, 12)).astype(np.int16)
    (tmp_path / "ct").mkdir()
    for k in range(3):
        image = sitk.GetImageFromArray(array[k : k + 1])
        tags = {
            "0008|0060": "CT", "0020|000e": "1.2.3.4", "0020|0032": f"0\\0\\{2 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        writer.SetCompressor(packing)
        writer.SetFileName(str(tmp_path / "ct" / f"{k}.dcm"))
        writer.Execute(image)
    assert b"1.2.840.10008.1.2.4." in (tmp_path / "ct" / "0.dcm").read_bytes()[:600]
    read, affine = io.read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(read, array.transpose(2, 1, 0))
    np.testing.assert_allclose(affine, np.diag([-1.0, -1, 2, 1]), atol=1e-12)
