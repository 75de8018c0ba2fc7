"""The flags about the model, its loss and its export. Each group checks what its flags alone show."""

from dataclasses import dataclass, field
from pathlib import Path

from cli_utils import UserError, check_positive, nearest
from data.arguments import DatasetArguments, EvaluationArguments

# The names that `models.backbones` and `models.universal` know, which import torch.
HEADS = ("upernet", "dpt", "mask2former", "eomt")
VOID = ("background", "ignore")
# The losses that `models.losses` computes.
LOSSES = {
    "ce": "cross-entropy",
    "focal": "focal loss (Lin et al. 2017, gamma 2)",
    "ohem": "cross-entropy of the pixels that are hardest to get right",
    "dice": "soft Dice of the classes in the batch",
    "lovasz": "Lovász-Softmax (Berman et al. 2018) of the classes in the batch",
}
WEIGHTED = ("ce", "focal", "ohem")  # those that class weights apply to


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a pretrained model; nvidia/mit-b0 if left out", "metavar": "ID_OR_DIR"},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of the pretrained model on the Hub; main if left out"}
    )
    from_scratch: str | None = field(
        default=None,
        metadata={
            "help": "instead: random weights of a variant, mit-b0 … mit-b5, or of a config.json; needs no network",
            "metavar": "VARIANT_OR_FILE",
        },
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "instead: Hub id or folder of a pretrained backbone (DINOv2, DINOv3, Swin, ConvNeXt …), which is "
            "given a fresh head",
            "metavar": "ID_OR_DIR",
        },
    )
    head: str | None = field(
        default=None,
        metadata={
            "help": "of --backbone: upernet or mask2former, which take any, dpt (DINOv2, BEiT) or eomt (DINOv3)"
        },
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "how often training leaves out a layer of the encoder; the model's own if left out"},
    )
    fused_ops: bool = field(
        default=True, metadata={"help": "use the exact speed-ups of the decode head, the loss and the evaluation"}
    )
    single_logit: bool = field(
        default=False, metadata={"help": "of two classes: one output with a sigmoid instead of two with a softmax"}
    )

    def __post_init__(self):
        if self.model_revision is not None and self.from_scratch:
            raise UserError("--model_revision is of a pretrained model, and --from_scratch starts without one")
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise UserError(
                f"--drop_path_rate is {self.drop_path_rate:g}; it must be at least 0 and below 1, as in 0.1"
            )
        if self.head is not None and self.head not in HEADS:
            raise UserError(f"--head {self.head}{nearest(self.head, HEADS)} is none of {', '.join(HEADS)}")
        if self.head and not self.backbone:
            raise UserError(f"--head {self.head} goes on a backbone: name one with --backbone")
        if self.backbone and not self.head:
            raise UserError(f"--backbone {self.backbone} needs a head: --head {' or --head '.join(HEADS)}")

    @property
    def location(self) -> dict[str, str | None]:
        """Where the model comes from, as `models.loading.load_model` and `find_config` take it."""
        return {
            "name_or_path": self.source,
            "from_scratch": self.from_scratch,
            "revision": self.model_revision,
            "head": self.head,
        }

    @property
    def overrides(self) -> dict[str, float]:
        """Fields of the model's configuration that are to differ from what it says."""
        return {} if self.drop_path_rate is None else {"drop_path_rate": self.drop_path_rate}

    @property
    def source(self) -> str:
        """The pretrained model or backbone: what was asked for, or MiT-B0."""
        return self.backbone or self.model_name_or_path or "nvidia/mit-b0"


