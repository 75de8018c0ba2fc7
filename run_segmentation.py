"""Fine-tunes SegFormer, or any other `AutoModelForSemanticSegmentation`, on your own images and masks.

One GPU, or the CPU:

    python run_segmentation.py --dataset_dir my_photos --output_dir outputs/mine --do_train --do_predict

Many GPUs:

    accelerate launch --config_file accelerate_config.yaml run_segmentation.py \\
        --dataset_dir ADEChallengeData2016 --output_dir outputs/ade --do_train --do_predict

No network, no data, a few minutes on a CPU (`make demo`):

    python toy_dataset.py && python run_segmentation.py --config configs/toy_overfit.yaml

Every flag can stand in the YAML file of `--config`; flags on the command line win.
"""

import json
import logging
import shutil
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
import transformers
import yaml
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed

import visual_utils
from checks.judge import quick_check, raise_on_errors
from cli_utils import UserError, parse_arguments, run_cli
from data.arguments import DatasetArguments
from data.augmentation import TrainTransform
from data.class_weights import class_weights, read_class_weights
from data.classes import ClassMap, read_class_list
from data.image_files import rgb_view
from data.preparation import prepare_dataset
from data.preprocessing import EvaluationProtocol
from data.streaming import StreamingDataset, check_streaming, load_streams
from data_utils import SegmentationDataset, augmentation_preview, load_from_arguments
from metrics_utils import per_category_table, save_confusion, without_per_category
from models.adapters import add_lora, enable_activation_checkpointing, freeze_encoder, merge_lora
from models.image_processor import load_image_processor, save_processor_config
from models.loading import describe_model, fixed_input_size, load_model, load_trained_model
from models.losses import check_loss, parse_loss
from reports.intervals import bootstrap_interval, save_per_image
from reports.model_card import write_model_card
from training.arguments import SegmentationTrainingArguments
from training.dry_run import dry_run
from training.optimizer import batch_norm_warning, check_schedule
from training.trainer import SegmentationTrainer, newest_checkpoint

logger = logging.getLogger(__name__)
PLAIN_TYPES = bool | int | float | str | list | dict


