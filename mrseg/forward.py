"""From a network to one compiled call: of a fixed shape, at another size, or with dropout at work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from mrseg._checks import error
from mrseg.inference import LARGEST_MULTIPLE
from mrseg.models.quiet import set_quiet
from mrseg.passes import Forward

_DROPOUTS = (keras.layers.Dropout, keras.layers.GaussianDropout, keras.layers.AlphaDropout)


def compile_forward(model: keras.Model, batch_shape: tuple[int, ...]) -> Forward:
    """One compiled forward pass of a fixed shape: traced once, then called for every batch of every volume.

    Args:
        model: network with one input.
        batch_shape: (batch, *patch, channels).

    Returns:
        Function from a float32 array of ``batch_shape`` to the model's float32 output.
    """
    if keras.backend.backend() == "jax":
        import jax

        call = jax.jit(lambda t, n, x: model.stateless_call(t, n, x, training=False))

        def forward(batch: np.ndarray) -> np.ndarray:
            trainable = [v.value for v in model.trainable_variables]
            rest = [v.value for v in model.non_trainable_variables]
            output, moved = call(trainable, rest, batch)
            for variable, value in zip(model.non_trainable_variables, moved, strict=True):
                if "int" in variable.dtype:  # the random state of dropout; statistics stay
                    variable.assign(value)
            return np.asarray(output)

        return forward
    import tensorflow as tf

    # XLA on a CPU is several times slower in 3-D, hence no jit_compile.
    traced = tf.function(
        lambda x: model(x, training=False),
        input_signature=[tf.TensorSpec(batch_shape, tf.float32)],
        jit_compile=False,
    )
    return lambda batch: traced(batch).numpy()


def for_volume(model: keras.Model, shape: Sequence[int]) -> keras.Model:
    """The same network, weights copied, for one patch that holds a whole volume.

    The sizes are rounded up to multiples of the smallest power of 2 that the network's poolings ask for,
    and are at least 2.

    Args:
        model: functional network with one input.
        shape: spatial sizes of the volume that the network must see, without a slice axis.

    Returns:
        A model whose output has the spatial sizes of its input, each at least those of ``shape``.

    Raises:
        InputError: the network cannot be built at another size (a Dense layer over all voxels, a fixed
            reshaping, no functional model).
    """
    reason = ""
    for multiple in (1, 2, 4, 8, 16, LARGEST_MULTIPLE):
        sizes = tuple(-(-max(size, 2) // multiple) * multiple for size in shape)
        try:
            built = _rebuilt(model, sizes)
        except (ValueError, TypeError, KeyError, NotImplementedError) as failure:
            reason = str(failure).strip().splitlines()[0]
            continue
        if tuple(built.output_shape[1:-1]) == sizes:
            return built
        reason = f"an output of {built.output_shape[1:-1]} for an input of {sizes}"
    raise error(
        "A whole volume at once needs a network that can be built at any size.",
        f"{model.name} at {tuple(shape)}: {reason}",
        "Predict in patches: extent='patch', or without --whole.",
    )


def _rebuilt(model: keras.Model, sizes: tuple[int, ...]) -> keras.Model:
    config = copy.deepcopy(model.get_config())
    inputs = [layer for layer in config["layers"] if layer["class_name"] == "InputLayer"]
    if len(inputs) != 1:
        raise ValueError(f"{len(inputs)} inputs")
    channels = model.input_shape[-1]
    inputs[0]["config"]["batch_shape"] = (None, *sizes, channels)
    for layer in config["layers"]:
        # The shape a layer was built for is written down with it; it is built anew.
        layer.pop("build_config", None)
    built = type(model).from_config(config)
    built.set_weights(model.get_weights())
    return built


@keras.saving.register_keras_serializable(package="mrseg")
class AlwaysDropout(keras.layers.Layer):
    """A dropout layer that drops at prediction too, whatever ``training`` says.

    Args:
        dropout: the layer to call with ``training=True``.
    """

    def __init__(self, dropout: keras.layers.Layer, **options: Any) -> None:
        super().__init__(**options)
        self.dropout = dropout

    def call(self, x: Any) -> Any:
        """Features to features of the same shape."""
        return self.dropout(x, training=True)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape of the input."""
        return input_shape

    def restart(self, seed: int) -> None:
        """Goes to the first random number of a seed."""
        state = self.dropout.seed_generator.state
        state.assign(np.array([seed, 0], dtype=state.dtype))


def with_dropout(model: keras.Model) -> tuple[keras.Model, Callable[[int], None]]:
    """The same network, weights copied, whose dropout layers drop at prediction; the others stay as they are.

    Those of frozen groups drop too, though they are silent while the rest trains. BatchNormalization keeps
    its moving statistics, since the copy is called with ``training=False``.

    Args:
        model: functional network.

    Returns:
        The copy, and a function that starts its random numbers again at a seed (each layer at one of its
        own), so that a scan's result depends on the scan and the seed alone.

    Raises:
        InputError: no dropout layer with a rate above 0.

    Reference:
        Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016: several passes with dropout.
    """
    made: list[AlwaysDropout] = []

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if not isinstance(layer, _DROPOUTS) or not layer.rate:
            return type(layer).from_config(config)
        dropout = type(layer).from_config(config)
        set_quiet(dropout, False)  # a frozen group's dropout says as much about the answer as any other
        made.append(AlwaysDropout(dropout, name=layer.name))
        return made[-1]

    copied = keras.models.clone_model(model, clone_function=clone, recursive=True)
    if not made:
        raise error(
            "Monte-Carlo dropout needs a network with dropout.",
            f"{model.name}, which has no dropout layer with a rate above 0",
            "Use the entropy or the variance over mirrors, or train a network with dropout.",
        )
    copied.set_weights(model.get_weights())

    def restart(seed: int) -> None:
        for number, layer in enumerate(made):
            layer.restart(seed * len(made) + number)

    return copied, restart
