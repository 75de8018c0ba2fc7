"""The evaluation protocol: sizes and windows as published, and the values of pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessor

from cli_utils import UserError
from data.preprocessing import EvaluationProtocol


@pytest.mark.parametrize(
    ("image", "network"),
    [
        ((512, 683), (512, 704)),  # 683 is rounded up to 22 · 32
        ((683, 512), (704, 512)),
        ((480, 640), (512, 704)),  # 640 · 512 / 480 = 682.7
        ((256, 256), (512, 512)),
        ((100, 1000), (224, 2048)),  # the long side stops at 4 · 512, the short one follows: 204.8
        ((1, 5000), (32, 2048)),
        ((3000, 4000), (512, 704)),
    ],
)
def test_input_size_as_published(image, network):
    assert EvaluationProtocol(short_side=512).input_size(*image) == network


def test_fixed_size_architectures_get_squares():
    protocol = EvaluationProtocol.from_image_processor(SegformerImageProcessor(), short_side=384, square=True)
    assert protocol.input_size(100, 300) == (384, 384)
    assert protocol.describe().startswith("image resized to 384x384")


@pytest.mark.parametrize("size", [{"height": 640, "width": 640}, {"shortest_edge": 640}])
def test_from_image_processor(size):
    protocol = EvaluationProtocol.from_image_processor(SegformerImageProcessor(size=size, image_mean=[0.5, 0.5, 0.5]))
    assert (protocol.short_side, protocol.square, protocol.image_mean) == (640, False, (0.5, 0.5, 0.5))
    assert "short side 640 (long side at most 2560)" in protocol.describe()


def test_preprocess_equals_the_image_processor_at_the_same_size():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8))
    pixel_values = EvaluationProtocol(short_side=64).preprocess(image)
    assert pixel_values.shape == (3, 64, 128) and pixel_values.dtype == torch.float32
    processor = SegformerImageProcessor(size={"height": 64, "width": 128})
    torch.testing.assert_close(pixel_values, processor(image, return_tensors="pt").pixel_values[0], atol=1e-5, rtol=0)


def test_without_normalisation_and_in_bgr():
    image = Image.new("RGB", (32, 32), (255, 0, 51))
    protocol = EvaluationProtocol(32, image_mean=(0.0,) * 3, image_std=(1.0,) * 3, flip_channels=True)
    np.testing.assert_allclose(protocol.preprocess(image)[:, 0, 0].numpy(), [0.2, 0, 1], atol=1e-6)
    five = EvaluationProtocol(32, image_mean=(0.0,) * 5, image_std=(1.0,) * 5, flip_channels=True)
    bands = torch.tensor([255, 0, 51, 102, 153], dtype=torch.uint8)[:, None, None].expand(-1, 32, 32)
    np.testing.assert_allclose(five.preprocess(bands)[:, 0, 0].numpy(), [0.2, 0, 1, 0.4, 0.6], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_with_other_numbers_of_channels(channels):
    mean, std = (tuple(np.linspace(low, low + 0.3, channels)) for low in (0.3, 0.2))
    processor = SegformerImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std)
    protocol = EvaluationProtocol.from_image_processor(processor)
    assert protocol.num_channels == channels and protocol.image_mean == mean
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, 20, 30), np.uint8))
    pixel_values = protocol.preprocess(image)
    assert pixel_values.shape == (channels, 32, 64) and pixel_values.dtype == torch.float32
    # Every band by itself, as an image of one channel.
    for band, found, one_mean, one_std in zip(image, pixel_values, mean, std, strict=True):
        alone = EvaluationProtocol(32, image_mean=(one_mean,), image_std=(one_std,))
        torch.testing.assert_close(found, alone.preprocess(Image.fromarray(band.numpy()))[0], atol=0.02, rtol=0)
    unchanged = SegformerImageProcessor(do_normalize=False, image_mean=mean, image_std=std)
    protocol = EvaluationProtocol.from_image_processor(unchanged)
    assert (protocol.image_mean, protocol.image_std) == ((0.0,) * channels, (1.0,) * channels)


def test_a_tensor_is_an_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8))
    protocol = EvaluationProtocol(32, scales=(0.5, 1.0))
    tensor = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    for one, other in zip(protocol.preprocess(image), protocol.preprocess(tensor), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("flip_channels", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_denormalize_is_the_inverse(channels, flip_channels):
    mean, std = (tuple(np.linspace(low, low + 0.3, channels)) for low in (0.3, 0.2))
    protocol = EvaluationProtocol(32, image_mean=mean, image_std=std, flip_channels=flip_channels)
    image = torch.arange(256, dtype=torch.uint8).repeat(channels, 1).reshape(channels, 16, 16)
    image = image + 7 * torch.arange(channels, dtype=torch.uint8)[:, None, None]
    assert torch.equal(protocol.denormalize(protocol.normalize(image)), image)


NVLABS_SCALES = (0.75, 0.875, 1.0, 1.125, 1.25)


@pytest.mark.parametrize(
    ("side", "starts"),
    [
        (1024, [0]),
        (2048, [0, 768, 1024]),  # Cityscapes: three windows an image, the last pulled back to the border
        (1792, [0, 768]),
        (1793, [0, 768, 769]),
        (3584, [0, 768, 1536, 2304, 2560]),  # at scale 1.75
    ],
)
def test_windows_as_published_for_cityscapes(side, starts):
    protocol = EvaluationProtocol(1024, slide_crop=1024, slide_stride=768)
    assert protocol.windows(side) == [slice(start, start + 1024) for start in starts]


def test_a_side_shorter_than_the_window_is_covered_whole():
    protocol = EvaluationProtocol(1024, slide_crop=1024, slide_stride=768)
    assert protocol.windows(768) == [slice(0, 768)]
    assert EvaluationProtocol(512).windows(5000) == [slice(0, 5000)]


@pytest.mark.parametrize(
    ("scale", "network"),
    [
        (0.5, (256, 352)),  # 683 · 256 / 512 = 341.5
        (0.75, (384, 512)),  # 512.25
        (1.0, (512, 704)),
        (1.25, (640, 864)),  # 853.75
        (1.75, (896, 1216)),  # 1195.25
    ],
)
def test_scaled_sizes_as_published(scale, network):
    assert EvaluationProtocol(512).input_size(512, 683, scale) == network


def test_a_scaled_limit_is_whole_pixels():
    # int(512 · 0.8125) = 416 is a multiple of 32, int(513 · 0.8125) = int(416.8) as well
    assert EvaluationProtocol(513).input_size(1000, 1000, 0.8125) == (416, 416)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "--eval_scales is empty"),
        ({"scales": (1.0, 0.0)}, "--eval_scales is 1 0"),
        ({"slide_stride": 32}, "--slide_stride 32 is for a sliding window: add --slide_crop"),
        ({"slide_crop": 0, "slide_stride": 1}, "--slide_crop is 0; it must be a positive multiple of 32, as in 32"),
        (
            {"slide_crop": 100, "slide_stride": 1},
            "--slide_crop is 100; it must be .* multiple of 32, as in 96",
        ),
        ({"slide_crop": 64, "slide_stride": 65}, r"--slide_stride is 65; it must be from 1 to --slide_crop \(64\)"),
        ({"slide_crop": 64, "slide_stride": 0}, "--slide_stride is 0"),
        (
            {"square": True, "slide_crop": 64, "slide_stride": 32},
            "384x384 pixels only: give --slide_crop 384",
        ),
        ({"square": True, "scales": (1.0, 1.25)}, "--eval_scales 1 1.25: this architecture takes images of 384x384"),
        ({"square": True, "slide_crop": 384, "slide_stride": 256, "scales": (0.5, 1)}, "at scale 0.5 the image is"),
    ],
)
def test_bad_combinations(options, message):
    with pytest.raises(UserError, match=message):
        EvaluationProtocol(384, **options)


def test_stride_is_three_quarters_of_the_window_unless_given():
    processor = SegformerImageProcessor()
    assert EvaluationProtocol.from_image_processor(processor, slide_crop=1024).slide_stride == 768
    assert EvaluationProtocol.from_image_processor(processor, slide_crop=1024, slide_stride=512).slide_stride == 512


def test_fixed_size_architectures_get_windows_of_their_size():
    protocol = EvaluationProtocol.from_image_processor(
        SegformerImageProcessor(), short_side=384, square=True, slide_crop=384, flip=True
    )
    assert protocol.input_size(100, 1000) == (384, 1536)  # 153.6 would be too low for a window
    assert protocol.input_size(300, 400) == (384, 512)
    assert "multiple of 32 and to at least 384; sliding window 384x384 with stride 288" in protocol.describe()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "whole image in one pass; logits resized bilinearly to the original size; one confusion matrix over all "
             "images, label 255 ignored; no test-time augmentation"),
        ({"slide_crop": 64, "slide_stride": 48},
         "sliding window 64x64 with stride 48, logits averaged where windows overlap; logits resized bilinearly to "
         "the original size; one confusion matrix over all images, label 255 ignored; no test-time augmentation"),
        ({"scales": NVLABS_SCALES, "flip": True},
         "whole image in one pass; logits resized bilinearly to the original size; one confusion matrix over all "
         "images, label 255 ignored; test-time augmentation: probabilities averaged over scales 0.75 0.875 1 1.125 "
         "1.25, each also mirrored (10 passes)"),
        ({"scales": (0.5, 1.0)}, "test-time augmentation: probabilities averaged over scales 0.5 1 (2 passes)"),
        ({"scales": (2.0,)}, "test-time augmentation: probabilities averaged over scales 2 (1 pass)"),
    ],
)  # fmt: skip
def test_describe(options, line):
    description = EvaluationProtocol(64, **options).describe()
    assert description.startswith("short side 64 (long side at most 256), aspect kept, sides rounded up to a multiple")
    assert description.endswith(f"; {line}")


def test_dataset_and_collator_hand_on_one_tensor_or_one_for_each_scale():
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    from data_utils import SegmentationDataset, collate_eval

    pictures = {"image": [Image.new("RGB", (50, 40))] * 2, "label": [Image.new("L", (50, 40))] * 2, "name": ["a", "b"]}
    columns = Features({"image": ImageFeature(), "label": ImageFeature(), "name": Value("string")})
    split = Dataset.from_dict(pictures, features=columns)
    shapes = []
    for scales in ((1.0,), (0.5, 1.0)):
        dataset = SegmentationDataset(split, EvaluationProtocol(64, scales=scales))
        batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate_eval)))
        assert [tuple(labels.shape) for labels in batch["labels"]] == [(40, 50)] * 2
        shapes.append([[tuple(one.shape) for one in image] for image in batch["pixel_values"]])
    assert shapes[0] == [[(64, 96)] * 3] * 2  # iterating over a tensor (3, 64, 96) gives its channels
    assert shapes[1] == [[(3, 32, 64), (3, 64, 96)]] * 2


def test_the_threshold_is_a_probability_and_named():
    for threshold in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match=f"--threshold is {threshold:g}; it is a probability between 0 and 1"):
            EvaluationProtocol(threshold=threshold)
    assert EvaluationProtocol(threshold=0.3).describe().endswith("; second class above a probability of 0.3")


@pytest.mark.parametrize(("divisor", "network"), [(14, (518, 686)), (28, (532, 700)), (64, (512, 704))])
def test_sides_are_multiples_of_what_the_architecture_takes(divisor, network):
    protocol = EvaluationProtocol(512, size_divisor=divisor)
    assert protocol.input_size(480, 640) == network  # 512 x 682.7
    assert protocol.input_size(4, 5000)[0] == divisor
    assert f"sides rounded up to a multiple of {divisor};" in protocol.describe()
    with pytest.raises(UserError, match=rf"--slide_crop is 500; it must be a positive multiple of {divisor}, as in "):
        EvaluationProtocol(512, size_divisor=divisor, slide_crop=500)
