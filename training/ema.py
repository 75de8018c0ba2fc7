"""An exponential moving average of the weights, evaluated and saved in the place of the weights in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from cli_utils import UserError

# Beside the `model.safetensors` of a checkpoint, which holds the averaged weights. Needed to resume.
RAW_WEIGHTS_FILE = "raw_weights.safetensors"


def ema_decay_at(step: int, decay: float) -> float:
    """The decay for the weights of an optimizer step, counted from 0: it grows with the steps taken until `decay`.

    With a constant decay of 0.999 the first weights would still be most of the average after 500 steps.
    Source: `tf.train.ExponentialMovingAverage` of TensorFlow, `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage(TrainerCallback):
    """Averages the trained parameters of a model after each optimizer step, W ← d W + (1 - d) w, d = `ema_decay_at`.

    Buffers, BatchNorm's statistics among them, are not averaged. Each process keeps its own average; as DDP gives all
    the same weights, the averages are the same. `SegmentationTrainer` evaluates and saves within `applied`, so a
    checkpoint is the model that was evaluated, and `raw_weights.safetensors` in it is what training goes on from.

    Args:
        decay: 0 to 1; 0 means that nothing is averaged and every method does nothing.

    Raises:
        UserError: the decay is out of range.
    """

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise UserError(f"--ema_decay is {decay:g}; it must be at least 0 and below 1, as in 0.999")
        self.decay = decay
        self.averaged: AveragedModel | None = None  # while training

    def on_train_begin(self, args, state, control, model, **kwargs):
        if self.decay:
            if self.averaged is None:
                self._start(model)
            # With none averaged, the first update copies the weights.
            self.averaged.n_averaged.fill_(state.global_step)

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if self.decay:
            self.averaged.multi_avg_fn = get_ema_multi_avg_fn(ema_decay_at(state.global_step, self.decay))
            self.averaged.update_parameters(_trained(model))

    def on_train_end(self, args, state, control, model, **kwargs):
        if self.decay:
            best_was_loaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
            if not best_was_loaded:
                self._swap(model)
            self.averaged = None

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """While the context lasts, `model` has the averaged weights; outside training it has them anyway."""
        swap = self.averaged is not None
        if swap:
            self._swap(model)
        try:
            yield
        finally:
            if swap:
                self._swap(model)

    def save_raw_weights(self, model: nn.Module, folder: str) -> None:
        """Writes the weights in training to a checkpoint folder, during training."""
        if self.averaged is not None:
            raw = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
            save_file(raw, Path(folder) / RAW_WEIGHTS_FILE)

    def resume(self, model: nn.Module, folder: str) -> None:
        """Takes the average from a model loaded from a checkpoint, and gives it the weights in training.

        Raises:
            UserError: the checkpoint was written with averaging and there is none now, or the other way round, or with
                other parameters frozen.
        """
        file = Path(folder) / RAW_WEIGHTS_FILE
        if file.is_file() != bool(self.decay):
            raise UserError(
                f"{folder} was written {'with' if file.is_file() else 'without'} --ema_decay; resume it with the "
                "flags it was started with"
            )
        if not self.decay:
            return
        raw = load_file(file)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if raw.keys() != trained.keys():
            raise UserError(
                f"{file} holds {len(raw)} trained tensors, the model has {len(trained)}; resume it with the flags it "
                "was started with"
            )
        self._start(model)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(raw[name])

    def _start(self, model: nn.Module) -> None:
        # The parameters alone: a model in training cannot always be copied, and its buffers are not averaged.
        self.averaged = AveragedModel(_trained(model))

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        # In place, as DDP, compiled graphs and the optimizer hold on to the tensors.
        for parameter, average in zip(_trained(model), self.averaged.module, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def _trained(model: nn.Module) -> nn.ParameterList:
    return nn.ParameterList(parameter for parameter in model.parameters() if parameter.requires_grad)
