from __future__ import annotations

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.baselines import low_intensity_mask
from mrseg.metrics import dice


# What the notes on the paper tried reached .998 and .951; our head is found more reliably.
@pytest.mark.parametrize(("noise", "least"), [(0.04, 0.99), (0.08, 0.99), (0.12, 0.93)])
def test_the_brain_of_a_simple_head_is_found(simple_head, noise, least):
    for seed in range(8):
        image, brain = simple_head(seed, noise)
        assert dice(brain, low_intensity_mask(image)) > least


def test_the_result_stays_inside_the_ellipse(simple_head):
    """The limit that the paper names: a lesion at the border is lost."""
    image, brain = simple_head(0, 0.04)
    small, whole = low_intensity_mask(image, ellipse=0.5), low_intensity_mask(image)
    assert small.sum() < 0.5 * brain.sum() and not (small & ~whole).any()


def test_both_thresholds_find_a_brain_without_dark_parts(simple_head):
    image, brain = simple_head(1, 0.02)
    # Otsu inside the ellipse separates skull from brain, or brain from ventricles: a choice, so only sane.
    assert dice(brain, low_intensity_mask(image, threshold="otsu")) > 0.5


def test_thin_bridges_are_cut(simple_head):
    image, brain = simple_head(2, 0.0)
    image[64, :64] = 0.8  # one pixel wide, from the brain to the scalp and beyond
    cut = low_intensity_mask(image)
    assert dice(brain, cut) > 0.98


def test_a_slice_without_a_head_is_empty():
    image = np.zeros((64, 64))
    image[:5, :5] = 1
    assert not low_intensity_mask(image).any()
    assert not low_intensity_mask(np.zeros((64, 64))).any()


@pytest.mark.parametrize(
    "options", [{"ellipse": 0}, {"ellipse": 1.1}, {"fraction": 1}, {"iterations": -1}, {"threshold": "mean"}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        low_intensity_mask(np.zeros((8, 8)), **options)
