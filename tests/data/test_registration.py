from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data import phantom, registration
from mrseg.data.elastix import engine, transforms
from mrseg.data.labels import hu_to_labels
from mrseg.data.phantom_motion import Misalignment
from mrseg.data.registration import Registration

QUICK = {"rigid": {"MaximumNumberOfIterations": 30}, "bspline": {"MaximumNumberOfIterations": 10}}
QUALITY = {
    "mutual_information_before": 0.4,
    "mutual_information_after": 0.8,
    "overlap": 0.97,
    "jacobian_min": 0.7,
    "jacobian_max": 1.4,
}


def misaligned(seed):
    """MR, CT, and points of the head with their true place in the CT: 10 mm, 4 degrees and a warp of 6 mm."""
    subject = phantom.head(seed, shape=(64, 64, 48))
    ct, truth = phantom.ct_image(subject, misalignment=Misalignment.random(seed, warp_mm=6.0))
    head = np.argwhere(subject.fractions[0] < 0.5)[::7]
    points_mm = head @ subject.affine[:3, :3].T + subject.affine[:3, 3]
    return phantom.mr_image(subject, "T1w"), ct, points_mm, truth.to_ct(points_mm)


@pytest.fixture(scope="module")
def scans():
    return misaligned(1)


@pytest.fixture(scope="module")
def rigid(scans):
    return registration.register(scans[0], scans[1], stages=("rigid",))


@pytest.fixture(scope="module")
def deformed(scans):
    return registration.register(scans[0], scans[1])


@pytest.fixture(scope="module")
def small():
    """A quick pair, the MR on turned and flipped axes, the CT in place."""
    subject = phantom.head(2, shape=(32, 32, 24))
    (ct_hu, affine), _ = phantom.ct_image(subject, misalignment=False)
    angle = math.radians(12.0)
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    turn[:3, 3] = (5.0, -3.0, 8.0)
    image, mr_affine = phantom.mr_image(subject, "T1w")
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = image.shape[0] - 1
    return (
        (image[::-1].transpose(1, 0, 2), turn @ mr_affine @ flip @ np.eye(4)[[1, 0, 2, 3]]),
        (ct_hu, affine),
        turn,
    )


def error_mm(found, points_mm, truth_mm):
    return np.linalg.norm(registration.transform_points(found, points_mm) - truth_mm, axis=1).mean()


def of(*parameters, **quality):
    return Registration(parameters, QUALITY | quality, {"stages": ["rigid"]})


def euler(angles_rad=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0), centre_mm=(0.0, 0.0, 0.0)):
    return {
        "Transform": ("EulerTransform",),
        "TransformParameters": tuple(map(str, (*angles_rad, *shift_mm))),
        "CenterOfRotationPoint": tuple(map(str, centre_mm)),
    }


def bspline(control, spacing_mm=10.0, origin_mm=(0.0, 0.0, 0.0)):
    """control: displacements (x, y, z, 3) in LPS mm."""
    return {
        "Transform": ("BSplineTransform",),
        "GridSize": tuple(map(str, control.shape[:3])),
        "GridSpacing": (str(spacing_mm),) * 3,
        "GridOrigin": tuple(map(str, origin_mm)),
        "GridDirection": tuple(["1", "0", "0", "0", "1", "0", "0", "0", "1"]),
        "TransformParameters": tuple(map(str, control.transpose(3, 2, 1, 0).ravel())),
    }


# --- finding the transform on phantoms, whose true misalignment is known


def test_rigid_leaves_less_than_2_5_mm_of_a_misalignment_with_a_warp_it_cannot_remove(scans, rigid):
    _, _, points_mm, truth_mm = scans
    assert np.linalg.norm(points_mm - truth_mm, axis=1).mean() > 9.0  # where it started
    assert error_mm(rigid, points_mm, truth_mm) < 2.5


def test_bspline_comes_closer_than_rigid_without_folding_space(scans, rigid, deformed):
    _, _, points_mm, truth_mm = scans
    assert error_mm(deformed, points_mm, truth_mm) < 0.85 * error_mm(rigid, points_mm, truth_mm)
    assert 0.5 < deformed.quality["jacobian_min"] <= 1.0 <= deformed.quality["jacobian_max"] < 2.0


