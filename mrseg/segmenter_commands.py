"""The commands about a trained segmenter itself: calibrate, export, weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrseg._checks import error, existing_folder
from mrseg.commands import AddCommand, add_segmenter

CALIBRATE = """\
int8 on a processor: convolutions compute in whole numbers of 8 bits, faster than in float32. What ranges the
numbers take is seen on some scans, three to five that vary as those to come do and none of them a test scan;
the ranges are saved with the segmenter. Needs pip install 'mrseg[openvino]'.

  mrseg calibrate --segmenter runs/t2/segmenter --input a_T2w.nii.gz b_T2w.nii.gz --output runs/t2/fast
  mrseg predict --segmenter runs/t2/fast --engine openvino --precision int8 --input t2.nii.gz \\
      --output t2_dseg.nii.gz

The table tells on how many voxels of each scan int8 gives the label of float32. What that means for Dice,
`mrseg evaluate --engine openvino --precision int8` tells.
"""

EXPORT = """\
The folder holds the network in batches of a fixed shape, export.json (classes, preparation, patches, origin)
and a README on axes, input and output. mrseg.Exported.load("exports/t2") runs it without TensorFlow.

  mrseg export --segmenter runs/t2/segmenter --format openvino --output exports/t2
  mrseg export --segmenter runs/t2/fast --format openvino --precision int8 --output exports/t2_int8
"""

WEIGHTS = """\
Weights load by name: mrseg.Segmenter.load("phantom_t1_unet"), --from phantom_t1_unet, --segmenter ... .
They lie in the folder that MRSEG_WEIGHTS names (default: ~/.mrseg/weights); small ones trained on synthetic
T1-w heads come with mrseg. Nothing is ever downloaded.

  mrseg weights                                           list
  mrseg weights phantom_t1_unet                           the card: data, recipe, licence, figures
  mrseg weights phantom_t1_unet --full                    all of it, as JSON
  mrseg weights ward7_t1 --import runs/t1/segmenter       keep a trained segmenter under a name
  mrseg weights ward7_t1 --export ward7_t1.zip            pack it to hand on
  mrseg weights ward7_t1 --import ward7_t1.zip            on the other machine
"""


def add_segmenter_commands(command: AddCommand) -> None:
    """Adds the parsers, each made by ``command``."""
    calibrate = command("calibrate", _calibrate, "prepare a segmenter for int8, on some scans", CALIBRATE)
    add_segmenter(calibrate)
    calibrate.add_argument("--input", type=Path, nargs="+", required=True, metavar="SCAN", help="scans")
    calibrate.add_argument("--output", type=Path, required=True, help="folder for the calibrated segmenter")
    calibrate.add_argument("--threads", type=int, help="default: all cores")

    export = command("export", _export, "write a segmenter's network for OpenVINO or ONNX Runtime", EXPORT)
    add_segmenter(export)
    export.add_argument("--format", required=True, choices=("openvino", "onnx"), help="who is to read it")
    export.add_argument("--output", type=Path, required=True, help="folder for the network and its card")
    export.add_argument(
        "--precision", default="float32", choices=("float32", "int8"),
        help="int8 for openvino, after `mrseg calibrate` (default: float32)",
    )  # fmt: skip
    export.add_argument("--batch-size", type=int, help="patches in one call, fixed (default: 2)")

    weights = command("weights", _weights, "list trained weights, import or export them", WEIGHTS)
    weights.add_argument("name", nargs="?", help="print the card of these (or import under this name)")
    weights.add_argument("--full", action="store_true", help="print the whole card, as JSON")
    moves = weights.add_mutually_exclusive_group()
    moves.add_argument("--import", dest="source", type=Path, metavar="PATH", help="segmenter folder or .zip")
    moves.add_argument("--export", dest="archive", type=Path, metavar="ZIP", help="pack the named weights")


def _calibrate(options: argparse.Namespace) -> None:
    import dataclasses

    from mrseg import store
    from mrseg.formats import to_text
    from mrseg.segmenter import Segmenter
    from mrseg.tables import table

    store.check_replaceable(options.output, store.CARD, "a segmenter", "segmenter")
    segmenter = Segmenter.load(options.segmenter, engine="openvino", threads=options.threads)
    fast = segmenter.calibrated(options.input, progress=True)
    exact = dataclasses.replace(fast, precision="float32")
    rows = []
    for scan in options.input:
        same = fast.predict(scan, progress=True).labels == exact.predict(scan, progress=True).labels
        rows.append({"scan": scan.name, "labels as in float32": f"{same.mean():.4%}"})
    fast.save(options.output)
    print(to_text(table(rows, caption="Voxels to which int8 gives the label of float32.")))
    print(f"\nsegmenter: {options.output}")


def _export(options: argparse.Namespace) -> None:
    from mrseg.segmenter import Segmenter

    if options.batch_size is not None and options.batch_size < 1:
        raise error("--batch-size is 1 or more.", options.batch_size)
    segmenter = Segmenter.load(options.segmenter)
    folder = segmenter.export(
        options.output, format=options.format, precision=options.precision, batch_size=options.batch_size
    )
    print(f"export: {folder}")


def _weights(options: argparse.Namespace) -> None:
    import json

    from mrseg import store
    from mrseg.cards import card_lines
    from mrseg.formats import to_text
    from mrseg.tables import table

    if options.source:
        from mrseg.segmenter import Segmenter

        stored = store.import_weights(options.source, options.name or "", check=Segmenter.load)
        print(f"stored: {stored.name} in {stored.folder}")
    elif options.archive:
        if not options.name:
            raise error("--export needs the name of the weights.", "none", "See `mrseg weights`.")
        print(f"archive: {store.export_weights(options.name, options.archive)}")
    elif options.name:
        folder = existing_folder(store.find(options.name))
        card = store.read_card(folder)
        print(
            json.dumps(card, indent=2, ensure_ascii=False)
            if options.full
            else "\n".join(card_lines(folder, card))
        )
    else:
        rows = [
            {
                "name": stored.name,
                "sequence": stored.card["sequence"],
                "classes": ", ".join(stored.card["class_names"]),
                "network": stored.builder,
                "from": "mrseg" if stored.built_in else "store",
            }
            for stored in store.list_weights()
        ]
        print(
            to_text(table(rows, caption=f"Weights in {store.store_folder()} and those that come with mrseg."))
        )
