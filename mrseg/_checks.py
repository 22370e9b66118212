"""One voice for errors: the rule, what was received, the remedy."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: Label of voxels that nobody may judge (outside the CT's field of view). Losses, metrics and
#: reports give such a voxel no gradient and no count.
IGNORE_LABEL = 255


class InputError(ValueError):
    """The user's input breaks a rule; the message is one line fit to be shown without a traceback."""


def error(rule: str, received: object, remedy: str = "") -> InputError:
    """Builds (does not raise) the error ``<rule> Received: <received>. <remedy>``.

    Example:
        >>> raise error("num_classes counts the background, so it is at least 2.", 1)
        Traceback (most recent call last):
        mrseg._checks.InputError: num_classes counts the background, so it is at least 2. Received: 1.
    """
    message = f"{rule} Received: {received}."
    return InputError(f"{message} {remedy}" if remedy else message)


def existing_file(path: str | Path) -> Path:
    """Returns ``path`` as a Path, or raises FileNotFoundError naming it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"The file must exist. Received: {path}. Check the name, and the folder that a "
            f"relative path starts from ({Path.cwd()})."
        )
    if path.is_dir():
        raise error("A file is needed here, not a folder.", path)
    return path


def existing_folder(path: str | Path) -> Path:
    """Returns ``path`` as a Path, or raises FileNotFoundError naming it."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"The folder must exist. Received: {path}.")
    return path


def choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Returns the one of ``choices`` that equals ``value``, else raises an error that lists them."""
    choices = list(choices)
    if value in choices:
        return choices[choices.index(value)]
    raise error(f"{name} is one of {', '.join(map(str, choices))}.", repr(value), nearest(value, choices))


def nearest(value: Any, choices: Iterable[Any]) -> str:
    """Asks whether the most similar of ``choices`` was meant; "" if none is similar."""
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def positive_ints(name: str, value: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """Returns ``value`` as a tuple of positive ints (of ``length`` items if given); NumPy's ints count."""
    try:
        items = tuple(value)
    except TypeError:
        items = ()
    good = bool(items) and all(
        isinstance(v, numbers.Integral) and not isinstance(v, bool) and v > 0 for v in items
    )
    if not good or (length is not None and len(items) != length):
        if length == 1:
            raise error(f"{name} is a positive whole number.", repr(items[0]) if items else repr(value))
        many = f"{length} positive whole numbers" if length else "positive whole numbers"
        raise error(f"{name} is a sequence of {many}.", repr(value))
    return tuple(int(v) for v in items)
