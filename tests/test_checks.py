from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import mrseg
from mrseg import _checks


def test_an_error_states_rule_received_and_remedy_in_one_line():
    message = str(_checks.error("num_classes is at least 2.", 1, "Count the background."))
    assert message == "num_classes is at least 2. Received: 1. Count the background."


def test_an_error_without_remedy_ends_after_what_was_received():
    assert str(_checks.error("A rule.", "x")) == "A rule. Received: x."


def test_an_error_is_built_and_not_raised():
    assert isinstance(_checks.error("A rule.", 0), _checks.InputError)
    assert issubclass(_checks.InputError, ValueError)


def test_a_missing_file_is_named_with_the_folder_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="scan.nii") as caught:
        _checks.existing_file("scan.nii")
    assert str(tmp_path) in str(caught.value)


def test_a_folder_is_refused_where_a_file_is_needed(tmp_path):
    with pytest.raises(_checks.InputError, match="not a folder"):
        _checks.existing_file(tmp_path)


def test_an_existing_file_comes_back_as_a_path(tmp_path):
    (tmp_path / "a").write_text("", encoding="utf-8")
    assert _checks.existing_file(str(tmp_path / "a")) == tmp_path / "a"


def test_a_file_is_refused_where_a_folder_is_needed(tmp_path):
    (tmp_path / "a").write_text("", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="folder must exist"):
        _checks.existing_folder(tmp_path / "a")
    assert _checks.existing_folder(str(tmp_path)) == tmp_path


def test_a_choice_comes_back_and_a_near_miss_is_guessed():
    assert _checks.choice("head", "softmax", ["softmax", "sigmoid"]) == "softmax"
    with pytest.raises(_checks.InputError, match="head is one of softmax, sigmoid.*Did you mean 'softmax'"):
        _checks.choice("head", "sofmax", ["softmax", "sigmoid"])


def test_a_choice_far_from_all_gets_no_guess():
    with pytest.raises(_checks.InputError) as caught:
        _checks.choice("order", 7, [0, 1])
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("value", [(4, 5), [4, 5], np.array([4, 5])])
def test_positive_ints_of_any_sequence_become_a_tuple_of_plain_ints(value):
    result = _checks.positive_ints("shape", value, 2)
    assert result == (4, 5)
    assert all(type(item) is int for item in result)


@pytest.mark.parametrize("value", [(), (0, 1), (-1, 1), (1.0, 2), (True, 2), 3, None, "ab", (1, 2, 3)])
def test_what_is_not_two_positive_ints_is_refused(value):
    with pytest.raises(_checks.InputError, match="shape is a sequence of 2 positive whole numbers"):
        _checks.positive_ints("shape", value, 2)


def test_without_a_length_any_number_of_ints_is_accepted_but_none():
    assert _checks.positive_ints("filters", [8]) == (8,)
    with pytest.raises(_checks.InputError, match="filters is a sequence of positive whole numbers"):
        _checks.positive_ints("filters", [])


REACHABLE = (
    "attenuation", "commands", "evaluation", "forward", "inference", "maps", "opponent", "pages", "passes",
    "perfusion", "postprocess", "prediction", "segmenter", "store", "summaries",
)  # fmt: skip


def remedies(module: str) -> list[str]:
    """Source of the third argument of every `error` of a module."""
    tree = ast.parse((Path(mrseg.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 2]
    return [ast.unparse(call.args[2]) for call in calls if getattr(call.func, "id", "") == "error"]


@pytest.mark.parametrize("module", REACHABLE)
def test_a_remedy_that_names_an_argument_names_the_option_of_the_command_too(module):
    for remedy in remedies(module):
        if re.search(r"\b[a-z_]+=", remedy):
            assert "--" in remedy or "in Python" in remedy, remedy


def test_the_remedies_are_found():
    assert any("--mu-per-cm" in remedy for remedy in remedies("attenuation"))
