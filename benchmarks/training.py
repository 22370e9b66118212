"""What a step of training costs on this processor: every network of the papers beside PyTorch, in one run.

    python benchmarks/training.py --output docs/results/training.csv

A step is what ``mrseg train`` does with a batch: forward and backward pass, loss and optimiser of the paper's
recipe, and the confusion matrix from which the metrics are read. PyTorch does the same with the same
weights, tuned: channels last in memory, a fused optimiser, the loss from the logits where the head is a
softmax, an allocator that keeps its memory. Either lives in a process of its own. The losses of the first
step are compared before anything is timed; a ratio is PyTorch / mrseg within one round, so above 1 mrseg is
faster. The goal allows mrseg 1.05 of PyTorch's time.

The batch is the paper's, and so is the image, but for the networks that ``HALVED`` names: theirs has half the
pixels along x and along y, so that a step takes seconds and the whole run minutes. ``--halvings 0`` times the
papers' images for all, a higher number makes all smaller.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rounds
from twin import TUNED_ALLOCATOR

from mrseg.formats import write_csv

#: Paper's network -> its recipe.
RECIPES = {
    "segnet": "mecheter2020_t1",
    "se_unet3d": "mecheter2023_t1",
    "vgg_fcn": "xu2017_exp1",
    "res_unet": "alkhimova2022",
    "unet": "islam2025_unet",
    "sep_res_unet": "islam2025_sep_res_unet",
    "attention_unet": "islam2025_attention_unet",
}
#: A step at the paper's size takes two cores over some five seconds.
HALVED = ("segnet", "se_unet3d", "unet", "sep_res_unet", "attention_unet")
PRECISIONS = ("float32", "mixed_bfloat16")
PACKAGES = ("torch", "tensorflow", "keras", "numpy")
GOAL = round(1 / 1.05, 3)


def main() -> None:
    """Times every network in either precision, prints the ratios and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/training.csv"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--halvings", type=int, help="of x and y of every image")
    options = parser.parse_args()
    table = []
    for network in options.networks:
        known: dict[str, float] = {}
        for precision in options.precisions:
            rows = compared(network, precision, options)
            for row in rows:  # against float32 of the same library
                if precision == "float32":
                    known[row["method"]] = row["seconds"]
                gain = known.get(row["method"], np.nan) / row["seconds"]
                row["gain_over_float32"] = "" if precision == "float32" or np.isnan(gain) else round(gain, 2)
                print(*row.values(), sep="  ", flush=True)
            table += rows
            write_csv(table, options.output)


