"""Several segmenters that answer together: their class probabilities, averaged on the scan's own grid.

The three views of 2-D networks (coronal, axial and sagittal slices), or the folds of a cross-validation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations

from mrseg._checks import InputError, error
from mrseg.data.geometry import Grid, Volume, canonical_grid
from mrseg.inference import Slab
from mrseg.maps import Maps, collect
from mrseg.passes import DEFAULT, Inference
from mrseg.postprocess import Postprocessing
from mrseg.segmenter import Asked, Segmenter
from mrseg.segmenting import check_fits, cleaned, read_scan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ensemble:
    """Segmenters whose probabilities are averaged; it is asked as a single `Segmenter` is.

    Each member prepares the scan in its own way, has its own patches, conditional random field and engine,
    and gives its probabilities on the scan's own grid. There every member counts alike; the largest mean
    gives the label, and the clean-up that all members share is done once, on that label map. Probabilities
    that do not sum to 1 (sigmoid heads) are averaged as they are.

    A voxel outside a member's working grid is class 0, with certainty, from that member, as it is when that
    member answers alone: members that see different parts of the head pull what only some of them see
    towards class 0.

    Attributes:
        members: two or more, with the same class names, sequence and postprocessing.

    Raises:
        InputError: fewer than two members, something else than a segmenter, or members that disagree.

    Example:
        >>> views = [mrseg.Segmenter.load(f"runs/{plane}/segmenter") for plane in ("coronal", "axial")]
        >>> label_image = mrseg.Ensemble(views)("t1.nii.gz")
    """

    members: Sequence[Segmenter]

    def __post_init__(self) -> None:
        members = tuple(self.members)
        object.__setattr__(self, "members", members)
        strange = [type(member).__name__ for member in members if not isinstance(member, Segmenter)]
        if strange or len(members) < 2:
            raise error(
                "An ensemble has two or more members, each an mrseg.Segmenter.",
                strange[0] if strange else len(members),
                "Load each with mrseg.Segmenter.load; one alone needs no ensemble.",
            )
        for name, remedy in (
            (
                "class_names",
                "Take networks of the same classes in the same order.",
            ),
            ("sequence", "Take networks for the same MR sequence."),
            ("postprocessing", "The mean has one clean-up: give every member the same."),
        ):
            first = getattr(members[0], name)
            for number, member in enumerate(members[1:], start=2):
                if getattr(member, name) != first:
                    raise error(
                        f"The members of an ensemble have the same {name}.",
                        f"{first!r} (member 1) and {getattr(member, name)!r} (member {number})",
                        remedy,
                    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of every member."""
        return self.members[0].class_names

    @property
    def sequence(self) -> str:
        """Of every member."""
        return self.members[0].sequence

    @property
    def postprocessing(self) -> Postprocessing:
        """Of every member; done once, on the label map of the mean."""
        return self.members[0].postprocessing

    @property
    def provenance(self) -> dict[str, Any]:
        """What explains the weights: ``members``, the provenance of each."""
        return {"members": [member.provenance for member in self.members]}

    @property
    def engine(self) -> str:
        """Who computes: one name, or that of every member where they differ."""
        return _one_or_all([member.engine for member in self.members])

    @property
    def precision(self) -> str:
        """In what numbers: one name, or that of every member where they differ."""
        return _one_or_all([member.precision for member in self.members])

    @property
    def digest(self) -> str:
        """Checksum of what decides a label map: the members' own, in their order."""
        digests = "\n".join(["mean of probabilities", *(member.digest for member in self.members)])
        return hashlib.sha256(digests.encode()).hexdigest()

    def __call__(self, scan: str | Path | Volume, *, progress: bool = False) -> nib.Nifti1Image:
        """Label map of a scan on the scan's own grid, as a NIfTI image of uint8.

        Args:
            scan: file, or (array (x, y, z), affine).
            progress: show a bar over the patches of each member.
        """
        return self.predict(scan, progress=progress).label_image()

    def probabilities(self, volume: Volume, *, progress: bool = False) -> np.ndarray:
        """Mean class probabilities on the scan's own grid, (x, y, z, classes) float32.

        Args:
            volume: array (x, y, z) in any orientation, affine.
            progress: show a bar over the patches of each member.
        """
        maps = self.predict(volume, probabilities=True, progress=progress)
        assert maps.probabilities is not None
        return maps.probabilities

    def predict(
        self,
        scan: str | Path | Volume,
        *,
        inference: Inference = DEFAULT,
        probabilities: bool = False,
        scratch: str | Path | None = None,
        progress: bool = False,
    ) -> Maps:
        """Labels of a scan on its own grid and, when asked for, mean probabilities and their entropy.

        Members are asked one after the other, and their probabilities added up. All of them are held twice,
        the sum and those of the member at work, even where only labels are asked for: 8 bytes a class and
        voxel of the scan. What it takes at most (`memory_mb`) is logged before it starts.

        Args:
            scan: file, or (array (x, y, z) in any orientation, affine).
            inference: handed to every member: overlap, mirrors, dropout samples and all. The only map of
                uncertainty is ``entropy``, that of the mean probabilities.
            probabilities: return the mean probabilities of all classes.
            scratch: folder of temporary files that hold all probabilities instead of the memory.
            progress: show a bar over the patches of each member.

        Returns:
            Arrays in the scan's orientation, and its affine.

        Raises:
            InputError: another map of uncertainty; whatever `Segmenter.predict` refuses, with the number of
                the member.
        """
        asked = _of_each(inference)
        volume = read_scan(scan)
        native: Grid = (volume[0].shape, volume[1])
        estimate = self.memory_mb(native, inference=inference, probabilities=scratch is None)
        log.info("%d members: at most %.0f MB besides the networks", len(self.members), estimate)
        check_fits(estimate)
        total: np.ndarray | None = None
        for number, member in enumerate(self.members, start=1):
            with self._named(number):
                answer = member.predict(
                    volume, inference=asked, probabilities=True, scratch=scratch, progress=progress
                ).probabilities
            assert answer is not None
            if total is None:
                total = answer
            else:
                total += answer
            del answer  # before the next member makes its own
        assert total is not None
        total /= len(self.members)
        maps = collect(
            _planes(total, native[1]), canonical_grid(native), native, num_classes=len(self.class_names),
            uncertainty=inference.uncertainty,
        )  # fmt: skip
        return cleaned(
            dataclasses.replace(maps, probabilities=total if probabilities else None), self.postprocessing
        )

    def memory_mb(self, native: Grid, *, inference: Inference = DEFAULT, probabilities: bool = True) -> float:
        """Memory in MB (10^6 bytes) that `predict` takes at most, besides networks and what computes them.

        Args:
            native: shape and affine of the scan, as `mrseg.data.io.volume_header` reads them.
            inference: as for `predict`.
            probabilities: whether those of all classes are held in memory: twice, whatever is returned.
                Not so where `predict` is given ``scratch``.
        """
        asked = _of_each(inference)
        voxels, plane = math.prod(native[0]), math.prod(native[0][:2])
        total = 4 * len(self.class_names) * voxels * bool(probabilities) / 1e6
        # Scan, labels and entropy; what argmax and entropy hold beside a plane.
        collecting = ((4 + 1 + 4 * bool(inference.uncertainty)) * voxels + 4 * 4 * plane) / 1e6
        needed = [
            member.memory_mb(native, inference=asked, probabilities=probabilities) for member in self.members
        ]
        return total + max(collecting, *needed)

    def check(self, inference: Inference) -> None:
        """Raises InputError unless every member can be asked in this way, and the mean has such a map."""
        asked = _of_each(inference)
        for number, member in enumerate(self.members, start=1):
            with self._named(number):
                member.check(asked)

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """What a member refuses is told with its number."""
        try:
            yield
        except InputError as reason:
            raise InputError(f"Member {number} of {len(self.members)}: {reason}") from reason


