"""What a run says while it trains: on a terminal one progress bar at a time, in a log file lines alone; a line an
evaluation in both."""

import logging
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class Display(TrainerCallback):
    """In the place of the Trainer's own displays, which print every number that they are given.

    live: draw bars; without, the log has a line for each of the Trainer's log events.
    """

    def __init__(self, live: bool):
        self.live = live
        self.is_training = False
        self.bar = None
        self.shown = {}  # beside the bar

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_training = state.is_world_process_zero
        self.begun, self.first_step = time.monotonic(), state.global_step
        self._draw_steps(state)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.total = state.max_steps  # a deadline may change it
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not (self.live and state.is_world_process_zero):
            return
        if self.bar is None or self.bar.desc != "evaluating: ":
            self._close()
            self.bar = tqdm(total=len(eval_dataloader), desc="evaluating", unit="batch", leave=False)
        self.bar.update(1)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._close()
        if self.is_training:
            logger.info(self._evaluated(state, metrics or {}))
            self._draw_steps(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self.is_training or "loss" not in (logs or {}):
            return
        self.shown["loss"] = f"{logs['loss']:.3f}"
        if self.bar is not None:
            self.bar.set_postfix(self.shown)
        elif not self.live:
            words = [f"step {state.global_step:,} of {state.max_steps:,}", f"loss {logs['loss']:.4f}"]
            words += [f"learning rate {logs['learning_rate']:.3g}"] * ("learning_rate" in logs)
            logger.info(", ".join([*words, self._time_left(state)]))

    def on_train_end(self, args, state, control, **kwargs):
        self._close()
        if self.is_training:
            logger.info(f"{state.global_step:,} steps trained, {duration(time.monotonic() - self.begun)}")
        self.is_training = False

    def _evaluated(self, state, metrics: dict) -> str:
        score, best = metrics.get("eval_mean_iou"), best_evaluation(state.log_history)
        words = [f"step {state.global_step:,} of {state.max_steps:,}", f"epoch {state.epoch or 0:.4g}"]
        losses = [f"loss {self.shown['loss']}"] if "loss" in self.shown else []
        losses += [f"evaluation {metrics['eval_loss']:.3f}"] if "eval_loss" in metrics else []
        words += [", ".join(losses)] * bool(losses)
        if score is not None:
            self.shown["mean IoU"] = f"{score:.3f}"
            words.append(f"mean IoU {score:.3f}{' (the best so far)' if best is None or score >= best[0] else ''}")
            if best is not None and score < best[0]:
                words[-1] += f" (best {best[0]:.3f} at step {best[1]:,})"
        return " | ".join([*words, self._time_left(state)])

    def _time_left(self, state) -> str:
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.begun) / max(1, done) * (state.max_steps - state.global_step)
        return f"{duration(left)} left" if done else ""

    def _draw_steps(self, state) -> None:
        if self.live and self.is_training:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", leave=False
            )
            self.bar.set_postfix(self.shown)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def is_live() -> bool:
    """Whether somebody watches: standard error is a terminal."""
    return sys.stderr.isatty()


def best_evaluation(log: Sequence[dict]) -> tuple[float, int] | None:
    """(mean IoU, step) of the best evaluation in a log; None where there is none."""
    scores = [(entry["eval_mean_iou"], entry["step"]) for entry in log if "eval_mean_iou" in entry]
    return max(scores, key=lambda score: score[0], default=None)


def duration(seconds: float) -> str:
    """ "12 s", "5.9 min", "3.2 h"."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min" if minutes >= 2 else f"{seconds:.0f} s"
