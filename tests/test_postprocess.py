"""Clean-up of label maps by hand-drawn examples, and against a naive reading of the rule."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrseg._checks import InputError
from mrseg.postprocess import (
    Postprocessing,
    fill_holes,
    largest_component,
    remove_small,
    remove_stray_regions,
)

UNIT = (1.0, 1.0, 1.0)
maps = hnp.arrays(np.uint8, (5, 6, 4), elements=st.sampled_from([0, 0, 0, 1, 2, 255]))


def volume(*drawings):
    """A label map whose slices along z are drawn, rows along x: '.' is 0, '*' is 255."""
    planes = [[[{".": 0, "*": 255}.get(c) or int(c.replace(".", "0").replace("*", "255")) for c in row]
               for row in drawing.split()] for drawing in drawings]  # fmt: skip
    return np.stack([np.array(plane, np.uint8) for plane in planes], axis=-1)


def neighbours(at, mask):
    """Positions of the mask that share a face, edge or corner with ``at``."""
    steps = np.array(np.meshgrid(*[[-1, 0, 1]] * len(at))).reshape(len(at), -1).T
    for step in steps:
        there = tuple(np.add(at, step))
        if all(0 <= p < n for p, n in zip(there, mask.shape, strict=True)) and mask[there]:
            yield there


def naive_regions(mask):
    """Lists of positions, by flood fill."""
    left, regions = {tuple(p) for p in np.argwhere(mask)}, []
    for start in [tuple(p) for p in np.argwhere(mask)]:
        if start in left:
            region, stack = [], [start]
            left.discard(start)
            while stack:
                here = stack.pop()
                region.append(here)
                new = [n for n in neighbours(here, mask) if n in left]
                left.difference_update(new)
                stack += new
            regions.append(region)
    return regions


def naive_stray(labels, spacing_mm, axis, area, overlap):
    labels = labels.copy()
    planes = [labels.take(k, axis) for k in range(labels.shape[axis])]
    pixel = np.prod([s for a, s in enumerate(spacing_mm) if a != axis])
    middle = naive_regions((planes[len(planes) // 2] != 0) & (planes[len(planes) // 2] != 255))
    main = set(max(middle, key=len)) if middle else None
    for k, plane in enumerate(planes):
        for region in naive_regions((plane != 0) & (plane != 255)):
            shared = len(main & set(region)) if main else None
            if len(region) * pixel < area or (main and shared / len(region) < overlap):
                for position in region:
                    labels[tuple(np.insert(position, axis, k))] = 0
    return labels


def test_a_region_below_the_area_goes_and_one_of_exactly_the_area_stays():
    labels = volume("11111 .....", "11111 .....", "1111. .....")
    kept = remove_stray_regions(labels, UNIT, slice_axis=2)  # 5 mm^2, 5 mm^2, 4 mm^2
    assert kept[..., 0].sum() == 5 and kept[..., 1].sum() == 5 and kept[..., 2].sum() == 0


def test_the_area_is_measured_in_the_plane_of_the_slices():
    labels = volume("11111 .....", "11111 .....", "1111. .....")
    kept = remove_stray_regions(labels, (1.0, 1.25, 9.0), slice_axis=2)  # 4 * 1.25 = 5 mm^2
    np.testing.assert_array_equal(kept, labels)


def test_a_region_beside_the_middle_slices_brain_goes():
    #            4 of 5 over the brain: 0.8 stays; 3 of 5 goes
    labels = volume("11111..\n.......", "1111...\n111....", "..11111\n.......")
    kept = remove_stray_regions(labels, UNIT, slice_axis=2)
    assert kept[..., 0].sum() == 5
    assert kept[..., 2].sum() == 0


def test_a_share_of_exactly_the_limit_stays_however_it_is_rounded():
    """7 of 10 at 0.7, whatever the size: in floating point 0.7 * 90 is not 63."""
    for seven in (7, 21, 63):
        labels = np.zeros((seven * 10 // 7, 1, 2), np.uint8)
        labels[:, 0, 0] = 1
        labels[:seven, 0, 1] = 1  # the middle of two slices is the second
        kept = remove_stray_regions(labels, UNIT, slice_axis=2, min_overlap=0.7)
        np.testing.assert_array_equal(kept, labels)


def test_all_classes_of_a_region_count_together_and_touch_at_corners():
    labels = volume("12.. ..1. ...2 ...2")
    np.testing.assert_array_equal(remove_stray_regions(labels, UNIT, slice_axis=2), labels)


def test_the_brain_is_the_largest_region_of_the_middle_slice():
    labels = volume("111111...2 ........22 ........22")
    kept = remove_stray_regions(labels, UNIT, slice_axis=2, min_area_mm2=1)
    assert (kept == 1).sum() == 6 and not (kept == 2).any()  # the region of 5 lies beside that of 6


def test_an_empty_middle_slice_leaves_the_area_rule_alone():
    labels = volume("11111 .....", "..... .....", ".1... .....")
    kept = remove_stray_regions(labels, UNIT, slice_axis=2)
    assert kept[..., 0].sum() == 5 and kept[..., 2].sum() == 0


@given(maps, st.integers(0, 2), st.sampled_from([0.0, 2.0, 3.5]), st.sampled_from([0.0, 0.5, 0.7, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_stray_regions_agree_with_a_flood_fill(labels, axis, area, overlap):
    spacing = (1.0, 0.75, 2.0)
    result = remove_stray_regions(labels, spacing, slice_axis=axis, min_area_mm2=area, min_overlap=overlap)
    np.testing.assert_array_equal(result, naive_stray(labels, spacing, axis, area, overlap))


def test_the_largest_component_of_a_class_stays_and_the_rest_becomes_its_surroundings():
    labels = volume("22111 22111 11111 11121 11111")
    kept = largest_component(labels, (2,))
    assert kept[3, 3, 0] == 1 and (kept == 2).sum() == 4
    assert largest_component(labels, (2,), replacement="background")[3, 3, 0] == 0


def test_without_classes_the_foreground_counts_as_one():
    labels = volume("12... ..... ...11")
    kept = largest_component(labels)
    assert kept[0, 0, 0] == 1 and kept[0, 1, 0] == 2 and kept[2].sum() == 0


def test_components_that_touch_at_a_corner_are_one():
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    np.testing.assert_array_equal(largest_component(labels, (1,)), labels)


def test_a_removed_piece_takes_the_commonest_class_and_the_lower_of_equals():
    labels = volume("...... ..11.. .1312. ..22.. ......")
    # Faces around the 3: three of class 1, one of class 2, and the border above and below.
    assert remove_small(labels, UNIT, {3: 2})[2, 2, 0] == 1
    tie = volume("132")
    assert remove_small(tie, UNIT, {3: 2})[0, 1, 0] == 1


def test_unjudged_voxels_have_no_say_and_a_piece_among_them_becomes_background():
    labels = volume("*1* *2* ***")
    assert remove_small(labels, UNIT, {1: 2})[0, 1, 0] == 2
    assert remove_small(labels, UNIT, {1: 2, 2: 2})[0, 1, 0] == 0
    alone = np.full((3, 3, 3), 255, np.uint8)
    alone[1, 1, 1] = 2
    assert remove_small(alone, UNIT, {2: 5})[1, 1, 1] == 0


def test_small_is_measured_in_mm3_and_equal_stays():
    labels = volume("1.22. .....")
    kept = remove_small(labels, (1.0, 1.0, 3.0), 6.0)
    assert kept[0, 0, 0] == 0 and (kept == 2).sum() == 2


def test_a_small_hole_is_background_that_is_removed():
    labels = volume("11111 11.11 11111", "11111 11111 11111")
    assert remove_small(labels, UNIT, {0: 2})[1, 2, 0] == 1


def test_holes_of_the_volume_and_holes_of_slices():
    labels = np.ones((5, 5, 3), np.uint8)
    labels[2, 2, 1] = 0  # a cavity
    labels[1, 1, :] = 0  # a channel through all slices
    filled = fill_holes(labels, (1,))
    assert filled[2, 2, 1] == 1 and not filled[1, 1].any()
    assert fill_holes(labels, (1,), slice_axis=2).all()
    labels[3, :, 1] = 0  # in plane this reaches the border
    assert not fill_holes(labels, (1,), slice_axis=2)[3, :, 1].any()


def test_a_hole_opens_over_faces_not_over_corners():
    labels = volume(".1... 1.1.. .1...")
    assert fill_holes(labels, (1,), slice_axis=2)[1, 1, 0] == 1


def test_only_background_is_filled_unless_told():
    labels = volume("22222 2.1*2 22222")
    np.testing.assert_array_equal(fill_holes(labels, (2,), slice_axis=2), volume("22222 221*2 22222"))
    told = fill_holes(labels, (2,), fillable=(0, 1), slice_axis=2)
    np.testing.assert_array_equal(told, volume("22222 222*2 22222"))


EVERYTHING = Postprocessing(
    stray_regions=True, slice_axis=1, largest_foreground=True, largest_component=(1,),
    min_volume_mm3=(2.0, 0.0, 3.0), fill_holes=(2,),
)  # fmt: skip


@given(maps)
@settings(max_examples=40, deadline=None)
def test_the_input_stays_and_so_does_255(labels):
    before = labels.copy()
    after = EVERYTHING(labels, (1.0, 1.5, 2.0))
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(after == 255, labels == 255)
    assert after.dtype == np.uint8 and set(np.unique(after)) <= {0, *np.unique(labels).tolist()}


@given(maps)
@settings(max_examples=20, deadline=None)
def test_by_default_nothing_changes(labels):
    result = Postprocessing()(labels, UNIT)
    np.testing.assert_array_equal(result, labels)
    assert not np.shares_memory(result, labels)


@given(maps)
@settings(max_examples=30, deadline=None)
def test_keeping_the_largest_twice_is_keeping_it_once(labels):
    once = largest_component(labels, (1, 2), replacement="background")
    np.testing.assert_array_equal(largest_component(once, (1, 2), replacement="background"), once)


def test_the_steps_run_in_the_order_of_the_fields():
    labels = volume("11111.2 ....... .......")
    steps = Postprocessing(largest_foreground=True, min_volume_mm3=(0, 6.0), replacement="background")
    assert not steps(labels, UNIT).any()  # the larger of two regions is kept, and is then too small


def test_the_settings_survive_json():
    read = Postprocessing(**json.loads(json.dumps(asdict(EVERYTHING))))
    assert read == EVERYTHING and hash(read) == hash(EVERYTHING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Postprocessing(min_overlap=1.5), "min_overlap from 0 to 1"),
        (lambda: Postprocessing(largest_component=(255,)), "0 to 254"),
        (lambda: Postprocessing(fill_holes=(True,)), "0 to 254"),
        (lambda: Postprocessing(min_volume_mm3=(-1.0,)), "from 0"),
        (lambda: Postprocessing(replacement="neighbors"), "Did you mean 'neighbours'"),
        (lambda: Postprocessing()(np.zeros((2, 2, 2)), UNIT), "whole numbers"),
        (lambda: Postprocessing()(np.zeros((2, 2), np.uint8), UNIT), "shape"),
        (lambda: Postprocessing()(np.zeros((2, 2, 2), np.uint8), (1, 0, 1)), "positive"),
        (lambda: Postprocessing()(np.full((2, 2, 2), 300), UNIT), "0 and 255"),
        (lambda: remove_stray_regions(np.zeros((2, 2, 2), np.uint8), UNIT, slice_axis=3), "0, 1, 2"),
        (lambda: largest_component(np.zeros((2, 2, 2), np.uint8), (-1,)), "0 to 254"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"largest_component": 1}, "largest_component is a sequence of numbers"),
        ({"fill_holes": "1"}, "fill_holes is a sequence of numbers"),
        ({"min_volume_mm3": ("a",)}, "finite volume"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused(settings_, words):
    with pytest.raises(InputError, match=words):
        Postprocessing(**settings_)
