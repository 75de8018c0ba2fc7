"""SIGTERM, Ctrl-C and kill -9 at chosen and at random moments: what is saved, and what becomes of the run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from factories.runs import ForkedRun, flags_for, make_dataset, save_tiny_config
from safetensors.torch import load_file

import check_dataset
import predict
import run_segmentation
from training.checkpoints import newest_checkpoint
from training.interruption import Interruption
from training.output_folder import NEW_RUN
from training.trainer import SegmentationTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
TIMING = ("runtime", "per_second", "preparation_time")
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return make_dataset(folder / "set", train=8), save_tiny_config(folder)


@pytest.fixture(scope="module")
def flags(inputs):
    """Twelve steps in three epochs, with an evaluation and a checkpoint after each epoch."""
    return [*flags_for(*inputs), "--do_train", "--do_eval"]


@pytest.fixture(scope="module")
def whole_with(flags, tmp_path_factory):
    """(*options) → the folder of the run that nobody interrupted, made once for each."""

    @cache
    def whole_with(*options):
        folder = tmp_path_factory.mktemp("whole") / "run"
        run_segmentation.main([*flags, *options, "--output_dir", str(folder)])
        return folder

    return whole_with


@pytest.fixture(scope="module")
def whole(whole_with):
    return whole_with()


def slowly(argv):
    """The script with steps long enough for a signal to come in one."""
    step = SegmentationTrainer.training_step

    def slow_step(self, *args, **kwargs):
        time.sleep(0.05)
        return step(self, *args, **kwargs)

    SegmentationTrainer.training_step = slow_step  # in a process of its own
    return run_segmentation.main(argv)


def waiting_at(step):
    """The script as it waits in the middle of a step for a signal to be noted, however slow or fast the machine is."""

    def main(argv):
        noted, train_step, awaited = [], SegmentationTrainer.training_step, Interruption.awaited

        def await_signals(self):
            noted.append(self)
            return awaited(self)

        def training_step(self, *args, **kwargs):
            if self.state.global_step + 1 == step:
                print("waiting", flush=True)
                while not noted[0].signum:
                    time.sleep(0.001)
            return train_step(self, *args, **kwargs)

        Interruption.awaited, SegmentationTrainer.training_step = await_signals, training_step  # in its own process
        return run_segmentation.main(argv)

    return main


def evaluating_for_ever(argv):
    """The script with an evaluation that no signal comes too late for."""

    def evaluate(self, *args, **kwargs):
        print("evaluating", flush=True)
        time.sleep(600)

    SegmentationTrainer.evaluate = evaluate  # in a process of its own
    return run_segmentation.main(argv)


def steps_logged(run):
    return run.text().count(", loss ")


def logged(folder):
    """Every logged number, but for times."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{key: value for key, value in entry.items() if not key.endswith(TIMING)} for entry in log]


def assert_equal_runs(one, other):
    for name in ("model.safetensors", "confusion_matrix.npy", "eval_results.json"):
        first, second = ((folder / name) for folder in (one, other))
        if name.endswith("json"):
            first, second = (
                {key: value for key, value in json.loads(file.read_text()).items() if not key.endswith(TIMING)}
                for file in (first, second)
            )
            assert first == second
        else:
            assert first.read_bytes() == second.read_bytes()
    assert logged(one) == logged(other)
    newest = [Path(newest_checkpoint(folder)) for folder in (one, other)]
    assert newest[0].name == newest[1].name
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in newest]
    for key, moments in states[0].items():
        assert all(torch.equal(moments[name], states[1][key][name]) for name in moments)
    for name in ("raw_weights.safetensors", "model.safetensors"):
        if (newest[0] / name).exists():
            tensors = [load_file(folder / name) for folder in newest]
            assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def nothing_is_finished(folder):
    return not [name for name in ("train_results.json", "model.safetensors", "README.md") if (folder / name).exists()]


