from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest

from mrseg._checks import InputError
from mrseg.data.augmentation import Augmentation
from mrseg.data.cases import Case
from mrseg.data.examples import load_examples
from mrseg.data.io import write_labels, write_volume
from mrseg.data.patches import Sampling
from mrseg.data.pipeline import Share, build_dataset, grid_order
from mrseg.data.preprocessing import Preprocessing
from mrseg.models.builders import BUILDERS


def examples(count=2, shape=(8, 6, 4)):
    """Images whose voxels tell their own position, so that a patch tells where it was cut."""
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return [(voxels + 1000 * n, ((voxels + n) % 3).astype(np.uint8)) for n in range(count)]


def epoch(dataset):
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def test_patches_are_cut_from_image_and_labels_at_the_same_place():
    images, labels = epoch(build_dataset(examples(), Sampling((4, 6, 4)), batch_size=3, shuffle=False))
    assert images.shape == (6, 4, 6, 4, 1) and labels.shape == (6, 4, 6, 4)
    subject = (images[..., 0] // 1000).astype(int)
    np.testing.assert_array_equal(labels, (images[..., 0] - 1000 * subject + subject) % 3)
    np.testing.assert_array_equal(images[:3, 0, 0, 0, 0], [0, 48, 96])  # x = 0, 2, 4 of 6*4 voxels each


def test_slices_lose_their_slice_axis():
    images, labels = epoch(build_dataset(examples(1), Sampling((8, 1, 4), 0.0), batch_size=2, shuffle=False))
    assert images.shape == (6, 8, 4, 1) and labels.shape == (6, 8, 4)
    np.testing.assert_array_equal(images[2, ..., 0], examples(1)[0][0][:, 2, :])


def test_an_epoch_without_shuffling_holds_every_patch_once_even_in_a_smaller_last_batch():
    dataset = build_dataset(examples(), Sampling((4, 6, 4)), batch_size=4, shuffle=False)
    assert [len(b[0]) for b in dataset.as_numpy_iterator()] == [4, 2]
    assert int(dataset.cardinality()) == 2


def test_the_same_seed_repeats_and_every_epoch_differs():
    def twice(seed):
        dataset = build_dataset(examples(), Sampling((2, 2, 2), 0.5, 16), batch_size=8, seed=seed)
        return epoch(dataset)[0], epoch(dataset)[0]

    first, second = twice(1)
    np.testing.assert_array_equal(first, twice(1)[0])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, twice(2)[0])


def batches(sampling, **options):
    dataset = build_dataset(examples(3), sampling, batch_size=4, **options)
    made = list(dataset.as_numpy_iterator())
    assert int(dataset.cardinality()) == len(made)
    return made


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_all_processes_make_up_the_batches_of_one(processes):
    sampling = Sampling((2, 2, 2), 0.5, 7)
    whole = batches(sampling, seed=3)
    shares = [batches(sampling, seed=3, share=Share(p, processes, 4)) for p in range(processes)]
    assert len(whole) == 5 and {len(share) for share in shares} == {5}
    for number, together in enumerate(whole):
        for part, expected in enumerate(together):  # images, labels
            joined = np.concatenate([share[number][part] for share in shares])
            np.testing.assert_array_equal(joined, expected)


def test_validation_leaves_out_the_patches_that_devices_cannot_share():
    nine = {"sampling": Sampling((4, 6, 4)), "shuffle": False}
    whole, shares = batches(**nine), [batches(**nine, share=Share(p, 2, 2)) for p in range(2)]
    assert [len(b[0]) for b in whole] == [4, 4, 1]
    assert [[len(b[0]) for b in share] for share in shares] == [[2, 2], [2, 2]]
    np.testing.assert_array_equal(shares[1][0][0], whole[0][0][2:])


