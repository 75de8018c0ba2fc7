"""The flags about the model and its loss. Each group checks what its flags alone show."""

from dataclasses import dataclass, field

from cli_utils import UserError


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
    fused_ops: bool = field(
        default=True, metadata={"help": "use the exact speed-ups of the decode head, the loss and the evaluation"}
    )
    single_logit: bool = field(
        default=False, metadata={"help": "of two classes: one output with a sigmoid instead of two with a softmax"}
    )

    def __post_init__(self):
        if self.model_revision is not None and self.from_scratch:
            raise UserError("--model_revision is of a pretrained model, and --from_scratch starts without one")

    @property
    def location(self) -> tuple[str, str | None, str | None]:
        """Where the model comes from: `source`, what it is to be built from instead, and the revision."""
        return self.source, self.from_scratch, self.model_revision

    @property
    def source(self) -> str:
        """The pretrained model: what was asked for, or MiT-B0."""
        return self.model_name_or_path or "nvidia/mit-b0"


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

    def __post_init__(self):
        if self.loss == "ce":
            return
        from models.losses import WEIGHTED  # imports torch

        names = self.names  # raises for one that is unknown
        if self.class_weights and not set(names) & set(WEIGHTED):
            raise UserError(f"--class_weights apply to {', '.join(WEIGHTED)}, of which --loss {self.loss} names none")

    @property
    def names(self) -> tuple[str, ...]:
        """`--loss ce+dice` as ("ce", "dice"); UserError for a name that is none."""
        from models.losses import parse_loss

        return parse_loss(self.loss)
