"""What every command-line script here shares: YAML + flags → dataclasses, errors that a user can act on, a log without
secrets, files that are whole or not there, and a quiet end when a signal asks for it."""

import codecs
import difflib
import errno
import gc
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import zlib
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_origin

import psutil
import yaml
from huggingface_hub import constants, get_session, is_offline_mode
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

# What HfArgumentParser takes for the value of a switch.
TRUTH_VALUES = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}
MAX_ALIASES = 20  # in a YAML file, as each may double its length
CONNECT_SECONDS = 5  # within which a network answers
# Characters that move a terminal's cursor, colour it, break lines or turn the direction of what follows, and bytes of
# file names that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Flags → what they are called elsewhere. A name may stand at several flags: meant is the first that the script has.
_CALLED_ELSEWHERE = {
    "num_train_epochs": "epoch epochs num_epochs n_epochs max_epoch max_epochs train_epochs",
    "max_steps": "steps iters iterations max_iters num_steps max_train_steps total_steps",
    "learning_rate": "lr lr0 base_lr blr rate",
    "head_lr_multiplier": "head_lr lr_head lr_mult decoder_lr backbone_lr",
    "per_device_train_batch_size": "batch batch_size batchsize bs b train_batch_size train_bs samples_per_gpu "
    "batch_size_per_gpu per_gpu_train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size val_batch_size test_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": "grad_accum accum accumulate accum_iter accumulation_steps gradient_accumulation",
    "crop_size": "crop",
    "image_size": "imgsz img_size img_sz image_sz imsize size resolution res input_size resize crop crop_size",
    "dataloader_num_workers": "workers num_workers n_workers j nproc num_proc preprocessing_num_workers",
    "num_proc": "workers num_workers n_workers j nproc",
    "backbone": "encoder",
    "model_name_or_path": "model model_name model_path model_id model_dir weights pretrained ckpt checkpoint load "
    "arch net network backbone encoder pretrained_model_name_or_path",
    "model": "model_name_or_path model_name model_path model_id model_dir weights ckpt checkpoint load",
    "model_revision": "revision model_version",
    "images": "img_dir image_dir images_dir imgs",
    "masks": "mask_dir ann_dir label_dir masks_dir labels_dir annotations",
    "mask_suffix": "seg_map_suffix label_suffix",
    "image_suffix": "img_suffix",
    "html": "report page",
    "inputs": "source input i image images img_dir image_dir imgs data dataset dataset_dir data_dir input_dir folder",
    "dataset_dir": "data dataset data_dir data_path data_root dataroot root dataset_path dataset_root train_dir "
    "val_dir folder train_data_dir input_dir images img_dir image_dir imgs source input i masks mask_dir ann_dir "
    "label_dir annotations",
    "resume_from_checkpoint last": "resume resume_from continue auto_resume",
    "output_dir": "output out o outdir out_dir output_path save_dir save_path work_dir logdir log_dir logging_dir "
    "name exp_name experiment experiment_name results_dir",
    "overwrite_output_dir": "overwrite exist_ok force",
    "do_train": "train training",
    "do_eval": "val eval validate validation evaluate eval_only do_val test",
    "do_predict": "predict infer inference do_test",
    "eval_strategy": "evaluation_strategy eval_freq eval_interval val_freq val_interval",
    "save_strategy": "save_freq save_period save_every checkpoint_freq",
    "logging_steps": "log_interval log_freq log_every print_freq",
    "use_cpu": "no_cuda cpu",
    "device cpu": "no_cuda cpu use_cpu",
    "bf16": "amp use_amp half precision mixed_precision",
    "id2label": "classes class_names names labels label_file id2label_file",
    "ignore_values": "ignore ignore_index ignore_label void",
    "do_reduce_labels": "reduce_zero_label",
    "weight_decay": "wd decay",
    "optim": "optimizer opt",
    "lr_scheduler_type": "scheduler lr_scheduler lrscheduler sched lr_policy",
    "warmup_steps": "warmup warmup_ratio warmup_epochs warmup_iters num_warmup_steps",
    "max_grad_norm": "clip clip_grad grad_clip gradient_clip_val",
    "loss": "criterion loss_fn loss_function",
    "class_weights": "class_weight loss_weights weighted_loss",
    "label_smoothing_factor": "label_smoothing",
    "freeze_encoder": "freeze freeze_backbone",
    "ema_decay": "ema model_ema use_ema",
    "lora_r": "lora rank lora_rank",
    "early_stopping_patience": "patience early_stopping",
    "torch_compile": "compile",
    "sync_bn": "syncbn sync_batchnorm",
    "train_val_split": "val_split validation_split test_size split val_ratio val_size train_split",
    "report_to": "wandb tensorboard with_tracking tracker logger",
    "eval_flip": "tta flip",
    "flip_probability": "fliplr hflip horizontal_flip",
    "vertical_flip_probability": "flipud vflip vertical_flip",
    "quarter_turns": "rot90 rotate rotation rotate90",
    "rare_class_crops": "rare_class_sampling rcs",
    "eval_scales": "scales multi_scale ms",
    "threshold": "thresh conf conf_thres confidence",
    "slide_crop": "window window_size tile tile_size patch_size",
    "slide_stride": "stride overlap",
    "num_channels": "in_channels in_chans channels bands",
    "push_to_hub": "push upload",
    "hub_model_id": "hub_id repo_id hub_repo_id",
    "dry_run": "dry fast_dev_run sanity_check",
    "max_train_samples": "max_samples num_samples limit",
    "max_images": "max_samples num_samples limit max_train_samples",
    "max_eval_samples": "max_val_samples max_validation_samples max_test_samples",
    "config": "cfg config_file yaml c",
    "verbose": "v debug",
    "seed": "random_seed manual_seed seed_everything",
}
_INSTEAD = {
    "not needed here: export HF_HOME=FOLDER chooses where downloads and caches lie": "cache_dir cache",
    "not needed here: the accelerator is found by itself; export CUDA_VISIBLE_DEVICES=1 chooses another one, "
    "--use_cpu the CPU, and `accelerate launch` several": "device devices gpu gpus gpu_id gpu_ids num_gpus ngpu",
    "not needed here: `accelerate launch run_segmentation.py …` trains on several GPUs": "distributed dist ddp "
    "launcher world_size nproc_per_node",
    "not needed here: log in with `hf auth login`, or export HF_TOKEN": "token auth_token use_auth_token",
    "not needed here: the configuration comes with the model; --from_scratch takes a config.json": "config_name",
    "not needed here: the image processor comes with the model; --image_size says what it is to do": "use_fast "
    "image_processor_name feature_extractor_name processor_name",
    "not needed here: code from the Hub is never run": "trust_remote_code",
    "not needed here: a head for other classes is made anew, and that is logged": "ignore_mismatched_sizes",
    "not needed here: that is what runs without --bf16 and --fp16": "fp32 float32 no_amp",
    "not needed here: classes are counted in the class list or in the masks; --id2label FILE names them": "nc "
    "num_classes num_labels n_classes",
    "not needed here: all is semantic segmentation; --do_train, --do_eval and --do_predict choose": "task mode",
    "not there: `hf download --revision` gets a version, and the folder it prints is a model": "revision "
    "model_revision",
    "not there: give another --output_dir": "overwrite_output_dir overwrite exist_ok force",
    "not there: --optim sgd takes it in --optim_args": "momentum",
    "not there: --log_level says how much is logged": "verbose v quiet q",
}