@dataclass
class ModelArguments:
    """Which model, and what of it is trained in which way."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a pretrained model (default: nvidia/mit-b0)"}
    )
    from_scratch: str | None = field(
        default=None,
        metadata={
            "help": "instead: random weights of a variant, mit-b0 … mit-b5, or of a config.json; needs no network"
        },
    )
    fused_ops: bool = field(
        default=True, metadata={"help": "the exact speed-ups of the decode head, the loss and the evaluation"}
    )
    num_channels: int | None = field(
        default=None, metadata={"help": "bands of the images; default: 3, or what the trained model takes"}
    )
    single_logit: bool = field(
        default=False, metadata={"help": "of two classes: one output with a sigmoid instead of two with a softmax"}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "train the head alone"})
    lora_r: int | None = field(
        default=None, metadata={"help": "train adapters of this rank in the encoder's attention, and the head (peft)"}
    )
    loss: str = field(
        default="ce", metadata={"help": "ce, focal, ohem, dice, lovasz, or a sum of some, as in ce+dice"}
    )
    class_weights: str | None = field(
        default=None,
        metadata={"help": "auto (rare classes count more), or a file with a weight for each class: JSON, CSV or TXT"},
    )
    head_lr_multiplier: float = field(default=1.0, metadata={"help": "of the learning rate outside the encoder"})
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "evaluate and save an exponential moving average of the weights, as in 0.999; 0: none"},
    )
    sync_bn: bool = field(
        default=False, metadata={"help": "BatchNorm statistics over the images of all GPUs (SyncBatchNorm)"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations without a new best"}
    )


@dataclass
class DataArguments(DatasetArguments):
    """Which data, how training images are augmented, and how the others are evaluated."""

    image_size: int | None = field(
        default=None, metadata={"help": "training crop and short side; default: the image processor's, or 512"}
    )
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0],
        metadata={"help": "augmentation: the short side is scaled by a factor in it"},
    )
    max_class_share: float = field(
        default=0.75, metadata={"help": "augmentation: crops in which one class covers more are drawn again"}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "augmentation: of the horizontal flip"})
    photometric_distortion: bool = field(
        default=True, metadata={"help": "augmentation: brightness, contrast, saturation and hue"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N images only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "evaluate the first N images only"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "predict the first N images only"})
    slide_crop: int | None = field(
        default=None,
        metadata={"help": "evaluation: side of a window that slides over the image; default: none does"},
    )
    slide_stride: int | None = field(default=None, metadata={"help": "evaluation: its step; default: 3/4 of its side"})
    eval_scales: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "evaluation: averaged over these scales, as in 0.75 1 1.25"}
    )
    eval_flip: bool = field(default=False, metadata={"help": "evaluation: averaged with the mirrored image"})
    threshold: float = field(
        default=0.5, metadata={"help": "evaluation: of two classes, the probability above which a pixel is the second"}
    )
    eval_on_train: bool = field(
        default=False,
        metadata={"help": "at the end also evaluate the training images, unaugmented, as train_mean_iou"},
    )
    check_data: bool = field(
        default=True, metadata={"help": "look for faults in a sample of the data before training (check_dataset.py)"}
    )
    preview: str | None = field(
        default=None, metadata={"help": "only write a picture of augmented training images to this file"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "only try everything once, in small, and say what is to be expected"}
    )


def set_up_logging(training_args: SegmentationTrainingArguments) -> None:
    """One stream of INFO lines from the main process; errors alone from the others."""
    main_process = training_args.local_process_index == 0
    logging.basicConfig(
        format="%(levelname)s %(name)s: %(message)s", level=logging.INFO if main_process else logging.ERROR, force=True
    )
    # One line for every request to the Hub is noise.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not main_process:
        transformers.logging.set_verbosity_error()
        datasets.disable_progress_bars()


def protocol_options(data_args: DataArguments) -> dict:
    """What the flags add to the evaluation protocol that the image processor gives."""
    return {
        "slide_crop": data_args.slide_crop,
        "slide_stride": data_args.slide_stride,
        "scales": tuple(data_args.eval_scales),
        "flip": data_args.eval_flip,
        "threshold": data_args.threshold,
    }


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args) -> None:
    """Mistakes that the flags alone show, before any work. Resolves `--resume_from_checkpoint last` to a folder."""
    if not (data_args.dataset_dir or data_args.dataset_name):
        raise UserError("no data: give --dataset_dir FOLDER or --dataset_name HUB_ID")
    if data_args.streaming:
        evaluates = training_args.do_eval or training_args.do_predict
        check_streaming(data_args, training_args.max_steps, data_args.max_eval_samples, evaluates)
        if data_args.preview or data_args.eval_on_train:
            raise UserError("--streaming keeps no training images: leave out --preview and --eval_on_train")
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict or data_args.eval_on_train):
        raise UserError("nothing to do: give --do_train, --do_eval, --do_predict or several of them")
    if not training_args.do_train:
        for name in ("resume_from_checkpoint", "push_to_hub", "from_scratch"):
            if getattr(training_args, name, None) or getattr(model_args, name, None):
                raise UserError(f"--{name} belongs to a training run: add --do_train")
        if not model_args.model_name_or_path:
            raise UserError("without --do_train, --model_name_or_path must name the trained model to evaluate")
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "image_size"):
        value = getattr(data_args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    if len(data_args.scale_range) != 2 or not 0 < data_args.scale_range[0] <= data_args.scale_range[1]:
        raise UserError(f"--scale_range is {data_args.scale_range}; it takes two factors, low and high, as in 0.5 2.0")
    if data_args.train_val_split is not None and not 0 < data_args.train_val_split < 1:
        raise UserError(f"--train_val_split is {data_args.train_val_split}; it must lie between 0 and 1, as in 0.2")
    if training_args.push_to_hub and training_args.hub_strategy != "end":
        raise UserError(
            f"--hub_strategy {training_args.hub_strategy.value} would upload pickled training arguments with every "
            "checkpoint; the model, its card and its results are pushed once, at the end (--hub_strategy end)"
        )
    EvaluationProtocol(**protocol_options(data_args))  # raises on values that do not fit together
    check_loss(model_args.loss, training_args.label_smoothing_factor, model_args.class_weights)
    check_schedule(training_args)
    if model_args.from_scratch and (model_args.freeze_encoder or model_args.lora_r):
        raise UserError("--freeze_encoder and --lora_r keep a pretrained encoder; --from_scratch has none")
    if model_args.class_weights == "auto" and data_args.streaming:
        raise UserError("--class_weights auto counts all pixels first, which --streaming cannot: give a file")
    if model_args.freeze_encoder and model_args.lora_r:
        raise UserError("--freeze_encoder and --lora_r exclude each other: LoRA trains adapters in a frozen encoder")
    if model_args.head_lr_multiplier <= 0:
        raise UserError(f"--head_lr_multiplier is {model_args.head_lr_multiplier}; it must be positive, as in 10")
    if model_args.ema_decay and (training_args.fsdp or training_args.deepspeed):
        raise UserError("--ema_decay averages whole weights, which FSDP and DeepSpeed scatter; leave it out")
    if model_args.sync_bn and training_args.world_size > 1 and training_args.device.type == "cpu":
        raise UserError("--sync_bn needs GPUs; on several CPU processes leave it out")
    if model_args.early_stopping_patience is not None:
        if model_args.early_stopping_patience < 1:
            raise UserError(
                f"--early_stopping_patience is {model_args.early_stopping_patience}; it must be at least 1"
            )
        if training_args.do_train and not training_args.load_best_model_at_end:
            raise UserError(
                "--early_stopping_patience needs evaluations (--eval_strategy) and --load_best_model_at_end"
            )
    resume = training_args.resume_from_checkpoint
    if resume and resume.lower() in ("last", "true"):
        training_args.resume_from_checkpoint = newest_checkpoint(training_args.output_dir)
        if training_args.resume_from_checkpoint is None:
            raise UserError(
                f"--resume_from_checkpoint {resume}: there is no complete checkpoint in {training_args.output_dir}"
            )
        logger.info(f"resuming from {training_args.resume_from_checkpoint}")
    elif resume and not Path(resume, "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {resume} is no checkpoint folder: trainer_state.json is missing")


def check_output_dir(output_dir: Path, class_map: ClassMap, training_args) -> None:
    """Refuses to mix runs in one folder; clears what a finished run with the same classes left to be replaced."""
    labels_file, finished = output_dir / "labels.json", output_dir / "train_results.json"
    if labels_file.is_file():
        before, now = (list(names.values()) for names in (read_class_list(labels_file)[0], class_map.id2label))
        if before != now:
            raise UserError(
                f"{output_dir} holds a run with other classes ({len(before)}: {', '.join(before[:3])} …; "
                f"now {len(now)}: {', '.join(now[:3])} …); give another --output_dir"
            )
    if training_args.resume_from_checkpoint:
        config = json.loads(Path(training_args.resume_from_checkpoint, "config.json").read_text(encoding="utf-8"))
        if config.get("segmentation_label_map") != class_map.to_config():
            raise UserError(
                f"{training_args.resume_from_checkpoint} was trained with another meaning of the annotation values "
                f"({config.get('segmentation_label_map')}, now {class_map.to_config()}); resume it with the flags it "
                "was started with"
            )
        return
    checkpoint = newest_checkpoint(output_dir)
    if checkpoint and not finished.is_file():
        raise UserError(
            f"{output_dir} holds an unfinished run ({Path(checkpoint).name}); continue it with "
            "--resume_from_checkpoint last, or give another --output_dir, or delete it"
        )
    if finished.is_file() and training_args.process_index == 0:
        logger.warning(f"{output_dir} holds a finished run with the same classes, which this one replaces")
        results = (
            "*_results.json",
            "processor_config.json",
            "confusion_matrix.npy",
            "per_category.csv",
            "per_image.npz",
        )
        for path in [path for pattern in ("checkpoint-*", *results) for path in output_dir.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def choose_splits(
    dataset: DatasetDict, has_stream: bool, data_args: DataArguments, training_args
) -> list[Dataset | None]:
    """The split to train on and the one to evaluate, cut to `--max_…_samples`; None where none is there or needed.

    has_stream: the training images are not in the dataset.
    """

    def first(split: Dataset | None, count: int | None) -> Dataset | None:
        return split if split is None or count is None else split.take(min(count, len(split)))

    train_split = first(dataset.get("train"), data_args.max_train_samples)
    eval_split = first(dataset.get("validation", dataset.get("test")), data_args.max_eval_samples)
    found = ", ".join(f"{name}: {len(split)}" for name, split in dataset.items())
    if train_split is None and not has_stream and (training_args.do_train or data_args.eval_on_train):
        raise UserError(f"the dataset has no training split (found {found})")
    if eval_split is None and (training_args.do_eval or training_args.do_predict):
        raise UserError(
            f"the dataset has no validation or test split (found {found}); add --train_val_split 0.2, "
            "or train without evaluation: --eval_strategy no"
        )
    logger.info(f"images by split: {found}")
    return [train_split, eval_split]


def find_class_weights(choice: str | None, split: Dataset | None, class_map: ClassMap) -> torch.Tensor | None:
    """What `--class_weights` asks for, float32 (num_labels,), logged; None for none."""
    if choice is None or (choice == "auto" and split is None):
        return None
    if choice == "auto":
        weights = class_weights(np.array(split["class_pixels"]))
    else:
        weights = read_class_weights(choice, class_map.id2label)
    listed = ", ".join(f"{class_map.id2label[i]} {weights[i]:.2f}" for i in np.argsort(-weights).tolist())
    logger.info(f"class weights: {listed}")
    return torch.tensor(weights, dtype=torch.float32)


def save_arguments(output_dir: Path, *groups) -> None:
    """Writes `arguments.yaml`: every flag that differs from its default, but for tokens, as `--config` takes it."""
    content = {}
    for group in groups:
        for flag in fields(group):
            default = flag.default if flag.default_factory is MISSING else flag.default_factory()
            value, default = (getattr(found, "value", found) for found in (getattr(group, flag.name), default))
            if flag.init and value != default and "token" not in flag.name and isinstance(value, PLAIN_TYPES):
                content[flag.name] = value
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "arguments.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def prepare_training(model: PreTrainedModel, model_args: ModelArguments, training_args) -> None:
    """Freezes and adapts what the flags ask for, in place; warns of what does not go well together."""
    if model_args.freeze_encoder:
        freeze_encoder(model)
    if model_args.lora_r is not None:
        add_lora(model, model_args.lora_r)
    if model_args.sync_bn:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if training_args.gradient_checkpointing:
        enable_activation_checkpointing(model)
    warning = batch_norm_warning(model, training_args.per_device_train_batch_size)
    if warning:
        logger.warning(warning)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, predicts and publishes, as asked; returns all metrics by name (see `all_results.json`).

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for anything wrong with flags, data or model, before training starts.
    """
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, SegmentationTrainingArguments),
        argv,
        description=__doc__,
        exclusive=(("model_name_or_path", "from_scratch"), ("dataset_dir", "dataset_name")),
    )
    set_up_logging(training_args)
    check_arguments(model_args, data_args, training_args)
    if not (data_args.dry_run or data_args.preview):
        return run(model_args, data_args, training_args)
    with TemporaryDirectory() as folder:
        training_args.output_dir = folder
        training_args.push_to_hub, training_args.report_to = False, []
        return run(model_args, data_args, training_args)


