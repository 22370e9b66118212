"""Pictures of volumes: labels over an image, truth beside prediction, a CT's bone over an MR image.

All arrays are canonical RAS+ ``(x, y, z)`` on one grid. Every function returns a matplotlib Figure that
belongs to no window and no global state; `to_png` and `save_png` turn it into a picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from mrseg._checks import IGNORE_LABEL, choice, error
from mrseg._files import atomic_file
from mrseg.data.labels import CLASS_COLOURS, OKABE_ITO, class_colours
from mrseg.panels import PLANE_ORDER, Frame, Layer, Panel, View, draw_panels, slices_through, strip

__all__ = [
    "CLASS_COLOURS", "View", "class_colours", "comparison", "overlay", "registration_check", "save_png",
    "slices_through", "thumbnail", "to_png",
]  # fmt: skip

_MISSED, _ADDED = OKABE_ITO["vermillion"], OKABE_ITO["green"]
_DEFAULT = View()


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str],
    spacing_mm: Sequence[float],
    title: str = "",
    view: View = _DEFAULT,
) -> Figure:
    """Draws a label map over its image in three orthogonal planes, to scale.

    Args:
        image: grey values, (x, y, z); NaN is drawn black.
        labels: class index per voxel, (x, y, z); 255 (nobody may judge) is not drawn.
        class_names: the name of class i at place i.
        spacing_mm: voxel size along x, y, z in mm.
        title: a line above the picture.
        view: slices, side, style and colours.

    Raises:
        InputError: shapes differ, are not 3-D, a label is outside ``class_names``, or a view is unknown.

    Example:
        >>> figure = overlay(mr, labels, class_names=("air", "soft", "bone"), spacing_mm=(1, 1, 3))
        >>> save_png(figure, "overlay.png")
    """
    _check(spacing_mm, image=image, labels=labels)
    _check_labels("labels", labels, class_names)
    colours = class_colours(class_names, view.colours)
    frame = Frame(image, labels, _structure(labels, class_names, view.focus), spacing_mm, view)
    layers = (Layer(labels, colours, _alphas(labels, colours)),)
    panels = [Panel(axis, layers, frame.position(axis), style=view.style) for axis in PLANE_ORDER]
    return draw_panels([panels], frame, title=title, key=_key(class_names, colours))


def comparison(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    class_names: Sequence[str],
    spacing_mm: Sequence[float],
    title: str = "",
    view: View = _DEFAULT,
) -> Figure:
    """Draws image, truth, prediction and where they differ side by side, one row per plane.

    With ``view.focus`` the last column shows that class alone: voxels missed (in the truth only) and added
    (in the prediction only). Without, every voxel whose class differs. Voxels that the truth leaves unjudged
    (255) never differ.

    Args:
        image: grey values, (x, y, z).
        truth: true class per voxel, (x, y, z); 255 where nobody may judge.
        prediction: predicted class per voxel, (x, y, z).
        class_names: the name of class i at place i.
        spacing_mm: voxel size along x, y, z in mm.
        title: a line above the picture.
        view: slices, side, style, colours and focus. The slices are chosen on the truth.

    Raises:
        InputError: as `overlay`.

    Example:
        >>> figure = comparison(mr, truth, prediction, class_names=("air", "soft", "bone"),
        ...                     spacing_mm=(1, 1, 3), view=View(focus="bone"))
    """
    _check(spacing_mm, image=image, truth=truth, prediction=prediction)
    _check_labels("truth", truth, class_names)
    _check_labels("prediction", prediction, class_names)
    colours = class_colours(class_names, view.colours)
    alphas = _alphas(truth, colours)
    frame = Frame(image, truth, _structure(truth, class_names, view.focus), spacing_mm, view)
    errors, error_key = _errors(truth, prediction, class_names, view.focus)
    columns: dict[str, tuple[Layer, ...]] = {
        "image": (),
        "truth": (Layer(truth, colours, alphas),),
        "prediction": (Layer(prediction, colours, alphas),),
        "difference": (Layer(errors, (None, _MISSED, _ADDED), (0.0, 1.0, 1.0)),),
    }
    panels = [
        [
            Panel(
                axis,
                layers,
                note=frame.position(axis) if name == "image" else "",
                heading=name if axis == PLANE_ORDER[0] else "",
                style="fill" if name == "difference" else view.style,
                dim=0.55 if name == "difference" else 1.0,
            )
            for name, layers in columns.items()
        ]
        for axis in PLANE_ORDER
    ]
    return draw_panels(panels, frame, title=title, key={**_key(class_names, colours), **error_key})


def registration_check(
    fixed: np.ndarray,
    moving_hu: Mapping[str, np.ndarray],
    *,
    spacing_mm: Sequence[float],
    threshold_hu: float = 600.0,
    title: str = "",
    view: View = _DEFAULT,
) -> Figure:
    """Draws the outline of a CT's bone over the MR image, then both as a checkerboard.

    Args:
        fixed: the MR image, (x, y, z).
        moving_hu: CT in HU on the grid of ``fixed`` by the name of its row (``{"before": .., "after": ..}``);
            NaN outside the CT's field of view. The checkerboard shows the last.
        spacing_mm: voxel size along x, y, z in mm.
        threshold_hu: bone is above this.
        title: a line above the picture.
        view: slices and side; by default the slices run through the bone of the last CT.

    Raises:
        InputError: shapes differ or there is no CT.

    Example:
        >>> figure = registration_check(mr, {"before": ct_by_header, "after": ct_registered},
        ...                             spacing_mm=(1, 1, 3))
    """
    if not moving_hu:
        raise error("A registration check needs at least one CT image.", "none")
    _check(spacing_mm, fixed=fixed, **{f"CT {name!r}": ct for name, ct in moving_hu.items()})
    with np.errstate(invalid="ignore"):
        bones = {name: np.asarray(ct) > threshold_hu for name, ct in moving_hu.items()}
    last, bone = list(bones.items())[-1]
    frame = Frame(fixed, bone, bone, spacing_mm, view)
    colours = (None, OKABE_ITO["orange"])
    first = PLANE_ORDER[0]
    panels = [
        [
            Panel(a, (Layer(mask, colours, (0, 1)),), note=name if a == first else "", style="contour")
            for a in PLANE_ORDER
        ]
        for name, mask in bones.items()
    ]
    note = f"{last}: tiles of MR (grey) and CT (tinted)"
    panels.append([Panel(a, note=note if a == first else "", ct_hu=moving_hu[last]) for a in PLANE_ORDER])
    key = {f"bone of the CT, above {threshold_hu:g} HU": colours[1]}
    return draw_panels(panels, frame, title=title, key=key)


def thumbnail(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str],
    spacing_mm: Sequence[float],
    width_px: int = 420,
    view: View = _DEFAULT,
) -> bytes:
    """Draws outlines of labels over an image in three planes, small and without a word.

    Args:
        image, labels, class_names, spacing_mm: as for `overlay`.
        width_px: of the picture.
        view: slices, side and colours.

    Returns:
        PNG.
    """
    _check(spacing_mm, image=image, labels=labels)
    _check_labels("labels", labels, class_names)
    frame = Frame(image, labels, _structure(labels, class_names, view.focus), spacing_mm, view)
    buffer = io.BytesIO()
    colours = class_colours(class_names, view.colours)
    imsave(buffer, strip(frame, labels, colours, width_px), format="png", metadata={"Software": "mrseg"})
    return buffer.getvalue()


def to_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """The figure as PNG, 200 dpi being sharp on a high-resolution screen; same figure, same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: str | Path, *, dpi: int = 200) -> Path:
    """Writes the figure as PNG, whole or not at all, and returns the path."""
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_bytes(to_png(figure, dpi=dpi))
    return path


