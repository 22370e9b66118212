"""Training steps and inference of the papers' networks at the papers' sizes, beside the same in PyTorch.

    KERAS_BACKEND=jax python benchmarks/gpu.py --output docs/results/gpu_jax.csv
    KERAS_BACKEND=tensorflow python benchmarks/gpu.py --precision mixed_float16 --output gpu_tensorflow.csv
    KERAS_BACKEND=jax python benchmarks/gpu.py --small --output gpu_small.csv     # anywhere, without GPU

Keras and PyTorch take turns, each in a process of its own. PyTorch is tuned: the same weights, channels last
in memory, autocast, torch.compile, fused Adam, cuDNN's search, pinned memory. Both take their batches from
the host's memory and, in inference, give float32 probabilities back there. A ratio is PyTorch / mrseg within
one round: above 1 mrseg is faster. Where PyTorch sees no GPU and Keras does, its row says so, without
figures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rounds
from machine import processor

from mrseg.formats import write_csv

#: Memory is shared by the processes that take turns.
SHARED = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
#: PyTorch's process reads the weights off a Keras network that stays away from the GPU.
ASIDE = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
GOAL = 1.0


@dataclass(frozen=True)
class Paper:
    """What a paper did with a network, and the times that it tells.

    Attributes:
        batch: of its training.
        steps: of its training; 0 where unknown. SegNet: 300 epochs of 117 batches (1164 slices a fold).
        slices: or patches of one volume.
        training, fine_tuning, inference: as the paper tells them; "" where it does not.
    """

    batch: int
    slices: int
    steps: int = 0
    training: str = ""
    fine_tuning: str = ""
    inference: str = ""


PAPERS = {
    "segnet": Paper(10, 48, 35_100, "6 h (V100)", "10 min (V100)", "6 ms a slice (V100)"),
    "se_unet3d": Paper(2, 10),
    "vgg_fcn": Paper(1, 50, 100_000, "5 h (GTX 1080)", "", "3.5 s a volume (GTX 1080)"),
    "vgg_fcn_adult": Paper(1, 48, 120_000, "3 h (GTX 1080)", "", "1.7 s a volume (GTX 1080)"),
    "res_unet": Paper(16, 16),
    "unet": Paper(16, 128),
    "sep_res_unet": Paper(16, 128),
    "attention_unet": Paper(16, 128),
}
#: Convolutions that the fine-tuning of mecheter2020 trains.
LAST_CONVS = 6


@dataclass(frozen=True)
class Work:
    """One thing to time; plain values, so that it travels to the processes."""

    network: str
    kind: str
    precision: str
    small: bool

    @property
    def batch(self) -> int:
        """Slices or patches in a step, or in a call of inference."""
        paper = PAPERS[self.network]
        if self.small:
            return 2
        return paper.batch if self.kind != "inference" else max(n for n in (2, 10, 16) if n <= paper.slices)

    @property
    def calls(self) -> int:
        """Steps that are timed together, or calls for one volume."""
        if self.small:
            return 2
        return 20 if self.kind != "inference" else -(-PAPERS[self.network].slices // self.batch)


def main() -> None:
    """Times everything, prints it and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/gpu.csv"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(PAPERS), choices=PAPERS)
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    parser.add_argument(
        "--small", action="store_true", help="narrow networks on small inputs, PyTorch not compiled"
    )
    options = parser.parse_args()
    with rounds.Worker("gpu:keras_device", variables=SHARED) as asked:
        device, has_gpu = asked.result()
    with rounds.Worker("gpu:torch_device") as asked:
        theirs, torch_has_gpu = asked.result()
    print(f"Keras: {device}; PyTorch: {theirs}", flush=True)
    precision = options.precision or ("mixed_bfloat16" if has_gpu else "float32")
    why_not = f"PyTorch {version('torch')} sees no GPU" if has_gpu and not torch_has_gpu else ""
    table: list[dict[str, Any]] = []
    for work in works(options.networks, precision, options.small):
        table += compared(work, device, why_not, 1 if options.small else options.rounds)
        write_csv(table, options.output)