def compared(network: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a library; the ratio of PyTorch's row is its time / mrseg's."""
    shape, batch = size(network, options.halvings)
    arguments = (network, precision, shape, batch, options.threads)
    with (
        rounds.Worker("training:torch_step", *arguments, variables=TUNED_ALLOCATOR) as theirs,
        rounds.Worker("training:keras_step", *arguments) as ours,
    ):
        methods = {"mrseg": ours, "PyTorch": theirs}  # the others are divided by the first
        first = {name: worker()[0] for name, worker in methods.items()}
        check(network, precision, ours.result(), theirs.result())
        timings = rounds.compare(methods, options.rounds, warm_up=0)
    work = {
        "network": network,
        "precision": precision,
        "image": "x".join(map(str, shape)),
        "batch": batch,
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    }
    rows = rounds.rows(work, timings, rounds=options.rounds, threads=options.threads, packages=PACKAGES)
    return [row | {"first_step_seconds": round(first[row["method"]], 1), "goal": GOAL} for row in rows]


def size(network: str, halvings: int | None) -> tuple[tuple[int, ...], int]:
    """Image with its channels, and the recipe's batch."""
    import mrseg
    from mrseg.recipes import load_recipe

    x, y, *rest = mrseg.models.list()[network].input_shape
    parts = 2 ** (int(network in HALVED) if halvings is None else halvings)
    return (x // parts, y // parts, *rest), load_recipe(RECIPES[network]).training.batch_size


def check(network: str, precision: str, ours: float, theirs: float) -> None:
    """Both begin with the same loss; a live dropout and bfloat16 leave only the order of it."""
    tolerance = 1e-3 if precision == "float32" and network != "segnet" else 0.1
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, err_msg=f"first loss of {network}, {precision}")


def build(network: str, precision: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The network with the initial weights that either library starts from, and its recipe."""
    import keras

    from mrseg.models.builders import BUILDERS
    from mrseg.recipes import load_recipe
    from mrseg.training import precision as under

    recipe = load_recipe(RECIPES[network])
    keras.utils.set_random_seed(0)
    with under(precision):
        model = BUILDERS[network](shape, len(recipe.class_names), **recipe.network.arguments)
    return model, recipe


def noise(shape: tuple[int, ...], batch: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images and labels."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *shape)).astype(np.float32)
    return images, rng.integers(0, num_classes, size=images.shape[:-1]).astype(np.uint8)


def keras_step(
    network: str, precision: str, shape: tuple[int, ...], batch: int, threads: int
) -> Callable[[], float]:
    """One step as `mrseg.training.fit` compiles it; every call returns the loss of the first."""
    import tensorflow as tf

    from mrseg import training

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    model, recipe = build(network, precision, shape)
    settings = replace(recipe.training, precision=precision)
    training._compile(model, settings, recipe.loss, recipe.class_names, steps=1)
    images, labels = noise(shape, batch, len(recipe.class_names))
    data = iter(tf.data.Dataset.from_tensors((images, labels)).cache().repeat())
    model.make_train_function()
    losses: list[float] = []

    def step() -> float:
        losses.append(float(model.train_function(data)["loss"]))
        return losses[0]

    return step


def torch_step(
    network: str, precision: str, shape: tuple[int, ...], batch: int, threads: int
) -> Callable[[], float]:
    """The same step as a PyTorch user would tune it; every call returns the loss of the first."""
    import torch
    import twin

    torch.set_num_threads(threads)
    model, recipe = build(network, "float32", shape)
    module = twin.twin(model).train()
    is_softmax = isinstance(module.parts["head_probabilities"], torch.nn.Softmax)
    if is_softmax:
        module.parts["head_probabilities"] = torch.nn.Identity()
    decay = recipe.network.arguments.get("weight_decay", 0.0)
    optimizer = torch_optimizer(module, recipe.training, decay)
    num_classes = len(recipe.class_names)
    images, labels = noise(shape, batch, num_classes)
    image, truth = twin.batch(images), torch.from_numpy(labels.astype(np.int64))
    weights = torch.tensor(recipe.loss.class_weights or (1.0,) * num_classes)
    counted = torch.zeros(num_classes**2, dtype=torch.int64)
    voxels = truth.numel() if recipe.loss.over_voxels == "mean" else batch
    losses: list[float] = []

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
            outputs = module(image)
        outputs = outputs.float()
        if is_softmax:
            loss = torch.nn.functional.cross_entropy(outputs, truth, weights, reduction="sum") / voxels
        else:  # independent probabilities, divided by their sum
            logs = (outputs / outputs.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7).log()
            logs = logs.contiguous()  # PyTorch's own demand on the gradient of what follows
            loss = torch.nn.functional.nll_loss(logs, truth, weights, reduction="sum") / voxels
        loss.backward()
        optimizer.step()
        code = truth * num_classes + outputs.detach().argmax(1)
        counted.add_(torch.bincount(code.flatten(), minlength=num_classes**2))
        losses.append(float(loss.detach()) + penalty)
        return losses[0]

    with torch.no_grad():  # Keras' loss holds it; PyTorch adds its gradient in the optimiser
        penalty = decay * sum(float((p**2).sum()) for p in kernels(module))
    return step


def torch_optimizer(module: Any, settings: Any, decay: float) -> Any:
    """Adam or SGD of a recipe, fused; Keras' penalty on the kernels is a weight decay of twice its factor."""
    import torch

    penalized = kernels(module)
    rest = [p for p in module.parameters() if all(p is not kernel for kernel in penalized)]
    groups = [
        {"params": penalized, "weight_decay": 2.0 * decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
    return torch.optim.Adam(groups, lr=settings.learning_rate, eps=1e-7, fused=True)


def kernels(module: Any) -> list[Any]:
    """Those of the convolutions, which the papers penalise; not the recalibrations'."""
    named = module.named_parameters()
    return [weight for name, weight in named if weight.ndim > 2 and "_spatial." not in name]


if __name__ == "__main__":
    main()
