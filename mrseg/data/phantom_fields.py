"""Building blocks of the synthetic head: signed depths of simple solids and smooth random fields.

A depth is a distance in mm to a surface, positive inside (only approximately a distance for ellipsoids and
unions, which is enough near the surface, where it is used).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]
Point = tuple[float, float, float]


def soft(depth: np.ndarray, width_mm: float) -> np.ndarray:
    """Returns the fraction of a voxel of ``width_mm`` that lies inside a flat surface at ``depth``."""
    return np.clip(depth * np.float32(1.0 / width_mm) + np.float32(0.5), 0.0, 1.0)


def band(distance: np.ndarray, half_mm: np.ndarray | float, width_mm: float) -> np.ndarray:
    """Returns the fraction of a voxel covered by a sheet of half-thickness ``half_mm`` at ``distance``.

    Right for sheets thinner than the voxel: the covered fraction never exceeds ``2 * half_mm / width_mm``.
    """
    return np.maximum(soft(distance + half_mm, width_mm) - soft(distance - half_mm, width_mm), 0.0)


def smooth_max(a: np.ndarray, b: np.ndarray, radius_mm: float) -> np.ndarray:
    """Union of two depths whose crease is rounded over ``radius_mm`` (quadratic polynomial blend)."""
    blend = np.maximum(np.float32(radius_mm) - np.abs(a - b), 0.0)
    return np.maximum(a, b) + blend * blend * np.float32(0.25 / radius_mm)


def smooth_min(a: np.ndarray, b: np.ndarray, radius_mm: float) -> np.ndarray:
    """Intersection of two depths whose edge is rounded over ``radius_mm``."""
    return -smooth_max(-a, -b, radius_mm)


def ellipsoid(at: Coordinates, centre: Point, radii: Point) -> np.ndarray:
    """Depth of an axis-aligned ellipsoid, first order in the distance to its surface."""
    squared = np.zeros_like(at[0])
    slope = np.full_like(at[0], 1e-6)
    for axis, c, r in zip(at, centre, radii, strict=True):
        q = (axis - np.float32(c)) * np.float32(1.0 / r)
        q *= q
        squared += q
        slope += q * np.float32(1.0 / r**2)
    norm = np.sqrt(squared)
    return (1.0 - norm) * (norm + np.float32(1e-3)) / np.sqrt(slope)


def capsule(at: Coordinates, start: Point, end: Point, radii: tuple[float, float]) -> np.ndarray:
    """Depth of a rod from ``start`` to ``end`` whose radius changes linearly between ``radii``."""
    a = np.asarray(start, np.float32)
    along = np.asarray(end, np.float32) - a
    t = sum((axis - a[i]) * along[i] for i, axis in enumerate(at)) / np.float32(along @ along)
    t = np.clip(t, 0.0, 1.0)
    squared = sum((axis - a[i] - t * along[i]) ** 2 for i, axis in enumerate(at))
    return np.float32(radii[0]) + t * np.float32(radii[1] - radii[0]) - np.sqrt(squared)


def turned(at: Coordinates, centre: Point, angle_deg: float, plane: str) -> Coordinates:
    """Returns coordinates relative to ``centre``, turned in the ``plane`` "xy", "yz" or "xz"."""
    shifted = [axis - np.float32(c) for axis, c in zip(at, centre, strict=True)]
    i, j = ("xyz".index(letter) for letter in plane)
    cos, sin = (np.float32(f(np.deg2rad(angle_deg))) for f in (np.cos, np.sin))
    shifted[i], shifted[j] = cos * shifted[i] + sin * shifted[j], cos * shifted[j] - sin * shifted[i]
    return shifted[0], shifted[1], shifted[2]


@dataclass(frozen=True)
class NoiseField:
    """A periodic, band-passed Gaussian random field of unit variance, sampled on a lattice.

    Attributes:
        values: (n, n, n) float32 lattice, one period.
        period_mm: edge of the period.
        wavelength_mm: centre of the pass band.
    """

    values: np.ndarray
    period_mm: float
    wavelength_mm: float

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        wavelength_mm: float,
        *,
        period_mm: float = 192.0,
        size: int = 64,
        bandwidth: float = 0.25,
    ) -> NoiseField:
        """Draws a field; ``bandwidth`` is the relative width of the pass band."""
        spectrum = np.fft.rfftn(rng.standard_normal((size, size, size), dtype=np.float32))
        frequency = np.fft.fftfreq(size, period_mm / size)
        half = np.fft.rfftfreq(size, period_mm / size)
        radius = np.sqrt(
            frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2
        )
        spectrum *= np.exp(-0.5 * ((radius * wavelength_mm - 1.0) / bandwidth) ** 2)
        spectrum[0, 0, 0] = 0.0
        values = np.fft.irfftn(spectrum, s=(size, size, size), axes=(0, 1, 2))
        return cls((values / values.std()).astype(np.float32), period_mm, wavelength_mm)

    def __call__(self, at: Coordinates, shift_mm: float = 0.0) -> np.ndarray:
        """Values at points; ``shift_mm`` (along all axes) gives another, nearly independent, view."""
        return _interpolate(self.values, self._lattice(at, shift_mm))

    def with_gradient(self, at: Coordinates) -> tuple[np.ndarray, Coordinates]:
        """Values and their three derivatives (per mm) at points."""
        lattice = self._lattice(at, 0.0)
        x, y, z = (_interpolate(slope, lattice) for slope in self._slopes)
        return _interpolate(self.values, lattice), (x, y, z)

    @cached_property
    def _slopes(self) -> list[np.ndarray]:
        scale = np.float32(0.5 * len(self.values) / self.period_mm)
        return [(np.roll(self.values, -1, axis) - np.roll(self.values, 1, axis)) * scale for axis in range(3)]

    def _lattice(self, at: Coordinates, shift_mm: float) -> np.ndarray:
        scale = np.float32(len(self.values) / self.period_mm)
        return np.stack([(axis + np.float32(shift_mm)) * scale for axis in at])


def _interpolate(values: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(values, lattice, np.float32, order=1, mode="grid-wrap", prefilter=False)
