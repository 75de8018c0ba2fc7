"""`SegmentationTrainer`: the Hugging Face Trainer with the faults mended that matter for semantic segmentation.

What differs from the stock Trainer, and why:

* resuming and loading the best checkpoint restore every tensor, or raise;
* the loss is the cross-entropy summed over all valid pixels of all accumulated batches of all processes, divided by
  their number, so that gradient accumulation and more processes change nothing but rounding;
* evaluation happens at each image's original resolution and keeps counts, not logits;
* a checkpoint is whole or not there, and a run that goes on from it is the run that was not interrupted: its losses,
  logged and in the mean, are those of the whole run, and flags that may change are really used.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import SchedulerType, Trainer, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from checks.suspects import NOTHING, suspected_errors
from cli_utils import UserError, WriteError, one_line, remove, write_failure
from data.colors import finish_batch
from data.preprocessing import EvaluationProtocol
from data.streaming import StreamingDataset
from data_utils import collate_eval, collate_train
from metrics_utils import ComputeMetrics, boundary_counts, confusion_matrix, without_per_category
from models.adapters import merged_state_dict, save_adapters, with_adapters
from models.calibration import sample_pixels
from models.configurations import is_universal
from models.inference import count_passes, predict_ids, protocol_logits, score_logits
from models.loading import check_finite
from models.objectives import find_objective
from models.upsampling import exact_products
from training.annealing import MaskAnnealing
from training.arguments import describe_precision
from training.checkpoints import fault_of, newest_checkpoint, read_record, seal
from training.deadline import Deadline
from training.display import Display, is_live
from training.divergence import DivergenceGuard, check_weights, is_scattered, poisoned, raise_on_nonfinite_losses
from training.ema import WeightAverage
from training.interruption import deaf, lost_workers_named
from training.optimizer import (
    groups_table,
    parameter_groups,
    poly_schedule,
    takes_parameter_groups,
    two_stage_schedule,
)
from training.output_folder import NEW_RUN, checkpoints_after, move_in, save_results
from training.run_loss import RunLoss
from training.scattering import prepare_for_fsdp
from training.workers import describe_workers

logger = logging.getLogger(__name__)


class _EpochCallback(TrainerCallback):
    """Tells the dataset which epoch it is in, so that augmentation is a function of (seed, epoch, index)."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        # After a resume in the middle of an epoch `state.epoch` is fractional.
        self.dataset.set_epoch(int(state.epoch + 1e-6))


