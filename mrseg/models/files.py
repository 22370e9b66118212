"""Networks from the files that Keras wrote, in this version or a newer one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

#: Arguments of layers and initializers that Keras 3.13 to 3.15 added, with their defaults. Older versions
#: that mrseg works with refuse them; where a default stands in a file, it can be left out.
NEWER_ARGUMENTS = {
    "input_axes": None, "output_axes": None,
    "renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99,
}  # fmt: skip


def load_network(path: Path) -> keras.Model:
    """The network, not compiled, and weights of a ``.keras`` file that `check_weight_file` let pass.

    Raises:
        ValueError: Keras did not write the file, or it holds code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
    except (zipfile.BadZipFile, KeyError) as reason:
        raise ValueError(f"no archive of Keras: {reason}") from reason
    model = network_from_json(config)
    model.load_weights(path)
    return model


def network_from_json(text: str) -> keras.Model:
    """The network that Keras wrote as JSON, in this version or a newer one; new weights, not compiled."""
    network = _without_newer(json.loads(text))
    network.pop("compile_config", None)
    return keras.models.model_from_json(json.dumps(network))


def _without_newer(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_newer(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_newer(item)
        for name, item in value.items()
        if not (name in NEWER_ARGUMENTS and item == NEWER_ARGUMENTS[name])
    }
