"""Jobs: the same results wherever they are done, all tried before a failure is raised."""

import functools
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrseg import jobs
from mrseg._checks import InputError
from mrseg.jobs import run_jobs

SQUARES = [float(i * i) for i in range(6)]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert run_jobs(math.sqrt, SQUARES, workers=workers, progress=False) == [0, 1, 2, 3, 4, 5]


def test_every_job_is_tried_before_the_first_failure_is_raised():
    tried = []

    def job(number):
        tried.append(number)
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        run_jobs(job, [1, 0, 2, 0, 3], progress=False)
    assert tried == [1, 0, 2, 0, 3]


def test_a_failure_in_another_process_is_raised_here():
    with pytest.raises(ValueError, match="math domain"):
        run_jobs(math.sqrt, [4.0, -1.0, 9.0], workers=2, progress=False)


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    # os.getenv is found by other processes; functions of a test module are not.
    found = run_jobs(os.getenv, ["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"], workers=2, progress=False)
    assert found == ["3", "3"]


def test_no_job_is_no_result_and_no_process():
    assert run_jobs(math.sqrt, [], workers=4, progress=False) == []


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_workers_are_a_positive_number(workers):
    with pytest.raises(InputError, match="workers"):
        run_jobs(math.sqrt, SQUARES, workers=workers, progress=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_dask_do_the_same_jobs():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster:
        address = cluster.scheduler_address
        assert run_jobs(math.sqrt, SQUARES, scheduler=address, progress=False) == [0, 1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="math domain"):
            run_jobs(math.sqrt, [1.0, -1.0], scheduler=address, progress=False)


def test_a_worker_of_dask_uses_the_threads_it_was_given(monkeypatch):
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "")  # put back at the end, whoever sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    function, job = pickle.dumps(os.getenv), pickle.dumps("TF_NUM_INTRAOP_THREADS")
    assert jobs._in_worker(function, job) == "3"
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "2")  # who says otherwise is heard
    assert jobs._in_worker(function, job) == "2"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_that_kills_every_worker_is_told_and_the_others_are_done():
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        options = {"scheduler": cluster.scheduler_address, "progress": False}
        done = run_jobs(_kill_or_square, [2, -1, 3], lost=lambda job: ("lost", job), **options)
        assert done == [4, ("lost", -1), 9]
        with pytest.raises(InputError, match="lives until its job is done.*more memory"):
            run_jobs(_kill_or_square, [2, -1], **options)


def _kill_or_square(number):
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_files_that_a_worker_has_written_elsewhere_are_missed(tmp_path):
    (tmp_path / "here").touch()
    jobs.check_shared([tmp_path / "here"])
    with pytest.raises(InputError, match="same folders.*elsewhere"):
        jobs.check_shared([tmp_path / "here", tmp_path / "elsewhere"])


def test_a_scheduler_that_is_none_is_told():
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="Dask scheduler answers.*nowhere://1"):
        run_jobs(math.sqrt, SQUARES, scheduler="nowhere://1", progress=False)


def test_a_process_that_is_killed_is_told_in_one_line():
    with pytest.raises(InputError, match="lives until its job is done.*fewer workers"):
        run_jobs(os._exit, [1, 1, 1], workers=2, progress=False)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a group of processes")
def test_ctrl_c_begins_no_further_job(tmp_path):
    """Both processes are interrupted in their first job; the four that wait are not begun."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\nfrom mrseg.jobs import run_jobs\n"
        "def job(n):\n    open(f'begun{n}', 'w').close()\n    time.sleep(30)\n"
        "if __name__ == '__main__':\n    run_jobs(job, range(6), workers=2, progress=False)\n",
        encoding="utf-8",
    )
    here = {**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[1])}
    running = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env=here, start_new_session=True,
        stderr=subprocess.DEVNULL,
        # A shell lets what it starts in the background ignore Ctrl-C, and so would the tests' processes.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        limit = time.monotonic() + 30
        while len(list(tmp_path.glob("begun*"))) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(timeout=15) != 0
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert len(list(tmp_path.glob("begun*"))) == 2


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_whose_parent_was_killed_end(tmp_path):
    """Else each would wait for a next job for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\nfrom mrseg.jobs import run_jobs\n"
        "def job(n):\n    open(f'begun{os.getpid()}', 'w').close()\n    time.sleep(1)\n"
        "if __name__ == '__main__':\n    run_jobs(job, range(60), workers=2, progress=False)\n",
        encoding="utf-8",
    )
    here = {**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[1])}
    running = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env=here, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 30
    while len(begun := [int(file.name[5:]) for file in tmp_path.glob("begun*")]) < 2:
        assert time.monotonic() < limit
        time.sleep(0.05)
    running.kill()
    running.wait()
    limit = time.monotonic() + 15
    while any(Path(f"/proc/{process}").exists() for process in begun):
        assert time.monotonic() < limit
        time.sleep(0.05)
