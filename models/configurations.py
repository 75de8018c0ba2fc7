"""Opening a model's configuration and its weights, on the Hub or on this disk, of whatever architecture it is."""

import logging
import os
from pathlib import Path

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    has_file,
)

from cli_utils import UserError, one_line, shorten

logger = logging.getLogger(__name__)

# Types that predict a set of masks with a class each, and are trained and evaluated by `models.universal`.
UNIVERSAL = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
WITHOUT_NETWORK = "without network: a local folder as the model, or training with --from_scratch mit-b0"


def open_config(name_or_path: str, known: list[str], revision: str | None = None) -> PretrainedConfig:
    """The configuration of a model on the Hub (at a revision), in a folder, or in a `config.json`.

    known: model types that would do, for messages.

    Raises:
        UserError: it cannot be reached or read, or asks for code of its own.
    """
    path = Path(name_or_path)
    if revision is not None and os.path.exists(path):
        raise UserError(
            f"--model_revision {revision} is for models of the Hub, and {path} is on this disk: leave it out"
        )
    if os.path.isdir(path) and not (path / "config.json").is_file():
        checkpoints = sorted(path.glob("checkpoint-*/config.json"), key=os.path.getmtime)
        advice = f"; the last checkpoint is one: {checkpoints[-1].parent}" if checkpoints else ""
        found = shorten((p.name for p in path.iterdir()), 4)
        raise UserError(f"folder {path} holds no config.json, so no model (found: {found}){advice}")
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    except Exception as error:  # a damaged file can raise anything
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{name_or_path} is a model with code of its own (auto_map in config.json), which is never run here; "
                f"known without it are {', '.join(known)}"
            ) from None
        if os.path.exists(path):
            raise UserError(f"the configuration in {path} cannot be read: {one_line(error)}") from error
        at_revision = f" at revision {revision}" if revision is not None else ""
        if "gated repo" in str(error):
            raise UserError(
                f"{name_or_path} is gated{at_revision}: ask for access on https://huggingface.co/{name_or_path} with "
                f"your account, then `hf auth login` on this machine ({WITHOUT_NETWORK})"
            ) from error
        raise UserError(
            f"{name_or_path} is no folder here, and the Hub did not give it{at_revision}: {one_line(error)} (private "
            f"and gated models need `hf auth login`; {WITHOUT_NETWORK})"
        ) from error
    if config.id2label:  # files have their keys in the order of text: 0, 1, 10, 2
        config.id2label = dict(sorted(config.id2label.items()))
    for part in config_parts(config):
        if hasattr(part, "auto_map"):  # saved with the model it would ask whoever loads it to run that code
            logger.warning(f"{name_or_path}: auto_map is left out; transformers' own {part.model_type} is used")
            del part.auto_map
    return config


def is_at_hand(name_or_path: str) -> bool:
    """Whether a model is a folder, or its weights lie in the cache of earlier downloads, or the Hub answers for it; so
    False without network. What the Hub answers is for whoever opens the model."""
    if os.path.isdir(name_or_path):
        return True
    weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    try:
        if any(has_file(name_or_path, file, local_files_only=True) for file in weights):
            return True
        get_hf_file_metadata(hf_hub_url(name_or_path, "config.json"), timeout=10)
    except HfHubHTTPError:
        return True
    except Exception:  # no name of a repository, HF_HUB_OFFLINE=1, or what the HTTP library of huggingface_hub raises
        return False
    return True


def is_universal(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration predicts masks with classes, not the class of each pixel."""
    return config.model_type in UNIVERSAL


def is_eomt(config: PretrainedConfig) -> bool:
    """Whether it is an EoMT, which takes squares of one side, `config.image_size`: larger images come in windows."""
    return config.model_type in ("eomt", "eomt_dinov3")


def auto_class(config: PretrainedConfig) -> type:
    """Of transformers' Auto classes the one that builds and loads a segmentation model of this configuration."""
    return AutoModelForUniversalSegmentation if is_universal(config) else AutoModelForSemanticSegmentation


def new_model(config: PretrainedConfig) -> PreTrainedModel:
    """A float32 segmentation model with random weights, without code of a repository."""
    return auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)


def config_parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configuration, and that of its backbone if it has one."""
    parts = [config, *(getattr(config, name) for name in config.sub_configs_defaults)]
    return [part for part in parts if part is not None]


def encoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a segmentation model's encoder: its backbone's, or its own."""
    return getattr(config, "backbone_config", None) or config


def num_equal_layers(config: PretrainedConfig) -> int | None:
    """How many layers of one width a ViT has, by its configuration; None for what comes in stages of other widths."""
    layers, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    return layers if isinstance(layers, int) and isinstance(width, int) and not hasattr(config, "depths") else None


def read_checkpoint(
    kind: type, name_or_path: str, config: PretrainedConfig | None, revision: str | None
) -> tuple[PreTrainedModel, dict]:
    """A checkpoint's weights in float32 in a model of this kind, a class or an auto class, and what transformers says
    of keys that are missing, unexpected or of another shape.

    config: of the model; None: the checkpoint's own.

    Raises:
        UserError: the weights cannot be reached or read.
    """
    try:
        return kind.from_pretrained(
            name_or_path,
            config=config,
            revision=revision,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # missing, truncated and foreign files raise anything from OSError to IndexError
        scattered = next(Path(name_or_path).glob(f"{FSDP_MODEL_NAME}_*"), None)
        if scattered:
            raise UserError(
                f"the weights of {name_or_path} are scattered, as FSDP saves them: "
                f"accelerate merge-weights {scattered} {name_or_path}"
            ) from None
        advice = "" if os.path.isdir(name_or_path) else f" ({WITHOUT_NETWORK})"
        raise UserError(f"the weights of {name_or_path} cannot be loaded: {one_line(error)}{advice}") from error
