"""A clean dataset in which everything is well, and one function for every way to break it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from factories.datasets import LAYOUT_FILES
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

WIDTH, HEIGHT = 64, 48
NAMES = {0: "ground", 1: "disc", 2: "box", 3: "bar"}
COLORS = [(20, 30, 20), (230, 110, 70), (60, 70, 170), (245, 240, 140)]
TRAIN, VALIDATION = 8, 4
# Images that can be written again without loss, where the layout does not mind.
FILES = LAYOUT_FILES | {"split folders": ("{split}/images/{name}.png", "{split}/masks/{name}.png")}


def draw_scene(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> tuple[Image.Image, Image.Image]:
    """A picture with a few shapes at random places, mode RGB, and its mask of ids 0 … 3, mode L."""
    rng = np.random.default_rng(seed)
    width, height = size
    scale = min(width / WIDTH, height / HEIGHT)
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    for id_, (w, h) in ((1, (22, 20)), (2, (20, 14)), (3, (30, 5)), (1, (10, 9)), (2, (9, 12))):
        w, h = round(w * scale), round(h * scale)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        (pen.ellipse if id_ == 1 else pen.rectangle)((int(x), int(y), int(x + w), int(y + h)), fill=id_)
    ids = np.asarray(mask)
    shade = np.linspace(*rng.uniform(0.7, 1.3, 2), width)[None, :, None]
    shade = shade * np.linspace(*rng.uniform(0.7, 1.3, 2), height)[:, None, None]
    colors = np.array(COLORS)[rng.permutation(4)]
    pixels = colors[ids] * shade + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def make_clean(
    root: Path, layout: str = "split folders", seed: int = 0, counts=(TRAIN, VALIDATION), names=NAMES
) -> Path:
    """`scene_00` … of the training split, then those of the validation split; a class list unless `names` is None."""
    image_path, mask_path = FILES[layout]
    listed = {"train": [], "val": []}
    for i in range(sum(counts)):
        split = "train" if i < counts[0] or layout == "images and masks" else "val"
        name = f"scene_{i:02d}"
        listed[split].append(name)
        fill = {"split": split, "ade": {"train": "training", "val": "validation"}[split], "name": name}
        image, mask = draw_scene(100 * seed + i)
        if layout == "ADE20K":
            mask = mask.point(lambda value: value + 1)
        for picture, path in ((image, image_path), (mask, mask_path)):
            file = root / path.format(**fill)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, **({"quality": 95} if file.suffix.lower() in (".jpg", ".jpeg") else {}))
    if names is not None:
        (root / "id2label.json").write_text(json.dumps(names))
    if layout == "Pascal VOC":
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        for split, found in listed.items():
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(found))
    if layout == "metadata":
        rows = [f"pictures/{name}.webp,ids/{name}.gif,{split}" for split, found in listed.items() for name in found]
        (root / "metadata.csv").write_text("\n".join(["file_name,mask_file_name,split", *rows]))
    return root


# ---- ways to reach into it ------------------------------------------------------------------------------------------


def image_of(root: Path, index: int) -> Path:
    return next((root / ("train" if index < TRAIN else "val") / "images").glob(f"scene_{index:02d}.*"))


def mask_of(root: Path, index: int) -> Path:
    return next((root / ("train" if index < TRAIN else "val") / "masks").glob(f"scene_{index:02d}.*"))


def replace(file: Path, picture: Image.Image | np.ndarray | bytes, suffix: str | None = None, **options) -> Path:
    """Puts another picture, or any bytes, in a file's place."""
    file.unlink()
    file = file.with_suffix(suffix or file.suffix)
    if isinstance(picture, bytes):
        file.write_bytes(picture)
    else:
        (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, **options)
    return file


