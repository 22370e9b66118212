"""Examples, what a network trains on: image and labels on the network's grid, in memory or on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mrseg._checks import IGNORE_LABEL, error
from mrseg.data.case_cache import CaseCache
from mrseg.data.cases import Case
from mrseg.data.contrast import random_contrast
from mrseg.data.geometry import Volume, check_same_grid
from mrseg.data.io import read_labels, read_volume, volume_header
from mrseg.data.preprocessing import Preprocessing

#: Image (x, y, z) float32 and labels (x, y, z) uint8; arrays, or what stands for them in a `CaseCache`.
Example = tuple[np.ndarray, np.ndarray]

_HEADERS = 32  # scans whose headers tell how large a cohort is


def load_example(case: Case, sequence: str, preprocessing: Preprocessing, num_classes: int) -> Example:
    """Reads one case and brings it onto the network's grid.

    Returns:
        Image (x, y, z) float32 and labels (x, y, z) uint8.

    Raises:
        InputError: the case lacks the sequence or its labels, or the two lie on different grids.
    """
    image, labels = _read(case, sequence, num_classes)
    array, affine = preprocessing.image(image)
    return _contiguous(array), _contiguous(preprocessing.labels(labels, array.shape, affine))


@dataclass(frozen=True)
class Contrasts:
    """Images of random contrast that stand for a scan.

    Attributes:
        count: of every scan; 0 leaves the scan itself.
        dark: labels that are dark in most sequences, as in `random_contrast`.
        seed: image n of a scan follows from seed, subject, sequence and n alone.
    """

    count: int = 0
    dark: tuple[int, ...] = ()
    seed: int = 0


def random_contrast_examples(
    case: Case, sequence: str, preprocessing: Preprocessing, num_classes: int, contrasts: Contrasts
) -> list[Example]:
    """Images of random contrast made from one case's labels, on the network's grid.

    They are made on the scan's own grid, which decides the network's grid too; its intensities only tell
    where a class falls into parts.

    Returns:
        ``contrasts.count`` pairs, as `load_example` gives them; all have the same labels.

    Raises:
        InputError: as `load_example`.
    """
    make = _contrast_maker(case, sequence, preprocessing, num_classes, contrasts)
    return [make(number) for number in range(contrasts.count)]


def _contrast_maker(
    case: Case, sequence: str, preprocessing: Preprocessing, num_classes: int, contrasts: Contrasts
) -> Callable[[int], Example]:
    """Makes image n of a case; reads the scan when the first one is asked for."""
    name = [*hashlib.sha256(f"{case.name} {sequence}".encode()).digest()]
    truth: list[np.ndarray] = []

    @functools.cache
    def scan() -> tuple[Volume, Volume]:
        return _read(case, sequence, num_classes)

    def make(number: int) -> Example:
        image, labels = scan()
        rng = np.random.default_rng([contrasts.seed, number, *name])
        contrast = random_contrast(labels[0], rng, image=image[0], dark=contrasts.dark)
        array, affine = preprocessing.image((contrast, image[1]), like=image)
        if not truth:
            truth.append(_contiguous(preprocessing.labels(labels, array.shape, affine)))
        return _contiguous(array), truth[0]

    return make


def load_image(case: Case, sequence: str, preprocessing: Preprocessing) -> Example:
    """Reads one scan without labels: the image (x, y, z), and labels that say nothing (255)."""
    array, _ = preprocessing.image(read_volume(case.images[sequence]))
    return _contiguous(array), np.full(array.shape, IGNORE_LABEL, np.uint8)


def _contiguous(array: np.ndarray) -> np.ndarray:
    """Last axis fastest, as in a `CaseCache`: sums over an array depend on the order by their last bits."""
    return np.ascontiguousarray(array)


def _read(case: Case, sequence: str, num_classes: int) -> tuple[Volume, Volume]:
    image_path, labels_path = _paths(case, sequence)
    image, labels = read_volume(image_path), read_labels(labels_path, num_classes)
    check_same_grid(str(image_path), image, str(labels_path), labels)
    return image, labels


def _paths(case: Case, sequence: str) -> tuple[Path, Path]:
    image_path, labels_path = case.images.get(sequence), case.labels.get(sequence)
    if image_path is None or labels_path is None:
        missing = "image" if image_path is None else "label map"
        raise error(
            f"Subject {case.subject} needs a {sequence} {missing}.",
            f"images {sorted(case.images)}, labels {sorted(case.labels)}",
            "Labels come from CT by `mrseg prepare`." if image_path else "",
        )
    return image_path, labels_path


def load_examples(
    cases: Sequence[Case],
    sequence: str,
    preprocessing: Preprocessing,
    num_classes: int,
    *,
    contrasts: Contrasts = Contrasts(),
    cache: str | Path | None = None,
    progress: bool = False,
) -> list[Example]:
    """Reads all cases, with a progress bar if asked for.

    With ``contrasts.count``, so many images of random contrast stand for every scan. With ``cache``, a
    folder, the examples lie there (`mrseg.data.case_cache`) and patches are read from them: memory holds one
    case at a time, results are the same to the bit, and what is there already is not made again.

    Raises:
        InputError: as `load_example`.
        OSError: the cache cannot be written or read.
    """
    bar = tqdm(cases, desc=f"reading {sequence}", unit="scan", disable=not progress, leave=False)
    place = None if cache is None else CaseCache(cache)
    settings = {"preprocessing": dataclasses.asdict(preprocessing), "num_classes": num_classes}

    def of_case(case: Case) -> Iterator[Example]:
        files = _paths(case, sequence)
        if not contrasts.count:
            make = functools.partial(load_example, case, sequence, preprocessing, num_classes)
            yield _kept(place, files, settings, make)
            return
        draw = _contrast_maker(case, sequence, preprocessing, num_classes, contrasts)
        about = {**settings, "contrasts": [contrasts.dark, contrasts.seed, case.subject, sequence]}
        for number in range(contrasts.count):
            yield _kept(place, files, {**about, "number": number}, functools.partial(draw, number))

    return [example for case in bar for example in of_case(case)]


def load_images(
    cases: Sequence[Case],
    sequence: str,
    preprocessing: Preprocessing,
    *,
    cache: str | Path | None = None,
    progress: bool = False,
) -> list[Example]:
    """Reads all scans without labels, as `load_image` one; the rest as `load_examples`."""
    bar = tqdm(cases, desc=f"reading {sequence}", unit="scan", disable=not progress, leave=False)
    place = None if cache is None else CaseCache(cache)
    settings = {"preprocessing": dataclasses.asdict(preprocessing)}
    return [
        _kept(
            place,
            [case.images[sequence]],
            settings,
            functools.partial(load_image, case, sequence, preprocessing),
        )
        for case in bar
    ]


def examples_mb(cases: Sequence[Case], sequence: str, preprocessing: Preprocessing) -> float:
    """Memory in MB (10^6 bytes) that the examples of cases take without a cache.

    Read off the headers of at most 32 scans, evenly spread; the others count as their mean. With the grid
    ``foreground`` it is an upper bound.
    """
    scans = [case.images[sequence] for case in cases if sequence in case.images]
    asked = scans[:: -(-len(scans) // _HEADERS)] if scans else []
    voxels = [math.prod(preprocessing.grid_shape(volume_header(scan))) for scan in asked]
    return 5 * len(scans) * sum(voxels) / max(1, len(voxels)) / 1e6  # float32 and uint8


def _kept(
    cache: CaseCache | None, files: Sequence[Path], settings: Mapping[str, Any], make: Callable[[], Example]
) -> Example:
    return make() if cache is None else cache.get(files, settings, make)
