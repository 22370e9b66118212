"""A learning rate for each group of a network, in plain ``fit``: Keras' optimisers have one rate for all.

The factor of a group enters the update itself, not the gradient: Adam divides a gradient by its own size, so
a scaled gradient would change nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mrseg import _checks
from mrseg.models.layers import PACKAGE
from mrseg.transfer.grouping import groups


def group_rates(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, factors: Mapping[str, float]
) -> keras.optimizers.Optimizer:
    """An optimiser that moves the named groups of ``model`` with a rate of their own.

    A group's rate is the optimiser's rate, scheduled or not, times the group's factor. Momentum, clipping and
    everything else stay as they are: a group moves exactly as under an optimiser of its own with that rate.

    Args:
        model: network named by the scheme of :func:`~mrseg.transfer.grouping.groups`; read, not changed.
        optimizer: ``keras.optimizers.Adam`` or ``SGD`` without weight decay, not used before; it is copied.
        factors: group -> factor above 0; groups that are not named keep the optimiser's rate.

    Returns:
        The optimiser to compile with. It is saved and loaded with the model.

    Raises:
        InputError: an unknown group (the message lists the groups), a factor that is not a number above 0,
            another kind of optimiser, or one with weight decay, which Keras applies with one rate.

    Example:
        >>> optimizer = group_rates(model, keras.optimizers.Adam(1.0e-4), {"bottleneck": 0.1, "head": 10})
        >>> model.compile(optimizer, "categorical_crossentropy")
    """
    kinds = {keras.optimizers.Adam: GroupRatesAdam, keras.optimizers.SGD: GroupRatesSGD}
    if type(optimizer) not in kinds:
        raise _checks.error("Rates per group are there for Adam and SGD.", type(optimizer).__name__)
    if optimizer.weight_decay is not None:
        raise _checks.error(
            "Rates per group go with an optimiser without weight decay.",
            f"weight_decay {optimizer.weight_decay}",
            "Penalise the kernels with a regularizer instead.",
        )
    table = groups(model)
    by_layer: dict[str, float] = {}
    for name, factor in factors.items():
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not number or not 0 < factor < math.inf:
            raise _checks.error(
                f"The factor of {name} is a number above 0.",
                repr(factor),
                "To keep a group as it is, freeze it.",
            )
        by_layer |= dict.fromkeys(table[name].layers, float(factor))
    config = optimizer.get_config() | {"layer_factors": by_layer}
    return kinds[type(optimizer)].from_config(config)  # type: ignore[attr-defined]


class _GroupRates:
    """What both optimisers share: the factor of each variable, found by the layer in its path."""

    layer_factors: dict[str, float]

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the optimiser's variables and looks up each factor."""
        if self.built:  # type: ignore[attr-defined]
            return
        super().build(variables)  # type: ignore[misc]
        self._factors = [self._factor(variable.path) for variable in variables]

    def _factor(self, path: str) -> float:
        return next((self.layer_factors[part] for part in path.split("/") if part in self.layer_factors), 1.0)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step with the rate of the variable's group."""
        factor = self._factors[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate * factor)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this optimiser again."""
        return super().get_config() | {"layer_factors": dict(self.layer_factors)}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package=PACKAGE)
class GroupRatesAdam(_GroupRates, keras.optimizers.Adam):
    """Adam with a factor on the rate of some layers; made by :func:`group_rates`.

    Args:
        layer_factors: layer name -> factor.
        options: of ``keras.optimizers.Adam``.
    """

    def __init__(self, *args: Any, layer_factors: Mapping[str, float], **options: Any) -> None:
        super().__init__(*args, **options)
        self.layer_factors = dict(layer_factors)


@keras.saving.register_keras_serializable(package=PACKAGE)
class GroupRatesSGD(_GroupRates, keras.optimizers.SGD):
    """SGD with a factor on the rate of some layers; made by :func:`group_rates`.

    Args:
        layer_factors: layer name -> factor.
        options: of ``keras.optimizers.SGD``.
    """

    def __init__(self, *args: Any, layer_factors: Mapping[str, float], **options: Any) -> None:
        super().__init__(*args, **options)
        self.layer_factors = dict(layer_factors)
