"""What a command line can be answered before torch and the Trainer are imported, which takes seconds: a page of help,
and most mistakes in flags."""

import ast
import gc
import sys
from argparse import ArgumentParser
from dataclasses import field, make_dataclass
from importlib.util import find_spec
from pathlib import Path

from cli_utils import CONFIG_HELP, HELP, UserError, given_flags, help_page, parse_arguments, run_cli
from data.arguments import AugmentationArguments, ClassArguments, DatasetArguments, EvaluationArguments
from data.layouts import check_folder
from models.arguments import LossArguments, ModelArguments
from models.peft_import import leave_out_peft
from training.run_arguments import (
    EXCLUSIVE,
    NOTHING_TO_DO,
    OptimizationArguments,
    PlanArguments,
    RunArguments,
    check_limits,
    without_auto,
)

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
    elif HELP.intersection(argv):
        config_help = f"{CONFIG_HELP}; auto: chosen for data and machine (docs/planning.md)"
        print(help_page(OWN_GROUPS, description, epilog=THE_TRAINERS, config_help=config_help), end="")
        sys.exit()
    else:
        run_cli(lambda: check_run(argv))
    gc.disable()  # see `cli_utils.answer_early`


def answer_plan(description: str) -> None:
    """The same for plan.py."""
    argv = sys.argv[1:]
    if HELP.intersection(argv):
        print(help_page((PlanArguments, *OWN_GROUPS), description, "dataset_dir", THE_TRAINERS), end="")
        sys.exit()
    run_cli(lambda: parse_own_flags(argv, (PlanArguments,), "dataset_dir"))
    gc.disable()


def check_run(argv: list[str]) -> None:
    """`check_flags` and `check_folder_of` a run, and leaves out peft if it does not need it."""
    groups = check_flags(argv)
    check_folder_of(argv)
    # A run that goes on with its plan takes the model from there.
    if groups and not without_auto(argv)[0] and groups[OptimizationArguments].lora_r is None:
        model = groups[ModelArguments]
        leave_out_peft(None if model.from_scratch else model.source)


def parse_own_flags(argv: list[str], more: tuple[type, ...] = (), positional: str | None = None) -> dict[type, object]:
    """Group → its values, of `OWN_GROUPS` and `more`; none where the Trainer's flags cannot be told.

    Raises:
        UserError: a flag or a key of the YAML file that there is not, or numbers and values that cannot be.
    """
    trainers = trainer_flags()
    if not trainers:
        return {}
    others = {name for name, kind in trainers.items() if kind not in NUMBERS}
    numbers = [(name, NUMBERS[kind], field(default=None)) for name, kind in trainers.items() if name not in others]
    checked = make_dataclass("TrainersNumbers", numbers, namespace={"__post_init__": check_limits})
    kinds = (*more, *OWN_GROUPS, checked)
    return dict(zip(kinds, parse_arguments(kinds, argv, None, EXCLUSIVE, positional, others), strict=True))


def check_flags(argv: list[str]) -> dict[type, object]:
    """`parse_own_flags`, of which there are some that say what to do, and to which data."""
    is_planned, argv = without_auto(argv)
    groups = parse_own_flags(argv)
    if not groups:
        return groups
    groups[DatasetArguments].source  # noqa: B018 - raises where there is no data
    run = groups[RunArguments]
    others = make_dataclass("TrainersOthers", [(name, str, field(default=None)) for name in trainer_flags()])
    is_task = TASKS.intersection(given_flags((*groups, others), argv))
    if not (is_planned or is_task or run.keeps_nothing or run.eval_on_train):
        raise UserError(NOTHING_TO_DO)
    return groups


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
