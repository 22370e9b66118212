"""Planes of a volume, drawn upright and to scale: what `mrseg.pictures` is made of.

All arrays are canonical RAS+ ``(x, y, z)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy import ndimage

from mrseg._checks import IGNORE_LABEL, choice, error

SIDES = ("radiological", "neurological")
STYLES = ("fill", "contour", "both")

#: The plane that is left when axis 0, 1 or 2 is fixed.
PLANES = ("sagittal", "coronal", "axial")

#: The order in which the planes are shown, as axes.
PLANE_ORDER = (2, 1, 0)

_WIDTH_IN = 11.0
_GAP_MM = 6.0
_PAPER, _INK, _FAINT = "#000000", "#eef0f2", "#b4bac1"


@dataclass(frozen=True)
class View:
    """How a volume is looked at.

    Attributes:
        focus: name of the class that the slices run through, and whose errors `comparison` shows; by default
            all classes but the first.
        slices: voxel index ``(x, y, z)`` of the sagittal, coronal and axial slice; None: by the focus.
        style: ``fill`` (translucent), ``contour`` or ``both``.
        side: ``radiological`` (the patient's left is on the right) or ``neurological``.
        colours: class name to colour (None: not drawn); overrides `CLASS_COLOURS`.
    """

    focus: str | None = None
    slices: tuple[int, int, int] | None = None
    style: str = "fill"
    side: str = "radiological"
    colours: Mapping[str, str | None] | None = None

    def __post_init__(self) -> None:
        choice("View.side", self.side, SIDES)
        choice("View.style", self.style, STYLES)


@dataclass(frozen=True)
class Layer:
    """Labels drawn over a picture.

    Attributes:
        labels: class per voxel, (x, y, z).
        colours: colour of class i at place i; None is not drawn.
        alphas: opacity of the fill of each class, from 0 to 1.
    """

    labels: np.ndarray
    colours: Sequence[str | None]
    alphas: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One plane of one picture.

    Attributes:
        axis: the axis that is cut.
        layers: labels over the image.
        note: a line below.
        heading: a line above, over the column.
        style: as `View.style`.
        dim: how bright the image is, from 0 to 1.
        ct_hu: a CT that takes every other tile of a checkerboard, (x, y, z) in HU.
    """

    axis: int
    layers: tuple[Layer, ...] = ()
    note: str = ""
    heading: str = ""
    style: str = "fill"
    dim: float = 1.0
    ct_hu: np.ndarray | None = None


class Frame:
    """The box around the head, the slices, and the way from a volume to an upright 2-D picture.

    Args:
        image: grey values, (x, y, z).
        labels: class per voxel; with the image they say where the head is.
        structure: bool, (x, y, z); the slices run through it.
        spacing_mm: voxel size along x, y, z.
        view: side, and slices if they are given.

    Raises:
        InputError: a given slice lies outside the volume.
    """

    def __init__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        structure: np.ndarray,
        spacing_mm: Sequence[float],
        view: View,
    ):
        self.image, self.side = image, view.side
        self.spacing_mm = tuple(float(mm) for mm in spacing_mm)
        self.window = grey_window(image)
        self.slices = slices_through(structure) if view.slices is None else view.slices
        if not all(0 <= index < n for index, n in zip(self.slices, image.shape, strict=True)):
            raise error(
                f"View.slices lie inside the volume of shape {image.shape}.",
                self.slices,
                "Give voxel indices (x, y, z), counted from 0.",
            )
        self.box = _bounding_box(image, labels, self.spacing_mm, self.window)

    def position(self, axis: int) -> str:
        """The plane and where it is cut, counted from 1."""
        return f"{PLANES[axis]}, slice {self.slices[axis] + 1} of {self.image.shape[axis]}"

    def cut(self, volume: np.ndarray, axis: int) -> np.ndarray:
        """One slice as it is drawn, (rows, columns): row 0 is superior (axial: anterior)."""
        index: list[Any] = list(self.box)
        index[axis] = self.slices[axis]
        return self._upright(volume[tuple(index)])

    def tiles(self, axis: int, tile_mm: float = 22.0) -> np.ndarray:
        """Checkerboard of a slice, bool (rows, columns); the tiles are cubes, alike in all planes."""
        steps = []
        for a, mm in enumerate(self.spacing_mm):
            index = np.arange(self.box[a].start, self.box[a].stop) if a != axis else [self.slices[a]]
            steps.append(np.asarray(index) * mm // tile_mm)
        board = steps[0][:, None, None] + steps[1][None, :, None] + steps[2][None, None, :]
        return self._upright(board.squeeze(axis) % 2 == 1)

    def size_mm(self, axis: int) -> tuple[float, float]:
        """Width and height of a plane."""
        across, up = (a for a in range(3) if a != axis)
        extent = [(s.stop - s.start) * mm for s, mm in zip(self.box, self.spacing_mm, strict=True)]
        return extent[across], extent[up]

    def marks(self, axis: int) -> tuple[str, str]:
        """What lies at the left and at the right edge of the picture."""
        ends = ("P", "A") if axis == 0 else ("L", "R")
        return (ends[1], ends[0]) if self.side == "radiological" else ends

    def _upright(self, plane: np.ndarray) -> np.ndarray:
        upright = plane.T[::-1]
        return upright[:, ::-1] if self.side == "radiological" else upright


def slices_through(structure: np.ndarray) -> tuple[int, int, int]:
    """The slice along each axis that halves a structure's volume: never an empty one.

    Args:
        structure: bool, (x, y, z). An empty one gives the middle of the volume.

    Example: a structure with 1 voxel at x = 2 and 3 voxels at x = 7 is cut at x = 7.
    """
    chosen = []
    for axis in range(3):
        areas = np.count_nonzero(structure, axis=tuple(a for a in range(3) if a != axis))
        total = int(areas.sum())
        middle = structure.shape[axis] // 2
        chosen.append(int(np.searchsorted(np.cumsum(areas), (total + 1) / 2)) if total else middle)
    return chosen[0], chosen[1], chosen[2]


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """Values drawn black and white: the darkest percentile, and 99.5 % of what is not background.

    An image without two different finite values gets an interval of length 1.
    """
    values = image[np.isfinite(image)]
    if not values.size:
        return 0.0, 1.0
    head = values[values != values.min()]
    low = float(np.percentile(values, 1.0))
    high = float(np.percentile(head, 99.5)) if head.size else low
    return (low, high) if high > low else (low, low + 1.0)


def draw_panels(
    panels: Sequence[Sequence[Panel]],
    frame: Frame,
    *,
    title: str = "",
    key: Mapping[str, str | None] | None = None,
) -> Figure:
    """Lays rows of panels out on one scale in mm, so that every axes box has the true proportions.

    Args:
        panels: rows of panels, each row equally long.
        frame: how a volume is cut.
        title: a line above.
        key: name to colour, shown as legend; None is left out.
    """
    sizes = [[frame.size_mm(panel.axis) for panel in row] for row in panels]
    widths = [max(row[column][0] for row in sizes) for column in range(len(panels[0]))]
    heights = [max(height for _, height in row) for row in sizes]
    inch = _WIDTH_IN / (sum(widths) + _GAP_MM * (len(widths) + 1))  # per mm
    top = 0.72 if any(panel.heading for row in panels for panel in row) else 0.48
    below, bottom = 0.28, 0.45
    height_in = top + sum(heights) * inch + below * len(heights) + bottom
    figure = Figure(figsize=(_WIDTH_IN, height_in), facecolor=_PAPER)
    y = height_in - top
    for row, row_sizes, height in zip(panels, sizes, heights, strict=True):
        y -= height * inch
        x = _GAP_MM * inch
        for panel, (w, h), width in zip(row, row_sizes, widths, strict=True):
            left = x + (width - w) / 2 * inch
            box = (left / _WIDTH_IN, y / height_in, w * inch / _WIDTH_IN, h * inch / height_in)
            axes = figure.add_axes(box)
            _draw_panel(axes, panel, frame)
            if panel is panels[0][0]:
                _scale_bar(axes, w)
            if panel.heading:
                middle, above = (x + width / 2 * inch) / _WIDTH_IN, (height_in - top + 0.08) / height_in
                figure.text(
                    middle, above, panel.heading, color=_INK, fontsize=10.5, ha="center", parse_math=False
                )
            x += (width + _GAP_MM) * inch
        y -= below
    _headline(figure, title, frame.side, _GAP_MM * inch)
    _legend(figure, key or {}, _GAP_MM * inch)
    return figure


def strip(frame: Frame, labels: np.ndarray, colours: Sequence[str | None], width_px: int) -> np.ndarray:
    """The three planes side by side without a word, labels as outlines one pixel wide: for small pictures.

    Args:
        frame: how a volume is cut.
        labels: class per voxel, (x, y, z).
        colours: colour of class i at place i; None is not drawn.
        width_px: of the whole strip.

    Returns:
        uint8 (rows, ``width_px``, rgb), black around the planes.
    """
    gap = 6
    sizes = [frame.size_mm(axis) for axis in PLANE_ORDER]
    per_mm = (width_px - gap * (len(sizes) - 1)) / sum(width for width, _ in sizes)
    strip_ = np.zeros((max(round(height * per_mm) for _, height in sizes), width_px, 3))
    left = 0.0
    for axis, (width, height) in zip(PLANE_ORDER, sizes, strict=True):
        shape = round(height * per_mm), round(width * per_mm)
        grey = _sized(_windowed(frame.cut(frame.image, axis), frame.window), shape, order=1)
        plane = np.repeat(grey[..., None], 3, axis=-1)
        of = _sized(frame.cut(labels, axis), shape, order=0)
        for index, colour in enumerate(colours):
            inside = of == index
            if colour is not None:
                plane[inside & ~ndimage.binary_erosion(inside)] = to_rgb(colour)
        top, start = (strip_.shape[0] - shape[0]) // 2, round(left)
        strip_[top : top + shape[0], start : start + shape[1]] = plane[:, : width_px - start]
        left += width * per_mm + gap
    return np.round(255 * strip_).astype(np.uint8)


def _sized(plane: np.ndarray, shape: tuple[int, int], *, order: int) -> np.ndarray:
    """The plane in another number of pixels; their centres lie evenly in the same rectangle."""
    rows, columns = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(shape, plane.shape, strict=True))
    at = np.meshgrid(rows, columns, indexing="ij")
    return ndimage.map_coordinates(plane, at, order=order, mode="nearest")


