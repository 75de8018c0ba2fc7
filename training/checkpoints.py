"""Checkpoints: whether one is whole, what it was trained with, and whether a run may go on from it.

The last file of a checkpoint, `checkpoint.json`, holds the hashes of all others, so that one that was cut by a full
disk, a lost machine or a broken copy is recognised, and what the run was started with, so that a run that goes on with
other flags is refused where it would be another run, and told where it is the same.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel

from cli_utils import UserError, shorten, write_text
from training.arguments import Arguments, SegmentationTrainingArguments, engine_of

logger = logging.getLogger(__name__)

RECORD_FILE = "checkpoint.json"

# What makes a run the run it is.
FIXED = (
    *("seed", "data_seed", "full_determinism", "optim", "optim_args", "lr_scheduler_type", "bf16", "fp16"),
    *("label_smoothing_factor", "dataloader_drop_last", "train_sampling_strategy"),
    *("model_name_or_path", "from_scratch", "backbone", "head", "drop_path_rate", "num_channels", "single_logit"),
    *("freeze_encoder", "lora_r", "ema_decay", "layer_decay", "sync_bn", "loss", "void_in_masks"),
    *("encoder_warmup_steps", "mask_annealing_starts", "mask_annealing_ends"),
    *("image_size", "crop_size", "slide_crop", "slide_stride", "eval_scales", "eval_flip", "threshold"),
    *("scale_range", "max_class_share", "flip_probability", "photometric_distortion"),
    *("vertical_flip_probability", "quarter_turns", "rare_class_crops"),
    *("reduced_decoding", "reduced_copies"),
    *("dataset_config_name", "image_column", "label_column", "train_val_split", "split_groups", "streaming"),
    *("max_train_samples", "max_eval_samples"),
)
# Names of files and folders, which may lie elsewhere on another machine.
PATHS = ("model_name_or_path", "from_scratch", "backbone")
# What says nothing about training, and what is compared by what came of it (classes, weights of classes).
UNSAID = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "report_to", "disable_tqdm"),
    *("do_train", "do_eval", "do_predict", "eval_on_train", "check_data", "max_predict_samples", "preview"),
    *("dry_run", "verbose"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy"),
    *("id2label", "label_map", "class_weights", "ignore_values", "merge_classes", "drop_classes", "do_reduce_labels"),
)
# Entries of a configuration that depend on the library, or that a message of their own is about.
OF_THE_LIBRARY = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


# ---- whole or not ---------------------------------------------------------------------------------------------------


def seal(folder: Path, record: dict) -> None:
    """Writes `checkpoint.json`: the record, and the hashes of all files in the folder."""
    files = {
        file.relative_to(folder).as_posix(): _sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }
    write_text(folder / RECORD_FILE, json.dumps(record | {"files": files}, indent=1))


def has_record(folder: Path) -> bool:
    return (folder / RECORD_FILE).is_file()


def read_record(folder: str | os.PathLike) -> dict:
    """What `seal` was given, of a checkpoint without a fault."""
    return json.loads(Path(folder, RECORD_FILE).read_text(encoding="utf-8"))


def fault_of(folder: str | os.PathLike) -> str | None:
    """What is wrong with a checkpoint, in words, or None: every file is as it was written."""
    folder = Path(folder)
    if not has_record(folder):
        return f"it was not written to the end ({RECORD_FILE} is missing)"
    try:
        files = read_record(folder)["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD_FILE} is damaged"
    for name, digest in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != digest:
            return f"{name} is damaged"
    return None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _checkpoints(output_dir: str | os.PathLike) -> Iterator[Path]:
    """Folders named `checkpoint-N`, highest N first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folders}
    yield from sorted((path for path in folders if numbers[path].isdigit()), key=lambda path: -int(numbers[path]))


def newest_checkpoint(output_dir: str | os.PathLike, read_all: bool = True) -> str | None:
    """The `checkpoint-N` folder with the highest N that is whole, or None; a warning names those passed over.

    read_all: compare all files with their hashes; else it is enough that the checkpoint was written to the end.
    """
    for folder in _checkpoints(output_dir):
        fault = fault_of(folder) if read_all or not has_record(folder) else None
        if fault is None:
            return str(folder)
        logger.warning(f"{folder} is passed over: {fault}")
    return None


