"""Publishes a finished run on the Hugging Face Hub, without training.

    python publish.py outputs/mine
    python publish.py outputs/mine --hub_model_id me/my_model --private

What goes up is what `run_segmentation.py --push_to_hub` publishes: the model, its card, the results and one sample
picture. The card is written anew with the name of the repository; one that was edited by hand is published as it is.
"""

if __name__ == "__main__":
    from cli_utils import answer_early
    from reports.arguments import PUBLISH

    answer_early(__doc__, **PUBLISH)  # before the imports below, which take seconds

import logging
from pathlib import Path

from cli_utils import UserError, parse_arguments, run_cli, set_up_logging
from reports.arguments import PUBLISH
from reports.model_card import name_repository
from reports.publishing import check_hub_access, push_run
from training.output_folder import locked

logger = logging.getLogger(__name__)


def check_finished(folder: Path) -> None:
    """Raises UserError where a folder does not hold the model of a finished run."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    missing = [name for name in ("train_results.json", "config.json", "labels.json") if not (folder / name).is_file()]
    if not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        checkpoints = any(folder.glob("checkpoint-*"))
        advice = "; finish the run first: --resume_from_checkpoint last" if checkpoints else ""
        raise UserError(f"{folder} holds no finished run: {missing[0]} is missing{advice}")


def main(argv: list[str] | None = None) -> str:
    """Publishes and returns the address of the commit.

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` where there is no finished run, no token, or the Hub refuses; nothing is lost.
    """
    (args,) = parse_arguments(argv=argv, description=__doc__, **PUBLISH)
    set_up_logging()
    check_finished(args.output_dir)
    with locked(args.output_dir):
        repo_id = check_hub_access(
            args.hub_model_id, args.token, args.output_dir, args.private or None, args.revision, "publish.py"
        )
        if not name_repository(args.output_dir, repo_id):
            logger.info(f"{args.output_dir / 'README.md'} was edited since the run wrote it and is published as it is")
        commit = push_run(args.output_dir, repo_id, args.token, args.private or None, revision=args.revision)
    logger.info(f"published: {commit.commit_url}")
    return commit.commit_url


if __name__ == "__main__":
    run_cli(main)
