"""Distances between the surfaces of two masks in millimetres (xu2017 and islam2025, Metrics).

Convention of this module, unless a function's name says otherwise: a boundary voxel belongs to the mask and
has a face neighbour outside it (mask minus its erosion by the face-connected cross); outside the image is
background; distances run from voxel centre to voxel centre. ``surface_distances`` measures once, everything
else only reads.

Other tools and the challenges define theirs otherwise; docs/metrics.md has the table.

Empty masks follow the policy of ``mrseg.metrics.overlap``: both empty gives NaN, one empty an infinite
distance (surface Dice 0). Summaries therefore show infinity, or the number of such cases beside a median,
but never leave them out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from mrseg import _checks
from mrseg.metrics.overlap import as_masks

#: Neighbours within a ball are looked up before a search tree is built: its radius is a little more than the
#: coarsest voxel size, so that it holds the slices beside, but within these multiples of the finest.
_REACH = (5, 10)

#: Voxels worked on at a time where a volume is passed over several times: they stay in the processor's cache.
_CHUNK = 2**17


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from each boundary voxel of one mask to the nearest boundary voxel of the other.

    Attributes:
        true_to_pred: float64 ``(n_true,)`` in mm, ascending; infinite if only the prediction is empty.
        pred_to_true: float64 ``(n_pred,)`` in mm, ascending; infinite if only the truth is empty.
    """

    true_to_pred: np.ndarray
    pred_to_true: np.ndarray

    @property
    def hausdorff(self) -> float:
        """Largest distance in mm."""
        return self._larger(np.max)

    @property
    def hd95(self) -> float:
        """Larger of the two directed 95th percentiles in mm (linear between order statistics)."""
        return self._larger(lambda distances: np.percentile(distances, 95))

    @property
    def mean_true_to_pred(self) -> float:
        """Mean distance in mm from the true surface to the predicted one: what was missed."""
        return self._mean(self.true_to_pred)

    @property
    def mean_pred_to_true(self) -> float:
        """Mean distance in mm from the predicted surface to the true one: what was invented."""
        return self._mean(self.pred_to_true)

    @property
    def assd(self) -> float:
        """Average symmetric surface distance in mm: the mean of the two directed means."""
        return (self.mean_true_to_pred + self.mean_pred_to_true) / 2

    @property
    def pooled_mean(self) -> float:
        """Mean over both sets of distances in mm, so that the larger surface counts more (MONAI's)."""
        return self._mean(np.concatenate([self.true_to_pred, self.pred_to_true]))

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both boundaries that lies within ``tolerance_mm`` (at least 0) of the other, in [0, 1]."""
        if not 0 <= tolerance_mm < np.inf:
            raise _checks.error("tolerance_mm is at least 0.", tolerance_mm)
        distances = np.concatenate([self.true_to_pred, self.pred_to_true])
        # A hair more, or 3 * 0.1 mm would not be within 0.3 mm.
        return float(np.mean(distances <= tolerance_mm + 1e-9)) if distances.size else np.nan

    def scores(self) -> dict[str, float]:
        """Returns every distance in mm by its name in tidy rows."""
        names = ("hausdorff", "hd95", "assd", "mean_true_to_pred", "mean_pred_to_true")
        return {name: getattr(self, name) for name in names}

    def _larger(self, summary: Callable[[np.ndarray], float]) -> float:
        if not self.true_to_pred.size:
            return np.nan
        if np.isinf(self.true_to_pred[0]):
            return np.inf
        return float(max(summary(self.true_to_pred), summary(self.pred_to_true)))

    @staticmethod
    def _mean(distances: np.ndarray) -> float:
        return float(distances.mean()) if distances.size else np.nan


def surface_distances(
    mask_true: np.ndarray,
    mask_pred: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    mask_ignored: np.ndarray | None = None,
) -> SurfaceDistances:
    """Measures all distances between the boundaries of two masks, exactly.

    Only the voxels around both masks are touched, so a small structure in a large volume is quick.

    Args:
        mask_true: bool array of any dimension, or numbers that are all 0 or 1.
        mask_pred: mask of the same shape.
        spacing_mm: voxel size along each axis, above 0.
        mask_ignored: voxels that nobody may judge, of the same shape. They belong to neither mask, and a
            mask that stops there has no boundary there: the edge of the judged region cannot flatter.

    Returns:
        Distances in mm; their readers are attributes (``hausdorff``, ``hd95``, ``assd``, ...).

    Raises:
        InputError: shapes differ, an array is not a mask, or the spacing does not fit.

    Example:
        >>> distances = surface_distances(labels_true == 2, labels_pred == 2, (0.9, 0.9, 3.0))
        >>> distances.hd95, distances.assd
    """
    true, pred = as_masks(mask_true, mask_pred)
    spacing = _spacing(spacing_mm, true.ndim)
    if mask_ignored is None:
        true, pred, spacing = _in_memory_order(true, pred, spacing)
        grid = _Grid.around(true, pred, spacing)
        edges = [_boundary(mask, mask) for mask in map(grid.crop, (true, pred))]
    else:
        ignored = as_masks(mask_ignored, true)[0]
        true, pred = true & ~ignored, pred & ~ignored
        grid = _Grid.around(true, pred, spacing)
        edges = [_boundary(grid.crop(mask), grid.crop(mask | ignored)) for mask in (true, pred)]
    return grid.distances(*edges)


def hausdorff(mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the Hausdorff distance of the two surfaces in mm (see ``surface_distances``).

    For several measures of one pair of masks, call ``surface_distances`` once and read them from its result.

    Args:
        mask_true: bool array of any dimension, or numbers that are all 0 or 1.
        mask_pred: mask of the same shape.
        spacing_mm: voxel size along each axis, above 0.

    Returns:
        Millimetres; NaN if both masks are empty, infinite if one is.

    Example:
        >>> hausdorff(np.array([1, 1, 0, 0]), np.array([1, 1, 1, 1]), spacing_mm=[0.5])
        1.0
    """
    return surface_distances(mask_true, mask_pred, spacing_mm).hausdorff


