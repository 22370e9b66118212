"""Normalisation, augmentation and resampling beside SciPy, NumPy, MONAI, TorchIO and SimpleITK, in one run.

    python benchmarks/preprocessing.py --output docs/results/preprocessing.csv

Every round runs every method once, in turning order; a ratio is peer / mrseg within one round, of seconds on
the clock and of seconds of all threads together, which other work on the machine disturbs less. That the
results are equal is checked before anything is timed; the tolerances are below. The peers are tuned: SciPy
filters float32 slices that lie together in memory, TorchIO copies no subject, SimpleITK keeps its filter.
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
import SimpleITK as sitk
import tensorflow as tf
import torch
import torchio
from machine import processor
from monai.transforms import NormalizeIntensity
from monai.transforms.utils_pytorch_numpy_unification import percentile
from scipy import ndimage

from mrseg.data import augmentation, geometry, phantom
from mrseg.data.normalization import lcn, quantile_zscore
from mrseg.formats import write_csv

SHAPE = (256, 256, 48)
#: Largest differences: of normalised images (values of order 1), of intensities of order 100 after
#: resampling, of an image in [0, 1] after a turn (float32 coordinates up to 256 against float64); smallest
#: share of equal labels after a turn.
NORMALISED, RESAMPLED, TURNED, LABELS = 1e-4, 2e-3, 2e-3, 0.9995

Method = Callable[[], Any]
#: What was aimed at: work up to the comma, peer -> ratio.
GOALS = {
    ("local contrast", "SciPy"): 3, ("quantile z-score", "NumPy"): 3, ("quantile z-score", "MONAI"): 10,
    ("flip", "TorchIO"): 8, ("resampling", "SimpleITK"): 3,
}  # fmt: skip


def main() -> None:
    """Checks and times everything, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/preprocessing.csv"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' deprecations
    head = phantom.head(0, shape=SHAPE)
    labels = phantom.tissue_labels(head)
    noise = np.random.default_rng(0).normal(0, 4, SHAPE)
    image = np.abs(np.array([3.0, 40, 90, 120])[labels] + noise).astype(np.float32)
    stripped = np.where(labels > 0, image + 1, 0).astype(np.float32)
    tasks = {
        "local contrast, 256x256x48": lcn_methods(image),
        "quantile z-score, 256x256x48": zscore_methods(stripped),
        "flip, turn, scale in plane, 256x256x48": augmentation_methods(image / image.max(), labels),
        "flip, turn, scale, 16 slices of 256x256": augmentation_methods(
            image[:, :, 24:25] / image.max(), labels[:, :, 24:25], times=16
        ),
        "resampling, 0.8 mm in plane to 1 mm": resampling_methods(image, (1.0, 1.0, 1.0)),
        "resampling, to 0.6 mm in plane and 1 mm": resampling_methods(image, (0.6, 0.6, 1.0)),
    }
    rows = [row for what, methods in tasks.items() for row in compared(what, methods, options.rounds)]
    names = ("numpy", "scipy", "torch", "monai", "torchio", "SimpleITK", "tensorflow")
    about = {
        "threads": os.cpu_count(),
        "machine": processor(),
        "versions": ", ".join(f"{name} {version(name)}" for name in names)
        + f", Python {platform.python_version()}",
    }
    show(rows, about)
    write_csv([{**row, **about} for row in rows], options.output)


def lcn_methods(image: np.ndarray) -> dict[str, Method]:
    """Jarrett's local contrast, Gaussian window of sigma 4 cut at 8 pixels, slice by slice."""

    def of_array(x: np.ndarray, sigma: tuple[float, ...], plane: tuple[int, ...]) -> np.ndarray:
        v = x - ndimage.gaussian_filter(x, sigma, mode="reflect", truncate=2.0)
        s = np.sqrt(ndimage.gaussian_filter(v * v, sigma, mode="reflect", truncate=2.0))
        return v / np.maximum(s, s.mean(axis=plane, keepdims=True))

    def volume() -> np.ndarray:
        return of_array(image, (4, 4, 0), (0, 1))

    def slices() -> np.ndarray:
        out = np.empty_like(image)
        for z, one in enumerate(np.ascontiguousarray(np.moveaxis(image, 2, 0))):
            out[:, :, z] = of_array(one, (4, 4), (0, 1))
        return out

    return equal({"mrseg": lambda: lcn(image), "SciPy": volume, "SciPy, tuned": slices}, NORMALISED)


