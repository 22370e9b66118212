"""The commands on single files: what they write is what the library computes; mistakes are one line."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from mrseg.attenuation import mu_from_hu
from mrseg.baselines import brain_mask_volume
from mrseg.cli import main
from mrseg.data import io, phantom, read_labels, read_volume, write_labels, write_volume
from mrseg.data.labels import ATTENUATION_CLASSES, TISSUE_CLASSES
from mrseg.metrics import dice

SPACING_MM = (3.75, 3.75, 12.0)
CURVE = ("--te-ms", 45, "--interval-s", 1.5, "--baseline", "3-8")


def run(*arguments):
    return main([str(a) for a in arguments])


def refused(capsys, *arguments):
    """Runs a command that must fail as a user's mistake: exit code 2, one line, no traceback."""
    capsys.readouterr()
    assert run(*arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("mrseg: error: ")
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A DSC series in LPS order with its brain mask, and labels and CT on one grid."""
    folder = tmp_path_factory.mktemp("scans")
    head = phantom.head(1, shape=(64, 64, 8), spacing_mm=SPACING_MM)
    series, affine = phantom.dsc_series(head, timepoints=16, arrival_s=13.0)
    turned = affine @ np.array([[-1, 0, 0, 63], [0, -1, 0, 63], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(np.rint(series[::-1, ::-1]).astype(np.int16), turned)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 1.5
    nib.save(image, folder / "dsc.nii.gz")
    brain = phantom.brain_labels(head)[::-1, ::-1]
    write_labels(folder / "brain.nii.gz", brain, turned, ("background", "brain"), {"source": "phantom"})
    (ct_hu, ct_affine), _ = phantom.ct_image(head, shape=(40, 40, 12), misalignment=False)
    write_volume(folder / "ct.nii.gz", ct_hu, ct_affine)
    return folder


# clean


def labels_with_specks(folder, names=ATTENUATION_CLASSES):
    """A cube of soft tissue with a hole, a speck of bone in it and a speck of soft tissue far away."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:9, 2:9, 2:9] = 1
    labels[4, 4, 4] = 0
    labels[6, 6, 6] = 2
    labels[11, 11, 11] = 1
    write_labels(folder / "raw.nii.gz", labels, np.diag([2.0, 2, 2, 1]), names, {"run": 7})
    return labels


def test_clean_takes_each_step_and_keeps_the_label_table(tmp_path, capsys):
    labels = labels_with_specks(tmp_path)
    out = tmp_path / "new" / "clean.nii.gz"
    common = ("clean", "--input", tmp_path / "raw.nii.gz", "--output", out)
    assert run(*common, "--largest-component", 1, "--min-volume-mm3", 0, 0, 9, "--fill-holes", 1) == 0
    expected = labels.copy()
    expected[11, 11, 11] = 0
    expected[4, 4, 4] = expected[6, 6, 6] = 1  # 8 mm^3 of bone is below 9
    cleaned, affine = read_labels(out)
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(affine, np.diag([2.0, 2, 2, 1]))
    assert "changed: 3 of 1,728 voxels" in capsys.readouterr().out
    sidecar = io.read_sidecar(out)
    assert sidecar["labels"]["2"] == "bone"
    assert sidecar["provenance"]["source"] == {"run": 7}
    assert sidecar["provenance"]["steps"]["min_volume_mm3"] == [0, 0, 9]


def test_clean_reads_a_label_map_without_a_sidecar(tmp_path):
    labels_with_specks(tmp_path)
    (tmp_path / "raw.json").unlink()
    out = tmp_path / "clean.nii"
    assert run("clean", "--input", tmp_path / "raw.nii.gz", "--output", out, "--largest-foreground") == 0
    assert not read_labels(out)[0][11, 11, 11]
    assert io.read_sidecar(out)["labels"]["2"] == "class 2"


@pytest.mark.parametrize("name", ["raw.nii.gz", "raw.nii", "../folder/raw.nii.gz"])
def test_clean_never_overwrites_its_input_nor_its_sidecar(tmp_path, capsys, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    labels = labels_with_specks(folder)
    message = refused(
        capsys, "clean", "--input", folder / "raw.nii.gz", "--output", folder / name, "--fill-holes", 1
    )
    assert "another file than the input" in message
    np.testing.assert_array_equal(read_labels(folder / "raw.nii.gz")[0], labels)
    assert io.read_sidecar(folder / "raw.nii.gz")["provenance"] == {"run": 7}


def test_clean_without_a_step_or_with_a_bad_one_is_refused(tmp_path, capsys):
    labels_with_specks(tmp_path)
    common = ("clean", "--input", tmp_path / "raw.nii.gz", "--output", tmp_path / "out.nii.gz")
    assert "--largest-foreground" in refused(capsys, *common)
    assert "1.5" in refused(capsys, *common, "--stray-regions", "--min-overlap", 1.5)
    assert "300" in refused(capsys, *common, "--fill-holes", 300)
    assert not (tmp_path / "out.nii.gz").exists()


# attenuation


def test_the_map_of_a_ct_is_the_bilinear_rule(scans, tmp_path):
    out = tmp_path / "mu.nii.gz"
    assert run("attenuation", "--ct", scans / "ct.nii.gz", "--kvp", 100, "--output", out) == 0
    mu, affine = read_volume(out)
    ct_hu, ct_affine = read_volume(scans / "ct.nii.gz")
    np.testing.assert_array_equal(mu, mu_from_hu(ct_hu, tube_kvp=100))
    np.testing.assert_array_equal(affine, ct_affine)
    assert io.read_sidecar(out)["provenance"]["tube_kvp"] == 100


def test_the_map_of_labels_is_compared_with_a_ct(tmp_path, capsys):
    labels = np.ones((8, 8, 8), np.uint8)
    labels[0] = 0
    labels[4] = 2
    hu = np.array([-1000.0, 0.0, 900.0], np.float32)[labels]
    write_labels(tmp_path / "dseg.nii.gz", labels, np.eye(4), ATTENUATION_CLASSES, {})
    write_volume(tmp_path / "ct.nii.gz", hu, np.eye(4))
    out = tmp_path / "mu.nii.gz"
    common = ("attenuation", "--labels", tmp_path / "dseg.nii.gz", "--output", out)
    assert run(*common, "--reference", tmp_path / "ct.nii.gz", "--kvp", 120) == 0
    np.testing.assert_allclose(read_volume(out)[0], np.array([0, 0.096, 0.151], np.float32)[labels])
    # 120 kVp, 900 HU: 5.10e-5 * 1900 + 4.71e-2 = 0.144, so 0.007 too much in 64 of 448 voxels of the head.
    assert "mean_difference_per_cm: 0.001" in capsys.readouterr().out
    assert io.read_sidecar(out)["provenance"]["reference"]["voxels"] == 448


def test_labels_of_unknown_attenuation_need_a_number(tmp_path, capsys):
    labels = np.array([0, 1, 2, 255], np.uint8).reshape(1, 2, 2)
    write_labels(tmp_path / "dseg.nii.gz", labels, np.eye(4), ATTENUATION_CLASSES, {})
    out = tmp_path / "mu.nii.gz"
    common = ("attenuation", "--labels", tmp_path / "dseg.nii.gz", "--output", out)
    message = refused(capsys, *common)
    assert "1 voxels of 255" in message and "--outside 0" in message
    assert not out.exists()
    assert run(*common, "--outside", 0.05, "--mu-per-cm", 0, 0.1, 0.2) == 0
    np.testing.assert_allclose(read_volume(out)[0].ravel(), [0, 0.1, 0.2, 0.05], rtol=1e-6)
    assert "from 0" in refused(capsys, *common, "--outside", -1)


def test_attenuation_refuses_what_would_be_silently_wrong(scans, tmp_path, capsys):
    labels = np.array([0, 1, 2, 3], np.uint8).reshape(1, 2, 2)
    write_labels(tmp_path / "dseg.nii.gz", labels, np.eye(4), TISSUE_CLASSES, {})
    common = ("attenuation", "--labels", tmp_path / "dseg.nii.gz", "--output", tmp_path / "mu.nii.gz")
    assert "background, csf, gm, wm" in refused(capsys, *common)
    assert "one coefficient per class" in refused(capsys, *common, "--mu-per-cm", 0, 0.1)
    ct = scans / "ct.nii.gz"
    assert "--kvp" in refused(capsys, "attenuation", "--ct", ct, "--output", tmp_path / "mu.nii")
    four = ("--mu-per-cm", 0, 0.1, 0.1, 0.1)
    message = refused(capsys, *common, *four, "--reference", ct, "--kvp", 120)
    assert "one grid" in message
    message = refused(capsys, "attenuation", "--ct", ct, "--kvp", 95, "--output", tmp_path / "mu.nii")
    assert "95" in message
    message = refused(capsys, "attenuation", "--ct", ct, "--kvp", 120, "--output", ct)
    assert "another file" in message
    message = refused(
        capsys, "attenuation", "--ct", ct, "--kvp", 120, "--output", tmp_path / "mu.nii", "--reference", ct
    )
    assert "belong to --labels" in message
    assert not (tmp_path / "mu.nii").exists()


# brainmask


@pytest.mark.parametrize("method", ["otsu", "aabl", "cusum"])
def test_a_brain_mask_lies_on_the_scans_own_grid(scans, tmp_path, method):
    out = tmp_path / "mask.nii.gz"
    assert run("brainmask", "--input", scans / "dsc.nii.gz", "--method", method, "--output", out) == 0
    mask, affine = read_labels(out, 2)
    series = io.read_series(scans / "dsc.nii.gz")
    np.testing.assert_array_equal(affine, series.affine)
    upright = np.ascontiguousarray(series.array[::-1, ::-1, :, 3])
    np.testing.assert_array_equal(mask[::-1, ::-1] == 1, brain_mask_volume(upright, method))
    made = io.read_sidecar(out)["provenance"]
    assert (made["method"], made["time_point"], made["input"]) == (method, 3, "dsc.nii.gz")
    assert (tmp_path / "mask.png").stat().st_size > 1000


def test_a_single_volume_gives_the_mask_of_the_series_it_is_from(scans, tmp_path):
    series = io.read_series(scans / "dsc.nii.gz")
    write_volume(tmp_path / "one.nii", series.array[..., 5], series.affine)
    for name, arguments in (
        ("a", ("--input", tmp_path / "one.nii")),
        ("b", ("--input", scans / "dsc.nii.gz", "--time-point", 5)),
    ):
        assert run("brainmask", *arguments, "--method", "aabl", "--output", tmp_path / f"{name}.nii") == 0
    a, b = (read_labels(tmp_path / f"{name}.nii")[0] for name in "ab")
    np.testing.assert_array_equal(a, b)
    assert a.any()


def test_brainmask_refuses_bad_input_and_its_own_input_as_output(scans, tmp_path, capsys):
    scan = scans / "dsc.nii.gz"
    assert "another file" in refused(capsys, "brainmask", "--input", scan, "--output", scan)
    out = tmp_path / "out" / "mask.nii.gz"
    message = refused(capsys, "brainmask", "--input", scan, "--output", out, "--time-point", 16)
    assert "0 to 15" in message
    assert "scan.nii" in refused(capsys, "brainmask", "--input", tmp_path / "scan.nii", "--output", out)
    (tmp_path / "text.nii").write_text("hello", encoding="utf-8")
    assert "NIfTI" in refused(capsys, "brainmask", "--input", tmp_path / "text.nii", "--output", out)
    assert not list(out.parent.iterdir())


# perfusion


def read_curve(folder):
    with open(folder / "curve.csv", encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_curve_of_a_region_is_its_mean_signal(scans, tmp_path):
    region = ("--mask", scans / "brain.nii.gz")
    assert run("perfusion", "--input", scans / "dsc.nii.gz", *CURVE, *region, "--output", tmp_path) == 0
    series, mask = io.read_series(scans / "dsc.nii.gz").array, read_labels(scans / "brain.nii.gz")[0] == 1
    means = np.array([series[..., t][mask].mean() for t in range(16)], np.float64)
    rows = read_curve(tmp_path)
    np.testing.assert_allclose([row["mean_signal"] for row in rows], means, rtol=1e-5)
    rate = -np.log(means / means[3:9].mean()) / 0.045
    np.testing.assert_allclose([row["delta_r2star"] for row in rows], rate, atol=1e-3)
    assert [t for t, row in enumerate(rows) if row["baseline"]] == [3, 4, 5, 6, 7, 8]
    assert rows[-1]["time_s"] == 22.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.csv", "curve.json", "curve.png"]
    made = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))["provenance"]
    assert (made["mask"], made["voxels"], made["te_ms"]) == ("brain.nii.gz", int(mask.sum()), 45)


def test_perfusion_masks_the_brain_itself_and_takes_the_interval_of_the_header(scans, tmp_path):
    settings = ("--te-ms", 45, "--baseline", "3,4,7", "--method", "aabl")
    assert run("perfusion", "--input", scans / "dsc.nii.gz", *settings, "--output", tmp_path) == 0
    rows = read_curve(tmp_path)
    assert rows[1]["time_s"] == 1.5
    assert max(rows, key=lambda row: row["delta_r2star"])["time_s"] > 13  # after the arrival
    mask, _ = read_labels(tmp_path / "mask.nii.gz")
    truth, _ = read_labels(scans / "brain.nii.gz")
    assert dice(truth == 1, mask == 1) > 0.8
    assert (tmp_path / "mask.png").exists()


def test_motion_is_taken_out_before_the_curve(scans, tmp_path):
    series = io.read_series(scans / "dsc.nii.gz")
    moved = series.array.copy()
    moved[..., 6] = np.roll(moved[..., 6], 2, axis=0)  # 7.5 mm
    image = nib.Nifti1Image(moved[..., 2:8], series.affine)
    nib.save(image, tmp_path / "moved.nii")
    region = ("--mask", scans / "brain.nii.gz", "--time-point", 1)
    settings = ("--te-ms", 45, "--interval-s", 1.5, "--baseline", "0-3")
    for name, motion in (("still", ()), ("corrected", ("--motion",))):
        assert run(
            "perfusion", "--input", tmp_path / "moved.nii", *settings, *region, *motion,
            "--output", tmp_path / name,
        ) == 0  # fmt: skip
    still, corrected = (read_curve(tmp_path / name)[4]["mean_signal"] for name in ("still", "corrected"))
    neighbour = read_curve(tmp_path / "still")[3]["mean_signal"]
    assert abs(corrected - neighbour) < 0.3 * abs(still - neighbour)
    with open(tmp_path / "corrected" / "motion.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 6
    middle = next(row for row in rows if (row["slice"], row["time_point"]) == ("4", "4"))
    assert abs(float(middle["shift_right_mm"])) == pytest.approx(7.5, abs=1.0)


def test_wrong_settings_of_a_curve_are_told_before_any_work(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mrseg.data.motion.correct_motion", lambda *a, **k: pytest.fail("work was done"))
    scan = scans / "dsc.nii.gz"
    common = ("perfusion", "--input", scan, "--output", tmp_path / "out", "--motion", "--te-ms")
    assert "'bolus'" in refused(capsys, *common, 45, "--baseline", "bolus")
    assert "'8-3'" in refused(capsys, *common, 45, "--baseline", "8-3")
    assert "0 to 15" in refused(capsys, *common, 45, "--baseline", "3-16")
    assert "te_ms" in refused(capsys, *common, 0, "--baseline", "3-8")
    assert "0 to 15" in refused(capsys, *common, 45, "--baseline", "3-8", "--time-point", 99)
    message = refused(capsys, *common, 45, "--baseline", "3-8", "--mask", scans / "ct.nii.gz")
    assert "whole numbers" in message
    assert not list((tmp_path / "out").iterdir())


def test_perfusion_without_an_interval_a_series_or_a_region_is_refused(scans, tmp_path, capsys):
    series = io.read_series(scans / "dsc.nii.gz")
    image = nib.Nifti1Image(series.array, series.affine)  # no unit of time
    nib.save(image, tmp_path / "dsc.nii")
    settings = ("--te-ms", 45, "--baseline", "3-8", "--output", tmp_path / "out")
    assert "--interval-s 1.5" in refused(capsys, "perfusion", "--input", tmp_path / "dsc.nii", *settings)
    write_volume(tmp_path / "one.nii", series.array[..., 0], series.affine)
    assert "four axes" in refused(capsys, "perfusion", "--input", tmp_path / "one.nii", *settings)
    empty = np.zeros(series.array.shape[:3], np.uint8)
    write_labels(tmp_path / "empty.nii", empty, series.affine, ("background", "brain"), {})
    scan = scans / "dsc.nii.gz"
    message = refused(capsys, "perfusion", "--input", scan, *settings, "--mask", tmp_path / "empty.nii")
    assert "empty.nii" in message
    other = np.diag([1.0, 1, 1, 1])
    write_labels(tmp_path / "other.nii", empty + 1, other, ("background", "brain"), {})
    message = refused(capsys, "perfusion", "--input", scan, *settings, "--mask", tmp_path / "other.nii")
    assert "one grid" in message


def test_perfusion_writes_over_no_input(scans, tmp_path, capsys):
    (tmp_path / "mask.nii.gz").write_bytes((scans / "dsc.nii.gz").read_bytes())
    before = (tmp_path / "mask.nii.gz").read_bytes()
    message = refused(capsys, "perfusion", "--input", tmp_path / "mask.nii.gz", *CURVE, "--output", tmp_path)
    assert "another file" in message
    assert (tmp_path / "mask.nii.gz").read_bytes() == before


def test_an_interval_that_differs_from_the_headers_is_used_with_a_warning(scans, tmp_path, caplog):
    common = ("perfusion", "--input", scans / "dsc.nii.gz", "--te-ms", 45, "--baseline", "3-8")
    region = ("--mask", scans / "brain.nii.gz", "--output", tmp_path)
    assert run(*common, *region, "--interval-s", 1.505) == 0  # within 1 %
    assert "the header says" not in caplog.text
    assert run(*common, *region, "--interval-s", 2) == 0
    assert "the header says 1.5 s" in caplog.text
    assert read_curve(tmp_path)[-1]["time_s"] == 30
