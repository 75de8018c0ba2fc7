"""The files that `accelerate launch` is given are read by it, and their first lines say how they are used."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from factories.runs import flags_for, make_dataset, save_tiny_config
from torch.distributed.run import get_args_parser

import run_segmentation

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "accelerate_configs"
EXPECTED = {
    "one_gpu": ("NO", 1),
    "several_nodes": ("MULTI_GPU", 16),
    "two_cpu_processes": ("MULTI_GPU", 2),
    "fsdp2": ("FSDP", 8),
    "deepspeed_zero2": ("DEEPSPEED", 8),
    "deepspeed_zero3": ("DEEPSPEED", 8),
}


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_them(name):
    file = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert (config.distributed_type.value, config.num_processes) == EXPECTED[name]
    assert config.mixed_precision == "no"  # the script's flags decide
    text = file.read_text()
    assert f"--config_file accelerate_configs/{name}.yaml" in text.split("compute_environment")[0]
    assert config.num_machines == (2 if name == "several_nodes" else 1)


def test_options_of_the_engines():
    assert load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2
    for stage in (2, 3):
        assert (
            load_config_from_file(str(FOLDER / f"deepspeed_zero{stage}.yaml")).deepspeed_config["zero_stage"] == stage
        )


def test_the_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "several_nodes.yaml"])
def test_torchrun_knows_the_flags_that_it_is_given(name):
    text = re.sub(r"\\\s*#?", " ", (FOLDER / name).read_text())
    words = re.search(r"torchrun (.*?) run_segmentation\.py", text)[1].split()
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    given = {word for word in words if word.startswith("--")}
    assert len(given) == 5 and given <= known


# ---- run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Data, and flags for a model without dropout, which would draw other numbers in another process."""
    folder = tmp_path_factory.mktemp("inputs")
    data, config = make_dataset(folder / "data"), save_tiny_config(folder)
    no_dropout = json.loads(config.read_text()) | {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    config.write_text(json.dumps(no_dropout))
    return data, [*flags_for(data, config), "--max_steps", "4", "--per_device_train_batch_size", "1"]


def launch(config, *arguments):
    """Through the launcher, one thread a process."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "0", *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return ended.stdout


def evaluated(model, data, folder, *flags):
    """The confusion matrix of a saved model, in this process."""
    argv = ["--model_name_or_path", model, "--dataset_dir", data, "--id2label", data / "classes.json", "--use_cpu"]
    argv += ["--image_size", "64", "--do_eval", "--output_dir", folder, *flags]
    run_segmentation.main([*map(str, argv)])
    return np.load(folder / "confusion_matrix.npy")


def losses(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
def test_fsdp2_trains_scores_and_saves_as_one_process_does(inputs, tmp_path):
    """The file for FSDP2 with two processes on the CPU, in windows whose number differs from image to image."""
    data, flags = inputs
    windows = ["--slide_crop", "32", "--slide_stride", "32"]
    flags = [*flags, *windows, "--do_train", "--do_eval", "--eval_strategy", "steps", "--save_strategy", "steps"]
    flags += ["--eval_steps", "2", "--save_steps", "2", "--save_total_limit", "9"]
    config = yaml.safe_load((FOLDER / "fsdp2.yaml").read_text()) | {"use_cpu": True, "num_processes": 2}
    (tmp_path / "fsdp2.yaml").write_text(yaml.safe_dump(config))
    out, one = tmp_path / "out", tmp_path / "one"
    script = ["--module", "factories.fsdp_on_cpus"]
    said = launch(tmp_path / "fsdp2.yaml", *script, *flags, "--output_dir", out)
    assert "121 of 121 parameters are scattered" in said
    # Each process has batches of one, as BatchNorm sees them.
    run_segmentation.main([*map(str, [*flags, "--gradient_accumulation_steps", "2", "--output_dir", one])])
    assert len(losses(one)) == 4
    np.testing.assert_allclose(losses(out), losses(one), rtol=1e-3)
    np.testing.assert_array_equal(
        np.load(out / "confusion_matrix.npy"), evaluated(out, data, tmp_path / "again", *windows)
    )


@pytest.mark.slow
def test_a_run_under_fsdp2_goes_on_as_if_it_had_not_stopped(inputs, tmp_path):
    """From the checkpoint after two of four steps, with optimizer, schedule and the order of images."""
    _, flags = inputs
    flags = [
        *flags,
        "--do_train",
        "--do_eval",
        "--eval_strategy",
        "no",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    ]
    config = yaml.safe_load((FOLDER / "fsdp2.yaml").read_text()) | {"use_cpu": True, "num_processes": 2}
    (tmp_path / "fsdp2.yaml").write_text(yaml.safe_dump(config))
    whole, again = tmp_path / "whole", tmp_path / "again"
    script = ["--module", "factories.fsdp_on_cpus"]
    launch(tmp_path / "fsdp2.yaml", *script, *flags, "--save_total_limit", "9", "--output_dir", whole)
    resume = ["--output_dir", again, "--resume_from_checkpoint", whole / "checkpoint-2"]
    launch(tmp_path / "fsdp2.yaml", *script, *flags, *resume)
    assert len(losses(whole)) == 4
    np.testing.assert_allclose(losses(again), losses(whole), rtol=1e-5)
    matrices = [np.load(folder / "confusion_matrix.npy") for folder in (whole, again)]
    np.testing.assert_array_equal(*matrices)