def zscore_methods(image: np.ndarray) -> dict[str, Method]:
    """Mean and deviation of the middle half of the positive voxels (islam2025, Eq. 1)."""
    tensor = torch.from_numpy(image)

    def numpy() -> np.ndarray:
        foreground = image > 0
        values = image[foreground]
        low, high = np.percentile(values, (25, 75))
        middle = values[(values >= low) & (values <= high)]
        mean, std = middle.mean(dtype=np.float64), middle.std(dtype=np.float64)
        return np.where(foreground, (image - np.float32(mean)) / np.float32(std), np.float32(0))

    def monai() -> np.ndarray:
        values = tensor[tensor > 0]
        low, high = (float(q) for q in percentile(values, [25, 75]))
        middle = values[(values >= low) & (values <= high)].double()
        normalize = NormalizeIntensity(float(middle.mean()), float(middle.std(unbiased=False)), nonzero=True)
        return np.asarray(normalize(tensor.clone()))  # it writes into what it is given

    return equal({"mrseg": lambda: quantile_zscore(image), "NumPy": numpy, "MONAI": monai}, NORMALISED)


def augmentation_methods(image: np.ndarray, labels: np.ndarray, times: int = 1) -> dict[str, Method]:
    """Flips of both axes, a turn of up to 15 degrees, a factor of 0.9 to 1.1: image and labels, in turn."""
    check_turn(image, labels)
    depth = image.shape[2:] if image.shape[2] > 1 else ()
    tensors = (
        tf.constant(image.reshape(*image.shape[:2], *depth, 1)),
        tf.constant(labels.reshape(*image.shape[:2], *depth)),
    )
    settings = augmentation.Augmentation(flip_axes=(0, 1), rotation_deg=15.0, scale=0.1)
    graph = tf.function(lambda seed: settings(*tensors, seed))
    calls = iter(range(10**9))

    def ours() -> Any:
        for _ in range(times):
            made = [array.numpy() for array in graph(tf.constant([0, next(calls)]))]
        return made

    def theirs(**options: bool) -> Method:
        transform = torchio.Compose(
            [
                torchio.RandomFlip(axes=(0, 1), **options),
                torchio.RandomAffine(
                    scales=(0.9, 1.1, 0.9, 1.1, 1, 1), degrees=(0, 0, 0, 0, -15, 15), **options
                ),
            ],
            **options,
        )
        return lambda: [transform(subject(image, labels)) for _ in range(times)]

    return {"mrseg": ours, "TorchIO": theirs(), "TorchIO, tuned": theirs(copy=False)}


def check_turn(image: np.ndarray, labels: np.ndarray) -> None:
    """The same turn by both: TorchIO's about the image's centre, in its world; ours in pixels."""
    turned = torchio.Affine(scales=(1, 1, 1), degrees=(0, 0, 9), translation=(0, 0, 0), default_pad_value=0)(
        subject(image, labels)
    )
    theirs = [turned[name].numpy()[0] for name in ("image", "labels")]
    found = []
    for sign in (1, -1):
        turn = augmentation._rotation(
            tf.constant(np.deg2rad(sign * 9.0), tf.float32), tf.constant(1.0), *image.shape[:2]
        )
        ours = [
            augmentation._project(tf.constant(array[None]), turn, kind, 0)[0].numpy()
            for array, kind in ((image, "BILINEAR"), (labels, "NEAREST"))
        ]
        inside = (slice(45, -45), slice(45, -45))  # no corner that turns in
        found.append((np.abs(ours[0] - theirs[0])[inside].max(), (ours[1] == theirs[1])[inside].mean()))
    difference, agreement = min(found)
    if difference > TURNED or agreement < LABELS:
        raise SystemExit(f"turned images differ by {difference:.2g}, labels agree on {agreement:.5f}")