def _headline(figure: Figure, title: str, side: str, edge_in: float) -> None:
    x, y = edge_in / _WIDTH_IN, 1 - 0.14 / figure.get_figheight()
    figure.text(x, y, title, color=_INK, fontsize=12.5, fontweight="bold", va="top", parse_math=False)
    left_is = "right" if side == "radiological" else "left"
    stated = f"{side}: the patient's left is on the {left_is}"
    figure.text(1 - x, y, stated, color=_FAINT, fontsize=9, va="top", ha="right")


def _legend(figure: Figure, key: Mapping[str, str | None], edge_in: float) -> None:
    handles = [Patch(color=colour, label=name) for name, colour in key.items() if colour is not None]
    if not handles:
        return
    legend = figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(edge_in / _WIDTH_IN, 0.14 / figure.get_figheight()),
        ncols=len(handles),
        fontsize=10,
        labelcolor=_INK,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.8,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(axes: Any, panel: Panel, frame: Frame) -> None:
    axes.set_axis_off()
    grey = _windowed(frame.cut(frame.image, panel.axis), frame.window) * panel.dim
    picture = np.repeat(grey[..., None], 3, axis=-1)  # (rows, columns, rgb)
    if panel.ct_hu is not None:
        tint = np.array([1.0, 0.86, 0.62])  # tells a CT tile from an MR tile
        ct = _windowed(frame.cut(panel.ct_hu, panel.axis), (-600.0, 1200.0))[..., None] * tint
        picture = np.where(frame.tiles(panel.axis)[..., None], ct, picture)
    axes.imshow(picture, aspect="auto", interpolation="bilinear")
    for layer in panel.layers:
        plane = frame.cut(layer.labels, panel.axis)
        if panel.style != "contour":
            filled = _filled(plane, layer, 0.6 if panel.style == "both" else 1.0)
            axes.imshow(filled, aspect="auto", interpolation="nearest")
        if panel.style != "fill":
            _contours(axes, plane, layer.colours)
    rows, columns = grey.shape
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    here = {"transform": axes.transAxes, "fontsize": 9, "va": "top", "parse_math": False}
    left, right = frame.marks(panel.axis)
    axes.text(0.015, 0.985, left, color=_INK, ha="left", **here)
    axes.text(0.985, 0.985, right, color=_INK, ha="right", **here)
    axes.annotate(
        panel.note, (0, 0), (0, -3), xycoords="axes fraction", textcoords="offset points",
        color=_FAINT, fontsize=9, va="top", parse_math=False,
    )  # fmt: skip


