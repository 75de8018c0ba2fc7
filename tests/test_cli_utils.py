"""YAML and flags become dataclasses; every mistake names its remedy; files are whole, logs discreet, ends quiet."""

import errno
import logging
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli_utils import (
    UserError,
    WriteError,
    keep_secret,
    parse_arguments,
    read_text,
    redact,
    run_cli,
    set_up_logging,
    write_text,
    written_aside,
    written_together,
)
from data.arguments import ClassArguments, DatasetArguments
from data.output_paths import check_writable

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Options:
    dataset_dir: str | None = None
    dataset_name: str | None = None
    learning_rate: float = 6e-5
    ignore_values: list[int] = field(default_factory=list)
    fused_ops: bool = True
    do_reduce_labels: bool | None = field(
        default=None, metadata={"aliases": ["--reduce_labels"], "nargs": "?", "const": True}
    )
    kwargs: str | None = None

    def __post_init__(self):
        if self.learning_rate < 0:
            raise ValueError("learning_rate must not\n be negative")


def parse(*argv):
    return parse_arguments((Options,), list(argv), exclusive=(("dataset_dir", "dataset_name"),))[0]


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_yaml_values_are_converted_like_flags(config):
    file = config(
        "learning_rate: 6e-4\nignore_values: [11, 12]\nfused_ops: false\nkwargs: {a: 1}\ndataset_name: null\n"
    )
    options = parse("--config", file)
    assert options.learning_rate == 6e-4  # PyYAML reads 6e-4 as a string
    assert options.ignore_values == [11, 12]
    assert options.fused_ops is False
    assert options.kwargs == '{"a": 1}'
    assert options.dataset_name is None


def test_flags_win_over_the_file(config):
    file = config("learning_rate: 1.0\nignore_values: [1, 2, 3]\ndataset_dir: there\ndo_reduce_labels: true\n")
    options = parse(
        "--learning_rate",
        "2",
        "--config",
        file,
        "--ignore_values",
        "9",
        "--dataset_name",
        "x",
        "--no_do_reduce_labels",
    )
    assert options.learning_rate == 2
    assert options.ignore_values == [9]
    assert (options.dataset_name, options.dataset_dir) == ("x", None)
    assert options.do_reduce_labels is False


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], None),
        (["--do_reduce_labels"], True),
        (["--reduce_labels"], True),
        (["--do_reduce_labels", "false"], False),
        (["--no_do_reduce_labels"], False),
    ],
)
def test_three_valued_flag(argv, expected):
    assert parse(*argv).do_reduce_labels is expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], r"unknown flag --learning_rat \(did you mean --learning_rate\?\)"),
        (["--qqq=1"], r"unknown flag --qqq$"),
        (["stray"], "'stray' belongs to no flag"),
        (["--learning_rate", "fast"], "learning_rate.*invalid float value: 'fast'"),
        (["--learning_rate", "-1"], "^learning_rate must not be negative$"),
        (["--dataset_dir", "a", "--dataset_name", "b"], "only one of --dataset_dir and --dataset_name"),
        (["--config", "missing.yaml"], "missing.yaml: no such file"),
    ],
)
def test_mistakes_on_the_command_line(argv, message):
    with pytest.raises(UserError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning-rate: 1", r"unknown key 'learning-rate'.*did you mean learning_rate\?"),
        ("- a\n- b", "`key: value` lines, not a list"),
        ("a: [1", "cannot be read as YAML"),
        ("fused_ops: perhaps", "fused_ops"),
    ],
)
def test_mistakes_in_the_file(config, text, message):
    with pytest.raises(UserError, match=message):
        parse("--config", config(text))


def test_run_cli_prints_one_line_for_users_and_a_traceback_for_bugs(capsys):
    def mistake():
        raise UserError("masks/a.png holds 300; allowed are 0 to 4")

    with pytest.raises(SystemExit) as exit_info:
        run_cli(mistake)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: masks/a.png holds 300; allowed are 0 to 4\n"
    with pytest.raises(ValueError, match="bug"):
        run_cli(lambda: int("bug"))


def test_a_message_that_comes_back_as_a_traceback_is_the_message_again():
    def nested():
        try:
            raise UserError("a.png is gone: put it back")
        except UserError:
            return traceback.format_exc()

    assert str(UserError(f"Caught UserError in DataLoader worker process 0.\nOriginal {nested()}")) == (
        "a.png is gone: put it back"
    )
    assert str(UserError("two lines:\n  of which this is one")) == "two lines:\n  of which this is one"


@dataclass
class Files:
    inputs: list[str] = field(default_factory=list, metadata={"help": "files"})
    model: str = field(default=None, metadata={"help": "model"})
    flip: bool = field(default=False, metadata={"help": "mirrored too"})
    scales: list[float] = field(default_factory=list, metadata={"help": "numbers"})


