from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from mrseg._checks import InputError
from mrseg.data.labels import OKABE_ITO
from mrseg.panels import Frame, grey_window
from mrseg.pictures import (
    View,
    class_colours,
    comparison,
    overlay,
    registration_check,
    save_png,
    slices_through,
    thumbnail,
    to_png,
)

NAMES = ("air", "soft", "bone")
SPACING_MM = (1.0, 2.0, 4.0)


def head(shape=(40, 26, 12)):
    """A ball of soft tissue in a shell of bone, brighter towards the patient's right (x grows)."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.where(radius < 0.8, 1, np.where(radius < 1.0, 2, 0)).astype(np.uint8)
    image = np.where(labels == 1, 100.0 + 50.0 * grid[0], 5.0).astype(np.float32)
    return image, labels


def texts(figure):
    shown = [t.get_text() for t in figure.texts]
    shown += [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    return shown + [t.get_text() for axes in figure.axes for t in axes.texts]


def box_mm(figure, axes):
    """Width over height of an axes box on paper."""
    width, height = figure.get_size_inches()
    box = axes.get_position()
    return box.width * width / (box.height * height)


def test_planes_have_the_proportions_of_the_head_in_millimetres():
    image, labels = head()
    view = View(side="neurological")
    figure = overlay(image, labels, class_names=NAMES, spacing_mm=SPACING_MM, view=view)
    axial, coronal, sagittal = figure.axes
    frame = Frame(image, labels, labels > 0, SPACING_MM, view)
    x, y, z = ((s.stop - s.start) * mm for s, mm in zip(frame.box, SPACING_MM, strict=True))
    assert box_mm(figure, axial) == pytest.approx(x / y)
    assert box_mm(figure, coronal) == pytest.approx(x / z)
    assert box_mm(figure, sagittal) == pytest.approx(y / z)


@pytest.mark.parametrize(
    ("side", "brighter", "marks"), [("radiological", "left", "RL"), ("neurological", "right", "LR")]
)
def test_the_side_that_is_marked_is_the_side_that_is_drawn(side, brighter, marks):
    image, labels = head()
    figure = overlay(image, labels, class_names=NAMES, spacing_mm=SPACING_MM, view=View(side=side))
    axial = figure.axes[0]
    grey = np.asarray(axial.images[0].get_array())[..., 0]
    halves = np.array_split(grey, 2, axis=1)
    # The patient's right is the bright side.
    assert (halves[0].mean() > halves[1].mean()) == (brighter == "left")
    left, right = (text for text in axial.texts if text.get_text() in "LR")
    assert left.get_text() + right.get_text() == marks
    assert left.get_position()[0] < right.get_position()[0]
    assert any(text.startswith(side) for text in texts(figure))


def test_superior_and_anterior_are_up_and_the_nose_is_where_it_is_marked():
    image = np.zeros((4, 5, 6), np.float32)
    image[2, 4, 5] = 1.0  # anterior and superior
    labels = np.ones(image.shape, np.uint8)
    frame = Frame(image, labels, labels > 0, (1, 1, 1), View(slices=(2, 4, 5)))
    assert frame.cut(image, 2)[0].max() == 1.0  # axial: row 0 is anterior
    assert frame.cut(image, 1)[0].max() == 1.0  # coronal: row 0 is superior
    assert frame.cut(image, 0)[0, 0] == 1.0 and frame.marks(0) == ("A", "P")  # sagittal: nose on the left


def test_slices_halve_the_structure():
    structure = np.zeros((10, 6, 8), bool)
    structure[2, 1, 3] = True
    structure[7, 1:5, 3] = True  # x: 1 voxel at 2, 4 at 7; y: 2 voxels at 1, then 1 each at 2, 3, 4
    assert slices_through(structure) == (7, 2, 3)  # the third of the five voxels


def test_an_empty_structure_is_cut_in_the_middle():
    assert slices_through(np.zeros((10, 6, 8), bool)) == (5, 3, 4)


@settings(max_examples=25, deadline=None)
@given(npst.arrays(bool, npst.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.booleans()))
def test_slices_are_never_empty_if_there_is_a_structure(structure):
    for axis, index in enumerate(slices_through(structure)):
        assert not structure.any() or np.take(structure, index, axis).any()


def test_a_focus_that_is_nowhere_gives_way_to_the_other_classes():
    image, labels = head()
    labels = np.where(labels == 2, 0, labels).astype(np.uint8)
    labels[:20] = 0
    figure = overlay(image, labels, class_names=NAMES, spacing_mm=SPACING_MM, view=View(focus="bone"))
    assert len(figure.axes) == 3


def test_legend_names_the_classes_that_are_drawn():
    image, labels = head()
    figure = overlay(image, labels, class_names=("air", "$a_b$", "bone"), spacing_mm=SPACING_MM, title="$x")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["$a_b$", "bone"]
    to_png(figure, dpi=40)  # a lone dollar sign is text, not mathematics


def test_unjudged_voxels_are_neither_drawn_nor_different():
    image, truth = head()
    prediction = np.where(truth == 2, 1, truth).astype(np.uint8)  # all bone missed
    truth = truth.copy()
    truth[:, :, :6] = 255
    for focus, expected in (("bone", "bone missed"), (None, "differs")):
        view = View(focus=focus, slices=(20, 13, 3))  # the axial slice lies where nobody may judge
        figure = comparison(image, truth, prediction, class_names=NAMES, spacing_mm=SPACING_MM, view=view)
        axial, coronal = figure.axes[3], figure.axes[7]
        assert np.asarray(axial.images[1].get_array())[..., 3].max() == 0
        assert np.asarray(coronal.images[1].get_array())[..., 3].max() == 1
        assert expected in texts(figure)


def test_missed_and_added_voxels_are_told_apart():
    image, truth = head()
    prediction = truth.copy()
    truth[20, 13, 6], prediction[20, 13, 6] = 2, 1  # missed
    truth[21, 13, 6], prediction[21, 13, 6] = 1, 2  # added
    truth[22, 13, 6], prediction[22, 13, 6] = 1, 0  # wrong, but not about bone
    view = View(focus="bone", slices=(20, 13, 6))
    figure = comparison(image, truth, prediction, class_names=NAMES, spacing_mm=SPACING_MM, view=view)
    drawn = np.asarray(figure.axes[3].images[1].get_array())
    colours = {tuple(np.round(c[:3] * 255).astype(int)) for c in drawn[drawn[..., 3] > 0]}
    expected = [OKABE_ITO["vermillion"], OKABE_ITO["green"]]
    assert colours == {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in expected}
    assert np.count_nonzero(drawn[..., 3]) == 2


@pytest.mark.parametrize("style", ["fill", "contour", "both"])
@pytest.mark.parametrize("names", [NAMES, ("background", "csf", "gm", "wm")])
def test_every_style_makes_a_picture(style, names):
    image, labels = head()
    view = View(style=style)
    figure = comparison(image, labels, labels, class_names=names, spacing_mm=SPACING_MM, view=view)
    picture = Image.open(io.BytesIO(to_png(figure, dpi=40)))
    assert picture.size[0] == 440  # 11 inches
    assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_a_constant_or_empty_image_is_drawn_all_the_same(value):
    image = np.full((6, 7, 1), value, np.float32)
    labels = np.zeros(image.shape, np.uint8)
    to_png(overlay(image, labels, class_names=NAMES, spacing_mm=(1, 1, 1), view=View(style="both")), dpi=40)


def test_grey_window_forgives_a_few_hot_voxels():
    image = np.zeros(10_000)
    image[:5000] = np.linspace(50, 100, 5000)
    image[0] = 1e9
    low, high = grey_window(image)
    assert low == 0 and 99 < high <= 100


def test_registration_check_has_a_row_per_ct_and_a_checkerboard():
    image, labels = head()
    ct = np.where(labels == 2, 1000.0, 0.0)
    ct[:, :, :2] = np.nan  # outside the CT's field of view
    figure = registration_check(image, {"before": np.roll(ct, 4, 0), "after": ct}, spacing_mm=SPACING_MM)
    assert len(figure.axes) == 9
    assert {"before", "after", "after: tiles of MR (grey) and CT (tinted)"} <= set(texts(figure))
    to_png(figure, dpi=40)


def test_checkerboard_tiles_are_cubes_that_agree_between_planes():
    image, labels = head((60, 40, 30))
    frame = Frame(image, labels, labels > 0, (1.0, 2.0, 4.0), View(slices=(30, 20, 15)))
    axial, coronal = frame.tiles(2), frame.tiles(1)
    row = axial.shape[0] - 1 - (20 - frame.box[1].start)
    height = coronal.shape[0] - 1 - (15 - frame.box[2].start)
    np.testing.assert_array_equal(axial[row], coronal[height])  # both run through y = 20, z = 15


def test_colours_are_named_then_taken_from_the_palette():
    assert class_colours(("air", "soft", "bone")) == (None, OKABE_ITO["sky"], OKABE_ITO["orange"])
    others = class_colours(("rest", "a", "b", "bone"))
    assert others[0] is None and len(set(others)) == 4 and others[3] == OKABE_ITO["orange"]
    assert class_colours(("air", "bone"), {"bone": "red"}) == (None, "red")


def test_the_same_picture_is_the_same_bytes_and_is_saved_whole(tmp_path):
    image, labels = head()
    figures = [overlay(image, labels, class_names=NAMES, spacing_mm=SPACING_MM) for _ in range(2)]
    path = save_png(figures[0], tmp_path / "new" / "a.png", dpi=40)
    assert path.read_bytes() == to_png(figures[1], dpi=40)


def test_drawing_leaves_no_figure_behind_and_needs_no_display():
    image, labels = head()
    overlay(image, labels, class_names=NAMES, spacing_mm=SPACING_MM)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


IMAGE, LABELS = head((8, 8, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: overlay(IMAGE[0], LABELS, **o), "is a volume"),
        (lambda o: overlay(IMAGE, LABELS[1:], **o), "one grid"),
        (lambda o: overlay(IMAGE, LABELS, **{**o, "spacing_mm": (1, 1)}), "three positive numbers"),
        (lambda o: overlay(IMAGE, LABELS, **{**o, "spacing_mm": (1, 1, 0)}), "three positive numbers"),
        (lambda o: overlay(IMAGE, LABELS + np.uint8(2), **o), r"class \[3, 4\]"),
        (lambda o: overlay(IMAGE, LABELS.astype(float), **o), "whole numbers"),
        (lambda o: overlay(IMAGE, LABELS, view=View(focus="bones"), **o), "Did you mean 'bone'"),
        (lambda o: overlay(IMAGE, LABELS, view=View(slices=(0, 0, 8)), **o), "inside the volume"),
        (lambda o: overlay(IMAGE, LABELS, view=View(colours={"gm": "red"}), **o), "class with a colour"),
        (lambda o: View(side="left"), "View.side"),
        (lambda o: View(style="filled"), "View.style"),
        (lambda o: registration_check(IMAGE, {}, spacing_mm=(1, 1, 1)), "at least one CT"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call({"class_names": NAMES, "spacing_mm": (1, 1, 1)})


@pytest.mark.data
def test_a_real_head_is_drawn_with_its_labels():
    if "MRSEG_DATA" not in os.environ:
        pytest.skip("MRSEG_DATA does not name a folder of real scans")
    import nibabel

    folder = Path(os.environ["MRSEG_DATA"]) / "colin27"
    image, labels = (
        np.asarray(nibabel.as_closest_canonical(nibabel.load(folder / name)).dataobj)
        for name in ("T1.nii.gz", "labels.nii.gz")
    )
    attenuation = np.array([0, 1, 2, 1, 1, 1, 0], np.uint8)[labels]
    figure = overlay(image, attenuation, class_names=NAMES, spacing_mm=(1, 1, 1), view=View(focus="bone"))
    for axes in figure.axes:  # every plane shows bone
        drawn = np.asarray(axes.images[1].get_array())
        assert (drawn[..., 0] > drawn[..., 2]).any()


def test_a_thumbnail_shows_the_planes_to_scale_with_outlines_one_pixel_wide():
    image, labels = head()
    png = thumbnail(
        image,
        labels,
        class_names=NAMES,
        spacing_mm=SPACING_MM,
        width_px=300,
        view=View(colours={"soft": None}),
    )
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    frame = Frame(image, labels, labels > 0, SPACING_MM, View())
    widths = [frame.size_mm(axis)[0] for axis in (2, 1, 0)]
    heights = [frame.size_mm(axis)[1] for axis in (2, 1, 0)]
    per_mm = (300 - 2 * 6) / sum(widths)
    assert picture.shape == (round(max(heights) * per_mm), 300, 3)
    orange = (picture == [int(OKABE_ITO["orange"][i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1)
    coloured = np.ptp(picture, axis=-1) > 0
    np.testing.assert_array_equal(coloured, orange)  # all else is grey
    # The shell of bone has an inner and an outer rim: four crossings along the middle row of a plane.
    middle = orange[orange.shape[0] // 2, : round(widths[0] * per_mm)]
    assert np.count_nonzero(np.diff(middle.astype(int)) == 1) == 4


def test_a_thumbnail_refuses_what_an_overlay_refuses():
    image, labels = head()
    with pytest.raises(InputError, match="lie on one grid"):
        thumbnail(image, labels[:-1], class_names=NAMES, spacing_mm=SPACING_MM)
    with pytest.raises(InputError, match="class .3."):
        thumbnail(image, labels + 1, class_names=NAMES, spacing_mm=SPACING_MM)
