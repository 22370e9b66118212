"""The synthetic head around the brain: scalp, skull with diploe and air cells, orbits, nose, jaw, airways.

Coordinates are canonical (see ``phantom_brain``); ``folded`` has x mirrored to the right side. Positions and
sizes are round figures of adult anatomy.
"""

from __future__ import annotations

import numpy as np

from mrseg.data.phantom_brain import cavity_hull
from mrseg.data.phantom_fields import (
    Coordinates,
    band,
    capsule,
    ellipsoid,
    smooth_max,
    smooth_min,
    soft,
    turned,
)
from mrseg.data.phantom_subject import AIR, BONE, CSF, DIPLOE, FAT, SOFT, Subject, paint, take


def cavity_depth(subject: Subject, at: Coordinates) -> np.ndarray:
    """Depth below the inner table; the petrous ridges part the middle from the posterior fossa."""
    hull = cavity_hull(at) + subject.gap_mm + 0.5 * subject.slow(at, 11)
    return smooth_min(hull, -_petrous(_fold(at)), 3.0)


def skull_thickness(subject: Subject, at: Coordinates) -> np.ndarray:
    """Thickness of the vault in mm: thin at the temples and the base, thick at brow and occiput."""
    x, y, z = at
    thickness = 6.0 + 1.3 * subject.slow(at)
    thickness = thickness - 2.4 * _bump(np.abs(x), 66, 22) * _bump(z, -2, 26) * _bump(y, -8, 40)
    thickness = thickness + 4.0 * _bump(x, 0, 22) * _bump(z, -12, 22) * _bump(y, -112, 30)
    thickness = thickness + 2.0 * _bump(x, 0, 40) * _bump(y, 76, 22) * _bump(z, 0, 30)
    thickness = thickness * (1 - 0.35 * np.clip((-22 - z) * np.float32(1 / 20), 0, 1))
    return np.clip(subject.skull_scale * thickness, 2.2, 14.0)


def scalp_depth(subject: Subject, at: Coordinates, skull: np.ndarray) -> np.ndarray:
    """Depth below the skin, from the depth ``skull`` below the outer table."""
    x, y, z = at
    folded = _fold(at)
    thickness = 8.2 + 0.8 * subject.slow(at, 23)
    thickness = thickness + 6.0 * _bump(folded[0], 68, 18) * _bump(z, -15, 28) * _bump(y, 20, 35)
    vault = skull + subject.scalp_scale * thickness
    face = smooth_max(
        ellipsoid(at, (0, 42, -52), (66, 56, 72)), ellipsoid(at, (0, 60, -70), (46, 44, 44)), 20.0
    )
    neck = capsule((x / np.float32(1.12), y, z), (0, -38, -40), (0, -52, -160), (66, 60))
    nose = capsule(at, (0, 84, -22), (0, 102, -54), (6, 10))
    depth = smooth_max(smooth_max(vault, face, 22.0), neck, 24.0)
    depth = smooth_max(depth, nose, 9.0)
    depth = smooth_min(depth, -ellipsoid(folded, (33, 98, -36), (17, 15, 13)), 10.0)  # hollow of the eye
    ear = ellipsoid(turned(folded, (83, -27, -30), 24, "xy"), (0, 0, 0), (4.0, 15, 26))
    return smooth_max(depth, ear, 4.0)


def paint_scalp(
    fractions: np.ndarray,
    at: Coordinates,
    scalp: np.ndarray,
    skull: np.ndarray,
    subject: Subject,
    width_mm: float,
) -> None:
    """Paints skin and muscle, the fat under the skin, and fat between the muscles of face and neck."""
    x, y, z = at
    paint(fractions, SOFT, soft(scalp, width_mm))
    cheek = 5.0 * np.clip((-30 - z) / 30, 0, 1) * np.clip(y / 40, 0, 1) + 3.0 * np.clip((-60 - z) / 40, 0, 1)
    layer = subject.fat_mm + cheek + 0.8 * subject.fine(at)
    paint(fractions, FAT, soft(scalp - 1.9, width_mm) * soft(layer + 1.9 - scalp, width_mm))
    low = np.flatnonzero((z < 5) & (scalp > 0))
    planes = soft(3.0 * subject.fine((x[low], y[low], z[low] * np.float32(0.4)), 40) - 2.0, width_mm)
    between = soft((scalp - 9 - layer)[low], width_mm) * soft(-skull[low] - 2.0, width_mm)
    part = fractions[:, low]
    paint(part, FAT, between * planes)
    fractions[:, low] = part


