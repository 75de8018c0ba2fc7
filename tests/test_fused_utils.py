"""The fused operations against what they replace: the stock decode head, `F.interpolate`, `F.cross_entropy`."""

import copy
import io
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import fused_utils
from fused_utils import fuse_decode_head, upsampled_argmax, upsampled_cross_entropy, upsampled_scores

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")

# input (h, w), output (H, W): scale 4, fractional, down, odd, one pixel in, one pixel out, equal, mixed
SIZES = [
    ((8, 8), (32, 32)),
    ((5, 7), (13, 31)),
    ((9, 12), (4, 5)),
    ((7, 3), (29, 17)),
    ((1, 1), (5, 3)),
    ((6, 4), (1, 1)),
    ((6, 5), (6, 5)),
    ((3, 16), (50, 7)),
]


def tiny_config(**changes):
    options = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 3, 4],
        "decoder_hidden_size": 20,
        "num_labels": 7,
        "classifier_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    return SegformerConfig(**(options | changes))


def segformer_pair(config, dtype=torch.float32):
    """A stock model whose BatchNorm is not the identity, and its fused copy."""
    torch.manual_seed(0)
    stock = SegformerForSemanticSegmentation(config).to(dtype)
    norm = stock.decode_head.batch_norm
    for parameter in stock.decode_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    torch.nn.init.normal_(norm.running_mean)
    return stock, fuse_decode_head(copy.deepcopy(stock))


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def stock_loss(logits, labels, ignore_index=255, **options):
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=ignore_index, **options)


def random_case(input_size, output_size, num_classes=6, batch_size=2, dtype=torch.float64, ignored=0.3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch_size, num_classes, *input_size, generator=generator, dtype=dtype) * 3
    labels = torch.randint(0, num_classes, (batch_size, *output_size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    labels[0, 0, 0] = 0  # at least one valid pixel
    return logits.requires_grad_(), labels


def assert_same_loss(logits, labels, tolerance, **options):
    expected = stock_loss(logits, labels, **options)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    actual = upsampled_cross_entropy(logits, labels, **options)
    (actual_gradient,) = torch.autograd.grad(actual, logits)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    assert relative_error(actual_gradient, expected_gradient) < tolerance


# --- decode head


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "logits_tolerance", "gradient_tolerance"), [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-10, 1e-10)]
)
def test_head_agrees_with_stock(training, dtype, logits_tolerance, gradient_tolerance):
    stock, fused = segformer_pair(tiny_config(), dtype)
    pixel_values = torch.randn(2, 3, 64, 96, dtype=dtype)
    weights = torch.randn(2, 7, 16, 24, dtype=dtype)
    logits = []
    for model in (stock, fused):
        model.train(training)
        logits.append(model(pixel_values).logits)
        (logits[-1] * weights).sum().backward()
    assert relative_error(logits[1], logits[0]) < logits_tolerance
    largest = max(parameter.grad.abs().max() for parameter in stock.parameters())
    for (name, expected), actual in zip(stock.named_parameters(), fused.parameters(), strict=True):
        # BatchNorm takes away constants: gradients of biases right before it are 0 but for rounding, hence the floor.
        floor = 1e-2 * largest
        error = (actual.grad - expected.grad).abs().max() / max(expected.grad.abs().max(), floor)
        assert error < gradient_tolerance, name
    for (name, expected), actual in zip(stock.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


# --- loss


@pytest.mark.parametrize(("input_size", "output_size"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_agrees_with_stock(input_size, output_size, dtype, tolerance):
    assert_same_loss(*random_case(input_size, output_size, dtype=dtype), tolerance)
