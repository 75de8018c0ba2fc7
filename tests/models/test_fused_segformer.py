"""The fused operations against what they replace: the stock decode head, `F.interpolate`, `F.cross_entropy`."""

import copy
import io

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

from models import fused_segformer, upsampling
from models.fused_segformer import fuse_decode_head, fuse_model
from models.inference import upsampled_scores
from models.losses import upsampled_cross_entropy
from models.upsampling import upsampled_argmax

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
    return stock, fuse_model(copy.deepcopy(stock))


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


def test_head_with_the_last_stage_as_a_sequence():
    """Stock guesses a square last stage from the wrong dimension; the same weights with the map reshaped are right."""
    stock, _ = segformer_pair(tiny_config())
    sequence = SegformerForSemanticSegmentation(tiny_config(reshape_last_stage=False))
    sequence.load_state_dict(stock.state_dict())
    pixel_values = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = stock.eval()(pixel_values).logits
        actual = fuse_model(sequence).eval()(pixel_values).logits
    assert relative_error(actual, expected) < 1e-5


def test_real_b0_head_agrees_with_stock():
    stock, fused = segformer_pair(SegformerConfig(num_labels=150, classifier_dropout_prob=0.0))
    features = [torch.randn(1, c, s, s) for c, s in zip((32, 64, 160, 256), (32, 16, 8, 4), strict=True)]
    assert relative_error(fused.decode_head(features), stock.decode_head(features)) < 1e-5
    assert relative_error(fused.eval().decode_head(features), stock.eval().decode_head(features)) < 1e-5


def test_evaluation_never_uses_stale_weights():
    stock, fused = segformer_pair(tiny_config())
    stock.eval()
    fused.eval()
    pixel_values = torch.randn(1, 3, 64, 64)

    def assert_changed_alike():
        with torch.no_grad():
            expected, actual = stock(pixel_values).logits, fused(pixel_values).logits
        assert relative_error(actual, expected) < 1e-5
        assert relative_error(actual, logits[-1]) > 1e-3
        logits.append(actual)

    logits = [torch.zeros(1)]
    assert_changed_alike()
    for model in (stock, fused):
        with torch.no_grad():
            model.decode_head.linear_fuse.weight.mul_(1.5)
    assert_changed_alike()
    for model in (stock, fused):
        model.decode_head.linear_projections[1].proj.weight.data.mul_(1.5)
    assert_changed_alike()
    for model in (stock, fused):
        model.decode_head.batch_norm.running_mean.add_(1.0)
    assert_changed_alike()
    for model in (stock, fused):
        optimizer = torch.optim.SGD(model.decode_head.parameters(), lr=1e-3)
        model(pixel_values).logits.square().sum().backward()
        optimizer.step()
    assert_changed_alike()
    other, _ = segformer_pair(tiny_config())
    torch.nn.init.normal_(other.decode_head.linear_fuse.weight)
    for model in (stock, fused):
        model.load_state_dict(other.state_dict())
    assert_changed_alike()
    with torch.no_grad():
        assert fused.double()(pixel_values.double()).logits.dtype == torch.float64


def test_fusing_the_head_alone_leaves_the_encoder():
    stock, _ = segformer_pair(tiny_config())
    fused = fuse_decode_head(copy.deepcopy(stock))
    changed = [
        name
        for (name, before), after in zip(stock.named_modules(), fused.modules(), strict=True)
        if type(before) is not type(after)
    ]
    assert changed == ["decode_head"]
    features = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    assert relative_error(fused.decode_head(features), stock.decode_head(features)) < 1e-5


def test_encoder_with_dropout_draws_what_stock_draws():
    stock, fused = segformer_pair(tiny_config(hidden_dropout_prob=0.2, drop_path_rate=0.2))
    pixel_values = torch.randn(2, 3, 64, 64)
    gradients = []
    for model in (stock, fused):
        torch.manual_seed(3)
        model.train().segformer(pixel_values).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.segformer.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_frozen_batch_norm_in_a_training_head():
    stock, fused = segformer_pair(tiny_config())
    pixel_values = torch.randn(1, 3, 64, 64)
    for model in (stock, fused):
        model.train()
        model.decode_head.batch_norm.eval()
    assert relative_error(fused(pixel_values).logits, stock(pixel_values).logits) < 1e-5


