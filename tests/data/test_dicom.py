"""DICOM folders: each voxel where its file's tags put it, each doubt an error, no patient's name anywhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nibabel import affines

from mrseg._checks import InputError
from mrseg.data import io, list_series, read_slices, resample_slices
from mrseg.data.geometry import to_canonical

_spec = importlib.util.spec_from_file_location("dicom_files", Path(__file__).with_name("dicom_files.py"))
dicom_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dicom_files)

TO_RAS = np.array([-1.0, -1.0, 1.0])
PLAIN = np.array([[0.5, 0.0], [0.0, 0.7], [0.0, 0.0]])
COSINE, SINE = np.cos(np.radians(18.5)), np.sin(np.radians(18.5))
TILTED = np.array([[0.5, 0.0], [0.0, 0.7 * COSINE], [0.0, -0.7 * SINE]])
SAGITTAL = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, -0.7]])


def counting(shape=(5, 4, 6)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def along(n=6, step=3.0, direction=(0.0, 0.0, 1.0), start=(-10.0, 20.0, -30.0)):
    return np.array(start) + step * np.arange(n)[:, None] * np.array(direction)


def folder_of(tmp_path, array=None, axes=PLAIN, origins=None, tags=None, name="ct", prefix=""):
    array = counting() if array is None else array
    origins = along(array.shape[2]) if origins is None else origins
    return dicom_files.write_stack(tmp_path / name, array, axes, origins, tags, prefix)


def world_by_hand(folder):
    """World position of every stored value, from each file's tags read one by one: value -> RAS mm."""
    found = {}
    for path in folder.rglob("*.dcm"):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("GDCMImageIO")
        reader.ReadImageInformation()
        tags = {
            name: [float(word) for word in reader.GetMetaData(tag).split("\\")]
            for name, tag in (("ipp", "0020|0032"), ("iop", "0020|0037"), ("spacing", "0028|0030"))
        }
        pixels = sitk.GetArrayFromImage(reader.Execute())[0]  # (rows, columns)
        for row in range(pixels.shape[0]):
            for column in range(pixels.shape[1]):
                lps = np.array(tags["ipp"])
                lps = lps + np.array(tags["iop"][:3]) * tags["spacing"][1] * column
                lps = lps + np.array(tags["iop"][3:]) * tags["spacing"][0] * row
                found[float(pixels[row, column])] = lps * TO_RAS
    return found


def refused(path, *words, read=io.read_volume):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, message
    for secret in dicom_files.SECRETS.values():
        assert secret not in message
    return message


@pytest.mark.parametrize(
    ("axes", "direction"),
    [
        (PLAIN, (0, 0, 1)), (PLAIN, (0, 0, -1)), (TILTED, (0, 0, 1)), (SAGITTAL, (1, 0, 0)),
        (SAGITTAL, (-1, 0, 0)),
    ],
)  # fmt: skip
def test_every_value_lies_where_its_own_file_puts_it(tmp_path, axes, direction):
    folder = folder_of(tmp_path, axes=axes, origins=along(direction=direction))
    by_hand = world_by_hand(folder)
    for volume in (io.read_volume(folder), to_canonical(io.read_volume(folder))):
        array, affine = volume
        index = np.argwhere(np.ones(array.shape))
        expected = np.array([by_hand[float(value)] for value in array.ravel()])
        np.testing.assert_allclose(affines.apply_affine(affine, index), expected, atol=1e-6)
    assert array.size == counting().size == len(by_hand)


def test_the_header_alone_tells_the_grid(tmp_path):
    folder = folder_of(tmp_path)
    shape, affine = io.volume_header(folder)
    array, same = io.read_volume(folder)
    assert shape == array.shape and np.array_equal(affine, same) and io.volume_count(folder) == 1
    assert io.scan_files(folder) == tuple(sorted(folder.iterdir()))


def test_names_and_numbers_of_the_files_do_not_matter(tmp_path):
    first = io.read_volume(folder_of(tmp_path))
    files = sorted((tmp_path / "ct").iterdir())
    for path, name in zip(files, ("f", "b", "e", "a", "d", "c"), strict=True):
        path.rename(tmp_path / "ct" / f"{name}.dcm")
    again = io.read_volume(tmp_path / "ct")
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])


