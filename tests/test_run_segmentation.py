"""The whole program on a tiny model and tiny images: the real `main()`, the real files, the real launcher."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from factories.architectures import backbone_configs
from factories.runs import CLASSES, ForkedRun, flags_for, make_dataset, save_tiny_config
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, SegformerConfig, SegformerForSemanticSegmentation, pipeline

import run_segmentation
from cli_utils import UserError
from metrics_utils import confusion_matrix, per_image_counts
from models.loading import find_config
from reports.intervals import load_per_image
from training.checkpoints import newest_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST_CONVOLUTION = "segformer.encoder.patch_embeddings.0.proj.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory):
    return save_tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def flags(data, tiny_config):
    """Everything but the output folder and what to do."""
    return flags_for(data, tiny_config)


def read(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    """One complete run, shared by the tests that look at what it left."""
    output_dir = tmp_path_factory.mktemp("run") / "out"
    everything = ["--do_train", "--do_eval", "--do_predict", "--eval_on_train", "--num_train_epochs", "20"]
    return output_dir, run_segmentation.main([*flags, *everything, "--output_dir", str(output_dir)])


def test_a_run_leaves_what_the_readme_says(run):
    output_dir, metrics = run
    expected = """model.safetensors config.json preprocessor_config.json labels.json trainer_state.json README.md
        train_results.json eval_results.json all_results.json per_category.csv confusion_matrix.npy
        per_image.npz contact_sheet.png""".split()
    assert [name for name in expected if not (output_dir / name).is_file()] == []
    assert metrics == read(output_dir / "all_results.json")
    results = read(output_dir / "eval_results.json")
    assert {f"eval_{key}" for key in "mean_iou mean_accuracy overall_accuracy loss protocol".split()} <= set(results)
    assert results["eval_mean_iou_low"] <= results["eval_mean_iou"] <= results["eval_mean_iou_high"]
    assert 0 < results["eval_boundary_mean_iou"] < 1 and 0 < results["eval_per_image_mean_iou"] < 1
    assert "short side 64" in results["eval_protocol"] and "original size" in results["eval_protocol"]
    assert all(isinstance(value, int | float | str) for value in results.values())
    assert 0 < results["eval_ece"] < 1 and 0 < results["eval_ece_uncalibrated"] < 1
    temperature = read(output_dir / "config.json")["segmentation_temperature"]
    assert results["eval_temperature"] == temperature == find_config(str(output_dir)).segmentation_temperature
    assert '<section id="confidence">' in (output_dir / "report.html").read_text()
    assert not any("disc" in key for key in results)  # categories stand in per_category.csv
    assert metrics["train_mean_iou"] > 0.5 and metrics["eval_mean_iou"] > 0.5
    assert metrics["train_loss"] != metrics["eval_loss"]
    state = read(output_dir / "trainer_state.json")
    assert state["best_metric"] == pytest.approx(metrics["eval_mean_iou"])
    assert any("eval_accuracy_disc" in entry for entry in state["log_history"])  # but trackers see every category


def test_every_parameter_moved(run, flags, tiny_config):
    output_dir, _ = run
    trained = load_file(output_dir / "model.safetensors")
    torch.manual_seed(7)
    config = SegformerConfig.from_pretrained(tiny_config.parent, num_labels=3)
    transformers_seed_model = SegformerForSemanticSegmentation(config)
    transformers_seed_model.save_pretrained(output_dir / "fresh")
    fresh = load_file(output_dir / "fresh" / "model.safetensors")
    assert [name for name in trained if fresh[name].shape != trained[name].shape] == []
    assert [name for name in trained if torch.equal(trained[name], fresh[name])] == []


def test_predictions_rescored_give_the_reported_confusion_matrix(run, data):
    output_dir, _ = run
    total, per_image = np.zeros((3, 3), np.int64), load_per_image(output_dir)
    counts = dict(zip(per_image.names, per_image.counts, strict=True))
    for mask_file in sorted((data / "val" / "masks").iterdir()):
        written = Image.open(output_dir / "predictions" / mask_file.name)
        truth = np.asarray(Image.open(mask_file))
        assert written.mode == "P" and written.size == (truth.shape[1], truth.shape[0])
        matrix = confusion_matrix(np.array(written), truth, 3).numpy()
        total += matrix
        np.testing.assert_array_equal(counts[mask_file.stem], per_image_counts(matrix[None])[0])
        assert (output_dir / "predictions" / "overlays" / f"{mask_file.stem}.jpg").is_file()
    np.testing.assert_array_equal(total, np.load(output_dir / "confusion_matrix.npy"))


def test_reduced_labels_and_the_annotations_convention(tmp_path, flags):
    data = make_dataset(tmp_path / "ade", ade20k=True)
    output_dir = tmp_path / "out"
    argv = [*flags, "--dataset_dir", str(data), "--id2label", str(data / "classes.json"), "--num_train_epochs", "1"]
    run_segmentation.main([*argv, "--do_train", "--do_predict", "--output_dir", str(output_dir)])
    assert read(output_dir / "preprocessor_config.json")["do_reduce_labels"] is True
    total = np.zeros((3, 3), np.int64)
    for mask_file in sorted((data / "annotations" / "validation").iterdir()):
        prediction, truth = (np.array(Image.open(f)) for f in (output_dir / "predictions" / mask_file.name, mask_file))
        assert prediction.min() >= 1 and prediction.max() <= 3  # 1…3 as in the annotation files, never 0
        counted = truth > 0
        total += confusion_matrix(prediction[counted] - 1, truth[counted] - 1, 3).numpy()
    np.testing.assert_array_equal(total, np.load(output_dir / "confusion_matrix.npy"))


def test_standard_loaders_take_the_result(run, data):
    output_dir, _ = run
    segmenter = pipeline("image-segmentation", model=str(output_dir))
    segments = segmenter(str(data / "val" / "images" / "val_0.png"))
    assert {segment["label"] for segment in segments} <= set(CLASSES.values())
    assert segments[0]["mask"].size == (64, 40)
    model = SegformerForSemanticSegmentation.from_pretrained(output_dir)
    assert model.config.id2label == {0: "background", 1: "disc", 2: "bar"}
    assert AutoImageProcessor.from_pretrained(output_dir).do_reduce_labels is False


@pytest.mark.parametrize("options", [["--per_device_eval_batch_size", "3"], ["--dataloader_num_workers", "1"]])
def test_evaluating_a_trained_folder_repeats_its_numbers(run, flags, data, tmp_path, options):
    output_dir, metrics = run
    argv = ["--model_name_or_path", str(output_dir), "--dataset_dir", str(data), "--image_size", "64", "--use_cpu"]
    again = run_segmentation.main(
        [*argv, "--id2label", str(data / "classes.json"), "--do_eval", "--output_dir", str(tmp_path), *options]
    )
    np.testing.assert_array_equal(
        np.load(tmp_path / "confusion_matrix.npy"), np.load(output_dir / "confusion_matrix.npy")
    )
    for key in ("mean_iou", "mean_accuracy", "overall_accuracy", "loss", "temperature", "ece", "ece_uncalibrated"):
        assert again[f"eval_{key}"] == metrics[f"eval_{key}"]


def test_a_model_that_is_trained_on_has_no_temperature_of_before(run, flags, tmp_path):
    argv = [*flags[2:], "--model_name_or_path", str(run[0]), "--do_train", "--max_steps", "1", "--eval_strategy", "no"]
    run_segmentation.main([*argv, "--output_dir", str(tmp_path)])
    assert "segmentation_temperature" not in read(tmp_path / "config.json")


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_killed_and_resumed_equals_uninterrupted(flags, tmp_path):
    flags = [*flags, "--do_train", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "2"]
    flags += ["--eval_steps", "2", "--save_total_limit", "10", "--dataloader_num_workers", "1", "--max_steps", "7"]
    flags += ["--gradient_accumulation_steps", "1", "--train_minutes", "60"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ForkedRun([*flags, "--output_dir", whole], tmp_path / "log_whole").wait() == 0

    run = ForkedRun([*flags, "--output_dir", killed], tmp_path / "log")
    # Step 2 is in the middle of the first epoch.
    assert run.wait_for(lambda: newest_checkpoint(killed) is not None), run.text()[-2000:]
    run.kill()
    assert not (killed / "train_results.json").exists()

    refused = ForkedRun([*flags, "--output_dir", killed], tmp_path / "log_refused")
    assert refused.wait() == 2
    last = refused.text().splitlines()[-1]
    assert "unfinished run" in last and "--resume_from_checkpoint last" in last

    resume = ["--output_dir", killed, "--resume_from_checkpoint", "last"]
    assert ForkedRun([*flags, *resume], tmp_path / "log_resumed").wait() == 0
    assert_same_weights(whole, killed)
    timing = ("runtime", "per_second")
    histories = [
        [{k: v for k, v in entry.items() if not k.endswith(timing)} for entry in state["log_history"]]
        for state in (read(folder / "trainer_state.json") for folder in (whole, killed))
    ]
    assert histories[0][:-1] == histories[1][:-1]  # the last entry is the summary of the time that training took


def test_two_processes_equal_one(flags, data, tiny_config, tmp_path):
    """Same batches, once as 2 × 1 in one process with accumulation, once on two processes of the launcher."""
    # Dropout would draw other numbers in another process.
    no_dropout = read(tiny_config) | {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(no_dropout))
    flags = [*flags, "--from_scratch", str(tmp_path / "config.json")]
    # BatchNorm sees the batch of its process, so equal batches per process make equal statistics.
    one, two = tmp_path / "one", tmp_path / "two"
    flags += ["--do_train", "--max_steps", "4", "--per_device_train_batch_size", "1", "--eval_strategy", "no"]
    flags += ["--train_minutes", "60"]  # after each step the processes agree on how many are left
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(REPOSITORY / "accelerate_configs" / "two_cpu_processes.yaml")]
    command += [str(REPOSITORY / "run_segmentation.py"), *flags, "--do_eval", "--do_predict", "--output_dir", str(two)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # so that sums have one order everywhere
    launched = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert launched.returncode == 0, launched.stderr[-5000:]
    assert read(two / "train_results.json")["num_processes"] == 2
    run_segmentation.main([*flags, "--gradient_accumulation_steps", "2", "--output_dir", str(one)])

    losses = [
        [entry["loss"] for entry in read(folder / "trainer_state.json")["log_history"] if "loss" in entry]
        for folder in (one, two)
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)

    # Evaluation of one and the same model, with 5 images: the counts are equal to the last integer.
    evaluated = tmp_path / "evaluated"
    evaluate = ["--model_name_or_path", str(two), "--use_cpu", "--do_eval", "--dataset_dir", str(data)]
    evaluate += ["--id2label", str(data / "classes.json"), "--image_size", "64", "--output_dir", str(evaluated)]
    metrics, results = run_segmentation.main(evaluate), read(two / "eval_results.json")
    matrices = [np.load(folder / "confusion_matrix.npy") for folder in (two, evaluated)]
    np.testing.assert_array_equal(*matrices)
    for key in ("eval_mean_iou", "eval_loss", "eval_temperature", "eval_ece"):
        assert results[key] == metrics[key]
    assert len(list((two / "predictions").glob("*.png"))) == 5
    before, after = load_per_image(two), load_per_image(evaluated)
    assert before.names == after.names == [f"val_{i}" for i in range(5)]
    np.testing.assert_array_equal(before.counts, after.counts)
    np.testing.assert_array_equal(before.boundary, after.boundary)


def cut(data, launcher):
    file = data / "train" / "images" / "train_2.png"
    file.write_bytes(file.read_bytes()[:100])


def kill_one(data, launcher):
    psutil.Process(launcher.pid).children()[1].kill()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("fault", [cut, kill_one])
def test_one_of_two_processes_fails_in_training(flags, tmp_path, fault, workers):
    """Both end within seconds, the first error on top, and the launcher's traceback is the only one."""
    data = make_dataset(tmp_path / "data")
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    launch += ["--main_process_port", "0", str(REPOSITORY / "run_segmentation.py"), *flags, "--do_train"]
    launch += ["--dataset_dir", str(data), "--num_train_epochs", "5000", "--dataloader_num_workers", workers]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*launch, "--output_dir", str(tmp_path / "out")], stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 300
    while newest_checkpoint(tmp_path / "out") is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    fault(data, process)
    begin = time.monotonic()
    _, errors = process.communicate()
    assert time.monotonic() - begin < 25 and process.returncode == 1
    assert errors.count("Traceback (most") == 1, errors[-5000:]
    before = errors[: errors.index("Traceback")]
    if fault is cut:
        assert len(re.findall(r"^error: .*train_2\.png can no longer be read", before, re.M)) == 1, errors[-5000:]
        assert "train_2.png can no longer be read" in errors.splitlines()[-2]  # and at the launcher's end
    else:
        assert "error: " not in before and "SIGKILL" in errors
    assert newest_checkpoint(tmp_path / "out") is not None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no data: give --dataset_dir"),
        (["--dataset_dir", "x"], "nothing to do"),
        (["--dataset_dir", "x", "--dry_run", "false"], "nothing to do"),
        (
            ["--dataset_dir", "https://example.com/a.zip", "--do_train"],
            "--dataset_dir https://example.com/a.zip: an addr",
        ),
        (["--dataset_dir", "x", "--preview", "sheet.xyz"], "--preview sheet.xyz: the name must end in"),
        (["--dataset_dir", "x", "--preview", "/proc/no/x.png"], "--preview /proc/no/x.png cannot be written"),
        (["args.json"], r"--config args.json"),
        (["--dataset_dir", "x", "--do_eval"], "--model_name_or_path must name the trained model"),
        (["--dataset_dir", "x", "--do_eval", "--from_scratch", "mit-b0"], "--from_scratch belongs to a training run"),
        (["--dataset_dir", "x", "--do_predict", "--push_to_hub"], "--push_to_hub belongs to a training run"),
        (["--dataset_dir", "x", "--do_train", "--train_val_split", "2"], "between 0 and 1"),
        (["--dataset_dir", "x", "--do_train", "--image_size", "0"], "--image_size is 0"),
        (["--dataset_dir", "x", "--do_train", "--image_size", "1000000000"], "it must be at most 32768"),
        (["--dataset_dir", "x", "--do_train", "--num_channels", "99999999999999999999"], "it must be at most 4096"),
        (["--dataset_dir", "", "--do_train"], "--dataset_dir is empty: give a path"),
        (["--dataset_dir", "x", "--do_train", "--resume_from_checkpoint", "last"], "no complete checkpoint"),
        (["--dataset_dir", "x", "--do_train", "--resume_from_checkpoint", "y"], "no checkpoint folder"),
        (["--dataset_dir", "x", "--do_train", "--push_to_hub", "--hub_strategy", "every_save"], "pickled"),
        (
            ["--dataset_dir", "x", "--do_train", "--from_scratch", "mit-b0", "--slide_crop", "100"],
            "--slide_crop is 100",
        ),
        (
            ["--dataset_dir", "x", "--do_train", "--from_scratch", "mit-b0", "--crop_size", "100"],
            "--crop_size is 100; it must be a positive multiple of 32",
        ),
        (["--dataset_dir", "x", "--do_train", "--crop_size", "0"], "--crop_size is 0; it must be at least 1"),
        (["--dataset_dir", "x", "--do_train", "--rare_class_crops", "2"], "--rare_class_crops is 2; it must be from"),
        (["--dataset_dir", "x", "--do_train", "--vertical_flip_probability", "-1"], "--vertical_flip_prob.* from 0"),
        (
            ["--dataset_dir", "x", "--do_train", "--from_scratch", "mit-b0", "--model_revision", "v1"],
            "--model_revision is of a pretrained model",
        ),
        (["--dataset_dir", "no/such/place", "--do_train", "--from_scratch", "mit-b0"], "no/such/place"),
        (["--dataset_dir", "x", "--do_train"], "nvidia/mit-b0.*--from_scratch"),
        (["--dataset_dir", "x", "--do_train", "--freeze_encoder", "--lora_r", "4"], "exclude each other"),
        (["--dataset_dir", "x", "--do_train", "--head_lr_multiplier", "0"], "must be positive"),
        (["--dataset_dir", "x", "--do_train", "--early_stopping_patience", "0"], "at least 1"),
        (
            ["--dataset_dir", "x", "--do_train", "--early_stopping_patience", "1", "--eval_strategy", "no"],
            "needs evaluations",
        ),
        (
            ["--dataset_dir", "x", "--do_train", "--loss", "focal", "--label_smoothing_factor", "0.1"],
            "--label_smoothing_factor applies to cross-entropy",
        ),
        (["--dataset_dir", "x", "--do_train", "--threshold", "1"], "--threshold is 1"),
        (["--dataset_dir", "x", "--do_train", "--streaming"], "--streaming reads --dataset_name"),
        (["--dataset_dir", "x", "--do_trian"], r"did you mean --do_train\?"),
        (["--dataset_dir", "x", "--do_train", "--lr_scheduler_type", "cosin"], "cosin"),
    ],
)
def test_mistakes_end_in_one_line(argv, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_segmentation.main([*argv, "--output_dir", str(tmp_path / "out"), "--use_cpu"])


def test_evaluating_with_other_classes_is_refused(run, data, tmp_path):
    output_dir, _ = run
    other = tmp_path / "other.json"
    other.write_text(json.dumps(CLASSES | {"3": "cloud"}))
    argv = ["--model_name_or_path", str(output_dir), "--dataset_dir", str(data), "--use_cpu", "--do_eval"]
    with pytest.raises(UserError, match="3 classes"):
        run_segmentation.main([*argv, "--id2label", str(other), "--output_dir", str(tmp_path / "out")])


def test_predicting_alone_needs_no_evaluation(run, data, tmp_path):
    argv = ["--model_name_or_path", str(run[0]), "--dataset_dir", str(data), "--image_size", "64", "--use_cpu"]
    assert (
        run_segmentation.main([*argv, "--do_predict", "--max_predict_samples", "2", "--output_dir", str(tmp_path)])
        == {}
    )
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 2 and (tmp_path / "contact_sheet.png").is_file()


def test_windows_scales_and_mirror_images_are_scored_and_predicted_alike(run, data, tmp_path):
    trained, metrics = run
    argv = ["--model_name_or_path", str(trained), "--dataset_dir", str(data), "--image_size", "64", "--use_cpu"]
    argv += ["--slide_crop", "64", "--eval_scales", "1", "1.5", "--eval_flip", "--do_eval", "--do_predict"]
    again = run_segmentation.main([*argv, "--output_dir", str(tmp_path)])
    assert "sliding window 64x64 with stride 48" in again["eval_protocol"] and "mirrored" in again["eval_protocol"]
    assert again["eval_loss"] != metrics["eval_loss"]
    total = np.zeros((3, 3), np.int64)
    for mask_file in sorted((data / "val" / "masks").iterdir()):
        prediction, truth = (np.array(Image.open(f)) for f in (tmp_path / "predictions" / mask_file.name, mask_file))
        total += confusion_matrix(prediction, truth, 3).numpy()
    np.testing.assert_array_equal(total, np.load(tmp_path / "confusion_matrix.npy"))


def test_evaluating_a_revision_of_a_model_on_the_hub(hub, run, data, tmp_path):
    trained, metrics = run
    files = [path for path in trained.glob("*") if path.suffix in (".json", ".safetensors")]
    commit = hub.offer("somebody/disc", {path.name: path.read_bytes() for path in files}, "v1")
    argv = ["--model_name_or_path", "somebody/disc", "--dataset_dir", str(data), "--use_cpu", "--do_eval"]
    argv += ["--id2label", str(data / "classes.json"), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="^somebody/disc is no folder here, and the Hub did not give it: "):
        run_segmentation.main(argv)
    for revision in ("v1", commit):
        again = run_segmentation.main([*argv, "--model_revision", revision])
        assert again["eval_mean_iou"] == metrics["eval_mean_iou"] and again["eval_loss"] == metrics["eval_loss"]


def test_patches_of_14(data, tmp_path):
    """The short side that was asked for does not fit them; it is rounded up for training and evaluation alike, and a
    second command repeats the numbers."""
    backbone_configs()["dinov2"].save_pretrained(tmp_path / "config")
    argv = ["--dataset_dir", str(data), "--use_cpu", "--report_to", "none", "--do_eval"]
    train = ["--from_scratch", str(tmp_path / "config"), "--image_size", "64", "--do_train", "--max_steps", "1"]
    train += ["--per_device_train_batch_size", "2", "--eval_strategy", "no"]
    out = tmp_path / "out"
    metrics = run_segmentation.main([*argv, *train, "--output_dir", str(out)])
    assert (
        "short side 70 " in metrics["eval_protocol"] and "rounded up to a multiple of 14;" in metrics["eval_protocol"]
    )
    again = ["--model_name_or_path", str(out), "--id2label", str(out / "labels.json"), "--output_dir"]
    again = run_segmentation.main([*argv, *again, str(tmp_path / "again")])
    assert {key: again[key] for key in ("eval_protocol", "eval_mean_iou", "eval_loss")}.items() <= metrics.items()


def push(flags, output_dir):
    argv = [*flags, "--do_train", "--do_predict", "--max_steps", "2", "--push_to_hub", "--hub_model_id", "tester/tiny"]
    run_segmentation.main([*argv, "--output_dir", str(output_dir)])


def test_push_publishes_model_card_and_results_and_nothing_else(server, flags, tmp_path):
    output_dir = tmp_path / "out"
    push(flags, output_dir)
    files = server.files("tester/tiny")
    assert set(files) == set(
        """model.safetensors config.json preprocessor_config.json processor_config.json labels.json README.md
        sample.jpg all_results.json train_results.json eval_results.json per_category.csv
        confusion_matrix.npy confusion_matrix.png curves.png""".split()
    )
    assert files["model.safetensors"] == (output_dir / "model.safetensors").read_bytes()
    mean_iou = read(output_dir / "eval_results.json")["eval_mean_iou"]
    card = files["README.md"].decode()
    assert f"{mean_iou:.4f}" in card and "short side 64" in card and str(tmp_path) not in card


def test_a_rejected_token_is_found_before_training(server, flags, tmp_path):
    server.reject_token = True
    with pytest.raises(UserError, match="refused the token.*hf auth login"):
        push(flags, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_push_that_fails_in_the_middle_loses_nothing(server, flags, tmp_path):
    server.fail_on = "commit"
    with pytest.raises(UserError, match=r"results are safe in (?s:.*)python publish\.py"):
        push(flags, tmp_path / "out")
    for name in ("model.safetensors", "eval_results.json", "README.md", "contact_sheet.png"):
        assert (tmp_path / "out" / name).is_file()


# ---- options of training --------------------------------------------------------------------------------------------


def brief(flags, output_dir, *options, steps=2):
    """Arguments for a few steps, then an evaluation."""
    return [*flags, "--do_train", "--do_eval", "--max_steps", str(steps), "--output_dir", str(output_dir), *options]


@pytest.mark.parametrize("ade20k", [False, True])
def test_a_dry_run_tells_and_leaves_nothing(tmp_path, flags, capsys, ade20k):
    data = make_dataset(tmp_path / "set", ade20k)
    before = sorted(tmp_path.rglob("*"))
    options = ["--dataset_dir", str(data), "--dry_run", "--lr_scheduler_type", "polynomial", "--warmup_steps", "5"]
    results = run_segmentation.main(brief(flags, tmp_path / "out", *options, steps=40))
    assert results["perfect_mean_iou"] == 1.0
    # More where one process reads more slowly than the model learns.
    assert results["training_hours"] >= results["seconds_per_step"] * 40 / 3600 * (1 - 1e-9)
    assert sorted(tmp_path.rglob("*")) == before
    log = capsys.readouterr().err
    for told in ("encoder norms", "step        5: 0.00875", "effective batch: 2", "MiB", "-> 1 disc", "40 steps"):
        assert told in log, told


@pytest.mark.parametrize("options", [["--dry_run"], ["--dry_run", "true"]])
def test_a_dry_run_by_itself_is_one_of_training(tmp_path, flags, options):
    argv = [*flags, "--max_steps", "2", *options, "--output_dir", str(tmp_path / "out")]
    results = run_segmentation.main(argv)
    assert results["seconds_per_step"] > 0 and results["perfect_mean_iou"] == 1.0
    assert list(tmp_path.iterdir()) == []


def test_a_preview_by_itself(tmp_path, flags):
    """Without a validation split, too; a picture that cannot be finished does not replace the one before."""
    data = make_dataset(tmp_path / "set")
    shutil.rmtree(data / "val")
    picture = tmp_path / "preview.png"
    argv = [*flags, "--dataset_dir", str(data), "--output_dir", str(tmp_path / "out"), "--preview", str(picture)]
    assert run_segmentation.main(argv) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preview.png", "set"]
    assert Image.open(picture).width > 300


def test_a_missing_split_is_said_before_masks_are_read(tmp_path, flags, monkeypatch):
    data = make_dataset(tmp_path / "set")
    monkeypatch.setattr(run_segmentation, "find_classes", None)
    monkeypatch.setattr(run_segmentation, "prepare_and_judge", None)
    for split, option, message in (
        ("val", "--do_train", "no validation or test split"),
        ("train", "--do_train", "no training"),
    ):
        root = shutil.copytree(data, tmp_path / split)
        shutil.rmtree(root / split)
        with pytest.raises(UserError, match=rf"{message}.*\(found "):
            run_segmentation.main([*flags, "--dataset_dir", str(root), option, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_preview_is_all_that_is_written(tmp_path, flags):
    picture = tmp_path / "preview.png"
    assert run_segmentation.main(brief(flags, tmp_path / "out", "--preview", str(picture))) == {}
    assert list(tmp_path.iterdir()) == [picture]
    with Image.open(picture) as image:
        assert image.width > 300 and len(image.getcolors(10**6)) > 100


def test_large_photos_are_copied_for_training(tmp_path, flags, capsys):
    """Of 40 x 64 pixels or so, and shown at 16 x 26 at most."""
    small = ("--image_size", "32", "--scale_range", "0.5", "0.5", "--preview", str(tmp_path / "x.png"))
    run_segmentation.main(brief(flags, tmp_path, *small))
    assert "6 of 6 training images are read from copies" in capsys.readouterr().err
    run_segmentation.main(brief(flags, tmp_path, *small, "--no_reduced_copies"))
    assert "copies" not in capsys.readouterr().err


def test_colors_changed_in_batches_make_the_same_run(flags, tmp_path):
    """Bit for bit, also where it goes on from a checkpoint, with workers, and with batches that are accumulated."""
    short = ("--eval_strategy", "no", "--gradient_accumulation_steps", "2")
    short += ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2")
    weights = []
    for name, options in (
        ("single", ["--no_batch_colors"]),
        ("batch", ["--batch_colors", "--dataloader_num_workers", "1"]),
        ("resumed", ["--batch_colors", "--resume_from_checkpoint", str(tmp_path / "single" / "checkpoint-1")]),
    ):
        argv = [*flags, "--do_train", "--max_steps", "2", "--output_dir", str(tmp_path / name), *short, *options]
        run_segmentation.main(argv)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    for others in weights[1:]:
        assert all(torch.equal(tensor, others[name]) for name, tensor in weights[0].items())


def test_a_frozen_encoder_stays_as_it_was(run, flags, tmp_path):
    start = load_file(run[0] / "model.safetensors")
    argv = [flag if flag != "--from_scratch" else "--model_name_or_path" for flag in flags]
    argv[1] = str(run[0])
    run_segmentation.main(brief(argv, tmp_path, "--freeze_encoder"))
    trained = load_file(tmp_path / "model.safetensors")
    same = {name for name, tensor in trained.items() if torch.equal(tensor, start[name])}
    assert {name for name in trained if name.startswith("segformer.")} == same


def test_a_single_logit_is_trained_scored_and_predicted(flags, tmp_path):
    data = make_dataset(tmp_path / "set")
    options = ["--dataset_dir", str(data), "--merge_classes", "bar=disc", "--single_logit"]
    output_dir = tmp_path / "out"
    metrics = run_segmentation.main(brief(flags, output_dir, *options, "--do_predict", steps=40))
    assert read(output_dir / "config.json")["id2label"] == {"0": "disc"}
    assert load_file(output_dir / "model.safetensors")["decode_head.classifier.weight"].shape[0] == 1
    assert metrics["eval_mean_iou"] > 0.5
    assert np.load(output_dir / "confusion_matrix.npy").shape == (2, 2)
    total = np.zeros((2, 2), np.int64)
    for file in sorted((data / "val" / "masks").iterdir()):
        truth = np.array(Image.open(file))
        truth[truth == 2] = 1
        predicted = np.array(Image.open(output_dir / "predictions" / file.name))
        assert set(np.unique(predicted)) <= {0, 1}  # of the two values merged, that of the class whose name is kept
        total += confusion_matrix(predicted, truth, 2).numpy()
    np.testing.assert_array_equal(total, np.load(output_dir / "confusion_matrix.npy"))
    evaluate = ["--model_name_or_path", str(output_dir), "--image_size", "64", "--use_cpu", "--do_eval"]
    evaluate += [*options[:-1], "--id2label", str(data / "classes.json"), "--output_dir", str(tmp_path / "again")]
    assert run_segmentation.main(evaluate)["eval_mean_iou"] == metrics["eval_mean_iou"]
    stricter = run_segmentation.main([*evaluate, "--threshold", "0.9"])
    assert stricter["eval_loss"] == metrics["eval_loss"] and "probability of 0.9" in stricter["eval_protocol"]
    matrix = np.load(tmp_path / "again" / "confusion_matrix.npy")
    assert matrix[:, 1].sum() < total[:, 1].sum()


def test_images_of_four_bands(flags, tmp_path):
    data = make_dataset(tmp_path / "set")
    for file in data.rglob("images/*.png"):
        image = Image.open(file).convert("RGB")
        image.putalpha(Image.fromarray(np.array(image)[..., 0] // 2))
        image.save(file)
    options = ["--dataset_dir", str(data), "--num_channels", "4", "--do_predict"]
    metrics = run_segmentation.main(brief(flags, tmp_path / "out", *options, steps=4))
    assert load_file(tmp_path / "out" / "model.safetensors")[FIRST_CONVOLUTION].shape[1] == 4
    assert len(read(tmp_path / "out" / "preprocessor_config.json")["image_mean"]) == 4
    evaluate = ["--model_name_or_path", str(tmp_path / "out"), "--dataset_dir", str(data), "--image_size", "64"]
    evaluate += [
        "--id2label",
        str(data / "classes.json"),
        "--do_eval",
        "--use_cpu",
        "--output_dir",
        str(tmp_path / "2"),
    ]
    assert run_segmentation.main(evaluate)["eval_loss"] == metrics["eval_loss"]


def test_averaged_weights_are_what_is_evaluated_and_saved(flags, tmp_path):
    options = ["--ema_decay", "0.9", "--eval_strategy", "no"]
    metrics = run_segmentation.main(brief(flags, tmp_path / "ema", *options, steps=6))
    run_segmentation.main(brief(flags, tmp_path / "raw", *options[2:], steps=6))
    averaged, raw = (load_file(tmp_path / name / "model.safetensors") for name in ("ema", "raw"))
    assert not all(torch.equal(averaged[name], raw[name]) for name in raw)
    evaluate = [*flags[2:], "--model_name_or_path", str(tmp_path / "ema"), "--do_eval"]
    again = run_segmentation.main([*evaluate, "--output_dir", str(tmp_path / "again")])
    assert again["eval_loss"] == metrics["eval_loss"]


def test_training_stops_early_and_says_where_its_page_is(flags, tmp_path, capsys):
    options = ["--early_stopping_patience", "1", "--learning_rate", "0", "--eval_strategy", "steps"]
    options += ["--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    run_segmentation.main(brief(flags, tmp_path, *options, steps=9))
    assert read(tmp_path / "trainer_state.json")["global_step"] == 2
    places = re.findall(r"the page of the run, made again after each evaluation: (.*)", capsys.readouterr().err)
    assert places == [str(tmp_path / ".new_run" / "report.html"), str(tmp_path / "report.html")]


def test_faults_of_the_data_are_found_before_training(flags, tmp_path):
    data = make_dataset(tmp_path / "set")
    for file in (data / "train" / "masks").iterdir():
        mask = np.array(Image.open(file))
        Image.fromarray(np.where(mask == 2, 9, mask)).save(file)
    with pytest.raises(UserError, match=r"9.*(?s:.*)check_dataset.py"):
        run_segmentation.main(brief(flags, tmp_path / "out", "--dataset_dir", str(data)))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_losses_and_class_weights_reach_training(flags, tmp_path):
    (tmp_path / "weights.json").write_text("[1, 5, 1]")

    def losses_of(name, *options):
        run_segmentation.main(brief(flags, tmp_path / name, "--eval_strategy", "no", *options))
        log = read(tmp_path / name / "trainer_state.json")["log_history"]
        return [entry["loss"] for entry in log if "loss" in entry]

    combined = ["--loss", "ce+dice", "--class_weights", "auto"]
    fused, stock = losses_of("fused", *combined), losses_of("stock", *combined, "--no_fused_ops")
    np.testing.assert_allclose(fused, stock, rtol=1e-2)  # dropout draws in its own way
    plain = losses_of("plain")
    weighted = losses_of("weighted", "--class_weights", str(tmp_path / "weights.json"))
    assert len({round(losses[0], 3) for losses in (fused, plain, weighted)}) == 3
    assert "loss | ce+dice" in (tmp_path / "fused" / "README.md").read_text()
