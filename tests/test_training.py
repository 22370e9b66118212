from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import logging
import random
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrseg import checkpoint, training
from mrseg._checks import InputError
from mrseg.data.patches import Sampling
from mrseg.data.pipeline import build_dataset, grid_order
from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.training import (
    LOGGERS,
    LOSSES,
    EarlyStopping,
    Loss,
    Plateau,
    SameEveryEpoch,
    Training,
    epochs_done,
    fit,
    precision,
)
from mrseg.transfer.cutting import find_cut
from mrseg.transfer.features import cache_features
from mrseg.transfer.freezing import freeze
from mrseg.transfer.grouping import groups

CLASSES = ("air", "soft", "bone")
SAMPLING = Sampling((8, 8, 8), 0.5, 4)


def examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (16, 8, 8)).astype(np.uint8)
    return [(labels + 0.1 * rng.standard_normal(labels.shape).astype(np.float32), labels)]


def model(seed=0, filters=2):
    """The smallest network whose names follow the scheme, with a BatchNormalization whose statistics move."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 8, 1))
    x = keras.layers.Conv3D(filters, 3, padding="same", name="encoder1_conv1")(image)
    x = keras.layers.BatchNormalization(name="encoder1_conv1_bn")(x)
    x = keras.layers.Conv3D(3, 1, activation="softmax", name="head_logits", dtype="float32")(x)
    return keras.Model(image, x)


def run(folder, settings, network=None, validation=False):
    network = network or model()
    train = build_dataset(examples(), SAMPLING, batch_size=2, seed=1, first_epoch=epochs_done(folder))
    checks = build_dataset(examples(), SAMPLING, batch_size=2, shuffle=False) if validation else None
    history = fit(
        network, train, checks, settings, loss=Loss(), class_names=CLASSES, folder=folder, progress=False
    )
    return network, history


def weights(network):
    return [keras.ops.convert_to_numpy(v) for v in network.weights]


class Killed(RuntimeError):
    pass


def die_in_the_second_epoch(monkeypatch):
    """The next training is killed before its second epoch is saved, until ``monkeypatch.undo``."""
    save = training.Checkpoint._save

    def dies_in_the_second_epoch(self, finished):
        if len(self.history) == 2:
            raise Killed
        save(self, finished)

    monkeypatch.setattr(training.Checkpoint, "_save", dies_in_the_second_epoch)


def test_a_killed_run_goes_on_and_ends_with_the_very_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    settings = Training(epochs=3, batch_size=2, learning_rate=1e-2, plateau=Plateau("loss", 0.5, 1))
    unbroken, history = run(tmp_path / "unbroken", settings)

    die_in_the_second_epoch(monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "killed", settings)
    monkeypatch.undo()
    assert epochs_done(tmp_path / "killed") == 1
    resumed, resumed_history = run(tmp_path / "killed", settings, model(seed=9))
    assert resumed_history == history
    for one, other in zip(weights(unbroken), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def flip_a_bit_in_the_middle(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        ("epoch0001.keras", flip_a_bit_in_the_middle),
        ("epoch0001.keras", halve),
        ("epoch0001.keras", Path.unlink),
        ("state.json", halve),
    ],
)
def test_a_damaged_checkpoint_is_told_and_never_trained_on(tmp_path, monkeypatch, which, damage):
    settings = Training(epochs=2, batch_size=2, learning_rate=1e-2)
    die_in_the_second_epoch(monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path, settings)
    monkeypatch.undo()
    damage(tmp_path / "checkpoint" / which)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=f"{which} is as mrseg wrote it.*remove .*begins anew"):
        run(tmp_path, settings)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_damaged_best_network_is_told(tmp_path):
    settings = Training(epochs=1, batch_size=2, keep="loss")
    run(tmp_path, settings)
    halve(tmp_path / "best.weights.h5")
    with pytest.raises(InputError, match="best.weights.h5 is as mrseg wrote it.*remove"):
        run(tmp_path, settings)


def test_a_run_that_was_killed_as_it_ended_early_has_its_whole_log(tmp_path, monkeypatch):
    settings = Training(epochs=9, batch_size=2, early_stopping=EarlyStopping(monitor="loss", patience=1))
    settings = dataclasses.replace(settings, learning_rate=1e-9, optimizer="sgd")  # the loss stays as it is
    write, done = checkpoint.atomic_file, []

    def killed_after_the_state(path):
        if done and done[-1].name == "state.json" and json.loads(done[-1].read_text("utf-8"))["finished"]:
            raise Killed
        done.append(Path(path))
        return write(path)

    monkeypatch.setattr(checkpoint, "atomic_file", killed_after_the_state)
    with pytest.raises(Killed):
        run(tmp_path, settings)
    monkeypatch.undo()
    _, history = run(tmp_path, settings)
    log = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()
    assert 1 < len(history) < 9 and len(log) == 1 + len(history)


def test_a_killed_run_with_rates_per_group_goes_on_with_them(tmp_path):
    rates = {"learning_rate": 1e-2, "group_rates": {"encoder1": 0.1, "head": 2}}
    whole, _ = run(tmp_path / "whole", Training(epochs=2, batch_size=2, **rates))
    run(tmp_path / "parts", Training(epochs=1, batch_size=2, **rates))
    state = tmp_path / "parts" / "checkpoint" / "state.json"
    state.write_text(
        json.dumps(json.loads(state.read_text(encoding="utf-8")) | {"finished": False})
    )  # as a kill leaves it
    parts, _ = run(tmp_path / "parts", Training(epochs=2, batch_size=2, **rates))
    for a, b in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    even, _ = run(tmp_path / "even", Training(epochs=2, batch_size=2, learning_rate=1e-2))
    assert not np.array_equal(weights(even)[0], weights(whole)[0])


def test_a_run_on_kept_features_goes_on_after_a_kill_and_trains_the_network_itself(tmp_path):
    train = build_dataset(examples(), SAMPLING, batch_size=2, shuffle=False)
    options = {"loss": Loss(), "class_names": CLASSES, "progress": False}

    def trained(folder, epochs):
        network = model()
        freeze(network, ["encoder1"])
        cut = find_cut(network)
        with cache_features(cut, train, tmp_path / "cache") as cached:
            batches = cached.dataset(seed=1, first_epoch=epochs_done(folder))
            fit(cut.suffix, batches, None, Training(epochs=epochs, batch_size=2), folder=folder, **options)
        return weights(network)

    whole = trained(tmp_path / "whole", 2)
    trained(tmp_path / "parts", 1)
    state = tmp_path / "parts" / "checkpoint" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text(encoding="utf-8")) | {"finished": False}))
    for a, b, start in zip(whole, trained(tmp_path / "parts", 2), weights(model()), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.array_equal(a, start) == (a.shape[-1] != 3)  # the head's tensors alone moved


def run_on_grid(folder, settings, frozen=("encoder1",), seed=0):
    """As `run`, with a grid of patches that a cache of features can serve."""
    grid = Sampling((8, 8, 8), 0.5)
    scans = examples() + [(image[::-1].copy(), labels[::-1].copy()) for image, labels in examples()]
    network = model(seed)
    freeze(network, list(frozen))
    train = build_dataset(scans, grid, batch_size=4, seed=3, first_epoch=epochs_done(folder))
    fixed = build_dataset(scans, grid, batch_size=4, shuffle=False)
    history = fit(
        network, train, build_dataset(examples(), grid, batch_size=2, shuffle=False), settings,
        loss=Loss(), class_names=CLASSES, folder=folder, progress=False,
        same=SameEveryEpoch(fixed, grid_order(scans, grid, seed=3)),
    )  # fmt: skip
    return network, history


CACHED = {
    "batch_size": 4, "learning_rate": 1e-2, "plateau": Plateau("val_loss", 0.5, 1), "keep": "val_loss",
}  # fmt: skip


def test_training_with_a_cache_is_training_without_one(tmp_path):
    plain, history = run_on_grid(tmp_path / "plain", Training(epochs=3, **CACHED))
    kept, same = run_on_grid(tmp_path / "kept", Training(epochs=3, cache_features="float32", **CACHED))
    assert [row.keys() for row in same] == [row.keys() for row in history]
    for one, other in zip(history, same, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), atol=1e-4)
    for a, b, start in zip(weights(plain), weights(kept), weights(model()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.array_equal(b, start) == (b.shape[-1] != 3)  # the head's tensors alone moved
    assert not (tmp_path / "kept/features").exists()
    saved = keras.saving.load_model(next((tmp_path / "kept/checkpoint").glob("*.keras")))
    assert saved.input_shape == plain.input_shape  # the whole network is saved, not its trained part


def test_a_killed_run_with_a_cache_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    settings = Training(epochs=3, cache_features="float32", **CACHED)
    unbroken, history = run_on_grid(tmp_path / "unbroken", settings)
    die_in_the_second_epoch(monkeypatch)
    with pytest.raises(Killed):
        run_on_grid(tmp_path / "killed", settings)
    monkeypatch.undo()
    assert epochs_done(tmp_path / "killed") == 1
    resumed, resumed_history = run_on_grid(tmp_path / "killed", settings, seed=9)
    assert resumed_history == history
    for one, other in zip(weights(unbroken), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_open_network_trains_without_the_cache_it_was_told_to_use_and_says_so(tmp_path, caplog):
    settings = Training(epochs=1, cache_features="float32", **CACHED)
    with caplog.at_level(logging.WARNING):
        _, history = run_on_grid(tmp_path, settings, frozen=())
    assert "without a cache" in caplog.text and len(history) == 1


def test_a_finished_run_trains_no_further(tmp_path):
    settings = Training(epochs=1, batch_size=2)
    first, history = run(tmp_path, settings)
    again, same = run(tmp_path, settings, model(seed=9))
    assert same == history
    for one, other in zip(weights(first), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_log_has_a_row_an_epoch_and_no_temporary_file_stays(tmp_path):
    _, history = run(tmp_path, Training(epochs=2, batch_size=2), validation=True)
    with open(tmp_path / "log.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"loss", "dice_bone", "val_loss", "learning_rate"} <= set(rows[0])
    assert float(rows[1]["val_loss"]) == history[1]["val_loss"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "log.csv"]
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text("utf-8"))["finished"]


def test_the_plateau_multiplies_the_rate_and_early_stopping_ends_the_run(tmp_path):
    network = model()
    freeze(network, groups(network).names[:-1])  # the head alone, at a rate too small to improve anything
    settings = Training(
        epochs=9,
        batch_size=2,
        learning_rate=1e-30,
        plateau=Plateau("accuracy", 0.75, 1),
        early_stopping=EarlyStopping("val_accuracy", 3),
    )
    _, history = run(tmp_path, settings, network, validation=True)
    assert len(history) == 4  # the first is the best, then three without improvement
    assert history[-1]["learning_rate"] < 1e-30


def test_the_best_epochs_weights_are_kept_when_asked_for(tmp_path):
    settings = Training(epochs=3, batch_size=2, learning_rate=0.5, keep="val_loss")
    network, history = run(tmp_path, settings, validation=True)
    checks = build_dataset(examples(), SAMPLING, batch_size=2, shuffle=False)
    loss = network.evaluate(checks, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(min(row["val_loss"] for row in history), rel=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: unet((32, 8, 8, 1), 3, filters=2, head="softmax"),
        pytest.param(lambda: se_unet3d((32, 8, 8, 1), 3, filters=2), marks=pytest.mark.slow),
    ],
    ids=["unet", "se_unet3d"],
)
def test_twenty_steps_in_bfloat16_end_within_two_percent_of_float32(tmp_path, build):
    before = keras.config.dtype_policy()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (32, 8, 8)).astype(np.uint8)
    batches = build_dataset([(labels.astype(np.float32), labels)] * 4, Sampling((32, 8, 8)), batch_size=2)
    last = {}
    for name in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(0)
        with precision(name):
            network = build()
        settings = Training(epochs=10, batch_size=2, learning_rate=1e-3, precision=name)
        options = {"loss": Loss(), "class_names": CLASSES, "folder": tmp_path / name, "progress": False}
        last[name] = fit(network, batches, None, settings, **options)[-1]["loss"]
    assert last["mixed_bfloat16"] == pytest.approx(last["float32"], rel=0.02)
    assert keras.config.dtype_policy() == before


def test_bfloat16_where_the_cpu_kernel_is_wrong_is_refused(tmp_path):
    with precision("mixed_bfloat16"):
        network = se_unet3d((16, 8, 8, 1), 3, filters=2)
    labels = np.zeros((16, 8, 8), np.uint8)
    batches = build_dataset([(labels.astype(np.float32), labels)] * 2, Sampling((16, 8, 8)), batch_size=2)
    options = {"loss": Loss(), "class_names": CLASSES, "folder": tmp_path, "progress": False}
    with pytest.raises(InputError, match=r"bottleneck_conv1 with features of \(2, 1, 1\).*float32"):
        fit(network, batches, None, Training(epochs=1, precision="mixed_bfloat16"), **options)


def test_initial_weights_follow_from_the_seed_whatever_other_threads_draw():
    """A thread that draws all the time, as those of a Dask worker do now and then."""

    def built():
        with training.seeded(3):
            return weights(unet((16, 16, 1), 3, filters=2))

    alone, stop = built(), threading.Event()

    def draw():
        while not stop.is_set():
            random.random()

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        disturbed = built()
    finally:
        stop.set()
        drawing.join()
    for one, other in zip(alone, disturbed, strict=True):
        np.testing.assert_array_equal(one, other)
    keras.utils.set_random_seed(3)
    for one, other in zip(alone, weights(unet((16, 16, 1), 3, filters=2)), strict=True):
        np.testing.assert_array_equal(one, other)  # the weights that the seed has always given


def test_the_global_policy_comes_back_even_after_an_error():
    before = keras.config.dtype_policy()
    with pytest.raises(Killed), precision("mixed_bfloat16"):
        raise Killed
    assert keras.config.dtype_policy() == before


def test_mixed_float16_scales_the_loss():
    with precision("mixed_float16"):
        image = keras.Input((8, 8, 1))
        network = keras.Model(image, keras.layers.Conv2D(3, 1, activation="softmax", dtype="float32")(image))
    network.compile("adam", "sparse_categorical_crossentropy")
    assert isinstance(network.optimizer, keras.optimizers.LossScaleOptimizer)


def test_nothing_to_train_is_an_error(tmp_path):
    network = model()
    network.trainable = False
    with pytest.raises(InputError, match="something to train"):
        run(tmp_path, Training(epochs=1, batch_size=2), network)


def test_validation_figures_need_validation_cases(tmp_path):
    with pytest.raises(InputError, match="val_loss is measured on validation cases"):
        run(tmp_path, Training(epochs=1, batch_size=2, keep="val_loss"))


def test_a_monitor_that_no_log_has_is_named_with_those_it_has(tmp_path):
    with pytest.raises(InputError, match="dice_bone.*brain"):
        run(tmp_path, Training(epochs=1, batch_size=2, keep="dice_brain"))


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_writes_its_log_or_says_what_to_install(tmp_path, name):
    """Neither package is needed by the library; which of the two happens depends on the environment."""
    train = build_dataset(examples(), SAMPLING, batch_size=2)
    options = {
        "loss": Loss(),
        "class_names": CLASSES,
        "folder": tmp_path,
        "progress": False,
        "loggers": [name],
    }
    if importlib.util.find_spec(name) is None:
        with pytest.raises(InputError, match=rf"pip install 'mrseg\[{name}\]'"):
            fit(model(), train, None, Training(epochs=1, batch_size=2), **options)
    elif name == "tensorboard":
        fit(model(), train, None, Training(epochs=1, batch_size=2), **options)
        assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    else:
        pytest.skip("wandb would ask for an account")


def test_an_unknown_logger_is_refused(tmp_path):
    train = build_dataset(examples(), SAMPLING, batch_size=2)
    options = {"loss": Loss(), "class_names": CLASSES, "folder": tmp_path, "progress": False}
    with pytest.raises(InputError, match="tensorboard, wandb"):
        fit(model(), train, None, Training(epochs=1), loggers=["mlflow"], **options)


def test_another_network_cannot_continue_a_run(tmp_path):
    run(tmp_path, Training(epochs=1, batch_size=2))
    with pytest.raises(InputError, match="the network it was begun with"):
        run(tmp_path, Training(epochs=2, batch_size=2), model(filters=3))


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"optimizer": "adamw"}, "adam, sgd"),
        ({"precision": "float16"}, "mixed_float16"),
        ({"learning_rate": 0.0}, "positive"),
        ({"epochs": 0}, "positive whole"),
        ({"group_rates": {"head": "1e-1"}}, "group_rates.head is a number above 0"),
        ({"group_rates": {"head": 0.0}}, "group_rates.head is a number above 0"),
        ({"schedule": "cosine", "plateau": Plateau()}, "cosine schedule runs to its last epoch"),
    ],
)
def test_impossible_settings_are_refused(bad, word):
    with pytest.raises(InputError, match=word):
        Training(**bad)


def test_options_of_a_loss_belong_to_the_losses_that_have_them():
    with pytest.raises(InputError, match="over_voxels belongs to categorical_cross_entropy.*'dice'"):
        Loss("dice", over_voxels="sum")
    built = Loss("categorical_cross_entropy", (1.0, 2.0), "sum").build().get_config()
    assert (built["class_weights"], built["over_voxels"]) == ([1.0, 2.0], "sum")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_that_a_recipe_may_name_is_built(name):
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.8]]], "float32")
    assert np.isfinite(Loss(name).build()(np.array([[0, 1]]), probabilities))


def test_sgd_has_the_momentum_it_was_given(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 1, activation="softmax")])
    settings = Training(epochs=1, batch_size=1, optimizer="sgd", momentum=0.99)
    training._compile(model, settings, Loss(), ("a", "b"), steps=1)
    assert model.optimizer.momentum == 0.99


def with_dropout(seed):
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    given = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(given)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(given, keras.layers.Conv2D(2, 1, activation="softmax")(x))


def fit_squares(folder, settings, network):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 8, 8, 1)).astype("float32")
    labels = keras.utils.to_categorical(images[..., 0] > 0, 2)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    return fit(
        network, data, None, settings, loss=Loss(), class_names=("air", "bone"), folder=folder, progress=False
    )


def killed_after(monkeypatch, epoch):
    save = training.Checkpoint._save

    def dies(self, finished):
        save(self, finished)
        if len(self.history) == epoch:
            raise Killed

    monkeypatch.setattr(training.Checkpoint, "_save", dies)


def test_a_killed_run_with_dropout_goes_on_with_the_same_random_numbers(tmp_path, monkeypatch):
    settings = Training(epochs=3, batch_size=2, learning_rate=0.05)
    unbroken = with_dropout(0)
    history = fit_squares(tmp_path / "unbroken", settings, unbroken)
    killed_after(monkeypatch, 1)
    with pytest.raises(Killed):
        fit_squares(tmp_path / "killed", settings, with_dropout(0))
    monkeypatch.undo()
    resumed = with_dropout(0)
    assert fit_squares(tmp_path / "killed", settings, resumed) == history
    for one, other in zip(weights(unbroken), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_killed_in_the_epoch_that_stops_it_goes_no_further(tmp_path, monkeypatch):
    stop = EarlyStopping("loss", patience=1)
    settings = Training(epochs=9, batch_size=2, learning_rate=1e-30, early_stopping=stop)
    network = with_dropout(0)
    network.layers[2].rate = 0.0  # nothing changes, so the second epoch is no better than the first
    assert len(fit_squares(tmp_path / "unbroken", settings, network)) == 2
    killed_after(monkeypatch, 2)
    network = with_dropout(0)
    network.layers[2].rate = 0.0
    with pytest.raises(Killed):
        fit_squares(tmp_path / "killed", settings, network)
    monkeypatch.undo()
    assert len(fit_squares(tmp_path / "killed", settings, network)) == 2