def test_files_without_preamble_or_ending_are_read(tmp_path):
    folder = folder_of(tmp_path)
    expected = io.read_volume(folder)[0]
    for number, path in enumerate(sorted(folder.iterdir())):
        content = path.read_bytes()
        path.unlink()
        (folder / f"IM_{number}").write_bytes(content[content.index(b"\x08\x00\x16\x00UI") :])
    np.testing.assert_array_equal(io.read_volume(folder)[0], expected)


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    for k in range(6):
        tags = {"0028|1053": 1 + k, "0028|1052": -1000 + k, "0020|0032": f"0\\0\\{k}", "0020|0013": k}
        (tmp_path / "pet").mkdir(exist_ok=True)
        dicom_files.write_slice(tmp_path / "pet" / f"{k}.dcm", counting()[:, :, k].T, tags)
    array, _ = io.read_volume(tmp_path / "pet")
    expected = counting() * (1.0 + np.arange(6)) + np.arange(-1000, -994)
    np.testing.assert_array_equal(array, expected)


def test_a_ct_is_in_hounsfield_units_and_its_padding_is_outside(tmp_path):
    stored = counting()
    stored[0] = -2000
    ct_hu, _ = io.read_ct(folder_of(tmp_path, stored, tags={"0028|1053": 1, "0028|1052": -1024}))
    assert np.isnan(ct_hu[0]).all() and not np.isnan(ct_hu[1:]).any()
    np.testing.assert_array_equal(ct_hu[1:], counting()[1:] - 1024.0)


def test_the_value_of_padding_is_scaled_as_the_pixels_are(tmp_path):
    tags = {"0028|0120": -2000, "0028|1053": 2, "0028|1052": -1024}
    assert read_slices(folder_of(tmp_path, tags=tags)).padding == -5024
    assert read_slices(folder_of(tmp_path, name="other")).padding is None


def test_hidden_files_are_left_alone(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "._000.dcm").write_bytes(b"left by a file system")
    assert len(read_slices(folder).origins_mm) == 6


# Several series


@pytest.fixture
def study(tmp_path):
    folder_of(tmp_path / "study" / "a", tags={"0008|103e": "HEAD 5mm"})
    second = {"0008|103e": "AX T2", "0020|000e": "1.2.3.2", "0008|0060": "MR", "0008|0016": dicom_files.MR}
    folder_of(tmp_path / "study", counting((3, 4, 2)), tags=second, name="b")
    (tmp_path / "study" / "README.txt").write_text("notes", encoding="utf-8")
    (tmp_path / "study" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return tmp_path / "study"


def test_series_are_listed_with_what_tells_them_apart(study):
    found = [(s.description, s.uid, s.modality, len(s.files), s.shape) for s in list_series(study)]
    assert found == [("AX T2", "1.2.3.2", "MR", 2, (3, 4, 2)), ("HEAD 5mm", "1.2.3.1", "CT", 6, (5, 4, 6))]


@pytest.mark.parametrize(
    ("name", "shape"), [("ax t2", (3, 4, 2)), ("1.2.3.2", (3, 4, 2)), ("1.2.3.1", (5, 4, 6))]
)
def test_a_series_is_chosen_by_description_or_uid(study, name, shape):
    assert read_slices(study, name).array.shape == shape


def test_an_ambiguous_folder_lists_its_series(study):
    refused(study, "2 series", "'AX T2' (MR, 2 files, UID 1.2.3.2)", "'HEAD 5mm' (CT, 6 files", "--series")
    refused(study, "one series is 'T1'", "'AX T2'", read=lambda path: read_slices(path, "T1"))


def test_two_series_of_one_description_are_told_apart_by_uid_only(tmp_path):
    for uid in ("1.2.3.1", "1.2.3.2"):
        folder_of(tmp_path, tags={"0020|000e": uid}, prefix=uid)
    refused(tmp_path, "2 series", read=lambda path: read_slices(path, "HEAD"))
    assert len(read_slices(tmp_path, "1.2.3.2").origins_mm) == 6


def test_a_report_among_the_images_is_left_out(tmp_path):
    folder = folder_of(tmp_path)
    report = {"0008|0016": "1.2.840.10008.5.1.4.1.1.88.11", "0020|000e": "1.2.3.8"}
    dicom_files.write_slice(folder / "sr.dcm", counting()[:, :, 0], report, drop=("7fe0|0010", "0028|0010"))
    assert len(list_series(folder)) == 1


# What is refused


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("0020|0032", "ImagePositionPatient"), ("0020|0037", "ImageOrientationPatient"),
        ("0028|0030", "PixelSpacing"), ("0020|000e", "SeriesInstanceUID"), ("0028|0010", "DICOM image"),
        ("0028|0011", "DICOM image"), ("0028|0100", "DICOM image"), ("7fe0|0010", "DICOM image"),
    ],
)  # fmt: skip
def test_a_missing_tag_is_named_with_the_file(tmp_path, tag, name):
    folder = folder_of(tmp_path)
    dicom_files.write_slice(folder / "002.dcm", counting()[:, :, 2].T, {}, drop=(tag,))
    refused(folder, "002.dcm", name)


