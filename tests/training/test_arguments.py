"""Numbers and names that the Trainer would take and fail with later, or never."""

import json
from types import SimpleNamespace

import pytest
from transformers import training_args

from cli_utils import UserError
from training import arguments
from training.arguments import Arguments, SegmentationTrainingArguments, describe_precision, engine_of

NUMBERS = [
    name
    for name, field in SegmentationTrainingArguments.__dataclass_fields__.items()
    if field.init and field.type in (int, float, int | None, float | None) and name != "local_rank"
]
MAY_BE_ZERO = """learning_rate warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    label_smoothing_factor neftune_noise_alpha eval_delay save_total_limit seed data_seed
    dataloader_num_workers""".split()


def parse(*argv):
    base = ["--dataset_dir", "x", "--output_dir", "y", "--use_cpu", "--do_train", "--eval_strategy", "no"]
    return Arguments.parse([*base, *argv]).training


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_the_trainer_is_looked_at(name):
    """Not one of its numbers may be negative, infinite or no number at all, and few may be 0."""
    for value in ("-2", "nan", "inf", "-inf", *(() if name in MAY_BE_ZERO else ("0",))):
        with pytest.raises(UserError) as caught:
            parse(f"--{name}", value)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    if name in MAY_BE_ZERO:
        assert getattr(parse(f"--{name}", "0"), name) == 0
    assert len(NUMBERS) > 25


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", str(2**32)], "it must be from 0 to 4294967295"),
        (["--max_steps", "-3"], "--max_steps is -3; it must be at least 1, or -1 to count epochs"),
        (["--adam_beta2", "1"], "--adam_beta2 is 1.0; it must be at least 0 and below 1"),
        (["--head_lr_multiplier", "nan"], "nan is no finite number"),
        (["--scale_range", "0.5", "inf"], "inf is no finite number"),
        (["--lr_scheduler_kwargs", '{"x": 1}'], "--lr_scheduler_type linear does not go with .*unexpected keyword"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "does not go with .*num_decay_steps"),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": "a"}'], "could not convert"),
        (["--lr_scheduler_kwargs", "x"], "--lr_scheduler_kwargs x"),
        (["--neftune_noise_alpha", "5"], "language models"),
        (["--use_liger_kernel"], "language models"),
        (["--batch_eval_metrics", "no"], "leave out --batch_eval_metrics"),
        (["--eval_use_gather_object"], "leave out"),
        (["--dataloader_persistent_workers"], "add --dataloader_num_workers 2"),
        (["--dataloader_multiprocessing_context", "spawn"], "add --dataloader_num_workers 2"),
        (["--optim_args", "foo"], "--optim_args holds 'foo'"),
        (["--report_to", "no_such_tracker"], "--report_to no_such_tracker: there is no such tracker"),
        (["--accelerator_config", '{"foo": 1}'], "foo"),
        (["--skip_nonfinite", "-1"], "--skip_nonfinite is -1"),
        (["--skip_nonfinite", "1.5"], "invalid int value"),
    ],
)
def test_what_would_fail_later_fails_at_once(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)


def test_what_fits_is_taken():
    kwargs = json.dumps({"num_cycles": 2})
    args = parse("--lr_scheduler_type", "cosine_with_restarts", "--lr_scheduler_kwargs", kwargs, "--max_steps", "-1")
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert parse("--dataloader_num_workers", "2", "--dataloader_persistent_workers").dataloader_persistent_workers
    assert parse("--optim_args", "a=1, b=2").optim_args == "a=1, b=2"


SCATTERED = {"ACCELERATE_USE_FSDP": "true"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.mark.parametrize(
    ("environment", "engine"),
    [
        ({}, ""),
        (SCATTERED, "FSDP"),
        (ZERO, "DeepSpeed ZeRO-3"),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "DeepSpeed"),
    ],
)
def test_the_engine_is_told_by_the_launcher(monkeypatch, environment, engine):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert engine_of(SimpleNamespace(fsdp=[], deepspeed=None)) == engine


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--do_predict"], "--do_predict does not go with FSDP, .*predict.py"),
        (["--dry_run"], "--dry_run does not go with FSDP"),
        (["--ema_decay", "0.9"], "--ema_decay averages whole weights"),
    ],
)
def test_what_cannot_work_with_scattered_weights_is_refused(monkeypatch, flags, message):
    monkeypatch.setattr(arguments, "engine_of", lambda training: "FSDP")
    with pytest.raises(UserError, match=message):
        parse(*flags)


@pytest.mark.parametrize(
    ("device", "is_able", "argv", "expected"),
    [
        ("cuda", True, [], True),
        ("cuda", True, ["--tf32", "false"], False),
        ("cuda", False, [], None),  # before Ampere
        ("mps", True, [], None),
        ("cpu", True, [], None),
    ],
)
def test_training_multiplies_in_tf32_where_the_gpu_can(monkeypatch, device, is_able, argv, expected):
    chosen = []
    monkeypatch.setattr(SegmentationTrainingArguments, "_device_type", lambda self: device)
    for module in (arguments, training_args):
        monkeypatch.setattr(module, "is_torch_tf32_available", lambda: is_able)
    monkeypatch.setattr(training_args, "enable_tf32", chosen.append)
    args = parse(*argv, "--dataloader_num_workers", "0")
    assert args.tf32 is expected and chosen == ([] if expected is None else [expected])
    told = describe_precision(args)
    assert ("TF32 (--tf32 false)" in told) == bool(expected) and "optimizer adamw_torch_fused (--optim)" in told


def test_tf32_that_no_gpu_has_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr(arguments, "is_torch_tf32_available", lambda: False)
    with pytest.raises(UserError, match="--tf32 is for NVIDIA's GPUs since Ampere"):
        parse("--tf32", "true")
