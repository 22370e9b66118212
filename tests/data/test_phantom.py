"""Grids, determinism, lesions, errors and written cohorts of the phantom."""

from __future__ import annotations

import dataclasses

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.cases import read_cases
from mrseg.data.io import read_sidecar
from mrseg.data.labels import hu_to_labels


@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 47, 5), (48, 64, 1)])
def test_fractions_sum_to_one_on_any_grid(shape):
    head = phantom.head(0, shape=shape)
    assert head.shape == shape
    assert head.fractions.dtype == np.float16
    shares = head.fractions.astype(np.float32)
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, atol=2e-3)  # float16 keeps 11 bits
    assert phantom.mr_image(head, "T2w")[0].shape == shape


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(256, 256, 48), (256, 256, 256)])
def test_large_grids_work(shape):
    head = phantom.head(0, shape=shape)
    assert np.bincount(phantom.attenuation_labels(head).ravel(), minlength=3).min() > 0


def test_a_seed_gives_one_head_and_one_image():
    first, again, other = (phantom.head(seed, shape=(32, 32, 24)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.fractions, again.fractions)
    assert (first.fractions != other.fractions).any()
    for make in (
        lambda h: phantom.mr_image(h, "T1w")[0],
        lambda h: phantom.ct_image(h, shape=(20, 20, 20))[0][0],
    ):
        np.testing.assert_array_equal(make(first), make(again))
    a, b = (phantom.mr_image(first, "T1w", seed=seed)[0] for seed in (1, 2))
    assert (a != b).any()


def test_head_with_a_margin_of_air_fills_the_default_field_of_view():
    head = phantom.head(3, shape=(40, 48, 40))
    inside = phantom.attenuation_labels(head) > 0
    spacing = np.diag(head.affine)[:3]
    np.testing.assert_allclose(spacing * head.shape, (200, 240, 198), rtol=0.07)
    for axis in range(3):
        where = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        assert where[-1] < head.shape[axis] - 1  # air right, in front and above
        if axis < 2:
            assert where[0] > 0  # and left and behind; the neck is cut below
        assert (where[-1] - where[0]) / head.shape[axis] > 0.75


def test_a_given_voxel_size_is_kept_and_the_grid_is_centred_on_the_head():
    head = phantom.head(3, shape=(30, 40, 20), spacing_mm=(2.0, 3.0, 4.5))
    np.testing.assert_allclose(np.diag(head.affine), (2.0, 3.0, 4.5, 1.0))
    filled = phantom.head(3, shape=(30, 40, 20))
    middle = np.append((np.array(head.shape) - 1) / 2, 1.0)
    np.testing.assert_allclose(head.affine @ middle, filled.affine @ middle)


def test_volumes_do_not_depend_on_the_grid():
    coarse, fine = (phantom.head(2, shape=shape) for shape in ((32, 32, 32), (80, 80, 80)))
    shares = [h.fractions.astype(np.float64).mean(axis=(1, 2, 3)) for h in (coarse, fine)]
    for name, a, b in zip(coarse.tissues, *shares, strict=True):
        if b > 0.01:
            assert a == pytest.approx(b, rel=0.12), name


def test_a_lesion_changes_the_brain_around_it_alone():
    healthy, ill = (phantom.head(9, shape=(48, 48, 48), lesion=lesion) for lesion in (False, True))
    index = ill.tissues.index("lesion")
    assert healthy.fractions[index].max() == 0
    assert ill.fractions[index].max() > 0.9
    away = ill.fractions[index] == 0
    np.testing.assert_array_equal(healthy.fractions[:, away], ill.fractions[:, away])
    voxel_ml = np.prod(np.diag(ill.affine)[:3]) / 1000
    assert 1 < ill.fractions[index].astype(np.float32).sum() * voxel_ml < 40


@pytest.mark.parametrize(("kind", "brighter"), [("border", True), ("bleed", False)])
def test_a_lesion_at_the_border_meets_the_skull_and_leaves_the_truth_alone(kind, brighter):
    grid = {"shape": (128, 128, 20), "spacing_mm": (1.875, 1.875, 6.0)}
    for seed in (20, 23):
        healthy, deep, ill = (phantom.head(seed, lesion=lesion, **grid) for lesion in (False, True, kind))
        np.testing.assert_array_equal(phantom.brain_labels(healthy), phantom.brain_labels(ill))
        inside = phantom.brain_labels(ill) == 1
        rim = inside & ~ndimage.binary_erosion(inside, np.ones((3, 3, 1)))
        share = {h.lesion: h.fractions[h.tissues.index("lesion")].astype(np.float32) for h in (deep, ill)}
        touching = {kind: int((rim & (found > 0.5)).sum()) for kind, found in share.items()}
        assert touching[kind] > 40 and touching[True] < touching[kind] / 10
        away = share[kind] == 0
        np.testing.assert_array_equal(healthy.fractions[:, away], ill.fractions[:, away])
        image = phantom.dsc_series(ill, timepoints=4, noise=0, bias=0)[0][..., 3]
        white = ill.fractions[ill.tissues.index("wm")] > 0.99
        ratio = image[share[kind] > 0.99].mean() / image[white].mean()
        assert ratio > 1.1 if brighter else ratio < 0.2


def test_attenuation_labels_are_those_of_the_noise_free_ct():
    head = phantom.head(7, shape=(48, 56, 40))
    (ct, affine), _ = phantom.ct_image(
        head, shape=head.shape, spacing_mm=np.diag(head.affine)[:3], noise_hu=0, misalignment=False
    )
    np.testing.assert_allclose(affine, head.affine)
    assert (hu_to_labels(ct) != phantom.attenuation_labels(head)).mean() < 1e-3  # float16 at the threshold


def test_tissue_labels_hold_four_classes_and_brain_only_within_soft_tissue():
    head = phantom.head(7, shape=(64, 72, 64))
    labels, attenuation = phantom.tissue_labels(head), phantom.attenuation_labels(head)
    assert labels.dtype == attenuation.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert set(np.unique(attenuation)) == {0, 1, 2}
    assert (attenuation[labels >= 2] == 1).mean() > 0.99


@pytest.mark.parametrize("seed", [0, 5])
def test_brain_labels_are_what_the_skull_encloses_without_the_eyes(seed):
    head = phantom.head(seed, shape=(128, 128, 20), spacing_mm=(1.875, 1.875, 6.0), lesion=True)
    brain, tissue = phantom.brain_labels(head), phantom.tissue_labels(head)
    assert brain.dtype == np.uint8 and set(np.unique(brain)) == {0, 1}
    assert ndimage.label(brain)[1] == 1
    assert brain[tissue >= 2].mean() > 0.999  # grey and white matter
    outside = (tissue > 0) & (brain == 0)
    world = np.argwhere(outside) @ head.affine[:3, :3].T + head.affine[:3, 3]
    in_front = (world[:, 1] > 45) & (world[:, 2] < -15)  # eyes lie at y = 69, z = -37
    assert outside.sum() > 300 and in_front.mean() > 0.95
    bone = head.fractions[head.tissues.index("cortical_bone")].astype(np.float32)
    assert bone[brain == 1].mean() < 0.05


def test_a_head_of_air_alone_has_no_brain():
    air = phantom.head(0, shape=(4, 4, 4), spacing_mm=(0.1, 0.1, 0.1))
    fractions = np.zeros_like(air.fractions)
    fractions[air.tissues.index("air")] = 1
    assert not phantom.brain_labels(dataclasses.replace(air, fractions=fractions)).any()


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, "00000"), (1.0, "11111"), (0.5, "01010"), (0.2, "00001")]
)
def test_lesions_are_a_share_of_a_cohort(tmp_path, share, expected):
    manifest = phantom.write_cohort(
        tmp_path,
        subjects={"train": 3, "test": 2},
        sequences=("dsc",),
        shape=(16, 16, 4),
        spacing_mm=(12.0, 12.0, 30.0),
        ct=False,
        labels="brain",
        lesions=share,
    )
    cases = read_cases(manifest)
    found = [read_sidecar(case.labels["dsc"])["provenance"]["lesion"] for case in cases]
    assert found == [digit == "1" for digit in expected]
    image = nibabel.load(cases[0].images["dsc"])
    np.testing.assert_allclose(image.header.get_zooms(), (12.0, 12.0, 30.0))
    assert set(np.unique(np.asarray(nibabel.load(cases[0].labels["dsc"]).dataobj))) == {0, 1}


