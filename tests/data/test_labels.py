from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data import io, labels


def test_hounsfield_units_become_classes_with_thresholds_counted_as_soft():
    ct = np.array([-1024, -1000, -500.1, -500, 0, 600, 600.1, 3000])
    assert labels.hu_to_labels(ct).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_padding_and_nan_lie_outside_the_field_of_view():
    ct = np.array([np.nan, -1024.5, -1500, -3024, -np.inf, -1024], dtype=np.float32)
    assert labels.hu_to_labels(ct).tolist() == [255, 255, 255, 255, 255, 0]


def test_integer_ct_is_accepted_and_the_shape_kept():
    ct = np.array([[-1000], [700]], dtype=np.int16)
    result = labels.hu_to_labels(ct)
    assert result.dtype == np.uint8
    assert result.tolist() == [[0], [2]]


def test_other_thresholds_move_the_classes():
    ct = np.array([-400.0, 0.0, 350.0])
    assert labels.hu_to_labels(ct, thresholds_hu=(-300, 300)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "thresholds", [(600, -500), (0, 0), (-500,), (-500, np.nan), (-2000, 600), (0, np.inf)]
)
def test_thresholds_that_do_not_rise_are_refused(thresholds):
    with pytest.raises(InputError, match="thresholds_hu is .lower, upper. in HU"):
        labels.hu_to_labels(np.zeros(3), thresholds_hu=thresholds)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-3000, 3000, width=32), min_size=1), st.floats(-1000, 0), st.floats(1, 2000))
def test_classes_rise_with_density(values, lower, upper):
    ct = np.sort(np.array(values))
    result = labels.hu_to_labels(ct, thresholds_hu=(lower, upper))
    inside = result[result != 255]
    assert (np.diff(inside.astype(int)) >= 0).all()
    assert ((result == 255) == (ct < -1024)).all()


def test_merging_renumbers_and_keeps_what_is_ignored():
    colin27 = np.array([[0, 1, 2, 3], [4, 5, 6, 255]])
    merged = labels.merge_labels(colin27, {0: 0, 6: 0, 2: 2, 1: 1, 3: 1, 4: 1, 5: 1})
    assert merged.dtype == np.uint8
    assert merged.tolist() == [[0, 1, 2, 1], [1, 1, 0, 255]]


def test_the_ignored_can_be_mapped_on_request():
    assert labels.merge_labels(np.array([255, 1]), {255: 0, 1: 1}).tolist() == [0, 1]


def test_merging_to_ignore_takes_voxels_out_of_judgement():
    assert labels.merge_labels(np.array([0, 9]), {0: 0, 9: 255}).tolist() == [0, 255]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(0, 5), min_size=1))
def test_a_permutation_of_labels_can_be_undone(order, values):
    there = dict(enumerate(order))
    back = {new: old for old, new in there.items()}
    array = np.array(values)
    assert labels.merge_labels(labels.merge_labels(array, there), back).tolist() == values


def test_a_label_without_a_new_number_is_named():
    with pytest.raises(InputError, match=r"no entry for \[4, 7\]"):
        labels.merge_labels(np.array([0, 4, 7]), {0: 0})


@pytest.mark.parametrize("mapping", [{0: 256}, {0: -1}, {300: 0, 0: 0}])
def test_a_mapping_beyond_uint8_is_refused(mapping):
    with pytest.raises(InputError, match="0 to 255"):
        labels.merge_labels(np.array([0]), mapping)


@pytest.mark.parametrize("array", [np.array([0.0]), np.array([-1]), np.array([256])])
def test_what_is_no_label_map_is_refused(array):
    with pytest.raises(InputError, match="Received"):
        labels.merge_labels(array, {0: 0})
    with pytest.raises(InputError, match="Received"):
        labels.class_fractions(array, 3)


@pytest.mark.parametrize("padding_hu", [-1500, -2000, -3024])
def test_padding_of_a_ct_file_is_never_air(tmp_path, padding_hu):
    ct = np.full((6, 5, 4), -1000, np.int16)
    ct[2:4], ct[0] = 40, padding_hu
    io.write_volume(tmp_path / "ct.nii", ct, np.eye(4))
    made = labels.hu_to_labels(io.read_ct(tmp_path / "ct.nii")[0])
    assert (made[0] == 255).all() and (made[1] == 0).all() and (made[2] == 1).all()


