"""The flags of the scripts that predict, show and publish: predict.py, app.py, compare_runs.py and publish.py.

Each group checks what its flags alone show. Importing this imports nothing heavy.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from cli_utils import UserError, check_installed, check_positive
from data.arguments import EvaluationArguments
from data.synonyms import IMAGE_EXTENSIONS

POLYGON_FORMATS = ("geojson", "coco", "labelme")  # that `reports.polygons` writes


@dataclass
class PredictArguments:
    """What to segment, with which model, and where the results go."""

    model: list[str] = field(
        metadata={
            "help": "folder or Hub id of a trained model, or a file of export_onnx.py; of several with the "
            "same classes the probabilities are averaged",
            "metavar": "DIR_OR_ID_OR_FILE",
        }
    )
    output_dir: Path | None = field(
        default=None,
        metadata={"help": "folder for predictions, overlays and the contact sheet; none for an image from stdin"},
    )
    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "images, folders of images, patterns, addresses (http, https), @LIST for a text file with any of "
            "these a line, or - for stdin; the flag may be left out",
            "metavar": "IMAGE",
        },
    )
    url_megabytes: float = field(
        default=256.0, metadata={"help": "an image on the web that is larger is skipped, in megabytes"}
    )
    url_seconds: float = field(
        default=60.0, metadata={"help": "an image on the web that takes longer to download is skipped, in seconds"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, mps, cpu …; the accelerator if left out, or cpu where there is none"}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of a model on the Hub; main if left out"}
    )
    fused_ops: bool = field(default=True, metadata={"help": "the exact speed-ups of the head and the upsampling"})
    skip_existing: bool = field(
        default=False, metadata={"help": "leave out images whose PNG and overlay are there, to go on after a stop"}
    )
    min_area: int = field(
        default=0,
        metadata={"help": "connected areas of fewer pixels get the class of the largest one around (needs rasterio)"},
    )
    save_confidence: bool = field(
        default=False,
        metadata={"help": "also write confidence/NAME.png: how likely each pixel's class is, 255 for certainty"},
    )
    save_areas: bool = field(
        default=False, metadata={"help": "also write areas.csv: pixels, share and square metres by image and class"}
    )
    video_frames: bool = field(
        default=False, metadata={"help": "of films: also an indexed PNG of every frame, in NAME_frames"}
    )
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={"help": "of films: frames that go through the model at once; 1 on a CPU, else 8, if left out"},
    )
    save_polygons: str | None = field(
        default=None,
        metadata={
            "help": "also write the areas as polygons (needs rasterio): geojson: NAME.geojson; labelme: NAME.json; "
            "coco: coco.json, of all images"
        },
    )

    def __post_init__(self):
        self.model, self.inputs = models_and_inputs(self.model, self.inputs)
        if self.min_area < 0:
            raise UserError(f"--min_area is {self.min_area}; it is a number of pixels, 0 or more")
        check_positive(self, "url_megabytes", "url_seconds", "per_device_eval_batch_size")
        if self.save_polygons not in (None, *POLYGON_FORMATS):
            raise UserError(f"--save_polygons {self.save_polygons}: the formats are {', '.join(POLYGON_FORMATS)}")
        for flag in ("min_area", "save_polygons"):
            if getattr(self, flag):
                check_installed(f"--{flag}", "rasterio")


def models_and_inputs(words: list[str], inputs: list[str]) -> tuple[list[str], list[str]]:
    """What --model was given → models, and inputs before those that are known: in `--model outputs/mine photo.jpg` the
    photo is none. A model is the first, a file of export_onnx.py, a folder with a config.json, and what does not
    exist, if it looks like a Hub id."""

    def is_model(word: str) -> bool:
        path = Path(word)
        if path.suffix == ".onnx" or (path / "config.json").is_file():
            return True
        return re.fullmatch(r"[\w.-]+/[\w.-]+", word) and not path.exists() and path.suffix not in IMAGE_EXTENSIONS

    count = next((i for i, word in enumerate(words[1:], start=1) if not is_model(word)), len(words))
    return words[:count], words[count:] + inputs


@dataclass
class AppArguments:
    """Which models, and where the page is."""

    model: list[str] = field(
        metadata={
            "help": "folders or Hub ids of trained models, or files of export_onnx.py; several are shown side by side",
            "metavar": "DIR_OR_ID_OR_FILE",
        }
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to listen on: 127.0.0.1 for this machine alone, 0.0.0.0 for the whole network"},
    )
    port: int = field(default=7860, metadata={"help": "port to listen on"})
    share: bool = field(
        default=False, metadata={"help": "also make an address on gradio.live, through which anybody may come in"}
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, mps, cpu …; the accelerator if left out, or cpu where there is none"}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of models on the Hub; main if left out"}
    )

    push_space: str | None = field(
        default=None,
        metadata={
            "help": "serve nothing here, and make it a Space of the Hub, with these models of the Hub and these flags",
            "metavar": "NAME",
        },
    )
    private: bool = field(default=False, metadata={"help": "make the Space private, where it is new"})
    token: str | None = field(
        default=None, metadata={"help": "token with write access; HF_TOKEN, or that of `hf auth login`, if left out"}
    )

    def __post_init__(self):
        if not 0 < self.port < 2**16:
            raise UserError(f"--port is {self.port}; it must be 1 to {2**16 - 1}")


@dataclass
class CompareArguments:
    """Two runs, and how finely they are compared."""

    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "output folders of run A and run B; the flag itself may be left out", "metavar": "DIR"},
    )
    json: str | None = field(
        default=None, metadata={"help": "also write the comparison to this file, for programs", "metavar": "FILE"}
    )
    html: str | None = field(
        default=None,
        metadata={"help": "also write it as a page, with what changed by class and by image", "metavar": "FILE"},
    )
    resamples: int = field(default=2000, metadata={"help": "draws of the bootstrap"})
    seed: int = field(default=0, metadata={"help": "seed of the draws"})

    def __post_init__(self):
        if len(self.runs) != 2:
            raise UserError(f"two output folders are compared, not {len(self.runs)}: compare_runs.py RUN_A RUN_B")
        if self.resamples < 100:
            raise UserError(f"--resamples is {self.resamples}; fewer than 100 draws give no 95 % interval")


@dataclass
class PublishArguments:
    """Which run, and where it goes."""

    output_dir: Path | None = field(
        default=None, metadata={"help": "folder of a finished run; the flag itself may be left out"}
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={
            "help": "NAME or USER/NAME of the repository, which is made if need be; the folder's name if left out"
        },
    )
    private: bool = field(
        default=False,
        metadata={"help": "make the repository private, where it is new", "aliases": ["--hub_private_repo"]},
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "branch to publish to; the main one if left out", "aliases": ["--hub_revision"]},
    )
    token: str | None = field(
        default=None,
        metadata={
            "help": "token with write access; HF_TOKEN, or that of `hf auth login`, if left out",
            "aliases": ["--hub_token"],
        },
    )

    def __post_init__(self):
        if self.output_dir is None:
            raise UserError("which run? publish.py OUTPUT_DIR")


# What each script takes, as `cli_utils.parse_arguments` does.
PREDICT = {"dataclass_types": (PredictArguments, EvaluationArguments), "positional": "inputs"}
APP = {"dataclass_types": (AppArguments, EvaluationArguments)}
COMPARE = {"dataclass_types": (CompareArguments,), "positional": "runs"}
PUBLISH = {"dataclass_types": (PublishArguments,), "positional": "output_dir"}
