"""Prediction to files: one scan, or every scan of a manifest or BIDS folder as a BIDS derivative."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from mrseg import __version__
from mrseg._checks import InputError, error
from mrseg._files import atomic_file, checksum, clear_abandoned, partial_folder, writable_folder
from mrseg.data.geometry import Volume, to_canonical, voxel_sizes
from mrseg.data.io import (
    nifti_path,
    read_sidecar,
    read_volume,
    scan_files,
    scan_name,
    sidecar_path,
    volume_header,
    write_labels,
    write_volume,
)
from mrseg.data.labels import write_label_table
from mrseg.data.scans import Scan, find_scans
from mrseg.data.writing import disown
from mrseg.derivatives import describe, generated_by, write_json
from mrseg.engines import Engine
from mrseg.ensemble import together
from mrseg.jobs import LOST, check_shared, run_jobs
from mrseg.maps import Maps
from mrseg.memory import check_memory
from mrseg.passes import DEFAULT, Inference
from mrseg.pictures import overlay, save_png
from mrseg.quantization import Ranges
from mrseg.segmenter import Asked, Segmenter

log = logging.getLogger(__name__)

Row = dict[str, str]
WRITTEN, THERE, FAILED, UNKNOWN = "written", "there already", "failed", "not understood"

_MEANING = {
    "entropy": "Entropy of the class probabilities divided by log(classes): 0 certain, 1 all classes equal.",
    "mirror": "Variance of the class probabilities over mirrored inputs, mean over classes.",
    "dropout": "Variance of the class probabilities over passes with dropout, mean over classes.",
}


def predict_scan(
    segmenter: Asked,
    scan: str | Path,
    output: str | Path,
    *,
    inference: Inference = DEFAULT,
    probabilities: bool = False,
    picture: Path | None = None,
    progress: bool = False,
) -> dict[str, Path]:
    """Segments one scan into files: label map, sidecar and picture, and the maps that are asked for.

    Args:
        segmenter: the network with its preprocessing, or an `mrseg.Ensemble` of several.
        scan: NIfTI file.
        output: label map to write. With the name ``t2_dseg.nii.gz`` the others are ``t2_dseg.json``,
            ``t2_dseg.png``, ``t2_probseg.nii.gz`` and ``t2_desc-uncertainty_entropy.nii.gz``.
        inference: how the network is asked.
        probabilities: write those of all classes.
        picture: another name for the picture.
        progress: show a bar over the patches.

    Returns:
        What was written: ``labels``, ``picture``, ``probabilities``, ``uncertainty`` -> file.

    Raises:
        InputError: a scan or an output that cannot be, the network of no use for ``inference``.
    """
    output = nifti_path(output)
    writable_folder(output.parent)
    files = _files(output, inference, probabilities)
    files["picture"] = picture or files["picture"]
    _check_apart(files, Path(scan))
    volume = read_volume(scan)
    origin = {"input": scan_name(scan), **_origin(segmenter, inference)}
    _write(segmenter, volume, files, inference, origin, title=scan_name(scan), progress=progress)
    return files


def predict_cohort(
    segmenter: Asked,
    data: str | Path,
    output: str | Path,
    *,
    sequence: str | None = None,
    inference: Inference = DEFAULT,
    probabilities: bool = False,
    workers: int = 1,
    scheduler: str = "",
    progress: bool = False,
) -> list[Row]:
    """Segments every scan of a cohort into a folder of BIDS derivatives.

    A scan that fails is reported and the others go on. A scan whose files are there, from the same scan,
    segmenter and options, is left as it is; so a run that was interrupted goes on.

    Args:
        segmenter: the network with its preprocessing, or an `mrseg.Ensemble` of several.
        data: manifest, folder of a known data set, or BIDS folder (see
            `mrseg.data.scans.find_scans`).
        output: folder; ``sub-01/anat/sub-01_desc-mrseg_dseg.nii.gz`` with ``.json`` (labels, origin),
            ``.tsv`` (label table) and ``.png`` are written there, and the maps that are asked for.
        sequence: which scans; None takes the segmenter's own sequence.
        inference: how the network is asked.
        probabilities: write those of all classes.
        workers, scheduler: who shares the scans, as `mrseg.jobs.run_jobs` takes them; each process loads the
            networks once.
        progress: show a bar over the scans.

    Returns:
        Rows of ``scan``, ``status`` (``written``, ``there already``, ``failed``, ``not understood``) and
        ``reason``.

    Raises:
        InputError: no scan of the sequence; a foreign output folder; a network of no use for ``inference``.
    """
    sequence = sequence or segmenter.sequence
    if not sequence:
        raise error("The scans' sequence must be known.", "none", "Name it: sequence='T2w', --sequence T2w.")
    scans, unknown = find_scans(data, sequence)
    segmenter.check(inference)
    output = writable_folder(output)
    if output.resolve() == Path(data).resolve():
        raise error("Derivatives go into a folder of their own.", output)
    describe(output, "mrseg: segmentations")
    clear_abandoned(output)
    # Workers elsewhere may have been started in another folder.
    folder = output.absolute()
    scans = [dataclasses.replace(scan, path=scan.path.absolute()) for scan in scans]
    origin = {"sequence": sequence, **_origin(segmenter, inference)}
    if workers > 1 and not scheduler:
        _check_memory(segmenter, scans, inference, min(workers, len(scans)))
    with _network(segmenter, folder, workers > 1 or bool(scheduler)) as network:
        task = _Task(network, folder, inference, probabilities, origin)
        rows = run_jobs(
            functools.partial(_segment, task=task), scans, workers=workers, scheduler=scheduler,
            desc=f"segmenting {sequence}", unit="scan", progress=progress, lost=_lost,
        )  # fmt: skip
    check_shared(task.labels(s) for s, row in zip(scans, rows, strict=True) if row["status"] != FAILED)
    return rows + [{"scan": name, "status": UNKNOWN, "reason": reason} for name, reason in unknown.items()]


@dataclass(frozen=True)
class _Saved:
    """Where other processes find a segmenter, and what is not saved with it; equal if it answers alike."""

    folder: Path = dataclasses.field(compare=False)
    digest: str
    calibration: str
    batch_size: int
    engine: Engine

    def load(self) -> Segmenter:
        threads = self.engine.threads
        if self.engine.converts:  # the other engines do not look at what this process was given
            threads = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or None
        segmenter = Segmenter.load(
            self.folder, engine=self.engine.name, precision=self.engine.precision, threads=threads
        )
        segmenter.batch_size = self.batch_size
        return segmenter


@dataclass(frozen=True)
class _Task:
    """What is the same for every scan of a cohort; ``network`` is who is asked, or where others find it."""

    network: Asked | tuple[_Saved, ...]
    output: Path
    inference: Inference
    probabilities: bool
    origin: Mapping[str, Any]

    def labels(self, scan: Scan) -> Path:
        return self.output / scan.folder / f"{scan.stem}_desc-mrseg_dseg.nii.gz"


def _check_memory(segmenter: Asked, scans: Sequence[Scan], inference: Inference, workers: int) -> None:
    """Refuses so many processes at once if the largest scan's maps, so many times, cannot fit."""
    largest = 0.0
    for scan in scans:
        with suppress(InputError, OSError):  # told when it is read
            grid = volume_header(scan.path)  # probabilities lie in a scratch file
            largest = max(largest, segmenter.memory_mb(grid, inference=inference, probabilities=False))
    check_memory(workers * largest, f"The maps of {workers} scans at once", "Take fewer --workers.")


