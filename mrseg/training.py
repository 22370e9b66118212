"""`fit` with the papers' schedules, resumable after a kill, its log as CSV.

Sources: mecheter2023 section 3.5 (Adam, rate x0.75 after 5 flat epochs, stop after 10), mecheter2020 and
islam2025 section 3.3.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import math
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from mrseg._checks import choice, error, positive_ints
from mrseg._files import writable_folder
from mrseg.checkpoint import Checkpoint, mode_of, read_state
from mrseg.metrics import losses
from mrseg.metrics.streaming import for_classes
from mrseg.transfer.compiling import compile_like
from mrseg.transfer.cutting import find_cut
from mrseg.transfer.features import CACHE_PRECISIONS, CachedFeatures, cache_features
from mrseg.transfer.rates import group_rates

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
LOSSES = {
    "categorical_cross_entropy": losses.CategoricalCrossEntropy,
    "dice": losses.CategoricalDice,
    "dice_cross_entropy": losses.DiceCrossEntropy,
    "focal": losses.CategoricalFocal,
    "tversky": losses.CategoricalTversky,
}
LOGGERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Loss:
    """A loss of mrseg.metrics by name.

    Attributes:
        name: one of LOSSES.
        class_weights: for the cross-entropies (islam2025: 1, 10, 3, 3).
        over_voxels: ``sum`` instead of ``mean``, for the cross-entropy alone (xu2017).
    """

    name: str = "categorical_cross_entropy"
    class_weights: tuple[float, ...] | None = None
    over_voxels: str = "mean"

    def __post_init__(self) -> None:
        choice("loss.name", self.name, LOSSES)
        choice("loss.over_voxels", self.over_voxels, ("mean", "sum"))
        known = inspect.signature(LOSSES[self.name]).parameters
        for option in self._options():
            if option not in known:
                having = [
                    name for name, loss in LOSSES.items() if option in inspect.signature(loss).parameters
                ]
                raise error(f"loss.{option} belongs to {' and '.join(having)}.", f"loss.name {self.name!r}")

    def build(self) -> keras.Loss:
        """The Keras loss."""
        return LOSSES[self.name](**self._options())

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.class_weights is not None:
            options["class_weights"] = self.class_weights
        if self.over_voxels != "mean":
            options["over_voxels"] = self.over_voxels
        return options


@dataclass(frozen=True)
class Plateau:
    """Multiplies the rate by ``factor`` when ``monitor`` has not improved for ``patience`` epochs."""

    monitor: str = "loss"
    factor: float = 0.1
    patience: int = 10
    min_learning_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < 1.0:
            raise error("plateau.factor lies between 0 and 1.", self.factor)
        positive_ints("plateau.patience", (self.patience,), 1)


@dataclass(frozen=True)
class EarlyStopping:
    """Ends training when ``monitor`` has not improved for ``patience`` epochs."""

    monitor: str = "val_loss"
    patience: int = 20

    def __post_init__(self) -> None:
        positive_ints("early_stopping.patience", (self.patience,), 1)


@dataclass(frozen=True)
class Training:
    """Everything `fit` needs besides the model and the data.

    Attributes:
        epochs: at most so many.
        batch_size: patches or slices in a step.
        learning_rate: of the first step.
        optimizer: ``adam`` or ``sgd``.
        momentum: of ``sgd``.
        group_rates: group of the network -> factor on the rate there, ``{encoder1: 0.1, head: 10.0}``.
        schedule: ``constant``, or ``cosine`` down to 0 at the last step.
        plateau: reduces a constant rate.
        early_stopping: ends the run early.
        keep: ``last`` weights, or those of the epoch with the best value of a log column, say ``val_loss``.
        precision: dtype policy. On a CPU mixed precision means ``mixed_bfloat16``: float16 has no 3-D pooling
            there.
        seed: of initial weights, order, patches and augmentation.
        cache_features: ``float32`` or ``float16`` keeps what the frozen part of a network computes on disk
            (`mrseg.transfer.fit_cached`), beside the checkpoint and as long as training runs; ``none`` does
            not. Where that does not serve (random patches, augmentation, training from the first layer on),
            the log says so and training goes on without.
    """

    epochs: int = 200
    batch_size: int = 2
    learning_rate: float = 1.0e-4
    optimizer: str = "adam"
    momentum: float = 0.9
    group_rates: dict[str, float] = field(default_factory=dict)
    schedule: str = "constant"
    plateau: Plateau | None = None
    early_stopping: EarlyStopping | None = None
    keep: str = "last"
    precision: str = "float32"
    seed: int = 0
    cache_features: str = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            positive_ints(f"training.{name}", (getattr(self, name),), 1)
        choice("training.optimizer", self.optimizer, OPTIMIZERS)
        choice("training.schedule", self.schedule, ("constant", "cosine"))
        choice("training.precision", self.precision, PRECISIONS)
        choice("training.cache_features", self.cache_features, ("none", *CACHE_PRECISIONS))
        if not 0 <= self.seed < 2**32:
            raise error("training.seed is a whole number from 0 to 2^32 - 1.", self.seed)
        if not 0.0 <= self.momentum < 1.0:
            raise error("training.momentum lies in [0, 1).", self.momentum)
        for name, factor in self.group_rates.items():
            if type(factor) not in (int, float) or not 0 < factor < math.inf:
                raise error(f"training.group_rates.{name} is a number above 0.", repr(factor))
        if not self.learning_rate > 0:
            raise error("training.learning_rate is positive.", self.learning_rate)
        if self.schedule == "cosine" and (self.plateau or self.early_stopping):
            raise error(
                "A cosine schedule runs to its last epoch.",
                "training.plateau or training.early_stopping besides",
                "Leave these out, or take schedule: constant.",
            )

    @property
    def monitors(self) -> tuple[str, ...]:
        """Columns of the log that decide something."""
        kept = () if self.keep == "last" else (self.keep,)
        return (*kept, *(rule.monitor for rule in (self.plateau, self.early_stopping) if rule))

    @property
    def needs_validation(self) -> bool:
        """Whether validation subjects decide something."""
        return any(monitor.startswith("val_") for monitor in self.monitors)


@dataclass(frozen=True)
class SameEveryEpoch:
    """Training data of which every epoch holds the same, in another order.

    Attributes:
        data: batches, always in the same order, the last smaller one included.
        order: number of an epoch -> places in ``data`` of the patches of that epoch, in its order.
    """

    data: tf.data.Dataset
    order: Callable[[int], np.ndarray]


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Builds models under a dtype policy and restores the global one afterwards.

    Example:
        >>> with precision("mixed_bfloat16"):
        ...     model = mrseg.models.se_unet3d((32, 32, 16, 1))
    """
    choice("precision", policy, PRECISIONS)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


