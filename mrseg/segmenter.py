"""A segmenter: network, preprocessing, label table and provenance in one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import keras
import nibabel as nib
import numpy as np
from tqdm import tqdm

import mrseg.models.blocks  # noqa: F401  (registers the layers that a network file may hold)
from mrseg import store
from mrseg._checks import InputError, choice, error, existing_folder
from mrseg._files import atomic_folder, checksum
from mrseg.data.cases import Case
from mrseg.data.geometry import Grid, Volume
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.engines import Engine
from mrseg.exported import write_export
from mrseg.forward import for_volume, with_dropout
from mrseg.graphs import compile_engine, convert, fingerprint
from mrseg.inference import whole
from mrseg.maps import Maps
from mrseg.models.batch_norm import use_fused_norms
from mrseg.models.files import load_network, network_from_json
from mrseg.passes import BATCH_SIZE, DEFAULT, Forward, Inference
from mrseg.postprocess import Postprocessing
from mrseg.quantization import Calibrator, Ranges
from mrseg.segmenting import needed_mb, parts_of, segment
from mrseg.weight_files import check_weight_file


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
        engine: who computes: ``tensorflow``, ``openvino`` or ``onnx`` (`mrseg.engines.Engine`); not saved.
        precision: ``float32``, or with the engine openvino ``bfloat16`` or ``int8``; not saved.
        threads: of openvino and onnx; None takes all cores; not saved.
        provenance: recipe, data, seed, versions: whatever explains the weights; plain JSON values.
        calibration: what `calibrated` saw, which int8 needs.

    Example:
        >>> segmenter = mrseg.Segmenter.load("runs/demo/segmenter")
        >>> label_image = segmenter("t2.nii.gz")           # nibabel image on the scan's grid
        >>> label_image.to_filename("t2_dseg.nii.gz")
    """

    model: keras.Model = field(repr=False)
    preprocessing: Preprocessing
    sampling: Sampling
    class_names: tuple[str, ...]
    sequence: str = ""
    crf: bool = False
    postprocessing: Postprocessing = Postprocessing()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    calibration: Ranges = field(default_factory=dict, repr=False)
    batch_size: int = 2
    engine: str = "tensorflow"
    precision: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.computing.precision == "int8" and not self.calibration:
            raise error(
                "int8 needs a segmenter that was calibrated on scans.",
                "one that was not",
                "Calibrate it: mrseg calibrate, Segmenter.calibrated.",
            )
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
        self._forwards: dict[tuple[Any, ...], tuple[Forward, Sampling, Callable[[int], None] | None]] = {}

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        engine: str = "tensorflow",
        precision: str = "float32",
        threads: int | None = None,
    ) -> Segmenter:
        """Reads a folder that `save` wrote, or weights by their name (`mrseg weights`).

        Args:
            folder: folder, or a name such as ``phantom_t1_unet`` if there is no such folder.
            engine, precision, threads: who computes, as the attributes say.

        Raises:
            FileNotFoundError: the folder or a part of it is missing; the message names the part.
            InputError: the card is damaged, or the network is not the one that was saved with it; the engine
                is unknown, not installed, or has no such precision on this machine.
        """
        Engine(engine, precision, threads).check()  # before a network is read for nothing
        folder = existing_folder(store.find(folder))
        card = store.read_card(folder)
        parts = parts_of(card, folder / store.CARD)
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
        calibration = {key: (low, high) for key, (low, high) in card.get("calibration", {}).items()}
        return cls(
            model=model, **parts, calibration=calibration, engine=engine, precision=precision, threads=threads
        )

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
        store.check_replaceable(folder, store.CARD, "a segmenter", "segmenter")
        with atomic_folder(folder) as temporary:
            card = {**self._card(), "weights_dtype": weights_dtype}
            files = store.network_files(temporary, card)
            _write_network(self.model, files)
            card["network_sha256"] = checksum(files)
            (temporary / store.CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")
        return folder

    def calibrated(self, scans: Sequence[str | Path | Volume], *, progress: bool = False) -> Segmenter:
        """The same segmenter for int8: a pass in float32 over scans shows which ranges its numbers take.

        The ranges are saved with it. Numbers beyond them are cut off, so the scans should vary as those to
        come do; three to five of them, of no test subject. Compare Dice before you rely on it.

        Args:
            scans: files, or pairs of (array (x, y, z) in any orientation, affine).
            progress: show a bar over the scans.

        Raises:
            InputError: no scan, or one that cannot be read; OpenVINO is not installed or has no int8 on this
                processor.

        Example:
            >>> fast = segmenter.calibrated(["ward1_T2w.nii.gz", "ward2_T2w.nii.gz"])
            >>> fast.save("runs/t2/fast")
            >>> fast = mrseg.Segmenter.load("runs/t2/fast", engine="openvino", precision="int8")
        """
        if not scans:
            raise error("A calibration needs a scan.", "none")
        engine = Engine("openvino", "int8", None if self.engine == "tensorflow" else self.threads)
        engine.check()
        inference = self._settled(DEFAULT)
        shape = (inference.batch_size or BATCH_SIZE, *self.sampling.input_shape)
        with tempfile.TemporaryDirectory() as folder:
            watched = Calibrator(convert(self.model, shape, engine.name, folder), engine.threads)
        for scan in tqdm(scans, desc="calibrating", unit="scan", disable=not progress):
            segment(self, scan, lambda shape, asked: (watched, self.sampling), inference=inference)
        return dataclasses.replace(
            self, calibration=watched.ranges, engine=engine.name, precision=engine.precision,
            threads=engine.threads,
        )  # fmt: skip

    def export(
        self,
        folder: str | Path,
        *,
        format: str,
        precision: str = "float32",
        batch_size: int | None = None,
    ) -> Path:
        """Writes the network for OpenVINO or ONNX Runtime, with all that a scan needs before and after it.

        `mrseg.Exported` runs the folder without Keras and TensorFlow; its README says how to call the network
        alone.

        Args:
            folder: new, empty, or of an export that it replaces.
            format: ``openvino`` or ``onnx``.
            precision: ``float32``, or ``int8`` for openvino, of a segmenter that was `calibrated`.
            batch_size: patches in one call, fixed in the file; None takes the segmenter's own.

        Returns:
            The folder: the network, ``export.json`` and ``README.md``.

        Raises:
            InputError: the folder holds something else; the engine is not installed or does not know a layer
                of the network; int8 without a calibration.
        """
        choice("precision", precision, ("float32", "int8"))
        ranges = self.calibration if precision == "int8" else None
        shape = (batch_size or self.batch_size, *self.sampling.input_shape)
        card = {**self._card(), "network": self.model.name, "digest": self.digest}
        return write_export(
            folder, card, format, precision, shape,
            lambda place: convert(self.model, shape, format, place, ranges),
        )  # fmt: skip

    def __call__(self, scan: str | Path | Volume, *, progress: bool = False) -> nib.Nifti1Image:
        """Label map of a scan on the scan's own grid, shape, affine and orientation untouched.

        Args:
            scan: file, or (array (x, y, z), affine).
            progress: show a bar over the patches.

        Returns:
            NIfTI image of uint8 labels.
        """
        return self.predict(scan, progress=progress).label_image()

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
                built at the volume's size, where these are asked for; an engine that cannot run it; answers
                that are no probabilities.
        """
        return segment(
            self, scan, self._compiled, inference=self._settled(inference), probabilities=probabilities,
            scratch=scratch, progress=progress,
        )  # fmt: skip

    def memory_mb(
        self, native: Grid, *, inference: Inference = DEFAULT, probabilities: bool = False
    ) -> float:
        """Memory in MB (10^6 bytes) that `predict` takes at most, besides the network and what computes it.

        Args:
            native: shape and affine of the scan, as `mrseg.data.io.volume_header` reads them.
            inference: as for `predict`.
            probabilities: whether those of all classes are kept in memory.
        """
        return needed_mb(self, native, inference=self._settled(inference), probabilities=probabilities)

    def check(self, inference: Inference) -> None:
        """Raises InputError unless the network can be asked in this way (dropout, whole volumes, engine).

        Nothing is compiled for it, unless a converter must show that it knows the network.
        """
        asked, shape = self._settled(inference), self.sampling.patch_shape
        if self.computing.converts:
            self._compiled(shape, asked)
        else:
            self._network_for(shape, asked)

    @property
    def members(self) -> tuple[Segmenter, ...]:
        """Who answers: this one alone (of an `mrseg.Ensemble`, several)."""
        return (self,)

    @property
    def computing(self) -> Engine:
        """Who computes, and in what numbers: ``engine``, ``precision`` and ``threads`` together."""
        return Engine(self.engine, self.precision, self.threads)

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

    def _card(self) -> dict[str, Any]:
        """All but the network, as plain JSON values."""
        return {
            "class_names": list(self.class_names),
            "sequence": self.sequence,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "sampling": dataclasses.asdict(self.sampling),
            "crf": self.crf,
            "postprocessing": dataclasses.asdict(self.postprocessing),
            "provenance": self.provenance,
            "calibration": self.calibration,
        }

    def _settled(self, inference: Inference) -> Inference:
        """The same with a batch size: the segmenter's own, or 1 where a volume is one patch."""
        if inference.extent == "whole" and self.sampling.slice_axis is None:
            return dataclasses.replace(inference, batch_size=1)
        return dataclasses.replace(inference, batch_size=inference.batch_size or self.batch_size)

    def _compiled(self, shape: tuple[int, ...], inference: Inference) -> tuple[Forward, Sampling]:
        """The compiled network and the patches it takes; made once for every kind of call."""
        spatial = self._spatial(shape, inference)
        if spatial is not None:
            # Another size is another network; only the last one is kept.
            self._forwards = {key: made for key, made in self._forwards.items() if key[0] in (None, spatial)}
        engine = self.computing
        weights = fingerprint(self.model) if engine.converts else None
        # A copy of other weights than the model's present ones is of no use any more.
        self._forwards = {k: v for k, v in self._forwards.items() if k[-1] in (None, weights)}
        key = (spatial, inference.batch_size, bool(inference.dropout_samples), engine, weights)
        if key not in self._forwards:
            network, sampling, restart = self._network_for(shape, inference)
            batch_shape = (inference.batch_size or BATCH_SIZE, *sampling.input_shape)
            made = compile_engine(network, batch_shape, engine, self.calibration)
            self._forwards[key] = made, sampling, restart
        forward, sampling, restart = self._forwards[key]
        if restart:
            restart(inference.seed)
        return forward, sampling

    def _network_for(
        self, shape: tuple[int, ...], inference: Inference
    ) -> tuple[keras.Model, Sampling, Callable[[int], None] | None]:
        """The network for this kind of call, the patches it takes, and what restarts its random numbers."""
        network, sampling, restart = self.model, self.sampling, None
        if inference.dropout_samples:
            _check_random(self.computing)
        spatial = self._spatial(shape, inference)
        if spatial is not None:
            network = for_volume(network, spatial)
            sampling = whole(sampling, network.input_shape[1:-1])
        if inference.dropout_samples:
            network, restart = with_dropout(network)
        return network, sampling, restart

    def _spatial(self, shape: tuple[int, ...], inference: Inference) -> tuple[int, ...] | None:
        """Sizes of a whole volume (or its slices) where it is asked for at once, else None."""
        if inference.extent != "whole":
            return None
        return tuple(n for n, patch in zip(shape, self.sampling.patch_shape, strict=True) if patch != 1)


class Asked(Protocol):
    """Who can be asked about scans: a `Segmenter`, which says what each means, or an `mrseg.Ensemble`."""

    @property
    def members(self) -> Sequence[Segmenter]: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def sequence(self) -> str: ...  # noqa: D102
    @property
    def provenance(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def engine(self) -> str: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def __call__(self, scan: str | Path | Volume, *, progress: bool = False) -> nib.Nifti1Image: ...  # noqa: D102
    def probabilities(self, volume: Volume, *, progress: bool = False) -> np.ndarray: ...  # noqa: D102
    def predict(  # noqa: D102
        self,
        scan: str | Path | Volume,
        *,
        inference: Inference = DEFAULT,
        probabilities: bool = False,
        scratch: str | Path | None = None,
        progress: bool = False,
    ) -> Maps: ...
    def memory_mb(  # noqa: D102
        self, native: Grid, *, inference: Inference = DEFAULT, probabilities: bool = False
    ) -> float: ...
    def check(self, inference: Inference) -> None: ...  # noqa: D102


def _check_random(engine: Engine) -> None:
    if engine.converts:
        raise error(
            "Monte-Carlo dropout needs random numbers from Keras.",
            f"the engine {engine.name}, whose copy of the network has none",
            "Take engine='tensorflow', --engine tensorflow, or no dropout samples.",
        )


def subject_digest(case: Case) -> str:
    """Short digest of a subject's name: a segmenter knows whom it has seen without naming anyone."""
    return hashlib.sha256(f"mrseg {case.subject}".encode()).hexdigest()[:16]


def trained_on(segmenter: Asked, cases: Sequence[Case]) -> list[str]:
    """Names of the subjects of ``cases`` that it, a member of it, or one these came from was trained on."""
    seen: set[str] = set()
    pending: list[dict[str, Any] | None] = [segmenter.provenance]
    while pending:
        if provenance := pending.pop():
            seen |= set(provenance.get("subject_digests", ()))
            pending += [provenance.get("source"), *provenance.get("members", ())]
    return sorted({case.subject for case in cases if subject_digest(case) in seen})


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
        model = load_network(files[0])
        use_fused_norms(model)
        return model
    model = network_from_json(files[0].read_text(encoding="utf-8"))
    use_fused_norms(model)
    check_weight_file(files[1])
    with np.load(files[1], allow_pickle=False) as halves:
        missing = {w.path for w in model.weights} ^ set(halves.files)
        if missing:
            raise error("Weights and network have the same tensors.", f"{files[1]}, {sorted(missing)[0]}")
        for w in model.weights:
            w.assign(halves[w.path].astype(w.dtype))
    return model