def paint_skull(
    fractions: np.ndarray,
    at: Coordinates,
    cavity: np.ndarray,
    thickness: np.ndarray,
    subject: Subject,
    width_mm: float,
) -> None:
    """Paints the skull around the cavity: cortical tables, diploe, and air in mastoid and sinuses."""
    x, y, z = at
    folded = _fold(at)
    base = smooth_max(_petrous(folded), ellipsoid(folded, (53, -40, -48), (12, 15, 22)), 5.0)
    sphenoid = smooth_max(
        ellipsoid(at, (0, 8, -32), (18, 24, 11)), capsule(at, (0, -4, -30), (0, -20, -62), (8, 6)), 6.0
    )
    brow = ellipsoid(folded, (16, 76, -10), (26, 11, 15))
    bones = np.maximum(sphenoid, np.maximum(base, brow))
    skull = cavity + thickness
    outer = smooth_max(skull, np.minimum(bones, 9.0), 4.0)
    paint(fractions, BONE, soft(outer, width_mm))

    table = np.clip(0.28 * thickness, 1.1, 2.2)
    spongy = np.minimum(skull - table, -cavity - table)
    spongy = np.maximum(spongy, np.minimum(bones - 2.5, -cavity - 2.0))
    trabeculae = np.clip(0.28 - 0.2 * subject.fine(at, 9), 0.05, 0.65)
    paint(fractions, DIPLOE, soft(spongy, width_mm) * (1 - trabeculae))

    mastoid = np.minimum(ellipsoid(folded, (54, -38, -46), (11, 14, 19)), -cavity - 1.5)
    size = 11 * subject.frontal_sinus
    lobes = ellipsoid(folded, (1.1 * size, 73, -4), (size, 6, size))
    frontal = np.minimum(np.minimum(lobes, np.abs(x - 2) - 0.7), np.minimum(-cavity - 1.6, outer - 1.6))
    sinus = np.minimum(ellipsoid(at, (0, 17, -33), (15, 14, 9)), np.abs(x + 3) - 0.7)
    near = np.flatnonzero(np.maximum(mastoid, np.maximum(frontal, sinus)) > -3.0 - width_mm)
    here = take(at, near)
    part = fractions[:, near]
    cells = soft(subject.mastoid + 2.2 * subject.cells(here), width_mm)
    ragged = 1.2 * subject.fine(here, 3)
    paint(part, AIR, soft(mastoid[near], width_mm) * cells)
    paint(part, AIR, soft(np.minimum(frontal[near] + np.minimum(ragged, 0), outer[near] - 1.6), width_mm))
    paint(part, AIR, soft(sinus[near] + ragged, width_mm))
    fractions[:, near] = part


def paint_face(
    fractions: np.ndarray, at: Coordinates, scalp: np.ndarray, subject: Subject, width_mm: float
) -> None:
    """Paints what lies below and before the brain: facial bones, eyes, airways, upper spine."""
    low = np.flatnonzero(at[2] < -8.0)
    at, scalp = take(at, low), scalp[low]
    folded = _fold(at)
    part = fractions[:, low]
    orbit = smooth_max(
        ellipsoid(folded, (32, 60, -37), (18, 22, 15.5)),
        capsule(folded, (30, 55, -36), (15, 24, -30), (15, 4)),
        4.0,
    )
    _paint_facial_bones(part, at, orbit, scalp, width_mm)
    inside = soft(np.minimum(orbit, scalp - 2.0), width_mm)
    paint(part, FAT, inside)
    eye = ellipsoid(folded, (32, 69, -37), (12.3, 12.3, 12.3))
    nerve = capsule(folded, (30, 57, -37), (14, 26, -29), (2.2, 2.2))
    muscles = band(orbit - 5.0, 1.0, width_mm) * inside
    paint(part, SOFT, np.maximum(soft(eye + 1.2, width_mm), np.maximum(soft(nerve, width_mm), muscles)))
    paint(part, CSF, soft(eye, width_mm))
    _paint_airways(part, at, scalp, subject, width_mm)
    fractions[:, low] = part


