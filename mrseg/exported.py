"""A segmenter without Keras: the folder that `Segmenter.export` writes, and what runs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib

from mrseg import store
from mrseg._checks import choice, error, existing_folder
from mrseg._files import atomic_folder, checksum
from mrseg.data.geometry import Volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.engines import FILES, Engine
from mrseg.maps import Maps
from mrseg.passes import DEFAULT, Forward, Inference
from mrseg.postprocess import Postprocessing
from mrseg.segmenting import parts_of, segment

CARD = "export.json"
_KEYS = ("class_names", "sequence", "preprocessing", "sampling", "provenance", "format", "input_shape")


@dataclass(frozen=True)
class Exported:
    """Segments scans with an exported network; loads neither Keras nor TensorFlow.

    Attributes:
        forward: from a batch of patches (batch, *patch, channels) to probabilities.
        batch_size: patches in one call, as exported.
        preprocessing, sampling, class_names, sequence, crf, postprocessing, provenance: as `mrseg.Segmenter`
            has them.

    Example:
        >>> exported = mrseg.Exported.load("exports/t2")
        >>> exported("t2.nii.gz").to_filename("t2_dseg.nii.gz")
    """

    forward: Forward
    batch_size: int
    preprocessing: Preprocessing
    sampling: Sampling
    class_names: tuple[str, ...]
    sequence: str = ""
    crf: bool = False
    postprocessing: Postprocessing = Postprocessing()
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls, folder: str | Path, *, precision: str | None = None, threads: int | None = None
    ) -> Exported:
        """Reads a folder that `Segmenter.export` wrote.

        Args:
            folder: of the export.
            precision: None takes the export's own, ``float32`` or ``int8``; an export for openvino in float32
                can be run in ``bfloat16``.
            threads: of the processor; None takes all cores.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            InputError: a damaged card or network; the engine is not installed; int8 asked of an export in
                float32, or the other way round.
        """
        folder = existing_folder(folder)
        card = _read_card(folder)
        parts = parts_of(card, folder / CARD)
        own = card.get("precision", "float32")
        if precision is not None and "int8" in {own, precision} and own != precision:
            raise error(
                "int8 is decided when a network is exported.",
                f"an export in {own}, to be run in {precision}",
                f"Leave the precision out, or export again with --precision {precision}.",
            )
        engine = Engine(card["format"], precision or own, threads)
        return cls(engine.forward(folder / FILES[engine.name]), batch_size=card["input_shape"][0], **parts)

    def __call__(self, scan: str | Path | Volume, *, progress: bool = False) -> nib.Nifti1Image:
        """Label map of a scan on the scan's own grid, as `mrseg.Segmenter` gives it."""
        return self.predict(scan, progress=progress).label_image()

    def predict(
        self,
        scan: str | Path | Volume,
        *,
        inference: Inference = DEFAULT,
        probabilities: bool = False,
        scratch: str | Path | None = None,
        progress: bool = False,
    ) -> Maps:
        """Labels of a scan on its own grid and, when asked for, probabilities and a map of uncertainty.

        Args:
            scan: file, or (array (x, y, z) in any orientation, affine).
            inference: overlap, blending, mirrors, which uncertainty. Whole volumes, dropout and another batch
                size would need another network.
            probabilities: keep those of all classes.
            scratch: folder of a temporary file that holds them instead of the memory.
            progress: show a bar over the patches.

        Raises:
            InputError: a scan that cannot be read; an ``inference`` that the network's fixed form excludes.
        """
        if (
            inference.extent != "patch"
            or inference.dropout_samples
            or inference.batch_size not in (None, self.batch_size)
        ):
            raise error(
                "An exported network takes patches in batches of a fixed size, without dropout.",
                f"extent={inference.extent!r}, dropout_samples={inference.dropout_samples}, "
                f"batch_size={inference.batch_size}",
                f"Leave them out (the batch size is {self.batch_size}), or ask the segmenter itself.",
            )
        return segment(
            self, scan, lambda shape, asked: (self.forward, self.sampling),
            inference=dataclasses.replace(inference, batch_size=self.batch_size),
            probabilities=probabilities, scratch=scratch, progress=progress,
        )  # fmt: skip