# What begins so is being written, or was when the program was killed.
PARTIAL = ".partial-"
# What the system says where a file cannot be written, and nobody's code is to blame.
WRITE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG),
}
# Those that cannot be anything else, wherever they come from.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# Loggers that write a line for every request to the Hub; huggingface_hub 1 uses the first, 2 the second.
REQUEST_LOGGERS = ("httpx", "httpx2")

# How long a program may take to end after a signal before it is ended.
UNWINDING_SECONDS = 5

_URL_QUERY = re.compile(r"(\b\w+://[^\s?\"'<>]+)\?[^\s\"'<>]+")
_TOKEN = re.compile(r"\b(hf|api_org)_\w{6,}")
_secrets: set[str] = set()

# The longer ones first, as that of UTF-16 begins that of UTF-32.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

logger = logging.getLogger(__name__)


class UserError(ValueError):
    """A mistake in the user's input. Its message says what was found, what is allowed and how to mend it.

    Scripts print the message alone; any other exception is a bug and keeps its traceback.
    """

    def __init__(self, message: str = ""):
        # What a worker of a data loader raises comes back as text: its traceback, and the message at the end of it.
        message = str(message).rpartition(f"{__name__}.{type(self).__name__}: ")[2].rstrip()
        # A value that is told may be as long as a file.
        lines = (f"{line[:2000]} … {line[-500:]}" if len(line) > 3000 else line for line in message.split("\n"))
        super().__init__("\n".join(lines))