def test_a_lesion_of_numpy_s_true_is_that_of_true():
    heads = [phantom.head(3, shape=(16, 18, 12), lesion=lesion) for lesion in (True, np.True_)]
    np.testing.assert_array_equal(*(head.fractions for head in heads))
    assert heads[1].lesion is True


def test_kinds_of_lesion_come_in_turn(tmp_path):
    manifest = phantom.write_cohort(
        tmp_path,
        subjects={"train": 6},
        shape=(8, 8, 8),
        ct=False,
        labels="brain",
        lesions=0.8,
        lesion_kinds=(True, "border", "bleed"),
    )
    sidecars = [read_sidecar(case.labels["T1w"]) for case in read_cases(manifest)]
    found = [sidecar["provenance"]["lesion"] for sidecar in sidecars]
    assert found == [False, True, "border", "bleed", True, False]


def test_ct_has_its_own_finer_grid_that_covers_the_mr():
    head = phantom.head(1, shape=(32, 32, 24))
    (ct, affine), _ = phantom.ct_image(head)
    assert ct.dtype == np.float32
    assert (np.diag(affine)[:3] < np.diag(head.affine)[:3]).all()
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in head.shape), 1]]) @ head.affine.T
    index = corners @ np.linalg.inv(affine).T
    assert (index[0, :3] > 0).all() and (index[1, :3] < np.array(ct.shape) - 1).all()


