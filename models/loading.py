"""Loading and initialising segmentation models, and judging whether a checkpoint really was loaded.

Works with every `AutoModelForSemanticSegmentation`. What is loaded is float32, has the classes of the data, and is
saved under key names that older transformers releases read as well.
"""

import copy
import logging
import math
import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Tipsv2DptForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)

from cli_utils import UserError, count_of, nearest, one_line, shorten
from metrics_utils import IGNORE_INDEX
from models.adapters import (
    encoder_modules,
    encoder_names,
    set_image_size,
    set_num_channels,
    with_channels,
    with_image_size,
)
from models.backbones import config_with_head, load_backbone
from models.configurations import (
    UNIVERSAL,
    auto_class,
    encoder_config,
    is_eomt,
    is_universal,
    new_model,
    open_config,
    read_checkpoint,
)
from models.fused_segformer import fuse_model
from models.geometry import input_channels, input_geometry

logger = logging.getLogger(__name__)
# Where they differ from SegformerConfig's defaults, which are B0's, with drop path and head dropout 0.1 for all.
# Source: mmsegmentation, configs/segformer/segformer_mit-b{0..5}_8xb2-160k_ade20k-512x512.py.
_WIDE = {"hidden_sizes": [64, 128, 320, 512]}
MIT_VARIANTS = {
    "mit-b0": {},
    "mit-b1": _WIDE,
    "mit-b2": _WIDE | {"depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "mit-b3": _WIDE | {"depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    "mit-b4": _WIDE | {"depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    "mit-b5": _WIDE | {"depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
}
# What an encoder's checkpoint may hold beside the encoder: heads of other tasks, the pooling that feeds them, and
# MobileViT's last convolution, which only its classifier uses.
_OLD_HEADS = {"classifier", "lm_head", "layernorm", "head", "auxiliary_head", "pooler", "conv_1x1_exp"}


def load_model(
    name_or_path: str = "nvidia/mit-b0",
    id2label: dict[int, str] | None = None,
    fused_ops: bool = True,
    from_scratch: str | None = None,
    single_logit: bool = False,
    num_channels: int | None = None,
    revision: str | None = None,
    head: str | None = None,
    image_size: int | None = None,
    **kwargs,
) -> PreTrainedModel:
    """A float32 segmentation model with the given classes, ready to be trained.

    The encoder must be in the checkpoint completely. The head comes along where the checkpoint is a segmentation model
    (with a fresh classifier for another number of classes), else it is fresh; what is fresh is logged. Auxiliary heads
    are left out, since the loss is computed from the main logits alone, and parameters that do not reach those logits
    (a norm or a layer behind the last feature map) do not require a gradient, so that DistributedDataParallel need not
    look for them.

    Args:
        name_or_path: Hub id or folder.
        id2label: training id → name. None keeps the names in the checkpoint's or the file's configuration.
        fused_ops: the faster decode head and encoder, see `models.fused_segformer.fuse_model`.
        from_scratch: instead of a checkpoint, random weights: `mit-b0` … `mit-b5`, or a `config.json` (or the folder
            that holds it) of any segmentation model. Needs no network.
        single_logit: of two classes, one output instead of two: the logit z of the second, whose probability is the
            sigmoid of z (`models.inference.two_class_logits`). The configuration names the second class alone.
        num_channels: of the images; None for what the checkpoint takes. RGB filters are taken over as
            `models.adapters.with_channels` says.
        revision: branch, tag or commit of a model on the Hub.
        head: of `models.arguments.HEADS`: a fresh one on the pretrained backbone that `name_or_path` then names.
        image_size: of an EoMT, which takes squares of one side: the side in pixels, for which a checkpoint of another
            one is made to fit. None for the checkpoint's.
        kwargs: fields of the model's configuration, or of its backbone's, for instance `drop_path_rate=0.2`.

    Raises:
        UserError: the checkpoint cannot be reached or read, is no segmentation architecture, or lacks or contradicts
            part of the encoder; an unknown variant or configuration field; a configuration that does not run;
            `single_logit` without two classes; a number of channels that the architecture or the checkpoint cannot be
            given.
    """
    source = from_scratch or name_or_path
    config = find_config(name_or_path, from_scratch, revision, head, image_size)
    old_id2label = config.id2label
    _configure(config, source, id2label, single_logit, kwargs)
    if from_scratch and num_channels is not None:
        set_num_channels(config, num_channels)
    geometry = input_geometry(config)
    if from_scratch:
        model = _build(config)
    else:
        if head:
            model = _build(config)
            load_backbone(model, name_or_path, revision)
        else:
            model = _load_pretrained(name_or_path, config, old_id2label, revision)
        check_finite(model.state_dict(), name_or_path)
        if num_channels is not None:
            model = with_channels(model, num_channels)
    _freeze_unused_parameters(model, geometry.fit(64))
    return fuse_model(model) if fused_ops else model


def load_trained_model(
    name_or_path: str,
    fused_ops: bool = True,
    id2label: dict[int, str] | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """A trained segmentation model in evaluation mode, float32, with nothing in it fresh.

    Args:
        name_or_path: Hub id or folder.
        fused_ops: as for `load_model`.
        id2label: the classes of the data it is to be evaluated on; None for those it was trained on. Two classes fit
            a model with a single logit.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        UserError: as `load_model`, and where the checkpoint is no trained segmentation model or has another number of
            classes.
    """
    config = read_config(name_or_path, revision)
    if not _is_segmentation_checkpoint(config):
        raise UserError(
            f"{name_or_path} is no trained segmentation model but {' '.join(config.architectures or ['unnamed'])}; "
            "fine-tune it first with run_segmentation.py --do_train"
        )
    old_id2label = config.id2label
    single_logit = id2label is not None and (len(id2label), len(old_id2label)) == (2, 1)
    if id2label is not None and len(id2label) != len(old_id2label) and not single_logit:
        raise UserError(
            f"{name_or_path} was trained on {len(old_id2label)} classes ({shorten(old_id2label.values(), 4)}), the "
            f"data has {len(id2label)} ({shorten(id2label.values(), 4)})"
        )
    _configure(config, name_or_path, id2label, single_logit, {})
    model = _load_pretrained(name_or_path, config, old_id2label, revision).eval()
    check_finite(model.state_dict(), name_or_path)
    return fuse_model(model) if fused_ops else model


def find_config(
    name_or_path: str = "nvidia/mit-b0",
    from_scratch: str | None = None,
    revision: str | None = None,
    head: str | None = None,
    image_size: int | None = None,
) -> PretrainedConfig:
    """The configuration of the model that `load_model` makes of the same arguments.

    Raises:
        UserError: as `read_config`, `models.backbones.config_with_head` or `models.adapters.set_image_size`, or an
            unknown variant.
    """
    if head is not None:
        return config_with_head(name_or_path, head, revision, image_size)
    if from_scratch in MIT_VARIANTS:
        return SegformerConfig(**MIT_VARIANTS[from_scratch])
    if from_scratch is not None and not os.path.exists(from_scratch):
        raise UserError(
            f"--from_scratch {from_scratch}{nearest(from_scratch, MIT_VARIANTS)} is neither a file or folder here nor "
            f"one of {', '.join(MIT_VARIANTS)}"
        )
    config = read_config(name_or_path, revision) if from_scratch is None else read_config(from_scratch)
    if image_size is not None and is_eomt(config):
        set_image_size(config, image_size)
    return config


def read_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a segmentation architecture from the Hub (at a revision), a folder, or a `config.json`.

    Raises:
        UserError: it cannot be reached or read, or is of an architecture that does not segment, or that transformers
            does not build as it says.
    """
    known = sorted(
        [*(config_class.model_type for config_class in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING), *UNIVERSAL]
    )
    config = open_config(name_or_path, known, revision)
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING and not is_universal(config):
        raise UserError(
            f"{name_or_path} is of type {config.model_type}; trained and used here are {', '.join(known)}"
            f"{_as_backbone(config, name_or_path)}"
        )
    if config.model_type == "dpt" and not config.is_hybrid and config.backbone_config is not None:
        # DPTForSemanticSegmentation always builds a DPTModel; test_backbones_are_built_or_refused tells of another.
        raise UserError(
            f"{name_or_path}: transformers ignores the {config.backbone_config.model_type} backbone of a dpt "
            "configuration and would build a plain ViT; upernet takes such a backbone, and tipsv2_dpt is a dpt head "
            "over dinov2_with_registers"
        )
    return config


def _as_backbone(config: PretrainedConfig, name: str) -> str:
    return (
        f" (--backbone {name} --head upernet puts a head on it)" if type(config) in MODEL_FOR_BACKBONE_MAPPING else ""
    )


def describe_model(model: PreTrainedModel) -> str:
    """One line: architecture, millions of parameters in encoder and head, and how many of them are not trained."""
    total = sum(parameter.numel() for parameter in model.parameters())
    encoder = sum(parameter.numel() for module in encoder_modules(model) for parameter in module.parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    num_labels = model.config.num_labels
    return (
        f"{type(model).__name__}: {total / 1e6:.2f} M parameters (encoder {encoder / 1e6:.2f} M, head "
        f"{(total - encoder) / 1e6:.2f} M{f'; {frozen / 1e6:.2f} M not trained' if frozen else ''}), "
        f"{f'{num_labels} classes' if num_labels > 1 else 'a single logit for two classes'}"
    )


# ---- configuration and weights --------------------------------------------------------------------------------------


def _configure(
    config: PretrainedConfig,
    source: str,
    id2label: dict[int, str] | None,
    single_logit: bool,
    overrides: dict[str, object],
) -> None:
    """Sets the classes, the overrides and what training here asks of every model, in place."""
    known = config.to_dict()
    for key, value in overrides.items():
        owner = next((part for part in (config, encoder_config(config)) if key in part.to_dict()), None)
        if owner is None:
            raise UserError(f"the configuration of {source} has no field {key}{nearest(key, known)}")
        try:
            setattr(owner, key, value)
        except Exception as error:  # the configuration checks types with an exception of its own
            raise UserError(
                f"{key}={value!r} does not fit the configuration of {source}: {one_line(error)}"
            ) from error
    if single_logit:
        classes = id2label or config.id2label
        if len(classes) != 2:
            raise UserError(
                f"--single_logit is for two classes, not {len(classes)} ({shorten(classes.values(), 4)}): leave it out"
            )
        id2label = {0: classes[1]}
    if id2label is not None:
        config.id2label = dict(id2label)
        config.label2id = {name: index for index, name in id2label.items()}
    for key in ("semantic_loss_ignore_index", "loss_ignore_index"):  # the second is UperNet's
        if key in known:
            setattr(config, key, IGNORE_INDEX)
    if known.get("use_auxiliary_head"):
        config.use_auxiliary_head = False
        logger.info(f"{source}: the auxiliary head is left out, the loss is that of the main logits")


def _build(config: PretrainedConfig) -> PreTrainedModel:
    model = new_model(config)
    if isinstance(model, SegformerForSemanticSegmentation):
        _initialize_convolutions(model)
    elif isinstance(model, Tipsv2DptForSemanticSegmentation):
        _initialize_classifier(model)
    return model


@torch.no_grad()
def _initialize_classifier(model: Tipsv2DptForSemanticSegmentation) -> None:
    """Normal with a standard deviation of 0.01, as published heads have it (open-mmlab/mmsegmentation,
    mmseg/models/decode_heads/decode_head.py, `init_cfg`).

    transformers draws it as wide as the layers below, whose outputs add up: fresh logits reach hundreds then.
    """
    model.decoder.head.weight.normal_(0, 0.01)


@torch.no_grad()
def _initialize_convolutions(model: SegformerForSemanticSegmentation) -> None:
    """Normal with variance 2 / fan-out, as the paper's code has it (mix_transformer.py, `_init_weights`).

    transformers draws them with a standard deviation of 0.02, for the depthwise ones 24 times less than that, and
    training from scratch then takes about twice as many steps. The classifier keeps its small weights, as there.
    """
    for module in (*model.segformer.modules(), model.decode_head.linear_fuse):
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            module.weight.normal_(0, math.sqrt(2 / fan_out))


def _load_pretrained(
    name_or_path: str, config: PretrainedConfig, old_id2label: dict[int, str], revision: str | None
) -> PreTrainedModel:
    """The checkpoint's weights in a model of this configuration; raises unless all that must be there fits."""
    trained, side = _is_segmentation_checkpoint(config), None
    if config.model_type == "eomt":
        config, side = copy.deepcopy(config), config.image_size
        config.image_size = read_config(name_or_path, revision).image_size
    model, info = read_checkpoint(auto_class(config), name_or_path, config, revision)
    _judge_loading(name_or_path, model, info, trained, old_id2label)
    if isinstance(model, Tipsv2DptForSemanticSegmentation) and info["mismatched_keys"]:
        _initialize_classifier(model)
    # `save_pretrained` reverts only those key mappings that loading has used: an encoder's checkpoint would be saved
    # with old names for the encoder and new ones for the head, and older transformers would not find the head. None
    # reverts all. transformers/core_model_loading.py, `model_specific_conversions`; test_stock_still_mixes_key_names
    # tells when this line can go.
    model._weight_conversions = None
    # Tensors begin anywhere in a safetensors file and are used where they lie. Convolutions round otherwise there than
    # in memory as torch allots it, so without copies a reloaded model would not repeat its numbers bit for bit.
    model.load_state_dict({key: tensor.clone() for key, tensor in model.state_dict().items()}, assign=True)
    if side is not None and side != model.config.image_size:
        logger.info(f"{name_or_path}: positions of {model.config.image_size} pixels are resized to those of {side}")
        return with_image_size(model, side)
    return model


def check_finite(state_dict: dict[str, Tensor], what: str) -> None:
    """Raises UserError where a tensor of a model holds NaN or infinity: `what` is said to, and the first are named."""
    broken = [name for name, tensor in state_dict.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{what} holds weights that are not finite (NaN or infinity) in {len(broken)} of {len(state_dict)} "
            f"tensors ({shorten(broken)}): its training diverged; take an earlier checkpoint, or train again with a "
            "lower --learning_rate"
        )


def _judge_loading(
    name_or_path: str, model: PreTrainedModel, info: dict, trained: bool, old_id2label: dict[int, str]
) -> None:
    """Raises UserError unless all that is missing, left over or of another shape has a known reason; logs the rest."""
    encoder = tuple(f"{name}." for name in encoder_names(model))
    old, new = len(old_id2label), model.config.num_labels
    mismatched = {key: (tuple(found), tuple(needed)) for key, found, needed in info["mismatched_keys"]}
    if trained:
        missing = set(info["missing_keys"])
        unexpected = {key for key in info["unexpected_keys"] if not key.startswith("auxiliary_head.")}
        wrong_shape = {
            key: (found, needed)
            for key, (found, needed) in mismatched.items()
            if key.startswith(encoder)
            or (found[0], needed[0]) not in ((old, new), (old + 1, new + 1))  # the second with "no object"
            or found[1:] != needed[1:]
        }
    else:
        missing = {key for key in info["missing_keys"] if key.startswith(encoder)}
        unexpected = {
            key for key in info["unexpected_keys"] if key.removeprefix(encoder[0]).split(".")[0] not in _OLD_HEADS
        }
        wrong_shape = {key: shapes for key, shapes in mismatched.items() if key.startswith(encoder)}
    faults = []
    if missing:
        faults.append(f"missing {shorten(sorted(missing), 4)}")
    if unexpected:
        faults.append(f"unexpected {shorten(sorted(unexpected), 4)}")
    if wrong_shape:
        shapes = (f"{key} {found} instead of {needed}" for key, (found, needed) in sorted(wrong_shape.items()))
        faults.append(f"of another shape {shorten(shapes, 4)}")
    if faults:
        raise UserError(f"{name_or_path} does not fit a {type(model).__name__}: {'; '.join(faults)}")

    fresh = {*info["missing_keys"], *mismatched}
    loaded = len(model.state_dict()) - len(fresh)
    # A universal model's loss counts its classes, and holds no weights.
    modules = _modules(model.state_dict(), {key for key in fresh if not key.startswith("criterion.")})
    names = shorten(old_id2label.values(), 4)
    reason = f", as it was trained on {count_of(old, 'class/classes')} ({names}) and the data has {new}"
    logger.info(
        f"{name_or_path}: {loaded} tensors loaded, fresh: {modules or 'none'}{reason if trained and fresh else ''}"
    )
    if trained and old == new and list(old_id2label.values()) != list(model.config.id2label.values()):
        logger.warning(
            f"{name_or_path} was trained on {old} classes of other names ({shorten(old_id2label.values(), 4)}; here "
            f"{shorten(model.config.id2label.values(), 4)}); its classifier is kept"
        )


def _freeze_unused_parameters(model: PreTrainedModel, side: int) -> None:
    """`requires_grad=False` for the parameters that do not reach the logits; they would never get a gradient.

    side: of an image that the architecture takes, in pixels.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    training = model.training
    model.eval()  # BatchNorm can do without a batch, and no random number is drawn
    output = model(pixel_values=torch.zeros(1, input_channels(model), side, side, device=model.device))
    if is_universal(model.config):
        total = output.class_queries_logits.sum() + output.masks_queries_logits.sum()
    else:
        total = output.logits.sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    model.train(training)
    unused = [index for index, gradient in enumerate(gradients) if gradient is None]
    for index in unused:
        parameters[index].requires_grad_(False)
    if unused:
        modules = _modules(names, {names[index] for index in unused})
        logger.info(f"{len(unused)} parameter tensors do not reach the logits and stay as they are: {modules}")


def _is_segmentation_checkpoint(config: PretrainedConfig) -> bool:
    mappings = (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING)
    classes = [mapping[type(config)].__name__ for mapping in mappings if type(config) in mapping]
    return bool({*classes} & {*(config.architectures or [])})


def _modules(all_keys: Iterable[str], keys: set[str]) -> str:
    """The outermost modules whose tensors are all among `keys`, as a readable list."""
    all_keys = list(all_keys)

    def outermost(key: str) -> str:
        parts = key.split(".")
        prefixes = (".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
        whole = (p for p in prefixes if all(other in keys for other in all_keys if other.startswith(p)))
        return next(whole, key).removesuffix(".")

    return shorten((dict.fromkeys(outermost(key) for key in all_keys if key in keys)), 4)
