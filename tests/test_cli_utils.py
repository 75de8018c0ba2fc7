"""YAML and flags become dataclasses; every mistake names its remedy."""

from dataclasses import dataclass, field

import pytest

from cli_utils import UserError, parse_arguments, read_text, run_cli
from data.arguments import ClassArguments, DatasetArguments


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
    (tmp_path / "run.yaml").write_text("masks: ~/masks\nmerge_classes: [~/x]\n")
    argv = ["--dataset_dir=~/photos", "--images", "~/images", "--config", str(tmp_path / "run.yaml")]
    data, classes = parse_arguments((DatasetArguments, ClassArguments), [*argv, "--id2label", "~/names.txt"])
    assert (data.dataset_dir, data.images, data.masks) == ("/home/me/photos", "/home/me/images", "/home/me/masks")
    assert (classes.id2label, classes.merge_classes) == ("/home/me/names.txt", ["/home/me/x"])
    assert parse_arguments((DatasetArguments,), ["--mask_suffix", "~old"])[0].mask_suffix == "~old"
