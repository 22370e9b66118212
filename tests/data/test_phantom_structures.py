"""Newborn heads and the true labels of structures."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from mrseg._checks import InputError
from mrseg.data import phantom, read_cases
from mrseg.data import phantom_physics as physics
from mrseg.data.io import read_sidecar
from mrseg.data.labels import MRBRAINS13_CLASSES, TISSUE_CLASSES

BACKGROUND, COGM, BG, WM, WML, CSF, VENTRICLES, CEREBELLUM, STEM = range(len(MRBRAINS13_CLASSES))


@pytest.fixture(scope="module")
def adult():
    return phantom.head(4, shape=(80, 96, 80), lesion=True)


@pytest.fixture(scope="module")
def newborns():
    return {weeks: phantom.head(4, shape=(64, 72, 64), weeks=weeks) for weeks in (30, 40)}


@pytest.fixture(scope="module")
def structures(adult):
    return phantom.structure_labels(adult)


def volume_ml(head, mask):
    return mask.sum() * np.prod(np.diag(head.affine)[:3]) / 1000


def centre_mm(head, mask):
    return head.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + head.affine[:3, 3]


def test_structures_divide_the_tissues_and_leave_cerebellum_and_stem_whole(adult, structures):
    tissue = phantom.tissue_labels(adult)
    for structure, name in (
        (COGM, "gm"),
        (BG, "gm"),
        (WM, "wm"),
        (WML, "wm"),
        (CSF, "csf"),
        (VENTRICLES, "csf"),
    ):
        assert (tissue[structures == structure] == TISSUE_CLASSES.index(name)).mean() > 0.97, name
    for structure in (CEREBELLUM, STEM):
        pieces, _ = ndimage.label(structures == structure)
        assert np.bincount(pieces.ravel())[1:].max() > 0.99 * (structures == structure).sum()
        assert set(np.unique(tissue[structures == structure])) >= {2, 3}  # grey and white matter alike
    assert set(np.unique(structures)) == set(range(9))


def test_structures_lie_where_they_belong_and_nothing_of_the_brain_is_in_the_eyes(adult, structures):
    cerebellum, stem, ventricles, nuclei = (
        centre_mm(adult, structures == s) for s in (CEREBELLUM, STEM, VENTRICLES, BG)
    )
    assert cerebellum[1] < stem[1] < nuclei[1]  # behind
    assert cerebellum[2] < ventricles[2] < nuclei[2] + 10 and stem[2] < nuclei[2]  # below
    for centre in (cerebellum, stem, ventricles, nuclei):
        assert abs(centre[0]) < 6
    eyes = ndimage.label(phantom.tissue_labels(adult) == 1)[0]
    world = np.argwhere(structures == CSF) @ adult.affine[:3, :3].T + adult.affine[:3, 3]
    assert not ((world[:, 1] > 60) & (world[:, 2] < -30)).any()  # where the eyes are, which are fluid
    assert eyes.max() > 1


def test_the_cerebellum_is_a_tenth_of_the_brain(adult, structures):
    """Of adults about 10 %: 120 to 150 of 1,200 to 1,500 ml."""
    brain = np.isin(structures, (COGM, BG, WM, WML, CEREBELLUM, STEM))
    assert 0.08 < (structures == CEREBELLUM).sum() / brain.sum() < 0.14


@pytest.mark.parametrize(("weeks", "low", "high"), [(40, 320, 480), (30, 140, 240)])
def test_a_newborn_has_the_brain_volume_of_its_age(newborns, weeks, low, high):
    """About 400 ml at term and 150 to 200 ml at 30 weeks."""
    labels = phantom.structure_labels(newborns[weeks])
    assert low < volume_ml(newborns[weeks], np.isin(labels, (COGM, BG, WM, CEREBELLUM, STEM))) < high
    assert {COGM, BG, WM, CSF, VENTRICLES, CEREBELLUM, STEM} <= set(np.unique(labels))


def test_a_younger_brain_is_less_folded(newborns):
    """Cortex per white matter falls with the depth of the sulci."""

    def cortex(head):
        labels = phantom.structure_labels(head)
        return (labels == COGM).sum() / (labels == WM).sum()

    assert cortex(newborns[30]) < 0.8 * cortex(newborns[40])


def test_a_newborn_s_white_matter_is_brighter_than_its_cortex_on_t2w_and_an_adult_s_is_darker(
    adult, newborns
):
    def brightness(head, structure):
        image, _ = phantom.mr_image(head, "T2w", noise=0, bias=0)
        inside = ndimage.binary_erosion(head.fractions[head.tissues.index(structure)] > 0.95)
        return np.median(image[inside])

    for head in newborns.values():
        assert brightness(head, "wm") > 1.2 * brightness(head, "gm")
    assert brightness(adult, "wm") < brightness(adult, "gm")


def test_a_newborn_s_skull_is_thin_and_has_no_air_cells(adult, newborns):
    def bone_share(head):
        bone = sum(head.fractions[head.tissues.index(name)] for name in ("cortical_bone", "diploe"))
        upper = head.affine[2, 3] + np.diag(head.affine)[2] * np.arange(head.shape[2]) > 0
        return bone[..., upper].astype(np.float32).mean()

    assert bone_share(newborns[40]) < 0.7 * bone_share(adult)


def test_a_newborn_keeps_its_seed_s_traits_and_its_age(newborns):
    again = phantom.head(4, shape=(64, 72, 64), weeks=30)
    np.testing.assert_array_equal(again.fractions, newborns[30].fractions)
    assert newborns[30].weeks == 30
    (ct, _), _ = phantom.ct_image(newborns[30], shape=newborns[30].shape, misalignment=False, noise_hu=0)
    assert ct.max() > 500  # the newborn's own bone
    white, grey = (physics.NEWBORN_TABLE[name].hu for name in ("wm", "gm"))
    assert np.bincount(np.rint(ct[(ct > 20) & (ct < 42)]).astype(int)).argmax() in (white, grey)
    assert phantom.head(4, shape=(8, 8, 8)).weeks is None


@pytest.mark.parametrize("weeks", [27, 45, float("nan"), "40"])
def test_an_age_out_of_range_is_refused(weeks):
    with pytest.raises(InputError, match="postmenstrual age, 28 to 44"):
        phantom.head(0, shape=(8, 8, 8), weeks=weeks)


def test_a_cohort_of_newborns_is_written_with_its_structures(tmp_path):
    manifest = phantom.write_cohort(
        tmp_path, subjects={"train": 1}, sequences=["T2w"], shape=(32, 40, 24), ct=False,
        labels="structures", weeks=36,
    )  # fmt: skip
    (case,) = read_cases(manifest)
    image, truth = nibabel.load(case.images["T2w"]), nibabel.load(case.labels["T2w"])
    assert image.header.get_zooms()[0] * 32 < 125  # mm: an adult's field of view has 200
    assert {COGM, WM, CEREBELLUM} <= set(np.unique(np.asarray(truth.dataobj)))
    assert read_sidecar(case.labels["T2w"])["provenance"]["weeks"] == 36
