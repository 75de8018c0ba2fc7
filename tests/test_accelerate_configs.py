"""The files that `accelerate launch` is given are read by it, and their first lines say how they are used."""

import json
import os
import re
import socket
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


LAUNCH = ["-m", "accelerate.commands.launch", "--config_file"]


def start(command, **environment):
    """A process whose own processes have one thread each."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, text=True, **pipes)


def end(process):
    """What it printed."""
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-5000:]
    return printed


def launch(config, *arguments):
    return end(start([sys.executable, *LAUNCH, config, "--main_process_port", "0", *arguments], DS_ACCELERATOR="cpu"))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def on_two_cpus(name, folder):
    """One of the files, for two processes on the CPU."""
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) | {"use_cpu": True, "num_processes": 2}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"{name}.yaml"


def evaluated(model, data, folder, *flags):
    """The confusion matrix of a saved model, in this process."""
    argv = ["--model_name_or_path", model, "--dataset_dir", data, "--id2label", data / "classes.json", "--use_cpu"]
    argv += ["--image_size", "64", "--do_eval", "--output_dir", folder, *flags]
    run_segmentation.main([*map(str, argv)])
    return np.load(folder / "confusion_matrix.npy")


def losses(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


FSDP_ON_CPUS = ["--module", "factories.fsdp_on_cpus"]
TRAINING = ["--do_train", "--do_eval", "--eval_strategy", "no", "--save_strategy"]


@pytest.mark.slow
def test_fsdp2_trains_scores_and_saves_as_one_process_does(inputs, tmp_path):
    """The file for FSDP2 with two processes on the CPU, in windows whose number differs from image to image."""
    data, flags = inputs
    windows = ["--slide_crop", "32", "--slide_stride", "32"]
    flags = [*flags, *windows, "--do_train", "--do_eval", "--eval_strategy", "steps", "--save_strategy", "steps"]
    flags += ["--eval_steps", "2", "--save_steps", "2", "--save_total_limit", "9"]
    out, one = tmp_path / "out", tmp_path / "one"
    said = launch(on_two_cpus("fsdp2", tmp_path), *FSDP_ON_CPUS, *flags, "--output_dir", out)
    assert "121 of 121 parameters are scattered" in said
    # Each process has batches of one, as BatchNorm sees them.
    run_segmentation.main([*map(str, [*flags, "--gradient_accumulation_steps", "2", "--output_dir", one])])
    assert len(losses(one)) == 4
    np.testing.assert_allclose(losses(out), losses(one), rtol=1e-3)
    np.testing.assert_array_equal(
        np.load(out / "confusion_matrix.npy"), evaluated(out, data, tmp_path / "again", *windows)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_run_with_scattered_weights_goes_on_as_if_it_had_not_stopped(name, inputs, tmp_path):
    """From the checkpoint after two of four steps, with optimizer, schedule and the order of images."""
    if name != "fsdp2":
        pytest.importorskip("deepspeed")
    flags = [*inputs[1], *TRAINING, "steps", "--save_steps", "2"]
    config, whole, again = on_two_cpus(name, tmp_path), tmp_path / "whole", tmp_path / "again"
    script = FSDP_ON_CPUS if name == "fsdp2" else [ROOT / "run_segmentation.py"]
    launch(config, *script, *flags, "--save_total_limit", "9", "--output_dir", whole)
    resume = ["--output_dir", again, "--resume_from_checkpoint", whole / "checkpoint-2"]
    launch(config, *script, *flags, *resume)
    assert len(losses(whole)) == 4
    np.testing.assert_allclose(losses(again), losses(whole), rtol=1e-5)
    matrices = [np.load(folder / "confusion_matrix.npy") for folder in (whole, again)]
    np.testing.assert_array_equal(*matrices)


def accelerate_on(rank, port):
    machine = ["--num_processes", "2", "--machine_rank", rank, "--main_process_ip", "127.0.0.1"]
    return [sys.executable, *LAUNCH, FOLDER / "several_nodes.yaml", *machine, "--main_process_port", port]


def torchrun_on(rank, port):
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "test"]
    return [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *meeting]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [accelerate_on, torchrun_on])
def test_two_machines_train_as_one_process_does(machine, inputs, tmp_path):
    """Each of the two commands of several_nodes.yaml, both machines being this one."""
    flags, port = [*inputs[1], *TRAINING, "no"], free_port()
    both = [start([*machine(rank, port), "run_segmentation.py", *flags, "--output_dir", tmp_path]) for rank in (0, 1)]
    for process in both:
        end(process)
    same_as_one_process(tmp_path, flags)


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_machines(inputs, tmp_path):
    """With programs in the place of Slurm's own that do the same on this machine alone."""
    programs = {
        "scontrol": 'test "$*" = "show hostnames a,b" && printf "localhost\\nb\\n"',
        "srun": '"$@" & first=$!; "$@" & wait $first && wait $!',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "a,b", "NNODES": "2", "GPUS_ON_NODE": "1", "JOB_ID": "7"}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    flags = [*inputs[1], *TRAINING, "no"]
    command = ["bash", FOLDER / "slurm.sh", *flags, "--output_dir", tmp_path / "out"]
    end(start(command, PATH=path, **{f"SLURM_{name}": value for name, value in slurm.items()}))
    same_as_one_process(tmp_path / "out", flags)


def same_as_one_process(folder, flags):
    run_segmentation.main([*map(str, [*flags, "--gradient_accumulation_steps", "2", "--output_dir", folder / "one"])])
    assert len(losses(folder)) == 4
    np.testing.assert_allclose(losses(folder), losses(folder / "one"), rtol=1e-5)
