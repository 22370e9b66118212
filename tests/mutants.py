"""Mutation sampling: how many small faults in what measures, resamples and freezes do the tests notice?

    python tests/mutants.py [metrics geometry freezing] [--number 40] [--seed 1]

cosmic-ray makes the mutants (another operator, comparison, number or truth value; a condition negated, a loop
never entered, a decorator removed). Its own runner starts a process for each and changes the files in place;
here one process that has imported what tests need forks for each, and no file changes. Places in the code are
drawn, then one of the mutants of each place: an operator has eleven, most of which fail at once. Annotations
are left out. A mutant lives if the test file that mirrors its module passes. Ends with 1 where fewer than
85 % are killed. No mutant is excused: those that change no behaviour count as survivors.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.machinery
import importlib.util
import os
import random
import resource
import sys
import time
import warnings
from pathlib import Path

import conftest  # noqa: F401  the environment of every test
import hypothesis
import numpy  # noqa: F401  imported once, for every fork
import pytest
import scipy.stats  # noqa: F401
import SimpleITK  # noqa: F401
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "metrics": ("metrics.overlap", "metrics.surface", "metrics.confidence"),
    "geometry": ("data.geometry",),
    "freezing": ("transfer.freezing", "transfer.grouping"),
}
WANTED = 0.85
#: Many times what the tests need, of processor time and memory: a mutant that takes more is killed.
LIMIT_S, LIMIT_BYTES = 120, 8 * 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}; all if none")
    parser.add_argument("--number", type=int, default=40, help="mutants of each group")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ.pop("MRSEG_DATA", None)  # the same tests everywhere
    reached = [sample(name, options.number, options.seed) for name in options.groups or GROUPS]
    return 0 if min(reached) >= WANTED else 1


def sample(group: str, number: int, seed: int) -> float:
    """Tries mutants of a group, prints those that live, and returns the share of the killed."""
    if group == "freezing":
        import keras  # noqa: F401  the other groups' tests need none
    begin, killed = time.perf_counter(), 0
    sources = {module: path_of(module).read_text(encoding="utf-8") for module in GROUPS[group]}
    for module, source in sources.items():
        if not passes(module, source, quiet=False):
            raise SystemExit(f"{tests_of(module)} fails without any mutant.")
    places = [(module, place) for module, source in sources.items() for place in mutants(source).items()]
    draw = random.Random(seed)
    drawn = draw.sample(places, min(number, len(places)))
    for module, (_, choices) in sorted(drawn):
        source = sources[module]
        name, occurrence = draw.choice(choices)
        mutant = mutate_code(source, plugins.get_operator(name)(), occurrence)
        if passes(module, mutant):
            print(difference(path_of(module), source, mutant), flush=True)
        else:
            killed += 1
    share = killed / len(drawn)
    print(
        f"{group}: {killed} of {len(drawn)} mutants killed ({share:.1%}), at {len(places)} places; "
        f"seed {seed}, {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    return share


def mutants(source: str) -> dict[tuple, list[tuple[str, int]]]:
    """Place in the code (start, end) -> the mutants there: operator of cosmic-ray, its how manieth place."""
    nodes, ignored = list(ast_nodes(get_ast(source))), annotations(source)
    found: dict[tuple, list[tuple[str, int]]] = {}
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments():  # of variables by name, which cosmic-ray leaves to its user
            continue
        places = ((node, place) for node in nodes for place in kind().mutation_positions(node))
        for occurrence, (node, (start, end)) in enumerate(places):
            # cosmic-ray takes the star before keyword arguments for a product.
            star = node.parent and node.parent.type == "parameters"
            if not star and not any(first <= start < last for first, last in ignored):
                found.setdefault((start, end), []).append((name, occurrence))
    return dict(sorted(found.items()))


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where types are written, which nothing evaluates."""
    nodes = list(ast.walk(ast.parse(source)))
    written = [getattr(node, field, None) for node in nodes for field in ("annotation", "returns")]
    return [((at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)) for at in written if at]


class Mutated(importlib.machinery.SourceFileLoader):
    """Finds and loads one module of mrseg from the given source."""

    def __init__(self, module: str, source: str) -> None:
        super().__init__(f"mrseg.{module}", str(path_of(module)))
        self.source = source

    def find_spec(self, name: str, path: object = None, target: object = None):
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def get_code(self, fullname: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "is" with a number; whether that is a fault, the tests say
            return compile(self.source, self.path, "exec")


def passes(module: str, source: str, *, quiet: bool = True) -> bool:
    """Whether the module's own tests pass with this source, in a forked process."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S,) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES,) * 2)
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    # The same examples for every mutant, none kept from the one before, and no clock.
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    sys.meta_path.insert(0, Mutated(module, source))
    options = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    os._exit(pytest.main([*options, str(tests_of(module))]))


def difference(path: Path, source: str, mutant: str) -> str:
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), n=0, lineterm="")
    changed = [line for line in lines if line.startswith(("@", "-", "+"))][2:]
    return "\n".join([f"lives: {path.relative_to(ROOT)}", *changed])


def path_of(module: str) -> Path:
    return (ROOT / "mrseg" / module.replace(".", "/")).with_suffix(".py")


def tests_of(module: str) -> Path:
    folder, name = module.split(".")
    return ROOT / "tests" / folder / f"test_{name}.py"


if __name__ == "__main__":
    sys.exit(main())