def test_a_look_ahead_is_a_look_at_the_first_epoch_and_moves_nothing():
    sampling = Sampling((2, 2, 2), 0.5, 7)
    dataset = build_dataset(examples(3), sampling, batch_size=4, share=Share(looks_ahead=True))
    next(iter(dataset))
    seen = [list(dataset.as_numpy_iterator()) for _ in range(2)]
    plain = build_dataset(examples(3), sampling, batch_size=4)
    for ours, expected in zip(seen, [list(plain.as_numpy_iterator()) for _ in range(2)], strict=True):
        for (image, _), (same, _) in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(image, same)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(InputError, match="evenly among 3 devices.*batch_size 4.*multiple of 3"):
        batches(Sampling((4, 6, 4)), share=Share(devices=3))
    with pytest.raises(InputError, match="at least one batch of 16.*9 patches"):
        build_dataset(examples(3), Sampling((4, 6, 4)), batch_size=16, shuffle=False, share=Share(devices=16))


def test_the_order_of_the_grid_tells_where_each_patch_of_a_shuffled_epoch_stands():
    sampling = Sampling((4, 6, 4))
    fixed, _ = epoch(build_dataset(examples(), sampling, batch_size=2, shuffle=False))
    shuffled = build_dataset(examples(), sampling, batch_size=2, seed=5)
    order = grid_order(examples(), sampling, seed=5)
    for number in range(3):
        np.testing.assert_array_equal(epoch(shuffled)[0], fixed[order(number)])
    assert not np.array_equal(order(0), order(1))
    with pytest.raises(InputError, match="patches_per_volume 4"):
        grid_order(examples(), Sampling((4, 6, 4), 0.5, 4))


def test_a_resumed_run_sees_the_batches_of_an_unbroken_one():
    options = {
        "batch_size": 4,
        "augmentation": Augmentation(flip_axes=(0, 1), intensity_scale=0.1),
        "seed": 3,
    }
    unbroken = build_dataset(examples(), Sampling((4, 4, 4), 0.5, 8), **options)
    epochs = [epoch(unbroken) for _ in range(3)]
    resumed = build_dataset(examples(), Sampling((4, 4, 4), 0.5, 8), first_epoch=2, **options)
    for one, other in zip(epochs[2], epoch(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_batches_have_one_shape_and_its_cardinality_is_known():
    dataset = build_dataset(examples(), Sampling((4, 6, 4)), batch_size=4)
    assert [len(b[0]) for b in dataset.as_numpy_iterator()] == [4]
    assert int(dataset.cardinality()) == 1
    assert dataset.element_spec[0].shape == (4, 4, 6, 4, 1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([], Sampling((4, 4, 4))), "at least one example"),
        ((examples(), Sampling((9, 6, 4))), "must fit"),
        ((examples(1), Sampling((8, 6, 4))), "at least one batch"),
    ],
)
def test_what_cannot_make_a_batch_is_refused(arguments, word):
    with pytest.raises(InputError, match=word):
        build_dataset(*arguments)


def test_a_slice_has_no_third_axis_to_mirror():
    with pytest.raises(InputError, match="A slice has 0 and 1"):
        build_dataset(examples(), Sampling((8, 1, 4)), augmentation=Augmentation(flip_axes=(2,)))


def test_a_dataset_that_is_gone_keeps_no_scan_in_memory():
    some = examples()
    kept = weakref.ref(some[0][0])
    dataset = build_dataset(some, Sampling((4, 6, 4)), batch_size=2)
    few = dataset.take(1).prefetch(1)
    del dataset
    assert len(list(few)) == len(list(few)) == 1  # what is made of it holds on to the scans
    iterator = iter(few)
    del few, some
    next(iterator)
    assert kept() is not None
    del iterator
    gc.collect()
    assert kept() is None


def rate(dataset, epochs=2) -> float:
    """Patches per second, after a first epoch."""
    for _ in dataset:
        pass
    count, started = 0, time.perf_counter()
    for _ in range(epochs):
        count += sum(len(images) for images, _ in dataset)
    return count / (time.perf_counter() - started)


