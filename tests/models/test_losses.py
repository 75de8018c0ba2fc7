"""Losses by tiles against slow definitions on whole tensors, in value and gradient."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from factories.logits import SIZES, LargestTensor, random_case, relative_error, stock_loss

from cli_utils import UserError
from models import losses, upsampling
from models.arguments import LOSSES, WEIGHTED, LossArguments, parse_loss
from models.inference import upsampled_scores
from models.losses import (
    plain_loss,
    segmentation_loss,
    tiled_loss,
    upsampled_cross_entropy,
)

TILED = ("focal", "ohem", "dice", "lovasz")
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that every image has several tiles in both directions."""
    monkeypatch.setattr(upsampling, "tile_bytes", lambda device: 4 * 7 * 5 * 8)
    monkeypatch.setattr(upsampling, "TILE_COLUMNS", 7)
    monkeypatch.setattr(losses, "HARD_PIXELS_PER_IMAGE", 40)


def two_images(dtype=torch.float64, num_classes=5, size=(17, 19), low=(5, 6)):
    """Logits (2, C, h, w) and labels (2, H, W) with ignored pixels; the last class never occurs."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, num_classes, *low, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, num_classes - 1, (2, *size), generator=generator)
    labels[torch.rand(2, *size, generator=generator) < 0.2] = 255
    return logits.to(dtype).requires_grad_(), labels


def pixels_of(logits, labels):
    """Probabilities (n, C) and labels (n,) of the valid pixels, one by one as the definitions want them."""
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    valid = labels != 255
    return upsampled.softmax(1).permute(0, 2, 3, 1)[valid], labels[valid]


def focal_definition(p, y, weight):
    of_label = p[range(len(y)), y]
    return (weight[y] * -((1 - of_label) ** 2) * of_label.log()).mean()


def ohem_definition(p, y, weight):
    of_label = p[range(len(y)), y]
    by_difficulty = of_label.detach().argsort()
    easiest_kept = max(79, int((of_label < 0.7).sum()) - 1)  # 40 for each of two images
    kept = by_difficulty[: easiest_kept + 1]
    return (weight[y] * -of_label.log())[kept].mean()


def dice_definition(p, y, weight):
    losses = []
    for c in y.unique().tolist():
        truth = (y == c).to(p.dtype)
        losses.append(1 - 2 * (p[:, c] * truth).sum() / (p[:, c].sum() + truth.sum()))
    return sum(losses) / len(losses)


def lovasz_definition(p, y, weight):
    """The Lovász extension itself: jaccard losses of growing sets of wrong pixels, taken from the largest error on."""
    losses = []
    for c in y.unique().tolist():
        truth = y == c
        errors = torch.where(truth, 1 - p[:, c], p[:, c])
        wrong, before, loss = set(), 0.0, 0.0
        members = set(truth.nonzero().flatten().tolist())
        for pixel in errors.detach().argsort(descending=True).tolist():
            wrong.add(pixel)
            jaccard = len(wrong) / len(members | wrong)  # the loss of a prediction wrong at these pixels and no other
            loss = loss + errors[pixel] * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return sum(losses) / len(losses)


DEFINITIONS = {
    "focal": focal_definition,
    "ohem": ohem_definition,
    "dice": dice_definition,
    "lovasz": lovasz_definition,
}


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("name", TILED)
def test_value_and_gradient_are_those_of_the_definition(name, fused_ops):
    logits, labels = two_images()
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    expected = DEFINITIONS[name](*pixels_of(logits, labels), weight)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = segmentation_loss(logits, labels, (name,), weight, fused_ops=fused_ops)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused_ops", [True, False])
def test_hard_pixels_are_not_fewer_than_asked_for(fused_ops):
    logits, labels = two_images()
    likeliest = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
    labels = torch.where(labels == 255, 255, likeliest)
    logits = (16 * logits.detach()).requires_grad_()
    p, y = pixels_of(logits, labels)
    assert 0 < (p[range(len(y)), y] < 0.7).sum() < 40  # so the 80 of least probability count
    expected = ohem_definition(p, y, torch.ones(5, dtype=torch.float64))
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = segmentation_loss(logits, labels, ("ohem",), fused_ops=fused_ops)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("name", TILED)
def test_a_gradient_is_the_slope_of_the_value(name, fused_ops):
    logits, labels = two_images(low=(3, 3), size=(8, 9))
    loss = segmentation_loss(logits, labels, (name,), fused_ops=fused_ops)
    (gradient,) = torch.autograd.grad(loss, logits)
    step = 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        up, down = (segmentation_loss(logits + s, labels, (name,), fused_ops=fused_ops) for s in (step, -step))
    assert ((up - down) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_an_ignored_batch_gives_zero(name):
    logits, labels = two_images()
    for fused_ops in (True, False):
        loss = segmentation_loss(logits, torch.full_like(labels, 255), (name,), fused_ops=fused_ops)
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].count_nonzero() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits, labels = two_images(dtype)
    expected = segmentation_loss(logits.detach().float(), labels, (name,))
    loss = segmentation_loss(logits, labels, (name,))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, logits)[0].dtype == dtype


@pytest.mark.parametrize("probability", [0.7, 0.99])
def test_dice_of_a_million_equal_pixels(monkeypatch, probability):
    """One float32 sum that pixel after pixel is added to rounds each alike: 0.99 became 1 and the loss negative."""
    monkeypatch.undo()  # tiles of the real size
    logits = torch.tensor([probability / (1 - probability), 1.0]).log().view(1, 2, 1, 1)
    labels = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    loss = segmentation_loss(logits, labels, ("dice",))
    assert loss.item() == pytest.approx(1 - 2 * probability / (1 + probability), abs=1e-6)


def test_steps_of_the_jaccard_loss_keep_their_digits_in_float32():
    """As differences of numbers near 1 they were wrong by a tenth for half a million pixels."""
    is_class = torch.rand(2**19, generator=torch.Generator().manual_seed(0)) < 0.3
    # in integers: the loss is 1 - (class pixels not yet wrong) / (class pixels and wrong others)
    kept = (is_class.sum() - is_class.long().cumsum(0)).numpy().astype(object)
    union = (is_class.sum() + (~is_class).long().cumsum(0)).numpy().astype(object)
    for i in (1, 2, 1000, 2**18, 2**19 - 1):
        exact = Fraction(int(kept[i - 1]), int(union[i - 1])) - Fraction(int(kept[i]), int(union[i]))
        assert losses._jaccard_steps(is_class, torch.float32)[i].item() == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_loses_next_to_nothing(name):
    labels = torch.randint(0, 4, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 40.0 * F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    assert segmentation_loss(logits, labels, (name,)) < 1e-6
    assert segmentation_loss(-logits, labels, (name,)) > 0.5


def test_losses_add_up_and_batches_are_weighted_by_pixels():
    logits, labels = two_images()
    apart = [segmentation_loss(logits, labels, (name,), num_items_in_batch=1000) for name in ("ce", "dice", "focal")]
    together = segmentation_loss(logits, labels, ("ce", "dice", "focal"), num_items_in_batch=1000)
    torch.testing.assert_close(together, sum(apart))
    valid = int((labels != 255).sum())
    torch.testing.assert_close(apart[1], segmentation_loss(logits, labels, ("dice",)) * valid / 1000)


@pytest.mark.parametrize("fused_ops", [True, False])
def test_cross_entropy_is_torchs(fused_ops):
    logits, labels = two_images()
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    options = {"ignore_index": 255, "reduction": "sum", "label_smoothing": 0.1}
    expected = F.cross_entropy(upsampled, labels, weight, **options) / 77
    loss = segmentation_loss(logits, labels, ("ce",), weight, 77, 0.1, fused_ops)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", TILED)
def test_no_second_derivative(name):
    logits, labels = two_images()
    (gradient,) = torch.autograd.grad(tiled_loss(name, logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_the_wrong_length_are_named(name, fused_ops):
    logits, labels = two_images()
    with pytest.raises(ValueError, match=r"each of 5 classes, got \(6,\)"):
        segmentation_loss(logits, labels, (name,), torch.ones(6), fused_ops=fused_ops)


@pytest.mark.parametrize("name", TILED)
def test_upsampled_logits_never_exist(name):
    logits, labels = two_images(torch.float32, num_classes=40, size=(64, 64), low=(8, 8))
    with LargestTensor() as largest:
        losses.tiled_sums(logits, labels, None, name, True)  # inside its operator
    assert largest.numel < 2 * 64 * 64 * 40 / 10
    with LargestTensor() as largest:
        plain_loss(name, logits, labels).backward()
    assert largest.numel > 2 * 64 * 64 * 40 / 2


@pytest.mark.parametrize("names", [("ce",), ("ce", "focal", "ohem", "dice", "lovasz")])
def test_operators_are_what_torch_expects_and_break_no_graph(names):
    logits, labels = two_images(torch.float32)
    weight = torch.rand(5)
    torch.library.opcheck(losses._cross_entropy_sums, (logits, labels, weight, 255, 0.1, True), test_utils=CHECKS)
    for name in TILED:
        torch.library.opcheck(losses._tiled_sums, (logits, labels, weight, name, True), test_utils=CHECKS)

    def step(logits):
        return segmentation_loss(2 * logits, labels, names, weight, 77, 0.1)

    explained = torch._dynamo.explain(step)(logits)
    assert explained.graph_break_count == 0 and explained.graph_count == 1, explained.break_reasons
    expected = step(logits)
    compiled = torch.compile(step, backend="aot_eager")(logits)
    torch.testing.assert_close(compiled, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (compiled, expected)]
    torch.testing.assert_close(*gradients)


# ---- cross-entropy --------------------------------------------------------------------------------------------------


def assert_same_loss(logits, labels, tolerance, **options):
    expected = stock_loss(logits, labels, **options)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    actual = upsampled_cross_entropy(logits, labels, **options)
    (actual_gradient,) = torch.autograd.grad(actual, logits)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    assert relative_error(actual_gradient, expected_gradient) < tolerance


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


# ---- flags ----------------------------------------------------------------------------------------------------------


def test_names_of_losses():
    assert parse_loss("ce") == ("ce",)
    assert parse_loss("ce + dice") == ("ce", "dice")
    for text, message in (("dise", r"'dise' \(did you mean dice\?\)"), ("ce+ce", "twice"), ("ce+", "''.*ce, focal")):
        with pytest.raises(UserError, match=message):
            parse_loss(text)


def test_flags_without_an_effect_are_refused():
    assert LossArguments("ce+dice", "auto").names == ("ce", "dice")
    with pytest.raises(UserError, match="--class_weights apply to ce, focal, ohem"):
        LossArguments("dice+lovasz", "auto")
