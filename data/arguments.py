"""The flags about data: which images, what their annotations mean, how they are augmented and how they are evaluated.

Each group checks what its flags alone show, and raises `cli_utils.UserError` for what does not fit.
"""

from dataclasses import dataclass, field

from cli_utils import UserError, check_positive
from data.addresses import check_address, is_address

# Of an image as a network is shown it; more takes all memory, mostly for a slip of the hand.
MAX_SIDE, MAX_CHANNELS = 1 << 15, 1 << 12
# `EvaluationArguments.options` without any flag.
NO_OPTIONS = {"slide_crop": None, "slide_stride": None, "scales": (1.0,), "flip": False, "threshold": 0.5}


@dataclass
class DatasetArguments:
    """Which images and masks, and which of them are kept for validation."""

    dataset_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder with images and masks; docs/data.md lists the layouts that are read",
            "metavar": "DIR",
        },
    )
    images: str | None = field(
        default=None,
        metadata={
            "help": "folder of the images, below --dataset_dir or anywhere, where it cannot be told; '*/photos' means "
            "that of every split",
            "metavar": "DIR",
        },
    )
    masks: str | None = field(
        default=None, metadata={"help": "folder of the masks, in the same way", "metavar": "DIR"}
    )
    mask_suffix: str | None = field(
        default=None, metadata={"help": "what masks have behind the names of their images, as in _mask"}
    )
    image_suffix: str | None = field(
        default=None, metadata={"help": "what images have behind the names of their masks, as in _sat"}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "instead: a Hub dataset, a bucket (s3://…), or anything datasets.load_dataset takes",
            "metavar": "ID_OR_DIR",
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "configuration of the Hub dataset, where it has several"}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "column that holds the images; found by name and type if left out"}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "column that holds the masks; found by name and type if left out"}
    )
    num_channels: int | None = field(
        default=None, metadata={"help": "bands of the images; 3, or what the trained model takes, if left out"}
    )
    train_val_split: float | None = field(
        default=None,
        metadata={"help": "share of the training images to keep for validation where the dataset has no such split"},
    )
    split_groups: str | None = field(
        default=None,
        metadata={
            "help": "with --train_val_split: regular expression; images in whose names it (its first group, if it has "
            "one) finds the same text stay together, as in '^(video_\\d+)_'"
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read --dataset_name while training instead of downloading it first; needs --max_steps, a class "
            "list and, for evaluation, --max_eval_samples"
        },
    )

    def __post_init__(self):
        check_positive(self, "num_channels", most=MAX_CHANNELS)
        if self.dataset_dir and self.dataset_name:
            raise UserError("give only one of --dataset_dir and --dataset_name")
        for name in ("images", "masks", "mask_suffix", "image_suffix"):
            if getattr(self, name) is not None and self.dataset_name:
                raise UserError(f"--{name} belongs to a folder, so give --dataset_dir instead of --dataset_name")
            if getattr(self, name) == "":
                raise UserError(f"--{name} is empty; leave it out")
        if not self.dataset_dir and (self.images is None) != (self.masks is None):
            there, needed = ("images", "masks") if self.images else ("masks", "images")
            raise UserError(f"--{there} alone: give --{needed} as well, or --dataset_dir")
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise UserError(f"--train_val_split is {self.train_val_split}; it must lie between 0 and 1, as in 0.2")
        if self.split_groups is not None and self.train_val_split is None:
            raise UserError("--split_groups belongs to a split: add --train_val_split 0.2")
        if self.dataset_name and is_address(self.dataset_name):
            check_address(self.dataset_name)
            if self.dataset_config_name is not None:
                raise UserError("--dataset_config_name belongs to the id of a Hub dataset: leave it out")
        if self.streaming and self.is_folder:
            raise UserError("--streaming reads --dataset_name; a folder (--dataset_dir) is on this disk already")
        if self.streaming and self.train_val_split is not None:
            raise UserError("--streaming cannot split what it has not seen yet: leave out --train_val_split")

    @property
    def is_folder(self) -> bool:
        """Whether the data are files on this disk."""
        return bool(self.dataset_dir or self.images)

    @property
    def source(self) -> str:
        """What messages and tables call the dataset: the folder or the name.

        Raises:
            UserError: neither was given.
        """
        source = self.dataset_dir or self.dataset_name or self.images
        if not source:
            raise UserError("no data: give --dataset_dir FOLDER or --dataset_name HUB_ID")
        return str(source)


