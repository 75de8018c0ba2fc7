"""The other sides of comparisons are what their names say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.preprocessing import EvaluationProtocol
from reports import peers


def test_stock_mean_iou_gives_the_values_that_evaluate_documents(tmp_path):
    # The example in the docstring of evaluate's mean_iou.
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    result = peers.stock_mean_iou(str(tmp_path)).compute(
        predictions=[np.array(ids, np.int32) for ids in predictions],
        references=[np.array(ids, np.int32) for ids in references],
        num_labels=10,
        ignore_index=255,
    )
    expected = {"mean_iou": 0.4775, "mean_accuracy": 0.5916666666666666, "overall_accuracy": 0.5263157894736842}
    assert result == pytest.approx(expected, abs=1e-12)


def test_tuning_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    with pytest.raises(peers.CannotRun, match="C.. compiler"):
        peers.tuned(torch.nn.Conv2d(3, 4, 3))


def test_streaming_counts_are_those_of_all_images():
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(3, (4, 16, 16))
    labels[:, 0] = 255
    ids = peers.ids_of_logits(logits, labels)
    assert ids.shape == labels.shape
    compute_metrics = peers.streaming_metrics(3)
    for _ in range(2):  # two evaluations
        parts = [SimpleNamespace(predictions=ids[i], label_ids=labels[i]) for i in (slice(0, 1), slice(1, 4))]
        assert compute_metrics(parts[0], compute_result=False) == {}
        scores = compute_metrics(parts[1], compute_result=True)
        valid = labels != 255
        assert scores["overall_accuracy"] == pytest.approx((ids == labels)[valid].double().mean().item())


def test_torchvision_crops_images_and_masks_alike():
    mask = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((20, 20), np.uint8))
    image = np.stack([mask * 20] * 3, axis=-1)
    rows = {"image": [Image.fromarray(image)] * 3, "label": [Image.fromarray(mask)] * 3}
    torch.manual_seed(0)
    examples = peers.torchvision_transforms(64)(rows)
    assert examples["pixel_values"].shape == (3, 3, 64, 64) and examples["labels"].shape == (3, 64, 64)
    shown = EvaluationProtocol().denormalize(examples["pixel_values"][0])[0].float() / 20
    valid = examples["labels"][0] != 255
    assert valid.any() and (shown - examples["labels"][0])[valid].abs().median() < 0.5


@pytest.mark.parametrize(("layout", "sizes"), [("images and masks", (4, 1)), ("CamVid", (5, 5))])
def test_photos_keep_the_split_that_they_have(make_dataset, layout, sizes, tmp_path):
    photos = peers.photos_of(make_dataset(layout, 5), tmp_path / "cache", 32)
    assert (len(photos.train), len(photos.validation)) == sizes and photos.num_labels == 3
