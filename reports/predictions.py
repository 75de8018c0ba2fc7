"""Predictions as files: an indexed PNG and an overlay for each image, and a contact sheet of all."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

import visual_utils
from cli_utils import count_of, printable, shorten, written_aside
from data.classes import ClassMap
from data.image_files import rgb_view
from data.large_images import LargeImage, UnreadableRows
from data.output_paths import output_names, refuse_inputs

logger = logging.getLogger(__name__)


def prediction_files(
    names: Sequence[str],
    folder: Path,
    others: Iterable[Path | None] = (),
    inputs: Iterable[str | os.PathLike] = (),
) -> list[tuple[Path, Path]]:
    """Where the PNG and the overlay of each image go, in the order of `names`, see `data.output_paths.output_names`.

    Args:
        others: files that are written beside them. inputs: files that must not be replaced.

    Raises:
        UserError: one of the files is an input.
    """
    others = [path for path in others if path]
    taken = [path.stem for path in others if path.parent == folder]
    paths = output_names(names, taken)
    files = [(folder / f"{path}.png", folder / "overlays" / f"{path}.jpg") for path in paths]
    refuse_inputs([*others, *(path for pair in files for path in pair)], inputs, "--output_dir")
    return files


def write_predictions(
    names: Sequence[str],
    read: Callable,
    predict: Callable,
    class_map: ClassMap,
    folder: Path,
    contact_sheet: Path,
    sample: Path | None = None,
    inputs: Iterable[str | os.PathLike] = (),
    also: Callable[[int, Path], Iterable] = lambda index, png: (),
    unreadable: list[str] | None = None,
) -> list[tuple[Path, Path]]:
    """Predicts images one by one, each process its share, and writes what is to be looked at and used.

    Args:
        names: of the images; "/" makes subfolders.
        read: index → image (PIL RGB, uint8 (C, H, W), or a `LargeImage`) and truth, training ids (H, W) or None where
            there is none; None instead of both leaves the image out.
        predict: image → training ids (H, W), as `models.inference.predict_ids` does; of a `LargeImage`, which has no
            truth, some rows of them after the other, as `models.banded.predict_bands` does.
        folder: for `prediction_files`: the class of every pixel in the annotation files' own values, and image, truth
            and prediction side by side.
        contact_sheet: file for a grid of some of the overlays.
        sample: file for a copy of the first overlay.
        inputs: files that must not be replaced.
        also: index and PNG → what else is written of that image: contexts of functions that take the ids, uint8
            (n, W), some rows after the other, see `reports.prediction_outputs`.
        unreadable: is added what is wrong with images of which some rows cannot be read, and which are left out; None:
            that is an error.

    Returns:
        PNG and overlay of every image that was not left out, of all processes, in the order of `names`.

    Raises:
        UserError: an output is one of the inputs, or cannot be written; what was written before is whole.
    """
    state = PartialState()
    places = prediction_files(names, folder, (contact_sheet, sample), inputs)
    renamed = [
        f"{printable(name)} → {png.relative_to(folder)}"
        for name, (png, _) in zip(names, places, strict=True)
        if png != folder / f"{name}.png"
    ]
    if renamed:
        many = count_of(len(renamed), "prediction/predictions is/are")
        logger.warning(f"{many} named otherwise, as not every system has such file names: {shorten(renamed, 8)}")
    palette = class_map.colors()
    raw_palette = visual_utils.raw_palette(palette, class_map.raw_values)
    share = range(state.process_index, len(names), state.num_processes)
    written = []
    for index in tqdm(share, desc="predicting", disable=not state.is_main_process):
        found = read(index)
        if found is None:
            continue
        image, truth = found
        png, overlay = places[index]
        try:
            with ExitStack() as outputs:
                partial = outputs.enter_context(written_aside(png))
                takers = [outputs.enter_context(output) for output in also(index, png)]
                if isinstance(image, LargeImage):
                    image, ids = _save_bands(partial, image, predict(image), class_map, raw_palette, takers)
                else:
                    ids = np.asarray(predict(image)).astype(np.uint8)
                    visual_utils.save_indexed_png(partial, class_map.to_raw(ids), raw_palette)
                    for take in takers:
                        take(ids)
        except UnreadableRows as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
            continue
        truth = None if truth is None else np.asarray(truth)
        panels = visual_utils.side_by_side(rgb_view(image), truth, ids, palette, class_map.id2label)
        with written_aside(overlay) as partial:
            panels.save(partial, quality=90)
        written.append(index)
    files = [places[index] for index in sorted(gather_object(written))]
    if files and state.is_main_process:
        with written_aside(contact_sheet) as partial:
            visual_utils.contact_sheet([overlay for _, overlay in files]).save(partial)
        if sample is not None:
            with written_aside(sample) as partial:
                shutil.copyfile(files[0][1], partial)
        images = "1 image" if len(files) == 1 else f"{len(files)} images"
        logger.info(f"predictions of {images} in {folder}; at a glance: {contact_sheet}")
    return files


def _save_bands(
    path: Path, image: LargeImage, bands: Iterable, class_map: ClassMap, palette: np.ndarray, takers: list[Callable]
) -> tuple[Tensor, np.ndarray]:
    """Writes the PNG as the rows come. Returns every n-th pixel of the image, uint8 (C, h, w), and of its ids (h, w),
    to be looked at."""
    step = -(-max(image.size) // visual_utils.MAX_PANEL_SIDE)
    pixels, shown, top = [], [], 0
    with visual_utils.IndexedPngWriter(path, image.size, palette) as png:
        for rows in bands:
            ids = np.asarray(rows).astype(np.uint8)
            png.write(class_map.to_raw(ids))
            for take in takers:
                take(ids)
            for row in range(-top % step, len(ids), step):
                # Copies: views would hold the whole band.
                pixels.append(image.read(top + row, top + row + 1)[..., ::step].clone())
                shown.append(ids[row, ::step].copy())
            top += len(ids)
    return torch.cat(pixels, dim=1), np.stack(shown)
