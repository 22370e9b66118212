"""The claims about Keras metrics and losses hold on JAX: a choice by default, all with the slow tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

CHOICE = (
    "beyond_the_digits or fit_logs and float32 or outside_the_table "
    "or half_a_volume and True and (cross_entropy or tversky)"
)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="started by the tests on TensorFlow")
@pytest.mark.parametrize(
    "claims", [pytest.param(CHOICE, id="choice"), pytest.param("", marks=pytest.mark.slow, id="all")]
)
def test_the_claims_hold_on_jax(claims):
    pytest.importorskip("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    files = [str(Path(__file__).with_name(name)) for name in ("test_streaming.py", "test_losses.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", claims, *files],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
