"""How much memory there is, and what is said of work that needs more."""

import os

import pytest

from mrseg import memory
from mrseg._checks import InputError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """8 GB without a container's limit; 2 of them free, and 1 of swap space."""
    state = tmp_path / "meminfo"
    state.write_text("MemTotal: 1 kB\nMemAvailable: 1953125 kB\nSwapTotal: 976562 kB\n", encoding="utf-8")
    monkeypatch.setattr(memory, "_STATE", state)
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", [tmp_path / "max"])
    monkeypatch.setattr(memory, "_machine_mb", lambda: 8000.0)
    return tmp_path


def test_the_memory_of_a_container_counts_where_it_is_less(tmp_path, monkeypatch):
    machine_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    limits = [tmp_path / name for name in ("max", "low", "missing")]
    limits[0].write_text("max\n", encoding="utf-8")
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", limits)
    assert memory.memory_mb() == machine_mb
    assert 0 < memory.available_mb() <= machine_mb
    limits[1].write_text("1000000\n", encoding="utf-8")
    assert memory.memory_mb() == memory.available_mb() == 1


def test_what_fits_is_not_mentioned(machine, caplog):
    memory.check_memory(2000.0, "The maps", "Take less.")
    assert not caplog.text


def test_what_others_leave_no_room_for_is_a_warning(machine, caplog):
    memory.check_memory(2100.0, "The maps", "Take less.")
    assert "The maps may take 2.1 GB, and other programs leave 2.0 GB. Take less." in caplog.text


def test_what_cannot_fit_is_refused_and_swap_space_counts_outside_of_a_container(machine):
    memory.check_memory(8999.0, "The maps", "Take less.")
    with pytest.raises(InputError) as refused:
        memory.check_memory(9100.0, "The maps", "Take less.")
    assert str(refused.value) == (
        "The maps must fit into the memory. Received: up to 9.1 GB, where there are 9.0. Take less."
    )
    (machine / "max").write_text("7000000000", encoding="utf-8")
    with pytest.raises(InputError, match="up to 7.1 GB, where there are 7.0"):
        memory.check_memory(7100.0, "The maps", "Take less.")


def test_a_system_that_does_not_tell_is_taken_for_idle(machine, caplog, monkeypatch):
    monkeypatch.setattr(memory, "_STATE", machine / "missing")
    assert memory.available_mb() == 8000.0
    memory.check_memory(8000.0, "The maps", "Take less.")
    assert not caplog.text