class WriteError(UserError):
    """Something cannot be written: a full or read-only disk, or something in the way."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the program to end. Its message says what was saved and how to go on.

    Args:
        signum: SIGINT or SIGTERM; `run_cli` makes 130 or 143 of it.
    """

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message)
        self.signum = signum


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean NAME?)" for the known name that is most like `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def flag_hint(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """What is to be said of a flag that is none: the one that is called otherwise here, or that none is needed, or the
    one that differs in a letter or two. Others that look alike are not named, as they mean something else.

    name: without dashes in front. prefix: of the flag in the answer.
    """
    known = set(known)
    name = name.lower().replace("-", "_")
    for flag, names in _CALLED_ELSEWHERE.items():
        if name in names.split() and flag.split()[0] in known:
            return f" (did you mean {prefix}{flag}?)"
    for sentence, names in _INSTEAD.items():
        if name in names.split():
            return f": {sentence}"
    near = [flag for flag in known if _are_near(name, flag)]
    matches = difflib.get_close_matches(name, near, n=1, cutoff=0.6)
    return f" (did you mean {prefix}{matches[0]}?)" if matches else ""


def _are_near(a: str, b: str) -> bool:
    """Whether they differ in two letters at most where both are long, or one where one is short."""
    limit = 1 if min(len(a), len(b)) < 8 else 2
    # What these say at once of most words: an edit changes the length by one at most, and two letters of the alphabet.
    if abs(len(a) - len(b)) > limit or len(set(a) ^ set(b)) > 2 * limit:
        return False
    return _edits(a, b) <= limit


def _edits(a: str, b: str) -> int:
    """How many letters to insert, delete, replace or swap with the next one to get from one word to the other (the
    distance of Damerau and Levenshtein, optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other)))
            if i > 1 and j > 1 and (letter, a[i - 2]) == (b[j - 2], other):
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def printable(text: str, lines: bool = False) -> str:
    """Text that holds names from data, as a terminal may be shown it: what would move its cursor, colour it or turn
    the direction is written out, as \\x1b is for ESC.

    lines: keep line breaks and tabs.
    """

    def escape(found: re.Match) -> str:
        if lines and found[0] in "\n\t":
            return found[0]
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escape, text)


class PrintableFormatter(logging.Formatter):
    """For every handler that writes to a terminal: messages hold names from data, which may hold anything. What is no
    plain information says so, and libraries say who they are."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else record.levelname.lower()
        source = "" if is_ours(record) else record.name
        before = f"{level} ({source})" if level and source else level or source
        return printable(f"{before}: " * bool(before) + super().format(record), lines=True)


class _LineHandler(logging.StreamHandler):
    """Writes lines above a progress bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of the log comes from this project and no library."""
    path = Path(record.pathname)
    return path.is_relative_to(Path(__file__).parent) and "site-packages" not in path.parts


def shorten(names: Iterable[str], shown: int = 3) -> str:
    """ "a, b, c and 4 more": the first few of many names, as a terminal may show them, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + more


def count_of(count: int, phrase: str) -> str:
    """ "1 mask differs", "3 masks differ" for the phrase "mask/masks differs/differ"; "3 masks" for "mask"."""
    plural = phrase if "/" in phrase else f"{phrase}/{phrase.rpartition(' ')[2]}s"
    return f"{count:,} {agree(count, plural)}"


def agree(count: int, phrase: str) -> str:
    """Of words like is/are, in a phrase that comes from no file, the one that goes with a count."""
    return " ".join(word.split("/")[-(count != 1)] for word in phrase.split(" "))


