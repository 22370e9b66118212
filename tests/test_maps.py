from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg.data.geometry import canonical_grid, to_canonical
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.inference import Slab, predict_slabs
from mrseg.maps import collect, entropy, memory_mb, most_probable
from mrseg.passes import Inference

#: Axes permuted, two of them turned round: R+ runs along -x, A+ along z, S+ along -y.
TURNED = np.array([[-1.0, 0, 0, 20], [0, 0, 1.5, 30], [0, -2.0, 0, -10], [0, 0, 0, 1]])


def probabilities(shape, classes=3, seed=0):
    values = np.random.default_rng(seed).random((*shape, classes)).astype(np.float32)
    return values / values.sum(-1, keepdims=True)


def cut_up(values, axis, planes):
    """Slabs as `predict_slabs` yields them: views of one buffer that is overwritten."""
    for first in range(0, values.shape[axis], planes):
        buffer = np.take(values, range(first, min(first + planes, values.shape[axis])), axis)
        yield Slab(axis, first, buffer)
        buffer[...] = np.nan


@pytest.mark.parametrize(
    "steps",
    [
        Preprocessing("native"),
        Preprocessing("foreground"),
        Preprocessing("spacing", (3.0, 3.0, 3.0)),
        Preprocessing("spacing", (0.6, 0.8, 0.7)),
        Preprocessing("spacing", (1.0, 4.0, 0.5)),
        Preprocessing("plane", shape=(12, 12)),
        Preprocessing("head", shape=(16, 16, 8)),
    ],
    ids=lambda steps: f"{steps.grid}{steps.spacing_mm or ''}",
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_maps_from_slabs_are_those_of_the_whole_volume_at_once(steps, axis):
    image = np.zeros((25, 37, 21), np.float32)
    image[4:-4, 3:-5, 2:-3] = 50 + np.random.default_rng(1).random((17, 29, 16))
    working, affine = steps.image((image, TURNED))
    values = probabilities(working.shape)
    whole = steps.to_native(values, affine, image.shape, TURNED)
    maps = collect(
        cut_up(values, axis, 5), (working.shape, affine), (image.shape, TURNED), num_classes=3,
        uncertainty="entropy", probabilities=True,
    )  # fmt: skip
    np.testing.assert_allclose(maps.probabilities, whole, atol=1e-6)
    np.testing.assert_array_equal(maps.labels, maps.probabilities.argmax(-1))
    np.testing.assert_allclose(maps.uncertainty, entropy(whole), atol=1e-5)
    np.testing.assert_array_equal(maps.affine, TURNED)


def test_the_variance_comes_back_on_the_scans_grid_and_is_zero_outside_the_working_grid():
    image = np.zeros((8, 8, 8), np.float32)
    image[2:6, 2:6, 2:6] = np.random.default_rng(1).random((4, 4, 4)) + 1
    working, affine = Preprocessing("foreground", normalization="min_max").image((image, TURNED))
    values = np.concatenate([probabilities(working.shape), np.full((*working.shape, 1), 0.2, np.float32)], -1)
    maps = collect(
        cut_up(values, 0, 2),
        (working.shape, affine),
        (image.shape, TURNED),
        num_classes=3,
        uncertainty="mirror",
    )
    np.testing.assert_allclose(maps.uncertainty, np.where(image > 0, 0.2, 0), atol=1e-6)
    assert maps.probabilities is None and not maps.labels[image == 0].any()


def test_probabilities_in_a_scratch_file_are_the_same_and_leave_no_file(tmp_path):
    values = probabilities((6, 5, 4))
    grid = ((6, 5, 4), np.eye(4))
    maps = collect(cut_up(values, 0, 2), grid, grid, num_classes=3, probabilities=True, scratch=tmp_path)
    assert isinstance(maps.probabilities, np.memmap) and not list(tmp_path.iterdir())
    np.testing.assert_array_equal(maps.probabilities, values)


def test_entropy_by_hand():
    """Certain: 0. Equal: 1. (1/2, 1/2, 0): log 2 / log 3. Sigmoids (0.2, 0.2, 0) are (1/2, 1/2, 0)."""
    rows = np.float32([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.2, 0.2, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        entropy(rows), [0, 1, np.log(2) / np.log(3), np.log(2) / np.log(3), 1], atol=1e-6
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 99))
def test_entropy_lies_in_0_1_and_does_not_depend_on_the_order_of_classes(classes, seed):
    values = probabilities((4, 3), classes, seed)
    assert (entropy(values) >= 0).all() and (entropy(values) <= 1).all()
    np.testing.assert_allclose(entropy(values), entropy(values[..., ::-1]), atol=1e-6)


def test_among_equals_the_lower_class_wins():
    np.testing.assert_array_equal(most_probable(np.float32([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])), [0, 1])


@settings(deadline=None, max_examples=30)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
def test_the_canonical_grid_is_that_of_the_turned_volume(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, 2.0, 3.0])[order] * signs
    affine[:3, 3] = 5, 6, 7
    array, turned = to_canonical((np.zeros((4, 5, 6)), affine))
    shape, own = canonical_grid(((4, 5, 6), affine))
    assert shape == array.shape
    np.testing.assert_allclose(own, turned)


@pytest.mark.parametrize(
    ("steps", "inference", "kept"),
    [
        (Preprocessing("native", normalization="min_max"), Inference(uncertainty="entropy"), False),
        (Preprocessing("native", normalization="min_max"), Inference(), True),
        (Preprocessing("spacing", (1.0, 1.0, 1.0), normalization="min_max"), Inference(), False),
        (
            Preprocessing("spacing", (2.0, 2.0, 2.0), normalization="min_max"),
            Inference(uncertainty="mirror", mirror_axes=(0,)),
            False,
        ),
        (Preprocessing("native"), Inference(), False),
    ],
)
def test_a_prediction_takes_no_more_memory_than_stated_and_not_much_less(steps, inference, kept):
    image = np.random.default_rng(0).random((96, 64, 80)).astype(np.float32)
    native, sampling = (image.shape, TURNED), Sampling((32, 32, 16))

    def three(batch):
        batch = np.clip(batch, 0, 1)
        return np.concatenate([batch, 1 - batch, np.zeros_like(batch)], -1)

    working, affine = steps.image((image, TURNED))
    tracemalloc.start()
    slabs = predict_slabs(three, working, sampling, num_classes=3, inference=inference)
    maps = collect(
        slabs, (working.shape, affine), native, num_classes=3, uncertainty=inference.uncertainty,
        probabilities=kept,
    )  # fmt: skip
    peak = (tracemalloc.get_traced_memory()[1] + image.nbytes + working.nbytes) / 1e6
    tracemalloc.stop()
    assert maps.labels.shape == image.shape
    stated = memory_mb(
        working.shape, native, sampling, 3, inference=inference, probabilities=kept,
        resampled=steps.grid != "native",
    )  # fmt: skip
    assert stated / 3 < peak < stated


def test_one_class_alone_is_certain():
    np.testing.assert_array_equal(entropy(np.full((2, 3, 1), 0.4, np.float32)), np.zeros((2, 3)))
