"""Predictions as files: an indexed PNG and an overlay for each image, and a contact sheet of all."""

import logging
import math
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
from cli_utils import UserError, count_of, printable, shorten, written_aside
from data.classes import ClassMap
from data.image_files import rgb_view
from data.large_images import LargeImage, UnreadableRows
from data.output_paths import output_names, refuse_inputs
from metrics_utils import confusion_matrix, per_image_counts, score_images

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


def refuse_foreign(
    files: Sequence[tuple[Path, Path]],
    contact_sheet: Path,
    beside: Iterable[tuple[Path, Path]] = (),
    of_all: Iterable[Path] = (),
) -> None:
    """Raises UserError where predictions would be written over files that are none, as over masks that people drew.

    files: of `prediction_files`. A prediction has an overlay, which gets its name before it.
    beside: other files that may be written, each with the prediction that it belongs to. of_all: others that belong
        to all of them.
    """
    folder = contact_sheet.parent
    made = {png for png, overlay in files if os.path.lexists(png) and os.path.lexists(overlay)}
    foreign = [png for png, _ in files if os.path.lexists(png) and png not in made]
    foreign += [path for path, png in beside if os.path.lexists(path) and png not in made]
    if not made:
        foreign += [overlay for _, overlay in files if os.path.lexists(overlay)]
        # Of other images' predictions, perhaps.
        shared = [path for path in (contact_sheet, *of_all) if os.path.lexists(path)]
        foreign += shared if shared and not _has_overlays(folder) else []
    if foreign:
        listed = shorten(str(path.relative_to(folder)) for path in foreign)
        raise UserError(
            f"--output_dir {folder} holds files that are no predictions, and these would be written over: {listed}; "
            f"give a folder of its own, such as {folder / 'predicted'}"
        )


def _has_overlays(folder: Path) -> bool:
    overlays = folder / "overlays"
    return any(path.is_file() and path.suffix == ".jpg" for path in overlays.rglob("*"))


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
        contact_sheet: file for a grid of some of the overlays with the names of the images, those with the lowest
            mean IoU of their own first where the truth is known.
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
    logger.info(f"predicting {count_of(len(names), 'image')}")
    # None: a bar on a terminal alone.
    for index in tqdm(share, desc="predicting", leave=False, disable=None if state.is_main_process else True):
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
                truth = None if truth is None else np.asarray(truth)
                panels = visual_utils.side_by_side(rgb_view(image), truth, ids, palette, class_map.id2label)
                # Before the other gets its name, as `refuse_foreign` tells predictions by their overlays.
                with written_aside(overlay) as partial:
                    panels.save(partial, quality=90)
        except UnreadableRows as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
            continue
        written.append((index, math.nan if truth is None else _mean_iou(ids, truth, class_map.num_labels)))
    scores = dict(sorted(gather_object(written)))
    files = [places[index] for index in scores]
    if files and state.is_main_process:
        worst_first = sorted(scores, key=lambda index: (math.isnan(scores[index]), scores[index]))
        titles = [
            names[index] if math.isnan(scores[index]) else f"{names[index]}   IoU {scores[index]:.3f}"
            for index in worst_first
        ]
        with written_aside(contact_sheet) as partial:
            visual_utils.contact_sheet([places[index][1] for index in worst_first], titles=titles).save(partial)
        if sample is not None:
            with written_aside(sample) as partial:
                shutil.copyfile(files[0][1], partial)
        images = "1 image" if len(files) == 1 else f"{len(files)} images"
        logger.info(f"predictions of {images} in {folder}; at a glance: {contact_sheet}")
    return files


def _mean_iou(ids: np.ndarray, truth: np.ndarray, num_labels: int) -> float:
    """Of one image; NaN where no pixel is labelled."""
    matrix = confusion_matrix(ids, truth, num_labels).numpy()
    return score_images(per_image_counts(matrix[None]))


def _save_bands(
    path: Path, image: LargeImage, bands: Iterable, class_map: ClassMap, palette: np.ndarray, takers: list[Callable]
) -> tuple[Tensor, np.ndarray]:
    """Writes the PNG as the rows come. Returns every n-th pixel of the image, uint8 (C, h, w), and of its ids (h, w),
    to be looked at."""
    step = -(-max(image.size) // visual_utils.MAX_PANEL_SIDE)
    pixels, shown, top = [], [], 0
    with visual_utils.PngWriter(path, image.size, palette) as png:
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
