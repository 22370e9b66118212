"""A volume through every engine, beside the same network in tuned PyTorch under MONAI's sliding window.

    python benchmarks/engines.py --output docs/results/engines.csv
    python benchmarks/engines.py --dice --output docs/results/engines_dice.csv

Every method lives in a process of its own; a ratio is its seconds / those of the first method (openvino in
int8 where the machine can) within one round. The peer has mrseg's weights, channels last, no gradients,
glibc's allocator told to keep memory, and its best-known way: MONAI's `sliding_window_inference` for volumes,
batches of slices for 2-D networks. Both blend evenly, so that they give the same probabilities: in float32
all but 2 in 1,000 agree to 1e-3, which is checked before anything is timed.

With ``--dice``, the Dice of the trained 3-D weights that come with mrseg, on synthetic heads, per engine and
precision, in patches and in one pass over the whole volume. Speed is that of wider networks without training.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mrseg.formats import write_csv

CLASSES = 3
#: Network -> its arguments, patch and overlap, neighbouring slices, patches in one call.
WORK: dict[str, tuple[dict[str, Any], tuple[int, int, int], float, int, int]] = {
    "se_unet3d": ({"filters": 16}, (128, 128, 48), 0.5, 0, 2),
    "segnet": ({}, (256, 256, 1), 0.0, 0, 4),
    "unet": ({"head": "softmax"}, (256, 256, 1), 0.0, 0, 4),
    "attention_unet": ({"head": "softmax"}, (256, 256, 1), 0.0, 0, 4),
    "sep_res_unet": ({"head": "softmax"}, (256, 256, 1), 0.0, 0, 4),
    "vgg_fcn": ({}, (256, 256, 1), 0.0, 1, 4),
}
#: Peer -> axes of the input with its channels -> times as long as mrseg it should take.
GOALS = {
    "PyTorch float32": {4: 3.0, 3: 2.0},
    "PyTorch float32, 1 window": {4: 3.0},
    "PyTorch bfloat16": {4: 1.5},
}
HEADS = (4242, 4243, 4244)
CALIBRATION = (1, 2, 3)
WEIGHTS = "phantom_t1_se_unet3d"


def main() -> None:
    """Times the networks that are asked for, or scores the trained one, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=list(WORK), choices=list(WORK))
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 48), help="voxels; patches fit in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every method")
    parser.add_argument("--dice", action="store_true", help="score trained weights instead")
    options = parser.parse_args()
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(options.threads)  # the workers inherit it

    low = [precision for precision in ("int8", "bfloat16") if runs(precision)]
    if options.dice:
        write_csv(scored(low), options.output)
        return
    table = []
    for network in options.networks:
        table += compared(network, tuple(options.shape), low, options.rounds, options.threads)
        write_csv(table, options.output)


def runs(precision: str) -> bool:
    """Whether the precision runs here; PyTorch's bfloat16 ends its process where OpenVINO's does."""
    from mrseg._checks import InputError
    from mrseg.engines import Engine

    try:
        Engine("openvino", precision).check()
    except InputError as reason:
        print(f"no {precision}: {reason}")
        return False
    return True


