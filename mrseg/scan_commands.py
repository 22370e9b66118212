"""The commands about scans themselves: series, convert, phantom."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrseg._checks import error
from mrseg.commands import AddCommand, check_output

PHANTOM = """\
Writes a cohort of synthetic heads as own scans would lie on disk: NIfTI files with a manifest, each head
with an unregistered CT. To try commands on; figures from them say nothing about patients.

  mrseg phantom --output scans --sequences T2w --train 6
  mrseg phantom --output heads --sequences T1w T2w --train 4 --test 2 --labels attenuation
"""

SERIES = """\
Lists the series in a folder of DICOM files and below: description, modality, files, columns x rows x files,
UID. Names, dates and identifiers of the patient are not shown.

  mrseg series study
"""

CONVERT = """\
Writes any scan that mrseg reads as NIfTI on its own grid: MGZ, NRRD, MetaImage, NIfTI, or one series of a
folder of DICOM files. A gantry tilt is kept in the affine. Slices at unequal distances have no such
grid; they are refused, or interpolated from slice to slice with --resample-spacing (alone: the median of the
distances).

  mrseg convert study --series "AX T2" --output t2.nii.gz
  mrseg convert ct_folder --resample-spacing --output ct.nii.gz
  mrseg convert ct_folder --resample-spacing 5 --output ct.nii.gz
"""


def add_scan_commands(command: AddCommand) -> None:
    """Adds the parsers, each made by ``command``."""
    series = command("series", _series, "list the series of a DICOM folder", SERIES)
    series.add_argument("folder", type=Path, help="folder of DICOM files")
    convert = command("convert", _convert, "write a scan or a DICOM series as NIfTI", CONVERT)
    convert.add_argument("input", type=Path, help="scan of any format, or folder of DICOM files")
    convert.add_argument("--output", type=Path, required=True, help="image to write, .nii or .nii.gz")
    convert.add_argument("--series", help="description or UID of one of several series")
    convert.add_argument(
        "--resample-spacing", type=_spacing, nargs="?", const="median", metavar="MM",
        help="bring slices at unequal distances to this one (default: the median)",
    )  # fmt: skip
    convert.add_argument(
        "--tolerance-mm", type=float, default=0.01,
        help="distance of a slice from an even grid that counts as rounding (default: 0.01)",
    )  # fmt: skip
    phantom = command("phantom", _phantom, "write synthetic heads to try commands on", PHANTOM)
    phantom.add_argument("--output", type=Path, required=True, help="folder")
    phantom.add_argument(
        "--sequences", nargs="+", default=["T1w"], choices=("T1w", "T2w", "dsc"), help="default: T1w"
    )
    for split in ("train", "val", "test"):
        phantom.add_argument(
            f"--{split}", type=int, default=0, metavar="N", help=f"heads of the split {split}"
        )
    phantom.add_argument(
        "--shape", type=int, nargs=3, default=(64, 64, 48), metavar=("X", "Y", "Z"),
        help="voxels (default: 64 64 48)",
    )  # fmt: skip
    phantom.add_argument(
        "--labels", choices=("attenuation", "tissue", "brain", "structures"),
        help="write true labels too (default: none)",
    )  # fmt: skip
    phantom.add_argument(
        "--weeks", type=float, help="make newborns of this postmenstrual age, 28 to 44 (default: adults)"
    )
    phantom.add_argument("--prefix", default="phantom", help="of the heads' names (default: phantom)")
    phantom.add_argument("--seed", type=int, default=0, help="other seeds make other heads (default: 0)")


def _series(options: argparse.Namespace) -> None:
    from mrseg.data.dicom import list_series
    from mrseg.formats import to_text
    from mrseg.tables import table

    rows = [
        {
            "description": series.description,
            "modality": series.modality,
            "files": len(series.files),
            "shape": "x".join(map(str, series.shape)),
            "UID": series.uid,
        }
        for series in list_series(options.folder)
    ]
    print(to_text(table(rows, caption=f"{len(rows)} series.")))


def _spacing(text: str) -> float | str:
    return text if text == "median" else float(text)


def _convert(options: argparse.Namespace) -> None:
    from mrseg.conversion import convert_scan
    from mrseg.data.geometry import voxel_sizes

    check_output(options.output, options.input)
    array, affine = convert_scan(
        options.input,
        options.output,
        series=options.series,
        spacing_mm=options.resample_spacing,
        tolerance_mm=options.tolerance_mm,
    )
    shape = "x".join(map(str, array.shape))
    print(f"{shape} voxels of {' x '.join(f'{size:.4g}' for size in voxel_sizes(affine))} mm")
    print(f"image: {options.output}")


def _phantom(options: argparse.Namespace) -> None:
    from mrseg.data.phantom import write_cohort

    subjects = {
        split: getattr(options, split) for split in ("train", "val", "test") if getattr(options, split)
    }
    if not subjects:
        raise error("A cohort has at least one head.", "none", "Add --train 4, --val 1 or --test 2.")
    manifest = write_cohort(
        options.output,
        subjects=subjects,
        sequences=options.sequences,
        shape=options.shape,
        seed=options.seed,
        labels=options.labels or False,
        weeks=options.weeks,
        prefix=options.prefix,
    )
    count = sum(subjects.values())
    print(f"{count} head{'s' if count > 1 else ''}: {manifest}")
