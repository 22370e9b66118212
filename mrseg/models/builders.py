"""The table of networks: which paper, which input, how many parameters, which recipe trains it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from mrseg import _checks
from mrseg.models.alkhimova2022 import res_unet
from mrseg.models.islam2025 import attention_unet, sep_res_unet, unet
from mrseg.models.mecheter2020 import segnet
from mrseg.models.mecheter2023 import se_unet3d
from mrseg.models.xu2017 import vgg_fcn

#: Name in recipes -> builder, called as ``build(input_shape, num_classes=..., filters=...)``.
BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "segnet": segnet,
    "se_unet3d": se_unet3d,
    "vgg_fcn": vgg_fcn,
    "res_unet": res_unet,
    "unet": unet,
    "sep_res_unet": sep_res_unet,
    "attention_unet": attention_unet,
}


@dataclass(frozen=True)
class Network:
    """One network of one paper: a builder with its arguments, and what must come out.

    Attributes:
        name: "vgg_fcn_adult"; the paper's own form of a builder bears the builder's name.
        builder: key of BUILDERS.
        paper: key of the paper.
        input_shape: the paper's, with channels.
        num_classes: the paper's, with background.
        multiple: every spatial size must divide by it.
        parameters: of the network with these arguments.
        trainable: those of them that training changes.
        recipe: page that trains it, for ``mrseg train``.
        ranks: numbers of spatial sizes it can be built with.
        arguments: what the builder gets besides input shape and classes.
    """

    name: str
    builder: str
    paper: str
    input_shape: tuple[int, ...]
    num_classes: int
    multiple: int
    parameters: int
    trainable: int
    recipe: str
    ranks: tuple[int, ...] = (2, 3)
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, input_shape: tuple[int | None, ...] | None = None, **arguments: Any) -> keras.Model:
        """The network, for the paper's input unless another is given; ``arguments`` go before its own."""
        classes = arguments.pop("num_classes", self.num_classes)
        return BUILDERS[self.builder](
            input_shape or self.input_shape, classes, **(self.arguments | arguments)
        )


#: Arguments of builders that change no number of parameters.
_NEUTRAL = {"name", "weight_decay", "weights", "dropout", "dropout_at", "input_deviation"}

_SLICE, _SMALL_SLICE, _PATCH = (256, 256, 1), (128, 128, 1), (128, 128, 48, 1)

#: Every network that the five papers name.
NETWORKS = (
    Network("segnet", "segnet", "mecheter2020", _SLICE, 3, 32, 29_459_459, 29_443_587, "mecheter2020_t1"),
    Network(
        "segnet_upsample", "segnet", "mecheter2020", _SLICE, 3, 32, 29_459_459, 29_443_587, "mecheter2020_t1",
        arguments={"unpool": "upsample"},
    ),
    Network(
        "segnet_1x1", "segnet", "mecheter2020", _SLICE, 3, 32, 29_495_107, 29_479_107, "mecheter2020_t1",
        arguments={"head": "1x1"},
    ),
    Network("se_unet3d", "se_unet3d", "mecheter2023", _PATCH, 3, 8, 8_649_930, 8_645_706, "mecheter2023_t1"),
    Network(
        "se_unet3d_16", "se_unet3d", "mecheter2023", _PATCH, 3, 8, 2_165_866, 2_163_754, "mecheter2023_t1",
        arguments={"filters": 16},
    ),
    Network(
        "vgg_fcn", "vgg_fcn", "xu2017", (512, 512, 3), 8, 16, 14_927_384, 14_927_384, "xu2017_exp1",
        ranks=(2,),
    ),
    Network(
        "vgg_fcn_adult", "vgg_fcn", "xu2017", (240, 240, 3), 9, 8, 7_774_153, 7_774_153, "xu2017_exp4",
        ranks=(2,), arguments={"stages": 4},
    ),
    Network(
        "res_unet", "res_unet", "alkhimova2022", _SMALL_SLICE, 2, 16, 34_213_899, 34_196_235, "alkhimova2022"
    ),
    Network(
        "res_unet_32", "res_unet", "alkhimova2022", _SMALL_SLICE, 2, 16, 8_566_795, 8_557_963,
        "alkhimova2022", arguments={"filters": 32},
    ),
    Network(
        "res_unet_16", "res_unet", "alkhimova2022", _SMALL_SLICE, 2, 16, 2_148_363, 2_143_947,
        "alkhimova2022", arguments={"filters": 16},
    ),
    Network(
        "res_unet_resnet34", "res_unet", "alkhimova2022", _SMALL_SLICE, 2, 32, 25_739_986, 25_720_786,
        "alkhimova2022", arguments={"backbone": "resnet34"},
    ),
    Network("unet", "unet", "islam2025", _SLICE, 4, 8, 1_929_348, 1_926_532, "islam2025_unet"),
    Network(
        "sep_res_unet", "sep_res_unet", "islam2025", _SLICE, 4, 8, 677_613, 671_981, "islam2025_sep_res_unet",
        ranks=(2,),
    ),
    Network(
        "sep_res_unet_code", "sep_res_unet", "islam2025", _SLICE, 4, 16, 3_683_492, 3_679_268,
        "islam2025_sep_res_unet", arguments={"variant": "code"},
    ),
    Network(
        "attention_unet", "attention_unet", "islam2025", _SLICE, 4, 16, 18_997_416, 18_987_688,
        "islam2025_attention_unet",
    ),
    Network(
        "attention_unet_separable", "attention_unet", "islam2025", _SLICE, 4, 16, 9_698_993, 9_677_361,
        "islam2025_attention_unet", ranks=(2,), arguments={"convolution": "separable"},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """Rows of :data:`NETWORKS`; prints as a table."""

    rows: tuple[Network, ...]

    def __iter__(self) -> Iterator[Network]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Network:
        """The network of that name; an unknown one is an InputError that lists the names."""
        names = [row.name for row in self.rows]
        return self.rows[names.index(_checks.choice("The network", name, names))]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "| network | paper | input | classes | parameters | in `mrseg.models` | `mrseg train` |"
        yield "|---|---|---|---|---|---|---|"
        for row in self.rows:
            given = "".join(f", {key}={value!r}" for key, value in row.arguments.items())
            call = f"{row.builder}({row.input_shape}, {row.num_classes}{given})"
            shape = " x ".join(map(str, row.input_shape))
            cells = (row.name, row.paper, shape, row.num_classes, f"{row.parameters:,}")
            yield f"| {' | '.join(map(str, cells))} | `{call}` | `{row.recipe}` |"


def matching(builder: str, arguments: Mapping[str, Any]) -> Network | None:
    """The row of :data:`NETWORKS` with the parameters of ``builder`` called with ``arguments``, or None.

    The number of classes and of channels is the row's; arguments that change no parameter may differ.
    """
    parameters = inspect.signature(BUILDERS[builder]).parameters

    def value(given: Mapping[str, Any], key: str) -> Any:
        return given.get(key, parameters[key].default)

    telling = set(parameters) - {"input_shape", "num_classes"} - _NEUTRAL
    if builder != "segnet":
        telling -= {"head"}  # an activation, but for segnet's size of the last convolution
    for row in NETWORKS:
        if row.builder == builder and all(value(row.arguments, k) == value(arguments, k) for k in telling):
            return row
    return None


def list() -> Networks:
    """Every network of the five papers with its input, parameters and recipe.

    Returns:
        A sequence of `Network` that prints as a Markdown table.

    Example:
        >>> print(mrseg.models.list())
        >>> model = mrseg.models.list()["vgg_fcn_adult"].build()
    """
    return Networks(NETWORKS)
