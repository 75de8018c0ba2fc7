"""How EoMT is trained: masks that fade out of its attention, and a backbone whose learning rate starts after the rest.

Source: tue-mps/eomt, training/lightning_module.py and training/two_stage_warmup_poly_schedule.py.
"""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, TrainerCallback

from cli_utils import UserError
from models.configurations import is_eomt

POWER = 0.9


def annealing_phases(num_blocks: int, max_steps: int) -> list[tuple[int, int]]:
    """First and last step of the annealing of each block, as both published DINOv2 recipes have them.

    Training is `num_blocks` + 2 equal phases: none is annealed in the first, block i (from 0) in phase i + 1, and in
    the last all attention is without masks.
    """
    edges = [round(max_steps * phase / (num_blocks + 2)) for phase in range(1, num_blocks + 2)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def mask_chance(step: int, start: int, end: int) -> float:
    """The share of queries whose attention is masked in a block after so many steps: 1, falling to 0."""
    if step < start:
        return 1.0
    return 0.0 if step >= end else (1 - (step - start) / (end - start)) ** POWER


class MaskAnnealing(TrainerCallback):
    """Sets `attn_mask_probs` of an EoMT before training and after every step; nothing for other models.

    A function of the step alone, so that a run which goes on is the run that was not interrupted.

    Args:
        phases: of `annealing_phases`; None for these.
    """

    def __init__(self, phases: Sequence[tuple[int, int]] | None = None):
        self.phases = phases

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._set(model, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._set(model, state)

    def _set(self, model, state) -> None:
        chances = getattr(model, "attn_mask_probs", None)
        if chances is None:
            return
        phases = self.phases or annealing_phases(len(chances), state.max_steps)
        values = [mask_chance(state.global_step, *phase) for phase in phases]
        with torch.no_grad():
            chances.copy_(torch.tensor(values))


def two_stage_factor(
    step: int, max_steps: int, warmup_steps: int, encoder_warmup_steps: int, encoder: bool, power: float = POWER
) -> float:
    """What the learning rate is multiplied by: warm-up, then polynomial decay; the encoder starts after the rest.

    The rest warms up over `warmup_steps`. The encoder is still until then, and warms up over `encoder_warmup_steps`.
    """
    start = warmup_steps if encoder else 0
    warmup = encoder_warmup_steps if encoder else warmup_steps
    if step < start:
        return 0.0
    if step < start + warmup:
        return (step - start) / warmup
    left = max_steps - start - warmup
    return (1 - min(1.0, (step - start - warmup) / left)) ** power if left > 0 else 0.0


def find_phases(
    config: PretrainedConfig, starts: Sequence[int] | None, ends: Sequence[int] | None
) -> list[tuple[int, int]] | None:
    """`--mask_annealing_starts` and `_ends` as phases of the blocks; None where neither is given.

    Raises:
        UserError: one without the other, not a step for each block, a block that ends before it starts or before the
            one below it (its mask would live on in the next), or a model without masks in its attention.
    """
    if starts is None and ends is None:
        return None
    count = getattr(config, "num_blocks", None) if is_eomt(config) else None
    if count is None:
        raise UserError(f"--mask_annealing_starts and --mask_annealing_ends are for EoMT, not for {config.model_type}")
    if len(starts or ()) != count or len(ends or ()) != count:
        raise UserError(
            f"--mask_annealing_starts has {len(starts or ())} and --mask_annealing_ends {len(ends or ())} steps; this "
            f"model has {count} blocks with masks: give as many of each"
        )
    phases = list(zip(starts, ends, strict=True))
    if any(start >= end for start, end in phases) or list(ends) != sorted(ends):
        raise UserError(
            f"--mask_annealing_starts {' '.join(map(str, starts))} and --mask_annealing_ends "
            f"{' '.join(map(str, ends))}: every block must end after it starts, and none before the one below it"
        )
    return phases
