"""From a scan's own grid to the network's grid and back: orientation, resampling, normalisation.

A network is trained on one kind of grid and must meet the same at prediction; `Preprocessing` is that
promise, stored with the weights. Sources: mecheter2020 section II.B (crop), mecheter2023 section 3.2 (48
slices, 256x256, local contrast normalisation), islam2025 section 3.1.1.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
from nibabel import affines

from mrseg._checks import IGNORE_LABEL, choice, error, positive_ints
from mrseg.data.bias import bias_correction
from mrseg.data.frames import head_box_grid, head_resize_grid
from mrseg.data.geometry import (
    Grid,
    Volume,
    canonical_grid,
    from_canonical,
    grid_with_spacing,
    head_grid,
    head_mask,
    plane_grid,
    resample,
    to_canonical,
    voxel_sizes,
)
from mrseg.data.normalization import NORMALIZATIONS

#: Arrays of the volume's size, counted as float32, that exist at once while it is resampled and normalised.
_ARRAYS = {"lcn": 6, "quantile_zscore": 8.5, "min_max": 6, "histogram_equalization": 16}

#: The same of the scan's own size, while N4 works on it; ITK's copies are among them.
_N4_ARRAYS = 12

GRIDS = ("native", "foreground", "spacing", "head", "head_box", "head_resize", "plane", "acquisition")
#: Grid -> the numbers that its shape may have, and the paper's shape.
_SHAPES = {
    "head": ((3,), [256, 256, 48]),
    "head_box": ((2, 3), [256, 256]),
    "head_resize": ((3,), [256, 256, 48]),
    "plane": ((2,), [128, 128]),
}


@dataclass(frozen=True)
class Preprocessing:
    """How a scan becomes what the network sees.

    Attributes:
        grid: ``native`` keeps the voxels (only turned to RAS+); ``foreground`` cuts the box of voxels > 0
            (skull-stripped scans); ``spacing`` resamples to ``spacing_mm``; ``head`` is the 48-slice grid of
            mecheter2023; ``head_box`` cuts a window around the head out of the scan's own voxels
            (mecheter2020); ``head_resize`` resizes to 300x300x48 and cuts the window out of that
            (mecheter2023's other resolutions); ``plane`` gives every slice the same number of pixels
            (alkhimova2022); ``acquisition`` lays the axis of the thickest voxels last, whatever the
            orientation (xu2017).
        spacing_mm: voxel size in mm, for ``spacing`` and, in plane, for ``head`` (None: the scan's own).
        shape: voxels of the grid, for ``head`` and ``head_resize`` (three numbers), ``plane`` (two) and
            ``head_box`` (two for a slice; a third takes so many slices from the middle of the head).
        normalization: one of mrseg.data.normalization.NORMALIZATIONS.
        min_head_area: end slices with less head, as a fraction of the grid's slice, are dropped (``head``,
            ``head_box``, ``head_resize``).
        bias_correction: the scan's bias field is removed first (N4, `mrseg.data.bias_correction`); some
            seconds a scan.
    """

    grid: str = "native"
    spacing_mm: tuple[float, float, float] | None = None
    shape: tuple[int, ...] | None = None
    normalization: str = "lcn"
    min_head_area: float = 0.05
    bias_correction: bool = False

    def __post_init__(self) -> None:
        choice("preprocessing.grid", self.grid, GRIDS)
        choice("preprocessing.normalization", self.normalization, NORMALIZATIONS)
        if self.grid == "spacing" and self.spacing_mm is None:
            raise error("preprocessing.grid 'spacing' needs spacing_mm.", None)
        if self.spacing_mm is not None and (len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0):
            raise error("preprocessing.spacing_mm is three positive numbers in mm.", self.spacing_mm)
        if not 0.0 <= self.min_head_area < 1.0:
            raise error(
                "preprocessing.min_head_area is a fraction of the slice, in [0, 1).", self.min_head_area
            )
        if self.grid in _SHAPES:
            lengths, paper = _SHAPES[self.grid]
            if self.shape is None:
                raise error(
                    f"preprocessing.grid {self.grid!r} needs shape.", None, f"The paper's is {paper}."
                )
            given = len(self.shape) if len(self.shape) in lengths else lengths[0]
            positive_ints("preprocessing.shape", self.shape, given)

    def image(self, volume: Volume, *, like: Volume | None = None) -> Volume:
        """Brings a scan onto the network's grid.

        Args:
            volume: array (x, y, z) in any orientation, affine.
            like: another image whose voxels decide where the grid lies (the ``head`` grids, ``foreground``),
                say the scan that ``volume`` was made from.

        Returns:
            Normalised float32 array on the working grid in RAS+, and that grid's affine.
        """
        canonical = to_canonical(volume)
        shape, affine = self._working_grid(canonical if like is None else to_canonical(like))
        if self.bias_correction:
            corrected = bias_correction(canonical[0], spacing_mm=voxel_sizes(canonical[1]))
            canonical = corrected, canonical[1]
        array = _onto(canonical, shape, affine, order=1)
        return NORMALIZATIONS[self.normalization](array.astype(np.float32, copy=False)), affine

    @property
    def frames_head(self) -> bool:
        """Whether the grid is laid around the head, so that slices at its ends may stay outside."""
        return self.grid.startswith("head")

    def of_whole_head(self) -> Preprocessing:
        """The same with every slice that shows the head, also those that trainings leave out.

        Raises:
            InputError: a grid that is not laid around the head; it leaves out none.
        """
        if not self.frames_head:
            raise error(
                "The whole head is asked of a grid that is laid around it (head, head_box, head_resize).",
                f"the grid {self.grid!r}",
                "Leave out --whole-head.",
            )
        return dataclasses.replace(self, min_head_area=0.0)

    def head_outside_ml(self, volume: Volume) -> float:
        """How much of the head lies outside the working grid, in ml; 0 unless the grid is laid around it."""
        if not self.frames_head:
            return 0.0
        array, affine = to_canonical(volume)
        shape, to_affine = self._working_grid((array, affine))
        mask = head_mask(array)
        step, start = affines.to_matvec(np.linalg.inv(to_affine) @ affine)
        inside = []
        for axis in range(3):  # the grids have the same axes, and differ by size, spacing and place
            index = start[axis] + step[axis, axis] * np.arange(array.shape[axis])
            inside.append((index > -0.5) & (index < shape[axis] - 0.5))
        outside = mask.sum() - mask[np.ix_(*inside)].sum()
        return float(outside * math.prod(voxel_sizes(affine)) / 1000)

    def grid_shape(self, native: Grid) -> tuple[int, ...]:
        """Voxels of a scan's working grid, known without its values.

        For ``foreground`` and ``head_box`` these are the most it can have.
        """
        shape, affine = canonical_grid(native)
        if self.grid == "spacing":
            assert self.spacing_mm is not None
            return grid_with_spacing(shape, affine, self.spacing_mm)[0]
        if self.grid in _SHAPES:
            assert self.shape is not None
            if self.grid == "plane":
                return plane_grid(shape, affine, self.shape)[0]
            return (*self.shape, shape[2])[:3]
        if self.grid == "acquisition":
            return _slices_last(shape, affine)[0]
        return shape

    def memory_mb(self, native: Grid) -> float:
        """Memory in MB (10^6 bytes) that `image` takes at most for such a scan, the scan included."""
        voxels = max(math.prod(native[0]), math.prod(self.grid_shape(native)))
        later = _ARRAYS[self.normalization] * voxels
        first = _N4_ARRAYS * math.prod(native[0]) if self.bias_correction else 0
        return 4 * (math.prod(native[0]) + max(later, first)) / 1e6

    def labels(self, volume: Volume, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        """Brings a label map onto a working grid by nearest neighbour; uint8, 255 where it says nothing."""
        return _onto(to_canonical(volume), shape, affine, order=0, fill=IGNORE_LABEL)

    def to_native(
        self, probabilities: np.ndarray, affine: np.ndarray, native_shape: tuple, native_affine: np.ndarray
    ) -> np.ndarray:
        """Brings class probabilities back onto the scan's own grid.

        Args:
            probabilities: (x, y, z, classes) on the working grid.
            affine: of the working grid.
            native_shape: voxels of the scan.
            native_affine: of the scan, any orientation.

        Returns:
            (*native_shape, classes) float32 in the scan's orientation; voxels outside the working grid are
            class 0.
        """
        template, canonical_affine = to_canonical((np.empty(native_shape, np.bool_), native_affine))
        native = np.empty((*native_shape, probabilities.shape[-1]), np.float32)
        for c in range(probabilities.shape[-1]):
            channel = _onto(
                (probabilities[..., c], affine),
                template.shape,
                canonical_affine,
                order=1,
                fill=float(c == 0),
            )
            native[..., c] = from_canonical(channel, native_shape, native_affine)
        return native

    def _working_grid(self, canonical: Volume) -> tuple[tuple[int, ...], np.ndarray]:
        array, affine = canonical
        if self.grid == "spacing":
            assert self.spacing_mm is not None
            return grid_with_spacing(array.shape, affine, self.spacing_mm)
        if self.grid == "head":
            assert self.shape is not None
            in_plane = None if self.spacing_mm is None else self.spacing_mm[:2]
            return head_grid(canonical, self.shape, spacing_mm=in_plane, min_head_area=self.min_head_area)
        if self.grid in ("head_box", "head_resize"):
            assert self.shape is not None
            frame = head_box_grid if self.grid == "head_box" else head_resize_grid
            return frame(canonical, self.shape, min_head_area=self.min_head_area)
        if self.grid == "plane":
            assert self.shape is not None
            return plane_grid(array.shape, affine, self.shape)
        if self.grid == "acquisition":
            return _slices_last(array.shape, affine)
        if self.grid == "foreground":
            return _foreground_box(array, affine)
        return array.shape, affine


def _slices_last(shape: tuple[int, ...], affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """The same voxels with the axis of the largest spacing last (z where spacings are equal)."""
    spacing = np.round(voxel_sizes(affine), 4)
    slice_axis = 2 - int(np.argmax(spacing[::-1]))
    axes = [axis for axis in range(3) if axis != slice_axis] + [slice_axis]
    return tuple(shape[axis] for axis in axes), affine[:, [*axes, 3]]


def _foreground_box(array: np.ndarray, affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Grid of the smallest box that holds every voxel above 0."""
    above = array > 0
    if not above.any():
        raise error("preprocessing.grid 'foreground' needs voxels above 0.", f"a maximum of {array.max()}")
    # Axis by axis: the indices of all voxels would take 24 bytes each.
    along = [np.flatnonzero(above.any(tuple(b for b in range(3) if b != a))) for a in range(3)]
    first, last = (np.array([found[end] for found in along]) for end in (0, -1))
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*first, 1.0])[:3]
    return tuple(int(n) for n in last - first + 1), moved


def _onto(
    volume: Volume, shape: tuple[int, ...], affine: np.ndarray, *, order: int, fill: float = 0.0
) -> np.ndarray:
    """Resamples, or returns the voxels themselves where only the order of the axes differs."""
    array, own_affine = volume
    for axes in itertools.permutations(range(3)):
        turned = own_affine[:, [*axes, 3]]
        if tuple(array.shape[a] for a in axes) == tuple(shape) and np.allclose(turned, affine, atol=1e-6):
            return array.transpose(axes)
    return resample(volume, shape, affine, order=order, fill=fill)
