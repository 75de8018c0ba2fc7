"""Counts, boundary IoU and the bootstrap against hand-computed literals and slow oracles that share no code."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from transformers import EvalPrediction

from cli_utils import UserError
from metrics_utils import (
    SCORES,
    ComputeStatistics,
    boundary_counts,
    boundary_width,
    confusion_matrix,
    per_category_iou,
    per_image_counts,
    score_images,
    scores_from_confusion,
    summarize_confusion,
    summarize_images,
)
from reports import intervals
from reports.intervals import (
    PerImage,
    bootstrap_interval,
    load_per_image,
    match_images,
    paired_bootstrap,
    save_per_image,
)


def random_counts(images, classes, seed=0, quality=0.6):
    """Counts (images, 3, classes) as an evaluation makes them: each class in a third of the images."""
    rng = np.random.default_rng(seed)
    label = rng.integers(1, 1000, (images, classes)) * (rng.random((images, classes)) < 1 / 3)
    intersection = (label * rng.uniform(quality - 0.2, quality + 0.2, label.shape)).astype(np.int64)
    return np.stack([intersection, label, intersection + rng.integers(0, 50, label.shape) * (label > 0)], axis=1)


# ---- counts -------------------------------------------------------------------------------------------------------


def test_per_image_counts_of_a_confusion_matrix():
    counts = per_image_counts(torch.tensor([[[2, 1, 0], [0, 3, 4], [0, 0, 0]], [[0, 5, 0], [0, 0, 0], [0, 0, 0]]]))
    assert counts.dtype == np.int64
    assert counts.tolist() == [[[2, 3, 0], [3, 7, 0], [2, 4, 4]], [[0, 0, 0], [5, 0, 0], [0, 5, 0]]]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(1, 1, 1), (30, 40, 1), (90, 120, 3), (512, 683, 17), (1024, 2048, 46)]
)
def test_boundary_width_is_two_percent_of_the_diagonal(height, width, expected):
    assert boundary_width(height, width) == expected


def erode_step_by_step(mask, times):
    """`times` erosions by 3×3 in a frame of background, by Pillow's minimum filter; bool (H, W)."""
    framed = Image.fromarray(np.pad(mask, 1 + times).astype(np.uint8) * 255)
    for _ in range(times):
        framed = framed.filter(ImageFilter.MinFilter(3))
    return np.asarray(framed)[1 + times : -1 - times, 1 + times : -1 - times] > 0


def slow_boundary_counts(prediction, truth, num_labels, width, ignore_index=255):
    """Class by class, mask by mask. Ignored pixels join the mask before it is eroded, and count nowhere."""
    ignored, counts = truth == ignore_index, []
    for c in range(num_labels):
        in_truth, in_prediction = (
            (labels == c) & ~ignored & ~erode_step_by_step((labels == c) | ignored, width)
            for labels in (truth, prediction)
        )
        counts.append([(in_truth & in_prediction).sum(), in_truth.sum(), in_prediction.sum()])
    return np.array(counts).T


def patches(rng, height, width, ids):
    """Rectangles over rectangles: regions of all widths around that of the boundary."""
    labels = np.full((height, width), ids[0])
    for _ in range(12):
        y, x = rng.integers(height), rng.integers(width)
        labels[y : y + rng.integers(1, 60), x : x + rng.integers(1, 60)] = rng.choice(ids)
    return labels


