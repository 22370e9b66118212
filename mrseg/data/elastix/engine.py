"""Runs elastix (Klein et al. 2010, doi 10.1109/TMI.2009.2035616) in memory, silently, from NumPy volumes.

ITK is loaded by the first run in a process, which takes some seconds; importing this module does not load it.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mrseg._checks import InputError, choice, error
from mrseg.data.elastix.transforms import LPS_RAS, Parameters
from mrseg.data.geometry import Volume, voxel_sizes

#: Stages in the order the paper runs them; each has a parameter file ``<stage>.txt`` beside this module.
STAGES = ("rigid", "bspline")

_COARSEST_MM = 12.0


def stage_parameters(stage: str) -> Parameters:
    """The elastix parameter map of ``"rigid"`` or ``"bspline"`` as shipped in its text file."""
    choice("stage", stage, STAGES)
    found: Parameters = {}
    text = resources.files("mrseg.data.elastix").joinpath(f"{stage}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        line = line.split("//")[0].strip()
        if line:
            name, *values = line.strip("()").split()
            found[name] = tuple(value.strip('"') for value in values)
    return found


def parameter_maps(
    stages: Sequence[str],
    overrides: Mapping[str, Mapping[str, Any]],
    fixed_affine: np.ndarray,
    moving_affine: np.ndarray,
    seed: int,
) -> list[Parameters]:
    """One complete elastix parameter map per stage: file, what depends on the images, then ``overrides``."""
    if isinstance(stages, str) or not stages or len(set(stages)) != len(stages):
        raise error("stages is a sequence of different stage names.", repr(stages), f"For instance {STAGES}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise error("seed is a whole number from 0 to 2**31 - 1.", repr(seed))
    for stage in overrides:
        choice("A stage in overrides", stage, stages)
    maps = []
    for stage in stages:
        parameters = stage_parameters(stage)
        if "NumberOfResolutions" not in parameters:
            parameters |= _pyramid(fixed_affine, moving_affine)
        parameters["RandomSeed"] = (str(seed),)
        for name, values in overrides.get(stage, {}).items():
            many = values if isinstance(values, (list, tuple)) else (values,)
            parameters[name] = tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in many)
        maps.append(parameters)
    return maps


def run(
    fixed: Volume,
    moving: Volume,
    mask: np.ndarray | None,
    maps: Sequence[Parameters],
    start_mm: np.ndarray,
    threads: int,
) -> tuple[Parameters, ...]:
    """Runs the stages one after the other and returns one transform parameter map for each.

    Args:
        fixed: float32 image and RAS affine, axes at right angles.
        moving: likewise.
        mask: boolean on the fixed grid, or None.
        maps: from ``parameter_maps``.
        start_mm: LPS translation that comes before the first stage (the maps returned do not hold it).
        threads: of elastix.

    Raises:
        InputError: elastix failed; the message holds its reason.
    """
    with _itk() as itk:
        return _run(itk, fixed, moving, mask, maps, start_mm, threads)


def _run(
    itk: Any,
    fixed: Volume,
    moving: Volume,
    mask: np.ndarray | None,
    maps: Sequence[Parameters],
    start_mm: np.ndarray,
    threads: int,
) -> tuple[Parameters, ...]:
    kind = itk.Image[itk.F, 3]
    # The fixed image is moved by the start, so that elastix begins at the identity.
    method = itk.ElastixRegistrationMethod[kind, kind].New(
        FixedImage=_image(itk, fixed, start_mm), MovingImage=_image(itk, moving, np.zeros(3))
    )
    if mask is not None:
        method.SetFixedMask(_image(itk, (mask.astype(np.uint8), fixed[1]), start_mm))
    settings = itk.ParameterObject.New()
    for parameters in maps:
        settings.AddParameterMap(parameters)
    method.SetParameterObject(settings)
    method.SetNumberOfThreads(threads)
    method.SetLogToConsole(False)
    with tempfile.TemporaryDirectory(prefix="mrseg-elastix-") as folder:
        # The log is the only place where elastix says why it failed.
        method.SetOutputDirectory(folder)
        method.SetLogFileName("elastix.log")
        method.SetLogToFile(True)
        try:
            method.Update()
        except RuntimeError as reason:
            raise _failure(Path(folder, "elastix.log")) from reason
    result = method.GetTransformParameterObject()
    # Neither the moved origin nor a path in the folder that is gone belongs into the result.
    plain: Parameters = {
        "Origin": tuple(repr(float(v)) for v in fixed[1][:3, 3] * LPS_RAS),
        "InitialTransformParameterFileName": ("NoInitialTransform",),
    }
    found = [dict(result.GetParameterMap(i)) for i in range(result.GetNumberOfParameterMaps())]
    return tuple(one | plain for one in found)


def check_right_angles(name: str, affine: np.ndarray) -> None:
    """Refuses an affine whose axes are not at right angles, which ITK images cannot hold."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine > 1e-3:
        raise error(
            f"The axes of the {name} image are at right angles (within 0.06 degrees).",
            f"two axes {math.degrees(math.acos(min(1.0, cosine))):.1f} degrees apart",
            "The gantry was tilted or the affine sheared: resample the image onto an upright grid first "
            "(in Python mrseg.data.resample).",
        )


def _pyramid(fixed_affine: np.ndarray, moving_affine: np.ndarray) -> Parameters:
    """Smoothing of both images, alike in mm at each level.

    The finest level is as fine as the shortest side of the fixed voxel, each level before it twice as coarse,
    and none coarser than 12 mm: at 1 mm 4 levels (8, 4, 2, 1), at 3.5 mm 2 levels (7, 3.5).
    """
    finest = min(voxel_sizes(fixed_affine))
    levels = int(np.clip(1 + math.floor(math.log2(_COARSEST_MM / finest)), 1, 4))
    schedule: Parameters = {"NumberOfResolutions": (str(levels),)}
    for name, affine in (("Fixed", fixed_affine), ("Moving", moving_affine)):
        spacing = np.array(voxel_sizes(affine))
        factors = [np.maximum(1, np.round(finest * 2**level / spacing)) for level in reversed(range(levels))]
        schedule[f"{name}ImagePyramidSchedule"] = tuple(str(int(f)) for level in factors for f in level)
    return schedule


@contextmanager
def _itk() -> Iterator[Any]:
    """ITK without the warnings its SWIG types raise when first used (as errors they end the process)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        import itk

        yield itk


def _failure(log: Path) -> InputError:
    """The error to raise, with the reason from elastix's log in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    told = [line.partition("Description:")[2].strip() for line in lines if "Description:" in line]
    told = [line.partition("): ")[2] or line for line in told] or ["no reason in its log"]
    return error(
        "elastix must be able to register the images.",
        told[-1].rstrip("."),
        "Check that both scans show the same head, that the headers place it plausibly, and any overrides.",
    )


def _image(itk: Any, volume: Volume, shift_mm: np.ndarray) -> Any:
    """The volume as an ITK image (LPS mm), moved by ``shift_mm``."""
    array, affine = volume
    image = itk.image_from_array(np.ascontiguousarray(array.T))  # ITK's x runs fastest
    axes = affine[:3, :3] * LPS_RAS[:, None]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((affine[:3, 3] * LPS_RAS + shift_mm).tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(axes / spacing)))
    return image