@pytest.mark.parametrize(
    "argv",
    [
        ["a", "b", "--model", "a"],
        ["--model", "a", "a", "b"],
        ["a", "--model", "a", "b"],
        ["--model=a", "--inputs", "a", "b"],
    ],
)
def test_words_without_a_flag(argv):
    (files,) = parse_arguments((Files,), argv, positional="inputs")
    assert files == Files(["a", "b"], "a")
    with pytest.raises(UserError, match="unknown flag --modle.*did you mean --model"):
        parse_arguments((Files,), [*argv, "--modle", "x"], positional="inputs")


def test_words_after_switches_and_numbers():
    (files,) = parse_arguments((Files,), ["--flip", "a", "b"], positional="inputs")
    assert files == Files(["a", "b"], flip=True)
    (files,) = parse_arguments((Files,), ["a", "--flip", "no"], positional="inputs")
    assert files == Files(["a"], flip=False)
    message = r"^--scales: 'a' is no number \(name files and folders before this flag\)$"
    with pytest.raises(UserError, match=message):
        parse_arguments((Files,), ["--scales", "1", "0.5", "a"], positional="inputs")


def test_a_word_without_a_flag_wins_over_the_file(config):
    exclusive = (("dataset_dir", "dataset_name"),)
    argv = ["my_photos", "--config", config("dataset_name: x")]
    (options,) = parse_arguments((Options,), argv, exclusive=exclusive, positional="dataset_dir")
    assert (options.dataset_dir, options.dataset_name) == ("my_photos", None)
    with pytest.raises(UserError, match="'b' belongs to no flag"):
        parse_arguments((Options,), ["a", "b"], positional="dataset_dir")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("größe", encoding)
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
    ]
    + [("plain", "ascii"), ("", "utf-8"), ("図形", "utf-8")],
)
def test_text_of_any_editor(tmp_path, text, encoding):
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "list.txt") == text


@pytest.mark.parametrize(
    "content", ["図形一覧表".encode("shift_jis"), "привет".encode("cp1251"), bytes(range(256)), b"\xff\xfea"]
)
def test_text_that_cannot_be_told(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match="list.txt is no text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8"):
        read_text(tmp_path / "list.txt")


def test_home_folders_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text("masks: ~/masks\nmerge_classes: [~/x=y]\n")
    argv = ["--dataset_dir=~/photos", "--images", "~/images", "--config", str(tmp_path / "run.yaml")]
    data, classes = parse_arguments((DatasetArguments, ClassArguments), [*argv, "--id2label", "~/names.txt"])
    assert (data.dataset_dir, data.images, data.masks) == ("/home/me/photos", "/home/me/images", "/home/me/masks")
    assert (classes.id2label, classes.merge_classes) == ("/home/me/names.txt", ["~/x=y"])
    assert parse_arguments((DatasetArguments,), ["--mask_suffix", "~old"])[0].mask_suffix == "~old"


# ---- several processes ----------------------------------------------------------------------------------------------

# What launchers do: end all when one has failed, and kill what has not ended after 30 s.
LAUNCHER = """
import os, subprocess, sys, time
environment = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
processes = [
    subprocess.Popen([sys.executable, "-c", code], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    for rank, code in enumerate(sys.argv[1:])
]
while all(process.poll() is None for process in processes):
    time.sleep(0.05)
failed = time.monotonic()
for process in processes:
    process.terminate()
for process in processes:
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
print(time.monotonic() - failed, *(process.wait() for process in processes))
"""
SAY = "raise UserError('a.png is gone')"
BUG = "1 / 0"
# In C, where no handler of Python's runs, as in a library that waits for another process.
WAIT = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 200_000_000)"
LOST = "import time; time.sleep(1); raise RuntimeError('[pair.cc:547] Connection closed by peer [127.0.0.1]:1234')"
# Both have started, whatever the load of the machine.
TOGETHER = """
import os, pathlib, time
from cli_utils import UserError, run_cli
def main():
    here = pathlib.Path({folder!r})
    (here / os.environ["RANK"]).touch()
    while len(list(here.iterdir())) < 2:
        time.sleep(0.01)
    {body}
run_cli(main)
"""


CASES = {
    "in both": (SAY, SAY, "error: a.png is gone"),
    "in the second": (WAIT, SAY, "error: a.png is gone"),
    "killed": (WAIT, "os.kill(os.getpid(), 9)", ""),
    "in the first": (SAY, WAIT, "error: a.png is gone"),
    "bug": (LOST, BUG, "ZeroDivisionError: division by zero"),
    "lost": ("os._exit(3)", LOST, ""),
}


