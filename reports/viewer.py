"""A page in which predictions are looked at: opacity, a legend that shows and hides classes, and what lies under the
pointer. It holds all that it needs, and takes no more of an image than a screen shows."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.classes import ClassMap
from metrics_utils import IGNORE_INDEX
from reports.pictures import encoded, hex_color
from reports.templates import page_script, render
from visual_utils import sampled

VIEW_SIDE = 1280  # of the picture in the page, in pixels


@dataclass(frozen=True)
class View:
    """What one model says of the image.

    ids: training ids (H, W), 255 where nothing is known. confidence: uint8 (H, W), 255 for certainty, or None.
    """

    model: str
    class_map: ClassMap
    ids: np.ndarray
    confidence: np.ndarray | None = None


def viewer_page(photo: Image.Image | None = None, views: Sequence[View] = (), problems: Sequence[str] = ()) -> bytes:
    """The page, UTF-8.

    photo: of the ids' size. problems: lines that say what is wrong.
    """
    scale = min(1.0, VIEW_SIDE / max(photo.size)) if photo else 1.0
    size = tuple(max(1, round(side * scale)) for side in photo.size) if photo else None
    shown = photo and encoded(photo.convert("RGB").resize(size, Image.Resampling.LANCZOS), format="JPEG", quality=90)
    return render(
        "viewer.html.j2",
        photo=shown,
        size=size,
        views=[_contents(view, size) for view in views],
        problems=list(problems),
        script=page_script("viewer.js"),
    )


def viewer_frame(page: bytes, views: bool = False) -> str:
    """A page as part of another one, of which it can neither read nor change anything.

    views: whether there is something to look at, which takes room.
    """
    room = "height: 46rem; resize: vertical" if views else "height: 8rem"
    return (
        f'<iframe title="prediction" sandbox="allow-scripts" srcdoc="{html.escape(page.decode())}" '
        f'style="width: 100%; {room}; border: 0"></iframe>'
    )


def _contents(view: View, size: tuple[int, int]) -> dict:
    """size: width and height in the page."""
    colors, names = view.class_map.colors(), view.class_map.id2label
    pixels = np.bincount(view.ids.ravel(), minlength=256)
    known = max(1, int(pixels.sum() - pixels[IGNORE_INDEX]))
    order = [i for i in np.argsort(-pixels[: len(names)], kind="stable").tolist() if pixels[i]]
    ids = sampled(view.ids, size)
    confidence = np.zeros_like(ids) if view.confidence is None else sampled(view.confidence, size)
    return {
        "model": view.model,
        # The script reads ids in the red and confidences in the green channel.
        "pixels": encoded(Image.fromarray(np.stack([ids, confidence, np.zeros_like(ids)], axis=-1))),
        "classes": [
            {"id": i, "name": names[i], "color": hex_color(colors[i]), "share": pixels[i] / known} for i in order
        ],
        "data": {
            "names": [names[i] for i in range(len(names))],
            "colors": colors.tolist(),
            "confident": view.confidence is not None,
        },
    }