def _paint_facial_bones(
    fractions: np.ndarray, at: Coordinates, orbit: np.ndarray, scalp: np.ndarray, width_mm: float
) -> None:
    x, y, z = at
    folded = _fold(at)
    cheek = capsule(folded, (44, 68, -56), (64, 38, -50), (6.5, 4.5))
    arch = capsule(folded, (64, 38, -50), (68, -8, -42), (3.6, 3.2))
    ramus = np.minimum(
        2.6 - np.abs(folded[0] - 50 - 0.05 * (z + 60)), ellipsoid(at, (0, 2, -78), (80, 17, 34))
    )
    maxilla = np.minimum(ellipsoid(folded, (0, 58, -60), (36, 26, 26)), 79 - y)
    palate = np.minimum(3.0 - np.abs(z + 76), ellipsoid(at, (0, 52, -76), (26, 34, 12)))
    teeth = np.minimum(4.0 - np.abs(ellipsoid(at, (0, 50, -86), (29, 38, 14))), 9.0 - np.abs(z + 87))
    spine = capsule((x / np.float32(1.5), y, z), (0, -38, -84), (0, -46, -150), (18, 17))
    spine = np.minimum(spine, np.sqrt(x * x + (y + 41) ** 2) - 9.5)  # around the cord
    socket = np.minimum(np.minimum(orbit + 1.8, -orbit), 82 - y)  # a thin wall, open to the front
    solid = np.maximum.reduce([cheek, arch, ramus, palate, teeth, maxilla, socket, spine])
    paint(fractions, BONE, soft(np.minimum(solid, scalp - 3.0), width_mm))
    paint(fractions, DIPLOE, 0.85 * soft(np.maximum(spine, maxilla) - 2.2, width_mm))


def _paint_airways(
    fractions: np.ndarray, at: Coordinates, scalp: np.ndarray, subject: Subject, width_mm: float
) -> None:
    x, y, z = at
    folded = _fold(at)
    side = folded[0]
    ragged = subject.fine(at, 51)
    maxillary = np.minimum(ellipsoid(folded, (32, 52, -61), (16, 19, 18)) + ragged, side - 17.5)
    nasal = ellipsoid(at, (0, 50, -54), (17, 38, 22)) + 1.5 * ragged
    nasal = np.minimum(nasal, np.minimum(side - 1.0, scalp - 3.0))
    height = (z + 54 + 2 * subject.wobble(at)) % 13 - 6.5
    turbinate = soft(2.3 - np.sqrt((side - 9) ** 2 + height**2), width_mm)
    labyrinth = ellipsoid(folded, (8, 46, -30), (8.5, 21, 11))
    ethmoid = np.minimum(labyrinth - 1.0, 2.0 * subject.cells(at, 33) + 1.6)
    wide = x / np.float32(1.4)
    pharynx = np.maximum(
        capsule((wide, y, z), (0, 20, -58), (0, 4, -84), (10, 10)),
        capsule((wide, y, z), (0, 4, -84), (0, 0, -150), (9.5, 9.5)),
    )
    canal = capsule(folded, (50, -21, -38), (92, -23, -40), (3.2, 4.0))
    paint(fractions, SOFT, soft(nasal + 1.5, width_mm))
    paint(fractions, AIR, soft(nasal, width_mm) * (1 - turbinate))
    paint(fractions, BONE, 0.8 * soft(labyrinth, width_mm))
    for hollow in (maxillary, ethmoid, pharynx, canal):
        paint(fractions, AIR, soft(hollow, width_mm))


def _fold(at: Coordinates) -> Coordinates:
    return np.abs(at[0]), at[1], at[2]


def _petrous(folded: Coordinates) -> np.ndarray:
    ridge = ellipsoid(turned(folded, (40, -28, -42), -38, "xy"), (0, 0, 0), (27, 8, 11))
    return np.minimum(ridge, folded[0] - 12)


def _bump(axis: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((axis - np.float32(centre)) * np.float32(1 / width)) ** 2))