@pytest.mark.slow
def test_over_three_heads_bspline_is_a_quarter_closer_than_rigid():
    """Means over the heads: on one alone the gain is a fifth to a third, as the warp's waves fall."""
    before, rigid, bspline = [], [], []
    for seed in (1, 2, 3):
        mr, ct, points_mm, truth_mm = misaligned(seed)
        before.append(np.linalg.norm(points_mm - truth_mm, axis=1).mean())
        rigid.append(error_mm(registration.register(mr, ct, stages=("rigid",)), points_mm, truth_mm))
        bspline.append(error_mm(registration.register(mr, ct), points_mm, truth_mm))
    assert min(before) > 9.0
    assert np.mean(rigid) < 2.5
    assert np.mean(bspline) < 0.75 * np.mean(rigid)
    assert all(after < first for after, first in zip(bspline, rigid, strict=True))


def test_quality_of_a_good_registration_passes_and_its_mutual_information_has_risen(rigid, deformed):
    for found in (rigid, deformed):
        registration.check_quality(found)
    before, after_rigid = (rigid.quality[f"mutual_information_{when}"] for when in ("before", "after"))
    assert before < after_rigid < deformed.quality["mutual_information_after"]
    assert rigid.quality["jacobian_min"] == pytest.approx(1.0) == rigid.quality["jacobian_max"]


def test_rigid_removes_a_misalignment_without_warp_also_when_the_headers_are_half_a_metre_apart(small):
    fixed, (ct_hu, affine), turn = small
    far = affine.copy()
    far[:3, 3] += (300.0, -400.0, 100.0)
    found = registration.register(fixed, (ct_hu, far), stages=("rigid",))
    points_mm = np.random.default_rng(0).uniform(-60, 60, (50, 3)) + turn[:3, 3]
    truth_mm = (points_mm - turn[:3, 3]) @ turn[:3, :3] + (300.0, -400.0, 100.0)
    assert error_mm(found, points_mm, truth_mm) < 1.0
    assert found.quality["mutual_information_before"] == 0.0
    assert found.provenance["initialisation"] != "header"


