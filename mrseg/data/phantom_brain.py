"""The synthetic brain: folded cortex, nuclei, ventricles, cerebellum, stem, vessels.

Coordinates are mm in a canonical frame close to the usual stereotactic one: origin at the anterior
commissure, x to the right, y to the front, z up. Positions and sizes are round figures of adult subject.
"""

from __future__ import annotations

import numpy as np

from mrseg.data.phantom_fields import (
    Coordinates,
    Point,
    band,
    capsule,
    ellipsoid,
    smooth_max,
    smooth_min,
    soft,
    turned,
)
from mrseg.data.phantom_subject import CSF, DEEP, GM, LESION, SOFT, VESSEL, WM, Lesion, Subject, paint, take

#: Centre and semi-axes (mm) of the vault of the cerebrum.
_VAULT = (0.0, -17.0, 8.0), (69.0, 89.0, 69.0)


def cerebrum_hull(at: Coordinates) -> np.ndarray:
    """Depth in the smooth hull of both hemispheres without temporal lobes, floor flattened."""
    x, y, z = at
    upper = ellipsoid(at, *_VAULT)
    front = np.clip((y - 5) * np.float32(1 / 30), 0, 1)
    back = np.clip((-35 - y) * np.float32(1 / 30), 0, 1)
    floor = z + 30 - 8 * front + (-14 - 0.12 * (y + 60)) * back
    floor = floor - 0.004 * x * x * front
    return smooth_min(upper, floor, 12.0)


def temporal_hull(at: Coordinates) -> np.ndarray:
    """Depth in the hull of the temporal lobes (``at`` with x folded to the right side)."""
    return ellipsoid(turned(at, (43, -16, -22), 12, "yz"), (0, 0, 0), (26, 45, 24))


def cerebellum_hull(at: Coordinates) -> np.ndarray:
    """Depth in the hull of the cerebellum (x folded)."""
    lobe = ellipsoid(at, (23, -63, -38), (31, 32, 23))
    return smooth_max(lobe, ellipsoid(at, (0, -64, -32), (14, 24, 21)), 6.0)


def stem_hull(at: Coordinates) -> np.ndarray:
    """Depth in midbrain, pons, medulla and cord."""
    pons = ellipsoid(at, (0, -26, -31), (17, 12, 14))
    upper = capsule(at, (0, -22, -4), (0, -27, -22), (13, 12))
    lower = capsule(at, (0, -29, -40), (0, -40, -78), (9.5, 6.5))
    cord = capsule(at, (0, -40, -78), (0, -42, -140), (6.5, 6.0))
    return smooth_max(smooth_max(pons, upper, 5.0), np.maximum(lower, cord), 6.0)


def cavity_hull(at: Coordinates) -> np.ndarray:
    """Depth in the smooth hull of the whole brain, from which the cranial cavity is offset."""
    folded = (np.abs(at[0]), at[1], at[2])
    hull = smooth_max(cerebrum_hull(at), temporal_hull(folded), 14.0)
    hull = smooth_max(hull, cerebellum_hull(folded), 9.0)
    return smooth_max(hull, stem_hull(at), 9.0)


def hemisphere_hull(folded: Coordinates) -> np.ndarray:
    """Depth in the hemispheres and what joins them (x folded)."""
    lateral = smooth_max(cerebrum_hull(folded), temporal_hull(folded), 3.0)
    apart = smooth_min(lateral, folded[0] - 0.7, 8.0)
    return smooth_max(apart, _core(folded), 3.0)


