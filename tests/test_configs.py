"""The recipe files: valid, complete, with the published batch, and every value with its source."""

import re
from pathlib import Path

import pytest
import yaml

from data.preprocessing import EvaluationProtocol
from training.arguments import Arguments

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = sorted(REPOSITORY.glob("configs/*.yaml"))
OUR_OWN = {"output_dir", "do_train", "do_eval", "do_predict", "eval_strategy", "save_strategy"}
# Published variant → mIoU, single scale (SegFormer paper, table 1).
PUBLISHED = {
    "ade20k": {"b0": 37.4, "b1": 42.2, "b2": 46.5, "b3": 49.4, "b4": 50.3, "b5": 51.0},
    "cityscapes": {"b0": 76.2, "b1": 78.5, "b2": 81.0, "b3": 81.7, "b4": 82.3, "b5": 82.4},
}
VARIANTS = [(data, size) for data, scores in PUBLISHED.items() for size in scores]


# Recipes of other models → what is said of the score to reach.
OTHER_MODELS = {
    "ade20k_swin_upernet": "Swin-T 44.5, Swin-S 47.6, Swin-B 48.1",
    "ade20k_convnext_upernet": "ConvNeXt-T 46.1, ConvNeXt-S 48.6, ConvNeXt-B 48.7",
    "ade20k_dinov2_upernet": "No published figure",
    "ade20k_dinov3_upernet": "No published figure",
    "ade20k_eomt_dinov3": "EoMT-L 59.5",
    "cityscapes_eomt_dinov3": "No published figure of its authors over DINOv3",
    "ade20k_mask2former_swin": "Swin-T 47.7, Swin-S 51.3, Swin-B 53.9, Swin-L 56.1",
    "cityscapes_mask2former_swin": "Swin-T 82.1, Swin-S 82.6",
}


def ids(path):
    return path.stem


def recipe(data, size):
    """File of a published variant."""
    return REPOSITORY / "configs" / ("ade20k_mit_b5.yaml" if (data, size) == ("ade20k", "b5") else f"{data}.yaml")


def launched(data, size):
    """Arguments of a published variant, from the command in the file's first lines."""
    text = recipe(data, size).read_text(encoding="utf-8")
    header = re.sub(r"^# *", "", text.partition("model_name_or_path:")[0], flags=re.MULTILINE)
    (config,) = re.findall(r"run_segmentation\.py \\\n--config (\S+)$", header, re.MULTILINE)
    other = re.findall(r"^--model_name_or_path (\S+) --output_dir (\S+)$", header, re.MULTILINE)
    flags = []
    if (data, size) != ("ade20k", "b5"):
        assert other == [("nvidia/mit-b3", f"outputs/{data}_mit_b3")]
        flags = ["--model_name_or_path", f"nvidia/mit-{size}", "--output_dir", f"outputs/{data}_mit_{size}"]
    return parse(REPOSITORY / config, *(flags if size != "b0" else []))


def parse(path, *flags):
    data = ["--dataset_dir", "my_photos"] if path.stem == "finetune_small_dataset" else []
    return Arguments.parse(["--config", str(path), "--use_cpu", *data, *flags])


def test_files():
    assert {path.stem for path in CONFIGS} == {
        "ade20k",
        "ade20k_mit_b5",
        "cityscapes",
        "finetune_small_dataset",
        "toy_overfit",
        *OTHER_MODELS,
    }


@pytest.mark.parametrize(("data", "size"), VARIANTS)
def test_every_published_variant_is_named_with_its_score(data, size):
    text = recipe(data, size).read_text(encoding="utf-8")
    (listed,) = re.findall(r"^# mIoU, single scale \(SegFormer paper, table 1\): (.*)$", text, re.MULTILINE)
    assert f"{size.upper()} {PUBLISHED[data][size]}" in listed.split(", ")
    (row,) = re.findall(rf"^\| `{data}[^|]*\|(.*)\|$", (REPOSITORY / "docs/training.md").read_text(), re.MULTILINE)
    assert [float(score) for score in row.split("|")] == list(PUBLISHED[data].values())


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_it_parses_and_its_flags_fit_together(path):
    assert parse(path).training.do_train


