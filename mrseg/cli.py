"""The command `mrseg`: thin over the Python API, one clear line and exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrseg import __version__
from mrseg._checks import InputError, error
from mrseg.commands import add_commands, add_segmenter, add_workers
from mrseg.scan_commands import add_scan_commands
from mrseg.segmenter_commands import add_segmenter_commands
from mrseg.study_commands import add_study_commands

if TYPE_CHECKING:
    from mrseg.passes import Inference
    from mrseg.segmenter import Asked

TOP = """\
Segment MR scans of the head, and carry a network from one MR sequence to another.

  mrseg demo                                         the whole way on built-in synthetic heads, in minutes
  mrseg prepare cohort.tsv --output prepared         CT -> labels (air, soft tissue, bone) on every MR scan
  mrseg train mecheter2023_t1 --data prepared/cohort.tsv --output runs/t1
  mrseg transfer mecheter2023_hybrid_multiply --from runs/t1/segmenter \\
      --data prepared/cohort.tsv --output runs/t2
  mrseg predict --segmenter runs/t2/segmenter --input t2.nii.gz --output t2_dseg.nii.gz
  mrseg evaluate --segmenter runs/t2/segmenter --data prepared/cohort.tsv --output runs/t2/test
  mrseg crossval mecheter2023_open --from runs/t1/segmenter --data prepared/cohort.tsv --output runs/folds
  mrseg study phantom_transfer --output runs/study   every experiment of a paper, with its tables
  mrseg recipes                                      what can be trained
  mrseg weights                                      what is trained already
  mrseg calibrate --segmenter runs/t2/segmenter --input t2.nii.gz --output runs/t2/fast     for int8 on a CPU
  mrseg export --segmenter runs/t2/segmenter --format onnx --output exports/t2      for other programs

Without a network:

  mrseg clean --input t2_dseg.nii.gz --output t2_clean_dseg.nii.gz --largest-component 1
  mrseg attenuation --labels t2_dseg.nii.gz --output mu.nii.gz
  mrseg brainmask --input dsc.nii.gz --method cusum --output dsc_brain.nii.gz
  mrseg phantom --output scans --sequences T2w --train 6      synthetic heads to try commands on
  mrseg perfusion --input dsc.nii.gz --te-ms 45 --interval-s 1.5 --baseline 3-8 --output runs/dsc

From the scanner or the archive:

  mrseg series study                                 the series of a DICOM folder
  mrseg convert study --series "AX T2" --output t2.nii.gz
"""

MANIFEST = """\
A manifest is a table with tabs between the columns: subject, one column per MR sequence (T1w, T2w, ...), and
where they exist session, ct, labels (or labels_T1w, labels_T2w), split (train, val or test). Paths are
relative to the table:

  subject  T1w             T2w             ct              split
  s01      s01/t1.nii.gz   s01/t2.nii.gz   s01/ct.nii.gz   train

