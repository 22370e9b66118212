"""One YAML page per experiment: read, checked field by field, turned into frozen dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mrseg._checks import choice, error, existing_file
from mrseg.data.augmentation import Augmentation
from mrseg.data.patches import Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.models.builders import BUILDERS
from mrseg.postprocess import Postprocessing
from mrseg.training import Loss, Training
from mrseg.transfer.fusion import FUSIONS

FOLDER = Path(__file__).parent
#: Those of mecheter2023, then those beyond the papers.
MECHANISMS = ("none", "open", "conservative", "hybrid", "affine", "statistics")
#: These train nothing, so that no label decides anything.
UNTRAINED = ("none", "statistics")


@dataclass(frozen=True)
class Network:
    """A builder of mrseg.models by name, and the arguments it gets besides input shape and classes."""

    builder: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("network.builder", self.builder, BUILDERS)
        build = BUILDERS[self.builder]
        known = list(inspect.signature(build).parameters)[2:]
        hints = typing.get_type_hints(build)
        for name, value in self.arguments.items():
            choice(f"An argument of {self.builder}", name, known)
            _value(hints[name], value, f"network.arguments.{name}")


@dataclass(frozen=True)
class Transfer:
    """How a trained network is carried to the recipe's sequence (mecheter2023 section 3.3, and beyond).

    Attributes:
        mechanism: ``none`` takes the network as it is; ``open`` trains all of it; ``conservative`` trains the
            last ``convs`` convolutions and the head; ``hybrid`` adds a new encoder beside the frozen one.
            Beyond the papers, ``affine`` trains gamma and beta of every normalisation (the statistics of
            BatchNormalization follow) and nothing else; ``statistics`` trains nothing and needs no labels: it
            estimates the statistics of BatchNormalization anew on the training subjects' scans.
        convs: for ``conservative``: a number counted from the output (0: head alone), or ``decoder``.
        fuse: for ``hybrid``: multiply, average, maximum or concat.
        fuse_at: for ``hybrid``: ``all`` levels or the ``bottleneck``.
        head: for ``affine``: the head trains as well.
        labels_from: beyond the papers: the labels of the training and validation scans are what the source
            says on this other sequence of the same subject (`mrseg.pseudo_label`), whatever labels they
            have. Empty: their own labels.
    """

    mechanism: str
    convs: int | str = 0
    fuse: str = "multiply"
    fuse_at: str = "all"
    head: bool = False
    labels_from: str = ""

    def __post_init__(self) -> None:
        choice("transfer.mechanism", self.mechanism, MECHANISMS)
        choice("transfer.fuse", self.fuse, FUSIONS)
        choice("transfer.fuse_at", self.fuse_at, ("all", "bottleneck"))
        if self.head and self.mechanism != "affine":
            raise error("transfer.head belongs to the mechanism affine.", self.mechanism)
        if self.labels_from and not self.trains:
            raise error(
                "transfer.labels_from is for a mechanism that trains.", self.mechanism, "Take mechanism open."
            )

    @property
    def trains(self) -> bool:
        """Whether any weight is trained."""
        return self.mechanism not in UNTRAINED


@dataclass(frozen=True)
class Recipe:
    """One experiment, of a paper or beyond, complete but for the scans.

    Attributes:
        name: of the page, ``mecheter2023_t1``.
        title: one line.
        paper: key of the paper, ``phantom``, or ``beyond`` for what no paper of the five does.
        command: how to run it.
        sequence: MR sequence of the scans, a column of the manifest.
        class_names: name of every label value from 0.
        network, preprocessing, sampling, augmentation, loss, training: see these classes.
        transfer: None trains from scratch.
        more_sequences: scans of these sequences train (and validate) too, where a subject has them: T1-w
            scans as augmentation of T2-w ones (mecheter2023 section 3.3.4). Test scans are of ``sequence``.
        random_contrasts: so many images of random contrast, made from its labels
            (`mrseg.data.random_contrast`), take the place of every training scan; 0 trains on the scans
            themselves. Validation scans stay as they are.
        dark_classes: for ``random_contrasts``: names of classes that hold what gives no signal in any usual
            sequence, such as bone.
        subtract_mean: the mean of the training images is subtracted channel by channel (xu2017).
        crf: probabilities are refined by a dense conditional random field (mecheter2020, Table II).
        postprocessing: clean-up of the label maps (xu2017 section 3).
        validation_subjects: training subjects set aside for plateau, stopping and the best epoch.
        expected: the paper's figures, class -> metric -> value.
        unstated: what the paper leaves open and this page fixes.
    """

    name: str
    title: str
    paper: str
    command: str
    sequence: str
    class_names: tuple[str, ...]
    network: Network
    sampling: Sampling
    preprocessing: Preprocessing = Preprocessing()
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    training: Training = Training()
    transfer: Transfer | None = None
    more_sequences: tuple[str, ...] = ()
    random_contrasts: int = 0
    dark_classes: tuple[str, ...] = ()
    subtract_mean: bool = False
    crf: bool = False
    postprocessing: Postprocessing = Postprocessing()
    validation_subjects: tuple[str, ...] = ()
    expected: dict[str, Any] = field(default_factory=dict)
    unstated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.sequences)) != len(self.sequences):
            raise error(
                "Every sequence trains once.", ", ".join(self.sequences), "Drop it from more_sequences."
            )
        for name in self.dark_classes:
            choice("A name in dark_classes", name, self.class_names)
        if self.random_contrasts < 0:
            raise error("random_contrasts is a number of images, from 0.", self.random_contrasts)
        if self.random_contrasts and not (self.transfer is None or self.transfer.trains):
            raise error(
                "random_contrasts are images to train on.",
                f"the mechanism {self.transfer.mechanism}",
                "Leave them out.",
            )
        if self.transfer and self.transfer.labels_from == self.sequence:
            raise error("transfer.labels_from is another sequence than the recipe's.", self.sequence)

    @property
    def needs_labels(self) -> bool:
        """Whether a training scan without labels is of no use."""
        return self.transfer is None or self.transfer.mechanism != "statistics"

    @property
    def sequences(self) -> tuple[str, ...]:
        """Every sequence whose scans train."""
        return (self.sequence, *self.more_sequences)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `load_recipe` reads again."""
        return _plain(dataclasses.asdict(self))


