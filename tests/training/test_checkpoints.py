"""A checkpoint is whole or passed over, and a run goes on as the run that it is, or is refused."""

import json
import logging
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.runs import flags_for, make_dataset, save_tiny_config
from safetensors.torch import load_file

import run_segmentation
from cli_utils import UserError, kill_children
from training.checkpoints import RECORD_FILE, fault_of, newest_checkpoint, read_record, seal
from training.trainer import SegmentationTrainer

STEPS = ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"]
TIMING = ("runtime", "per_second")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Six steps of two images; a checkpoint and an evaluation every second one, all kept; a log window of four."""
    folder = tmp_path_factory.mktemp("inputs")
    flags = flags_for(make_dataset(folder / "set"), save_tiny_config(folder))
    return [*flags, *STEPS, "--do_train", "--num_train_epochs", "2", "--save_total_limit", "9", "--logging_steps", "4"]


class Stop(Exception):
    """What stops a run in a test."""


def run(flags, folder, *options):
    try:
        return run_segmentation.main([*flags, "--output_dir", str(folder), *map(str, options)])
    finally:
        kill_children()  # workers that are kept from epoch to epoch; as at the end of the program


def stop_at(monkeypatch, flags, folder, step, *options):
    """A run that ends with an exception in the step after `step`."""
    train = SegmentationTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Stop
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentationTrainer, "training_step", stopping)
        with pytest.raises(Stop):
            run(flags, folder, *options)
    return folder


@pytest.fixture(scope="module")
def whole_with(flags, tmp_path_factory):
    """(*options) → the folder of the run that was not stopped, made once for each."""

    @cache
    def whole_with(*options):
        folder = tmp_path_factory.mktemp("whole")
        run(flags, folder, *options)
        return folder

    return whole_with


@pytest.fixture(scope="module")
def whole(whole_with):
    return whole_with()


@pytest.fixture(scope="module")
def stopped_run(flags, tmp_path_factory):
    """Stopped in step 6, after checkpoints 2 and 4."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return stop_at(monkeypatch, flags, tmp_path_factory.mktemp("stopped") / "run", 5)


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def history(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    entries = [{key: value for key, value in entry.items() if not key.endswith(TIMING)} for entry in log]
    return entries


def assert_equal_runs(one, other):
    """Weights, state of the optimizer, every logged number, and the results."""
    for name in ("model.safetensors", "checkpoint-6/model.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    states = [torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True) for folder in (one, other)]
    for key, moments in states[0]["state"].items():
        assert all(torch.equal(moments[name], states[1]["state"][key][name]) for name in moments)
    assert history(one) == history(other)
    results = [json.loads((folder / "train_results.json").read_text()) for folder in (one, other)]
    assert results[0]["train_loss"] == results[1]["train_loss"] > 0


# ---- whole or not ---------------------------------------------------------------------------------------------------


def make_checkpoint(folder, step):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    seal(folder, {"global_step": step})


def test_newest_checkpoint_goes_by_number_and_passes_over_what_is_not_whole(tmp_path, caplog):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 10, 100):
        make_checkpoint(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-200").mkdir()  # nothing in it
    (tmp_path / "checkpoint-best").mkdir()  # of somebody else
    (tmp_path / "checkpoint-300").write_text("no folder")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert "checkpoint-200 is passed over: it was not written to the end" in caplog.text
    (tmp_path / "checkpoint-100" / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-100 is passed over: model.safetensors is damaged" in caplog.text


def test_any_file_that_is_cut_changed_or_missing_is_a_fault(tmp_path):
    folder = tmp_path / "checkpoint-1"
    make_checkpoint(folder, 1)
    assert fault_of(folder) is None
    rng = np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        for damaged in (None, b"", b"{}", content[: len(content) // 2], bytes(len(content)), bytes(flipped)):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            # A changed letter in the record itself may be in what only a comparison looks at.
            if not (file.name == RECORD_FILE and damaged == bytes(flipped)):
                assert file.name in fault_of(folder)
            file.write_bytes(content)
    assert fault_of(folder) is None


FILES = """model.safetensors config.json optimizer.pt scheduler.pt rng_state.pth trainer_state.json checkpoint.json
    training_args.bin preprocessor_config.json""".split()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "missing", "{}"])
def test_a_damaged_newest_checkpoint_is_passed_over(stopped, caplog, name, damage):
    file = stopped / "checkpoint-4" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"{}")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(stopped).endswith("checkpoint-2")
    assert f"checkpoint-4 is passed over: {name}" in caplog.text or "not written to the end" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", RECORD_FILE])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(flags, whole, stopped, name):
    file = stopped / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run(flags, stopped, "--resume_from_checkpoint", "last")
    assert_equal_runs(stopped, whole)


@pytest.mark.parametrize("name", FILES)
def test_without_a_whole_checkpoint_one_line_names_the_files(flags, stopped, name):
    shutil.rmtree(stopped / "checkpoint-2")
    (stopped / "checkpoint-4" / name).unlink()
    for resume in ("last", stopped / "checkpoint-4"):
        with pytest.raises(UserError, match=rf"--resume_from_checkpoint .*{name}") as error:
            run(flags, stopped, "--resume_from_checkpoint", resume)
        assert "\n" not in str(error.value)


def test_a_damaged_best_checkpoint_is_told_when_the_run_goes_on(flags, stopped, capsys):
    newest, best = stopped / "checkpoint-4", stopped / "checkpoint-2"
    state = json.loads((newest / "trainer_state.json").read_text())
    state |= {"best_global_step": 2, "best_metric": 2.0, "best_model_checkpoint": str(best)}
    (newest / "trainer_state.json").write_text(json.dumps(state))
    record = read_record(newest)
    (newest / RECORD_FILE).unlink()
    seal(newest, record)
    (best / "model.safetensors").write_bytes(b"")
    run(flags, stopped, "--resume_from_checkpoint", "last")
    assert "checkpoint-2, the best so far, cannot be used: model.safetensors is damaged" in capsys.readouterr().err
    assert json.loads((stopped / "trainer_state.json").read_text())["best_global_step"] == 6


# ---- the same run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (3, []),
        (5, []),
        (3, ["--dataloader_num_workers", "2"]),
        (5, ["--dataloader_num_workers", "2"]),
        (5, ["--dataloader_num_workers", "2", "--dataloader_persistent_workers"]),
        (3, ["--ema_decay", "0.9"]),
        (5, ["--lr_scheduler_type", "polynomial"]),
    ],
    ids=str,
)
def test_a_run_that_goes_on_equals_the_one_that_was_not_stopped(
    flags, whole_with, tmp_path, monkeypatch, options, step
):
    stopped = stop_at(monkeypatch, flags, tmp_path / "run", step, *options)
    # Elsewhere, too: another name, or another machine.
    moved = stopped.rename(tmp_path / "moved")
    run(flags, moved, *options, "--resume_from_checkpoint", "last")
    assert_equal_runs(moved, whole_with(*options))


