"""The commands on labels and series that need no network: clean, attenuation, brainmask, perfusion."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mrseg import __version__
from mrseg._checks import error

_LOGGER = logging.getLogger(__name__)

#: Makes a parser: (name, what runs, one line, text of --help).
AddCommand = Callable[[str, Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]


def add_workers(parser: argparse.ArgumentParser, default: int = 1) -> None:
    """Adds the options of commands whose work is shared: on this machine, or on a cluster."""
    told = "1" if default == 1 else "one a core"
    parser.add_argument(
        "--workers", type=int, default=default, help=f"processes that share the cores (default: {told})"
    )
    parser.add_argument("--scheduler", default="", metavar="ADDRESS", help="of Dask, instead of --workers")


def add_segmenter(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Adds ``--segmenter``, which takes one, or a list of one or more."""
    more = "; of several, the mean probabilities" if several else ""
    parser.add_argument(
        "--segmenter", type=Path, required=True, nargs="+" if several else None,
        help=f"its folder, or a name of `mrseg weights`{more}",
    )  # fmt: skip


CLEAN = """\
Classes are numbers of the label map; sizes are in mm. The steps run in the order of the options below; at
least one is needed. Voxels of 255 stay as they are. A removed voxel takes the class around its piece.

  mrseg clean --input t2_dseg.nii.gz --output t2_clean_dseg.nii.gz \\
      --largest-component 1 --min-volume-mm3 0 0 200
"""

ATTENUATION = """\
The linear attenuation coefficient at 511 keV in 1/cm of every voxel, for PET reconstruction: from a label map
of air, soft tissue and bone (the pseudo map), or from a CT by the bilinear rule of its tube voltage.

  mrseg attenuation --ct ct.nii.gz --kvp 120 --output mu_ct.nii.gz
  mrseg attenuation --labels t2_dseg.nii.gz --output mu.nii.gz --reference ct.nii.gz --kvp 120

With --reference the map is compared, inside the head, with that of a CT on the same grid.
"""

BRAINMASK = """\
Masks the brain of a T2*-w (or T2-w) scan slice by slice, without a network. The brain must be brighter than
the skull, and the slices transversal. Of a series the fourth time point is taken, before the bolus.

  mrseg brainmask --input dsc.nii.gz --method cusum --output dsc_brain.nii.gz

methods: otsu (one threshold; keeps the scalp), aabl (threshold and opening in an ellipse), cusum (tracks the
brain's edge). Look at the picture before using a mask.
"""

PERFUSION = """\
From a T2*-w series to the curve of a region: motion correction if asked for, brain mask, mean signal and
change of R2* of every time point. Time points are counted from 0.

  mrseg perfusion --input dsc.nii.gz --te-ms 45 --interval-s 1.5 --baseline 3-8 --motion --output runs/dsc
  mrseg perfusion --input dsc.nii.gz --te-ms 45 --baseline 3-8 --mask lesion.nii.gz --output runs/lesion

Written are curve.csv, curve.png, curve.json (the settings); mask.nii.gz with mask.png unless --mask is given;
motion.csv with --motion.
"""


