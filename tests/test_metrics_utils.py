"""Counts, scores and the metric against hand-computed literals and slow oracles that share no code."""

import csv
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from transformers import EvalPrediction

from metrics_utils import (
    ComputeMetrics,
    MeanIoU,
    boundary_counts,
    boundary_width,
    confusion_matrix,
    per_category_iou,
    per_category_table,
    per_image_counts,
    save_confusion,
    score_images,
    summarize_confusion,
    summarize_images,
    without_per_category,
)


def test_importing_it_costs_no_heavy_library():
    """Fifteen modules import it for `IGNORE_INDEX` alone."""
    program = "import sys, metrics_utils; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "metrics_utils" in loaded
    assert {"torch", "datasets", "evaluate", "transformers", "pandas"}.isdisjoint(loaded)


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


@pytest.mark.parametrize("bad", [3, -1, 254])
def test_ids_outside_the_classes_are_named(bad):
    good = np.zeros((2, 2), int)
    with pytest.raises(ValueError, match=rf"references hold ids \[{bad}\].*0 to 2"):
        confusion_matrix(good, np.full((2, 2), bad), 3)
    with pytest.raises(ValueError, match=rf"predictions hold ids \[{bad}\]"):
        confusion_matrix(np.full((2, 2), bad), good, 3)


def test_shape_mismatch_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 3)
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        MeanIoU(2).add_batch(predictions=[np.zeros((2, 2), int)], references=[np.zeros((2, 2), int)] * 2)


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
            "mean_iou": (2 / 7 + 1 / 6) / 2,
            "mean_accuracy": (2 / 3 + 1 / 5) / 2,
            "overall_accuracy": 3 / 8,
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
    seen = [0, 1, 2, 4]  # nothing is defined for the others
    right, labelled, found = np.diagonal(whole)[seen], whole.sum(axis=1)[seen], whole.sum(axis=0)[seen]
    np.testing.assert_array_equal(per_category_iou(counts)[seen], right / (labelled + found - right))
    assert np.isnan(per_category_iou(counts)[[3, 5]]).all()
    assert score_images(counts, "mean_precision") == pytest.approx(np.mean(right / found))
    assert score_images(counts, "mean_dice") == pytest.approx(np.mean(2 * right / (labelled + found)))
    per_image = [summarize_confusion(matrix.numpy())["mean_iou"] for matrix in matrices]
    assert score_images(counts, "per_image_mean_iou") == pytest.approx(np.mean(per_image))


def test_images_without_labels_are_nan_without_warning(recwarn):
    nothing = np.zeros((2, 3, 4), np.int64)
    assert all(np.isnan(value) for value in summarize_images(nothing, nothing).values())
    assert not recwarn.list


# ---- the metric ---------------------------------------------------------------------------------------------------


def slow_mean_iou(predictions, references, num_labels, ignore_index=255):
    """Per-class set arithmetic on pixel coordinates, sharing nothing with the code under test."""
    iou, accuracy = [], []
    correct = total = 0
    for c in range(num_labels):
        truth, predicted = set(), set()
        for n, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            for y in range(reference.shape[0]):
                for x in range(reference.shape[1]):
                    if reference[y, x] == ignore_index:
                        continue
                    if reference[y, x] == c:
                        truth.add((n, y, x))
                    if prediction[y, x] == c:
                        predicted.add((n, y, x))
        correct += len(truth & predicted)
        total += len(truth)
        iou.append(len(truth & predicted) / len(truth | predicted) if truth | predicted else float("nan"))
        accuracy.append(len(truth & predicted) / len(truth) if truth else float("nan"))
    defined = [v for v in iou if v == v]
    return sum(defined) / len(defined), iou, accuracy, correct / total


