"""Finished runs are safe, and so are somebody's own files: mistakes, kills and full disks, on the real program."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from factories.runs import ForkedRun, flags_for, make_dataset, save_tiny_config
from PIL import Image

import cli_utils
import run_segmentation
from cli_utils import UserError
from training import output_folder
from training.checkpoints import newest_checkpoint
from training.output_folder import MOVING_IN, NEW_RUN, REPLACED_FILE, finish_moving_in, move_in
from training.trainer import SegmentationTrainer


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Three steps, a checkpoint after each epoch of three, and no evaluation."""
    folder = tmp_path_factory.mktemp("inputs")
    flags = flags_for(make_dataset(folder / "set"), save_tiny_config(folder))
    return [*flags, "--do_train", "--eval_strategy", "no", "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def finished_run(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_segmentation.main([*flags, "--do_eval", "--do_predict", "--output_dir", str(folder)])
    return folder


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def snapshot(folder):
    """Path below the folder → content and time of every file."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def run(flags, folder, *options):
    return run_segmentation.main([*flags, "--output_dir", str(folder), *map(str, options)])


# ---- finished runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "holds a finished run; give another --output_dir, such as .*run-2, or .*--overwrite_output_dir"),
        (["--learning_rate", "1"], "holds a finished run"),
        (["--push_to_hub"], "holds a finished run"),
        (["--overwrite_output_dir", "--push_to_hub"], "--push_to_hub needs"),
        (["--overwrite_output_dir", "--class_weights", "nope.csv"], "nope.csv"),
        (["--overwrite_output_dir", "--id2label", "nope.json"], "nope.json"),
        (["--overwrite_output_dir", "--ignore_values", "0", "1", "2"], "no class is left"),
        (["--overwrite_output_dir", "--dataset_dir", "no/such/place"], "no/such/place"),
        (["--overwrite_output_dir", "--from_scratch", "no_config.json"], "no_config.json"),
        (["--overwrite_output_dir", "--from_scratch", "mit-b9"], "mit-b9"),
        (["--overwrite_output_dir", "--train_val_split", "0.5"], "has a validation split"),
        (["--overwrite_output_dir", "--resume_from_checkpoint", "last"], "leave out one of them"),
        (["--resume_from_checkpoint", "last"], "finished run of 3 steps.*nothing is left"),
        (["--resume_from_checkpoint", "last", "--learning_rate", "1"], "finished run of 3 steps.*nothing is left"),
        (["--resume_from_checkpoint", "checkpoint-99"], "no checkpoint folder"),
        (["--learning_rat", "1"], "unknown flag"),
        (["--preview", "picture.docx"], "must end in that of a picture"),
    ],
)
def test_a_mistake_in_a_second_command_alters_nothing(flags, finished, options, message):
    before = snapshot(finished)
    with pytest.raises(UserError, match=message) as error:
        run(flags, finished, *options)
    assert "\n" not in str(error.value)
    assert snapshot(finished) == before and sorted(os.listdir(finished)) == sorted({p.split("/")[0] for p in before})


def test_a_finished_run_is_refused_before_data_is_read(flags, finished, monkeypatch):
    monkeypatch.setattr(run_segmentation, "load_data", lambda *args: pytest.fail("data was read"))
    with pytest.raises(UserError, match="finished run"):
        run(flags, finished)


def test_a_mistake_in_a_new_folder_leaves_no_folder(flags, tmp_path):
    with pytest.raises(UserError, match="nope.csv"):
        run(flags, tmp_path / "new" / "run", "--class_weights", "nope.csv")
    assert not (tmp_path / "new").exists()


def test_dry_run_and_preview_leave_a_finished_run_alone(flags, finished, tmp_path):
    before = snapshot(finished)
    run(flags, finished, "--dry_run")
    run(flags, finished, "--preview", tmp_path / "preview.png")
    assert snapshot(finished) == before


def test_a_run_is_replaced_when_asked_and_leaves_nothing_of_the_old(flags, finished, tmp_path):
    (finished / "checkpoint-99").mkdir()
    (finished / "notes.txt").write_text("mine")
    run(flags, finished, "--overwrite_output_dir", "--seed", "8", "--max_steps", "2")
    run(flags, tmp_path / "fresh", "--seed", "8", "--max_steps", "2")
    assert (finished / "notes.txt").read_text() == "mine"
    (finished / "notes.txt").unlink()
    assert snapshot(finished).keys() == snapshot(tmp_path / "fresh").keys()
    assert (finished / "model.safetensors").read_bytes() == (tmp_path / "fresh" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("save_strategy", ["epoch", "no"])
def test_an_error_before_the_first_checkpoint_leaves_the_old_run(flags, finished, monkeypatch, save_strategy):
    before, step = snapshot(finished), SegmentationTrainer.training_step

    def failing_step(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise MemoryError("the third step")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentationTrainer, "training_step", failing_step)
    with pytest.raises(MemoryError):
        run(flags, finished, "--overwrite_output_dir", "--save_strategy", save_strategy)
    assert snapshot(finished) == before


def test_a_kill_before_the_first_checkpoint_leaves_the_old_run(flags, finished, tmp_path):
    before = snapshot(finished)
    options = [*flags, "--overwrite_output_dir", "--num_train_epochs", "3", "--output_dir", finished]
    new = ForkedRun(options, tmp_path / "log")
    # In the middle of saving: some files of the checkpoint are there, the last one is not.
    assert new.wait_for(lambda: any((finished / NEW_RUN).glob("checkpoint-*/*")))
    new.kill()
    left = {name: stamp for name, stamp in snapshot(finished).items() if not name.startswith((NEW_RUN, ".lock"))}
    if not any((finished / NEW_RUN).glob(f"*/{REPLACED_FILE}")):
        assert left == before or newest_checkpoint(finished) is not None
    with pytest.raises(UserError, match="finished run|unfinished run"):
        run(flags, finished)
    assert not (finished / NEW_RUN).exists()


def test_an_extended_run_replaces_its_results_together(flags, finished):
    run(flags, finished, "--resume_from_checkpoint", "last", "--num_train_epochs", "2")
    assert json.loads((finished / "trainer_state.json").read_text())["global_step"] == 6
    # Those of the shorter run would say things of another model.
    assert not (finished / "eval_results.json").exists() and not (finished / "predictions").exists()
    assert newest_checkpoint(finished).endswith("checkpoint-6")


def test_an_unfinished_run_is_refused_and_can_be_replaced(flags, finished):
    (finished / "train_results.json").unlink()
    before = snapshot(finished)
    with pytest.raises(UserError, match=r"unfinished run \(checkpoint-3\).*--resume_from_checkpoint last"):
        run(flags, finished)
    assert snapshot(finished) == before
    run(flags, finished, "--overwrite_output_dir")
    assert (finished / "train_results.json").is_file()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(flags, tmp_path):
    new = ForkedRun([*flags, "--output_dir", tmp_path / "run"], tmp_path / "log")
    assert new.wait_for(lambda: (tmp_path / "run" / NEW_RUN / "arguments.yaml").exists())
    new.kill()
    assert (tmp_path / "run" / NEW_RUN).is_dir()
    run(flags, tmp_path / "run")
    assert (tmp_path / "run" / "train_results.json").is_file()


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluation(flags, model):
    """Flags for scoring and predicting with a trained model."""
    at = flags.index("--from_scratch")
    kept = [*flags[:at], *flags[at + 2 :]]
    kept.remove("--do_train")
    return [*kept, "--model_name_or_path", str(model), "--do_eval", "--do_predict"]


def test_a_model_is_evaluated_in_its_own_folder(flags, finished):
    before = snapshot(finished)
    for _ in range(2):
        run(evaluation(flags, finished), finished)
    assert snapshot(finished).keys() == before.keys()
    for name in ("model.safetensors", "checkpoint-3/model.safetensors", "arguments.yaml", "README.md"):
        assert snapshot(finished)[name] == before[name]
    run(evaluation(flags, finished / "checkpoint-3"), finished)


def test_another_model_is_not_evaluated_there(flags, finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    before = snapshot(finished)
    with pytest.raises(UserError, match="the run of another model than .*other"):
        run(evaluation(flags, other), finished)
    assert snapshot(finished) == before
    run(evaluation(flags, other), tmp_path / "scores")
    with pytest.raises(UserError, match="results of an evaluation"):
        run(flags, tmp_path / "scores")


# ---- somebody's own files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    """README.md config.json labels.json model.safetensors trainer_state.json preprocessor_config.json arguments.yaml
    train_results.json eval_results.json per_category.csv confusion_matrix.npy checkpoint-7/weights.bin sample.jpg
    contact_sheet.png predictions/photo.png""".split(),
)
def test_files_of_somebody_else_are_not_written_over(flags, tmp_path, name):
    own = tmp_path / "project" / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text('{"theirs": 1}')
    before = snapshot(tmp_path / "project")
    for options in ([], ["--overwrite_output_dir"]):
        with pytest.raises(UserError, match=name.split("/")[0]):
            run([*flags, "--do_predict"], tmp_path / "project", *options)
    assert snapshot(tmp_path / "project") == before


def test_files_that_no_run_writes_are_no_hindrance(flags, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "log").mkdir()
    run(flags, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "log").is_dir()


def test_the_dataset_is_no_place_for_a_run(flags, tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "own")
    before = snapshot(data)
    flags = [*flags, "--dataset_dir", str(data)]
    with pytest.raises(UserError, match="the dataset's own folder"):
        run(flags, data)
    with pytest.raises(UserError, match="a folder of the dataset, with train_0.png"):
        run(flags, data / "train" / "images")
    monkeypatch.chdir(data)
    with pytest.raises(UserError, match="the dataset's own folder"):
        run(flags, ".")
    assert snapshot(data) == before
    run(flags, data / "runs" / "first")


def test_predictions_are_no_dataset_for_the_run_that_writes_them(flags, finished, tmp_path):
    data = make_dataset(finished / "predictions" / "set")
    before = snapshot(data)
    with pytest.raises(UserError, match="lies where --output_dir"):
        run([*evaluation(flags, finished), "--dataset_dir", str(data)], finished)
    assert snapshot(data) == before


# ---- two at once ----------------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder_are_refused_and_a_killed_one_leaves_no_lock(flags, tmp_path):
    folder = tmp_path / "run"
    options = [*flags, "--num_train_epochs", "100", "--dataloader_num_workers", "2", "--output_dir", folder]
    first = ForkedRun(options, tmp_path / "log")
    assert first.wait_for(lambda: newest_checkpoint(folder) is not None)
    with pytest.raises(UserError, match=rf"another run \(process {first.pid}\) is at work"):
        run(flags, folder, "--resume_from_checkpoint", "last")
    assert first.poll() is None
    first.send(signal.SIGKILL)  # not its workers, which live on for some seconds
    first.wait()
    with pytest.raises(UserError, match="unfinished run"):
        run(flags, folder)


# ---- moving in ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def old_and_new(folder):
    """A finished run, and beside it what is to replace it."""
    files = {
        "model.safetensors": "old",
        "README.md": "old",
        "train_results.json": "old",
        "checkpoint-2/model.safetensors": "old",
        "predictions/a.png": "old",
        "notes.txt": "mine",
        f"{NEW_RUN}/arguments.yaml": "new",
        f"{NEW_RUN}/checkpoint-2/model.safetensors": "new",
        f"{NEW_RUN}/checkpoint-2/checkpoint.json": "new",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return {name: content for name, content in files.items() if not name.startswith(NEW_RUN)}


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_kill_at_any_moment_of_moving_in_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch):
    new = {
        "arguments.yaml": "new",
        "checkpoint-2/checkpoint.json": "new",
        "checkpoint-2/model.safetensors": "new",
        "notes.txt": "mine",
    }
    outcomes = []
    for moment in range(100):
        folder = tmp_path / str(moment)
        old, left = old_and_new(folder), [moment]

        def dying(call, left=left):
            def wrapper(*args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return call(*args, **kwargs)

            return wrapper

        with monkeypatch.context() as patched:
            # Every call that changes a folder, each of which may be the last one.
            for name in ("replace", "rename", "unlink", "rmdir"):
                patched.setattr(os, name, dying(getattr(os, name)))
            patched.setattr(output_folder, "remove", dying(cli_utils.remove))
            try:
                move_in(folder, output_folder.WHOLE_RUN)
                survived = True
            except Killed:
                survived = False
        finish_moving_in(folder)
        assert contents(folder) in (old, new)
        assert not (folder / NEW_RUN).exists() and not (folder / MOVING_IN).exists()
        outcomes.append(contents(folder) == new)
        if survived:
            break
    assert outcomes[0] is False and outcomes[-1] is True and len(outcomes) > 10
    assert outcomes == sorted(outcomes)  # from one moment on it is the new one


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """(size) → a file system of its own, where the system lets us make one."""
    mounted = []

    def make(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if made.returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_without_room_is_found_before_training(flags, small_disk):
    folder = small_disk("700k") / "run"
    with pytest.raises(UserError, match=r"1 checkpoint\(s\) and the model need 1 MiB in .*MiB are free") as error:
        run(flags, folder)
    assert "\n" not in str(error.value) and not folder.exists()


def test_a_disk_that_fills_up_leaves_a_checkpoint_to_go_on_from(flags, small_disk, tmp_path, monkeypatch):
    disk = small_disk("8m")
    folder, ballast, step = disk / "run", disk / "ballast", SegmentationTrainer.training_step
    options = ["--num_train_epochs", "3", "--save_total_limit", "3"]

    def filling_step(self, *args, **kwargs):
        if self.state.global_step == 5:
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentationTrainer, "training_step", filling_step)
        with pytest.raises(UserError, match=r"checkpoint-6 cannot be written .*No space left.*checkpoint-3 is safe"):
            run(flags, folder, *options)
    assert sorted(path.name for path in folder.iterdir() if path.name != "arguments.yaml") == [
        "checkpoint-3",
        "labels.json",
    ]
    with pytest.raises(UserError, match="MiB are free"):
        run(flags, folder, *options, "--resume_from_checkpoint", "last")
    ballast.unlink()
    run(flags, folder, *options, "--resume_from_checkpoint", "last")
    run(flags, tmp_path / "whole", *options)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_every_write_that_fails_ends_in_one_line_and_loses_nothing(flags, tmp_path, monkeypatch):
    """The n-th file put in place meets a full disk, for every n of a whole run."""
    everything = [*flags, "--do_eval", "--do_predict", "--eval_on_train", "--num_train_epochs", "1"]
    run(everything, tmp_path / "whole")
    replace, told = os.replace, []
    for moment in range(200):
        folder, calls = tmp_path / str(moment), [0]

        def full(source, target, calls=calls, moment=moment):
            calls[0] += 1
            if calls[0] == moment + 1:
                raise OSError(28, "No space left on device", str(target))
            return replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            try:
                run(everything, folder)
            except UserError as error:
                told.append(str(error))
            else:
                break
        # What is under its name is whole.
        for path in folder.rglob("*.json"):
            if not {MOVING_IN, NEW_RUN} & set(path.relative_to(folder).parts):
                json.loads(path.read_text())
        for path in (*folder.rglob("*.png"), *folder.rglob("*.jpg")):
            Image.open(path).load()
        if moment % 5 == 0:
            trained = (folder / "train_results.json").is_file() and (folder / MOVING_IN).exists() is False
            if trained:
                run([*evaluation(flags, folder)], folder)
            else:
                resume = ["--resume_from_checkpoint", "last"] if newest_checkpoint(folder) else []
                run(everything, folder, *resume)
            for name in ("model.safetensors", "confusion_matrix.npy"):
                assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(told) > 20
    for message in told:
        assert "No space left on device" in message and "\n" not in message
        assert "is safe" in message or "Nothing of this run is in" in message


@pytest.mark.parametrize("where", ["a file", "below a file", "read-only", "a name too long"])
def test_a_folder_that_cannot_be_written_to_is_found_at_once(flags, tmp_path, small_disk, monkeypatch, where):
    (tmp_path / "file").write_text("mine")
    folder = {"a file": "file", "below a file": "file/run", "a name too long": "x" * 300}.get(where)
    if folder is None:
        folder = small_disk("1m")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    else:
        folder = tmp_path / folder
    monkeypatch.setattr(run_segmentation, "load_data", lambda *args: pytest.fail("data was read"))
    with pytest.raises(
        UserError,
        match=r"--output_dir .* (cannot be (written to|used) \(.*\); give another one|is a file; give a folder)",
    ):
        run(flags, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cache_that_cannot_be_written_to_is_named(flags, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setattr(output_folder.datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cache.* cannot be used \(.*\)\. Set HF_DATASETS_CACHE"):
        run(flags, tmp_path / "run")