def add_commands(command: AddCommand) -> None:
    """Adds the parsers, each made by ``command``."""
    clean = command("clean", _clean, "remove stray pieces and holes from a label map", CLEAN)
    clean.add_argument("--input", type=Path, required=True, help="label map, of any format")
    clean.add_argument("--output", type=Path, required=True, help="cleaned label map to write")
    clean.add_argument(
        "--stray-regions", action="store_true",
        help="in each slice: remove regions that are tiny or not over the middle slice's (xu2017)",
    )  # fmt: skip
    clean.add_argument(
        "--slice-axis", type=int, default=2, choices=(0, 1, 2), help="for --stray-regions (default: 2)"
    )
    clean.add_argument("--min-area-mm2", type=float, default=5.0, help="for --stray-regions (default: 5)")
    clean.add_argument(
        "--min-overlap", type=float, default=0.8, help="for --stray-regions, 0 to 1 (default: 0.8)"
    )
    clean.add_argument(
        "--largest-foreground", action="store_true", help="keep the largest piece of all but class 0"
    )
    clean.add_argument(
        "--largest-component", type=int, nargs="+", default=(), metavar="CLASS",
        help="keep the largest piece of each of these classes",
    )  # fmt: skip
    clean.add_argument(
        "--min-volume-mm3", type=float, nargs="+", default=(), metavar="MM3",
        help="smallest volume of a piece, one number per class from class 0; 0 keeps all",
    )  # fmt: skip
    clean.add_argument(
        "--fill-holes", type=int, nargs="+", default=(), metavar="CLASS", help="fill what these enclose"
    )
    clean.add_argument(
        "--replacement", choices=("neighbours", "background"), default="neighbours",
        help="what a removed voxel becomes (default: neighbours)",
    )  # fmt: skip

    mu = command("attenuation", _attenuation, "make an attenuation map from labels or from CT", ATTENUATION)
    source = mu.add_mutually_exclusive_group(required=True)
    source.add_argument("--labels", type=Path, help="label map: 0 air, 1 soft tissue, 2 bone")
    source.add_argument("--ct", type=Path, help="CT in Hounsfield units")
    mu.add_argument("--output", type=Path, required=True, help="map to write, .nii or .nii.gz, 1/cm")
    mu.add_argument("--kvp", type=int, help="tube voltage of the CT: 80, 100, 110, 120, 130 or 140")
    mu.add_argument(
        "--mu-per-cm", type=float, nargs="+", metavar="MU",
        help="coefficient of class 0, 1, ... (default: 0 0.096 0.151)",
    )  # fmt: skip
    mu.add_argument("--outside", type=float, help="coefficient where none is known (255, outside the CT)")
    mu.add_argument("--reference", type=Path, help="CT on the grid of the labels to compare with")

    mask = command("brainmask", _brainmask, "mask the brain without a network", BRAINMASK)
    mask.add_argument("--input", type=Path, required=True, help="scan or series of any format")
    mask.add_argument("--output", type=Path, required=True, help="mask to write, .nii or .nii.gz")
    curve = command("perfusion", _perfusion, "draw the curve of a DSC perfusion series", PERFUSION)
    curve.add_argument("--input", type=Path, required=True, help="series (x, y, z, t) of any format")
    curve.add_argument("--output", type=Path, required=True, help="folder")
    curve.add_argument("--te-ms", type=float, required=True, help="echo time in ms")
    curve.add_argument("--interval-s", type=float, help="seconds between volumes (default: the header's)")
    curve.add_argument(
        "--baseline", required=True, metavar="FIRST-LAST",
        help="time points before the bolus and after the signal has settled: 3-8, or 3,4,7",
    )  # fmt: skip
    curve.add_argument("--motion", action="store_true", help="bring all time points onto --time-point first")
    region = curve.add_mutually_exclusive_group()
    region.add_argument("--mask", type=Path, help="region: voxels above 0 (but 255) of this label map")
    for parser in (mask, region):
        parser.add_argument(
            "--method", default="cusum", choices=("otsu", "aabl", "cusum"), help="default: cusum"
        )
    for parser in (mask, curve):
        parser.add_argument(
            "--time-point", type=int, default=3, metavar="T",
            help="of a series: the one that is masked, from 0 (default: 3, the fourth)",
        )  # fmt: skip


def _clean(options: argparse.Namespace) -> None:
    import numpy as np

    from mrseg.data.geometry import voxel_sizes
    from mrseg.data.io import read_labels, write_labels
    from mrseg.postprocess import Postprocessing

    check_output(options.output, options.input)
    steps = Postprocessing(
        stray_regions=options.stray_regions,
        slice_axis=options.slice_axis,
        min_area_mm2=options.min_area_mm2,
        min_overlap=options.min_overlap,
        largest_foreground=options.largest_foreground,
        largest_component=tuple(options.largest_component),
        min_volume_mm3=tuple(options.min_volume_mm3),
        fill_holes=tuple(options.fill_holes),
        replacement=options.replacement,
    )
    asked = ("stray_regions", "largest_foreground", "largest_component", "min_volume_mm3", "fill_holes")
    if not any(getattr(steps, name) for name in asked):
        raise error(
            "mrseg clean needs a step.",
            "none",
            f"Name one of {', '.join('--' + name.replace('_', '-') for name in asked)}.",
        )
    labels, affine = read_labels(options.input)
    names, source = _label_table(options.input)
    cleaned = steps(labels, voxel_sizes(affine))
    highest = int(max(labels[labels < 255].max(initial=0), cleaned[cleaned < 255].max(initial=0)))
    names = [*names, *(f"class {c}" for c in range(len(names), highest + 1))]
    provenance = {"input": options.input.name, "steps": vars(steps), "source": source, **_version()}
    write_labels(options.output, cleaned, affine, names, provenance)
    print(f"changed: {np.count_nonzero(cleaned != labels):,} of {labels.size:,} voxels")
    print(f"label map: {options.output}")


