"""Boundary tracking with a CUSUM filter on a sinusoidal path (alkhimova2022, Table 1).

The tracker walks round the brain in a zigzag across its edge. Inside it gathers evidence for skull, outside
for brain; where the cumulative sum passes a limit, the last point at which the sum was zero is a boundary
point, and the tracker turns back. It touches a few thousand places, not the whole slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrseg.baselines.regions import box, brain_ellipse, check_slice, head_region

_STEP = 0.5  # px
_CERTAIN_BRAIN = 0.4  # ellipse in the head's box
_RIM = 0.06  # of the smaller half side of the head
_LIMIT = 3.0  # of the cumulative sum
_EVIDENCE = 1.5  # largest evidence of one step
_TURN_PER_STEP = 0.5 * _STEP  # rad
# Without this cap the tracker circles in one region and never meets the edge again.
_LARGEST_TURN = math.radians(70.0)
_RETURN_ANGLE = math.radians(10.0)
_LOST_AFTER = int(12.0 / _STEP)  # steps without a crossing
_RESTART_ANGLE = 0.06  # rad
_LARGEST_RETREAT = 0.3  # rad behind the start of a walk
_TANGENT_POINTS = 4
_MEDIAN_POINTS = 5
_ROUND = 2 * math.pi

Evidence = Callable[[float, float], float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Boundary:
    """What the tracker found.

    Attributes:
        points: float64 (n, 2), boundary points in pixels, in the order they were met.
        centre: where the polar angle is measured from, pixels.
        closed: whether the tracker came round.
        restarts: how often it was lost and began anew from the centre.
    """

    points: np.ndarray
    centre: Point
    closed: bool
    restarts: int


def cusum_mask(image: np.ndarray) -> np.ndarray:
    """Masks the brain of a T2*-weighted slice: the inside of ``cusum_boundary``.

    The radius over the polar angle is smoothed by a circular median of 5 points, joined linearly, and filled:
    one star-shaped region a slice. Two separate parts of the brain (low temporal slices) become one or lose
    one.

    Args:
        image: slice (x, y), finite. The brain must be brighter than the skull.

    Returns:
        bool array of the same shape; empty where the head covers less than 5 % of the slice, or the tracker
        did not come round.

    Raises:
        InputError: not a slice.
    """
    found = cusum_boundary(image)
    rows, columns = np.shape(image)
    if not found.closed or len(found.points) < 3:
        return np.zeros((rows, columns), bool)
    offset = found.points - found.centre
    angle, radius = np.arctan2(offset[:, 1], offset[:, 0]), np.hypot(offset[:, 0], offset[:, 1])
    order = np.argsort(angle, kind="stable")
    radius = ndimage.median_filter(radius[order], size=_MEDIAN_POINTS, mode="wrap")
    x, y = np.ogrid[:rows, :columns]
    x, y = x - found.centre[0], y - found.centre[1]
    return np.hypot(x, y) <= np.interp(np.arctan2(y, x), angle[order], radius, period=_ROUND)


def cusum_boundary(image: np.ndarray) -> Boundary:
    """Tracks the edge of the brain.

    Evidence for brain is the logarithm of a Gaussian likelihood ratio between brain and skull, at most 1.5 a
    step. The two levels are taken from the slice: brain from an ellipse in the head's bounding box, skull
    from the dark pixels of the head around it. Values above the brain's level count as brain, so that a
    bright lesion or CSF at the edge stays inside, and so does everything close to the head's centre. A
    change at the rim of the head is the scalp's and is dropped, unless there is no scalp.

    Args:
        image: slice (x, y), finite.

    Returns:
        The boundary; no points where the head covers less than 5 % of the slice or shows no contrast.

    Raises:
        InputError: not a slice.

    Deviation:
        The paper names the method and cites it (Alkhimova and Krenevych 2019), which was read in its abstract
        alone; levels, evidence, limits, the cap on turning and the restart are choices.

    Reference:
        Alkhimova and Diumin 2022, Table 1; Chen et al. 2011, "Efficient boundary tracking through sampling",
        Appl. Math. Res. eXpress (abstract).
    """
    image = check_slice(image)
    head = head_region(image)
    nowhere = Boundary(np.zeros((0, 2)), (0.0, 0.0), False, 0)
    if not head.any():
        return nowhere
    evidence = _evidence(image, head)
    if evidence is None:
        return nowhere
    (centre_x, half_x), (centre_y, half_y) = box(head)
    # Twelve times the box's perimeter: a zigzag is two to three times as long as the edge it follows.
    budget = int(12 * 4 * (half_x + half_y) / _STEP)
    centre = centre_x, centre_y
    inner = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1] > _RIM * min(half_x, half_y)
    found = _Tracker(evidence, centre, inner, budget).run()
    if _covered(found) >= 0.5:
        return found
    # No scalp around (a stripped brain): the brain itself reaches the rim.
    return _Tracker(evidence, centre, np.ones_like(head), budget).run()


def _covered(found: Boundary) -> float:
    """Share of the directions from the centre in which there is a boundary point; of 32."""
    offset = found.points - found.centre
    sector = np.floor(np.arctan2(offset[:, 1], offset[:, 0]) / _ROUND * 32)
    return len(np.unique(sector % 32)) / 32


def _evidence(image: np.ndarray, head: np.ndarray) -> Evidence | None:
    """Evidence for brain at any place; None where brain and skull do not differ."""
    core = brain_ellipse(head, 0.7)
    if not core.any():  # a head of a few pixels
        return None
    brain, brain_spread = _level(image[core])
    dark = image[head & ~core & (image < 0.5 * brain)]
    # A head without skull (stripped, or cut by a tight field of view) is told from what surrounds it.
    dark = dark if dark.size else image[~head]
    skull, skull_spread = _level(dark) if dark.size else (0.0, 0.0)
    contrast = brain - skull
    if not contrast > 0:
        return None
    spread = max(min(brain_spread, 0.25 * contrast), skull_spread, 0.05 * contrast)
    gain, middle = contrast / spread**2, (brain + skull) / 2
    # A dark cleft at the centre is no edge: there every place counts as brain.
    image = np.where(brain_ellipse(head, _CERTAIN_BRAIN), brain, image)
    rows = image.tolist()  # plain floats: single look-ups in a NumPy array are many times slower
    last_x, last_y = image.shape[0] - 1, image.shape[1] - 1

    def at(x: float, y: float) -> float:
        x, y = min(max(x, 0.0), last_x), min(max(y, 0.0), last_y)
        i, j = min(int(x), last_x - 1), min(int(y), last_y - 1)
        u, v = x - i, y - j
        here, there = rows[i], rows[i + 1]
        value = (1 - u) * ((1 - v) * here[j] + v * here[j + 1]) + u * ((1 - v) * there[j] + v * there[j + 1])
        return min(max((min(value, brain) - middle) * gain, -_EVIDENCE), _EVIDENCE)

    return at


def _level(values: np.ndarray) -> tuple[float, float]:
    """Median, and the standard deviation by the median absolute deviation."""
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


class _Tracker:
    """One walk round the brain, in the direction of the rising polar angle (brain on the left hand).

    A change outside ``inner``, at the rim of the head, is the scalp's: the tracker has crossed a thin skull.
    It gives up its walk there and begins anew from the centre.
    """

    def __init__(self, evidence: Evidence, centre: Point, inner: np.ndarray, budget: int) -> None:
        self.evidence, self.centre, self.budget = evidence, centre, budget
        self.shape, self.inner = inner.shape, inner.tolist()
        self.points: list[Point] = []
        self.restarts = 0

    def run(self) -> Boundary:
        """Walks until the polar angle has advanced by a full turn, or the budget of steps is spent."""
        angle = 0.0
        while angle < _ROUND and self.budget > 0:
            start = self._ray(angle)
            if start is not None:
                self.points.append(start)
                # A walk that went back must not be repeated for ever: the next begins further on.
                angle = max(angle, self._walk(start, angle))
            if angle < _ROUND:
                self.restarts += 1
                angle += _RESTART_ANGLE
        points = np.array(self.points, np.float64).reshape(-1, 2)
        return Boundary(points, self.centre, angle >= _ROUND and len(points) > 2, self.restarts)

    def _at_rim(self, point: Point) -> bool:
        i, j = (min(max(round(p), 0), n - 1) for p, n in zip(point, self.shape, strict=True))
        return not self.inner[i][j]

    def _inside_image(self, x: float, y: float) -> bool:
        return 0 <= x <= self.shape[0] - 1 and 0 <= y <= self.shape[1] - 1

    def _ray(self, angle: float) -> Point | None:
        """The first change from brain to skull on a ray from the centre, None if there is none."""
        (x, y), total = self.centre, 0.0
        dx, dy = _STEP * math.cos(angle), _STEP * math.sin(angle)
        change = (x, y)
        while self._inside_image(x, y):
            self.budget -= 1
            total = max(0.0, total - self.evidence(x, y))
            if total == 0:
                change = (x, y)
            elif total > _LIMIT:
                return None if self._at_rim(change) else change
            x, y = x + dx, y + dy
        return None

    def _walk(self, start: Point, angle: float) -> float:
        """Zigzags from a boundary point until lost, back at the scalp, or round; returns the polar angle."""
        x, y = start
        inside = False
        least, heading = angle - _LARGEST_RETREAT, angle + math.pi / 2
        recent = [start]
        total, turned, since = 0.0, 0.0, 0
        change = start
        while least < angle < _ROUND and self.budget > 0 and since < _LOST_AFTER:
            self.budget -= 1
            since += 1
            if turned < _LARGEST_TURN:
                # Left, to the brain, from outside; right, to the skull, from inside.
                heading += -_TURN_PER_STEP if inside else _TURN_PER_STEP
                turned += _TURN_PER_STEP
            x, y = x + _STEP * math.cos(heading), y + _STEP * math.sin(heading)
            angle += math.remainder(math.atan2(y - self.centre[1], x - self.centre[0]) - angle, _ROUND)
            evidence = self.evidence(x, y)
            total = max(0.0, total + (-evidence if inside else evidence))
            if total == 0:
                change = (x, y)
            elif total > _LIMIT and self._at_rim(change):
                if len(recent) > 1:
                    self.points.pop()  # the scalp's inner edge, by which the tracker left the skull
                break
            elif total > _LIMIT:
                self.points.append(change)
                recent = [*recent[1 - _TANGENT_POINTS :], change]
                inside = not inside
                tangent = math.atan2(recent[-1][1] - recent[0][1], recent[-1][0] - recent[0][0])
                heading = tangent + (-_RETURN_ANGLE if inside else _RETURN_ANGLE)
                total, turned, since, change = 0.0, 0.0, 0, (x, y)
        return angle