def ventricle_depth(at: Coordinates, subject: Subject) -> np.ndarray:
    """Depth in the lateral, third and fourth ventricles, the aqueduct, and the cleft below the callosum."""
    folded = (np.abs(at[0]), at[1], at[2])
    v = np.where(at[0] < 0, np.float32(subject.ventricles[0]), np.float32(subject.ventricles[1]))
    path = (
        ((7, 27, 1), 3.0),
        ((9, 14, 10), 4.2),
        ((8.5, -6, 17), 4.0),
        ((13, -28, 18), 4.4),
        ((24, -42, 10), 5.5),
    )
    depth = np.full_like(at[0], -99.0)
    for (start, first), (end, last) in zip(path[:-1], path[1:], strict=True):
        depth = smooth_max(depth, capsule(folded, start, end, (first, last)), 2.0)
    depth = smooth_max(depth, capsule(folded, (24, -42, 10), (22, -66, 4), (5.0, 2.5)), 2.0)
    depth = smooth_max(depth, capsule(folded, (24, -42, 8), (33, -28, -10), (4.0, 2.5)), 2.0)
    depth = smooth_max(depth, capsule(folded, (33, -28, -10), (32, -8, -19), (2.5, 2.0)), 2.0)
    depth = np.minimum(depth + (v - 1.0) * 4.0, folded[0] - 0.8)
    third = ellipsoid(at, (0, -10, 1), (1.2 + 1.6 * subject.ventricles[0], 15, 9))
    cleft = np.minimum(1.0 - folded[0], np.minimum(17.0 - _arc(folded), folded[2] + 9))  # below the arch
    fourth = ellipsoid(at, (0, -46, -34), (7, 5.5, 12))
    aqueduct = capsule(at, (0, -25, -4), (0, -40, -24), (1.2, 1.5))
    return np.maximum.reduce([depth, third, cleft, fourth, aqueduct])


def paint_brain(
    fractions: np.ndarray, at: Coordinates, cavity: np.ndarray, subject: Subject, width_mm: float
) -> None:
    """Paints the brain into points of the cranial cavity that are CSF so far.

    Args:
        fractions: (tissues, n) float32, changed in place.
        at: canonical coordinates of the n points.
        cavity: depth of the points in the cranial cavity; its outermost millimetre stays CSF, but for a
            lesion at the border.
        subject: whose brain.
        width_mm: edge of the voxel whose partial volume is wanted.
    """
    folded = (np.abs(at[0]), at[1], at[2])
    _paint_dura(fractions, at, width_mm)
    _paint_cerebellum(fractions, folded, at, subject, width_mm)
    paint(fractions, subject.stem, soft(stem_hull(at), width_mm))
    _paint_cerebrum(fractions, folded, at, subject, width_mm)
    _paint_nuclei(fractions, folded, subject, width_mm)
    paint(fractions, CSF, soft(ventricle_depth(at, subject), width_mm))
    if subject.lesion is not None:
        _paint_lesion(fractions, at, subject, subject.lesion, width_mm)
    _paint_vessels(fractions, folded, at, width_mm)
    rim = 1.0 - soft(cavity - 1.0, width_mm)
    if subject.lesion is not None and subject.lesion.at_border:
        rim = rim * (1.0 - fractions[LESION])
    paint(fractions, CSF, rim)


def _paint_lesion(
    fractions: np.ndarray, at: Coordinates, subject: Subject, lesion: Lesion, width_mm: float
) -> None:
    """Inside the brain a lesion spares the fluid; at the border it has pressed it out and meets the skull."""
    radius, centre, taken = lesion.radius, lesion.centre, 1.0 - fractions[CSF] - fractions[SOFT]
    if lesion.at_border:
        centre, taken = _outwards(centre, 0.4 * radius), 1.0 - fractions[SOFT]
    depth = ellipsoid(at, centre, (radius, radius * 1.2, radius * 0.9))
    depth = depth + radius * (0.18 * subject.slow(at, 31) + 0.08 * subject.fine(at, 31))
    paint(fractions, LESION, soft(depth, width_mm) * np.clip(taken, 0, 1))


def _outwards(point: Point, below_mm: float) -> Point:
    """The place ``below_mm`` under the vault on the ray from its centre through ``point``."""
    middle, radii = np.asarray(_VAULT)
    ray = np.asarray(point) - middle
    reach = 1.0 / np.linalg.norm(ray / radii) - below_mm / np.linalg.norm(ray)
    x, y, z = (middle + reach * ray).tolist()
    return x, y, z


def _core(folded: Coordinates) -> np.ndarray:
    """Where the hemispheres are joined: callosum, septum, thalami and what surrounds them."""
    return ellipsoid(folded, (0, -6, 4), (26, 38, 22))


