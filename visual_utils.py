"""Pictures of class ids: palettes, indexed PNGs, overlays, image beside truth beside prediction, contact sheets.

A palette is a uint8 array (num_labels, 3) of RGB colours by training id. Ids are integer arrays (H, W) of
training ids with `ignore_index` where nothing is known.
"""

import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Panels of `side_by_side`, in pixels. Smaller images are enlarged by a whole factor, without smoothing.
MAX_PANEL_SIDE, MIN_PANEL_SIDE = 640, 256
# Those of `augmentation_sheet`.
DRAW_SIDE = 208
FONT_SIZE, LINE_HEIGHT, MARGIN = 16, 24, 8
MAX_LEGEND_LINES, MAX_NAME_LENGTH = 4, 28
BACKGROUND, SHEET_BACKGROUND, TEXT_COLOR = (255, 255, 255), (225, 225, 225), (30, 30, 30)
# How much of its brightness a pixel without a label keeps.
IGNORED_BRIGHTNESS = 0.6


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0…255, (..., 3), to CIELAB (D65), where Euclidean distance is about what an eye sees."""
    srgb = rgb / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def default_palette(num_labels: int) -> np.ndarray:
    """`num_labels` distinct colours, uint8 (num_labels, 3), none near black, white or mid grey.

    Each colour is the one farthest (CIELAB) from all before it, so a longer palette starts with the shorter one.
    """
    levels = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates)
    # Neither dark nor light nor neon: lines are white, text and ignored pixels dark.
    readable = (lab[:, 0] > 28) & (lab[:, 0] < 90) & (np.hypot(lab[:, 1], lab[:, 2]) < 95)
    candidates, lab = candidates[readable], lab[readable]
    if num_labels > len(candidates):
        raise ValueError(f"no {num_labels} distinct colours; at most {len(candidates)}")
    taken = _lab(np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128]]))
    distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(axis=1)
    chosen = []
    for _ in range(num_labels):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
    return candidates[chosen].astype(np.uint8)


def raw_palette(palette: np.ndarray, raw_values: Sequence[int]) -> np.ndarray:
    """Palette by training id → palette by value in the annotation files, uint8 (256, 3).

    Args:
        palette: (num_labels, 3).
        raw_values: for each training id its value in the annotation files (ADE20K: id + 1). Values that belong to no
            class (ADE20K's 0, 255) become black.
    """
    by_raw_value = np.zeros((256, 3), np.uint8)
    by_raw_value[np.asarray(raw_values)] = palette
    return by_raw_value


def save_indexed_png(path: str | Path, mask: np.ndarray, palette: np.ndarray) -> None:
    """Writes a single-channel PNG in which a program reads ids and a viewer shows colours.

    `np.asarray(Image.open(path))` returns the mask. Parent folders are made.

    Args:
        mask: (H, W), integers in 0…255 as in the annotation files.
        palette: (256, 3) by value in the annotation files, see `raw_palette`.
    """
    mask = np.asarray(mask)
    if mask.min() < 0 or mask.max() > 255:
        raise ValueError(f"{path}: values {mask.min()} to {mask.max()}; an indexed PNG holds 0 to 255")
    image = Image.fromarray(mask.astype(np.uint8))
    # All 256 entries: with fewer Pillow packs the pixels into fewer bits, which some readers do not undo.
    image.putpalette(np.asarray(palette, np.uint8).reshape(256 * 3).tolist())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")


class PngWriter:
    """`save_indexed_png`, or a grey PNG, for rows that come a band after the other; a context.

    Source: ISO/IEC 15948 (PNG): chunks of length, type, content and CRC; rows that each begin with the filter 0.

    Args:
        size: height and width. palette: (256, 3); None for grey.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], palette: np.ndarray | None = None):
        self.path, self.size, self.palette = path, size, palette
        self.packer = zlib.compressobj(6)

    def __enter__(self) -> "PngWriter":
        self.file = open(self.path, "wb")
        self.file.write(b"\x89PNG\r\n\x1a\n")
        height, width = self.size
        kind = 0 if self.palette is None else 3
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
        if self.palette is not None:
            self._chunk(b"PLTE", np.asarray(self.palette, np.uint8).tobytes())
        return self

    def write(self, rows: np.ndarray) -> None:
        """uint8 (n, width), the next rows."""
        self._data(self.packer.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()))

    def __exit__(self, kind, *_) -> None:
        with self.file:
            if kind is None:
                self._data(self.packer.flush())
                self._chunk(b"IEND", b"")

    def _data(self, content: bytes) -> None:
        if content:
            self._chunk(b"IDAT", content)

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self.file.write(struct.pack(">I", len(content)) + kind + content)
        self.file.write(struct.pack(">I", zlib.crc32(kind + content)))


