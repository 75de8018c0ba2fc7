"""What transformers imports wherever it is installed, and few models need: peft, of those with adapters, and scipy, of
those that match masks with objects. Together they take more than a second of CPU.

    leave_out_unused("nvidia/mit-b0")            # before anything imports transformers' models
    bring_back("scipy")                          # for code of this project that needs it later
"""

import json
import re
import sys
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

ADAPTERS, CONFIG = "adapter_config.json", "config.json"
# Architectures that classify pixels, and match nothing.
PER_PIXEL = {"segformer", "upernet", "dpt", "beit", "data2vec-vision", "mobilevit", "mobilevitv2", "mobilenet_v2"}


def leave_out_unused(*models: str, adds_adapters: bool = False) -> None:
    """Lets transformers do without peft and scipy, as if they were not installed, as far as no model needs them.

    models: folders, configurations, and ids of the Hub, of which those are known that were downloaded before.
    adds_adapters: both are needed whatever they are.
    """
    kinds = [_kind_of(model) for model in models]
    if None in kinds:  # it may be anything, adapters alone too
        return
    if adds_adapters or any(_stored(model, ADAPTERS) for model in models):  # peft needs scipy
        return
    sys.modules["peft"] = None
    if PER_PIXEL.issuperset(kinds):
        sys.modules["scipy"] = None


def bring_back(package: str) -> None:
    """From now on a package can be imported again; transformers goes on without it."""
    if package in sys.modules and sys.modules[package] is None:
        del sys.modules[package]


def _kind_of(model: str) -> str | None:
    """The type that its configuration names; None where there is none to read."""
    if re.fullmatch("mit-b[0-5]", model):
        return "segformer"
    file = Path(model) if model.endswith(".json") else _stored(model, CONFIG)
    try:
        return json.loads(Path(file or "").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _stored(model: str, name: str) -> str | Path | None:
    """A file of a model on this disk."""
    if Path(model).exists():
        file = Path(model, name)
        return file if file.is_file() else None
    try:
        found = try_to_load_from_cache(model, name)
    except ValueError:  # no id of the Hub
        return None
    return found if isinstance(found, str) else None