def test_a_shift_of_whole_voxels_shifts_the_ct():
    head = phantom.head(1, shape=(24, 24, 24))
    grid = {"shape": (40, 40, 40), "spacing_mm": (5.0, 5.0, 5.0), "noise_hu": 0}
    (still, _), _ = phantom.ct_image(head, misalignment=False, **grid)
    moved_by = phantom.Misalignment(translation_mm=(10.0, -5.0, 15.0))
    (moved, _), truth = phantom.ct_image(head, misalignment=moved_by, **grid)
    assert truth == moved_by
    np.testing.assert_allclose(moved[2:, :-1, 3:], still[:-2, 1:, :-3], atol=2.0)  # float32 positions


def test_bone_of_the_mr_lies_in_the_ct_where_the_truth_says():
    head = phantom.head(8, shape=(48, 56, 48))
    truth = phantom.Misalignment.random(4, warp_mm=4.0)
    (ct, affine), _ = phantom.ct_image(head, noise_hu=0, misalignment=truth)
    bone = head.fractions[3].astype(np.float32) + head.fractions[4]
    index = np.argwhere(bone > 0.9)
    points = index @ head.affine[:3, :3].T + head.affine[:3, 3]

    def found(world: np.ndarray) -> float:
        voxel = np.rint((world - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
        return float((ct[tuple(voxel.T)] > 400).mean())

    assert found(truth.to_ct(points)) > 0.97
    assert found(points) < 0.7


def test_holder_appears_behind_the_head_only_on_request():
    head = phantom.head(1, shape=(24, 24, 24))
    bare, held = (
        phantom.ct_image(head, shape=(48, 48, 16), noise_hu=0, misalignment=False, holder=h)[0][0]
        for h in (False, True)
    )
    changed = held != bare
    assert changed.any()
    assert not changed[:, 24:].any()


def test_written_cohort_is_read_back_with_its_splits_images_and_ct(tmp_path):
    manifest = phantom.write_cohort(
        tmp_path / "cohort",
        subjects={"train": 2, "test": 1},
        sequences=("T1w", "dsc"),
        shape=(16, 16, 12),
        seed=3,
    )
    cases = read_cases(manifest)
    assert [case.split for case in cases] == ["train", "train", "test"]
    assert len({case.subject for case in cases}) == 3
    for case in cases:
        assert set(case.images) == {"T1w", "dsc"}
        assert not case.labels
        image, ct = nibabel.load(case.images["T1w"]), nibabel.load(case.ct)
        assert image.shape == nibabel.load(case.images["dsc"]).shape == (16, 16, 12)
        assert ct.shape != image.shape
    first, second = (nibabel.load(case.images["T1w"]).get_fdata() for case in cases[:2])
    assert (first != second).any()


@pytest.mark.parametrize(("labels", "classes"), [(True, 3), ("attenuation", 3), ("tissue", 4)])
def test_registered_cohort_has_ct_and_labels_on_the_image_grid(tmp_path, labels, classes):
    manifest = phantom.write_cohort(
        tmp_path,
        subjects={"train": 1},
        sequences=("T2w",),
        shape=(24, 24, 20),
        registered=True,
        labels=labels,
    )
    (case,) = read_cases(manifest)
    image, ct, truth = (nibabel.load(p) for p in (case.images["T2w"], case.ct, case.labels["T2w"]))
    np.testing.assert_allclose(ct.affine, image.affine)
    assert ct.shape == truth.shape == image.shape
    assert len(np.unique(np.asarray(truth.dataobj))) == classes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: phantom.head(0, shape=(32, 32)), "shape is a sequence of 3"),
        (lambda: phantom.head(0, shape=(32, 0, 32)), "shape is a sequence of 3"),
        (
            lambda: phantom.head(0, shape=(8, 8, 8), spacing_mm=(1.0, 0.0, 1.0)),
            "spacing_mm is three positive",
        ),
        (lambda: phantom.head(0, shape=(8, 8, 8), spacing_mm=(1.0, 1.0)), "spacing_mm is three positive"),
        (lambda: phantom.head(0, shape=(8, 8, 8), spacing_mm="thin"), "spacing_mm is three positive"),
        (lambda: phantom.head(-1), "seed is a whole number"),
        (lambda: phantom.head(1.5), "seed is a whole number"),
        (lambda: phantom.write_cohort("unused", subjects={}), "at least one subject"),
        (
            lambda: phantom.write_cohort("unused", subjects={"train": 1}, sequences=("T3w",)),
            "sequence is one of",
        ),
        (lambda: phantom.write_cohort("unused", subjects={"train": 1}, labels="bones"), "labels is one of"),
        (lambda: phantom.write_cohort("unused", subjects={"train": 1}, lesions=1.5), "lesions is a share"),
        (
            lambda: phantom.write_cohort("unused", subjects={"train": 1}, lesion_kinds=("bled",)),
            "kind of lesion is one of.*mean 'bleed'",
        ),
        (lambda: phantom.write_cohort("unused", subjects={"train": 1}, lesion_kinds=()), "at least one kind"),
        (
            lambda: phantom.write_cohort("unused", subjects={"train": 1}, lesions=1, lesion_kinds=(False,)),
            "kind of lesion is one of True",
        ),
        (
            lambda: phantom.write_cohort("unused", subjects={"train": 1}, lesion_kinds=("bleed",)),
            "lesion_kinds needs a share",
        ),
        (lambda: phantom.head(0, lesion="edge"), "lesion is one of False, True, border, bleed"),
        (
            lambda: phantom.write_cohort("unused", subjects={"train": 1}, spacing_mm=(1.0, -1.0, 1.0)),
            "spacing_mm is three positive",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_cohorts_that_meet_have_names_of_their_own(tmp_path):
    manifest = phantom.write_cohort(
        tmp_path, subjects={"train": 1}, shape=(12, 12, 12), ct=False, prefix="new"
    )
    assert [case.subject for case in read_cases(manifest)] == ["new001"]
    with pytest.raises(ValueError, match="letters and digits.*'../x'"):
        phantom.write_cohort(tmp_path, subjects={"train": 1}, prefix="../x")