# ---- a signal, and on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "step", "options"),
    [
        (signal.SIGTERM, 2, []),  # in the middle of an epoch
        (signal.SIGINT, 2, []),
        (signal.SIGTERM, 4, []),  # at the end of one, where an evaluation is due
        (signal.SIGINT, 6, ["--dataloader_num_workers", "2"]),
        (signal.SIGTERM, 6, ["--dataloader_num_workers", "2"]),
        (signal.SIGINT, 5, ["--save_strategy", "no", "--load_best_model_at_end", "False"]),
        (signal.SIGTERM, 3, ["--enable_jit_checkpoint", "True", "--ema_decay", "0.9"]),
    ],
    ids=str,
)
def test_a_signal_saves_and_the_run_that_goes_on_is_the_same(flags, whole_with, tmp_path, signum, step, options):
    whole, folder = whole_with(*options), tmp_path / "run"
    argv = [*flags, *options, "--output_dir", folder]
    run = ForkedRun(argv, tmp_path / "log", waiting_at(step))
    assert run.wait_for(lambda: "waiting" in run.text())
    run.send(signum, everybody=True)  # its workers, too
    assert run.wait() == CODES[signum]
    log = run.text()
    assert "Traceback" not in log
    last = log.splitlines()[-1]
    assert last.startswith("interrupted after step") and "--resume_from_checkpoint last" in last
    assert nothing_is_finished(folder) and not (folder / NEW_RUN).exists() and not (folder / ".lock").exists()
    assert Path(newest_checkpoint(folder)).name == f"checkpoint-{step}" and f"checkpoint-{step}" in last
    run_segmentation.main([*map(str, argv), "--resume_from_checkpoint", "last"])
    if "no" in options:  # the one that was stopped has a checkpoint
        shutil.rmtree(newest_checkpoint(folder))
        assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert logged(folder) == logged(whole)
    else:
        assert_equal_runs(folder, whole)


def test_a_worker_that_is_killed_is_named_with_the_way_on(flags, tmp_path):
    """As by a system that runs out of memory."""
    folder = tmp_path / "run"
    flags = [*flags, "--num_train_epochs", "1000", "--dataloader_num_workers", "2", "--output_dir", folder]
    run = ForkedRun(flags, tmp_path / "log", slowly)
    assert run.wait_for(lambda: newest_checkpoint(folder, read_all=False))
    while run.poll() is None:  # those of an evaluation come and go
        with suppress(psutil.NoSuchProcess):
            for worker in psutil.Process(run.pid).children():
                worker.kill()
        time.sleep(0.05)
    assert run.returncode == 2, run.text()[-3000:]
    last = run.text().splitlines()[-1]
    assert re.match(
        r"error: a worker that loads images was killed after step \d+ \(process [\d, ]+(, Killed)?\), ", last
    )
    assert "--dataloader_num_workers fewer than 2" in last and "Traceback" not in run.text()
    assert f"to go on from {newest_checkpoint(folder)}: --resume_from_checkpoint last" in last


def test_a_second_signal_leaves_at_once(flags, tmp_path):
    run = ForkedRun([*flags, "--num_train_epochs", "1000", "--output_dir", tmp_path / "run"], tmp_path / "log", slowly)
    assert run.wait_for(lambda: steps_logged(run) >= 2)
    os.kill(run.pid, signal.SIGSTOP)  # so that no step ends in between
    run.send(signal.SIGINT)
    run.send(signal.SIGTERM)
    os.kill(run.pid, signal.SIGCONT)
    assert run.wait() in CODES.values()
    assert "Traceback" not in run.text() and nothing_is_finished(tmp_path / "run")


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_before_training_ends_quietly(flags, tmp_path, signum):
    options = ["--num_train_epochs", "1000", "--output_dir", tmp_path / "run"]
    run = ForkedRun([*flags, *options], tmp_path / "log")
    assert run.wait_for(lambda: (tmp_path / "run" / ".lock").exists())
    run.send(signum)
    assert run.wait() == CODES[signum]
    assert "Traceback" not in run.text() and run.text().splitlines()[-1].startswith("interrupted")
    # An empty file of a lock that nobody holds may be left, no more.
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert left <= {".lock"} or newest_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_after_training_says_that_the_model_is_safe(flags, inputs, tmp_path, signum, whole):
    shutil.copytree(whole, tmp_path / "run")
    evaluate = [*flags, "--model_name_or_path", whole, "--do_predict", "--output_dir", tmp_path / "run"]
    at = evaluate.index("--from_scratch")
    del evaluate[at : at + 2]
    evaluate.remove("--do_train")
    evaluate[evaluate.index("--model_name_or_path") + 1] = tmp_path / "run"
    run = ForkedRun(evaluate, tmp_path / "log", evaluating_for_ever)
    assert run.wait_for(lambda: "evaluating\n" in run.text())
    run.send(signum)
    assert run.wait() == CODES[signum]
    assert "Traceback" not in run.text()
    last = run.text().splitlines()[-1]
    assert last.startswith("interrupted") and f"The trained model in {tmp_path / 'run'} is safe" in last


