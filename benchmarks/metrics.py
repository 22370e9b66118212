"""Overlap and surface distances side by side with MONAI and DeepMind surface-distance, in one run.

    python benchmarks/metrics.py --output docs/results/metrics.csv

Every round runs every method once, in turning order, so that whatever else the machine does hits all alike;
a ratio is peer / mrseg within one round. The equality of the results is checked before anything is timed.
The peers are tuned: MONAI computes one confusion matrix (or one set of distances) and reads every measure
from it; DeepMind's sort of Python tuples is exchanged for NumPy's. Their own way is timed besides.
"""

from __future__ import annotations

import argparse
import os
import platform
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rounds
import surface_distance
import torch
from machine import processor
from monai.metrics import (
    ConfusionMatrixMetric,
    DiceMetric,
    MeanIoU,
    compute_average_surface_distance,
    compute_hausdorff_distance,
)
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
from monai.metrics.utils import get_edge_surface_distance
from monai.networks.utils import one_hot
from scipy import ndimage

from mrseg.data import phantom
from mrseg.data.geometry import voxel_sizes
from mrseg.formats import write_csv
from mrseg.metrics import confusion_matrix, scores, surface_distances

CLASSES = ("background", "csf", "gm", "wm")
SHAPES = ((256, 256, 48), (256, 256, 256))

#: Largest difference to the naive definition, in mm, and to MONAI, which rounds to float32.
NAIVE_MM, FLOAT32_MM = 1e-6, 1e-4

_MONAI_NAMES = {
    "dice": "f1 score", "jaccard": "threat score", "precision": "precision", "recall": "sensitivity",
    "specificity": "specificity", "accuracy": "accuracy",
}  # fmt: skip

Method = Callable[[], Any]


