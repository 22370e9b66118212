"""Dealing subjects into folds and smaller numbers; a subject is never on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrseg._checks import error
from mrseg.data.cases import Case
from mrseg.data.io import read_labels


def folds(cases: Sequence[Case], count: int, *, sequence: str, seed: int = 0) -> list[list[Case]]:
    """Deals the training subjects of a sequence into folds.

    Args:
        cases: subjects; those of the splits train and val are dealt, all cases of a subject together.
        count: folds, from 2 to the number of subjects with labelled scans of ``sequence``.
        sequence: whose labelled scans are dealt. Other training cases (the T1-w scans that a T2-w network is
            trained with besides) stay in the split train of every fold.
        seed: of the dealing.

    Returns:
        For every fold the cases with ``split`` set anew: its subjects are val, the others train. Every
        subject is val in exactly one fold; the folds differ by one subject at most. Test cases are as they
        were.

    Raises:
        InputError: fewer subjects than folds, or fewer than two folds.
    """
    dealt = sorted({case.subject for case in cases if is_dealt(case, sequence)})
    if not 2 <= count <= len(dealt):
        raise error(
            "Folds are at least 2 and at most the training subjects.",
            f"{count} folds of {len(dealt)} subjects with labelled {sequence} scans to train on",
            "Take fewer folds, or fill the split column of the manifest.",
        )
    order = [dealt[place] for place in np.random.default_rng(seed).permutation(len(dealt))]
    aside = [set(order[fold::count]) for fold in range(count)]

    def split(case: Case, held: set[str]) -> str:
        if case.split not in ("train", "val"):
            return case.split
        return "val" if case.subject in held else "train"

    return [[dataclasses.replace(case, split=split(case, held)) for case in cases] for held in aside]


def subset(cases: Sequence[Case], count: int, *, sequence: str, seed: int = 0) -> list[Case]:
    """Keeps ``count`` training subjects of a sequence; the smaller of two such sets lies in the larger.

    Other cases stay. The subjects left out lose the scan of ``sequence`` and stay if they have another.

    Raises:
        InputError: there are fewer than ``count``.
    """
    having = sorted(
        {case.subject for case in cases if case.split == "train" and has_labelled(case, sequence)}
    )
    if not 1 <= count <= len(having):
        raise error(
            f"There are as many training subjects with {sequence} as are asked for.",
            f"{count} of {len(having)}",
        )
    order = [having[place] for place in np.random.default_rng(seed).permutation(len(having))]
    left_out = set(order[count:])
    kept = []
    for case in cases:
        if case.split == "train" and case.subject in left_out:
            images = {name: file for name, file in case.images.items() if name != sequence}
            labels = {name: file for name, file in case.labels.items() if name != sequence}
            case = dataclasses.replace(case, images=images, labels=labels)
        kept += [case] if case.images else []
    return kept


def check_classes(dealt: Sequence[Sequence[Case]], sequence: str, class_names: Sequence[str]) -> None:
    """Raises InputError where a fold has no voxel of a class, in training or in validation."""
    present: dict[Path, set[int]] = {}
    for number, cases in enumerate(dealt, start=1):
        for split in ("train", "val"):
            found: set[int] = set()
            for case in cases:
                if case.split == split and has_labelled(case, sequence):
                    file = case.labels[sequence]
                    if file not in present:
                        present[file] = set(np.unique(read_labels(file, len(class_names))[0]).tolist())
                    found |= present[file]
            for value, name in enumerate(class_names):
                if value not in found:
                    raise error(
                        "Every fold has voxels of every class, in training and in validation.",
                        f"no {name} in the {split} subjects of fold {number}",
                        "Take fewer folds or another seed, or mend the labels.",
                    )


def training_subjects(cases: Sequence[Case], sequence: str) -> int:
    """How many training subjects have labelled scans of a sequence."""
    return len({case.subject for case in cases if case.split == "train" and has_labelled(case, sequence)})


def is_dealt(case: Case, sequence: str) -> bool:
    """Whether `folds` deals the subject of this case."""
    return case.split in ("train", "val") and has_labelled(case, sequence)


def has_labelled(case: Case, sequence: str) -> bool:
    """Whether a case has a scan of a sequence, with labels."""
    return sequence in case.images and sequence in case.labels
