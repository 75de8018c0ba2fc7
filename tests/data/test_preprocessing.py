"""The evaluation protocol: sizes as published, and one prediction whichever way it is asked for."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from metrics_utils import MeanIoU
from models.inference import (
    PassLogits,
    predict_ids,
    predict_logits,
    predicted_ids,
    protocol_logits,
    score_logits,
    two_class_logits,
)


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
    protocol = EvaluationProtocol.from_image_processor(SegformerImageProcessor(), fixed_size=384)
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


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16, num_labels=5
    )
    return SegformerForSemanticSegmentation(config).eval()


def test_prediction_and_score_agree_with_the_plain_formula(model):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (45, 61, 3), np.uint8))
    labels = torch.from_numpy(np.random.default_rng(2).choice([0, 1, 2, 3, 4, 255], (1, 45, 61)).astype(np.uint8))
    protocol = EvaluationProtocol(short_side=64)
    with torch.inference_mode():
        logits = predict_logits(model, protocol.preprocess(image))
        upsampled = F.interpolate(logits, size=(45, 61), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(upsampled, labels.long(), ignore_index=255, reduction="sum")
        results = [score_logits(logits, labels, fused_ops) for fused_ops in (True, False)]
    for prediction, loss_sum, valid in results:
        assert (prediction == upsampled.argmax(1)).all()
        torch.testing.assert_close(loss_sum, loss[None], rtol=1e-5, atol=0)
        assert valid.tolist() == [int((labels != 255).sum())]
    for fused_ops in (True, False):
        assert (predicted_ids(logits, (45, 61), fused_ops) == upsampled.argmax(1)[0]).all()
        assert (predict_ids(model, image, protocol, fused_ops) == upsampled.argmax(1)[0]).all()


# ---- sliding window and test-time augmentation ----------------------------------------------------------------------

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
    protocol = EvaluationProtocol.from_image_processor(SegformerImageProcessor(), 384, slide_crop=384, flip=True)
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


def published_probabilities(model, images, size, crop=None, stride=None, flip=False):
    """Slow oracle: every pass as a full tensor of logits (C, H, W), its softmax, mirrored back; then the mean.

    The sliding window is written after mmsegmentation's `slide_inference`: windows in a double loop, logits resized to
    each and added up, divided by how many there were, resized to the image's size.
    """
    probabilities = []
    for image in images:
        for mirrored in (False, True) if flip else (False,):
            shown = image.flip(-1) if mirrored else image
            if crop is None:
                logits = predict_logits(model, shown)
            else:
                height, width = shown.shape[-2:]
                logits, count = torch.zeros(1, model.config.num_labels, height, width), torch.zeros(height, width)
                for i in range(max(height - crop + stride - 1, 0) // stride + 1):
                    for j in range(max(width - crop + stride - 1, 0) // stride + 1):
                        bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
                        top, left = max(bottom - crop, 0), max(right - crop, 0)
                        window = predict_logits(model, shown[:, top:bottom, left:right])
                        window = F.interpolate(window, (bottom - top, right - left), mode="bilinear")
                        logits += F.pad(window, (left, width - right, top, height - bottom))
                        count[top:bottom, left:right] += 1
                assert count.min() > 0
                logits = logits / count
            softmax = F.interpolate(logits, size, mode="bilinear").softmax(1)
            probabilities.append(softmax.flip(-1) if mirrored else softmax)
    return torch.stack(probabilities).mean(0)


@pytest.fixture(scope="module")
def decided_model(model):
    """Weights of the classifier so large that probabilities are far from uniform."""
    with torch.no_grad():
        model.decode_head.classifier.weight *= 100
    yield model
    with torch.no_grad():
        model.decode_head.classifier.weight /= 100


@pytest.fixture(scope="module")
def scene():
    """An image of 45 × 100 pixels (64 × 160 for the network) with coarse structure, and labels, some ignored."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (5, 10, 3), np.uint8)).resize((100, 45), Image.Resampling.BICUBIC)
    return image, torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], (1, 45, 100)).astype(np.uint8))


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"slide_crop": 64, "slide_stride": 48},  # one row of three windows
        {"slide_crop": 64, "slide_stride": 40},  # the fourth window pulled back from 120 to 96
        {"slide_crop": 32, "slide_stride": 24},  # three rows of seven windows
        {"slide_crop": 32, "slide_stride": 32},  # no overlap
        {"flip": True},
        {"scales": (0.5, 1.0, 1.75), "flip": True},
        {"scales": (0.75, 1.25)},
        {"scales": (0.5, 1.0, 1.5), "flip": True, "slide_crop": 64, "slide_stride": 40},
    ],
    ids=str,
)
def test_passes_equal_the_published_formula(decided_model, scene, options, fused_ops):
    image, labels = scene
    protocol = EvaluationProtocol(64, **options)
    # One image for each scale, prepared by the plain protocol of that short side.
    images = [EvaluationProtocol(int(64 * scale)).preprocess(image) for scale in protocol.scales]
    with torch.inference_mode():
        expected = published_probabilities(
            decided_model, images, (45, 100), protocol.slide_crop, protocol.slide_stride, protocol.flip
        )
        logits = protocol_logits(decided_model, protocol.preprocess(image), protocol)
        prediction, loss_sum, valid_pixels = score_logits(logits, labels, fused_ops)
        class_map = predicted_ids(logits, (45, 100), fused_ops)

    assert len(expected[0].argmax(0).unique()) > 2  # or agreement would mean little
    highest = expected.amax(1)
    predicted = expected.gather(1, prediction.long()[:, None])[:, 0]
    torch.testing.assert_close(predicted, highest, rtol=0, atol=1e-5)
    assert (prediction == expected.argmax(1)).float().mean() > 0.999
    loss = F.nll_loss(expected.log(), labels.long(), ignore_index=255, reduction="sum")
    torch.testing.assert_close(loss_sum, loss[None], rtol=1e-5, atol=0)
    assert valid_pixels.tolist() == [int((labels != 255).sum())]
    assert (class_map == prediction[0]).all()
    assert (predict_ids(decided_model, image, protocol, fused_ops) == class_map).all()


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("options", [{}, {"slide_crop": 192, "slide_stride": 64}])
def test_one_pass_over_the_whole_image_is_the_plain_path_bit_for_bit(model, scene, options, fused_ops):
    image, labels = scene
    plain, protocol = EvaluationProtocol(64), EvaluationProtocol(64, **options)
    with torch.inference_mode():
        expected = score_logits(predict_logits(model, plain.preprocess(image)), labels, fused_ops)
        found = score_logits(protocol_logits(model, protocol.preprocess(image), protocol), labels, fused_ops)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_one_pass_as_a_list_equals_the_plain_path(decided_model, scene):
    image, labels = scene
    with torch.inference_mode():
        logits = predict_logits(decided_model, EvaluationProtocol(64).preprocess(image))
        expected = score_logits(logits, labels)
        found = score_logits([PassLogits(logits, [slice(0, 64)], [slice(0, 160)])], labels)
    assert (expected[0] == found[0]).float().mean() > 0.999
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("fused_ops", [True, False])
def test_an_impossible_label_costs_a_finite_loss(fused_ops):
    logits = torch.tensor([0.0, 1000.0]).reshape(1, 2, 1, 1)
    passes = [PassLogits(logits, [slice(0, 4)], [slice(0, 4)])] * 2
    prediction, loss_sum, _ = score_logits(passes, torch.zeros(1, 1, 1, dtype=torch.uint8), fused_ops)
    assert prediction.item() == 1
    assert loss_sum.item() == pytest.approx(126 * math.log(2))  # -log of the smallest normal float32


