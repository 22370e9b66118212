"""A card says on one line each what weights are, whatever its provenance holds."""

from __future__ import annotations

import pytest

from mrseg.cards import card_lines
from mrseg.store import BUILT_IN, CARD, list_weights, read_card


def said(folder, card):
    return dict(line.split("  ", 1) for line in card_lines(folder, card))


def card_of(tmp_path, provenance, **more):
    (tmp_path / "network.keras").write_bytes(bytes(2_500_000))
    return {
        "class_names": ["air", "bone"], "sequence": "", "preprocessing": {"grid": "native"},
        "sampling": {"patch_shape": [8, 8, 4], "overlap": 0.5}, "provenance": provenance, **more,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.parent.name for path in BUILT_IN.glob(f"*/{CARD}")))
def test_the_card_of_every_shipped_network_leaves_nothing_unsaid(name):
    lines = card_lines(BUILT_IN / name, read_card(BUILT_IN / name))
    assert len(lines) <= 15 and not any("not stated" in line for line in lines)
    assert all("\n" not in line for line in lines)


def test_a_card_without_provenance_says_that_it_states_nothing(tmp_path):
    found = {key: value.strip() for key, value in said(tmp_path, card_of(tmp_path, {})).items()}
    for key in ("sequence", "network", "recipe", "carried from", "data", "figures", "licence"):
        assert found[key] == "not stated"
    assert found["classes"] == "0 air, 1 bone" and found["size"] == "2.5 MB, float32"
    assert found["patches"] == "8x8x4 voxels, overlap 0.5" and found["grid"] == "native"


@pytest.mark.parametrize(
    "provenance", ["a string", [1, 2], None, {"recipe": "x", "figures": [1.5, {"a": None}]}]
)
def test_a_provenance_of_any_shape_is_told(provenance, tmp_path):
    assert len(card_lines(tmp_path, card_of(tmp_path, provenance))) == 14


def test_weights_that_were_carried_over_say_from_where(tmp_path):
    provenance = {"source": {"recipe": {"name": "t1", "title": "on T1-w"}}, "subjects": {"train": 3}}
    lines = card_lines(tmp_path, card_of(tmp_path, provenance))
    assert any(line.startswith("carried from") and line.endswith("t1: on T1-w") for line in lines)
    assert any(line.startswith("subjects") and line.endswith("train 3") for line in lines)


def test_what_is_listed_has_a_card():
    assert all(card_lines(stored.folder, stored.card) for stored in list_weights())
