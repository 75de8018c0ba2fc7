"""The flags about optimisation, about what a run does and where a plan goes; they need neither torch nor the
Trainer."""

from argparse import ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cli_utils import UserError, check_positive
from data.output_paths import check_writable

if TYPE_CHECKING:
    from transformers import TrainingArguments


POSITIVE = ("positive", lambda value: value > 0)
COUNT = ("at least 1", lambda value: value >= 1)
NOT_NEGATIVE = ("at least 0", lambda value: value >= 0)
SHARE = ("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = ("from 0 to 4294967295", lambda value: 0 <= value < 2**32)  # as numpy takes it
# What the Trainer's numbers may be, as far as it does not say so itself.
LIMITS = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "num_train_epochs": POSITIVE,
    "max_steps": ("at least 1, or -1 to count epochs", lambda value: value >= 1 or value == -1),
    "learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": SHARE,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": COUNT,
    "save_steps": POSITIVE,
    "save_total_limit": NOT_NEGATIVE,
    "seed": SEED,
    "data_seed": SEED,
    "torch_empty_cache_steps": COUNT,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
}
# Of these at most one is given.
EXCLUSIVE = (("model_name_or_path", "from_scratch", "backbone"), ("dataset_dir", "dataset_name"))
FIRST_LINE = "# Planned for "  # of a plan
NOTHING_TO_DO = "nothing to do: give --do_train, --do_eval, --do_predict or several of them"


def without_auto(argv: list[str]) -> tuple[bool, list[str]]:
    """Whether a command line has `--config auto`, and the command line without it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    found, others = parser.parse_known_args(argv)
    return (True, others) if found.config == "auto" else (False, argv)


def check_limits(values: object) -> None:
    """Raises UserError for an attribute that lies outside `LIMITS`; None lies in all of them."""
    for name, (allowed, is_allowed) in LIMITS.items():
        value = getattr(values, name)
        if value is not None and not is_allowed(value):
            raise UserError(f"--{name} is {value}; it must be {allowed}")


@dataclass
class OptimizationArguments:
    """What of the model is trained, and how."""

    freeze_encoder: bool = field(default=False, metadata={"help": "train the head alone"})
    lora_r: int | None = field(
        default=None, metadata={"help": "train adapters of this rank in the encoder's attention, and the head (peft)"}
    )
    head_lr_multiplier: float = field(
        default=1.0, metadata={"help": "factor on the learning rate of everything outside the encoder"}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "of a ViT (or the stages of a ConvNeXt): factor on the encoder's learning rate from each layer to "
            "the one before it"
        },
    )
    encoder_warmup_steps: int | None = field(
        default=None,
        metadata={
            "help": "with --lr_scheduler_type polynomial: the encoder starts after the --warmup_steps of the rest and "
            "warms up over so many steps; decay of power 0.9 follows (EoMT)"
        },
    )
    mask_annealing_starts: list[int] | None = field(
        default=None,
        metadata={
            "help": "of EoMT: the step, block by block, from which masks fade out of attention; equal phases if left "
            "out"
        },
    )
    mask_annealing_ends: list[int] | None = field(
        default=None, metadata={"help": "of EoMT: the step, block by block, after which attention is without masks"}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "evaluate and save an exponential moving average of the weights, as in 0.999; 0 for none"},
    )
    sync_bn: bool = field(
        default=False, metadata={"help": "take BatchNorm statistics over the images of all GPUs (SyncBatchNorm)"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after this many evaluations without a new best"}
    )
    skip_nonfinite: int = field(
        default=0,
        metadata={"help": "leave out up to N steps whose loss or gradient is not finite before the run stops"},
    )

    def __post_init__(self):
        check_positive(self, "lora_r", "early_stopping_patience", "encoder_warmup_steps")
        if self.skip_nonfinite < 0:
            raise UserError(f"--skip_nonfinite is {self.skip_nonfinite}; it must be at least 0")
        if self.freeze_encoder and self.lora_r:
            raise UserError(
                "--freeze_encoder and --lora_r exclude each other: LoRA trains adapters in a frozen encoder"
            )
        if self.head_lr_multiplier <= 0:
            raise UserError(f"--head_lr_multiplier is {self.head_lr_multiplier}; it must be positive, as in 10")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer_decay is {self.layer_decay:g}; it must be above 0 and at most 1, as in 0.75")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema_decay is {self.ema_decay:g}; it must be at least 0 and below 1, as in 0.999")


@dataclass
class RunArguments:
    """What a run does besides what the Trainer's `--do_train`, `--do_eval` and `--do_predict` say."""

    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N images only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "evaluate the first N images only"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "predict the first N images only"})
    eval_on_train: bool = field(
        default=False,
        metadata={"help": "at the end also evaluate the training images, unaugmented, as train_mean_iou"},
    )
    check_data: bool = field(
        default=True, metadata={"help": "look for faults in a sample of the data before training (check_dataset.py)"}
    )
    preview: str | None = field(
        default=None,
        metadata={"help": "only write a picture of augmented training images to this file", "metavar": "FILE"},
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "replace the run that --output_dir holds; nothing of it goes before the new run has its first "
            "checkpoint or result"
        },
    )
    minutes: float | None = field(
        default=None,
        metadata={
            "help": "with --config auto: minutes that training, evaluation and predictions may take on this machine; "
            "as long as it pays if left out"
        },
    )
    commercial: bool = field(
        default=False,
        metadata={"help": "with --config auto: choose a model whose weights may be used commercially"},
    )
    train_minutes: float | None = field(
        default=None,
        metadata={
            "help": "let training end within so many minutes: where steps take longer than was thought there are "
            "fewer of them, and the learning rate falls as it would have over all"
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "run every stage once on a few images, report time and memory, and keep nothing"},
    )

    verbose: bool = field(
        default=False, metadata={"help": "also show tables, and what libraries say and draw of their own"}
    )

    def __post_init__(self):
        check_positive(self, "max_train_samples", "max_eval_samples", "max_predict_samples")
        for name in ("minutes", "train_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"--{name} is {value:g}; it must be more than 0")
        if self.preview is not None:
            file = Path(self.preview)
            if file.suffix.lower() not in Image.registered_extensions():
                raise UserError(f"--preview {file}: the name must end in that of a picture, as in preview.png")
            check_writable(file, "--preview")

    @property
    def keeps_nothing(self) -> bool:
        """Whether what the run writes to its output folder is thrown away."""
        return self.dry_run or self.preview is not None

    def trains(self, training: "TrainingArguments") -> bool:
        """Whether a flag stands for `--do_train`, which was left out: a preview, and a dry run of nothing else."""
        asked = training.do_train or training.do_eval or training.do_predict or self.eval_on_train
        return not training.do_train and (self.preview is not None or (self.dry_run and not asked))


@dataclass
class PlanArguments:
    """Where the plan goes."""

    output: str | None = field(
        default=None, metadata={"help": "write the plan to this file; printed if left out", "metavar": "FILE"}
    )

    def __post_init__(self):
        if self.output is None:
            return
        file = Path(self.output)
        if file.suffix.lower() not in (".yaml", ".yml"):
            raise UserError(f"--output {file}: the name must end in .yaml, as in plan.yaml")
        check_writable(file, "--output")
        if file.is_file() and file.stat().st_size:
            with open(file, encoding="utf-8", errors="replace") as opened:
                if not opened.read(len(FIRST_LINE)) == FIRST_LINE:
                    raise UserError(f"--output {file} exists and is no plan; delete it, or give another file")
