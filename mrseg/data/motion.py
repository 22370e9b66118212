"""Motion correction of a DSC series, rigid in the plane of each slice (alkhimova2022, Data)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import fft, ndimage

from mrseg._checks import choice, error
from mrseg.data.geometry import head_mask

_COARSE_DEG = 2.0
_FINE_DEG = 0.5
_SMOOTH_PX = 1.0  # of the gradient, and of the slices in the refinement
_NEWTON_STEPS = 4
# Frequencies above this carry noise: the correlation's peak is a Gaussian of about 1 px.
_PASS_CYCLES_PER_PX = 0.15
_MIN_HEAD_AREA = 0.05


def correct_motion(
    series: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    reference: int = 3,
    slice_axis: int = 2,
    max_shift_mm: float = 10.0,
    max_angle_deg: float = 5.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Brings every time point of a series onto one of them, slice by slice.

    Two shifts and one turn are found by phase correlation of the gradient's magnitude, which hardly depends
    on the level of the signal, and refined by least squares on the slices up to a gain, since the bolus
    darkens them. The slice is resampled linearly. A motion that makes the gradients agree
    less than no motion is not applied. Slices where the head of the reference covers less than 5 % stay as
    they are. Motion through the plane, and between the excitations of one volume, stays.

    Args:
        series: (x, y, z, t), finite.
        spacing_mm: voxel size (x, y, z).
        reference: time point that the others are brought to, from 0: the fourth, as in the paper.
        slice_axis: axis of the slices, 0 to 2.
        max_shift_mm: largest shift along an axis that is looked for.
        max_angle_deg: largest turn that is looked for, up to 45.

    Returns:
        (corrected, motion): float32 (x, y, z, t), the reference's time point unchanged; and float64
        (slices, t, 3), where the head lay: shift in mm along the first and second axis of the slice, and turn
        in degrees from the first axis to the second, about the slice's centre.

    Raises:
        InputError: not a series, NaN or infinite voxels, a constant reference, a number outside its range.

    Deviation:
        The paper says that time points were motion-corrected to the fourth, and not how: rigid in plane,
        phase correlation, the refinement and linear interpolation are choices.

    Reference:
        Alkhimova and Diumin 2022, Data; phase correlation: Kuglin and Hines 1975.
    """
    series, spacing = _checked(series, spacing_mm)
    choice("slice_axis", slice_axis, (0, 1, 2))
    if not 0 <= reference < series.shape[3]:
        raise error(f"reference is a time point of the series, 0 to {series.shape[3] - 1}.", reference)
    if not (0 < max_shift_mm < math.inf and 0 <= max_angle_deg <= 45):
        raise error("max_shift_mm is above 0 and max_angle_deg from 0 to 45.", (max_shift_mm, max_angle_deg))
    head = np.moveaxis(head_mask(series[..., reference]), slice_axis, 0)
    corrected = series.copy()
    slices = np.moveaxis(corrected, slice_axis, 0)  # (slices, ., ., t)
    motion = np.zeros((len(slices), series.shape[3], 3))
    in_plane = np.delete(spacing, slice_axis)
    for index in np.flatnonzero(head.mean(axis=(1, 2)) >= _MIN_HEAD_AREA):
        search = _Search(slices[index, ..., reference].copy(), in_plane, max_shift_mm, max_angle_deg)
        for t in range(series.shape[3]):
            if t != reference:
                motion[index, t] = search(slices[index, ..., t])
                slices[index, ..., t] = move_back(slices[index, ..., t], motion[index, t], in_plane)
    return corrected, motion