def works(networks: list[str], precision: str, small: bool) -> Iterator[Work]:
    """Training and inference of every network; fine-tuning where a paper tells its time."""
    for network in networks:
        for kind in ("training", "fine-tuning", "inference"):
            if kind != "fine-tuning" or PAPERS[network].fine_tuning:
                yield Work(network, kind, precision, small)


def compared(work: Work, device: str, why_not: str, count: int) -> list[dict[str, Any]]:
    """The rows of one work: mrseg, and PyTorch or why it is not there."""
    with rounds.Worker("gpu:keras_run", work, variables=SHARED) as ours:
        methods: dict[str, rounds.Worker] = {"mrseg": ours}
        if not why_not:
            methods["PyTorch"] = rounds.Worker("gpu:torch_run", work, variables=ASIDE)
        timings = rounds.compare(methods, count, warm_up=2)
        notes = {name: method.result() for name, method in methods.items()}
        if not why_not:
            methods["PyTorch"].close()
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    about = {
        "network": work.network, "input": "x".join(map(str, built_shape(work))), "batch": work.batch,
        "work": work.kind, "calls": work.calls, "precision": work.precision, "backend": backend,
        "device": device,
    }  # fmt: skip
    table = rounds.rows(
        about, timings, rounds=count, threads=os.cpu_count(), packages=("keras", backend, "torch")
    )
    for row in table:
        seconds = timings[row["method"]].seconds
        row |= {"per_second": round(work.calls / seconds, 2), "goal": GOAL, "note": notes[row["method"]]}
        row |= {"paper": told(work), "as_the_paper": as_the_paper(work, seconds)}
    if why_not:
        table.append(table[0] | dict.fromkeys((*rounds.Timing._fields, "per_second", "as_the_paper"), ""))
        table[-1] |= {"method": "PyTorch", "note": f"not run: {why_not}"}
    shown = ("network", "work", "method", "seconds", "ratio", "note")
    for row in table:
        print(*(row[key] for key in shown), sep="  ", flush=True)
    return table


def told(work: Work) -> str:
    """The paper's own figure."""
    return getattr(PAPERS[work.network], work.kind.replace("-", "_"))


def as_the_paper(work: Work, seconds: float) -> str:
    """What was measured, in the unit of the paper's figure; of the full size alone."""
    paper = PAPERS[work.network]
    if work.small or not told(work):
        return ""
    if work.kind == "training":
        return f"{seconds / work.calls * paper.steps / 3600:.2f} h for {paper.steps} steps"
    if work.kind == "fine-tuning":
        return f"{600 * work.calls / seconds:.0f} steps in 10 min"
    if "slice" in told(work).split("(")[0]:
        return f"{seconds / paper.slices * 1000:.2f} ms a slice"
    return f"{seconds:.2f} s a volume of {paper.slices} slices"


def built_shape(work: Work) -> tuple[int, ...]:
    """The paper's input, or a small one."""
    shape = PAPER_SHAPES[work.network]
    small = (32, 32, 16) if len(shape) == 4 else (64, 64)
    return (*small, shape[-1]) if work.small else shape


#: As in `mrseg.models.NETWORKS`, which would load Keras here.
PAPER_SHAPES = {
    "segnet": (256, 256, 1),
    "se_unet3d": (128, 128, 48, 1),
    "vgg_fcn": (512, 512, 3),
    "vgg_fcn_adult": (240, 240, 3),
    "res_unet": (128, 128, 1),
    "unet": (256, 256, 1),
    "sep_res_unet": (256, 256, 1),
    "attention_unet": (256, 256, 1),
}


