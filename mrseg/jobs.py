"""Independent jobs: one after the other, in processes of this machine, or on Dask workers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mrseg._checks import error, positive_ints

Job = TypeVar("Job")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
_ONE_AT_A_TIME = threading.Lock()

#: What is said of a job at which one worker after the other was killed.
LOST = "each worker that tried it was ended from outside (as for want of memory)"


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    scheduler: str = "",
    desc: str = "",
    unit: str = "job",
    progress: bool = True,
    lost: Callable[[Job], Result] | None = None,
) -> list[Result]:
    """Calls ``function`` with every job; all are tried before the first failure is raised.

    Args:
        function: of a module, so that other processes find it. Its results do not depend on the order.
        jobs: what it is called with, one by one.
        workers: processes on this machine, which share its cores evenly; 1 works in this process. More need a
            script with the guard ``if __name__ == "__main__"``.
        scheduler: address of a Dask scheduler, ``tcp://host:8786``; its workers do the jobs and ``workers``
            is not used. They see the same folders under the same names, do one job at a time, and use the
            threads that their OMP_NUM_THREADS says (Dask sets 1).
        desc, unit: of the bar.
        progress: show a bar.
        lost: gives the result of a job at which one Dask worker after the other was killed (as for want of
            memory); None makes that an error, after the others were done.

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
            return _on_dask(function, jobs, scheduler, bar, lost)
        if workers == 1 or len(jobs) < 2:
            return _here(function, jobs, bar)
        return _in_processes(function, jobs, min(workers, len(jobs)), bar)


def check_shared(files: Iterable[Path]) -> None:
    """Makes sure that what workers elsewhere have written lies here too.

    Raises:
        InputError: a file is missing.
    """
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise error(
            "Every worker writes into the same folders.",
            f"no {missing}, which a worker has written",
            "Share that folder under the same name, then start the same command again.",
        )


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
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _begin_process, (threads,)) as pool:
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
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # one that the interrupt did not reach would be waited for
            raise
        except BrokenProcessPool:
            raise error(
                "A process lives until its job is done.",
                "one that was ended from outside (as for want of memory)",
                "Start the same again, with fewer workers.",
            ) from None


def _begin_process(threads: int) -> None:
    """Tells the libraries of a fresh process, before they are imported, how many cores are theirs."""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_dask(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    scheduler: str,
    bar: tqdm,
    lost: Callable[[Job], Result] | None,
) -> list[Result]:
    try:
        import cloudpickle
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
    outcomes: list[Future] = [Future() for _ in jobs]
    with client, client.as_current():
        work = cloudpickle.dumps(function)
        futures = [client.submit(_in_worker, work, cloudpickle.dumps(job), pure=False) for job in jobs]
        places = {future: place for place, future in enumerate(futures)}
        for future in distributed.as_completed(futures):
            place = places[future]
            failure = future.exception()
            if failure is None:
                outcomes[place].set_result(future.result())
            elif not isinstance(failure, distributed.KilledWorker):
                outcomes[place].set_exception(failure)
            elif lost is not None:
                outcomes[place].set_result(lost(jobs[place]))
            else:
                outcomes[place].set_exception(
                    error(
                        "A worker lives until its job is done.",
                        f"a job, and {LOST}",
                        "Give the workers more memory, then start the same again.",
                    )
                )
            future.release()  # its result is here: a worker that is lost later takes none with it
            bar.update()
    return _results(outcomes)


def _in_worker(function: bytes, job: bytes) -> Any:
    """Does a job in a Dask worker; what it needs is imported only after the threads are bounded."""
    for name in _THREADS:
        os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", "1"))
    with _ONE_AT_A_TIME:  # a worker of several threads shares one network between its jobs
        return pickle.loads(function)(pickle.loads(job))


def _results(futures: Iterable[Any]) -> list[Any]:
    """The results; the first exception is raised only here, when all have ended."""
    return [future.result() for future in futures]