def _attenuation(options: argparse.Namespace) -> None:
    import numpy as np

    from mrseg.attenuation import mu_from_hu
    from mrseg.data.io import read_ct, scan_name, write_volume

    source = options.labels or options.ct
    check_output(options.output, source, options.reference)
    if options.ct and (options.reference or options.mu_per_cm):
        raise error("--reference and --mu-per-cm belong to --labels.", f"--ct {options.ct}")
    if (options.ct or options.reference) and options.kvp is None:
        raise error(
            "A CT needs its tube voltage.", "no --kvp", "The DICOM tag KVP (0018,0060); most often 120."
        )
    if options.outside is not None and not 0 <= options.outside < np.inf:
        raise error("--outside is a coefficient in 1/cm, from 0.", options.outside)
    made: dict[str, Any] = {"input": scan_name(source), "unit": "1/cm at 511 keV"}
    if options.ct:
        ct_hu, affine = read_ct(options.ct)
        mu = mu_from_hu(ct_hu, tube_kvp=options.kvp)
        made["tube_kvp"] = options.kvp
    else:
        mu, affine = _mu_of_labels(options, made)
    difference = _difference(options, (mu, affine)) if options.reference else {}
    if difference:
        made["reference"] = {"ct": scan_name(options.reference), "tube_kvp": options.kvp, **difference}
    unknown = np.isnan(mu)
    if unknown.any() and options.outside is None:
        raise error(
            "Every voxel of a map has a coefficient.",
            f"{np.count_nonzero(unknown):,} voxels of 255 or outside the CT's field of view",
            "Say what they are: --outside 0 takes them for air.",
        )
    if options.outside is not None:
        made["outside"] = {"mu_per_cm": options.outside, "voxels": int(unknown.sum())}
        mu = np.where(unknown, np.float32(options.outside), mu)
    write_volume(options.output, mu, affine, made | _version())
    for name, value in difference.items():
        print(f"{name}: {value:.4g}")
    print(f"attenuation map: {options.output}")


def _mu_of_labels(options: argparse.Namespace, made: dict[str, Any]) -> Any:
    """The map of a label map, NaN at 255, and its affine; adds to ``made`` what it was made of."""
    from mrseg.attenuation import CLASS_MU_PER_CM, mu_from_labels
    from mrseg.data.io import read_labels
    from mrseg.data.labels import ATTENUATION_CLASSES

    labels, affine = read_labels(options.labels)
    names, made["source"] = _label_table(options.labels)
    if names and tuple(names) != ATTENUATION_CLASSES and not options.mu_per_cm:
        raise error(
            f"The default coefficients are for {', '.join(ATTENUATION_CLASSES)}.",
            f"a label map of {', '.join(names)}",
            "Give one per class: --mu-per-cm 0 0.096 ...",
        )
    made["mu_per_cm"] = tuple(options.mu_per_cm or CLASS_MU_PER_CM)
    return mu_from_labels(labels, mu_per_cm=made["mu_per_cm"]), affine


def _difference(options: argparse.Namespace, mu: Any) -> dict[str, float]:
    """How far a map is from that of the reference CT, inside the CT's head."""
    import numpy as np

    from mrseg.attenuation import mu_difference, mu_from_hu
    from mrseg.data.geometry import check_same_grid, head_mask
    from mrseg.data.io import read_ct

    ct = read_ct(options.reference)
    check_same_grid(str(options.labels), mu, str(options.reference), ct)
    inside = head_mask(np.nan_to_num(ct[0], nan=-1000.0))
    return mu_difference(mu_from_hu(ct[0], tube_kvp=options.kvp), mu[0], inside)