def test_gradient_checkpointing_changes_nothing():
    _, fused = segformer_pair(tiny_config())
    checkpointed = copy.deepcopy(fused)
    checkpointed.activation_checkpointing_enable()
    pixel_values = torch.randn(2, 3, 64, 64)
    for model in (fused, checkpointed):
        model.train()(pixel_values).logits.square().sum().backward()
    for (name, expected), actual in zip(fused.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_head_under_bf16_autocast(training):
    stock, fused = segformer_pair(tiny_config())
    pixel_values = torch.randn(2, 3, 64, 64)
    exact = copy.deepcopy(stock).train(training)(pixel_values).logits
    with torch.autocast("cpu", torch.bfloat16):
        expected = stock.train(training)(pixel_values).logits
        actual = fused.train(training)(pixel_values).logits
        upsampled_cross_entropy(actual, torch.zeros(2, 64, 64, dtype=torch.long)).backward()
    assert actual.dtype == expected.dtype
    assert relative_error(actual, exact) < 1.5 * relative_error(expected, exact) + 1e-3
    assert all(parameter.grad.dtype == torch.float32 for parameter in fused.parameters())


def test_dropout_of_the_head_keeps_means_and_blocks_gradients():
    torch.manual_seed(0)
    values = torch.randn(2, 5, 60, 71)
    inputs = values.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    result = fused_segformer._ReluDropout.apply(inputs * 1, 0.25) * fused_segformer.dropout_scale(0.25)
    kept = result > 0
    assert kept.sum() / (values > 0).sum() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(result[kept], values[kept] / 0.75)
    result.sum().backward()
    torch.testing.assert_close(inputs.grad, kept / 0.75)
    assert torch.equal(fused_segformer._ReluDropout.apply(values.clone(), 0.0), values.relu())
    assert fused_segformer._ReluDropout.apply(values.clone(), 1.0).count_nonzero() == 0
    assert fused_segformer.dropout_scale(0.0) == 1 and fused_segformer.dropout_scale(1.0) == 0


def test_dropout_of_the_head_does_not_change_the_mean_of_the_logits():
    torch.manual_seed(0)
    _, fused = segformer_pair(tiny_config(classifier_dropout_prob=0.25))
    features = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    head = fused.decode_head.train()
    head.batch_norm.momentum = 0
    with torch.no_grad():
        head.classifier.weight.mul_(50)
        mean = torch.stack([head(features) for _ in range(400)]).mean(0)
        head.dropout.p = 0.0
        torch.testing.assert_close(mean, head(features), rtol=0, atol=0.25 * float(head(features).std()))


def test_dropout_is_off_in_evaluation_and_seeded_in_training():
    _, fused = segformer_pair(tiny_config(classifier_dropout_prob=0.5))
    features = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    head = fused.decode_head.train()
    torch.manual_seed(1)
    first = head(features)
    assert not torch.equal(head(features), first)
    torch.manual_seed(1)
    assert torch.equal(head(features), first)
    head.eval()
    assert torch.equal(head(features), head(features))


def test_saved_files_and_copies_stay_stock(tmp_path):
    stock, fused = segformer_pair(tiny_config())
    assert list(fused.state_dict()) == list(stock.state_dict())
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name]), name
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in stock.named_modules()]
    assert fuse_model(fused) is fused
    fused.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 64)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    copies = [
        SegformerForSemanticSegmentation.from_pretrained(tmp_path),
        copy.deepcopy(fused),
        torch.load(buffer, weights_only=False),
    ]
    with torch.no_grad():
        expected = stock.eval()(pixel_values).logits
        for model in copies:
            assert relative_error(model.eval()(pixel_values).logits, expected) < 1e-5


def test_other_architectures_pass_through():
    backbone = ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage1", "stage4"])
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=3)
    model = UperNetForSemanticSegmentation(config)
    classes = [type(module) for module in model.modules()]
    assert fuse_model(model) is model
    assert [type(module) for module in model.modules()] == classes