def _colors(ids: np.ndarray, palette: np.ndarray, ignore_index: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 (H, W, 3) and the bool mask (H, W) of labelled pixels; the colour of the others is meaningless."""
    labelled = ids != ignore_index
    ids = np.where(labelled, ids, 0)
    if ids.min() < 0 or ids.max() >= len(palette):
        raise ValueError(f"the ids are {ids.min()} to {ids.max()}; the palette has {len(palette)} colours")
    return np.asarray(palette, np.uint8)[ids], labelled


def colorize(
    ids: np.ndarray, palette: np.ndarray, ignore_index: int = 255, ignore_color: Sequence[int] = (0, 0, 0)
) -> Image.Image:
    """RGB image of training ids (H, W)."""
    colors, labelled = _colors(np.asarray(ids), palette, ignore_index)
    colors[~labelled] = ignore_color
    return Image.fromarray(colors)


def sampled(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids (H, W) as a picture of `size` (width, height) shows them: those at the centres of its pixels."""
    places = [((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size[::-1], ids.shape, strict=True)]
    return ids[places[0][:, None], places[1]]


def overlay(
    image: Image.Image, ids: np.ndarray, palette: np.ndarray, alpha: float = 0.55, ignore_index: int = 255
) -> Image.Image:
    """RGB image with the classes blended in and a thin line where they meet; pixels without a label are only dimmed.

    Args:
        image: of the ids' size.
        ids: (H, W) training ids.
        alpha: share of the class colour, 0…1.
    """
    ids = np.asarray(ids)
    if image.size != ids.shape[::-1]:
        raise ValueError(f"image of {image.size} (width, height) and ids of {ids.shape[::-1]}")
    colors, labelled = _colors(ids, palette, ignore_index)
    photo = np.asarray(image.convert("RGB"), np.float32)
    blended = np.where(labelled[..., None], (1 - alpha) * photo + alpha * colors, IGNORED_BRIGHTNESS * photo)
    # No line along pixels without a label: scattered ones would turn white.
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= (ids[:, 1:] != ids[:, :-1]) & labelled[:, :-1]
    border[1:] |= (ids[1:] != ids[:-1]) & labelled[:-1]
    border &= labelled
    blended[border] = 0.25 * blended[border] + 0.75 * 255
    return Image.fromarray(blended.round().astype(np.uint8))


def drawable(text) -> str:
    """Text that can be drawn: without line breaks and without what fonts have no sign for."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


@cache
def _font():
    return ImageFont.load_default(size=FONT_SIZE)


def _legend(width: int, all_ids: Sequence[np.ndarray], palette, id2label, ignore_index) -> Image.Image:
    """Colour and name of the classes in the arrays, largest first, in at most MAX_LEGEND_LINES lines."""
    counts = sum(np.bincount(ids.ravel(), minlength=256) for ids in all_ids)
    ids = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and i != ignore_index]
    names = [drawable(id2label[i]) for i in ids]
    names = [n if len(n) <= MAX_NAME_LENGTH else n[: MAX_NAME_LENGTH - 1] + "…" for n in names]

    swatch, gap = 16, 6
    more_width = _font().getlength(f"+{len(ids)} more")
    placed, x, line = [], 0, 0
    for name in names:
        needed = swatch + gap + _font().getlength(name)
        # The last line keeps room for the words that say how many classes are left out.
        more_follows = line == MAX_LEGEND_LINES - 1 and len(placed) < len(names) - 1
        room = width - (2 * MARGIN + more_width if more_follows else 0)
        if x and x + needed > room:
            if line == MAX_LEGEND_LINES - 1:
                break
            x, line = 0, line + 1
        placed.append((x, line))
        x += needed + 2 * MARGIN

    legend = Image.new("RGB", (width, (line + 1) * LINE_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for (left, line_of_name), i, name in zip(placed, ids, names, strict=False):
        middle = line_of_name * LINE_HEIGHT + LINE_HEIGHT // 2
        box = (left, middle - swatch // 2, left + swatch, middle + swatch // 2)
        draw.rectangle(box, fill=tuple(int(c) for c in palette[i]), outline=TEXT_COLOR)
        draw.text((left + swatch + gap, middle), name, fill=TEXT_COLOR, font=_font(), anchor="lm")
    if len(placed) < len(ids):
        text = f"+{len(ids) - len(placed)} more"
        draw.text((x, line * LINE_HEIGHT + LINE_HEIGHT // 2), text, fill=TEXT_COLOR, font=_font(), anchor="lm")
    return legend


def side_by_side(
    image: Image.Image,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    palette: np.ndarray,
    id2label: dict[int, str],
    ignore_index: int = 255,
) -> Image.Image:
    """Image | truth | prediction (image | prediction without truth), captions above, the classes present below.

    Panels are brought to a readable size (MIN_PANEL_SIDE to MAX_PANEL_SIDE pixels on the long side). The prediction is
    shown everywhere, also where the truth is ignored.

    Args:
        image: any mode.
        truth, prediction: (H, W) training ids at the image's size.
    """
    image, long_side = image.convert("RGB"), max(image.size)
    if long_side < MIN_PANEL_SIDE:
        scale = -(-MIN_PANEL_SIDE // long_side)
    else:
        scale = min(1.0, MAX_PANEL_SIDE / long_side)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    photo = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)

    panels, all_ids = {"image": photo}, []
    for caption, ids in (("truth", truth), ("prediction", prediction)):
        if ids is not None:
            ids = np.asarray(ids)
            if ids.shape != image.size[::-1]:
                raise ValueError(f"{caption} of {ids.shape} (height, width) and image of {image.size[::-1]}")
            all_ids.append(ids)
            shown = sampled(ids, size)
            # Stronger than `overlay`'s default: the photo is shown beside it, and colours should match the legend.
            panels[caption] = overlay(photo, shown, palette, alpha=0.65, ignore_index=ignore_index)

    # A very narrow image still gets columns wide enough for its caption and the longest name.
    column = max(size[0], 160)
    width = len(panels) * (column + MARGIN) + MARGIN
    legend = _legend(width - 2 * MARGIN, all_ids, palette, id2label, ignore_index)
    canvas = Image.new("RGB", (width, LINE_HEIGHT + size[1] + MARGIN + legend.height + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (caption, panel) in enumerate(panels.items()):
        left = MARGIN + i * (column + MARGIN)
        draw.text((left, LINE_HEIGHT // 2), caption, fill=TEXT_COLOR, font=_font(), anchor="lm")
        canvas.paste(panel, (left, LINE_HEIGHT))
    canvas.paste(legend, (MARGIN, LINE_HEIGHT + size[1] + MARGIN))
    return canvas


def augmentation_sheet(
    rows: Sequence[tuple[str, Image.Image, Sequence[tuple[Image.Image, np.ndarray]]]],
    palette: np.ndarray,
    id2label: dict[int, str],
    ignore_index: int = 255,
) -> Image.Image:
    """A row for each image: itself, then what random transforms made of it, each draw beside its mask; at the bottom
    the classes present.

    Args:
        rows: (name, image as it was, draws), a draw being an image and its ids (H, W).
    """
    cell = DRAW_SIDE + MARGIN
    width = (1 + 2 * max(len(draws) for _, _, draws in rows)) * cell + MARGIN
    all_ids = [ids for _, _, draws in rows for _, ids in draws]
    legend = _legend(width - 2 * MARGIN, all_ids, palette, id2label, ignore_index)
    height = len(rows) * (LINE_HEIGHT + cell)
    canvas = Image.new("RGB", (width, height + legend.height + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for row, (name, original, draws) in enumerate(rows):
        top = row * (LINE_HEIGHT + cell)
        draw.text((MARGIN, top + LINE_HEIGHT // 2), drawable(name), fill=TEXT_COLOR, font=_font(), anchor="lm")
        panels = [(original, Image.Resampling.LANCZOS)]
        for image, ids in draws:
            mask = colorize(ids, palette, ignore_index)
            panels += [(image, Image.Resampling.LANCZOS), (mask, Image.Resampling.NEAREST)]
        for column, (panel, resampling) in enumerate(panels):
            panel = ImageOps.contain(panel, (DRAW_SIDE, DRAW_SIDE), resampling)
            canvas.paste(panel, (MARGIN + column * cell, top + LINE_HEIGHT))
    canvas.paste(legend, (MARGIN, height))
    return canvas


def contact_sheet(
    panels: Sequence[Image.Image | str | Path],
    columns: int = 2,
    max_width: int = 2000,
    max_panels: int = 24,
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Images or image files in columns, each scaled down (never up) to the column's width, the next one always below
    the shortest column, so that portraits beside landscapes leave no holes.

    Args:
        max_panels: of a longer list that many are shown, evenly spread from the first to the last.
        titles: what stands above each; the end of one that is too long, as a path has its name there.
    """
    if not panels:
        raise ValueError("a contact sheet needs at least one picture")
    if len(panels) > max_panels:
        shown = np.linspace(0, len(panels) - 1, max_panels).round().astype(int)
        panels, titles = [panels[i] for i in shown], titles and [titles[i] for i in shown]
    columns = min(columns, len(panels))
    cell = (max_width - MARGIN) // columns - MARGIN
    images = []
    for panel in panels:
        image = (panel if isinstance(panel, Image.Image) else Image.open(panel)).convert("RGB")
        if image.width > cell:
            image = image.resize((cell, max(1, round(image.height * cell / image.width))), Image.Resampling.LANCZOS)
        images.append(image)
    cell = max(image.width for image in images)
    head = LINE_HEIGHT if titles else 0
    bottoms, places = [MARGIN] * columns, []
    for image in images:
        column = bottoms.index(min(bottoms))
        places.append((MARGIN + column * (cell + MARGIN), bottoms[column]))
        bottoms[column] += head + image.height + MARGIN
    sheet = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, max(bottoms)), SHEET_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for image, (left, top), title in zip(images, places, titles or [""] * len(images), strict=True):
        text = drawable(title)
        while _font().getlength(text) > cell and len(text) > 1:
            text = f"…{text[2:]}"
        draw.text((left, top + head // 2), text, fill=TEXT_COLOR, font=_font(), anchor="lm")
        sheet.paste(image, (left, top + head))
    return sheet