A scan is a NIfTI, MGZ, NRRD or MHA file, or the folder of one DICOM series. Instead of a manifest, a BIDS
folder or that of a known data set will do (SynthRAD2023 has CT). Labels come as BIDS derivatives; look at
quality.html before you train.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 where a scan of a cohort failed, 2 after a mistake told in one line."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return options.run(options) or 0
    except (InputError, OSError) as reason:
        if options.verbose:
            logging.getLogger(__name__).exception("where it happened")
        said = str(reason)
    except Exception as reason:
        # TensorFlow's own is known by its name: TensorFlow may not have been loaded.
        if not isinstance(reason, MemoryError) and type(reason).__name__ != "ResourceExhaustedError":
            raise
        said = (
            f"The work fits into the memory. Received: {str(reason)[:200] or 'no room for more'}. "
            "End other programs, or ask for less: fewer --workers, a smaller --batch-size; for a training "
            "--cache, a smaller training.batch_size."
        )
    except KeyboardInterrupt:
        print("mrseg: stopped; start the same command again to go on.", file=sys.stderr)
        return 130
    # Only now, on a line of its own: the bars of what failed ended with the exception.
    print(f"mrseg: error: {' '.join(said.split())}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrseg", description=TOP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"mrseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n\n{more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument(
            "--verbose", action="store_true", help="say more, and show where an error came from"
        )
        added.set_defaults(run=run)
        return added

    demo = command("demo", _demo, "run the main job on the built-in phantom", DEMO)
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    demo.add_argument("--seed", type=int, default=0, help="another seed makes other heads (default: 0)")

    prepare = command("prepare", _prepare, "make labels from CT for every MR scan of a manifest", MANIFEST)
    prepare.add_argument(
        "manifest", type=Path, help="TSV table of subjects, BIDS folder, or folder of a known data set"
    )
    prepare.add_argument(
        "--output", type=Path, required=True, help="folder for labels, pictures, cohort.tsv and quality.html"
    )
    prepare.add_argument(
        "--thresholds-hu", type=float, nargs=2, default=(-500.0, 600.0), metavar=("AIR", "BONE"),
        help="air is below the first, bone above the second (default: -500 600, as mecheter2023)",
    )  # fmt: skip
    add_workers(prepare, default=os.cpu_count() or 1)
    prepare.add_argument("--registered", action="store_true", help="the CT lies on the MR grid already")
    prepare.add_argument("--seed", type=int, default=0, help="of the registration's random samples")

    train = command("train", _train, "train a recipe's network from scratch", TRAIN)
    transfer = command("transfer", _train, "carry a trained network to another sequence", TRANSFER)
    transfer.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        help="trained segmenter: its folder, or a name of `mrseg weights`",
    )
    for parser_ in (train, transfer):
        parser_.add_argument("recipe", help="name (see `mrseg recipes`) or YAML file")
        parser_.add_argument(
            "--data", type=Path, required=True, help="manifest (TSV) or folder of a known data set"
        )
        parser_.add_argument(
            "--output", type=Path, required=True, help="folder; an unfinished run there goes on"
        )
        parser_.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
            help="change a key of the recipe: --set training.epochs=12 --set network.arguments.filters=16",
        )  # fmt: skip
        parser_.add_argument(
            "--cache", type=Path, metavar="FOLDER",
            help="keep preprocessed scans there, for this and other trainings (default: in memory)",
        )  # fmt: skip
        parser_.add_argument(
            "--precision",
            choices=("float32", "mixed_bfloat16", "mixed_float16"),
            help="short for --set training.precision=...",
        )
        parser_.add_argument(
            "--log",
            dest="loggers",
            action="append",
            default=[],
            choices=("tensorboard", "wandb"),
            help="log there too (pip install 'mrseg[tensorboard]' or 'mrseg[wandb]')",
        )
        parser_.add_argument(
            "--distributed", action="store_true",
            help="on all GPUs of this machine; on JAX also of several (see the guide Cluster)",
        )  # fmt: skip

    predict = command("predict", _predict, "segment a scan or a cohort on the scans' own grids", PREDICT)
    add_segmenter(predict, several=True)
    what = predict.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", type=Path, help="scan: NIfTI, MGZ, NRRD, MHA, or DICOM folder")
    what.add_argument("--data", type=Path, help="manifest (TSV), BIDS folder, or folder of a known data set")
    predict.add_argument(
        "--output", type=Path, required=True,
        help="with --input the label map to write, .nii or .nii.gz; with --data a folder",
    )  # fmt: skip
    predict.add_argument(
        "--picture", type=Path, help="with --input: overlay to write (default: beside the label map, .png)"
    )
    predict.add_argument("--sequence", help="with --data: which scans (default: the segmenter's own)")
    predict.add_argument("--probabilities", action="store_true", help="write those of all classes too")
    predict.add_argument(
        "--uncertainty",
        choices=("entropy", "mirror", "dropout"),
        help="write a map: entropy, or the variance over mirrors or dropout (20 passes unless told)",
    )
    _add_inference(predict)
    add_workers(predict)
    _add_engine(predict)

    evaluate = command("evaluate", _evaluate, "score a segmenter on the test cases of a manifest", EVALUATE)
    add_segmenter(evaluate, several=True)
    evaluate.add_argument(
        "--data", type=Path, required=True, help="manifest (TSV) or folder of a known data set"
    )
    evaluate.add_argument(
        "--output", type=Path, required=True, help="folder for scores.csv, report.html and tables"
    )
    evaluate.add_argument("--split", default="test", choices=("train", "val", "test"), help="default: test")
    evaluate.add_argument("--sequence", help="default: the segmenter's own")
    evaluate.add_argument(
        "--seen-too", action="store_true",
        help="score test subjects that it was trained on as well; the page says so",
    )  # fmt: skip
    evaluate.add_argument("--distances", action="store_true", help="add Hausdorff, HD95 and ASSD in mm")
    evaluate.add_argument(
        "--plane", default="axial", choices=("axial", "coronal", "sagittal"),
        help="slices of the mean over slices (default: axial)",
    )  # fmt: skip
    evaluate.add_argument(
        "--compare", type=Path, metavar="OTHER/scores.csv",
        help="test against another method, scored on the same subjects",
    )  # fmt: skip
    evaluate.add_argument(
        "--test", choices=("wilcoxon", "permutation"), help="with --compare (default: wilcoxon)"
    )
    evaluate.add_argument(
        "--names", nargs=2, metavar=("THIS", "OTHER"),
        help="with --compare: what to call both (default: the ends of their folders' paths)",
    )  # fmt: skip
    _add_inference(evaluate)
    _add_engine(evaluate)

    recipes = command("recipes", _recipes, "list the recipes, or print one")
    recipes.add_argument("name", nargs="?", help="print this one")

    add_segmenter_commands(command)
    add_study_commands(command)
    add_commands(command)
    add_scan_commands(command)
    return parser


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mirror", action="store_true", help="average with the left-right mirrored scan")
    parser.add_argument(
        "--dropout-samples", type=int, metavar="N",
        help="average N passes with dropout (default: 0)",
    )  # fmt: skip
    parser.add_argument("--overlap", type=float, help="shared fraction of patches (default: as trained)")
    parser.add_argument(
        "--blending", default="gaussian", choices=("gaussian", "constant"), help="default: gaussian"
    )
    parser.add_argument("--whole", action="store_true", help="the whole volume (or whole slices) at once")
    parser.add_argument(
        "--whole-head", action="store_true",
        help="every slice that shows the head, also the end slices that trainings leave out",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="patches in one call (default: 2)")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", default="tensorflow", choices=("tensorflow", "openvino", "onnx"),
        help="who computes (pip install 'mrseg[openvino]' or 'mrseg[onnx]'; default: tensorflow)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "bfloat16", "int8"),
        help="with openvino: int8, the fastest, after `mrseg calibrate`; bfloat16 for processors that "
        "multiply in it (default: float32)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of openvino and onnx (default: all cores)")


