"""The random traits that make one synthetic subject differ from the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrseg.data.phantom_fields import Coordinates, NoiseField

#: Tissues, in the order of the first axis of every array of fractions.
TISSUES = (
    "air",
    "skin_muscle",
    "fat",
    "cortical_bone",
    "diploe",
    "csf",
    "gm",
    "wm",
    "deep_gm",
    "vessel",
    "lesion",
)
AIR, SOFT, FAT, BONE, DIPLOE, CSF, GM, WM, DEEP, VESSEL, LESION = range(len(TISSUES))
#: Postmenstrual ages (weeks) of newborns.
WEEKS = (28.0, 44.0)

#: Kinds of lesion: none, a tumour inside the brain, one at its border, an old bleeding there.
LESIONS = (False, True, "border", "bleed")


@dataclass(frozen=True)
class Lesion:
    """Centre inside the brain (canonical mm), radius, and whether it is moved outwards to the border."""

    centre: tuple[float, float, float]
    radius: float
    at_border: bool


@dataclass(frozen=True)
class Subject:
    """Traits of one synthetic subject; lengths in mm, scales relative to the average head.

    Attributes:
        scale: (3,) size along x, y, z.
        shift_mm: (3,) position of the head in the world.
        warp: waves (m, 3) per mm, phases (m,) and amplitudes (m, 3) in mm of a smooth warp: shape, asymmetry.
        fold: sulci stand where this field crosses zero on the hull of the brain.
        slow, wobble, fine, cells: fields of falling wavelength (64, 30, 14, 8 mm) for thickness, bending,
            texture and air cells.
        cortex_mm: thickness of the cortex.
        sulcus_mm: usual depth of a sulcus; ``sulcus_half_mm`` half its width at the bottom.
        leaf_mm: distance between the fissures of the cerebellum.
        ventricles: size of the left and right lateral ventricle, 1 for average.
        nuclei_scale, skull_scale, scalp_scale: size and thickness factors.
        fat_mm: thickness of the fat under the skin of the vault.
        gap_mm: distance from the brain's hull to the skull.
        frontal_sinus, mastoid: size of the sinus, share of air in the cells.
        lesion: or None.
        growth: size relative to an adult, which ``scale`` contains.
        stem: tissue of the brain stem.
    """

    scale: np.ndarray
    shift_mm: np.ndarray
    warp: tuple[np.ndarray, np.ndarray, np.ndarray]
    fold: NoiseField
    slow: NoiseField
    wobble: NoiseField
    fine: NoiseField
    cells: NoiseField
    cortex_mm: float
    sulcus_mm: float
    sulcus_half_mm: float
    leaf_mm: float
    ventricles: tuple[float, float]
    nuclei_scale: float
    skull_scale: float
    scalp_scale: float
    fat_mm: float
    gap_mm: float
    frontal_sinus: float
    mastoid: float
    lesion: Lesion | None
    growth: float = 1.0
    stem: int = WM

    @classmethod
    def random(cls, seed: int, *, lesion: bool | str = False, weeks: float | None = None) -> Subject:
        """Draws a subject; the same seed gives the same subject, whichever of ``LESIONS`` it has.

        With ``weeks``, the postmenstrual age, it is a newborn.
        """
        adult = cls._adult(seed, lesion)
        return adult if weeks is None else adult._newborn(weeks)

    @classmethod
    def _adult(cls, seed: int, lesion: bool | str) -> Subject:
        rng = np.random.default_rng([seed, 20240])
        modes = 6
        waves = rng.standard_normal((modes, 3))
        waves *= 2 * np.pi / rng.uniform(110, 220, (modes, 1)) / np.linalg.norm(waves, axis=1, keepdims=True)
        amplitudes = rng.normal(0, 1.3, (modes, 3)) * (0.5, 1.0, 1.0)  # the midline stays nearly flat
        size = rng.uniform(-0.01, 0.03)
        ventricle = rng.uniform(0.6, 1.5)
        spot = (rng.choice([-1.0, 1.0]) * rng.uniform(24, 42), rng.uniform(-65, 35), rng.uniform(18, 42))
        found = Lesion(
            (float(spot[0]), float(spot[1]), float(spot[2])), rng.uniform(9, 17), lesion is not True
        )
        return cls(
            scale=(1.0 + size + rng.uniform(-0.03, 0.03, 3)).astype(np.float32),
            shift_mm=rng.uniform(-3, 3, 3).astype(np.float32),
            warp=(
                waves.astype(np.float32),
                rng.uniform(0, 2 * np.pi, modes).astype(np.float32),
                amplitudes.astype(np.float32),
            ),
            fold=NoiseField.random(rng, rng.uniform(24.0, 27.5), bandwidth=0.22),
            slow=NoiseField.random(rng, 64.0, size=32, bandwidth=0.3),
            wobble=NoiseField.random(rng, 30.0, size=48, bandwidth=0.3),
            fine=NoiseField.random(rng, 14.0, period_mm=128.0, size=48, bandwidth=0.3),
            cells=NoiseField.random(rng, 8.0, period_mm=96.0, size=48, bandwidth=0.2),
            cortex_mm=rng.uniform(3.2, 3.55),
            sulcus_mm=rng.uniform(19, 23),
            sulcus_half_mm=rng.uniform(0.35, 0.65),
            leaf_mm=rng.uniform(5.0, 6.0),
            ventricles=(ventricle * rng.uniform(0.9, 1.1), ventricle * rng.uniform(0.9, 1.1)),
            nuclei_scale=rng.uniform(0.92, 1.08),
            skull_scale=rng.uniform(0.85, 1.1),
            scalp_scale=rng.uniform(0.9, 1.25),
            fat_mm=rng.uniform(2.6, 5.0),
            gap_mm=rng.uniform(1.3, 2.3),
            frontal_sinus=rng.uniform(0.5, 1.3),
            mastoid=rng.uniform(0.8, 1.3),
            lesion=found if lesion else None,
        )

    def _newborn(self, weeks: float) -> Subject:
        """The same subject as a newborn; lengths are relative to the size of the head.

        The head's circumference is 35 cm at 40 weeks and 28 cm at 30, an adult's 57 cm. Sulci are fewer,
        wider apart and shallower the younger the child; the skull is thin, without air cells, and the brain
        stem, which is myelinated first, looks like the nuclei. The proportions of the face stay an adult's.
        """
        early = (40.0 - weeks) / 10.0
        growth = (35.0 - 7.0 * early) / 57.0
        wider = 1.1 + 0.3 * early
        fold = replace(
            self.fold,
            period_mm=self.fold.period_mm * wider,
            wavelength_mm=self.fold.wavelength_mm * wider,
        )
        return replace(
            self,
            growth=growth,
            scale=self.scale * np.float32(growth),
            fold=fold,
            sulcus_mm=self.sulcus_mm * (0.9 - 0.4 * early),
            gap_mm=self.gap_mm + 0.5 + 1.5 * early,
            skull_scale=0.5 * self.skull_scale,
            scalp_scale=0.8 * self.scalp_scale,
            frontal_sinus=0.05,
            mastoid=-20.0,
            stem=DEEP,
        )

    def canonical(self, points_mm: np.ndarray) -> Coordinates:
        """Maps (3, n) world points of this subject to the average head's frame."""
        points = np.asarray(points_mm, np.float32)
        at = [(points[i] - self.shift_mm[i]) / self.scale[i] for i in range(3)]
        out = [axis.copy() for axis in at]
        for wave, phase, amplitude in zip(*self.warp, strict=True):
            swing = np.sin(wave[0] * at[0] + wave[1] * at[1] + wave[2] * at[2] + phase)
            for axis, a in zip(out, amplitude, strict=True):
                axis += a * swing
        return out[0], out[1], out[2]


def paint(fractions: np.ndarray, tissue: int, cover: np.ndarray) -> None:
    """Replaces the share ``cover`` (n,), 0 to 1, of every voxel by ``tissue``, in place; sums stay 1."""
    fractions *= 1.0 - cover
    fractions[tissue] += cover


def take(at: Coordinates, index: np.ndarray) -> Coordinates:
    """Coordinates of some of the points."""
    return at[0][index], at[1][index], at[2][index]
