from __future__ import annotations

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.patches import Sampling
from mrseg.passes import Inference, ask

CORNER = np.zeros((1, 3), int)


def volume(shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def first_row(batch):
    """A network that depends on direction: every voxel gets the value of its line's first voxel along x."""
    return np.broadcast_to(batch[:, :1], batch.shape).copy()


def asked(forward, image, sampling, inference, classes=1):
    return ask(forward, image, CORNER, sampling, inference, classes, 2)[0]


def test_a_mirrored_pass_sees_the_patch_mirrored_and_is_mirrored_back():
    """first_row gives the first voxel of a line, its mirrored pass the last; the mean is that of both."""
    image = volume((4, 3, 2))
    out = asked(first_row, image, Sampling((4, 3, 2)), Inference(mirror_axes=(0,)))
    wanted = np.broadcast_to((image[:1] + image[-1:]) / 2, image.shape)
    np.testing.assert_allclose(out[..., 0], wanted, atol=1e-6)


def test_every_set_of_mirror_axes_is_one_pass():
    seen = []

    def note(batch):
        seen.append(batch[0, ..., 0].copy())
        return batch

    image = volume((3, 3, 3))
    asked(note, image, Sampling((3, 3, 3)), Inference(mirror_axes=(0, 2)))
    flips = [image, image[::-1], image[:, :, ::-1], image[::-1, :, ::-1]]
    assert len(seen) == 4
    for one, other in zip(seen, flips, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_symmetric_network_answers_the_same_with_mirrors_and_without_variance():
    image = volume((4, 5, 3))
    plain = asked(lambda b: b, image, Sampling((4, 5, 3)), Inference())
    mirrored = asked(
        lambda b: b, image, Sampling((4, 5, 3)), Inference(mirror_axes=(0, 1, 2), uncertainty="mirror")
    )
    np.testing.assert_allclose(mirrored[..., :1], plain, atol=1e-6)
    np.testing.assert_allclose(mirrored[..., 1], 0, atol=1e-7)


def test_the_variance_is_that_of_the_passes_with_the_mean_over_classes():
    """Two passes with p = (1, 0) and (0.4, 0.6): variance 0.09 of either class, whose mean is 0.09."""
    answers = iter([[1.0, 0.0], [0.4, 0.6]])

    def forward(batch):
        return np.broadcast_to(np.float32(next(answers)), (*batch.shape[:-1], 2))

    inference = Inference(mirror_axes=(1,), uncertainty="mirror")
    out = asked(forward, volume((2, 2, 2)), Sampling((2, 2, 2)), inference, classes=2)
    np.testing.assert_allclose(out, np.broadcast_to([0.7, 0.3, 0.09], (2, 2, 2, 3)), atol=1e-6)


def test_a_mirror_across_slices_exchanges_the_neighbours():
    """A network that answers with the slice before gets, mirrored, the slice after."""
    image = volume((5, 4, 3))
    sampling = Sampling((5, 1, 3), neighbours=1)
    start = np.array([[0, 2, 0]])
    out = ask(lambda b: b[..., :1], image, start, sampling, Inference(mirror_axes=(1,)), 1, 2)
    np.testing.assert_allclose(out[0, :, 0, :, 0], (image[:, 1] + image[:, 3]) / 2, atol=1e-6)


def test_the_mean_of_a_channel_is_subtracted_after_mirroring():
    sampling = Sampling((2, 1, 2), neighbours=1, channel_mean=(0.1, 0.2, 0.3))
    image = np.full((2, 3, 2), 0.5, np.float32)
    seen = []

    def note(batch):
        seen.append(batch[0, 0, 0].copy())
        return batch[..., :1]

    ask(note, image, np.array([[0, 1, 0]]), sampling, Inference(mirror_axes=(1,)), 1, 1)
    for channels in seen:
        np.testing.assert_allclose(channels, [0.4, 0.3, 0.2], atol=1e-6)


def test_dropout_samples_are_so_many_passes():
    calls = []

    def forward(batch):
        calls.append(1)
        return batch

    asked(forward, volume((2, 2, 2)), Sampling((2, 2, 2)), Inference(dropout_samples=5))
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"overlap": 1.0}, r"in \[0, 1\)"),
        ({"overlap": -0.1}, r"in \[0, 1\)"),
        ({"blending": "linear"}, "gaussian, constant"),
        ({"extent": "all"}, "patch, whole"),
        ({"uncertainty": "variance"}, "entropy, mirror, dropout"),
        ({"mirror_axes": (0, 0)}, "different axes"),
        ({"mirror_axes": (3,)}, "different axes"),
        ({"dropout_samples": -1}, "0 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"batch_size": 1.5}, "whole number, 1 or more"),
        ({"dropout_samples": "3"}, "whole number, 0 or more"),
        ({"dropout_samples": True}, "whole number, 0 or more"),
        ({"seed": -1}, "whole number, 0 or more"),
        ({"overlap": "0.5"}, r"in \[0, 1\)"),
        ({"mirror_axes": 0}, "different axes"),
        ({"uncertainty": "mirror"}, "--mirror"),
        ({"uncertainty": "mirror", "mirror_axes": (0,), "dropout_samples": 3}, "Take no dropout samples"),
        ({"uncertainty": "dropout", "dropout_samples": 1}, "2 or more.*--dropout-samples 20"),
        ({"uncertainty": "dropout", "dropout_samples": 5, "mirror_axes": (0,)}, "no mirrors.*Leave the mirr"),
    ],
)
def test_impossible_settings_are_refused(bad, words):
    with pytest.raises(InputError, match=words):
        Inference(**bad)


def test_the_batch_size_does_not_decide_a_result_and_is_not_recorded():
    assert Inference(batch_size=3).as_dict() == Inference().as_dict()
    assert Inference(overlap=0.2).as_dict() != Inference().as_dict()


def test_mirror_axes_as_a_list_are_the_same_setting():
    assert Inference(mirror_axes=[0, 1]) == Inference(mirror_axes=(0, 1))
    assert hash(Inference(mirror_axes=[0])) == hash(Inference(mirror_axes=(0,)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, 1.5])
@pytest.mark.parametrize("place", [0, 7])  # first and last of the patch; the second place is filled up
def test_one_bad_value_among_good_ones_is_found(value, place):
    def forward(batch):
        answer = np.full(batch.shape, 0.5, np.float32)
        answer.reshape(-1)[place] = value
        return answer

    with pytest.raises(InputError, match="must give"):
        asked(forward, volume((2, 2, 2)), Sampling((2, 2, 2)), Inference(batch_size=1))


@pytest.mark.parametrize("value", [-0.0, -1e-4, 1 + 1e-4, 0.0, 1.0])
def test_values_within_the_rounding_of_bfloat16_are_probabilities(value):
    def forward(batch):
        return np.full(batch.shape, value, np.float32)

    out = asked(forward, volume((2, 2, 2)), Sampling((2, 2, 2)), Inference(batch_size=1))
    np.testing.assert_array_equal(out, np.float32(value))
