"""Cases: which files belong to one subject, and in which split the subject is."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mrseg._checks import choice, error, existing_file
from mrseg._files import atomic_file
from mrseg.data.geometry import grid_distance_mm
from mrseg.data.io import volume_header

#: The names a split may have; "" is a case that belongs to none yet.
SPLITS = ("train", "val", "test")

_ABSENT = ("", "n/a")  # "n/a" is how BIDS writes a missing value
_LABELS_OF = "labels_"
_OWN = ("subject", "session", "ct", "labels", "split")  # every other column is a sequence


@dataclass(frozen=True)
class Case:
    """One subject's files.

    Attributes:
        subject: identifier; the unit of every split.
        images: sequence ("T1w", "T2w", "dsc", ...) -> scan: a file, or the folder of a DICOM series.
        ct: CT, likewise, on its own grid, or None.
        labels: sequence -> label file on that image's grid.
        split: "train", "val", "test", or "" for none.
        session: which visit of the subject; "" where there is one only.
    """

    subject: str
    images: dict[str, Path]
    ct: Path | None = None
    labels: dict[str, Path] = field(default_factory=dict)
    split: str = ""
    session: str = ""

    @property
    def name(self) -> str:
        """The subject, with ``_ses-<session>`` if there is one: a name of this case alone."""
        return f"{self.subject}_ses-{self.session}" if self.session else self.subject


def read_cases(tsv: str | Path) -> list[Case]:
    """Reads a table of cases, one row per subject, or per subject and session.

    Columns: ``subject``; one per sequence, named as the sequence (``T1w``); optional ``session``, ``ct``,
    ``split``, and ``labels`` or ``labels_<sequence>``. ``labels`` belongs to every sequence of the row on
    whose grid it lies (the headers are compared if there are several). Paths are relative to the table's
    folder; an empty cell or ``n/a`` is a missing one.

    Args:
        tsv: tab-separated UTF-8 text with a header line.

    Raises:
        FileNotFoundError: the table, or a file it names (with row and column).
        InputError: no ``subject`` column, an empty table, a subject in two rows of one session or in two
            splits, an unknown split, a row without an image, labels for a sequence the row lacks or on the
            grid of none.

    Example:
        A table of two subjects (columns separated by one tab)::

            subject  T1w           ct            split
            s01      s01_T1.nii.gz s01_ct.nii.gz train
            s02      s02_T1.nii.gz n/a           test
    """
    tsv = existing_file(tsv)
    rows = _read_rows(tsv)
    cases = [_case(tsv, number, row) for number, row in rows]
    seen: dict[str, tuple[int, Case]] = {}
    for (number, _), case in zip(rows, cases, strict=True):
        if case.name in seen:
            first, other = seen[case.name]
            raise error(
                f"{tsv}: a subject has one row, or one for each session.",
                f"{case.name} in row {first} (split {other.split!r}) and row {number} ({case.split!r})",
                "Remove one, put both sequences of the subject in one row, or fill a column 'session'.",
            )
        seen[case.name] = (number, case)
    check_splits(cases, required=())
    return cases


def write_cases(cases: Iterable[Case], tsv: str | Path) -> None:
    """Writes cases as a table that ``read_cases`` reads back.

    Args:
        cases: at least one.
        tsv: file to write, whole or not at all. Files below its folder are written as relative paths.
    """
    cases = list(cases)
    if not cases:
        raise error("A table has at least one case.", "none")
    tsv = Path(tsv)
    sequences = list(dict.fromkeys(name for case in cases for name in case.images))
    labelled = [name for name in sequences if any(name in case.labels for case in cases)]
    has_ct = ["ct"] if any(case.ct for case in cases) else []
    has_session = ["session"] if any(case.session for case in cases) else []
    labels = [_LABELS_OF + name for name in labelled]
    columns = ["subject", *has_session, *sequences, *has_ct, *labels, "split"]
    with atomic_file(tsv) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for case in cases:
            files = [case.images.get(name) for name in sequences]
            files += [case.ct] if has_ct else []
            files += [case.labels.get(name) for name in labelled]
            named = [case.subject, *([case.session or "n/a"] if has_session else [])]
            writer.writerow([*named, *(_cell(file, tsv.parent) for file in files), case.split or "n/a"])


def select(cases: Iterable[Case], split: str) -> list[Case]:
    """Returns the cases of one split; an empty split is an error that lists the splits there are."""
    cases = list(cases)
    choice("split", split, SPLITS)
    selected = [case for case in cases if case.split == split]
    if not selected:
        counts = dict(Counter(case.split or "(none)" for case in cases))
        raise error(f"The split {split!r} has at least one case.", f"cases per split {counts}", _SPLIT_REMEDY)
    return selected


_SPLIT_REMEDY = "Fill the split column of the manifest; in Python mrseg.data.split_by_subject does."


def check_splits(cases: Iterable[Case], required: Sequence[str] = ("train", "val")) -> None:
    """Raises an error if a subject is in two splits, a split is unknown or a required one is empty.

    Args:
        cases: several cases may share a subject (sessions) if they share its split.
        required: splits that must have a case.
    """
    cases = list(cases)
    split_of: dict[str, str] = {}
    for case in cases:
        if case.split:
            choice(f"split of subject {case.subject}", case.split, SPLITS)
        if split_of.setdefault(case.subject, case.split) != case.split:
            raise error(
                "A subject is in one split only; otherwise the test has seen its training data.",
                f"{case.subject} in {split_of[case.subject]!r} and {case.split!r}",
                _SPLIT_REMEDY,
            )
    for split in required:
        select(cases, split)


def split_by_subject(cases: Iterable[Case], fractions: Mapping[str, float], seed: int) -> list[Case]:
    """Deals the subjects at random into splits; all cases of a subject go together.

    Args:
        cases: in any order; the result depends only on the set of subjects and the seed.
        fractions: split -> share of the subjects, positive, summing to 1. Every split gets at least one
            subject; the counts are within one of the exact share otherwise.
        seed: of the random order.

    Returns:
        New cases in the given order, with ``split`` set.

    Raises:
        InputError: unknown splits, shares that do not sum to 1, fewer subjects than splits.
    """
    cases = list(cases)
    for name in fractions:
        choice("split", name, SPLITS)
    shares = np.array(list(fractions.values()), dtype=float)
    if not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise error("fractions are positive and sum to 1.", dict(fractions))
    subjects = sorted({case.subject for case in cases})
    if len(subjects) < len(shares):
        raise error(
            "Every split gets at least one subject.", f"{len(subjects)} subjects for {len(shares)} splits"
        )
    order = np.random.default_rng(seed).permutation(len(subjects))
    counts = _whole_shares(shares, len(subjects))
    dealt = np.repeat(list(fractions), counts)
    split_of = {subjects[place]: str(split) for place, split in zip(order, dealt, strict=True)}
    return [dataclasses.replace(case, split=split_of[case.subject]) for case in cases]


def _whole_shares(shares: np.ndarray, total: int) -> np.ndarray:
    """Largest-remainder rounding of ``shares * total`` with at least 1 each."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(int)
    for place in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[place] += 1
    while (counts == 0).any():
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return counts


