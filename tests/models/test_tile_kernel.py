"""The compiled kernel against stock torch and the tiles that do its work elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from factories.logits import SIZES, random_case, relative_error, stock_loss

from models import compiled
from models.inference import upsampled_scores
from models.losses import upsampled_cross_entropy
from models.tile_kernel import TileKernel
from models.upsampling import upsampled_argmax

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler")


def loss_and_gradient(logits, labels, **options):
    loss = upsampled_cross_entropy(logits, labels, **options)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@needs_compiler
@pytest.mark.parametrize("num_classes", [1, 2, 7, 8, 150, 300])
@pytest.mark.parametrize(("input_size", "output_size"), SIZES)
def test_loss_gradient_and_prediction_are_torchs(input_size, output_size, num_classes):
    exact, labels = random_case(input_size, output_size, num_classes, ignored=0.3)
    labels[labels == 255] = 999
    logits = exact.detach().float().requires_grad_()
    assert TileKernel.of(logits, output_size)
    weight = torch.rand(num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for options in ({}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.1}):
        expected = stock_loss(exact, labels, ignore_index=999, **options)
        (expected_gradient,) = torch.autograd.grad(expected, exact)
        loss, gradient = loss_and_gradient(logits, labels, ignore_index=999, **options)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
        assert relative_error(gradient, expected_gradient + 1e-30) < 1e-5 or num_classes == 1
    upsampled = F.interpolate(exact.detach(), output_size, mode="bilinear", align_corners=False)
    if num_classes > 1:
        best, second = upsampled.topk(2, dim=1).values.unbind(1)
        clear = best - second > 1e-4
        assert torch.equal(upsampled_argmax(logits, output_size)[clear].long(), upsampled.argmax(1)[clear])


@needs_compiler
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0, 1e4, 1e30])
def test_tiles_and_kernel_agree_however_large_the_logits(scale, monkeypatch):
    logits, labels = random_case((5, 7), (13, 31), dtype=torch.float32)
    logits = (scale * logits.detach()).requires_grad_()
    by_kernel = loss_and_gradient(logits, labels), upsampled_scores(logits, labels)
    monkeypatch.setattr(compiled, "library", lambda: None)
    by_tiles = loss_and_gradient(logits, labels), upsampled_scores(logits, labels)
    torch.testing.assert_close(by_kernel, by_tiles, rtol=2e-5, atol=1e-7)


@needs_compiler
def test_the_exponential_has_all_of_its_digits():
    """Two classes, a pixel of each difference: the loss is log(1 + exp(-difference))."""
    difference = torch.linspace(0, 100, 4001)
    logits = torch.stack([difference, torch.zeros_like(difference)])[None, :, None].requires_grad_()
    labels = torch.zeros(1, 1, len(difference), dtype=torch.long)
    _, gradient = loss_and_gradient(logits, labels, num_items_in_batch=1)
    exact = (-difference.double()).exp()
    torch.testing.assert_close(gradient[0, 1, 0].double(), exact / (1 + exact), rtol=1e-6, atol=2e-38)


@needs_compiler
def test_every_number_of_threads_gives_the_same_bits(monkeypatch):
    logits, labels = random_case((9, 7), (35, 30), dtype=torch.float32)
    expected = loss_and_gradient(logits, labels, label_smoothing=0.1), upsampled_scores(logits, labels)
    for threads in (2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        again = loss_and_gradient(logits, labels, label_smoothing=0.1), upsampled_scores(logits, labels)
        torch.testing.assert_close(again, expected, rtol=0, atol=0)


@needs_compiler
def test_what_it_is_not_for_is_left_to_tiles():
    assert TileKernel.of(torch.zeros(1, 2, 3, 3), (6, 6))
    assert TileKernel.of(torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16), (6, 6))
    assert TileKernel.of(torch.zeros(1, 2, 3, 3, dtype=torch.float64), (6, 6)) is None
    assert TileKernel.of(torch.zeros(1, 2, 3, 3, device="meta"), (6, 6)) is None
    for value in (torch.nan, torch.inf):
        logits = torch.zeros(1, 2, 3, 3)
        logits[0, 1, 2, 0] = value
        assert TileKernel.of(logits, (6, 6)) is None
        loss, gradient = loss_and_gradient(logits.requires_grad_(), torch.zeros(1, 6, 6, dtype=torch.long))
        assert not loss.isfinite() and not gradient.isfinite().all()
