"""What every command-line script here shares: YAML + flags → dataclasses, and errors that a user can act on."""

import difflib
import json
import os
import re
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_origin

import yaml
from transformers import HfArgumentParser

# What HfArgumentParser takes for the value of a switch.
TRUTH_VALUES = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}
MAX_ALIASES = 20  # in a YAML file, as each may double its length


class UserError(ValueError):
    """A mistake in the user's input. Its message says what was found, what is allowed and how to mend it.

    Scripts print the message alone; any other exception is a bug and keeps its traceback.
    """


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
    return f"{count:,} {agree(count, plural)}"


def agree(count: int, phrase: str) -> str:
    """Of words like is/are, in a phrase that comes from no file, the one that goes with a count."""
    return " ".join(word.split("/")[-(count != 1)] for word in phrase.split(" "))


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


def check_positive(args, *names: str) -> None:
    """Raises UserError where a field of a group of flags is given and less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")


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
        content = parse_yaml(Path(file).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"--config {file}: no such file") from None
    except (OSError, ValueError) as error:
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


def run_cli(main: Callable) -> None:
    """Runs a script's `main()`: a UserError becomes one line on stderr and exit code 2; Ctrl-C ends quietly."""
    try:
        main()
    except UserError as error:
        # Every process of a distributed run meets the same mistake; one of them says so.
        if int(os.environ.get("LOCAL_RANK", 0)) <= 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
