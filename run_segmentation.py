"""Fine-tunes SegFormer, or any other `AutoModelForSemanticSegmentation`, on your own images and masks.

One GPU, or the CPU:

    python run_segmentation.py --config auto --dataset_dir my_photos --output_dir outputs/mine

chooses settings for the data and the machine (plan.py); with `--do_train --do_predict` instead, flags say it all.

Many GPUs:

    accelerate launch --config_file accelerate_config.yaml run_segmentation.py \\
        --dataset_dir ADEChallengeData2016 --output_dir outputs/ade --do_train --do_predict

No network, no data, a few minutes on a CPU (`make demo`):

    python toy_dataset.py && python run_segmentation.py --config configs/toy_overfit.yaml

Every flag can stand in the YAML file of `--config`; flags on the command line win.
"""

if __name__ == "__main__":
    from training.early import answer

    answer(__doc__)  # before the imports below, which take seconds

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import EarlyStoppingCallback, PretrainedConfig, PreTrainedModel, set_seed
from transformers.image_processing_base import ImageProcessingMixin

from checks.judge import judge_example, prepare_and_judge, prepare_dataset
from checks.records import Finding
from checks.values import MOSTLY_IGNORED
from cli_utils import UserError, printable, run_cli, set_up_logging, write_text, written_aside, written_together
from data.augmentation import TrainTransform
from data.bands import band_statistics
from data.bulk import column_of
from data.class_weights import find_class_weights
from data.classes import ClassMap
from data.image_files import share_of
from data.output_paths import refuse_inputs
from data.preprocessing import EvaluationProtocol, num_channels_of
from data.rare_classes import rare_class_crops
from data.reduced_copies import with_reduced_copies
from data.streaming import StreamingDataset
from data_utils import Data, SegmentationDataset, augmentation_preview, find_classes, load_data
from metrics_utils import per_category_table, save_confusion, without_per_category
from models.adapters import add_lora, enable_activation_checkpointing, freeze_encoder, merge_lora
from models.calibration import calibrate, pixels_per_image, save_temperature
from models.image_processor import load_image_processor, normalized_by, save_processor_config
from models.inference import TEMPERATURE, evaluation_protocol
from models.loading import describe_model, find_config, load_model, load_trained_model
from models.universal import check_flags_of_masks
from reports.closing import closing_lines
from reports.intervals import bootstrap_interval, save_per_image
from reports.model_card import write_model_card
from reports.predictions import prediction_files, write_predictions
from reports.publishing import check_hub_access, push_run
from reports.run_record import RunPage, evaluated_images, new_record
from training.annealing import find_phases
from training.arguments import PLAN_FILE, Arguments
from training.batches import check_batches
from training.checkpoints import check_same_run, check_steps, read_record, started_with
from training.display import is_live
from training.divergence import SKIPPED, skipped_steps
from training.dry_run import dry_run
from training.idle_flags import idle_flags
from training.interruption import Interruption
from training.optimizer import check_layer_decay
from training.output_folder import (
    NEW_RUN,
    check_room,
    in_main_process,
    open_output_dir,
    replaced_files,
    results_of_training,
    save_results,
    split_file,
)
from training.plan_file import Steps, make_plan
from training.run_arguments import RunArguments
from training.scattering import built_whole
from training.trainer import SegmentationTrainer

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, predicts and publishes, as asked; returns all metrics by name (see `all_results.json`).

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for anything wrong with flags, data or model, before training starts.
    """
    args = Arguments.parse(argv, description=__doc__)
    log_to_terminal(args)
    # What cannot be used or reached is found before data is prepared: the folder, the repository, and the model.
    with output_folder(args) as output_dir:
        if args.is_to_be_planned:
            args = planned(args, argv, output_dir)
        for sentence in idle_flags(args):
            logger.warning(sentence)
        set_seed(args.training.seed)
        repo_id = open_repository(args)
        with built_whole(args.training):
            config, image_processor, transform = find_model(args)
        annealing_phases = check_model(config, args)

        # Data. The main process prepares it, the others read its cache.
        with args.training.main_process_first(desc="preparing the dataset"):
            data = load_data(
                args.dataset,
                args.training.seed,
                split_file(output_dir, args),
                args.token,
                args.run.max_eval_samples,
                num_channels_of(image_processor),
                needs_class_list=not (args.classes.id2label or args.classes.label_map),
            )
            check_plan(data, args, output_dir)
            class_map = find_classes(data, args.classes)
            dataset, findings = prepare(data, class_map, args)
            image_processor, transform = fit_bands(args, dataset, image_processor, transform)
            if args.training.do_train and args.augmentation.copies_large_photos:
                dataset = with_reduced_copies(dataset, transform)
        logger.info(f"annotation value -> training id\n{class_map.table()}")
        args.evaluation.check_classes(class_map.num_labels)
        train_split, eval_split = choose_splits(dataset, args.run)
        protocol = transform.protocol

        # Model.
        image_processor.do_reduce_labels = class_map.do_reduce_labels
        with built_whole(args.training):
            model = build_model(args, class_map)
        logger.info(describe_model(model))
        logger.info(f"evaluation: {protocol.describe()}")
        if args.training.do_train:
            check_batches(model, args.training, train_split and len(train_split), transform)

        # Trainer.
        train_dataset = training_dataset(data, train_split, class_map, transform, args)
        if args.run.preview:
            return save_preview(train_dataset, class_map, args.run.preview)
        patience = args.optimization.early_stopping_patience if args.training.do_train else None
        class_weights = find_class_weights(args.loss.class_weights, train_split, class_map.id2label)
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
            class_weights=class_weights,
            head_lr_multiplier=args.optimization.head_lr_multiplier,
            layer_decay=args.optimization.layer_decay,
            encoder_warmup_steps=args.optimization.encoder_warmup_steps,
            annealing_phases=annealing_phases,
            ema_decay=args.optimization.ema_decay,
            record=started_with(args, train_split, class_weights),
            replaced=replaced_files(output_dir, args),
            void_in_masks=args.loss.void_in_masks or "background",
            skip_nonfinite=args.optimization.skip_nonfinite,
            train_minutes=args.run.train_minutes,
            callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        )
        if args.run.dry_run:
            return dry_run(trainer)
        page = RunPage(trainer, new_record(args, data, dataset, class_map, findings), class_map)
        trainer.add_callback(page)

        # Train, evaluate, predict, report, publish.
        train_metrics, eval_metrics = {}, {}
        if args.training.do_train:
            train_metrics = train(trainer, args, class_map, page)
        if args.training.do_eval:
            eval_metrics = evaluate(trainer, class_map, output_dir, page)
        if args.run.eval_on_train:
            train_metrics = evaluate_on_train(trainer, train_split, train_metrics)
        if args.training.do_predict:
            names = eval_split["name"][: args.run.max_predict_samples]
            files = predicted(output_dir)
            write_predictions(names, trainer.eval_dataset.read, trainer.predict_ids, class_map, *files, data.files())
        page.finish(output_dir, evaluated=args.training.do_eval)
        metrics = train_metrics | eval_metrics
        if trainer.is_world_process_zero():
            print(printable("\n".join(closing_lines(output_dir, metrics)), lines=True))
        if args.training.do_train and trainer.is_world_process_zero():
            write_model_card(output_dir, repo_id)
            if repo_id:
                publish(output_dir, repo_id, args)
        return metrics


# ---- the steps ------------------------------------------------------------------------------------------------------


def log_to_terminal(args: Arguments) -> None:
    """One stream of lines from the main process; errors alone from the others. Tables, and what libraries say and
    draw of their own, are for `--verbose`."""
    main_process, verbose = args.training.local_process_index == 0, args.run.verbose
    set_up_logging(logging.INFO if main_process else logging.ERROR, tables=verbose or args.run.dry_run, others=verbose)
    if not main_process:
        transformers.logging.set_verbosity_error()
    if not (main_process and verbose):
        transformers.logging.disable_progress_bar()
        if not (main_process and is_live()):
            datasets.disable_progress_bars()


@contextmanager
def output_folder(args: Arguments) -> Iterator[Path]:
    """`--output_dir`, free for this run, or, for a run that keeps nothing, a temporary folder in its place."""
    if not args.run.keeps_nothing:
        with open_output_dir(args) as folder:
            yield folder
        return
    with TemporaryDirectory() as folder:
        args.training.output_dir = folder
        args.training.push_to_hub, args.training.report_to = False, []
        yield Path(folder)


def planned(args: Arguments, argv: list[str] | None, output_dir: Path) -> Arguments:
    """The arguments of `--config auto`: a plan is made, kept in the output folder, and read as any file of flags."""
    text = make_plan(args, PLANNED_STEPS)
    logger.info(f"the plan:\n{text}")  # a table, for `--verbose`
    logger.info(f"settings are planned; {output_dir / PLAN_FILE} has the reasons, once there is something to keep")
    file = output_dir / NEW_RUN / PLAN_FILE  # moves in with the first checkpoint or result
    write_text(file, text)
    result = Arguments.parse(argv, plan=file)
    result.given = tuple(name for name in result.given if name != "minutes")  # has had its effect
    for name in ("output_dir", "push_to_hub", "report_to"):  # see `output_folder`
        setattr(result.training, name, getattr(args.training, name))
    return result


def find_model(args: Arguments) -> tuple[PretrainedConfig, ImageProcessingMixin, TrainTransform]:
    """The model's configuration, its image processor, and how training images are made for it; the transform's
    protocol says how images are evaluated."""
    side = args.evaluation.image_size
    # Of a trained model that is evaluated alone, the size is its own.
    config = find_config(**args.model.location, image_size=side if args.training.do_train else None)
    image_processor = load_image_processor(
        **args.model.location, image_size=side, num_channels=args.dataset.num_channels
    )
    protocol = evaluation_protocol(config, image_processor, args.evaluation, args.augmentation.crop_size)
    # Random transforms happen as training images are drawn; evaluation images keep their own size.
    transform = TrainTransform(protocol, **args.augmentation.of_transform(args.training.device.type))
    return config, image_processor, transform


def fit_bands(
    args: Arguments, dataset: DatasetDict, image_processor: ImageProcessingMixin, transform: TrainTransform
) -> tuple[ImageProcessingMixin, TrainTransform]:
    """Both as they are, or, for bands of more than 8 bits, with their mean and standard deviation over the training
    images; a run that goes on takes its checkpoint's."""
    found, source = band_statistics(dataset), args.model.source
    if found and args.training.resume_from_checkpoint:
        source = args.training.resume_from_checkpoint
        image_processor = load_image_processor(source, image_size=args.evaluation.image_size)
    processor = normalized_by(image_processor, found, source, args.training.do_train)
    if found is None:
        return processor, transform
    said = EvaluationProtocol.from_image_processor(processor)
    names = ("image_mean", "image_std", "image_dtype", "flip_channels")
    bands = "; ".join(f"{m:.6g} ± {s:.6g}" for m, s in zip(said.image_mean, said.image_std, strict=True))
    logger.info(f"bands of {said.image_dtype}, normalised by their mean ± standard deviation: {bands}")
    protocol = replace(transform.protocol, **{name: getattr(said, name) for name in names})
    return processor, replace(transform, protocol=protocol)