class _ResumedStateCallback(TrainerCallback):
    """Fits the state of a run that goes on to this one.

    The Trainer takes over how often to log, evaluate and save, against the flags; and it keeps the path of the best
    checkpoint, and forgets it where the folder has another name now, or is on another machine. A best checkpoint that
    is damaged is found now, not when it is loaded at the end.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)
        if not state.best_global_step:
            return
        here = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
        best = here if here.is_dir() else Path(state.best_model_checkpoint or here)
        fault = fault_of(best) if best.is_dir() else "it is not there"
        if fault is None:
            state.best_model_checkpoint = str(best)
        else:
            logger.warning(f"{best}, the best so far, cannot be used: {fault}. The best of those to come is taken.")
            state.best_model_checkpoint = state.best_global_step = state.best_metric = None


def _concise(callback: type[TrainerCallback]) -> type[TrainerCallback]:
    """A table of the Trainer in a notebook without the hundreds of per-category scalars."""

    class Concise(callback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            super().on_log(args, state, control, logs=without_per_category(logs), **kwargs)

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            super().on_evaluate(args, state, control, metrics=without_per_category(metrics), **kwargs)

    return Concise


class SegmentationTrainer(Trainer):
    """Trains and evaluates any model whose output has `logits` of shape (B, num_labels, h, w), or masks with classes.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, callbacks: as for `Trainer`. The datasets are
            `data_utils.SegmentationDataset`s.
        protocol: how evaluation images were prepared; named in every result.
        fused_ops: the loss and the evaluation tile by tile; else as stock transformers computes them.
        id2label: training id → name; None takes the model's, which has one of two where it has a single logit.
        losses: of `models.arguments.parse_loss`.
        class_weights: float (num_labels,), for the losses that take them.
        head_lr_multiplier: of the learning rate outside the encoder.
        layer_decay: of the learning rate from each layer of a ViT, or stage of a ConvNeXt, to the one before it.
        encoder_warmup_steps: of `training.annealing.two_stage_factor`; None for the schedule of `poly_factor`.
        annealing_phases: of `training.annealing.MaskAnnealing`.
        ema_decay: of the average of the weights that is evaluated and saved; 0 for the weights themselves.
        record: of `training.checkpoints.started_with`, kept in every checkpoint.
        replaced: patterns of files that go from the output folder as the first checkpoint moves in.
        void_in_masks: of `models.universal.QueryObjective`, for universal models.
        skip_nonfinite: steps whose loss or gradient is not finite that may be left out before the run stops.
        train_minutes: of `training.deadline.Deadline`.
    """

    def __init__(
        self,
        *args,
        protocol: EvaluationProtocol,
        fused_ops: bool = True,
        id2label: dict[int, str] | None = None,
        losses: Sequence[str] = ("ce",),
        class_weights: torch.Tensor | None = None,
        head_lr_multiplier: float = 1.0,
        layer_decay: float = 1.0,
        encoder_warmup_steps: int | None = None,
        annealing_phases: Sequence[tuple[int, int]] | None = None,
        ema_decay: float = 0.0,
        record: dict | None = None,
        replaced: Sequence[str] = (),
        void_in_masks: str = "background",
        skip_nonfinite: int = 0,
        train_minutes: float | None = None,
        **kwargs,
    ):
        self.protocol = protocol
        self.fused_ops = fused_ops
        self.losses = losses
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.head_lr_multiplier, self.layer_decay = head_lr_multiplier, layer_decay
        self.encoder_warmup_steps = encoder_warmup_steps
        self.weight_average = WeightAverage(ema_decay)
        self.record, self.replaced = record or {}, replaced
        self.saves_aside = self.finds_suspects = False
        self.sampled_pixels = 0
        self.divergence = DivergenceGuard(skip_nonfinite)
        self.deadline = Deadline(train_minutes)
        super().__init__(
            *args,
            data_collator=collate_train,
            compute_loss_func=self.upsampled_loss,
            compute_metrics=None,
            **kwargs,
        )
        if self.is_fsdp_enabled:
            prepare_for_fsdp(self.model)
        self.objective = find_objective(
            self.model, losses, class_weights, self.args.label_smoothing_factor, fused_ops, void_in_masks
        )
        # What the replay of a batch repeats is the loss of pixels.
        self.divergence.keeps_dump = not is_universal(self.model.config)
        self.compute_metrics = ComputeMetrics(id2label or self.model.config.id2label)
        # The loss is computed outside the model; handed on, `num_items_in_batch` would reach modules that ignore it.
        # (Upstream: huggingface/transformers#47688.)
        self.model_accepts_loss_kwargs = False
        self.run_loss = RunLoss(self.args.device)
        workers = self.args.dataloader_num_workers, self.args.dataloader_persistent_workers
        logger.info(describe_workers(*workers, self.args.dataloader_pin_memory, self.args.device.type))
        if self.args.do_train and self.args.device.type != "cpu":
            logger.info(describe_precision(self.args))
        self.add_callback(self.weight_average)
        self.add_callback(_ResumedStateCallback())
        self.add_callback(self.deadline)
        self.add_callback(MaskAnnealing(annealing_phases))
        if self.train_dataset is not None:
            self.add_callback(_EpochCallback(self.train_dataset))
        for display in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
            if not self.pop_callback(display):
                continue
            in_notebook = display not in (ProgressCallback, PrinterCallback)
            live = display is ProgressCallback and is_live()
            self.add_callback(_concise(display) if in_notebook else Display(live))

    # ---- optimizer ------------------------------------------------------------------------------------------------

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        """As the stock (static) method, which `create_optimizer` asks, with the groups of `parameter_groups`."""
        optimizer_cls, options = super().get_optimizer_cls_and_kwargs(args, model)
        if takes_parameter_groups(optimizer_cls, options):
            groups = parameter_groups(
                model, args.learning_rate, args.weight_decay, self.head_lr_multiplier, self.layer_decay
            )
            logger.info(f"{optimizer_cls.__name__}\n{groups_table(groups)}")
            options["params"] = groups
        elif self.head_lr_multiplier != 1 or self.layer_decay != 1:
            logger.warning(
                f"--optim {args.optim} chooses its parameters itself: --head_lr_multiplier and --layer_decay have no "
                "effect"
            )
        return optimizer_cls, options

    def create_scheduler(self, num_training_steps, optimizer=None):
        """`--lr_scheduler_type polynomial` is the published schedule; every other type is stock."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.POLYNOMIAL:
            steps = (num_training_steps, self.args.get_warmup_steps(num_training_steps))
            optimizer = self.optimizer if optimizer is None else optimizer
            if self.encoder_warmup_steps is None:
                self.lr_scheduler = poly_schedule(optimizer, *steps, **(self.args.lr_scheduler_kwargs or {}))
            else:
                self.lr_scheduler = two_stage_schedule(optimizer, *steps, self.encoder_warmup_steps)
            # As the stock method does, so that the next `train()` makes a new one; there is no public way.
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- loss -----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step, and what their loss is divided by, over all processes: the number of
        valid pixels, or what `QueryObjective.count` counts.

        The stock count takes every label but -100, so it would count ignored pixels.
        """
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(self.objective.count(batch["labels"]) for batch in batch_samples)
        if self.args.world_size > 1:
            count = self.accelerator.reduce(torch.as_tensor(count, device=device), reduction="sum")
        return batch_samples, count

    def upsampled_loss(self, outputs, labels, num_items_in_batch=None):
        """The objective's loss, for all of the step that `num_items_in_batch` counts.

        labels: int64 (B, H, W). The Trainer multiplies by the number of processes,
        over which DDP averages.
        """
        return poisoned(self.objective.loss(outputs, labels, num_items_in_batch))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As stock, with the inputs that the objective asks for."""
        inputs = self.objective.inputs(inputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As stock, under the eyes of `training.divergence`, without the names, which are not for the model, and with
        the colours that were left for the device."""
        inputs = finish_batch(self._prepare_inputs(inputs), self.protocol)
        self.divergence.begin(model, inputs, num_items_in_batch)
        inputs = {key: value for key, value in inputs.items() if key != "names"}
        loss = self.divergence.end(super().training_step(model, inputs, num_items_in_batch))
        self.run_loss.add(loss)
        return loss

    # The norm that clipping needs is computed in every step and given to no public hook before the weights change.
    # tests/training/test_divergence.py::test_the_trainer_still_asks_for_the_norm_before_the_step tells if that moves.
    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        return grad_norm if self.divergence.passes(self, grad_norm) else None

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None):
        """The stock loader with the collator for images of different sizes, and with all images.

        `--dataloader_drop_last` is about training; the stock loader would leave out images that are to be scored.
        """
        train_collator, self.data_collator = self.data_collator, collate_eval
        drops_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return deaf(super().get_eval_dataloader(eval_dataset))
        finally:
            self.data_collator, self.args.dataloader_drop_last = train_collator, drops_last

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As `Trainer.evaluate`, with the same weights and BatchNorm statistics in every process.

        DDP lets the running statistics of each process follow its own batches; those of process 0 are saved, so
        those are evaluated.
        """
        if self.args.world_size > 1:
            for buffer in self.accelerator.unwrap_model(self.model).buffers():
                torch.distributed.broadcast(buffer, src=0)
        with self.weight_average.applied(self.model), lost_workers_named(self):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        # Logged it was; returned, it would pass for a number.
        raise_on_nonfinite_losses(self, self.eval_dataset if eval_dataset is None else eval_dataset)
        return metrics

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Scores each image at its annotation's size and returns counts instead of logits.

        Returns:
            (None, (confusion int64 (n, C, C), mean cross-entropy float32 (n,), valid pixels int64 (n,), boundary
            counts int64 (n, 3, C), brightness float32 (n,), suspects float32 (n, FOUND, FIELDS), scores and targets
            of pixels), zeros (n,)). The last stands for labels, without which the Trainer would not call
            `compute_metrics`. Brightness is the mean of the pixels, 0 to 1; suspects are those of `checks.suspects`,
            looked for where `finds_suspects` is set and the network sees whole images, once; scores and targets are
            of `sampled_pixels` an image, see `models.calibration`.
        """
        inputs = self._prepare_inputs(inputs)
        num_labels = len(self.compute_metrics.id2label)
        matrices, mean_losses, valid_pixels, boundary, brightness, suspects = [], [], [], [], [], []
        samples = []
        missing = self._fewer_passes_than_others(inputs["pixel_values"]) if is_scattered(self) else 0
        with torch.inference_mode():
            for pixel_values, labels in zip(inputs["pixel_values"], inputs["labels"], strict=True):
                with self.compute_loss_context_manager(), exact_products():
                    logits = protocol_logits(model, pixel_values, self.protocol)
                prediction, loss_sum, valid = score_logits(
                    logits, labels[None], self.fused_ops, self.protocol.threshold
                )
                matrices.append(confusion_matrix(prediction, labels[None], num_labels))
                mean_losses.append((loss_sum / valid.clamp(min=1)).float())
                valid_pixels.append(valid)
                boundary.append(boundary_counts(prediction[0], labels, num_labels))
                brightness.append(self.protocol.brightness(pixel_values))
                looks = self.finds_suspects and isinstance(logits, torch.Tensor)
                found = suspected_errors(logits[0].float().softmax(0), labels) if looks else NOTHING
                suspects.append(torch.from_numpy(found).to(labels.device))
                samples.append(sample_pixels(logits, labels, prediction[0], self.sampled_pixels))
            for _ in range(missing):
                self._run_for_nothing(model, inputs["pixel_values"][0])
        counts = (torch.stack(matrices), torch.cat(mean_losses), torch.cat(valid_pixels), torch.stack(boundary))
        counts += (torch.stack(brightness), torch.stack(suspects), *map(torch.stack, zip(*samples, strict=True)))
        return None, counts, torch.zeros(len(matrices), device=matrices[0].device)

    def _fewer_passes_than_others(self, images) -> int:
        """How often the network runs more in another process than in this one, for the windows of a batch.

        Scattered weights are gathered by all processes together, so one that still had to would wait for ever. Asked
        beforehand, as all processes have to meet in the same order.
        """
        passes = torch.tensor(sum(count_passes(image, self.protocol) for image in images), device=self.args.device)
        torch.distributed.all_reduce(most := passes.clone(), torch.distributed.ReduceOp.MAX)
        return int(most - passes)

    def _run_for_nothing(self, model, image: torch.Tensor | list[torch.Tensor]) -> None:
        """One pass over the first window of an image, for what other processes need of this one's weights."""
        image = image if isinstance(image, torch.Tensor) else image[0]
        row, column = (self.protocol.windows(side)[0] for side in image.shape[-2:])
        with self.compute_loss_context_manager():
            model(pixel_values=image[None, :, row, column].to(self.args.device))

    def predict_ids(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """`models.inference.predict_ids` in the Trainer's precision: the prediction that `evaluate` scores."""
        with self.compute_loss_context_manager(), exact_products():
            return predict_ids(self.accelerator.unwrap_model(self.model).eval(), image, self.protocol, self.fused_ops)

    # ---- the run ---------------------------------------------------------------------------------------------------

    def get_train_dataloader(self):
        """The stock loader, whose workers outlive a signal; see `training.interruption`.

        Of a stream every process reads its own part. accelerate would let the workers of the first process read for
        all, or all of them read everything.
        """
        if not isinstance(self.train_dataset, StreamingDataset):
            return deaf(super().get_train_dataloader())
        args = self.args
        self.train_dataset.share_with(args.process_index, args.world_size)
        logger.info(self.train_dataset.describe_sharing(args.dataloader_num_workers))
        loader = DataLoader(
            self.train_dataset,
            args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        # As for a single process: moves batches to the device, and knows where an accumulation ends.
        return deaf(prepare_data_loader(loader, args.device, num_processes=1, process_index=0, put_on_device=True))

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`. A checkpoint with all steps behind it is taken as it is, for the stock loop would take
        one step more where they end in the middle of an epoch.

        Raises:
            cli_utils.Interrupted: see `training.interruption`.
        """
        if resume_from_checkpoint is None:
            self.run_loss = RunLoss(self.args.device)
            self.deadline.go_on_from(None)
            with lost_workers_named(self):
                return super().train(resume_from_checkpoint=None, **kwargs)
        record, args = read_record(resume_from_checkpoint), self.args
        self.run_loss = RunLoss(args.device, record["loss"], args.process_index, args.world_size)
        self.deadline.go_on_from(record.get("deadline"))
        *_, max_steps = self.set_initial_training_values(args, self.get_train_dataloader())
        if record["global_step"] >= self.deadline.last_step(max_steps):
            return self._take_trained(resume_from_checkpoint)
        if isinstance(self.train_dataset, StreamingDataset) and not args.ignore_data_skip:
            batches = record["global_step"] * args.gradient_accumulation_steps  # which the stock loop throws away
            self.train_dataset.skip_first(batches, args.per_device_train_batch_size)
        with lost_workers_named(self):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _take_trained(self, checkpoint: str) -> TrainOutput:
        """What training would return, from its last checkpoint; the model gets the weights that it would have."""
        self.state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
        _ResumedStateCallback().on_train_begin(self.args, self.state, self.control)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        else:
            self._load_weights(checkpoint)
        metrics = {"train_loss": self.run_loss.mean(self.state.global_step), "total_flos": self.state.total_flos}
        self.log(metrics)
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def log(self, logs, *args, **kwargs):
        """As `Trainer.log`, with the losses of the whole run in the place of those since the last resume."""
        if "loss" in logs:
            logs["loss"] = self.run_loss.log(self.state.global_step)
        if "train_loss" in logs:
            logs["train_loss"] = self.run_loss.mean(self.state.global_step)
        super().log(logs, *args, **kwargs)

    def save_metrics(self, split, metrics, combined=True):
        """As `Trainer.save_metrics`, in files that are whole or not there."""
        if self.is_world_process_zero():
            save_results(self.args.output_dir, split, metrics)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    # Where a checkpoint is written, and when older ones go, is decided in two methods without a public hook.
    # tests/training/test_trainer.py::test_stock_trainer_still_saves_in_place tells when these two can go.
    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, NEW_RUN) if self.saves_aside else folder

    def _save_checkpoint(self, model, trial):
        """As the stock method, aside: with what the run is and with hashes, the checkpoint then moves in, whole, and
        only then older ones go.

        Raises:
            WriteError: it cannot be written.
        """
        args, state, loss = self.args, self.state, self.run_loss.state()
        folder = Path(args.output_dir)
        name = f"checkpoint-{state.global_step}"
        aside = folder / NEW_RUN / name
        with self._saving_aside(aside):
            super()._save_checkpoint(model, trial)
            best = folder / f"checkpoint-{state.best_global_step}"
            if best.name == name or best.is_dir():
                state.best_model_checkpoint = str(best)
            self.accelerator.wait_for_everyone()  # the random numbers of all are saved
            if args.should_save:
                state.save_to_json(str(aside / "trainer_state.json"))
                steps = {"global_step": state.global_step, "max_steps": state.max_steps}
                seal(aside, self.record | steps | {"loss": loss, "deadline": self.deadline.state()})
                move_in(folder, self.replaced)
                for later in checkpoints_after(folder, state.global_step):
                    logger.warning(f"{later}, of a later step of another course of this run, goes")
                    remove(later)
                rotate_checkpoints(str(folder), args.save_total_limit, state.best_model_checkpoint)
        self.replaced = ()
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _saving_aside(self, aside: Path) -> Iterator[None]:
        self.saves_aside = True
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, WriteError) as error:
            reason = write_failure(error, aside) if not isinstance(error, WriteError) else str(error).split(": ")[-1]
            if reason is None and not isinstance(error, SafetensorError) and "inline_container" not in str(error):
                raise
            remove(aside)
            raise WriteError(
                f"{aside.name} cannot be written to {self.args.output_dir} ({reason or one_line(error)})"
            ) from error
        finally:
            self.saves_aside = False

    def save_model(self, output_dir=None, _internal_call=False):
        """Saves the weights that are evaluated; in a checkpoint, those in training go beside them."""
        with self.weight_average.applied(self.model):
            check_weights(self)
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.weight_average.save_raw_weights(self.model, output_dir or self.args.output_dir)

    def _save(self, output_dir=None, state_dict=None):
        """With LoRA, the merged weights, which any program can load, and the adapters beside them."""
        model = self.accelerator.unwrap_model(self.model)
        super()._save(output_dir, merged_state_dict(model) if state_dict is None else state_dict)
        if self.args.should_save:
            save_adapters(model, output_dir or self.args.output_dir)

    def _load_weights(self, folder: str) -> None:
        model = self.accelerator.unwrap_model(self.model)
        saved = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
        check_finite(saved, folder)
        try:
            model.load_state_dict(with_adapters(saved, model, folder), strict=True)
        except RuntimeError as error:
            raise UserError(f"{folder} holds the weights of another model: {' '.join(str(error).split())}") from None
        logger.info(f"restored all {len(saved)} tensors from {folder}")

    # `save_pretrained` writes the key names of older transformers; the two methods below load the raw file without
    # mapping them back and only warn that nothing matched. Upstream: huggingface/transformers#43701, #48805 (open).
    # tests/training/test_trainer.py::test_stock_trainer_still_needs_the_override tells when they can go.
    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_weights(resume_from_checkpoint)
        self.weight_average.resume(self.model, resume_from_checkpoint)

    def _load_best_model(self):
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        best = self.state.best_model_checkpoint
        fault = fault_of(best)
        if fault:
            raise UserError(
                f"{best} holds the best model of this run, and {fault}; the last one that is whole is "
                f"{newest_checkpoint(self.args.output_dir)}: evaluate it with --model_name_or_path"
            )
        logger.info(f"best {self.args.metric_for_best_model} {self.state.best_metric:.4f}")
        self._load_weights(best)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """As the stock method; then the flags hold, not what was saved of them: learning rate, weight decay and so on.

        Raises:
            UserError: another learning rate, and a schedule that is no function of the step.
        """
        now = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        groups, scheduler = self.optimizer.param_groups, self.lr_scheduler
        for group, flags in zip(groups, now, strict=True):
            group.update(flags)
        if isinstance(scheduler, LambdaLR):
            step, rates = scheduler.last_epoch, [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(step)
            scheduler.load_state_dict(
                scheduler.state_dict() | {"base_lrs": rates, "_last_lr": [group["lr"] for group in groups]}
            )
            return
        trained_with = read_record(checkpoint).get("arguments", {})
        if trained_with.get("learning_rate", self.args.learning_rate) != self.args.learning_rate:
            raise UserError(
                f"--learning_rate is {self.args.learning_rate:g} and {checkpoint} was trained with "
                f"{trained_with['learning_rate']:g}; --lr_scheduler_type {self.args.lr_scheduler_type.value} cannot "
                "go on with a new one"
            )
