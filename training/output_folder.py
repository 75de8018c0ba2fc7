"""The folder that a run writes to: whose files lie there, which run, who else is at work, and how a new run moves in.

A training run works in `.new_run` inside `--output_dir` until it has something to show. Every checkpoint, and the
model with its results at the end, is written there and moves in whole; what a replaced run left goes only then. So
nothing that stops a run leaves half a checkpoint under its name, or takes anything of an older run along.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import datasets
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from cli_utils import (
    DISK_ERRORS,
    PARTIAL,
    WRITE_ERRORS,
    Interrupted,
    UserError,
    WriteError,
    missing_folders,
    remove,
    shorten,
    write_failure,
    write_text,
)
from data.output_paths import check_writable
from training.arguments import ARGUMENTS_FILE, GROUPS, PLAN_FILE, Arguments, SegmentationTrainingArguments
from training.checkpoints import (
    RECORD_FILE,
    check_flags,
    has_record,
    newest_checkpoint,
    resolve_checkpoint,
)

try:
    import fcntl
except ImportError:  # Windows; two runs at once are not noticed there
    fcntl = None

logger = logging.getLogger(__name__)

NEW_RUN, MOVING_IN = ".new_run", ".moving_in"
# In NEW_RUN: the patterns of what goes as it moves in. From when this file is there the move will be carried out.
REPLACED_FILE = "replaced.json"
LOCK_FILE = ".lock"

# What the steps of a run write, as patterns of names.
SCORES = (
    *("eval_results.json", "all_results.json", "per_category.csv", "confusion_matrix.npy", "per_image.npz"),
    *("report.html", "report.json", "curves.png", "confusion_matrix.png", "history.csv"),
)
PREDICTIONS = ("predictions", "contact_sheet.png", "sample.jpg")
MODEL = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "training_args.bin"),
    *("preprocessor_config.json", "processor_config.json", "trainer_state.json", "train_results.json"),
    "README.md",
)
SETTINGS = (ARGUMENTS_FILE, PLAN_FILE, "labels.json")
# What goes when a run has trained its model …
RESULTS = (*MODEL, *SCORES, *PREDICTIONS)
# … and when it has its first checkpoint in the place of another run.
WHOLE_RUN = ("checkpoint-*", *SETTINGS, *RESULTS)


# ---- several processes ----------------------------------------------------------------------------------------------


def in_main_process(function: Callable, args: SegmentationTrainingArguments):
    """Calls a function in the main process and returns its result in every process; its error ends all of them."""
    args.device  # noqa: B018 - starts the processes' communication as the flags say
    outcome, failure = [None, None], None
    if PartialState().is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            failure, outcome[1] = error, str(error)
    if args.world_size > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise failure or UserError(outcome[1])
    return outcome[0]


# ---- opening --------------------------------------------------------------------------------------------------------


@contextmanager
def open_output_dir(args: Arguments) -> Iterator[Path]:
    """`--output_dir`, for this run alone, after all that can be known of it before data is read; in every process.

    Resolves `--resume_from_checkpoint last` in place. A run that ends in an error leaves what was there as it was.

    Raises:
        UserError: it cannot be written to; another run is at work in it; it holds files that no run wrote where this
            one would write; it holds a run that this one does not go on with; the checkpoint cannot be resumed.
            On leaving: the disk is full, with what is safe and how to go on.
    """
    training = args.training
    folder = Path(training.output_dir)
    with ExitStack() as held:

        def open_it() -> str | None:
            check_writable(folder, "--output_dir", is_folder=True)
            held.enter_context(locked(folder))
            finish_moving_in(folder)
            _check_files(folder, args)
            if training.do_train:
                resolve_checkpoint(training)
            _check_runs(folder, args)
            if training.resume_from_checkpoint:
                check_flags(training.resume_from_checkpoint, args)
            return training.resume_from_checkpoint

        training.resume_from_checkpoint = in_main_process(open_it, training)
        before = _stamps(folder)
        try:
            yield folder
        except WriteError as error:
            raise UserError(f"{error}. {_what_is_safe(folder, args, before)}") from error
        except Interrupted as error:
            if str(error):  # it says so itself
                raise
            raise Interrupted(error.signum, f"interrupted. {_what_is_safe(folder, args, before)}") from None
        except OSError as error:
            file = str(error.filename or folder)
            in_cache = Path(file).is_relative_to(datasets.config.HF_DATASETS_CACHE)
            if error.errno not in (WRITE_ERRORS if in_cache else DISK_ERRORS):
                raise
            advice = " Set HF_DATASETS_CACHE to a folder for the prepared data that can be written to." * in_cache
            safe = _what_is_safe(folder, args, before)
            raise UserError(f"{file} cannot be used ({error.strerror}).{advice} {safe}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against other runs, and finishes what a killed one was moving in. What was made for the lock
    goes at the end, the folder too if it is empty.

    A lock of the process (POSIX), not of the file: a killed one leaves none behind, and workers inherit none.
    """
    missing, path, held = missing_folders(folder), folder / LOCK_FILE, False
    try:
        while not held:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed at the end, and with it the lock
            try:
                if fcntl is not None:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                process = file.read().strip() or "of another machine"
                raise UserError(
                    f"another run (process {process}) is at work in {folder}; wait for it, or give another "
                    "--output_dir"
                ) from None
            except OSError as error:
                logger.warning(f"{folder}: no locks here ({error.strerror}); do not start two runs at once")
            # Else it is that of a run that was just ending.
            held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        finish_moving_in(folder)
        yield
    finally:
        if held:
            _settle(folder)
            remove(path)
        for made in missing:
            try:
                made.rmdir()
            except OSError:  # a run left something
                break


