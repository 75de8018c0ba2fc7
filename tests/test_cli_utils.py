"""YAML and flags become dataclasses; every mistake names its remedy; files are whole, logs discreet, ends quiet."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import cli_utils
from checks.arguments import CheckArguments
from cli_utils import (
    PrintableFormatter,
    UserError,
    WriteError,
    flag_hint,
    is_path,
    keep_secret,
    parse_arguments,
    printable,
    read_text,
    redact,
    run_cli,
    set_up_logging,
    shorten,
    write_text,
    written_aside,
    written_together,
)
from data.arguments import ClassArguments, DatasetArguments, EvaluationArguments
from data.output_paths import check_writable
from reports.arguments import CompareArguments, PredictArguments
from training.arguments import GROUPS

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
    with pytest.raises(UserError, match="unknown flag --weights .did you mean --model"):  # not that --model is missing
        parse_arguments((Files,), ["a", "--weights", "x"], positional="inputs")


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

# What launchers do: end all when one has failed, and kill what has not ended. They wait for 30 s, this one for longer,
# as the machine may be slow; it tells how many it had to kill.
LAUNCHER = """
import os, subprocess, sys, time
environment = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
processes = [
    subprocess.Popen([sys.executable, "-c", code], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    for rank, code in enumerate(sys.argv[1:])
]
while all(process.poll() is None for process in processes):
    time.sleep(0.05)
killed = 0
for process in processes:
    process.terminate()
for process in processes:
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        killed += 1
print(killed, *(process.wait() for process in processes))
"""
SAY = "raise UserError('a.png is gone')"
BUG = "1 / 0"
# In C, where no handler of Python's runs, as in a library that waits for another process.
WAIT = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 200_000_000)"
LOST = "time.sleep(1); raise RuntimeError('[pair.cc:547] Connection closed by peer [127.0.0.1]:1234')"
# Both have started, whatever the load of the machine, and wait for the launcher as long as the case says.
TOGETHER = """
import os, pathlib, time
import cli_utils
from cli_utils import UserError, run_cli
cli_utils.PATIENCE = {patience}
def main():
    here = pathlib.Path({folder!r})
    (here / os.environ["RANK"]).touch()
    while len(list(here.iterdir())) < 2:
        time.sleep(0.01)
    {body}
run_cli(main)
"""


CASES = {  # what the two do, what is heard, and the patience: none where nobody else speaks, else more than is needed
    "in both": (SAY, SAY, "error: a.png is gone", 60),
    "in the second": (WAIT, SAY, "error: a.png is gone", 0),
    "killed": (WAIT, "os.kill(os.getpid(), 9)", "", 60),
    "in the first": (SAY, WAIT, "error: a.png is gone", 60),
    "bug": (LOST, BUG, "ZeroDivisionError: division by zero", 5),
    "lost": ("os._exit(3)", LOST, "", 60),
}


@pytest.mark.parametrize("cases", [list(CASES)[:3], pytest.param(list(CASES)[3:], marks=pytest.mark.slow)])
def test_of_several_processes_the_first_error_is_heard_alone(cases, tmp_path):
    running = {}
    for case in cases:
        (tmp_path / case).mkdir()
        *bodies, _, patience = CASES[case]
        codes = [TOGETHER.format(folder=str(tmp_path / case), body=body, patience=patience) for body in bodies]
        command = [sys.executable, "-c", LAUNCHER, *codes]
        pipe = subprocess.PIPE
        running[case] = subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    for case, process in running.items():
        output, errors = process.communicate(timeout=300)
        killed, *codes = output.split()
        assert killed == "0" and "0" not in codes, (case, output, errors)
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
    assert lines[0] == "warning: … at https://host/a?…" and "httpx2" not in "".join(lines)


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


# ---- flags by other names -------------------------------------------------------------------------------------------


def flags_of(*scripts):
    return {name for group in scripts for name in group.__dataclass_fields__} | {"config"}


TRAINING, PREDICTION, CHECK = (
    flags_of(*GROUPS.values()),
    flags_of(PredictArguments, EvaluationArguments),
    flags_of(CheckArguments, DatasetArguments, ClassArguments),
)
FOR_TRAINING = {
    "learning_rate": "lr lr0 base_lr LR",
    "num_train_epochs": "epochs epoch num_epochs",
    "per_device_train_batch_size": "batch_size bs batch batch-size",
    "image_size": "imgsz img_size",
    "dataloader_num_workers": "workers num_workers",
    "model_name_or_path": "model weights pretrained",
    "dataset_dir": "data dataset data_dir",
    "resume_from_checkpoint last": "resume",
    "report_to": "with_tracking wandb",
    "eval_strategy": "evaluation_strategy",
    "use_cpu": "no_cuda cpu",
    "output_dir": "output out name outdir",
    "id2label": "classes names",
    "do_train": "train",
    "do_eval": "val eval",
    "weight_decay": "wd",
}


@pytest.mark.parametrize(("flag", "names"), FOR_TRAINING.items())
def test_flags_by_the_names_of_other_tools(flag, names):
    for name in names.split():
        assert flag_hint(name, TRAINING) == f" (did you mean --{flag}?)", name


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("cache_dir", TRAINING, "HF_HOME"),
        ("device", TRAINING, "CUDA_VISIBLE_DEVICES"),
        ("token", TRAINING, "hf auth login"),
        ("config_name", TRAINING, "comes with the model"),
        ("image_processor_name", TRAINING, "comes with the model"),
        ("trust_remote_code", TRAINING, "never run"),
        ("fp32", TRAINING, "without --bf16"),
        ("nc", TRAINING, "counted"),
        ("model_name_or_path", PREDICTION, r"did you mean --model\?"),
        ("weights", PREDICTION, r"did you mean --model\?"),
        ("source", PREDICTION, r"did you mean --inputs\?"),
        ("out", PREDICTION, r"did you mean --output_dir\?"),
        ("use_cpu", PREDICTION, r"did you mean --device cpu\?"),
        ("workers", CHECK, r"did you mean --num_proc\?"),
        ("data", CHECK, r"did you mean --dataset_dir\?"),
    ],
)
def test_flags_that_are_not_needed_and_those_of_other_scripts(name, known, answer):
    assert re.search(answer, flag_hint(name, known))


def test_every_answer_is_about_a_flag_that_is_there():
    for name in (name for names in cli_utils._CALLED_ELSEWHERE.values() for name in names.split()):
        for known in (TRAINING, PREDICTION, CHECK):
            found = re.fullmatch(r" \(did you mean --(\w+)( \w+)?\?\)", flag_hint(name, known))
            assert not found or found[1] in known, name


# Slips that are nearer to another flag, or to another tool's name for one.
AMBIGUOUS = {"f16", "fb16", "adam_bet1a", "f16_full_eval", "fb16_full_eval"}


@pytest.mark.parametrize("known", [TRAINING, PREDICTION, CHECK], ids=["training", "prediction", "check"])
def test_slips_of_the_finger_are_understood(known):
    """A letter left out, doubled, or swapped with the next one, at the ends and in the middle of any flag."""
    for flag in known:
        for i in {0, len(flag) // 2, len(flag) - 2}:
            swapped = flag[:i] + flag[i + 1] + flag[i] + flag[i + 2 :]
            for slip in (flag[:i] + flag[i + 1 :], flag[:i] + flag[i] + flag[i:], swapped):
                assert slip in known or f"--{flag}" in flag_hint(slip, known) or slip in AMBIGUOUS, slip


@pytest.mark.parametrize(
    "name", "slide_size mask_size lr_r momentum_decay project_name hub_model train_dataset eval_loss".split()
)
def test_names_that_only_look_alike_lead_nowhere(name):
    assert "did you mean" not in flag_hint(name, TRAINING)


# ---- paths ----------------------------------------------------------------------------------------------------------


@dataclass
class Paths:
    folder: str | None = field(default=None, metadata={"metavar": "DIR"})
    files: list[Path] = field(default_factory=list, metadata={"metavar": "FILE"})
    path: Path | None = None
    dataset_name: str | None = field(default=None, metadata={"metavar": "ID_OR_DIR"})
    pattern: str = ""


def test_the_home_folder_in_every_path(monkeypatch, config):
    monkeypatch.setenv("HOME", "/home/me")
    file = config("folder: ~/photos\nfiles: [~/a, b, '~']\npattern: ~/x\n")
    (paths,) = parse_arguments((Paths,), ["--config", file, "--path=~/p", "--dataset_name", "~/set.parquet"])
    assert paths.folder == "/home/me/photos" and paths.pattern == "~/x"
    assert paths.files == [Path("/home/me/a"), Path("b"), Path("/home/me")]
    assert paths.path == Path("/home/me/p") and paths.dataset_name == "/home/me/set.parquet"
    monkeypatch.setenv("HOME", str(Path(file).parent))
    assert parse_arguments((Paths,), ["--config", "~/config.yaml"])[0].pattern == "~/x"


def test_all_flags_for_files_and_folders_are_known_as_such():
    expected = "dataset_dir dataset_name images masks id2label label_map model_name_or_path from_scratch backbone"
    groups = [*GROUPS.values(), CheckArguments, PredictArguments, CompareArguments]
    marked = {name for group in groups for name, field in group.__dataclass_fields__.items() if is_path(field)}
    assert marked == {
        *expected.split(),
        *("output_dir", "resume_from_checkpoint", "deepspeed", "model", "json", "html", "fix", "runs"),
        *("class_weights", "preview"),
    }


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["--folder", "https://example.com/data.zip"], r"--folder https://example.com/data.zip: an address.*download"),
        (["--path", "http://example.com/x"], r"--path http://example.com/x: an address"),
        (["--files", "a", "s3://bucket/x"], r"--files s3://bucket/x: an address"),
        (["--folder", "https://huggingface.co/datasets/a/b/tree/main"], "give --dataset_name a/b$"),
        (["--dataset_name", "https://huggingface.co/datasets/a/b"], "give --dataset_name a/b$"),
        (["--folder", "https://huggingface.co/nvidia/mit-b0"], "give its id, nvidia/mit-b0$"),
    ],
)
def test_addresses_are_no_paths(argv, answer):
    with pytest.raises(UserError, match=answer):
        parse_arguments((Paths,), argv)
    (paths,) = parse_arguments((Paths,), ["--dataset_name", "s3://bucket/x", "--folder", "C:/photos"])
    assert (paths.dataset_name, paths.folder) == ("s3://bucket/x", "C:/photos")


def test_a_file_of_flags_without_config():
    for name in ("args.json", "configs/toy.yaml"):
        with pytest.raises(UserError, match=rf"'{name}' belongs to no flag \(.*--config {name}\)"):
            parse(name)


# ---- what a terminal is shown, what is written ----------------------------------------------------------------------


def test_names_cannot_reach_the_terminal(capsys):
    name = "a\x1b[31m\n\r\t\x9b\u202eb\u2028\udcff🚗 é"
    expected = r"a\x1b[31m\n\r\t\x9b\u202eb\u2028\xff🚗 é"
    assert printable(name) == shorten([name]) == expected
    assert printable(name, lines=True) == expected.replace(r"\n", "\n").replace(r"\t", "\t")

    def mistake():
        raise UserError(name)

    with pytest.raises(SystemExit):
        run_cli(mistake)
    formatter = PrintableFormatter("%(message)s")
    record = logging.makeLogRecord({"msg": name, "levelno": logging.INFO, "pathname": __file__})
    shown = [formatter.format(record), capsys.readouterr().err.removeprefix("error: ")]
    for text in shown:
        assert text.strip() == printable(name, lines=True)


def test_files_appear_when_they_are_complete(tmp_path):
    file = tmp_path / "new" / "report.json"
    with pytest.raises(KeyboardInterrupt), written_aside(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []
    write_text(file, "whole \udcff")
    with pytest.raises(ZeroDivisionError), written_aside(file) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == r"whole \udcff" and list(file.parent.iterdir()) == [file]
    write_text("/dev/null", "x")
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: Is a directory"):
        write_text(tmp_path, "x")


# ---- no network -----------------------------------------------------------------------------------------------------


# In one process, as most of the time goes into imports; it prints the seconds that were waited and the status.
EACH_COMMAND = """
import json, sys, time
waited = []
time.sleep = waited.append  # before libraries take it
import run_segmentation
from cli_utils import run_cli
for argv in json.loads(sys.argv.pop()):
    sys.argv[1:] = argv
    try:
        run_cli(run_segmentation.main)
    except SystemExit as end:
        print(sum(waited), end.code)
"""


def test_without_network_there_is_one_line_at_once(tmp_path):
    """The Hub is a port at which nobody listens. Libraries would try five times and wait 23 s in all."""
    answers = {
        "nvidia/mit-b0 is no folder": ["--dataset_dir", "x", "--do_train", "--output_dir", "out"],
        "cannot be reached": ["--dataset_name", "a/b", "--from_scratch", "mit-b0", "--do_train"],
        "--push_to_hub needs the network": ["--dataset_dir", "x", "--do_train", "--push_to_hub"],
    }
    env = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path)}
    env |= {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", EACH_COMMAND, json.dumps([*answers.values()])]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3, done.stderr
    for line, answer in zip(lines, answers, strict=True):
        assert line.startswith("error: ") and answer in line
    assert done.stdout.splitlines() == ["0 2"] * 3
