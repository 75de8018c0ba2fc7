"""What every command-line script here shares: YAML + flags → dataclasses, errors that a user can act on, a log without
secrets, files that are whole or not there, and a quiet end when a signal asks for it."""

import difflib
import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import zlib
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_origin

import yaml
from transformers import HfArgumentParser

# What HfArgumentParser takes for the value of a switch.
TRUTH_VALUES = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}

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


class UserError(ValueError):
    """A mistake in the user's input. Its message says what was found, what is allowed and how to mend it.

    Scripts print the message alone; any other exception is a bug and keeps its traceback.
    """


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


def shorten(names: Iterable[str], shown: int = 3) -> str:
    """ "a, b, c and 4 more": the first few of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def count_of(count: int, phrase: str) -> str:
    """ "1 mask differs", "3 masks differ" for the phrase "mask/masks differs/differ"; "3 masks" for "mask"."""
    plural = phrase if "/" in phrase else f"{phrase}/{phrase}s"
    return f"{count} {agree(count, plural)}"


def agree(count: int, phrase: str) -> str:
    """Of words like is/are, in a phrase that comes from no file, the one that goes with a count."""
    return " ".join(word.split("/")[-(count != 1)] for word in phrase.split(" "))


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, with its type where that tells more than a built-in one does."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    says_little = not lines or isinstance(error, LookupError)  # KeyError: 'name'
    return ": ".join([name, *lines[:1]]) if says_little or type(error).__module__ != "builtins" else lines[0]


def check_positive(args, *names: str) -> None:
    """Raises UserError where a field of a group of flags is given and less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")


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


def set_up_logging(level: int = logging.INFO) -> None:
    """One stream of lines on stderr, without secrets, and without a line for every request to the Hub."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=level, force=True)
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
    """Writes a text file (UTF-8) through `written_aside`."""
    with written_aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


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


def check_files_writable(args, *names: str) -> None:
    """Raises WriteError where a field of a group of flags names a file to write that cannot be made there."""
    for name in names:
        file = getattr(args, name)
        if file is None:
            continue
        if os.path.isdir(file):
            raise WriteError(f"--{name} {file} cannot be written: {os.strerror(errno.EISDIR)}")
        check_writable(Path(file).absolute().parent, f"the folder of --{name} {file}", "give another file")


def check_writable(folder: str | os.PathLike, what: str, advice: str) -> None:
    """Makes sure, before long work, that files can be written to a folder. Nothing is left, not even the folder.

    Raises:
        WriteError: they cannot: "WHAT cannot be written to (reason); ADVICE".
    """
    folder = Path(folder)
    missing = missing_folders(folder)
    probe = folder / f"{PARTIAL}{os.getpid()}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
    except OSError as error:
        raise WriteError(f"{what} cannot be written to ({error.strerror}); {advice}") from None
    finally:
        remove(probe)
        for made in missing:
            try:
                made.rmdir()
            except OSError:
                break


# ---- flags ----------------------------------------------------------------------------------------------------------


class _HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """The description's lines as they are, and every flag's default."""


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises UserError instead of printing the usage of 150 flags."""

    positional = None

    def error(self, message):
        misread = re.fullmatch(r"argument (--\w+)\S*: invalid (?:int|float) value: (.*)", message)
        if misread and self.positional:
            raise UserError(f"{misread[1]}: {misread[2]} is no number (name files and folders before this flag)")
        raise UserError(f"{message}. See {self.prog} --help")