def run(
    model_args: ModelArguments, data_args: DataArguments, training_args: SegmentationTrainingArguments
) -> dict[str, float]:
    """What `main` does with arguments that were checked."""
    set_seed(training_args.seed)
    output_dir = Path(training_args.output_dir)
    source = model_args.model_name_or_path or "nvidia/mit-b0"

    # A model that cannot be reached is found before data is prepared.
    image_processor = load_image_processor(
        source, model_args.from_scratch, data_args.image_size, num_channels=model_args.num_channels
    )
    num_channels = EvaluationProtocol.from_image_processor(image_processor).num_channels

    # Data. The main process prepares it, the others read its cache.
    stream = None
    with training_args.main_process_first(desc="preparing the dataset"):
        if data_args.streaming:
            stream, dataset, class_map = load_streams(data_args, data_args.max_eval_samples, training_args.hub_token)
        else:
            dataset, class_map = load_from_arguments(
                data_args, training_args.seed, output_dir / "split.json", token=training_args.hub_token
            )
        if data_args.check_data and training_args.do_train and not data_args.streaming:
            findings = quick_check(dataset, class_map, data_args.image_size, num_channels=num_channels)
            raise_on_errors(findings, "all of it: python check_dataset.py, with the same flags for the data")
        dataset = prepare_dataset(dataset, class_map, num_channels=num_channels)
    logger.info(f"annotation value -> training id\n{class_map.table()}")
    if class_map.num_labels == 1:
        raise UserError(
            f"there is but one class ({class_map.id2label[0]}): nothing to tell apart; see check_dataset.py"
        )
    if data_args.threshold != 0.5 and class_map.num_labels != 2:
        raise UserError(f"--threshold is for two classes; the data has {class_map.num_labels}")
    train_split, eval_split = choose_splits(dataset, stream is not None, data_args, training_args)

    # Model.
    image_processor.do_reduce_labels = class_map.do_reduce_labels
    if training_args.do_train:
        check_output_dir(output_dir, class_map, training_args)
        model = load_model(
            source,
            class_map.id2label,
            model_args.fused_ops,
            model_args.from_scratch,
            model_args.single_logit,
            model_args.num_channels,
        )
        model.config.segmentation_label_map = class_map.to_config()
        prepare_training(model, model_args, training_args)
    else:
        model = load_trained_model(source, model_args.fused_ops, id2label=class_map.id2label)
    logger.info(describe_model(model))
    asked_for = EvaluationProtocol.from_image_processor(image_processor)
    protocol = EvaluationProtocol.from_image_processor(
        image_processor, fixed_input_size(model, asked_for.short_side), **protocol_options(data_args)
    )
    logger.info(f"evaluation: {protocol.describe()}")

    # Trainer. Random transforms happen as training images are drawn; evaluation images keep their annotations' size.
    transform = TrainTransform(
        protocol,
        tuple(data_args.scale_range),
        data_args.max_class_share,
        data_args.flip_probability,
        data_args.photometric_distortion,
    )
    if stream is not None:
        train_dataset = StreamingDataset(stream, class_map, transform, training_args.seed)
    else:
        train_dataset = SegmentationDataset(train_split, transform, training_args.seed) if train_split else None
    if data_args.preview:
        augmentation_preview(train_dataset, class_map).save(data_args.preview)
        logger.info(f"augmented training images: {data_args.preview}")
        return {}
    patience = model_args.early_stopping_patience
    trainer = SegmentationTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=SegmentationDataset(eval_split, protocol) if eval_split else None,
        processing_class=image_processor,
        protocol=protocol,
        fused_ops=model_args.fused_ops,
        id2label=class_map.id2label,
        losses=parse_loss(model_args.loss),
        class_weights=find_class_weights(model_args.class_weights, train_split, class_map),
        head_lr_multiplier=model_args.head_lr_multiplier,
        ema_decay=model_args.ema_decay,
        callbacks=[EarlyStoppingCallback(patience)] if patience and training_args.do_train else None,
    )
    if data_args.dry_run:
        return dry_run(trainer)

    # Train.
    train_metrics, eval_metrics = {}, {}
    if training_args.do_train:
        if trainer.is_world_process_zero():
            class_map.save(output_dir / "labels.json")
            save_arguments(output_dir, model_args, data_args, training_args)
        train_metrics = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint).metrics
        merge_lora(model)
        trainer.save_model(_internal_call=True)  # otherwise it would push to the Hub before there are results
        if trainer.is_world_process_zero():
            sizes = zip(eval_split["height"], eval_split["width"], strict=True) if eval_split else ()
            save_processor_config(output_dir, image_processor, protocol, sizes)
        trainer.save_state()
        trainer.save_metrics("train", train_metrics)

    # Evaluate.
    if training_args.do_eval:
        eval_metrics = without_per_category(trainer.evaluate())
        statistics = trainer.compute_metrics
        interval = bootstrap_interval(statistics.counts)
        eval_metrics |= dict(zip(("eval_mean_iou_low", "eval_mean_iou_high"), interval, strict=True))
        trainer.log_metrics("eval", eval_metrics)
        eval_metrics["eval_protocol"] = protocol.describe()
        trainer.save_metrics("eval", eval_metrics)
        if trainer.is_world_process_zero():
            save_confusion(output_dir, statistics.confusion_matrix, class_map.id2label)
            class_names = [name for _, name in sorted(class_map.id2label.items())]
            save_per_image(output_dir, eval_split["name"], statistics.counts, statistics.boundary, class_names)
            logger.info(f"\n{per_category_table(statistics.confusion_matrix, class_map.id2label)}")
    if data_args.eval_on_train:
        metrics = trainer.evaluate(SegmentationDataset(train_split, protocol), metric_key_prefix="train")
        # The running loss and the speed of training keep their names; the scores are new.
        train_metrics = without_per_category(metrics) | train_metrics
        trainer.log_metrics("train", train_metrics)
        trainer.save_metrics("train", train_metrics)

    # Predict.
    if training_args.do_predict:
        write_predictions(trainer, class_map, output_dir, data_args.max_predict_samples)

    # Publish.
    if trainer.is_world_process_zero() and training_args.do_train:
        write_model_card(output_dir, trainer.hub_model_id if training_args.push_to_hub else None)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return train_metrics | eval_metrics