def _paint_cerebrum(
    fractions: np.ndarray, folded: Coordinates, at: Coordinates, subject: Subject, width_mm: float
) -> None:
    """Cortex: gyri between sheets of CSF that stand on the hull where a random field crosses zero."""
    depth_all = hemisphere_hull(folded)
    inside = np.flatnonzero(depth_all > -width_mm)
    at = take(at, inside)
    folded = take(folded, inside)
    depth = depth_all[inside]
    normal, length = _outward(folded, depth)
    sign = np.where(at[0] < 0, np.float32(-1), np.float32(1))
    normal = (normal[0] * sign, normal[1], normal[2])

    reach = np.clip(depth, 0, 30) * np.float32(0.9)
    hull_point = tuple(axis + n * reach for axis, n in zip(at, normal, strict=True))
    wobble = subject.wobble(at), subject.wobble(at, 57), subject.wobble(at, 113)
    hull_point = tuple(h + np.float32(1.6) * w for h, w in zip(hull_point, wobble, strict=True))
    hull_point = (hull_point[0], hull_point[1] + 30 * sign, hull_point[2])  # sides fold differently
    fold, slope = subject.fold.with_gradient(hull_point)
    along = sum(s * n for s, n in zip(slope, normal, strict=True))
    steep = np.sqrt(sum((s - along * n) ** 2 for s, n in zip(slope, normal, strict=True))) + np.float32(1e-5)
    wave = np.float32(2 * np.pi / subject.fold.wavelength_mm)
    sheet = np.arctan(wave * np.abs(fold) / steep) / wave  # mm to the middle of the nearest sulcus
    floor = np.minimum(subject.sulcus_mm * np.clip(1.0 + 0.35 * subject.slow(hull_point, 77), 0.5, 1.4), 26.0)
    floor *= np.clip((length - 0.45) * 3.0, 0.0, 1.0) * np.clip(_core(folded) * np.float32(-0.2), 0.0, 1.0)

    opening = subject.sulcus_half_mm * (0.7 + 1.1 * np.exp(-np.maximum(depth, 0) * np.float32(0.25)))
    below = np.maximum(depth - floor, 0)
    sheet = np.sqrt(sheet**2 + below**2)
    bent = folded[0] + 1.5 * wobble[0], folded[1] + 1.5 * wobble[1], folded[2] + 1.5 * wobble[2]
    sylvian, sylvian_half = _sylvian(bent)
    thickness = subject.cortex_mm * (1.0 + 0.08 * wobble[0])
    grey = np.maximum(
        band(sheet, opening + thickness, width_mm), band(sylvian, sylvian_half + thickness, width_mm)
    )
    gap = np.maximum(band(sheet, opening, width_mm) * (below <= 0), band(sylvian, sylvian_half, width_mm))
    brain = soft(depth, width_mm) * (1.0 - gap)
    white = np.minimum(soft(depth - thickness, width_mm) * (1.0 - grey), brain)

    part = fractions[:, inside]
    paint(part, GM, brain)
    part[WM] += white
    part[GM] -= white
    callosum = _callosum(folded)
    paint(part, WM, soft(callosum, width_mm))
    fractions[:, inside] = part


def _outward(folded: Coordinates, depth: np.ndarray) -> tuple[Coordinates, np.ndarray]:
    """Unit vector to the nearest hull, and the slope of the depth, below 1 between two equally near walls."""
    step = np.float32(4.0)
    x, y, z = folded
    parts = (
        depth - hemisphere_hull((x + step, y, z)),
        depth - hemisphere_hull((x, y + step, z)),
        depth - hemisphere_hull((x, y, z + step)),
    )
    length = np.sqrt(sum(p * p for p in parts)) + np.float32(1e-4)
    return (parts[0] / length, parts[1] / length, parts[2] / length), length / step


def _sylvian(folded: Coordinates) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the Sylvian sheet with the insula at its floor, and the sheet's half-thickness."""
    x, y, z = folded
    sheet = np.abs(z + 4 + 0.25 * (y + 10))
    past = np.maximum(np.float32(39) - x, 0) + np.maximum(-y - 42, 0) + np.maximum(y - 30, 0)
    slit = np.sqrt(sheet**2 + past**2)
    reach = 10.0 * np.clip(1 - ((y - 2) * np.float32(1 / 27)) ** 2, 0, 1)
    insula = np.sqrt((x - 39) ** 2 + np.maximum(sheet - reach, 0) ** 2)
    return np.minimum(slit, insula), np.float32(0.8) + np.clip((x - 50) * 0.05, 0, 1.0)


def _callosum(folded: Coordinates) -> np.ndarray:
    plate = 4.6 - np.abs(_arc(folded) - 20.5) * 1.15
    return np.minimum(np.minimum(plate, folded[2] - 2), 17 - folded[0])


