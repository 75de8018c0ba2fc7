"""The metric against hand-computed literals and an independent slow oracle."""

import csv
import json
import pickle

import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from metrics_utils import (
    ComputeMetrics,
    MeanIoU,
    confusion_matrix,
    per_category_table,
    save_confusion,
    without_per_category,
)


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


def test_is_an_evaluate_metric(tmp_path):
    maps = {"predictions": [np.array([[0, 1]])], "references": [np.array([[0, 0]])]}
    combined = evaluate.combine([MeanIoU(2), MeanIoU(2)])
    result = combined.compute(**maps)
    assert result["mean_iou_0_mean_iou"] == result["mean_iou_1_mean_iou"] == 0.25
    saved = evaluate.save(tmp_path / "result.json", mean_iou=result["mean_iou_0_mean_iou"])
    assert json.loads(saved.read_text())["mean_iou"] == 0.25
    copy = pickle.loads(pickle.dumps(MeanIoU(2)))
    assert copy.compute(**maps)["overall_accuracy"] == 0.5


def counts(matrix, loss, pixels):
    return EvalPrediction(
        predictions=(torch.tensor([matrix]), torch.tensor([loss]), torch.tensor([pixels])), label_ids=torch.zeros(1)
    )


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
    for split in ("eval", "train"):
        prefixed = {f"{split}_{key}": value for key, value in metrics.items()}
        assert set(without_per_category(prefixed)) == {
            f"{split}_{key}" for key in ("loss", "mean_iou", "mean_accuracy", "overall_accuracy")
        }


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