@pytest.mark.parametrize(
    ("tag", "value", "word"),
    [
        ("0020|0032", "1\\2", "3 finite numbers"), ("0020|0032", "1\\2\\nan", "3 finite numbers"),
        ("0020|0032", "Doe^Janet", "3 finite numbers"), ("0020|0037", "1\\0\\0\\1\\0\\0", "right angles"),
        ("0020|0037", "2\\0\\0\\0\\2\\0", "right angles"), ("0028|0030", "0\\1", "above 0"),
        ("0028|0030", "-1\\1", "above 0"), ("0028|1053", "0", "not 0"), ("0028|1053", "x", "RescaleSlope"),
        ("0028|0008", "2", "several frames"), ("0028|0002", 3, "colour"),
        ("0008|0016", "1.2.840.10008.5.1.4.1.1.2.1", "several frames"),
    ],
)  # fmt: skip
def test_an_impossible_tag_is_named_with_the_file(tmp_path, tag, value, word):
    folder = folder_of(tmp_path)
    dicom_files.write_slice(folder / "002.dcm", counting()[:, :, 2].T, {tag: value})
    refused(folder, "002.dcm", word)


def test_enormous_rows_and_columns_are_refused_before_memory_is_taken(tmp_path):
    folder = folder_of(tmp_path)
    dicom_files.write_slice(
        folder / "002.dcm", counting()[:, :, 2].T, {"0028|0010": 65535, "0028|0011": 65535}
    )
    refused(folder, "002.dcm", "(65535, 65535)", "8589672450")  # 65535^2 * 2 bytes


def test_truncated_pixels_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    path = folder / "003.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    refused(folder, "003.dcm")


def test_missing_slices_are_counted(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "002.dcm").unlink()
    refused(folder, "3 of 3 mm, 1 of 6 mm", "missing, it seems: 1 between slices 2 and 3")
    assert len(read_slices(folder).origins_mm) == 5


def test_a_copy_of_a_slice_is_refused_by_the_names_of_both_files(tmp_path):
    folder = folder_of(tmp_path)
    shutil.copy(folder / "002.dcm", folder / "copy.dcm")
    refused(folder, "002.dcm and copy.dcm", "one SOPInstanceUID")


def test_another_slice_at_the_same_place_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    (tmp_path / "other").mkdir()
    folder_of(tmp_path, counting() + 1, name="other")
    shutil.copy(tmp_path / "other" / "002.dcm", folder / "again.dcm")
    refused(folder, "002.dcm", "again.dcm", "at one place", "1, 2 slices a place")


def test_slices_that_are_not_parallel_or_not_of_one_size_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    folder_of(tmp_path, axes=SAGITTAL, prefix="loc")
    refused(folder, "parallel", "000.dcm", "loc000.dcm")
    shutil.rmtree(folder)
    folder_of(tmp_path)
    dicom_files.write_slice(folder / "006.dcm", np.zeros((7, 7), np.int16), {"0020|0032": "-10\\20\\-12"})
    refused(folder, "one size", "(5, 4)", "(7, 7)")


def test_a_single_slice_and_a_folder_without_images_are_refused(tmp_path):
    refused(folder_of(tmp_path, counting((5, 4, 1))), "two slices")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "0 files, no DICOM image")
    (tmp_path / "empty" / "a.txt").write_text("hello", encoding="utf-8")
    refused(tmp_path / "empty", "1 files, no DICOM image", read=list_series)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_series(tmp_path / "nowhere")


def test_a_file_of_a_series_is_sent_to_its_folder(tmp_path):
    refused(folder_of(tmp_path) / "000.dcm", "folder of a DICOM")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(128) + b"DICM"])
