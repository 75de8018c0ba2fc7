"""Pictures inside pages: photos, masks over them, what of a prediction is wrong, and confusion matrices.

A page gets them as base64: photos as JPEG, masks as indexed PNGs in which what is not to be seen is transparent, so
that a page can lay them over the photo in any strength.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metrics_utils import IGNORE_INDEX
from visual_utils import drawable, sampled

SIDE = 480  # of an example, in pixels
CLASSES_SHOWN = 8  # of an example, those of most pixels
CONTEXT = 0.5  # around a region, in shares of its sides
SMALLEST_CROP = 0.3  # in shares of the image
WRONG, IGNORED = 1, 2  # values of a picture of errors
ERROR_COLORS = [(0, 0, 0, 0), (230, 20, 60, 255), (0, 0, 0, 255)]
RIGHT_COLOR, WRONG_COLOR = (31, 111, 235), (220, 38, 38)  # of the cells of a confusion matrix
MATRIX_SIDE, LARGEST_CELL, SMALLEST_CELL = 1100, 48, 6  # of the picture for people who paste it, in pixels
PERCENTS = 15  # classes up to which it has numbers in its cells


def file_of(picture: Image.Image, **options) -> bytes:
    """The content of a picture's file: a PNG, or in the `format` that the options say."""
    file = io.BytesIO()
    picture.save(file, **({"format": "PNG"} | options))
    return file.getvalue()


def encoded(picture: Image.Image, **options) -> str:
    """`file_of` in base64."""
    return base64.b64encode(file_of(picture, **options)).decode()


def mask_png(ids: np.ndarray, colors: np.ndarray) -> str:
    """Ids (H, W) as an indexed PNG in base64; `IGNORE_INDEX` is transparent. colors: uint8 (C, 3)."""
    present, places = np.unique(ids, return_inverse=True)
    shown = [(*colors[i].tolist(), 255) if i != IGNORE_INDEX else (0, 0, 0, 0) for i in present.tolist()]
    return _indexed_png(places.reshape(ids.shape), shown)


def _indexed_png(places: np.ndarray, colors: Sequence[tuple[int, int, int, int]]) -> str:
    picture = Image.fromarray(places.astype(np.uint8))
    picture.putpalette([value for color in colors for value in color[:3]])
    return encoded(picture, transparency=bytes(color[3] for color in colors))


def example(
    image: Image.Image, truth: np.ndarray, prediction: np.ndarray, colors: np.ndarray, names: Sequence[str]
) -> dict:
    """What a page shows of an image: photo, truth, prediction and errors, the classes in it, and in words what is
    wrong most.

    Args:
        image: RGB. truth, prediction: training ids (H, W) at its size.
        colors: uint8 (C, 3). names: of the classes.
    """
    scale = min(1.0, SIDE / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    photo = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    valid = truth != IGNORE_INDEX
    wrong = valid & (truth != prediction)
    errors = sampled(np.where(wrong, WRONG, np.where(valid, 0, IGNORED)), size)
    shown = [sampled(ids, size) for ids in (truth, prediction)]
    pixels = np.bincount(np.concatenate([truth[valid], prediction[valid]]), minlength=len(names))
    order = [i for i in np.argsort(-pixels, kind="stable").tolist() if pixels[i]]
    pairs = np.bincount(truth[wrong].astype(int) * len(names) + prediction[wrong], minlength=1)
    most = divmod(int(pairs.argmax()), len(names)) if wrong.any() else None
    return {
        "width": size[0],
        "height": size[1],
        "photo": encoded(photo, format="JPEG", quality=80),
        "truth": mask_png(shown[0], colors),
        "prediction": mask_png(shown[1], colors),
        "error": _indexed_png(errors, ERROR_COLORS),
        "wrong": float(wrong.sum() / max(1, valid.sum())),
        "most": most and {"truth": names[most[0]], "predicted": names[most[1]], "share": pairs.max() / valid.sum()},
        "classes": [{"name": names[i], "color": hex_color(colors[i])} for i in order[:CLASSES_SHOWN]],
        "more": max(0, len(order) - CLASSES_SHOWN),
    }


def around(size: tuple[int, int], box: Sequence[float]) -> tuple[int, int, int, int]:
    """A box in shares of an image's sides, with what is around it, in pixels of an image of `size` (width, height)."""
    left, top, right, bottom = box
    ends = []
    for low, high, side in ((left, right, size[0]), (top, bottom, size[1])):
        length = max((high - low) * (1 + 2 * CONTEXT), SMALLEST_CROP)
        begin = min(max(0.0, (low + high - length) / 2), max(0.0, 1 - length))
        ends.append((int(begin * side), max(int(begin * side) + 1, round(min(1.0, begin + length) * side))))
    (x0, x1), (y0, y1) = ends
    return x0, y0, x1, y1


def hex_color(color: np.ndarray) -> str:
    return f"#{bytes(color).hex()}"


# ---- confusion matrices ---------------------------------------------------------------------------------------------


def _cells(matrix: np.ndarray) -> np.ndarray:
    """Strength of each cell, 0 to 1: the square root of its share of its row, so that rare confusions show."""
    return np.sqrt(matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True)))


