"""Methods timed side by side: every round runs each once, in turning order; ratios are within a round.

Whatever else the machine does then hits all methods alike. `Worker` runs a method in a process of its own,
so that two libraries' threads and allocators do not share one::

    methods = {
        "mrseg": Worker("training:keras_step", "segnet"),
        "PyTorch": Worker("training:torch_step", "segnet", variables=twin.TUNED_ALLOCATOR),
    }
    timings = compare(methods, rounds=7)      # the first method is ours
    print(timings["PyTorch"].ratio)           # theirs / ours
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from machine import processor


class Timing(NamedTuple):
    """One method over all rounds.

    Attributes:
        seconds: median of the wall clock.
        cpu_seconds: median of all threads together.
        ratio: median over the rounds of its seconds / the first method's; ``ratio_low`` to ``ratio_high``.
    """

    seconds: float
    cpu_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


def compare(methods: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """Times every method ``rounds`` times after ``warm_up`` runs that are not counted.

    Args:
        methods: name -> what to run; a `Worker` is timed inside its process. Ratios are to the first.
    """
    names, taken = list(methods), {name: [] for name in methods}
    for method in methods.values():
        for _ in range(warm_up):
            method()
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(timed(methods[name]))
    ours = taken[names[0]]
    timings = {}
    for name, pairs in taken.items():
        ratios = [mine / first for (mine, _), (first, _) in zip(pairs, ours, strict=True)]
        seconds, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        timings[name] = Timing(seconds, cpu, statistics.median(ratios), min(ratios), max(ratios))
    return timings


def timed(method: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock and of all threads together that one run takes."""
    if isinstance(method, Worker):
        return method()
    start, worked = time.perf_counter(), time.process_time()
    method()
    return time.perf_counter() - start, time.process_time() - worked


class Worker:
    """A method in a process of its own that is made once and then runs whenever it is called.

    Args:
        factory: "module:function"; the function takes ``arguments`` and returns what is to be timed, a
            function without arguments. The module imports no peer before the function is called.
        variables: of the environment, set before the process starts (allocators read them then).
    """

    def __init__(self, factory: str, *arguments: Any, variables: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        before = {name: os.environ.get(name) for name in variables or {}}
        os.environ.update(variables or {})
        try:
            self.process = context.Process(target=_serve, args=(far, factory, arguments), daemon=True)
            self.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        far.close()
        self.made_in: float = self._answer()

    def __call__(self) -> tuple[float, float]:
        """Runs once; seconds on the clock and of all threads, measured in the process."""
        self.pipe.send("run")
        return self._answer()

    def result(self) -> Any:
        """What one more run returns, for checks and for figures that are no times."""
        self.pipe.send("result")
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.pipe.close()
        self.process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        kind, value = self.pipe.recv()
        if kind == "error":
            raise RuntimeError(f"the worker failed: {value}")
        return value


def _serve(pipe: Any, factory: str, arguments: tuple[Any, ...]) -> None:
    """Makes the method, then runs it on demand until the pipe is closed."""
    try:
        module, _, function = factory.partition(":")
        start = time.perf_counter()
        method = getattr(importlib.import_module(module), function)(*arguments)
        pipe.send(("made", time.perf_counter() - start))
        while True:
            wish = pipe.recv()
            pipe.send(("result", method()) if wish == "result" else ("timed", timed(method)))
    except EOFError:
        return
    except Exception as failure:
        pipe.send(("error", f"{type(failure).__name__}: {failure}"))


def rows(
    work: Mapping[str, Any],
    timings: Mapping[str, Timing],
    *,
    rounds: int,
    threads: Any,
    packages: Iterable[str],
) -> list[dict[str, Any]]:
    """One row a method: the columns of ``work`` (what was done), its timing, and where it was measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    about = {"rounds": rounds, "threads": threads, "machine": processor(), "versions": versions}
    return [
        {**work, "method": name, **{key: round(value, 4) for key, value in timing._asdict().items()}, **about}
        for name, timing in timings.items()
    ]