def load(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        picture.load()
        return picture


def ids(file: Path) -> np.ndarray:
    return np.array(load(file))


def each_mask(root: Path, change: Callable[[np.ndarray], np.ndarray | Image.Image], only=None, **options) -> None:
    for index in only if only is not None else range(TRAIN + VALIDATION):
        file = mask_of(root, index)
        replace(file, change(ids(file)), **options)


def each_image(root: Path, change: Callable[[Image.Image], Image.Image], only=None, **options) -> None:
    for index in only if only is not None else range(TRAIN + VALIDATION):
        file = image_of(root, index)
        replace(file, change(load(file)), **options)


def move(root: Path, file: Path, to: str) -> None:
    target = root / to
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def with_orientation(picture: Image.Image, orientation: int) -> dict:
    exif = picture.getexif()
    exif[0x0112] = orientation
    return {"exif": exif}


def write_classes(root: Path, names: dict[int, str] | None, colors=None) -> None:
    (root / "id2label.json").unlink()
    if colors is not None:
        entries = [{"id": i, "name": name, "color": list(colors[i])} for i, name in names.items()]
        (root / "id2label.json").write_text(json.dumps(entries))
    elif names is not None:
        (root / "id2label.json").write_text(json.dumps(names))


# ---- faults ---------------------------------------------------------------------------------------------------------


def _cut_jpeg(root):
    each_image(root, lambda picture: picture, suffix=".jpg")
    cut(image_of(root, 2))


def _half_masks(root):
    each_mask(root, lambda mask: mask[::2, ::2])


def _lay_on_side(root):
    each_mask(root, lambda mask: np.rot90(mask), only=[3])


def _metadata(root, missing: bool):
    rows = ["file_name,mask_file_name,split"]
    for i in range(TRAIN + VALIDATION):
        image, mask = (file(root, i).relative_to(root).as_posix() for file in (image_of, mask_of))
        rows.append(f"{image},{mask},{'train' if i < TRAIN else 'val'}")
    rows.append(rows[1].replace("scene_00", "scene_99") if missing else rows[1])
    (root / "metadata.csv").write_text("\n".join(rows))
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).rename(root / split / f"{kind}_")
    text = (root / "metadata.csv").read_text().replace("/images/", "/images_/").replace("/masks/", "/masks_/")
    (root / "metadata.csv").write_text(text)


def _turn(root, orientation: int, turn_mask: bool):
    """The image is stored turned; its mask lies as the image is seen, or as it is stored."""
    file = image_of(root, 1)
    picture = load(file)
    stored = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}[orientation]
    turned = picture.transpose(stored)
    replace(file, turned, **with_orientation(turned, orientation))
    if turn_mask:
        replace(mask_of(root, 1), load(mask_of(root, 1)).transpose(stored))


def _put_scene(root, size):
    for file, picture in zip((image_of(root, 1), mask_of(root, 1)), draw_scene(70, size), strict=True):
        replace(file, picture)


def _without_masks(root):
    for split in ("train", "val"):
        (root / split / "masks").rename(root.parent / f"{split}_put_aside")


def _transparent(picture):
    picture = picture.convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture


def _colored(mask, colors=COLORS):
    return np.array(colors, np.uint8)[mask]


def _color_masks(root, listed=None):
    each_mask(root, _colored)
    write_classes(root, NAMES, listed)


def _one_mask_of_ids(root):
    """A black mask among those in colours: a colour that the list of classes lacks, or class 0."""
    _color_masks(root, COLORS)
    each_mask(root, lambda mask: mask * 0, only=[1])


def _jpeg_color_masks(root):
    each_mask(root, lambda mask: Image.fromarray(_colored(mask)), suffix=".jpg")
    write_classes(root, NAMES, COLORS)


def _indexed(mask, order):
    """Index k has the colour of class order[k], and pixels have the colours of their classes."""
    picture = Image.fromarray(np.argsort(order)[mask].astype(np.uint8)).convert("P")
    picture.putpalette([channel for i in order for channel in COLORS[i]])
    return picture


