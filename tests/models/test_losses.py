"""Losses by tiles against slow definitions on whole tensors, in value and gradient."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cli_utils import UserError
from data.class_weights import class_weights, read_class_weights
from models import losses, upsampling
from models.arguments import LossArguments
from models.losses import LOSSES, parse_loss, plain_loss, segmentation_loss, tiled_loss

TILED = ("focal", "ohem", "dice", "lovasz")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that every image has several tiles in both directions."""
    monkeypatch.setattr(upsampling, "tile_bytes", lambda device: 4 * 7 * 5 * 8)
    monkeypatch.setattr(upsampling, "TILE_COLUMNS", 7)
    monkeypatch.setattr(losses, "HARD_PIXELS_PER_IMAGE", 40)


def random_case(dtype=torch.float64, num_classes=5, size=(17, 19), low=(5, 6)):
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
    logits, labels = random_case()
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    expected = DEFINITIONS[name](*pixels_of(logits, labels), weight)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = segmentation_loss(logits, labels, (name,), weight, fused_ops=fused_ops)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused_ops", [True, False])
def test_hard_pixels_are_not_fewer_than_asked_for(fused_ops):
    logits, labels = random_case()
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
    logits, labels = random_case(low=(3, 3), size=(8, 9))
    loss = segmentation_loss(logits, labels, (name,), fused_ops=fused_ops)
    (gradient,) = torch.autograd.grad(loss, logits)
    step = 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        up, down = (segmentation_loss(logits + s, labels, (name,), fused_ops=fused_ops) for s in (step, -step))
    assert ((up - down) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_an_ignored_batch_gives_zero(name):
    logits, labels = random_case()
    for fused_ops in (True, False):
        loss = segmentation_loss(logits, torch.full_like(labels, 255), (name,), fused_ops=fused_ops)
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].count_nonzero() == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits, labels = random_case(dtype)
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
    logits, labels = random_case()
    apart = [segmentation_loss(logits, labels, (name,), num_items_in_batch=1000) for name in ("ce", "dice", "focal")]
    together = segmentation_loss(logits, labels, ("ce", "dice", "focal"), num_items_in_batch=1000)
    torch.testing.assert_close(together, sum(apart))
    valid = int((labels != 255).sum())
    torch.testing.assert_close(apart[1], segmentation_loss(logits, labels, ("dice",)) * valid / 1000)


@pytest.mark.parametrize("fused_ops", [True, False])
def test_cross_entropy_is_torchs(fused_ops):
    logits, labels = random_case()
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    options = {"ignore_index": 255, "reduction": "sum", "label_smoothing": 0.1}
    expected = F.cross_entropy(upsampled, labels, weight, **options) / 77
    loss = segmentation_loss(logits, labels, ("ce",), weight, 77, 0.1, fused_ops)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", TILED)
def test_no_second_derivative(name):
    logits, labels = random_case()
    (gradient,) = torch.autograd.grad(tiled_loss(name, logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("name", losses.WEIGHTED)
def test_weights_of_the_wrong_length_are_named(name, fused_ops):
    logits, labels = random_case()
    with pytest.raises(ValueError, match=r"each of 5 classes, got \(6,\)"):
        segmentation_loss(logits, labels, (name,), torch.ones(6), fused_ops=fused_ops)


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("name", TILED)
def test_upsampled_logits_never_exist(name):
    logits, labels = random_case(torch.float32, num_classes=40, size=(64, 64), low=(8, 8))
    with LargestTensor() as largest:
        tiled_loss(name, logits, labels).backward()
    assert largest.numel < 2 * 64 * 64 * 40 / 10
    with LargestTensor() as largest:
        plain_loss(name, logits, labels).backward()
    assert largest.numel > 2 * 64 * 64 * 40 / 2


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


def test_automatic_class_weights():
    shares = np.array([0.9, 0.05, 0.05])
    expected = 1 / np.log(1.02 + shares)
    weights = class_weights(np.array([[900, 0, 50, 0], [0, 50, 0, 0]]))
    np.testing.assert_allclose(weights[:3], expected / expected.mean())
    assert weights[3] == 1  # never occurs


def test_no_automatic_class_weight_is_more_than_ten_times_another():
    # Without the cap: 1 / ln(2.02) = 1.42 and 1 / ln(1.02) = 50.5.
    np.testing.assert_allclose(class_weights(np.array([10**9, 1])), [2 / 11, 20 / 11])
    np.testing.assert_allclose(class_weights(np.array([10**9, 1]), cap=3), [0.5, 1.5])


def test_automatic_class_weights_need_pixels():
    with pytest.raises(ValueError, match="no pixel"):
        class_weights(np.zeros(3))


NAMES = {0: "road", 1: "car", 2: "sky"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("w.json", "[1, 2.5, 0]"),
        ("w.json", '{"sky": 0, "road": 1, "car": 2.5}'),
        ("w.json", '{"2": 0, "0": 1, "1": 2.5}'),
        ("w.csv", "name,weight\nroad,1\ncar,2.5\nsky,0\n"),
        ("w.txt", "1\n2.5\n0\n"),
    ],
)
def test_class_weights_of_a_file(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    assert read_class_weights(tmp_path / file, NAMES).tolist() == [1, 2.5, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds 2 weights; it takes one for each of 3"),
        ({"road": 1, "car": 1}, "'sky' is missing"),
        ({"road": 1, "cra": 1, "sky": 1}, r"'cra' \(did you mean car\?\) is no class"),
        ({"0": 1, "1": 1, "3": 1}, "'3' is no class"),
        ({"0": 1, "car": 1, "sky": 1}, "'0' is no class"),
        ([1, -1, 1], "the weight of 'car' is -1; it must be a number, 0 or more"),
        ([1, float("nan"), 1], "the weight of 'car' is nan"),
        ([1, 10**400, 1], "the weight of 'car' is 1000"),
        ([1, "x", 1], "the weight of 'car' is 'x'"),
        ([0, 0, 0], "all weights are 0"),
        ("road", "holds str"),
    ],
)
def test_class_weights_that_do_not_fit(tmp_path, content, message):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_class_weights(file, NAMES)


def test_class_weights_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_class_weights(tmp_path / "none.json", NAMES)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_class_weights(tmp_path / "bad.json", NAMES)
    (tmp_path / "bad.csv").write_text("class,w\nroad,1\n")
    with pytest.raises(UserError, match="columns name and weight"):
        read_class_weights(tmp_path / "bad.csv", NAMES)
    (tmp_path / "short.csv").write_text("name,weight\nroad,1\ncar\nsky,1\n")
    with pytest.raises(UserError, match="the weight of 'car' is None"):
        read_class_weights(tmp_path / "short.csv", NAMES)
    (tmp_path / "twice.csv").write_text("name,weight\nroad,1\ncar,1\nsky,1\ncar,9\n")
    with pytest.raises(UserError, match="'car' comes twice"):
        read_class_weights(tmp_path / "twice.csv", NAMES)