def read_text(path: str | os.PathLike) -> str:
    """The text of a file that people and their programs wrote: UTF-8, with or without a byte order mark, UTF-16, or
    Windows-1252 as old editors and Excel write it, which is logged.

    Raises:
        UserError: it is none of these. OSError: it cannot be opened.
    """
    content = Path(path).read_bytes()
    encodings = [encoding for mark, encoding in BYTE_ORDER_MARKS.items() if content.startswith(mark)][:1]
    if not encodings and b"\0" in content:  # UTF-16 without a mark: of Latin text every other byte is zero
        zeros = [content[start::2].count(0) for start in (0, 1)]
        encodings = ["utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"] if max(zeros) > len(content) / 4 else []
    elif not encodings:
        encodings = ["utf-8", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "cp1252":
            # Other encodings, read as this one, have signs where letters belong and rows of letters with accents.
            foreign = re.findall(r"[^\x00-\x7f]", text)
            if sum(map(str.isalpha, foreign)) < 0.8 * len(foreign) or re.search(r"[^\x00-\x7f]{3}", text):
                continue
            logger.warning(f"{path} is not UTF-8 and is read as Windows-1252")
        return text
    raise UserError(f"{path} is no text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, with its type where that tells more than a built-in one does."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    says_little = not lines or isinstance(error, LookupError)  # KeyError: 'name'
    return ": ".join([name, *lines[:1]]) if says_little or type(error).__module__ != "builtins" else lines[0]


def parse_json(text: str):
    """`json.loads` for what people write: raises ValueError, and nothing else, also for a key that comes twice and for
    brackets nested too deep."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice!r} comes twice")
        return content

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


class _YamlLoader(yaml.SafeLoader):
    """Without tags that make objects, and without what makes a short file long or hides a line."""

    aliases = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} references (*name) to other lines")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [repr(self.construct_object(key, deep=True)) for key, _ in node.value if key.value != "<<"]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]} comes twice, from line {node.start_mark.line + 1} on")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str):
    """`yaml.safe_load`, which raises ValueError, and nothing else, also for a key that comes twice, for references
    that would make a short file long, and for brackets nested too deep."""
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None
    except (yaml.YAMLError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def check_positive(args, *names: str, most: int | None = None) -> None:
    """Raises UserError where a field of a group of flags is given and less than 1, or more than `most`."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
        if value is not None and most is not None and value > most:
            raise UserError(f"--{name} is {value}; it must be at most {most}")


def check_installed(what: str, *packages: str) -> None:
    """Raises UserError where one of the optional packages is missing that `what` needs."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        verb = agree(len(missing), "is/are")
        raise UserError(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: pip install {' '.join(missing)}"
        )


# ---- log ------------------------------------------------------------------------------------------------------------


def redact(text: str) -> str:
    """The same text without tokens, and without the queries of URLs: those of uploads and downloads are signed."""
    for secret in filter(None, (os.environ.get("HF_TOKEN"), *_secrets)):
        text = text.replace(secret, "…")
    return _TOKEN.sub(r"\1_…", _URL_QUERY.sub(r"\1?…", text))


def keep_secret(value: str | None) -> None:
    """From now on `redact` knows this value, whatever it looks like."""
    if value:
        _secrets.add(value)


def set_up_logging(level: int = logging.INFO, force: bool = True, tables: bool = True, others: bool = True) -> None:
    """One stream of printable lines on stderr, without secrets, and without a line for every request to the Hub.

    Args:
        force: also where logging was set up already.
        tables: show information of several lines. others: show the information of libraries, too.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        if record.levelno != logging.INFO:
            return True
        return (tables or "\n" not in record.getMessage()) and (others or is_ours(record))

    handler = _LineHandler()
    handler.addFilter(is_shown)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=force)
    logging.setLogRecordFactory(_redacted_record)
    for name in REQUEST_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _redacted_record(*args, **kwargs) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)
    try:
        text = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: the handler will say so
        return record
    clean = redact(text)
    if clean != text:
        record.msg, record.args = clean, None
    return record


def _redacted_traceback(kind, error, trace) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


# ---- files ----------------------------------------------------------------------------------------------------------


def write_failure(error: BaseException, path: str | os.PathLike) -> str | None:
    """Why `path` could not be written, in the system's words; None where the error is about something else.

    Some libraries (safetensors, torch, numpy, Pillow) leave out what the system said; then a full disk is the reason
    if the disk is full.
    """
    code = getattr(error, "errno", None)
    if isinstance(error, OSError) and code is not None:
        return os.strerror(code) if code in WRITE_ERRORS else None
    folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < 2**20 else None


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write a file, or a folder, to; at the end it becomes `path`, in one step.

    So whatever stops the program, there is a whole file under that name, the new one or the old one, or none. Parent
    folders are made. The path has the same suffix, by which some libraries choose the format.

    Raises:
        WriteError: it cannot be written; names `path` and the reason.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device
        yield path
        return
    # Short whatever the name is: many a name of 255 bytes is in use.
    suffix = path.suffix if len(os.fsencode(path.suffix)) < 20 else ""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except Exception as error:
        reason = None if isinstance(error, UserError) else write_failure(error, path)
        if reason is None:
            raise
        raise WriteError(f"{path} cannot be written: {reason}") from error
    finally:
        remove(partial)


@contextmanager
def written_together(folder: str | os.PathLike) -> Iterator[Path]:
    """A new folder to write several files to; at the end they move into `folder`, each in one step.

    Raises:
        WriteError: as `written_aside`.
    """
    folder = Path(folder)
    aside = folder / f"{PARTIAL}{os.getpid()}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        yield aside
        for path in sorted(aside.iterdir()):
            os.replace(path, folder / path.name)
    except Exception as error:
        reason = None if isinstance(error, UserError) else write_failure(error, aside)
        if reason is None:
            raise
        what = Path(error.filename).name if isinstance(error, OSError) and error.filename else "results"
        raise WriteError(f"{folder / what} cannot be written: {reason}") from error
    finally:
        remove(aside)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file through `written_aside`, in UTF-8; what that cannot hold becomes \\udcXX."""
    with written_aside(path) as partial:
        partial.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def remove(path: Path) -> None:
    """Deletes a file or a folder with all that is in it, if it is there and can be deleted."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    return [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]


# ---- flags ----------------------------------------------------------------------------------------------------------