@pytest.mark.parametrize("signum", CODES)
def test_the_other_scripts_end_quietly(inputs, whole, tmp_path, signum):
    data, _ = inputs
    photos = [data / "train" / "images"] * 1
    runs = {
        "predict": ForkedRun(
            ["--model", whole, "--output_dir", tmp_path / "out", *photos, "--eval_scales", *["1"] * 200],
            tmp_path / "predict",
            predict.main,
        ),
        "check": ForkedRun([data, "--num_proc", "2"], tmp_path / "check", lambda argv: slow_check(argv)),
    }
    assert runs["predict"].wait_for(lambda: "predicting" in runs["predict"].text())
    assert runs["check"].wait_for(lambda: "scanning" in runs["check"].text())
    for run in runs.values():
        run.send(signum, everybody=True)
        assert run.wait() == CODES[signum]
        assert "Traceback" not in run.text(), run.text()
        assert "interrupted" in run.text().splitlines()
    assert not list((tmp_path / "out").rglob(".partial*"))


def slow_check(argv):
    """The check over the same files many times, in worker processes, so that there is time for a signal."""
    print("scanning", flush=True)
    while True:
        check_dataset.main(argv)


# ---- the real launcher ----------------------------------------------------------------------------------------------


def launch(script, flags, log, processes=2):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += "--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as stream:
        return subprocess.Popen(
            [*command, str(script), *map(str, flags)],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("signum", CODES)
def test_a_signal_to_the_launcher_of_two_processes(flags, tmp_path, signum):
    flags = [*flags, "--per_device_train_batch_size", "1", "--num_train_epochs", "3", "--dataloader_num_workers", "1"]
    script, log = REPOSITORY / "run_segmentation.py", tmp_path / "log"
    whole = launch(script, [*flags, "--output_dir", tmp_path / "whole"], tmp_path / "log_whole")
    assert whole.wait(600) == 0
    folder = tmp_path / "run"
    process = launch(script, [*flags, "--output_dir", folder], log)
    deadline = time.monotonic() + 300
    while log.read_text().count(", loss ") < 5:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.001)
    process.send_signal(signum)
    process.wait(300)
    text = log.read_text()
    assert "interrupted after step" in text, text[-3000:]
    ours = [
        line for line in text.splitlines() if str(REPOSITORY) in line or "run_segmentation" in line and "File" in line
    ]
    assert not [line for line in ours if line.strip().startswith('File "') and "site-packages" not in line], text
    assert nothing_is_finished(folder) and newest_checkpoint(folder)
    again = launch(script, [*flags, "--output_dir", folder, "--resume_from_checkpoint", "last"], tmp_path / "log2")
    assert again.wait(600) == 0, (tmp_path / "log2").read_text()[-3000:]
    assert_equal_runs(folder, tmp_path / "whole")


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def kill_and_go_on(flags, folder, log, rng, seconds, in_save):
    """Kills a run until one gets to the end; returns how often."""
    kills, resume = 0, []
    while True:
        run = ForkedRun([*flags, "--output_dir", folder, *resume], log)
        if in_save:
            started = run.wait_for(lambda: any((folder / NEW_RUN).glob("checkpoint-*/*")))
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, seconds))
            started = run.poll() is None
        if started and kills < 6:
            run.kill()
            kills += run.returncode == -signal.SIGKILL
        if run.wait() == 0:
            return kills
        # A kill while a checkpoint moved in: the next command finishes that, and then asks what is wanted.
        asked = run.returncode == 2 and not resume and "holds an unfinished run" in run.text().splitlines()[-1]
        assert asked or run.returncode == -signal.SIGKILL, run.text()[-3000:]
        resume = ["--resume_from_checkpoint", "last"] if newest_checkpoint(folder) else []


def survive_kills(flags, whole, tmp_path, runs, seed, options=()):
    rng, killed = random.Random(seed), 0
    for number in range(runs):
        folder, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        killed += kill_and_go_on([*flags, *options], folder, log, rng, seconds=4, in_save=number % 2 == 0)
        assert_equal_runs(folder, whole)
    return killed


def test_kills_cost_nothing(flags, whole, tmp_path):
    assert survive_kills(flags, whole, tmp_path, runs=2, seed=0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--dataloader_num_workers", "2", "--ema_decay", "0.9"]], ids=str)
def test_many_kills_cost_nothing(flags, tmp_path, options):
    """With KILLED_RUNS in the environment as many runs; the seed of each is its number, so any can be repeated."""
    run_segmentation.main([*flags, *options, "--output_dir", str(tmp_path / "whole")])
    runs = int(os.environ.get("KILLED_RUNS", "6"))
    killed = survive_kills(flags, tmp_path / "whole", tmp_path, runs, seed=1, options=options)
    print(f"{killed} kills in {runs} runs, nothing lost")
    assert killed >= runs
