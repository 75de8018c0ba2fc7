"""The files that `accelerate launch` is given are read by it, and their first lines say how they are used."""

import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

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