def test_two_runs_are_equal_bit_for_bit_and_silent_and_leave_no_file(small, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, again = (registration.register(*small[:2], threads=2, overrides=QUICK) for _ in range(2))
    assert first == again  # every parameter is text of full precision
    assert str(tmp_path) not in repr(first)
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == []


def test_another_seed_takes_other_samples(small):
    first, other = (
        registration.register(*small[:2], stages=("rigid",), seed=seed, overrides={"rigid": QUICK["rigid"]})
        for seed in (0, 1)
    )
    assert first.parameters[1]["TransformParameters"] != other.parameters[1]["TransformParameters"]


def test_nan_in_the_ct_does_not_stop_the_search_and_comes_out_as_ignore_label(small):
    fixed, (ct_hu, affine), _ = small
    cut = ct_hu.copy()
    cut[:, :, : ct_hu.shape[2] // 4] = np.nan
    found = registration.register(
        fixed, (cut, affine), stages=("rigid",), overrides={"rigid": QUICK["rigid"]}
    )
    on_mr = registration.apply_transform(found, (cut, affine), (fixed[0].shape, fixed[1]))
    whole = registration.apply_transform(found, (ct_hu, affine), (fixed[0].shape, fixed[1]))
    assert on_mr.dtype == np.float32 and on_mr.shape == fixed[0].shape
    lost = np.isnan(on_mr) & ~np.isnan(whole)
    assert 0.05 < lost.mean() < 0.3
    assert (hu_to_labels(on_mr)[lost] == 255).all()
    np.testing.assert_array_equal(on_mr[~np.isnan(on_mr)], whole[~np.isnan(on_mr)])


def transformix(found, moving):
    """ITK's own resampling, -7777 outside."""
    grid = {k: found.parameters[-1][k] for k in ("Size", "Index", "Spacing", "Origin", "Direction")}
    rest = {
        "FixedImageDimension": ("3",),
        "MovingImageDimension": ("3",),
        "UseDirectionCosines": ("true",),
        "ResampleInterpolator": ("FinalBSplineInterpolator",),
        "FinalBSplineInterpolationOrder": ("1",),
        "DefaultPixelValue": ("-7777",),
        "ResultImagePixelType": ("float",),
    }
    with engine._itk() as itk:
        maps = itk.ParameterObject.New()
        for one in found.parameters:
            maps.AddParameterMap({**one, **grid, **rest})
        image = engine._image(itk, moving, np.zeros(3))
        run = itk.TransformixFilter[type(image)].New(MovingImage=image, TransformParameterObject=maps)
        run.SetLogToConsole(False)
        run.Update()
        return itk.array_from_image(run.GetOutput()).T


def test_numpy_and_transformix_agree_on_turned_and_flipped_axes(small):
    fixed, moving, _ = small
    found = registration.register(fixed, moving, overrides=QUICK)
    theirs = transformix(found, moving)
    ours = registration.apply_transform(found, moving, (fixed[0].shape, fixed[1]))
    both = np.isfinite(ours) & (theirs != -7777)
    assert both.mean() > 0.8 and (both == np.isfinite(ours)).mean() > 0.98
    # 0.5 of 2600 HU: at a bone's edge, 1e-3 mm apart, which is the float32 of ITK's coordinates and values.
    np.testing.assert_allclose(ours[both], theirs[both], atol=0.5)


# --- transforms, by hand


def test_points_are_turned_about_the_centre_in_lps_and_come_back_in_ras():
    # A quarter turn about z in LPS is one in RAS: x to y. The centre LPS (-10, 0, 0) is RAS (10, 0, 0).
    found = of(euler((0, 0, math.pi / 2), (0, 0, 5.0), (-10.0, 0, 0)))
    points_mm = np.array([[10.0, 0, 0], [13.0, 0, 0], [10.0, 2.0, 1.0]])
    expected = [[10.0, 0, 5.0], [10.0, 3.0, 5.0], [8.0, 0, 6.0]]
    np.testing.assert_allclose(registration.transform_points(found, points_mm), expected, atol=1e-12)


def test_euler_turns_about_y_then_x_then_z():
    quarter = math.pi / 2
    found = of(euler((quarter, quarter, 0)))
    # LPS (0, 0, 1): about y to (1, 0, 0), about x unmoved. About x first it would end at (0, -1, 0).
    np.testing.assert_allclose(
        registration.transform_points(found, [[0, 0, 1.0]]), [[-1.0, 0, 0]], atol=1e-12
    )


def test_transforms_apply_in_their_order():
    shift = transforms.translation(np.array([1.0, 0, 0]))
    turn = euler((0, 0, math.pi / 2))
    np.testing.assert_allclose(transforms.map_points((shift, turn), np.zeros(3)), [0, 1.0, 0], atol=1e-12)
    np.testing.assert_allclose(transforms.map_points((turn, shift), np.zeros(3)), [1.0, 0, 0], atol=1e-12)


def test_one_control_point_moves_its_surroundings_by_the_cubic_bspline():
    control = np.zeros((5, 5, 5, 3))
    control[2, 2, 2] = (27.0, 0, 0)
    # beta(0) = 2/3, beta(1) = 1/6, beta(2) = 0: 27 * 8/27 on it, 27 * 1/6 * 4/9 one grid point away.
    points = np.array([[20.0, 20, 20], [30.0, 20, 20], [20.0, 10, 20], [40.0, 20, 20], [500.0, 20, 20]])
    moved = transforms.map_points((bspline(control),), points)
    np.testing.assert_allclose(
        moved - points, [[8.0, 0, 0], [2.0, 0, 0], [2.0, 0, 0], [0] * 3, [0] * 3], atol=1e-12
    )


@pytest.mark.parametrize("slope", [0.2, -0.5, -1.5])
def test_jacobian_of_a_stretch_along_x_is_one_plus_its_slope(slope):
    # Cubic B-splines reproduce straight lines: control = slope * x moves points by slope * x.
    control = np.zeros((9, 9, 9, 3))
    control[..., 0] = slope * 10.0 * np.arange(9)[:, None, None]
    affine = np.diag([-3.0, -2.0, 4.0, 1.0])  # LPS indices run along the control grid
    affine[:3, 3] = (-30.0, -30.0, 30.0)
    jacobian = registration._jacobian((bspline(control),), ((8, 9, 7), affine))
    np.testing.assert_allclose(jacobian, 1 + slope, atol=1e-9)


# --- resampling


@settings(max_examples=25, deadline=None)
@given(
    order=st.integers(0, 1),
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    shift=st.tuples(*[st.integers(-2, 2)] * 3),
)
def test_a_shift_by_whole_voxels_moves_the_array_and_leaves_nan_outside(order, axes, signs, shift):
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    affine = np.diag([*np.array(signs) * (1.5, 0.7, 3.0), 1.0])[:, [*axes, 3]]
    offset_mm = affine[:3, :3] @ np.array(shift, dtype=float) * (-1, -1, 1)
    found = of(transforms.translation(offset_mm))
    moved = registration.apply_transform(found, (array, affine), (array.shape, affine), order=order)
    expected = np.full(array.shape, np.nan, np.float32)
    for index in np.ndindex(array.shape):
        source = tuple(i + s for i, s in zip(index, shift, strict=True))
        if all(0 <= i < n for i, n in zip(source, array.shape, strict=True)):
            expected[index] = array[source]
    np.testing.assert_array_equal(moved, expected)


def test_the_field_of_view_ends_at_the_outer_faces_of_the_outer_voxels():
    array = np.ones((8, 8, 8), np.float32)
    grid = ((20, 1, 1), np.array([[0.5, 0, 0, -1.0], [0, 1, 0, 3.0], [0, 0, 1, 3.0], [0, 0, 0, 1]]))
    line = registration.apply_transform(of(), (array, np.eye(4)), grid, fill=-5.0)[:, 0, 0]
    # x = -1, -0.5, 0, ..., 7, 7.5, 8: inside from -0.5 to 7.5.
    np.testing.assert_array_equal(line, [-5.0] + [1.0] * 17 + [-5.0] * 2)


def test_every_voxel_that_draws_on_a_nan_is_nan_and_no_other():
    array = np.ones((9, 3, 3), np.float32)
    array[4] = np.nan
    half = np.diag([0.5, 1.0, 1.0, 1.0])
    line = registration.apply_transform(of(), (array, np.eye(4)), ((17, 3, 3), half))[:, 1, 1]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(line)), [7, 8, 9])  # x = 3.5, 4, 4.5