def open_repository(args: Arguments) -> str | None:
    """With `--push_to_hub`: makes sure that the push at the end can succeed, and returns the repository's full id.

    The Trainer is not told to push: it would upload the whole output folder, pickled training arguments included.
    """
    training = args.training
    asked, training.push_to_hub = training.push_to_hub, False
    if not asked or training.process_index > 0:
        return None
    return check_hub_access(
        training.hub_model_id, args.token, training.output_dir, training.hub_private_repo, training.hub_revision
    )


def check_model(config: PretrainedConfig, args: Arguments) -> list[tuple[int, int]] | None:
    """Raises UserError for flags that do not fit the architecture; returns EoMT's annealing, if it was given."""
    check_layer_decay(config, args.optimization.layer_decay)
    check_flags_of_masks(
        config,
        args.loss.names,
        args.loss.class_weights,
        args.training.label_smoothing_factor,
        args.model.single_logit,
        args.loss.void_in_masks,
    )
    return find_phases(config, args.optimization.mask_annealing_starts, args.optimization.mask_annealing_ends)


def prepare(data: Data, class_map: ClassMap, args: Arguments) -> tuple[DatasetDict, list[Finding] | None]:
    """Prepares the data and judges it; raises UserError for what is wrong with it.

    Returns:
        The data, and what was found; None where nobody looked.
    """
    findings = [] if args.run.check_data and args.training.do_train and data.stream is None else None
    if args.training.do_train and data.stream is None:
        dataset = prepare_and_judge(
            data.splits,
            class_map,
            args.evaluation.image_size,
            data.num_channels,
            check_data=args.run.check_data,
            layout=data.layout,
            findings=findings,
        )
    else:
        whole = data.stream is None
        dataset = prepare_dataset(data.splits, class_map, num_channels=data.num_channels, complete=whole)
    if class_map.num_labels == 1:
        raise UserError(
            f"there is but one class ({class_map.id2label[0]}): nothing to tell apart; see check_dataset.py"
        )
    return dataset, findings


