"""The flags of check_dataset.py. The group checks what its flags alone show; importing this imports nothing heavy."""

from dataclasses import dataclass, field
from pathlib import Path

from cli_utils import UserError, check_positive
from data.arguments import ClassArguments, DatasetArguments


@dataclass
class CheckArguments:
    """How to check, and what to write."""

    image_size: int = field(default=512, metadata={"help": "short side in training, by which images are judged"})
    json: str | None = field(
        default=None, metadata={"help": "write the report to this file, for programs", "metavar": "FILE"}
    )
    html: str | None = field(
        default=None,
        metadata={"help": "write a page with pictures of the data, and of the worst files, here", "metavar": "FILE"},
    )
    fix: str | None = field(
        default=None, metadata={"help": "write a clean copy into this new folder", "metavar": "DIR"}
    )
    strict: bool = field(default=False, metadata={"help": "exit with code 1 if there are warnings"})
    num_proc: int | None = field(
        default=None, metadata={"help": "number of processes; chosen by images and CPUs if left out"}
    )
    max_images: int | None = field(default=None, metadata={"help": "look at a random sample of this many images"})
    seed: int = field(default=42, metadata={"help": "seed of the sample and of --train_val_split"})

    def __post_init__(self):
        check_positive(self, "image_size", "max_images")
        check_positive(self, "num_proc", most=1024)
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; it must be at least 0")

    def reports(self) -> dict[str, Path]:
        """Flag → file, of those that were given."""
        return {f"--{name}": Path(file) for name in ("json", "html") if (file := getattr(self, name))}


# What check_dataset.py takes, as `cli_utils.parse_arguments` does.
CHECK = {
    "dataclass_types": (CheckArguments, DatasetArguments, ClassArguments),
    "exclusive": (("dataset_dir", "dataset_name"),),
    "positional": "dataset_dir",
}