def move_back(plane: np.ndarray, motion: Sequence[float] | np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Undoes a rigid motion of a slice.

    Args:
        plane: (x, y).
        motion: (shift_mm, shift_mm, angle_deg) as ``correct_motion`` returns.
        spacing_mm: pixel size (x, y).

    Returns:
        float32 (x, y); pixels from outside take the value of the border. No motion gives an exact copy.
    """
    if not any(motion):
        return plane.astype(np.float32)
    scale = np.asarray(spacing_mm, np.float64)
    turn = _rotation(motion[2]) * scale / scale[:, None]  # in pixels: S^-1 R S
    centre = (np.array(plane.shape) - 1) / 2
    offset = centre + np.asarray(motion[:2]) / scale - turn @ centre
    return ndimage.affine_transform(plane.astype(np.float32), turn, offset, order=1, mode="nearest")


@dataclass
class _Search:
    """Finds how a slice moved against one reference; turned references are kept for the next time point."""

    reference: np.ndarray
    spacing_mm: np.ndarray
    max_shift_mm: float
    max_angle_deg: float
    turned: dict[float, np.ndarray] = field(default_factory=dict)

    def __call__(self, plane: np.ndarray) -> tuple[float, float, float]:
        """Returns (shift_mm, shift_mm, angle_deg), zeros where no motion agrees best."""
        spectrum = fft.rfft2(_edges(plane))
        steps = np.arange(0.0, self.max_angle_deg + 1e-9, _COARSE_DEG)
        best = max((*-steps[:0:-1], *steps), key=lambda angle: self._peak(spectrum, angle)[0])
        step = _COARSE_DEG / 2
        while step >= _FINE_DEG and self.max_angle_deg > 0:
            near = (best, best - step, best + step)
            allowed = [a for a in near if abs(a) <= self.max_angle_deg]
            best = max(allowed, key=lambda angle: self._peak(spectrum, angle)[0])
            step /= 2
        angle = best
        if abs(best) + _FINE_DEG <= self.max_angle_deg:
            heights = [self._peak(spectrum, best + d)[0] for d in (-_FINE_DEG, 0.0, _FINE_DEG)]
            angle += _FINE_DEG * _vertex(*heights)
        found = (*(self._peak(spectrum, angle, keep=False)[1] * self.spacing_mm), angle)
        found = _refined(self.reference, plane, found, self.spacing_mm)
        within = (
            max(abs(found[0]), abs(found[1])) <= self.max_shift_mm and abs(found[2]) <= self.max_angle_deg
        )
        reference, before = _edges(self.reference), _edges(plane)
        after = _edges(move_back(plane, found, self.spacing_mm))
        better = _agreement(reference, after) > _agreement(reference, before)
        return found if within and better else (0.0, 0.0, 0.0)

    def _peak(self, spectrum: np.ndarray, angle_deg: float, keep: bool = True) -> tuple[float, np.ndarray]:
        """Height and place (px) of the correlation with the reference turned by an angle."""
        conjugate = self.turned.get(angle_deg)
        if conjugate is None:
            turned = move_back(self.reference, (0.0, 0.0, -angle_deg), self.spacing_mm)
            conjugate = np.conj(fft.rfft2(_edges(turned)))
            if keep:
                self.turned[angle_deg] = conjugate
        cross = spectrum * conjugate
        cross /= np.maximum(np.abs(cross), 1e-12 * np.abs(cross).max() + 1e-30)
        correlation = fft.irfft2(cross * _low_pass(self.reference.shape), s=self.reference.shape)
        reach = np.minimum(self.max_shift_mm / self.spacing_mm, (np.array(correlation.shape) - 3) / 2)
        first, second = np.maximum(reach.astype(int), 0)
        near = np.roll(correlation, (first + 1, second + 1), (0, 1))[: 2 * first + 3, : 2 * second + 3]
        inner = near[1:-1, 1:-1]
        i, j = np.unravel_index(inner.argmax(), inner.shape)
        i, j = int(i) + 1, int(j) + 1
        place = np.array([i - first - 1, j - second - 1], np.float64)
        # The logarithm of a Gaussian peak is a parabola.
        log = np.log(np.maximum(near[i - 1 : i + 2, j - 1 : j + 2], 1e-12))
        return float(near[i, j]), place + (_vertex(*log[:, 1]), _vertex(*log[1]))


def _refined(
    reference: np.ndarray, plane: np.ndarray, motion: tuple[float, float, float], spacing_mm: np.ndarray
) -> tuple[float, float, float]:
    """Gauss-Newton steps on the squared difference of the smoothed slices, up to a gain and an offset.

    The correlation's peak is broad in the angle where a slice shows little but its round outline.
    """
    smooth_reference, smooth_plane = (
        ndimage.gaussian_filter(p.astype(np.float32), _SMOOTH_PX, mode="nearest") for p in (reference, plane)
    )
    x, y = ((np.arange(n) - (n - 1) / 2) * size for n, size in zip(plane.shape, spacing_mm, strict=True))
    shift, angle = np.array(motion[:2]), motion[2]
    for _ in range(_NEWTON_STEPS):
        moved = move_back(smooth_plane, (*shift, angle), spacing_mm)
        along_x, along_y = np.gradient(moved, *spacing_mm)
        # A small turn moves the point (x, y) by (-y, x).
        turning = along_y * x[:, None] - along_x * y
        columns = np.stack([c.ravel() for c in (along_x, along_y, turning, moved, np.ones_like(moved))])
        columns = columns.astype(np.float64)
        normal = columns @ columns.T
        try:
            step = np.linalg.solve(normal, columns @ smooth_reference.ravel())
        except np.linalg.LinAlgError:  # no structure to register
            return motion
        if step[3] <= 0:
            return motion
        shift = shift + _rotation(angle) @ (step[:2] / step[3])
        angle += math.degrees(step[2] / step[3])
    return float(shift[0]), float(shift[1]), float(angle)


def _edges(plane: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_gradient_magnitude(plane.astype(np.float32), _SMOOTH_PX, mode="nearest")


def _low_pass(shape: tuple[int, ...]) -> np.ndarray:
    x, y = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])
    return np.exp(-(x * x + y * y) / (2 * _PASS_CYCLES_PER_PX**2)).astype(np.float32)


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three neighbouring values is highest, in steps from the middle, within 1."""
    curvature = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / curvature, -1, 1)) if curvature < 0 else 0.0


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation coefficient; 0 if either is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _rotation(angle_deg: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[cos, -sin], [sin, cos]])


def _checked(series: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    series = np.asarray(series, np.float32)
    if series.ndim != 4 or not series.size:
        raise error("A series is (x, y, z, t).", f"shape {series.shape}", "One volume has no motion in time.")
    if not np.isfinite(series).all():
        raise error(
            "A series has finite voxels.", f"{np.count_nonzero(~np.isfinite(series))} NaN or infinite"
        )
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise error("spacing_mm is three positive numbers (mm).", repr(spacing_mm))
    return series, spacing
