"""The flags of benchmark.py. The group checks what its flags alone show; importing this imports nothing heavy."""

import argparse
from dataclasses import dataclass, field
from importlib.util import find_spec

from cli_utils import UserError, check_installed, check_positive, nearest
from metrics_utils import IGNORE_INDEX

COMMANDS = (
    *("train-step", "evaluate", "predict", "export", "data", "peers", "time-to-score"),
    *("models", "photos", "start", "readme", "all"),
)
# How much stock and ours may differ (relative; absolute in numbers below 1), and in what share of a mask's pixels.
ROUNDING = {"float32": (1e-4, 0.01), "bfloat16": (3e-2, 0.2)}


@dataclass(frozen=True)
class BenchmarkArguments:
    """What is measured, with which model and sizes."""

    command: str = field(
        default="",
        metadata={
            "help": "train-step, evaluate, predict, export, data, or all: these, and mit-b2's step; readme, for the "
            "README's table; peers; time-to-score; models, which measures what docs/models.md lists; photos, what "
            "reading small and large ones takes; or start, the CPU time until a run is under way"
        },
    )
    variant: str = field(
        default="mit-b0",
        metadata={"help": "mit-b0 … mit-b5, or a SegFormer's config.json", "metavar": "VARIANT_OR_FILE"},
    )
    size: int = field(default=512, metadata={"help": "S in pixels, a multiple of 32"})
    batch_size: int = field(default=2, metadata={"help": "images in a training or evaluation batch"})
    num_labels: int = field(default=150, metadata={"help": "number of classes"})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 by autocast on both sides"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, …; of several GPUs the first is used"})
    pairs: int = field(default=5, metadata={"help": "timed runs of each side"})
    images: int = field(default=20, metadata={"help": "files for evaluate and data"})
    growth: int = field(
        default=3, metadata={"help": "evaluate also measures the memory for this many times the images, unless 1"}
    )
    seconds: float = field(default=300.0, metadata={"help": "CPU time of each side of time-to-score"})
    dataset_dir: str | None = field(
        default=None, metadata={"help": "photos for time-to-score; by default the toy dataset", "metavar": "DIR"}
    )
    json: str | None = field(
        default=None, metadata={"help": "also write the results to this file, for programs", "metavar": "FILE"}
    )
    # Not for people: see `peak_memory` and `main`.
    peak_of: str | None = field(default=None, metadata={"help": argparse.SUPPRESS})
    folder: str = field(default="", metadata={"help": argparse.SUPPRESS})

    def __post_init__(self):
        if self.command not in COMMANDS:
            given = (
                f"{self.command} is none of them{nearest(self.command, COMMANDS)}" if self.command else "none given"
            )
            raise UserError(f"say what to measure, one of {', '.join(COMMANDS)}; {given}")
        check_positive(self, "size", "batch_size", "pairs", "images", "growth", "seconds")
        if self.size % 32:
            raise UserError(f"--size is {self.size}; it must be a multiple of 32, as in {self.size // 32 * 32 + 32}")
        if not 2 <= self.num_labels <= IGNORE_INDEX:
            raise UserError(f"--num_labels is {self.num_labels}; it must be 2 to {IGNORE_INDEX}")
        if self.dtype not in ROUNDING:
            raise UserError(f"--dtype is {self.dtype}; it must be {' or '.join(ROUNDING)}")
        if self.command in ("evaluate", "readme", "all") and not find_spec("evaluate"):
            raise UserError("the stock side of evaluate needs a package that is missing: pip install evaluate")
        if self.command in ("export", "all"):
            check_installed("benchmark.py export", "onnx", "onnxscript", "onnxruntime")


# What benchmark.py takes, as `cli_utils.parse_arguments` does.
BENCHMARK = {"dataclass_types": (BenchmarkArguments,), "positional": "command"}