_BUILDING = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Builds models whose initial weights follow from ``seed`` alone, in whatever process; one at a time.

    Keras draws the seed of every layer from Python's own generator, which all threads of a process share: in
    a Dask worker those of Dask draw from it while a network is built.
    """
    with _BUILDING:
        keras.utils.set_random_seed(seed)
        own, shared, builder = random.Random(seed), random.randint, threading.get_ident()

        def randint(a: int, b: int) -> int:
            return (own.randint if threading.get_ident() == builder else shared)(a, b)

        random.randint = randint
        try:
            yield
        finally:
            random.randint = shared


def epochs_done(folder: str | Path) -> int:
    """Epochs that an earlier, unfinished or finished run left in ``folder``."""
    return len(read_state(Path(folder))["history"])


def fit(
    model: keras.Model,
    train: tf.data.Dataset,
    validation: tf.data.Dataset | None,
    settings: Training,
    *,
    loss: Loss,
    class_names: Sequence[str],
    folder: str | Path,
    same: SameEveryEpoch | None = None,
    loggers: Sequence[str] = (),
    progress: bool = True,
) -> list[dict[str, float]]:
    """Trains ``model`` in place, or continues the run that ``folder`` holds.

    Every epoch leaves ``checkpoint/`` (weights, optimiser, log) and ``log.csv`` in ``folder``, each replaced
    as a whole; a killed run that is started again goes on after its last whole epoch with the same rate,
    patience and batches.

    Args:
        model: network, frozen or not; compiled here.
        train: batches of one epoch; for a resumed run built with ``first_epoch=epochs_done(folder)``.
        validation: batches, or None.
        settings: schedule.
        loss: loss.
        class_names: names of the output channels, for the metrics.
        folder: where checkpoint and log go.
        same: the data of ``train`` once more, for ``settings.cache_features``; None trains without a cache.
            With one, the layers of ``model`` are called a second time: to cut or fuse it later, load it anew.
        loggers: ``tensorboard`` and ``wandb`` (extras of the same names).
        progress: show a bar over the epochs.

    Returns:
        One row an epoch: epoch, loss, dice, ..., val_loss, ..., learning_rate.

    Raises:
        InputError: nothing is trainable, or a monitored column does not exist.
        OSError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    state = read_state(folder)
    if not model.trainable_variables:
        raise error("fit needs something to train.", "a model whose layers are all frozen")
    _check_monitors(settings, validation is not None)
    _check_kernels(model)
    _compile(model, settings, loss, class_names, steps=int(train.cardinality()))
    checkpoint = Checkpoint(
        model,
        folder,
        state,
        _schedule_callbacks(settings),
        keep=settings.keep,
        monitors=settings.monitors,
        epochs=settings.epochs,
        progress=progress,
    )
    if not state["finished"]:
        with ExitStack() as stack:
            trained, data = model, (train, validation)
            if same is not None and settings.cache_features != "none":
                if state["history"]:
                    checkpoint.restore(model)  # the features are those of the network that goes on
                trained, data = _on_features(
                    model, *data, same, settings, folder / "features", len(state["history"]), stack
                )
            trained.fit(
                data[0],
                validation_data=data[1],
                initial_epoch=len(state["history"]),
                epochs=settings.epochs,
                callbacks=[*_loggers(loggers, folder), *checkpoint.followers, checkpoint],
                shuffle=False,  # the dataset shuffles by itself
                verbose=0,
            )
        checkpoint.finish()
    checkpoint.restore(model, best=settings.keep != "last")
    return checkpoint.history


