"""What people would pick instead of this project: the other sides of the comparisons that `benchmark.py` reports.

* stock: the transformers model in transformers' examples/pytorch/semantic-segmentation.
* tuned: the same model as a good user runs it, channels-last and compiled; in evaluation it keeps class ids instead of
  logits (`preprocess_logits_for_metrics`) and counts them batch by batch (`batch_eval_metrics`).
* smp: `Segformer` of segmentation_models.pytorch (MIT licence) with its own loss, an optional package.
* torchvision: the training transforms of its references/segmentation (random resize, flip, crop), of `transforms.v2`.
"""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedModel

from checks.judge import prepare_dataset
from cli_utils import UserError
from data.arguments import ClassArguments, DatasetArguments
from data.augmentation import TrainTransform
from data.preprocessing import EvaluationProtocol
from data_utils import SegmentationDataset, collate_train, find_classes, load_data
from metrics_utils import IGNORE_INDEX, MeanIoU
from models.upsampling import upsampled_argmax

SEED = 0
LEARNING_RATE = 1e-3  # of time-to-score, at its highest


class CannotRun(UserError):
    """A peer that this machine cannot run; the message is short enough for a table's row."""


def tuned(model: nn.Module) -> nn.Module:
    """The same model, channels-last and compiled when it is first called.

    Raises CannotRun where there is no compiler.
    """
    if next(model.parameters()).device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl", "c++"))):
        raise CannotRun("skipped: torch.compile needs a C++ compiler, and there is none here")
    return torch.compile(model.to(memory_format=torch.channels_last))


def smp_segformer(variant: str, num_labels: int) -> nn.Module:
    """`Segformer` with random weights: images (B, 3, S, S) → logits (B, num_labels, S, S).

    Raises CannotRun where the package is not installed, or has no such encoder.
    """
    if not find_spec("segmentation_models_pytorch"):
        raise CannotRun("skipped: pip install segmentation-models-pytorch")
    import segmentation_models_pytorch as smp

    encoder = variant.replace("-", "_")
    if encoder not in smp.encoders.encoders:
        raise CannotRun(f"skipped: segmentation-models-pytorch has no encoder {encoder}")
    return smp.Segformer(encoder, encoder_weights=None, classes=num_labels)


def smp_loss(model: nn.Module, pixel_values: Tensor, labels: Tensor) -> Tensor:
    """Its cross-entropy of images (B, 3, S, S) and int64 labels (B, S, S)."""
    import segmentation_models_pytorch as smp

    loss = smp.losses.SoftCrossEntropyLoss(ignore_index=IGNORE_INDEX, smooth_factor=0.0)
    return loss(model(pixel_values), labels)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def stock_mean_iou(cache_dir: str):
    """An `evaluate.Metric` that stands in for `evaluate.load("mean_iou")`, which needs the Hub: the same path, which
    encodes every map into an Arrow file and decodes it again, and the same formula, histograms of each image."""
    import evaluate

    class StockMeanIoU(evaluate.Metric):
        def _info(self):
            maps = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=maps)

        def _compute(self, predictions, references, num_labels, ignore_index):
            areas = np.zeros((3, num_labels))  # of the intersection, the prediction and the label
            for prediction, label in zip(predictions, references, strict=True):
                prediction, label = np.array(prediction), np.array(label)
                counted = label != ignore_index
                prediction, label = prediction[counted], label[counted]
                for area, ids in zip(areas, (prediction[prediction == label], prediction, label), strict=True):
                    area += np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]
            intersection, predicted, labelled = areas
            with np.errstate(invalid="ignore"):
                iou, accuracy = intersection / (labelled + predicted - intersection), intersection / labelled
            return {
                "mean_iou": np.nanmean(iou),
                "mean_accuracy": np.nanmean(accuracy),
                "overall_accuracy": intersection.sum() / labelled.sum(),
            }

    return StockMeanIoU(cache_dir=cache_dir)


def stock_metrics(num_labels: int, cache_dir: str) -> Callable:
    """`compute_metrics` of the transformers example."""
    metric = stock_mean_iou(cache_dir)

    @torch.no_grad()
    def compute_metrics(eval_prediction):
        logits, labels = eval_prediction
        upsampled = F.interpolate(torch.from_numpy(logits), size=labels.shape[-2:], mode="bilinear")
        # `datasets` would turn int64 into int32 itself, with a warning.
        maps = {"predictions": upsampled.argmax(dim=1).numpy().astype(np.int32), "references": labels.astype(np.int32)}
        return metric.compute(**maps, num_labels=num_labels, ignore_index=IGNORE_INDEX)

    return compute_metrics


def stock_squares(rows: dict, side: int) -> dict:
    """The example's validation transforms of a batch of rows, for `Dataset.with_transform`."""
    images = torch.stack([tvF.resize(tvF.pil_to_tensor(image), [side, side]) for image in rows["image"]])
    masks = [
        tvF.resize(tvF.pil_to_tensor(mask), [side, side], interpolation=InterpolationMode.NEAREST)
        for mask in rows["label"]
    ]
    return {"pixel_values": EvaluationProtocol().normalize(images), "labels": torch.cat(masks).long()}


def ids_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """`preprocess_logits_for_metrics`: logits (B, C, h, w) → class ids of the labels' size, uint8 (B, H, W)."""
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear").argmax(1).to(torch.uint8)


