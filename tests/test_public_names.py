from __future__ import annotations

import importlib
import pkgutil

import pytest

import mrseg

PACKAGES = ("mrseg", "mrseg.data", "mrseg.models", "mrseg.transfer", "mrseg.metrics", "mrseg.recipes",
            "mrseg.baselines")  # fmt: skip


def test_every_public_name_is_still_callable_after_every_submodule_was_imported():
    """A submodule of the name of a function would replace it in the package."""
    for module in pkgutil.walk_packages(mrseg.__path__, "mrseg."):
        if module.name != "mrseg.__main__":
            importlib.import_module(module.name)
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            thing = getattr(package, name)
            is_module = type(thing).__name__ == "module"
            is_table = name in ("BUILDERS", "NETWORKS", "BASELINES")
            assert is_module or callable(thing) or is_table, f"{package.__name__}.{name}"


@pytest.mark.parametrize(
    "name",
    [
        "Segmenter", "evaluate", "models.se_unet3d", "models.unet", "models.segnet", "models.vgg_fcn",
        "models.res_unet", "models.sep_res_unet", "models.attention_unet", "models.list",
        "transfer.train_last", "transfer.freeze",
        "transfer.load_weights", "transfer.hybrid", "data.read_volume", "data.hu_to_labels", "data.register",
        "metrics.dice", "metrics.hausdorff", "metrics.hd95", "metrics.assd", "metrics.wald_ci",
        "metrics.CategoricalDice", "metrics.for_classes", "data.read_cases", "data.datasets.ibsr18",
    ],
)  # fmt: skip
def test_promised_names_are_there(name):
    thing = mrseg
    for part in name.split("."):
        thing = getattr(thing, part)
    assert callable(thing)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match="hybrid"):
        mrseg.transfer.hibrid  # noqa: B018