def answer_early(
    description: str,
    dataclass_types: tuple[type, ...],
    exclusive: tuple[tuple[str, ...], ...] = (),
    positional: str | None = None,
) -> None:
    """Prints the help that the command line asks for, or what is wrong with its flags, and ends the program; for
    scripts that go on to import what takes seconds. Returns where there is no such thing, with garbage collection off
    until `run_cli`: what is imported stays, so looking for garbage among it, over a second of CPU in all, finds none.

    Args: as for `parse_arguments`.
    """
    run_cli(lambda: parse_arguments(dataclass_types, None, description, exclusive, positional))
    gc.disable()


HELP = {"-h", "--help"}
CONFIG_HELP = "YAML file with any of these flags; flags here win"


def help_page(
    dataclass_types: tuple[type, ...],
    description: str | None,
    positional: str | None = None,
    epilog: str | None = None,
    config_help: str = CONFIG_HELP,
) -> str:
    """All flags by group, with their defaults; nothing is imported for it.

    Args: as for `parse_arguments`. config_help: of `--config`, which every script takes.
    """
    flags, _ = _fields_and_aliases(dataclass_types)
    words = f" [{flags[positional].metadata.get('metavar', positional.upper())} …]" if positional else ""
    parser = ArgumentParser(
        usage=f"python %(prog)s [--config FILE.yaml] [--FLAG VALUE …]{words}",
        description=description,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help=config_help)
    for kind in dataclass_types:
        group = parser.add_argument_group(kind.__doc__.splitlines()[0].rstrip("."))
        for flag in _fields_and_aliases((kind,))[0].values():
            _add_to_page(group, flag)
    return parser.format_help()


def _add_to_page(group, flag) -> None:
    default = flag.default if flag.default_factory is MISSING else flag.default_factory()
    words = flag.metadata.get("help") or ""
    if words == SUPPRESS:
        return
    words = words.replace("%%", "%").replace("%", "%%")
    if default is True:
        group.add_argument(f"--no_{flag.name}", action="store_true", help=f"do not: {words}")
    elif default is False:
        group.add_argument(f"--{flag.name}", action="store_true", help=words)
    else:
        kinds = {"int": "N", "float": "X", "bool": "[BOOL]"}
        metavar = next((sign for name, sign in kinds.items() if name in str(flag.type)), "TEXT")
        metavar = flag.metadata.get("metavar", metavar)
        nargs = "+" if str(flag.type).startswith("list") else None
        stated = default.value if isinstance(default, Enum) else default
        if stated is MISSING:
            words += " (must be given)"
        elif stated not in (None, [], ""):
            words += f" (default: {stated})".replace("%", "%%")
        group.add_argument(f"--{flag.name}", metavar=metavar, nargs=nargs, help=words)


@cache
def _parser_class() -> type:
    from transformers import HfArgumentParser  # most of a second, which a page of help does not need

    class _Parser(HfArgumentParser):
        """HfArgumentParser that raises UserError instead of printing the usage of 150 flags."""

        positional = None
        paths: frozenset[str] = frozenset()  # names of the flags that take files or folders

        def add_argument(self, *names, **options):
            """Numbers are finite."""
            if options.get("type") is float:
                options["type"] = _finite_number
            return super().add_argument(*names, **options)

        def parse_known_args(self, args=None, namespace=None):
            """`~` is the home folder, also where no shell has seen it, as in YAML and in --flag=~/photos."""
            namespace, words = super().parse_known_args(args, namespace)
            for name in self.paths:
                value = getattr(namespace, name, None)
                if value is not None:
                    values = value if isinstance(value, list) else [value]
                    values = [_local_path(name, entry) for entry in values]
                    setattr(namespace, name, values if isinstance(value, list) else values[0])
            return namespace, words

        def error(self, message):
            misread = re.fullmatch(r"argument (--\w+)\S*: invalid (?:int|float) value: (.*)", message)
            if misread and self.positional:
                raise UserError(f"{misread[1]}: {misread[2]} is no number (name files and folders before this flag)")
            raise UserError(f"{message}. See {self.prog} --help")

    return _Parser


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ArgumentTypeError(f"{text} is no finite number")
    return number


_finite_number.__name__ = "float"  # by which argparse calls it where it raises


def _local_path(name: str, value):
    """A path of this machine, `~` expanded; what is no text or path as it is."""
    if not isinstance(value, str | os.PathLike):
        return value
    address = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.+)", os.fspath(value))
    hub = address and re.match(r"(?:huggingface\.co|hf\.co)/(datasets/)?([^/]+/[^/?#]+)", address[2])
    if address and (hub or name != "dataset_name"):  # `datasets` reads s3:// and the like
        advice = "download and unpack it first, and give the folder"
        if hub and hub[1]:
            advice = f"give --dataset_name {hub[2]}"
        elif hub:
            advice = f"give its id, {hub[2]}"
        raise UserError(
            f"--{name} {address[1]}://{address[2]}: an address, but what is read here are folders and files of this "
            f"machine: {advice}"
        )
    path = os.path.expanduser(value)
    if not str(path).strip():
        raise UserError(f"--{name} is empty: give a path (a variable of the shell that is not set?)")
    try:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(path)
    except (OSError, ValueError) as error:  # too long, a loop of links, or NUL in a YAML file
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--{name} {printable(str(path))} cannot be used ({why}); give another one") from None
    return type(value)(path)