def hd95(mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the larger directed 95th percentile of surface distance in mm. See ``hausdorff``."""
    return surface_distances(mask_true, mask_pred, spacing_mm).hd95


def assd(mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the average symmetric surface distance in mm, the mean of both ways. See ``hausdorff``."""
    return surface_distances(mask_true, mask_pred, spacing_mm).assd


def mean_true_to_pred(mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the directed mean distance in mm from the true surface to the predicted. See ``hausdorff``."""
    return surface_distances(mask_true, mask_pred, spacing_mm).mean_true_to_pred


def mean_pred_to_true(mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Returns the directed mean distance in mm from the predicted surface to the true. See ``hausdorff``."""
    return surface_distances(mask_true, mask_pred, spacing_mm).mean_pred_to_true


def surface_dice(
    mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float], *, tolerance_mm: float
) -> float:
    """Returns the share of both boundaries within ``tolerance_mm`` of the other, in [0, 1].

    NaN if both masks are empty, 0 if one is. Boundary voxels count alike (DeepMind's version weighs surface
    elements by their area). See ``hausdorff``.

    Reference:
        Nikolov et al., "Clinically applicable segmentation of head and neck anatomy", J. Med. Internet Res.
        2021.
    """
    return surface_distances(mask_true, mask_pred, spacing_mm).surface_dice(tolerance_mm)


def mask_hausdorff(
    mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> float:
    """Returns the Hausdorff distance of the two sets of mask voxels, as SimpleITK and islam2025 define it.

    A hole of one voxel deep inside a mask counts one voxel here, and its depth in ``hausdorff``.

    Args:
        mask_true: bool array of any dimension, or numbers that are all 0 or 1.
        mask_pred: mask of the same shape.
        spacing_mm: voxel size along each axis; None measures in voxels, as the tables of islam2025 do.

    Returns:
        Millimetres or voxels; NaN if both masks are empty, infinite if one is.

    Reference:
        islam2025, Metrics.
    """
    true, pred = as_masks(mask_true, mask_pred)
    spacing = _spacing([1.0] * true.ndim if spacing_mm is None else spacing_mm, true.ndim)
    true, pred, spacing = _in_memory_order(true, pred, spacing)
    grid = _Grid.around(true, pred, spacing)
    true, pred = grid.crop(true), grid.crop(pred)
    edge_true, edge_pred = _boundary(true, true), _boundary(pred, pred)
    if not (edge_true.any() and edge_pred.any()):
        return grid.distances(edge_true, edge_pred).hausdorff
    # A voxel outside a mask is nearest to a boundary voxel of it; a voxel inside is at distance 0.
    ways = ((true & ~pred, edge_pred), (pred & ~true, edge_true))
    return float(max(grid.nearest(points, targets).max(initial=0.0) for points, targets in ways))


def hd95_in_plane(
    mask_true: np.ndarray, mask_pred: np.ndarray, spacing_mm: Sequence[float], *, slice_axis: int = 2
) -> float:
    """Returns the 95th percentile Hausdorff distance of the MRBrainS challenge in mm.

    Boundaries are found slice by slice (mask minus its erosion by a 3x3 square, outside the image is mask);
    distances between them are three-dimensional.

    Args:
        mask_true: bool ``(x, y, z)``, or numbers that are all 0 or 1.
        mask_pred: mask of the same shape.
        spacing_mm: voxel size along each axis, above 0.
        slice_axis: axis across the slices.

    Returns:
        Millimetres; NaN if neither mask has a boundary, infinite if one has none (the challenge leaves both
        out).

    Reference:
        xu2017, Metrics; the evaluation code of MRBrainS18, whose erosion is SimpleITK's ``BinaryErode``
        with radius (1, 1, 0).
    """
    true, pred = as_masks(mask_true, mask_pred)
    if true.ndim != 3 or not -3 <= slice_axis < 3:
        raise _checks.error(
            "hd95_in_plane takes volumes and one of their axes.", f"shape {true.shape}, axis {slice_axis}"
        )
    grid = _Grid.around(true, pred, _spacing(spacing_mm, 3))
    axes = [axis for axis in range(3) if axis != slice_axis % 3]
    edges = []
    for mask in (true, pred):
        inside = grid.crop(mask, outside=True)
        for axis in axes:  # a square is a line along one axis, then along the other
            inside &= ~_boundary(inside, inside, [axis])
        edges.append(grid.crop(mask) & ~inside)
    return grid.distances(*edges).hd95


@dataclass(frozen=True)
class _Grid:
    """The part of a grid that holds both masks, with a margin of ``margin`` voxels filled in around it."""

    box: tuple[slice, ...]
    margin: tuple[int, ...]
    spacing: np.ndarray

    @classmethod
    def around(cls, true: np.ndarray, pred: np.ndarray, spacing: np.ndarray) -> _Grid:
        """The joint bounding box and one voxel more, where the image goes on."""
        margin = tuple(int(n) for n in np.maximum(np.floor(_reach_mm(spacing) / spacing + 1e-9), 1))
        filled, box = true | pred, []
        for _ in range(true.ndim):
            # Where along the first axis left there is something; then that axis is folded away.
            where = np.flatnonzero(filled.reshape(len(filled), int(np.prod(filled.shape[1:]))).any(axis=1))
            first, last = (int(where[0]), int(where[-1])) if where.size else (0, 0)
            box.append(slice(max(first - 1, 0), last + 2))
            filled = filled[first : last + 1].any(axis=0)
        return cls(tuple(box), margin, spacing)

    def crop(self, mask: np.ndarray, *, outside: bool = False) -> np.ndarray:
        """Cuts the box out of a mask; ``outside`` fills the margin."""
        inside = mask[self.box]
        shape = [n + 2 * m for n, m in zip(inside.shape, self.margin, strict=True)]
        cropped = np.full(shape, outside)
        cropped[tuple(slice(m, m + n) for n, m in zip(inside.shape, self.margin, strict=True))] = inside
        return cropped

    def distances(self, edge_true: np.ndarray, edge_pred: np.ndarray) -> SurfaceDistances:
        """Measures between two cropped boundaries."""
        one, other = bool(edge_true.any()), bool(edge_pred.any())
        if one and other:
            return SurfaceDistances(self.nearest(edge_true, edge_pred), self.nearest(edge_pred, edge_true))
        # The empty boundary stands as one infinite distance, so that every reader is infinite.
        sizes = [max(int(edge.sum()), 1) if one or other else 0 for edge in (edge_true, edge_pred)]
        return SurfaceDistances(*(np.full(size, np.inf) for size in sizes))

    def nearest(self, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Distances in mm from every voxel of ``points`` to the nearest of ``targets`` (not empty).

        In ascending order, whichever voxel they belong to: close to a good segmentation's boundary most are
        0 or a few voxels, so the neighbours are looked up before anything is searched for.
        """
        flat = targets.ravel()
        index = np.flatnonzero(points & ~targets)
        steps, counts = [0.0], [int(np.count_nonzero(points)) - index.size]
        for offset, distance in _neighbours(targets.shape, tuple(self.spacing.tolist())):
            if not index.size:
                break
            missed = ~flat[index + offset]
            hits = index.size - int(np.count_nonzero(missed))
            if hits:
                steps.append(distance)
                counts.append(hits)
                index = index[missed]
        near = np.repeat(steps, counts)
        return np.concatenate([near, np.sort(self._search(index, targets))]) if index.size else near

    def _search(self, index: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Distances in mm from the voxels of ``index`` to the nearest of ``targets``, by a search tree."""
        points = self._positions(index, targets.shape)
        # A target from every few voxels bounds each distance, and the bounds bound which targets matter.
        coarse = (slice(None, None, 4),) * (targets.ndim - 1)
        some = np.argwhere(targets[coarse])
        if len(some):
            some[:, : len(coarse)] *= 4
            bounds = _tree(some * self.spacing).query(points)[0]
            wanted = self._within(points, bounds, targets.shape)
            targets = targets if wanted is None else targets & wanted
        found = self._positions(np.flatnonzero(targets), targets.shape)
        return _tree(found).query(points)[0]

    def _within(self, points: np.ndarray, bounds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Marks a box around every point that holds its ball; None if marking is more work than it saves."""
        first = np.maximum(np.floor((points - bounds[:, None]) / self.spacing), 0).astype(np.int64)
        last = np.ceil((points + bounds[:, None]) / self.spacing).astype(np.int64) + 1
        if np.prod(last - first, axis=1).sum() > 4 * np.prod(shape):
            return None
        marked = np.zeros(shape, bool)
        for start, stop in zip(first.tolist(), last.tolist(), strict=True):
            marked[tuple(map(slice, start, stop))] = True
        return marked

    def _positions(self, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Places in mm of flat indices: ``(n, dimensions)``."""
        small = index.astype(np.int32) if np.prod(shape) < 2**31 else index  # its divisions are quicker
        return np.stack(np.unravel_index(small, shape), axis=1) * self.spacing


def _tree(points: np.ndarray) -> cKDTree:
    """A tree that is quick to build, for few queries."""
    return cKDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False)


def _reach_mm(spacing: np.ndarray) -> float:
    return float(np.clip(1.2 * spacing.max(), *(times * spacing.min() for times in _REACH)))


@functools.lru_cache(maxsize=64)
def _neighbours(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[tuple[int, float]]:
    """Neighbours in a ball, nearest first: flat offset, distance in mm.

    The whole ball but its centre is there, so the first one that is hit is the nearest.
    """
    reach = _reach_mm(np.array(spacing))
    sides = [np.arange(-int(reach / s + 1e-9), int(reach / s + 1e-9) + 1) for s in spacing]
    steps = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(spacing))
    distances = np.sqrt(((steps * np.array(spacing)) ** 2).sum(axis=1))
    near = (distances > 0) & (distances <= reach * (1 + 1e-9))
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    order = np.argsort(distances[near], kind="stable")
    return list(zip((steps[near] @ strides)[order].tolist(), distances[near][order].tolist(), strict=True))


def _boundary(mask: np.ndarray, support: np.ndarray, axes: Sequence[int] | None = None) -> np.ndarray:
    """Voxels of ``mask`` with a face neighbour along ``axes`` (all by default) outside ``support``.

    The outermost voxels of the array are margin: their own neighbours are not looked for.
    """
    flat, around = mask.ravel(), support.ravel()
    edge = np.empty(flat.size, bool)
    strides = np.cumprod([1, *mask.shape[:0:-1]])[::-1]
    steps = [int(strides[axis]) for axis in (range(mask.ndim) if axes is None else axes)]
    for start in range(0, flat.size, _CHUNK):
        stop = min(start + _CHUNK, flat.size)
        inside = around[start:stop].copy()
        for step in steps:
            low, high = max(step, start), min(stop, flat.size - step)
            if low < stop:
                inside[low - start :] &= around[low - step : stop - step]
            if high > start:
                inside[: high - start] &= around[start + step : high + step]
        np.logical_not(inside, out=inside)
        np.logical_and(flat[start:stop], inside, out=edge[start:stop])
    return edge.reshape(mask.shape)


def _in_memory_order(
    true: np.ndarray, pred: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns masks that lie in memory the other way round (as NIfTI files do), which changes no distance."""
    if true.flags.f_contiguous and pred.flags.f_contiguous and not true.flags.c_contiguous:
        return true.T, pred.T, spacing[::-1]
    return true, pred, spacing


def _spacing(spacing_mm: Sequence[float], ndim: int) -> np.ndarray:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (ndim,) or not np.all((spacing > 0) & (spacing < np.inf)):
        raise _checks.error(f"spacing_mm has one voxel size above 0 per axis ({ndim}).", spacing_mm)
    return spacing
