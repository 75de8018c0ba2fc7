"""EoMT's annealing and schedule against the published steps and formulas."""

import pytest
import torch
import transformers as T
from factories.architectures import universal_configs
from torch import nn
from transformers import TrainerControl, TrainerState

from cli_utils import UserError
from models.configurations import new_model
from training.annealing import MaskAnnealing, annealing_phases, find_phases, mask_chance, two_stage_factor
from training.optimizer import two_stage_schedule

# tue-mps/eomt, configs/dinov2/ade20k/semantic and cityscapes/semantic: steps, and where blocks begin and end.
PUBLISHED = {
    39153: ([6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600]),
    19795: ([3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585]),
}


@pytest.mark.parametrize("steps", PUBLISHED)
def test_phases_are_the_published_ones(steps):
    for (start, end), *expected in zip(annealing_phases(4, steps), *PUBLISHED[steps], strict=True):
        assert abs(start - expected[0]) < 0.01 * steps and abs(end - expected[1]) < 0.01 * steps


def test_chances_at_the_start_in_the_middle_and_at_the_end():
    assert [mask_chance(step, 10, 20) for step in (0, 9, 10, 20, 30)] == [1, 1, 1, 0, 0]
    assert mask_chance(15, 10, 20) == pytest.approx(0.5**0.9)
    assert mask_chance(0, 5, 5) == 1 and mask_chance(5, 5, 5) == 0


@pytest.mark.parametrize("phases", [None, [(2, 4), (4, 8)]])
def test_the_callback_follows_the_step_alone(phases):
    model = new_model(universal_configs()["eomt"])
    callback, state = MaskAnnealing(phases), TrainerState(max_steps=12)
    found = {}
    for step in (0, 3, 6, 12):
        state.global_step = step
        model.attn_mask_probs.fill_(0.3)  # as a resumed or finished run may leave it
        (callback.on_train_begin if step == 6 else callback.on_step_end)(None, state, TrainerControl(), model=model)
        found[step] = model.attn_mask_probs.tolist()
    first, second = phases or [(3, 6), (6, 9)]
    for step, chances in found.items():
        assert chances == pytest.approx([mask_chance(step, *first), mask_chance(step, *second)])
    assert found[0] == [1, 1] and found[12] == [0, 0]
    callback.on_step_end(None, state, TrainerControl(), model=nn.Linear(1, 1))  # nothing for other models


@pytest.mark.parametrize(
    ("step", "head", "encoder"),
    [(0, 0, 0), (50, 0.5, 0), (100, 1, 0), (150, (1 - 50 / 900) ** 0.9, 0.25), (300, (7 / 9) ** 0.9, 1), (1000, 0, 0)],
)
def test_two_stages(step, head, encoder):
    """1,000 steps: the head warms up over 100, then the backbone over 200."""
    for is_encoder, expected in ((False, head), (True, encoder)):
        assert two_stage_factor(step, 1000, 100, 200, is_encoder) == pytest.approx(expected, abs=1e-12)


def test_schedule_of_groups():
    groups = [
        {"name": name, "params": [nn.Parameter(torch.zeros(1))], "lr": 2.0} for name in ("encoder layer 1", "head")
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = two_stage_schedule(optimizer, 10, 2, 4)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [rate for rate, _ in rates] == [0, 0, 0, 0.5]
    assert [rate for _, rate in rates] == pytest.approx([0, 1, 2, 2 * (7 / 8) ** 0.9])


@pytest.mark.parametrize(
    ("kind", "starts", "ends", "message"),
    [
        ("mask2former", [1], [2], "are for EoMT, not for mask2former"),
        ("eomt", [1], [2], "has 1 and --mask_annealing_ends 1 steps; this model has 2 blocks"),
        ("eomt", [1, 2], None, "has 2 and --mask_annealing_ends 0 steps"),
        ("eomt", [1, 5], [2, 5], "every block must end after it starts"),
        ("eomt", [1, 1], [9, 5], "none before the one below it"),
    ],
)
def test_steps_that_do_not_fit(kind, starts, ends, message):
    with pytest.raises(UserError, match=message):
        find_phases(universal_configs()[kind], starts, ends)


def test_steps_that_fit():
    assert find_phases(universal_configs()["eomt"], [0, 5], [3, 8]) == [(0, 3), (5, 8)]
    assert find_phases(T.SegformerConfig(), None, None) is None
