"""The flags about data: which they are, and what their annotations mean."""

from dataclasses import dataclass, field

from cli_utils import UserError, check_positive
from data.preprocessing import EvaluationProtocol


@dataclass
class DatasetArguments:
    """Which data, and what its annotations mean."""

    dataset_dir: str | None = field(default=None, metadata={"help": "folder with images and masks (layouts: README)"})
    dataset_name: str | None = field(
        default=None, metadata={"help": "instead: a Hub dataset, or anything datasets.load_dataset takes"}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of the Hub dataset"})
    image_column: str | None = field(default=None, metadata={"help": "default: found by name and type"})
    label_column: str | None = field(default=None, metadata={"help": "default: found by name and type"})
    id2label: str | None = field(
        default=None,
        metadata={
            "help": "class names: JSON {id: name}, a list of {id, name, color}, a CSV with those or name, r, g, b, or "
            "CVAT's labelmap.txt"
        },
    )
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "annotation 0 becomes 255 (ignored), all others go down by one; "
            "default: on for ADE20K layouts and scene_parse_150, else off",
            "aliases": ["--reduce_labels"],
            "nargs": "?",
            "const": True,
        },
    )
    ignore_values: list[int] = field(
        default_factory=list, metadata={"help": "raw annotation values that become 255 (ignored), besides 255 itself"}
    )
    train_val_split: float | None = field(
        default=None, metadata={"help": "share of the images kept for validation where the dataset has no such split"}
    )
    split_groups: str | None = field(
        default=None,
        metadata={
            "help": "with --train_val_split: regular expression; images in whose names it (its first group, if it has "
            "one) finds the same text stay together, as in '^(video_\\d+)_'"
        },
    )
    merge_classes: list[str] = field(
        default_factory=list, metadata={"help": "classes to join under a name, as in car,truck,bus=vehicle"}
    )
    drop_classes: list[str] = field(
        default_factory=list, metadata={"help": "classes whose pixels are ignored, by name"}
    )
    label_map: str | None = field(
        default=None,
        metadata={
            "help": "instead: JSON, YAML or CSV from annotation values or class names to training names or ids "
            "(null: ignored)"
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read --dataset_name while training instead of downloading it first; needs --max_steps, a class "
            "list and, for evaluation, --max_eval_samples"
        },
    )


@dataclass
class AugmentationArguments:
    """How training images are augmented; the defaults are those of the published recipe."""

    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0],
        metadata={"help": "range of the random factor on the short side of training images"},
    )
    max_class_share: float = field(
        default=0.75,
        metadata={"help": "training crops in which one class covers a larger share than this are drawn again"},
    )
    flip_probability: float = field(default=0.5, metadata={"help": "probability of a horizontal flip in training"})
    photometric_distortion: bool = field(
        default=True, metadata={"help": "vary brightness, contrast, saturation and hue of training images"}
    )

    def __post_init__(self):
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise UserError(f"--scale_range is {self.scale_range}; it takes two factors, low and high, as in 0.5 2.0")
        for name in ("max_class_share", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name):g}; it must be from 0 to 1")


@dataclass
class EvaluationArguments:
    """How images are shown to the model in evaluation and prediction, and how its scores become a prediction."""

    image_size: int | None = field(
        default=None,
        metadata={
            "help": "short side to which images are resized, and side of the training crop, in pixels; what the "
            "image processor says, or 512, if left out"
        },
    )
    slide_crop: int | None = field(
        default=None,
        metadata={"help": "side of a window that slides over the image in evaluation; the whole image if left out"},
    )
    slide_stride: int | None = field(
        default=None, metadata={"help": "step of the sliding window in pixels; 3/4 of its side if left out"}
    )
    eval_scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "average predictions over the image at these scales, as in 0.75 1 1.25"},
    )
    eval_flip: bool = field(default=False, metadata={"help": "average predictions with those of the mirrored image"})
    threshold: float = field(
        default=0.5,
        metadata={"help": "of two classes: the probability above which a pixel is given the second one"},
    )

    def __post_init__(self):
        check_positive(self, "image_size")
        EvaluationProtocol(**self.options())  # raises on values that do not fit together

    def options(self) -> dict:
        """What the flags add to the protocol that an image processor gives (`EvaluationProtocol`)."""
        return {
            "slide_crop": self.slide_crop,
            "slide_stride": self.slide_stride,
            "scales": tuple(self.eval_scales),
            "flip": self.eval_flip,
            "threshold": self.threshold,
        }

    def check_classes(self, num_labels: int, owner: str = "the data") -> None:
        """Raises UserError where a flag does not fit the number of classes that `owner` has."""
        if self.threshold != 0.5 and num_labels != 2:
            raise UserError(f"--threshold is for two classes; {owner} has {num_labels}")
