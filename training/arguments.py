"""The Trainer's flags with this project's defaults, and all groups of flags of `run_segmentation.py` together.

Each group checks itself; what only several of them show together is checked by `Arguments`.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_torch_tf32_available

from cli_utils import UserError, given_flags, keep_secret, parse_arguments, write_text
from data.arguments import AugmentationArguments, ClassArguments, DatasetArguments, EvaluationArguments
from models.arguments import LossArguments, ModelArguments
from training.optimizer import check_schedule, check_stock_schedule
from training.run_arguments import (
    EXCLUSIVE,
    NOTHING_TO_DO,
    OptimizationArguments,
    RunArguments,
    check_limits,
    without_auto,
)
from training.workers import default_workers

logger = logging.getLogger(__name__)

ARGUMENTS_FILE, PLAN_FILE = "arguments.yaml", "plan.yaml"
SECRETS = ("hub_token",)
# What is meant for one command and not for the next one that takes its arguments from the file.
FOR_ONCE = ("resume_from_checkpoint", "overwrite_output_dir", "minutes", "commercial")


def _default(name: str, value):
    """The Trainer's own field with another default: name, help text and type conversion stay its own."""
    return field(default=value, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


def _path(name: str, metavar: str = "DIR"):
    """The Trainer's own field, which takes a file or folder, see `cli_utils.is_path`."""
    own = TrainingArguments.__dataclass_fields__[name]
    return field(default=own.default, metadata={**own.metadata, "metavar": metavar})


@dataclass
class SegmentationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with this project's defaults; no field is added.

    Evaluation during training needs `do_train=True`, also where `trainer.train()` is called from Python.
    """

    output_dir: str | None = _path("output_dir")
    resume_from_checkpoint: str | None = _path("resume_from_checkpoint")
    deepspeed: dict | str | None = _path("deepspeed", "FILE")
    # AdamW at 6e-5: SegFormer paper, section 4.1.
    learning_rate: float = _default("learning_rate", 6e-5)
    per_device_train_batch_size: int = _default("per_device_train_batch_size", 2)
    per_device_eval_batch_size: int = _default("per_device_eval_batch_size", 2)
    eval_strategy: IntervalStrategy | str = _default("eval_strategy", "epoch")
    save_strategy: str = _default("save_strategy", "epoch")
    # The best checkpoint is kept beside the newest.
    save_total_limit: int | None = _default("save_total_limit", 1)
    load_best_model_at_end: bool = _default("load_best_model_at_end", True)
    metric_for_best_model: str | None = _default("metric_for_best_model", "eval_mean_iou")
    logging_steps: float = _default("logging_steps", 10)
    # A loss that is not finite is no loss of zero; `training.divergence` deals with it.
    logging_nan_inf_filter: bool = _default("logging_nan_inf_filter", False)
    # Once, with card and results; see `reports.publishing.PUBLISHED_FILES`.
    hub_strategy: str = _default("hub_strategy", "end")
    # Every parameter takes part in every step, so DDP need not search for those that do not.
    ddp_find_unused_parameters: bool | None = _default("ddp_find_unused_parameters", False)
    # torch warns of it where there is nothing to pin memory for.
    dataloader_pin_memory: bool = _default("dataloader_pin_memory", torch.accelerator.is_available())
    # None: by the rule of `training.workers`.
    dataloader_num_workers: int | None = _default("dataloader_num_workers", None)
    # Evaluation streams counts; the dataset hands out exactly what the model and the loss need.
    batch_eval_metrics: bool = _default("batch_eval_metrics", True)
    remove_unused_columns: bool = _default("remove_unused_columns", False)
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata=TrainingArguments.__dataclass_fields__["label_names"].metadata
    )

    def __post_init__(self):
        if not self.do_train:
            # The Trainer would switch `do_eval` on for any evaluation strategy, even for `--do_predict` alone.
            self.eval_strategy = "no"
        self.best_was_asked_for = bool(self.load_best_model_at_end)
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        check_limits(self)
        self._check_features()
        self._choose_workers()
        self._choose_precision()
        super().__post_init__()
        # Every run does what it is for (`training.interruption`). The Trainer's own way saves in the middle of a step,
        # resumes differently from there, and lets the run go on as if it were finished.
        self.enable_jit_checkpoint = False
        if self.push_to_hub and self.hub_strategy != "end":
            raise UserError(
                f"--hub_strategy {self.hub_strategy.value} would upload pickled training arguments with every "
                "checkpoint; the model, its card and its results are pushed once, at the end (--hub_strategy end)"
            )
        if self.lr_scheduler_type == SchedulerType.POLYNOMIAL:
            check_schedule(self.learning_rate, self.lr_scheduler_kwargs or {})
        else:
            check_stock_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs)
        if self.n_gpu > 1:
            # One process drives one GPU. torch's DataParallel would be slow and scale the loss wrongly; the Trainer
            # has no public switch for it and sets the same attribute itself for model parallelism.
            logger.warning(
                f"{self.n_gpu} GPUs are visible and one is used; `accelerate launch --config_file "
                "accelerate_config.yaml run_segmentation.py …` uses all of them"
            )
            self._n_gpu = 1

    def _device_type(self) -> str:
        """As the Trainer will choose it, which it does after it has looked at the workers."""
        accelerator = None if self.use_cpu else torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type

    def _choose_workers(self) -> None:
        if self.dataloader_num_workers is None:
            batch_size = max(self.per_device_train_batch_size, self.per_device_eval_batch_size)
            self.dataloader_num_workers = default_workers(self._device_type(), batch_size)
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0

    def _choose_precision(self) -> None:
        if self.tf32 is None and self.do_train and self._device_type() == "cuda":
            # True or left open: "false" would also take cuDNN's own default away.
            self.tf32 = is_torch_tf32_available() or None
        if self.tf32 and not is_torch_tf32_available():
            raise UserError("--tf32 is for NVIDIA's GPUs since Ampere (2020), and there is none here; leave it out")

    def _check_features(self) -> None:
        """Raises UserError for what the Trainer offers and cannot do here, or fails in long after the start."""
        for name in ("use_liger_kernel", "neftune_noise_alpha"):
            if getattr(self, name):
                raise UserError(f"--{name} is for language models; leave it out")
        if not self.batch_eval_metrics or self.eval_use_gather_object:
            raise UserError(
                "evaluation counts the pixels of every batch in a way of its own: leave out --batch_eval_metrics and "
                "--eval_use_gather_object"
            )
        if self.dataloader_num_workers == 0 or (self.dataloader_num_workers is None and self._device_type() == "cpu"):
            for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
                if getattr(self, name):
                    raise UserError(
                        f"--{name} is about workers, of which there are none: add --dataloader_num_workers 2"
                    )
        for option in filter(None, (self.optim_args or "").replace(" ", "").split(",")):
            if "=" not in option:
                raise UserError(
                    f"--optim_args holds {option!r}; it takes name=value, several with commas between them"
                )
        asked = self.report_to if isinstance(self.report_to, list) else [self.report_to]
        for name in set(asked) - {None, "none", "all"} - set(get_available_reporting_integrations()):
            raise UserError(
                f"--report_to {name}: there is no such tracker, or it is not installed (pip install {name}); "
                "--report_to none logs to the terminal alone"
            )


def describe_precision(args: TrainingArguments) -> str:
    """One line for the log of a run that trains on an accelerator: what was chosen, and by which flags otherwise."""
    half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    number = f"{half} where it is safe" if half else "float32 (--bf16 is faster where the GPU has it)"
    products = "; products of matrices of float32 in TF32 (--tf32 false)" if args.tf32 else ""
    optimizer = getattr(args.optim, "value", args.optim)
    return f"training computes in {number}{products}; optimizer {optimizer} (--optim)"


SCATTERING = ("FSDP", "DeepSpeed ZeRO-3")


def engine_of(training: TrainingArguments) -> str:
    """What scatters the model over processes, as the flags say or `accelerate launch` does: "FSDP", "DeepSpeed", its
    "DeepSpeed ZeRO-3", or "" for nothing."""
    if training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "FSDP"
    if training.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        plugin = getattr(training, "deepspeed_plugin", None)
        stage = plugin.zero_stage if plugin else int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0"))
        return "DeepSpeed ZeRO-3" if stage == 3 else "DeepSpeed"
    return ""


@dataclass
class Arguments:
    """All flags of `run_segmentation.py`, by topic.

    Raises:
        UserError: groups that do not fit together.
    """

    dataset: DatasetArguments
    classes: ClassArguments
    augmentation: AugmentationArguments
    evaluation: EvaluationArguments
    model: ModelArguments
    loss: LossArguments
    optimization: OptimizationArguments
    run: RunArguments
    training: SegmentationTrainingArguments
    given: tuple[str, ...] = ()  # names of the flags that the command line or the file of `--config` sets
    token: str | None = None  # of `--hub_token`, from which it is taken away: the Trainer pickles its arguments
    is_to_be_planned: bool = False  # `--config auto`: what no flag says is for `training.plan_file` to decide

    @classmethod
    def parse(
        cls, argv: list[str] | None = None, description: str | None = None, plan: str | Path | None = None
    ) -> "Arguments":
        """From the command line, or `argv`, and the YAML file of `--config`.

        plan: the file to read for `--config auto`; None: there is none yet.
        """
        types, argv = tuple(GROUPS.values()), list(sys.argv[1:] if argv is None else argv)
        wants_plan, argv = without_auto(argv)
        if plan is not None and wants_plan:
            wants_plan, argv = False, ["--config", str(plan), *argv]
        groups = parse_arguments(types, argv, description, EXCLUSIVE)
        parsed = dict(zip(GROUPS, groups, strict=True))
        run, training = parsed["run"], parsed["training"]
        if wants_plan and training.resume_from_checkpoint:
            kept = Path(training.output_dir or "", PLAN_FILE)
            if not kept.is_file():
                raise UserError(f"--config auto --resume_from_checkpoint goes on with {kept}, which is not there")
            return cls.parse(["--config", "auto", *argv], description, kept)
        asked = [f"--{name}" for name in ("do_train", "do_eval", "do_predict") if getattr(training, name)]
        if wants_plan and asked and not training.do_train:
            raise UserError(f"--config auto plans training: add --do_train, or leave out {' and '.join(asked)}")
        if wants_plan and not asked:
            argv += ["--do_train", "--do_eval", "--do_predict"]
        elif run.trains(training):
            argv.append("--do_train")
        if argv[-1:] in (["--do_train"], ["--do_predict"]):
            # Again, as the Trainer's arguments draw their conclusions from it.
            groups = parse_arguments(types, argv, description, EXCLUSIVE)
        return cls(*groups, given=given_flags(types, argv), is_to_be_planned=wants_plan)

    def __post_init__(self):
        self.token, self.training.hub_token = self.training.hub_token or self.token, None
        keep_secret(self.token)
        self.dataset.source  # noqa: B018 - raises where there is no data
        self._check_tasks()
        if self.dataset.streaming:
            self._check_streaming()
        if self.optimization.encoder_warmup_steps and self.training.lr_scheduler_type != SchedulerType.POLYNOMIAL:
            raise UserError("--encoder_warmup_steps is a part of --lr_scheduler_type polynomial: add that")
        if self.model.from_scratch and (self.optimization.freeze_encoder or self.optimization.lora_r):
            raise UserError("--freeze_encoder and --lora_r keep a pretrained encoder; --from_scratch has none")
        if self.training.label_smoothing_factor and "ce" not in self.loss.names:
            raise UserError(
                f"--label_smoothing_factor applies to cross-entropy, which --loss {self.loss.loss} does not name"
            )
        engine = engine_of(self.training)
        if engine and self.optimization.ema_decay:
            raise UserError("--ema_decay averages whole weights, which FSDP and DeepSpeed scatter; leave it out")
        if engine in SCATTERING:
            self._check_scattered(engine)
        if engine == "FSDP" and self.training.device.type == "cpu":
            logger.warning("accelerate does not scatter over CPUs: each process has the whole model, as without FSDP")
        if self.optimization.skip_nonfinite and "DeepSpeed" in engine:
            raise UserError("--skip_nonfinite cannot hold back the steps of DeepSpeed; leave it out")
        if self.optimization.sync_bn and self.training.world_size > 1 and self.training.device.type == "cpu":
            raise UserError("--sync_bn needs GPUs; on several CPU processes leave it out")
        if self.training.do_train and self.training.save_only_model:
            logger.warning("--save_only_model: a run that is interrupted cannot go on from these checkpoints")
        if self.run.train_minutes and self.optimization.mask_annealing_starts:
            raise UserError(
                "--train_minutes may change the number of steps, which --mask_annealing_starts and _ends count on: "
                "leave out either"
            )
        patience = self.optimization.early_stopping_patience
        if patience and self.training.do_train and not self.training.load_best_model_at_end:
            raise UserError(
                "--early_stopping_patience needs evaluations (--eval_strategy) and --load_best_model_at_end"
            )

    def _check_tasks(self) -> None:
        training = self.training
        if not (training.do_train or training.do_eval or training.do_predict or self.run.eval_on_train):
            raise UserError(NOTHING_TO_DO)
        if training.do_train:
            return
        needs_training = {
            "resume_from_checkpoint": training.resume_from_checkpoint,
            "push_to_hub": training.push_to_hub,
            "from_scratch": self.model.from_scratch,
            "backbone": self.model.backbone,
        }
        for name, value in needs_training.items():
            if value:
                raise UserError(f"--{name} belongs to a training run: add --do_train")
        if not self.model.model_name_or_path:
            raise UserError("without --do_train, --model_name_or_path must name the trained model to evaluate")

    def _check_scattered(self, engine: str) -> None:
        """No process has the whole model, as these need it."""
        flags = {
            "do_predict": (self.training.do_predict, "predict afterwards, with predict.py on the saved model"),
            "dry_run": (self.run.dry_run, "try it out without the launcher"),
        }
        for name, (is_given, instead) in flags.items():
            if is_given:
                raise UserError(f"--{name} does not go with {engine}, which scatters the weights: {instead}")

    def _check_streaming(self) -> None:
        if self.training.max_steps < 1:
            raise UserError("--streaming does not know how many images there are: give --max_steps")
        if (self.training.do_eval or self.training.do_predict) and self.run.max_eval_samples is None:
            raise UserError(
                "--streaming evaluates the first images of the split: say how many with --max_eval_samples"
            )
        if self.run.preview or self.run.eval_on_train:
            raise UserError("--streaming keeps no training images: leave out --preview and --eval_on_train")
        if self.loss.class_weights == "auto":
            raise UserError("--class_weights auto counts all pixels first, which --streaming cannot: give a file")
        if self.augmentation.rare_class_crops:
            raise UserError("--rare_class_crops counts all pixels first, which --streaming cannot: leave it out")

    def save(self, output_dir: str | Path) -> None:
        """Writes `arguments.yaml`: every flag that was given, but for tokens, as `--config` takes it."""
        given = [name for name in self.given if name not in FOR_ONCE]
        content = {name: value for name, value in self.values().items() if name in given}
        write_text(Path(output_dir, ARGUMENTS_FILE), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def values(self) -> dict:
        """Name → value, as YAML and JSON can hold it, of every flag but tokens."""
        fields = [(group, name) for group in self.groups() for name, f in group.__dataclass_fields__.items() if f.init]
        values = {name: _plain(getattr(group, name)) for group, name in fields if name not in SECRETS}
        # The Trainer makes an empty list of "none", and no flag takes one.
        return values | {"report_to": values["report_to"] or "none"}

    def groups(self) -> list:
        return [getattr(self, name) for name in GROUPS]


def _plain(value):
    """What YAML can hold: enumerations by their values, paths as text."""
    value = getattr(value, "value", value)
    return value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)


_NO_GROUPS = ("given", "token", "is_to_be_planned")
GROUPS = {name: kind for name, kind in Arguments.__annotations__.items() if name not in _NO_GROUPS}
