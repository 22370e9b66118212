"""What a training leaves after every epoch, and how an interrupted one goes on from there."""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from mrseg._checks import error
from mrseg._files import atomic_file, checksum, read_json


class Checkpoint(keras.callbacks.Callback):
    """Writes weights, optimiser and log after every epoch, and brings them back.

    ``whole`` is the network; what ``fit`` trains may be a part of it, which shares its layers and optimiser.
    ``followers`` are the callbacks that change the rate or stop: an earlier run's log is replayed to them.
    """

    def __init__(
        self,
        whole: keras.Model,
        folder: Path,
        state: dict[str, Any],
        followers: Sequence[keras.callbacks.Callback],
        *,
        keep: str,
        monitors: Sequence[str],
        epochs: int,
        progress: bool,
    ):
        super().__init__()
        self.whole, self.folder = whole, folder
        self.followers, self.keep, self.monitors = followers, keep, monitors
        self.history: list[dict[str, float]] = state["history"]
        self.bar = tqdm(
            total=epochs,
            initial=len(self.history),
            desc=folder.name,
            unit="epoch",
            disable=not progress,
        )

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Replays the log through the schedule callbacks, then restores weights and optimiser."""
        for row in self.history:
            for follower in self.followers:
                follower.on_epoch_end(int(row["epoch"]), dict(row))
        if self.history:
            self.restore(self.whole)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves the epoch as a whole."""
        row = {"epoch": epoch, **{key: float(value) for key, value in (logs or {}).items()}}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        missing = [m for m in self.monitors if m not in row]
        if missing:
            raise error(f"A monitored column must be one of {', '.join(row)}.", missing[0])
        self.history.append(row)
        if self.keep != "last" and self._is_best(row):
            with atomic_file(self.folder / "best.weights.h5") as path:
                self.whole.save_weights(path)
        self._save(finished=False)
        self.bar.update()
        self.bar.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "dice", "val_dice") if key in row})

    def finish(self) -> None:
        """Marks the run as complete, so that starting it again trains no further."""
        self.bar.close()
        self._save(finished=True)

    def restore(self, model: keras.Model, best: bool = False) -> None:
        """Copies the saved weights (the best, or the last with the optimiser) into ``model``."""
        if best:
            if not (self.folder / "best.weights.h5").exists():
                raise error(
                    f"At least one epoch must have a finite {self.keep}.",
                    f"NaN in all {len(self.history)} epochs",
                    "Lower the learning rate, or train in float32.",
                )
            with _whole(self.folder / "best.weights.h5", self.folder):
                model.load_weights(self.folder / "best.weights.h5")
            return
        state = read_state(self.folder)
        file = self.folder / "checkpoint" / state["model"]
        with _whole(file, self.folder):
            if "sha256" in state and checksum([file]) != state["sha256"]:
                raise ValueError("another checksum")
            saved = keras.saving.load_model(file, safe_mode=True)
        _assign(model.weights, saved.weights, self.folder)
        if model.optimizer is not None and saved.optimizer is not None:
            _assign(model.optimizer.variables, saved.optimizer.variables, self.folder)
        for state, value in zip(
            _random_states(model), read_state(self.folder).get("random", ()), strict=False
        ):
            state.assign(np.asarray(value, state.dtype))

    def _is_best(self, row: dict[str, float]) -> bool:
        sign = 1.0 if mode_of(self.keep) == "min" else -1.0
        values = [sign * r[self.keep] for r in self.history]
        return sign * row[self.keep] <= min((v for v in values if not math.isnan(v)), default=math.nan)

    def _save(self, finished: bool) -> None:
        folder = self.folder / "checkpoint"
        name = f"epoch{len(self.history):04d}.keras"
        if not finished:
            with atomic_file(folder / name) as path:
                self.whole.save(path)
        with (  # before the state: a run that is known to be over has its whole log
            atomic_file(self.folder / "log.csv") as path,
            open(path, "w", newline="", encoding="utf-8") as file,
        ):
            columns = list(dict.fromkeys(key for row in self.history for key in row))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)
        # The state names its model file, so that one rename moves the run from one whole epoch to the next.
        with atomic_file(folder / "state.json") as path:
            random = [keras.ops.convert_to_numpy(state).tolist() for state in _random_states(self.whole)]
            # An early stop is known by now: a run killed from here on does not go beyond it.
            over = finished or bool(self.model.stop_training)
            state = {
                "finished": over, "model": name, "sha256": checksum([folder / name]),
                "history": self.history, "random": random,
            }  # fmt: skip
            path.write_text(json.dumps(state), encoding="utf-8")
        for old in folder.glob("epoch*.keras"):
            if old.name != name:
                old.unlink()


def mode_of(monitor: str) -> str:
    """Whether a column of the log is best at its ``min`` or its ``max``."""
    return "min" if monitor.removeprefix("val_") == "loss" else "max"


def _assign(targets: Sequence[Any], sources: Sequence[Any], folder: Path) -> None:
    if [tuple(v.shape) for v in targets] != [tuple(v.shape) for v in sources]:
        raise error(
            "A run can only be continued with the network it was begun with.",
            f"other variables in {folder / 'checkpoint'}",
            "Choose another output folder, or remove this one.",
        )
    for target, source in zip(targets, sources, strict=True):
        target.assign(source)


def _random_states(model: keras.Model) -> list[Any]:
    """What is no weight: above all how far the random numbers of dropout have come."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def read_state(folder: Path) -> dict[str, Any]:
    """Whether the run in ``folder`` is finished, the name of its network, and its log; empty if none.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / "checkpoint" / "state.json"
    if not path.exists():
        return {"finished": False, "model": "", "history": []}
    return read_json(path, _remedy(folder))


@contextmanager
def _whole(file: Path, folder: Path) -> Iterator[None]:
    """Says in one line that a file which is read cannot be."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as reason:
        first = " ".join(str(reason).split())[:200]
        raise error(f"{file.name} is as mrseg wrote it.", f"{file} ({first})", _remedy(folder)) from None


def _remedy(folder: Path) -> str:
    return f"Copy it again, or remove {folder}: the run then begins anew."