def test_labels_stay_labels_at_order_0(small):
    labels = hu_to_labels(small[1][0])
    found = of(euler((0.1, 0.2, 0.3), (3.0, 1.0, -2.0)))
    moved = registration.apply_transform(
        found, (labels, small[1][1]), (small[0][0].shape, small[0][1]), order=0, fill=255
    )
    assert set(np.unique(moved)) <= {0.0, 1.0, 2.0, 255.0}


# --- mutual information


def test_mutual_information_is_the_entropy_of_an_image_with_itself_and_zero_of_independent_ones():
    columns, rows = np.meshgrid([0.0, 1.0], [0.0, 1.0])
    assert registration.mutual_information(columns, 5 - 3 * columns) == pytest.approx(math.log(2))
    assert registration.mutual_information(columns, rows) == pytest.approx(0.0, abs=1e-12)
    assert registration.mutual_information(columns, np.full((2, 2), 7.0)) == 0.0
    assert registration.mutual_information(np.full(4, np.nan), np.arange(4.0)) == 0.0


def test_mutual_information_equals_the_double_sum_over_numpys_joint_histogram():
    rng = np.random.default_rng(0)
    first = rng.normal(size=400)
    second = first + rng.normal(size=400)
    counts, _, _ = np.histogram2d(first, second, bins=8)
    p = counts / counts.sum()
    expected = sum(
        p[i, j] * math.log(p[i, j] / (p[i].sum() * p[:, j].sum())) for i, j in np.ndindex(8, 8) if p[i, j] > 0
    )
    assert registration.mutual_information(first, second, bins=8) == pytest.approx(expected, rel=1e-12)


# --- refusal, and the file