def test_what_is_called_dicom_and_is_not_is_named(tmp_path, content):
    folder = folder_of(tmp_path)
    (folder / "002.dcm").write_bytes(content)
    refused(folder, "002.dcm")


# Time series


def test_several_slices_a_place_are_a_series_in_order_of_time(tmp_path):
    volumes = np.stack([counting() * (t + 1) for t in range(3)], axis=-1)
    for t in (2, 0, 1):
        tags = {"0020|0100": t + 1, "0018|0080": "1500"}
        folder_of(tmp_path, volumes[..., t], tags=tags, prefix=f"t{9 - t}")
    series = io.read_series(tmp_path / "ct")
    np.testing.assert_array_equal(series.array, volumes)
    assert series.interval_s == 1.5 and io.volume_count(tmp_path / "ct") == 3
    refused(tmp_path / "ct", "three axes", "(5, 4, 6, 3)")
    refused(tmp_path / "ct", "3 time points", "read_series", read=read_slices)


@pytest.mark.parametrize("tag", ["0020|0012", "0008|0032", "0018|1060", "0020|0013"])
def test_time_is_read_from_acquisition_number_or_time_too(tmp_path, tag):
    times = {"0008|0032": ("095958.25", "100001.5"), "0018|1060": ("0.5", "1500")}.get(tag, ("7", "12"))
    for t, time in enumerate(times):
        folder_of(tmp_path, counting() + 100 * t, tags={tag: time}, prefix=f"t{1 - t}")
    array = io.read_series(tmp_path / "ct").array
    np.testing.assert_array_equal(array[..., 1] - array[..., 0], 100)


def test_two_echoes_at_a_place_are_no_time_series(tmp_path):
    for echo in ("15", "90"):
        folder_of(tmp_path, tags={"0018|0081": echo}, prefix=f"e{echo}_")
    refused(tmp_path / "ct", "echo times 15, 90 ms", read=io.read_series)


# Privacy


def test_nothing_that_identifies_a_patient_is_logged_or_shown(tmp_path, caplog, capfd):
    caplog.set_level(0)
    folder = folder_of(tmp_path)
    print(list_series(folder), read_slices(folder))
    (folder / "004.dcm").unlink()
    refused(folder)
    resample_slices(read_slices(folder))
    told = caplog.text + "".join(capfd.readouterr())
    for secret in dicom_files.SECRETS.values():
        assert secret.encode() in (folder / "000.dcm").read_bytes() and secret not in told


# The real series


def tag_numbers(path, tag):
    """Numbers of a tag, found in the file's bytes: group, element, "DS", length, value."""
    group, number = (int(part, 16).to_bytes(2, "little") for part in tag.split("|"))
    content = path.read_bytes()
    match = re.search(re.escape(group + number) + b"DS(..)", content, re.DOTALL)
    length = int.from_bytes(match[1], "little")
    text = content[match.end() : match.end() + length].decode().strip("\0 ")
    return np.array([float(word) for word in text.split("\\")])


@pytest.fixture(scope="module")
def head_ct():
    return Path(os.environ["MRSEG_DATA"]) / "ct_head_dicom"


@pytest.fixture(scope="module")
def head_slices(head_ct):
    return read_slices(head_ct)