def _check_files(folder: Path, args: Arguments) -> None:
    """Raises UserError where something would be written over that no run of ours left."""
    if args.dataset.dataset_dir:
        data, own = Path(args.dataset.dataset_dir).resolve(), folder.resolve()
        if data == own:
            raise UserError(f"--output_dir {folder} is the dataset's own folder; give another one")
        if data.is_relative_to(own / "predictions"):
            raise UserError(f"--dataset_dir {data} lies where --output_dir {folder} has its predictions; give another")
        images = _pictures(folder) if own.is_relative_to(data) else []
        if images:
            raise UserError(f"--output_dir {folder} is a folder of the dataset, with {shorten(images)}; give another")
    trained, overlays = _was_trained_here(folder), (folder / "predictions" / "overlays").is_dir()
    written = [(SCORES, trained or _was_scored_here(folder))]
    if args.training.do_train:
        written.append((("checkpoint-*", *SETTINGS, *MODEL), trained))
    if args.training.do_predict:
        made = folder / "predictions"
        written += [(("predictions",), overlays or (made.is_dir() and not any(made.iterdir())))]
        written += [(("contact_sheet.png", "sample.jpg"), trained or overlays)]
    foreign = [path.name for names, ours in written if not ours for name in names for path in folder.glob(name)]
    if foreign:
        raise UserError(
            f"--output_dir {folder} holds files that no run of this project wrote and this one would write over "
            f"({shorten(sorted(foreign))}); give a folder of its own, such as {folder / 'run'}"
        )


def _pictures(folder: Path) -> list[str]:
    ours = {"contact_sheet.png", "sample.jpg"}
    extensions = Image.registered_extensions()
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in files if path.suffix.lower() in extensions and path.name not in ours)


def _was_trained_here(folder: Path) -> bool:
    """Whether a training run of ours wrote to a folder: its configuration or its arguments say so."""
    for config in (folder / "config.json", *folder.glob("checkpoint-*/config.json")):
        if "segmentation_label_map" in _read(config):
            return True
    known = {name for kind in GROUPS.values() for name in kind.__dataclass_fields__}
    arguments = _read(folder / ARGUMENTS_FILE)
    return bool(arguments) and arguments.keys() <= known


def _was_scored_here(folder: Path) -> bool:
    return "eval_protocol" in _read(folder / "eval_results.json")