def test_mrbrains13_merges_to_the_tissues_as_its_page_says():
    """mrbrains13.isi.uu.nl/data: merge 1 and 2 (grey), 3 and 4 (white), 5 and 6 (CSF)."""
    names, tissues = labels.MRBRAINS13_CLASSES, labels.TISSUE_CLASSES
    merged = labels.merge_labels(np.arange(9), labels.MRBRAINS13_TO_TISSUE)
    found = {name: tissues[c] if c < 255 else "ignored" for name, c in zip(names, merged, strict=True)}
    assert found == {
        "background": "background", "cogm": "gm", "bg": "gm", "wm": "wm", "wml": "wm", "csf": "csf",
        "ventricles": "csf", "cerebellum": "ignored", "brainstem": "ignored",
    }  # fmt: skip


def test_a_label_table_has_a_row_and_a_colour_for_every_class(tmp_path):
    labels.write_label_table(tmp_path / "a_dseg.tsv", labels.TISSUE_CLASSES)
    rows = [line.split("\t") for line in (tmp_path / "a_dseg.tsv").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ["index", "name", "color"]
    assert [row[:2] for row in rows[1:]] == [
        ["0", "background"], ["1", "csf"], ["2", "gm"], ["3", "wm"], ["255", "ignore"],
    ]  # fmt: skip
    colours = [row[2] for row in rows[2:5]]
    assert len(set(colours)) == 3 and all(len(c) == 7 and c.startswith("#") for c in colours)
    assert rows[1][2] == rows[5][2] == "n/a"


def test_relabelling_a_file_keeps_where_it_comes_from(tmp_path):
    affine = np.diag([2.0, 1, 3, 1])
    old = np.array([[[0, 4, 5, 7, 255]]], np.uint8)
    io.write_labels(tmp_path / "old.nii.gz", old, affine, labels.MRBRAINS13_CLASSES, {"rater": "A"})
    labels.relabel(
        tmp_path / "old.nii.gz",
        tmp_path / "new_dseg.nii.gz",
        labels.MRBRAINS13_TO_TISSUE,
        labels.TISSUE_CLASSES,
    )
    made, grid = io.read_labels(tmp_path / "new_dseg.nii.gz", num_classes=4)
    assert made.tolist() == [[[0, 3, 1, 255, 255]]]
    np.testing.assert_array_equal(grid, affine)
    card = io.read_sidecar(tmp_path / "new_dseg.nii.gz")
    assert card["labels"]["2"] == "gm"
    assert card["provenance"]["input"] == "old.nii.gz" and card["provenance"]["source"] == {"rater": "A"}
    assert card["provenance"]["mapping"]["7"] == 255
    assert (tmp_path / "new_dseg.tsv").is_file()


def test_relabelling_needs_no_sidecar_and_replaces_no_source(tmp_path):
    io.write_volume(tmp_path / "a.nii", np.ones((2, 2, 2), np.uint8), np.eye(4))
    labels.relabel(tmp_path / "a.nii", tmp_path / "b.nii", {1: 0}, ["rest"])
    assert not io.read_labels(tmp_path / "b.nii")[0].any()
    with pytest.raises(InputError, match="another file than its source"):
        labels.relabel(tmp_path / "a.nii", tmp_path / "a.nii", {1: 0}, ["rest"])


def test_fractions_leave_out_the_ignored():
    fractions = labels.class_fractions(np.array([0, 0, 1, 2, 255, 255]), 4)
    np.testing.assert_allclose(fractions, [0.5, 0.25, 0.25, 0.0])


def test_fractions_are_nan_when_nothing_may_be_judged():
    assert np.isnan(labels.class_fractions(np.full((2, 2), 255), 3)).all()
    assert np.isnan(labels.class_fractions(np.zeros((0,), int), 3)).all()


def test_a_class_beyond_the_table_has_no_fraction():
    with pytest.raises(InputError, match=r"num_classes=3.*\[3\]"):
        labels.class_fractions(np.array([0, 3]), 3)


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
@pytest.mark.parametrize(("name", "air", "bone"), [("colin27", (0, 6), (2,)), ("brainweb", (0,), (7,))])
def test_head_models_become_attenuation_maps_with_plausible_shares(name, air, bone):
    table, _ = io.read_labels(os.path.join(os.environ["MRSEG_DATA"], name, "labels.nii.gz"))
    mapping = {int(old): 0 if old in air else 2 if old in bone else 1 for old in np.unique(table)}
    shares = labels.class_fractions(labels.merge_labels(table, mapping), 3)
    # A head fills about half of its bounding box; bone is a tenth to a quarter of a head.
    assert 0.3 < shares[0] < 0.7
    assert 0.05 < shares[2] / (shares[1] + shares[2]) < 0.3