def compared(
    network: str, shape: tuple[int, ...], low: list[str], number: int, threads: int
) -> list[dict[str, Any]]:
    """Rows of one network: every engine and precision, patches and whole, and the peer."""
    import rounds
    import twin

    precisions = [*low, "float32"]
    wanted = {
        **{f"openvino {p}": ("openvino", p, "patch") for p in precisions},
        "tensorflow float32": ("tensorflow", "float32", "patch"),
        "onnx float32": ("onnx", "float32", "patch"),
    }
    # Ours takes its own number of patches in a call; the peer's best is not known beforehand.
    batch = WORK[network][-1]
    theirs = {f"PyTorch {p}": (p, batch) for p in precisions if p != "int8"}
    if network == "se_unet3d":
        theirs |= {"PyTorch float32, 1 window": ("float32", 1)}
        wanted |= {f"openvino {p}, whole": ("openvino", p, "whole") for p in precisions}
    methods = {
        name: rounds.Worker("engines:ours", network, shape, *how, threads) for name, how in wanted.items()
    } | {
        name: rounds.Worker("engines:peer", network, shape, *how, threads, variables=twin.TUNED_ALLOCATOR)
        for name, how in theirs.items()
    }
    try:
        answers = {name: method.result() for name, method in methods.items()}  # the first run of each
        for name in ("openvino float32", "tensorflow float32", "onnx float32"):
            # SegNet takes another of two nearly equal maxima here and there.
            apart = np.abs(answers[name] - answers["PyTorch float32"]) > 1e-3
            assert apart.mean() < 2e-3, f"{name}: {apart.mean():.2%} of probabilities differ"
        timings = rounds.compare(methods, number, warm_up=0)
    finally:
        for worker in methods.values():
            worker.close()
    arguments, _, overlap, _, batch = WORK[network]
    work = {
        "network": network,
        "arguments": ", ".join(f"{k}={v}" for k, v in arguments.items()),
        "volume": "x".join(map(str, shape)),
        "patch": "x".join(map(str, patch_of(network, shape))),
        "overlap": overlap,
        "batch": batch,
    }
    packages = ("openvino", "onnxruntime", "tensorflow", "keras", "torch", "monai")
    table = rounds.rows(work, timings, rounds=number, threads=threads, packages=packages)
    for row in table:
        row["goal"] = GOALS.get(row["method"], {}).get(len(model_input(network)), "")
        print(
            *(row[k] for k in ("network", "method", "seconds", "cpu_seconds", "ratio")), sep="  ", flush=True
        )
    return table


def image(shape: tuple[int, ...]) -> np.ndarray:
    """The volume that everything is shown."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def patch_of(network: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The patch, no larger than the volume."""
    return tuple(map(min, WORK[network][1], shape))


def model_input(network: str) -> tuple[int, ...]:
    """Sizes of the network's input, with its channels."""
    _, patch, _, neighbours, _ = WORK[network]
    return (*(size for size in patch if size != 1), 2 * neighbours + 1)


def model_of(network: str, shape: tuple[int, ...]) -> Any:
    """The Keras network with the same weights in every process, and statistics as after a training."""
    import keras

    import mrseg

    arguments = WORK[network][0]
    keras.utils.set_random_seed(0)
    sizes = [size for size in patch_of(network, shape) if size != 1]
    channels = model_input(network)[-1]
    model = getattr(mrseg.models, network)((*sizes, channels), num_classes=CLASSES, **arguments)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.path.endswith("moving_variance"):
            weight.assign(rng.uniform(0.5, 2, size=weight.shape))
    return model


def ours(
    network: str, shape: tuple[int, ...], engine: str, precision: str, extent: str, threads: int
) -> Callable[[], np.ndarray]:
    """mrseg's way: patches, network, blending; all probabilities of the volume."""
    from mrseg.data.patches import Sampling
    from mrseg.engines import Engine
    from mrseg.forward import for_volume
    from mrseg.graphs import compile_engine
    from mrseg.inference import predict_probabilities, whole
    from mrseg.passes import Inference

    _, _, overlap, neighbours, batch = WORK[network]
    model, volume = model_of(network, shape), image(shape)
    sampling = Sampling(patch_of(network, shape), overlap, neighbours=neighbours)
    ranges = calibrated(model, volume, sampling) if precision == "int8" else None
    if extent == "whole":
        model = for_volume(model, shape)
        sampling, batch = whole(sampling, shape), 1
    chosen = Engine(engine, precision, None if engine == "tensorflow" else threads)
    forward = compile_engine(model, (batch, *sampling.input_shape), chosen, ranges)
    asked = Inference(blending="constant", batch_size=batch)
    return lambda: predict_probabilities(forward, volume, sampling, num_classes=CLASSES, inference=asked)


