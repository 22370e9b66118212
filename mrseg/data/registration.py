"""Registration of a CT onto the grid of an MR scan: rigid, then B-spline (Mecheter et al. 2020, Preprocessing).

elastix (Klein et al. 2010, doi 10.1109/TMI.2009.2035616), through itk-elastix, finds the transform. Applying it, and
every figure of quality, is plain NumPy: a saved registration is re-applied without ITK, and its figures mean the
same whichever engine found it. Inside, points are LPS mm as in ITK; what comes in and goes out is RAS mm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from mrseg._checks import InputError, choice, error, existing_file
from mrseg._files import atomic_file
from mrseg.data.geometry import Volume

#: An elastix parameter map: name -> values, all text, as elastix reads and writes them.
Parameters = dict[str, tuple[str, ...]]

#: Stages in the order the paper runs them; each has an elastix parameter file ``elastix/<stage>.txt``.
STAGES = ("rigid", "bspline")

_LPS_RAS = np.array([-1.0, -1.0, 1.0])  # flips RAS mm to LPS mm and back
_BINS = 32  # of the mutual information reported as quality
_LATTICE_VOXELS = 300_000  # at most so many voxels of the fixed grid are looked at for quality
_SLAB_VOXELS = 1_000_000  # mapped at once, which bounds the memory of apply_transform
_RIM = 1e-6  # voxels; points this near the outer face of the image count as inside


@dataclass(frozen=True)
class Registration:
    """A transform from the fixed image's world to the moving image's, as plain data.

    Attributes:
        parameters: elastix transform parameter maps in the order they are applied to a point of the fixed world:
            the initial translation, then one per stage. LPS mm. transformix accepts them as they are.
        quality: ``mutual_information_before`` (images placed by their headers) and ``mutual_information_after``, in
            nats; ``overlap``, the fraction of the fixed field of view that lies inside the moving image;
            ``jacobian_min`` and ``jacobian_max`` of the final transform (1 keeps volumes, <= 0 folds space).
        provenance: what made it: stages, seed, threads, overrides, initialisation, engine and version.
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
    """Finds the transform that carries points of ``fixed`` (the MR) to the same anatomy in ``moving`` (the CT).

    It starts from the best, by mutual information, of three placements: as the headers say, centres of the two fields
    of view on each other, centres of mass on each other. For the search alone, intensities are limited to their 0.1
    and 99.9 percentiles (metal in a CT would otherwise fill the histogram) and NaN in ``moving`` counts as its lowest
    value. The same inputs, seed and number of threads give the same result bit for bit.

    Args:
        fixed: image (x, y, z), finite, and its affine (RAS mm, axes at right angles); at least 8 voxels an axis.
        moving: likewise; NaN marks voxels that hold no measurement, such as padding.
        stages: one or both of ``"rigid"``, ``"bspline"``, in the order they run.
        fixed_mask: on the fixed grid; only where it is true does the search compare intensities. None: everywhere.
        seed: >= 0, of the random samples.
        threads: of elastix; more are faster, and another number of threads gives slightly different sums.
        overrides: stage -> {elastix parameter: value or list of values}, laid over the parameter file of the stage,
            for instance ``{"bspline": {"MaximumNumberOfIterations": 2000}}``.

    Returns:
        The registration. Look at its quality, or let ``check_quality`` refuse a poor one, before using labels.

    Raises:
        InputError: an image that is not 3-D, constant, too small, not finite (fixed) or on sheared axes; an unknown
            stage or parameter; a mask of another shape or empty; elastix failed (the message says why).

    Reference:
        Mecheter et al. 2020, Preprocessing. The paper names the two steps and elastix, and gives no settings.
    """
    fixed, moving = _checked("fixed", fixed), _checked("moving", moving)
    maps = _parameter_maps(stages, overrides or {}, fixed, moving, seed)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise error("threads is a whole number of at least 1.", repr(threads))
    mask = None if fixed_mask is None else _checked_mask(fixed_mask, fixed[0].shape)
    fixed, moving = (_limited(fixed[0]), fixed[1]), (_limited(moving[0]), moving[1])
    start, initialisation = _initial_translation(fixed, moving)
    found = _run_elastix(fixed, moving, mask, maps, start, threads)
    parameters = (_translation(start), *found)
    return Registration(
        parameters=parameters,
        quality=_quality(parameters, fixed, moving),
        provenance={
            "engine": f"itk-elastix {metadata.version('itk-elastix')}",
            "stages": list(stages),
            "initialisation": initialisation,
            "seed": seed,
            "threads": threads,
            "overrides": json.loads(json.dumps({s: dict(v) for s, v in (overrides or {}).items()})),
        },
    )


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
    return _mapped(registration.parameters, points * _LPS_RAS) * _LPS_RAS


