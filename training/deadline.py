"""An end in time: where steps take longer than was thought there are fewer of them, and the learning rate still comes
to the end of its schedule."""

import logging
import time
from functools import partial

import numpy as np
import torch
from accelerate.utils import broadcast
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from training.display import duration

logger = logging.getLogger(__name__)

CHECKS, FIRST_CHECK = 40, 10  # evenly spread over a run; and one after so many steps
LEAST_CHANGE, TOLD_CHANGE = 0.02, 0.1  # of the steps that are left; of all


class Deadline(TrainerCallback):
    """`--train_minutes`: looks at the clock now and then, and leaves as many steps as there is time for at the pace of
    the later half of those taken, evaluations included; never more than were planned.

    The learning rate goes through the rest of its schedule in them: after step t it is what the schedule has for step
    v(t) of the plan, where v is made of lines, the last of which ends at the plan's last step. A run that has time
    enough is the run that it would be without a deadline.

    Args:
        minutes: of training, all parts of an interrupted run together; None for no deadline.
    """

    def __init__(self, minutes: float | None = None):
        self.seconds = None if minutes is None else 60 * minutes
        self.begun = None
        self.go_on_from(None)

    def go_on_from(self, state: dict | None) -> None:
        """state: what `state()` returned in the run that is gone on with; None for a new one."""
        self.spent_before, self.knots = 0.0, None
        if self.seconds is None or state is None:
            return
        self.spent_before = state["spent"]
        if state["seconds"] == self.seconds:  # else the new time is divided anew
            self.knots = [tuple(knot) for knot in state["knots"]]

    def state(self) -> dict | None:
        """For a checkpoint, as JSON can hold it."""
        if self.seconds is None:
            return None
        return {"seconds": self.seconds, "spent": self.spent(), "knots": self.knots}

    def spent(self) -> float:
        """Seconds of training."""
        return self.spent_before + (0 if self.begun is None else time.monotonic() - self.begun)

    def last_step(self, planned: int) -> int:
        """The step after which training ends, as known now. planned: by the flags."""
        return self.knots[-1][0] if self.knots and self.knots[-1][1] == planned else planned

    def planned_step(self, step: int) -> float:
        """v(step)."""
        return step if len(self.knots) == 2 else float(np.interp(step, *zip(*self.knots, strict=True)))

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        if self.seconds is None:
            return
        self.begun = time.monotonic()
        self.seen = []  # (step, seconds spent), at the end of the first step and at each look
        planned, state.max_steps = state.max_steps, self.last_step(state.max_steps)
        if self.knots is None or self.knots[-1][1] != planned:
            self.knots = [(0, 0), (planned, planned)]
        self.told = state.max_steps
        if not isinstance(lr_scheduler, LambdaLR):
            logger.warning("--train_minutes: this learning rate does not follow where there is time for fewer steps")
            return
        # No objects of ours, as what they hold would be saved with the schedule.
        lr_scheduler.lr_lambdas = [partial(self._factor, factor) for factor in lr_scheduler.lr_lambdas]
        if len(self.knots) > 2:  # gone on with, at the rate that the flags alone would make
            for group, factor in zip(lr_scheduler.optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(lr_scheduler.last_epoch)

    def _factor(self, factor, step: int) -> float:
        return factor(self.planned_step(step))

    def on_step_end(self, args, state, control, **kwargs):
        if self.seconds is None or state.global_step >= state.max_steps:
            return
        if not self.seen:  # the first step, which is slower than others, is in no pace
            self.seen.append((state.global_step, self.spent()))
            return
        first = self.seen[0][0]
        if state.global_step != first + FIRST_CHECK and state.global_step % max(1, state.max_steps // CHECKS):
            return
        spent = self.spent()
        then, spent_then = max(one for one in self.seen if one[0] <= (first + state.global_step) / 2)
        pace = (spent - spent_then) / (state.global_step - then)
        self.seen.append((state.global_step, spent))
        planned, left = self.knots[-1][1], state.max_steps - state.global_step
        # One more step at least, as the Trainer has taken its decision on this one.
        fitting = state.global_step + max(1, int((self.seconds - spent) / max(pace, 1e-9)))
        fitting, pace = _of_main_process([min(planned, fitting), pace], args)
        fitting = int(fitting)
        if abs(fitting - state.max_steps) <= LEAST_CHANGE * left:
            return
        here = state.global_step, self.planned_step(state.global_step)
        self.knots = [knot for knot in self.knots[:-1] if knot[0] < here[0]] + [here, (fitting, planned)]
        state.max_steps = fitting
        if abs(fitting - self.told) > TOLD_CHANGE * planned or (fitting == planned) != (self.told == planned):
            self.told = fitting
            logger.warning(
                f"a step takes {pace:.2g} s, so there are {fitting:,} of {planned:,} steps, for training to end "
                f"within its {duration(self.seconds)} (--train_minutes); the learning rate follows"
                if fitting < planned
                else f"there is time for all {planned:,} steps now"
            )


def _of_main_process(numbers: list[float], args) -> list[float]:
    """The same numbers in all processes: those of the first one, whose clock counts."""
    if args.world_size == 1:
        return numbers
    return broadcast(torch.tensor(numbers, dtype=torch.float64, device=args.device)).tolist()
