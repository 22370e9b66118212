"""Training on kept features is training; a cache that cannot serve is not made, and leaves nothing behind."""

from __future__ import annotations

import gc
import logging
import resource
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrseg._checks import InputError
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.transfer.cutting import find_cut
from mrseg.transfer.features import DataChanged, cache_features, fit_cached
from mrseg.transfer.freezing import train_all, train_last
from mrseg.transfer.fusion import hybrid


def segnet_decoder():
    model = segnet((32, 32, 1), filters=2)
    train_last(model, "decoder")
    return model


def unet_last(convs=3):
    model = unet((16, 16, 1), filters=2)
    train_last(model, convs)
    return model


def unet_hybrid():
    keras.utils.set_random_seed(1)
    return hybrid(unet((16, 16, 1), filters=2), fuse="average")


def volumes_hybrid():
    keras.utils.set_random_seed(1)
    return hybrid(se_unet3d((16, 16, 8, 1), filters=2))


def arrays(model, cases=5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(cases, *model.input_shape[1:])).astype("float32")
    return x, rng.integers(0, model.output_shape[-1], size=x.shape[:-1]).astype("uint8")


def batches(model, cases=5, size=2):
    return tf.data.Dataset.from_tensor_slices(arrays(model, cases)).batch(size)


def compiled(model, eager=True):
    """Step by step, since tracing these networks takes longer than running them; ``eager=False`` traces."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=eager,
    )
    return model


def augmented(data):
    """Other noise in every reading."""
    rng = np.random.default_rng(0)

    def noisy(x, y):
        noise = tf.numpy_function(lambda x: x + rng.normal(size=x.shape).astype("float32"), (x,), tf.float32)
        return tf.ensure_shape(noise, x.shape), y

    return data.map(noisy)


def values(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


@pytest.mark.parametrize(
    "build",
    [
        unet_last,
        *(pytest.param(b, marks=pytest.mark.slow) for b in (segnet_decoder, unet_hybrid, volumes_hybrid)),
    ],
)
def test_training_on_kept_features_equals_ordinary_training_on_the_same_batches(build, tmp_path):
    eager = build is not unet_last
    ordinary, kept = compiled(build(), eager), compiled(build(), eager)
    kept.set_weights(ordinary.get_weights())
    before = values(kept)
    data = batches(ordinary)
    expected = ordinary.fit(data, epochs=3, verbose=0, shuffle=False, validation_data=data).history
    history = fit_cached(kept, data, epochs=3, folder=tmp_path / "cache", validation_data=data).history
    assert history.keys() == expected.keys() and "val_accuracy" in history
    for name in history:
        np.testing.assert_allclose(history[name], expected[name], atol=1e-4)
    moved = set()
    for path, value in values(ordinary).items():
        np.testing.assert_allclose(values(kept)[path], value, atol=1e-4, err_msg=path)
        if not np.array_equal(values(kept)[path], before[path]):
            moved.add(path.split("/")[0])
    assert moved and moved <= {layer.name for layer in kept.layers if layer.trainable}
    assert not list(tmp_path.rglob("*.bin"))


def test_a_seed_shuffles_every_epoch_in_its_own_way_and_resumes(tmp_path):
    model = unet_last(0)
    x, _ = arrays(model, 6)
    labels = np.arange(6, dtype="int32")
    data = tf.data.Dataset.from_tensor_slices((x, labels)).batch(3)
    with cache_features(find_cut(model), data, tmp_path / "cache") as cached:

        def orders(dataset, epochs):
            return [
                np.concatenate([y for _, y in dataset.as_numpy_iterator()]).tolist() for _ in range(epochs)
            ]

        shuffled = orders(cached.dataset(2, seed=5), 4)
        assert all(sorted(order) == list(range(6)) for order in shuffled)
        assert len({tuple(order) for order in shuffled}) > 1
        assert orders(cached.dataset(2, seed=5, first_epoch=2), 2) == shuffled[2:]
        assert orders(cached.dataset(), 2) == [list(range(6))] * 2
        assert int(cached.dataset(4).cardinality()) == 2


def test_kept_rows_are_the_features_of_their_cases(tmp_path):
    model = segnet_decoder()
    cut = find_cut(model)
    x, y = arrays(model, 3)
    expected = cut.prefix.predict_on_batch(x)
    with cache_features(cut, batches(model, 3), tmp_path / "cache") as cached:
        for features, labels in cached.dataset(1, seed=0).as_numpy_iterator():
            case = next(i for i in range(3) if np.array_equal(y[i], labels[0]))
            for one, all_, tensor in zip(features, expected, cut.tensors, strict=True):
                np.testing.assert_allclose(one[0], all_[case], rtol=1e-5, atol=1e-5)
                assert one.dtype == tensor.dtype
    assert not (tmp_path / "cache").exists()


def test_the_caller_may_order_every_epoch_and_leave_out_its_last_smaller_batch(tmp_path):
    model = unet_last(0)
    x, _ = arrays(model, 5)
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(5))).batch(2)
    with cache_features(find_cut(model), data, tmp_path / "cache") as cached:
        turned = cached.dataset(
            first_epoch=3, order=lambda epoch: np.roll(np.arange(5), epoch), drop_remainder=True
        )
        read = [[int(y) for _, labels in turned for y in labels] for _ in range(2)]
    assert read == [[2, 3, 4, 0], [1, 2, 3, 4]]  # epochs 3 and 4 without their last case


def test_files_that_were_removed_are_mapped_no_longer_and_give_the_disk_back(tmp_path):
    def mapped():
        return str(tmp_path) in Path("/proc/self/maps").read_text(encoding="utf-8")

    model = unet_last(0)
    with cache_features(find_cut(model), batches(model), tmp_path / "cache") as cached:
        data = cached.dataset().prefetch(1)
        assert len(list(data)) == 3 and mapped()
    del data
    gc.collect()
    assert not mapped()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "another row", "gone"])
def test_a_file_that_is_not_what_was_written_is_refused(damage, tmp_path):
    model = unet_last(0)
    with cache_features(find_cut(model), batches(model), tmp_path / "cache") as cached:
        file = tmp_path / "cache/0.bin"
        content = bytearray(file.read_bytes())
        row = len(content) // 5
        if damage == "a flipped bit":
            content[len(content) // 2] ^= 1
        elif damage == "cut short":
            del content[-row:]
        elif damage == "another row":
            content[:row], content[row : 2 * row] = content[row : 2 * row], content[:row]
        file.unlink() if damage == "gone" else file.write_bytes(content)
        with pytest.raises(InputError, match=r"as they were written.*0\.bin"):
            cached.dataset()


def test_half_precision_rounds_to_11_bits_in_half_the_space(tmp_path):
    model = unet_last(0)
    cut, data = find_cut(model), batches(model)
    full = cache_features(cut, data, tmp_path / "full")
    half = cache_features(cut, data, tmp_path / "half", precision="float16")
    labels = 5 * 16 * 16
    assert (full.bytes - labels) == 2 * (half.bytes - labels) == 5 * 16 * 16 * 2 * 4
    for (a, _), (b, _) in zip(full.dataset(), half.dataset(), strict=True):
        np.testing.assert_allclose(b, a, rtol=2**-11, atol=2**-25)
        assert b.dtype == tf.float32


def test_features_too_large_for_half_precision_are_refused(tmp_path):
    model = unet_last(0)
    x, y = arrays(model)
    model.get_layer("decoder1_conv2_bn").set_weights([np.full(2, v) for v in (1e6, 1e6, 0.0, 1.0)])
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    with pytest.raises(InputError, match="within 65504.*float32"):
        cache_features(find_cut(model), data, tmp_path / "cache", precision="float16")
    assert not list(tmp_path.iterdir())


def test_features_of_a_bfloat16_network_come_back_as_they_were(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = unet_last(0)
    finally:
        keras.config.set_dtype_policy("float32")
    cut = find_cut(model)
    with cache_features(cut, batches(model, 2), tmp_path / "cache") as cached:
        features, _ = next(iter(cached.dataset()))
        assert features.dtype == tf.bfloat16
        expected = cut.prefix.predict_on_batch(arrays(model, 2)[0])
        np.testing.assert_array_equal(features.numpy(), np.asarray(expected).reshape(features.shape))


@pytest.mark.parametrize("kind", ["augmented", "shuffled", "shorter"])
def test_data_that_change_are_not_kept(kind, tmp_path):
    model = unet_last(0)
    data = batches(model)
    if kind == "augmented":
        data = augmented(data)
    elif kind == "shuffled":
        data = data.unbatch().shuffle(5, seed=1, reshuffle_each_iteration=True).batch(1)
    else:
        readings = iter([list(data), list(data)[:-1]])

        class Shrinking:
            def __iter__(self):
                return iter(next(readings))

        data = Shrinking()
    with pytest.raises(DataChanged, match="two readings that differ"):
        cache_features(find_cut(model), data, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_augmentation_falls_back_to_ordinary_training_and_says_so(tmp_path, caplog):
    model = compiled(unet_last(0))
    data = augmented(batches(model))
    with caplog.at_level(logging.WARNING):
        history = fit_cached(model, data, epochs=1, folder=tmp_path / "cache")
    assert "without a cache" in caplog.text and "augmentation" in caplog.text
    assert len(history.history["loss"]) == 1


def test_an_open_network_falls_back_and_says_so(tmp_path, caplog):
    model = unet((16, 16, 1), filters=2)
    train_all(model)
    with caplog.at_level(logging.WARNING):
        fit_cached(compiled(model), batches(model), epochs=1, folder=tmp_path / "cache")
    assert "before any frozen layer" in caplog.text and not (tmp_path / "cache").exists()


def test_a_full_disk_fails_cleanly_and_leaves_nothing(tmp_path):
    model = unet_last(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cut, data = find_cut(model), batches(model, 4)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (3000, hard)
    )  # a case's features take 16 * 16 * 2 * 4 = 2048 bytes
    try:
        with pytest.raises(OSError, match="must fit on the disk.*cache was removed"):
            cache_features(cut, data, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    model = unet_last(0)
    with pytest.raises(InputError, match="folder of their own"):
        cache_features(find_cut(model), batches(model), tmp_path)
    assert (tmp_path / "scan.nii.gz").exists()


def test_what_a_killed_run_left_is_replaced(tmp_path):
    model = unet_last(0)
    for cases in (2, 4):
        cached = cache_features(find_cut(model), batches(model, cases), tmp_path / "cache")
        assert cached.count == cases
    assert sum(1 for _ in cached.dataset(4)) == 1


def test_what_cannot_be_kept_or_fitted_is_refused(tmp_path):
    model = unet_last(0)
    cut = find_cut(model)
    with pytest.raises(InputError, match="float32, float16"):
        cache_features(cut, batches(model), tmp_path / "cache", precision="float64")
    with pytest.raises(InputError, match="repeats for ever"):
        cache_features(cut, batches(model).repeat(), tmp_path / "cache")
    with pytest.raises(InputError, match="at least one batch"):
        cache_features(cut, batches(model).take(0), tmp_path / "cache")
    with pytest.raises(InputError, match="not compiled"):
        fit_cached(model, batches(model), epochs=1, folder=tmp_path / "cache")
    model.trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(InputError, match="all of it frozen"):
        fit_cached(model, batches(model), epochs=1, folder=tmp_path / "cache")