def _on_features(
    model: keras.Model,
    train: tf.data.Dataset,
    validation: tf.data.Dataset | None,
    same: SameEveryEpoch,
    settings: Training,
    folder: Path,
    first_epoch: int,
    caches: ExitStack,
) -> tuple[keras.Model, tuple[tf.data.Dataset, tf.data.Dataset | None]]:
    """What trains of a compiled network, and its features in the place of the images; or all as it was."""
    cut = find_cut(model)
    if not cut.pays:
        log.warning("Training without a cache of features: the first layer with weights can change.")
        return model, (train, validation)

    def kept(name: str, data: tf.data.Dataset) -> CachedFeatures:
        return caches.enter_context(
            cache_features(cut, data, folder / name, precision=settings.cache_features)
        )

    caches.callback(shutil.rmtree, folder, ignore_errors=True)
    features = kept("train", same.data).dataset(
        settings.batch_size, first_epoch=first_epoch, order=same.order, drop_remainder=True
    )
    checks = None if validation is None else kept("validation", validation).dataset()
    compile_like(cut.suffix, model, model.optimizer)
    return cut.suffix, (features, checks)


def _compile(
    model: keras.Model, settings: Training, loss: Loss, class_names: Sequence[str], steps: int
) -> None:
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps * settings.epochs)
    options = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    optimizer = OPTIMIZERS[settings.optimizer](rate, **options)
    if settings.group_rates:
        optimizer = group_rates(model, optimizer, settings.group_rates)
    model.compile(
        optimizer=optimizer,
        loss=loss.build(),
        metrics=for_classes(class_names),
        jit_compile="auto" if _xla_pays() else False,
    )
    # With the optimiser's variables in place, TensorFlow traces the training step once and not twice.
    model.optimizer.build(model.trainable_variables)


def _xla_pays() -> bool:
    """XLA on TensorFlow's CPU is several times slower in 3-D; JAX has nothing else."""
    return keras.backend.backend() == "jax" or _has_gpu()


def _has_gpu() -> bool:
    return bool(keras.distribution.list_devices("gpu"))


def _check_kernels(model: keras.Model) -> None:
    """Refuses what TensorFlow 2.21 computes wrongly on a CPU.

    Its kernel of the bfloat16 filter gradient reads memory that nobody wrote where the first spatial size
    is 2 (seen by comparing Conv3DBackpropFilterV2 with float32): weights become NaN within a few steps.
    """
    if keras.backend.backend() != "tensorflow" or _has_gpu():  # JAX without a GPU raises when asked for one
        return
    for layer in model.layers:
        is_half = isinstance(layer, keras.layers.Conv3D) and layer.compute_dtype == "bfloat16"
        if is_half and layer.trainable and layer.input.shape[1] == 2 and max(layer.kernel_size) > 1:
            raise error(
                "TensorFlow's bfloat16 gradient of a 3-D convolution is wrong on a CPU "
                "where the first spatial size is 2.",
                f"layer {layer.name} with features of {tuple(layer.input.shape[1:-1])}",
                "Take a patch that is larger along its first axis, or precision float32.",
            )


def _check_monitors(settings: Training, has_validation: bool) -> None:
    for monitor in settings.monitors:
        if monitor.startswith("val_") and not has_validation:
            raise error(
                f"{monitor} is measured on validation cases.",
                "no validation case",
                "Give some cases the split 'val', or monitor 'loss'.",
            )


def _schedule_callbacks(settings: Training) -> list[keras.callbacks.Callback]:
    callbacks: list[keras.callbacks.Callback] = []
    if settings.plateau:
        rule = settings.plateau
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor=rule.monitor,
                mode=mode_of(rule.monitor),
                factor=rule.factor,
                patience=rule.patience,
                min_lr=rule.min_learning_rate,
                min_delta=0.0,
            )
        )
    if settings.early_stopping:
        stop = settings.early_stopping
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor=stop.monitor, mode=mode_of(stop.monitor), patience=stop.patience
            )
        )
    return callbacks


def _loggers(names: Sequence[str], folder: Path) -> list[keras.callbacks.Callback]:
    callbacks: list[keras.callbacks.Callback] = []
    for name in names:
        choice("logger", name, LOGGERS)
        if importlib.util.find_spec(name) is None:
            raise error(
                "A logger needs its package.", f"{name}, not installed", f"pip install 'mrseg[{name}]'."
            )
        if name == "tensorboard":
            callbacks.append(keras.callbacks.TensorBoard(str(folder / "tensorboard")))
        else:
            from wandb.integration.keras import WandbMetricsLogger

            callbacks.append(WandbMetricsLogger())
    return callbacks