def test_all_pixels_ignored():
    passes = [PassLogits(torch.randn(1, 3, 4, 4), [slice(0, 16)], [slice(0, 16)])] * 2
    _, loss_sum, valid_pixels = score_logits(passes, torch.full((1, 9, 9), 255, dtype=torch.uint8))
    assert (loss_sum.item(), valid_pixels.item()) == (0, 0)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_no_tensor_of_all_classes_at_the_original_size():
    sliding = PassLogits(torch.randn(1, 150, 32, 96), [slice(0, 128)], [slice(i, i + 128) for i in (0, 96, 128)])
    passes = [PassLogits(torch.randn(1, 150, 24, 48), [slice(0, 96)], [slice(0, 192)]), sliding]
    labels = torch.randint(0, 150, (1, 480, 1000))
    with LargestTensor() as fused:
        score_logits(passes, labels)
    with LargestTensor() as class_map:
        predicted_ids(passes, (480, 1000))
    assert max(fused.numel, class_map.numel) == 480 * 1000  # labels and prediction; one tile has 250,000
    with LargestTensor() as stock:
        score_logits(passes[:1], labels[:, :60, :120], fused_ops=False)
    assert stock.numel == 150 * 60 * 120


def test_dataset_and_collator_hand_on_one_tensor_or_one_for_each_scale():
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    from data_utils import SegmentationDataset, collate_eval

    pictures = {"image": [Image.new("RGB", (50, 40))] * 2, "label": [Image.new("L", (50, 40))] * 2}
    split = Dataset.from_dict(pictures, features=Features({"image": ImageFeature(), "label": ImageFeature()}))
    shapes = []
    for scales in ((1.0,), (0.5, 1.0)):
        dataset = SegmentationDataset(split, EvaluationProtocol(64, scales=scales))
        batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate_eval)))
        assert [tuple(labels.shape) for labels in batch["labels"]] == [(40, 50)] * 2
        shapes.append([[tuple(one.shape) for one in image] for image in batch["pixel_values"]])
    assert shapes[0] == [[(64, 96)] * 3] * 2  # iterating over a tensor (3, 64, 96) gives its channels
    assert shapes[1] == [[(3, 32, 64), (3, 64, 96)]] * 2


