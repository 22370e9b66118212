"""Training on several devices at once: Keras' DataParallel on JAX, MirroredStrategy on TensorFlow.

Both divide every batch among the devices; losses, metrics and the statistics of the normalisations are those
of the whole batch. On JAX there may be several processes, on one machine or on many.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import keras
import numpy as np

from mrseg._checks import error
from mrseg.checkpoint import read_state
from mrseg.data.pipeline import Share

_PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"
#: What a run that goes on needs of its folder.
_STATE = ("checkpoint", "best.weights.h5", "run.json")


@contextmanager
def distributed(folder: str | Path) -> Iterator[Path]:
    """Networks that are built and trained inside use all devices: local ones, or those of all processes.

    On JAX every process enters it before any other computation, with KERAS_DISTRIBUTION_JOB_ADDRESSES
    (``host:port`` of process 0), KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID in its
    environment; without these, it is one process with its local devices. On TensorFlow it is always one.

    Args:
        folder: of the run; all processes see it.

    Yields:
        Where this process writes: ``folder`` in the first process, in the others a temporary one that goes on
        from what ``folder`` holds.

    Raises:
        InputError: several processes on TensorFlow; a folder that not all processes see.

    Example:
        >>> with distributed("runs/t1") as output:
        ...     train_recipe(recipe, cases, output)
    """
    folder = Path(folder)
    several = int(os.environ.get(_PROCESSES, "1")) > 1
    if keras.backend.backend() == "jax":
        if several:
            with _processes(folder) as output, _data_parallel():
                yield output
        else:
            with _data_parallel():
                yield folder
        return
    if several:
        raise error(
            "Several processes train together on JAX.",
            f"{_PROCESSES}={os.environ[_PROCESSES]} with the backend {keras.backend.backend()}",
            "Set KERAS_BACKEND=jax.",
        )
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    with tf.distribute.MirroredStrategy([device.name for device in devices]).scope():
        yield folder


def share() -> Share:
    """What this process reads of every batch, by where it stands: all of it outside of `distributed`."""
    if keras.backend.backend() == "jax":
        import jax

        distribution = keras.distribution.distribution()
        if distribution is None:
            return Share()
        return Share(jax.process_index(), jax.process_count(), distribution.device_mesh.devices.size)
    import tensorflow as tf

    # Under a strategy Keras takes a batch of every data set before `fit`, to build the model by its shape.
    strategy = tf.distribute.get_strategy()
    return Share(devices=strategy.num_replicas_in_sync, looks_ahead=tf.distribute.has_strategy())


@contextmanager
def whole_batch_statistics(model: keras.Model) -> Iterator[None]:
    """Normalisations take the statistics of the whole batch on every device, as on one.

    JAX does so by itself; TensorFlow takes those of each device's part unless it is told.
    """
    with ExitStack() as stack:
        if keras.backend.backend() == "tensorflow" and share().devices > 1:
            for layer in model._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized:
                    layer.synchronized = True
                    stack.callback(setattr, layer, "synchronized", False)
        yield


@contextmanager
def _data_parallel() -> Iterator[None]:
    before = keras.distribution.distribution()
    # Each process reads its own share of a batch (`share`).
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


@contextmanager
def _processes(folder: Path) -> Iterator[Path]:
    """Joins the processes; each has a folder to write to, with the same state of the run."""
    import jax
    from jax.experimental import multihost_utils

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize()
    with ExitStack() as stack:
        output = folder
        if jax.process_index():
            output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mrseg_")))
            _copy_state(folder, output)
        epochs = np.array(len(read_state(output)["history"]))
        # When this returns, all have copied: the first process may write.
        known = sorted(set(np.ravel(multihost_utils.process_allgather(epochs)).tolist()))
        if len(known) > 1:
            raise error(
                "All processes see the folder of the run.",
                f"{folder}, which holds {' or '.join(map(str, known))} epochs",
                "Share that folder under the same name.",
            )
        yield output
        # From here on nobody waits for another. After an error JAX does so when the process ends, so that the
        # error is told first.
        jax.distributed.shutdown()


def _copy_state(folder: Path, output: Path) -> None:
    for name in _STATE:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, output / name)
        elif (folder / name).exists():
            shutil.copy(folder / name, output / name)