def _config_tokens(argv: list[str], known: set[str]) -> list[tuple[str, list[str]]]:
    """(key, command-line tokens) for every key of the YAML file of `--config`, so that YAML and flags share one type
    conversion; none where there is no such flag."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    file = parser.parse_known_args(argv)[0].config
    if file is None:
        return []
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"--config {file}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {file} must hold `key: value` lines, not a {type(content).__name__}")
    tokens = []
    for key, value in content.items():
        if key not in known:
            raise UserError(f"unknown key {key!r} in {file}{nearest(str(key), known)}")
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
) -> tuple:
    """Parses flags, and the YAML file of `--config`, into one instance of each dataclass. Flags win over the file.

    Args:
        dataclass_types: as for `HfArgumentParser`. A field of type `bool | None` gets a `--no_` flag too.
        argv: without the program's name; None means the command line.
        exclusive: groups of flags of which at most one may be given; one on the command line displaces the others in
            the file.
        positional: the field that words without a flag are for, as in `check_dataset.py my_photos`: all of
            them if it is a list, else one.

    Raises:
        UserError: unknown flag or key (with the nearest known one), a value that does not fit, or two flags of an
            exclusive group.
    """
    parser = _Parser(dataclass_types, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file with any of these flags; flags here win")
    fields, aliases = _fields_and_aliases(dataclass_types)
    for name, field in fields.items():
        if field.type == bool | None and "const" in field.metadata:
            parser.add_argument(f"--no_{name}", dest=name, action="store_false", default=None, help=f"not {name}")

    argv = list(sys.argv[1:] if argv is None else argv)
    if positional:
        parser.positional = positional
        # In `--eval_flip photo.jpg` the word is not the switch's value.
        switches = {f"--{name}" for name, field in fields.items() if field.type in (bool, bool | None)}
        for i in reversed(range(1, len(argv))):
            if argv[i - 1] in switches and argv[i][:1] != "-" and argv[i].lower() not in TRUTH_VALUES:
                argv.insert(i, "true")
    tokens = _config_tokens(argv, {*fields, *aliases})
    # Unknown flags first: what is said of the others may be because one is misspelt.
    words = parser.parse_known_args([token for _, values in tokens for token in values] + argv)[1]
    unknown = next((word.split("=")[0] for word in words if word[:1] == "-" and word != "-"), None)
    if unknown:
        raise UserError(f"unknown flag {unknown}{nearest(unknown, [f'--{name}' for name in (*fields, *aliases)])}")
    allowed = 0 if positional is None else len(words) if get_origin(fields[positional].type) is list else 1
    if words[allowed:]:
        raise UserError(f"{words[allowed]!r} belongs to no flag")
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
    except ValueError as error:  # TrainingArguments checks how its values fit together
        raise UserError(" ".join(str(error).split())) from None
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


def run_cli(main: Callable) -> None:
    """Runs a script's `main()`, and ends as a program should.

    A UserError becomes one line on stderr and exit code 2, and so does a disk that is full or read-only. SIGTERM and
    Ctrl-C become one line and exit code 143 or 130, also where worker processes are at work; a second one leaves at
    once.
    """
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

    # Every process of a distributed run meets the same mistake; one of them says so.
    speaks = int(os.environ.get("LOCAL_RANK", 0)) <= 0

    def leave(code: int, message: str) -> None:
        for timer in timers:
            timer.cancel()
        if code > 128:  # else Python would wait for them
            _kill_children()
        if speaks:
            print(redact(message), file=sys.stderr, flush=True)
        sys.exit(code)

    sys.excepthook, sys.unraisablehook = _redacted_traceback, again
    with handling_signals(end):
        try:
            main()
        except KeyboardInterrupt as error:
            leave(128 + getattr(error, "signum", signal.SIGINT), str(error) or "interrupted")
        except Exception as error:
            if asked:  # what libraries made of the interruption
                leave(128 + asked[0], "interrupted")
            if isinstance(error, UserError):
                leave(2, f"error: {error}")
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                leave(2, f"error: {error.filename or 'a file'} cannot be used ({error.strerror})")
            raise


def _start_timer(seconds: float, function: Callable, *args) -> threading.Timer:
    timer = threading.Timer(seconds, function, args)
    timer.daemon = True
    timer.start()
    return timer


def _kill_children() -> None:
    children = multiprocessing.active_children()
    if children and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for a worker that dies
    for child in children:
        child.kill()


def _leave_at_once(code: int) -> None:
    _kill_children()
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