def _read_rows(tsv: Path) -> list[tuple[int, dict[str, str]]]:
    """The filled rows with their line numbers in the file (the header is line 1)."""
    try:
        with tsv.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t")
            lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as reason:
        raise error(
            f"{tsv}: a table is UTF-8 text.", reason, "Save it as tab-separated UTF-8 text."
        ) from reason
    lines = [(number, cells) for number, cells in lines if any(cells)]
    header = lines[0][1] if lines else []
    if "subject" not in header or len(set(header)) < len(header):
        raise error(
            f"{tsv}: the header line names each column once, 'subject' among them.",
            f"columns {header}",
            "Separate columns by tabs.",
        )
    for column in header:
        if column not in _OWN and column.lower() in _OWN:
            raise error(
                f"{tsv}: columns that mrseg knows are written small.",
                repr(column),
                f"Write {column.lower()!r}.",
            )
    if len(lines) == 1:
        raise error(f"{tsv}: a table has at least one row.", "the header line only")
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            raise error(f"{tsv}: a row has {len(header)} cells.", f"{len(cells)} in row {number}")
    return [(number, dict(zip(header, cells, strict=False))) for number, cells in lines[1:]]


def _case(tsv: Path, number: int, row: Mapping[str, str]) -> Case:
    filled = {column: cell for column, cell in row.items() if cell not in _ABSENT}
    where = f"{tsv}, row {number}"
    subject, split = filled.pop("subject", None), filled.pop("split", "")
    session = filled.pop("session", "")
    if subject is None:
        raise error(f"{where}: every row names its subject.", dict(row))
    if split:
        choice(f"{where}: split", split, SPLITS)
    files = {column: _file(where, column, tsv.parent / cell) for column, cell in filled.items()}
    ct = files.pop("ct", None)
    shared = files.pop("labels", None)
    labels = {
        name.removeprefix(_LABELS_OF): files.pop(name) for name in list(files) if name.startswith(_LABELS_OF)
    }
    if not files:
        raise error(f"{where}: a case has an image of at least one sequence.", f"columns {sorted(filled)}")
    for sequence in labels:
        if sequence not in files:
            raise error(
                f"{where}: {_LABELS_OF}{sequence} needs an image in column {sequence}.", sorted(files)
            )
    if shared is not None:
        labels = {**{sequence: shared for sequence in _on_grid(where, shared, files)}, **labels}
    return Case(subject, files, ct, labels, split, session)


def _file(where: str, column: str, path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{where}, column {column}: the file must exist. Received: {path}. Paths start from "
            "the table's folder; columns besides subject, session, ct, labels, labels_<sequence>, split are "
            "sequences."
        )
    return path


def _on_grid(where: str, labels: Path, images: Mapping[str, Path]) -> list[str]:
    """The sequences whose image lies on the grid of ``labels``; with one image there is no question."""
    if len(images) == 1:
        return list(images)
    grid = volume_header(labels)
    distances = {name: grid_distance_mm(*volume_header(file), *grid) for name, file in images.items()}
    matching = [name for name, distance in distances.items() if distance <= 0.01]
    if not matching:
        raise error(
            f"{where}: labels lie on the grid of at least one image.",
            f"{labels}, at a distance in mm of {distances} (inf: another shape)",
            "Resample the labels (order=0), or name the right file.",
        )
    return matching


def _cell(file: Path | None, folder: Path) -> str:
    if file is None:
        return "n/a"
    inside = file.absolute().is_relative_to(folder.absolute())
    return str(file.absolute().relative_to(folder.absolute()) if inside else file.absolute())