def main() -> None:
    """Checks and times everything, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/metrics.csv"))
    parser.add_argument("--rounds", type=int, default=9, help="of the smaller shape; the larger gets half")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch; the others use one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' deprecations
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        count = max(1, options.rounds if shape == SHAPES[0] else options.rounds // 2)
        true, pred, spacing = label_maps(shape)
        rows += compared("overlap, 4 classes", shape, overlap_methods(true, pred), count)
        for c, name in enumerate(CLASSES[1:], start=1):
            methods = surface_methods(true == c, pred == c, spacing)
            rows += compared(f"Hausdorff + HD95 + ASSD, {name}", shape, methods, count)
    about = {
        "threads": f"mrseg 1, DeepMind 1, PyTorch {options.threads}",
        "machine": processor(),
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "monai", "surface-distance", "numpy", "scipy")
        )
        + f", Python {platform.python_version()}",
    }
    show(rows, about)
    write_csv([{**row, **about} for row in rows], options.output)


def label_maps(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Tissue of a synthetic head, and the same bent by about a voxel, with a stray lump far away."""
    head = phantom.head(0, shape=shape)
    true = phantom.tissue_labels(head)
    rng = np.random.default_rng(0)
    coarse = [max(2, n // 8) for n in shape]
    grid = list(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    for axis in range(3):
        bend = rng.standard_normal(coarse).astype(np.float32) * 0.8
        grid[axis] += ndimage.zoom(bend, [n / m for n, m in zip(shape, coarse, strict=True)], order=1)
    pred = ndimage.map_coordinates(true, grid, order=0, mode="nearest")
    for c in range(1, len(CLASSES)):
        corner = 12 * c
        pred[corner : corner + 4, 8:12, 4:6] = c
    return true, pred, voxel_sizes(head.affine)


def overlap_methods(true: np.ndarray, pred: np.ndarray) -> dict[str, Method]:
    """From label maps to every overlap measure of every class."""
    labels = [torch.from_numpy(array)[None, None] for array in (pred, true)]
    classes = torch.arange(len(CLASSES), dtype=torch.uint8).reshape(1, -1, 1, 1, 1)
    given = [(array == classes).to(torch.uint8) for array in labels]

    def ours() -> dict[str, np.ndarray]:
        return scores(confusion_matrix(true, pred, len(CLASSES)))

    def read(hot_pred: torch.Tensor, hot_true: torch.Tensor) -> dict[str, np.ndarray]:
        counts = get_confusion_matrix(hot_pred, hot_true)
        read = {
            name: compute_confusion_matrix_metric(theirs, counts)[0].numpy()
            for name, theirs in _MONAI_NAMES.items()
        }
        tp, fp, _, fn = counts[0].unbind(-1)
        return {**read, "avd": (100 * (fp - fn).abs() / (tp + fn)).numpy()}

    def tuned() -> dict[str, np.ndarray]:
        return read(*((array == classes).to(torch.uint8) for array in labels))

    def tuned_given() -> dict[str, np.ndarray]:
        return read(*given)

    def own_way() -> dict[str, np.ndarray]:
        hot = [one_hot(array, len(CLASSES)) for array in labels]
        wanted = ["precision", "sensitivity", "specificity", "accuracy"]
        metrics = [
            DiceMetric(reduction="mean_batch"),
            MeanIoU(reduction="mean_batch"),
            ConfusionMatrixMetric(metric_name=wanted, reduction="mean_batch"),
        ]
        for metric in metrics:
            metric(hot[0], hot[1])
        dice, jaccard = (metric.aggregate().numpy() for metric in metrics[:2])
        others = zip(("precision", "recall", "specificity", "accuracy"), metrics[2].aggregate(), strict=True)
        return {"dice": dice, "jaccard": jaccard, **{name: value.numpy() for name, value in others}}

    methods = {
        "mrseg": ours, "MONAI, tuned": tuned, "MONAI, tuned, one-hot maps given": tuned_given,
        "MONAI, three metric classes": own_way,
    }  # fmt: skip
    expected = ours()
    for name, method in methods.items():
        for measure, values in method().items():
            # float32 counts voxels exactly only up to 2^24
            np.testing.assert_allclose(
                values, expected[measure], rtol=2e-6, atol=2e-4, err_msg=f"{name} {measure}"
            )
    return methods


def surface_methods(
    true: np.ndarray, pred: np.ndarray, spacing: tuple[float, float, float]
) -> dict[str, Method]:
    """From masks to Hausdorff distance, HD95 and ASSD in mm."""
    tensors = [torch.from_numpy(mask) for mask in (pred, true)]

    def ours() -> tuple[float, ...]:
        measured = surface_distances(true, pred, spacing)
        return measured.hausdorff, measured.hd95, measured.assd

    def monai_tuned() -> tuple[float, ...]:
        _, (one, other), _ = get_edge_surface_distance(*tensors, spacing=list(spacing), symmetric=True)
        ways = [way.numpy().astype(np.float64) for way in (one, other)]
        return (
            max(way.max() for way in ways), max(np.percentile(way, 95) for way in ways),
            sum(way.mean() for way in ways) / 2,
        )  # fmt: skip

    def monai_own_way() -> tuple[float, ...]:
        both = [tensor[None, None] for tensor in tensors]
        keys: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
        return (
            float(compute_hausdorff_distance(*both, **keys)),
            float(compute_hausdorff_distance(*both, percentile=95, **keys)),
            float(compute_average_surface_distance(*both, symmetric=True, **keys)),
        )

    def deepmind() -> tuple[float, ...]:
        measured = surface_distance.compute_surface_distances(true, pred, spacing)
        return (
            surface_distance.compute_robust_hausdorff(measured, 100),
            surface_distance.compute_robust_hausdorff(measured, 95),
            float(np.mean(surface_distance.compute_average_surface_distance(measured))),
        )

    def deepmind_tuned() -> tuple[float, ...]:
        theirs = surface_distance.metrics._sort_distances_surfels
        surface_distance.metrics._sort_distances_surfels = _sorted_by_numpy
        try:
            return deepmind()
        finally:
            surface_distance.metrics._sort_distances_surfels = theirs

    expected = naive(true, pred, spacing)
    np.testing.assert_allclose(ours(), expected, rtol=0, atol=NAIVE_MM, err_msg="mrseg")
    np.testing.assert_allclose(monai_tuned(), expected, rtol=0, atol=FLOAT32_MM, err_msg="MONAI, tuned")
    # MONAI's symmetric mean pools both directions, which is another mean: only the first two must agree.
    np.testing.assert_allclose(monai_own_way()[:2], expected[:2], rtol=0, atol=FLOAT32_MM, err_msg="MONAI")
    # DeepMind's surface lies between the voxels: its distances may differ by a voxel's diagonal.
    diagonal = float(np.linalg.norm(spacing))
    np.testing.assert_allclose(deepmind(), expected, rtol=0, atol=diagonal, err_msg="DeepMind")
    np.testing.assert_allclose(deepmind_tuned(), deepmind(), rtol=1e-9)
    return {
        "mrseg": ours, "MONAI, tuned": monai_tuned, "MONAI, three functions": monai_own_way,
        "DeepMind, tuned": deepmind_tuned, "DeepMind": deepmind,
    }  # fmt: skip


def naive(true: np.ndarray, pred: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, ...]:
    """The definition written out: erosion by the cross, a distance transform of the whole grid."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (true, pred)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    ways = [maps[1][edges[0]], maps[0][edges[1]]]
    return (
        max(way.max() for way in ways), max(np.percentile(way, 95) for way in ways),
        sum(way.mean() for way in ways) / 2,
    )  # fmt: skip


def compared(what: str, shape: tuple[int, ...], methods: dict[str, Method], count: int) -> list[dict]:
    """Runs all methods in turn, ``count`` times; one row per peer."""
    timings = rounds.compare(methods, count, warm_up=0)  # they ran when their results were compared
    ours = timings.pop("mrseg")
    return [
        {
            "what": what, "shape": "x".join(map(str, shape)), "peer": name, "rounds": count,
            "mrseg_ms": round(1000 * ours.seconds, 2), "peer_ms": round(1000 * theirs.seconds, 1),
            "ratio": round(theirs.ratio, 1), "ratio_low": round(theirs.ratio_low, 1),
            "ratio_high": round(theirs.ratio_high, 1),
        }
        for name, theirs in timings.items()
    ]  # fmt: skip


def show(rows: list[dict], about: dict[str, str]) -> None:
    """Prints the table."""
    print(f"{'what':34}{'shape':13}{'peer':34}{'mrseg ms':>9}{'peer ms':>10}{'ratio':>8}  range")
    for row in rows:
        print(
            f"{row['what']:34}{row['shape']:13}{row['peer']:34}{row['mrseg_ms']:9.1f}{row['peer_ms']:10.1f}"
            f"{row['ratio']:8.1f}  {row['ratio_low']} to {row['ratio_high']}"
        )
    print(*(f"{name}: {text}" for name, text in about.items()), sep="\n")


def _sorted_by_numpy(distances: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((areas, distances))
    return distances[order], areas[order]


if __name__ == "__main__":
    main()
