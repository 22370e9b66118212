"""Every network can learn two synthetic heads by heart: Dice of every class 0.95 in 300 steps."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mrseg.data import phantom
from mrseg.data.normalization import min_max
from mrseg.metrics.losses import CategoricalDice
from mrseg.models.builders import BUILDERS, NETWORKS

STEPS = 300
#: The paper's form of each builder; the other rows are run by `make check`.
CASES = [
    pytest.param(n, id=n.name, marks=() if n.name in BUILDERS else pytest.mark.slow)
    for n in NETWORKS
    if list(n.arguments) != ["filters"]
]


@pytest.fixture(scope="module")
def heads():
    subjects = [phantom.head(seed, shape=(64, 64, 48)) for seed in (1, 2)]
    images = np.stack([2 * min_max(phantom.mr_image(head, "T1w")[0]) - 1 for head in subjects])
    return images.astype("float32"), np.stack([phantom.attenuation_labels(head) for head in subjects])


def examples(network, heads):
    """A slice of each head, with its neighbours where the network wants them; a block for 3-D networks."""
    images, labels = heads
    if len(network.input_shape) == 4:
        block = (slice(None), slice(0, 32), slice(16, 48), slice(16, 32))
        return images[block][..., None], labels[block]
    half = network.input_shape[-1] // 2
    return images[..., 24 - half : 25 + half], labels[..., 24]


@pytest.mark.parametrize("network", CASES)
def test_it_learns_two_heads_by_heart(network, heads):
    x, y = examples(network, heads)
    keras.utils.set_random_seed(0)
    model = network.build(x.shape[1:], num_classes=3, filters=8)
    model.compile(keras.optimizers.Adam(3e-3), CategoricalDice(), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    for _ in range(STEPS // 50):
        model.fit(x, y, epochs=50, batch_size=2, verbose=0)
        found = np.argmax(model(x, training=False), axis=-1)
        scores = [
            2 * np.sum((y == c) & (found == c)) / (np.sum(y == c) + np.sum(found == c)) for c in range(3)
        ]
        if min(scores) >= 0.95:
            return
    pytest.fail(f"Dice {np.round(scores, 3)} after {STEPS} steps")