@pytest.mark.slow
@pytest.mark.parametrize("patch_shape", [(128, 128, 48), (64, 64, 32), (128, 128, 1)], ids=str)
def test_the_cache_gives_patches_faster_than_a_small_network_takes_them(tmp_path, patch_shape):
    cases = cases_of_noise(tmp_path)
    sampling = Sampling(patch_shape, patches_per_volume=16)
    how = Preprocessing(normalization="min_max")
    sets = {
        name: build_dataset(load_examples(cases, "T1w", how, 3, cache=cache), sampling, batch_size=2)
        for name, cache in (("memory", None), ("cache", tmp_path / "cache"))
    }
    rounds = [{name: rate(dataset) for name, dataset in sets.items()} for _ in range(3)]
    rates = {name: float(np.median([found[name] for found in rounds])) for name in sets}
    model = BUILDERS["unet"](sampling.input_shape, 3, filters=4, head="softmax")
    model.compile("sgd", "sparse_categorical_crossentropy")
    few = sets["cache"].take(6)
    model.fit(few, shuffle=False, verbose=0)  # compiled here
    started = time.perf_counter()
    model.fit(few, shuffle=False, verbose=0)
    rates["network"] = 12 / (time.perf_counter() - started)
    print(patch_shape, ", ".join(f"{name} {value:.0f}/s" for name, value in rates.items()))
    assert rates["cache"] > 2 * rates["network"]


def cases_of_noise(folder):
    """12 cases of 128x128x96 voxels of noise."""
    cases = []
    for number in range(12):
        rng = np.random.default_rng(number)
        files = folder / f"{number}.nii", folder / f"{number}_dseg.nii"
        write_volume(files[0], rng.random((128, 128, 96), np.float32), np.eye(4))
        write_labels(files[1], rng.integers(0, 3, (128, 128, 96), np.uint8), np.eye(4), "abc", {})
        cases.append(Case(f"s{number}", {"T1w": files[0]}, None, {"T1w": files[1]}))
    return cases


def rare(count=2):
    """Volumes with a single voxel of class 2, at a place that differs."""
    made = examples(count, (16, 16, 16))
    for number, (_, labels) in enumerate(made):
        labels[:] = 0
        labels[3 + number, 12, 5] = 2
    return made


def test_of_the_random_patches_the_asked_share_holds_the_rare_class():
    sampling = Sampling((4, 4, 4), 0.0, 8, class_share=0.75, classes=(2,))
    _, labels = epoch(build_dataset(rare(), sampling, batch_size=4, seed=1))
    assert labels.shape == (16, 4, 4, 4)
    holding = (labels == 2).any(axis=(1, 2, 3)).sum()
    assert 12 <= holding <= 13  # 6 of 8 of each volume, and hardly another by chance: 2 * 4 * (4 / 13)^3
    assert (labels[:, 2, 2, 2] == 2).sum() == 12  # in the middle of its patch


def test_balanced_patches_repeat_with_the_seed_differ_by_epoch_and_resume():
    options = {"batch_size": 4, "seed": 3, "augmentation": Augmentation(flip_axes=(0,), noise=0.1)}
    sampling = Sampling((4, 4, 4), 0.5, 8, class_share=0.5)
    unbroken = build_dataset(rare(), sampling, **options)
    epochs = [epoch(unbroken)[0] for _ in range(3)]
    again = build_dataset(rare(), sampling, **options)
    np.testing.assert_array_equal(epoch(again)[0], epochs[0])
    assert not np.array_equal(epochs[0], epochs[1])
    resumed = build_dataset(rare(), sampling, first_epoch=2, **options)
    np.testing.assert_array_equal(epoch(resumed)[0], epochs[2])


def test_without_a_share_the_patches_are_those_of_the_same_seed_as_ever():
    plan = Sampling((2, 2, 2), 0.5, 5)
    first = epoch(build_dataset(examples(1), plan, batch_size=5, seed=9))[0][:, 0, 0, 0, 0]
    rng = np.random.default_rng((9, 0))
    starts = rng.integers(0, np.array((8, 6, 4)) - 1, size=(5, 3))
    assert sorted(first.tolist()) == sorted((starts @ [24, 4, 1]).tolist())