def test_compiled_training_step_agrees():
    """Through tracing and functionalisation; aot_eager leaves out the code generation, which takes a C compiler."""
    _, fused = segformer_pair(tiny_config())
    compiled = copy.deepcopy(fused)
    features = [torch.randn(2, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    labels = torch.randint(0, 7, (2, 64, 64))
    step = torch.compile(lambda: upsampled_cross_entropy(compiled.decode_head(features), labels), backend="aot_eager")
    expected = upsampled_cross_entropy(fused.decode_head(features), labels)
    actual = step()
    torch.testing.assert_close(actual, expected)
    expected.backward()
    actual.backward()
    for (name, parameter), other in zip(
        fused.decode_head.named_parameters(), compiled.decode_head.parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


# --- loss


@pytest.mark.parametrize(("input_size", "output_size"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_agrees_with_stock(input_size, output_size, dtype, tolerance):
    assert_same_loss(*random_case(input_size, output_size, dtype=dtype), tolerance)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_loss_whatever_the_tiles(monkeypatch, rows):
    logits, labels = random_case((8, 6), (30, 25))
    monkeypatch.setattr(upsampling, "TILE_COLUMNS", 10)
    monkeypatch.setattr(upsampling, "tile_bytes", lambda device: rows * 10 * 6 * 8)
    assert_same_loss(logits, labels, 1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_with_weights_and_smoothing(label_smoothing, weighted):
    logits, labels = random_case((5, 7), (13, 31))
    weight = torch.tensor([0.2, 1.0, 0.0, 3.0, 0.5, 1.5], dtype=torch.float64) if weighted else None
    assert_same_loss(logits, labels, 1e-11, weight=weight, label_smoothing=label_smoothing)


@pytest.mark.parametrize("num_items", [1000, torch.tensor(1000)])
def test_loss_divided_by_the_items_of_the_whole_batch(num_items):
    logits, labels = random_case((5, 7), (13, 31))
    loss = upsampled_cross_entropy(logits, labels, num_items_in_batch=num_items)
    torch.testing.assert_close(loss, stock_loss(logits, labels, reduction="sum") / 1000)


def test_loss_of_a_hand_computed_pixel():
    # Between logits 0 and 4 the single output pixel of a (1, 2) map lies halfway: softmax([2, 0]).
    logits = torch.tensor([[[[0.0, 4.0]], [[0.0, 0.0]]]])
    labels = torch.tensor([[[1]]])
    assert upsampled_cross_entropy(logits, labels).item() == pytest.approx(2.126928, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 0}, {"label_smoothing": 0.1}])
def test_an_ignored_batch_costs_nothing(options):
    logits, labels = random_case((4, 4), (16, 16))
    loss = upsampled_cross_entropy(logits, torch.full_like(labels, 255), **options)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.count_nonzero() == 0


def test_another_ignore_index():
    logits, labels = random_case((4, 4), (16, 16))
    labels[labels == 255] = -100
    assert_same_loss(logits, labels, 1e-12, ignore_index=-100)


def test_labels_of_any_integer_type():
    logits, labels = random_case((4, 4), (16, 16))
    expected = upsampled_cross_entropy(logits, labels)
    assert torch.equal(upsampled_cross_entropy(logits, labels.to(torch.uint8)), expected)
    assert torch.equal(upsampled_cross_entropy(logits, labels.to(torch.int32)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, labels = random_case((8, 8), (32, 32), dtype=torch.float32)
    half = logits.detach().to(dtype).requires_grad_()
    exact = half.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = upsampled_cross_entropy(half, labels)
    expected = stock_loss(exact, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad, exact.grad.to(dtype), rtol=1e-2, atol=1e-6)


def test_logits_too_far_apart_for_a_softmax():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 500.0
    logits.requires_grad_()
    labels = torch.ones(1, 16, 16, dtype=torch.long)
    assert upsampled_cross_entropy(logits, labels).item() == 500.0
    assert upsampled_scores(logits, labels)[1].item() == 500.0 * 256


def test_no_gradient_is_worked_out_that_nobody_asked_for(monkeypatch):
    logits, labels = random_case((4, 4), (16, 16))
    expected = upsampled_cross_entropy(logits, labels)
    monkeypatch.setattr(upsampling.TiledUpsampling, "add_transposed", None)
    with torch.no_grad():
        assert torch.equal(upsampled_cross_entropy(logits, labels), expected)
    assert torch.equal(upsampled_cross_entropy(logits.detach(), labels), expected)


def test_gradient_scales_with_the_loss_and_can_be_taken_again():
    logits, labels = random_case((4, 4), (16, 16))
    loss = upsampled_cross_entropy(logits, labels)
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(thrice, 3 * once)


def test_double_backward_is_refused():
    logits, labels = random_case((4, 4), (16, 16))
    (gradient,) = torch.autograd.grad(upsampled_cross_entropy(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("label", [6, -1, 254])
def test_labels_that_are_no_class_are_named(label):
    logits, labels = random_case((4, 4), (16, 16))
    labels[1, 3, 5] = label
    with pytest.raises(ValueError, match=f"label {label} is neither a class .0 to 5. nor the ignore_index 255"):
        upsampled_cross_entropy(logits, labels)
    with pytest.raises(ValueError, match=f"label {label} is neither"):
        upsampled_scores(logits, labels)


def test_misuse_is_named():
    logits, labels = random_case((4, 4), (16, 16))
    with pytest.raises(ValueError, match=r"got \(2, 6, 4, 4\) and \(16, 16\)"):
        upsampled_cross_entropy(logits, labels[0])
    with pytest.raises(TypeError, match="float32"):
        upsampled_cross_entropy(logits, labels.float())
    with pytest.raises(ValueError, match=r"6 classes, got \(5,\)"):
        upsampled_cross_entropy(logits, labels, weight=torch.ones(5))
    with pytest.raises(ValueError, match="got 1.5"):
        upsampled_cross_entropy(logits, labels, label_smoothing=1.5)


# --- prediction


@pytest.mark.parametrize(("input_size", "output_size"), SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_argmax_and_scores_agree_with_stock(input_size, output_size, memory_format):
    logits, labels = random_case(input_size, output_size, dtype=torch.float32)
    logits = logits.detach().contiguous(memory_format=memory_format)
    upsampled = F.interpolate(logits, output_size, mode="bilinear", align_corners=False)
    prediction = upsampled_argmax(logits, output_size)
    assert prediction.dtype == torch.uint8
    top = upsampled.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-5
    assert clear.float().mean() > 0.9
    assert torch.equal(prediction[clear].long(), upsampled.argmax(1)[clear])
    scored, loss, valid_pixels = upsampled_scores(logits, labels)
    assert torch.equal(scored, prediction)
    expected = F.cross_entropy(upsampled, labels, ignore_index=255, reduction="none").sum((1, 2))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert valid_pixels.dtype == torch.int64
    assert torch.equal(valid_pixels, (labels != 255).sum((1, 2)))


def test_ties_go_to_the_lowest_class():
    assert upsampled_argmax(torch.ones(1, 9, 3, 3), (12, 12)).count_nonzero() == 0
    few_values = torch.randint(0, 4, (1, 9, 6, 7)).float()
    assert torch.equal(upsampled_argmax(few_values, (6, 7)).long(), few_values.argmax(1))


@pytest.mark.parametrize(("num_classes", "dtype"), [(255, torch.uint8), (256, torch.int64)])
def test_argmax_has_room_for_every_class(num_classes, dtype):
    logits = torch.zeros(1, num_classes, 2, 2)
    logits[:, -1] = 1
    prediction = upsampled_argmax(logits, (4, 4))
    assert prediction.dtype == dtype
    assert (prediction == num_classes - 1).all()


def test_an_image_scores_the_same_in_any_batch():
    logits, labels = random_case((8, 8), (33, 31), batch_size=3, dtype=torch.float32)
    together = upsampled_scores(logits.detach(), labels)
    for image in range(3):
        alone = upsampled_scores(logits.detach()[image : image + 1], labels[image : image + 1])
        assert all(torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True))


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_upsampled_logits_never_exist():
    logits, labels = random_case((32, 32), (256, 256), num_classes=40, batch_size=1, dtype=torch.float32)
    operations = [
        lambda: upsampled_cross_entropy(logits, labels, label_smoothing=0.1).backward(),
        lambda: upsampled_argmax(logits, (256, 256)),
        lambda: upsampled_scores(logits, labels),
    ]
    for operation in operations:
        with LargestTensor() as largest:
            operation()
        # the tile, the low-resolution logits or the largest whole image of numbers a pixel
        assert 0 < largest.numel <= max(2**20 // 4, 40 * 32 * 32, 256 * 256)