def write_export(
    folder: str | Path,
    card: Mapping[str, Any],
    format: str,
    precision: str,
    input_shape: tuple[int, ...],
    write: Callable[[Path], Path],
) -> Path:
    """Writes the folder as a whole: the network, ``export.json`` and ``README.md``.

    Args:
        folder: new, empty, or of an export that it replaces.
        card: what the segmenter's card says.
        format: ``openvino`` or ``onnx``.
        precision: ``float32`` or ``int8``.
        input_shape: (batch, *patch, channels).
        write: puts the network into a folder and returns its file.

    Raises:
        InputError: an unknown format; the folder holds something else, which would be lost.
    """
    choice("format", format, FILES)
    folder = Path(folder)
    store.check_replaceable(folder, CARD, "an export", "export")
    with atomic_folder(folder) as temporary:
        file = write(temporary)
        written = {
            **card,
            "format": format,
            "precision": precision,
            "input_shape": list(input_shape),
            "network_sha256": checksum(_network_files(temporary)),
        }
        (temporary / CARD).write_text(json.dumps(written, indent=2), encoding="utf-8")
        (temporary / "README.md").write_text(_readme(written, file.name), encoding="utf-8")
    return folder


def _read_card(folder: Path) -> dict[str, Any]:
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"An export holds {CARD} and its network. Received: {folder} without {CARD}. "
            "Make it with `mrseg export`; a segmenter's own folder is loaded by mrseg.Segmenter."
        )
    card = store.parse_card(folder / CARD, _KEYS, lambda card: choice("format", card.get("format"), FILES))
    store.check_network(folder / CARD, card, _network_files(folder))
    return card


def _network_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("network.*"))


_CALLS = {
    "openvino": """\
import openvino
network = openvino.Core().compile_model("network.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
probabilities = network(batch)[0]""",
    "onnx": """\
import onnxruntime
network = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
probabilities = network.run(None, {network.get_inputs()[0].name: batch})[0]""",
}


def _readme(card: Mapping[str, Any], file: str) -> str:
    """What a stranger must know to run the network."""
    shape, patch = card["input_shape"], card["sampling"]["patch_shape"]
    axes = "x, y, z" if len(shape) == 5 else "the two axes within a slice, in the order of x, y, z"
    classes = "\n".join(f"| {number} | {name} |" for number, name in enumerate(card["class_names"]))
    preparation = ", ".join(f"{key}: {value}" for key, value in card["preprocessing"].items())
    mean = card["sampling"].get("channel_mean")
    return f"""\
# {card["network"]}, exported from mrseg

`{file}` takes float32 of shape {tuple(shape)}: (batch, {axes}, channels), and gives probabilities of shape
(batch, the same axes, {len(card["class_names"])} classes).

- Its convolutions compute in {card["precision"]}.
- Axes x, y, z are those of RAS+: to the right, to the front, to the top. One patch is {tuple(patch)} voxels
  (a 1 is the axis across slices); channels beyond one are neighbouring slices, in their order.
- Preparation of a scan ({CARD}, `preprocessing`): {preparation}.
- Subtracted from each channel, last of all: {list(mean) if mean else "nothing"}.
- Patches overlap by {card["sampling"]["overlap"]} and are blended with a Gaussian of sigma a quarter
  of their size.
- The largest probability gives the label. A dense random field goes before: {card["crf"]}. Clean-up of
  the label map after it: {CARD}, `postprocessing`.

| label | class |
|---|---|
{classes}

MR sequence: {card["sequence"] or "not stated"}. Not a medical device.

With mrseg, and without TensorFlow or Keras:

```python
import mrseg

mrseg.Exported.load("this folder")("scan.nii.gz").to_filename("labels.nii.gz")
```

The network alone, on prepared patches:

```python
{_CALLS[card["format"]]}
```
"""
