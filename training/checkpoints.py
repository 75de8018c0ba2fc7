"""What lies in an output folder already: the checkpoint to go on from, and runs that must not be mixed with others."""

import json
import logging
import os
import shutil
from pathlib import Path

from cli_utils import UserError
from data.classes import ClassMap, read_class_list
from training.arguments import SegmentationTrainingArguments

logger = logging.getLogger(__name__)

# What a finished run leaves and another one replaces.
RESULTS = (
    *("checkpoint-*", "*_results.json", "processor_config.json"),
    *("confusion_matrix.npy", "per_category.csv", "per_image.npz"),
)


def newest_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The `checkpoint-N` folder with the highest N that was written completely, or None.

    `trainer_state.json` is the last file of a checkpoint: where it is missing or cut off, saving was interrupted.
    """
    complete = []
    for state_file in Path(output_dir).glob("checkpoint-*/trainer_state.json"):
        try:
            complete.append(
                (json.loads(state_file.read_text(encoding="utf-8"))["global_step"], str(state_file.parent))
            )
        except ValueError:
            logger.warning(f"{state_file.parent} was not written to the end and is passed over")
    return max(complete)[1] if complete else None


def resolve_checkpoint(args: SegmentationTrainingArguments) -> None:
    """Turns `--resume_from_checkpoint last` into the newest checkpoint's folder, in place.

    Raises:
        UserError: there is none, or the folder that was named is no checkpoint.
    """
    resume = args.resume_from_checkpoint
    if not resume:
        return
    if resume.lower() in ("last", "true"):
        args.resume_from_checkpoint = newest_checkpoint(args.output_dir)
        if args.resume_from_checkpoint is None:
            raise UserError(f"--resume_from_checkpoint {resume}: there is no complete checkpoint in {args.output_dir}")
        logger.info(f"resuming from {args.resume_from_checkpoint}")
    elif not Path(resume, "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {resume} is no checkpoint folder: trainer_state.json is missing")


def check_output_dir(output_dir: Path, class_map: ClassMap, args: SegmentationTrainingArguments) -> None:
    """Refuses to mix runs in one folder; clears what a finished run with the same classes left to be replaced.

    Raises:
        UserError: the folder holds a run with other classes or an unfinished one, or the checkpoint was trained with
            another meaning of the annotation values.
    """
    labels_file, finished = output_dir / "labels.json", output_dir / "train_results.json"
    if labels_file.is_file():
        before, now = (list(names.values()) for names in (read_class_list(labels_file)[0], class_map.id2label))
        if before != now:
            raise UserError(
                f"{output_dir} holds a run with other classes ({len(before)}: {', '.join(before[:3])} …; "
                f"now {len(now)}: {', '.join(now[:3])} …); give another --output_dir"
            )
    if args.resume_from_checkpoint:
        config = json.loads(Path(args.resume_from_checkpoint, "config.json").read_text(encoding="utf-8"))
        if config.get("segmentation_label_map") != class_map.to_config():
            raise UserError(
                f"{args.resume_from_checkpoint} was trained with another meaning of the annotation values "
                f"({config.get('segmentation_label_map')}, now {class_map.to_config()}); resume it with the flags it "
                "was started with"
            )
        return
    checkpoint = newest_checkpoint(output_dir)
    if checkpoint and not finished.is_file():
        raise UserError(
            f"{output_dir} holds an unfinished run ({Path(checkpoint).name}); continue it with "
            "--resume_from_checkpoint last, or give another --output_dir, or delete it"
        )
    if finished.is_file() and args.process_index == 0:
        logger.warning(f"{output_dir} holds a finished run with the same classes, which this one replaces")
        for path in [path for pattern in RESULTS for path in output_dir.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