def _read(file: Path) -> dict:
    """A JSON or YAML file of ours; nothing where there is none, or somebody else's."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_runs(folder: Path, args: Arguments) -> None:
    """Raises UserError where a run lies in the folder that this one neither goes on with nor may replace."""
    training, run = args.training, args.run
    finished = (folder / "train_results.json").is_file()
    new_name = f"give another --output_dir, such as {_free_name(folder)}"
    if goes_on_in(folder, training):
        if run.overwrite_output_dir:
            raise UserError(
                f"--overwrite_output_dir would replace the run in {folder}, --resume_from_checkpoint goes on with it; "
                "leave out one of them"
            )
        return
    if run.overwrite_output_dir:
        return
    if training.do_train:
        replace = "or replace it with --overwrite_output_dir"
        checkpoints = sorted(path.name for path in folder.glob("checkpoint-*/") if any(path.iterdir()))
        go_on = "continue it with --resume_from_checkpoint last, or " * bool(newest_checkpoint(folder, read_all=False))
        if finished:
            raise UserError(f"{folder} holds a finished run; {new_name}, {replace}")
        if checkpoints:
            raise UserError(f"{folder} holds an unfinished run ({shorten(checkpoints)}); {go_on}{new_name}, {replace}")
        if _was_scored_here(folder):
            raise UserError(f"{folder} holds the results of an evaluation; {new_name}, {replace}")
    elif finished or _was_trained_here(folder):
        model = Path(args.model.source).resolve()
        if model != folder.resolve() and folder.resolve() not in model.parents:
            raise UserError(
                f"{folder} holds the run of another model than {args.model.source}, whose results would be replaced; "
                f"{new_name}, or --overwrite_output_dir"
            )


def goes_on_in(folder: Path, args: SegmentationTrainingArguments) -> bool:
    """Whether a run is the continuation of the one in its own output folder."""
    checkpoint = args.resume_from_checkpoint
    return bool(checkpoint) and Path(checkpoint).resolve().parent == folder.resolve()


def _free_name(folder: Path) -> Path:
    folder, number = folder if folder.name else folder.resolve(), 2
    while (name := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return name


def split_file(folder: Path, args: Arguments) -> Path:
    """`split.json` of this run: the one in the folder, unless the run that wrote it is being replaced."""
    kept = folder / "split.json"
    new_run = args.training.do_train and (args.run.overwrite_output_dir or not kept.is_file())
    return folder / NEW_RUN / "split.json" if new_run else kept


def replaced_files(folder: Path, args: Arguments) -> tuple[str, ...]:
    """Patterns of what goes from the folder as soon as this run has its first checkpoint."""
    return () if goes_on_in(folder, args.training) else WHOLE_RUN


def _settle(folder: Path) -> None:
    """At the end of a run, whatever ended it: what was moving in gets there, if it can, and half things go."""
    try:
        finish_moving_in(folder)
    except OSError as error:
        logger.warning(f"{error.filename or folder}: {error.strerror}; the next run in {folder} clears up")


def _stamps(folder: Path) -> dict[Path, int]:
    """Times of what a run has to show."""
    shown = (*folder.glob("checkpoint-*"), *folder.glob("train_results.json"))
    return {path: path.stat().st_mtime_ns for path in shown}


def _what_is_safe(folder: Path, args: Arguments, before: dict[Path, int]) -> str:
    """What somebody whose run just stopped wants to know. before: `_stamps` when it started."""
    if PartialState().is_main_process:
        _settle(folder)
    if args.training.do_train and args.run.overwrite_output_dir and before and before == _stamps(folder):
        return f"The run that {folder} held is untouched"
    if (folder / "train_results.json").is_file():
        return (
            f"The trained model in {folder} is safe; to go on: --model_name_or_path {folder} --do_eval --do_predict "
            f"--output_dir {folder}"
        )
    checkpoint = newest_checkpoint(folder, read_all=False)
    if checkpoint:
        return f"{checkpoint} is safe; to go on: the same command with --resume_from_checkpoint last"
    return f"Nothing of this run is in {folder} yet"


# ---- moving in ------------------------------------------------------------------------------------------------------


def move_in(folder: Path, replaced: Sequence[str] = ()) -> None:
    """Moves what lies in NEW_RUN into its place, and deletes the files of `replaced`, patterns of names, before.

    If the program is killed on the way, `finish_moving_in` does the rest.
    """
    write_text(folder / NEW_RUN / REPLACED_FILE, json.dumps(replaced))
    finish_moving_in(folder)


def finish_moving_in(folder: Path) -> None:
    """Carries out a move that was begun, and clears away what a killed run was still writing."""
    new, moving = folder / NEW_RUN, folder / MOVING_IN
    if moving.is_dir():
        _merge(moving, folder)
    if (new / REPLACED_FILE).is_file():
        for pattern in json.loads((new / REPLACED_FILE).read_text(encoding="utf-8")):
            for path in folder.glob(pattern):
                remove(path)
        new.rename(moving)  # from here on nothing is deleted
        _merge(moving, folder)
    for leftover in (new, *folder.glob(f"{PARTIAL}*"), *(folder / "predictions").rglob(f"{PARTIAL}*")):
        remove(leftover)


def _merge(source: Path, target: Path) -> None:
    remove(source / REPLACED_FILE)
    for path in sorted(source.iterdir(), key=lambda path: path.name == "train_results.json"):
        goal = target / path.name
        if path.is_dir() and goal.is_dir() and not has_record(path):
            _merge(path, goal)
            continue
        if goal.is_dir():
            remove(goal)  # a checkpoint of the same step
        os.replace(path, goal)
    source.rmdir()


@contextmanager
def results_of_training(trainer) -> Iterator[Path]:
    """A folder to save the trained model and its results to, in all processes; at the end they move into
    `--output_dir`, where older results go.

    Raises:
        WriteError: the disk is full.
    """
    folder = Path(trainer.args.output_dir)
    new = folder / NEW_RUN
    try:
        new.mkdir(exist_ok=True)
        yield new
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            move_in(folder, trainer.replaced or RESULTS)
        trainer.accelerator.wait_for_everyone()
    except Exception as error:
        reason = None if isinstance(error, UserError) else write_failure(error, new)
        if reason is None:
            raise
        raise WriteError(f"the trained model cannot be written to {folder} ({reason})") from error


def save_results(folder: str | os.PathLike, split: str, metrics: dict) -> None:
    """Writes `SPLIT_results.json`, and adds the metrics to `all_results.json`, as `Trainer.save_metrics` does."""
    together = Path(folder, "all_results.json")
    every = (json.loads(together.read_text(encoding="utf-8")) if together.is_file() else {}) | metrics
    for name, content in ((f"{split}_results.json", metrics), (together.name, every)):
        write_text(Path(folder, name), json.dumps(content, indent=4, sort_keys=True))


# ---- room -----------------------------------------------------------------------------------------------------------


def checkpoint_bytes(model, args: SegmentationTrainingArguments, ema: bool) -> tuple[int, int]:
    """Bytes of a saved model and of a checkpoint, with the optimizer's two moments where it has some."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = 2 if "adam" in str(args.optim.value) and "8bit" not in str(args.optim.value) else 0
    extra = 0 if args.save_only_model else moments * trained
    return weights, weights + extra + (trained if ema else 0)


