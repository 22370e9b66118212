"""One YAML page per experiment: read, checked field by field, turned into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrseg import configuration
from mrseg._checks import choice, error
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
            if name in hints:  # a builder of the user's own may say no types
                configuration.value_of(hints[name], value, f"network.arguments.{name}")


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
        return configuration.as_plain(dataclasses.asdict(self))


def list_recipes() -> list[str]:
    """Names of the pages that come with mrseg."""
    return configuration.list_pages(FOLDER)


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
    # Another experiment has figures of its own.
    page = configuration.read_page(name_or_path, FOLDER, "recipe", own=("expected",))
    for text in overrides:
        configuration.override(page, text)
    return configuration.build(Recipe, page, "recipe")