def _palettes(root):
    """Indices as a program gives them that saves "indexed colours": most frequent first, in every file anew."""
    each_mask(root, lambda mask: _indexed(mask, [0, 1, 2, 3]))
    file = mask_of(root, 4)
    replace(file, _indexed(ids(file), [0, 2, 1, 3]))


def _palettes_in_another_order(root):
    each_mask(root, lambda mask: _indexed(mask, [0, 2, 1, 3]))
    write_classes(root, NAMES, COLORS)


def _smoothed(mask: np.ndarray) -> np.ndarray:
    """Made smaller and larger again with interpolation, as ids far apart show it best."""
    picture = Image.fromarray(mask)
    half = picture.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BILINEAR)
    return np.asarray(half.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def _many_classes(root):
    """Ids 0, 5, 10 and 15 of 16 classes."""
    each_mask(root, lambda mask: mask * 5)
    write_classes(root, {i: f"thing {i}" for i in range(16)})


def _interpolated(root, only):
    _many_classes(root)
    each_mask(root, _smoothed, only=only)


def _blurred(root):
    _many_classes(root)
    each_mask(root, lambda mask: Image.fromarray(mask).filter(ImageFilter.GaussianBlur(1)), only=[5])


def _binary(root):
    """Of two of four classes, so that 255 cannot be the second of two."""
    each_mask(root, lambda mask: (mask > 0).astype(np.uint8) * 255)


def _binary_mixed(root):
    each_mask(root, lambda mask: (mask > 0).astype(np.uint8))
    each_mask(root, lambda mask: mask * 255, only=[6])
    write_classes(root, {0: "ground", 1: "thing"})


def _with_patch(value):
    def change(mask):
        mask[4:12, 4:16] = value
        return mask

    return change


def _reduced(mask):
    return mask - 1  # uint8: 0 becomes 255


def _twice_reduced(mask):
    return mask - 2


def _all_ignored(mask):
    return np.full_like(mask, 255)


def _imbalanced(root):
    def change(mask):
        mask[mask == 3] = 0
        return mask

    each_mask(root, change)
    file = mask_of(root, 0)
    mask = ids(file)
    mask[20, 20] = 3
    replace(file, mask)
    each_mask(root, _with_patch(3), only=[TRAIN])


def _without(value, only):
    def break_it(root):
        def change(mask):
            mask[mask == value] = 0
            return mask

        each_mask(root, change, only)

    return break_it


def _copy(root, source: int, target: int, change=lambda picture: picture, mask_too: bool = True, **options) -> None:
    replace(image_of(root, target), change(load(image_of(root, source))), **options)
    if mask_too:
        replace(mask_of(root, target), change(load(mask_of(root, source))))


def _retouched(picture):
    """Brighter, less contrast, as another export may make it."""
    if picture.mode == "L":
        return picture
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(1.1)).enhance(0.9)


def _shifted(mask):
    return np.roll(mask, (3, 5), (0, 1))


def _only_validation(root):
    (root / "train").rename(root.parent / "put_aside")


def _flat(root):
    for kind in ("images", "masks"):
        (root / "train" / kind).rename(root / kind)
    for split in ("train", "val"):
        (root / split).rename(root.parent / f"{split}_put_aside")


def _class_list(text):
    return lambda root: (root / "id2label.json").write_text(text)


@dataclass(frozen=True)
class Fault:
    """break_it: does one thing wrong to a clean dataset. kind: what the check must call it. severity: of that finding.

    file: end of an entry in its `files`, or None where no file is to blame. flags: of `check_dataset.py`. also: other
    kinds that the same mistake shows in.
    """

    break_it: Callable[[Path], object]
    kind: str
    severity: str
    file: str | None = None
    flags: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