def together(segmenters: Sequence[Segmenter]) -> Asked:
    """One segmenter as it is, several as an `Ensemble`."""
    return segmenters[0] if len(segmenters) == 1 else Ensemble(segmenters)


def _of_each(inference: Inference) -> Inference:
    """How a member is asked: the same, without the map of uncertainty, which is one of the mean."""
    if inference.variance:
        raise error(
            "The uncertainty of an ensemble is the entropy of its mean probabilities.",
            f"uncertainty={inference.uncertainty!r}, the variance over the passes of one network",
            "Take uncertainty='entropy', --uncertainty entropy, or ask the members one by one.",
        )
    return dataclasses.replace(inference, uncertainty=None)


def _one_or_all(names: Sequence[str]) -> str:
    return names[0] if len(set(names)) == 1 else ", ".join(names)


def _planes(probabilities: np.ndarray, affine: np.ndarray) -> Iterator[Slab]:
    """Planes of an array on the scan's grid, turned to RAS+; each lies in one piece for every class."""
    to_ras = orientations.io_orientation(affine)
    turned = orientations.apply_orientation(probabilities, to_ras)
    axis = int(to_ras[2, 0])
    for first in range(turned.shape[axis]):
        yield Slab(axis, first, turned[(slice(None),) * axis + (slice(first, first + 1),)])
