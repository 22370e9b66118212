"""Runs the commands of a page of the documentation and writes what they print into it.

    python examples/build_pages.py docs/guides/six_scans.md            runs, and writes the page anew
    python examples/build_pages.py --check docs/guides/six_scans.md    fails if other words are printed

Commands are the lines that begin with ``$ `` in blocks marked ``console``; they run one after the other in
one empty folder. Long output is shown in part, and the folder of the package is written ``[mrseg]``.
Numbers differ in their last digits from processor to processor, and times from day to day, so that a check
compares words and layout, and numbers with a decimal point within a tenth.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import mrseg
from mrseg.cli import main as run

BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
PACKAGE = Path(mrseg.__file__).parent
#: A figure with the sign that stands before it, not the hyphen of a word or a range.
FIGURE = re.compile(r"(?:(?<![\w.-])[-\N{MINUS SIGN}])?\d+(?:\.\d+)+")
#: A block longer than this shows its head and its end.
LONGEST, HEAD, TAIL = 40, 26, 8


def printed(command: str) -> str:
    """What a command of mrseg writes to its standard output; it must succeed."""
    words = shlex.split(command.replace("\\\n", " "))
    if words[:1] != ["mrseg"]:
        raise ValueError(f"A console block has commands of mrseg. Received: {command}")
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = run(words[1:])
    if code:
        raise RuntimeError(f"exit code {code}: {command}")
    return text.getvalue().strip("\n").replace(str(PACKAGE), "[mrseg]")


def run_page(text: str) -> str:
    """The page with the output of every console block made anew, in a temporary folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            return BLOCK.sub(lambda block: f"```console\n{_run_block(block.group(1))}```", text)
        finally:
            os.chdir(before)


def differences(old: str, new: str) -> list[str]:
    """What a check complains about: other words, or numbers further apart than a tenth (and 0.05)."""
    found = []
    for ours, theirs in zip(BLOCK.findall(old), BLOCK.findall(new), strict=True):
        a, b = ours.splitlines(), theirs.splitlines()
        if len(a) != len(b):
            found.append(f"{len(a)} lines, now {len(b)}: {a[0]}")
        for left, right in zip(a, b, strict=False):
            if _words(left) != _words(right) or not _near(left, right):
                found.append(f"- {left}\n+ {right}")
    return found


def _run_block(block: str) -> str:
    command = ""
    lines = []
    for line in block.splitlines():
        if line.startswith("$ ") or command.endswith("\\"):
            command += ("\n" if command else "") + line.removeprefix("$ ")
            lines.append(line)
            if not command.endswith("\\"):
                output = printed(command).splitlines()
                if len(output) > LONGEST:
                    output = [*output[:HEAD], "[...]", *output[-TAIL:]]
                lines += [line.rstrip() for line in output]
                command = ""
    return "\n".join(lines) + "\n"


def _words(line: str) -> list[str]:
    # Columns move with the width of their numbers.
    return re.sub(r"[-\s]+", " ", NUMBER.sub("#", line).replace("\N{MINUS SIGN}", "")).split()


def _near(left: str, right: str) -> bool:
    pairs = zip(FIGURE.findall(left), FIGURE.findall(right), strict=True)
    return all(a == b or abs(_value(a) - _value(b)) <= 0.05 + 0.1 * abs(_value(a)) for a, b in pairs)


def _value(text: str) -> float:
    if text.count(".") > 1:  # a version is the same or another
        return float("nan")
    return float(text.replace("\N{MINUS SIGN}", "-"))


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if a check found a difference."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("pages", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    failed = False
    for page in options.pages:
        old = page.read_text(encoding="utf-8")
        new = run_page(old)
        if options.check:
            found = differences(old, new)
            print("\n".join(found) or f"{page}: as printed")
            failed |= bool(found)
        else:
            page.write_text(new, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
