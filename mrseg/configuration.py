"""YAML pages: read with their base, overridden key by key, turned into frozen dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from mrseg._checks import choice, error, existing_file


def list_pages(folder: Path) -> list[str]:
    """Names of the pages in a folder of the package."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_page(
    name_or_path: str | Path,
    folder: Path,
    what: str,
    *,
    own: tuple[str, ...] = (),
    above: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Reads a page by name, or from a file; keys of its ``base`` that it does not give are inherited.

    Args:
        name_or_path: name of a page in ``folder``, or a path that ends in .yaml or .yml.
        folder: of the pages that come with mrseg.
        what: a page is called in errors, say ``recipe``.
        own: keys that are not inherited.
        above: pages that name this one as their base.

    Raises:
        InputError: no such page, no YAML, a page that is its own base.
        FileNotFoundError: no such file.
    """
    if str(name_or_path) in above:
        raise error(f"A {what} is not its own base.", " -> ".join((*above, str(name_or_path))))
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = existing_file(text)
    else:
        path = folder / f"{choice(f'The {what}', text, list_pages(folder))}.yaml"
    try:
        page = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise error(f"A {what} is a YAML page.", f"{path}: {' '.join(str(reason).split())}") from None
    if not isinstance(page, dict):
        raise error(f"A {what} is a YAML page of keys and values.", path)
    base = page.pop("base", None)
    if base is None:
        return page
    inherited = read_page(base, folder, what, own=own, above=(*above, text))
    return _merge({key: value for key, value in inherited.items() if key not in own}, page)


def _merge(base: dict[str, Any], page: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in page.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def override(page: dict[str, Any], text: str) -> None:
    """Sets ``key=value`` in a page, with dots into its groups; the value is YAML.

    Raises:
        InputError: no equals sign, a value that is no YAML, a key inside a value that is no group.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise error("An override is key=value.", repr(text), "Write training.epochs=12.")
    *parents, last = key.split(".")
    for parent in parents:
        inner = page.get(parent)
        if inner is None:
            inner = page[parent] = {}
        if not isinstance(inner, dict):
            raise error(f"{parent} holds no further keys.", repr(text))
        page = inner
    try:
        page[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise error(f"The value of {key} is YAML.", repr(value)) from None


def build(kind: type, values: Any, what: str, place: str = "") -> Any:
    """A dataclass from a mapping, every key known and every value of the declared type.

    Raises:
        InputError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise error(f"{place} is a group of keys.", repr(values))
    hints = typing.get_type_hints(kind)
    for key in values:
        choice(f"A key of {place or f'a {what}'}", key, hints)
    needed = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in needed:
        if name not in values:
            raise error(f"{place or f'A {what}'} needs the key {name}.", f"only {', '.join(values)}")
    return kind(
        **{key: value_of(hints[key], value, f"{place}.{key}".strip(".")) for key, value in values.items()}
    )


def value_of(hint: Any, value: Any, place: str) -> Any:
    """The value as its declared type, or an error that names the ``place``."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, "page", place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        exact = [a for a in options if isinstance(a, type) and type(value) is a]
        return value_of((exact or options)[0], value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise error(f"{place} is a list.", repr(value))
        item = arguments[0]
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise error(f"{place} is a list of {len(arguments)} values.", repr(value))
        return tuple(value_of(item, v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        value = {} if value is None else value  # null empties a group that the base filled
        if not isinstance(value, dict):
            raise error(f"{place} is a group of keys.", repr(value))
        return value
    return _scalar(hint, value, place)


def _scalar(kind: type, value: Any, place: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    remedy = ""
    if kind is float and isinstance(value, str):
        remedy = "YAML reads 1e-3 as text: write 1.0e-3."
    raise error(f"{place} is {words[kind]}.", repr(value), remedy)


def as_plain(value: Any) -> Any:
    """Mappings and lists of plain values, as YAML and JSON write them."""
    if isinstance(value, dict):
        return {key: as_plain(v) for key, v in value.items()}
    return [as_plain(v) for v in value] if isinstance(value, tuple | list) else value
