"""What a command line can be answered before torch and the Trainer are imported, which takes seconds: a page of help,
and most mistakes in flags."""

import ast
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path

from cli_utils import parse_arguments, run_cli
from data.arguments import AugmentationArguments, ClassArguments, DatasetArguments, EvaluationArguments
from models.arguments import LossArguments, ModelArguments
from training.run_arguments import OptimizationArguments, RunArguments

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
THE_TRAINERS = """The flags of the Trainer work as well; --help_all explains all of them. Used most:
  --do_train --do_eval --do_predict --output_dir --resume_from_checkpoint last
  --num_train_epochs --max_steps --learning_rate --lr_scheduler_type --warmup_steps --weight_decay --optim --seed
  --per_device_train_batch_size --per_device_eval_batch_size --gradient_accumulation_steps --dataloader_num_workers
  --eval_strategy --eval_steps --save_strategy --save_steps --load_best_model_at_end --metric_for_best_model
  --bf16 --fp16 --tf32 --torch_compile --use_cpu --logging_steps --report_to --push_to_hub --hub_model_id"""


def answer(description: str) -> None:
    """Prints the help that the command line asks for, or what is wrong with its flags, and ends the program; returns
    where there is no such thing. `--help_all` becomes `--help`, for the parser that knows all flags."""
    argv = sys.argv[1:]
    if "--help_all" in argv:
        sys.argv[1:] = ["--help"]
    elif "--help" in argv or "-h" in argv:
        print(help_page(description))
        sys.exit()
    else:
        run_cli(lambda: check_flags(argv))


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
        for field in fields(kind):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            words = field.metadata["help"].replace("%", "%%")
            if default is True:
                group.add_argument(f"--no_{field.name}", action="store_true", help=f"do not: {words}")
            elif default is False:
                group.add_argument(f"--{field.name}", action="store_true", help=words)
            else:
                kinds = {"int": "N", "float": "X", "bool": "[BOOL]"}
                metavar = next((sign for name, sign in kinds.items() if name in str(field.type)), "TEXT")
                stated = "" if default in (None, []) else f" (default: {default})"
                metavar = field.metadata.get("metavar", metavar)
                group.add_argument(f"--{field.name}", metavar=metavar, help=words + stated)
    return parser.format_help()


def check_flags(argv: list[str]) -> None:
    """Raises UserError for a flag or a key of the YAML file that there is not, and for values of the project's own
    flags that cannot be."""
    trainers = names_of_trainer_flags()
    if trainers and "auto" not in argv and "--config=auto" not in argv:  # of which there is no file
        dataset, *_ = parse_arguments(OWN_GROUPS, argv, others=trainers)
        dataset.source  # noqa: B018 - raises where there is no data


def names_of_trainer_flags() -> set[str]:
    """As the source of transformers has them, which is read and not run; none where it does not look as expected."""
    package = find_spec("transformers")
    try:
        source = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
        statements = ast.parse(source).body
        [definition] = [s for s in statements if isinstance(s, ast.ClassDef) and s.name == "TrainingArguments"]
    except (AttributeError, OSError, ValueError, SyntaxError):
        return set()
    return {statement.target.id for statement in definition.body if isinstance(statement, ast.AnnAssign)}
