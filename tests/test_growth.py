"""Memory that must not grow: hundreds of predictions, evaluations and trainings in one process.

Each loop runs in a process of its own, first so often that allocators and graphs have settled. The bounds are
below what a leak would take that keeps one array of a volume per call.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

SHAPE = (64, 64, 48)
VOLUME_MB = 4 * np.prod(SHAPE) / 1e6  # float32: 0.79 MB
CLASSES = ("air", "soft", "bone")


def resident_mb():
    """Memory of this process, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise AssertionError("no VmRSS")


def in_a_process(loop, *arguments):
    """What a loop returns that runs in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(loop, *arguments).result()


def grown(call, warm_up, times):
    """MB that the process gains from ``times`` calls after ``warm_up`` of them."""
    for _ in range(warm_up):
        call()
    gc.collect()
    before = resident_mb()
    for _ in range(times):
        call()
    gc.collect()
    return resident_mb() - before


def segmenter():
    import keras

    import mrseg
    from mrseg.data.patches import Sampling
    from mrseg.data.preprocessing import Preprocessing

    patch = keras.Input((32, 32, 24, 1))
    network = keras.Model(patch, keras.layers.Conv3D(3, 3, padding="same", activation="softmax")(patch))
    return mrseg.Segmenter(network, Preprocessing(), Sampling((32, 32, 24)), CLASSES, sequence="T1w")


def scan():
    return np.random.default_rng(0).random(SHAPE, np.float32), np.eye(4)


def growth_of_predictions(times):
    network, volume = segmenter(), scan()
    return grown(lambda: network(volume), 15, times)


def growth_of_a_leak(times):
    network, volume, kept = segmenter(), scan(), []
    return grown(lambda: kept.append(network(volume).get_fdata()), 15, times)


def growth_of_evaluations(times):
    from mrseg.data.cases import Case
    from mrseg.data.io import write_labels, write_volume
    from mrseg.evaluation import evaluate

    network = segmenter()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "t1.nii.gz", Path(folder) / "dseg.nii.gz"
        write_volume(files[0], *scan())
        labels = np.zeros(SHAPE, np.uint8)
        labels[8:-8, 8:-8, 8:-8] = 1
        write_labels(files[1], labels, np.eye(4), "abc", {})
        case = Case("s1", {"T1w": files[0]}, None, {"T1w": files[1]}, "test")
        return grown(lambda: evaluate(network, [case], distances=True), 5, times)


def growth_of_trainings(shape, warm_up, times):
    import mrseg
    from mrseg.data.patches import Sampling
    from mrseg.data.pipeline import build_dataset
    from mrseg.training import Loss, Training, fit

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, shape).astype(np.uint8)

    def train():
        # new arrays every time, as from other scans
        examples = [(rng.random(shape, np.float32), labels.copy()) for _ in range(6)]
        model = mrseg.models.unet((16, 16, 1), 3, filters=2)
        sampling = Sampling((16, 16, 1), 0.0, patches_per_volume=4)
        data = build_dataset(examples, sampling, batch_size=8)
        with tempfile.TemporaryDirectory() as folder:
            fit(
                model, data, None, Training(epochs=1), loss=Loss(), class_names=CLASSES, folder=folder,
                progress=False,
            )  # fmt: skip
        gc.collect()  # networks are full of cycles

    return grown(train, warm_up, times)


def test_the_measure_sees_a_leak_of_one_volume_per_call():
    assert in_a_process(growth_of_a_leak, 30) > 30 * VOLUME_MB


def test_predictions_leave_no_memory_behind():
    # a leak of the labels alone, a quarter of a volume, would be 12 MB
    assert in_a_process(growth_of_predictions, 60) < 10


@pytest.mark.slow
def test_500_predictions_leave_no_memory_behind():
    # a leak of the labels alone would be 98 MB
    assert in_a_process(growth_of_predictions, 500) < 20


@pytest.mark.slow
def test_evaluations_leave_no_memory_behind():
    # a leak of true or predicted labels would be 20 MB
    assert in_a_process(growth_of_evaluations, 100) < 15


@pytest.mark.slow
def test_a_training_takes_its_scans_with_it_when_it_is_done():
    # six volumes of 5.2 MB each in every training: 126 MB if four trainings kept them. What TensorFlow keeps
    # of a network that is gone (20 to 30 MB each at first) is the same with small scans.
    large, small = (
        in_a_process(growth_of_trainings, shape, 3, 4) for shape in ((128, 128, 64), (32, 32, 16))
    )
    assert large - small < 60
