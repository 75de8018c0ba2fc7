"""What a run says while it trains: lines in a file, one bar on a terminal, and in both a line an evaluation."""

import logging
import re
import sys
from types import SimpleNamespace

import pytest

from cli_utils import set_up_logging
from training.display import Display, best_evaluation, duration

ARGS, CONTROL = None, None


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def course(display):
    """Four steps with two evaluations, as the Trainer tells of them, and one more at the end."""
    state = SimpleNamespace(global_step=0, max_steps=4, epoch=0.0, log_history=[], is_world_process_zero=True)
    display.on_train_begin(ARGS, state, CONTROL)
    for step, score in ((1, None), (2, 0.6), (3, None), (4, 0.5)):
        state.global_step, state.epoch = step, step / 2
        display.on_step_end(ARGS, state, CONTROL)
        display.on_log(ARGS, state, CONTROL, logs={"loss": 1 / step, "learning_rate": 6e-5, "grad_norm": 1.0})
        if score is not None:
            evaluation = {"eval_loss": 0.4, "eval_mean_iou": score, "eval_iou_wall": 0.1}
            for _ in range(3):
                display.on_prediction_step(ARGS, state, CONTROL, eval_dataloader=[1, 2, 3])
            state.log_history.append(evaluation | {"step": step})
            display.on_log(ARGS, state, CONTROL, logs=evaluation)
            display.on_evaluate(ARGS, state, CONTROL, metrics=evaluation)
    display.on_train_end(ARGS, state, CONTROL)
    display.on_log(ARGS, state, CONTROL, logs={"train_mean_iou": 0.9, "train_loss": 0.1})
    display.on_evaluate(ARGS, state, CONTROL, metrics={"train_mean_iou": 0.9})


@pytest.fixture
def screen(monkeypatch):
    """A function that makes standard error a terminal; pytest has its own until the test itself begins."""

    def open_it():
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        set_up_logging(tables=False, others=False)
        return terminal

    return open_it


def test_in_a_log_file_a_line_an_event(screen):
    screen = screen()
    course(Display(live=False))
    lines = [re.sub(r", \d+ s left|\| \d+ s left|, \d+ s$", "", line).rstrip() for line in screen.text.splitlines()]
    assert lines == [
        "step 1 of 4, loss 1.0000, learning rate 6e-05",
        "step 2 of 4, loss 0.5000, learning rate 6e-05",
        "step 2 of 4 | epoch 1 | loss 0.500, evaluation 0.400 | mean IoU 0.600 (the best so far)",
        "step 3 of 4, loss 0.3333, learning rate 6e-05",
        "step 4 of 4, loss 0.2500, learning rate 6e-05",
        "step 4 of 4 | epoch 2 | loss 0.250, evaluation 0.400 | mean IoU 0.500 (best 0.600 at step 2)",
        "4 steps trained",
    ]


def test_on_a_terminal_one_bar_at_a_time(screen):
    screen = screen()
    course(Display(live=True))
    assert "training" in screen.text and "evaluating" in screen.text
    assert "\x1b[A" not in screen.text  # no bar below another
    assert "loss=0.333, mean IoU=0.600" in screen.text
    written = [line for line in re.split("[\r\n]", screen.text) if " | epoch " in line]
    assert len(written) == 2


def test_tables_and_libraries_speak_when_asked(screen):
    screen = screen()

    def said(**options):
        screen.text = ""
        set_up_logging(**options)
        logging.getLogger("training.x").info("one line")
        logging.getLogger("training.x").info("a table\n1 2")
        record = logging.LogRecord("library", logging.INFO, "/lib/site-packages/a.py", 1, "theirs", (), None)
        logging.getLogger().handle(record)
        logging.getLogger().handle(logging.LogRecord("library", logging.WARNING, "/lib/a.py", 1, "odd", (), None))
        return screen.text.splitlines()

    assert said(tables=False, others=False) == ["one line", "warning (library): odd"]
    assert said() == ["one line", "a table", "1 2", "library: theirs", "warning (library): odd"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (119, "119 s"), (354, "5.9 min"), (11520, "3.2 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_best_evaluation():
    log = [{"loss": 1, "step": 1}, {"eval_mean_iou": 0.5, "step": 2}, {"eval_mean_iou": 0.4, "step": 4}]
    assert best_evaluation(log) == (0.5, 2) and best_evaluation([]) is None
