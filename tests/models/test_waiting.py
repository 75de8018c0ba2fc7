"""Training and evaluation never wait for an accelerator to tell a number: they run where there are no numbers at all.

On torch's meta device tensors have shapes alone; `.item()`, `nonzero`, picking pixels by a mask and whatever else the
host would have to wait for raise there. So what runs has none of them, whatever the number of classes or tiles.
"""

from contextlib import nullcontext

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from metrics_utils import boundary_counts, confusion_matrix
from models import upsampling
from models.fused_segformer import fuse_model
from models.inference import score_logits, upsampled_scores
from models.losses import cross_entropy_sums, segmentation_loss, tiled_sums
from training.divergence import poisoned


@pytest.fixture(autouse=True)
def several_tiles_without_autocast(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which has no meta device
    monkeypatch.setattr(upsampling, "ACCELERATOR_TILE_BYTES", 2**14)


def labels_of(*shape):
    return torch.zeros(shape, dtype=torch.long, device="meta")


def test_the_meta_device_refuses_what_waits():
    numbers = torch.zeros(3, device="meta")
    for waits in (numbers.sum().item, numbers.nonzero, lambda: numbers[numbers > 0], lambda: bool(numbers.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()


@pytest.mark.parametrize("num_classes", [2, 150])
def test_a_training_step_waits_for_nothing(num_classes):
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config = SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=num_classes)
    with torch.device("meta"):
        model = fuse_model(SegformerForSemanticSegmentation(config)).train()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    logits = model(pixel_values=torch.zeros(2, 3, 64, 64, device="meta")).logits
    labels = labels_of(2, 64, 64)
    poisoned(segmentation_loss(logits, labels, ("ce",), None, (labels != 255).sum(), 0.1)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    # Operators show the device their outputs alone; this is what they do inside.
    cross_entropy_sums(logits, labels, torch.ones(num_classes, device="meta"), 255, 0.1, True)
    for name in ("focal", "dice"):  # the others choose or sort pixels
        tiled_sums(logits, labels, None, name, True)


@pytest.mark.parametrize("num_classes", [2, 150])
@pytest.mark.parametrize("fused_ops", [True, False])
def test_an_evaluated_image_waits_for_nothing(num_classes, fused_ops):
    logits, labels = torch.zeros(1, num_classes, 16, 24, device="meta"), labels_of(1, 61, 95)
    prediction, _, _ = score_logits(logits, labels, fused_ops)
    upsampled_scores(logits, labels)
    assert confusion_matrix(prediction, labels, num_classes).shape == (num_classes, num_classes)
    assert boundary_counts(prediction[0], labels[0], num_classes).shape == (3, num_classes)
