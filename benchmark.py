"""Measures this project against stock transformers, side by side, and prints one table.

    python benchmark.py all                                                     # this table, on the CPU
    python benchmark.py all --device cuda --dtype bfloat16 --batch_size 8 --json mine.json
    python benchmark.py train-step --variant mit-b2 --pairs 10
    python benchmark.py evaluate --images 20 --growth 10                        # memory with 20 and 200 images
    python benchmark.py peers                                                   # against what else people would pick
    python benchmark.py time-to-score --seconds 900 --dataset_dir DIR           # mean IoU after as much CPU time
    python benchmark.py readme --growth 10                                      # the table of the README
    python benchmark.py photos --images 6                                       # large photos, of docs/scaling.md

Both sides have the same random weights and inputs, seeded; no network or data is needed. Each runs once and the
results must agree; then they run in turn (A B A B …) in one process. Printed are the median times, the median of the
ratio stock / ours of each pair with the smallest and the largest, and the peak memory of each in a process of its own:
on a GPU what torch allocated, else resident memory, above what is taken when model and inputs are loaded.

Stock is what a user of transformers has without this project, ours what `run_segmentation.py` and `predict.py` do:

* train-step: forward, loss, backward, AdamW (for both torch's fused one, the Trainer's default) on B random images of
  S x S. Stock is the transformers model with its own loss (labels handed to `forward`). Dropout and drop path are on,
  but for a first comparison of loss and norm of the gradient.
* evaluate: files to scores, no DataLoader workers, JPEG photos and PNG masks. Stock is `Trainer.evaluate` as in
  transformers' examples/pytorch/semantic-segmentation: each image and mask resized to S x S, all logits accumulated,
  then upsampled together with `nn.functional.interpolate`, argmax, and evaluate's `mean_iou` (`stock_mean_iou` stands
  in for it, since `evaluate.load` needs the Hub), ignoring label 255 as the loss does, where the example ignores class
  0. Ours is `SegmentationTrainer.evaluate` with all that it reports besides: boundary IoU, counts of each image,
  confidence interval, calibration. Square images give both networks the same pixels, so loss and scores must agree
  and the times compare like with like. Of 4:3 photos ours keeps the aspect, a third more pixels for network and score,
  while stock squashes them.
* predict: one photo of S x 4/3 S, in memory, to the mask of its size. Stock is image processor, model and
  `post_process_semantic_segmentation`, with the processor set to the very input size that our protocol chooses. The
  masks must agree but for a few pixels where classes tie.
* export: the same photo through ONNX Runtime on the CPU. Stock is what `torch.onnx.export` makes of the transformers
  model, with image processor before and upsampling and argmax after it; ours is a file of `export_onnx.py`, where all
  of that is inside. Printed is also how much comes out of each graph.
* data: files of 4:3 photos to training examples, in one process. Stock is the example's pipeline (pad to S, random
  crop, flip, normalise), with torchvision in place of albumentations. Ours is `TrainTransform` on a prepared dataset,
  which also scales at random, draws one-class crops again and distorts colours, as the published recipe does: two
  different pipelines, so there is nothing to agree, and ours may be the slower.

Two commands compare with what `py` names, each where it can run here, and a row says why one cannot:

* peers: "stock" is the transformers model channels-last, compiled, and with class ids and streaming counts in place of
  logits in evaluation; then segmentation_models.pytorch's Segformer, for the training step; then torchvision's
  training transforms, for the data. Ours is what it is above, in the same `--dtype`.
* time-to-score: ours, the stock loop and segmentation_models.pytorch train the same network from scratch on the same
  examples of `--dataset_dir` (or of the toy dataset, whose twenty pictures say little), each for `--seconds` of CPU
  time of the process, and are scored by the same protocol at the photos' own size.
* start: processor time of whole processes, one after the other: torch's import, and `run_segmentation.py` asked for
  help, given flags that cannot be, and run for one step of a tiny model on prepared photos of S x 4/3 S.
"""

if __name__ == "__main__":
    from cli_utils import answer_early
    from training.benchmark_arguments import BENCHMARK

    answer_early(__doc__, **BENCHMARK)  # before the imports below, which take seconds

