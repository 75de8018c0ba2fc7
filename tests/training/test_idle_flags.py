"""Flags without effect are said, and those with one are not."""

import re
from pathlib import Path

import pytest

import run_segmentation
from cli_utils import UserError
from training.arguments import Arguments
from training.idle_flags import idle_flags

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
TRAIN, EVALUATE = "--do_train", "--do_eval --model_name_or_path m"


def sentences(*argv):
    return idle_flags(Arguments.parse([*argv, "--dataset_dir", "x", "--output_dir", "y", "--use_cpu"]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{TRAIN} --eval_steps 4", "--eval_steps has no effect: --eval_strategy is epoch; add --eval_strategy steps"),
        (f"{TRAIN} --save_steps 4", "--save_steps has no effect: --save_strategy is epoch; add --save_strategy steps"),
        (f"{TRAIN} --eval_strategy no --save_strategy no --eval_steps 4", "--eval_steps has .* --eval_strategy is no"),
        (f"{TRAIN} --eval_strategy no --eval_delay 4", "--eval_delay has no effect: --eval_strategy is no"),
        (f"{TRAIN} --logging_strategy epoch --logging_steps 4", "--logging_steps has .* --logging_strategy is epoch"),
        (
            f"{TRAIN} --eval_strategy no --load_best_model_at_end",
            "--load_best_model_at_end has no effect: --eval_strategy is no",
        ),
        (f"{TRAIN} --fp16", "--fp16 has no effect: a CPU computes in float32"),
        (f"{TRAIN} --lr_scheduler_type constant --warmup_steps 5", "--warmup_steps has .* constant knows no warm-up"),
        (
            [*TRAIN.split(), "--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", '{"power": 2}'],
            "--lr_scheduler_kwargs has no effect: --lr_scheduler_type constant takes no options",
        ),
        (f"{TRAIN} --max_steps 5 --num_train_epochs 3", "--num_train_epochs has no effect: --max_steps 5 decides"),
        (f"{TRAIN} --sync_bn", "--sync_bn has no effect: there is one process"),
        (
            f"{TRAIN} --hub_model_id a/b --hub_private_repo yes",
            ".*--hub_model_id.* have no effect: nothing is published",
        ),
        (f"{TRAIN} --eval_strategy no --max_eval_samples 4", "--max_eval_samples has no effect"),
        (f"{TRAIN} --max_predict_samples 4", "--max_predict_samples has no effect: nothing is predicted"),
        (f"{TRAIN} --load_best_model_at_end no --metric_for_best_model loss", "--metric_for_best_model has no effect"),
        (f"{TRAIN} --save_strategy no --eval_strategy no --save_total_limit 4", "--save_total_limit has no effect"),
        (f"{TRAIN} --logging_nan_inf_filter", "--logging_nan_inf_filter has no effect: .*--skip_nonfinite"),
        (f"{TRAIN} --dataset_config_name large", "--dataset_config_name has no effect"),
        (f"{EVALUATE} --flip_probability 0 --lora_r 4 --class_weights auto --learning_rate 1", ".*nothing is trained"),
        (f"{EVALUATE} --max_train_samples 4", "--max_train_samples has no effect"),
        (f"{EVALUATE} --skip_nonfinite 4", "--skip_nonfinite has no effect: nothing is trained"),
    ],
)
def test_flags_without_effect(line, expected):
    (sentence,) = sentences(*(line.split() if isinstance(line, str) else line))
    assert re.match(expected, sentence), sentence


@pytest.mark.parametrize(
    "line",
    [
        TRAIN,
        EVALUATE,
        f"{TRAIN} --eval_strategy steps --eval_steps 4 --save_strategy steps --save_steps 4 --eval_delay 2",
        f"{TRAIN} --bf16 --warmup_steps 5 --lr_scheduler_type constant_with_warmup --num_train_epochs 2",
        f"{TRAIN} --max_steps 5 --do_predict --max_predict_samples 4 --max_eval_samples 4 --skip_nonfinite 4",
        f"{TRAIN} --sync_bn no --fp16 no --push_to_hub --hub_model_id a/b --class_weights auto",
        f"{EVALUATE} --sync_bn no --save_strategy no --eval_strategy no --eval_on_train --max_train_samples 3",
        "--preview x.png --flip_probability 0",
    ],
)
def test_flags_with_an_effect(line):
    assert sentences(*line.split()) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipes_have_none(config):
    """But for what is said of several GPUs."""
    assert [sentence for sentence in sentences("--config", str(config)) if "--sync_bn" not in sentence] == []


def test_the_program_says_so(tmp_path, capsys):
    argv = ["--dataset_dir", str(tmp_path / "none"), "--do_train", "--eval_steps", "4", "--use_cpu"]
    with pytest.raises(UserError):
        run_segmentation.main([*argv, "--from_scratch", "mit-b0", "--output_dir", str(tmp_path / "out")])
    assert "warning: --eval_steps has no effect" in capsys.readouterr().err