def check_plan(data: Data, args: Arguments, output_dir: Path) -> None:
    """Refuses what the names of the files show already, before masks are read: a split that is missing, and an output
    that would replace an input.

    Raises:
        UserError: says what to do.
    """
    run, training = args.run, args.training
    train_split, eval_split = choose_splits(data.splits, run)
    found = ", ".join(f"{name}: {len(split)}" for name, split in data.splits.items())
    if train_split is None and data.stream is None and (training.do_train or run.eval_on_train):
        raise UserError(f"the dataset has no training split (found {found})")
    evaluates = (training.do_eval or training.do_predict) and run.preview is None
    if eval_split is None and evaluates:
        raise UserError(
            f"the dataset has no validation or test split (found {found}); add --train_val_split 0.2, "
            "or train without evaluation: --eval_strategy no"
        )
    if found:  # of a stream nothing is, unless some of it is evaluated
        logger.info(f"images by split: {found}")
    if run.preview:
        refuse_inputs([Path(run.preview)], data.files(), "--preview")
    elif training.do_predict and not run.dry_run:
        names = eval_split["name"][: run.max_predict_samples]
        folder, *others = predicted(output_dir)
        prediction_files(names, folder, others, data.files())


def training_dataset(
    data: Data, split: Dataset | None, class_map: ClassMap, transform: TrainTransform, args: Arguments
) -> SegmentationDataset | StreamingDataset | None:
    """The training images, prepared or as they stream in; None without a training split."""
    if data.stream is not None:
        return StreamingDataset(data.stream, class_map, transform, judge_example, args.training.seed)
    if split is None:
        return None
    rare_crops = rare_class_crops(split, args.augmentation.rare_class_crops, class_map.id2label)
    return SegmentationDataset(split, transform, args.training.seed, rare_crops)


