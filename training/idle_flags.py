"""Flags that were given and change nothing, as another one is missing or the run does something else."""

from dataclasses import fields

from transformers import SchedulerType
from transformers.trainer_utils import IntervalStrategy

from data.arguments import AugmentationArguments
from models.arguments import LossArguments
from training.arguments import Arguments
from training.run_arguments import OptimizationArguments

# Besides those of augmentation, loss and optimisation, what says how to train; the more common of the Trainer's.
OF_TRAINING = """single_logit drop_path_rate check_data num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim weight_decay max_grad_norm label_smoothing_factor
    per_device_train_batch_size gradient_accumulation_steps activation_checkpointing eval_strategy eval_steps
    eval_delay eval_on_start save_strategy save_steps save_total_limit load_best_model_at_end metric_for_best_model
    dataloader_drop_last train_minutes""".split()
# Schedules that know no warm-up, and those that take no options.
WITHOUT_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
WITHOUT_OPTIONS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
BY_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def idle_flags(args: Arguments) -> list[str]:
    """One sentence for each reason for which flags that were given have no effect; those of a group together."""
    training, run = args.training, args.run
    groups = (AugmentationArguments, LossArguments, OptimizationArguments)
    of_training = [field.name for group in groups for field in fields(group)] + OF_TRAINING
    trains = training.do_train
    evaluates_while_training = trains and training.eval_strategy != IntervalStrategy.NO
    evaluates = training.do_eval or evaluates_while_training or run.eval_on_train
    schedule = training.lr_scheduler_type
    # (flags, whether they have an effect, why they have none)
    rules = [
        (of_training, trains, "nothing is trained; add --do_train"),
        (["minutes"], False, "it is for a plan, which --config auto makes; --train_minutes ends training in time"),
        (["commercial"], False, "it is for a plan, which --config auto makes"),
        (["max_train_samples"], trains or run.eval_on_train, "training images are not used"),
        (["max_eval_samples"], evaluates or training.do_predict, "nothing is evaluated or predicted"),
        (["max_predict_samples"], training.do_predict, "nothing is predicted; add --do_predict"),
        (["per_device_eval_batch_size"], evaluates, "nothing is evaluated"),
        (["eval_delay", "eval_steps"], not trains or evaluates_while_training, "--eval_strategy is no"),
        (
            ["eval_steps"],
            not evaluates_while_training or training.eval_strategy == IntervalStrategy.STEPS,
            f"--eval_strategy is {training.eval_strategy.value}; add --eval_strategy steps",
        ),
        (
            ["save_steps"],
            not trains or training.save_strategy == "steps",
            f"--save_strategy is {training.save_strategy.value}; add --save_strategy steps",
        ),
        (
            ["logging_steps"],
            training.logging_strategy == IntervalStrategy.STEPS,
            f"--logging_strategy is {training.logging_strategy.value}",
        ),
        (["save_total_limit", "save_only_model"], training.save_strategy != "no", "--save_strategy is no"),
        (
            ["metric_for_best_model", "greater_is_better"],
            not trains
            or training.load_best_model_at_end
            or training.save_strategy == "best"
            or schedule in BY_METRIC
            or args.optimization.early_stopping_patience is not None,
            "no best checkpoint is looked for; see --load_best_model_at_end",
        ),
        (
            ["load_best_model_at_end"],
            evaluates_while_training,
            "--eval_strategy is no, so nothing tells which is the best",
        ),
        (["num_train_epochs"], training.max_steps < 0, f"--max_steps {training.max_steps} decides"),
        (
            ["warmup_steps"],
            schedule not in WITHOUT_WARMUP,
            f"--lr_scheduler_type {schedule.value} knows no warm-up; constant_with_warmup does",
        ),
        (
            ["lr_scheduler_kwargs"],
            schedule not in WITHOUT_OPTIONS,
            f"--lr_scheduler_type {schedule.value} takes no options",
        ),
        (["fp16"], training.device.type != "cpu", "a CPU computes in float32; --bf16 is what it can do instead"),
        (["sync_bn"], training.world_size > 1, "there is one process, whose images count together anyway"),
        (["ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb"], training.world_size > 1, "there is one process"),
        (["dataset_config_name"], not args.dataset.dataset_dir, "a folder (--dataset_dir) has no configurations"),
        (
            ["hub_model_id", "hub_private_repo", "hub_revision"],
            training.push_to_hub,
            "nothing is published; add --push_to_hub",
        ),
        (["ignore_data_skip"], training.resume_from_checkpoint, "nothing is resumed"),
        (
            ["activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"],
            training.activation_checkpointing,
            "add --activation_checkpointing",
        ),
        (["logging_nan_inf_filter"], False, "a loss that is not finite stops the run; see --skip_nonfinite"),
        (["average_tokens_across_devices"], False, "the loss is always the mean over the pixels of all processes"),
    ]
    values = {name: getattr(group, name) for group in args.groups() for name in args.given if hasattr(group, name)}
    if "load_best_model_at_end" in values:  # which is switched off where it can have no effect
        values["load_best_model_at_end"] = training.best_was_asked_for
    off = {
        name for name, value in values.items() if value is None or value is False or value == "no"
    }  # ask for nothing
    said, sentences = set(), []
    for names, has_effect, reason in rules:
        idle = [name for name in args.given if name in names and name not in said and name not in off]
        if idle and not has_effect:
            said.update(idle)
            have = "has" if len(idle) == 1 else "have"
            sentences.append(f"{', '.join(f'--{name}' for name in idle)} {have} no effect: {reason}")
    return sentences
