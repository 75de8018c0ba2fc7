"""Mistakes in flags are answered before anything heavy is imported, in the words of the full parser."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from cli_utils import UserError, help_page
from data.arguments import DatasetArguments
from models.arguments import ModelArguments
from training.arguments import GROUPS, Arguments
from training.early import OWN_GROUPS, check_flags, parse_own_flags, trainer_flags
from training.run_arguments import OptimizationArguments, PlanArguments

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "datasets", "pandas", "pyarrow", "accelerate", "peft", "evaluate", "scipy", "sklearn"}
UNUSED = {"evaluate", "sklearn", "matplotlib", "tensorboard", "wandb", "IPython", "onnx", "onnxruntime"}


def loaded(code: str) -> tuple[set[str], subprocess.CompletedProcess]:
    """What a new process has imported at the end."""
    code += "\nimport json\nprint(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}, done


def script(*argv: str) -> tuple[set[str], subprocess.CompletedProcess]:
    run = f"sys.argv = {['run_segmentation.py', *argv]}\nimport runpy\ntry:\n  "
    run += "runpy.run_path('run_segmentation.py', run_name='__main__')\nexcept SystemExit: pass"
    return loaded(run)


def test_a_mistake_in_a_value_imports_nothing_heavy(tmp_path):
    for flags, message in (
        (["--dataset_dir", str(tmp_path), "--loss", "dise", "--do_train"], "--loss dise"),
        (["--dataset_dir", str(tmp_path), "--max_steps", "few", "--do_train"], "--max_steps"),
        (["--dataset_dir", str(tmp_path / "none"), "--do_train"], "no such folder"),
    ):
        modules, done = script(*flags)
        assert not modules & HEAVY
        assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_start_imports_nothing_that_it_does_not_use():
    assert not loaded("import run_segmentation")[0] & UNUSED


def test_all_groups_are_known():
    assert {*GROUPS.values()} - {*OWN_GROUPS} == {GROUPS["training"]}
    page = help_page(OWN_GROUPS, "what it does")
    assert page.startswith("usage:") and "what it does" in page and "--train_val_split X" in page
    for field in (field for kind in OWN_GROUPS for field in fields(kind)):
        assert f"--{field.name} " in page or f"--{field.name}\n" in page or f"--no_{field.name}" in page


def test_the_trainers_flags_are_found_in_its_source():
    """Read, not imported: this is what they are once it is imported."""
    assert trainer_flags().keys() == {field.name for field in fields(TrainingArguments) if field.init}


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset_dir x --imgsz 640",
        "--do_train",
        "--dataset_dir x --train_val_split 2 --do_train",
        "stray --dataset_dir x --do_train",
        "--dataset_dir x --image_size many",
        "--dataset_dir x --dataset_name y",
        "--dataset_dir x --config missing.yaml",
        "--dataset_dir x",
        "--dataset_dir x --learning_rate 1e-4",
        "--dataset_dir x --do_train --loss dise",
        "--dataset_dir x --do_train --loss dice --class_weights auto",
        "--dataset_dir x --do_train --num_train_epochs many",
        "--dataset_dir x --do_train --max_steps 1.5",
        "--dataset_dir x --do_train --per_device_train_batch_size 0",
    ],
)
def test_mistakes_get_the_words_that_they_get_later(flags):
    flags = f"{flags} --output_dir out".split()
    with pytest.raises(UserError) as early:
        check_flags(flags)
    with pytest.raises(UserError) as later:
        Arguments.parse(flags)
    assert str(early.value) == str(later.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--do_train --learning_rate 1e-4 --output_dir a --label_names a b --fused_ops --no_check_data",
        "--do-train --per-device-train-batch-size=4 --reduce_labels --no_load_best_model_at_end --eval_scales 1 2",
        "--config auto",
        "--preview a.png",
        "--dry_run",
        "--eval_on_train --model_name_or_path a",
        "--do_eval --model_name_or_path a",
    ],
)
def test_flags_of_the_trainer_are_left_alone(flags):
    check_flags(["--dataset_dir", "x", *flags.split()])


def test_keys_of_a_file_are_checked(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("dataset_dir: x\nlearning_rate: 1e-4\nbf16: true\ndo_train: true\n")
    check_flags(["--config", str(file)])
    file.write_text("dataset_dir: x\nlearning_rat: 1e-4\n")
    with pytest.raises(UserError, match="unknown key 'learning_rat' .* mean learning_rate"):
        check_flags(["--config", str(file)])


def test_a_flag_displaces_what_a_file_says_of_another(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("dataset_dir: x\nmodel_name_or_path: a\ndo_train: true\n")
    groups = check_flags(["--config", str(file), "--dataset_name", "y", "--from_scratch", "mit-b0"])
    assert groups[DatasetArguments].source == "y" and groups[ModelArguments].source == "nvidia/mit-b0"


def test_flags_beside_a_plan_are_checked():
    assert check_flags(["--config", "auto", "--dataset_dir", "x"])
    with pytest.raises(UserError, match="unknown flag --learnin_rate"):
        check_flags(["--config", "auto", "--dataset_dir", "x", "--learnin_rate", "1"])


def test_the_flags_of_plan_are_those_of_a_run_and_its_own():
    groups = parse_own_flags(["my_photos", "--output", "a.yaml", "--lora_r", "4"], (PlanArguments,), "dataset_dir")
    assert groups[PlanArguments].output == "a.yaml" and groups[DatasetArguments].source == "my_photos"
    assert groups[OptimizationArguments].lora_r == 4
