"""Gradual unfreezing: the last layers train first, deeper ones join in later epochs, within one ``fit``."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from mrseg import _checks
from mrseg.transfer.compiling import compile_like
from mrseg.transfer.freezing import train_last


class GradualUnfreezing(keras.callbacks.Callback):
    """Trains the last convolutions of a network, more of them from epoch to epoch.

    Keras fixes what trains when it compiles, so the callback compiles anew where a stage begins. The
    optimiser begins every stage with the rate it has and without memory, as if `fit` were called again: the
    result is that of ``train_last``, ``compile`` and ``fit`` for each stage in turn.

    Args:
        schedule: first epoch of a stage, from 0 -> number of convolutions from the output, "decoder" or
            "all", as :func:`~mrseg.transfer.freezing.train_last` takes them. Epoch 0 must be there.
        frozen_dropout: as in :func:`~mrseg.transfer.freezing.train_last`.
        norms: as in :func:`~mrseg.transfer.freezing.train_last`.

    Raises:
        InputError: a schedule without epoch 0 or with an epoch that is none; at the beginning of ``fit``, a
            depth that the network has not, a rate that follows a schedule of steps, or a backend other than
            TensorFlow.

    Example:
        >>> stages = GradualUnfreezing({0: 0, 5: 3, 10: "decoder"})
        >>> model.fit(train, epochs=20, callbacks=[stages])
    """

    def __init__(
        self, schedule: Mapping[int, int | str], *, frozen_dropout: str = "silent", norms: str = "follow"
    ) -> None:
        super().__init__()
        if any(type(epoch) is not int or epoch < 0 for epoch in schedule) or 0 not in schedule:
            raise _checks.error(
                "A schedule gives the convolutions that train from an epoch on, the first epoch being 0.",
                dict(schedule),
                'Write {0: 0, 5: 3, 10: "decoder"}.',
            )
        self.schedule = dict(schedule)
        self.frozen_dropout, self.norms = frozen_dropout, norms
        self._stage: int | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Tries every stage, so that a mistake in a late one does not wait for its epoch."""
        if keras.backend.backend() != "tensorflow":
            raise _checks.error(
                "Gradual unfreezing within one fit is there for TensorFlow.",
                keras.backend.backend(),
                "Call train_last, compile and fit for each stage.",
            )
        if not isinstance(self.model.optimizer.get_config()["learning_rate"], float):
            raise _checks.error(
                "Gradual unfreezing begins anew with the optimiser in every stage, so its rate is a number.",
                "a schedule of steps",
            )
        for convs in self.schedule.values():
            self._thaw(convs)
        self._stage = None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Begins the stage of this epoch, if it is a new one."""
        first = max(start for start in self.schedule if start <= epoch)
        if first == self._stage:
            return
        self._stage = first
        self._thaw(self.schedule[first])
        optimizer = self.model.optimizer
        compile_like(self.model, self.model, type(optimizer).from_config(optimizer.get_config()))
        self.model.make_train_function()

    def _thaw(self, convs: int | str) -> None:
        train_last(self.model, convs, frozen_dropout=self.frozen_dropout, norms=self.norms)
        self.model.compiled = True  # withdrawn by train_last; compiled anew before a step is made