def resolve_checkpoint(args: SegmentationTrainingArguments) -> None:
    """Turns `--resume_from_checkpoint last` into the newest checkpoint's folder, in place.

    Raises:
        UserError: there is none, or the folder that was named is no checkpoint, or damaged, or cannot be resumed.
    """
    resume = args.resume_from_checkpoint
    if not resume:
        return
    if resume.lower() in ("last", "true"):
        found = newest_checkpoint(args.output_dir)
        if found is None:
            faults = [f"{folder.name}: {fault_of(folder)}" for folder in _checkpoints(args.output_dir)]
            why = f" ({shorten(faults)})" if faults else ""
            raise UserError(
                f"--resume_from_checkpoint {resume}: there is no complete checkpoint in {args.output_dir}{why}"
            )
        args.resume_from_checkpoint = found
        logger.info(f"resuming from {found}")
    elif not Path(resume, "trainer_state.json").is_file() and not has_record(Path(resume)):
        raise UserError(f"--resume_from_checkpoint {resume} is no checkpoint folder: trainer_state.json is missing")
    else:
        fault = fault_of(resume)
        if fault:
            raise UserError(f"--resume_from_checkpoint {resume} cannot be resumed: {fault}")


# ---- the same run or another ----------------------------------------------------------------------------------------


def started_with(args: Arguments, train_split: Dataset | None, class_weights) -> dict:
    """What a run is, for `seal`: its flags, processes, training images and weights of classes.

    train_split: None where the images are streamed.
    """
    values = args.values()
    if "dataloader_drop_last" not in args.given:  # what `check_batches` makes of data and model is no flag
        values["dataloader_drop_last"] = False
    names = None if train_split is None else hashlib.sha256("\n".join(train_split["name"][:]).encode(errors="replace"))
    return {
        "arguments": values,
        "given": list(args.given),
        "world_size": args.training.world_size,
        "train_images": None if train_split is None else len(train_split),
        "train_names": None if names is None else names.hexdigest(),
        "class_weights": None if class_weights is None else [float(weight) for weight in class_weights],
    }


def check_flags(checkpoint: str, args: Arguments) -> None:
    """Compares the flags with those of the run that wrote a checkpoint, and logs what has changed.

    Raises:
        UserError: a flag that makes it another run, or the effective batch, or a file without which no run goes on.
    """
    record, training = read_record(checkpoint), args.training
    then, now = record["arguments"], args.values()
    for name in FIXED:
        if name in then and name in now and not _same(name, then[name], now[name]):
            raise UserError(
                f"{checkpoint} was trained with --{name} {_shown(then[name])}, now it is {_shown(now[name])}; resume "
                "it with the flags it was started with"
            )
    batches = [
        _effective_batch(flags, size) for flags, size in ((then, record["world_size"]), (now, training.world_size))
    ]
    if batches[0][0] != batches[1][0]:
        raise UserError(
            f"{checkpoint} was trained with an effective batch of {batches[0][1]}, now it is {batches[1][1]}; choose "
            "--per_device_train_batch_size and --gradient_accumulation_steps so that the product stays the same"
        )
    if not engine_of(training):
        for name in ("optimizer.pt", "scheduler.pt"):
            if name not in record["files"]:
                raise UserError(
                    f"{checkpoint} cannot be resumed: there is no {name} (it was written with --save_only_model); it "
                    f"can be evaluated, or fine-tuned from: --model_name_or_path {checkpoint}"
                )
    if training.world_size != record["world_size"]:
        logger.warning(
            f"{record['world_size']} process(es) wrote {checkpoint}, now there are {training.world_size}: dropout "
            "draws other numbers than it would have"
        )
    given = {*record["given"], *args.given}
    changed = [
        f"--{name} {_shown(now[name])} (was {_shown(then[name])})"
        for name in now
        if name in given and name in then and name not in (*FIXED, *UNSAID) and then[name] != now[name]
    ]
    if changed:
        logger.info(f"resumed with other flags than the run was started with: {', '.join(changed)}")


