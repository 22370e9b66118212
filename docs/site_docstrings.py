"""Docstrings as the documentation's site shows them: a griffe extension (`extensions` in mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: What our docstrings write -> what griffe and Markdown read.
_RULES = (
    (re.compile(r":(?:func|data|class|meth|attr|mod):`~?(?:[\w.]+\.)?(\w+)`"), r"`\1`"),
    (re.compile(r"^Example:$", re.MULTILINE), "Examples:"),  # a section of code
    (re.compile(r"^Deviation: ", re.MULTILINE), "**Deviation:** "),  # a paragraph, not a titled box
    (re.compile(r"^Note: ", re.MULTILINE), "**Note:** "),
)


def shown(docstring: str) -> str:
    """The docstring in the words that the site's reader of docstrings knows."""
    for pattern, replacement in _RULES:
        docstring = pattern.sub(replacement, docstring)
    return docstring


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = shown(obj.docstring.value)
