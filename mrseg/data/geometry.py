"""Voxel grids in world millimetres: orientation, comparison, resampling and the head's own grid.

Nothing here reads files. A volume is the pair ``(array, affine)``; the affine maps voxel indices to RAS+
world millimetres. `head_grid` implements Mecheter et al. 2023, Preprocessing (256x256x48 voxels on the head).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
from nibabel import affines, orientations
from scipy import ndimage

from mrseg._checks import error, positive_ints
from mrseg.data.bands import Bands, multiply_axes

#: ``(array, affine)``: array (x, y, z), affine 4x4 float64, voxel index -> RAS+ world in mm.
Volume = tuple[np.ndarray, np.ndarray]
#: ``(shape, affine)``: a volume without its values.
Grid = tuple[tuple[int, int, int], np.ndarray]

_LOGGER = logging.getLogger(__name__)
_RAS = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)
_FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))
_HEADER_REMEDY = "Repair the header (sform/qform) or convert the scan again."


def voxel_sizes(affine: np.ndarray) -> tuple[float, float, float]:
    """Returns the lengths in mm of the three voxel edges."""
    x, y, z = affines.voxel_sizes(check_affine("affine", affine))
    return float(x), float(y), float(z)


def check_affine(name: str, affine: np.ndarray) -> np.ndarray:
    """Returns ``affine`` as float64 4x4, or raises an error if it is not finite or not invertible."""
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise error(f"{name}: an affine is a 4x4 matrix, voxel index to mm.", f"shape {affine.shape}")
    if not np.isfinite(affine).all():
        raise error(f"{name}: an affine has finite entries.", affine.tolist(), _HEADER_REMEDY)
    sizes = affines.voxel_sizes(affine)
    # Relative to the voxel's box: 1 for orthogonal axes, 0 when two axes coincide.
    if sizes.min() <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * sizes.prod():
        raise error(
            f"{name}: an affine is invertible (three independent axes).", affine.tolist(), _HEADER_REMEDY
        )
    return affine


def to_canonical(volume: Volume) -> Volume:
    """Flips and permutes the axes so that they run closest to right, anterior, superior (RAS+).

    No voxel is resampled; oblique volumes stay oblique. Trailing axes (channels) stay where they are.

    Args:
        volume: array (x, y, z, ...) in any orientation, with its affine.

    Returns:
        A contiguous array and its affine. ``from_canonical`` is the exact inverse.
    """
    array, affine = volume
    affine = check_affine("affine", affine)
    _check_rank(array)
    to_ras = orientations.io_orientation(affine)
    turned = orientations.apply_orientation(array, to_ras)
    return np.ascontiguousarray(turned), affine @ orientations.inv_ornt_aff(to_ras, array.shape[:3])


def canonical_grid(native: Grid) -> Grid:
    """Shape and affine that `to_canonical` gives a volume of this shape and affine."""
    affine = check_affine("affine", native[1])
    to_ras = orientations.io_orientation(affine)
    x, y, z = (int(native[0][place]) for place in np.argsort(to_ras[:, 0]))
    return (x, y, z), affine @ orientations.inv_ornt_aff(to_ras, native[0])


def from_canonical(array: np.ndarray, native_shape: Sequence[int], native_affine: np.ndarray) -> np.ndarray:
    """Turns a canonical array back to the native orientation: the exact inverse of ``to_canonical``.

    Args:
        array: canonical array (x, y, z, ...).
        native_shape: spatial shape of the native grid, checked against the result.
        native_affine: affine of the native grid.
    """
    _check_rank(array)
    to_ras = orientations.io_orientation(check_affine("native_affine", native_affine))
    native = orientations.apply_orientation(array, orientations.ornt_transform(_RAS, to_ras))
    if native.shape[:3] != tuple(native_shape)[:3]:
        raise error(
            f"An array goes back to the grid it came from, native shape {tuple(native_shape)}.",
            f"shape {array.shape}, which turns into {native.shape}",
        )
    return np.ascontiguousarray(native)


def grid_distance_mm(
    shape_a: Sequence[int], affine_a: np.ndarray, shape_b: Sequence[int], affine_b: np.ndarray
) -> float:
    """Returns the largest displacement in mm of a corner voxel between two grids; inf if shapes differ.

    The displacement is linear in the index, so no voxel of the grid moves farther than a corner.
    """
    if tuple(shape_a)[:3] != tuple(shape_b)[:3]:
        return math.inf
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in tuple(shape_a)[:3]])))
    moved = affines.apply_affine(affine_a, corners) - affines.apply_affine(affine_b, corners)
    return float(np.linalg.norm(moved, axis=1).max())


def check_same_grid(
    name_a: object, volume_a: Volume, name_b: object, volume_b: Volume, tolerance_mm: float = 0.01
) -> None:
    """Raises an error naming both volumes and their distance unless they lie on one grid.

    Args:
        name_a: file name (or other name) of the first volume, for the message.
        volume_a: first volume.
        name_b: name of the second volume.
        volume_b: second volume.
        tolerance_mm: largest accepted displacement of a corner voxel. The default leaves room for headers
            that store affines in float32 or as quaternions.
    """
    shape_a, shape_b = volume_a[0].shape[:3], volume_b[0].shape[:3]
    distance = grid_distance_mm(shape_a, volume_a[1], shape_b, volume_b[1])
    if distance <= tolerance_mm:
        return
    if math.isinf(distance):
        apart = f"{name_a} of shape {shape_a} and {name_b} of shape {shape_b}"
    else:
        apart = f"{name_a} and {name_b}, whose corner voxels lie {distance:.4g} mm apart"
    raise error(
        f"Both volumes lie on one grid (same shape, corners within {tolerance_mm:g} mm).",
        apart,
        "Name files of one grid, or resample one onto the other: in Python mrseg.data.resample (order=0 for "
        "labels).",
    )


def resample(
    volume: Volume,
    to_shape: Sequence[int],
    to_affine: np.ndarray,
    *,
    order: int = 1,
    fill: float = 0.0,
    antialias: bool = True,
) -> np.ndarray:
    """Samples a volume at the voxel centres of another grid, through world millimetres.

    The source's field of view ends at the outer edges of its outer voxels: up to there the outer value
    counts, beyond it ``fill``. NaN marks voxels without a value (outside a CT's field of view): with order 1
    they carry no weight, and a target voxel that is NaN by more than half is NaN.

    Args:
        volume: source array (x, y, z) and affine.
        to_shape: target shape, three positive ints.
        to_affine: target affine.
        order: 0 (nearest neighbour; required for integer arrays, which are labels) or 1 (trilinear).
        fill: value outside the source's field of view.
        antialias: with order 1, blurs along source axes that are sampled more coarsely than they were, with
            sigma = sqrt(f^2 - 1) / 2.355 source voxels for a coarsening factor f (Reference).

    Returns:
        Array of shape ``to_shape``; the dtype of labels is kept, other input comes back as float32.

    Reference:
        Cardoso et al., Scale factor point spread function matching: beyond aliasing in image resampling,
        MICCAI 2015: the point-spread functions of both grids, taken as Gaussians of one voxel's width,
        are matched.
    """
    array, affine = volume
    _check_rank(array, exactly=True)
    shape = positive_ints("to_shape", tuple(int(n) for n in to_shape), 3)
    if order not in (0, 1):
        raise error("order is 0 (nearest neighbour) or 1 (trilinear).", order)
    if array.dtype.kind in "biu" and order:
        raise error(
            "Integer arrays hold labels, which are never interpolated.",
            f"{array.dtype} with order={order}",
            "Pass order=0, or convert an image to float32 first.",
        )
    _check_fill(fill, array.dtype)
    # Rounding removes the 1e-16 of the inverse: one grid onto itself returns the very same values.
    step = np.round(np.linalg.inv(check_affine("affine", affine)) @ check_affine("to_affine", to_affine), 9)
    if order == 0:
        result = _sample(array, step, shape, 0)
    else:
        result = _interpolate(np.asarray(array, dtype=np.float32), step, shape, antialias)
    outside = _outside(step, shape, array.shape)
    if outside.any():
        np.copyto(result, np.asarray(fill, result.dtype), where=outside)
    return result


def grid_with_spacing(shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float]) -> Grid:
    """Returns the grid of another voxel size over the same field of view and along the same axes.

    The number of voxels is rounded up and the grid centred: it sticks out by less than one voxel in all, and
    every voxel centre lies inside the field of view.

    Args:
        shape: shape of the source grid.
        affine: affine of the source grid.
        spacing_mm: three positive voxel sizes in mm.
    """
    old = np.array(voxel_sizes(affine))
    new = _positive_mm("spacing_mm", spacing_mm, 3)
    size = np.array(tuple(shape)[:3])
    # 1e-6 of a voxel: an extent that divides evenly gets no extra voxel from rounding.
    count = np.maximum(1, np.ceil(size * old / new - 1e-6)).astype(int)
    return _centred_grid(affine, (size - 1) / 2, count, np.array(new))


def head_mask(image: np.ndarray) -> np.ndarray:
    """Returns the voxels of the head, hollows included.

    Otsu's threshold on the square root of the values, then the largest component, then holes filled in every
    slice along z. A contour that is open in a slice (a defaced front) leaves its inside unfilled there.

    Args:
        image: array (x, y, z) of an MR image or a CT, finite and not constant.

    Returns:
        Boolean array of the same shape.

    Raises:
        InputError: NaN or infinite voxels, or a constant image.
    """
    image = np.asarray(image)
    _check_rank(image, exactly=True)
    _check_contrast(image)
    # The square root pulls bright fat and fluid in: Otsu's threshold of the raw values cuts dark scalp away.
    root = np.sqrt(np.asarray(image, dtype=np.float32) - np.float32(image.min()))
    foreground = root > otsu_threshold(root)
    components, count = ndimage.label(foreground)
    if count > 1:
        foreground = components == np.bincount(components.ravel())[1:].argmax() + 1
    return _fill_slices(foreground)


def head_grid(
    volume: Volume,
    shape: Sequence[int] = (256, 256, 48),
    *,
    spacing_mm: Sequence[float] | None = None,
    min_head_area: float = 0.05,
) -> Grid:
    """Returns the grid that frames the head: the 256x256x48 voxels of Mecheter et al. 2023.

    Along z, end slices with too little head are dropped and the rest is spread over ``shape[2]`` slices. In
    plane, the grid is centred on the head's bounding box.

    Args:
        volume: canonical volume (see ``to_canonical``).
        shape: voxels of the grid.
        spacing_mm: voxel size in mm, in plane (2 numbers) or in all (3 numbers; ``shape[2]`` slices of that
            size are then centred on the kept ones: the paper's slices taken as contiguous). None: the
            source's in plane, coarsened to make the head fit when it does not.
        min_head_area: smallest head area of an end slice that is kept, as a fraction of the grid's slice.

    Returns:
        ``(shape, affine)`` for ``resample``.

    Deviation:
        The paper says neither how 48 slices were chosen from 250 of 1 mm nor where 256x256 was cropped; this
        is a choice. It resizes other resolutions to 300x300x48 before the crop; here the scan is interpolated
        once, and a head larger than the frame coarsens it.

    Reference:
        Mecheter et al. 2023, Preprocessing; the 5 % is a choice of this library.
    """
    size = np.array(positive_ints("shape", tuple(int(n) for n in shape), 3))
    array, affine = volume
    source = np.array(voxel_sizes(affine))
    if not np.array_equal(orientations.io_orientation(affine), _RAS):
        axes = "".join(orientations.aff2axcodes(affine))
        raise error("head_grid takes a canonical (RAS+) volume.", axes, "Call to_canonical first.")
    if spacing_mm is None:
        frame = source.copy()
    else:
        frame = np.array([*_positive_mm("spacing_mm", spacing_mm, 2, 3), source[2]][:3])
    mask = head_mask(array)
    area = mask.sum(axis=(0, 1)) * source[:2].prod() / (size[:2] * frame[:2]).prod()
    kept = np.flatnonzero((area >= min_head_area) & (area > 0))
    if kept.size == 0:
        raise error(
            f"At least one slice shows the head on {min_head_area:.0%} of the grid's slice.",
            f"at most {area.max():.2%}",
            "Does the scan show a head? If so, lower min_head_area, or frame a smaller grid.",
        )
    first, last = kept[0], kept[-1]
    low, high = _bounding_box(np.any(mask[:, :, first : last + 1], axis=2))
    too_large = ((high - low + 1) * source[:2] / (size[:2] * frame[:2])).max()
    if spacing_mm is None:
        frame[:2] *= max(1.0, too_large)
    elif too_large > 1:
        _LOGGER.warning("The head is %.2f times larger than the grid in plane and is cut.", too_large)
    if spacing_mm is None or len(spacing_mm) == 2:
        frame[2] = (last - first + 1) * source[2] / size[2]
    else:
        too_long = (last - first + 1) * source[2] / (size[2] * frame[2])
        if too_long > 1:
            _LOGGER.warning("The head is %.2f times longer than the grid along z and is cut.", too_long)
    centre = np.array([*(low + high) / 2, (first + last) / 2])
    return _centred_grid(affine, centre, size, frame)


def _check_rank(array: np.ndarray, *, exactly: bool = False) -> None:
    rank = np.ndim(array)
    if rank < 3 or (exactly and rank > 3):
        raise error("A volume has three spatial axes (x, y, z).", f"shape {np.shape(array)}")


def _check_fill(fill: float, dtype: np.dtype) -> None:
    if dtype.kind not in "biu":
        return
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not (low <= fill <= high and float(fill).is_integer()):
        raise error(f"fill is a value that {dtype} labels can hold.", fill, "255 marks voxels to ignore.")


def _positive_mm(name: str, value: Sequence[float], *lengths: int) -> tuple[float, ...]:
    sizes = tuple(float(size) for size in value)
    if len(sizes) not in lengths or not all(math.isfinite(size) and size > 0 for size in sizes):
        many = " or ".join(map(str, lengths))
        raise error(f"{name} is {many} positive voxel sizes in mm.", value)
    return sizes


def plane_grid(shape: Sequence[int], affine: np.ndarray, size: Sequence[int]) -> Grid:
    """Returns the grid whose slices show the same field of view, padded to a square, with ``size`` pixels.

    Args:
        shape: voxels of the canonical volume.
        affine: of the canonical volume.
        size: pixels of a slice along x and y; the slices along z stay as they are.

    Returns:
        ``(shape, affine)`` for ``resample``.

    Reference:
        alkhimova2022, section on the data ("image resizing"); that the slice is padded to a square first is a
        choice of this library.
    """
    wanted = np.array(positive_ints("size", tuple(int(n) for n in size), 2))
    source = np.array(voxel_sizes(affine))
    side_mm = (np.array(shape[:2]) * source[:2]).max()
    spacing = np.array([*(side_mm / wanted), source[2]])
    centre = (np.array(shape[:3]) - 1) / 2
    return _centred_grid(affine, centre, np.array([*wanted, shape[2]]), spacing)


def _centred_grid(affine: np.ndarray, centre: np.ndarray, count: np.ndarray, spacing: np.ndarray) -> Grid:
    """The grid of ``count`` voxels of ``spacing`` mm along the axes of ``affine`` around index ``centre``."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, :3] *= spacing / affines.voxel_sizes(affine)
    moved[:3, 3] = affines.apply_affine(affine, centre) - moved[:3, :3] @ ((count - 1) / 2)
    x, y, z = (int(n) for n in count)
    return (x, y, z), moved


def _interpolate(array: np.ndarray, step: np.ndarray, shape: tuple[int, ...], antialias: bool) -> np.ndarray:
    """Trilinear sampling with anti-aliasing; NaN voxels carry no weight (normalised convolution)."""
    # The length of a row is the spread of one target voxel along that source axis, in source voxels.
    coarsening = np.linalg.norm(step[:3, :3], axis=1)
    sigma = np.sqrt(np.maximum(coarsening**2 - 1, 0)) / _FWHM_PER_SIGMA
    sigma[coarsening < 1.001] = 0

    matrix = step[:3, :3]
    aligned = np.array_equal(matrix, np.diag(np.diag(matrix)))

    def sampled(values: np.ndarray) -> np.ndarray:
        # An infinite value would reach every voxel of its block.
        if aligned and values.size and math.isfinite(values.min()) and math.isfinite(values.max()):
            return _sample_aligned(values, step, shape, sigma if antialias else np.zeros(3))
        if antialias and sigma.any():
            values = ndimage.gaussian_filter(values, sigma, mode="nearest")
        return _sample(values, step, shape, 1)

    missing = np.isnan(array)
    if not missing.any():
        return sampled(array)
    weight = sampled((~missing).astype(np.float32))
    total = sampled(np.where(missing, np.float32(0), array))
    return np.where(weight >= 0.5, total / np.maximum(weight, 0.5), np.float32(np.nan))


def _sample_aligned(
    array: np.ndarray, step: np.ndarray, shape: tuple[int, ...], sigma: np.ndarray
) -> np.ndarray:
    """Trilinear sampling along aligned axes, after blurring by ``sigma``: one banded matrix for each axis."""
    bands = []
    for axis, size in enumerate(array.shape):
        matrix = _linear_matrix(size, shape[axis], step[axis, axis], step[axis, 3])
        if sigma[axis]:
            matrix = matrix @ ndimage.gaussian_filter1d(np.eye(size), sigma[axis], axis=0, mode="nearest")
        bands.append(Bands.of(matrix, np.float32, 24))
    return multiply_axes(bands, np.ascontiguousarray(array))


def _linear_matrix(size: int, new_size: int, scale: float, offset: float) -> np.ndarray:
    """(new_size, size) weights that read at ``scale * i + offset``; the outer values continue outwards."""
    at = np.clip(scale * np.arange(new_size) + offset, 0, size - 1)
    first = np.floor(at).astype(np.intp)
    matrix = np.zeros((new_size, size))
    rows = np.arange(new_size)
    matrix[rows, np.minimum(first + 1, size - 1)] = at - first
    matrix[rows, first] += 1 - (at - first)
    return matrix


def _sample(array: np.ndarray, step: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """Samples at ``step @ index``; the outer voxels' values continue outwards."""
    matrix = step[:3, :3]
    diagonal = np.diag(matrix)
    if np.array_equal(matrix, np.diag(diagonal)):
        if order == 0:
            nearest = [
                np.clip(np.floor(diagonal[a] * np.arange(shape[a]) + step[a, 3] + 0.5), 0, size - 1).astype(
                    int
                )
                for a, size in enumerate(array.shape)
            ]
            return array[np.ix_(*nearest)]
        matrix = diagonal  # aligned axes: the faster, separable path of SciPy
    return ndimage.affine_transform(
        array, matrix, step[:3, 3], output_shape=shape, order=order, mode="nearest"
    )


def _outside(step: np.ndarray, shape: tuple[int, ...], source_shape: tuple[int, ...]) -> np.ndarray:
    """Which target voxels have their centre outside the outer edges of the source's outer voxels.

    Of the target's shape, or of size 1 along axes that do not matter.
    """
    index = np.ogrid[tuple(slice(n) for n in shape)]
    outside = np.zeros((1, 1, 1), dtype=bool)
    for row, size in zip(step[:3], source_shape, strict=True):
        # Zero entries are skipped: for aligned axes the coordinate stays one-dimensional.
        coordinate = sum((row[j] * index[j] for j in range(3) if row[j]), start=np.full((1, 1, 1), row[3]))
        beyond = (coordinate < -0.5 - 1e-6) | (coordinate > size - 0.5 + 1e-6)
        if beyond.any():
            outside = outside | beyond
    return outside


def _check_contrast(image: np.ndarray) -> None:
    if not np.isfinite(image).all():
        raise error("An image has finite voxels.", f"{np.count_nonzero(~np.isfinite(image))} NaN or infinite")
    if image.size == 0 or image.min() == image.max():
        raise error(
            "An image shows contrast.", "a constant or empty image", "Check that the scan is the right one."
        )


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that maximises the variance between two classes (Otsu 1979, IEEE Trans. SMC 9:62)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    mean_below = sums[:-1] / below
    mean_above = (sums[-1] - sums[:-1]) / above
    return float(edges[1:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def _fill_slices(foreground: np.ndarray) -> np.ndarray:
    """Fills, slice by slice along z, the background that no path in the slice joins to its border."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    components, count = ndimage.label(~foreground, in_plane)
    reaches_border = np.zeros(count + 1, dtype=bool)
    for face in (components[0], components[-1], components[:, 0], components[:, -1]):
        reaches_border[np.unique(face)] = True
    reaches_border[0] = False  # component 0 is the foreground itself
    return ~reaches_border[components]


def _bounding_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest index of ``mask`` along each axis, both inclusive."""
    indices = np.nonzero(mask)
    return np.array([i.min() for i in indices]), np.array([i.max() for i in indices])
