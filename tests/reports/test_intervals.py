"""The bootstrap against a slow oracle and against what it promises; the file, and images matched by name."""

import errno
from pathlib import Path

import numpy as np
import pytest

from cli_utils import UserError
from metrics_utils import SCORES, score_images
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


def test_nothing_labelled_is_nan_without_warning(recwarn):
    assert np.isnan(bootstrap_interval(np.zeros((2, 3, 4), np.int64))).all()
    assert not recwarn.list


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
        Path(file).write_bytes(b"PK")
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(UserError, match="per_image.npz cannot be written: No space left"):
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
