"""The quality page of prepared scans: a row a scan, with what speaks for and against it.

Figures are measured once and kept with the labels; the warnings are read off them by the limits below, so
that a page written again judges old figures by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mrseg.data.geometry import Volume, head_mask, to_canonical, voxel_sizes
from mrseg.report import Details, Picture, Section, write_report
from mrseg.tables import Column, Missing, Table, table

Row = Mapping[str, Any]

#: Beyond these a figure is warned of. They are rules of thumb, chosen on the built-in phantom and the scans
#: that docs/results/real_scans.md names; none comes from a paper.
LIMITS = {
    "overlap": 0.9,  # of the MR's field of view that the CT must show
    "mutual_information_gain": 1.0,  # after over before
    "jacobian_min": 0.4,  # smallest local change of volume ...
    "jacobian_max": 2.5,  # ... and largest
    "class_fraction": 0.005,  # of the voxels judged
    "anisotropy": 4.0,  # largest voxel size over smallest
    "oblique_deg": 15.0,  # between a voxel axis and the nearest axis of the body
    "cut": 0.05,  # of the head's largest section, on a face of the field of view
    "brightest": 20.0,  # highest value over the 99.9th percentile
    "levels": 32,  # different values
}
#: Faces of the field of view, as canonical axis and end. Below, the neck is cut on every head.
_FACES = {"left": (0, 0), "right": (0, -1), "back": (1, 0), "front": (1, -1), "top": (2, -1)}

_COLUMNS = (
    Column("subject"),
    Column("sequence"),
    Column("picture", "bone on the MR"),
    Column("warnings"),
    Column("grid"),
    Column("intensity"),
    Column("mutual_information_before", "MI before", "nat", group="registration"),
    Column("mutual_information_after", "MI after", "nat", group="registration"),
    Column("overlap", "overlap", decimals=2, group="registration"),
    Column("jacobian", "Jacobian", group="registration"),
)


def scan_figures(volume: Volume) -> dict[str, Any]:
    """Measures what can be told of a scan without its CT.

    Args:
        volume: image (x, y, z), finite and not constant, and its affine.

    Returns:
        ``shape``, ``spacing_mm`` and ``orientation`` (``RAS``: where the axes point) as text;
        ``oblique_deg``, the largest angle between a voxel axis and the nearest axis of the body;
        ``intensity_min``, ``_low`` (0.1 %), ``_high`` (99.9 %) and ``_max``; ``levels``, the number of
        different values; ``cut_left``, ``cut_right``, ``cut_back``, ``cut_front``, ``cut_top``: the area of
        head on that face of the field of view, as a share of the head's largest section parallel to it.
    """
    array, affine = volume
    sizes = voxel_sizes(affine)
    low, high = np.percentile(array, (0.1, 99.9))
    cosines = np.abs(affine[:3, :3] / sizes).max(axis=0)
    figures: dict[str, Any] = {
        "shape": "x".join(map(str, array.shape)),
        "spacing_mm": "x".join(f"{size:.3g}" for size in sizes),
        "orientation": "".join(nibabel.aff2axcodes(affine)),
        "oblique_deg": float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max()),
        "intensity_min": float(array.min()),
        "intensity_low": float(low),
        "intensity_high": float(high),
        "intensity_max": float(array.max()),
        "levels": len(np.unique(array)),
    }
    head = head_mask(to_canonical(volume)[0])
    for face, (axis, end) in _FACES.items():
        areas = head.sum(axis=tuple({0, 1, 2} - {axis}))
        figures[f"cut_{face}"] = float(areas[end] / max(int(areas.max()), 1))
    return figures


def warnings_of(row: Row) -> tuple[str, ...]:
    """What speaks against a scan's labels, most serious first; empty if nothing does.

    Args:
        row: figures of `scan_figures`, of `mrseg.data.registration.Registration.quality` (of a CT that was
            registered), ``fraction_<class>`` of every class, ``ignored``; or ``refused``, the reason why
            there are no labels. A figure that is not there is not judged.
    """
    if row.get("refused"):
        return (f"Refused: {row['refused']}",)
    return (*_registration_warnings(row), *_label_warnings(row), *_scan_warnings(row))


def write_quality(rows: Sequence[Row], output: Path, provenance: Mapping[str, Any]) -> Path:
    """Writes ``quality.html``, one self-contained page.

    Args:
        rows: as `warnings_of` takes them, each with ``subject`` and ``sequence``, and with ``thumbnail`` and
            ``picture``: files below ``output``, the one shown and the one that a click on it opens.
        output: folder.
        provenance: shown folded at the end.

    Returns:
        The page.
    """
    warned = sum(bool(warnings_of(row)) for row in rows)
    refused = sum(bool(row.get("refused")) for row in rows)
    subjects = len({row["subject"] for row in rows})
    verdict = f"{_count(len(rows), 'scan')} of {_count(subjects, 'subject')}: "
    verdict += f"{warned} with warnings" if warned else "no warnings"
    verdict += f", {refused} refused." if refused else "."
    limits = {name: f"{value:g}: {_MEANINGS[name]}." for name, value in LIMITS.items()}
    return write_report(
        output / "quality.html",
        title="Quality of the prepared scans",
        summary=(
            verdict,
            "No warning is no proof that a registration is accurate: look at the pictures. A click opens the "
            "CT's bone over the MR and a checkerboard of both.",
        ),
        sections=[
            Section("Scans", (_table(rows, output),)),
            Section("Limits", (Details("What is warned of", (limits,)),)),
        ],
        provenance=provenance,
    )


#: What each limit means, for the page.
_MEANINGS = {
    "overlap": "smallest share of the MR's field of view that the CT shows; what lies outside is 255",
    "mutual_information_gain": "smallest mutual information after the registration over that before",
    "jacobian_min": "smallest local change of volume by the registration; 1 keeps it",
    "jacobian_max": "largest local change of volume",
    "class_fraction": "smallest share of a class in the voxels judged",
    "anisotropy": "largest over smallest voxel size",
    "oblique_deg": "largest turn of the voxel axes against the body's, in degrees",
    "cut": "largest area of head on a face of the field of view, over the head's largest parallel section",
    "brightest": "highest value over the 99.9th percentile",
    "levels": "smallest number of different values",
}


def _table(rows: Sequence[Row], output: Path) -> Table:
    classes = dict.fromkeys(key for row in rows for key in row if key.startswith("fraction_"))
    columns = [
        *_COLUMNS,
        *(Column(k, k.removeprefix("fraction_"), group="share of the voxels") for k in classes),
        *([Column("ignored", "255", group="share of the voxels")] if classes else []),
    ]
    shown = [_shown(row, output) for row in rows]
    present = {key for row in shown for key in row}
    return table(
        shown,
        [column for column in columns if column.key in present],
        caption="Every scan and the labels made for it.",
        note="Grid: voxels, their size in mm, where the axes point. Intensity: 0.1 and 99.9 %. "
        "MI: mutual information of MR and CT. Jacobian: local change of volume, smallest and largest. "
        "Shares of the classes are of the voxels judged, that of 255 (outside the CT) of all.",
    )


def _shown(row: Row, output: Path) -> dict[str, Any]:
    shown = {key: value for key, value in row.items() if key not in ("picture", "thumbnail")}
    shown["warnings"] = warnings_of(row) or ("none",)
    if "shape" in row:
        grid = (row[key].replace("x", " x ") for key in ("shape", "spacing_mm", "orientation"))
        shown["grid"] = tuple(grid)
        shown["intensity"] = f"{row['intensity_low']:.4g}", f"{row['intensity_high']:.4g}"
    if "jacobian_min" in row:
        shown["jacobian"] = f"{row['jacobian_min']:.2f}", f"{row['jacobian_max']:.2f}"
    elif not row.get("refused"):
        for key in ("mutual_information_before", "mutual_information_after", "overlap", "jacobian"):
            shown[key] = Missing("the CT lay on the MR's grid already")
    small = output / row["thumbnail"] if row.get("thumbnail") else None
    if small is not None and small.is_file():
        title = f"{row['subject']}, {row['sequence']}"
        shown["picture"] = Picture(title, small.read_bytes(), link=Path(row["picture"]).as_posix())
    return shown


def _registration_warnings(row: Row) -> list[str]:
    if "overlap" not in row:
        return []
    told = []
    if row["overlap"] < LIMITS["overlap"]:
        told.append(f"The CT shows {row['overlap']:.0%} of the MR's field of view; the rest is 255.")
    before, after = row["mutual_information_before"], row["mutual_information_after"]
    if after < LIMITS["mutual_information_gain"] * before:
        told.append(
            f"Mutual information fell, from {before:.3f} to {after:.3f}: was the CT in place already?"
        )
    if row["jacobian_min"] < LIMITS["jacobian_min"] or row["jacobian_max"] > LIMITS["jacobian_max"]:
        told.append(f"Volumes change up to {row['jacobian_min']:.2f} and {row['jacobian_max']:.2f} times.")
    return told


def _label_warnings(row: Row) -> list[str]:
    fractions = {k.removeprefix("fraction_"): v for k, v in row.items() if k.startswith("fraction_")}
    if fractions and all(value is None or math.isnan(value) for value in fractions.values()):
        return ["No voxel has a class: all are 255."]
    return [
        f"Only {value:.2%} of the voxels are {name}." if value else f"No voxel is {name}."
        for name, value in fractions.items()
        if value < LIMITS["class_fraction"]
    ]


def _scan_warnings(row: Row) -> list[str]:
    if "shape" not in row:
        return []
    told = []
    cut = [face for face in _FACES if row[f"cut_{face}"] > LIMITS["cut"]]
    if cut:
        told.append(f"The field of view cuts the head: {', '.join(cut)}.")
    sizes = [float(size) for size in row["spacing_mm"].split("x")]
    if max(sizes) / min(sizes) > LIMITS["anisotropy"]:
        told.append(f"Voxels are {max(sizes) / min(sizes):.1f} times longer than wide.")
    if row["oblique_deg"] > LIMITS["oblique_deg"]:
        told.append(f"The voxel axes are turned by {row['oblique_deg']:.0f} degrees against the body's.")
    if row["intensity_min"] < 0:
        told.append(f"Intensities go down to {row['intensity_min']:.4g}; a magnitude image has none below 0.")
    if row["levels"] < LIMITS["levels"]:
        told.append(f"The image has {row['levels']} different values only: is it a label map?")
    elif row["intensity_max"] > LIMITS["brightest"] * max(row["intensity_high"], 0):
        told.append(f"A few voxels reach {row['intensity_max']:.4g}, far above the rest: artefacts?")
    return told


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
