"""The table of networks: which paper, which input, how many parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from mrseg.models.islam2025 import unet
from mrseg.models.mecheter2023 import se_unet3d


@dataclass(frozen=True)
class Builder:
    """One network of one paper.

    Attributes:
        build: called as ``build(input_shape, num_classes=..., filters=...)``, returns keras.Model.
        paper: key of the paper.
        input_shape: the paper's, with channels.
        num_classes: the paper's, with background.
        filters: the paper's width of the first stage.
        multiple: every spatial size must divide by it.
        parameters: of the network with the values above.
        trainable: those of them that training changes.
    """

    build: Callable[..., keras.Model]
    paper: str
    input_shape: tuple[int, ...]
    num_classes: int
    filters: int
    multiple: int
    parameters: int
    trainable: int


BUILDERS = {
    "se_unet3d": Builder(se_unet3d, "mecheter2023", (128, 128, 48, 1), 3, 32, 8, 8_649_930, 8_645_706),
    "unet": Builder(unet, "islam2025", (256, 256, 1), 4, 32, 8, 1_929_348, 1_926_532),
}
