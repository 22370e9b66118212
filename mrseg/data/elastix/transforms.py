"""elastix transforms in plain NumPy: applying a registration needs no ITK.

The transform parameter maps are those that elastix writes and transformix reads. Points here are LPS mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mrseg.data.geometry import Grid, Volume

#: An elastix parameter map: name -> values, all text, as elastix reads and writes them.
Parameters = dict[str, tuple[str, ...]]

#: Flips RAS mm to LPS mm and back.
LPS_RAS = np.array([-1.0, -1.0, 1.0])

_SLAB_VOXELS = 1_000_000  # mapped at once, which bounds the memory of sample
_RIM = 1e-6  # voxels; points this near the outer face of the image count as inside


def map_points(parameters: Sequence[Parameters], points: np.ndarray) -> np.ndarray:
    """Carries points (..., 3) in LPS mm through the transforms, the first in the sequence first."""
    for one in parameters:
        points = _TRANSFORMS[one["Transform"][0]](one, points)
    return points


def sample(
    parameters: Sequence[Parameters], moving: Volume, grid: Grid, order: int, fill: float
) -> np.ndarray:
    """Values of ``moving`` (affine RAS, as everywhere) at the voxels of ``grid``, through the transforms.

    ``fill`` where a voxel's centre falls outside the moving image (up to its outermost voxels' outer faces)
    or draws on a NaN of it. float32.
    """
    (array, affine), (shape, grid_affine) = moving, grid
    measured = np.isfinite(array)
    holes = None
    if not measured.all():
        holes = (~measured).astype(np.float32)
        array = np.where(measured, array, np.float32(0))
    if order > 1:
        array = ndimage.spline_filter(array, order, output=np.float32, mode="mirror")
    lps = np.diag([*LPS_RAS, 1.0])
    to_world, to_index = lps @ np.asarray(grid_affine, dtype=np.float64), np.linalg.inv(lps @ affine)
    top = np.reshape(array.shape, (3, 1, 1, 1)) - 1.0
    out = np.empty(shape, dtype=np.float32)
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for first in range(0, shape[0], step):
        slab = slice(first, min(first + step, shape[0]))
        index = np.moveaxis(np.mgrid[slab, : shape[1], : shape[2]], 0, -1)  # (x, y, z, 3)
        points = map_points(parameters, index @ to_world[:3, :3].T + to_world[:3, 3])
        # Rounding removes the 1e-16 of the inverse: the identity returns the very same values.
        there = np.round(np.moveaxis(points @ to_index[:3, :3].T + to_index[:3, 3], -1, 0), 9)  # (3, x, y, z)
        inside = ((there >= -0.5 - _RIM) & (there <= top + 0.5 + _RIM)).all(axis=0)
        there = np.clip(there, 0, top)
        values = ndimage.map_coordinates(array, there, np.float32, order, mode="mirror", prefilter=False)
        if holes is not None:
            near = ndimage.map_coordinates(holes, there, order=min(order, 1), mode="nearest", prefilter=False)
            inside &= near == 0
        out[slab] = np.where(inside, values, np.float32(fill))
    return out


def translation(offset_mm: np.ndarray) -> Parameters:
    """The transform parameter map of a shift in LPS mm."""
    return {
        "Transform": ("TranslationTransform",),
        "NumberOfParameters": ("3",),
        "TransformParameters": tuple(repr(float(v)) for v in offset_mm),
        "HowToCombineTransforms": ("Compose",),
        "InitialTransformParameterFileName": ("NoInitialTransform",),
    }


def _numbers(parameters: Parameters, name: str) -> np.ndarray:
    return np.array(parameters[name], dtype=np.float64)


def _translation(parameters: Parameters, points: np.ndarray) -> np.ndarray:
    return points + _numbers(parameters, "TransformParameters")


def _euler(parameters: Parameters, points: np.ndarray) -> np.ndarray:
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


def _bspline(parameters: Parameters, points: np.ndarray) -> np.ndarray:
    """p + sum over control points of displacement times the cubic B-spline of the distance in grid spacings.

    Beyond its grid the displacement fades to zero within two spacings (in elastix it stops at once).
    """
    size = tuple(int(n) for n in parameters["GridSize"])
    # elastix writes directions column by column.
    axes = _numbers(parameters, "GridDirection").reshape(3, 3).T * _numbers(parameters, "GridSpacing")
    index = (points - _numbers(parameters, "GridOrigin")) @ np.linalg.inv(axes).T
    index = np.moveaxis(index, -1, 0)  # (3, ...)
    control = _numbers(parameters, "TransformParameters").reshape(3, *size[::-1])  # (component, z, y, x)
    moved = np.array(points, dtype=np.float64)
    for axis in range(3):
        moved[..., axis] += ndimage.map_coordinates(
            control[axis].T, index, order=3, mode="grid-constant", prefilter=False
        )
    return moved


_TRANSFORMS = {
    "TranslationTransform": _translation,
    "EulerTransform": _euler,
    "BSplineTransform": _bspline,
}
