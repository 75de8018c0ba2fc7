"""The published training transforms: image and mask stay together, and the statistics are those of the recipe."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from checks.judge import prepare_dataset
from cli_utils import UserError
from data.augmentation import ResizedMask, TrainTransform
from data.classes import ClassMap
from data.preprocessing import EvaluationProtocol
from data_utils import SegmentationDataset, augmentation_preview, load_segmentation_dataset
from visual_utils import DRAW_SIDE, LINE_HEIGHT, MARGIN

IDENTITY = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


def blocks(height, width, block=16, classes=20, seed=0):
    """An image whose grey level is 10 × the class, and its mask of large blocks."""
    small = np.random.default_rng(seed).integers(0, classes, (height // block, width // block), dtype=np.uint8)
    mask = small.repeat(block, 0).repeat(block, 1)
    return Image.fromarray(np.stack([mask * 10] * 3, axis=-1)), Image.fromarray(mask)


def test_image_and_mask_stay_together():
    image, mask = blocks(96, 128)
    transform = TrainTransform(EvaluationProtocol(64, **IDENTITY), photometric_distortion=False)
    for seed in range(20):
        result = transform(image, mask, np.random.default_rng(seed))
        pixels, labels = result["pixel_values"], result["labels"]
        assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
        assert labels.shape == (64, 64) and labels.dtype == torch.uint8
        valid = labels != 255
        assert set(labels[valid].tolist()) <= set(range(20))
        # Bilinear images differ from nearest masks along the blocks' edges only, seen or just outside of the crop.
        windows = labels.unfold(0, 5, 1).unfold(1, 5, 1)
        inside = (windows == windows[..., :1, :1]).all(dim=-1).all(dim=-1) & valid[2:-2, 2:-2]
        assert inside.sum() > 200
        assert ((pixels[0] * 255 / 10).round() == labels)[2:-2, 2:-2][inside].all()
        assert (pixels[:, ~valid] == 0).all()


def test_padding_is_right_and_below_after_normalising():
    image, mask = blocks(32, 64)
    transform = TrainTransform(EvaluationProtocol(32), scale_range=(0.5, 0.5), flip_probability=0.0)
    result = transform(image, mask, np.random.default_rng(0))
    assert (result["labels"][:16] != 255).all() and (result["labels"][16:] == 255).all()
    assert (result["pixel_values"][:, 16:] == 0).all() and (result["pixel_values"][:, :16] != 0).all()


def test_masks_take_the_nearest_pixel_to_the_centre():
    """Half the size: pixels 1, 3, 5, 7 (nearest-exact), as the image processors do, not 0, 2, 4, 6."""
    mask = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8), (8, 1)))
    transform = TrainTransform(EvaluationProtocol(4), scale_range=(1.0, 1.0), flip_probability=0.0)
    labels = transform(mask.convert("RGB"), mask, np.random.default_rng(0))["labels"]
    assert labels.tolist() == [[1, 3, 5, 7]] * 4


def test_flip():
    image, mask = blocks(64, 64)
    fixed = {"scale_range": (1.0, 1.0), "photometric_distortion": False}
    straight = TrainTransform(EvaluationProtocol(64), flip_probability=0.0, **fixed)
    flipped = TrainTransform(EvaluationProtocol(64), flip_probability=1.0, **fixed)
    one, two = (transform(image, mask, np.random.default_rng(0)) for transform in (straight, flipped))
    assert torch.equal(one["pixel_values"].flip(-1), two["pixel_values"])
    assert torch.equal(one["labels"].flip(-1), two["labels"])
    assert torch.equal(one["labels"], torch.from_numpy(np.array(mask)))


def unlike_its_turns():
    """A 32 x 32 image whose pixels all differ, and its mask of four classes, one a corner."""
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    image = np.stack([pixels % 256, pixels // 256, 0 * pixels], axis=-1).astype(np.uint8)
    mask = np.repeat(np.repeat(np.array([[0, 1], [2, 3]], np.uint8), 16, 0), 16, 1)
    return Image.fromarray(image), Image.fromarray(mask)


def test_vertical_flip_and_quarter_turns_give_each_orientation_its_share():
    """Each of the eight orientations of a square in an eighth of 2,000 draws, image and mask the same way."""
    image, mask = unlike_its_turns()
    plain = {"scale_range": (1.0, 1.0), "photometric_distortion": False, "max_class_share": 1.0}
    transform = TrainTransform(EvaluationProtocol(32, **IDENTITY), quarter_turns=True, **plain)
    pixels, labels = np.array(image).transpose(2, 0, 1), np.array(mask)
    turned = [(np.rot90(pixels, k, (1, 2)), np.rot90(labels, k)) for k in range(4)]
    turned += [(one[:, :, ::-1], two[:, ::-1]) for one, two in turned]
    rng, counts = np.random.default_rng(0), np.zeros(8)
    for _ in range(2000):
        result = transform(image, mask, rng)
        found = (result["pixel_values"] * 255).round().numpy()
        (which,) = [i for i, (one, _) in enumerate(turned) if (one == found).all()]
        assert (result["labels"].numpy() == turned[which][1]).all()
        counts[which] += 1
    np.testing.assert_allclose(counts / 2000, 1 / 8, atol=0.03)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_vertical_flip_is_as_likely_as_asked(probability):
    image, mask = unlike_its_turns()
    transform = TrainTransform(
        EvaluationProtocol(32), (1.0, 1.0), 1.0, flip_probability=0.0, vertical_flip_probability=probability
    )
    rng = np.random.default_rng(0)
    flipped = [transform(image, mask, rng)["labels"].tolist()[0][0] == 2 for _ in range(1000)]
    assert np.mean(flipped) == pytest.approx(probability, abs=0.04)


def test_without_the_new_options_nothing_new_is_drawn():
    """So that a run without them draws what it drew before they were there."""
    image, mask = blocks(96, 128)
    rngs = np.random.default_rng(0), np.random.default_rng(0)
    off = {"vertical_flip_probability": 0.0, "quarter_turns": False, "crop_size": 64}
    results = [
        TrainTransform(EvaluationProtocol(64), **options)(image, mask, rng)
        for options, rng in zip(({}, off), rngs, strict=True)
    ]
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert rngs[0].random() == rngs[1].random()


def test_turned_crops_of_images_smaller_than_the_crop_are_padded_right_and_below():
    image, mask = blocks(32, 64)
    transform = TrainTransform(EvaluationProtocol(32), (0.5, 0.5), quarter_turns=True)
    upright = set()
    for seed in range(20):
        labels = transform(image, mask, np.random.default_rng(seed))["labels"] != 255
        upright.add(bool(labels[0].all()))
        assert labels[:16].all() and not labels[16:].any() if labels[0].all() else labels[:, :16].all()
    assert upright == {True, False}


def test_the_crop_may_be_smaller_than_the_short_side():
    """Windows of 32 of an image of 96 x 128 at its own size, each place as likely as the others."""
    y, x = np.mgrid[:96, :128]
    image = Image.fromarray(np.stack([y, x, 0 * x], axis=-1).astype(np.uint8))
    plain = {"photometric_distortion": False, "max_class_share": 1.0, "flip_probability": 0.0}
    transform = TrainTransform(EvaluationProtocol(96, **IDENTITY), (1.0, 1.0), crop_size=32, **plain)
    mask, corners, rng = Image.fromarray((x % 2).astype(np.uint8)), [], np.random.default_rng(0)
    for _ in range(1000):
        result = transform(image, mask, rng)
        assert result["pixel_values"].shape == (3, 32, 32) and result["labels"].shape == (32, 32)
        corners.append((result["pixel_values"][:2, 0, 0] * 255).round().tolist())
    corners = np.array(corners)
    assert corners.min() == 0 and corners.max(axis=0).tolist() == [64, 96]
    np.testing.assert_allclose(corners.mean(axis=0), [32, 48], atol=2.5)


@pytest.mark.parametrize(
    ("protocol", "crop_size", "message"),
    [
        ({}, 100, "--crop_size is 100; it must be a positive multiple of 32, as in 96"),
        ({"size_divisor": 14}, 32, "--crop_size is 32; it must be a positive multiple of 14, as in 28"),
        ({"square": True}, 256, "--crop_size is 256, but this architecture is trained on all of its input, 512x512"),
    ],
)
def test_crops_that_the_architecture_cannot_take(protocol, crop_size, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(EvaluationProtocol(512, **protocol), crop_size=crop_size)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((512, 683), 1.0, (512, 683)),
        ((512, 683), 0.5, (256, 342)),
        ((683, 512), 2.0, (1366, 1024)),
        ((100, 1000), 1.0, (205, 2048)),  # the long side is at most 2048
        ((300, 400), 1.7, (870, 1160)),
    ],
)
def test_sizes_of_the_published_resize(size, ratio, expected):
    """By hand: short side int(512 × ratio), long side at most int(2048 × ratio), rounded half up."""
    transform = TrainTransform(EvaluationProtocol(512), scale_range=(ratio, ratio))
    assert tuple(transform._jittered_size(*size, np.random.default_rng(0))) == expected


def test_scale_is_uniform():
    transform = TrainTransform(EvaluationProtocol(512))
    rng = np.random.default_rng(0)
    short = np.array([transform._jittered_size(512, 512, rng)[0] for _ in range(2000)]) / 512
    assert short.min() >= 0.5 and short.max() <= 2.0
    np.testing.assert_allclose(np.quantile(short, [0.25, 0.5, 0.75]), [0.875, 1.25, 1.625], atol=0.04)


def test_crops_avoid_one_dominant_class():
    """A mask with a small patch: of 1,000 crops nearly all must hold both classes, none more than 3/4 if avoidable."""
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 1
    transform = TrainTransform(EvaluationProtocol(32))
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(1000):
        top, left, height, width = transform._crop_window(ResizedMask(mask, mask.shape), rng)
        crop = mask[top : top + height, left : left + width]
        assert crop.shape == (32, 32)
        shares.append(float(crop.mean()))
    balanced = np.mean([0.25 < share < 0.75 for share in shares])
    # A draw is balanced for 15 of 97 left edges; eleven draws all fail with probability (82 / 97) ** 11 = 0.158.
    assert balanced == pytest.approx(1 - (82 / 97) ** 11, abs=0.035)


def test_ignored_pixels_do_not_count_in_the_crop_rule():
    mask = np.full((64, 64), 255, np.uint8)
    mask[:2, :2] = [[0, 1], [0, 1]]
    transform = TrainTransform(EvaluationProtocol(64))

    class CountingGenerator:
        draws = 0

        def integers(self, high):
            self.draws += 1
            return 0

    rng = CountingGenerator()
    transform._crop_window(ResizedMask(mask, mask.shape), rng)
    assert rng.draws == 2  # one window: two classes of two pixels each, whatever surrounds them
    mask[1, 0] = 1  # three pixels of four: 0.75 is not below 0.75
    rng = CountingGenerator()
    transform._crop_window(ResizedMask(mask, mask.shape), rng)
    assert rng.draws == 22  # the first window and ten more


@given(
    sides=st.tuples(st.integers(1, 90), st.integers(1, 90)), size=st.tuples(st.integers(1, 200), st.integers(1, 200))
)
def test_a_window_of_a_mask_is_that_of_the_whole_mask_resized(sides, size):
    mask = np.random.default_rng(sides).integers(0, 256, sides, dtype=np.uint8)
    whole = tvF.resize(torch.from_numpy(mask)[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
    resized = ResizedMask(mask, size)
    assert torch.equal(resized.crop(0, 0, *size), whole)
    top, left = size[0] // 3, size[1] // 3
    assert torch.equal(resized.crop(top, left, 7, 9), whole[top : top + 7, left : left + 9])


@pytest.mark.parametrize("size", [(96, 128), (20, 300), (500, 333)])
def test_the_pipeline_equals_the_plain_one_bit_for_bit(size):
    """Written down step by step with torchvision: all of the mask resized, padding after normalisation."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    label = Image.fromarray(rng.integers(0, 4, size, dtype=np.uint8))
    protocol = EvaluationProtocol(64)
    transform = TrainTransform(protocol, photometric_distortion=False)
    for seed in range(8):
        found = transform(image, label, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        new_size = transform._jittered_size(*size, rng)
        pixels = tvF.resize(tvF.pil_to_tensor(image), new_size, antialias=True)
        mask = tvF.resize(tvF.pil_to_tensor(label), new_size, interpolation=InterpolationMode.NEAREST_EXACT)
        window = transform._crop_window(ResizedMask(mask[0].numpy(), new_size), rng)
        pixels, mask = tvF.crop(pixels, *window), tvF.crop(mask, *window)
        if rng.random() < 0.5:
            pixels, mask = tvF.horizontal_flip(pixels), tvF.horizontal_flip(mask)
        padding = [0, 0, 64 - pixels.shape[-1], 64 - pixels.shape[-2]]
        assert torch.equal(found["pixel_values"], tvF.pad(protocol.normalize(pixels), padding, fill=0.0))
        assert torch.equal(found["labels"], tvF.pad(mask, padding, fill=255)[0])


def test_bands_beyond_rgb_share_its_geometry_and_keep_their_values():
    image, mask = blocks(96, 128)
    rgb = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    five = torch.cat([rgb, rgb[:2]])
    identity_5 = {"image_mean": (0.0,) * 5, "image_std": (1.0,) * 5}
    for seed in range(5):
        expected = TrainTransform(EvaluationProtocol(64, **IDENTITY))(image, mask, np.random.default_rng(seed))
        plain = TrainTransform(EvaluationProtocol(64, **IDENTITY), photometric_distortion=False)
        undistorted = plain(image, mask, np.random.default_rng(seed))
        found = TrainTransform(EvaluationProtocol(64, **identity_5))(five, mask, np.random.default_rng(seed))
        assert torch.equal(found["labels"], expected["labels"])
        torch.testing.assert_close(found["pixel_values"][:3], expected["pixel_values"], atol=0.02, rtol=0)
        torch.testing.assert_close(found["pixel_values"][3:], undistorted["pixel_values"][:2], atol=0.02, rtol=0)


def test_grey_images():
    image, mask = blocks(64, 64)
    transform = TrainTransform(EvaluationProtocol(64, image_mean=(0.5,), image_std=(0.5,)))
    assert transform(image.convert("L"), mask, np.random.default_rng(0))["pixel_values"].shape == (1, 64, 64)


# ---- preview ----


@pytest.mark.parametrize("num_channels", [1, 3])
def test_preview_shows_what_training_sees(make_dataset, num_channels):
    root = make_dataset("CamVid", count=5)
    class_map = ClassMap({0: "wall", 1: "floor", 2: "sky"}, [[200, 0, 0], [0, 100, 0], [0, 0, 250]])
    split = prepare_dataset(load_segmentation_dataset(dataset_dir=root), class_map)["train"]
    # As large as the sheet's panels, which are then shown pixel by pixel.
    normalization = {"image_mean": (0.5,) * num_channels, "image_std": (0.25,) * num_channels}
    dataset = SegmentationDataset(split, TrainTransform(EvaluationProtocol(DRAW_SIDE, **normalization)), seed=3)
    dataset.set_epoch(7)
    sheet = np.asarray(augmentation_preview(dataset, class_map, samples=2, draws=3))
    assert np.array_equal(sheet, np.asarray(augmentation_preview(dataset, class_map, samples=2, draws=3)))
    cell = DRAW_SIDE + MARGIN
    assert sheet.shape[1] == 7 * cell + MARGIN and sheet.shape[0] > 2 * (cell + LINE_HEIGHT)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = class_map.palette
    ignored = 0
    for row, index in enumerate((0, 4)):
        for draw in range(3):
            dataset.set_epoch(draw)
            example = dataset[index]
            top, left = row * (cell + LINE_HEIGHT) + LINE_HEIGHT, MARGIN + (1 + 2 * draw) * cell
            image, mask = (sheet[top : top + DRAW_SIDE, x : x + DRAW_SIDE].astype(int) for x in (left, left + cell))
            shown = (example["pixel_values"] * 0.25 + 0.5) * 255
            np.testing.assert_allclose(image, shown.permute(1, 2, 0).expand(-1, -1, 3), atol=0.51)
            assert (mask == palette[example["labels"]]).all()
            ignored += int((example["labels"] == 255).sum())
    assert ignored > 0


def test_preview_leaves_the_epoch_as_it_was(make_dataset):
    class_map = ClassMap({0: "wall", 1: "floor", 2: "sky"})
    split = prepare_dataset(load_segmentation_dataset(dataset_dir=make_dataset(count=1)), class_map)["train"]
    dataset = SegmentationDataset(split, TrainTransform(EvaluationProtocol(32)), seed=3)
    dataset.set_epoch(7)
    before = dataset[0]["pixel_values"]
    picture = augmentation_preview(dataset, class_map)
    assert torch.equal(dataset[0]["pixel_values"], before)
    later = SegmentationDataset(split, TrainTransform(EvaluationProtocol(32), defers_colors=True), seed=3)
    assert augmentation_preview(later, class_map).tobytes() == picture.tobytes()
    assert later[0]["pixel_values"].dtype == torch.uint8
