"""Predictions of films: one with the classes blended in, in its own frame rate and with its sound, frame by frame.

Needs PyAV (optional). Nothing but the frames at work is held.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import visual_utils
from cli_utils import UserError, count_of, one_line, written_aside
from data.classes import ClassMap
from data.synonyms import VIDEO_EXTENSIONS

logger = logging.getLogger(__name__)


def video_file(path: Path, folder: Path, name: str) -> Path:
    """Where the film with the classes goes: MP4 for what is nearly that, else Matroska, which takes any sound."""
    return folder / f"{name}{'.mp4' if path.suffix.lower() in ('.mp4', '.m4v', '.mov') else '.mkv'}"


def write_video(
    source: Path,
    target: Path,
    predict: Callable,
    class_map: ClassMap,
    frames_folder: Path | None = None,
    batch_size: int = 1,
) -> int:
    """Predicts a film, some frames at a time; returns how many frames could not be decoded and are left out.

    Times of frames and the sound are taken over. An odd last row or column is cut off, as films have none.

    Args:
        predict: images of one size, PIL RGB → training ids (H, W) of each.
        frames_folder: for an indexed PNG of every frame, 000000.png and so on; None for none.
        batch_size: frames that are predicted at a time.

    Raises:
        UserError: it is no film, or has no pictures.
    """
    import av

    palette = class_map.colors()
    raw_palette = visual_utils.raw_palette(palette, class_map.raw_values)
    broken = count = 0
    with ExitStack() as opened:
        try:
            film = opened.enter_context(av.open(str(source)))
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{source} is no film that can be read: {one_line(error)}") from None
        if not film.streams.video:
            kinds = sorted({stream.type for stream in film.streams})
            raise UserError(f"{source} has no video stream (found: {', '.join(kinds) or 'nothing'})")
        pictures, sounds = film.streams.video[0], list(film.streams.audio)
        partial = opened.enter_context(written_aside(target))
        output = opened.enter_context(av.open(str(partial), "w"))
        stream, sound_of, waiting, last = None, {}, [], None
        progress = opened.enter_context(tqdm(total=pictures.frames or None, desc=source.name, unit="frame"))

        def write_waiting() -> None:
            nonlocal count
            if not waiting:
                return
            images = [image for *_, image in waiting]
            for (pts, time_base, image), ids in zip(waiting, predict(images), strict=True):
                ids = np.asarray(ids).astype(np.uint8)
                blended = np.asarray(visual_utils.overlay(image, ids, palette))[: stream.height, : stream.width]
                shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(blended), format="rgb24")
                shown.pts, shown.time_base = pts, time_base
                output.mux(stream.encode(shown))
                if frames_folder:
                    with written_aside(frames_folder / f"{count:06d}.png") as file:
                        visual_utils.save_indexed_png(file, class_map.to_raw(ids), raw_palette)
                count += 1
                progress.update()
            waiting.clear()

        for packet in film.demux([pictures, *sounds]):
            if packet.stream is not pictures:
                if packet.dts is not None and stream is not None:
                    packet.stream = sound_of[packet.stream.index]
                    output.mux(packet)
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                broken += 1
                continue
            for frame in frames:
                image = _upright(frame)
                if stream is None:
                    stream = _picture_stream(output, pictures, image)
                    sound_of = {sound.index: output.add_stream_from_template(sound) for sound in sounds}
                if waiting and waiting[0][-1].size != image.size:
                    write_waiting()
                last = _later_than(last, frame, pictures)
                waiting.append((last, frame.time_base, image))
                if len(waiting) == batch_size:
                    write_waiting()
        write_waiting()
        if stream is None:
            raise UserError(f"{source}: not one of its frames can be decoded")
        output.mux(stream.encode())
        output.close()  # before the file gets its name
    if broken:
        logger.warning(f"{source}: {count_of(broken, 'frame/frames')} could not be decoded and are left out")
    logger.info(f"{target}: {count_of(count, 'frame')}")
    return broken


def _later_than(last: int | None, frame, pictures) -> int:
    """The time of a frame, in its time base; one frame after the last one's where the film tells none that is later,
    as AVI, which has no times for frames that are stored in another order than they are shown."""
    if frame.pts is not None and (last is None or frame.pts > last):
        return frame.pts
    if last is None:
        return 0
    return last + max(1, round(1 / ((pictures.average_rate or 25) * frame.time_base)))


def _upright(frame) -> Image.Image:
    """A frame as RGB, turned as the film says."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise
    return Image.fromarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)))


def _picture_stream(output, pictures, image: Image.Image):
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    stream = output.add_stream(codec, rate=pictures.average_rate or 25)
    stream.width, stream.height = (side // 2 * 2 for side in image.size)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = pictures.time_base
    if codec == "libx264":
        stream.options = {"crf": "20"}
    else:
        stream.bit_rate = 8_000_000
    return stream


def split_videos(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Films that are named among the inputs, and the other inputs."""
    videos = [path for path in inputs if path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file()]
    return videos, [path for path in inputs if path not in videos]
