"""The first loss or gradient that is not finite stops a run, says where it comes from, and is kept to be repeated.

    python -m training.divergence outputs/mine/nonfinite.pt     # computes that batch again and names the culprits

Weights and scores that are not finite are refused as well, before anything is written.
"""

import json
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

from cli_utils import UserError, WriteError, one_line, parse_arguments, run_cli, shorten, written_aside
from data_utils import names_of_batch
from models.adapters import encoder_modules, freeze_encoder, merged_state_dict
from models.fused_segformer import fuse_model
from models.inference import find_device, two_class_logits
from models.loading import check_finite
from models.losses import segmentation_loss
from training.checkpoints import newest_checkpoint

logger = logging.getLogger(__name__)

DUMP_FILE = "nonfinite.pt"
SKIPPED = "skipped_steps"  # in the log, and so in the state of a checkpoint, and in the results


def poisoned(loss: Tensor) -> Tensor:
    """The loss, whose gradient is NaN where it is not finite itself.

    -log 0 is infinite and has a finite gradient. With this, the gradient's norm alone tells whether a step is sound,
    and as gradients are summed over processes, it tells all of them without a message of its own.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, float("nan"))


@dataclass
class _Seen:
    """A batch that went through the model in this step, and what is needed to repeat it."""

    inputs: dict[str, Tensor]
    num_items: Tensor | int | None
    random_states: dict[str, Tensor]
    loss: Tensor | None = None


class DivergenceGuard:
    """Looks at every optimizer step of a `SegmentationTrainer` before the weights change.

        guard.begin(model, inputs, num_items)       # before each batch of the step
        loss = guard.end(loss)                      # after it
        guard.passes(trainer, gradient_norm)        # once, with the norm over all batches and processes

    It costs one look at a number on the device for a step, which stands in for the one of
    `logging_nan_inf_filter`.

    Args:
        allowed: steps that may be left out, the weights and statistics staying as they were, before the run stops.

    Attributes:
        keeps_dump: whether the batch is written to the output folder.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self.keeps_dump = True
        self._seen: list[_Seen] = []
        self._buffers: list[Tensor] = []
        self._last_loss: Tensor | None = None

    def begin(self, model: nn.Module, inputs: dict[str, Tensor], num_items: Tensor | int | None) -> None:
        if not self._seen and self.allowed:
            # What is not finite gets into BatchNorm's statistics before anybody knows.
            self._buffers = [buffer.clone() for buffer in model.buffers()]
        self._seen.append(_Seen(dict(inputs), num_items, _random_states(inputs["labels"].device)))

    def end(self, loss: Tensor) -> Tensor:
        """The loss to be logged: where it is not finite, that of the batch before, as the step will be left out."""
        self._seen[-1].loss = loss
        if not self.allowed:
            return loss
        before = torch.zeros_like(loss) if self._last_loss is None else self._last_loss
        self._last_loss = torch.where(loss.isfinite(), loss, before)
        return self._last_loss

    def passes(self, trainer, gradient_norm: Tensor | float | None) -> bool:
        """Whether the step is sound; if not, its gradients are dropped and nothing changes.

        Raises:
            UserError: it is not, and no more steps may be left out. The same in every process.
        """
        seen, self._seen = self._seen, []
        if gradient_norm is None or math.isfinite(gradient_norm):
            return True
        bad = [batch for batch in seen if not batch.loss.isfinite()]
        names = [name for batch in bad or seen for name in names_of_batch(batch.inputs["names"])]
        # Of all processes: the gradient is that of all, so all are here.
        reports = gather_object([_Report(trainer.args.process_index, [float(batch.loss) for batch in bad], names)])
        guilty = [report for report in reports if report.losses] or reports
        scaler = trainer.accelerator.scaler
        if scaler is not None and not guilty[0].losses and scaler.get_scale() > 1:
            return False  # an overflow of scaled float16 gradients: the scaler leaves the step out and scales less

        skipped = skipped_steps(trainer.state) + 1
        what = _describe(trainer, guilty, gradient_norm)
        if self.keeps_dump and skipped in (1, self.allowed + 1) and not is_scattered(trainer):
            file = Path(trainer.args.output_dir) / DUMP_FILE
            written = trainer.args.process_index == guilty[0].process and _save(file, trainer, bad or seen)
            if any(gather_object([written])):
                what += f"; `python -m training.divergence {file}` repeats it and names the layer"
        if skipped > self.allowed:
            before = f" (steps left out before: {self.allowed})" if self.allowed else ""
            raise UserError(
                f"training diverged{before} in {what}; {_last_checkpoint(trainer)}. A lower --learning_rate or more "
                "--warmup_steps usually help; where single images are to blame, mend them, or leave out such steps "
                "with --skip_nonfinite 10"
            )
        logger.warning(f"left out, {skipped} of {self.allowed} that may be: {what}")
        trainer.model.zero_grad()  # parameters without a gradient are passed over by every optimizer
        for buffer, before in zip(trainer.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        trainer.log({SKIPPED: skipped})
        return False


def skipped_steps(state) -> int:
    """How many steps of a run were left out, those before it was resumed among them."""
    return max((entry.get(SKIPPED, 0) for entry in state.log_history), default=0)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


@dataclass
class _Report:
    """What a process has to say of a step that is not finite: its losses that are not, and whose they may be."""

    process: int
    losses: list[float]
    names: list[str]


def _describe(trainer, guilty: list[_Report], gradient_norm: Tensor | float) -> str:
    losses = [loss for report in guilty for loss in report.losses]
    value = f"the loss is {losses[0]:g}" if losses else f"the gradient's norm is {float(gradient_norm):g}"
    names = shorten([name for report in guilty for name in report.names], 8)
    processes = shorten((str(report.process) for report in guilty), 8)
    return (
        f"step {trainer.state.global_step + 1} of {trainer.state.max_steps}: {value} at a learning rate of "
        f"{trainer.optimizer.param_groups[0]['lr']:g}, with the images {names}"
        f"{f' of process {processes}' if trainer.args.world_size > 1 else ''}"
    )


def _last_checkpoint(trainer) -> str:
    checkpoint = newest_checkpoint(trainer.args.output_dir)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"


def is_scattered(trainer) -> bool:
    """Whether no process has the whole model."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


# ---- weights and scores ---------------------------------------------------------------------------------------------


def check_weights(trainer) -> None:
    """Raises UserError instead of letting weights that are not finite be saved."""
    if is_scattered(trainer):
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        check_finite(model.state_dict(), f"the model after step {trainer.state.global_step}")
    except UserError as error:
        raise UserError(f"not saved: {error} ({_last_checkpoint(trainer)})") from None


def raise_on_nonfinite_losses(trainer, dataset) -> None:
    """Raises UserError, in every process, where the evaluation that ended last had losses that are not finite."""
    losses = trainer.compute_metrics.losses
    bad = np.flatnonzero(~np.isfinite(losses)).tolist()
    if bad:
        names = dataset.split["name"] if hasattr(dataset, "split") else list(range(len(losses)))
        raise UserError(
            f"evaluation: the loss is not finite on {len(bad)} of {len(losses)} images "
            f"({shorten(str(names[i]) for i in bad)}), so the model has diverged and has no score "
            f"({_last_checkpoint(trainer)}); train with a lower --learning_rate"
        )


# ---- repeating it ---------------------------------------------------------------------------------------------------


def _save(file: Path, trainer, batches: list[_Seen]) -> bool:
    """Writes what `replay` needs, all tensors and plain values, so that reading it runs no code; whether it could."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    content = {
        "step": trainer.state.global_step + 1,
        "config": model.config.to_json_string(use_diff=False),
        "state_dict": {key: tensor.cpu() for key, tensor in merged_state_dict(model).items()},
        "fused_ops": trainer.fused_ops,
        "encoder_frozen": not encoder_modules(model)[0].training,
        "losses": list(trainer.losses),
        "class_weights": trainer.class_weights,
        "label_smoothing": trainer.args.label_smoothing_factor,
        # Half precision that was asked for and that the device does not have is no half precision.
        "mixed_precision": trainer.accelerator.mixed_precision if trainer.accelerator.native_amp else "no",
        "batches": [
            {
                "names": names_of_batch(batch.inputs["names"]),
                "pixel_values": batch.inputs["pixel_values"].cpu(),
                "labels": batch.inputs["labels"].cpu(),
                "num_items": None if batch.num_items is None else int(batch.num_items),
                "loss": float(batch.loss),
                "random_states": batch.random_states,
            }
            for batch in batches
        ],
    }
    try:
        with written_aside(file) as aside:
            torch.save(content, aside)
    except WriteError as error:
        logger.error(str(error))
        return False
    return True