@pytest.mark.parametrize("max_steps", [5, 6])
def test_a_run_that_was_stopped_after_its_last_step_takes_no_further_one(flags, tmp_path, monkeypatch, max_steps):
    options = ["--max_steps", str(max_steps)]
    run(flags, tmp_path / "whole", *options)
    with monkeypatch.context() as patched:
        patched.setattr(SegmentationTrainer, "_load_best_model", lambda self: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            run(flags, tmp_path / "run", *options)
    result = run(flags, tmp_path / "run", *options, "--resume_from_checkpoint", "last")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert result["train_loss"] == json.loads((tmp_path / "whole" / "train_results.json").read_text())["train_loss"]
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == max_steps


def test_an_earlier_checkpoint_may_be_gone_on_from(flags, whole, stopped, caplog):
    run(flags, stopped, "--resume_from_checkpoint", stopped / "checkpoint-2")
    assert_equal_runs(stopped, whole)
    assert "checkpoint-4" in [path.name for path in stopped.iterdir()]


# ---- other flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "8"], "--seed 7, now it is 8"),
        (["--loss", "dice"], "--loss ce, now it is dice"),
        (["--image_size", "96"], "--image_size 64, now it is 96"),
        (["--optim", "sgd"], "--optim adamw.*, now it is sgd"),
        (["--ema_decay", "0.9"], "--ema_decay 0.0, now it is 0.9"),
        (["--max_train_samples", "4"], "--max_train_samples not given, now it is 4"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor 0"),
        (["--flip_probability", "0"], "--flip_probability 0.5, now it is 0"),
        (["--rare_class_crops", "0.5"], "--rare_class_crops 0.0, now it is 0.5"),
        (["--quarter_turns"], "--quarter_turns False, now it is True"),
        (["--eval_flip"], "--eval_flip False, now it is True"),
        (["--from_scratch", "mit-b1"], "--from_scratch .*config.json, now it is mit-b1"),
        (["--lr_scheduler_type", "cosine"], "--lr_scheduler_type linear, now it is cosine"),
        (["--per_device_train_batch_size", "4"], r"effective batch of 2 \(2 per device.*now it is 4 \(4 per device"),
        (["--gradient_accumulation_steps", "2"], r"now it is 4 \(2 per device × 2 accumulated"),
        (["--num_train_epochs", "1"], "has 4 steps behind it, and --num_train_epochs 1 makes 3 .*with 6"),
        (["--max_steps", "4"], "--max_steps 4 makes 4 .*nothing is left"),
        (["--merge_classes", "bar=disc"], "another meaning of the annotation values"),
        (["--class_weights", "auto"], "--class_weights not given, now they are"),
    ],
)
def test_another_run_is_refused_and_alters_nothing(flags, stopped, options, message):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as error:
        run(flags, stopped, *options, "--resume_from_checkpoint", "last")
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()} == before


