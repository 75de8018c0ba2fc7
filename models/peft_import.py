"""Whether peft is imported. transformers does so wherever it is installed, which takes a second of CPU, and only
models with adapters need it."""

import sys
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

ADAPTERS = "adapter_config.json"


def leave_out_peft(model: str | None) -> None:
    """Lets transformers do without peft, as if it were not installed, if a model is known to have no adapters. To be
    called before transformers imports its models.

    model: a folder, or an id of the Hub, which is known if it was downloaded before; None: its weights are new.
    """
    if model is None or not may_have_adapters(model):
        sys.modules["peft"] = None


def may_have_adapters(model: str) -> bool:
    """False where there is a configuration and no adapters."""
    path = Path(model)
    if path.exists():
        return (path / ADAPTERS).is_file()
    try:
        config, adapters = (try_to_load_from_cache(model, name) for name in ("config.json", ADAPTERS))
    except ValueError:  # no id of the Hub
        return True
    return not isinstance(config, str) or isinstance(adapters, str)
