"""Rendered datasets of kinds that a plan must tell apart: seen from the air, where there is no top, and tiny things.

python -m factories.pictures aerial FOLDER        (from tests/)
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

AERIAL = ("field", "wood", "road", "house")
TINY = ("ground", "grain", "seed")


def smooth_noise(rng, height, width, scale):
    """Mean 0, deviation 1."""
    coarse = rng.standard_normal((max(2, height // scale), max(2, width // scale))).astype(np.float32)
    noise = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / noise.std()


def aerial_pair(rng, height=256, width=320):
    """Fields and woods, roads and houses at any angle; house roofs and some fields share their colours."""
    size = np.array([width, height])
    patches = rng.integers(6, 12)
    centres, is_wood = rng.random((patches, 2)) * size, rng.random(patches) < 0.3
    y, x = np.mgrid[:height, :width]
    distance = [(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres]
    patch = np.argmin(distance, axis=0)
    mask = Image.fromarray(is_wood[patch].astype(np.uint8))
    draw, colors = ImageDraw.Draw(mask), np.array([[150, 140, 80], [60, 80, 50], [130, 128, 125], [150, 100, 85]])
    for _ in range(rng.integers(1, 4)):
        angle, middle = rng.random() * np.pi, rng.random(2) * size
        along = np.array([np.cos(angle), np.sin(angle)]) * 600
        draw.line([tuple(middle - along), tuple(middle + along)], fill=2, width=int(rng.integers(6, 12)))
    for _ in range(rng.integers(3, 14)):
        turn, middle = rng.random() * np.pi, rng.random(2) * size
        sides = rng.uniform(7, 16, 2)
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides / 2
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        draw.polygon([tuple(point) for point in corners @ rotation.T + middle], fill=3)
    ids = np.array(mask)
    image = colors[ids] + rng.normal(0, 22, (patches, 3))[patch] * (ids < 2)[..., None]
    texture = (
        smooth_noise(rng, height, width, 4) * np.where(ids == 1, 22, 7) + smooth_noise(rng, height, width, 40) * 10
    )
    image = image + texture[..., None] + rng.normal(0, 6, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), mask


def tiny_pair(rng, height=288, width=384):
    """Ground with spots of no class, a few dozen grains of 6 to 9 pixels, and in every third image some seeds of the
    same size, which differ in shape and shade."""
    base = 110 + 22 * smooth_noise(rng, height, width, 48) + 9 * smooth_noise(rng, height, width, 6)
    image = Image.fromarray(np.stack([base + d for d in (12, 4, -8)], axis=-1).clip(0, 255).astype(np.uint8))
    mask = Image.new("L", (width, height))
    on_image, on_mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)

    def place():
        return rng.integers(8, width - 8), rng.integers(8, height - 8)

    for _ in range(30):  # of no class
        x, y = place()
        on_image.ellipse([x - 2, y - 2, x + 2, y + 2], fill=tuple(rng.integers(60, 150, 3).tolist()))
    for _ in range(rng.integers(15, 30)):
        (x, y), r = place(), rng.uniform(3, 4.5)
        box = [x - r, y - r, x + r, y + r]
        on_image.ellipse(box, fill=tuple(int(c + rng.normal(0, 8)) for c in (196, 186, 150)))
        on_mask.ellipse(box, fill=1)
    if rng.random() < 1 / 3:
        for _ in range(rng.integers(2, 5)):
            (x, y), r = place(), rng.uniform(3, 4.5)
            box = [x - r, y - 0.6 * r, x + r, y + 0.6 * r]
            on_image.ellipse(box, fill=tuple(int(c + rng.normal(0, 8)) for c in (190, 150, 150)))
            on_mask.ellipse(box, fill=2)
    noisy = np.asarray(image) + rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), mask


KINDS = {"aerial": (aerial_pair, AERIAL), "tiny": (tiny_pair, TINY)}


def render(kind, folder, train=40, validation=20, seed=0):
    """{train,val}/{images,masks} with `classes.txt`; returns the folder."""
    make_pair, names = KINDS[kind]
    folder, rng = Path(folder), np.random.default_rng(seed)
    for split, count in (("train", train), ("val", validation)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, mask = make_pair(rng)
            image.save(folder / split / "images" / f"{split}_{i:03}.png")
            mask.save(folder / split / "masks" / f"{split}_{i:03}.png")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    return folder


if __name__ == "__main__":
    render(sys.argv[1], sys.argv[2])
