"""A segmenter: network, preprocessing, label table and provenance in one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import nibabel as nib
import numpy as np

import mrseg.models.blocks  # noqa: F401  (registers the layers that a network file may hold)
from mrseg import store
from mrseg._checks import InputError, choice, error, existing_folder
from mrseg._files import atomic_folder
from mrseg.data.cases import Case
from mrseg.data.geometry import Volume
from mrseg.data.io import read_volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.inference import compile_forward, predict_probabilities


@dataclass
class Segmenter:
    """Segments scans on their own grid.

    Attributes:
        model: network whose input is a patch of ``sampling.patch_shape`` and whose output are class
            probabilities.
        preprocessing: from the scan's grid to the network's.
        sampling: patches and their overlap at prediction.
        class_names: name of every output channel; the position is the label's value.
        sequence: MR sequence the network was trained on last, say ``T2w``.
        batch_size: patches in one call of the network, a matter of memory and speed alone; not saved.
        provenance: recipe, data, seed, versions: whatever explains the weights; plain JSON values.

    Example:
        >>> segmenter = mrseg.Segmenter.load("runs/demo/segmenter")
        >>> label_image = segmenter("t2.nii.gz")           # nibabel image on the scan's grid
        >>> label_image.to_filename("t2_dseg.nii.gz")
    """

    model: keras.Model
    preprocessing: Preprocessing
    sampling: Sampling
    class_names: tuple[str, ...]
    sequence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 2

    def __post_init__(self) -> None:
        channels = self.model.output_shape[-1]
        if channels != len(self.class_names):
            raise error(
                "Every output channel needs a class name.", f"{channels} channels, {self.class_names}"
            )
        self._forward: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Segmenter:
        """Reads a folder that `save` wrote, or weights by their name (`mrseg weights`).

        Args:
            folder: folder, or a name such as ``phantom_t1_unet`` if there is no such folder.

        Raises:
            FileNotFoundError: the folder or a part of it is missing; the message names the part.
            InputError: the card is damaged, or the network is not the one that was saved with it.
        """
        folder = existing_folder(store.find(folder))
        card = store.read_card(folder)
        try:
            parts = {
                "preprocessing": Preprocessing(**_tuples(card["preprocessing"])),
                "sampling": Sampling(**_tuples(card["sampling"])),
                "class_names": tuple(card["class_names"]),
                "sequence": card["sequence"],
                "provenance": card["provenance"],
            }
        except TypeError as reason:
            raise error(
                f"{store.CARD} must be the card that mrseg wrote.", f"{folder / store.CARD} ({reason})"
            ) from None
        try:
            model = _read_network(store.network_files(folder, card))
        except InputError:
            raise
        except (ValueError, TypeError, OSError, zipfile.BadZipFile) as reason:
            raise error(
                "A network is made of layers of Keras and mrseg, and of no code of its own.",
                f"{folder} ({' '.join(str(reason).split())[:300]})",
                "Save it again with the version of mrseg that made it.",
            ) from None
        return cls(model=model, **parts)

    def save(self, folder: str | Path, *, weights_dtype: str = "float32") -> Path:
        """Writes the folder as a whole: ``segmenter.json`` and the network.

        Args:
            folder: new, empty, or of a segmenter that it replaces.
            weights_dtype: "float32", or "float16" for half the size: weights are rounded to 11 binary digits
                and are float32 again when loaded.

        Raises:
            InputError: the folder holds something else than a segmenter, which would be lost; a weight that
                float16 cannot hold.
        """
        folder = Path(folder)
        choice("weights_dtype", weights_dtype, store.NETWORK_FILES)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / store.CARD).is_file():
            raise error(
                "A segmenter replaces a segmenter or an empty folder only.",
                f"{folder}, which holds other files",
                "Name a folder of its own, say " + str(folder / "segmenter") + ".",
            )
        with atomic_folder(folder) as temporary:
            card = {
                "class_names": list(self.class_names),
                "sequence": self.sequence,
                "preprocessing": dataclasses.asdict(self.preprocessing),
                "sampling": dataclasses.asdict(self.sampling),
                "provenance": self.provenance,
                "weights_dtype": weights_dtype,
            }
            files = store.network_files(temporary, card)
            _write_network(self.model, files)
            card["network_sha256"] = store.checksum(files)
            (temporary / store.CARD).write_text(json.dumps(card, indent=2))
        return folder

    def __call__(self, scan: str | Path | Volume, *, progress: bool = False) -> nib.Nifti1Image:
        """Label map of a scan on the scan's own grid, shape, affine and orientation untouched.

        Args:
            scan: file, or (array (x, y, z), affine).
            progress: show a bar over the patches.

        Returns:
            NIfTI image of uint8 labels.
        """
        volume = scan if isinstance(scan, tuple) else read_volume(scan)
        labels = self.probabilities(volume, progress=progress).argmax(-1).astype(np.uint8)
        image = nib.Nifti1Image(labels, volume[1])
        image.header.set_xyzt_units("mm")
        return image

    def probabilities(self, volume: Volume, *, progress: bool = False) -> np.ndarray:
        """Class probabilities on the scan's own grid.

        Args:
            volume: array (x, y, z) in any orientation, affine.
            progress: show a bar over the patches.

        Returns:
            (x, y, z, classes) float32.
        """
        image, affine = self.preprocessing.image(volume)
        if self._forward is None:
            self._forward = compile_forward(self.model, (self.batch_size, *self.sampling.input_shape))
        probabilities = predict_probabilities(
            self._forward,
            image,
            self.sampling,
            num_classes=len(self.class_names),
            batch_size=self.batch_size,
            progress=progress,
        )
        return self.preprocessing.to_native(probabilities, affine, volume[0].shape, volume[1])


def subject_digest(case: Case) -> str:
    """Short digest of a subject's name: a segmenter knows whom it has seen without naming anyone."""
    return hashlib.sha256(f"mrseg {case.subject}".encode()).hexdigest()[:16]


def trained_on(segmenter: Segmenter, cases: Sequence[Case]) -> list[str]:
    """Names of the subjects of ``cases`` that the segmenter, or one it came from, was trained on."""
    seen: set[str] = set()
    provenance: dict[str, Any] | None = segmenter.provenance
    while provenance:
        seen |= set(provenance.get("subject_digests", ()))
        provenance = provenance.get("source")
    return sorted({case.subject for case in cases if subject_digest(case) in seen})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON gives lists where the dataclasses hold tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _write_network(model: keras.Model, files: Sequence[Path]) -> None:
    if len(files) == 1:
        model.save(files[0])
        return
    weights = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    with np.errstate(over="ignore"):
        halves = {path: w.astype(np.float16) if w.dtype == np.float32 else w for path, w in weights.items()}
    for path, half in halves.items():
        if not np.isfinite(half).all():
            raise error("float16 holds numbers up to 65504.", f"a larger one in {path}", "Save in float32.")
    network = json.loads(model.to_json())
    network.pop("compile_config", None)  # loss and optimiser belong to the training
    files[0].write_text(json.dumps(network))
    np.savez_compressed(files[1], **halves)


def _read_network(files: Sequence[Path]) -> keras.Model:
    if len(files) == 1:
        return keras.saving.load_model(files[0], compile=False)
    model = keras.models.model_from_json(files[0].read_text())
    with np.load(files[1], allow_pickle=False) as halves:
        missing = {w.path for w in model.weights} ^ set(halves.files)
        if missing:
            raise error("Weights and network have the same tensors.", f"{files[1]}, {sorted(missing)[0]}")
        for w in model.weights:
            w.assign(halves[w.path].astype(w.dtype))
    return model