@dataclass
class LossArguments:
    """What training minimises."""

    loss: str = field(
        default="ce", metadata={"help": "ce, focal, ohem, dice, lovasz, or a sum of some, as in ce+dice"}
    )
    class_weights: str | None = field(
        default=None,
        metadata={
            "help": "auto (rare classes count more), or a file with a weight for each class: JSON, CSV or TXT",
            "metavar": "AUTO_OR_FILE",
        },
    )

    void_in_masks: str | None = field(
        default=None,
        metadata={
            "help": "of models that predict masks: pixels without a label are background (outside of every mask, as "
            "published; the default) or ignore (no point of the loss lies there)"
        },
    )

    def __post_init__(self):
        if self.void_in_masks not in (None, *VOID):
            raise UserError(f"--void_in_masks is {self.void_in_masks}; it must be {' or '.join(VOID)}")
        names = self.names  # raises for one that is unknown
        if self.class_weights and not set(names) & set(WEIGHTED):
            raise UserError(f"--class_weights apply to {', '.join(WEIGHTED)}, of which --loss {self.loss} names none")

    @property
    def names(self) -> tuple[str, ...]:
        """`--loss ce+dice` as ("ce", "dice"); UserError for a name that is none."""
        return parse_loss(self.loss)


def parse_loss(text: str) -> tuple[str, ...]:
    """ "ce+dice" → ("ce", "dice").

    Raises:
        UserError: a name that is none of `LOSSES`, or that comes twice.
    """
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if name not in LOSSES:
            raise UserError(f"--loss {text}: {name!r}{nearest(name, LOSSES)} is none of {', '.join(LOSSES)}")
    if len(set(names)) < len(names):
        raise UserError(f"--loss {text} names a loss twice")
    return names


@dataclass
class ExportArguments:
    """What is exported, as what, and on which images it is compared."""

    model: str = field(metadata={"help": "folder or Hub id of a trained model", "metavar": "DIR_OR_ID"})
    output: Path = field(metadata={"help": "the file to write", "metavar": "FILE.onnx"})
    model_revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of a model on the Hub; main if left out"}
    )
    logits: bool = field(
        default=False, metadata={"help": "the network alone: normalised pixel values in, low-resolution logits out"}
    )
    confidence: bool = field(
        default=False, metadata={"help": "a second output: the probability of each pixel's class, 255 for certainty"}
    )
    fp16: bool = field(default=False, metadata={"help": "weights and arithmetic of the network in float16"})
    int8: bool = field(
        default=False, metadata={"help": "products of 8-bit integers (static quantisation); needs --calibration_dir"}
    )
    calibration_dir: Path | None = field(
        default=None,
        metadata={"help": "folder of images like those that will be predicted, for --int8", "metavar": "DIR"},
    )
    check_images: list[Path] = field(
        default_factory=list,
        metadata={"help": "images, or folders of them, to compare file and model on", "metavar": "FILE_OR_FOLDER"},
    )
    max_different: float | None = field(
        default=None,
        metadata={
            "help": "share of the pixels that may get another class than from the model, besides ties, or the file is "
            "refused; 0 if left out, 0.005 with --fp16, 0.05 with --int8"
        },
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "images of the dataset to score both on; all if left out"}
    )

    def __post_init__(self):
        check_positive(self, "max_eval_samples")
        if self.output.suffix != ".onnx":
            raise UserError(f"--output {self.output}: the name of an ONNX file ends in .onnx")
        if self.fp16 and self.int8:
            raise UserError("give only one of --fp16 and --int8")
        if self.int8 != (self.calibration_dir is not None):
            raise UserError("--int8 and --calibration_dir go together: the images tell the range of every activation")
        if self.logits and self.confidence:
            raise UserError("--confidence is of the classes, and --logits gives none: leave out one of the two")
        if self.max_different is not None and not 0 <= self.max_different <= 1:
            raise UserError(f"--max_different is {self.max_different:g}; it is a share, from 0 to 1")

    @property
    def precision(self) -> str:
        return "float16" if self.fp16 else "int8" if self.int8 else "float32"


# What export_onnx.py takes, as `cli_utils.parse_arguments` does.
EXPORT = {"dataclass_types": (ExportArguments, EvaluationArguments, DatasetArguments)}