# ---- two classes ----------------------------------------------------------------------------------------------------


def test_a_single_logit_stands_for_two_classes():
    logits = torch.tensor([[[[-3.0, 0.0, 0.5]]]])
    two = two_class_logits(logits)
    assert two.tolist() == [[[[0.0, 0.0, 0.0]], [[-3.0, 0.0, 0.5]]]]
    torch.testing.assert_close(two.softmax(1)[:, 1:], logits.sigmoid())
    other = torch.randn(2, 3, 4, 4)
    assert two_class_logits(other) is other


@pytest.fixture(scope="module")
def single_logit_model(scene):
    """One logit, spread on both sides of zero in the scene."""
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16, num_labels=1
    )
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        logits = model(pixel_values=EvaluationProtocol(64).preprocess(scene[0])[None]).logits
        model.decode_head.classifier.weight *= 2 / logits.std()
        model.decode_head.classifier.bias -= logits.mean() * 2 / logits.std()
    return model


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.8])
@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.0), "flip": True}, {"slide_crop": 32}], ids=str)
def test_a_single_logit_through_sigmoid_and_binary_cross_entropy(
    single_logit_model, scene, options, threshold, fused_ops
):
    image, labels = scene
    labels = torch.where(labels == 255, labels, labels % 2)
    protocol = EvaluationProtocol(64, threshold=threshold, **options)

    class Sigmoid(torch.nn.Module):
        """The stock model's single logit z as (-z/2, z/2), whose softmax is the sigmoid of z."""

        config = SegformerConfig(num_labels=2)

        def forward(self, pixel_values):
            output = single_logit_model(pixel_values=pixel_values)
            output.logits = torch.cat([-output.logits / 2, output.logits / 2], dim=1)
            return output

    with torch.inference_mode():
        images = [EvaluationProtocol(int(64 * scale)).preprocess(image) for scale in protocol.scales]
        probabilities = published_probabilities(
            Sigmoid(), images, (45, 100), protocol.slide_crop, protocol.slide_stride, protocol.flip
        )[:, 1]
        logits = protocol_logits(single_logit_model, protocol.preprocess(image), protocol)
        prediction, loss_sum, _ = score_logits(logits, labels, fused_ops, threshold)
        class_map = predicted_ids(logits, (45, 100), fused_ops, threshold)
    expected = probabilities > threshold
    assert 0.02 < expected.float().mean() < 0.98
    assert prediction.shape == (1, 45, 100)
    undecided = (probabilities - threshold).abs() < 1e-5
    assert ((prediction == expected) | undecided).all() and undecided.float().mean() < 0.001
    assert torch.equal(class_map, prediction[0])
    assert torch.equal(predict_ids(single_logit_model, image, protocol, fused_ops), class_map)
    valid = labels != 255
    loss = F.binary_cross_entropy(probabilities[valid], labels[valid].float(), reduction="sum")
    torch.testing.assert_close(loss_sum, loss[None], rtol=1e-5, atol=0)