def _arc(folded: Coordinates) -> np.ndarray:
    """Distance from the centre of the callosum's arch, stretched to its oval."""
    return np.sqrt(((folded[1] + 6) / 1.65) ** 2 + (folded[2] - 2) ** 2)


def _paint_nuclei(fractions: np.ndarray, folded: Coordinates, subject: Subject, width_mm: float) -> None:
    s = subject.nuclei_scale
    thalamus = ellipsoid(turned(folded, (12.5, -18, 7), 25, "xy"), (0, 0, 0), (8 * s, 15 * s, 8.5 * s))
    putamen = ellipsoid(turned(folded, (26, 2, 0), 12, "xy"), (0, 0, 0), (5.5 * s, 17 * s, 11 * s))
    pallidum = ellipsoid(folded, (19, -3, -1), (4.5 * s, 8 * s, 6 * s))
    caudate = smooth_max(
        capsule(folded, (12, 20, 0), (14, 6, 14), (6 * s, 5 * s)),
        capsule(folded, (14, 6, 14), (19, -22, 19), (5 * s, 2.5 * s)),
        3.0,
    )
    hippocampus = capsule(folded, (24, -10, -18), (30, -34, -6), (6.5, 4.5))
    amygdala = ellipsoid(folded, (23, -4, -18), (7, 7, 7))
    for depth in (thalamus, putamen, pallidum, caudate):
        paint(fractions, DEEP, soft(depth, width_mm))
    paint(fractions, GM, soft(np.maximum(hippocampus, amygdala), width_mm))


def _paint_cerebellum(
    fractions: np.ndarray, folded: Coordinates, at: Coordinates, subject: Subject, width_mm: float
) -> None:
    depth = cerebellum_hull(folded)
    inside = np.flatnonzero(depth > -width_mm)
    depth = depth[inside]
    x, y, z = (axis[inside] for axis in folded)
    here = take(at, inside)
    turn = np.arctan2(z + 38, -(y + 46)) * np.float32(26.0)  # leaves fan out from the fourth ventricle
    leaf = np.float32(subject.leaf_mm)
    phase = (turn + 2.0 * subject.wobble(here) + 0.004 * x * x) / leaf
    sheet = np.abs(phase - np.round(phase)) * leaf
    deep = np.clip((depth - 9) * 0.4, 0, 6)
    gap = band(np.sqrt(sheet**2 + deep**2), 0.45, width_mm)
    brain = soft(depth, width_mm) * (1.0 - gap)
    blade = band(leaf / 2 - sheet, np.clip((depth - 5) * 0.07, 0, 0.8), width_mm)
    core = np.maximum(
        soft(ellipsoid((x, y, z), (18, -58, -37), (14, 12, 7.5)), width_mm),
        soft(capsule((x, y, z), (20, -56, -36), (14, -34, -34), (6, 6)), width_mm),
    )
    part = fractions[:, inside]
    paint(part, GM, brain)
    paint(part, WM, np.maximum(blade * brain, core))
    fractions[:, inside] = part


def _paint_dura(fractions: np.ndarray, at: Coordinates, width_mm: float) -> None:
    falx = band(at[0], 0.3, width_mm) * soft(at[2] - 24 + 0.012 * (at[1] + 6) ** 2, width_mm)
    paint(fractions, SOFT, falx)


def _paint_vessels(fractions: np.ndarray, folded: Coordinates, at: Coordinates, width_mm: float) -> None:
    sinus = np.minimum(3.2 - np.abs(at[0]), np.minimum(3.5 - np.abs(cerebrum_hull(at) + 2.5), at[2] - 0))
    transverse = capsule(folded, (3, -101, -6), (48, -62, -20), (3.0, 3.5))
    carotid = capsule(folded, (11, 6, -20), (13, 3, -11), (2.2, 1.8))
    middle = capsule(folded, (13, 3, -11), (40, 6, -8), (1.6, 1.1))
    basilar = capsule(at, (0, -13, -20), (0, -15, -42), (1.8, 1.8))
    depth = smooth_max(np.maximum(sinus, transverse), np.maximum(carotid, np.maximum(middle, basilar)), 0.5)
    room = np.clip(fractions[CSF] + fractions[SOFT] + fractions[GM], 0, 1)
    paint(fractions, VESSEL, soft(depth, width_mm) * room)
