"""What trackers are given, offline: the numbers of the page, and a few predictions."""

import importlib.util
import json
import os
import sqlite3

import pytest
from factories.runs import ForkedRun, flags_for, make_dataset, save_tiny_config

import run_segmentation


@pytest.fixture
def argv(tmp_path):
    """Two steps, each with an evaluation of three images; the tracker's name is missing."""
    data = make_dataset(tmp_path / "set", train=2, validation=3)
    flags = flags_for(data, save_tiny_config(tmp_path))
    flags[flags.index("--report_to") : flags.index("--report_to") + 2] = []
    flags += ["--do_train", "--num_train_epochs", "2", "--project", "toys", "--run_name", "first"]
    return [*flags, "--output_dir", str(tmp_path / "run"), "--report_to"]


def scores(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_mean_iou"] for entry in log if "eval_mean_iou" in entry]


def test_tensorboard(argv, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run_segmentation.main([*argv, "tensorboard"])
    (folder,) = {file.parent for file in (tmp_path / "logs").rglob("events.*")}
    read = events.EventAccumulator(str(folder))
    read.Reload()
    tags = read.Tags()
    logged = [event.value for event in read.Scalars("eval/mean_iou")]
    assert logged[:2] == pytest.approx(scores(tmp_path / "run"))  # the third is that of the best model, at the end
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "eval/loss", "eval/iou_disc"} <= {*tags["scalars"]}
    assert sorted(tags["images"]) == [f"predictions/val_{i}" for i in range(3)]
    assert [event.step for event in read.Images("predictions/val_0")] == [1, 2]
    assert read.Images("predictions/val_0")[0].width > 700  # three panels


def test_trackio(argv, tmp_path):
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")

    def main(words):
        os.environ["TRACKIO_DIR"] = str(tmp_path / "trackio")  # read as trackio is imported, in this process alone
        run_segmentation.main(words)

    run = ForkedRun([*argv, "trackio"], tmp_path / "log", main)
    assert run.wait() == 0, run.text()[-3000:]
    assert "took no pictures" not in run.text()
    (database,) = (tmp_path / "trackio").glob("toys*.db")
    with sqlite3.connect(database) as connection:
        rows = [json.loads(text) for (text,) in connection.execute("select metrics from metrics order by id")]
    logged = [row["eval/mean_iou"] for row in rows if "eval/mean_iou" in row]
    assert logged[:2] == pytest.approx(scores(tmp_path / "run"))
    assert len([name for row in rows for name in row if name.startswith("predictions/")]) == 2 * 3
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2 * 3


def test_wandb(argv, tmp_path):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")

    def main(words):
        os.environ.update(WANDB_MODE="offline", WANDB_DIR=str(tmp_path))  # in this process alone
        run_segmentation.main(words)

    run = ForkedRun([*argv, "wandb"], tmp_path / "log", main)
    assert run.wait() == 0, run.text()[-3000:]
    assert "took no pictures" not in run.text()
    (log,) = tmp_path.rglob("*.wandb")
    assert b"eval/mean_iou" in log.read_bytes()
    assert len(list(tmp_path.rglob("media/images/predictions/*.png"))) == 2 * 3
