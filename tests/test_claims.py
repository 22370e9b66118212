import multiprocessing
import os
import signal

import pytest

from mrseg._checks import InputError
from mrseg.claims import claimed

RULE = "A folder holds one thing."


def hold(folder, connection):
    with claimed(folder, {"seed": 0}, RULE):
        connection.send("held")
        connection.recv()


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


def test_what_binds_nothing_yet_is_replaced(tmp_path):
    with claimed(tmp_path, {"seed": 0}, RULE):
        pass
    with claimed(tmp_path, {"seed": 1}, RULE, binding=False):
        pass
    with pytest.raises(InputError, match="another seed"), claimed(tmp_path, {"seed": 0}, RULE):
        raise AssertionError("not reached")


def test_a_second_process_is_refused_and_told_who_writes_and_a_killed_one_frees_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, far))
    process.start()
    assert near.recv() == "held"
    refused = pytest.raises(InputError, match=f"which process {process.pid} is writing")
    with refused, claimed(tmp_path, {"seed": 0}, RULE):
        raise AssertionError("not reached")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claimed(tmp_path, {"seed": 0}, RULE):
        pass