def _config_tokens(argv: list[str], known: set[str]) -> list[tuple[str, list[str]]]:
    """(key, command-line tokens) for every key of the YAML file of `--config`, so that YAML and flags share one type
    conversion; none where there is no such flag."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    file = parser.parse_known_args(argv)[0].config
    if file is None:
        return []
    try:
        content = parse_yaml(read_text(os.path.expanduser(file))) or {}
    except FileNotFoundError:
        raise UserError(f"--config {file}: no such file") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"--config {file} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {file} must hold `key: value` lines, not a {type(content).__name__}")
    tokens = []
    for key, value in content.items():
        if key not in known:
            raise UserError(f"unknown key {key!r} in {file}{flag_hint(str(key), known, prefix='')}")
        if isinstance(value, list):
            tokens.append((key, [f"--{key}", *map(str, value)]))
        elif isinstance(value, dict):
            tokens.append((key, [f"--{key}", json.dumps(value)]))
        elif value is not None:
            tokens.append((key, [f"--{key}", str(value)]))
    return tokens


def parse_arguments(
    dataclass_types: tuple[type, ...],
    argv: list[str] | None = None,
    description: str | None = None,
    exclusive: tuple[tuple[str, ...], ...] = (),
    positional: str | None = None,
    others: Collection[str] = (),
) -> tuple:
    """Parses flags, and the YAML file of `--config`, into one instance of each dataclass. Flags win over the file.

    Where the command line asks for help, that is printed, and the program ends.

    Args:
        dataclass_types: as for `HfArgumentParser`. A field of type `bool | None` gets a `--no_` flag too.
        argv: without the program's name; None means the command line.
        exclusive: groups of flags of which at most one may be given; one on the command line displaces the others in
            the file.
        positional: the field that words without a flag are for, as in `check_dataset.py my_photos`: all of
            them if it is a list, else one.
        others: names of flags that somebody else parses.

    Raises:
        UserError: unknown flag or key (with the nearest known one), a value that does not fit, or two flags of an
            exclusive group.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if HELP.intersection(argv):
        print(help_page(dataclass_types, description, positional), end="")
        sys.exit()
    parser = _parser_class()(dataclass_types, add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    fields, aliases = _fields_and_aliases(dataclass_types)
    parser.paths = frozenset(name for name, field in fields.items() if is_path(field))
    for name, field in fields.items():
        if field.type == bool | None and "const" in field.metadata:
            parser.add_argument(f"--no_{name}", dest=name, action="store_false", default=None)
    for name in others:
        names = [f"--{prefix}{spelt}" for prefix in ("", "no_") for spelt in {name, name.replace("_", "-")}]
        parser.add_argument(*names, nargs="*", default=SUPPRESS)

    if positional:
        parser.positional = positional
        # In `--eval_flip photo.jpg` the word is not the switch's value.
        switches = {f"--{name}" for name, field in fields.items() if field.type in (bool, bool | None)}
        for i in reversed(range(1, len(argv))):
            if argv[i - 1] in switches and argv[i][:1] != "-" and argv[i].lower() not in TRUTH_VALUES:
                argv.insert(i, "true")
    tokens = _config_tokens(argv, {*fields, *aliases, *others})
    # Unknown flags first: what is said of the others may be because one is misspelt.
    all_words = [token for _, values in tokens for token in values] + argv
    try:
        words = parser.parse_known_args(all_words)[1]
    except UserError:  # a flag that is missing may be the one that is misspelt
        known = fields | dict.fromkeys(others)
        words = [word for word in argv if word[:2] == "--" and not _names_of_flags([word], known, aliases)]
        words = [word for word in words if word.partition("=")[0] != "--config"]
        if not words:
            raise
    unknown = next((word.split("=")[0] for word in words if word[:1] == "-" and word != "-"), None)
    if unknown:
        raise UserError(
            f"unknown flag {unknown}{flag_hint(unknown.lstrip('-'), {*fields, *aliases, *others, 'config'})}"
        )
    allowed = 0 if positional is None else len(words) if get_origin(fields[positional].type) is list else 1
    if words[allowed:]:
        is_config = Path(words[allowed]).suffix.lower() in (".json", ".yaml", ".yml")
        hint = f" (flags that stand in a file: --config {words[allowed]})" if is_config else ""
        raise UserError(f"{words[allowed]!r} belongs to no flag{hint}")
    argv += [f"--{positional}", *words] if words else []
    given = _names_of_flags(argv, fields, aliases)
    displaced = {name for group in exclusive for name in group if given.intersection(group)} - given
    argv = [token for key, values in tokens if key not in displaced for token in values] + argv

    try:
        *instances, options, _ = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except UserError:
        raise
    except Exception as error:  # TrainingArguments checks how its values fit together, and raises whatever comes
        message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(" ".join(message.split())) from error
    for instance in instances:
        for name in ("hub_token", "token"):
            keep_secret(getattr(instance, name, None))
    for group in exclusive:
        both = [name for name in group if any(getattr(instance, name, None) for instance in instances)]
        if len(both) > 1:
            raise UserError(f"give only one of {' and '.join('--' + name for name in both)}")
    return tuple(instances)


def given_flags(dataclass_types: tuple[type, ...], argv: list[str] | None = None) -> tuple[str, ...]:
    """Names of the fields that the command line, or `argv`, and the YAML file of `--config` set, in that order."""
    argv = list(sys.argv[1:] if argv is None else argv)
    fields, aliases = _fields_and_aliases(dataclass_types)
    in_file = {aliases.get(key, key) for key, _ in _config_tokens(argv, {*fields, *aliases})}
    given = in_file | _names_of_flags(argv, fields, aliases)
    return tuple(name for name in fields if name in given)


def _fields_and_aliases(dataclass_types: tuple[type, ...]) -> tuple[dict, dict[str, str]]:
    """Name → field, and other name → name."""
    fields = {name: field for cls in dataclass_types for name, field in cls.__dataclass_fields__.items() if field.init}
    aliases = {}
    for name, field in fields.items():
        others = field.metadata.get("aliases", [])
        aliases |= {other.lstrip("-"): name for other in ([others] if isinstance(others, str) else others)}
    return fields, aliases


def _names_of_flags(argv: list[str], fields: dict, aliases: dict[str, str]) -> set[str]:
    """The fields that flags on a command line name: --fused_ops, --fused-ops=…, --no_fused_ops, --reduce_labels."""
    flags = {token.split("=")[0].removeprefix("--").replace("-", "_") for token in argv if token.startswith("--")}
    names = {aliases.get(flag, flag) for flag in flags | {flag.removeprefix("no_") for flag in flags}}
    return names & fields.keys()


# ---- running --------------------------------------------------------------------------------------------------------

# In a run of several processes, seconds in which one waits to be ended by the launcher before it speaks.
PATIENCE = 3
# What the end of another process looks like from here: gloo's words, and the class names of torch.distributed.
PEER_ENDED = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Dist(Backend|Network|Store)?Error")


def run_cli(main: Callable) -> None:
    """Runs a script's `main()`, and ends as a program should.

    A UserError becomes one line on stderr and exit code 2, and so does a disk that is full or read-only. SIGTERM and
    Ctrl-C become one line and exit code 143 or 130, also where worker processes are at work; a second one leaves at
    once.

    Of several processes of one run (`accelerate launch`) the one that fails ends at once, whereupon the launcher ends
    the others and repeats the error at the end of its own report. Processes mostly meet the same mistake, so all but
    the first wait for their end before they say anything, and one that only lost the connection to another waits
    longer: it has nothing to say.
    """
    if not gc.isenabled():  # see `training.early.answer`; what was imported lives as long as the script
        gc.freeze()
        gc.enable()
    watch_for_the_end_of_others()
    owner, asked, lost, timers = os.getpid(), [], [], []

    def end(signum, frame):
        # The second one; or a forked worker, as Ctrl-C goes to all processes of a terminal.
        if os.getpid() != owner or (asked and not lost):
            os._exit(128 + signum)
        if not asked:
            asked.append(signum)
            # Pools of processes wait for their workers, and some of them for ever where they are interrupted.
            timers.append(_start_timer(UNWINDING_SECONDS, _leave_at_once, 128 + signum))
        lost.clear()
        raise Interrupted(asked[0])

    def again(unraisable):
        # Raised where Python lets nothing be raised (a finalizer, a hook of fork), and lost there.
        if isinstance(unraisable.exc_value, Interrupted) and asked:
            lost.append(unraisable.exc_value)
            timers.append(_start_timer(0.05, os.kill, owner, asked[0]))
        else:
            sys.__unraisablehook__(unraisable)

    def leave(code: int, message: str) -> None:
        for timer in timers:
            timer.cancel()
        if code > 128:  # else Python would wait for them
            kill_children()
        # A signal reaches every process of a run; one of them says so.
        if int(os.environ.get("LOCAL_RANK", 0)) <= 0:
            print(printable(redact(message), lines=True), file=sys.stderr, flush=True)
        sys.exit(code)

    sys.excepthook, sys.unraisablehook = _redacted_traceback, again
    give_up_on_a_missing_network()
    with handling_signals(end):
        try:
            main()
        except KeyboardInterrupt as error:
            leave(128 + getattr(error, "signum", signal.SIGINT), str(error) or "interrupted")
        except Exception as error:
            if asked:  # what libraries made of the interruption
                leave(128 + asked[0], "interrupted")
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                error = UserError(f"{error.filename or 'a file'} cannot be used ({error.strerror})")
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                _fail_among_others(error)
            if isinstance(error, UserError):
                leave(2, f"error: {error}")
            raise


def _fail_among_others(error: Exception) -> None:
    """Ends this process of several, without waiting for the others as an orderly end would."""
    lost_another = PEER_ENDED.search(f"{type(error).__name__}: {error}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(4 * PATIENCE if lost_another else PATIENCE if int(os.environ.get("LOCAL_RANK", 0)) > 0 else 0)
    message = redact(str(error) if isinstance(error, UserError) else one_line(error))
    if lost_another:
        message = f"another process of this run has ended ({message})"
    if isinstance(error, UserError) or lost_another:
        print(f"error: {message}", file=sys.stderr)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    # What torch.distributed.elastic, the launcher, looks for. Source: its `ErrorHandler.record_exception`.
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        told = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(report).write_text(json.dumps({"message": told}), encoding="utf-8")
    _end_at_once(2 if isinstance(error, UserError) else 1)


def watch_for_the_end_of_others() -> None:
    """From now on SIGTERM ends this process at once where it comes because another process of the run has ended.

    Nothing can be saved then, as saving needs all; and a handler of Python's would not run while the main thread waits
    for the others in a library's code, so that launchers wait for 30 s and then kill. Hence a thread, which is told of
    signals as they come (`signal.set_wakeup_fd`) and counts the processes that the launcher still has.
    """
    expected = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if expected == 1 or threading.current_thread() is not threading.main_thread():
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def watch() -> None:
        while signum := os.read(told, 1):
            if signum[0] == signal.SIGTERM and _count_processes_of_run() < expected:
                _end_at_once(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _count_processes_of_run() -> int:
    """Children of the launcher that are alive, this process among them."""
    with suppress(psutil.Error):
        processes = psutil.Process(os.getppid()).children()
        return sum(process.status() != psutil.STATUS_ZOMBIE for process in processes)
    return 0  # the launcher itself has ended


def _end_at_once(code: int) -> None:
    """Ends this process and its data loaders' workers without tidying up."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start_timer(seconds: float, function: Callable, *args) -> threading.Timer:
    timer = threading.Timer(seconds, function, args)
    timer.daemon = True
    timer.start()
    return timer


def kill_children() -> None:
    """Ends the worker processes of this one at once."""
    children = multiprocessing.active_children()
    if children and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for a worker that dies
    for child in children:
        child.kill()


def _leave_at_once(code: int) -> None:
    kill_children()
    os.write(2, b"interrupted\n")
    os._exit(code)


@contextmanager
def handling_signals(handler: Callable) -> Iterator[None]:
    """While the context lasts, `handler(signum, frame)` takes SIGINT and SIGTERM; in threads nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, signal.SIG_DFL if old is None else old)  # None: not set from Python


def is_path(field) -> bool:
    """Whether a flag takes files or folders of this machine: its type or its metavar says so."""
    return "Path" in str(field.type) or bool(re.search("FILE|FOLDER|DIR", str(field.metadata.get("metavar"))))


def give_up_on_a_missing_network() -> None:
    """Where the Hub cannot be reached at all, requests to it fail within seconds, and libraries go on to what is in
    their caches; without this they try five times, wait 23 s in all and print a line for each try.

    The first request asks whether there is a network, through the proxies of the environment; where there is one,
    nothing is changed.
    """
    client = get_session()
    kind, refusal = type(client), []

    def connect() -> None:
        try:
            with kind(timeout=CONNECT_SECONDS) as once:
                once.head(constants.ENDPOINT)
        except HTTPError as error:
            # Whoever answers late, or nonsense, can be reached; the library tries again.
            if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
                refusal.append(one_line(error))

    def ask(_) -> None:
        client.event_hooks = usual
        asking = threading.Thread(target=connect, daemon=True)  # looking up a name knows no time limit
        asking.start()
        asking.join(2 * CONNECT_SECONDS)
        if asking.is_alive():
            refusal.append(f"no answer within {2 * CONNECT_SECONDS} s")
        if refusal:
            # Not a client of its own: the library may be holding this one, between two requests.
            client.event_hooks = {"request": [refuse]}
            refuse(_)

    def refuse(_) -> None:
        raise OfflineModeIsEnabled(f"{constants.ENDPOINT} cannot be reached ({refusal[0]})")

    if not is_offline_mode():
        usual = client.event_hooks
        client.event_hooks = usual | {"request": [ask, *usual["request"]]}