@dataclass
class ReplayArguments:
    """Which batch, and where."""

    file: str = field(default=None, metadata={"help": f"the {DUMP_FILE} that a run left"})
    device: str = field(default="cpu", metadata={"help": "where to compute it, as in cuda"})


def replay(file: str | os.PathLike, device: str | torch.device = "cpu") -> list[str]:
    """Computes loss and gradient of the batches in a dump again, with the weights and random numbers of that step.

    A model with `--sync_bn` takes its statistics over this process's images alone here.

    Returns:
        A few sentences: the losses, the first module whose output is not finite and the images that it was not finite
        for; or, where all outputs are finite, the gradients that are not; or that it does not repeat.

    Raises:
        UserError: the file is not there, or is none of these.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        config = AutoConfig.for_model(**json.loads(content["config"]))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a run that diverged leaves one in its --output_dir") from None
    except Exception as error:  # whatever is not such a file fails in a way of its own
        raise UserError(f"{file} cannot be read as a batch that a run left: {one_line(error)}") from error
    model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
    model.load_state_dict(content["state_dict"])
    if content["fused_ops"]:
        fuse_model(model)
    model.to(device).train()
    if content["encoder_frozen"]:
        freeze_encoder(model)
    lines = [f"step {content['step']}, {content['mixed_precision']} mixed precision then, on {device} now"]
    # Not the statistics of BatchNorm, which this very step may have spoilt.
    broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if broken:
        lines.append(f"{len(broken)} tensors of the model were not finite already: {shorten(broken)}")
    for batch in content["batches"]:
        lines += _replay_batch(model, batch, content, torch.device(device))
    return lines


def _replay_batch(model: PreTrainedModel, batch: dict, content: dict, device: torch.device) -> list[str]:
    names, lines = batch["names"], []
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(content["mixed_precision"])
    labels, weight = batch["labels"].to(device), content["class_weights"]
    options = {
        "names": content["losses"],
        "weight": None if weight is None else weight.to(device),
        "num_items_in_batch": batch["num_items"],
        "label_smoothing": content["label_smoothing"],
        "fused_ops": content["fused_ops"],
    }

    def forward() -> Tensor:
        for kind, state in batch["random_states"].items():
            if kind == "cpu":
                torch.set_rng_state(state)
            elif kind == device.type:
                torch.get_device_module(device).set_rng_state(state, device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return two_class_logits(model(pixel_values=batch["pixel_values"].to(device)).logits)

    logits = forward()
    loss = segmentation_loss(logits, labels, **options)
    lines.append(f"batch of {shorten(names, 8)}: loss {batch['loss']:g} then, {loss.item():g} now")
    # In a pass of its own: a fused head with hooks on its modules computes as stock does, and draws other dropout.
    first = _FirstNonFinite(model, names)
    with torch.no_grad():
        forward()
    first.remove()
    if first.sentence:
        return [*lines, first.sentence]
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    guilty, broken = [], {}
    for i, name in enumerate(names):
        image_loss = poisoned(segmentation_loss(logits[i : i + 1], labels[i : i + 1], **options))
        gradients = torch.autograd.grad(image_loss, parameters.values(), retain_graph=True, allow_unused=True)
        # By their norms, as the run judged them: squares of finite numbers may be too large.
        norms = {key: g.norm() for key, g in zip(parameters, gradients, strict=True) if g is not None}
        bad = [key for key, norm in norms.items() if not norm.isfinite()]
        if bad:
            broken |= dict.fromkeys(bad)
            guilty.append(name)
    if not guilty:
        return [*lines, "every output and every gradient is finite here: it does not repeat"]
    return [*lines, f"every output is finite, but not the gradient of {shorten(broken)}, for {shorten(guilty, 8)}"]


class _FirstNonFinite:
    """Hooks that find the module that is the first to have an output that is not finite, and for which images."""

    def __init__(self, model: nn.Module, names: list[str]):
        self.names = names
        self.sentence = ""
        self._hooks = [
            module.register_forward_hook(lambda module, inputs, output, name=name: self._look(name, inputs, output))
            for name, module in model.named_modules()
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, module: str, inputs: tuple, output) -> None:
        if self.sentence or not isinstance(output, Tensor):
            return
        output = output.detach()  # what `isfinite` keeps would confuse where activations are computed again
        if output.isfinite().all():
            return
        guilty = self.names
        if output.ndim and len(output) % len(guilty) == 0:  # windows of an image follow each other
            sound = output.isfinite().reshape(len(guilty), -1).all(dim=1).tolist()
            guilty = [name for name, is_sound in zip(guilty, sound, strict=True) if not is_sound]
        self.sentence = f"the first output that is not finite is that of {module}, for {shorten(guilty, 8)}"
        if inputs and isinstance(inputs[0], Tensor):
            self.sentence += f"; what goes into it reaches {inputs[0].detach().abs().max().item():.3g}"


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReplayArguments,), argv, __doc__, positional="file")
    if args.file is None:
        raise UserError(f"which batch? give the {DUMP_FILE} that a run left")
    print("\n".join(replay(args.file, find_device(args.device))))


if __name__ == "__main__":
    run_cli(main)
