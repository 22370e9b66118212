"""From a scan to its label map, whoever answers for the network: preparation, patches, maps, clean-up."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mrseg._checks import error
from mrseg.baselines.crf import dense_crf_volume
from mrseg.data.geometry import Grid, Volume, from_canonical, to_canonical, voxel_sizes
from mrseg.data.io import read_volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.inference import LARGEST_MULTIPLE, Slab, predict_slabs, whole
from mrseg.maps import Maps, collect, memory_mb
from mrseg.memory import check_memory
from mrseg.passes import Forward, Inference
from mrseg.postprocess import Postprocessing

log = logging.getLogger(__name__)

#: Shape of the prepared image and how the network is asked -> the network, and the patches that it takes.
Compiled = Callable[[tuple[int, ...], Inference], tuple[Forward, Sampling]]


class Steps(Protocol):
    """What a segmentation needs to know besides the network; `mrseg.Segmenter` says what each means."""

    @property
    def preprocessing(self) -> Preprocessing: ...  # noqa: D102
    @property
    def sampling(self) -> Sampling: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def crf(self) -> bool: ...  # noqa: D102
    @property
    def postprocessing(self) -> Postprocessing: ...  # noqa: D102


def segment(
    steps: Steps,
    scan: str | Path | Volume,
    compiled: Compiled,
    *,
    inference: Inference,
    probabilities: bool = False,
    scratch: str | Path | None = None,
    progress: bool = False,
) -> Maps:
    """Labels of a scan on its own grid and, when asked for, probabilities and a map of uncertainty.

    Args:
        steps: preparation, patches, classes and clean-up.
        scan: file, or (array (x, y, z) in any orientation, affine).
        compiled: gives the network.
        inference: how the network is asked, with its batch size.
        probabilities: keep those of all classes.
        scratch: folder of a temporary file that holds them instead of the memory.
        progress: show a bar over the patches.

    Returns:
        Arrays in the scan's orientation, and its affine.

    Raises:
        InputError: a scan that cannot be read or normalised; answers that are no probabilities.
    """
    volume = read_scan(scan)
    array = np.asarray(volume[0])
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise error("A scan has three axes (x, y, z) of real numbers.", f"{array.dtype} {array.shape}")
    native: Grid = (volume[0].shape, volume[1])
    if _looks_like_labels(volume[0]):
        log.warning("the scan holds a few whole numbers alone: is it a label map?")
    estimate = needed_mb(steps, native, inference=inference, probabilities=probabilities and scratch is None)
    log.info("at most %.0f MB besides the network and what computes it", estimate)
    check_fits(estimate)
    image, affine = steps.preprocessing.image(volume)
    forward, sampling = compiled(image.shape, inference)
    classes = len(steps.class_names)
    slabs = predict_slabs(
        forward, image, sampling, num_classes=classes, inference=inference, progress=progress
    )
    if steps.crf:
        axis = 2 if sampling.slice_axis is None else sampling.slice_axis
        slabs = _refined(slabs, image, axis, classes)
    maps = collect(
        slabs, (image.shape, affine), native, num_classes=classes, uncertainty=inference.uncertainty,
        probabilities=probabilities, scratch=scratch,
    )  # fmt: skip
    return cleaned(maps, steps.postprocessing)


def check_fits(estimate_mb: float) -> None:
    """Raises InputError if the maps of a scan cannot fit into the memory; warns where others take it."""
    check_memory(
        estimate_mb,
        "A scan's maps",
        "Take a coarser scan or a machine with more memory; patches (not extent='whole', --whole), a smaller "
        "--batch-size and no --uncertainty need less, in Python also scratch=.",
    )


def read_scan(scan: str | Path | Volume) -> Volume:
    """The scan of a file, or the pair itself."""
    return scan if isinstance(scan, tuple) else read_volume(_path(scan))


def cleaned(maps: Maps, postprocessing: Postprocessing) -> Maps:
    """The same with its label map cleaned up, in RAS+; probabilities and uncertainty stay."""
    if postprocessing == Postprocessing():
        return maps
    labels, turned = to_canonical((maps.labels, maps.affine))
    labels = postprocessing(labels, voxel_sizes(turned))
    return dataclasses.replace(maps, labels=from_canonical(labels, maps.labels.shape, maps.affine))


def needed_mb(steps: Steps, native: Grid, *, inference: Inference, probabilities: bool = False) -> float:
    """Memory in MB (10^6 bytes) that `segment` takes at most, besides the network and what computes it.

    Args:
        steps: as for `segment`.
        native: shape and affine of the scan.
        inference: as for `segment`.
        probabilities: whether those of all classes are kept in memory.
    """
    shape, sampling = steps.preprocessing.grid_shape(native), steps.sampling
    if inference.extent == "whole":
        patch = [n for n, thick in zip(shape, sampling.patch_shape, strict=True) if thick != 1]
        sampling = whole(sampling, [-(-n // LARGEST_MULTIPLE) * LARGEST_MULTIPLE for n in patch])
    predicting = memory_mb(
        shape, native, sampling, len(steps.class_names), inference=inference, probabilities=probabilities,
        resampled=steps.preprocessing.grid != "native",
    )  # fmt: skip
    return max(steps.preprocessing.memory_mb(native), predicting)


def parts_of(card: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What a card says about `Steps`, with ``sequence`` and ``provenance``.

    Args:
        card: as it was read.
        file: where it lies, for the message.

    Raises:
        InputError: a value that is none of mrseg's.
    """
    try:
        return {
            "preprocessing": Preprocessing(**_tuples(card["preprocessing"])),
            "sampling": Sampling(**_tuples(card["sampling"])),
            "class_names": tuple(card["class_names"]),
            "sequence": card["sequence"],
            "crf": card.get("crf", False),
            "postprocessing": Postprocessing(**_tuples(card.get("postprocessing", {}))),
            "provenance": card["provenance"],
        }
    except TypeError as reason:
        raise error(f"{file.name} must be the card that mrseg wrote.", f"{file} ({reason})") from None


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON gives lists where the dataclasses hold tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _path(scan: object) -> str | Path:
    if isinstance(scan, str | Path):
        return scan
    raise error(
        "A scan is a file or a pair of (array, affine).",
        type(scan).__name__,
        "Of a nibabel image pass (np.asarray(image.dataobj), image.affine).",
    )


def _looks_like_labels(image: np.ndarray) -> bool:
    """Whether some thousands of the voxels hold at most 24 different values, all whole."""
    values = np.unique(image.ravel()[:: max(1, image.size // 20_000)])
    return 1 < len(values) <= 24 and bool((values == np.round(values)).all()) and image.size > 20_000


def _refined(slabs: Iterator[Slab], image: np.ndarray, axis: int, classes: int) -> Iterator[Slab]:
    """Slabs whose slices along ``axis`` went through the conditional random field with the image's.

    Where slabs lie across the slices, they are put together first, and all classes are in memory at once.
    """
    first = next(slabs)
    parts: Iterable[Slab] = itertools.chain([first], slabs)
    if first.axis != axis:
        parts = [first._replace(values=np.concatenate([slab.values for slab in parts], first.axis))]
    for slab in parts:
        thickness = slab.values.shape[slab.axis]
        at = (slice(None),) * slab.axis + (slice(slab.first, slab.first + thickness),)
        values = slab.values.copy()
        values[..., :classes] = dense_crf_volume(values[..., :classes], image[at], slice_axis=axis)
        yield slab._replace(values=values)
