"""Universal models (EoMT, Mask2Former, MaskFormer): their targets, made from masks of class ids, and their own loss,
normalised over the whole step.

How their masks become the scores of pixels: `models.mask_scores`.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from cli_utils import UserError
from metrics_utils import IGNORE_INDEX
from models.configurations import UNIVERSAL, is_universal


def mask_targets(labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Training ids (B, H, W), `IGNORE_INDEX` ignored → a mask for each class in each image, as these models take them.

    Returns:
        mask_labels, float32 (n, H, W) for each image, and class_labels, int64 (n,); n may be 0.
    """
    class_labels = [image[image != IGNORE_INDEX].unique().long() for image in labels]
    masks = [
        (image[None] == classes[:, None, None]).float() for image, classes in zip(labels, class_labels, strict=True)
    ]
    return masks, class_labels


class QueryObjective:
    """The own loss of a universal model, divided by what is in the whole step: all its batches, on all processes.

    Losses of masks are sums over matched masks, divided by the number of masks in the targets; the loss of classes is
    a mean over queries, in which one that is matched with nothing weighs `no_object_weight`. transformers divides by
    what is in each batch, and its mask losses by a mean over processes once more, so that they are N times too large
    on N processes (`get_num_masks`); tests/models/test_universal.py tells if that is mended.

    Args:
        model: its criterion is changed: it asks for the number of masks here.
        void: what pixels without a label are to the losses of masks. "background", as published: outside of every
            mask. "ignore", which is ours: points are drawn among the others. MaskFormer draws none.
    """

    def __init__(self, model: PreTrainedModel, void: str = "background"):
        self.void, self.config = void, model.config
        self.no_object_weight = float(model.criterion.eos_coef)
        self.num_queries = _num_queries(model.config)
        # Of the batch that is computed.
        self.num_masks, self.class_share = 1.0, 1.0
        self.valid, self.matched = torch.zeros(0, 0, 0), []
        model.criterion.get_num_masks = lambda class_labels, device: torch.as_tensor(self.num_masks, device=device)
        model.criterion.register_forward_hook(self._share_of_classes)
        if void == "ignore":
            _ignore_void(model.criterion, self)

    def count(self, labels: Tensor) -> Tensor:
        """float64 (2,): masks, and the weight of all queries in the loss of classes."""
        masks = torch.tensor([len(image[image != IGNORE_INDEX].unique()) for image in labels], dtype=torch.float64)
        matched = masks.clamp(max=self.num_queries)
        weight = matched + self.no_object_weight * (self.num_queries - matched)
        return torch.stack([masks.sum(), weight.sum()])

    def inputs(self, inputs: dict, count: Tensor | None) -> dict:
        """What the model is called with, besides the labels: targets. Call it before each batch."""
        labels = inputs["labels"]
        of_batch = self.count(labels)
        num_masks, weight = (of_batch if count is None else count.cpu()).tolist()
        self.num_masks, self.class_share = max(1.0, num_masks), float(of_batch[1]) / weight
        self.valid = labels != IGNORE_INDEX
        mask_labels, class_labels = mask_targets(labels)
        self.matched = [min(len(classes), self.num_queries) for classes in class_labels]
        return inputs | {"mask_labels": mask_labels, "class_labels": class_labels}

    def loss(self, outputs, labels: Tensor, count: Tensor | None) -> Tensor:
        """What the model has computed with the inputs of `inputs`."""
        return outputs.loss

    def _share_of_classes(self, criterion, args, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: loss * self.class_share if "cross_entropy" in key else loss for key, loss in losses.items()}


def _num_queries(config: PretrainedConfig) -> int:
    return config.num_queries if hasattr(config, "num_queries") else config.decoder_config.num_queries


def check_flags_of_masks(
    config: PretrainedConfig, losses, class_weights, label_smoothing, single_logit, void: str | None
) -> None:
    """Raises UserError for flags about the loss of pixels with a universal model, and for those about masks with
    another one."""
    if not is_universal(config):
        if void is not None:
            raise UserError(f"--void_in_masks {void} is for {', '.join(UNIVERSAL)}, not for {config.model_type}")
        return
    if void == "ignore" and config.model_type == "maskformer":
        raise UserError("--void_in_masks ignore leaves pixels out of the points that are drawn; maskformer draws none")
    given = {
        f"--loss {'+'.join(losses)}": tuple(losses) != ("ce",),
        "--class_weights": class_weights is not None,
        "--label_smoothing_factor": label_smoothing,
        "--single_logit": single_logit,
    }
    for flag, is_given in given.items():
        if is_given:
            raise UserError(
                f"{flag} is about the loss of pixels; {config.model_type} predicts masks and is trained on its own "
                "loss: leave it out"
            )


# ---- pixels without a label are left out ----------------------------------------------------------------------------


def _ignore_void(criterion: nn.Module, objective: QueryObjective) -> None:
    """Points of the losses and of the matching are centres of pixels that have a label, in place.

    Both draw points in the middle of a method, so each is replaced: the first as it is but for the points, the second
    by the same costs (transformers' own functions) at such points.
    """
    matcher = criterion.matcher

    def drawn(images: list[int], count: int) -> Tensor:
        """count points (x, y), from 0 to 1, for each of these images, (len(images), count, 2)."""
        height, width = objective.valid.shape[-2:]
        points = []
        for image in images:
            pixels = objective.valid[image].flatten().nonzero()[:, 0]
            picked = pixels[torch.randint(len(pixels), (count,), device=pixels.device)]
            points.append(torch.stack([(picked % width + 0.5) / width, (picked // width + 0.5) / height], dim=-1))
        return torch.stack(points) if points else torch.zeros(0, count, 2, device=objective.valid.device)

    def sample_points(logits, uncertainty_function, num_points, oversample_ratio, importance_sample_ratio):
        # One row for each matched mask, those of an image together.
        images = [image for image, count in enumerate(objective.matched) for _ in range(count)]
        points = drawn(images, int(num_points * oversample_ratio))
        certain = int(importance_sample_ratio * num_points)
        uncertainty = uncertainty_function(sample_point(logits, points, align_corners=False))[:, 0]
        chosen = uncertainty.topk(certain, dim=1).indices[..., None].expand(-1, -1, 2)
        return torch.cat([points.gather(1, chosen), drawn(images, num_points - certain)], dim=1)

    @torch.no_grad()
    def match(masks_queries_logits, class_queries_logits, mask_labels, class_labels):
        pairs, nothing = [], torch.zeros(0, dtype=torch.int64)
        for image, (masks, classes) in enumerate(zip(mask_labels, class_labels, strict=True)):
            if not len(classes):
                pairs.append((nothing, nothing))
                continue
            points = drawn([image], matcher.num_points)
            predicted, truth = (
                sample_point(one[:, None].float(), points.expand(len(one), -1, -1), align_corners=False)[:, 0]
                for one in (masks_queries_logits[image], masks)
            )
            cost = matcher.cost_mask * pair_wise_sigmoid_cross_entropy_loss(predicted, truth)
            cost += matcher.cost_dice * pair_wise_dice_loss(predicted, truth)
            cost -= matcher.cost_class * class_queries_logits[image].float().softmax(-1)[:, classes]
            largest = torch.finfo(cost.dtype).max
            cost = cost.nan_to_num(nan=largest, posinf=largest, neginf=largest)
            pairs.append(tuple(torch.as_tensor(one) for one in linear_sum_assignment(cost.cpu())))
        return pairs

    criterion.sample_points_using_uncertainty = sample_points
    matcher.forward = match