def subject(image: np.ndarray, labels: np.ndarray) -> torchio.Subject:
    """TorchIO's container; it shares the memory."""
    return torchio.Subject(
        image=torchio.ScalarImage(tensor=torch.from_numpy(image)[None]),
        labels=torchio.LabelMap(tensor=torch.from_numpy(labels)[None]),
    )


def resampling_methods(image: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, Method]:
    """Linear resampling of a scan of 0.8x0.8x3 mm, without anti-aliasing, which SimpleITK has not."""
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    shape, to_affine = geometry.grid_with_spacing(image.shape, affine, spacing_mm)
    scan = sitk.GetImageFromArray(image.T)
    scan.SetSpacing([0.8, 0.8, 3.0])
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in shape])
    resampler.SetOutputSpacing(spacing_mm)
    resampler.SetOutputOrigin([float(x) for x in to_affine[:3, 3]])
    resampler.SetInterpolator(sitk.sitkLinear)
    matrix = np.linalg.inv(affine) @ to_affine
    kept: list[Any] = []

    def ours() -> np.ndarray:
        return geometry.resample((image, affine), shape, to_affine, antialias=False)

    def theirs() -> np.ndarray:
        kept[:] = [resampler.Execute(scan)]  # a view dies with its image
        return sitk.GetArrayViewFromImage(kept[0]).T

    def scipy() -> np.ndarray:
        return ndimage.affine_transform(
            image, np.diag(matrix)[:3], matrix[:3, 3], output_shape=shape, order=1, mode="nearest"
        )

    methods = {"mrseg": ours, "SimpleITK": theirs, "SciPy": scipy}
    inner = (slice(4, -4),) * 3  # at the border SimpleITK ends half a voxel earlier
    return equal(methods, RESAMPLED, inner)


def equal(methods: dict[str, Method], tolerance: float, where: Any = ...) -> dict[str, Method]:
    """The methods, if all give what the first gives."""
    expected = methods["mrseg"]()
    for name, method in methods.items():
        np.testing.assert_allclose(method()[where], expected[where], rtol=0, atol=tolerance, err_msg=name)
    return methods


def compared(what: str, methods: dict[str, Method], count: int) -> list[dict]:
    """Runs all methods in turn, ``count`` times; one row per peer."""
    timings = rounds.compare(methods, count)
    ours = timings.pop("mrseg")
    return [
        {
            "what": what, "peer": name, "rounds": count,
            "mrseg_ms": round(1000 * ours.seconds, 1), "peer_ms": round(1000 * theirs.seconds, 1),
            "ratio": round(theirs.ratio, 2), "ratio_low": round(theirs.ratio_low, 2),
            "ratio_high": round(theirs.ratio_high, 2),
            "mrseg_cpu_ms": round(1000 * ours.cpu_seconds, 1),
            "peer_cpu_ms": round(1000 * theirs.cpu_seconds, 1),
            "goal": GOALS.get((what.partition(",")[0], name), ""),
        }
        for name, theirs in timings.items()
    ]  # fmt: skip


def show(rows: list[dict], about: dict[str, str]) -> None:
    """Prints the table."""
    print(f"{'what':42}{'peer':16}{'mrseg ms':>9}{'peer ms':>9}{'ratio':>7}  range, of processor time")
    for row in rows:
        print(
            f"{row['what']:42}{row['peer']:16}{row['mrseg_ms']:9.1f}{row['peer_ms']:9.1f}"
            f"{row['ratio']:7.2f}  {row['ratio_low']} to {row['ratio_high']}, "
            f"{row['peer_cpu_ms'] / max(row['mrseg_cpu_ms'], 0.1):.2f}"
        )
    print(*(f"{name}: {text}" for name, text in about.items()), sep="\n")


if __name__ == "__main__":
    main()