@pytest.fixture(scope="module")
def by_hand(head_ct):
    """World position (RAS mm) of every voxel (column, row) of every file, from its tags alone."""
    column, row = np.meshgrid(np.arange(512), np.arange(512), indexing="ij")
    found = []
    for path in sorted(head_ct.glob("*.dcm")):
        position, cosines, spacing = (
            tag_numbers(path, tag) for tag in ("0020|0032", "0020|0037", "0028|0030")
        )
        right = column[..., None] * spacing[1] * cosines[:3]
        down = row[..., None] * spacing[0] * cosines[3:]
        found.append((position + right + down) * TO_RAS)
    return np.stack(found, axis=2)  # (x, y, n, 3)


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
class TestOnTheRealSeries:
    def test_every_voxel_lies_within_a_hundredth_of_a_millimetre(self, head_slices, by_hand):
        index = np.stack(np.meshgrid(np.arange(512), np.arange(512), indexing="ij"), axis=-1)
        world = head_slices.origins_mm + (index @ head_slices.axes_mm.T)[:, :, None]
        worst = np.linalg.norm(world - by_hand, axis=-1).max()
        print(f"28 slices: every voxel within {worst:.2g} mm of its tags")
        assert worst < 0.01

    def test_the_even_parts_are_volumes_within_a_hundredth_of_a_millimetre(self, head_ct, by_hand, tmp_path):
        """Files 1 to 14 (4.22 mm) and 15 to 28 (7.38 mm): a sheared affine each."""
        files = sorted(head_ct.glob("*.dcm"))
        index = np.stack(np.meshgrid(np.arange(512), np.arange(512), np.arange(14), indexing="ij"), axis=-1)
        for name, part in (("head", slice(0, 14)), ("top", slice(14, 28))):
            (tmp_path / name).mkdir()
            for path in files[part]:
                shutil.copy(path, tmp_path / name)
            array, affine = io.read_volume(tmp_path / name)
            worst = np.linalg.norm(affines.apply_affine(affine, index) - by_hand[:, :, part], axis=-1).max()
            print(f"{name}: every voxel of the volume within {worst:.2g} mm of its tags")
            assert worst < 0.01 and array.shape == (512, 512, 14)

    def test_a_plain_simpleitk_series_read_is_wrong(self, head_ct, by_hand):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(head_ct)))
        image = reader.Execute()
        corners = [(i, j, k) for i in (0, 511) for j in (0, 511) for k in range(28)]
        apart = [
            np.linalg.norm(np.array(image.TransformIndexToPhysicalPoint(c)) * TO_RAS - by_hand[c])
            for c in corners
        ]
        print(f"SimpleITK's ImageSeriesReader: up to {max(apart):.1f} mm off")
        assert max(apart) > 10

    def test_the_uneven_series_is_refused_and_the_steps_are_named(self, head_ct):
        refused(head_ct, "13 of 4.22 mm, 1 of 1.14 mm, 13 of 7.38 mm", "--resample-spacing")

    def test_resampled_it_lies_on_the_line_of_its_slices_and_keeps_those_on_the_grid(
        self, head_slices, by_hand
    ):
        array, affine = resample_slices(head_slices)
        assert np.linalg.norm(affine[:3, 2]) == pytest.approx(4.22, abs=1e-6)
        # The first 14 slices lie on the new grid.
        assert np.array_equal(array[:, :, :14], head_slices.array[:, :, :14])
        index = np.stack(np.meshgrid(np.arange(512), np.arange(512), np.arange(14), indexing="ij"), axis=-1)
        apart = np.linalg.norm(affines.apply_affine(affine, index) - by_hand[:, :, :14], axis=-1).max()
        assert apart < 0.01
        # Interpolated values stay between those of the neighbours.
        assert head_slices.array.min() - 1e-3 <= array.min() and array.max() <= head_slices.array.max() + 1e-3

    def test_positions_themselves_survive_resampling(self, head_slices, by_hand):
        """World z as the image: linear in space, so each new voxel must hold its own z."""
        stack = type(head_slices)(
            "z", by_hand[..., 2].astype(np.float32), head_slices.axes_mm, head_slices.origins_mm
        )
        array, affine = resample_slices(stack, 3.0)
        z = affines.apply_affine(affine, np.argwhere(np.ones((2, 512, array.shape[2]))))[:, 2]
        worst = np.abs(array[:2].ravel() - z).max()
        print(f"world z interpolated to 3 mm: within {worst:.2g} mm")
        assert worst < 0.001

    def test_hounsfield_units_are_those_of_a_head(self, head_slices):
        values = head_slices.array
        assert values.min() == head_slices.padding == -1500  # PixelPaddingValue
        assert 1000 < values.max() < 3072
        in_view = values[values > -1024]
        print(f"HU from {in_view.min():g} to {values.max():g}, padding -1500")
        # Air, and soft tissue between fat and blood: two peaks of the histogram.
        counts, edges = np.histogram(in_view, bins=np.arange(-1024, 200, 8))
        assert -1024 <= edges[counts.argmax()] <= -960
        tissue = np.where(edges[:-1] > -200, counts, 0)
        assert 0 <= edges[tissue.argmax()] <= 60

    def test_left_is_left(self, head_slices):
        """HFS and direction cosines (1, 0, 0): column 0 is the patient's right, world x falls with i."""
        assert head_slices.axes_mm[0, 0] == pytest.approx(-0.4882812)
        assert head_slices.origins_mm[0, 0] == 125.0
