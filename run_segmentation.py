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

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed

from checks.judge import judge_example, prepare_and_judge
from checks.values import MOSTLY_IGNORED
from cli_utils import UserError, run_cli
from data.augmentation import TrainTransform
from data.class_weights import find_class_weights
from data.classes import ClassMap
from data.image_files import share_of
from data.preprocessing import num_channels_of
from data.streaming import StreamingDataset
from data_utils import Data, SegmentationDataset, augmentation_preview, find_classes, load_data
from metrics_utils import per_category_table, save_confusion, without_per_category
from models.adapters import add_lora, enable_activation_checkpointing, freeze_encoder, merge_lora
from models.image_processor import load_image_processor, save_processor_config
from models.inference import evaluation_protocol
from models.loading import describe_model, load_model, load_trained_model
from reports.intervals import bootstrap_interval, save_per_image
from reports.model_card import write_model_card
from reports.predictions import write_predictions
from reports.publishing import check_hub_access, push_run
from training.arguments import Arguments, RunArguments, SegmentationTrainingArguments
from training.checkpoints import check_output_dir, resolve_checkpoint
from training.dry_run import dry_run
from training.optimizer import batch_norm_warning
from training.trainer import SegmentationTrainer

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, predicts and publishes, as asked; returns all metrics by name (see `all_results.json`).

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for anything wrong with flags, data or model, before training starts.
    """
    args = Arguments.parse(argv, description=__doc__)
    set_up_logging(args.training)
    set_seed(args.training.seed)
    resolve_checkpoint(args.training)
    with output_folder(args) as output_dir:
        # What cannot be reached is found before data is prepared: the repository to publish to, and the model.
        repo_id = open_repository(args.training)
        image_processor = load_image_processor(
            args.model.source,
            args.model.from_scratch,
            args.evaluation.image_size,
            num_channels=args.dataset.num_channels,
        )

        # Data. The main process prepares it, the others read its cache.
        with args.training.main_process_first(desc="preparing the dataset"):
            data = load_data(
                args.dataset,
                args.training.seed,
                output_dir / "split.json",
                args.training.hub_token,
                args.run.max_eval_samples,
                num_channels_of(image_processor),
            )
            class_map = find_classes(data, args.classes)
            dataset = prepare(data, class_map, args)
        logger.info(f"annotation value -> training id\n{class_map.table()}")
        args.evaluation.check_classes(class_map.num_labels)
        train_split, eval_split = choose_splits(dataset, data.stream is not None, args.run, args.training)

        # Model.
        image_processor.do_reduce_labels = class_map.do_reduce_labels
        if args.training.do_train:
            check_output_dir(output_dir, class_map, args.training)
        model = build_model(args, class_map)
        protocol = evaluation_protocol(model, image_processor, args.evaluation)
        logger.info(describe_model(model))
        logger.info(f"evaluation: {protocol.describe()}")

        # Trainer. Random transforms happen as training images are drawn; evaluation images keep their own size.
        transform = TrainTransform(protocol, **vars(args.augmentation))
        train_dataset = None
        if data.stream is not None:
            train_dataset = StreamingDataset(data.stream, class_map, transform, judge_example, args.training.seed)
        elif train_split is not None:
            train_dataset = SegmentationDataset(train_split, transform, args.training.seed)
        if args.run.preview:
            augmentation_preview(train_dataset, class_map).save(args.run.preview)
            logger.info(f"augmented training images: {args.run.preview}")
            return {}
        patience = args.optimization.early_stopping_patience if args.training.do_train else None
        trainer = SegmentationTrainer(
            model=model,
            args=args.training,
            train_dataset=train_dataset,
            eval_dataset=None if eval_split is None else SegmentationDataset(eval_split, protocol),
            processing_class=image_processor,
            protocol=protocol,
            fused_ops=args.model.fused_ops,
            id2label=class_map.id2label,
            losses=args.loss.names,
            class_weights=find_class_weights(args.loss.class_weights, train_split, class_map.id2label),
            head_lr_multiplier=args.optimization.head_lr_multiplier,
            ema_decay=args.optimization.ema_decay,
            callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        )
        if args.run.dry_run:
            return dry_run(trainer)

        # Train, evaluate, predict, publish.
        train_metrics, eval_metrics = {}, {}
        if args.training.do_train:
            if trainer.is_world_process_zero():
                args.save(output_dir)
                class_map.save(output_dir / "labels.json")
            train_metrics = train(trainer, output_dir)
        if args.training.do_eval:
            eval_metrics = evaluate(trainer, class_map, output_dir)
        if args.run.eval_on_train:
            train_metrics = evaluate_on_train(trainer, train_split) | train_metrics
            trainer.log_metrics("train", train_metrics)
            trainer.save_metrics("train", train_metrics)
        if args.training.do_predict:
            names = eval_split["name"][: args.run.max_predict_samples]
            files = (output_dir / "predictions", output_dir / "contact_sheet.png", output_dir / "sample.jpg")
            write_predictions(names, trainer.eval_dataset.read, trainer.predict_ids, class_map, *files)
        if args.training.do_train and trainer.is_world_process_zero():
            write_model_card(output_dir, repo_id)
            if repo_id:
                publish(output_dir, repo_id, args.training)
        return train_metrics | eval_metrics


# ---- the steps ------------------------------------------------------------------------------------------------------


def set_up_logging(args: SegmentationTrainingArguments) -> None:
    """One stream of INFO lines from the main process; errors alone from the others."""
    main_process = args.local_process_index == 0
    logging.basicConfig(
        format="%(levelname)s %(name)s: %(message)s", level=logging.INFO if main_process else logging.ERROR, force=True
    )
    # One line for every request to the Hub is noise.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not main_process:
        transformers.logging.set_verbosity_error()
        datasets.disable_progress_bars()


@contextmanager
def output_folder(args: Arguments) -> Iterator[Path]:
    """`--output_dir`, or, for a run that keeps nothing, a temporary folder in its place."""
    if not args.run.keeps_nothing:
        yield Path(args.training.output_dir)
        return
    with TemporaryDirectory() as folder:
        args.training.output_dir = folder
        args.training.push_to_hub, args.training.report_to = False, []
        yield Path(folder)


def open_repository(args: SegmentationTrainingArguments) -> str | None:
    """With `--push_to_hub`: makes sure that the push at the end can succeed, and returns the repository's full id.

    The Trainer is not told to push: it would upload the whole output folder, pickled training arguments included.
    """
    asked, args.push_to_hub = args.push_to_hub, False
    if not asked or args.process_index > 0:
        return None
    return check_hub_access(
        args.hub_model_id, args.hub_token, args.output_dir, args.hub_private_repo, args.hub_revision
    )


def prepare(data: Data, class_map: ClassMap, args: Arguments) -> DatasetDict:
    """Prepares the data and judges it; raises UserError for what is wrong with it."""
    check_data = args.run.check_data and args.training.do_train and data.stream is None
    dataset = prepare_and_judge(
        data.splits, class_map, args.evaluation.image_size, data.num_channels, check_data, layout=data.layout
    )
    if class_map.num_labels == 1:
        raise UserError(
            f"there is but one class ({class_map.id2label[0]}): nothing to tell apart; see check_dataset.py"
        )
    return dataset


def choose_splits(
    dataset: DatasetDict, has_stream: bool, run: RunArguments, training: SegmentationTrainingArguments
) -> list[Dataset | None]:
    """The split to train on and the one to evaluate, cut to `--max_…_samples`; None where none is there or needed.

    has_stream: the training images are not in the dataset.
    """

    def first(split: Dataset | None, count: int | None) -> Dataset | None:
        return split if split is None or count is None else split.take(min(count, len(split)))

    train_split = first(dataset.get("train"), run.max_train_samples)
    eval_split = first(dataset.get("validation", dataset.get("test")), run.max_eval_samples)
    found = ", ".join(f"{name}: {len(split)}" for name, split in dataset.items())
    if train_split is None and not has_stream and (training.do_train or run.eval_on_train):
        raise UserError(f"the dataset has no training split (found {found})")
    if eval_split is None and (training.do_eval or training.do_predict):
        raise UserError(
            f"the dataset has no validation or test split (found {found}); add --train_val_split 0.2, "
            "or train without evaluation: --eval_strategy no"
        )
    logger.info(f"images by split: {found}")
    return [train_split, eval_split]


def build_model(args: Arguments, class_map: ClassMap) -> PreTrainedModel:
    """The model to train, frozen and adapted as the flags ask, or the trained one to evaluate."""
    if not args.training.do_train:
        return load_trained_model(args.model.source, args.model.fused_ops, id2label=class_map.id2label)
    model = load_model(
        args.model.source,
        class_map.id2label,
        args.model.fused_ops,
        args.model.from_scratch,
        args.model.single_logit,
        args.dataset.num_channels,
    )
    model.config.segmentation_label_map = class_map.to_config()
    if args.optimization.freeze_encoder:
        freeze_encoder(model)
    if args.optimization.lora_r is not None:
        add_lora(model, args.optimization.lora_r)
    if args.optimization.sync_bn:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.training.activation_checkpointing:
        enable_activation_checkpointing(model)
    warning = batch_norm_warning(model, args.training.per_device_train_batch_size)
    if warning:
        logger.warning(warning)
    return model


def train(trainer: SegmentationTrainer, output_dir: Path) -> dict[str, float]:
    """Trains; leaves the model, its image processor, the Trainer's state and `train_results.json`."""
    metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    metrics["num_processes"] = trainer.args.world_size
    merge_lora(trainer.model)
    trainer.save_model()
    if trainer.is_world_process_zero():
        split = trainer.eval_dataset and trainer.eval_dataset.split
        sizes = zip(split["height"], split["width"], strict=True) if split else ()
        save_processor_config(output_dir, trainer.processing_class, trainer.protocol, sizes)
    trainer.save_state()
    trainer.save_metrics("train", metrics)
    return metrics


