"""Whether peft is imported. transformers does so wherever it is installed, which takes a second of CPU, and only
models with adapters need it."""

import sys
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

ADAPTERS = "adapter_config.json"


def leave_out_peft(*models: str) -> None:
    """Lets this process do without peft, as if it were not installed, if no model among folders and Hub ids has
    adapters of its own. To be called before transformers imports it."""
    if not any(map(may_have_adapters, models)):
        sys.modules["peft"] = None


def may_have_adapters(model: str) -> bool:
    """False where a folder, or what was downloaded of a model of the Hub, has a configuration and no adapters."""
    folder = Path(model)
    if folder.exists():
        return (folder / ADAPTERS).exists()
    try:
        config, adapters = (try_to_load_from_cache(model, name) for name in ("config.json", ADAPTERS))
    except ValueError:  # no id of the Hub
        return False
    return not isinstance(config, str) or isinstance(adapters, str)