def test_hand_computed_literals():
    metric = MeanIoU(num_labels=4)
    # Truth: class 0 three times, class 1 twice, one ignored; class 2 predicted once wrongly; class 3 nowhere.
    metric.add_batch(predictions=[np.array([[0, 0, 1], [1, 2, 3]])], references=[np.array([[0, 0, 0], [1, 1, 255]])])
    assert metric.confusion_matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    result = metric.compute()
    np.testing.assert_allclose(result["per_category_iou"], [2 / 3, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(result["per_category_accuracy"], [2 / 3, 1 / 2, np.nan, np.nan])
    assert result["mean_iou"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert result["mean_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["overall_accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_equals_slow_oracle_whatever_the_batches(seed):
    rng = np.random.default_rng(seed)
    sizes = [(5, 7), (3, 4), (8, 2), (1, 6)]
    references = [rng.choice([0, 1, 2, 4, 255], size) for size in sizes]  # class 3 never occurs in the truth
    predictions = [rng.choice([0, 1, 2, 4], size) for size in sizes]
    mean_iou, iou, accuracy, overall = slow_mean_iou(predictions, references, 6)

    at_once, one_by_one = MeanIoU(6), MeanIoU(6)
    result = at_once.compute(predictions=predictions, references=references)
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction.astype(np.uint8), reference=reference.astype(np.uint8))
    np.testing.assert_array_equal(at_once.confusion_matrix, one_by_one.confusion_matrix)
    assert at_once.confusion_matrix.dtype == np.int64
    np.testing.assert_allclose(result["per_category_iou"], iou)
    np.testing.assert_allclose(result["per_category_accuracy"], accuracy)
    assert result["mean_iou"] == pytest.approx(mean_iou)
    assert result["overall_accuracy"] == pytest.approx(overall)
    assert np.isnan(iou[3]) and np.isnan(iou[5])


def mmsegmentation_scores(predictions, labels, num_classes):
    """aAcc, mIoU and mAcc from per-image areas, each by its own histogram, added up; after the published formulas.

    area_intersect counts the classes of the pixels where prediction and label agree, area_pred and area_label those of
    the predicted and the labelled pixels, all without ignored ones; the union is area_pred + area_label - intersect.
    """

    def area(classes):
        return torch.histc(classes.float(), bins=num_classes, min=0, max=num_classes - 1).double()

    intersect, predicted, labelled = (torch.zeros(num_classes, dtype=torch.float64) for _ in range(3))
    for prediction, label in zip(predictions, labels, strict=True):
        kept = label != 255
        prediction, label = prediction[kept], label[kept]
        intersect += area(prediction[prediction == label])
        predicted += area(prediction)
        labelled += area(label)
    union = predicted + labelled - intersect
    counts = {"intersect": intersect, "predicted": predicted, "labelled": labelled}
    means = {
        "overall_accuracy": intersect.sum() / labelled.sum(),
        "mean_iou": (intersect / union).nanmean(),
        "mean_accuracy": (intersect / labelled).nanmean(),
    }
    return counts, {name: value.item() for name, value in means.items()}


@pytest.mark.parametrize("num_classes", [2, 19, 150])
def test_aggregates_equal_those_of_mmsegmentation(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    predictions, labels = [], []
    for height, width in ((40, 61), (73, 30), (1, 5)):
        label = torch.randint(0, num_classes, (height, width), generator=generator)
        prediction = torch.where(
            torch.rand(height, width, generator=generator) < 0.6,
            label,
            torch.randint(0, max(1, num_classes - 3), (height, width), generator=generator),
        )
        label[torch.rand(height, width, generator=generator) < 0.2] = 255
        if num_classes > 5:  # class 4 is in the prediction alone, class 5 in neither
            label[(label == 4) | (label == 5)] = 255
            prediction[prediction == 5] = 4
        predictions.append(prediction)
        labels.append(label)
    metric = MeanIoU(num_classes)
    result = metric.compute(
        predictions=[one.numpy() for one in predictions], references=[one.numpy() for one in labels]
    )
    counts, means = mmsegmentation_scores(predictions, labels, num_classes)
    matrix = metric.confusion_matrix
    assert matrix.diagonal().tolist() == counts["intersect"].long().tolist()
    assert matrix.sum(axis=0).tolist() == counts["predicted"].long().tolist()
    assert matrix.sum(axis=1).tolist() == counts["labelled"].long().tolist()
    for name, value in means.items():
        assert result[name] == pytest.approx(value, rel=1e-14)


def test_perfect_prediction_scores_one():
    reference = np.random.default_rng(0).integers(0, 5, (9, 9)).astype(np.uint8)
    result = MeanIoU(150).compute(predictions=[reference], references=[reference])
    assert (result["mean_iou"], result["mean_accuracy"], result["overall_accuracy"]) == (1.0, 1.0, 1.0)


def test_all_ignored_is_nan_without_warning(recwarn):
    result = MeanIoU(3).compute(predictions=[np.zeros((2, 2), int)], references=[np.full((2, 2), 255)])
    assert all(np.isnan(result[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy"))
    assert not recwarn.list


def test_compute_ends_an_evaluation_and_keeps_its_matrix():
    metric = MeanIoU(2)
    ones, zeros = np.ones((2, 2), int), np.zeros((2, 2), int)
    metric.compute(predictions=[ones], references=[zeros])
    assert metric.confusion_matrix.tolist() == [[0, 4], [0, 0]]
    assert metric.compute()["overall_accuracy"] == 0.0  # nothing was added: still the same evaluation
    metric.add_batch(predictions=[ones], references=[ones])
    assert metric.confusion_matrix.tolist() == [[0, 0], [0, 4]]


def test_gives_the_values_that_evaluate_documents():
    # The example in the docstring of evaluate's mean_iou.
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    metric = MeanIoU(num_labels=10)
    result = metric.compute(predictions=predictions, references=references)
    means = {"mean_iou": 0.4775, "mean_accuracy": 0.5916666666666666, "overall_accuracy": 0.5263157894736842}
    assert {name: result[name] for name in means} == pytest.approx(means, abs=1e-12)
    np.testing.assert_allclose(result["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(result["per_category_accuracy"], [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1])
    assert set(result) == {*means, "per_category_iou", "per_category_accuracy"}
    copy = pickle.loads(pickle.dumps(metric))
    assert copy.compute()["overall_accuracy"] == result["overall_accuracy"]


def counts(matrix, loss, pixels):
    matrix = torch.tensor([matrix])
    boundary = torch.zeros(1, 3, 3, dtype=torch.int64)
    return EvalPrediction((matrix, torch.tensor([loss]), torch.tensor([pixels]), boundary), label_ids=torch.zeros(1))


def test_compute_metrics_streams_and_starts_afresh():
    compute_metrics = ComputeMetrics({0: "wall", 1: "door", 2: "sky"})
    for _ in range(2):  # the second evaluation must not remember the first
        assert compute_metrics(counts([[3, 1, 0], [0, 0, 0], [0, 0, 0]], 2.0, 4), compute_result=False) == {}
        metrics = compute_metrics(counts([[1, 0, 0], [0, 1, 0], [0, 0, 0]], 0.5, 2), compute_result=True)
        assert metrics["loss"] == pytest.approx((2.0 * 4 + 0.5 * 2) / 6)
        assert metrics["mean_iou"] == pytest.approx((4 / 5 + 1 / 2) / 2)
        assert metrics["iou_wall"] == pytest.approx(4 / 5)
        assert metrics["accuracy_door"] == 1.0
        assert "iou_sky" not in metrics  # absent classes are left out: trackers cannot store NaN
    assert compute_metrics.confusion_matrix.tolist() == [[4, 1, 0], [0, 1, 0], [0, 0, 0]]


def batch(truth, prediction):
    """What `prediction_step` returns, gathered, for images (n, H, W)."""
    matrices = torch.stack([confusion_matrix(p, t, 3) for p, t in zip(prediction, truth, strict=True)])
    boundary = torch.stack([boundary_counts(p, t, 3) for p, t in zip(prediction, truth, strict=True)])
    valid = (truth != 255).sum(dim=(1, 2))
    return EvalPrediction((matrices, torch.full((len(truth),), 0.5), valid, boundary), torch.zeros(len(truth)))


def test_compute_metrics_keeps_the_counts_of_each_image():
    generator = torch.Generator().manual_seed(0)
    truth, prediction = torch.randint(0, 3, (2, 5, 16, 16), generator=generator)
    metric = ComputeMetrics({0: "wall", 1: "door", 2: "sky"})
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
    for split in ("eval", "train"):  # what a person sees is without the categories
        prefixed = {f"{split}_{key}": value for key, value in result.items()}
        assert set(without_per_category(prefixed)) == {f"{split}_{key}" for key in ("loss", *summary)}


# ---- tables -------------------------------------------------------------------------------------------------------


def test_files_and_table(tmp_path):
    matrix = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]], dtype=np.int64)
    save_confusion(tmp_path, matrix, {0: "wall", 1: "door, open", 2: "sky"})
    loaded = np.load(tmp_path / "confusion_matrix.npy")
    assert loaded.dtype == np.int64 and (loaded == matrix).all()
    with open(tmp_path / "per_category.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "name", "iou", "accuracy", "precision", "dice", "label_pixels", "predicted_pixels"]
    assert [row["name"] for row in rows] == ["wall", "door, open", "sky"]
    wall = rows[0]
    assert (float(wall["iou"]), float(wall["accuracy"]), float(wall["precision"])) == (0.75, 0.75, 1.0)
    assert float(wall["dice"]) == pytest.approx(6 / 7)
    assert (wall["label_pixels"], wall["predicted_pixels"]) == ("4", "3")
    assert rows[2]["iou"] == "" and rows[2]["accuracy"] == ""
    table = per_category_table(matrix, {0: "wall", 1: "door, open", 2: "sky"})
    assert "wall" in table and "66.67%" in table and "sky" not in table
