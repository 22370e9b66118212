"""Training on several devices: the losses of one device, in one process and in two."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mrseg
from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.pipeline import Share
from mrseg.distribution import distributed, share

RECIPE = """
name: tiny
title: a tiny network on tiny slices
paper: phantom
command: mrseg train tiny.yaml
sequence: T1w
class_names: [air, soft, bone]
network: {builder: unet, arguments: {filters: 2, head: softmax}}
sampling: {patch_shape: [16, 16, 1], overlap: 0.0, patches_per_volume: 9}
loss: {name: dice}
training: {epochs: 2, batch_size: 4, learning_rate: 5.0e-3, keep: val_loss}
"""
#: Two devices that are both this processor.
TWO_DEVICES = """
import sys
import tensorflow as tf

processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from mrseg.cli import main

sys.exit(main(sys.argv[1:]))
"""


def start(folder, output, *more, program=("-m", "mrseg"), **variables):
    return subprocess.Popen(
        [sys.executable, *program, "train", "tiny.yaml", "--data", "cohort.tsv", "--output", output, *more],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(mrseg.__file__).parents[1]), **variables},
    )  # fmt: skip


def ended(running):
    told, _ = running.communicate(timeout=600)
    assert running.returncode == 0, told[-3000:]
    return told


def log(folder):
    with open(folder / "log.csv", encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_same_losses(one, other):
    """Losses to 1e-5; Dice and accuracy, which count voxels, to the few that rounding turns."""
    for ours, theirs in zip(log(one), log(other), strict=True):
        for key in ("loss", "val_loss"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
        assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.fixture
def scans(tmp_path):
    phantom.write_cohort(tmp_path, subjects={"train": 2, "val": 1}, shape=(24, 24, 20), registered=True)
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "two.py").write_text(TWO_DEVICES, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_two_processes_on_jax_train_with_the_losses_of_one_and_go_on_where_they_stopped(scans):
    pytest.importorskip("jax")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def both():
        variables = {
            "KERAS_BACKEND": "jax",
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        }
        return [
            start(scans, "two", "--distributed", **variables, KERAS_DISTRIBUTION_PROCESS_ID=number)
            for number in "01"
        ]

    ended(start(scans, "one", KERAS_BACKEND="jax"))
    first, second = map(ended, both())
    assert_same_losses(scans / "one", scans / "two")
    assert "segmenter: two" in first and "segmenter" not in second
    written = (scans / "two/log.csv").read_bytes()
    for running in both():  # both read that all is done
        ended(running)
    assert (scans / "two/log.csv").read_bytes() == written


@pytest.mark.slow
def test_two_devices_on_tensorflow_train_with_the_losses_of_one(scans):
    # Adam would make steps of full size of what is rounding alone.
    sgd = ("--set", "training.optimizer=sgd")
    ended(start(scans, "one", *sgd, program=["two.py"]))
    ended(start(scans, "two", "--distributed", *sgd, program=["two.py"]))
    assert_same_losses(scans / "one", scans / "two")


def test_outside_of_it_a_process_reads_whole_batches():
    assert share() == Share(0, 1, 1)


def test_several_processes_on_tensorflow_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match="KERAS_BACKEND=jax"), distributed(tmp_path):
        pass