import contextlib
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    PreTrainedModel,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from checks.judge import prepare_dataset
from cli_utils import UserError, parse_arguments, run_cli, write_text
from data.augmentation import TrainTransform
from data.classes import ClassMap
from data.output_paths import check_files_writable
from data.preprocessing import EvaluationProtocol
from data.reduced_copies import add_copies
from data_utils import SegmentationDataset, load_segmentation_dataset
from metrics_utils import IGNORE_INDEX
from models.calibration import calibrate, pixels_per_image
from models.catalogue import MODELS
from models.geometry import input_geometry
from models.inference import predict_ids
from models.loading import MIT_VARIANTS, load_model
from models.losses import upsampled_cross_entropy
from models.objectives import find_objective
from reports.intervals import bootstrap_interval
from reports.peers import (
    SEED,
    CannotRun,
    ids_of_logits,
    photos_of,
    scores_table,
    smp_loss,
    smp_segformer,
    stock_crop,
    stock_metrics,
    stock_squares,
    streaming_metrics,
    torchvision_transforms,
    train_and_score,
    tuned,
)
from toy_dataset import render_toy_dataset
from training.arguments import SegmentationTrainingArguments
from training.benchmark_arguments import BENCHMARK, ROUNDING, BenchmarkArguments
from training.trainer import SegmentationTrainer

# Width, height, format and crop of the photos of docs/scaling.md.
PHOTOS = {
    "683 × 512 JPEG": (683, 512, ".jpg", 512),
    "2048 × 1024 PNG": (2048, 1024, ".png", 1024),
    "4032 × 3024 JPEG": (4032, 3024, ".jpg", 512),
    "4000 × 3000 PNG": (4000, 3000, ".png", 512),
}
KEEPS_LOGITS = "stock keeps all logits, for the example's compute_metrics"


def check_machine(args: BenchmarkArguments) -> None:
    """Raises UserError for a model or a device that is not there."""
    known = {**MIT_VARIANTS, **MODELS} if args.command == "models" else MIT_VARIANTS
    if args.variant not in known and not Path(args.variant).exists():
        raise UserError(f"--variant {args.variant} is neither a file nor one of {', '.join(MIT_VARIANTS)}")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu", *([accelerator.type] if accelerator else [])]
    if args.device not in devices:
        raise UserError(f"--device {args.device} is not available; torch finds {', '.join(devices)} here")


# ---- what both sides get --------------------------------------------------------------------------------------------


def class_names(args: BenchmarkArguments) -> dict[int, str]:
    return {i: f"class_{i}" for i in range(args.num_labels)}


def new_model(args: BenchmarkArguments, ours: bool, **config) -> PreTrainedModel:
    """A model with the weights that the seed gives, the same for both sides, in evaluation mode."""
    set_seed(SEED)
    model = load_model(id2label=class_names(args), fused_ops=ours, from_scratch=args.variant, **config)
    return model.to(args.device).eval()


def autocast(args: BenchmarkArguments) -> torch.autocast:
    return torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")


def new_photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """RGB of blurred patches and a little noise: about as many bytes as a photo when compressed."""
    patches = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(patches) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def photo_dataset(
    args: BenchmarkArguments, width: int, prepared: bool, height: int | None = None, suffix: str = ".jpg"
) -> datasets.Dataset:
    """Image files and masks of rectangles, through the project's loader. height: S if left out."""
    height = height or args.size
    folder = Path(args.folder, f"{width}_wide")
    if not folder.is_dir():
        rng = np.random.default_rng(SEED)
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for i in range(args.images):
            new_photo(rng, height, width).save(folder / "images" / f"{i:05d}{suffix}", quality=90)
            ids = rng.integers(0, args.num_labels, (8, 8), dtype=np.uint8)
            # As much of every image is ignored, or the stock mean over batches would not be that over pixels.
            ids[0] = IGNORE_INDEX
            mask = Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST)
            mask.save(folder / "masks" / f"{i:05d}.png")
    dataset = load_segmentation_dataset(dataset_dir=folder)
    if prepared:
        dataset = prepare_dataset(dataset, ClassMap(class_names(args)), cache_dir=args.folder)
    return dataset["train"]


# ---- training step --------------------------------------------------------------------------------------------------


