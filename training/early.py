"""What a command line can be answered before torch and the Trainer are imported, which takes seconds: a page of help,
and most mistakes in flags."""

import ast
import gc
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import MISSING, field, fields, make_dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from cli_utils import UserError, given_flags, parse_arguments, run_cli
from data.arguments import AugmentationArguments, ClassArguments, DatasetArguments, EvaluationArguments
from data.layouts import check_folder
from models.arguments import LossArguments, ModelArguments
from training.run_arguments import NOTHING_TO_DO, OptimizationArguments, RunArguments, check_limits

OWN_GROUPS = (
    DatasetArguments,
    ClassArguments,
    AugmentationArguments,
    EvaluationArguments,
    ModelArguments,
    LossArguments,
    OptimizationArguments,
    RunArguments,
)
NUMBERS = {"int": int | None, "int | None": int | None, "float": float | None, "float | None": float | None}
TASKS = {"do_train", "do_eval", "do_predict"}
THE_TRAINERS = """The flags of the Trainer work as well; --help_all explains all of them. Used most:
  --do_train --do_eval --do_predict --output_dir --resume_from_checkpoint last
  --num_train_epochs --max_steps --learning_rate --lr_scheduler_type --warmup_steps --weight_decay --optim --seed
  --per_device_train_batch_size --per_device_eval_batch_size --gradient_accumulation_steps --dataloader_num_workers
  --eval_strategy --eval_steps --save_strategy --save_steps --load_best_model_at_end --metric_for_best_model
  --bf16 --fp16 --tf32 --torch_compile --use_cpu --logging_steps --report_to --push_to_hub --hub_model_id"""


def answer(description: str) -> None:
    """Prints the help that the command line asks for, or what is wrong with its flags, and ends the program; returns
    where there is no such thing, with garbage collection off until `run_cli`. `--help_all` becomes `--help`, for the
    parser that knows all flags."""
    argv = sys.argv[1:]
    if "--help_all" in argv:
        sys.argv[1:] = ["--help"]
    elif "--help" in argv or "-h" in argv:
        print(help_page(description))
        sys.exit()
    else:
        run_cli(lambda: (check_flags(argv), check_folder_of(argv)))
    # What is imported stays, so looking for garbage among it, over a second of CPU in all, finds none.
    gc.disable()
    if not any("lora" in word or "config" in word for word in argv):  # a file of flags may have it
        # transformers imports peft wherever it is installed, which takes another second; so it is not, for this run.
        sys.modules["peft"] = None


def help_page(description: str) -> str:
    """The project's own flags, by topic."""
    parser = ArgumentParser(
        usage="python %(prog)s [--config FILE.yaml] [--FLAG VALUE …]",
        description=description,
        epilog=THE_TRAINERS,
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
    )
    words = "YAML file with any of these flags; flags here win; auto: chosen for data and machine (docs/planning.md)"
    parser.add_argument("--config", metavar="FILE.yaml", help=words)
    for kind in OWN_GROUPS:
        group = parser.add_argument_group(kind.__doc__.splitlines()[0].rstrip("."))
        for flag in fields(kind):
            default = flag.default if flag.default_factory is MISSING else flag.default_factory()
            words = flag.metadata["help"].replace("%", "%%")
            if default is True:
                group.add_argument(f"--no_{flag.name}", action="store_true", help=f"do not: {words}")
            elif default is False:
                group.add_argument(f"--{flag.name}", action="store_true", help=words)
            else:
                kinds = {"int": "N", "float": "X", "bool": "[BOOL]"}
                metavar = next((sign for name, sign in kinds.items() if name in str(flag.type)), "TEXT")
                stated = "" if default in (None, []) else f" (default: {default})"
                metavar = flag.metadata.get("metavar", metavar)
                group.add_argument(f"--{flag.name}", metavar=metavar, help=words + stated)
    return parser.format_help()


def check_flags(argv: list[str]) -> None:
    """Raises UserError for a flag or a key of the YAML file that there is not, for numbers and values of the project's
    own flags that cannot be, and where nothing is asked for."""
    trainers = trainer_flags()
    if not trainers or "--config=auto" in argv or ("--config", "auto") in pairwise(argv):  # of which there is no file
        return
    others = {name for name, kind in trainers.items() if kind not in NUMBERS}
    numbers = [(name, NUMBERS[kind], field(default=None)) for name, kind in trainers.items() if name not in others]
    kinds = *OWN_GROUPS, make_dataclass("TrainersNumbers", numbers, namespace={"__post_init__": check_limits})
    groups = parse_arguments(kinds, argv, others=others)
    groups[0].source  # noqa: B018 - raises where there is no data
    names = make_dataclass("TrainersOthers", [(name, str, field(default=None)) for name in others])
    run = groups[OWN_GROUPS.index(RunArguments)]
    if not (run.keeps_nothing or run.eval_on_train or TASKS.intersection(given_flags((*kinds, names), argv))):
        raise UserError(NOTHING_TO_DO)


def check_folder_of(argv: list[str]) -> None:
    """Raises UserError where `--dataset_dir` stands on the command line and is no folder with something in it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset_dir", "--dataset-dir", type=lambda text: Path(text).expanduser())
    folder = parser.parse_known_args(argv)[0].dataset_dir
    if folder:
        check_folder(folder)


def trainer_flags() -> dict[str, str]:
    """Name → type of the Trainer's own flags, as the source of transformers has them, which is read and not run; none
    where it does not look as expected."""
    package = find_spec("transformers")
    try:
        source = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
        statements = ast.parse(source).body
        [definition] = [s for s in statements if isinstance(s, ast.ClassDef) and s.name == "TrainingArguments"]
    except (AttributeError, OSError, ValueError, SyntaxError):
        return {}
    flags = [statement for statement in definition.body if isinstance(statement, ast.AnnAssign)]
    return {flag.target.id: ast.unparse(flag.annotation) for flag in flags}