def streaming_metrics(num_labels: int) -> Callable:
    """`compute_metrics` for `batch_eval_metrics`: counts of a batch after the other, scores at the end."""
    counts = MeanIoU(num_labels)

    def compute_metrics(batch, compute_result: bool) -> dict[str, float]:
        counts.add_batch(predictions=batch.predictions, references=batch.label_ids)
        if not compute_result:
            return {}
        scores = counts.compute()  # what is added next is another evaluation's
        return {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}

    return compute_metrics


# ---- data -----------------------------------------------------------------------------------------------------------


def stock_crop(rows: dict, side: int) -> dict:
    """The example's training transforms of a batch of rows: pad to the crop's size, random crop, flip, normalise."""
    pixel_values, labels = [], []
    for image, mask in zip(rows["image"], rows["label"], strict=True):
        image, mask = tvF.pil_to_tensor(image), tvF.pil_to_tensor(mask)
        padding = [0, 0, max(0, side - image.shape[-1]), max(0, side - image.shape[-2])]
        image, mask = tvF.pad(image, padding), tvF.pad(mask, padding)
        top, left = (int(torch.randint(length - side + 1, ())) for length in image.shape[-2:])
        image, mask = (tvF.crop(tensor, top, left, side, side) for tensor in (image, mask))
        if torch.rand(()) < 0.5:
            image, mask = tvF.horizontal_flip(image), tvF.horizontal_flip(mask)
        pixel_values.append(EvaluationProtocol().normalize(image))
        labels.append(mask[0].long())
    return {"pixel_values": torch.stack(pixel_values), "labels": torch.stack(labels)}


def torchvision_transforms(side: int) -> Callable[[dict], dict]:
    """→ function for `Dataset.with_transform`: scaled by 0.5 to 2, flipped, cropped to side x side, normalised.

    Source of what is done: `SegmentationPresetTrain` in pytorch/vision, references/segmentation/presets.py.
    """
    protocol = EvaluationProtocol()
    transform = v2.Compose(
        [
            v2.RandomResize(side // 2, side * 2, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomCrop(side, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX}),
        ]
    )

    def examples(rows: dict) -> dict:
        pairs = [
            transform(tv_tensors.Image(tvF.pil_to_tensor(image)), tv_tensors.Mask(tvF.pil_to_tensor(mask)))
            for image, mask in zip(rows["image"], rows["label"], strict=True)
        ]
        return {
            "pixel_values": torch.stack([protocol.normalize(image.as_subclass(Tensor)) for image, _ in pairs]),
            "labels": torch.stack([mask.as_subclass(Tensor)[0].long() for _, mask in pairs]),
        }

    return examples


# ---- time to score --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """What all sides of time-to-score learn from and are scored on."""

    train: SegmentationDataset
    validation: SegmentationDataset
    num_labels: int

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, without end, the same for every side."""
        generator = torch.Generator().manual_seed(SEED)
        for epoch in itertools.count():
            self.train.set_epoch(epoch)
            order = torch.randperm(len(self.train), generator=generator).tolist()
            for start in range(0, len(order), size):
                batch = collate_train([self.train[index] for index in order[start : start + size]])
                yield batch["pixel_values"], batch["labels"]


def photos_of(folder: str | Path, cache_dir: str | Path, size: int) -> Photos:
    """The photos of a folder, of any layout, as training and evaluation of this project see them. A fifth is kept for
    validation where the folder has no split for that. Raises UserError as training does."""
    data = load_data(DatasetArguments(dataset_dir=str(folder)), SEED)
    if "validation" not in data.splits:
        data = load_data(DatasetArguments(dataset_dir=str(folder), train_val_split=0.2), SEED)
    class_map = find_classes(data, ClassArguments())
    dataset = prepare_dataset(data.splits, class_map, cache_dir=cache_dir)
    protocol = EvaluationProtocol(size)
    train = SegmentationDataset(dataset["train"], TrainTransform(protocol), SEED)
    return Photos(train, SegmentationDataset(dataset["validation"], protocol), class_map.num_labels)


def train_and_score(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    photos: Photos,
    seconds: float,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Trains until the clock, of CPU time, has advanced by `seconds`; → the steps taken, and the mean IoU then.

    The learning rate rises over the first twentieth of the time and falls, linearly, to the end of it.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=LEARNING_RATE, fused=True)
    batches, start, steps = photos.batches(batch_size), clock(), 0
    while (used := (clock() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(used / 0.05, 1 - used)
        pixel_values, labels = (part.to(device) for part in next(batches))
        with autocast():
            loss = loss_of(model, pixel_values, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    counts, takes_name = MeanIoU(photos.num_labels), isinstance(model.eval(), PreTrainedModel)
    with torch.inference_mode():
        for example in photos.validation:
            pixel_values, labels = example["pixel_values"][None].to(device), example["labels"]
            logits = model(pixel_values=pixel_values).logits if takes_name else model(pixel_values)
            prediction = upsampled_argmax(logits, tuple(labels.shape)).cpu()
            counts.add_batch(predictions=list(prediction), references=[labels])
    return {"steps": steps, "mean_iou": counts.compute()["mean_iou"]}


def scores_table(rows: dict[str, dict]) -> str:
    """The rows of time-to-score as a Markdown table."""
    lines = ["| | steps | mean IoU |", "| --- | --- | --- |"]
    for name, row in rows.items():
        cells = ("", row["note"]) if "note" in row else (str(row["steps"]), f"{row['mean_iou']:.4f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