@pytest.mark.parametrize(("data", "size"), VARIANTS)
def test_a_recipe_is_the_published_one(data, size):
    """Values of facts: 160,000 iterations, batch 16 (ADE20K) or 8 (Cityscapes) on 8 GPUs, and so on."""
    args = launched(data, size)
    training, augmentation = args.training, args.augmentation
    assert args.model.model_name_or_path == f"nvidia/mit-{size}"
    assert training.output_dir == f"outputs/{data}_mit_{size}"
    assert (training.max_steps, training.get_warmup_steps(160_000)) == (160_000, 1500)
    assert training.learning_rate == 6e-5 and training.weight_decay == 0.01
    assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.999)
    assert training.max_grad_norm == 0 and training.label_smoothing_factor == 0
    assert training.lr_scheduler_type == "polynomial" and not training.lr_scheduler_kwargs
    assert args.optimization.head_lr_multiplier == 10 and args.optimization.sync_bn
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert per_step * 8 == {"ade20k": 16, "cityscapes": 8}[data]
    assert args.evaluation.image_size == (1024 if data == "cityscapes" else 640 if size == "b5" else 512)
    assert augmentation.scale_range == [0.5, 2.0] and augmentation.photometric_distortion
    assert (augmentation.max_class_share, augmentation.flip_probability) == (0.75, 0.5)
    # Checkpoints to resume from, and none chosen by its score.
    assert not training.load_best_model_at_end and training.save_steps == 4000


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_say_how_they_are_launched_and_what_to_reach(name):
    path = REPOSITORY / "configs" / f"{name}.yaml"
    text, args = path.read_text(encoding="utf-8"), parse(path)
    assert OTHER_MODELS[name] in text and f"--config configs/{name}.yaml" in text
    assert args.training.output_dir.startswith(f"outputs/{name.split('_')[0]}_")
    per_step = args.training.per_device_train_batch_size * args.training.gradient_accumulation_steps
    assert f"8 GPUs, batch {8 * per_step} = 8 x {per_step}" in text
    assert not args.training.load_best_model_at_end


def test_cityscapes_images_are_scored_at_their_own_size_by_three_windows():
    evaluation = parse(recipe("cityscapes", "b0")).evaluation
    protocol = EvaluationProtocol(short_side=evaluation.image_size, **evaluation.options(evaluation.image_size))
    assert protocol.input_size(1024, 2048) == (1024, 2048)
    assert protocol.windows(1024) == [slice(0, 1024)]
    assert protocol.windows(2048) == [slice(0, 1024), slice(768, 1792), slice(1024, 2048)]


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "toy_overfit"], ids=ids)
def test_every_value_has_its_source(path):
    text = path.read_text(encoding="utf-8")
    listed = set(re.findall(r"^# \[(\d)\] [\w-]+/[\w-]+, \S+\.(?:py|yaml|md)$", text, re.MULTILINE))
    for key in yaml.safe_load(text):
        (line,) = re.findall(rf"^{key}: (.*)$", text, re.MULTILINE)
        cited = re.search(r" # (?:\[(\d)\]|ours: )", line)
        assert key in OUR_OWN or cited, f"{key} has no source"
        assert not cited or cited[1] is None or cited[1] in listed, f"{key} cites a source that is not listed"
    assert listed == set(re.findall(r": .* # \[(\d)\]", text)), "a listed source is not cited"


def test_variants_differ_in_name_and_size_alone():
    contents = [yaml.safe_load(recipe("ade20k", size).read_text(encoding="utf-8")) for size in ("b0", "b5")]
    for content in contents:
        for key in ("model_name_or_path", "output_dir", "image_size"):
            del content[key]
    assert contents[0] == contents[1]