def test_quality_within_its_limits_passes():
    registration.check_quality(of(mutual_information_after=0.395))  # an aligned pair, blurred a little


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ({"mutual_information_after": 0.3}, "mutual information 0.4000 before, 0.3000 after"),
        ({"mutual_information_after": math.nan}, "mutual information"),
        ({"overlap": 0.2}, r"overlap 0.200 \(at least 0.5\)"),
        ({"jacobian_min": 0.0}, r"smallest Jacobian 0.000 \(above 0\)"),
        ({"jacobian_min": -0.4, "overlap": 0.1}, "overlap 0.100 .*; smallest Jacobian -0.400"),
    ],
)
def test_a_figure_outside_its_limit_is_refused_with_the_figure_and_a_remedy(worse, told):
    with pytest.raises(InputError, match=f"{told}.*another seed"):
        registration.check_quality(of(**worse))


def test_a_limit_can_be_moved():
    registration.check_quality(of(overlap=0.2), overlap=0.1)
    with pytest.raises(InputError, match="Jacobian"):
        registration.check_quality(of(), jacobian_min=0.7)


def test_a_saved_registration_is_read_back_equal_and_maps_points_alike(deformed, tmp_path):
    path = registration.save_registration(deformed, tmp_path / "new" / "sub-01_from-T1w_to-ct.json")
    again = registration.load_registration(path)
    assert again == deformed
    points_mm = np.random.default_rng(0).uniform(-80, 80, (20, 3))
    np.testing.assert_array_equal(
        registration.transform_points(again, points_mm), registration.transform_points(deformed, points_mm)
    )
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: "[]",
        lambda stored: "",
        lambda stored: json.dumps(stored | {"format": "other"}),
        lambda stored: json.dumps({k: v for k, v in stored.items() if k != "quality"}),
        lambda stored: json.dumps(stored | {"parameters": [{"Transform": ["AffineTransform"]}]}),
        lambda stored: json.dumps(
            stored | {"parameters": [bspline(np.zeros((3, 3, 3, 3))) | {"GridSize": "555"}]}
        ),
        lambda stored: json.dumps(stored)[:-40],
    ],
)
def test_a_damaged_registration_file_is_refused_by_name(tmp_path, damage):
    path = registration.save_registration(of(euler()), tmp_path / "r.json")
    path.write_text(damage(json.loads(path.read_text(encoding="utf-8"))))
    with pytest.raises(InputError, match="r.json"):
        registration.load_registration(path)


def test_a_missing_registration_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        registration.load_registration(tmp_path / "none.json")


def volume(shape=(8, 8, 8), affine=None, value=None):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if value is not None:
        array[0, 0, 0] = value
    return array, np.eye(4) if affine is None else affine


SHEAR = np.eye(4)
SHEAR[1, 2] = math.tan(math.radians(18.5))


@pytest.mark.parametrize(
    ("fixed", "moving", "options", "told"),
    [
        (volume((8, 8, 8, 2)), volume(), {}, "fixed image is 3-D.*8, 8, 8, 2"),
        (volume((8, 7, 8)), volume(), {}, "at least 8 voxels"),
        (volume(value=np.nan), volume(), {}, "fixed image is finite everywhere.*1 NaN"),
        ((np.ones((8, 8, 8)), np.eye(4)), volume(), {}, "fixed image is not constant"),
        (
            volume(),
            (np.full((8, 8, 8), np.nan), np.eye(4)),
            {},
            "moving image is not constant.*no finite voxel",
        ),
        (volume(), volume(affine=SHEAR), {}, "axes of the moving image are at right angles.*71.5 degrees"),
        (volume(affine=np.diag([1.0, 0, 1, 1])), volume(), {}, "fixed.*invertible"),
        (volume()[0], volume(), {}, r"fixed is a pair \(array, affine\)"),
        (volume(), volume(), {"stages": ("rigid", "affine")}, "stage is one of rigid, bspline"),
        (volume(), volume(), {"stages": ()}, "stages is a sequence"),
        (volume(), volume(), {"stages": "rigid"}, "stages is a sequence"),
        (volume(), volume(), {"seed": -1}, "seed is a whole number"),
        (volume(), volume(), {"threads": 0}, "threads is a sequence|threads"),
        (volume(), volume(), {"fixed_mask": np.ones((8, 8, 9))}, "fixed_mask lies on the fixed grid"),
        (volume(), volume(), {"fixed_mask": np.zeros((8, 8, 8))}, "fixed_mask is true somewhere"),
        (volume(), volume(), {"overrides": {"affine": {}}}, "A stage in overrides"),
    ],
)
def test_input_that_cannot_be_registered_is_refused_before_elastix_runs(
    fixed, moving, options, told, monkeypatch
):
    monkeypatch.setattr(engine, "run", None)
    with pytest.raises(InputError, match=told):
        registration.register(fixed, moving, **options)