def _engine(options: argparse.Namespace) -> dict[str, Any]:
    return {"engine": options.engine, "precision": options.precision, "threads": options.threads}


def _asked(options: argparse.Namespace) -> Asked:
    """The segmenter that is named, or several of them together."""
    from mrseg.ensemble import together
    from mrseg.segmenter import Segmenter

    members = [Segmenter.load(name, **_engine(options)) for name in options.segmenter]
    if options.whole_head:
        members = [dataclasses.replace(m, preprocessing=m.preprocessing.of_whole_head()) for m in members]
    return together(members)


DEMO = """\
Makes synthetic heads (T1-w or T2-w with an unregistered CT each), registers the CT, makes labels, trains on
T1-w, carries the network to T2-w by every mechanism of mecheter2023, scores them on heads not seen before,
and writes report.html, a label map and the best segmenter. Figures from synthetic heads say that the software
works, not how well it does on patients. Interrupted, it goes on where it stopped.
"""

TRAIN = """\
Trains on the cases of the split train; val decides what the recipe lets it decide; test cases are scored
once, at the end.

  mrseg train islam2025_unet --data $MRSEG_DATA/ibsr18 --output runs/unet
  mrseg train mecheter2023_t1 --data prepared/cohort.tsv --output runs/t1 --set training.epochs=50
"""

