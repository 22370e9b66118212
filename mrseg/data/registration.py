"""Registration of a CT onto the grid of an MR scan: rigid, then B-spline (Mecheter et al. 2020,
Preprocessing).

elastix finds the transform (``mrseg.data.elastix``; its parameter files are there to read). Applying it, and
every figure of quality, is plain NumPy: a saved registration is re-applied without ITK, and its figures mean
the same whichever engine found it. Points that go in and come out are RAS mm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from mrseg._checks import choice, error, existing_file, positive_ints
from mrseg._files import atomic_file
from mrseg.data.elastix import engine
from mrseg.data.elastix.engine import STAGES
from mrseg.data.elastix.transforms import LPS_RAS, Parameters, map_points, sample, translation
from mrseg.data.geometry import Grid, Volume, check_affine, head_mask, voxel_sizes

_FORMAT = "mrseg registration 1"
_BINS = 32  # of the mutual information reported as quality
_LATTICE_VOXELS = 300_000  # at most so many voxels of the fixed grid are looked at for quality
_MASK_MARGIN_MM = 10.0
_MIN_HEAD = 0.05  # of the fixed image; a smaller "head" was not found, so the search looks everywhere


@dataclass(frozen=True)
class Registration:
    """A transform from the fixed image's world to the moving image's, as plain data.

    Attributes:
        parameters: elastix transform parameter maps in the order they are applied to a point of the fixed
            world: the initial translation, then one per stage. LPS mm.
        quality: ``mutual_information_before`` (images placed by their headers) and
            ``mutual_information_after``, in nats; ``overlap``, the fraction of the fixed field of view that
            lies inside the moving image; ``jacobian_min`` and ``jacobian_max`` of the final transform (1
            keeps volumes, <= 0 folds space).
        provenance: what made it: engine and version, stages, initialisation, seed, threads, overrides.
    """

    parameters: tuple[Parameters, ...]
    quality: dict[str, float]
    provenance: dict[str, Any]


def register(
    fixed: Volume,
    moving: Volume,
    *,
    stages: Sequence[str] = STAGES,
    fixed_mask: np.ndarray | None = None,
    seed: int = 0,
    threads: int = 1,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Registration:
    """Finds where each point of ``fixed`` (the MR) lies in ``moving`` (the CT).

    It starts from the best, by mutual information, of three placements: as the headers say, centres of the
    two fields of view on each other, centres of mass on each other. For the search alone, intensities are
    replaced by their ranks (equal-width bins of HU would put the whole brain into one) and NaN in ``moving``
    counts as its lowest value. The same inputs, seed and number of threads give the same result bit for bit.
    The first call in a process loads ITK, which takes some seconds.

    Args:
        fixed: image (x, y, z), finite, and its affine (RAS mm, axes at right angles); at least 8 voxels an
            axis.
        moving: likewise; NaN marks voxels that hold no measurement, such as padding.
        stages: one or both of ``"rigid"``, ``"bspline"``, in the order they run.
        fixed_mask: on the fixed grid; only where it is true does the search compare intensities. None: the
            head and 10 mm around it (``geometry.head_mask``), or everywhere if less than 5 % of the image
            looks like a head.
        seed: >= 0, of the random samples.
        threads: of the rigid stage (the B-spline stage runs in one, see its parameter file); another number
            gives slightly different sums.
        overrides: stage -> {elastix parameter: value or list of values}, laid over the parameter file of the
            stage, for instance ``{"bspline": {"MaximumNumberOfIterations": 2000, "NumberOfSpatialSamples":
            4096}}``.

    Returns:
        The registration. Look at its quality, or let ``check_quality`` refuse a poor one, before using
        labels.

    Raises:
        InputError: an image that is not 3-D, constant, too small, not finite (fixed) or on sheared axes; an
            unknown stage; a mask of another shape or empty; elastix failed (the message says why).

    Example:
        >>> registration = register(fixed=mr, moving=ct)                               # doctest: +SKIP
        >>> check_quality(registration)                                                # doctest: +SKIP
        >>> ct_on_mr = apply_transform(registration, ct, (mr[0].shape, mr[1]))         # doctest: +SKIP

    Reference:
        Mecheter et al. 2020, Preprocessing. The paper names the two steps and elastix, and gives no settings.
    """
    fixed, moving = _checked("fixed", fixed), _checked("moving", moving)
    maps = engine.parameter_maps(stages, overrides or {}, fixed[1], moving[1], seed)
    (threads,) = positive_ints("threads", (threads,), 1)
    mask = _search_mask(fixed, fixed_mask)
    fixed, moving = (_limited(fixed[0]), fixed[1]), (_limited(moving[0]), moving[1])
    start, initialisation = _initial_translation(fixed, moving)
    ranked = (_ranks(fixed[0]), fixed[1]), (_ranks(moving[0]), moving[1])
    parameters = (translation(start), *engine.run(*ranked, mask, maps, start, threads))
    provenance = {
        "engine": f"itk-elastix {metadata.version('itk-elastix')}",
        "stages": list(stages),
        "initialisation": initialisation,
        "seed": seed,
        "threads": threads,
        # As JSON gives it back, so that a registration read from its file equals the one saved.
        "overrides": json.loads(json.dumps({stage: dict(o) for stage, o in (overrides or {}).items()})),
    }
    return Registration(parameters, _quality(parameters, fixed, moving), provenance)


def transform_points(registration: Registration, points_mm: np.ndarray) -> np.ndarray:
    """Carries points of the fixed image's world to the moving image's.

    Beyond the grid of the B-spline its displacement fades to zero within two grid spacings.

    Args:
        registration: from ``register`` or ``load_registration``.
        points_mm: (..., 3), RAS mm.

    Returns:
        (..., 3) float64, RAS mm.
    """
    points = np.asarray(points_mm, dtype=np.float64)
    if points.shape[-1:] != (3,):
        raise error("Points are (..., 3), millimetres.", f"shape {points.shape}")
    return map_points(registration.parameters, points * LPS_RAS) * LPS_RAS


def apply_transform(
    registration: Registration, moving: Volume, fixed_grid: Grid, *, order: int = 1, fill: float = math.nan
) -> np.ndarray:
    """Resamples ``moving`` onto the fixed grid through the registration.

    A voxel of the fixed grid whose centre falls outside the moving image (beyond its outermost voxels' outer
    faces), or that draws on a NaN of it, gets ``fill``: nothing was measured there, and labels made from NaN
    are 255. Values are read at points; nothing is averaged where the fixed voxels are much larger than the
    moving ones.

    Args:
        registration: from ``register`` or ``load_registration``.
        moving: the image registered, or any other in the same world (a label map: ``order=0``).
        fixed_grid: (shape, affine) of the fixed image, or another grid in its world.
        order: of the interpolating spline, 0 (nearest) to 3.
        fill: value where the moving image says nothing.

    Returns:
        float32 of that shape.
    """
    choice("order", order, (0, 1, 2, 3))
    array = np.asarray(moving[0], dtype=np.float32)
    if array.ndim != 3:
        raise error("The moving image is 3-D (x, y, z).", f"shape {array.shape}")
    shape = positive_ints("The shape of fixed_grid", tuple(int(n) for n in fixed_grid[0]), 3)
    grid = (shape[0], shape[1], shape[2]), check_affine("fixed_grid", fixed_grid[1])
    return sample(registration.parameters, (array, check_affine("moving", moving[1])), grid, order, fill)


def check_quality(
    registration: Registration,
    *,
    mutual_information_ratio: float = 0.98,
    overlap: float = 0.5,
    jacobian_min: float = 0.0,
) -> None:
    """Refuses a registration that its own figures speak against. Passing is no proof: look at the overlay.

    Args:
        registration: from ``register`` or ``load_registration``.
        mutual_information_ratio: mutual information after / before is at least this. Below 1, because a pair
            that lay on each other from the start loses a little to interpolation.
        overlap: the fraction of the fixed field of view inside the moving image is at least this.
        jacobian_min: the smallest local change of volume is above this; at 0 or below space is folded.

    Raises:
        InputError: names every figure outside its limit, and the remedy.
    """
    quality = registration.quality
    before, after = quality["mutual_information_before"], quality["mutual_information_after"]
    failed = []
    if not after >= mutual_information_ratio * before:
        failed.append(
            f"mutual information {before:.4f} before, {after:.4f} after "
            f"(at least {mutual_information_ratio:g} times)"
        )
    if not quality["overlap"] >= overlap:
        failed.append(f"overlap {quality['overlap']:.3f} (at least {overlap:g})")
    if not quality["jacobian_min"] > jacobian_min:
        failed.append(f"smallest Jacobian {quality['jacobian_min']:.3f} (above {jacobian_min:g})")
    if failed:
        raise error(
            "A registration is used only if its quality figures are within their limits.",
            "; ".join(failed),
            "Check that both scans show the same head; try another seed (--seed); in Python also "
            "stages=('rigid',), a fixed_mask of the head or more iterations; look at the overlay before "
            "changing a limit.",
        )


def save_registration(registration: Registration, path: str | Path) -> Path:
    """Writes the registration as JSON, whole or not at all, and returns the path."""
    path = Path(path)
    with atomic_file(path) as temporary:
        text = json.dumps({"format": _FORMAT, **asdict(registration)}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def load_registration(path: str | Path) -> Registration:
    """Reads what ``save_registration`` wrote: equal to what was saved, to the last bit.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file holds something else.
    """
    path = existing_file(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != _FORMAT:
            raise ValueError(f"format {stored['format']!r}")
        parameters = tuple({k: tuple(map(str, v)) for k, v in one.items()} for one in stored["parameters"])
        quality = {k: float(v) for k, v in stored["quality"].items()}
        registration = Registration(parameters, quality, dict(stored["provenance"]))
        transform_points(registration, np.zeros((1, 3)))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, np.linalg.LinAlgError) as reason:
        raise error(
            "A registration file is the JSON that save_registration writes.",
            f"{path} ({type(reason).__name__}: {reason})",
            "Register again and save.",
        ) from reason
    return registration


def mutual_information(first: np.ndarray, second: np.ndarray, *, bins: int = _BINS) -> float:
    """Mutual information of two images on one grid, in nats, from a joint histogram of equal-width bins.

    Returns:
        >= 0; 0 if either image is constant. Voxels where either is not finite do not count.
    """
    both = np.isfinite(first) & np.isfinite(second)
    codes = []
    for image in (first[both], second[both]):
        low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 0.0)
        if not high > low:
            return 0.0
        scaled = (image.astype(np.float64) - low) * (bins / (high - low))
        codes.append(np.minimum(scaled.astype(np.intp), bins - 1))
    joint = np.bincount(codes[0] * bins + codes[1], minlength=bins * bins).reshape(bins, bins) / codes[0].size
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float(max(0.0, (joint[seen] * np.log(joint[seen] / product[seen])).sum()))


def _quality(parameters: Sequence[Parameters], fixed: Volume, moving: Volume) -> dict[str, float]:
    """The figures of ``Registration.quality``; outside the moving image counts as its lowest value (air)."""
    image, affine = _lattice(fixed, _LATTICE_VOXELS)
    grid = image.shape, affine
    low = float(moving[0].min())
    after = sample(parameters, moving, grid, 1, math.nan)
    inside = np.isfinite(after)
    jacobian = _jacobian(parameters, grid)
    return {
        "mutual_information_before": mutual_information(image, sample((), moving, grid, 1, low)),
        "mutual_information_after": mutual_information(image, np.where(inside, after, low)),
        "overlap": float(inside.mean()),
        "jacobian_min": float(jacobian.min()),
        "jacobian_max": float(jacobian.max()),
    }


def _lattice(volume: Volume, voxels: int) -> Volume:
    """Every n-th voxel, first along the finest axis, until no more than ``voxels`` are left."""
    array, affine = volume
    spacing = np.array(voxel_sizes(affine))
    steps = np.ones(3, dtype=int)
    while np.prod(-(-np.array(array.shape) // steps)) > voxels:
        steps[np.argmin(spacing * steps)] += 1
    return array[:: steps[0], :: steps[1], :: steps[2]], affine @ np.diag([*steps, 1.0])


def _jacobian(parameters: Sequence[Parameters], grid: Grid) -> np.ndarray:
    """Determinant of the transform's derivative at the grid's voxels, by differences between neighbours."""
    shape, affine = grid
    lps = np.diag([*LPS_RAS, 1.0]) @ affine
    index = np.moveaxis(np.indices(shape), 0, -1)
    points = map_points(parameters, index @ lps[:3, :3].T + lps[:3, 3])
    by_index = np.stack(np.gradient(points, axis=(0, 1, 2)), axis=-1)  # (x, y, z, component, axis)
    return np.linalg.det(by_index) / np.linalg.det(lps[:3, :3])


def _checked(name: str, volume: Volume) -> Volume:
    """The volume as (float32, float64), or the reason why it cannot be registered."""
    try:
        array, affine = volume
    except (TypeError, ValueError):
        raise error(f"{name} is a pair (array, affine).", type(volume).__name__) from None
    array, affine = np.asarray(array, dtype=np.float32), check_affine(name, affine)
    if array.ndim != 3 or min(array.shape) < 8:
        raise error(f"The {name} image is 3-D, at least 8 voxels along each axis.", f"shape {array.shape}")
    finite = np.isfinite(array)
    if name == "fixed" and not finite.all():
        broken = np.count_nonzero(~finite)
        raise error("The fixed image is finite everywhere.", f"{broken} NaN or infinite voxels")
    if not finite.any() or np.ptp(array[finite]) == 0:
        raise error(f"The {name} image is not constant.", "one value" if finite.any() else "no finite voxel")
    engine.check_right_angles(name, affine)
    return array, affine


def _search_mask(fixed: Volume, mask: np.ndarray | None) -> np.ndarray | None:
    if mask is None:
        sides = [2 * math.ceil(_MASK_MARGIN_MM / size) + 1 for size in voxel_sizes(fixed[1])]
        head = head_mask(fixed[0])
        return ndimage.maximum_filter(head, size=sides) if head.mean() >= _MIN_HEAD else None
    mask = np.asarray(mask) != 0
    if mask.shape != fixed[0].shape:
        raise error("fixed_mask lies on the fixed grid.", f"mask {mask.shape}, fixed image {fixed[0].shape}")
    if not mask.any():
        raise error("fixed_mask is true somewhere.", "an empty mask")
    return mask


def _limited(array: np.ndarray) -> np.ndarray:
    """Intensities within their 0.1 and 99.9 percentiles (metal lies outside), NaN at the lowest."""
    finite = np.isfinite(array)
    low, high = np.percentile(array[finite], (0.1, 99.9))
    if not high > low:  # nearly all voxels are equal: keep the few that differ
        low, high = array[finite].min(), array[finite].max()
    return np.clip(np.where(finite, array, low), low, high).astype(np.float32)


def _ranks(array: np.ndarray) -> np.ndarray:
    """The share of voxels below each voxel's value, scaled to 0..1000: a monotone map, so no information is
    lost.

    Equal-width bins of HU would put the whole brain into one; of ranks, they go where the voxels are.
    """
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    below = (np.cumsum(counts) - counts / 2) / array.size
    return (1000 * below[inverse]).reshape(array.shape).astype(np.float32)


def _initial_translation(fixed: Volume, moving: Volume) -> tuple[np.ndarray, str]:
    """LPS mm from the fixed to the moving world, and the name of the placement it stands for."""
    offsets = {
        "header": np.zeros(3),
        "centre of geometry": _centre(moving, weighted=False) - _centre(fixed, weighted=False),
        "centre of mass": _centre(moving, weighted=True) - _centre(fixed, weighted=True),
    }
    image, affine = _lattice(fixed, _LATTICE_VOXELS // 10)
    low = float(moving[0].min())

    def agreement(name: str) -> float:
        there = sample((translation(offsets[name]),), moving, (image.shape, affine), 1, low)
        return mutual_information(image, there)

    best = max(offsets, key=agreement)  # the first of equals
    return offsets[best], best


def _centre(volume: Volume, *, weighted: bool) -> np.ndarray:
    array, affine = volume
    index = (np.array(array.shape) - 1) / 2
    if weighted:
        index = np.array(ndimage.center_of_mass(array.astype(np.float64) - float(array.min())))
    return (affine[:3, :3] @ index + affine[:3, 3]) * LPS_RAS
