"""A segmenter: network, preprocessing, label table and provenance in one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import nibabel as nib
import numpy as np

import mrseg.models.blocks  # noqa: F401  (registers the layers that a network file may hold)
from mrseg import store
from mrseg._checks import InputError, choice, error, existing_folder
from mrseg._files import atomic_folder, checksum
from mrseg.baselines.crf import dense_crf_volume
from mrseg.data.cases import Case
from mrseg.data.geometry import Grid, Volume, from_canonical, to_canonical, voxel_sizes
from mrseg.data.io import read_volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.forward import LARGEST_MULTIPLE, compile_forward, for_volume, with_dropout
from mrseg.inference import Slab, predict_slabs, whole
from mrseg.maps import Maps, collect, memory_mb
from mrseg.passes import BATCH_SIZE, DEFAULT, Forward, Inference
from mrseg.postprocess import Postprocessing
from mrseg.weight_files import check_weight_file

log = logging.getLogger(__name__)


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
        crf: refine the probabilities by a dense conditional random field, slice by slice, before the largest
            wins (mecheter2020, Table II).
        postprocessing: clean-up of the label map, in RAS+ orientation; as it stands it changes nothing.
            Probabilities and uncertainty are those before it.
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
    crf: bool = False
    postprocessing: Postprocessing = Postprocessing()
    provenance: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 2

    def __post_init__(self) -> None:
        channels = self.model.output_shape[-1]
        if channels != len(self.class_names):
            raise error(
                "Every output channel needs a class name.", f"{channels} channels, {self.class_names}"
            )
        if not all(self.class_names) or len(set(self.class_names)) != channels:
            raise error("Class names are different, and none is empty.", self.class_names)
        wanted = self.sampling.input_shape
        known = self.model.input_shape[1:]
        if len(known) != len(wanted) or any(k not in (None, w) for k, w in zip(known, wanted, strict=True)):
            raise error(
                "The network's input is a patch of the sampling with its channels.",
                f"a network for {known}, patches of {wanted}",
            )
        self._forwards: dict[
            tuple[tuple[int, ...] | None, int | None, bool],
            tuple[Forward, Sampling, Callable[[int], None] | None],
        ] = {}

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
                "crf": card.get("crf", False),
                "postprocessing": Postprocessing(**_tuples(card.get("postprocessing", {}))),
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
                "crf": self.crf,
                "postprocessing": dataclasses.asdict(self.postprocessing),
                "provenance": self.provenance,
                "weights_dtype": weights_dtype,
            }
            files = store.network_files(temporary, card)
            _write_network(self.model, files)
            card["network_sha256"] = checksum(files)
            (temporary / store.CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")
        return folder

    def __call__(self, scan: str | Path | Volume, *, progress: bool = False) -> nib.Nifti1Image:
        """Label map of a scan on the scan's own grid, shape, affine and orientation untouched.

        Args:
            scan: file, or (array (x, y, z), affine).
            progress: show a bar over the patches.

        Returns:
            NIfTI image of uint8 labels.
        """
        maps = self.predict(scan, progress=progress)
        image = nib.Nifti1Image(maps.labels, maps.affine)
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
        maps = self.predict(volume, probabilities=True, progress=progress)
        assert maps.probabilities is not None
        return maps.probabilities

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

        The memory it takes at most (`memory_mb`) is logged before it starts.

        Args:
            scan: file, or (array (x, y, z) in any orientation, affine).
            inference: overlap, blending, mirrors, Monte-Carlo dropout, which uncertainty.
            probabilities: keep those of all classes.
            scratch: folder of a temporary file that holds them instead of the memory.
            progress: show a bar over the patches.

        Returns:
            Arrays in the scan's orientation, and its affine.

        Raises:
            InputError: a scan that cannot be read or normalised; a network that has no dropout or cannot be
                built at the volume's size, where these are asked for; answers that are no probabilities.
        """
        volume = scan if isinstance(scan, tuple) else read_volume(_path(scan))
        array = np.asarray(volume[0])
        if array.ndim != 3 or array.dtype.kind not in "biuf":
            raise error("A scan has three axes (x, y, z) of real numbers.", f"{array.dtype} {array.shape}")
        native: Grid = (volume[0].shape, volume[1])
        if _looks_like_labels(volume[0]):
            log.warning("the scan holds a few whole numbers alone: is it a label map?")
        estimate = self.memory_mb(
            native, inference=inference, probabilities=probabilities and scratch is None
        )
        log.info("at most %.0f MB besides the network and TensorFlow", estimate)
        image, affine = self.preprocessing.image(volume)
        inference = self._settled(inference)
        forward, sampling = self._compiled(image.shape, inference)
        classes = len(self.class_names)
        slabs = predict_slabs(
            forward, image, sampling, num_classes=classes, inference=inference, progress=progress
        )
        if self.crf:
            axis = 2 if sampling.slice_axis is None else sampling.slice_axis
            slabs = _refined(slabs, image, axis, classes)
        maps = collect(
            slabs, (image.shape, affine), native, num_classes=classes, uncertainty=inference.uncertainty,
            probabilities=probabilities, scratch=scratch,
        )  # fmt: skip
        if self.postprocessing == Postprocessing():
            return maps
        labels, turned = to_canonical((maps.labels, maps.affine))
        cleaned = self.postprocessing(labels, voxel_sizes(turned))
        return dataclasses.replace(maps, labels=from_canonical(cleaned, *native))

    def memory_mb(
        self, native: Grid, *, inference: Inference = DEFAULT, probabilities: bool = False
    ) -> float:
        """Memory in MB (10^6 bytes) that `predict` takes at most, besides the network and TensorFlow.

        Args:
            native: shape and affine of the scan, as `mrseg.data.io.volume_header` reads them.
            inference: as for `predict`.
            probabilities: whether those of all classes are kept in memory.
        """
        shape, inference = self.preprocessing.grid_shape(native), self._settled(inference)
        sampling = self.sampling
        if inference.extent == "whole":
            patch = [n for n, thick in zip(shape, sampling.patch_shape, strict=True) if thick != 1]
            sampling = whole(sampling, [-(-n // LARGEST_MULTIPLE) * LARGEST_MULTIPLE for n in patch])
        predicting = memory_mb(
            shape, native, sampling, len(self.class_names), inference=inference, probabilities=probabilities,
            resampled=self.preprocessing.grid != "native",
        )  # fmt: skip
        return max(self.preprocessing.memory_mb(native), predicting)

    def check(self, inference: Inference) -> None:
        """Raises InputError unless the network can be asked in this way (dropout, whole volumes)."""
        self._compiled(self.sampling.patch_shape, self._settled(inference))

    @property
    def digest(self) -> str:
        """Checksum of what decides a label map: network, weights, preprocessing, sampling, class names."""
        parts = [
            dataclasses.asdict(self.preprocessing),
            dataclasses.asdict(self.sampling),
            self.crf,
            dataclasses.asdict(self.postprocessing),
            self.class_names,
            self.model.to_json(),
        ]
        total = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for weight in self.model.get_weights():
            total.update(np.ascontiguousarray(weight).tobytes())
        return total.hexdigest()

    def _settled(self, inference: Inference) -> Inference:
        """The same with a batch size: the segmenter's own, or 1 where a volume is one patch."""
        if inference.extent == "whole" and self.sampling.slice_axis is None:
            return dataclasses.replace(inference, batch_size=1)
        return dataclasses.replace(inference, batch_size=inference.batch_size or self.batch_size)

    def _compiled(self, shape: tuple[int, ...], inference: Inference) -> tuple[Forward, Sampling]:
        """The compiled network and the patches it takes; made once for every kind of call."""
        spatial = None
        if inference.extent == "whole":
            spatial = tuple(
                n for n, patch in zip(shape, self.sampling.patch_shape, strict=True) if patch != 1
            )
            # Another size is another network; only the last one is kept.
            self._forwards = {key: made for key, made in self._forwards.items() if key[0] in (None, spatial)}
        key = (spatial, inference.batch_size, bool(inference.dropout_samples))
        if key not in self._forwards:
            network, sampling, restart = self.model, self.sampling, None
            if spatial is not None:
                network = for_volume(network, spatial)
                sampling = whole(sampling, network.input_shape[1:-1])
            if inference.dropout_samples:
                network, restart = with_dropout(network)
            batch_shape = (inference.batch_size or BATCH_SIZE, *sampling.input_shape)
            self._forwards[key] = compile_forward(network, batch_shape), sampling, restart
        forward, sampling, restart = self._forwards[key]
        if restart:
            restart(inference.seed)
        return forward, sampling


def _path(scan: object) -> str | Path:
    if isinstance(scan, str | Path):
        return scan
    raise error(
        "A scan is a file or a pair of (array, affine).",
        type(scan).__name__,
        "Of a nibabel image pass (np.asarray(image.dataobj), image.affine).",
    )


def _looks_like_labels(image: np.ndarray) -> bool:
    """Whether some thousands of the voxels hold at most 24 different values, all whole."""
    values = np.unique(image.ravel()[:: max(1, image.size // 20_000)])
    return 1 < len(values) <= 24 and bool((values == np.round(values)).all()) and image.size > 20_000


def _refined(slabs: Iterator[Slab], image: np.ndarray, axis: int, classes: int) -> Iterator[Slab]:
    """Slabs whose slices along ``axis`` went through the conditional random field with the image's.

    Where slabs lie across the slices, they are put together first, and all classes are in memory at once.
    """
    first = next(slabs)
    parts: Iterable[Slab] = itertools.chain([first], slabs)
    if first.axis != axis:
        parts = [first._replace(values=np.concatenate([slab.values for slab in parts], first.axis))]
    for slab in parts:
        thickness = slab.values.shape[slab.axis]
        at = (slice(None),) * slab.axis + (slice(slab.first, slab.first + thickness),)
        values = slab.values.copy()
        values[..., :classes] = dense_crf_volume(values[..., :classes], image[at], slice_axis=axis)
        yield slab._replace(values=values)


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
    files[0].write_text(json.dumps(network), encoding="utf-8")
    np.savez_compressed(files[1], **halves)


def _read_network(files: Sequence[Path]) -> keras.Model:
    if len(files) == 1:
        check_weight_file(files[0])
        return keras.saving.load_model(files[0], compile=False, safe_mode=True)
    model = keras.models.model_from_json(files[0].read_text(encoding="utf-8"))
    with np.load(files[1], allow_pickle=False) as halves:
        missing = {w.path for w in model.weights} ^ set(halves.files)
        if missing:
            raise error("Weights and network have the same tensors.", f"{files[1]}, {sorted(missing)[0]}")
        for w in model.weights:
            w.assign(halves[w.path].astype(w.dtype))
    return model
