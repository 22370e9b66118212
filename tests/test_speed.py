"""What must not become slow: ratios to a plain way of doing the same, never seconds.

Each round runs the plain way and ours, one after the other, so that whatever else the machine does hits both
alike; asserted is the median over the rounds of plain / ours, against half or less of what it usually is.
They run alone, without pytest-xdist (`pytest -m speed`, a part of `make test`). Figures against other
libraries are in benchmarks/.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import mrseg
from mrseg.data import augmentation
from mrseg.data.case_cache import CaseCache
from mrseg.data.normalization import lcn
from mrseg.data.patches import Sampling, cut_input, patch_starts
from mrseg.data.pipeline import build_dataset
from mrseg.data.preprocessing import Preprocessing
from mrseg.engines import Engine
from mrseg.graphs import compile_engine, convert
from mrseg.inference import predict_probabilities
from mrseg.metrics import surface_distances
from mrseg.passes import Inference
from mrseg.quantization import Calibrator
from mrseg.transfer import cache_features, find_cut, train_last

pytestmark = pytest.mark.speed

ROUNDS = 7


@pytest.fixture
def guard(benchmark):
    """Runs a plain way and ours in turn and asserts how many times as long the plain way takes."""

    def run(plain, ours, *, at_least, rounds=ROUNDS):
        plain(), ours()  # graphs, caches
        taken = []

        def before():
            start = time.perf_counter()
            plain()
            taken.append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=before, rounds=rounds)
        if benchmark.stats is None:
            pytest.skip("pytest-benchmark measures nothing beside pytest-xdist or when disabled")
        own = benchmark.stats.stats.data
        assert len(own) == len(taken) == rounds
        ratio = statistics.median(theirs / mine for theirs, mine in zip(taken, own, strict=True))
        benchmark.extra_info["ratio"] = round(ratio, 2)
        assert ratio >= at_least, f"{ratio:.2f} times as fast as the plain way; {at_least} is the least"

    return run


def ball(centre, radius, shape=(96, 96, 64)):
    away = [axis - c for axis, c in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True)]
    return sum(a * a for a in away) <= radius**2


def test_surface_distances_beside_their_definition(guard):
    true, pred = ball((48, 48, 32), 24), ball((50, 47, 33), 24)
    spacing = (1.0, 1.0, 3.0)

    def definition():
        edges = [mask & ~ndimage.binary_erosion(mask) for mask in (true, pred)]
        maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
        return max(maps[1][edges[0]].max(), maps[0][edges[1]].max())

    def ours():
        return surface_distances(true, pred, spacing).hausdorff

    assert ours() == pytest.approx(definition())
    guard(definition, ours, at_least=3.0)


def test_sliding_a_window_beside_the_plain_loop(guard):
    image = np.random.default_rng(0).random((96, 96, 64), np.float32)
    sampling, classes, batch = Sampling((48, 48, 32), 0.5), 3, 2
    answer = np.full((batch, *sampling.patch_shape, classes), 1 / classes, np.float32)
    profile = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in sampling.patch_shape]
    weight = np.einsum("i,j,k->ijk", *profile).astype(np.float32)[..., None]

    def loop():
        total = np.zeros((*image.shape, classes), np.float32)
        weights = np.zeros((*image.shape, 1), np.float32)
        starts = patch_starts(image.shape, sampling.patch_shape, sampling.overlap)
        for first in range(0, len(starts), batch):
            some = starts[first : first + batch]
            np.stack([cut_input(image, start, sampling) for start in some])
            for start, patch in zip(some, answer, strict=False):
                at = tuple(slice(s, s + n) for s, n in zip(start, sampling.patch_shape, strict=True))
                total[at] += weight * patch
                weights[at] += weight
        return total / weights

    def ours():
        return predict_probabilities(
            lambda _: answer, image, sampling, num_classes=classes, inference=Inference(batch_size=batch)
        )

    np.testing.assert_allclose(ours(), loop(), atol=1e-5)
    guard(loop, ours, at_least=1.2)


def test_local_contrast_beside_scipy(guard):
    image = np.random.default_rng(0).normal(100, 20, (256, 256, 48)).astype(np.float32)

    def scipy():
        v = image - ndimage.gaussian_filter(image, (4, 4, 0), truncate=2.0)
        s = np.sqrt(ndimage.gaussian_filter(v * v, (4, 4, 0), truncate=2.0))
        return v / np.maximum(s, s.mean(axis=(0, 1), keepdims=True))

    np.testing.assert_allclose(lcn(image), scipy(), atol=1e-4)
    guard(scipy, lambda: lcn(image), at_least=1.5)


def test_changes_of_intensities_beside_tensorflow_s_own_operations(guard):
    image = tf.constant(np.random.default_rng(0).random((128, 128, 48, 1), np.float32))
    seed = tf.constant([1, 2])

    @tf.function
    def plain(image, seed):
        low, high = tf.reduce_min(image), tf.reduce_max(image)
        image = low + (high - low) * tf.pow((image - low) / (high - low), 1.1)
        return image + 0.1 * tf.random.stateless_normal(image.shape, seed)

    @tf.function
    def ours(image, seed):
        return augmentation.random_noise(augmentation.random_gamma(image, seed, 0.2), seed, 0.2)

    guard(lambda: plain(image, seed), lambda: ours(image, seed), at_least=1.1, rounds=4 * ROUNDS)


def test_patches_from_disk_beside_patches_from_memory(guard, tmp_path):
    rng = np.random.default_rng(0)
    shape = (96, 96, 64)
    examples = [(rng.random(shape, np.float32), rng.integers(0, 3, shape).astype(np.uint8)) for _ in range(3)]
    cache = CaseCache(tmp_path)
    kept = [cache.get([], {"number": n}, lambda n=n: examples[n]) for n in range(3)]
    memory, disk = (
        build_dataset(some, Sampling((48, 48, 32), 0.5), batch_size=3) for some in (examples, kept)
    )
    guard(lambda: [*memory], lambda: [*disk], at_least=0.08)


def test_an_epoch_on_kept_features_beside_an_ordinary_one(guard, tmp_path):
    model = mrseg.models.se_unet3d((16, 16, 16, 1), 3, filters=4)
    train_last(model, 0)
    rng = np.random.default_rng(0)
    x, y = rng.random((16, 16, 16, 16, 1), np.float32), rng.integers(0, 3, (16, 16, 16, 16))
    data = tf.data.Dataset.from_tensor_slices((x, y.astype(np.uint8))).batch(2)
    cut = find_cut(model)
    for part in (model, cut.suffix):
        part.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
    with cache_features(cut, data, tmp_path / "features") as cached:
        features = cached.dataset()
        guard(
            lambda: model.fit(data, verbose=0, shuffle=False),
            lambda: cut.suffix.fit(features, verbose=0, shuffle=False),
            at_least=1.5,
        )


def test_a_segmenter_beside_model_predict_patch_by_patch(guard):
    inputs = keras.Input((24, 24, 16, 1))
    model = keras.Model(inputs, keras.layers.Conv3D(3, 3, padding="same", activation="softmax")(inputs))
    sampling = Sampling((24, 24, 16), 0.0)
    how = Preprocessing(normalization="min_max")
    segmenter = mrseg.Segmenter(model, how, sampling, ("air", "soft", "bone"))
    image = np.random.default_rng(0).random((48, 48, 32), np.float32)
    volume = (image, np.eye(4))

    def patches():
        ready, _ = how.image(volume)
        labels = np.empty(image.shape, np.uint8)
        for start in patch_starts(image.shape, sampling.patch_shape, 0.0):
            at = tuple(slice(s, s + n) for s, n in zip(start, sampling.patch_shape, strict=True))
            labels[at] = model.predict(ready[at][None, ..., None], verbose=0)[0].argmax(-1)
        return labels

    np.testing.assert_array_equal(np.asarray(segmenter(volume).dataobj), patches())
    guard(patches, lambda: segmenter(volume), at_least=3.0)


def _has_vnni():
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.skipif(not _has_vnni(), reason="the processor has no instructions for whole numbers of 8 bits")
def test_int8_beside_float32(guard, tmp_path):
    model = mrseg.models.unet((128, 128, 1), num_classes=3, filters=32, head="softmax")
    shape = (2, 128, 128, 1)
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    watched = Calibrator(convert(model, shape, "openvino", tmp_path))
    watched(batch)
    exact, coarse = (
        compile_engine(model, shape, Engine("openvino", precision), watched.ranges)
        for precision in ("float32", "int8")
    )
    guard(lambda: exact(batch), lambda: coarse(batch), at_least=1.2)