def save_preview(
    train_dataset: SegmentationDataset | StreamingDataset, class_map: ClassMap, path: str
) -> dict[str, float]:
    """Writes a picture of augmented training images; there are no metrics."""
    with written_aside(path) as file:
        augmentation_preview(train_dataset, class_map).save(file)
    logger.info(f"augmented training images: {path}")
    return {}


def choose_splits(splits: DatasetDict, run: RunArguments) -> list[Dataset | None]:
    """The split to train on and the one to evaluate, cut to `--max_…_samples`; None where none is there."""

    def first(split: Dataset | None, count: int | None) -> Dataset | None:
        return split if split is None or count is None else split.take(min(count, len(split)))

    train_split = first(splits.get("train"), run.max_train_samples)
    return [train_split, first(splits.get("validation", splits.get("test")), run.max_eval_samples)]


def predicted(output_dir: Path) -> tuple[Path, Path, Path]:
    """What `--do_predict` writes: the folder of predictions, the contact sheet, a sample for the model card."""
    return output_dir / "predictions", output_dir / "contact_sheet.png", output_dir / "sample.jpg"


def build_model(args: Arguments, class_map: ClassMap) -> PreTrainedModel:
    """The model to train, frozen and adapted as the flags ask, or the trained one to evaluate."""
    if not args.training.do_train:
        return load_trained_model(
            args.model.source, args.model.fused_ops, class_map.id2label, args.model.model_revision
        )
    model = load_model(
        **args.model.location,
        image_size=args.evaluation.image_size,
        id2label=class_map.id2label,
        fused_ops=args.model.fused_ops,
        single_logit=args.model.single_logit,
        num_channels=args.dataset.num_channels,
        **args.model.overrides,
    )
    model.config.segmentation_label_map = class_map.to_config()
    vars(model.config).pop(TEMPERATURE, None)  # of the model that is trained on
    if args.optimization.freeze_encoder:
        freeze_encoder(model)
    if args.optimization.lora_r is not None:
        add_lora(model, args.optimization.lora_r)
    if args.optimization.sync_bn:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.training.activation_checkpointing:
        enable_activation_checkpointing(model)
    return model