def list_recipes() -> list[str]:
    """Names of the pages that come with mrseg."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by name, or from a YAML file of your own.

    Args:
        name_or_path: ``mecheter2023_t1``, or ``my_recipe.yaml``. A page may name another as ``base`` and give
            only what differs.
        overrides: ``key=value`` with dots into the page, ``training.epochs=12``; values are YAML.

    Raises:
        InputError: unknown recipe or key (the nearest is named), or a value of the wrong type.
        FileNotFoundError: no such file.

    Example:
        >>> load_recipe("islam2025_unet", ["training.epochs=12"]).training.epochs
        12
    """
    page = _read_page(name_or_path)
    for override in overrides:
        _override(page, override)
    return _build(Recipe, page, "")


def _read_page(name_or_path: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    if str(name_or_path) in above:
        raise error("A recipe is not its own base.", " -> ".join((*above, str(name_or_path))))
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = existing_file(text)
    else:
        path = FOLDER / f"{choice('The recipe', text, list_recipes())}.yaml"
    try:
        page = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise error("A recipe is a YAML page.", f"{path}: {' '.join(str(reason).split())}") from None
    if not isinstance(page, dict):
        raise error("A recipe is a YAML page of keys and values.", path)
    base = page.pop("base", None)
    if base is None:
        return page
    inherited = _read_page(base, (*above, str(name_or_path)))
    inherited.pop("expected", None)  # another experiment has figures of its own
    return _merge(inherited, page)


def _merge(base: dict[str, Any], page: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in page.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(page: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise error("An override is key=value.", repr(override), "Write training.epochs=12.")
    *parents, last = key.split(".")
    for parent in parents:
        inner = page.get(parent)
        if inner is None:
            inner = page[parent] = {}
        if not isinstance(inner, dict):
            raise error(f"{parent} holds no further keys.", repr(override))
        page = inner
    try:
        page[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise error(f"The value of {key} is YAML.", repr(text)) from None


def _build(kind: type, values: Any, place: str) -> Any:
    """A dataclass from a mapping, every key known and every value of the declared type."""
    if not isinstance(values, dict):
        raise error(f"{place} is a group of keys.", repr(values))
    hints = typing.get_type_hints(kind)
    for key in values:
        choice(f"A key of {place or 'a recipe'}", key, hints)
    needed = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in needed:
        if name not in values:
            raise error(f"{place or 'A recipe'} needs the key {name}.", f"only {', '.join(values)}")
    return kind(
        **{key: _value(hints[key], value, f"{place}.{key}".strip(".")) for key, value in values.items()}
    )


def _value(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        plain = [a for a in options if isinstance(a, type) and type(value) is a]
        return _value((plain or options)[0], value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise error(f"{place} is a list.", repr(value))
        item = arguments[0]
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise error(f"{place} is a list of {len(arguments)} values.", repr(value))
        return tuple(_value(item, v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise error(f"{place} is a group of keys.", repr(value))
        return value
    return _scalar(hint, value, place)


def _scalar(kind: type, value: Any, place: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    remedy = ""
    if kind is float and isinstance(value, str):
        remedy = "YAML reads 1e-3 as text: write 1.0e-3."
    raise error(f"{place} is {words[kind]}.", repr(value), remedy)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
