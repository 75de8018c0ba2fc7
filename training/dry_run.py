"""`--dry_run`: all that a run would do, once and on a tiny scale, and a report of what is to be expected."""

import logging
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from data_utils import SegmentationDataset, collate_train
from metrics_utils import confusion_matrix, summarize_confusion
from models.inference import score_logits
from training.trainer import SegmentationTrainer
from training.workers import compare_with_step, cpus_of_process, seconds_per_image

logger = logging.getLogger(__name__)

# The first is slower than all that follow: memory is allotted, kernels are chosen.
STEPS = 2


class _StepTimes(TrainerCallback):
    """When each optimizer step began and ended, in seconds."""

    def __init__(self):
        self.begins, self.ends = [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begins.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def dry_run(trainer: SegmentationTrainer) -> dict[str, float]:
    """Trains two steps, evaluates one batch, saves, and logs schedule, batch size, time and memory.

    Everything is written to `trainer.args.output_dir`, which is the caller's to delete.

    Returns:
        "perfect_mean_iou", and what was measured: "seconds_per_step", "images_per_second_read" by one process,
        "training_hours", "seconds_per_eval_image".

    Raises:
        RuntimeError: the truth, taken for a prediction, does not score 1.
    """
    args, results = trainer.args, {}
    args.save_strategy = args.eval_strategy = IntervalStrategy.NO
    args.load_best_model_at_end = False
    trainer.divergence.keeps_dump = False
    trainer.remove_callback(EarlyStoppingCallback)  # it insists on evaluations
    if args.do_train:
        results |= _train(trainer)
    if trainer.eval_dataset is not None:
        results |= _evaluate(trainer)
    trainer.save_model(_internal_call=True)
    size = sum(path.stat().st_size for path in Path(args.output_dir).glob("model*.safetensors"))
    logger.info(f"a saved model takes {size / 2**20:.0f} MiB; peak of memory so far: {peak_memory(args.device)}")
    logger.info("dry run: all is well, nothing was kept")
    return results


def _train(trainer: SegmentationTrainer) -> dict[str, float]:
    args = trainer.args
    _, steps_per_epoch, _, _, batch_size, _, max_steps = trainer.set_initial_training_values(
        args, trainer.get_train_dataloader()
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=max_steps)
    logger.info(f"schedule: {args.lr_scheduler_type.value}\n{_schedule_table(trainer, max_steps)}")
    trainer.optimizer = trainer.lr_scheduler = None  # training makes them anew
    logger.info(
        f"effective batch: {batch_size} = {args.per_device_train_batch_size} a device × "
        f"{args.gradient_accumulation_steps} accumulated × {args.world_size} processes"
    )
    args.max_steps = STEPS
    times = _StepTimes()
    trainer.add_callback(times)
    loss = trainer.train().training_loss
    _try_last_batch(trainer)
    seconds = times.ends[-1] - times.begins[-1]
    per_image = seconds_per_image(trainer.train_dataset)
    images = args.per_device_train_batch_size * args.gradient_accumulation_steps
    told, with_loader = compare_with_step(per_image, images, seconds, args.dataloader_num_workers, cpus_of_process())
    logger.info(f"loader: {told}")
    hours = with_loader * max_steps / 3600
    logger.info(
        f"{STEPS} training steps: loss {loss:.3f}; the last took {seconds:.2f} s, so {max_steps} steps "
        f"({max_steps / steps_per_epoch:.1f} epochs) will take about {hours:.1f} h, evaluations left out"
    )
    return {"seconds_per_step": seconds, "training_hours": hours, "images_per_second_read": 1 / per_image}


def _try_last_batch(trainer: SegmentationTrainer) -> None:
    """A step without an update on what is left over at the end of an epoch, a batch smaller than all others."""
    args, dataset = trainer.args, trainer.train_dataset
    if args.world_size > 1 or args.dataloader_drop_last or not hasattr(dataset, "__len__"):
        return
    rest = len(dataset) % args.per_device_train_batch_size
    if rest:
        batch = collate_train([dataset[index] for index in range(rest)])
        trainer.training_step(trainer.model_wrapped, batch, trainer.objective.count(batch["labels"]))
        trainer.model.zero_grad()
        logger.info(f"the last batch of an epoch, {rest} of {args.per_device_train_batch_size} images, works as well")


def _schedule_table(trainer: SegmentationTrainer, max_steps: int) -> str:
    """Learning rate of the first parameter group at the start, after the warm-up, half-way and in the last step."""
    scheduler = trainer.lr_scheduler
    if not isinstance(scheduler, LambdaLR):
        return f"({type(scheduler).__name__} depends on the course of training)"
    steps = sorted({0, trainer.args.get_warmup_steps(max_steps), max_steps // 2, max_steps - 1})
    return "\n".join(f"step {step:>8}: {scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step):.3g}" for step in steps)


def _evaluate(trainer: SegmentationTrainer) -> dict[str, float]:
    dataset = trainer.eval_dataset
    few = Subset(dataset, range(min(len(dataset), trainer.args.eval_batch_size * trainer.args.world_size)))
    begin = time.perf_counter()
    metrics = trainer.evaluate(few)
    seconds = (time.perf_counter() - begin) / len(few)
    logger.info(
        f"one evaluation batch ({len(few)} images): loss {metrics['eval_loss']:.3f}, {seconds:.2f} s an image, so "
        f"about {seconds * len(dataset) / 60:.1f} min for all {len(dataset)}"
    )
    scores = [perfect_score(few, index, len(trainer.compute_metrics.id2label)) for index in range(len(few))]
    defined = [score for score in scores if score == score]
    if any(score != 1 for score in defined):
        raise RuntimeError(f"the truth itself scores a mean IoU of {defined}, not 1: please report this as a bug")
    logger.info(
        f"the truth, taken for the prediction, scores a mean IoU of 1.0 on {len(defined)} of {len(few)} images"
    )
    return {"seconds_per_eval_image": seconds, "perfect_mean_iou": max(defined, default=float("nan"))}


def perfect_score(dataset: SegmentationDataset, index: int, num_labels: int) -> float:
    """Mean IoU of the truth of one image, taken for its logits, on the way that predictions take.

    NaN where every pixel is ignored.
    """
    labels = dataset[index]["labels"].long()
    logits = F.one_hot(labels.clamp(max=num_labels - 1), num_labels).permute(2, 0, 1)[None].float()
    prediction, _, _ = score_logits(logits, labels[None])
    return summarize_confusion(confusion_matrix(prediction, labels[None], num_labels).numpy())["mean_iou"]


def peak_memory(device: torch.device) -> str:
    """What this process has needed at most: of the accelerator, or of the main memory where there is none."""
    if device.type != "cpu":
        return f"{torch.accelerator.max_memory_allocated(device) / 2**30:.2f} GiB on {device}"
    if sys.platform == "win32":
        return "not measured on Windows"
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of main memory"
