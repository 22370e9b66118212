"""Images of random contrast, made from a label map: a network trained on them has to do without contrast.

Beyond the five papers, in the manner of SynthSeg (Billot et al. 2023, Medical Image Analysis): each structure
gets an intensity of its own, drawn at random, and partial volume, a bias field and noise come on top. A few
classes are not enough structures, so each is split by the intensities that a real image shows inside it. The
ranges below are choices of this library.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy import ndimage

from mrseg._checks import IGNORE_LABEL, error, positive_ints
from mrseg.data.geometry import otsu_threshold

_BRIGHTEST = 255.0  # of the mean of a structure
_SPREAD = 0.08  # largest standard deviation inside a structure, as a share of _BRIGHTEST
_DARK = 0.9  # of the images leave dark what is usually dark
_FAINT = 0.25  # largest mean of what is nearly dark, as a share of _BRIGHTEST
_BLUR_VOXELS = (0.3, 1.0)  # standard deviation of the partial volume along each axis
_BIAS = 0.3  # largest standard deviation of the logarithm of the bias field
_BIAS_NODES = 4  # of the coarse grid along each axis that the bias field is drawn on
_NOISE = 0.06  # largest standard deviation of the (Rician) noise, as a share of _BRIGHTEST
_SMOOTHING_VOXELS = 0.7  # of the real image before its intensities are clustered, against speckle
_SIGNAL_SHARE = 0.2  # of the background class: below this, what is bright there is its edge
_AIR = 0  # number of the structure
_SAMPLES = 20_000  # voxels of a class that its clusters are found on


def random_contrast(
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    image: np.ndarray | None = None,
    clusters: int = 5,
    background: int = 0,
    dark: Collection[int] = (),
) -> np.ndarray:
    """Makes an image of random contrast that fits a label map.

    Each class is split into 1 to ``clusters`` structures (a number drawn per class) by k-means of the real
    image's intensities inside it: soft tissue falls apart into brain, fat, muscle and fluid as far as that
    image tells them apart. Without an image a class is one structure. Every structure has normally
    distributed intensities whose mean and deviation are drawn. Air is left dark in nine images of ten.
    Blur, bias field and Rician noise follow. The anatomy stays where it is.

    Args:
        labels: (x, y, z) integers; 255 (nobody knows) is filled as the image suggests, or is air.
        rng: of everything random.
        image: (x, y, z), the real image on the same grid, finite, any contrast.
        clusters: most structures of a class, from 1.
        background: the class that holds the air. Where more than a fifth of it shows signal (a brain mask's
            "background" holds the rest of the head), that part is split as any class; otherwise the class is
            air throughout.
        dark: classes that hold what gives no signal in any usual sequence, such as cortical bone: the darkest
            structure of each, as the image shows it, stays nearly as dark as air in nine images of ten.

    Returns:
        (x, y, z) float32, from 0, mostly below 300. Where most of the background of ``image`` is exactly 0 (a
        skull-stripped scan), what is 0 there is 0 here.

    Raises:
        InputError: labels that are not a volume of integers; an image of another shape or not finite.

    Example:
        >>> labels = np.zeros((8, 8, 8), np.uint8)
        >>> labels[2:6, 2:6, 2:6] = 1
        >>> random_contrast(labels, np.random.default_rng(0)).shape
        (8, 8, 8)

    Reference:
        Billot et al. 2023, SynthSeg (Medical Image Analysis), for the idea.
    """
    labels, image = _checked(labels, image)
    (clusters,) = positive_ints("clusters", (clusters,), 1)
    structures, darkest = _structures(labels, image, rng, clusters, background)
    means = rng.uniform(0.0, _BRIGHTEST, structures.max() + 1)
    spreads = rng.uniform(0.0, _SPREAD * _BRIGHTEST, len(means))
    if rng.random() >= _DARK:  # faint air
        means[_AIR] = rng.uniform(0.0, _FAINT * _BRIGHTEST)
    else:
        means[_AIR] = spreads[_AIR] = 0.0
    for structure in (darkest[value] for value in sorted(dark) if value in darkest):
        if rng.random() < _DARK:
            means[structure] = rng.uniform(0.0, _FAINT * _BRIGHTEST)
    made = means.astype(np.float32)[structures]
    made += spreads.astype(np.float32)[structures] * rng.standard_normal(labels.shape, dtype=np.float32)
    made = ndimage.gaussian_filter(np.maximum(made, 0), rng.uniform(*_BLUR_VOXELS, 3), mode="nearest")
    made *= _bias_field(labels.shape, rng)
    made = _rician(made, rng.uniform(0.0, _NOISE * _BRIGHTEST), rng)
    if image is not None:
        stripped = (structures == _AIR) & (image == 0)
        if 2 * np.count_nonzero(stripped) > np.count_nonzero(structures == _AIR):
            made[stripped] = 0
    return made


def _checked(labels: np.ndarray, image: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    labels = np.asarray(labels)
    if labels.ndim != 3 or labels.dtype.kind not in "biu" or not labels.size:
        raise error("Labels are a volume (x, y, z) of integers.", f"shape {labels.shape}, {labels.dtype}")
    if image is None:
        return labels, None
    image = np.asarray(image, dtype=np.float32)
    if image.shape != labels.shape:
        raise error("The image lies on the grid of the labels.", f"{image.shape} and {labels.shape}")
    if not np.isfinite(image).all():
        raise error("An image has finite voxels.", f"{np.count_nonzero(~np.isfinite(image))} NaN or infinite")
    return labels, image


def _structures(
    labels: np.ndarray,
    image: np.ndarray | None,
    rng: np.random.Generator,
    clusters: int,
    background: int,
) -> tuple[np.ndarray, dict[int, int]]:
    """Number of the structure of every voxel, and class -> number of its darkest structure."""
    structures = np.full(labels.shape, _AIR, np.intp)  # until something else is said
    darkest: dict[int, int] = {}
    count = _AIR + 1
    smooth = None if image is None else ndimage.gaussian_filter(image, _SMOOTHING_VOXELS, mode="nearest")
    signal = None if smooth is None else smooth > _threshold(smooth)
    for value in np.unique(labels):
        where = labels == value
        if value in (background, IGNORE_LABEL):
            if signal is None:
                continue
            shown = where & signal
            if value == background and shown.sum() <= _SIGNAL_SHARE * where.sum():
                continue
            where = shown
        if not where.any():
            continue
        wanted = int(rng.integers(1, clusters + 1))
        parts = (
            np.zeros(np.count_nonzero(where), np.intp) if smooth is None else _cluster(smooth[where], wanted)
        )
        structures[where] = count + parts
        darkest[int(value)] = count  # clusters are in rising order
        count += int(parts.max()) + 1
    return structures, darkest


def _cluster(values: np.ndarray, count: int) -> np.ndarray:
    """Numbers from 0 of at most ``count`` clusters of intensities: k-means, begun at quantiles."""
    sample = np.sort(values)[:: max(1, values.size // _SAMPLES)].astype(np.float64)
    centres = np.unique(np.quantile(sample, (np.arange(count) + 0.5) / count))
    for _ in range(20):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, sample)
        sizes = np.bincount(nearest, minlength=len(centres))
        means = np.bincount(nearest, sample, minlength=len(centres))[sizes > 0] / sizes[sizes > 0]
        if np.array_equal(means, centres):
            break
        centres = means
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)


def _threshold(values: np.ndarray) -> float:
    """Between air and what gives signal: Otsu's on the square root, on which dark tissue is not lost."""
    low = float(values.min())
    root = np.sqrt(values - low)
    return low if not root.any() else otsu_threshold(root) ** 2 + low


def _bias_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A smooth positive field (x, y, z) float32 around 1."""
    nodes = rng.normal(0.0, rng.uniform(0.0, _BIAS), (_BIAS_NODES,) * 3).astype(np.float32)
    for axis, size in enumerate(shape):
        at = np.linspace(0, _BIAS_NODES - 1, size)
        first = np.minimum(at.astype(np.intp), _BIAS_NODES - 2)
        share = (at - first).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        share = share * share * (3 - 2 * share)  # no kinks at the nodes
        nodes = np.take(nodes, first, axis) * (1 - share) + np.take(nodes, first + 1, axis) * share
    return np.exp(nodes)


def _rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noise = np.float32(sigma) * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.hypot(image + noise[0], noise[1])
