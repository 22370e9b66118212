"""Conversion to NIfTI: the grid of the scan, its values, nothing that identifies a patient."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.cli import main
from mrseg.conversion import convert_scan
from mrseg.data import phantom, read_labels, read_series, read_volume, write_labels

_spec = importlib.util.spec_from_file_location(
    "dicom_files", Path(__file__).with_name("data") / "dicom_files.py"
)
dicom_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dicom_files)

AXES = np.array([[0.5, 0.0], [0.0, 0.7], [0.0, 0.0]])


def counting(shape=(5, 4, 6)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def stack(folder, along=(0, 3, 6, 9, 12, 15), prefix="", **tags):
    origins = np.array([-10.0, 20, -30]) + np.array(along)[:, None] * np.array([0, 0, 1.0])
    return dicom_files.write_stack(folder, counting((5, 4, len(along))), AXES, origins, tags, prefix)


def run(*arguments):
    return main([str(a) for a in arguments])


def test_a_dicom_series_is_written_on_its_own_grid_as_whole_numbers(tmp_path):
    folder = stack(tmp_path / "ct")
    array, affine = convert_scan(folder, tmp_path / "ct.nii.gz")
    read, read_affine = read_volume(tmp_path / "ct.nii.gz")
    expected, expected_affine = read_volume(folder)
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_allclose(read_affine, expected_affine, atol=1e-5)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(affine, expected_affine)
    assert nibabel.load(tmp_path / "ct.nii.gz").get_data_dtype() == np.int16


def test_values_that_are_no_whole_numbers_stay_float32(tmp_path):
    image = nibabel.Nifti1Image(counting().astype(np.float32) / 3, np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    convert_scan(tmp_path / "a.nii", tmp_path / "b.nii")
    assert nibabel.load(tmp_path / "b.nii").get_data_dtype() == np.float32
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii")[0], image.get_fdata(dtype=np.float32))


def test_numbers_beyond_16_bits_stay_what_they_are(tmp_path):
    image = nibabel.Nifti1Image(counting().astype(np.float32) * 1000, np.eye(4))  # up to 119,000
    nibabel.save(image, tmp_path / "a.nii")
    convert_scan(tmp_path / "a.nii", tmp_path / "b.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii")[0], image.get_fdata(dtype=np.float32))


def test_a_series_in_one_file_is_written_as_a_series(tmp_path):
    image = nibabel.Nifti1Image(counting((5, 4, 6, 3)), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((1, 1, 1, 1.5))
    nibabel.save(image, tmp_path / "a.nii")
    convert_scan(tmp_path / "a.nii", tmp_path / "b.nii")
    series = read_series(tmp_path / "b.nii")
    np.testing.assert_array_equal(series.array, counting((5, 4, 6, 3)))
    assert series.interval_s == 1.5


def test_uneven_steps_are_refused_or_resampled_as_asked(tmp_path):
    folder = stack(tmp_path / "ct", (0, 2, 4, 5))
    with pytest.raises(InputError, match="2 of 2 mm, 1 of 1 mm"):
        convert_scan(folder, tmp_path / "ct.nii.gz")
    assert not (tmp_path / "ct.nii.gz").exists()
    assert convert_scan(folder, tmp_path / "a.nii.gz", spacing_mm="median")[0].shape == (5, 4, 3)
    array, affine = convert_scan(folder, tmp_path / "b.nii.gz", spacing_mm=2.5)
    assert array.shape == (5, 4, 3) and affine[2, 2] == 2.5
    # The slice at 2.5 mm lies a quarter of the way from that at 2 (value + 1) to that at 4 (value + 2).
    np.testing.assert_allclose(array[:, :, 1], counting((5, 4, 4))[:, :, 0] + 1.25)
    made = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["provenance"]
    assert made["steps"] == "2 of 2 mm, 1 of 1 mm" and made["resampled_to_mm"] == 2.5


def test_a_time_series_keeps_its_interval(tmp_path):
    for t in range(3):
        stack(tmp_path / "dsc", prefix=f"t{t}", **{"0020|0100": t + 1, "0018|0080": "1500"})
    convert_scan(tmp_path / "dsc", tmp_path / "dsc.nii.gz")
    series = read_series(tmp_path / "dsc.nii.gz")
    assert series.array.shape == (5, 4, 6, 3) and series.interval_s == 1.5
    with pytest.raises(InputError, match="not resampled"):
        convert_scan(tmp_path / "dsc", tmp_path / "dsc.nii.gz", spacing_mm=2.0)


def test_the_output_holds_nothing_that_identifies_a_patient(tmp_path, capsys):
    folder = stack(tmp_path / "DOE_JANET")
    assert run("convert", folder, "--output", tmp_path / "ct.nii.gz") == 0
    written = gzip.decompress((tmp_path / "ct.nii.gz").read_bytes()) + (tmp_path / "ct.json").read_bytes()
    written += capsys.readouterr().out.replace(str(tmp_path), "").encode()
    for secret in (*dicom_files.SECRETS.values(), "DOE_JANET"):
        assert secret.encode() not in written
    assert dicom_files.SECRETS["0010|0010"].encode() in (folder / "000.dcm").read_bytes()


def test_options_of_dicom_are_refused_for_a_file(tmp_path):
    nibabel.save(nibabel.Nifti1Image(counting(), np.eye(4)), tmp_path / "a.nii")
    for options in ({"series": "HEAD"}, {"spacing_mm": 2.0}):
        with pytest.raises(InputError, match="of a DICOM folder"):
            convert_scan(tmp_path / "a.nii", tmp_path / "b.nii", **options)


# The commands


def test_series_are_listed_and_one_is_converted(tmp_path, capsys):
    stack(tmp_path / "study" / "a")
    stack(
        tmp_path / "study" / "b",
        (0, 2, 3),
        **{"0008|103e": "AX T2", "0020|000e": "1.2.3.2", "0008|0060": "MR"},
    )
    assert run("series", tmp_path / "study") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    row = next(line.split("  ") for line in lines if line.startswith("AX T2"))
    assert [cell.strip() for cell in row if cell.strip()] == ["AX T2", "MR", "3", "5x4x3", "1.2.3.2"]
    output = ("--output", tmp_path / "t2.nii.gz")
    assert run("convert", tmp_path / "study", *output) == 2
    assert "2 series: 'AX T2'" in capsys.readouterr().err
    assert run("convert", tmp_path / "study", "--series", "ax t2", "--resample-spacing", 1, *output) == 0
    assert "5x4x4 voxels of 0.5 x 0.7 x 1 mm" in capsys.readouterr().out
    assert read_volume(tmp_path / "t2.nii.gz")[0].shape == (5, 4, 4)


def test_a_tolerance_lets_rounded_positions_pass(tmp_path):
    folder, out = stack(tmp_path / "ct", (0, 1.3, 2.5, 3.8, 5.0)), tmp_path / "ct.nii.gz"
    assert run("convert", folder, "--output", out) == 2
    assert run("convert", folder, "--output", out, "--tolerance-mm", 0.06) == 0
    assert read_volume(out)[1][2, 2] == pytest.approx(1.25)


def test_prepare_takes_dicom_folders_and_other_formats_in_a_manifest(tmp_path):
    """The CT is a DICOM folder on the grid of an MR scan in MHA: labels come without registration."""
    import SimpleITK as sitk

    hu = np.full((5, 4, 6), -1000, np.int16)
    hu[1:4, 1:3] = 40
    hu[2, 2] = 1200
    origins = np.array([-10.0, 20, -30]) + 3.0 * np.arange(6)[:, None] * np.array([0, 0, 1.0])
    dicom_files.write_stack(tmp_path / "ct", hu, AXES, origins)
    image = sitk.GetImageFromArray(counting().T)
    image.SetSpacing((0.5, 0.7, 3.0))
    image.SetOrigin((-10.0, 20.0, -30.0))
    sitk.WriteImage(image, str(tmp_path / "t1.mha"))
    (tmp_path / "cohort.tsv").write_text("subject\tT1w\tct\ns01\tt1.mha\tct\n", encoding="utf-8")
    command = (
        "prepare",
        tmp_path / "cohort.tsv",
        "--output",
        tmp_path / "out",
        "--registered",
        "--workers",
        1,
    )
    assert run(*command) == 0
    labels, affine = read_volume(tmp_path / "out/sub-s01/anat/sub-s01_space-T1w_dseg.nii.gz")
    np.testing.assert_array_equal(labels, np.select([hu > 600, hu < -500], [2, 0], 1))
    np.testing.assert_allclose(affine, read_volume(tmp_path / "t1.mha")[1], atol=1e-5)
    # Done already: neither is read again, and a changed slice is.
    made = (tmp_path / "out/sub-s01/anat/sub-s01_space-T1w_dseg.nii.gz").stat().st_mtime_ns
    assert run(*command) == 0
    assert (tmp_path / "out/sub-s01/anat/sub-s01_space-T1w_dseg.nii.gz").stat().st_mtime_ns == made
    hu[0, 0, 0] = 900
    dicom_files.write_stack(tmp_path / "ct", hu, AXES, origins)
    assert run(*command) == 0
    assert read_volume(tmp_path / "out/sub-s01/anat/sub-s01_space-T1w_dseg.nii.gz")[0][0, 0, 0] == 2


def test_a_brain_mask_is_made_of_a_dicom_folder_under_its_own_name(tmp_path):
    head = phantom.head(1, shape=(64, 64, 8), spacing_mm=(3.75, 3.75, 12.0))
    image, affine = phantom.mr_image(head, "T2w", seed=1)
    whole = np.rint(image / image.max() * 2000).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(whole, affine), tmp_path / "file.nii.gz")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    origins = lps[:3, 3] + np.arange(8)[:, None] * lps[:3, 2]
    dicom_files.write_stack(tmp_path / "t2", whole, lps[:3, :2], origins, {"0008|0060": "MR"})
    assert run("brainmask", "--input", tmp_path / "t2", "--output", tmp_path / "t2.nii.gz") == 0
    assert run("brainmask", "--input", tmp_path / "file.nii.gz", "--output", tmp_path / "mask.nii.gz") == 0
    (mask, grid), (same, other) = (read_labels(tmp_path / name) for name in ("t2.nii.gz", "mask.nii.gz"))
    np.testing.assert_array_equal(mask, same)
    np.testing.assert_allclose(grid, other, atol=1e-4)
    assert mask.any()


@pytest.mark.slow
def test_predict_and_evaluate_give_one_answer_for_one_head_in_any_format(tmp_path):
    """One head as NIfTI, MGZ and DICOM: the same label map on the same grid, and the same scores."""
    head = phantom.head(1, shape=(32, 32, 8), spacing_mm=(7.0, 7.0, 20.0))
    image, affine = phantom.mr_image(head, "T1w", seed=1)
    whole = np.rint(image / image.max() * 2000).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(whole, affine), tmp_path / "t1.nii.gz")
    nibabel.save(nibabel.MGHImage(whole, affine), tmp_path / "t1.mgz")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    origins = lps[:3, 3] + np.arange(8)[:, None] * lps[:3, 2]
    dicom_files.write_stack(tmp_path / "t1", whole, lps[:3, :2], origins, {"0008|0060": "MR"})
    labels = phantom.attenuation_labels(head)
    write_labels(tmp_path / "labels.nii.gz", labels, affine, phantom.ATTENUATION_CLASSES, {})
    scores, maps = [], []
    for name in ("t1.nii.gz", "t1.mgz", "t1"):
        out = tmp_path / f"out_{name}"
        common = ("--segmenter", "phantom_t1_unet")
        assert run("predict", *common, "--input", tmp_path / name, "--output", out / "dseg.nii.gz") == 0
        maps.append(read_labels(out / "dseg.nii.gz"))
        manifest = tmp_path / f"{name}.tsv"
        manifest.write_text(
            f"subject\tT1w\tlabels\tsplit\ns01\t{name}\tlabels.nii.gz\ttest\n", encoding="utf-8"
        )
        assert run("evaluate", *common, "--data", manifest, "--output", out / "scores") == 0
        assert run("predict", *common, "--data", manifest, "--output", out / "cohort") == 0
        maps.append(read_labels(out / "cohort" / "sub-s01" / "anat" / "sub-s01_desc-mrseg_dseg.nii.gz"))
        scores.append((out / "scores" / "scores.csv").read_text(encoding="utf-8"))
    for labels, grid in maps[1:]:
        np.testing.assert_array_equal(labels, maps[0][0])
        np.testing.assert_allclose(grid, maps[0][1], atol=1e-4)
    assert scores[0] == scores[1] == scores[2]
