"""Jobs: the same results wherever they are done, all tried before a failure is raised."""

import math
import os

import pytest

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
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        assert run_jobs(math.sqrt, SQUARES, scheduler=address, progress=False) == [0, 1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="math domain"):
            run_jobs(math.sqrt, [1.0, -1.0], scheduler=address, progress=False)


def test_a_scheduler_that_is_none_is_told():
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="Dask scheduler answers.*nowhere://1"):
        run_jobs(math.sqrt, SQUARES, scheduler="nowhere://1", progress=False)
