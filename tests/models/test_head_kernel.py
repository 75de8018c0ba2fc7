"""The decode head by compiled kernels against the stock one in float64, and against torch's operations."""

import copy

import pytest
import torch
from factories.logits import relative_error
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from models import compiled, head_kernel
from models.fused_segformer import FusedSegformerDecodeHead, _change_class

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler")

CHANNELS = (8, 16, 24, 32)


def head_pair(classes=21, **changes):
    """A stock head in float64 and the same of ours in float32, in training mode."""
    torch.manual_seed(0)
    options = {"hidden_sizes": list(CHANNELS), "decoder_hidden_size": 20, "classifier_dropout_prob": 0.0} | changes
    stock = SegformerDecodeHead(SegformerConfig(num_labels=classes, **options))
    for tensor in stock.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.1, 0.7)
    torch.nn.init.normal_(stock.linear_fuse.weight)
    ours = copy.deepcopy(stock)
    _change_class(ours, SegformerDecodeHead, FusedSegformerDecodeHead)
    return stock.double(), ours


def features(sizes):
    return [torch.randn(2, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


def outputs(head, inputs, weights):
    """Logits, gradients of inputs and parameters, and buffers."""
    dtype = next(head.parameters()).dtype
    inputs = [values.to(dtype).requires_grad_() for values in inputs]
    logits = head(inputs)
    (logits * weights.to(dtype)).sum().backward()
    gradients = [*(values.grad for values in inputs), *(parameter.grad for parameter in head.parameters())]
    return [logits.detach(), *gradients, *head.buffers()]


def assert_alike(actual, expected, tolerance):
    # BatchNorm takes away constants: gradients of biases right before it are 0 but for rounding, hence the floor.
    floor = 1e-2 * max(values.abs().max() for values in expected)
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * max(other.abs().max(), floor)


# Doubled at each stage as in the network; more than one block of rows; sides that do not divide; all of one size.
SIZES = [
    [(16, 24), (8, 12), (4, 6), (2, 3)],
    [(33, 50), (17, 25), (9, 13), (5, 7)],
    [(3, 1), (2, 1), (1, 1), (1, 1)],
    [(7, 5)] * 4,
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mode", ["training", "frozen BatchNorm", "evaluation"])
def test_logits_gradients_and_statistics_are_stocks(sizes, mode, monkeypatch):
    monkeypatch.setattr(head_kernel, "CHUNK_NUMBERS", 256 * 20)  # some chunks, not one
    inputs, weights = features(sizes), torch.randn(2, 21, *sizes[0])
    results = []
    for head in head_pair():
        head.train(mode != "evaluation")
        head.batch_norm.train(mode == "training")
        results.append(outputs(head, inputs, weights))
    assert_alike(results[1], results[0], 2e-5)
    with torch.no_grad():
        stock, ours = (head.eval() for head in head_pair())
        assert relative_error(ours(inputs), stock([values.double() for values in inputs])) < 1e-6


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_statistics_go_on_as_torchs_do(momentum):
    heads = head_pair()
    for head in heads:
        head.batch_norm.momentum = momentum
    for _ in range(3):
        inputs = features(SIZES[0])
        for head in heads:
            with torch.no_grad():
                head([values.to(next(head.parameters()).dtype) for values in inputs])
    for expected, actual in zip(*(head.buffers() for head in heads), strict=True):
        torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_statistics_of_numbers_far_from_zero_keep_their_digits():
    x = 1e4 + torch.randn(2, 30, 40, 8)
    _, mean, variance = head_kernel.upsampled_sum(x.clone(), [])
    torch.testing.assert_close(mean.double(), x.double().mean((0, 1, 2)))
    torch.testing.assert_close(variance.double(), x.double().var((0, 1, 2), correction=0), rtol=1e-4, atol=0)


def test_the_same_is_dropped_with_kernels_and_without(monkeypatch):
    _, ours = head_pair(classifier_dropout_prob=0.3)
    inputs, weights = features(SIZES[1]), torch.randn(2, 21, *SIZES[1][0])
    monkeypatch.setattr(head_kernel, "CHUNK_NUMBERS", 256 * 20)
    torch.manual_seed(1)
    by_kernel = outputs(copy.deepcopy(ours), inputs, weights)
    monkeypatch.setattr(compiled, "library", lambda: None)
    torch.manual_seed(1)
    assert_alike(by_kernel, outputs(ours, inputs, weights), 2e-5)


def test_what_is_no_number_stays_none():
    _, ours = head_pair()
    inputs = features(SIZES[0])
    inputs[2][1, 0, 0, 0] = torch.nan
    with torch.no_grad():
        logits = ours.eval()(inputs)
    assert logits[1].isnan().any() and not logits[0].isnan().any()
    assert ours.train()(inputs).isnan().all()  # as the batch's statistics are


def test_every_number_of_threads_gives_the_same_sums(monkeypatch):
    _, ours = head_pair()
    inputs, weights = features(SIZES[1]), torch.randn(2, 21, *SIZES[1][0])
    expected = outputs(copy.deepcopy(ours), inputs, weights)
    for threads in (2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for before, after in zip(expected, outputs(copy.deepcopy(ours), inputs, weights), strict=True):
            assert torch.equal(before, after)