def check_room(trainer, max_steps: int, steps_per_epoch: int, done: int = 0) -> None:
    """Raises UserError where the disk has no room for the checkpoints that will lie on it at once, and the model.

    done: steps that were taken before, whose checkpoints lie there already.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    weights, checkpoint = checkpoint_bytes(trainer.model, args, trainer.weight_average.decay > 0)
    interval = {
        SaveStrategy.NO: 0,
        SaveStrategy.STEPS: args.save_steps if args.save_steps >= 1 else args.save_steps * max_steps,
        SaveStrategy.EPOCH: steps_per_epoch,
        SaveStrategy.BEST: args.eval_steps if args.eval_strategy == IntervalStrategy.STEPS else steps_per_epoch,
    }[args.save_strategy]
    saves = -(-(max_steps - done) // max(1, int(interval))) if interval else 0
    if args.save_total_limit:
        kept = args.save_total_limit + (args.save_total_limit == 1 and args.load_best_model_at_end)
        there = len(list(folder.glob(f"checkpoint-*/{RECORD_FILE}"))) if done else 0
        saves = min(saves, max(1, kept + 1 - there))  # the new one is there before an old one goes
    needed, free = saves * checkpoint + weights, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{saves} checkpoint(s) and the model need {needed / 2**20:.0f} MiB in {folder}, and {free / 2**20:.0f} "
            "MiB are free there; make room, give an --output_dir on another disk, or keep fewer (--save_total_limit, "
            "--save_strategy)"
        )


def checkpoints_after(folder: Path, step: int) -> Iterable[Path]:
    """Checkpoints of later steps: of a course of training that was left, or damaged."""
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and int(number) > step:
            yield path
