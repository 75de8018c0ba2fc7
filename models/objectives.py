"""What training minimises: an objective for models that classify pixels, one for those that predict masks.

objective = find_objective(model, losses=("ce",))
count = sum(objective.count(labels) for labels in batches)          # of a step, over all processes
outputs = model(**objective.inputs({"pixel_values": …, "labels": labels}, count))    # without the labels
objective.loss(outputs, labels, count).backward()                   # for each batch; the sum is the step's loss
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from metrics_utils import IGNORE_INDEX
from models.configurations import is_universal
from models.inference import two_class_logits
from models.losses import segmentation_loss
from models.universal import QueryObjective


class PixelObjective:
    """The losses of models that classify pixels, at the labels' resolution.

    Args:
        losses: of `models.arguments.parse_loss`.
        class_weights: float32 (num_labels,).
        label_smoothing: of cross-entropy.
        fused_ops: tile by tile.
    """

    def __init__(
        self, losses: Sequence[str], class_weights: Tensor | None, label_smoothing: float = 0.0, fused_ops: bool = True
    ):
        self.losses, self.class_weights = losses, class_weights
        self.options = {"label_smoothing": label_smoothing, "fused_ops": fused_ops}

    def count(self, labels: Tensor) -> Tensor:
        """What sums over labels (B, H, W) are divided by, added up over all batches of a step: valid pixels."""
        return (labels != IGNORE_INDEX).sum()

    def inputs(self, inputs: dict, count: Tensor | None) -> dict:
        """What the model is called with, besides the labels."""
        return inputs

    def loss(self, outputs, labels: Tensor, count: Tensor | None) -> Tensor:
        """Of the pixels of labels, int64 (B, H, W), that `count` counts; None: of these alone."""
        logits = two_class_logits(outputs.logits)
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        return segmentation_loss(logits, labels, self.losses, weight, count, **self.options)


def find_objective(
    model: PreTrainedModel,
    losses: Sequence[str] = ("ce",),
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    fused_ops: bool = True,
    void_in_masks: str = "background",
) -> PixelObjective | QueryObjective:
    """The objective of a model: its own loss if it predicts masks, else the losses that were asked for."""
    if is_universal(model.config):
        return QueryObjective(model, void_in_masks)
    weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
    return PixelObjective(losses, weights, label_smoothing, fused_ops)