def _filled(plane: np.ndarray, layer: Layer, strength: float) -> np.ndarray:
    table = np.zeros((256, 4), np.float32)
    for index, (colour, alpha) in enumerate(zip(layer.colours, layer.alphas, strict=True)):
        if colour is not None:
            table[index] = (*to_rgb(colour), alpha * strength)
    return table[plane.astype(np.uint8)]  # (rows, columns, rgba)


def _contours(axes: Any, plane: np.ndarray, colours: Sequence[str | None]) -> None:
    for index, colour in enumerate(colours):
        inside = plane == index
        if colour is not None and min(plane.shape) > 1 and inside.any() and not inside.all():
            axes.contour(inside.astype(float), levels=[0.5], colors=[colour], linewidths=1.1)


def _scale_bar(axes: Any, width_mm: float, length_mm: float = 50.0) -> None:
    if width_mm < 2 * length_mm:
        return
    start, end = 0.985 - length_mm / width_mm, 0.985
    edge = [withStroke(linewidth=3.0, foreground=_PAPER)]  # legible over a bright scalp
    here = {"transform": axes.transAxes, "color": _INK, "path_effects": edge}
    axes.plot((start, end), (0.012, 0.012), linewidth=1.6, **here)
    axes.text((start + end) / 2, 0.022, f"{length_mm:g} mm", fontsize=8, ha="center", va="bottom", **here)


def _windowed(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Grey values from 0 to 1; NaN is black."""
    low, high = window
    return np.nan_to_num(np.clip((np.asarray(image, np.float32) - low) / (high - low), 0, 1), nan=0.0)


def _bounding_box(
    image: np.ndarray, labels: np.ndarray, spacing_mm: Sequence[float], window: tuple[float, float]
) -> tuple[slice, slice, slice]:
    """The head and 4 mm around it."""
    low, high = window
    with np.errstate(invalid="ignore"):
        inside = (image > low + 0.12 * (high - low)) | ((labels > 0) & (labels != IGNORE_LABEL))
    box = []
    for axis in range(3):
        # A slice with few bright voxels holds noise or an artefact, not the head.
        areas = np.count_nonzero(inside, axis=tuple(a for a in range(3) if a != axis))
        kept = np.flatnonzero(areas > 0.01 * areas.max())
        pad = int(np.ceil(4.0 / spacing_mm[axis]))
        first, last = (int(kept[0]), int(kept[-1])) if kept.size else (0, image.shape[axis] - 1)
        box.append(slice(max(0, first - pad), min(image.shape[axis], last + pad + 1)))
    return box[0], box[1], box[2]
