from __future__ import annotations

import gzip
import json
import logging
import os
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrseg._checks import InputError
from mrseg.data import io
from mrseg.data.geometry import check_same_grid

AFFINE = np.array([[-0.9, 0.02, 0, 90], [0.02, 0.9, 0.1, -120], [0, -0.1, 3.0, -60], [0, 0, 0, 1.0]])


def ramp(shape=(4, 5, 6), dtype=np.int16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def nifti(path, array=None, affine=None, kind=nibabel.Nifti1Image):
    image = kind(ramp() if array is None else array, np.eye(4) if affine is None else affine)
    nibabel.save(image, path)
    return path


def patched(path, offset, fmt, *values):
    """Overwrites bytes of an uncompressed NIfTI-1 header (offsets: nifti1.h)."""
    content = bytearray(Path(path).read_bytes())
    struct.pack_into("<" + fmt, content, offset, *values)
    Path(path).write_bytes(content)
    return path


DIM, DATATYPE, BITPIX, PIXDIM, XYZT, QFORM_CODE, SFORM_CODE, SROW_X = 40, 70, 72, 76, 123, 252, 254, 280


def refused(path, *words, read=io.read_volume):
    """The one-line message of the error, which names the file and holds the words."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "Received: " in message
    for word in words:
        assert word in message
    return message


# Reading what is good


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_voxels_and_affine_come_back_in_native_orientation(tmp_path, name, kind):
    array, affine = io.read_volume(nifti(tmp_path / name, affine=AFFINE, kind=kind))
    assert array.dtype == np.float32 and affine.dtype == np.float64
    np.testing.assert_array_equal(array, ramp())
    np.testing.assert_allclose(affine, AFFINE, rtol=1e-7)


def test_big_endian_files_are_read(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(ramp(dtype=">i2"), np.eye(4), header), tmp_path / "a.nii")
    np.testing.assert_array_equal(io.read_volume(tmp_path / "a.nii")[0], ramp())


def test_slope_and_intercept_are_applied(tmp_path):
    patched(nifti(tmp_path / "a.nii"), 112, "ff", 2.0, -10.0)
    np.testing.assert_array_equal(io.read_volume(tmp_path / "a.nii")[0], ramp() * 2.0 - 10)


def test_a_trailing_axis_of_one_with_a_zoom_of_zero_is_dropped(tmp_path):
    nifti(tmp_path / "a.nii", ramp()[..., None])
    patched(tmp_path / "a.nii", PIXDIM + 16, "f", 0.0)
    array, _ = io.read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(array, ramp())


def test_the_array_is_writable_and_apart_from_the_file(tmp_path):
    nifti(tmp_path / "a.nii", ramp(dtype=np.float32))
    array, _ = io.read_volume(tmp_path / "a.nii")
    array[:] = 0
    np.testing.assert_array_equal(io.read_volume(tmp_path / "a.nii")[0], ramp())


def test_the_header_alone_tells_shape_and_affine(tmp_path):
    nifti(tmp_path / "a.nii.gz", ramp()[..., None], AFFINE)
    shape, affine = io.volume_header(tmp_path / "a.nii.gz")
    assert shape == (4, 5, 6)
    np.testing.assert_allclose(affine, AFFINE, rtol=1e-7)


def test_a_header_without_orientation_is_read_with_a_warning(tmp_path, caplog):
    nifti(tmp_path / "a.nii")
    patched(tmp_path / "a.nii", QFORM_CODE, "hh", 0, 0)
    io.read_volume(tmp_path / "a.nii")
    assert "left and right are a guess" in caplog.text


# Refusing what is bad


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="scan.nii.gz"):
        io.read_volume(tmp_path / "scan.nii.gz")


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.nii").mkdir()
    refused(tmp_path / "a.nii", "not a folder")


def test_another_suffix_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x" * 400)
    refused(tmp_path / "a.dcm", ".nii or .nii.gz", "dcm2niix")


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 2000])
def test_text_is_not_an_image(tmp_path, content):
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "does not begin with a NIfTI header")


def test_a_gz_that_is_not_gzip_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(nifti(tmp_path / "b.nii").read_bytes())
    refused(tmp_path / "a.nii.gz", "not an image, or a damaged one", "Copy or convert")


@pytest.mark.parametrize("kept", [10, 200, 0.5, 0.95])
def test_a_truncated_gzip_is_refused(tmp_path, kept):
    rng = np.random.default_rng(0)
    content = nifti(tmp_path / "a.nii.gz", rng.normal(size=(20, 20, 20)).astype("f4")).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[: kept if kept > 1 else int(len(content) * kept)])
    refused(tmp_path / "a.nii.gz", "damaged", "Copy")


def test_a_damaged_gzip_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    content = bytearray(nifti(tmp_path / "a.nii.gz", rng.normal(size=(20, 20, 20)).astype("f4")).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    (tmp_path / "a.nii.gz").write_bytes(content)
    refused(tmp_path / "a.nii.gz", "truncated or damaged", "Copy")


def test_a_gzip_without_its_checksum_is_refused(tmp_path):
    content = nifti(tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[:-8])
    refused(tmp_path / "a.nii.gz", "damaged", "Copy")


def test_one_wrong_byte_in_the_voxels_of_a_gzip_is_found(tmp_path):
    content = bytearray(gzip.compress(nifti(tmp_path / "a.nii").read_bytes(), compresslevel=0))
    content[-50] ^= 1  # stored uncompressed: only the checksum can tell
    (tmp_path / "a.nii.gz").write_bytes(content)
    refused(tmp_path / "a.nii.gz", "damaged", "CRC")


def test_a_truncated_plain_file_is_refused_by_its_size(tmp_path):
    content = nifti(tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(content[:-1])
    # 352 bytes of header, 4 * 5 * 6 voxels of 2 bytes.
    refused(tmp_path / "a.nii", "591 bytes", "takes 592", "truncated")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_enormous_dimensions_are_refused_before_memory_is_taken(tmp_path, suffix):
    plain = patched(nifti(tmp_path / "a.nii"), DIM, "4h", 3, 30000, 30000, 30000)
    path = tmp_path / f"b{suffix}"
    content = plain.read_bytes()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    refused(path, "(30000, 30000, 30000)", "54000000000352")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted_and_refused(tmp_path, value):
    array = ramp(dtype=np.float32)
    array[0, 0, :2] = value
    refused(nifti(tmp_path / "a.nii.gz", array), "2 NaN or infinite", "Export")


def test_voxels_beyond_float32_are_refused(tmp_path):
    array = ramp(dtype=np.float64)
    array[0, 0, 0] = 1e300
    refused(nifti(tmp_path / "a.nii", array), "1 NaN or infinite")


def test_a_constant_image_is_refused(tmp_path):
    refused(nifti(tmp_path / "a.nii", np.full((3, 3, 3), 7, np.int16)), "constant image (7 in every voxel)")


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5), (4, 5, 6, 1, 3)])
def test_what_is_not_three_dimensional_is_refused(tmp_path, shape):
    refused(nifti(tmp_path / "a.nii", ramp(shape)), "three axes", str(shape))


def test_an_axis_of_length_zero_is_refused(tmp_path):
    patched(nifti(tmp_path / "a.nii"), DIM, "4h", 3, 4, 0, 6)
    refused(tmp_path / "a.nii", "(4, 0, 6)")


@pytest.mark.parametrize("size", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_voxel_size_of_zero_or_nan_is_refused(tmp_path, size, axis):
    patched(nifti(tmp_path / "a.nii"), PIXDIM + 4 * (axis + 1), "f", size)
    refused(tmp_path / "a.nii", "voxel sizes", str(size), "mm")


def test_an_affine_with_nan_is_refused(tmp_path):
    patched(nifti(tmp_path / "a.nii"), SROW_X, "f", np.nan)
    refused(tmp_path / "a.nii", "finite")


def test_a_singular_affine_is_refused(tmp_path):
    patched(nifti(tmp_path / "a.nii"), SROW_X, "4f", 0, 0, 0, 5)
    refused(tmp_path / "a.nii", "invertible")


def test_a_broken_quaternion_is_refused(tmp_path):
    nifti(tmp_path / "a.nii")
    patched(tmp_path / "a.nii", QFORM_CODE, "hh3f", 1, 0, 5.0, 5.0, 5.0)
    refused(tmp_path / "a.nii")


def test_metres_are_refused(tmp_path):
    patched(nifti(tmp_path / "a.nii"), XYZT, "B", 1)
    refused(tmp_path / "a.nii", "metre", "mm")


@pytest.mark.parametrize(("code", "bits"), [(32, 64), (128, 24)])
def test_complex_and_colour_voxels_are_refused(tmp_path, code, bits):
    patched(nifti(tmp_path / "a.nii", ramp(dtype=np.float64)), DATATYPE, "hh", code, bits)
    refused(tmp_path / "a.nii", "real numbers")


def test_an_unknown_datatype_is_refused(tmp_path):
    patched(nifti(tmp_path / "a.nii"), DATATYPE, "h", 12345)
    refused(tmp_path / "a.nii", "12345")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 347), st.binary(min_size=1, max_size=8))
def test_no_damaged_header_escapes_the_one_voice(tmp_path, caplog, place, damage):
    content = bytearray(nifti(tmp_path / "a.nii").read_bytes())
    content[place : place + len(damage)] = damage
    (tmp_path / "b.nii").write_bytes(content[:592])
    try:
        io.read_volume(tmp_path / "b.nii")
    except InputError as caught:
        assert "\n" not in str(caught) and "b.nii" in str(caught)


# CT


def test_ct_padding_becomes_nan_and_air_stays(tmp_path):
    ct = np.array([-3000, -1025, -1024, -1000, 40, 1500], dtype=np.int16).reshape(1, 2, 3)
    array, _ = io.read_ct(nifti(tmp_path / "ct.nii", ct))
    np.testing.assert_array_equal(array.ravel(), [np.nan, np.nan, -1024, -1000, 40, 1500])


def test_nan_in_the_ct_file_itself_is_refused(tmp_path):
    ct = np.array([-1000, np.nan, 40, 1500], dtype=np.float32).reshape(1, 2, 2)
    refused(nifti(tmp_path / "ct.nii", ct), "1 NaN", "-2048 HU", read=io.read_ct)


def test_a_ct_of_padding_alone_is_refused(tmp_path):
    ct = np.array([-3000, -2000], dtype=np.int16).reshape(1, 1, 2)
    refused(nifti(tmp_path / "ct.nii", ct), "-1024 HU", "slope", read=io.read_ct)


def test_a_ct_without_air_is_suspected(tmp_path, caplog):
    io.read_ct(nifti(tmp_path / "ct.nii", ramp()))
    assert "no voxel below -500 HU" in caplog.text


def test_a_ct_with_nan_outside_comes_back_the_same(tmp_path):
    ct = np.array([np.nan, -1000, 40, 1500], dtype=np.float32).reshape(1, 2, 2)
    io.write_ct(tmp_path / "ct.nii.gz", ct, AFFINE)
    np.testing.assert_array_equal(io.read_ct(tmp_path / "ct.nii.gz")[0], ct)


# Series

TIME_PIXDIM = PIXDIM + 16


def series_file(path, array=None, unit=8, interval=1.5):
    nifti(path, ramp((3, 4, 2, 5)) if array is None else array, AFFINE)
    return patched(patched(path, XYZT, "B", 2 | unit), TIME_PIXDIM, "f", interval)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_series_keeps_its_time_points_and_its_affine(tmp_path, suffix):
    path = series_file(tmp_path / "a.nii")
    if suffix.endswith("gz"):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    series = io.read_series(path)
    assert series.array.dtype == np.float32 and series.affine.dtype == np.float64
    np.testing.assert_array_equal(series.array, ramp((3, 4, 2, 5)))
    np.testing.assert_allclose(series.affine, AFFINE, rtol=1e-7)
    assert io.volume_count(path) == 5


def test_a_fifth_axis_of_one_is_dropped_from_a_series(tmp_path):
    path = nifti(tmp_path / "a.nii", ramp((3, 4, 2, 5, 1)))
    assert io.read_series(path).array.shape == (3, 4, 2, 5)


@pytest.mark.parametrize(
    ("unit", "stored", "seconds"),
    [
        (8, 1.5, 1.5),
        (16, 1500.0, 1.5),  # ms
        (24, 1.5e6, 1.5),  # us
        (8, 0.1, 0.1),  # float32 of 0.1 is 0.100000001
        (0, 1.5, None),  # no unit
        (32, 1.5, None),  # Hz
        (8, 0.0, None),
        (8, -2.0, None),
        (8, np.nan, None),
        (8, np.inf, None),
    ],
)
def test_the_interval_is_told_in_seconds_or_not_at_all(tmp_path, unit, stored, seconds):
    assert io.read_series(series_file(tmp_path / "a.nii", unit=unit, interval=stored)).interval_s == seconds


def test_slope_and_intercept_of_a_series_are_applied(tmp_path):
    patched(series_file(tmp_path / "a.nii"), 112, "ff", 2.0, -10.0)
    np.testing.assert_array_equal(io.read_series(tmp_path / "a.nii").array, ramp((3, 4, 2, 5)) * 2.0 - 10)


@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 4, 2, 1), (3, 4), (3, 4, 2, 5, 2)])
def test_what_is_no_series_is_refused(tmp_path, shape):
    refused(nifti(tmp_path / "a.nii", ramp(shape)), "four axes", str(shape), read=io.read_series)


def test_a_series_is_no_volume_and_the_error_says_so(tmp_path):
    refused(series_file(tmp_path / "a.nii"), "three axes", "(3, 4, 2, 5)")


def test_time_points_without_contrast_are_named(tmp_path):
    array = ramp((3, 4, 2, 5))
    array[..., 1] = 7
    array[..., 4] = 0
    refused(series_file(tmp_path / "a.nii", array), "time points 1, 4 (from 0)", read=io.read_series)


def test_a_series_with_nan_or_cut_short_is_refused(tmp_path):
    array = ramp((3, 4, 2, 5), np.float32)
    array[0, 0, 0, 2:4] = np.nan
    refused(series_file(tmp_path / "a.nii", array), "2 NaN or infinite", read=io.read_series)
    content = series_file(tmp_path / "b.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(content[:-1])
    refused(tmp_path / "b.nii", "truncated", read=io.read_series)
    whole = gzip.compress(series_file(tmp_path / "c.nii").read_bytes())
    (tmp_path / "c.nii.gz").write_bytes(whole[:-8])
    refused(tmp_path / "c.nii.gz", "damaged", read=io.read_series)


@pytest.mark.parametrize("read", [io.read_series, io.volume_count])
def test_a_series_that_is_missing_or_no_image_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="dsc.nii"):
        read(tmp_path / "dsc.nii")
    (tmp_path / "a.nii").write_text("hello", encoding="utf-8")
    refused(tmp_path / "a.nii", "does not begin with a NIfTI header", read=read)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 347), st.binary(min_size=1, max_size=8))
def test_no_damaged_header_of_a_series_escapes_the_one_voice(tmp_path, caplog, place, damage):
    content = bytearray(series_file(tmp_path / "a.nii").read_bytes())
    size = len(content)
    content[place : place + len(damage)] = damage
    (tmp_path / "b.nii").write_bytes(content[:size])
    for read in (io.read_series, io.volume_count):
        try:
            found = read(tmp_path / "b.nii")
        except InputError as caught:
            assert "\n" not in str(caught) and "b.nii" in str(caught)
        else:
            if read is io.read_series:
                assert found.array.ndim == 4 and np.isfinite(found.array).all()
                assert found.interval_s is None or 0 < found.interval_s < np.inf


# Labels


def test_labels_come_back_as_uint8_even_if_stored_as_float(tmp_path):
    labels = np.array([0, 1, 2, 255], dtype=np.float32).reshape(1, 2, 2)
    array, _ = io.read_labels(nifti(tmp_path / "a.nii", labels), num_classes=3)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, labels)


def test_an_empty_label_map_is_accepted(tmp_path):
    array, _ = io.read_labels(nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8)), 3)
    assert not array.any()


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5"), (-1, "-1"), (256, "256"), (1e9, "1e+09")])
def test_labels_that_are_not_whole_numbers_from_0_to_255_are_refused(tmp_path, value, shown):
    labels = np.array([0, 1, value, 255], dtype=np.float32).reshape(1, 2, 2)
    refused(nifti(tmp_path / "a.nii", labels), "whole numbers", f"Received: {shown}.", read=io.read_labels)


def test_labels_outside_the_table_are_listed(tmp_path):
    labels = np.array([0, 3, 4, 255], dtype=np.uint8).reshape(1, 2, 2)
    path = nifti(tmp_path / "a.nii", labels)
    message = refused(path, "num_classes=3", "3, 4", read=lambda p: io.read_labels(p, 3))
    assert "255 different" not in message


def test_many_wrong_labels_are_summed_up(tmp_path):
    refused(
        nifti(tmp_path / "a.nii", ramp(dtype=np.float32) + 0.5), "(120 different values)", read=io.read_labels
    )


def test_an_image_and_labels_on_different_grids_are_both_named(tmp_path):
    image = nifti(tmp_path / "t1.nii")
    labels = nifti(tmp_path / "seg.nii", ramp(dtype=np.uint8), np.diag([1.0, 1, 1.5, 1]))
    with pytest.raises(InputError, match=r"t1.nii and .*seg.nii, whose corner voxels lie 2.5 mm apart"):
        check_same_grid(image, io.read_volume(image), labels, io.read_labels(labels))


# Writing


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    st.sampled_from(["a.nii", "a.nii.gz"]),
)
def test_float32_voxels_come_back_bit_for_bit(tmp_path, array, name):
    array.flat[0] = 1 if array.flat[-1] != 1 else 2  # not constant
    if array.size == 1:
        return
    io.write_volume(tmp_path / name, array, AFFINE)
    read, _ = io.read_volume(tmp_path / name)
    assert np.array_equal(read.view(np.uint32), array.view(np.uint32))


def test_an_affine_that_came_from_a_file_is_written_without_change(tmp_path):
    nifti(tmp_path / "a.nii", affine=AFFINE)
    array, affine = io.read_volume(tmp_path / "a.nii")
    io.write_volume(tmp_path / "b.nii.gz", array, affine)
    assert np.array_equal(io.read_volume(tmp_path / "b.nii.gz")[1], affine)


def test_both_forms_hold_the_same_geometry_in_mm(tmp_path):
    io.write_volume(tmp_path / "a.nii", ramp(), np.diag([-1.0, 1, 2, 1]))
    header = nibabel.load(tmp_path / "a.nii").header
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-6)


def test_a_shear_is_left_out_of_the_qform_which_cannot_hold_it(tmp_path):
    sheared = np.eye(4)
    sheared[1, 2] = 0.4  # a CT with gantry tilt
    io.write_volume(tmp_path / "a.nii", ramp(), sheared)
    header = nibabel.load(tmp_path / "a.nii").header
    assert header["qform_code"] == 0
    np.testing.assert_allclose(io.read_volume(tmp_path / "a.nii")[1], sheared, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float64", "float32"), ("bool", "uint8"), ("int16", "int16"), ("int32", "int32")]
)
def test_dtypes_are_kept_or_brought_to_what_the_library_reads(tmp_path, dtype, stored):
    array = (ramp() % 2).astype(dtype)
    io.write_volume(tmp_path / "a.nii", array, np.eye(4))
    assert nibabel.load(tmp_path / "a.nii").get_data_dtype() == stored
    np.testing.assert_array_equal(io.read_volume(tmp_path / "a.nii")[0], array)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (ramp(dtype=np.int64), "int64"),
        (ramp(dtype=np.complex64), "complex64"),
        (ramp((4, 5)), r"\(4, 5\)"),
        (np.full((2, 2, 2), np.nan), "write_ct"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, array, word):
    with pytest.raises(InputError, match=word):
        io.write_volume(tmp_path / "a.nii", array, np.eye(4))
    assert os.listdir(tmp_path) == []


def test_other_formats_are_not_written(tmp_path):
    with pytest.raises(InputError, match=".nii or .nii.gz"):
        io.write_volume(tmp_path / "a.mha", ramp(), np.eye(4))


def test_labels_are_written_with_their_table_and_provenance(tmp_path):
    labels = np.array([0, 1, 2, 255], dtype=np.int64).reshape(1, 2, 2)
    provenance = {
        "ct": Path("ct.nii"),
        "thresholds_hu": (-500.0, 600.0),
        "quality": {"dice": np.float32(0.5), "shift": np.nan, "n": np.arange(2)},
    }
    io.write_labels(tmp_path / "out" / "seg.nii.gz", labels, AFFINE, ("air", "soft", "bone"), provenance)
    assert sorted(os.listdir(tmp_path / "out")) == ["seg.json", "seg.nii.gz"]
    assert nibabel.load(tmp_path / "out" / "seg.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(io.read_labels(tmp_path / "out" / "seg.nii.gz", 3)[0], labels)
    assert io.read_sidecar(tmp_path / "out" / "seg.nii.gz") == {
        "labels": {"0": "air", "1": "soft", "2": "bone", "255": "ignore"},
        "provenance": {
            "ct": "ct.nii",
            "thresholds_hu": [-500.0, 600.0],
            "quality": {"dice": 0.5, "shift": None, "n": [0, 1]},
        },
    }


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (-1, np.int8), (254, np.uint8)])
def test_labels_outside_the_table_are_not_written(tmp_path, value, dtype):
    labels = np.full((2, 2, 2), value, dtype=dtype)
    with pytest.raises(InputError, match=f"below 3.*{value}"):
        io.write_labels(tmp_path / "a.nii", labels, np.eye(4), ("air", "soft", "bone"), {})


def test_probabilities_are_not_written_as_labels(tmp_path):
    with pytest.raises(InputError, match="argmax"):
        io.write_labels(tmp_path / "a.nii", np.zeros((2, 2, 2)), np.eye(4), ("air", "soft"), {})


def test_a_failed_write_leaves_the_older_pair(tmp_path, monkeypatch):
    labels = np.zeros((2, 2, 2), np.uint8)
    io.write_labels(tmp_path / "a.nii", labels, np.eye(4), ("air", "soft"), {"run": 1})

    def full_disk(image, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(nibabel, "save", full_disk)
    with pytest.raises(OSError, match="disk is full"):
        io.write_labels(tmp_path / "a.nii", labels + 1, np.eye(4), ("air", "soft"), {"run": 2})
    assert io.read_sidecar(tmp_path / "a.nii")["provenance"] == {"run": 1}
    assert not io.read_labels(tmp_path / "a.nii")[0].any()
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.nii"]


@pytest.mark.parametrize("content", ["[1]", "{", "\xff"])
def test_a_broken_sidecar_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"a\.json: a sidecar is a JSON object"):
        io.read_sidecar(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_sidecar_lies_beside_its_labels(name):
    assert io.sidecar_path(Path("x") / name) == Path("x/a.json")


def test_the_sidecar_is_strict_json(tmp_path):
    io.write_labels(tmp_path / "a.nii", np.zeros((1, 1, 1), int), np.eye(4), ("air",), {"x": float("inf")})

    def no_constants(name):
        raise AssertionError(name)

    json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=no_constants)


# Real scans


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
class TestOnRealScans:
    def folder(self):
        return Path(os.environ["MRSEG_DATA"])

    def test_ibsr18_with_its_trailing_axis_is_three_dimensional_and_on_its_labels_grid(self):
        scan = self.folder() / "ibsr18" / "Training_Set" / "IBSR_01" / "IBSR_01.nii.gz"
        labels = scan.with_name("IBSR_01_seg.nii.gz")
        image, segmentation = io.read_volume(scan), io.read_labels(labels, num_classes=4)
        assert image[0].shape == (256, 128, 256)
        check_same_grid(scan, image, labels, segmentation)
        # Skull-stripped and labelled by hand: tissue lies where the image is positive, up to a few voxels.
        assert (image[0][segmentation[0] > 0] > 0).mean() > 0.99

    @pytest.mark.parametrize(("name", "classes"), [("brainweb", 10), ("colin27", 7)])
    def test_head_models_keep_within_their_label_tables(self, name, classes):
        labels, _ = io.read_labels(self.folder() / name / "labels.nii.gz", classes)
        assert labels.shape == (181, 217, 181)
        assert len(np.unique(labels)) == classes

    def test_a_scan_written_and_read_again_is_the_same(self, tmp_path):
        array, affine = io.read_volume(self.folder() / "open_ms" / "patient01" / "study1_T1W.nii.gz")
        io.write_volume(tmp_path / "a.nii", array, affine)
        again, again_affine = io.read_volume(tmp_path / "a.nii")
        assert np.array_equal(again, array)
        assert np.array_equal(again_affine, affine)

    def test_an_mr_scan_read_as_ct_is_suspected(self, caplog):
        with caplog.at_level(logging.WARNING):
            io.read_ct(self.folder() / "colin27" / "T1.nii.gz")
        assert "no voxel below -500 HU" in caplog.text


def test_an_image_has_a_sidecar_on_request_and_keeps_that_of_others(tmp_path):
    io.write_volume(tmp_path / "mu.nii", ramp(), AFFINE, {"unit": "1/cm", "steps": np.arange(2)})
    assert io.read_sidecar(tmp_path / "mu.nii") == {"provenance": {"unit": "1/cm", "steps": [0, 1]}}
    io.write_volume(tmp_path / "mu.nii", ramp() + 1, AFFINE, {"unit": "1/mm"})  # its own is replaced
    assert io.read_sidecar(tmp_path / "mu.nii")["provenance"] == {"unit": "1/mm"}
    io.write_volume(tmp_path / "plain.nii", ramp(), AFFINE)
    assert not (tmp_path / "plain.json").exists()


@pytest.mark.parametrize("content", ['{"RepetitionTime": 2.0}', "[1]", "5", '"provenance"'])
def test_the_sidecar_of_an_image_replaces_no_foreign_file(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="replaces no other file"):
        io.write_volume(tmp_path / "a.nii", ramp(), AFFINE, {"run": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == content
    assert not (tmp_path / "a.nii").exists()