@contextmanager
def _network(segmenter: Asked, output: Path, elsewhere: bool) -> Iterator[Asked | tuple[_Saved, ...]]:
    """The segmenter; for other processes folders of its members in the output, as long as they work."""
    if not elsewhere:
        yield segmenter
        return
    with partial_folder(output / "segmenter") as folder:
        yield tuple(
            _Saved(
                member.save(folder / str(number)),
                member.digest,
                _checksum([member.calibration]),
                member.batch_size,
                member.computing,
            )  # fmt: skip
            for number, member in enumerate(segmenter.members, start=1)
        )


@functools.lru_cache(maxsize=1)
def _loaded(saved: tuple[_Saved, ...]) -> Asked:
    """A process of many scans reads its networks once, also for one cohort after another."""
    return together([one.load() for one in saved])


def _segment(scan: Scan, task: _Task) -> Row:
    """Segments one scan of a cohort unless that is done already, and says what became of it."""
    status, reason = WRITTEN, ""
    try:
        labels = task.labels(scan)
        files = {
            **_files(labels, task.inference, task.probabilities),
            "table": sidecar_path(labels).with_suffix(".tsv"),
        }
        own = {**task.origin, "input": scan_name(scan.path), "input_sha256": checksum(scan_files(scan.path))}
        if _complete(files, own):
            status = THERE
        else:
            segmenter = _loaded(task.network) if isinstance(task.network, tuple) else task.network
            _write(segmenter, read_volume(scan.path), files, task.inference, own, title=scan.stem)
    except Exception as failure:  # whatever it is, the other scans do not suffer from it
        status, reason = FAILED, " ".join(str(failure).split()) or type(failure).__name__
        log.info("%s failed", scan.path, exc_info=True)
    return {"scan": scan.stem, "status": status, "reason": reason}


def _lost(scan: Scan) -> Row:
    return {"scan": scan.stem, "status": FAILED, "reason": LOST}