def _brainmask(options: argparse.Namespace) -> None:
    from mrseg.baselines import brain_mask_volume
    from mrseg.data.geometry import to_canonical
    from mrseg.data.io import read_series, read_volume, scan_name, volume_count

    check_output(options.output, options.input)
    made: dict[str, Any] = {"input": scan_name(options.input), "method": options.method}
    if volume_count(options.input) > 1:
        series = read_series(options.input)
        _check_time_point(options.time_point, series.array.shape[3])
        scan = series.array[..., options.time_point], series.affine
        made["time_point"] = options.time_point
    else:
        scan = read_volume(options.input)
    mask = brain_mask_volume(to_canonical(scan)[0], options.method)
    picture = _write_mask(options.output, scan, mask, made)
    print(f"mask: {options.output}\npicture: {picture}")


def _perfusion(options: argparse.Namespace) -> None:
    import numpy as np

    from mrseg._files import atomic_file, writable_folder
    from mrseg.data.geometry import to_canonical
    from mrseg.data.io import read_series, scan_name
    from mrseg.formats import write_csv
    from mrseg.perfusion import region_curve
    from mrseg.pictures import save_png
    from mrseg.plots import signal_curves

    for name in ("mask.nii.gz", "curve.nii.gz"):  # beside curve.json
        check_output(options.output / name, options.input)
    series = read_series(options.input)
    volumes = series.array.shape[3]
    _check_time_point(options.time_point, volumes)
    settings: dict[str, Any] = {
        "te_ms": options.te_ms,
        "interval_s": _interval(options.interval_s, series.interval_s),
        "baseline": _time_points(options.baseline),
    }
    # One voxel first: wrong settings are told before minutes of motion correction.
    region_curve(series.array[:1, :1, :1], np.ones((1, 1, 1), bool), **settings)
    given = _region(options.mask, options.input, series) if options.mask else None
    writable_folder(options.output)
    array, affine = to_canonical((series.array, series.affine))
    if options.motion:
        array = _without_motion(array, affine, options)
    made = {"input": scan_name(options.input), "motion_corrected": options.motion}
    if given is None:
        mask = _mask_of_series(array, series, options, made)
    else:
        mask = to_canonical((given, series.affine))[0]
        made["mask"] = options.mask.name
    rows = region_curve(array, mask, **settings)
    write_csv(rows, options.output / "curve.csv")
    name = options.mask.name if options.mask else "brain"
    save_png(signal_curves({name: rows}, title=made["input"]), options.output / "curve.png")
    with atomic_file(options.output / "curve.json") as temporary:
        content = {"provenance": made | settings | {"voxels": int(mask.sum())} | _version()}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{int(mask.sum()):,} voxels, {volumes} time points, one every {settings['interval_s']:g} s")
    print(f"curve: {options.output / 'curve.csv'}\npicture: {options.output / 'curve.png'}")


def _region(path: Path, scan: Path, series: Any) -> Any:
    """The voxels of a label map that are neither 0 nor 255, on the series' grid."""
    from mrseg.data.geometry import check_same_grid
    from mrseg.data.io import read_labels

    labels = read_labels(path)
    check_same_grid(str(scan), (series.array, series.affine), str(path), labels)
    mask = (labels[0] > 0) & (labels[0] < 255)
    if not mask.any():
        raise error(f"{path}: a region has voxels above 0 (255 is nobody's).", "none")
    return mask


def _without_motion(array: Any, affine: Any, options: argparse.Namespace) -> Any:
    from mrseg.data.geometry import voxel_sizes
    from mrseg.data.motion import correct_motion
    from mrseg.formats import write_csv

    _LOGGER.info("bringing %d time points onto time point %d", array.shape[3], options.time_point)
    corrected, motion = correct_motion(array, voxel_sizes(affine), reference=options.time_point)
    names = ("shift_right_mm", "shift_anterior_mm", "turn_deg")
    write_csv(
        (
            {"slice": k, "time_point": t, **dict(zip(names, map(float, motion[k, t]), strict=True))}
            for k in range(motion.shape[0])
            for t in range(motion.shape[1])
        ),
        options.output / "motion.csv",
    )
    return corrected