TRANSFER = """\
mechanisms (mecheter2023, section 3.3):
  mecheter2023_none               the T1-w network as it is
  mecheter2023_open               all layers go on training, from T1-w weights
  mecheter2023_conservativeK      only the head and the last K convolutions train (0, 3, 6, 9, 12, 15, 18)
  mecheter2023_hybrid_FUSION      frozen T1-w encoder beside a new one (multiply, average, maximum, concat)
beyond the papers:
  transfer_affine                 only gamma and beta of the normalisations train
  transfer_statistics             no labels, no training: statistics of the normalisations from T2-w scans
  transfer_pseudo_labels          no CT: the T1-w network labels the same heads' T1-w scans

Network, classes and preprocessing must be those that the segmenter was trained with: pass the same --set
options as for `mrseg train`.

  mrseg transfer mecheter2023_conservative6 --from runs/t1/segmenter \\
      --data prepared/cohort.tsv --output runs/t2
"""

PREDICT = """\
One scan:

  mrseg predict --segmenter runs/t2/segmenter --input t2.nii.gz --output t2_dseg.nii.gz

A cohort, written as BIDS derivatives (sub-01/anat/sub-01_desc-mrseg_dseg.nii.gz, ...). A scan that fails is
reported at the end, the others go on, and the exit code is 1. The same command again does what is missing:

  mrseg predict --segmenter runs/t2/segmenter --data bids --output derivatives/mrseg --uncertainty entropy

Several networks together (slices of three planes, folds), by the mean of their probabilities:

  mrseg predict --segmenter runs/coronal/segmenter runs/axial/segmenter runs/sagittal/segmenter \\
      --input t1.nii.gz --output t1_dseg.nii.gz

On a cluster: start `dask scheduler`, and workers (`dask worker ADDRESS --nthreads 1`) that see the same
folders, then add --scheduler ADDRESS. So for `mrseg prepare`.
"""

EVALUATE = """\
Writes scores.csv (subject, class, metric, value), slices.csv (the same for every slice), report.html with
pictures, and every table of it as LaTeX and CSV. Figures are pooled over voxels, and means over subjects and
over slices: each is named.

  mrseg evaluate --segmenter runs/t2/segmenter --data prepared/cohort.tsv --output runs/t2/test \\
      --compare runs/none/test/scores.csv
"""


def _demo(options: argparse.Namespace) -> None:
    from mrseg.demo import run_demo

    page, text = run_demo(options.output, seed=options.seed, workers=os.cpu_count() or 1)
    print(f"\n{text}\n\nreport: {page}")


def _prepare(options: argparse.Namespace) -> None:
    from mrseg.data.datasets import read_cohort
    from mrseg.preparation import Labelling, prepare

    stages = () if options.registered else ("rigid", "bspline")
    labelling = Labelling(tuple(options.thresholds_hu), stages, options.seed)
    cases, quality = prepare(
        read_cohort(options.manifest),
        options.output,
        labelling=labelling,
        workers=options.workers,
        scheduler=options.scheduler,
    )
    print(f"{len(quality)} scans of {len(cases)} subjects labelled: {options.output / 'cohort.tsv'}")
    print(f"quality: {options.output / 'quality.html'}")


def _train(options: argparse.Namespace) -> None:
    from mrseg.data.cases import Case
    from mrseg.data.datasets import read_cohort
    from mrseg.distribution import distributed
    from mrseg.pages import write_evaluation
    from mrseg.recipes.loader import load_recipe
    from mrseg.recipes.runner import train_recipe
    from mrseg.segmenter import Segmenter

    overrides = list(options.overrides)
    if options.precision:
        overrides.append(f"training.precision={options.precision}")
    recipe = load_recipe(options.recipe, overrides)
    cases: list[Case] = read_cohort(options.data)
    with ExitStack() as stack:
        output, first = options.output, True
        if options.distributed:
            output = stack.enter_context(distributed(output))
            first = output == options.output
        segmenter = train_recipe(
            recipe, cases, output, source=Segmenter.load(options.source) if "source" in options else None,
            cache=options.cache, loggers=options.loggers if first else (), progress=first,
        )  # fmt: skip
    if not first:
        return  # the first process has written everything
    if options.distributed:
        segmenter = Segmenter.load(options.output / "segmenter")  # on one device
    print(f"segmenter: {options.output / 'segmenter'}")
    account = options.output / "transfer.txt"
    if account.exists():
        print(account.read_text(encoding="utf-8").split("\n\n")[-1])
    test = [case for case in cases if case.split == "test" and recipe.sequence in case.labels]
    if test:
        _, text = write_evaluation(segmenter, test, options.output, log=options.output / "log.csv")
        print(f"\n{text}\n\nreport: {options.output / 'report.html'}")


