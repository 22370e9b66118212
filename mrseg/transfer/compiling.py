"""Compile one model as another was compiled."""

from __future__ import annotations

from typing import Any

import keras


def compile_like(target: keras.Model, source: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compiles ``target`` with ``optimizer`` and the loss, metrics and modes of ``source``.

    Args:
        target: compiled in place; may be ``source`` itself, whose metrics then start anew.
        source: compiled before.
        optimizer: of ``target``; taken as it is.
    """
    config = source.get_compile_config()

    def same(name: str) -> Any:
        return keras.saving.deserialize_keras_object(config[name]) if config.get(name) else None

    target.compile(
        optimizer=optimizer,
        loss=source.loss,
        loss_weights=config.get("loss_weights"),
        metrics=same("metrics"),
        weighted_metrics=same("weighted_metrics"),
        run_eagerly=source.run_eagerly,
        jit_compile=source.jit_compile,
        steps_per_execution=source.steps_per_execution,
        auto_scale_loss=False,  # the optimiser is scaled already where it has to be
    )
