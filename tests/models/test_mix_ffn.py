"""The compiled Mix-FFN against the stock one in float64, and what is left to torch's operations."""

import copy

import pytest
import torch
from factories.logits import relative_error
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerMixMLP

from models import compiled, fused_segformer, mix_ffn

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler")


def mlp_pair(channels, hidden_channels, **changes):
    """A stock Mix-FFN in float64 and the same of ours in float32."""
    torch.manual_seed(0)
    stock = SegformerMixMLP(SegformerConfig(**changes), channels, hidden_channels)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = copy.deepcopy(stock)
    fused_segformer._change_class(ours, SegformerMixMLP, fused_segformer.RecomputingSegformerMixMLP)
    depthwise = type(stock.dwconv)
    fused_segformer._change_class(ours.dwconv, depthwise, fused_segformer.ChannelsLastSegformerDepthWiseConv)
    return stock.double(), ours


@pytest.fixture
def used(monkeypatch):
    """How often the kernel was called."""
    calls, function = [], mix_ffn._convolve
    monkeypatch.setattr(mix_ffn, "_convolve", lambda *args: calls.append(1) or function(*args))
    return calls


@needs_compiler
@pytest.mark.parametrize("hidden_channels", [8, 32, 40, 104])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 3), (13, 9)])
def test_outputs_and_gradients_are_stocks(size, hidden_channels, used):
    stock, ours = mlp_pair(6, hidden_channels)
    x = torch.randn(2, size[0] * size[1], 6)
    weights = torch.randn_like(x)
    results = []
    for model, dtype in ((stock, torch.float64), (ours, torch.float32)):
        x_of_model = x.to(dtype).requires_grad_()
        output = model(x_of_model, *size)
        (output * weights.to(dtype)).sum().backward()
        results.append([output, x_of_model.grad, *(parameter.grad for parameter in model.parameters())])
    assert len(used) == 2
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 3e-6
    with torch.no_grad():
        assert torch.equal(ours(x, *size), output)


@needs_compiler
def test_gelu_and_its_derivative_have_all_of_their_digits():
    """A convolution that passes its input on, of one pixel; the output's weights are 1."""
    _, ours = mlp_pair(1, 8)
    values = torch.linspace(-12, 12, 4801)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
        ours.fc1.weight[0] = ours.fc2.weight[0, 0] = ours.dwconv.dwconv.weight[0, 0, 1, 1] = 1
    x = values.reshape(-1, 1, 1).clone().requires_grad_()
    output = ours(x, 1, 1)
    output.sum().backward()
    exact = values.double().requires_grad_()
    expected = exact * torch.special.erfc(-exact * 0.5**0.5) / 2
    expected.sum().backward()
    torch.testing.assert_close(output.flatten().double(), expected, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(x.grad.flatten().double(), exact.grad, rtol=1e-5, atol=1e-7)


@needs_compiler
def test_every_number_of_threads_gives_the_same_bits(monkeypatch):
    _, ours = mlp_pair(8, 104)
    x = torch.randn(3, 20, 8)

    def run():
        ours.zero_grad()
        ours(x, 5, 4).square().sum().backward()
        return [parameter.grad for parameter in ours.parameters()]

    expected = run()
    for threads in (2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for before, after in zip(expected, run(), strict=True):
            assert torch.equal(before, after)


@needs_compiler
def test_parameters_that_are_frozen_get_no_gradient():
    stock, ours = mlp_pair(6, 32)
    ours.fc1.requires_grad_(False)
    ours(torch.randn(1, 4, 6), 2, 2).sum().backward()
    assert ours.fc1.weight.grad is None and ours.fc2.weight.grad is not None


@needs_compiler
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_an_encoder_gives_stocks_maps_and_gradients_and_drops_the_same(drop_path_rate, used):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4], "depths": [2, 1, 1, 2]}
    stock = SegformerForSemanticSegmentation(SegformerConfig(**sizes, drop_path_rate=drop_path_rate))
    for name, parameter in stock.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ours = fused_segformer.fuse_model(copy.deepcopy(stock))
    pixel_values = torch.randn(3, 3, 64, 96)
    results = []
    for model in (stock, ours):
        torch.manual_seed(5)
        output = model.segformer.train()(pixel_values).last_hidden_state
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in model.segformer.parameters())])
    assert len(used) == 2 * 6
    largest = max(gradient.abs().max() for gradient in results[0][1:])
    for expected, actual in zip(*results, strict=True):
        assert (actual - expected).abs().max() < 1e-4 * max(expected.abs().max(), 1e-2 * largest)


def test_what_the_kernel_is_not_for_is_left_to_torch(used):
    x = torch.randn(2, 12, 6)
    others = {
        "another activation": (mlp_pair(6, 32, hidden_act="relu"), x),
        "dropout": (mlp_pair(6, 32, hidden_dropout_prob=0.5), x),
        "channels": (mlp_pair(6, 12), x),
        "float64": ([model.double() for model in mlp_pair(6, 32)], x.double()),
    }
    for name, ((stock, ours), inputs) in others.items():
        torch.manual_seed(1)
        expected = stock.train()(inputs.double(), 3, 4)
        torch.manual_seed(1)
        actual = ours.train()(inputs, 3, 4)
        assert name == "dropout" or relative_error(actual, expected) < 3e-6, name
    _, ours = mlp_pair(6, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x, 3, 4).dtype == torch.bfloat16
    ours.fc1.register_forward_hook(lambda *args: None)
    ours(x, 3, 4)
    assert not used


@needs_compiler
def test_it_is_not_differentiated_twice():
    _, ours = mlp_pair(6, 32)
    x = torch.randn(1, 4, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x, 2, 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