@pytest.mark.parametrize(("height", "width"), [(70, 90), (150, 201), (260, 120), (9, 300), (3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_boundary_counts_equal_the_erosion_of_each_mask(height, width, dtype):
    rng = np.random.default_rng(height)
    truth, prediction = patches(rng, height, width, [0, 1, 4, 255]), patches(rng, height, width, [0, 1, 2, 4, 254])
    prediction[(prediction == 254) & (truth != 255)] = 5
    counts = boundary_counts(torch.tensor(prediction, dtype=dtype), torch.tensor(truth, dtype=dtype), 6)
    assert counts.dtype == torch.int64
    expected = slow_boundary_counts(prediction, truth, 6, boundary_width(height, width))
    assert counts.tolist() == expected.tolist()


def test_boundary_counts_by_hand():
    # 5 × 5, so one pixel wide. Truth: class 1 fills the middle 3 × 3, one pixel of its rim is ignored.
    truth = torch.zeros(5, 5, dtype=torch.uint8)
    truth[1:4, 1:4] = 1
    truth[1, 2] = 255
    # Class 1: its 8 rim pixels less the ignored one; the middle one sees only class 1. Class 0: the image's rim.
    assert boundary_counts(truth, truth, 2).tolist() == [[16, 7], [16, 7], [16, 7]]
    # All class 0: the image's rim alone, since the inside touches no other class.
    assert boundary_counts(torch.zeros_like(truth), truth, 2).tolist() == [[16, 0], [16, 7], [16, 0]]


def test_ignored_pixels_are_neutral():
    truth = torch.zeros(40, 40, dtype=torch.int64)
    truth[10:30, 10:30] = 255
    prediction = torch.where(truth == 255, torch.randint(0, 3, truth.shape), 0)
    # Nothing but the frame of the image is a contour, whatever was predicted where the truth is unknown.
    assert boundary_counts(prediction, truth, 3).tolist() == [[156, 0, 0]] * 3
    assert not boundary_counts(prediction, torch.full_like(truth, 255), 3).any()


def test_boundary_iou_punishes_a_shift_more_than_iou():
    truth = torch.zeros(200, 200, dtype=torch.int64)
    truth[50:150, 50:150] = 1
    shifted = truth.roll(5, dims=1)
    iou = per_category_iou(per_image_counts(confusion_matrix(shifted, truth, 2)[None]))[1]
    boundary_iou = per_category_iou(boundary_counts(shifted, truth, 2)[None].numpy())[1]
    assert iou == pytest.approx(9500 / 10500)
    assert boundary_iou < 0.6


def test_boundary_counts_refuse_what_does_not_fit():
    maps = torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(5, 4\)"):
        boundary_counts(maps, maps.T, 2)
    with pytest.raises(ValueError, match="beyond the 2 classes"):
        boundary_counts(maps + 2, maps, 2)
    with pytest.raises(ValueError, match="beyond the 2 classes"):
        boundary_counts(maps, maps + 255, 2, ignore_index=0)


# ---- scores -------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    # Class 2 occurs nowhere; the second image has no labelled pixel; the third is all class 1, predicted as class 0.
    counts = np.array([[[2, 1, 0], [3, 1, 0], [2, 2, 0]], np.zeros((3, 3)), [[0, 0, 0], [0, 4, 0], [4, 0, 0]]], int)
    boundary = counts.copy()
    boundary[0] = [[1, 1, 0], [2, 1, 0], [1, 2, 0]]
    scores = summarize_images(counts, boundary)
    # Sums: class 0 2/3/6, class 1 1/5/2 (intersection/label/predicted).
    assert scores == pytest.approx(
        {
            "frequency_weighted_iou": (3 * 2 / 7 + 5 * 1 / 6) / 8,
            "mean_precision": (2 / 6 + 1 / 2) / 2,
            "mean_dice": (4 / 9 + 2 / 7) / 2,
            "per_image_mean_iou": ((2 / 3 + 1 / 2) / 2 + 0) / 2,
            "boundary_mean_iou": (1 / 6 + 1 / 6) / 2,
        }
    )
    assert all(type(value) is float for value in scores.values())


def test_scores_agree_with_the_confusion_matrix():
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([0, 1, 2, 4], (2, 5, 30, 30))
    matrices = [confusion_matrix(p, t, 6) for p, t in zip(predicted, truth, strict=True)]
    counts, whole = per_image_counts(torch.stack(matrices)), sum(matrices).numpy()
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert score_images(counts, name) == pytest.approx(summarize_confusion(whole)[name], abs=1e-15)
    ratios = scores_from_confusion(whole)
    np.testing.assert_array_equal(per_category_iou(counts), ratios["iou"])
    assert score_images(counts, "mean_precision") == pytest.approx(np.nanmean(ratios["precision"]))
    assert score_images(counts, "mean_dice") == pytest.approx(np.nanmean(ratios["dice"]))
    per_image = [summarize_confusion(matrix.numpy())["mean_iou"] for matrix in matrices]
    assert score_images(counts, "per_image_mean_iou") == pytest.approx(np.mean(per_image))


def test_nothing_labelled_is_nan_without_warning(recwarn):
    nothing = np.zeros((2, 3, 4), np.int64)
    assert all(np.isnan(value) for value in summarize_images(nothing, nothing).values())
    assert np.isnan(bootstrap_interval(nothing)).all()
    assert not recwarn.list


# ---- bootstrap ----------------------------------------------------------------------------------------------------


def slow_score(images, statistic):
    """From a list of counts (3, C) of the drawn images, one class and one image at a time."""
    if statistic == "per_image_mean_iou":
        means = [slow_score([image], "mean_iou") for image in images]
        return np.mean([mean for mean in means if mean is not None])
    values = []
    for intersection, label, predicted in np.sum(images, axis=0).T.tolist():
        if label + predicted:
            values.append(intersection / (label + predicted - intersection))
    return sum(values) / len(values) if values else None


@pytest.mark.parametrize("statistic", ["mean_iou", "per_image_mean_iou"])
@pytest.mark.parametrize("block_values", [2**20, 70])
def test_bootstrap_equals_a_loop_over_the_same_draws(statistic, block_values, monkeypatch):
    monkeypatch.setattr(intervals, "BLOCK_VALUES", block_values)  # 70: 3 draws at a time, the last block of 1
    a, b = random_counts(20, 6, seed=1), random_counts(20, 6, seed=2)
    a[3] = b[3] = 0  # an image without a labelled pixel
    draws = np.random.default_rng(7).integers(20, size=(40, 20))
    values_a, values_b = ([slow_score(list(counts[draw]), statistic) for draw in draws] for counts in (a, b))

    low, high = bootstrap_interval(a, statistic, resamples=40, seed=7)
    assert (low, high) == pytest.approx(tuple(np.percentile(values_a, [2.5, 97.5])), abs=1e-12)

    result = paired_bootstrap(a, b, statistic, resamples=40, seed=7)
    differences = np.array(values_b) - np.array(values_a)
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-12)
    assert result.difference == pytest.approx(slow_score(list(b), statistic) - slow_score(list(a), statistic))
    assert result.p_value == min(1, 2 * (1 + min((differences <= 0).sum(), (differences >= 0).sum())) / 41)


@pytest.mark.parametrize("statistic", SCORES)
def test_interval_holds_the_score_and_depends_on_the_seed_alone(statistic):
    counts = random_counts(200, 5)
    low, high = bootstrap_interval(counts, statistic)
    assert low < score_images(counts, statistic) < high
    assert bootstrap_interval(counts, statistic) == (low, high)
    assert bootstrap_interval(counts, statistic, seed=1) != (low, high)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Of 300 data sets from one known population about 95 % of the intervals must hold the population's score."""
    population = random_counts(20_000, 4, seed=3)
    expected = score_images(population)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(population[rng.integers(20_000, size=100)], resamples=400)
        covered += low <= expected <= high
    assert 0.90 <= covered / 300 <= 0.98  # binomial, standard deviation 0.013


def test_pairs_show_a_difference_that_two_intervals_hide():
    a = random_counts(300, 5)
    b = a.copy()
    b[:, 0] += (b[:, 1] - b[:, 0]) // 50  # a fiftieth of every error mended
    b[:, 2] = np.maximum(b[:, 2], b[:, 0])
    assert bootstrap_interval(a)[1] > bootstrap_interval(b)[0]
    difference, low, high, p_value = paired_bootstrap(a, b)
    assert 0 < low < difference < high
    assert p_value == pytest.approx(2 / 1001)
    mirrored = paired_bootstrap(b, a)
    assert mirrored[:3] == pytest.approx((-difference, -high, -low))


def test_equal_runs_do_not_differ():
    counts = random_counts(30, 4)
    assert paired_bootstrap(counts, counts) == (0.0, 0.0, 0.0, 1.0)


def test_null_hypothesis_is_rejected_about_as_often_as_it_says():
    """Two models of equal quality with independent errors: about 5 % of the p-values lie below 0.05."""
    rejected = 0
    for seed in range(200):
        a, b = random_counts(80, 3, seed=2 * seed), random_counts(80, 3, seed=2 * seed + 1)
        rejected += paired_bootstrap(a, b, resamples=300).p_value < 0.05
    assert 1 <= rejected <= 24  # binomial around 10, standard deviation 3; the bootstrap is a little liberal


def test_bootstrap_refuses_what_does_not_fit():
    counts = random_counts(4, 3)
    with pytest.raises(ValueError, match="'miou'.*mean_iou.*per_image_mean_iou"):
        bootstrap_interval(counts, "miou")
    with pytest.raises(ValueError, match="of 0 images"):
        bootstrap_interval(counts[:0])
    with pytest.raises(ValueError, match=r"\(4, 3, 3\) and \(3, 3, 3\)"):
        paired_bootstrap(counts, counts[:3])


# ---- the file -----------------------------------------------------------------------------------------------------

CLASSES = ["wall", "door", "sky"]


def test_file_round_trip(tmp_path):
    counts, boundary = random_counts(3, 3), random_counts(3, 3, seed=1)
    save_per_image(tmp_path, ["b", "a/ü", "c"], counts, boundary, CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["per_image.npz"]
    loaded = load_per_image(tmp_path)
    assert (loaded.names, loaded.class_names) == (["b", "a/ü", "c"], CLASSES)
    assert loaded.counts.dtype == np.int64
    np.testing.assert_array_equal(loaded.counts, counts)
    np.testing.assert_array_equal(loaded.boundary, boundary)


def test_file_is_small(tmp_path):
    counts = np.zeros((500, 3, 150), np.int64)
    counts[:, :, :12] = np.random.default_rng(0).integers(0, 100_000, (500, 3, 12))
    save_per_image(tmp_path, [f"ADE_val_{i:08}" for i in range(500)], counts, counts, [str(i) for i in range(150)])
    assert (tmp_path / "per_image.npz").stat().st_size < 500 * 600  # 7,200 bytes an image uncompressed


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    counts = random_counts(2, 3)
    save_per_image(tmp_path, ["a", "b"], counts, counts, CLASSES)

    def full_disk(file, **arrays):
        file.write(b"PK")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_per_image(tmp_path, ["a", "b"], counts + 1, counts, CLASSES)
    np.testing.assert_array_equal(load_per_image(tmp_path).counts, counts)


def test_lengths_must_fit(tmp_path):
    counts = random_counts(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3, 3\).*\(1, 3, 3\) is needed"):
        save_per_image(tmp_path, ["a"], counts, counts, CLASSES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_unreadable_file_is_named(tmp_path, content):
    (tmp_path / "per_image.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"per_image\.npz cannot be read .*--do_eval"):
        load_per_image(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:900] + bytes(40) + data[940:]])
def test_damaged_file_is_named(tmp_path, damage):
    save_per_image(tmp_path, ["a", "b"], random_counts(2, 150), random_counts(2, 150), [str(i) for i in range(150)])
    path = tmp_path / "per_image.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"per_image\.npz cannot be read"):
        load_per_image(tmp_path)


def test_images_are_matched_by_name():
    counts, boundary = random_counts(3, 3), random_counts(3, 3, seed=1)
    other = [2, 0, 1]
    a = PerImage(["x", "y", "z"], CLASSES, counts, boundary)
    b = PerImage(["z", "x", "y"], CLASSES, counts[other], boundary[other])
    matched = match_images(a, b)
    assert matched.names == a.names
    np.testing.assert_array_equal(matched.counts, counts)
    np.testing.assert_array_equal(matched.boundary, boundary)


# ---- the Trainer's metric -----------------------------------------------------------------------------------------


def batch(truth, prediction):
    """What `prediction_step` returns, gathered, for images (n, H, W)."""
    matrices = torch.stack([confusion_matrix(p, t, 3) for p, t in zip(prediction, truth, strict=True)])
    boundary = torch.stack([boundary_counts(p, t, 3) for p, t in zip(prediction, truth, strict=True)])
    valid = (truth != 255).sum(dim=(1, 2))
    return EvalPrediction((matrices, torch.full((len(truth),), 0.5), valid, boundary), torch.zeros(len(truth)))


def test_compute_statistics_streams_and_starts_afresh():
    generator = torch.Generator().manual_seed(0)
    truth, prediction = torch.randint(0, 3, (2, 5, 16, 16), generator=generator)
    metric = ComputeStatistics({0: "wall", 1: "door", 2: "sky"})
    for _ in range(2):  # the second evaluation must not remember the first
        assert metric(batch(truth[:2], prediction[:2]), compute_result=False) == {}
        result = metric(batch(truth[2:], prediction[2:]), compute_result=True)
        assert metric.counts.shape == metric.boundary.shape == (5, 3, 3)
    np.testing.assert_array_equal(metric.counts[:, 0].sum(axis=0), np.diagonal(metric.confusion_matrix))
    for i in range(5):
        np.testing.assert_array_equal(metric.boundary[i], boundary_counts(prediction[i], truth[i], 3))
        assert metric.counts[i, 0].sum() == (prediction[i] == truth[i]).sum()
    assert result["mean_iou"] == pytest.approx(score_images(metric.counts))
    assert result["loss"] == 0.5
    summary = summarize_images(metric.counts, metric.boundary)
    assert {name: result[name] for name in summary} == summary
