"""Public names are looked up on first use, so that `import mrseg` loads neither TensorFlow nor ITK."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(
    package: str, names: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns ``__getattr__``, ``__dir__`` and ``__all__`` for a package's ``__init__``.

    Args:
        package: ``__name__`` of the package.
        names: submodule -> public names that live in it.
        modules: submodules that are public themselves.
    """
    home = {name: module for module, public in names.items() for name in public}
    public = sorted({*home, *modules})

    def __getattr__(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(public)}")

    return __getattr__, lambda: public, public
