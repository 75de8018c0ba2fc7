"""The recipe files: valid, complete, with the published batch, and every value with its source."""

import re
from pathlib import Path

import pytest
import yaml

from cli_utils import parse_arguments
from data.preprocessing import EvaluationProtocol
from run_segmentation import DataArguments, ModelArguments
from training.arguments import SegmentationTrainingArguments
from training.optimizer import check_schedule

CONFIGS = sorted(Path(__file__).resolve().parents[1].glob("configs/*.yaml"))
RECIPES = [path for path in CONFIGS if path.name.startswith(("ade20k", "cityscapes"))]
OUR_OWN = {"output_dir", "do_train", "do_eval", "do_predict", "eval_strategy", "save_strategy"}


def ids(path):
    return path.stem


def parse(path, *flags):
    types = (ModelArguments, DataArguments, SegmentationTrainingArguments)
    return parse_arguments(types, ["--config", str(path), "--use_cpu", *flags])


def test_every_published_variant_is_there():
    expected = {f"{data}_mit_b{n}" for data in ("ade20k", "cityscapes") for n in range(6)}
    assert {path.stem for path in CONFIGS} == expected | {"finetune_small_dataset", "toy_overfit"}


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_it_parses_and_its_schedule_is_valid(path):
    _, _, training_args = parse(path)
    assert training_args.do_train
    check_schedule(training_args)


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_a_recipe_is_the_published_one(path):
    """Values of facts: 160,000 iterations, batch 16 (ADE20K) or 8 (Cityscapes) on 8 GPUs, and so on."""
    model_args, data_args, training_args = parse(path)
    ade20k = path.stem.startswith("ade20k")
    assert model_args.model_name_or_path == f"nvidia/mit-b{path.stem[-1]}"
    assert training_args.output_dir == f"outputs/{path.stem}"
    assert (training_args.max_steps, training_args.get_warmup_steps(160_000)) == (160_000, 1500)
    assert training_args.learning_rate == 6e-5 and training_args.weight_decay == 0.01
    assert (training_args.adam_beta1, training_args.adam_beta2) == (0.9, 0.999)
    assert training_args.max_grad_norm == 0 and training_args.label_smoothing_factor == 0
    assert training_args.lr_scheduler_type == "polynomial" and not training_args.lr_scheduler_kwargs
    assert model_args.head_lr_multiplier == 10 and model_args.sync_bn
    per_step = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    assert per_step * 8 == (16 if ade20k else 8)
    assert data_args.image_size == (1024 if not ade20k else 640 if path.stem.endswith("b5") else 512)
    assert (data_args.scale_range, data_args.max_class_share, data_args.flip_probability) == ([0.5, 2.0], 0.75, 0.5)
    assert data_args.photometric_distortion
    # Checkpoints to resume from, and none chosen by its score.
    assert not training_args.load_best_model_at_end and training_args.save_steps == 4000


def test_cityscapes_images_are_scored_at_their_own_size_by_three_windows():
    _, data_args, _ = parse(next(path for path in CONFIGS if path.stem == "cityscapes_mit_b0"))
    protocol = EvaluationProtocol(short_side=data_args.image_size, **data_args.options())
    assert protocol.input_size(1024, 2048) == (1024, 2048)
    assert protocol.windows(1024) == [slice(0, 1024)]
    assert protocol.windows(2048) == [slice(0, 1024), slice(768, 1792), slice(1024, 2048)]


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "toy_overfit"], ids=ids)
def test_every_value_has_its_source(path):
    text = path.read_text(encoding="utf-8")
    listed = set(re.findall(r"^# \[(\d)\] NVlabs/SegFormer, local_configs/\S+\.py$", text, re.MULTILINE))
    for key in yaml.safe_load(text):
        (line,) = re.findall(rf"^{key}: (.*)$", text, re.MULTILINE)
        cited = re.search(r" # (?:\[(\d)\]|ours: )", line)
        assert key in OUR_OWN or cited, f"{key} has no source"
        assert not cited or cited[1] is None or cited[1] in listed, f"{key} cites a source that is not listed"
    assert listed == set(re.findall(r": .* # \[(\d)\]", text)), "a listed source is not cited"


def test_variants_differ_in_name_size_and_score_alone():
    for data in ("ade20k", "cityscapes"):
        contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RECIPES if path.stem.startswith(data)]
        for content in contents:
            for key in ("model_name_or_path", "output_dir", "image_size"):
                del content[key]
        assert all(content == contents[0] for content in contents)