def _effective_batch(flags: dict, processes: int) -> tuple[int, str]:
    batch, accumulated = flags["per_device_train_batch_size"], flags["gradient_accumulation_steps"]
    effective = batch * accumulated * processes
    return effective, f"{effective} ({batch} per device × {accumulated} accumulated × {processes} process(es))"


def _same(name: str, then, now) -> bool:
    if name in PATHS and then and now:
        return Path(then).name == Path(now).name
    return then == now


def _shown(value) -> str:
    return "not given" if value is None else str(value)


def check_same_run(checkpoint: str, record: dict, model: PreTrainedModel) -> None:
    """Compares data and model with those of the run that wrote a checkpoint.

    Args:
        record: `started_with` of this run.

    Raises:
        UserError: other classes, other training images, other weights of classes, another architecture.
    """
    before = read_record(checkpoint)
    then, now = (_plain_config(config) for config in (type(model.config).from_pretrained(checkpoint), model.config))
    advice = "resume it with the flags it was started with"
    if then.get("segmentation_label_map") != now.get("segmentation_label_map"):
        raise UserError(
            f"{checkpoint} was trained with another meaning of the annotation values "
            f"({then.get('segmentation_label_map')}, now {now.get('segmentation_label_map')}); {advice}"
        )
    names = [list(config["id2label"].values()) for config in (then, now)]
    if names[0] != names[1]:
        raise UserError(
            f"{checkpoint} was trained on other classes ({len(names[0])}: {shorten(names[0])}; now {len(names[1])}: "
            f"{shorten(names[1])}); {advice}"
        )
    other = [key for key in then if key in now and key not in OF_THE_LIBRARY and then[key] != now[key]]
    if other:
        raise UserError(
            f"{checkpoint} is of another model: {other[0]} is {then[other[0]]} there, now {now[other[0]]}; {advice}"
        )
    if before["train_images"] != record["train_images"]:
        raise UserError(
            f"{checkpoint} was trained on {before['train_images']} images, now there are {record['train_images']}; "
            f"{advice}, on the same data"
        )
    if before["train_names"] != record["train_names"]:
        raise UserError(f"{checkpoint} was trained on images of other names; {advice}, on the same data")
    if before["class_weights"] != record["class_weights"]:
        raise UserError(
            f"{checkpoint} was trained with --class_weights {_shown(before['class_weights'])}, now they are "
            f"{_shown(record['class_weights'])}; {advice}"
        )


def _plain_config(config) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def check_steps(checkpoint: str, max_steps: int, args: SegmentationTrainingArguments) -> int:
    """The steps that a checkpoint has behind it.

    Raises:
        UserError: the flags leave the run nothing to do, which would "finish" it without training.
    """
    record = read_record(checkpoint)
    done = record["global_step"]
    finished = _steps_of_finished_run(Path(args.output_dir))
    flag = f"--max_steps {args.max_steps}" if args.max_steps > 0 else f"--num_train_epochs {args.num_train_epochs:g}"
    if finished is not None and Path(checkpoint).resolve().parent == Path(args.output_dir).resolve():
        if max_steps <= finished:
            raise UserError(
                f"{args.output_dir} holds a finished run of {finished} steps, and {flag} makes {max_steps}: nothing "
                "is left to do; give more epochs or steps to train on"
            )
    elif max_steps < done or (max_steps == done and record["max_steps"] != done):
        raise UserError(
            f"{checkpoint} has {done} steps behind it, and {flag} makes {max_steps} (it was started with "
            f"{record['max_steps']}): nothing is left to do; give more epochs or steps"
        )
    return done


def _steps_of_finished_run(output_dir: Path) -> int | None:
    """Optimizer steps of the run whose model and card lie in a folder; None where there is none."""
    state = output_dir / "trainer_state.json"
    if not all((output_dir / name).is_file() for name in ("train_results.json", "README.md", state.name)):
        return None
    return json.loads(state.read_text(encoding="utf-8"))["global_step"]
