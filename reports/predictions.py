"""Predictions as files: an indexed PNG and an overlay for each image, and a contact sheet of all."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

import visual_utils
from cli_utils import written_aside
from data.classes import ClassMap
from data.image_files import rgb_view

logger = logging.getLogger(__name__)


def prediction_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Where the PNG and the overlay of an image go; the only place that makes paths of names."""
    return folder / f"{name}.png", folder / "overlays" / f"{name}.jpg"


def write_predictions(
    names: Sequence[str],
    read: Callable,
    predict: Callable,
    class_map: ClassMap,
    folder: Path,
    contact_sheet: Path,
    sample: Path | None = None,
) -> list[tuple[Path, Path]]:
    """Predicts images one by one, each process its share, and writes what is to be looked at and used.

    Args:
        names: of the images, unique; "/" makes subfolders.
        read: index → image (PIL RGB, or uint8 (C, H, W)) and truth, training ids (H, W) or None where there is none;
            None instead of both leaves the image out.
        predict: image → training ids (H, W), as `models.inference.predict_ids` does.
        folder: for `prediction_files`: the class of every pixel in the annotation files' own values, and image, truth
            and prediction side by side.
        contact_sheet: file for a grid of some of the overlays.
        sample: file for a copy of the first overlay.

    Returns:
        PNG and overlay of every image that was not left out, of all processes, in the order of `names`.
    """
    state = PartialState()
    palette = class_map.colors()
    raw_palette = visual_utils.raw_palette(palette, class_map.raw_values)
    share = range(state.process_index, len(names), state.num_processes)
    written = []
    for index in tqdm(share, desc="predicting", disable=not state.is_main_process):
        found = read(index)
        if found is None:
            continue
        image, truth = found
        ids = np.asarray(predict(image)).astype(np.uint8)
        png, overlay = prediction_files(folder, names[index])
        with written_aside(png) as partial:
            visual_utils.save_indexed_png(partial, class_map.to_raw(ids), raw_palette)
        truth = None if truth is None else np.asarray(truth)
        panels = visual_utils.side_by_side(rgb_view(image), truth, ids, palette, class_map.id2label)
        with written_aside(overlay) as partial:
            panels.save(partial, quality=90)
        written.append(index)
    files = [prediction_files(folder, names[index]) for index in sorted(gather_object(written))]
    if files and state.is_main_process:
        with written_aside(contact_sheet) as partial:
            visual_utils.contact_sheet([overlay for _, overlay in files]).save(partial)
        if sample is not None:
            with written_aside(sample) as partial:
                shutil.copyfile(files[0][1], partial)
        images = "1 image" if len(files) == 1 else f"{len(files)} images"
        logger.info(f"predictions of {images} in {folder}; at a glance: {contact_sheet}")
    return files
