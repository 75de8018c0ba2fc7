"""Tiled upsampling against `F.interpolate`, and what it never holds."""

import pytest
import torch
import torch.nn.functional as F
from factories.logits import SIZES, LargestTensor, random_case

from models import compiled, upsampling
from models.inference import upsampled_scores
from models.losses import cross_entropy_sums
from models.upsampling import TiledUpsampling, upsampled_argmax


@pytest.fixture(autouse=True, params=["by the kernel", "by tiles"])
def way(request, monkeypatch):
    if request.param == "by tiles":
        monkeypatch.setattr(compiled, "library", lambda: None)


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


@pytest.mark.parametrize("size", [(20, 40), (64, 150), (100, 333)])
@pytest.mark.parametrize(
    "columns", [[(0, 64), (48, 112), (96, 160)], [(0, 64), (64, 128)], [(0, 64), (16, 80), (17, 81)]]
)
def test_windows_are_upsampled_averaged_and_upsampled_again(monkeypatch, size, columns):
    monkeypatch.setattr(upsampling, "TILE_COLUMNS", 16)
    windows = [slice(0, 64)], [slice(*column) for column in columns]
    logits = torch.randn(1, 5, 16, 16 * len(columns), dtype=torch.float64)
    total = torch.zeros(1, 5, 64, columns[-1][1], dtype=torch.float64)
    count = torch.zeros(columns[-1][1])
    for window, low in zip(windows[1], logits.chunk(len(columns), dim=-1), strict=True):
        total[..., window] += F.interpolate(low, (64, 64), mode="bilinear")
        count[window] += 1
    expected = F.interpolate(total / count, size, mode="bilinear")[0].permute(1, 2, 0)
    for tile in TiledUpsampling(logits, size, windows).tiles(0):
        torch.testing.assert_close(tile.logits, expected[tile.pixels], rtol=1e-12, atol=1e-12)


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


def test_upsampled_logits_never_exist():
    logits, labels = random_case((32, 32), (256, 256), num_classes=40, batch_size=1, dtype=torch.float32)
    operations = [
        lambda: cross_entropy_sums(logits, labels, torch.ones(40), 255, 0.1, True),  # inside its operator
        lambda: upsampled_argmax(logits, (256, 256)),
        lambda: upsampled_scores(logits, labels),
    ]
    for operation in operations:
        with LargestTensor() as largest:
            operation()
        # the tile, the low-resolution logits or the largest whole image of numbers a pixel
        assert 0 < largest.numel <= max(2**20 // 4, 40 * 32 * 32, 256 * 256)


@pytest.mark.parametrize("largest", [1, 59, 61, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_and_sums_of_logits_of_any_size(largest, dtype):
    logits = torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    logits = (logits * largest / logits.abs().max()).to(dtype)
    upsampling = TiledUpsampling(logits, (17, 23))
    expected = F.interpolate(logits.float(), (17, 23), mode="bilinear")[0].permute(1, 2, 0).double()
    rounding = 1e-5 + 3e-7 * largest
    for tile in upsampling.tiles(0):
        exact = expected[tile.pixels]
        torch.testing.assert_close(
            upsampling.log_sum(tile), exact.logsumexp(-1, keepdim=True).float(), rtol=1e-5, atol=rounding
        )
        probabilities, log_sum = upsampling.softmax_and_log_sum(tile)
        torch.testing.assert_close(log_sum, exact.logsumexp(-1, keepdim=True).float(), rtol=1e-5, atol=rounding)
        torch.testing.assert_close(probabilities, exact.softmax(-1).float(), rtol=1e-3, atol=1e-6)


def test_what_is_no_number_stays_none():
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 0, 0] = torch.nan
    upsampling = TiledUpsampling(logits, (4, 4))
    (tile,) = upsampling.tiles(0)
    probabilities, log_sum = upsampling.softmax_and_log_sum(tile)
    assert probabilities[0, 0].isnan().all() and log_sum[0, 0].isnan().all() and upsampling.log_sum(tile)[0, 0].isnan()