def heat_map(matrix: np.ndarray) -> str:
    """The matrix, a pixel a cell, as a PNG in base64: blue on the diagonal, red beside it, as strong as `_cells`."""
    pixels = np.empty((*matrix.shape, 4), np.uint8)
    pixels[..., :3] = WRONG_COLOR
    pixels[np.eye(len(matrix), dtype=bool), :3] = RIGHT_COLOR
    pixels[..., 3] = (255 * _cells(matrix)).round()
    return encoded(Image.fromarray(pixels))


def percents(matrix: np.ndarray) -> list[tuple[int, int, str, bool]]:
    """(row, column, text, whether its ground is dark) for the cells of a small matrix."""
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    cells = np.argwhere(shares >= 0.005).tolist() if len(matrix) <= PERCENTS else []
    return [(a, b, f"{shares[a, b]:.0%}", bool(shares[a, b] > 0.3)) for a, b in cells]


def draw_matrix(matrix: np.ndarray, names: Sequence[str]) -> Image.Image:
    """The matrix with the names of the classes, as a picture to paste; rows are the truth."""
    count = len(matrix)
    cell = max(SMALLEST_CELL, min(LARGEST_CELL, MATRIX_SIDE // count))
    font = ImageFont.load_default(size=max(10, min(14, cell)))
    every = -(-11 // cell)  # of the names, so that they do not touch
    shown = [drawable(name)[:24] for name in names]
    margin = round(max(font.getlength(name) for name in shown)) + 10
    side = count * cell
    left, top = margin + 16, margin + 46
    title, words = ImageFont.load_default(size=14), "Share of the truth (row) that is taken for (column)"
    width = max(left + side, round(title.getlength(words))) + 24
    picture = Image.new("RGB", (width, top + side + 12), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((12, 16), words, "#1c1c1c", title)
    strength = _cells(matrix)[..., None]
    colors = np.where(np.eye(count, dtype=bool)[..., None], RIGHT_COLOR, WRONG_COLOR)
    pixels = (255 - (255 - colors) * strength).round().astype(np.uint8)
    picture.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline="#cccccc")
    for i in range(0, count, every):
        middle = i * cell + cell // 2
        draw.text((left - 6, top + middle), shown[i], fill="#1c1c1c", font=font, anchor="rm")
        upright = Image.new("L", (margin, max(12, cell)), 0)
        ImageDraw.Draw(upright).text((0, upright.height // 2), shown[i], fill=255, font=font, anchor="lm")
        upright = upright.rotate(90, expand=True)
        place = left + middle - upright.width // 2, top - 6 - upright.height
        picture.paste(Image.new("RGB", upright.size, "#1c1c1c"), place, upright)
    for a, b, text, strong in percents(matrix):
        place = left + b * cell + cell // 2, top + a * cell + cell // 2
        draw.text(place, text, fill="white" if strong else "#1c1c1c", font=font, anchor="mm")
    return picture