def calibrated(model: Any, volume: np.ndarray, sampling: Any) -> dict[str, tuple[float, float]]:
    """Ranges of one patch, enough for timing."""
    import tempfile

    from mrseg.data.patches import cut_input
    from mrseg.graphs import convert
    from mrseg.quantization import Calibrator

    with tempfile.TemporaryDirectory() as folder:
        watched = Calibrator(convert(model, (1, *sampling.input_shape), "openvino", folder))
    watched(cut_input(volume, np.zeros(3, int), sampling)[None])
    return watched.ranges


def peer(
    network: str, shape: tuple[int, ...], precision: str, batch: int, threads: int
) -> Callable[[], np.ndarray]:
    """PyTorch's way with the same weights: MONAI's sliding window, or batches of slices."""
    import warnings

    import torch
    import twin
    from monai.inferers import sliding_window_inference

    warnings.simplefilter("ignore")  # deprecations within the peers
    torch.set_num_threads(threads)
    _, _, overlap, neighbours, _ = WORK[network]
    model, patch = model_of(network, shape), patch_of(network, shape)
    module = twin.twin(model).eval()
    twin.check(model, module)
    volume = torch.from_numpy(image(shape))
    numbers = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    if 1 in patch:
        around = torch.nn.functional.pad(volume, (neighbours, neighbours))
        slices = around.unfold(2, 2 * neighbours + 1, 1).permute(2, 3, 0, 1)  # (z, channels, x, y)
        parts = slices.contiguous(memory_format=torch.channels_last).split(batch)

        def run() -> np.ndarray:
            with torch.inference_mode(), numbers:
                answers = torch.cat([module(part).float() for part in parts])
            return answers.permute(2, 3, 0, 1).numpy()

        return run

    def network_of(window: Any) -> Any:
        return module(window.to(memory_format=torch.channels_last_3d)).float()

    def slide() -> np.ndarray:
        with torch.inference_mode(), numbers:
            answer = sliding_window_inference(volume[None, None], patch, batch, network_of, overlap)
        return answer[0].movedim(0, -1).numpy()

    return slide


def scored(low: list[str]) -> list[dict[str, Any]]:
    """Mean Dice over classes and heads of the trained weights, per engine, precision and extent."""
    from machine import processor

    import mrseg
    from mrseg.data import phantom
    from mrseg.passes import Inference

    def scans_of(seeds: tuple[int, ...]) -> list[Any]:
        heads = [phantom.head(seed, shape=(160, 192, 140)) for seed in seeds]
        return [(phantom.mr_image(head, "T1w"), phantom.attenuation_labels(head)) for head in heads]

    scans = scans_of(HEADS)
    ranges = mrseg.Segmenter.load(WEIGHTS).calibrated([scan for scan, _ in scans_of(CALIBRATION)]).calibration
    ways = [("tensorflow", "float32"), ("openvino", "float32"), ("onnx", "float32")]
    table: list[dict[str, Any]] = []
    known: dict[str, float] = {}
    for engine, precision in [*ways, *(("openvino", precision) for precision in low)]:
        segmenter = dataclasses.replace(
            mrseg.Segmenter.load(WEIGHTS), calibration=ranges, engine=engine, precision=precision
        )
        classes = range(len(segmenter.class_names))
        for extent in ("patch", "whole"):
            found = []
            for scan, truth in scans:
                labels = segmenter.predict(scan, inference=Inference(extent=extent)).labels
                found.append([mrseg.metrics.dice(truth == c, labels == c) for c in classes])
            each = np.mean(found, axis=0)
            mean = float(each.mean())
            reference = known.setdefault("patch", mean)
            table.append(
                {
                    "weights": WEIGHTS,
                    "heads": " ".join(map(str, HEADS)),
                    "engine": engine,
                    "precision": precision,
                    "extent": extent,
                    **{
                        f"dice_{n}": round(float(v), 5)
                        for n, v in zip(segmenter.class_names, each, strict=True)
                    },
                    "dice_mean": round(mean, 5),
                    "less_than_tensorflow_in_patches": round(reference - mean, 5),
                    "machine": processor(),
                }
            )
            print(engine, precision, extent, round(mean, 5), flush=True)
    return table


if __name__ == "__main__":
    main()
