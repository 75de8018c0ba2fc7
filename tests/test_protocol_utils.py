"""The evaluation protocol: sizes as published, and one prediction whichever way it is asked for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from protocol_utils import EvaluationProtocol, label_map_of, predict_label_map, predict_logits, score_logits


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
        assert (label_map_of(logits, (45, 61), fused_ops) == upsampled.argmax(1)[0]).all()
        assert (predict_label_map(model, image, protocol, fused_ops) == upsampled.argmax(1)[0]).all()