def _alphas(labels: np.ndarray, colours: Sequence[str | None]) -> tuple[float, ...]:
    """Opacity of each class: a class that covers most of the head is faint, a thin one is strong."""
    counts = np.bincount(labels.ravel().astype(np.uint8), minlength=256)[: len(colours)]
    drawn = sum(int(n) for n, colour in zip(counts, colours, strict=True) if colour is not None)
    return tuple(0.62 - 0.34 * int(n) / max(drawn, 1) if c is not None else 0.0
                 for n, c in zip(counts, colours, strict=True))  # fmt: skip


def _errors(
    truth: np.ndarray, prediction: np.ndarray, class_names: Sequence[str], focus: str | None
) -> tuple[np.ndarray, dict[str, str | None]]:
    """0 where both agree, 1 missed (or different, without a focus), 2 added; and what the colours mean."""
    judged = truth != IGNORE_LABEL
    if focus is None:
        return (judged & (truth != prediction)).astype(np.uint8), {"differs": _MISSED}
    index = list(class_names).index(focus)
    missed = judged & (truth == index) & (prediction != index)
    added = judged & (truth != index) & (prediction == index)
    return missed + 2 * added.astype(np.uint8), {f"{focus} missed": _MISSED, f"{focus} added": _ADDED}


def _key(class_names: Sequence[str], colours: Sequence[str | None]) -> dict[str, str | None]:
    return dict(zip(class_names, colours, strict=True))


def _structure(labels: np.ndarray, class_names: Sequence[str], focus: str | None) -> np.ndarray:
    """The voxels that the slices run through: of the focus or, if it is nowhere, of all but class 0."""
    if focus is not None:
        mask = labels == list(class_names).index(choice("View.focus", focus, class_names))
        if mask.any():
            return mask
    return (labels > 0) & (labels != IGNORE_LABEL)


def _check(spacing_mm: Sequence[float], **volumes: np.ndarray) -> None:
    first, *others = volumes
    shape = np.shape(volumes[first])
    if len(shape) != 3 or 0 in shape:
        raise error(f"{first} is a volume (x, y, z).", f"shape {shape}")
    for name in others:
        if np.shape(volumes[name]) != shape:
            raise error(
                f"{first} and {name} lie on one grid.",
                f"shapes {shape} and {np.shape(volumes[name])}",
                "Resample one onto the grid of the other (mrseg.data.geometry.resample).",
            )
    if len(tuple(spacing_mm)) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in spacing_mm):
        raise error("spacing_mm is three positive numbers, in mm.", repr(spacing_mm))


def _check_labels(name: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise error(f"{name} holds whole numbers (class indices).", f"dtype {labels.dtype}")
    outside = np.setdiff1d(np.unique(labels), [*range(len(class_names)), IGNORE_LABEL])
    if outside.size:
        raise error(
            f"{name} holds the index of a class ({', '.join(class_names)}) or {IGNORE_LABEL} (not judged).",
            f"class {outside.tolist()}",
        )