def apply_transform(
    registration: Registration,
    moving: Volume,
    fixed_grid: tuple[Sequence[int], np.ndarray],
    *,
    order: int = 1,
    fill: float = math.nan,
) -> np.ndarray:
    """Resamples ``moving`` onto the fixed grid through the registration.

    A voxel of the fixed grid whose centre falls outside the moving image (its outermost voxels' outer faces), or next
    to a NaN of it, gets ``fill``: nothing was measured there, and labels made from NaN are 255.

    Args:
        registration: from ``register`` or ``load_registration``.
        moving: the image registered, or any other on the same world (a label map: ``order=0``).
        fixed_grid: (shape, affine) of the fixed image, or another grid in its world.
        order: of the spline, 0 (nearest) to 3.
        fill: value where the moving image says nothing.

    Returns:
        float32 of ``shape``.
    """
    choice("order", order, (0, 1, 2, 3))
    array, affine = np.asarray(moving[0], dtype=np.float32), np.asarray(moving[1], dtype=np.float64)
    if array.ndim != 3:
        raise error("The moving image is 3-D (x, y, z).", f"shape {array.shape}")
    shape = tuple(int(n) for n in fixed_grid[0])
    return _resampled(registration.parameters, (array, affine), (shape, fixed_grid[1]), order, fill)


def check_quality(
    registration: Registration,
    *,
    mutual_information_ratio: float = 1.0,
    overlap: float = 0.5,
    jacobian_min: float = 0.0,
) -> None:
    """Refuses a registration that its own figures speak against. Silence is no proof of accuracy: look at the picture.

    Args:
        registration: from ``register`` or ``load_registration``.
        mutual_information_ratio: after / before must be at least this.
        overlap: fraction of the fixed field of view inside the moving image; at least this.
        jacobian_min: the smallest local volume ratio must be above this; at 0 or below space is folded.

    Raises:
        InputError: names every figure that failed, its limit, and the remedy.
    """
    quality = registration.quality
    before, after = quality["mutual_information_before"], quality["mutual_information_after"]
    failed = []
    if not after >= mutual_information_ratio * before:
        failed.append(
            f"mutual information {after:.4f} after, {before:.4f} before (at least {mutual_information_ratio:g} times)"
        )
    if not quality["overlap"] >= overlap:
        failed.append(f"overlap {quality['overlap']:.3f} (at least {overlap:g})")
    if not quality["jacobian_min"] > jacobian_min:
        failed.append(f"smallest Jacobian {quality['jacobian_min']:.3f} (above {jacobian_min:g})")
    if failed:
        raise error(
            "A registration is used only if its quality figures are within their limits.",
            "; ".join(failed),
            "Check that both scans are of the same head, try stages=('rigid',), a fixed_mask of the head, another "
            "seed or more iterations, and look at the overlay before lowering a limit.",
        )


def save_registration(registration: Registration, path: str | Path) -> Path:
    """Writes the registration as JSON, whole or not at all. Returns the path."""
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"format": _FORMAT, **asdict(registration)}, indent=1) + "\n")
    return path