def write_predictions(
    trainer: SegmentationTrainer, class_map: ClassMap, output_dir: Path, max_samples: int | None
) -> None:
    """Writes predictions and overlays of the evaluation images, each process its share, and a contact sheet."""
    folder = output_dir / "predictions"
    names = trainer.eval_dataset.split["name"][:max_samples]
    palette = class_map.colors()
    raw_palette = visual_utils.raw_palette(palette, class_map.raw_values)
    process, processes = trainer.args.process_index, trainer.args.world_size
    for index in tqdm(range(process, len(names), processes), desc="predicting", disable=process > 0):
        name, (image, truth) = names[index], trainer.eval_dataset.read(index)
        prediction = trainer.predict_ids(image)
        visual_utils.save_indexed_png(folder / f"{name}.png", class_map.to_raw(prediction), raw_palette)
        panels = visual_utils.side_by_side(rgb_view(image), np.asarray(truth), prediction, palette, class_map.id2label)
        overlay_file = folder / "overlays" / f"{name}.jpg"
        overlay_file.parent.mkdir(parents=True, exist_ok=True)
        panels.save(overlay_file, quality=90)
    trainer.accelerator.wait_for_everyone()
    if process == 0:
        overlays = [folder / "overlays" / f"{name}.jpg" for name in names]
        visual_utils.contact_sheet(overlays).save(output_dir / "contact_sheet.png")
        shutil.copyfile(overlays[0], output_dir / "sample.jpg")
        logger.info(f"predictions of {len(names)} images in {folder}; at a glance: {output_dir / 'contact_sheet.png'}")


if __name__ == "__main__":
    run_cli(main)
