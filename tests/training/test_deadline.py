"""Training ends in time: fewer steps where they are slow, a learning rate that gets to its end, and nothing else."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from factories.runs import flags_for, make_dataset, save_tiny_config
from transformers import get_scheduler

import run_segmentation
from cli_utils import UserError
from training import deadline
from training.arguments import Arguments
from training.deadline import Deadline
from training.optimizer import poly_schedule

ARGS = SimpleNamespace(world_size=1)
PLANNED = 400


class Course:
    """Training as the Trainer does it, on a clock of its own; `rates` are those of the steps taken."""

    def __init__(self, monkeypatch, limit, make_schedule=poly_schedule):
        self.limit, self.now, self.rates = limit, 0.0, []
        monkeypatch.setattr(deadline.time, "monotonic", lambda: self.now)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        self.scheduler = make_schedule(self.optimizer, PLANNED, 40)
        self.state = SimpleNamespace(global_step=0, max_steps=PLANNED)

    def begin(self):
        self.limit.on_train_begin(ARGS, self.state, None, lr_scheduler=self.scheduler)
        return self

    def go(self, seconds, until=None):
        """Steps that take so many seconds, until a step or the end."""
        while self.state.global_step < min(until or PLANNED, self.state.max_steps):
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.now += seconds(self.state.global_step) if callable(seconds) else seconds
            self.optimizer.step()
            self.scheduler.step()
            self.state.global_step += 1
            self.limit.on_step_end(ARGS, self.state, None)
        return self


def cosine(optimizer, steps, warmup):
    return get_scheduler("cosine", optimizer, warmup, steps)


@pytest.mark.parametrize("make_schedule", [poly_schedule, cosine])
@pytest.mark.parametrize("minutes", [None, 10])
def test_a_run_with_time_enough_is_what_it_would_be_without(monkeypatch, make_schedule, minutes):
    plain = Course(monkeypatch, Deadline(), make_schedule).begin().go(1.0)
    limited = Course(monkeypatch, Deadline(minutes), make_schedule).begin().go(1.0)
    assert limited.rates == plain.rates and len(plain.rates) == PLANNED


@pytest.mark.parametrize("make_schedule", [poly_schedule, cosine])
@pytest.mark.parametrize(
    "seconds",
    [
        2.0,
        lambda step: 5.0 if step == 0 else 2.0,  # the first one, which compiles
        lambda step: 0.9 if step < 100 else 4.0,  # somebody else comes
        lambda step: 0.9 + 20 * (step % 40 == 39),  # evaluations
    ],
)
def test_slow_steps_are_fewer_and_the_rate_gets_to_its_end(monkeypatch, caplog, make_schedule, seconds):
    course = Course(monkeypatch, Deadline(6), make_schedule).begin().go(seconds)
    assert 0.9 * 360 <= course.now <= 1.07 * 360 and len(course.rates) < PLANNED
    changes = [abs(b - a) for a, b in zip(course.rates, course.rates[1:], strict=False)]
    assert max(changes) < 0.1 and course.rates[-1] < 0.04 and max(course.rates) > 0.85
    top = course.rates.index(max(course.rates))
    assert course.rates[top:] == sorted(course.rates[top:], reverse=True)
    assert 1 <= len(caplog.messages) <= 6 and "within its 6.0 min (--train_minutes)" in caplog.messages[0]


def test_steps_come_back_with_the_time_and_are_never_more_than_planned(monkeypatch, caplog):
    course = Course(monkeypatch, Deadline(7), poly_schedule).begin().go(5.0, until=20)
    assert course.state.max_steps < 120
    course.go(0.5)
    assert course.state.global_step == PLANNED and course.now < 420
    assert "all 400 steps now" in caplog.messages[-1]


def test_without_any_time_left_one_more_step_is_taken(monkeypatch):
    course = Course(monkeypatch, Deadline(0.1), poly_schedule).begin().go(60.0)
    assert course.state.global_step == course.state.max_steps == deadline.FIRST_CHECK + 1 or course.now < 1e3


def test_a_run_that_goes_on_takes_the_steps_and_rates_that_it_would_have(monkeypatch):
    whole = Course(monkeypatch, Deadline(6)).begin().go(2.0)
    first = Course(monkeypatch, Deadline(6)).begin().go(2.0, until=100)
    kept = json.loads(json.dumps(first.limit.state()))
    second = Course(monkeypatch, Deadline(6))
    second.limit.go_on_from(kept)
    assert second.limit.last_step(PLANNED) == first.state.max_steps < PLANNED
    assert second.limit.last_step(PLANNED + 1) == PLANNED + 1  # another plan
    for _ in range(100):
        second.optimizer.step()
        second.scheduler.step()
    second.state.global_step = 100
    second.begin()
    second.go(2.0)
    assert second.now <= 360 - 200 + 10
    assert first.rates + second.rates == pytest.approx(whole.rates, abs=0.02)
    other = Deadline(12)
    other.go_on_from(kept)
    assert other.last_step(PLANNED) == PLANNED and other.spent() == 200


def test_what_it_does_not_go_with():
    argv = ["--dataset_dir", "x", "--output_dir", "y", "--do_train", "--use_cpu", "--train_minutes"]
    with pytest.raises(UserError, match="more than 0"):
        Arguments.parse([*argv, "0"])
    with pytest.raises(UserError, match="--mask_annealing_starts"):
        Arguments.parse([*argv, "1", "--mask_annealing_starts", "1", "--mask_annealing_ends", "2"])


def test_a_real_run_ends_in_time_and_is_finished_then(tmp_path, capsys, monkeypatch):
    looks = itertools.count()
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: next(looks)))  # a second each
    data = make_dataset(tmp_path / "set")
    argv = [*flags_for(data, save_tiny_config(tmp_path)), "--output_dir", str(tmp_path / "run"), "--do_train"]
    argv += ["--train_minutes", "0.2", "--max_steps", "100", "--lr_scheduler_type", "polynomial"]
    run_segmentation.main([*argv, "--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "9"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] < 50
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert rates[0] > 0.99e-2 and rates[-1] < 3e-3
    assert "12 of 100 steps, for training to end within its 12 s (--train_minutes)" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(UserError, match="nothing is left to do"):
        run_segmentation.main([*argv, "--eval_strategy", "no", "--resume_from_checkpoint", "last"])
