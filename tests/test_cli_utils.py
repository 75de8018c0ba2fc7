"""YAML and flags become dataclasses; every mistake names its remedy; files are whole, logs discreet, ends quiet."""

import errno
import logging
import os
import signal
from dataclasses import dataclass, field

import pytest

from cli_utils import (
    UserError,
    WriteError,
    check_writable,
    keep_secret,
    parse_arguments,
    redact,
    run_cli,
    set_up_logging,
    write_text,
    written_aside,
    written_together,
)


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
    check_writable(tmp_path / "new" / "folder", "it", "take another")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match=r"^it cannot be written to \(.*\); take another$"):
        check_writable(tmp_path / "file", "it", "take another")
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