def train(trainer: SegmentationTrainer, args: Arguments, class_map: ClassMap, page: RunPage) -> dict[str, float]:
    """Trains; leaves the model, its image processor, the Trainer's state and `train_results.json`."""
    folder, checkpoint = Path(trainer.args.output_dir), trainer.args.resume_from_checkpoint
    in_main_process(lambda: check_before_training(trainer, checkpoint), trainer.args)
    if trainer.is_world_process_zero():
        args.save(folder / NEW_RUN)
        class_map.save(folder / NEW_RUN / "labels.json")
    interruption = Interruption()
    trainer.add_callback(interruption)
    with interruption.awaited():
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        metrics["num_processes"] = trainer.args.world_size
        metrics |= {SKIPPED: count} if (count := skipped_steps(trainer.state)) else {}
        merge_lora(trainer.model)
        with results_of_training(trainer) as new:
            trainer.save_model(new)
            if trainer.is_world_process_zero():
                split = trainer.eval_dataset and trainer.eval_dataset.split
                sizes = (
                    zip(*(column_of(split, side).tolist() for side in ("height", "width")), strict=True)
                    if split
                    else ()
                )
                save_processor_config(new, trainer.processing_class, trainer.protocol, sizes)
                trainer.state.save_to_json(str(new / "trainer_state.json"))
                save_results(new, "train", metrics)
                page.write_trained(new)
    return metrics


def check_before_training(trainer: SegmentationTrainer, checkpoint: str | None) -> None:
    """Raises UserError where the run is not the one that the checkpoint is of, or the disk has no room for it."""
    _, steps_per_epoch, *_, max_steps = trainer.set_initial_training_values(
        trainer.args, trainer.get_train_dataloader()
    )
    done = 0
    if checkpoint:
        check_same_run(checkpoint, trainer.record, trainer.model)
        trainer.deadline.go_on_from(read_record(checkpoint).get("deadline"))
        max_steps = trainer.deadline.last_step(max_steps)
        done = check_steps(checkpoint, max_steps, trainer.args)
    check_room(trainer, max_steps, steps_per_epoch, done)


def evaluate(trainer: SegmentationTrainer, class_map: ClassMap, output_dir: Path, page: RunPage) -> dict[str, float]:
    """Scores the evaluation images; leaves the scores, the confusion matrix and the counts of every image, and in the
    configuration of a model that was trained now its temperature."""
    trainer.finds_suspects = True
    trainer.sampled_pixels = pixels_per_image(len(trainer.eval_dataset), class_map.num_labels)
    metrics = without_per_category(trainer.evaluate())
    trainer.finds_suspects, trainer.sampled_pixels = False, 0
    statistics = trainer.compute_metrics
    calibration = calibrate(*statistics.others[-2:], statistics.counts[:, 1].sum(axis=-1))
    interval = bootstrap_interval(statistics.counts)
    metrics |= dict(zip(("eval_mean_iou_low", "eval_mean_iou_high"), interval, strict=True))
    metrics["eval_protocol"] = trainer.protocol.describe()
    if calibration:
        metrics |= calibration.metrics()
        page.add_calibration(calibration)
        if trainer.args.do_train and trainer.is_world_process_zero():
            save_temperature(output_dir, calibration.temperature)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        images = evaluated_images(trainer, class_map)
        log_ignored(statistics.confusion_matrix, trainer.eval_dataset.split)
        with written_together(output_dir) as folder:
            save_confusion(folder, statistics.confusion_matrix, class_map.id2label)
            save_per_image(folder, images.names, images.counts, images.boundary, images.class_names, **images.others)
        logger.info(f"\n{per_category_table(statistics.confusion_matrix, class_map.id2label)}")
    return metrics


def log_ignored(confusion_matrix: np.ndarray, split: Dataset) -> None:
    """Says which share of the pixels the scores are silent about; loudly if it is most of them."""
    total = int(np.multiply(column_of(split, "height"), column_of(split, "width"), dtype=np.int64).sum())
    ignored = total - int(confusion_matrix.sum())
    level = logging.WARNING if ignored >= MOSTLY_IGNORED * total else logging.INFO
    logger.log(level, f"{share_of(ignored, total)} of the pixels evaluated are ignored and count in no score")


def evaluate_on_train(
    trainer: SegmentationTrainer, split: Dataset, train_metrics: dict[str, float]
) -> dict[str, float]:
    """Scores the training images, unaugmented, as `train_mean_iou` and so on, beside what training itself measured."""
    scores = trainer.evaluate(SegmentationDataset(split, trainer.protocol), metric_key_prefix="train")
    metrics = without_per_category(scores) | train_metrics
    trainer.save_metrics("train", metrics)
    return metrics


# What a plan does as a run does it.
PLANNED_STEPS = Steps(find_model, check_plan, prepare, choose_splits, build_model, fit_bands)


def publish(output_dir: Path, repo_id: str, args: Arguments) -> None:
    push_run(output_dir, repo_id, args.token, args.training.hub_private_repo, revision=args.training.hub_revision)


if __name__ == "__main__":
    run_cli(main)
