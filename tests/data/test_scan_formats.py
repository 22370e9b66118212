"""One asymmetric phantom through every format: the same value at the same place in the world, and back."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import math
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel import affines, orientations

from mrseg._checks import InputError
from mrseg.data import io, resample
from mrseg.data.geometry import from_canonical, grid_distance_mm, to_canonical

_spec = importlib.util.spec_from_file_location("dicom_files", Path(__file__).with_name("dicom_files.py"))
dicom_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dicom_files)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE, SPACING = (5, 7, 3), (0.9, 1.3, 4.1)
ORIENTATIONS = [
    "".join(sign[axis] for sign, axis in zip(signs, order, strict=True))
    for order in itertools.permutations(range(3))
    for signs in itertools.product(("RAS", "LPI"), repeat=3)
]
FORMATS = ("nii", "nii.gz", "mgh", "mgz", "nrrd", "packed.nrrd", "nhdr", "mha", "packed.mha", "mhd", "dicom")


def asymmetric(shape=SHAPE):
    """Every value once, so that a flip or a swap of axes cannot hide."""
    return np.random.default_rng(4).permutation(math.prod(shape)).astype(np.int16).reshape(shape)


def affine_of(codes="LPS", spacing=SPACING, tilt_deg=0.0, shape=SHAPE):
    turned = np.linalg.inv(orientations.inv_ornt_aff(orientations.axcodes2ornt(codes), shape))
    angle = math.radians(tilt_deg)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    affine = tilt @ turned @ np.diag([*spacing, 1.0])
    affine[:3, 3] = (-31.5, 7.25, 100.0)
    return affine


def write(folder, kind, array, affine):
    """Writes with another library than mrseg, from the RAS affine; returns what to read."""
    path = folder / f"scan.{kind}"
    if kind in ("nii", "nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    elif kind in ("mgh", "mgz"):
        nibabel.save(nibabel.MGHImage(array, affine), path)
    elif kind == "dicom":
        lps = LPS @ affine
        origins = affines.apply_affine(lps, [(0, 0, k) for k in range(array.shape[2])])
        return dicom_files.write_stack(path, array, lps[:3, :2], origins)
    else:
        lps = LPS @ affine
        image = sitk.GetImageFromArray(array.T)
        image.SetSpacing(np.linalg.norm(lps[:3, :3], axis=0).tolist())
        image.SetDirection((lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, str(path), kind.startswith("packed"))
    return path


def world_of_each_value(volume):
    array, affine = volume
    index = np.stack(np.unravel_index(np.argsort(array, axis=None), array.shape), axis=-1)
    return affines.apply_affine(affine, index)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL", "PIR"])
@pytest.mark.parametrize("kind", FORMATS)
def test_left_is_left_in_every_format(tmp_path, kind, codes):
    """The value of every voxel lies where it was put, so left and right, front and back cannot be swapped."""
    array, affine = asymmetric(), affine_of(codes, tilt_deg=11.0)
    volume = io.read_volume(write(tmp_path, kind, array, affine))
    expected = world_of_each_value((array, affine))
    # MGH and NIfTI hold affines in float32: 100 mm to 4e-6.
    np.testing.assert_allclose(world_of_each_value(volume), expected, atol=2e-5)
    np.testing.assert_allclose(world_of_each_value(to_canonical(volume)), expected, atol=2e-5)
    assert volume[0].dtype == np.float32 and volume[0].flags.c_contiguous and volume[1].dtype == np.float64


@pytest.mark.parametrize("kind", FORMATS)
def test_all_48_orientations_come_back_onto_the_grid_of_the_file(tmp_path, kind):
    """A label map made in canonical space and written as NIfTI lies on the scan, voxel for voxel."""
    worst = 0.0
    for codes in ORIENTATIONS:
        array, affine = asymmetric(), affine_of(codes)
        folder = tmp_path / codes
        folder.mkdir()
        native = io.read_volume(write(folder, kind, array, affine))
        canonical, canonical_affine = to_canonical(native)
        assert orientations.aff2axcodes(canonical_affine) == ("R", "A", "S")
        back = from_canonical(canonical, native[0].shape, native[1])
        assert np.array_equal(back, native[0])
        labels = from_canonical((canonical % 3).astype(np.uint8), native[0].shape, native[1])
        io.write_labels(folder / "dseg.nii.gz", labels, native[1], ("a", "b", "c"), {})
        read, written_affine = io.read_labels(folder / "dseg.nii.gz", 3)
        assert np.array_equal(read, native[0] % 3)
        worst = max(worst, grid_distance_mm(read.shape, written_affine, native[0].shape, native[1]))
    print(f"{kind}: 48 orientations, voxels equal, grid within {worst:.1e} mm")
    assert worst < 1e-4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(("nii", "mgh", "nrrd", "mha")),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.sampled_from((1, 3, 5, 7))] * 3).filter(lambda shape: math.prod(shape) > 1),
    st.tuples(*[st.floats(0.3, 6.0)] * 3),
    st.floats(-15, 15),
)
def test_odd_sizes_and_anisotropic_voxels_come_back(tmp_path, kind, codes, shape, spacing, tilt_deg):
    array, affine = asymmetric(shape), affine_of(codes, spacing, tilt_deg, shape)
    volume = io.read_volume(write(tmp_path, kind, array, affine))
    np.testing.assert_allclose(world_of_each_value(volume), world_of_each_value((array, affine)), atol=1e-4)
    canonical, _ = to_canonical(volume)
    assert np.array_equal(from_canonical(canonical, volume[0].shape, volume[1]), volume[0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 255), min_size=2, max_size=5, unique=True),
    st.sampled_from(ORIENTATIONS),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.floats(0.3, 5.0)] * 3),
    st.integers(0, 2**31),
)
def test_labels_gain_no_value_on_any_grid(values, codes, target_codes, shape, spacing, seed):
    labels = np.random.default_rng(seed).choice(np.array(values, np.uint8), SHAPE)
    target = affine_of(target_codes, spacing, 7.0, shape)
    moved = resample((labels, affine_of(codes)), shape, target, order=0, fill=255)
    assert moved.dtype == np.uint8 and set(np.unique(moved)) <= {*values, 255}
    with pytest.raises(InputError, match="never interpolated"):
        resample((labels, affine_of(codes)), shape, target, order=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_labels_are_read_from_every_format(tmp_path, kind):
    labels = (asymmetric() % 4).astype(np.int16)
    read, _ = io.read_labels(write(tmp_path, kind, labels, affine_of("RAS")), 4)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(np.sort(read, axis=None), np.sort(labels, axis=None))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_header_alone_tells_the_grid_of_every_format(tmp_path, kind):
    path = write(tmp_path, kind, asymmetric(), affine_of())
    array, affine = io.read_volume(path)
    shape, header_affine = io.volume_header(path)
    assert shape == array.shape and np.array_equal(affine, header_affine) and io.volume_count(path) == 1
    assert all(file.is_file() for file in io.scan_files(path))
    assert len(io.scan_files(path)) == {"nhdr": 2, "mhd": 2, "dicom": 3}.get(kind, 1)


@pytest.mark.parametrize("kind", ["nii.gz", "mgz", "mha"])
def test_a_series_is_read_from_files_of_four_axes(tmp_path, kind):
    array = asymmetric((5, 7, 3, 4))
    path = tmp_path / f"scan.{kind}"
    if kind == "mha":
        sitk.WriteImage(sitk.GetImageFromArray(array.T, isVector=False), str(path))
    else:
        nibabel.save((nibabel.MGHImage if kind == "mgz" else nibabel.Nifti1Image)(array, affine_of()), path)
    np.testing.assert_array_equal(io.read_series(path).array, array)
    assert io.volume_count(path) == 4
    with pytest.raises(InputError, match="three axes"):
        io.read_volume(path)


def test_a_list_of_volumes_in_nrrd_is_a_series_and_colours_are_none(tmp_path):
    """3D Slicer writes a sequence with the list as the fastest axis."""
    header = (
        "NRRD0004\ntype: short\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 5 7 3\n"
        "space directions: none (1,0,0) (0,2,0) (0,0,3)\nkinds: {} domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (1,2,3)\n\n"
    )
    array = asymmetric((2, 5, 7, 3))
    path = tmp_path / "a.nrrd"
    path.write_bytes(header.format("list").encode() + array.tobytes(order="F"))
    series = io.read_series(path)
    np.testing.assert_array_equal(series.array, np.moveaxis(array, 0, -1))
    np.testing.assert_allclose(
        series.affine, LPS @ np.array([[1, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    )
    path.write_bytes(header.format("vector").encode() + array.tobytes(order="F"))
    with pytest.raises(InputError, match="one real number"):
        io.read_series(path)


def test_a_shear_in_nrrd_is_kept(tmp_path):
    """A CT of tilted gantry as 3D Slicer saves it."""
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 5 7 3\n"
        "space directions: (1,0,0) (0,2,0) (0,0.9,3)\nkinds: domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + asymmetric().tobytes(order="F"))
    _, affine = io.read_volume(tmp_path / "a.nrrd")
    np.testing.assert_allclose(affine, [[1, 0, 0, 1], [0, 2, 0.9, 2], [0, 0, 3, 3], [0, 0, 0, 1]], atol=1e-12)


# Conflicts and gaps in headers


def nifti(folder, sform=None, qform=None, codes=(1, 1)):
    image = nibabel.Nifti1Image(asymmetric(), affine_of())
    image.set_sform(affine_of() if sform is None else sform, codes[0])
    image.set_qform(affine_of() if qform is None else qform, codes[1])
    nibabel.save(image, folder / "a.nii")
    return folder / "a.nii"


def test_a_qform_that_disagrees_with_the_sform_is_told_in_millimetres(tmp_path, caplog):
    moved = affine_of()
    moved[0, 3] += 12
    _, affine = io.read_volume(nifti(tmp_path, qform=moved))
    np.testing.assert_allclose(affine, affine_of(), atol=1e-5)
    assert "lie 12 mm apart" in caplog.text and "the sform is used" in caplog.text


def test_equal_forms_and_a_single_form_are_no_conflict(tmp_path, caplog):
    io.read_volume(nifti(tmp_path))
    moved = affine_of()
    moved[0, 3] += 12
    _, affine = io.read_volume(nifti(tmp_path, sform=moved, codes=(0, 1)))
    np.testing.assert_allclose(affine, affine_of(), atol=1e-5)
    assert not caplog.text


def test_an_affine_of_another_voxel_size_than_pixdim_is_told(tmp_path, caplog):
    io.read_volume(nifti(tmp_path, sform=affine_of(spacing=(2.0, 1.3, 4.1)), codes=(1, 0)))
    assert "pixdim" in caplog.text


@pytest.mark.parametrize(("scale", "move_mm"), [(1e-3, 0), (100, 0), (1, 1e6)])
def test_a_grid_that_no_head_was_scanned_on_is_told(tmp_path, caplog, scale, move_mm):
    """Metres, a unit ten times too large twice over, a world a kilometre away."""
    affine = affine_of(spacing=tuple(scale * size for size in SPACING))
    affine[:3, 3] += move_mm
    io.read_volume(write(tmp_path, "mgh", asymmetric(), affine))
    assert "is the header in millimetres" in caplog.text and "scan.mgh" in caplog.text


def test_what_nibabel_warns_of_is_told_with_the_name_of_the_file(tmp_path, caplog):
    """A header extension of a size that is not a multiple of 16 (nifti1.h)."""
    path = write(tmp_path, "nii", asymmetric(), affine_of())
    content = bytearray(path.read_bytes())
    content[348:352] = b"\1\0\0\0"
    content[108:112] = np.float32(352 + 24).tobytes()  # vox_offset
    content[352:352] = np.array([24, 6], "<i4").tobytes() + b"comment".ljust(16)
    path.write_bytes(content)
    np.testing.assert_array_equal(io.read_volume(path)[0], asymmetric())
    assert f"{path}: Extension size is not a multiple of 16" in caplog.text


@pytest.mark.parametrize("kind", ["mgh", "nrrd", "mha"])
def test_a_header_without_orientation_is_read_with_a_warning(tmp_path, caplog, kind):
    path = write(tmp_path, kind, asymmetric(), affine_of("LPS", (1.0, 1.0, 1.0)))
    content = bytearray(path.read_bytes())
    if kind == "mgh":
        content[28:30] = bytes(2)  # goodRASFlag
    else:
        line = b"space: left" if kind == "nrrd" else b"TransformMatrix"
        start = content.index(line)
        del content[start : content.index(b"\n", start) + 1]
    if kind == "nrrd":
        for old, new in ((b"space directions: (1,0,0) (0,1,0) (0,0,1)", b"spacings: 1 1 1"),):
            content = content.replace(old, new)
        start = content.index(b"space origin")
        del content[start : content.index(b"\n", start) + 1]
    path.write_bytes(content)
    io.read_volume(path)
    assert "left and right are a guess" in caplog.text


def test_a_file_that_goes_on_after_its_voxels_is_told(tmp_path, caplog):
    for kind in ("nii", "nii.gz", "mgh", "mgz", "nrrd", "mha", "packed.mha"):
        caplog.clear()
        path = write(tmp_path, kind, asymmetric(), affine_of())
        content = path.read_bytes()
        if kind == "packed.mha":
            path.write_bytes(content.replace(b"DimSize = 5 7 3", b"DimSize = 5 7 2"))
        elif kind.endswith("z"):
            path.write_bytes(gzip.compress(gzip.decompress(content) + b"\x7f" * 60))
        else:
            path.write_bytes(content + b"\x7f" * 60)
        io.read_volume(path)
        assert "goes on for" in caplog.text, kind


def test_a_header_apart_from_its_voxels_needs_them_beside_it(tmp_path):
    path = write(tmp_path, "mhd", asymmetric(), affine_of())
    (tmp_path / "scan.raw").unlink()
    with pytest.raises(FileNotFoundError, match=r"scan\.mhd.*scan\.raw"):
        io.read_volume(path)
    path.write_text(path.read_text(encoding="utf-8").replace("scan.raw", "../scan.raw"))
    with pytest.raises(InputError, match=r"scan\.mhd.*'data file'"):
        io.read_volume(path)


@pytest.mark.parametrize(
    ("kind", "old", "new", "word"),
    [
        ("mha", "DimSize = 5 7 3", "DimSize = 5 7 x", "one positive size"),
        ("mha", "DimSize = 5 7 3", "DimSize = 5 70000 3", "truncated"),
        ("mha", "ElementSpacing = 0.9", "ElementSpacing = -0.9", "ElementSpacing"),
        ("mha", "ElementSpacing = 0.9", "ElementSpacing = nan", "ElementSpacing"),
        ("mha", "Offset = ", "Offset = 1 ", "Offset"),
        ("mha", "MET_SHORT", "MET_STRING", "ElementType"),
        ("mha", "BinaryData = True", "BinaryData = False", "BinaryData"),
        ("nrrd", "sizes: 5 7 3", "sizes: 5 7 0", "one positive size"),
        ("nrrd", "sizes: 5 7 3", "sizes: 50 70 30", "truncated"),
        ("nrrd", "encoding: raw", "encoding: hex", "encoding"),
        ("nrrd", "type: short", "type: block", "type"),
        ("nrrd", "space directions: (", "space directions: (nan,0,0) (", "space directions"),
        ("nrrd", "NRRD0004", "NRRX0004", "without a NRRD header"),
    ],
)  # fmt: skip
def test_an_impossible_header_is_refused_by_the_field(tmp_path, kind, old, new, word):
    path = write(tmp_path, kind, asymmetric(), affine_of())
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))
    with pytest.raises(InputError, match=word) as caught:
        io.read_volume(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# Real scans


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
@pytest.mark.parametrize("patient", ["patient01", "patient04"])
def test_three_sequences_of_one_session_are_brought_onto_one_grid(patient):
    folder = Path(os.environ["MRSEG_DATA"]) / "open_ms" / patient
    volumes = {
        name: to_canonical(io.read_volume(folder / f"study1_{name}.nii.gz"))
        for name in ("T1W", "T2W", "FLAIR")
    }
    t1_shape, t1_affine = volumes["T1W"][0].shape, volumes["T1W"][1]
    # Every eighth voxel of the T1-w grid in plane, and every slice.
    affine = t1_affine @ np.diag([8.0, 8, 1, 1])
    shape = (*(-(-n // 8) for n in t1_shape[:2]), t1_shape[2])
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    target = affines.apply_affine(affine, index)
    for name in ("T2W", "FLAIR"):
        source_shape, source_affine = volumes[name][0].shape, volumes[name][1]
        assert source_shape != t1_shape or not np.allclose(source_affine, t1_affine)
        source_index = affines.apply_affine(np.linalg.inv(source_affine), target)
        inside = ((source_index >= 0) & (source_index <= np.array(source_shape) - 1)).all(axis=-1)
        assert inside.mean() > 0.5
        grid = np.ogrid[tuple(slice(n) for n in source_shape)]
        worst = 0.0
        for axis in range(3):
            # The source's own world coordinate as its image: on the new grid it must be that grid's.
            world = sum(source_affine[axis, i] * grid[i] for i in range(3)) + source_affine[axis, 3]
            moved = resample((world.astype(np.float32), source_affine), shape, affine, antialias=False)
            worst = max(worst, np.abs(moved - target[..., axis])[inside].max())
        print(f"{patient} {name} on the grid of T1W: positions within {worst:.1e} mm")
        assert worst < 0.01
        head = volumes["T1W"][0][::8, ::8] > np.percentile(volumes["T1W"][0], 70)
        image = resample(volumes[name], shape, affine, antialias=False)
        other = image > np.percentile(image, 70)
        assert 2 * (head & other).sum() / (head.sum() + other.sum()) > 0.7


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
@pytest.mark.parametrize("kind", ["mgz", "packed.nrrd", "packed.mha", "dicom"])
def test_a_real_scan_is_the_same_in_every_format(tmp_path, kind):
    native = io.read_volume(Path(os.environ["MRSEG_DATA"]) / "open_ms" / "patient01" / "study1_FLAIR.nii.gz")
    other = io.read_volume(write(tmp_path, kind, native[0].astype(np.int16), native[1]))
    (array, affine), (same, same_affine) = to_canonical(native), to_canonical(other)
    assert np.array_equal(same, array)
    distance = grid_distance_mm(array.shape, affine, same.shape, same_affine)
    print(f"FLAIR as {kind}: voxels equal, within {distance:.1e} mm")
    assert distance < 1e-4