ONE, VAL = "train/scene_01", "validation/scene_08"
FAULTS = {
    # Files.
    "image cut off": Fault(lambda r: cut(image_of(r, 2)), "file-truncated", "error", "images/scene_02.png"),
    "JPEG image cut off": Fault(_cut_jpeg, "file-truncated", "error", "images/scene_02.jpg"),
    "mask cut off": Fault(lambda r: cut(mask_of(r, 9)), "file-truncated", "error", "val/masks/scene_09.png"),
    "empty image": Fault(lambda r: image_of(r, 0).write_bytes(b""), "file-empty", "error", "images/scene_00.png"),
    "empty mask": Fault(lambda r: mask_of(r, 0).write_bytes(b""), "file-empty", "error", "masks/scene_00.png"),
    "text as image": Fault(
        lambda r: image_of(r, 0).write_text("not an image"), "file-unreadable", "error", "images/scene_00.png"
    ),
    "web page as mask": Fault(
        lambda r: mask_of(r, 0).write_text("<html>404</html>"), "file-unreadable", "error", "masks/scene_00.png"
    ),
    "16-bit image": Fault(
        lambda r: each_image(r, lambda p: np.asarray(p.convert("L")).astype(np.uint16) * 200, only=[1]),
        "image-depth",
        "error",
        ONE,
    ),
    "float image": Fault(
        lambda r: each_image(r, lambda p: p.convert("F"), only=[1], suffix=".tif"), "image-depth", "error", ONE
    ),
    "one mask cropped": Fault(lambda r: each_mask(r, lambda m: m[:-1], only=[1]), "size-mismatch", "error", ONE),
    "masks of half size": Fault(_half_masks, "size-mismatch", "error", VAL),
    "mask on its side": Fault(_lay_on_side, "mask-turned", "error", "train/scene_03"),
    "image without mask": Fault(
        lambda r: mask_of(r, 1).unlink(), "image-without-mask", "warning", "train/images/scene_01.png"
    ),
    "mask without image": Fault(
        lambda r: image_of(r, 8).unlink(), "mask-without-image", "warning", "val/masks/scene_08.png"
    ),
    # Folders and lists.
    "no layout": Fault(_without_masks, "not-loadable", "error", ""),
    "no pairs": Fault(lambda r: [mask_of(r, i).unlink() for i in range(8, 12)], "not-loadable", "error", ""),
    "twice with another extension": Fault(
        lambda r: load(image_of(r, 0)).save(r / "train" / "images" / "scene_00.jpg"), "not-loadable", "error", ""
    ),
    "metadata names a missing file": Fault(lambda r: _metadata(r, missing=True), "not-loadable", "error", ""),
    "metadata names a file twice": Fault(lambda r: _metadata(r, missing=False), "not-loadable", "error", ""),
    "class list with a name twice": Fault(
        _class_list('{"0": "a", "1": "b", "2": "a", "3": "c"}'), "classes-unclear", "error"
    ),
    "class list no JSON": Fault(_class_list("a\nb"), "classes-unclear", "error"),
    "no training split": Fault(_only_validation, "no-training-split", "warning"),
    "no validation split": Fault(_flat, "no-validation-split", "info"),
    # Turned images.
    "EXIF in the image, mask as stored": Fault(lambda r: _turn(r, 6, True), "exif-mask", "warning", ONE),
    "EXIF in the image, mask as seen": Fault(lambda r: _turn(r, 6, False), "exif-rotation", "info", ONE),
    "EXIF upside down": Fault(lambda r: _turn(r, 3, False), "exif-doubtful", "warning", ONE),
    # Images.
    "blank image": Fault(
        lambda r: each_image(r, lambda p: Image.new("RGB", p.size, "black"), only=[1]), "image-blank", "warning", ONE
    ),
    "image of two pages": Fault(
        lambda r: each_image(
            r, lambda p: p, only=[1], suffix=".tif", save_all=True, append_images=[draw_scene(99)[0]]
        ),
        "image-animated",
        "warning",
        ONE,
    ),
    "transparent image": Fault(lambda r: each_image(r, _transparent, only=[1]), "image-transparent", "warning", ONE),
    "CMYK image": Fault(
        lambda r: each_image(r, lambda p: p.convert("CMYK"), only=[1], suffix=".tif"), "image-cmyk", "warning", ONE
    ),
    "one grey image": Fault(
        lambda r: each_image(r, lambda p: p.convert("L"), only=[1]), "image-modes-mixed", "info", ONE
    ),
    "tiny image": Fault(
        lambda r: _put_scene(r, (32, 24)),
        "image-tiny",
        "warning",
        ONE,
        flags=("--image_size", "32"),
    ),
    "images too small": Fault(lambda r: None, "image-upsampled", "warning", ONE, flags=("--image_size", "512")),
    "long image": Fault(
        lambda r: _put_scene(r, (260, 60)),
        "image-elongated",
        "info",
        ONE,
    ),
    # Forms of masks.
    "colour masks": Fault(_color_masks, "mask-colors", "error", ONE),
    "colour masks, one colour not listed": Fault(
        lambda r: _color_masks(r, [*COLORS[:3], (1, 2, 3)]), "mask-colors-unknown", "error", ONE
    ),
    "colour masks as JPEG": Fault(_jpeg_color_masks, "mask-colors-lossy", "error", ONE),
    "colour masks that can be read": Fault(lambda r: _color_masks(r, COLORS), "mask-by-color", "info", ONE),
    "colour masks, one of them black": Fault(_one_mask_of_ids, "mask-forms-mixed", "error", ONE),
    "palettes with the colours of other classes": Fault(
        _palettes_in_another_order, "mask-palette-contradicts", "warning", ONE
    ),
    "mask of two pages": Fault(
        lambda r: each_mask(
            r, Image.fromarray, only=[1], suffix=".tif", save_all=True, append_images=[draw_scene(99)[1]]
        ),
        "mask-animated",
        "warning",
        ONE,
    ),
    "palettes that differ": Fault(_palettes, "mask-palettes-differ", "warning", "train/scene_04"),
    "masks of three equal channels": Fault(
        lambda r: each_mask(r, lambda m: np.stack([m] * 3, axis=-1)), "mask-channels", "info", ONE
    ),
    "one 16-bit mask": Fault(
        lambda r: each_mask(r, lambda m: m.astype(np.uint16), only=[1]), "mask-modes-mixed", "info", ONE
    ),
    # Values.
    "JPEG masks": Fault(
        lambda r: each_mask(r, lambda m: Image.fromarray(m), suffix=".jpg", quality=60), "mask-lossy", "error", ONE
    ),
    "JPEG mask called PNG": Fault(
        lambda r: each_mask(r, lambda m: Image.fromarray(m), only=[1], format="JPEG", quality=60),
        "mask-lossy",
        "error",
        ONE,
    ),
    "masks interpolated": Fault(lambda r: _interpolated(r, None), "mask-interpolated", "error", VAL),
    "one mask interpolated": Fault(lambda r: _interpolated(r, [1]), "mask-interpolated", "warning", ONE),
    "one mask blurred": Fault(_blurred, "mask-interpolated", "warning", "train/scene_05"),
    "0 and 255": Fault(_binary, "mask-binary-255", "error", ONE),
    "0 and 255 in one mask": Fault(_binary_mixed, "mask-binary-mixed", "warning", "train/scene_06"),
    "unknown id": Fault(lambda r: each_mask(r, _with_patch(7), only=[1]), "mask-values-unknown", "error", ONE),
    "void after the last class": Fault(lambda r: each_mask(r, _with_patch(4)), "mask-values-unknown", "error", VAL),
    "ids from 1": Fault(lambda r: each_mask(r, lambda m: m + 1), "mask-reduction-needed", "error", ONE),
    "ids from 1, last class unused": Fault(
        lambda r: [_without(3, None)(r), each_mask(r, lambda m: m + 1)],
        "mask-reduction-needed",
        "warning",
        ONE,
        also=("class-nowhere",),
    ),
    "reduced already": Fault(
        lambda r: None,
        "mask-reduced-already",
        "warning",
        ONE,
        flags=("--do_reduce_labels",),
        also=("class-nowhere", "pixels-mostly-ignored"),
    ),
    "reduced twice": Fault(lambda r: each_mask(r, lambda m: _twice_reduced(m)), "mask-reduced-twice", "error", ONE),
    "ids times 85": Fault(lambda r: each_mask(r, lambda m: m * 85), "mask-values-scaled", "error", ONE),
    "ids times 50": Fault(lambda r: each_mask(r, lambda m: m * 50), "mask-values-scaled", "error", ONE),
    "ids of objects": Fault(
        lambda r: each_mask(r, lambda m: m.astype(np.uint16) * 1000 + 1), "mask-instance-ids", "error", ONE
    ),
    "ids of objects without a class list": Fault(
        lambda r: [each_mask(r, lambda m: m.astype(np.uint16) * 1000 + 1), write_classes(r, None)],
        "mask-instance-ids",
        "error",
        ONE,
    ),
    "one mask ignored": Fault(lambda r: each_mask(r, _all_ignored, only=[1]), "mask-all-ignored", "warning", ONE),
    "validation ignored": Fault(
        lambda r: each_mask(r, _all_ignored, only=range(8, 12)), "split-all-ignored", "error", VAL
    ),
    "one constant mask": Fault(lambda r: each_mask(r, np.zeros_like, only=[1]), "mask-constant", "info", ONE),
    "constant masks": Fault(lambda r: each_mask(r, np.zeros_like), "masks-all-constant", "error", ONE),
    # Classes.
    "class that never occurs": Fault(lambda r: write_classes(r, NAMES | {4: "cloud"}), "class-nowhere", "warning"),
    "class in validation only": Fault(_without(3, range(8)), "class-not-in-train", "warning", VAL),
    "class not in validation": Fault(_without(3, range(8, 12)), "class-not-in-validation", "info"),
    "rare class": Fault(_imbalanced, "class-imbalance", "info"),
    # Copies.
    "training image in validation": Fault(lambda r: _copy(r, 1, 8), "duplicate-across-splits", "error", VAL),
    "image twice": Fault(lambda r: _copy(r, 1, 2), "duplicate-in-split", "warning", ONE),
    "image twice with two masks": Fault(
        lambda r: _copy(r, 1, 2, mask_too=False),
        "duplicate-masks-differ",
        "warning",
        ONE,
        also=("duplicate-in-split",),
    ),
    "training image retouched in validation": Fault(
        lambda r: _copy(r, 1, 8, _retouched, mask_too=False), "near-duplicate-across-splits", "warning", VAL
    ),
    "training image mirrored in validation": Fault(
        lambda r: _copy(r, 1, 8, lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "near-duplicate-across-splits",
        "warning",
        VAL,
    ),
    "training image larger in validation": Fault(
        lambda r: _copy(r, 1, 8, lambda p: p.resize((96, 72), Image.Resampling.NEAREST)),
        "near-duplicate-across-splits",
        "warning",
        VAL,
    ),
    "image retouched": Fault(
        lambda r: _copy(r, 1, 2, _retouched, mask_too=False), "near-duplicate-in-split", "info", "train/scene_02"
    ),
    "mask of another image": Fault(
        lambda r: replace(mask_of(r, 2), load(mask_of(r, 1))), "mask-repeated", "warning", "train/scene_02"
    ),
    # Misaligned.
    "masks shifted": Fault(lambda r: each_mask(r, _shifted, range(8)), "mask-shifted", "error", ONE),
    "masks mirrored": Fault(lambda r: each_mask(r, np.fliplr, range(8)), "mask-flipped", "error", ONE),
    "masks upside down": Fault(lambda r: each_mask(r, np.flipud, range(8)), "mask-flipped", "error", ONE),
    "masks turned by 180 degrees": Fault(
        lambda r: each_mask(r, lambda m: m[::-1, ::-1], range(8)), "mask-flipped", "error", ONE
    ),
}