def test_another_dataset_is_refused(flags, stopped, tmp_path):
    data = make_dataset(tmp_path / "other", train=5)
    with pytest.raises(UserError, match="trained on 6 images, now there are 5"):
        run(flags, stopped, "--dataset_dir", data, "--resume_from_checkpoint", "last")
    for image in sorted((make_dataset(tmp_path / "renamed") / "train").rglob("*.png")):
        image.rename(image.with_name(f"other_{image.name}"))
    with pytest.raises(UserError, match="images of other names"):
        run(flags, stopped, "--dataset_dir", tmp_path / "renamed", "--resume_from_checkpoint", "last")


def test_other_classes_are_refused(flags, stopped, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"0": "background", "1": "disc", "2": "rod"}))
    with pytest.raises(UserError, match="trained on other classes .*bar; now .*rod"):
        run(flags, stopped, "--id2label", tmp_path / "names.json", "--resume_from_checkpoint", "last")


def test_another_architecture_under_the_same_name_is_refused(flags, stopped, tmp_path):
    config = save_tiny_config(tmp_path)
    config.write_text(config.read_text().replace('"decoder_hidden_size": 16', '"decoder_hidden_size": 24'))
    with pytest.raises(UserError, match="another model: decoder_hidden_size is 16 there, now 24"):
        run(flags, stopped, "--from_scratch", config, "--resume_from_checkpoint", "last")


def test_a_checkpoint_without_an_optimizer_is_refused(flags, tmp_path, monkeypatch):
    folder = stop_at(monkeypatch, flags, tmp_path / "run", 3, "--save_only_model", "True")
    with pytest.raises(UserError, match=r"no optimizer.pt .*--save_only_model.*--model_name_or_path"):
        run(flags, folder, "--resume_from_checkpoint", "last")


def test_the_same_data_in_another_place_are_the_same_data(flags, whole, stopped, tmp_path):
    run(flags, stopped, "--dataset_dir", make_dataset(tmp_path / "moved"), "--resume_from_checkpoint", "last")
    assert_equal_runs(stopped, whole)


def test_the_effective_batch_may_be_split_otherwise(flags, stopped):
    split = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"]
    run(flags, stopped, *split, "--resume_from_checkpoint", "last")
    state = json.loads((stopped / "trainer_state.json").read_text())
    assert (state["global_step"], state["epoch"]) == (6, 2.0)


def rates(folder):
    return {entry["step"]: entry["learning_rate"] for entry in history(folder) if "learning_rate" in entry}


@pytest.mark.parametrize(("schedule", "last"), [("linear", 1 / 6), ("polynomial", 1 / 6), ("constant", 1)])
def test_a_new_learning_rate_is_used_and_told(flags, tmp_path, monkeypatch, capsys, schedule, last):
    options = ["--lr_scheduler_type", schedule, "--logging_steps", "1"]
    folder = stop_at(monkeypatch, flags, tmp_path / "run", 5, *options)
    changes = ["--learning_rate", "0.5", "--weight_decay", "0.25", "--head_lr_multiplier", "3"]
    run(flags, folder, *options, *changes, "--resume_from_checkpoint", "last")
    log = capsys.readouterr().err.splitlines()
    (told,) = [line for line in log if "resumed with other flags than the run was started with" in line]
    for change in ("--learning_rate 0.5 (was 0.01)", "--weight_decay 0.25 (was 0.0)", "--head_lr_multiplier 3.0"):
        assert change in told
    assert rates(folder)[5] == pytest.approx(0.5 * {1: 1}.get(last, 2 * last))
    assert rates(folder)[6] == pytest.approx(0.5 * last)
    groups = torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True)["param_groups"]
    by_name = {group["name"]: group for group in groups}
    assert by_name["encoder"]["weight_decay"] == 0.25 and by_name["encoder norms"]["weight_decay"] == 0
    assert by_name["head"]["initial_lr"] == 1.5 and by_name["encoder"]["initial_lr"] == 0.5


def test_a_new_learning_rate_for_a_schedule_that_looks_at_scores_is_refused(flags, tmp_path, monkeypatch):
    options = ["--lr_scheduler_type", "reduce_lr_on_plateau"]
    folder = stop_at(monkeypatch, flags, tmp_path / "run", 3, *options)
    with pytest.raises(UserError, match="reduce_lr_on_plateau cannot go on with a new one"):
        run(flags, folder, *options, "--learning_rate", "1", "--resume_from_checkpoint", "last")
    run(flags, folder, *options, "--resume_from_checkpoint", "last")


def test_more_epochs_go_on_with_the_schedule_of_the_longer_run(flags, stopped, caplog):
    run(flags, stopped, "--num_train_epochs", "4", "--logging_steps", "1", "--resume_from_checkpoint", "last")
    assert rates(stopped)[5] == pytest.approx(1e-2 * 8 / 12) and max(rates(stopped)) == 12


def test_a_checkpoint_says_what_it_was_trained_with(stopped):
    record = read_record(stopped / "checkpoint-4")
    assert record["global_step"] == 4 and record["max_steps"] == 6 and record["world_size"] == 1
    assert record["train_images"] == 6 and record["arguments"]["seed"] == 7
    assert "hub_token" not in record["arguments"]