def keras_device() -> Callable[[], tuple[str, bool]]:
    """What Keras computes on, and whether that is a GPU."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        first = jax.devices()[0]
        found = (first.device_kind, True) if first.platform == "gpu" else (processor(), False)
    else:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        found = (details.get("device_name", "GPU"), True) if gpus else (processor(), False)
    return lambda: found


def torch_device() -> Callable[[], tuple[str, bool]]:
    """What PyTorch computes on, and whether that is a GPU."""
    import torch

    has_gpu = torch.cuda.is_available()
    return lambda: (torch.cuda.get_device_name() if has_gpu else processor(), has_gpu)


def network(work: Work, policy: str) -> Any:
    """The Keras network, its last layers alone to be trained for fine-tuning."""
    import mrseg
    from mrseg.models.builders import NETWORKS
    from mrseg.training import precision
    from mrseg.transfer import train_last

    row = next(row for row in NETWORKS if row.name == work.network)
    assert row.input_shape == PAPER_SHAPES[row.name], mrseg.__version__
    with precision(policy):
        model = row.build(built_shape(work), **({"filters": 8} if work.small else {}))
    if work.kind == "fine-tuning":
        train_last(model, LAST_CONVS)
    return model


def data(work: Work, classes: int) -> tuple[Any, Any]:
    """One batch of noise with labels at random."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = built_shape(work)
    images = rng.normal(size=(work.batch, *shape)).astype(np.float32)
    return images, rng.integers(0, classes, (work.batch, *shape[:-1]), np.uint8)


def keras_run(work: Work) -> Callable[[], str]:
    """Steps of `fit` as mrseg compiles it, or calls of the segmenter's forward pass."""
    import keras
    import tensorflow as tf

    from mrseg.forward import compile_forward
    from mrseg.training import Loss

    model = network(work, work.precision)
    images, labels = data(work, model.output_shape[-1])
    if work.kind == "inference":
        forward = compile_forward(model, images.shape)
        return lambda: [forward(images) for _ in range(work.calls)] and "mrseg.forward"
    xla = keras.backend.backend() == "jax" or bool(tf.config.list_physical_devices("GPU"))
    model.compile(
        keras.optimizers.Adam(1.0e-4), Loss("categorical_cross_entropy").build(),
        jit_compile="auto" if xla else False,
    )  # fmt: skip
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat(work.calls).prefetch(2)
    return lambda: model.fit(batches, epochs=1, verbose=0) and f"fit, XLA {'on' if xla else 'off'}"


def torch_run(work: Work) -> Callable[[], str]:
    """The same in PyTorch."""
    import torch
    import twin

    model = network(work, "float32")
    module = twin.twin(model)
    twin.check(model, module)
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    module = module.to(on).train(work.kind != "inference")
    for layer in model.layers:
        if work.kind == "fine-tuning" and layer.name in module.parts and not layer.trainable:
            module.parts[layer.name].requires_grad_(False).eval()
    images, labels = data(work, model.output_shape[-1])
    tensors = twin.batch(images), torch.from_numpy(labels)
    if on.type == "cuda":
        tensors = tuple(tensor.pin_memory() for tensor in tensors)
    memory = twin.channels_last(images.ndim - 2)
    halves = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}
    dtype = halves.get(work.precision, torch.float32)

    def cast() -> Any:
        return torch.autocast(on.type, dtype=dtype, enabled=dtype != torch.float32)

    def loaded() -> Any:
        return tensors[0].to(on, non_blocking=True, memory_format=memory)

    def infer(network: Any) -> None:
        with torch.inference_mode(), cast():
            for _ in range(work.calls):
                network(loaded()).float().cpu().numpy()

    weights = [weight for weight in module.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, 1.0e-4, fused=on.type == "cuda")
    scaler = torch.amp.GradScaler(on.type, enabled=dtype == torch.float16)

    def train(network: Any) -> None:
        for _ in range(work.calls):
            with cast():
                probabilities = network(loaded()).float()
            truth = tensors[1].to(on, non_blocking=True).long()
            loss = torch.nn.functional.nll_loss(torch.log(probabilities.clamp_min(1e-7)), truth)
            adam.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(adam)
            scaler.update()
        if on.type == "cuda":
            torch.cuda.synchronize()

    method = infer if work.kind == "inference" else train
    best, note = module, "eager, as small ones are"
    if not work.small:
        try:
            best, note = torch.compile(module), "torch.compile"
            method(best)
        except Exception as failure:
            first = (str(failure).strip() or type(failure).__name__).splitlines()[0][:80]
            best, note = module, f"eager: torch.compile failed ({first})"

    def run() -> str:
        method(best)
        return note

    return run


if __name__ == "__main__":
    main()
