"""The known motion between the synthetic MR and CT of one head, the truth a registration is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrseg._checks import error

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Misalignment:
    """The true motion between MR and CT: where a point of the MR's world lies in the CT's world.

    Attributes:
        rotation_deg: turns about x, then y, then z, around ``centre_mm``.
        translation_mm: shift after the turn.
        centre_mm: centre of the turn, in the MR's world.
        warp: the smooth warp that comes before the turn, a sum of ``amplitude * sin(wave . point + phase)``;
            (wave per mm, phase, amplitude in mm) per term, empty for a rigid motion.

    Example:
        >>> truth = Misalignment(translation_mm=(0.0, 0.0, 10.0))
        >>> truth.to_ct(np.array([[1.0, 2.0, 3.0]]))
        array([[ 1.,  2., 13.]])
    """

    rotation_deg: Triple = (0.0, 0.0, 0.0)
    translation_mm: Triple = (0.0, 0.0, 0.0)
    centre_mm: Triple = (0.0, -10.0, 10.0)
    warp: tuple[tuple[Triple, float, Triple], ...] = ()

    @classmethod
    def random(
        cls, seed: int, *, translation_mm: float = 10.0, angle_deg: float = 4.0, warp_mm: float = 0.0
    ) -> Misalignment:
        """Draws a motion.

        Args:
            seed: of the directions.
            translation_mm: length of the shift.
            angle_deg: Euclidean norm of the three turns, up to 45.
            warp_mm: bound on the length of the smooth warp, 0 to 8 (so that it can be inverted).

        Raises:
            InputError: a value outside its range.
        """
        if not (translation_mm >= 0 and 0 <= angle_deg <= 45 and 0 <= warp_mm <= 8):
            raise error(
                "translation_mm is from 0, angle_deg from 0 to 45, warp_mm from 0 to 8.",
                (translation_mm, angle_deg, warp_mm),
            )
        rng = np.random.default_rng([seed, 77])
        shift, turn = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
        count = 3 if warp_mm > 0 else 0
        waves = rng.standard_normal((count, 3))
        waves *= 2 * np.pi / rng.uniform(90, 150, (count, 1)) / np.linalg.norm(waves, axis=1, keepdims=True)
        amplitudes = rng.standard_normal((count, 3))
        if count:
            amplitudes *= warp_mm / np.linalg.norm(amplitudes, axis=1).sum()
        phases = rng.uniform(0, 2 * np.pi, count)
        terms = zip(waves, phases, amplitudes, strict=True)
        warp = tuple((_triple(wave), float(phase), _triple(amplitude)) for wave, phase, amplitude in terms)
        return cls(_triple(turn * angle_deg), _triple(shift * translation_mm), warp=warp)

    def to_mr(self, points_mm: np.ndarray) -> np.ndarray:
        """Maps (n, 3) world points of the CT to the MR's world."""
        centre = np.asarray(self.centre_mm)
        moved = np.asarray(points_mm, np.float64) - centre - np.asarray(self.translation_mm)
        return self._warped(moved @ self._rotation() + centre)

    def to_ct(self, points_mm: np.ndarray) -> np.ndarray:
        """Maps (n, 3) world points of the MR to the CT's world; inverse of ``to_mr`` to 1e-6 mm."""
        points = np.asarray(points_mm, np.float64)
        rigid = points.copy()
        for _ in range(100 if self.warp else 0):  # fixed point: the warp's slope is below 1
            rest = self._warped(rigid) - points
            rigid -= rest
            if np.abs(rest).max(initial=0.0) < 1e-7:
                break
        centre = np.asarray(self.centre_mm)
        return (rigid - centre) @ self._rotation().T + centre + np.asarray(self.translation_mm)

    def displacement(self, points_mm: np.ndarray) -> np.ndarray:
        """Returns ``to_ct(points_mm) - points_mm`` for (n, 3) world points of the MR."""
        return self.to_ct(points_mm) - np.asarray(points_mm, np.float64)

    def _warped(self, points: np.ndarray) -> np.ndarray:
        warped = points.copy()
        for wave, phase, amplitude in self.warp:
            warped += np.sin(points @ np.asarray(wave) + phase)[:, None] * np.asarray(amplitude)
        return warped

    def _rotation(self) -> np.ndarray:
        a, b, c = np.deg2rad(self.rotation_deg)
        about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        return about_z @ about_y @ about_x


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