def _write(
    segmenter: Asked,
    volume: Volume,
    files: Mapping[str, Path],
    inference: Inference,
    origin: Mapping[str, Any],
    *,
    title: str,
    progress: bool = False,
) -> None:
    """Predicts, then writes each file whole; the sidecar, which vouches for the others, comes last."""
    writable_folder(files["labels"].parent)
    maps = segmenter.predict(
        volume,
        inference=inference,
        probabilities="probabilities" in files,
        scratch=files["labels"].parent,
        progress=progress,
    )
    names = segmenter.class_names
    outside_ml = round(max(member.preprocessing.head_outside_ml(volume) for member in segmenter.members), 1)
    if outside_ml:
        log.warning(
            "%s: %.1f ml of the head lie outside the network's grid (end slices that its training left out) "
            "and are %s. --whole-head asks the network there too.", title, outside_ml, names[0],
        )  # fmt: skip
    disown(files["labels"])
    if maps.probabilities is not None:
        write_json(
            sidecar_path(files["probabilities"]), {"LabelMap": list(names), "GeneratedBy": generated_by()}
        )
        _write_probabilities(files["probabilities"], maps)
    if maps.uncertainty is not None:
        meaning = {"Description": _MEANING[str(inference.uncertainty)], "GeneratedBy": generated_by()}
        write_json(sidecar_path(files["uncertainty"]), meaning)
        write_volume(files["uncertainty"], maps.uncertainty, maps.affine)
    if "table" in files:
        write_label_table(files["table"], names)
    array, affine = to_canonical(volume)
    figure = overlay(
        array,
        to_canonical((maps.labels, maps.affine))[0],
        class_names=names,
        spacing_mm=voxel_sizes(affine),
        title=title,
    )
    save_png(figure, files["picture"])
    about = {**origin, "head_outside_grid_ml": outside_ml} if outside_ml else origin
    write_labels(files["labels"], maps.labels, maps.affine, names, about)


def _files(labels: Path, inference: Inference, probabilities: bool) -> dict[str, Path]:
    """Every file beside a label map that is asked for, named after it."""
    stem = sidecar_path(labels).stem
    base = stem.removesuffix("_dseg")
    files = {"labels": labels, "picture": labels.with_name(f"{stem}.png")}
    if probabilities:
        files["probabilities"] = labels.with_name(f"{base}_probseg.nii.gz")
    if inference.uncertainty:
        source = base.removesuffix("_desc-mrseg")
        files["uncertainty"] = labels.with_name(f"{source}_desc-uncertainty_{inference.uncertainty}.nii.gz")
    return files


def _check_apart(files: Mapping[str, Path], scan: Path) -> None:
    """Refuses outputs that would replace the scan or each other, share its sidecar, or be no picture."""
    if files["picture"].suffix.lower() != ".png":
        raise error("The picture is written as .png.", files["picture"])
    for what, path in files.items():
        if path.resolve() == scan.resolve() or (
            path.suffix != ".png" and sidecar_path(path.resolve()) == sidecar_path(scan.resolve())
        ):
            named = "label map is another file" if what == "labels" else f"{what} file is another"
            raise error(f"The {named} than the scan, also by its sidecar.", path, "Name another output.")


def _origin(segmenter: Asked, inference: Inference) -> dict[str, Any]:
    return {
        "mrseg": __version__,
        "segmenter_digest": segmenter.digest,
        "inference": inference.as_dict(),
        "engine": segmenter.engine,
        "precision": segmenter.precision,
        "calibration": _checksum([one.calibration for one in segmenter.members if one.precision == "int8"]),
        "segmenter": segmenter.provenance,
    }


def _checksum(calibrations: list[Ranges]) -> str:
    """Of the calibrations that a result depends on; empty without any."""
    return f"{zlib.crc32(json.dumps(calibrations, sort_keys=True).encode()):08x}" if calibrations else ""


def _complete(files: Mapping[str, Path], origin: Mapping[str, Any]) -> bool:
    """Whether all files are there, from this scan, segmenter and options.

    Raises:
        InputError: the label map is that of another sequence, which would be lost.
    """
    if not sidecar_path(files["labels"]).is_file():
        return False
    try:
        known = read_sidecar(files["labels"])["provenance"]
    except (InputError, KeyError):
        return False  # half a sidecar
    if known.get("sequence", origin["sequence"]) != origin["sequence"]:
        raise error(
            f"{files['labels']}: one folder holds the label maps of one sequence.",
            f"those of {known['sequence']}, not {origin['sequence']}",
            "Choose another output folder.",
        )
    same = all(known.get(key) == origin[key] for key in ("segmenter_digest", "inference", "input_sha256"))
    # Engines agree to the last digits of float32; another precision is another result.
    same = same and known.get("precision", "float32") == origin["precision"]
    same = same and known.get("calibration", "") == origin["calibration"]
    return same and all(path.is_file() for path in files.values())


def _write_probabilities(path: Path, maps: Maps) -> None:
    """As `write_volume`, which would hold them twice; nibabel goes class by class through the array."""
    assert maps.probabilities is not None
    image = nib.Nifti1Image(maps.probabilities, maps.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(maps.affine, code="scanner")
    image.set_qform(None, code="unknown")
    with atomic_file(path) as temporary:
        nib.save(image, temporary)