def _mask_of_series(array: Any, series: Any, options: argparse.Namespace, made: dict[str, Any]) -> Any:
    """Masks the canonical series and writes mask.nii.gz on its native grid; returns the canonical mask."""
    from mrseg.baselines import brain_mask_series

    mask = brain_mask_series(array, options.method, time_index=options.time_point)
    if not mask.any():
        raise error(
            "A brain mask has voxels.", f"none by {options.method}", "Try another --method, or --mask."
        )
    made |= {"method": options.method, "time_point": options.time_point}
    image = series.array[..., options.time_point]
    _write_mask(options.output / "mask.nii.gz", (image, series.affine), mask, made)
    return mask


def _write_mask(path: Path, scan: Any, mask: Any, made: Mapping[str, Any]) -> Path:
    """Writes a canonical mask on the scan's own grid, and its picture; returns the picture's path."""
    import numpy as np

    from mrseg.data.geometry import from_canonical, to_canonical, voxel_sizes
    from mrseg.data.io import sidecar_path, write_labels
    from mrseg.data.labels import BRAIN_CLASSES
    from mrseg.pictures import overlay, save_png

    native = from_canonical(mask.astype(np.uint8), scan[0].shape, scan[1])
    write_labels(path, native, scan[1], BRAIN_CLASSES, {**made, **_version()})
    upright, affine = to_canonical(scan)
    figure = overlay(
        upright,
        mask.astype(np.uint8),
        class_names=BRAIN_CLASSES,
        spacing_mm=voxel_sizes(affine),
        title=str(made["input"]),
    )
    return save_png(figure, sidecar_path(path).with_suffix(".png"))


def _label_table(path: Path) -> tuple[list[str], Any]:
    """Class names and provenance from a label map's sidecar; no names where it has none of ours."""
    from mrseg.data.io import read_sidecar, sidecar_path

    content = read_sidecar(path) if sidecar_path(path).exists() else {}
    table = content.get("labels")
    if not isinstance(table, dict):
        return [], None
    numbers = sorted(int(key) for key in table if str(key).isdigit() and int(key) < 255)
    if numbers != list(range(len(numbers))):
        return [], None
    return [str(table[str(number)]) for number in numbers], content.get("provenance")


def _interval(given: float | None, stored: float | None) -> float:
    """Seconds between volumes: what the user says goes before what the header says."""
    if given is None and stored is None:
        raise error(
            "A curve needs the time between volumes.",
            "no --interval-s, and a header without it",
            "Give the repetition time in s: --interval-s 1.5.",
        )
    if given is not None and stored is not None and abs(given - stored) > 0.01 * stored:
        _LOGGER.warning("--interval-s %g is used; the header says %g s.", given, stored)
    return float(given if given is not None else stored)  # type: ignore[arg-type]


def _time_points(text: str) -> list[int]:
    """``3-8`` and ``3,4,7`` as numbers."""
    points: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            points += range(int(first), int(last or first) + 1)
    except ValueError:
        points = []
    if not points:
        raise error("--baseline is time points from 0, as 3-8 or 3,4,7.", repr(text))
    return points


def _check_time_point(time_point: int, volumes: int) -> None:
    if not 0 <= time_point < volumes:
        raise error(
            f"--time-point is one of the series, 0 to {volumes - 1}.",
            time_point,
            "Name one before the bolus.",
        )


def check_output(output: Path, *inputs: Path | None) -> None:
    """Refuses a name that is no image's, an input's, or that would share an input's sidecar."""
    from mrseg._files import writable_folder
    from mrseg.data.io import nifti_path, sidecar_path

    nifti_path(output)
    for path in inputs:
        if path is None or path.is_dir():  # a DICOM series has no sidecar
            continue
        if sidecar_path(output.resolve()) == sidecar_path(path.resolve()):
            raise error("The output is another file than the input, also by its sidecar.", output)
    writable_folder(output.parent)


def _version() -> dict[str, str]:
    return {"mrseg": __version__}
