"""Chooses settings for your data, your machine and your time, and says why.

    python plan.py my_photos --minutes 30 --output plan.yaml
    python run_segmentation.py --config plan.yaml --output_dir outputs/mine

Looks at the images and masks (a sample of many), tries a few steps with the model, and writes a file of flags, each
with its reason in a comment. Without `--output` it is printed. `docs/planning.md` has the rules.

Flags of `run_segmentation.py` may stand beside it: they are taken as they are, and the rules follow them. Both in one,
with the plan kept as `outputs/mine/plan.yaml`:

    python run_segmentation.py --config auto --minutes 30 --dataset_dir my_photos --output_dir outputs/mine
"""

if __name__ == "__main__":
    from training.early import answer_plan

    answer_plan(__doc__)  # before the imports below, which take seconds

import sys
from tempfile import TemporaryDirectory

import datasets

from cli_utils import given_flags, parse_arguments, run_cli, set_up_logging, write_text
from run_segmentation import PLANNED_STEPS
from training.arguments import GROUPS, Arguments
from training.display import is_live
from training.plan_file import make_plan
from training.run_arguments import EXCLUSIVE, PlanArguments


def parse(argv: list[str] | None = None) -> tuple[PlanArguments, Arguments]:
    """Flags, of which the dataset's folder may be a word alone; what a run does is all that it can."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv += ["--do_train", "--do_eval", "--do_predict"]
    types = (PlanArguments, *GROUPS.values())
    plan_args, *groups = parse_arguments(types, argv, __doc__, EXCLUSIVE, positional="dataset_dir")
    given = given_flags(tuple(GROUPS.values()), argv)
    if groups[0].dataset_dir and "dataset_dir" not in given:
        given = ("dataset_dir", *given)
    return plan_args, Arguments(*groups, given=given, is_to_be_planned=True)


def main(argv: list[str] | None = None) -> str:
    """Plans, and writes or prints the plan; returns its text.

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for what `run_segmentation.py` would raise it for, and for too little time.
    """
    plan_args, args = parse(argv)
    set_up_logging(force=False)
    if not is_live():
        datasets.disable_progress_bars()
    with TemporaryDirectory() as folder:
        args.training.output_dir = folder
        text = make_plan(args, PLANNED_STEPS)
    if plan_args.output is None:
        print(text, end="")
    else:
        write_text(plan_args.output, text)
        print(f"written: {plan_args.output}; python run_segmentation.py --config {plan_args.output} --output_dir …")
    return text


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names of classes may hold anything
    run_cli(main)
