"""Whether the model can be trained on every batch that is going to come, known before training from sizes alone."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from cli_utils import UserError
from data.augmentation import TrainTransform
from training.arguments import SegmentationTrainingArguments

logger = logging.getLogger(__name__)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def check_batches(
    model: PreTrainedModel,
    args: SegmentationTrainingArguments,
    num_images: int | None,
    transform: TrainTransform,
) -> None:
    """Leaves out a last batch of one image where the model cannot be trained on it, by `--dataloader_drop_last`.

    Pooling to a map of 1x1 before a BatchNorm layer (UperNet, MobileViT, MobileNetV2) leaves one value per channel of
    one image, which has no variance.

    Args:
        num_images: to train on; None for a stream, which does not end.
        transform: gives the training crop.

    Raises:
        UserError: every batch is of one such image.
    """
    batch_size = args.per_device_train_batch_size
    # Of several processes each is given full batches, by taking the first images again, unless that is switched off.
    are_full = num_images is None or (args.world_size > 1 and args.accelerator_config.even_batches)
    ends_on_one = not are_full and not args.dataloader_drop_last and num_images % batch_size == 1
    if batch_size > 1 and not ends_on_one:
        return
    synchronized = args.world_size > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    layer = None if synchronized else layer_that_needs_two_images(model, transform)
    if layer is None:
        warning = batch_norm_warning(model, batch_size)
        if warning:
            logger.warning(warning)
        return
    why = f"{layer} of {type(model).__name__} takes statistics over a map of a single pixel, so it needs two images"
    if batch_size == 1:
        raise UserError(
            f"--per_device_train_batch_size is 1, but {why} to be trained: give 2 or more (--image_size or "
            "--gradient_accumulation_steps do not help; several GPUs with --sync_bn do)"
        )
    if num_images == 1:
        raise UserError(f"there is one training image, but {why} to be trained")
    args.dataloader_drop_last = True
    logger.warning(
        f"{num_images} training images in batches of {batch_size} leave one over, but {why}: it is left out, another "
        "one in every epoch; another --per_device_train_batch_size may take them all"
    )


def layer_that_needs_two_images(model: PreTrainedModel, transform: TrainTransform) -> str | None:
    """Name of the layer that a training step on one image would fail in, as tried without gradients; None for none.

    Parameters, statistics and random numbers are as before.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BATCH_NORMS)}
    if not layers:
        return None
    entered = ["a BatchNorm layer"]
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name)) for name, layer in layers.items()
    ]
    buffers = [buffer.clone() for buffer in model.buffers()]
    side, num_channels = transform.crop_size, transform.protocol.num_channels
    image = torch.zeros(1, num_channels, side, side, device=model.device)
    was_training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.train()(pixel_values=image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch.nn.functional.batch_norm
            raise
        return entered[-1]
    finally:
        model.train(was_training)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for hook in hooks:
            hook.remove()
    return None


def batch_norm_warning(model: nn.Module, per_device_batch_size: int) -> str | None:
    """What to warn of where BatchNorm layers that are trained see one image at a time, else None.

    `SyncBatchNorm` takes its statistics over all devices and is no reason to warn.
    """
    if per_device_batch_size > 1:
        return None
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and any(p.requires_grad for p in module.parameters())
    ]
    if not layers:
        return None
    return (
        f"--per_device_train_batch_size is 1, and {len(layers)} BatchNorm layer(s) in training ({layers[0]}) take "
        "their statistics from the images of one device: use 2 or more, or --sync_bn on several GPUs (gradient "
        "accumulation does not change it)"
    )