def evaluate(trainer: SegmentationTrainer, class_map: ClassMap, output_dir: Path) -> dict[str, float]:
    """Scores the evaluation images; leaves the scores, the confusion matrix and the counts of every image."""
    metrics = without_per_category(trainer.evaluate())
    statistics = trainer.compute_metrics
    interval = bootstrap_interval(statistics.counts)
    metrics |= dict(zip(("eval_mean_iou_low", "eval_mean_iou_high"), interval, strict=True))
    trainer.log_metrics("eval", metrics)
    metrics["eval_protocol"] = trainer.protocol.describe()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        save_confusion(output_dir, statistics.confusion_matrix, class_map.id2label)
        class_names = [name for _, name in sorted(class_map.id2label.items())]
        names = trainer.eval_dataset.split["name"]
        log_ignored(statistics.confusion_matrix, trainer.eval_dataset.split)
        save_per_image(output_dir, names, statistics.counts, statistics.boundary, class_names)
        logger.info(f"\n{per_category_table(statistics.confusion_matrix, class_map.id2label)}")
    return metrics


def log_ignored(confusion_matrix: np.ndarray, split: Dataset) -> None:
    """Says which share of the pixels the scores are silent about; loudly if it is most of them."""
    total = int(np.multiply(split["height"], split["width"], dtype=np.int64).sum())
    ignored = total - int(confusion_matrix.sum())
    level = logging.WARNING if ignored >= MOSTLY_IGNORED * total else logging.INFO
    logger.log(level, f"{share_of(ignored, total)} of the pixels evaluated are ignored and count in no score")


def evaluate_on_train(trainer: SegmentationTrainer, split: Dataset) -> dict[str, float]:
    """Scores the training images, unaugmented, as `train_mean_iou` and so on."""
    return without_per_category(
        trainer.evaluate(SegmentationDataset(split, trainer.protocol), metric_key_prefix="train")
    )


def publish(output_dir: Path, repo_id: str, args: SegmentationTrainingArguments) -> None:
    push_run(output_dir, repo_id, args.hub_token, args.hub_private_repo, revision=args.hub_revision)


if __name__ == "__main__":
    run_cli(main)