def test_the_threshold_is_a_probability_and_named():
    for threshold in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match=f"--threshold is {threshold:g}; it is a probability between 0 and 1"):
            EvaluationProtocol(threshold=threshold)
    assert EvaluationProtocol(threshold=0.3).describe().endswith("; second class above a probability of 0.3")
    with pytest.raises(RuntimeError):  # of three classes there is no second one
        predicted_ids(torch.randn(1, 3, 2, 2), (4, 4), threshold=0.3)


# ---- aggregates -----------------------------------------------------------------------------------------------------


def mmsegmentation_scores(predictions, labels, num_classes):
    """aAcc, mIoU and mAcc from per-image areas, each by its own histogram, added up; after the published formulas.

    area_intersect counts the classes of the pixels where prediction and label agree, area_pred and area_label those of
    the predicted and the labelled pixels, all without ignored ones; the union is area_pred + area_label - intersect.
    """

    def area(classes):
        return torch.histc(classes.float(), bins=num_classes, min=0, max=num_classes - 1).double()

    intersect, predicted, labelled = (torch.zeros(num_classes, dtype=torch.float64) for _ in range(3))
    for prediction, label in zip(predictions, labels, strict=True):
        kept = label != 255
        prediction, label = prediction[kept], label[kept]
        intersect += area(prediction[prediction == label])
        predicted += area(prediction)
        labelled += area(label)
    union = predicted + labelled - intersect
    counts = {"intersect": intersect, "predicted": predicted, "labelled": labelled}
    means = {
        "overall_accuracy": intersect.sum() / labelled.sum(),
        "mean_iou": (intersect / union).nanmean(),
        "mean_accuracy": (intersect / labelled).nanmean(),
    }
    return counts, {name: value.item() for name, value in means.items()}


@pytest.mark.parametrize("num_classes", [2, 19, 150])
def test_aggregates_equal_those_of_mmsegmentation(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    predictions, labels = [], []
    for height, width in ((40, 61), (73, 30), (1, 5)):
        label = torch.randint(0, num_classes, (height, width), generator=generator)
        prediction = torch.where(
            torch.rand(height, width, generator=generator) < 0.6,
            label,
            torch.randint(0, max(1, num_classes - 3), (height, width), generator=generator),
        )
        label[torch.rand(height, width, generator=generator) < 0.2] = 255
        if num_classes > 5:  # class 4 is in the prediction alone, class 5 in neither
            label[(label == 4) | (label == 5)] = 255
            prediction[prediction == 5] = 4
        predictions.append(prediction)
        labels.append(label)
    metric = MeanIoU(num_classes)
    result = metric.compute(
        predictions=[one.numpy() for one in predictions], references=[one.numpy() for one in labels]
    )
    counts, means = mmsegmentation_scores(predictions, labels, num_classes)
    matrix = metric.confusion_matrix
    assert matrix.diagonal().tolist() == counts["intersect"].long().tolist()
    assert matrix.sum(axis=0).tolist() == counts["predicted"].long().tolist()
    assert matrix.sum(axis=1).tolist() == counts["labelled"].long().tolist()
    for name, value in means.items():
        assert result[name] == pytest.approx(value, rel=1e-14)