def load_registration(path: str | Path) -> Registration:
    """Reads what ``save_registration`` wrote; equal to the registration saved, to the last bit.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file holds something else.
    """
    path = existing_file(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != _FORMAT:
            raise KeyError(stored["format"])
        parameters = tuple({k: tuple(map(str, v)) for k, v in m.items()} for m in stored["parameters"])
        quality = {k: float(v) for k, v in stored["quality"].items()}
        registration = Registration(parameters, quality, dict(stored["provenance"]))
        transform_points(registration, np.zeros((1, 3)))
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise error(
            "A registration file is the JSON that save_registration writes.",
            f"{path} ({type(reason).__name__}: {reason})",
            "Register again and save.",
        ) from reason
    return registration


_FORMAT = "mrseg registration 1"


# --- the transform, in LPS mm ---------------------------------------------------------------------------------------


def _mapped(parameters: Sequence[Parameters], points: np.ndarray) -> np.ndarray:
    for one in parameters:
        points = _TRANSFORMS[one["Transform"][0]](one, points)
    return points


def _numbers(parameters: Parameters, name: str) -> np.ndarray:
    return np.array(parameters[name], dtype=np.float64)


def _apply_translation(parameters: Parameters, points: np.ndarray) -> np.ndarray:
    return points + _numbers(parameters, "TransformParameters")


def _apply_euler(parameters: Parameters, points: np.ndarray) -> np.ndarray:
    """R (p - c) + c + t with R = Rz Rx Ry, or Rz Ry Rx where ComputeZYX is true (itk::Euler3DTransform)."""
    values = _numbers(parameters, "TransformParameters")
    (cx, cy, cz), (sx, sy, sz) = np.cos(values[:3]), np.sin(values[:3])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    zyx = parameters.get("ComputeZYX", ("false",))[0] == "true"
    rotation = about_z @ about_y @ about_x if zyx else about_z @ about_x @ about_y
    centre = _numbers(parameters, "CenterOfRotationPoint")
    return (points - centre) @ rotation.T + (centre + values[3:])


def _apply_bspline(parameters: Parameters, points: np.ndarray) -> np.ndarray:
    """p + sum of control displacements times cubic B-splines of the distance to their grid points."""
    size = tuple(int(n) for n in parameters["GridSize"])
    axes = _numbers(parameters, "GridDirection").reshape(3, 3).T * _numbers(parameters, "GridSpacing")
    index = (points - _numbers(parameters, "GridOrigin")) @ np.linalg.inv(axes).T
    index = np.moveaxis(index, -1, 0)  # (3, ...)
    control = _numbers(parameters, "TransformParameters").reshape(3, *size[::-1])  # (3, z, y, x)
    moved = np.array(points, dtype=np.float64)
    for axis in range(3):
        moved[..., axis] += ndimage.map_coordinates(
            control[axis].T, index, order=3, prefilter=False, mode="grid-constant"
        )
    return moved


_TRANSFORMS = {
    "TranslationTransform": _apply_translation,
    "EulerTransform": _apply_euler,
    "BSplineTransform": _apply_bspline,
}


def _translation(offset_mm: np.ndarray) -> Parameters:
    return {
        "Transform": ("TranslationTransform",),
        "NumberOfParameters": ("3",),
        "TransformParameters": tuple(repr(float(v)) for v in offset_mm),
        "HowToCombineTransforms": ("Compose",),
        "InitialTransformParameterFileName": ("NoInitialTransform",),
    }


def _resampled(
    parameters: Sequence[Parameters],
    moving: Volume,
    fixed_grid: tuple[tuple[int, ...], np.ndarray],
    order: int,
    fill: float,
) -> np.ndarray:
    (array, affine), (shape, fixed_affine) = moving, fixed_grid
    measured = np.isfinite(array)
    holes = None
    if not measured.all():
        holes = (~measured).astype(np.float32)
        array = np.where(measured, array, 0).astype(np.float32)
    if order > 1:
        array = ndimage.spline_filter(array, order, output=np.float32, mode="mirror")
    lps = np.diag([*_LPS_RAS, 1.0])
    to_world, to_index = lps @ np.asarray(fixed_affine, dtype=np.float64), np.linalg.inv(lps @ affine)
    top = np.reshape(array.shape, (3, 1, 1, 1)) - 1.0
    out = np.empty(shape, dtype=np.float32)
    step = max(1, _SLAB_VOXELS // max(1, shape[1] * shape[2]))
    for first in range(0, shape[0], step):
        slab = slice(first, min(first + step, shape[0]))
        grid = np.moveaxis(np.mgrid[slab, : shape[1], : shape[2]], 0, -1)
        points = _mapped(parameters, grid @ to_world[:3, :3].T + to_world[:3, 3])
        index = np.moveaxis(points @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)  # (3, x, y, z)
        inside = ((index >= -0.5 - _RIM) & (index <= top + 0.5 + _RIM)).all(axis=0)
        index = np.clip(index, 0, top)
        values = ndimage.map_coordinates(
            array, index, order=order, prefilter=False, mode="mirror", output=np.float32
        )
        if holes is not None:
            inside &= ndimage.map_coordinates(holes, index, order=min(order, 1), prefilter=False) < _RIM
        out[slab] = np.where(inside, values, fill)
    return out


# --- quality --------------------------------------------------------------------------------------------------------


def _quality(parameters: Sequence[Parameters], fixed: Volume, moving: Volume) -> dict[str, float]:
    """The figures of ``Registration.quality``, on a lattice of the fixed grid's voxels."""
    image, affine = _lattice(fixed, _LATTICE_VOXELS)
    grid = (image.shape, affine)
    low = float(moving[0].min())
    before = _resampled((), moving, grid, 1, low)
    after = _resampled(parameters, moving, grid, 1, math.nan)
    inside = np.isfinite(after)
    jacobian = _jacobian(parameters, grid)
    return {
        "mutual_information_before": mutual_information(image, before),
        "mutual_information_after": mutual_information(image, np.where(inside, after, low)),
        "overlap": float(inside.mean()),
        "jacobian_min": float(jacobian.min()),
        "jacobian_max": float(jacobian.max()),
    }


def mutual_information(first: np.ndarray, second: np.ndarray, *, bins: int = _BINS) -> float:
    """Mutual information of two images on one grid, in nats, from a joint histogram of equal-width bins.

    Returns:
        >= 0; 0 for a constant image. NaN counts in neither.
    """
    both = np.isfinite(first) & np.isfinite(second)
    codes = []
    for image in (first[both], second[both]):
        low, high = (image.min(), image.max()) if image.size else (0.0, 0.0)
        if not high > low:
            return 0.0
        scaled = (image.astype(np.float64) - low) * (bins / (float(high) - float(low)))
        codes.append(np.minimum(scaled.astype(np.intp), bins - 1))
    joint = np.bincount(codes[0] * bins + codes[1], minlength=bins * bins).reshape(bins, bins) / codes[0].size
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float(max(0.0, (joint[seen] * np.log(joint[seen] / product[seen])).sum()))


def _lattice(volume: Volume, voxels: int) -> Volume:
    """Every n-th voxel, the coarser axes less, until no more than ``voxels`` are left."""
    array, affine = volume
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = np.ones(3, dtype=int)
    while np.prod(-(-np.array(array.shape) // steps)) > voxels:
        steps[np.argmin(spacing * steps)] += 1
    return array[:: steps[0], :: steps[1], :: steps[2]], affine @ np.diag([*steps, 1.0])


def _jacobian(parameters: Sequence[Parameters], grid: tuple[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """Determinant of the transform's derivative at the voxels of the grid, by differences between neighbours."""
    shape, affine = grid
    lps = np.diag([*_LPS_RAS, 1.0]) @ affine
    index = np.moveaxis(np.indices(shape), 0, -1)
    points = _mapped(parameters, index @ lps[:3, :3].T + lps[:3, 3])
    by_index = np.stack(np.gradient(points, axis=(0, 1, 2)), axis=-1)  # (x, y, z, component, axis)
    return np.linalg.det(by_index) / np.linalg.det(lps[:3, :3])


# --- the engine -----------------------------------------------------------------------------------------------------


def _checked(name: str, volume: Volume) -> Volume:
    """The volume as (float32, float64), or the reason why it cannot be registered."""
    try:
        array, affine = volume
    except (TypeError, ValueError):
        raise error(f"{name} is a pair (array, affine).", type(volume).__name__) from None
    array, affine = np.asarray(array, dtype=np.float32), np.asarray(affine, dtype=np.float64)
    if array.ndim != 3 or min(array.shape) < 8:
        raise error(
            f"The {name} image is 3-D with at least 8 voxels along each axis.", f"shape {array.shape}"
        )
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise error(f"The {name} affine is 4x4, finite and invertible.", affine.tolist())
    finite = np.isfinite(array)
    if name == "fixed" and not finite.all():
        raise error("The fixed image is finite everywhere.", f"{(~finite).sum()} voxels of NaN or infinity")
    if not finite.any() or np.ptp(array[finite]) == 0:
        raise error(
            f"The {name} image is not constant.",
            f"range {np.ptp(array[finite]) if finite.any() else 'empty'}",
        )
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = np.abs(axes.T @ axes - np.eye(3)).max()
    if skew > 1e-3:
        raise error(
            f"The axes of the {name} image are at right angles (within 0.06 degrees).",
            f"an angle of {math.degrees(math.acos(min(1.0, skew))):.1f} degrees between two axes",
            "Resample it onto such a grid first (mrseg.data.resample): the gantry was tilted, or the affine sheared.",
        )
    return array, affine


def _checked_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(mask) != 0
    if mask.shape != shape:
        raise error("fixed_mask lies on the fixed grid.", f"mask {mask.shape}, fixed image {shape}")
    if not mask.any():
        raise error("fixed_mask is true somewhere.", "an empty mask")
    return mask


def _limited(array: np.ndarray) -> np.ndarray:
    """Intensities within their 0.1 and 99.9 percentiles, NaN at the lowest."""
    finite = np.isfinite(array)
    low, high = np.percentile(array[finite], (0.1, 99.9))
    if not high > low:  # nearly all voxels equal: leave the few that differ
        low, high = array[finite].min(), array[finite].max()
    return np.clip(np.where(finite, array, low), low, high).astype(np.float32)


def _initial_translation(fixed: Volume, moving: Volume) -> tuple[np.ndarray, str]:
    """LPS mm from fixed to moving world, and the name of the placement it stands for."""
    offsets = {
        "header": np.zeros(3),
        "centre of geometry": _centre(moving, weighted=False) - _centre(fixed, weighted=False),
        "centre of mass": _centre(moving, weighted=True) - _centre(fixed, weighted=True),
    }
    image, affine = _lattice(fixed, _LATTICE_VOXELS // 10)
    low = float(moving[0].min())

    def agreement(name: str) -> float:
        there = _resampled((_translation(offsets[name]),), moving, (image.shape, affine), 1, low)
        return mutual_information(image, there)

    best = max(offsets, key=agreement)
    return offsets[best], best


def _centre(volume: Volume, *, weighted: bool) -> np.ndarray:
    array, affine = volume
    index = (np.array(array.shape) - 1) / 2
    if weighted:
        index = np.array(ndimage.center_of_mass(array.astype(np.float64) - float(array.min())))
    return (affine[:3, :3] @ index + affine[:3, 3]) * _LPS_RAS


def parameter_file(stage: str) -> Parameters:
    """The elastix parameter map of a stage as shipped in ``mrseg/data/elastix/<stage>.txt``."""
    choice("stage", stage, STAGES)
    found: Parameters = {}
    for line in (
        resources.files("mrseg.data").joinpath("elastix", f"{stage}.txt").read_text("utf-8").splitlines()
    ):
        line = line.split("//")[0].strip()
        if line:
            name, *values = line.strip("()").split()
            found[name] = tuple(value.strip('"') for value in values)
    return found


def _parameter_maps(
    stages: Sequence[str],
    overrides: Mapping[str, Mapping[str, Any]],
    fixed: Volume,
    moving: Volume,
    seed: int,
) -> list[Parameters]:
    """One complete elastix parameter map per stage."""
    if isinstance(stages, str) or not stages or len(set(stages)) != len(stages):
        raise error("stages is a sequence of different stage names.", repr(stages), f"For instance {STAGES}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise error("seed is a whole number from 0 to 2**31 - 1.", repr(seed))
    for stage in overrides:
        choice("A stage in overrides", stage, stages)
    maps = []
    for stage in stages:
        parameters = parameter_file(stage) | _pyramid(fixed[1], moving[1])
        parameters["RandomSeed"] = (str(seed),)
        for name, values in overrides.get(stage, {}).items():
            many = values if isinstance(values, (list, tuple)) else (values,)
            parameters[name] = tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in many)
        maps.append(parameters)
    return maps


def _pyramid(fixed_affine: np.ndarray, moving_affine: np.ndarray) -> Parameters:
    """Smoothing of both images, alike in mm at each level.

    The finest level is as fine as the fixed voxel's shortest side, each level before it twice as coarse, and the
    coarsest at most 12 mm: 4 levels at 1 mm (8, 4, 2, 1), 2 at 3.5 mm (7, 3.5).
    """
    finest = float(np.linalg.norm(fixed_affine[:3, :3], axis=0).min())
    levels = int(np.clip(1 + math.floor(math.log2(12.0 / finest)), 1, 4))
    schedule: Parameters = {"NumberOfResolutions": (str(levels),)}
    for name, affine in (("Fixed", fixed_affine), ("Moving", moving_affine)):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        factors = [np.maximum(1, np.round(finest * 2**level / spacing)) for level in reversed(range(levels))]
        schedule[f"{name}ImagePyramidSchedule"] = tuple(str(int(f)) for level in factors for f in level)
    return schedule


def _run_elastix(
    fixed: Volume,
    moving: Volume,
    mask: np.ndarray | None,
    maps: list[Parameters],
    start: np.ndarray,
    threads: int,
) -> tuple[Parameters, ...]:
    """elastix on the two images, the fixed one already moved by ``start`` (LPS mm)."""
    import itk

    kind = itk.Image[itk.F, 3]
    method = itk.ElastixRegistrationMethod[kind, kind].New(
        FixedImage=_itk_image(fixed, start), MovingImage=_itk_image(moving, np.zeros(3))
    )
    if mask is not None:
        method.SetFixedMask(_itk_image((mask.astype(np.uint8), fixed[1]), start))
    settings = itk.ParameterObject.New()
    for parameters in maps:
        settings.AddParameterMap(parameters)
    method.SetParameterObject(settings)
    method.SetLogToConsole(False)
    method.SetLogToFile(False)
    method.SetNumberOfThreads(threads)
    try:
        method.Update()
    except RuntimeError as reason:
        raise _failure(reason) from reason
    result = method.GetTransformParameterObject()
    origin = tuple(repr(float(v)) for v in fixed[1][:3, 3] * _LPS_RAS)
    found = [dict(result.GetParameterMap(i)) for i in range(result.GetNumberOfParameterMaps())]
    return tuple({**one, "Origin": origin} for one in found)


def _failure(reason: RuntimeError) -> InputError:
    lines = [line.strip() for line in str(reason).splitlines()]
    told = [line for line in lines if line and not line.startswith(("/", "File:", "Line:", "Location:"))]
    return error(
        "elastix could not register the images.",
        told[-1].removeprefix("Description:").strip() if told else "no reason given",
        "Check that both scans show the same head and that the headers place it plausibly.",
    )


def _itk_image(volume: Volume, shift: np.ndarray) -> Any:
    import itk

    array, affine = volume
    image = itk.image_from_array(np.ascontiguousarray(array.T))  # ITK's x runs fastest
    axes = affine[:3, :3] * _LPS_RAS[:, None]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((affine[:3, 3] * _LPS_RAS + shift).tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(axes / spacing)))
    return image
