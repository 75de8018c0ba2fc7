"""The flags of training: this project's defaults for the Trainer's own."""

import logging
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

logger = logging.getLogger(__name__)


def _default(name: str, value):
    """The Trainer's own field with another default: name, help text and type conversion stay its own."""
    return field(default=value, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


@dataclass
class SegmentationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with this project's defaults; no field is added.

    Evaluation during training needs `do_train=True`, also where `trainer.train()` is called from Python.
    """

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
    # Once, with card and results; see `reports.publishing.PUBLISHED_FILES`.
    hub_strategy: str = _default("hub_strategy", "end")
    # Every parameter takes part in every step, so DDP need not search for those that do not.
    ddp_find_unused_parameters: bool | None = _default("ddp_find_unused_parameters", False)
    # torch warns of it where there is nothing to pin memory for.
    dataloader_pin_memory: bool = _default("dataloader_pin_memory", torch.accelerator.is_available())
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
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        super().__post_init__()
        if self.n_gpu > 1:
            # One process drives one GPU. torch's DataParallel would be slow and scale the loss wrongly; the Trainer
            # has no public switch for it and sets the same attribute itself for model parallelism.
            logger.warning(
                f"{self.n_gpu} GPUs are visible and one is used; `accelerate launch --config_file "
                "accelerate_config.yaml run_segmentation.py …` uses all of them"
            )
            self._n_gpu = 1
