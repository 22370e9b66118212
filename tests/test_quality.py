from __future__ import annotations

import math
import re

import numpy as np
import pytest
from PIL import Image

from mrseg.quality import LIMITS, scan_figures, warnings_of, write_quality

GOOD = {
    "subject": "s1", "sequence": "T1w",
    "shape": "64x64x48", "spacing_mm": "1x1x3", "orientation": "RAS", "oblique_deg": 2.0,
    "intensity_min": 0.0, "intensity_low": 0.0, "intensity_high": 100.0, "intensity_max": 150.0,
    "levels": 151,
    **{f"cut_{face}": 0.0 for face in ("left", "right", "back", "front", "top")},
    "mutual_information_before": 0.4, "mutual_information_after": 0.9, "overlap": 0.99,
    "jacobian_min": 0.8, "jacobian_max": 1.3,
    "fraction_air": 0.5, "fraction_soft": 0.4, "fraction_bone": 0.1, "ignored": 0.0,
}  # fmt: skip


def ball(shape=(30, 32, 34), centre=(15, 16, 17), radius=10.0):
    """A bright ball whose grey values run from 50 to 149, on black."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    inside = ((index - centre) ** 2).sum(axis=-1) < radius**2
    return np.where(inside, 50 + index.sum(axis=-1), 0).astype(np.float32)


def turned(degrees):
    angle = math.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return affine


def test_figures_of_a_ball_in_the_middle():
    array = ball()
    found = scan_figures((array, np.diag([-2.0, 1, 3, 1])))
    assert (found["shape"], found["spacing_mm"], found["orientation"]) == ("30x32x34", "2x1x3", "LAS")
    assert found["oblique_deg"] == 0 and found["intensity_min"] == 0
    assert found["intensity_max"] == array.max() and found["levels"] == len(set(array.ravel().tolist()))
    assert all(found[f"cut_{face}"] == 0 for face in ("left", "right", "back", "front", "top"))


@pytest.mark.parametrize(
    ("cut", "face"),
    [
        ((slice(9, None),), "left"),  # canonical: x grows to the right
        ((slice(None, 22),), "right"),
        ((slice(None), slice(10, None)), "back"),
        ((slice(None), slice(None, 23)), "front"),
        ((slice(None), slice(None), slice(None, 24)), "top"),
    ],
)
def test_the_face_that_cuts_the_head_is_named_whatever_the_orientation(cut, face):
    array = ball()[cut]
    flip = np.diag([-1.0, -1, 1, 1])
    for volume in ((array, np.eye(4)), (array[::-1, ::-1].transpose(1, 0, 2), flip[:, [1, 0, 2, 3]])):
        found = scan_figures(volume)
        cuts = {name for name in ("left", "right", "back", "front", "top") if found[f"cut_{name}"] > 0}
        assert cuts == {face}
    # A section r from the middle of a ball of radius 10 has the area 1 - (r/10)^2 of the largest: 0.64 at 6.
    assert found[f"cut_{face}"] == pytest.approx(0.64, abs=0.05)


def test_below_is_not_asked_since_the_neck_is_always_cut():
    assert not any(key.startswith("cut_b") and key != "cut_back" for key in scan_figures((ball(), np.eye(4))))


@pytest.mark.parametrize("degrees", [0, 20, 44, 70, 90])
def test_the_turn_is_that_to_the_nearest_axis(degrees):
    found = scan_figures((ball(), turned(degrees)))
    assert found["oblique_deg"] == pytest.approx(min(degrees, 90 - degrees), abs=1e-5)


def test_nothing_is_said_against_a_good_scan():
    assert warnings_of(GOOD) == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"overlap": 0.7}, "70% of the MR's field of view"),
        ({"mutual_information_after": 0.39}, "Mutual information fell, from 0.400 to 0.390"),
        ({"jacobian_min": 0.2}, "Volumes change up to 0.20"),
        ({"jacobian_max": 4.0}, "4.00 times"),
        ({"fraction_bone": 0.001}, "Only 0.10% of the voxels are bone"),
        ({"fraction_bone": 0.0}, "No voxel is bone"),
        ({f"fraction_{name}": math.nan for name in ("air", "soft", "bone")}, "all are 255"),
        ({f"fraction_{name}": None for name in ("air", "soft", "bone")}, "all are 255"),
        ({"cut_top": 0.3, "cut_left": 0.2}, "cuts the head: left, top"),
        ({"spacing_mm": "0.9x0.9x6"}, "6.7 times longer"),
        ({"oblique_deg": 30.0}, "30 degrees"),
        ({"intensity_min": -5.0}, "go down to -5"),
        ({"intensity_max": 1e6}, "reach 1e+06"),
        ({"levels": 4}, "4 different values"),
    ],
)
def test_each_limit_has_its_warning(changed, words):
    told = warnings_of({**GOOD, **changed})
    assert len(told) == 1 and words in told[0]


def test_a_figure_on_its_limit_is_not_warned_of():
    row = {**GOOD, "overlap": LIMITS["overlap"], "fraction_bone": LIMITS["class_fraction"]}
    row |= {"cut_top": LIMITS["cut"], "oblique_deg": LIMITS["oblique_deg"], "spacing_mm": "1x1x4"}
    assert warnings_of(row) == ()


def test_a_ct_that_was_not_registered_is_not_judged_by_its_registration():
    quality = (
        "mutual_information_before",
        "mutual_information_after",
        "overlap",
        "jacobian_min",
        "jacobian_max",
    )
    assert warnings_of({key: value for key, value in GOOD.items() if key not in quality}) == ()


def test_a_refusal_is_all_that_is_said():
    assert warnings_of({**GOOD, "levels": 2, "refused": "no head"}) == ("Refused: no head",)


def test_the_page_has_a_row_for_every_scan_with_its_picture_and_warnings(tmp_path):
    (tmp_path / "small").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "small" / "s1.png")
    rows = [
        {**GOOD, "thumbnail": "small/s1.png", "picture": "large/s1.png"},
        {**GOOD, "subject": "s2", "cut_top": 0.5},
        {"subject": "s3", "sequence": "T2w", "refused": "the CT shows <another> head"},
    ]
    text = write_quality(rows, tmp_path, {"seed": 3}).read_text(encoding="utf-8")
    assert "3 scans of 3 subjects: 2 with warnings, 1 refused." in text
    assert len(re.findall("<tr>", text)) == 2 + len(rows)  # two lines of headings
    assert text.count("data:image/png") == 1 and 'href="large/s1.png"' in text
    assert "cuts the head: top" in text and "the CT shows &lt;another&gt; head" in text
    assert "64 x 64 x 48" in text and "1 x 1 x 3" in text and "none" in text


def test_a_page_of_refused_scans_alone_is_written(tmp_path):
    page = write_quality([{"subject": "s", "sequence": "T1w", "refused": "no"}], tmp_path, {})
    assert "1 scan of 1 subject: 1 with warnings, 1 refused." in page.read_text(encoding="utf-8")


def test_the_page_of_one_good_scan_in_place_says_so(tmp_path):
    row = {k: v for k, v in GOOD.items() if not k.startswith(("mutual", "jacobian", "overlap"))}
    text = write_quality([row], tmp_path, {}).read_text(encoding="utf-8")
    assert "1 scan of 1 subject: no warnings." in text and "lay on the MR&#x27;s grid already" in text
