import multiprocessing
import os
import signal
import threading

import pytest

from mrseg import _files, claims
from mrseg._checks import InputError
from mrseg.claims import claimed

RULE = "A folder holds one thing."


def hold(folder, connection):
    with claimed(folder, {"seed": 0}, RULE):
        connection.send("held")
        connection.recv()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE_S", 0.0)


def test_what_a_folder_was_begun_with_is_kept_and_another_is_named(tmp_path):
    with claimed(tmp_path / "run", {"seed": 0, "folds": [1, 2]}, RULE) as folder:
        assert folder == tmp_path / "run"
    with claimed(tmp_path / "run", {"seed": 0, "folds": (1, 2)}, RULE):  # JSON has no tuples
        pass
    refused = pytest.raises(InputError, match=r"holds one thing.*begun with another seed")
    with refused, claimed(tmp_path / "run", {"seed": 1, "folds": [1, 2]}, RULE):
        raise AssertionError("not reached")
    with claimed(tmp_path / "run", {"seed": 0, "folds": [1, 2]}, RULE):
        pass  # the refused one has changed nothing


def test_a_damaged_note_is_told_and_what_was_half_written_is_removed(tmp_path):
    left = tmp_path / "checkpoint/.state.json.abc.partial"
    left.mkdir(parents=True)
    (left / _files.LOCK).touch()
    (tmp_path / "run.json").write_text('{"seed":', encoding="utf-8")
    refused = pytest.raises(InputError, match="run.json is as mrseg wrote it.*same run, remove this file")
    with refused, claimed(tmp_path, {"seed": 0}, RULE):
        raise AssertionError("not reached")
    (tmp_path / "run.json").unlink()
    with claimed(tmp_path, {"seed": 0}, RULE):
        assert not left.exists()


def test_what_binds_nothing_yet_is_replaced(tmp_path):
    with claimed(tmp_path, {"seed": 0}, RULE):
        pass
    with claimed(tmp_path, {"seed": 1}, RULE, binding=lambda: False):
        pass
    with pytest.raises(InputError, match="another seed"), claimed(tmp_path, {"seed": 0}, RULE):
        raise AssertionError("not reached")


def test_a_second_process_is_refused_and_told_who_writes_and_a_killed_one_frees_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, far))
    process.start()
    assert near.recv() == "held"
    refused = pytest.raises(InputError, match=f"which process {process.pid} on .* is writing")
    with refused, claimed(tmp_path, {"seed": 0}, RULE):
        raise AssertionError("not reached")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claimed(tmp_path, {"seed": 0}, RULE):
        pass


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(claims, "PATIENCE_S", 60.0)
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, far))
    process.start()
    assert near.recv() == "held"
    threading.Timer(1.0, near.send, ["end"]).start()
    with claimed(tmp_path, {"seed": 0}, RULE):
        process.join()
    assert f"waiting for process {process.pid}" in caplog.text and process.exitcode == 0