@pytest.mark.parametrize("cases", [list(CASES)[:3], pytest.param(list(CASES)[3:], marks=pytest.mark.slow)])
def test_of_several_processes_the_first_error_is_heard_alone(cases, tmp_path):
    running = {}
    for case in cases:
        (tmp_path / case).mkdir()
        codes = [TOGETHER.format(folder=str(tmp_path / case), body=body) for body in CASES[case][:2]]
        command = [sys.executable, "-c", LAUNCHER, *codes]
        pipe = subprocess.PIPE
        running[case] = subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    for case, process in running.items():
        output, errors = process.communicate(timeout=120)
        seconds, *codes = output.split()
        assert float(seconds) < 10 and "0" not in codes, (case, output, errors)
        expected = CASES[case][2]
        if case == "bug":
            assert errors.count("Traceback") == 1 and errors.splitlines()[-1] == expected, (case, errors)
        else:
            assert errors.strip() == expected, (case, errors)


# ---- files ----------------------------------------------------------------------------------------------------------


def full_disk(path):
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


LONG = "x" * 251 + ".png"


@pytest.mark.parametrize("name", ["a.png", "below/new/folders/a.json", LONG, "no suffix", "\udcff.png"])
def test_a_file_is_whole_or_not_there(tmp_path, name):
    path = tmp_path / name
    with written_aside(path) as partial:
        partial.write_bytes(b"first")
        assert not path.exists() and partial.suffix == path.suffix
    assert path.read_bytes() == b"first"
    with pytest.raises(WriteError, match="cannot be written: No space left on device") as error:
        with written_aside(path) as partial:
            full_disk(partial)
    assert path.name in str(error.value) or "\udcff" in name
    for other in (KeyboardInterrupt, ValueError):
        with pytest.raises(other):
            with written_aside(path) as partial:
                partial.write_bytes(b"half")
                raise other
    assert path.read_bytes() == b"first" and list(path.parent.iterdir()) == [path]


def test_errors_that_are_not_about_writing_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        with written_aside(tmp_path / "a.txt"):
            (tmp_path / "input").read_text()
    with pytest.raises(UserError, match="^mine$"):
        with written_aside(tmp_path / "a.txt"):
            raise UserError("mine")


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path, reason in ((tmp_path / "file" / "a", "File exists|Not a directory"), (tmp_path / "folder", "directory")):
        with pytest.raises(WriteError, match=f"{path} cannot be written: .*({reason})"):
            write_text(path, "text")
    assert (tmp_path / "file").read_text() == "mine"


def test_files_that_belong_together_come_together(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(WriteError, match="results cannot be written|b.txt cannot be written"):
        with written_together(tmp_path) as folder:
            (folder / "a.txt").write_text("new")
            full_disk(folder / "b.txt")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b.txt": "old"}
    with written_together(tmp_path) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "b.txt").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new", "b.txt": "new"}


def test_a_probe_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "folder", "--it", is_folder=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"^--it .*file is a file; give a folder$"):
        check_writable(tmp_path / "file", "--it", is_folder=True)
    assert (tmp_path / "file").read_text() == "mine"


# ---- log and signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("PUT https://host/a/b?X-Amz-Signature=5ec4e7&x=1 200", "PUT https://host/a/b?… 200"),
        ("'s3://bucket/key?sig=5ec4e7'", "'s3://bucket/key?…'"),
        ("token hf_AbCdEf123456 refused", "token hf_… refused"),
        ("is it https://huggingface.co/me/model?", "is it https://huggingface.co/me/model?"),
        ("half_precision and hf_hub, why? Because", "half_precision and hf_hub, why? Because"),
    ],
)
def test_secrets_are_left_out(text, clean):
    assert redact(text) == clean


def test_the_log_has_no_secrets_whoever_writes_it(capsys):
    set_up_logging()
    keep_secret("s3cr3t")
    logging.getLogger("library").warning("%s at %s", "s3cr3t", "https://host/a?b=5ec4e7")
    logging.getLogger("httpx2").info("GET https://host/a 200")
    logging.getLogger("library").warning("%d", "no number")  # the handler says so
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "WARNING library: … at https://host/a?…" and "httpx2" not in "".join(lines)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_one_line_and_a_code(capsys, signum, code):
    before = signal.getsignal(signum)

    def work():
        signal.raise_signal(signum)

    with pytest.raises(SystemExit) as exit_info:
        run_cli(work)
    assert exit_info.value.code == code and capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signum) is before


def test_what_libraries_make_of_a_signal_ends_the_same_way(capsys):
    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a worker has died") from None

    with pytest.raises(SystemExit) as exit_info:
        run_cli(work)
    assert exit_info.value.code == 143 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_is_no_bug(capsys, code):
    def work():
        raise OSError(code, os.strerror(code), "out/file.bin")

    with pytest.raises(SystemExit) as exit_info:
        run_cli(work)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"error: out/file.bin cannot be used ({os.strerror(code)})\n"
