"""Damaged and odd scans: one line with the file's name, soon, in little memory; no wrong grid in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_scans.py")
ROOT = SCRIPT.parents[2]


@pytest.mark.parametrize(
    ("seed", "count"),
    [(0, 550), pytest.param(1, 4000, marks=pytest.mark.slow)],
)
def test_damaged_scans_are_refused_or_read_on_their_own_grid(tmp_path, seed, count):
    """A process of its own: its end would be the native readers', its address space the reader's alone."""
    # -W default: a warning of a reader is told, not raised.
    command = [sys.executable, "-W", "default", str(SCRIPT), str(tmp_path / "fuzz"), str(seed), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=5 * 60)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    kinds: dict[str, dict[str, int]] = {}
    for name, number in found["totals"].items():
        kind, what = name.split(" ", 1)
        kinds.setdefault(kind, {})[what] = number
    for kind, numbers in kinds.items():
        print(f"{kind}: {numbers}")
    print(f"{found['cases']} cases: at most {found['longest_s']:.2f} s and {found['largest_mb']:.1f} MB")
    assert found["violations"] == []
    assert found["cases"] == count == sum(found["totals"].values())
    assert len(kinds) == 11
    for numbers in kinds.values():  # the damage is real: most of it is found
        assert numbers["refused"] >= 0.3 * sum(numbers.values())