@dataclass
class ClassArguments:
    """What the values in annotation files mean, and which classes are made of them."""

    id2label: str | None = field(
        default=None,
        metadata={
            "help": "class names: JSON {id: name}, a list of {id, name, color}, a CSV with those or name, r, g, b, or "
            "CVAT's labelmap.txt",
            "metavar": "FILE",
        },
    )
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "annotation 0 becomes 255 (ignored), all others go down by one; "
            "on for ADE20K layouts and scene_parse_150 and off for all else if left out",
            "aliases": ["--reduce_labels"],
            "nargs": "?",
            "const": True,
        },
    )
    ignore_values: list[int] = field(
        default_factory=list, metadata={"help": "raw annotation values that become 255 (ignored), besides 255 itself"}
    )
    merge_classes: list[str] = field(
        default_factory=list, metadata={"help": "classes to join under a name, as in car,truck,bus=vehicle"}
    )
    drop_classes: list[str] = field(
        default_factory=list, metadata={"help": "names of the classes whose pixels are ignored"}
    )
    label_map: str | None = field(
        default=None,
        metadata={
            "help": "instead: JSON, YAML or CSV from annotation values or class names to training names or ids "
            "(null: ignored)",
            "metavar": "FILE",
        },
    )

    def __post_init__(self):
        if self.label_map and (self.merge_classes or self.drop_classes):
            raise UserError("--label_map says it all: leave out --merge_classes and --drop_classes, or --label_map")


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
    batch_colors: bool | None = field(
        default=None,
        metadata={
            "help": "vary colours and normalise a batch at a time, on the device that trains, to which images then go "
            "as bytes; else one image at a time, as it is read, with the same result; on where an accelerator trains "
            "if left out",
            "nargs": "?",
            "const": True,
        },
    )
    crop_size: int | None = field(
        default=None,
        metadata={"help": "side of the training crop in pixels, a multiple of 32; that of --image_size if left out"},
    )
    vertical_flip_probability: float = field(
        default=0.0,
        metadata={
            "help": "probability of a vertical flip in training, for pictures that have no top, as from the air"
        },
    )
    quarter_turns: bool = field(
        default=False,
        metadata={"help": "turn training crops by 0, 90, 180 or 270 degrees at random, for pictures that have no top"},
    )
    rare_class_crops: float = field(
        default=0.0,
        metadata={
            "help": "share of the training crops, as in 0.5, that are laid around a pixel of a class drawn at random, "
            "rare ones more often, in an image that has it"
        },
    )

    reduced_decoding: bool = field(
        default=True,
        metadata={
            "help": "read no more than training needs of photos that are far larger than the scale jitter makes them "
            "at most: from copies, see --reduced_copies, or JPEG files at a half, a quarter or an eighth of their "
            "size; evaluation reads all of them"
        },
    )
    reduced_copies: bool = field(
        default=True,
        metadata={
            "help": "keep copies for training, in the cache folder of datasets, of photos at least twice as large as "
            "the scale jitter makes them at most, at that size"
        },
    )

    def __post_init__(self):
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise UserError(f"--scale_range is {self.scale_range}; it takes two factors, low and high, as in 0.5 2.0")
        for name in ("max_class_share", "flip_probability", "vertical_flip_probability", "rare_class_crops"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name):g}; it must be from 0 to 1")
        check_positive(self, "crop_size", most=MAX_SIDE)

    @property
    def copies_large_photos(self) -> bool:
        return self.reduced_decoding and self.reduced_copies

    def of_transform(self, device: str = "cpu") -> dict:
        """What `data.augmentation.TrainTransform` takes; the rest says which images it is given.

        device: type of the one that trains.
        """
        others = ("rare_class_crops", "reduced_copies", "batch_colors")
        options = {name: value for name, value in vars(self).items() if name not in others}
        return options | {"defers_colors": device != "cpu" if self.batch_colors is None else self.batch_colors}


@dataclass
class EvaluationArguments:
    """How images are shown to the model in evaluation and prediction, and how its scores become a prediction."""

    image_size: int | None = field(
        default=None,
        metadata={
            "help": "short side to which images are resized, and side of the training crop without --crop_size, in "
            "pixels; what the image processor says, or 512, if left out"
        },
    )
    slide_crop: int | None = field(
        default=None,
        metadata={
            "help": "side of a window that slides over the image in evaluation; without a number, or 0, that of the "
            "training crop; the whole image if left out",
            "nargs": "?",
            "const": 0,
        },
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
        check_positive(self, "image_size", most=MAX_SIDE)
        # Raises on values that do not fit together. What the sides must be multiples of, the model decides, and the
        # side of the training crop is not known here.
        options = self.options(self.slide_stride or self.slide_crop or 32)
        if options != NO_OPTIONS:
            from data.preprocessing import EvaluationProtocol  # imports torch

            EvaluationProtocol(size_divisor=1, **options)

    def options(self, training_crop: int) -> dict:
        """What the flags add to the protocol that an image processor gives (`EvaluationProtocol`).

        training_crop: its side in pixels.
        """
        return {
            "slide_crop": training_crop if self.slide_crop == 0 else self.slide_crop,
            "slide_stride": self.slide_stride,
            "scales": tuple(self.eval_scales),
            "flip": self.eval_flip,
            "threshold": self.threshold,
        }

    def check_classes(self, num_labels: int, owner: str = "the data") -> None:
        """Raises UserError where a flag does not fit the number of classes that `owner` has."""
        if self.threshold != 0.5 and num_labels != 2:
            raise UserError(f"--threshold is for two classes; {owner} has {num_labels}")
