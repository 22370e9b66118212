"""Random layers that fall silent while they are frozen; Keras' own drop and shake in a frozen group too.

Each class differs from its Keras parent in nothing else, so a layer may change from one to the other and
back.
"""

from __future__ import annotations

from typing import Any

import keras

from mrseg.models.layers import PACKAGE

registered = keras.saving.register_keras_serializable(package=PACKAGE)


class _Quiet:
    """Is in inference mode while ``trainable`` is False."""

    trainable: bool

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The parent's output; the inputs themselves while frozen."""
        awake = training and self.trainable
        return super().call(inputs, training=awake)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """The parent's arguments, and ``trainable``, which Keras' spatial dropout leaves out."""
        return super().get_config() | {"trainable": self.trainable}  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer again, frozen as it was."""
        options = dict(config)
        trainable = options.pop("trainable", True)
        layer = super().from_config(options)  # type: ignore[misc]
        layer.trainable = trainable
        return layer


@registered
class QuietDropout(_Quiet, keras.layers.Dropout):
    """Dropout that drops nothing while frozen."""


@registered
class QuietSpatialDropout2D(_Quiet, keras.layers.SpatialDropout2D):
    """Dropout of whole channels of slices that drops nothing while frozen."""


@registered
class QuietSpatialDropout3D(_Quiet, keras.layers.SpatialDropout3D):
    """Dropout of whole channels of volumes that drops nothing while frozen."""


@registered
class QuietAlphaDropout(_Quiet, keras.layers.AlphaDropout):
    """Alpha dropout that drops nothing while frozen."""


@registered
class QuietGaussianDropout(_Quiet, keras.layers.GaussianDropout):
    """Multiplicative noise that falls silent while frozen."""


@registered
class QuietGaussianNoise(_Quiet, keras.layers.GaussianNoise):
    """Additive noise that falls silent while frozen."""


#: Keras' layer -> the one that is silent while frozen.
QUIET: dict[type, type] = {
    keras.layers.Dropout: QuietDropout,
    keras.layers.SpatialDropout2D: QuietSpatialDropout2D,
    keras.layers.SpatialDropout3D: QuietSpatialDropout3D,
    keras.layers.AlphaDropout: QuietAlphaDropout,
    keras.layers.GaussianDropout: QuietGaussianDropout,
    keras.layers.GaussianNoise: QuietGaussianNoise,
}


def set_quiet(layer: keras.layers.Layer, quiet: bool) -> None:
    """Makes a random layer silent while frozen, or as random there as Keras made it; others stay as they are.

    The layer changes its class and keeps its rate, seed and place in the network, also in a saved file. A
    compiled model must be compiled again.
    """
    table = QUIET if quiet else {twin: parent for parent, twin in QUIET.items()}
    if type(layer) in table:
        layer.__class__ = table[type(layer)]


def is_random(layer: keras.layers.Layer) -> bool:
    """Whether the layer holds a generator of random numbers, as dropout of a rate above 0 does."""
    return len(layer.variables) > len(layer.weights)


def is_silent(layer: keras.layers.Layer) -> bool:
    """Whether the layer is random but frozen and therefore hands its input on unchanged."""
    return is_random(layer) and isinstance(layer, _Quiet) and not layer.trainable
