"""A few predictions for the trackers of `--report_to`, beside the numbers that the Trainer gives them."""

import logging

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from cli_utils import one_line
from data.classes import ClassMap
from data.image_files import rgb_view
from training.trainer import SegmentationTrainer
from visual_utils import side_by_side

logger = logging.getLogger(__name__)

PICTURES = 3  # always of the same images, so that progress can be seen
TAG = "predictions"


def log_pictures(trainer: SegmentationTrainer, class_map: ClassMap) -> None:
    """Gives image, truth and prediction of a few evaluation images to TensorBoard, trackio and W&B, if they are on."""
    trackers = [
        one
        for one in trainer.callback_handler.callbacks
        if isinstance(one, TensorBoardCallback | TrackioCallback | WandbCallback)
    ]
    if not trackers or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return
    dataset = trainer.eval_dataset
    pictures = {}
    for place in np.unique(np.linspace(0, len(dataset) - 1, PICTURES).round().astype(int)).tolist():
        image, truth = dataset.read(place)
        ids = np.asarray(trainer.predict_ids(image)).astype(np.uint8)
        panels = side_by_side(rgb_view(image), np.asarray(truth), ids, class_map.colors(), class_map.id2label)
        pictures[dataset.split["name"][place]] = panels
    for tracker in trackers:
        try:
            _give(tracker, pictures, trainer.state.global_step)
        except Exception as error:  # theirs
            logger.warning(f"{type(tracker).__name__} took no pictures: {one_line(error)}")


def _give(tracker, pictures: dict[str, Image.Image], step: int) -> None:
    if isinstance(tracker, TensorBoardCallback):
        for name, picture in pictures.items():
            tracker.tb_writer.add_image(f"{TAG}/{name}", np.asarray(picture), step, dataformats="HWC")
    elif isinstance(tracker, TrackioCallback):
        import trackio

        trackio.log({f"{TAG}/{name}": trackio.Image(np.asarray(picture)) for name, picture in pictures.items()})
    else:
        import wandb

        wandb.log({f"{TAG}/{name}": wandb.Image(picture) for name, picture in pictures.items()}, commit=False)