def _predict(options: argparse.Namespace) -> int:
    from mrseg.data.io import nifti_path
    from mrseg.formats import to_text
    from mrseg.prediction import FAILED, predict_cohort, predict_scan
    from mrseg.tables import table

    misplaced = options.sequence if options.input else options.picture
    if misplaced:
        raise error("--sequence belongs to --data, --picture to --input.", misplaced)
    if options.input and (options.scheduler or options.workers != 1):
        raise error("--workers and --scheduler belong to --data.", options.scheduler or options.workers)
    inference = _inference(options, options.uncertainty)
    if options.input:
        nifti_path(options.output)  # before the network is loaded
    segmenter = _asked(options)
    common = {"inference": inference, "probabilities": options.probabilities, "progress": True}
    if options.input:
        files = predict_scan(segmenter, options.input, options.output, picture=options.picture, **common)
        print(
            "\n".join(f"{'label map' if what == 'labels' else what}: {path}" for what, path in files.items())
        )
        return 0
    rows = predict_cohort(
        segmenter,
        options.data,
        options.output,
        sequence=options.sequence,
        workers=options.workers,
        scheduler=options.scheduler,
        **common,
    )
    counts = Counter(row["status"] for row in rows)
    told = [row for row in rows if row["reason"]]
    if told:
        print(to_text(table(told, caption="Scans that were left out.")))
    print(f"\n{', '.join(f'{count} {status}' for status, count in counts.items())}: {options.output}")
    return 1 if counts[FAILED] else 0


def _inference(options: argparse.Namespace, uncertainty: str | None = None) -> Inference:
    from mrseg.passes import Inference

    samples = options.dropout_samples
    if samples is None:
        samples = 20 if uncertainty == "dropout" else 0
    return Inference(
        overlap=options.overlap,
        blending=options.blending,
        mirror_axes=(0,) if options.mirror or uncertainty == "mirror" else (),
        extent="whole" if options.whole else "patch",
        dropout_samples=samples,
        uncertainty=uncertainty,
        batch_size=options.batch_size,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from mrseg.data.cases import select
    from mrseg.data.datasets import read_cohort
    from mrseg.opponent import Opponent
    from mrseg.pages import write_evaluation

    other = None
    if options.compare:
        names = tuple(options.names) if options.names else None
        other = Opponent(options.compare, names, options.test or "wilcoxon")
    elif options.test or options.names:
        raise error("--test and --names belong to --compare.", options.test or " ".join(options.names))
    cases = select(read_cohort(options.data), options.split)
    _, text = write_evaluation(
        _asked(options),
        cases,
        options.output,
        sequence=options.sequence,
        distances=options.distances,
        plane=options.plane,
        other=other,
        seen_too=options.seen_too or options.split != "test",
        inference=_inference(options),
    )
    print(f"\n{text}\n\nreport: {options.output / 'report.html'}")


def _recipes(options: argparse.Namespace) -> None:
    import yaml

    from mrseg.formats import to_text
    from mrseg.models.builders import matching
    from mrseg.recipes.loader import list_recipes, load_recipe
    from mrseg.tables import table

    if options.name:
        print(yaml.safe_dump(load_recipe(options.name).as_dict(), sort_keys=False, allow_unicode=True))
        return
    rows = []
    for recipe in map(load_recipe, list_recipes()):
        known = matching(recipe.network.builder, recipe.network.arguments)
        rows.append(
            {
                "recipe": recipe.name,
                "command": "transfer" if recipe.transfer else "train",
                "paper": recipe.paper,
                "network": recipe.network.builder,
                "input": "x".join(map(str, recipe.sampling.input_shape)),
                "parameters": f"{known.parameters:,}" if known else "small",
                "sequence": recipe.sequence,
                "title": recipe.title,
            }
        )
    caption = "Recipes; `mrseg recipes NAME` prints one whole. Parameters are those before a hybrid's fusion."
    print(to_text(table(rows, caption=caption)))
