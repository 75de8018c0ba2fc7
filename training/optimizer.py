"""Learning rate and weight decay of every parameter, and how the rate moves, as SegFormer was trained."""

import re
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PretrainedConfig, PreTrainedModel, SchedulerType, get_scheduler

from cli_utils import UserError, nearest, one_line
from models.adapters import encoder_names
from models.configurations import encoder_config, is_eomt, num_equal_layers
from training.annealing import POWER, two_stage_factor

NORM_LAYERS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.InstanceNorm2d,
)
_CONVNEXT = ("convnext", "convnextv2", "dinov3_convnext")
_SWIN = ("swin", "maskformer-swin")


def parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    weight_decay: float,
    head_lr_multiplier: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups for an optimizer: "encoder", "encoder norms", "head" and "head norms", but for those that are empty.

    The head is everything outside the encoder and gets `learning_rate * head_lr_multiplier`. Norm layers, told by
    their type, are not decayed; biases outside them are. SegFormer's head has one BatchNorm, which was decayed: the
    published rules go by names, no decay for `norm` and the multiplier for `head`, and there it is called
    `decode_head.linear_fuse.bn` (transformers: `decode_head.batch_norm`). So it belongs to "head".

    Source: NVlabs/SegFormer, local_configs/segformer/B0/segformer.b0.512x512.ade.160k.py, `paramwise_cfg`. Its third
    key, `pos_block`, matches nothing.

    Nor are the tables of relative positions of a Swin (SwinTransformer/Swin-Transformer-Semantic-Segmentation,
    configs/swin, `paramwise_cfg`) and the embeddings of Mask2Former and MaskFormer (facebookresearch/Mask2Former,
    train_net.py, `build_optimizer`), which count as norms here.

    With a `layer_decay` d, layer i of the n of a ViT gets `learning_rate * d ** (n - i)`, and what comes before the
    first d ** (n + 1); each is a group of its own, "encoder layer i". Source: BEiT, `get_num_layer_for_vit` and
    `LayerDecayOptimizerConstructor`. As EoMT was trained, its last layer is not decayed, and what comes before the
    first is one with it (tue-mps/eomt, training/lightning_module.py). Of a ConvNeXt it is the stages: see `_stage_of`.

    Returns:
        Dicts with "name", "params", "lr" and "weight_decay". Every parameter that requires a gradient is in one of
        them, once.
    """
    encoder = {
        id(p): name for part in encoder_names(model) for name, p in model.get_submodule(part).named_parameters(part)
    }
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORM_LAYERS)
        for parameter in module.parameters()
    }
    if model.config.model_type == "segformer":
        norms &= encoder.keys()
    if model.config.model_type in ("mask2former", "maskformer"):
        norms |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if encoder_config(model.config).model_type in _SWIN:
        norms |= {key for key, name in encoder.items() if name.endswith("relative_position_bias_table")}
    members = {"encoder": [], "encoder norms": [], "head": [], "head norms": []}
    rates = dict.fromkeys(("head", "head norms"), learning_rate * head_lr_multiplier)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if id(parameter) in encoder else "head"
        if part == "encoder" and layer_decay != 1:
            layer, exponent = _layer_of(encoder[id(parameter)], model.config)
            part += layer
            rates[part] = rates[f"{part} norms"] = learning_rate * layer_decay**exponent
        members.setdefault(f"{part} norms" if id(parameter) in norms else part, []).append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name, learning_rate),
            "weight_decay": 0.0 if name.endswith("norms") else weight_decay,
        }
        for name, parameters in members.items()
        if parameters
    ]


def _layer_of(name: str, config: PretrainedConfig) -> tuple[str, int]:
    """ " layer i", or what stands for it, of a parameter of an encoder, and the power of the decay that it gets."""
    if encoder_config(config).model_type in _CONVNEXT:
        return _stage_of(name, encoder_config(config).depths)
    count = num_equal_layers(encoder_config(config))
    before_last = 0 if is_eomt(config) else 1
    layer = re.search(r"(?:^|\.)(?:layers?|blocks?)\.(\d+)\.", name)
    if layer:
        return f" layer {layer[1]}", count - 1 - int(layer[1]) + before_last
    if "norm" in name and "embed" not in name:  # behind the last one
        return "", 0
    return " embeddings", count - 1 + 2 * before_last


def _stage_of(name: str, depths: list[int]) -> tuple[str, int]:
    """The same of a ConvNeXt, whose four stages decay, and what halves the resolution before each most of all.

    Published are 6 steps for ConvNeXt-T and 12 for all larger ones, whose third stages have 9 and 27 layers: three for
    the other stages and one for every three layers of the third. Source: open-mmlab/mmsegmentation,
    mmseg/engine/optimizers/layer_decay_optimizer_constructor.py, `get_stage_id_for_convnext`, as in ConvNeXt's own
    code, and the `num_layers` of its configs/convnext.
    """
    steps = 3 + depths[2] // 3
    stage = re.search(r"(?:^|\.)stages\.(\d+)\.layers\.", name)
    if stage:
        return f" stage {stage[1]}", steps - int(stage[1])
    if "hidden_states_norms" in name:  # of the feature maps, which the head reads
        return "", 0
    return " downsampling", steps + 1


def decays_by(config: PretrainedConfig) -> str | None:
    """What the learning rate of a model's encoder can decay by in a way that was published: "layers" of a ViT,
    "stages" of a ConvNeXt, or None."""
    encoder = encoder_config(config)
    if encoder.model_type in _CONVNEXT:
        return "stages"
    return None if num_equal_layers(encoder) is None else "layers"


def check_layer_decay(config: PretrainedConfig, layer_decay: float) -> None:
    """Raises UserError where a model has no layers whose learning rates could decay in a way that was published."""
    if layer_decay != 1 and decays_by(config) is None:
        raise UserError(
            f"--layer_decay {layer_decay:g} is for ViTs, as DINOv2, and ConvNeXt, and "
            f"{encoder_config(config).model_type} comes in stages of other widths: leave it out"
        )


def groups_table(groups: list[dict]) -> str:
    """A table for the log, one line a group of `parameter_groups`."""
    rows = [("parameter group", "tensors", "parameters (M)", "learning rate", "weight decay")]
    for group in groups:
        size = sum(parameter.numel() for parameter in group["params"]) / 1e6
        rows.append(
            (group["name"], len(group["params"]), f"{size:.3f}", f"{group['lr']:g}", f"{group['weight_decay']:g}")
        )
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:<{width}}  {row[1]:>7}  {row[2]:>14}  {row[3]:>13}  {row[4]:>12}" for row in rows)


def takes_parameter_groups(optimizer_cls: type, options: dict) -> bool:
    """Whether what `Trainer.get_optimizer_cls_and_kwargs` returned is for parameter groups of ours.

    Some values of `--optim` bring a selection of their own (GaLore, APOLLO), take the model (LOMO) or are no
    `torch.optim.Optimizer` (Muon).
    """
    is_optimizer = isinstance(optimizer_cls, type) and issubclass(optimizer_cls, torch.optim.Optimizer)
    return is_optimizer and not options.keys() & {"params", "model", "optimizer_dict"}


def poly_factor(
    step: int, max_steps: int, warmup_steps: int, warmup_ratio: float = 1e-6, power: float = 1.0, end: float = 0.0
) -> float:
    """What the learning rate is multiplied by at an iteration, counted from 0: polynomial decay with linear warm-up.

    The decay begins at iteration 0, and during the warm-up its value is multiplied by a line from `warmup_ratio` to 1.
    Source: `PolyLrUpdaterHook` and `LrUpdaterHook.get_warmup_lr` of mmcv 1.x, which the published configurations name.
    (mmsegmentation 1.x warms up first and decays after it, from iteration 1,500.)

    Args:
        end: the factor at `max_steps`.
    """
    factor = (1 - end) * (1 - min(step, max_steps) / max_steps) ** power + end
    if step < warmup_steps:
        factor *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return factor


def poly_schedule(
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    warmup_steps: int = 0,
    power: float = 1.0,
    lr_end: float = 0.0,
    warmup_ratio: float = 1e-6,
) -> LambdaLR:
    """`poly_factor` for every parameter group of an optimizer.

    Args:
        lr_end: learning rate at `max_steps`, the same for all groups (mmcv's `min_lr`).
    """
    # A group that had a schedule before keeps its rate there.
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    factors = [
        partial(
            poly_factor,
            max_steps=max_steps,
            warmup_steps=warmup_steps,
            warmup_ratio=warmup_ratio,
            power=power,
            end=lr_end / rate if lr_end else 0.0,
        )
        for rate in rates
    ]
    return LambdaLR(optimizer, factors)


def two_stage_schedule(
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    warmup_steps: int,
    encoder_warmup_steps: int,
    power: float = POWER,
) -> LambdaLR:
    """`training.annealing.two_stage_factor` for every parameter group of an optimizer."""
    factors = [
        partial(
            two_stage_factor,
            max_steps=max_steps,
            warmup_steps=warmup_steps,
            encoder_warmup_steps=encoder_warmup_steps,
            encoder=group.get("name", "").startswith("encoder"),
            power=power,
        )
        for group in optimizer.param_groups
    ]
    return LambdaLR(optimizer, factors)


def check_schedule(learning_rate: float, options: dict) -> None:
    """Raises UserError where `--lr_scheduler_kwargs` of the polynomial schedule are not those of `poly_schedule`."""
    limits = {"power": (0, float("inf")), "lr_end": (0, learning_rate), "warmup_ratio": (0, 1)}
    for key, value in options.items():
        if key not in limits:
            raise UserError(
                f"--lr_scheduler_kwargs holds {key!r}{nearest(key, limits)}; polynomial takes {', '.join(limits)}"
            )
        low, high = limits[key]
        if not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"--lr_scheduler_kwargs: {key} is {value!r}; it must be a number from {low:g} to {high:g}")


def check_stock_schedule(kind: SchedulerType, options: dict | None) -> None:
    """Raises UserError where a schedule of transformers cannot be made with these `--lr_scheduler_kwargs`.

    Otherwise it would be found after the data was prepared.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(kind, optimizer, 0, 10, options)
    except Exception as error:  # they fail each in a way of its own
        raise UserError(
            f"--lr_scheduler_type {kind.value} does not go with --lr_scheduler_kwargs {options or '{}'}: "
            f"{one_line(error)}"
        ) from error
