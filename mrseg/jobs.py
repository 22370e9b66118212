"""Independent jobs: one after the other, in processes of this machine, or on Dask workers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from mrseg._checks import error, positive_ints

Job = TypeVar("Job")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    scheduler: str = "",
    desc: str = "",
    unit: str = "job",
    progress: bool = True,
) -> list[Result]:
    """Calls ``function`` with every job; all are tried before the first failure is raised.

    Args:
        function: of a module, so that other processes find it. Its results do not depend on the order.
        jobs: what it is called with, one by one.
        workers: processes on this machine, which share its cores evenly; 1 works in this process. More need a
            script with the guard ``if __name__ == "__main__"``.
        scheduler: address of a Dask scheduler, ``tcp://host:8786``; its workers do the jobs and ``workers``
            is not used. They see the same folders under the same names.
        desc, unit: of the bar.
        progress: show a bar.

    Returns:
        The results in the order of the jobs.

    Raises:
        InputError: ``workers`` is not positive; a process that was killed; a scheduler without the package
            dask.distributed, or one that does not answer.
        Exception: what the first failed job raised, after the others were done.
    """
    positive_ints("workers", (workers,), 1)
    bar = tqdm(total=len(jobs), desc=desc, unit=unit, disable=not progress)
    with bar:
        if scheduler:
            return _on_dask(function, jobs, scheduler, bar)
        if workers == 1 or len(jobs) < 2:
            return _here(function, jobs, bar)
        return _in_processes(function, jobs, min(workers, len(jobs)), bar)


def _here(function: Callable[[Job], Result], jobs: Sequence[Job], bar: tqdm) -> list[Result]:
    done: list[Future] = []
    for job in jobs:
        future: Future = Future()
        try:
            future.set_result(function(job))
        except Exception as reason:
            future.set_exception(reason)
        done.append(future)
        bar.update()
    return _results(done)


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, bar: tqdm
) -> list[Result]:
    # Fresh processes: ITK and TensorFlow survive no fork.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, context, _limit_threads, (threads,)) as pool:
        futures: list[Future] = []
        running: set[Future] = set()
        try:
            # No job waits in a process: Ctrl-C ends what runs, and nothing is begun after it.
            for job in jobs:
                if len(running) == workers:
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    bar.update(len(ended))
                futures.append(pool.submit(function, job))
                running.add(futures[-1])
            for _ in as_completed(running):
                bar.update()
            return _results(futures)
        except BrokenProcessPool:
            raise error(
                "A process lives until its job is done.",
                "one that was ended from outside (as for want of memory)",
                "Start the same again, with fewer workers.",
            ) from None


def _limit_threads(threads: int) -> None:
    """Tells the libraries of a fresh process, before they are imported, how many cores are theirs."""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))


def _on_dask(
    function: Callable[[Job], Result], jobs: Sequence[Job], scheduler: str, bar: tqdm
) -> list[Result]:
    try:
        from dask import distributed
    except ImportError:
        raise error(
            "Workers of a cluster are reached through Dask.",
            f"scheduler {scheduler} without the package distributed",
            "pip install 'mrseg[dask]'.",
        ) from None
    try:
        client = distributed.Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as reason:
        raise error(
            "A Dask scheduler answers at its address.",
            f"{scheduler} ({reason})",
            "Start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`.",
        ) from None
    with client, client.as_current():
        futures = [client.submit(function, job, pure=False) for job in jobs]
        for _ in distributed.as_completed(futures):
            bar.update()
        return _results(futures)


def _results(futures: Iterable[Any]) -> list[Any]:
    """The results; the first exception is raised only here, when all have ended."""
    return [future.result() for future in futures]
