"""From logits to a prediction: one, whichever way it is asked for, and that of the plain and the published formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories.logits import LargestTensor
from PIL import Image
from transformers import (
    Data2VecVisionConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from cli_utils import UserError
from data.arguments import EvaluationArguments
from data.preprocessing import EvaluationProtocol
from models import upsampling
from models.inference import (
    PassLogits,
    evaluation_protocol,
    predict_ids,
    predict_logits,
    predict_together,
    predicted_ids,
    protocol_logits,
    score_logits,
    two_class_logits,
)


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
        ids = predicted_ids(logits, (45, 100), fused_ops)

    assert len(expected[0].argmax(0).unique()) > 2  # or agreement would mean little
    highest = expected.amax(1)
    predicted = expected.gather(1, prediction.long()[:, None])[:, 0]
    torch.testing.assert_close(predicted, highest, rtol=0, atol=1e-5)
    assert (prediction == expected.argmax(1)).float().mean() > 0.999
    loss = F.nll_loss(expected.log(), labels.long(), ignore_index=255, reduction="sum")
    torch.testing.assert_close(loss_sum, loss[None], rtol=1e-5, atol=0)
    assert valid_pixels.tolist() == [int((labels != 255).sum())]
    assert (ids == prediction[0]).all()
    assert (predict_ids(decided_model, image, protocol, fused_ops) == ids).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 100), (7, 9), (20, 33)])
def test_passes_whatever_the_tiles(decided_model, scene, monkeypatch, rows, columns):
    image, labels = scene
    protocol = EvaluationProtocol(64, slide_crop=32, slide_stride=8, scales=(0.75, 1.0), flip=True)
    with torch.inference_mode():
        logits = protocol_logits(decided_model, protocol.preprocess(image), protocol)
        expected = score_logits(logits, labels)
        monkeypatch.setattr(upsampling, "TILE_COLUMNS", columns)
        monkeypatch.setattr(upsampling, "tile_bytes", lambda device: rows * columns * 5 * 4)
        found = score_logits(logits, labels)
    assert (expected[0] == found[0]).float().mean() > 0.999
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)


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


def test_no_tensor_of_all_classes_at_the_original_size():
    sliding = PassLogits(torch.randn(1, 150, 32, 96), [slice(0, 128)], [slice(i, i + 128) for i in (0, 96, 128)])
    passes = [PassLogits(torch.randn(1, 150, 24, 48), [slice(0, 96)], [slice(0, 192)]), sliding]
    labels = torch.randint(0, 150, (1, 480, 1000))
    with LargestTensor() as fused:
        score_logits(passes, labels)
    with LargestTensor() as ids_alone:
        predicted_ids(passes, (480, 1000))
    assert max(fused.numel, ids_alone.numel) == 480 * 1000  # labels and prediction; one tile has 250,000
    with LargestTensor() as stock:
        score_logits(passes[:1], labels[:, :60, :120], fused_ops=False)
    assert stock.numel == 150 * 60 * 120


# ---- two classes ----------------------------------------------------------------------------------------------------


def test_a_single_logit_stands_for_two_classes():
    logits = torch.tensor([[[[-3.0, 0.0, 0.5]]]])
    two = two_class_logits(logits)
    assert two.tolist() == [[[[0.0, 0.0, 0.0]], [[-3.0, 0.0, 0.5]]]]
    torch.testing.assert_close(two.softmax(1)[:, 1:], logits.sigmoid())
    other = torch.randn(2, 3, 4, 4)
    assert two_class_logits(other) is other


@pytest.mark.parametrize(
    "options", [{}, {"slide_crop": 64}, {"scales": (0.5, 1.0), "flip": True}, {"output": "full logits"}], ids=str
)
def test_images_of_one_size_go_through_the_network_together(decided_model, scene, options):
    images = [scene[0], scene[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT), scene[0].rotate(180)]
    protocol = EvaluationProtocol(64, **options)
    shapes = []
    handle = decided_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    found = predict_together(decided_model, images, protocol)
    handle.remove()
    assert set(shapes) == {3}
    for image, ids in zip(images, found, strict=True):
        expected = predict_ids(decided_model, image, protocol)
        assert ids.shape == expected.shape and (ids == expected).float().mean() > 0.999


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
        ids = predicted_ids(logits, (45, 100), fused_ops, threshold)
    expected = probabilities > threshold
    assert 0.02 < expected.float().mean() < 0.98
    assert prediction.shape == (1, 45, 100)
    undecided = (probabilities - threshold).abs() < 1e-5
    assert ((prediction == expected) | undecided).all() and undecided.float().mean() < 0.001
    assert torch.equal(ids, prediction[0])
    assert torch.equal(predict_ids(single_logit_model, image, protocol, fused_ops), ids)
    valid = labels != 255
    loss = F.binary_cross_entropy(probabilities[valid], labels[valid].float(), reduction="sum")
    torch.testing.assert_close(loss_sum, loss[None], rtol=1e-5, atol=0)


def test_a_threshold_is_for_two_classes():
    with pytest.raises(RuntimeError):  # of three classes there is no second one
        predicted_ids(torch.randn(1, 3, 2, 2), (4, 4), threshold=0.3)


# ---- the protocol of a run ------------------------------------------------------------------------------------------


def test_a_protocol_of_model_image_processor_and_flags(model):
    processor = SegformerImageProcessor(size={"height": 96, "width": 96}, image_mean=[0.5, 0.5, 0.5])
    protocol = evaluation_protocol(
        model.config, processor, EvaluationArguments(eval_scales=[0.5, 1.0], eval_flip=True)
    )
    expected = EvaluationProtocol(96, image_mean=(0.5, 0.5, 0.5), scales=(0.5, 1.0), flip=True)
    assert replace(protocol, image_std=expected.image_std) == expected


def test_squares_where_the_architecture_takes_nothing_else():
    config = Data2VecVisionConfig(image_size=64)
    protocol = evaluation_protocol(config, SegformerImageProcessor(), EvaluationArguments())
    assert (protocol.short_side, protocol.square) == (64, True)
    with pytest.raises(UserError, match="64x64 pixels only: give --slide_crop 64"):
        evaluation_protocol(config, SegformerImageProcessor(), EvaluationArguments(slide_crop=96))