def test_what_is_carried_through_a_registration_is_a_volume():
    with pytest.raises(InputError, match=r"moving image is 3-D.*8, 8, 8, 2"):
        registration.apply_transform(of(euler()), volume((8, 8, 8, 2)), ((8, 8, 8), np.eye(4)))


def test_a_failure_of_elastix_is_one_line_with_its_reason(small, capfd):
    with pytest.raises(InputError, match="could not be created: NoSuchMetric") as caught:
        registration.register(*small[:2], stages=("rigid",), overrides={"rigid": {"Metric": "NoSuchMetric"}})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_points_that_are_not_triples_are_refused():
    with pytest.raises(InputError, match="millimetres"):
        registration.transform_points(of(), np.zeros((3, 2)))


# --- parameter files


def test_parameter_files_hold_the_stages_of_the_paper():
    rigid_, bspline_ = (engine.stage_parameters(stage) for stage in engine.STAGES)
    assert rigid_["Transform"] == ("EulerTransform",) and bspline_["Transform"] == ("BSplineTransform",)
    assert bspline_["FinalGridSpacingInPhysicalUnits"] == ("16",)
    for one in (rigid_, bspline_):
        assert one["Metric"][0] == "AdvancedMattesMutualInformation" and one["NumberOfHistogramBins"] == (
            "32",
        )


def test_overrides_win_and_are_written_as_elastix_writes_values():
    (found,) = engine.parameter_maps(
        ["rigid"],
        {"rigid": {"NumberOfSpatialSamples": 99, "Scales": [1.5, 2], "ErodeMask": True}},
        np.eye(4),
        np.eye(4),
        3,
    )
    assert found["NumberOfSpatialSamples"] == ("99",) and found["Scales"] == ("1.5", "2")
    assert found["ErodeMask"] == ("true",) and found["RandomSeed"] == ("3",)


def test_the_pyramid_smooths_both_images_alike_in_mm_with_fewer_levels_for_coarse_voxels():
    fine = engine._pyramid(np.diag([1.0, 1.0, 4.0, 1]), np.diag([0.5, 0.5, 2.0, 1]))
    assert fine["NumberOfResolutions"] == ("4",)  # 8, 4, 2, 1 mm
    assert fine["FixedImagePyramidSchedule"] == tuple(
        ["8", "8", "2", "4", "4", "1", "2", "2", "1", "1", "1", "1"]
    )
    assert fine["MovingImagePyramidSchedule"] == tuple(
        ["16", "16", "4", "8", "8", "2", "4", "4", "1", "2", "2", "1"]
    )
    assert engine._pyramid(np.diag([3.5, 3.5, 3.5, 1]), np.eye(4))["NumberOfResolutions"] == ("2",)
    assert engine._pyramid(np.diag([9.0, 9.0, 9.0, 1]), np.eye(4))["NumberOfResolutions"] == ("1",)


@pytest.mark.slow
def test_a_program_that_makes_errors_of_warnings_survives():
    code = (
        "from mrseg.data import phantom, registration\n"
        "head = phantom.head(0, shape=(16, 16, 12))\n"
        "registration.register(phantom.mr_image(head, 'T1w'), phantom.ct_image(head)[0], stages=('rigid',))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_importing_the_module_loads_neither_itk_nor_tensorflow():
    code = "import mrseg.data.registration, sys; print({'itk', 'tensorflow', 'keras'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert told.stdout.strip() == "set()"


def test_registrations_are_equal_only_if_their_parameters_are():
    assert of(euler()) == of(euler())
    assert of(euler()) != replace(of(euler()), parameters=(euler((0.1, 0, 0)),))