def training_batch(args: BenchmarkArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, S, S) and labels (B, S, S)."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (args.batch_size, args.size, args.size)
    pixel_values = torch.randn(shape[0], 3, *shape[1:], generator=generator).to(args.device)
    labels = torch.randint(args.num_labels, shape, generator=generator)
    labels[:, : args.size // 16] = IGNORE_INDEX
    return pixel_values, labels.to(args.device)


def stock_loss(model: PreTrainedModel, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixel_values, labels=labels).loss


def our_loss(model: PreTrainedModel, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    valid_pixels = (labels != IGNORE_INDEX).sum()
    logits = model(pixel_values=pixel_values).logits
    return upsampled_cross_entropy(logits, labels, num_items_in_batch=valid_pixels)


def training_step(args: BenchmarkArguments, ours: bool) -> Callable[[], float]:
    return step_of(args, new_model(args, ours).train(), our_loss if ours else stock_loss)


def step_of(args: BenchmarkArguments, model: torch.nn.Module, loss_of: Callable) -> Callable[[], float]:
    """→ function: forward, loss, backward, AdamW. loss_of: model, images and labels → loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5, fused=True)
    batch = training_batch(args)

    def step() -> float:
        with autocast(args):
            loss = loss_of(model, *batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def training_numbers(args: BenchmarkArguments, ours: bool) -> dict[str, float]:
    """Loss and norm of the gradient in training mode, but with nothing dropped, as each side draws in its own way."""
    model = new_model(args, ours, drop_path_rate=0.0, classifier_dropout_prob=0.0).train()
    with autocast(args):
        loss = (our_loss if ours else stock_loss)(model, *training_batch(args))
    loss.backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    return {"loss": loss.item(), "gradient_norm": norm.item()}


def measure_train_step(args: BenchmarkArguments) -> dict[str, dict]:
    agreement = agree(args, training_numbers(args, ours=False), training_numbers(args, ours=True))
    times = paired(training_step(args, ours=False), training_step(args, ours=True), args)
    return {"train-step": agreement | times | peak_memory(args)}


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluation(
    args: BenchmarkArguments, ours: bool, width: int | None = None, is_tuned: bool = False
) -> Callable[[], dict[str, float]]:
    """→ function: from files to scores. width: of the images, in pixels; they are S high, and square by default.
    is_tuned: stock as `reports.peers` tunes it."""
    split = photo_dataset(args, width or args.size, prepared=ours)
    arguments = SegmentationTrainingArguments if ours else TrainingArguments  # ours refuses to score as stock does
    training_args = arguments(
        output_dir=args.folder,
        per_device_eval_batch_size=args.batch_size,
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        batch_eval_metrics=ours or is_tuned,
        label_names=["labels"],  # which the Trainer does not find in the signature of a compiled model
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    model = new_model(args, ours)
    if ours:
        protocol = EvaluationProtocol(args.size)
        dataset = SegmentationDataset(split, protocol)
        trainer = SegmentationTrainer(model, training_args, eval_dataset=dataset, protocol=protocol)
        trainer.sampled_pixels = pixels_per_image(len(dataset), args.num_labels)
    else:
        dataset = split.with_transform(partial(stock_squares, side=args.size))
        if is_tuned:
            model = tuned(model)
            metrics, preprocess = streaming_metrics(args.num_labels), ids_of_logits
        else:
            metrics, preprocess = stock_metrics(args.num_labels, args.folder), None
        trainer = Trainer(
            model,
            training_args,
            default_data_collator,
            eval_dataset=dataset,
            compute_metrics=metrics,
            preprocess_logits_for_metrics=preprocess,
        )
    trainer.pop_callback(PrinterCallback)

    def run() -> dict[str, float]:
        metrics = trainer.evaluate()
        if ours:
            counted = trainer.compute_metrics
            bootstrap_interval(counted.counts)
            calibrate(*counted.others[-2:], counted.counts[:, 1].sum(axis=-1))
        return {name: float(metrics[name]) for name in ("eval_loss", "eval_mean_iou", "eval_overall_accuracy")}

    return run


def measure_evaluate(args: BenchmarkArguments) -> dict[str, dict]:
    squares, photos = (
        [evaluation(args, ours, width) for ours in (False, True)] for width in (args.size, args.size * 4 // 3)
    )
    row = {"images": args.images} | paired(*squares, args, agree=partial(agree, args))
    rows = {
        "evaluate": row | peak_memory(args),
        "evaluate, 4:3 photos": {"images": args.images} | paired(*photos, args),
    }
    if args.growth > 1:
        more = replace(args, images=args.images * args.growth)
        rows[f"evaluate, {more.images} images"] = {"images": more.images, "note": KEEPS_LOGITS} | peak_memory(more)
    return rows


# ---- prediction -----------------------------------------------------------------------------------------------------


def prediction(args: BenchmarkArguments, ours: bool) -> Callable[[], torch.Tensor]:
    """→ function: RGB image to the mask of its size, integer (S, 4/3 S)."""
    model, protocol = new_model(args, ours), EvaluationProtocol(args.size)
    image = new_photo(np.random.default_rng(SEED), args.size, args.size * 4 // 3)
    height, width = protocol.input_size(image.height, image.width)
    processor = SegformerImageProcessor(size={"height": height, "width": width})

    def stock() -> torch.Tensor:
        with torch.inference_mode(), autocast(args):
            outputs = model(**processor(image, return_tensors="pt").to(args.device))
            sizes = [(image.height, image.width)]
            return processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].cpu()

    def project() -> torch.Tensor:
        with autocast(args):
            return predict_ids(model, image, protocol)

    return project if ours else stock


def measure_predict(args: BenchmarkArguments) -> dict[str, dict]:
    times = paired(prediction(args, ours=False), prediction(args, ours=True), args, partial(same_pixels, args))
    return {"predict": times | peak_memory(args)}


def same_pixels(args: BenchmarkArguments, stock: torch.Tensor, ours: torch.Tensor) -> dict[str, float]:
    different = (stock != ours).double().mean().item()
    if different > rounding(args)[1]:
        raise RuntimeError(f"stock and ours predict different classes for {different:.1%} of the pixels")
    return {"different_pixels": different}


# ---- export ---------------------------------------------------------------------------------------------------------


def exported_prediction(args: BenchmarkArguments, ours: bool) -> Callable[[], tuple[torch.Tensor, int]]:
    """→ function: the mask of `prediction` through ONNX Runtime, and the bytes that come out of the graph."""
    import onnxruntime

    from models.onnx_export import export_network, with_images

    model, protocol = new_model(args, ours).cpu(), EvaluationProtocol(args.size)
    image = new_photo(np.random.default_rng(SEED), args.size, args.size * 4 // 3)
    height, width = protocol.input_size(image.height, image.width)
    processor = SegformerImageProcessor(size={"height": height, "width": width})
    if ours:
        graph = with_images(export_network(model, protocol), protocol)
    else:
        free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        example = {"pixel_values": torch.zeros(2, 3, 128, 192)}
        with torch.no_grad():
            program = torch.onnx.export(
                model, (), kwargs=example, dynamo=True, dynamic_shapes={"pixel_values": free}, verbose=False
            )
        graph = program.model_proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def stock() -> tuple[torch.Tensor, int]:
        pixel_values = processor(image, return_tensors="np")["pixel_values"]
        (logits,) = session.run(None, {name: pixel_values})
        upsampled = F.interpolate(torch.from_numpy(logits), size=(image.height, image.width), mode="bilinear")
        return upsampled.argmax(dim=1)[0], logits.nbytes

    def project() -> tuple[torch.Tensor, int]:
        (ids,) = session.run(None, {name: np.asarray(image)[None]})
        return torch.from_numpy(ids[0]), ids.nbytes

    return project if ours else stock


def measure_export(args: BenchmarkArguments) -> dict[str, dict]:
    def compare(stock: tuple, ours: tuple) -> dict[str, float]:
        found = same_pixels(args, stock[0], ours[0])
        return found | {"stock_output_mb": stock[1] / 2**20, "ours_output_mb": ours[1] / 2**20}

    sides = [exported_prediction(args, ours) for ours in (False, True)]
    return {"export": paired(*sides, args, compare)}


# ---- data -----------------------------------------------------------------------------------------------------------


def training_data(
    args: BenchmarkArguments, ours: bool, stock_transforms: Callable[[dict], dict] | None = None
) -> Callable[[], None]:
    """→ function: every image and mask from its file to a training example, once. stock_transforms: of a batch of
    rows; by default the example's."""
    split = photo_dataset(args, args.size * 4 // 3, prepared=ours)
    if ours:
        dataset = SegmentationDataset(split, TrainTransform(EvaluationProtocol(args.size)), SEED)
    else:
        dataset = split.with_transform(stock_transforms or partial(stock_crop, side=args.size))

    def run() -> None:
        for index in range(len(dataset)):
            dataset[index]

    return run


def measure_data(args: BenchmarkArguments) -> dict[str, dict]:
    times = paired(training_data(args, ours=False), training_data(args, ours=True), args)
    return {"data": {"images": args.images} | times | peak_memory(args)}


def measure_photos(args: BenchmarkArguments) -> dict[str, dict]:
    """CPU seconds of a training example from its file, of each of `PHOTOS`: medians over `--images` photos, drawn
    `--pairs` times, of the ways to read them in turn."""
    return {name: photo_seconds(args, *photo) for name, photo in PHOTOS.items()}


def photo_seconds(args: BenchmarkArguments, width: int, height: int, suffix: str, crop: int) -> dict[str, float]:
    """Of one kind of photos: with all of each decoded; as training reads them; and with colours left to the batch."""
    split = photo_dataset(args, width, True, height, suffix)
    transform = TrainTransform(EvaluationProtocol(crop))
    copied = add_copies(split, transform, args.folder)
    ways = {
        "whole": SegmentationDataset(split, replace(transform, reduced_decoding=False), SEED),
        "image": SegmentationDataset(copied, transform, SEED),
        "batch": SegmentationDataset(copied, replace(transform, defers_colors=True), SEED),
    }
    seconds = {way: [] for way in ways}
    for turn in range(args.pairs + 1):  # the first warms up, and is not counted
        for way, dataset in ways.items():
            dataset.set_epoch(turn)
            for index in range(len(dataset)):
                start = time.process_time()
                dataset[index]
                seconds[way] += [time.process_time() - start] if turn else []
    return {f"{way}_seconds": statistics.median(times) for way, times in seconds.items()}


def photos_table(rows: dict[str, dict]) -> str:
    """The rows as the Markdown table of docs/scaling.md."""
    lines = [
        "| | to a crop of | all of it decoded | as read, colours by the image | colours by the batch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        whole = row["whole_seconds"]
        faster = [f"{row[way] * 1e3:.1f} ms ({whole / row[way]:.1f})" for way in ("image_seconds", "batch_seconds")]
        lines.append(f"| {name} | {PHOTOS[name][-1]} | {whole * 1e3:.1f} ms | {' | '.join(faster)} |")
    return "\n".join(lines)


# ---- what else people would pick ------------------------------------------------------------------------------------


def tuned_step(args: BenchmarkArguments) -> dict:
    stock = step_of(args, tuned(new_model(args, ours=False).train()), stock_loss)
    return paired(stock, training_step(args, ours=True), args)


def smp_step(args: BenchmarkArguments) -> dict:
    model = smp_segformer(args.variant, args.num_labels).to(args.device).train()
    return paired(step_of(args, model, smp_loss), training_step(args, ours=True), args)


def tuned_evaluation(args: BenchmarkArguments) -> dict:
    sides = evaluation(args, ours=False, is_tuned=True), evaluation(args, ours=True)
    return {"images": args.images} | paired(*sides, args, agree=partial(agree, args))


def torchvision_data(args: BenchmarkArguments) -> dict:
    stock = training_data(args, False, torchvision_transforms(args.size))
    return {"images": args.images} | paired(stock, training_data(args, ours=True), args)


def measure_peers(args: BenchmarkArguments) -> dict[str, dict]:
    """A row each; where a peer cannot run here, or memory does not suffice for a side, the row says so."""
    rows = {
        "training step, stock channels-last and compiled": tuned_step,
        "training step, segmentation_models.pytorch": smp_step,
        "evaluation, stock compiled, ids and streaming counts": tuned_evaluation,
        "data, torchvision's reference transforms": torchvision_data,
    }
    return {name: row_or_reason(measure, args) for name, measure in rows.items()}


def row_or_reason(measure: Callable[[BenchmarkArguments], dict], args: BenchmarkArguments) -> dict:
    try:
        return measure(args)
    except CannotRun as reason:
        return {"note": str(reason)}
    except (MemoryError, torch.OutOfMemoryError):
        return {"note": "out of memory"}


def measure_time_to_score(args: BenchmarkArguments) -> dict[str, dict]:
    """Mean IoU of each side after `--seconds` of CPU time, and the steps that it took in them."""
    photos = photos_of(args.dataset_dir or render_toy_dataset(Path(args.folder, "toy")), args.folder, args.size)
    args = replace(args, num_labels=photos.num_labels)

    def side(new_model: Callable[[], torch.nn.Module], loss_of: Callable) -> Callable[[BenchmarkArguments], dict]:
        def measure(args: BenchmarkArguments) -> dict:
            set_seed(SEED)
            model = new_model().to(args.device)
            return train_and_score(model, loss_of, photos, args.seconds, args.batch_size, partial(autocast, args))

        return measure

    sides = {
        "ours": side(partial(new_model, args, ours=True), our_loss),
        "stock loop": side(partial(new_model, args, ours=False), stock_loss),
        "segmentation_models.pytorch": side(partial(smp_segformer, args.variant, args.num_labels), smp_loss),
    }
    return {name: row_or_reason(measure, args) for name, measure in sides.items()}


# ---- measuring ------------------------------------------------------------------------------------------------------

# What measures each command, and what makes the work of one side.
MEASUREMENTS = {
    "train-step": (measure_train_step, training_step),
    "evaluate": (measure_evaluate, evaluation),
    "predict": (measure_predict, prediction),
    "export": (measure_export, exported_prediction),
    "data": (measure_data, training_data),
}
# What compares with others than stock.
COMPARISONS = {"peers": measure_peers, "time-to-score": measure_time_to_score}
# The rows of the README's table, and what it calls them.
README_ROWS = {
    "train-step": "training step",
    "evaluate": "evaluation, files to scores",
    "predict": "one photo to its mask",
}


# ---- starting -------------------------------------------------------------------------------------------------------


def measure_start(args: BenchmarkArguments) -> dict[str, dict]:
    """CPU seconds, user and system, median of `--pairs` processes of each kind, in turn."""
    width = args.size * 4 // 3
    photo_dataset(args, width, prepared=False)
    folder = Path(args.folder)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    tiny = {"model_type": "segformer", "decoder_hidden_size": 16, **sizes}
    for name, content in (("tiny", tiny), ("names", class_names(args))):
        write_text(folder / f"{name}.json", json.dumps(content))
    script = [sys.executable, str(Path(__file__).with_name("run_segmentation.py"))]
    data = ["--dataset_dir", str(folder / f"{width}_wide")]
    train = [*data, "--id2label", str(folder / "names.json"), "--from_scratch", str(folder / "tiny.json")]
    train += "--do_train --image_size 64 --max_steps 1 --eval_strategy no --save_strategy no --report_to none".split()
    train += ["--use_cpu", "--no_check_data", "--overwrite_output_dir", "--output_dir", str(folder / "run")]
    processes = {
        "import torch": ([sys.executable, "-c", "import torch"], 0),
        "--help": ([*script, "--help"], 0),
        "a misspelt flag": ([*script, *data, "--learnin_rate", "1"], 2),
        "a loss that there is not": ([*script, *data, "--do_train", "--loss", "dise"], 2),
        "nothing to do": ([*script, *data], 2),
        "a folder that there is not": ([*script, "--dataset_dir", str(folder / "none"), "--do_train"], 2),
        "one step on prepared data": ([*script, *train], 0),
    }
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    seconds = {name: [] for name in processes}
    for turn in range(args.pairs + 1):  # the first prepares, and is not counted
        for name, (command, code) in processes.items():
            before = os.times()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            after = os.times()
            if done.returncode != code:
                raise UserError(f"{name}: ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            used = after.children_user + after.children_system - before.children_user - before.children_system
            seconds[name] += [used] if turn else []
    return {name: {"cpu_seconds": statistics.median(times)} for name, times in seconds.items()}


def start_table(rows: dict[str, dict]) -> str:
    torch_alone = rows["import torch"]["cpu_seconds"]
    lines = ["| a process that ends after | CPU | above torch's import |", "| --- | --- | --- |"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['cpu_seconds']:.2f} s | {row['cpu_seconds'] - torch_alone:+.2f} s |")
    return "\n".join(lines)


# ---- the models of docs/models.md -----------------------------------------------------------------------------------


def one_model(args: BenchmarkArguments) -> PreTrainedModel:
    """The model of `MODELS` that `--variant` names, with random weights."""
    config = MODELS[args.variant].config()
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return load_model(from_scratch=folder, id2label=class_names(args)).to(args.device)


def model_step(args: BenchmarkArguments, ours: bool = True) -> Callable[[], None]:
    """A training step, as the Trainer takes it: the model's objective, its gradient, AdamW."""
    torch.manual_seed(SEED)
    model = one_model(args).train()
    side = input_geometry(model.config).fit(args.size)
    objective, optimizer = find_objective(model), torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    labels = torch.randint(0, args.num_labels, (args.batch_size, 8, 8), device=args.device)
    labels = labels.repeat_interleave(side // 8 + 1, 1).repeat_interleave(side // 8 + 1, 2)[:, :side, :side]
    pixel_values = torch.randn(args.batch_size, 3, side, side, device=args.device)

    def run() -> None:
        inputs = objective.inputs({"pixel_values": pixel_values, "labels": labels}, None)
        with autocast(args):
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        objective.loss(outputs, labels, None).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def multiply_adds(model: PreTrainedModel, size: int) -> float:
    """Of the forward pass over one image of size x size, or the nearest that the architecture takes: of convolutions
    and matrix products, which is what papers call FLOPs."""
    side = input_geometry(model.config).fit(size)
    model.set_attn_implementation("eager")  # whose products are counted on every device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(pixel_values=torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    return counter.get_total_flops() / 2


def measure_models(args: BenchmarkArguments) -> dict[str, dict]:
    """Parameters, multiply-adds and the memory of a training step, weights, gradients and optimizer included, of every
    model, or of the one that `--variant` names."""
    rows = {}
    for name in [args.variant] if args.variant in MODELS else MODELS:
        one = replace(args, variant=name)
        model = one_model(one)
        size = sum(parameter.numel() for parameter in model.parameters())
        adds = multiply_adds(model, args.size)
        del model
        above = peak_memory(one, ("ours",))["ours_peak_mb"]
        memory = None if above is None else above + 4 * size / 2**20
        rows[name] = {"parameters": size, "multiply_adds": adds, "step_mb": memory}
        print(f"{name}: {size / 1e6:.1f} M, {adds / 1e9:.1f} G, {memory or float('nan'):.0f} MiB", file=sys.stderr)
    return rows


def models_table(rows: dict[str, dict]) -> str:
    """The rows as the Markdown table of docs/models.md."""
    lines = [
        "| | parameters | GFLOPs at 512² | mIoU on ADE20K | memory of a step | weights for commercial use? |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        model = MODELS[name]
        memory = "out of memory" if row["step_mb"] is None else f"{row['step_mb'] / 1024:.1f} GiB"
        cells = (
            f"{name}: `{model.flags}`",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['multiply_adds'] / 1e9:.0f}",
            model.ade20k or "no published figure",
            memory,
            model.licence.text,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rounding(args: BenchmarkArguments) -> tuple[float, float]:
    """Which entry of `ROUNDING` holds: on a GPU float32 may be TF32, with hardly more digits than bfloat16."""
    return ROUNDING[args.dtype if args.device == "cpu" else "bfloat16"]


def agree(args: BenchmarkArguments, stock: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Differences of numbers that must agree; an error, since one of the two is wrong, where they do not."""
    differences = {f"{name}_difference": abs(ours[name] - stock[name]) / max(1, abs(stock[name])) for name in stock}
    if not max(differences.values()) <= rounding(args)[0]:
        raise RuntimeError(f"stock and ours do not compute the same: {stock} and {ours}")
    return differences


def paired(stock: Callable, ours: Callable, args: BenchmarkArguments, agree: Callable | None = None) -> dict:
    """Runs stock and ours once each, hands the results to `agree`, then times them in turn; medians, in seconds."""

    def seconds(run: Callable) -> float:
        start = time.perf_counter()
        run()
        if args.device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    results = stock(), ours()
    agreement = agree(*results) if agree else {}
    times = [(seconds(stock), seconds(ours)) for _ in range(args.pairs)]
    ratios = [of_stock / of_ours for of_stock, of_ours in times]
    return agreement | {
        "stock_seconds": statistics.median(of_stock for of_stock, _ in times),
        "ours_seconds": statistics.median(of_ours for _, of_ours in times),
        "ratio": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
    }


def peak_memory(args: BenchmarkArguments, sides: Sequence[str] = ("stock", "ours")) -> dict[str, float | None]:
    """MiB that stock and ours take at most, each in a process of its own; None for one that dies, as of too little."""
    names = ("variant", "size", "batch_size", "num_labels", "dtype", "device", "images")
    options = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    peaks = {}
    for side in sides:
        command = [sys.executable, __file__, args.command, *options, "--peak_of", side]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            reason = (child.stderr.strip().splitlines() or ["killed"])[-1]
            print(f"{' '.join(command)} ended with exit code {child.returncode}: {reason}", file=sys.stderr)
            # The system's way is to kill, torch's and Python's to raise.
            lacks_memory = child.returncode in (-9, 137) or re.search("(?i)out of memory|MemoryError|allocate", reason)
            peaks[f"{side}_ended"] = "out of memory" if lacks_memory else "failed"
        peaks[f"{side}_peak_mb"] = None if child.returncode else float(child.stdout.split()[-1])
    return peaks


def own_peak(args: BenchmarkArguments) -> float:
    """MiB that this process takes at most for the work of one side, above what is taken when all is loaded."""
    work = model_step if args.command == "models" else MEASUREMENTS[args.command][1]
    run = work(args, ours=args.peak_of == "ours")
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        before = resident_bytes("VmRSS")
    run()
    if args.command in ("train-step", "models"):
        run()  # the first has no optimizer state yet
    after = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident_bytes("VmHWM")
    return (after - before) / 2**20


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process; where the system does not tell, at most for both."""
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- the script -----------------------------------------------------------------------------------------------------


def environment(args: BenchmarkArguments) -> dict[str, str | int]:
    """What the numbers depend on besides the options."""
    cpuinfo = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "processor": cpu[1] if cpu else platform.processor(),
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "none",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def as_table(rows: dict[str, dict], titles: dict[str, str] | None = None) -> str:
    """The rows as a Markdown table. titles: name → what the table calls it, of rows that are shown; None: all."""

    def speed(row: dict, side: str) -> str:
        seconds = row.get(f"{side}_seconds")
        if seconds is None:
            return ""
        return f"{seconds:.3f} s" + (f" ({row['images'] / seconds:.2f} images/s)" if "images" in row else "")

    def memory(row: dict, side: str) -> str:
        peak = row.get(f"{side}_peak_mb")
        return row.get(f"{side}_ended", "") if peak is None else f"{peak:.0f} MiB"

    lines = [
        "| | stock | ours | stock / ours | stock, peak memory | ours, peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if titles is not None and name not in titles and "note" not in row:
            continue
        ratio = "{ratio:.2f} ({smallest_ratio:.2f} to {largest_ratio:.2f})".format(**row) if "ratio" in row else ""
        name = (titles or {}).get(name, name) + (f" ({row['note']})" if "note" in row else "")
        cells = (name, speed(row, "stock"), speed(row, "ours"), ratio, memory(row, "stock"), memory(row, "ours"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    """Measures, prints and returns {"environment", "options", "rows"}, which is also what `--json` holds.

    argv: command-line arguments without the program's name; None takes them from the command line.
    """
    (args,) = parse_arguments(argv=argv, description=__doc__, **BENCHMARK)
    check_machine(args)
    check_files_writable(args, "json")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        args = replace(args, folder=folder)
        if args.peak_of:
            print(own_peak(args))
            return {}
        options = {name: value for name, value in asdict(args).items() if name not in ("json", "peak_of", "folder")}
        results = {"environment": environment(args), "options": options, "rows": {}}
        for part in ("environment", "options"):
            print(", ".join(f"{name} {value}" for name, value in results[part].items()), flush=True)
        if args.command == "models":
            results["rows"] = measure_models(args)
        if args.command == "start":
            results["rows"] = measure_start(args)
        if args.command == "photos":
            results["rows"] = measure_photos(args)
        if args.command in COMPARISONS:
            results["rows"] = COMPARISONS[args.command](args)
        several = {"all": MEASUREMENTS, "readme": README_ROWS}
        for command in several.get(args.command, {args.command} & MEASUREMENTS.keys()):
            results["rows"] |= MEASUREMENTS[command][0](replace(args, command=command))
        if args.command == "all":
            step = measure_train_step(replace(args, command="train-step", variant="mit-b2"))
            results["rows"]["train-step, mit-b2"] = step["train-step"]
    tables = {
        "models": models_table,
        "start": start_table,
        "photos": photos_table,
        "time-to-score": scores_table,
        "readme": partial(as_table, titles=README_ROWS),
    }
    print(tables.get(args.command, as_table)(results["rows"]))
    for name, row in results["rows"].items():
        agreement = {
            key: value for key, value in row.items() if key.endswith(("_difference", "different_pixels", "_output_mb"))
        }
        if agreement:
            print(f"{name}: {', '.join(f'{key} {value:.2g}' for key, value in agreement.items())}")
    if args.json:
        write_text(args.json, json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    logging.getLogger("checks.judge").setLevel(logging.ERROR)  # of classes that few random masks cannot all have
    run_cli(main)
