"""Every architecture through the whole script: two steps, evaluation, prediction, saving, reloading, going on."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.architectures import PATCH_14, STAGES, tiny_configs, universal_configs
from factories.runs import flags_for, make_dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, PvtV2Config, PvtV2Model, UperNetConfig, pipeline

import predict
import run_segmentation
import toy_dataset
from metrics_utils import confusion_matrix
from models import backbones


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", train=3, validation=2)


def train(data, model_flags, output_dir, *options):
    argv = [*flags_for(data, "")[2:], *model_flags, "--do_train", "--output_dir", str(output_dir), "--max_steps", "2"]
    brief = ["--no_check_data", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2"]
    return run_segmentation.main([*argv, *brief, "--eval_strategy", "no", *options])


def run_through(data, model_flags, folder):
    """Two steps, evaluation and prediction. A run that goes on from the first step ends bit for bit alike, and the
    saved folder predicts what was scored. Returns the configuration that was saved."""
    metrics = train(data, model_flags, folder / "out", "--do_eval", "--do_predict")
    again = train(data, model_flags, folder / "resumed", "--resume_from_checkpoint", str(folder / "out/checkpoint-1"))
    assert again["train_loss"] == metrics["train_loss"]
    first, resumed = (load_file(folder / name / "model.safetensors") for name in ("out", "resumed"))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in first.items())
    images = sorted((data / "val" / "images").iterdir())
    argv = ["--model", str(folder / "out"), "--output_dir", str(folder / "predicted"), "--image_size", "64"]
    predict.main([*argv, "--device", "cpu", *map(str, images)])
    total = np.zeros((3, 3), np.int64)
    for image in images:
        one, other = (np.array(Image.open(folder / name / image.name)) for name in ("out/predictions", "predicted"))
        assert (one == other).all()
        total += confusion_matrix(other, np.array(Image.open(data / "val" / "masks" / image.name)), 3).numpy()
    assert (np.load(folder / "out" / "confusion_matrix.npy") == total).all()
    return json.loads((folder / "out" / "config.json").read_text())


@pytest.mark.parametrize("name", tiny_configs())
def test_every_type_of_semantic_segmentation(name, data, tmp_path):
    tiny_configs()[name].save_pretrained(tmp_path / "model")
    run_through(data, ["--from_scratch", str(tmp_path / "model")], tmp_path)


@pytest.mark.parametrize("name", universal_configs())
def test_every_type_of_universal_segmentation(name, data, tmp_path):
    universal_configs()[name].save_pretrained(tmp_path / "model")
    options = ["--ema_decay", "0.5"] if name == "eomt" else ["--gradient_accumulation_steps", "2"]
    run_through(data, ["--from_scratch", str(tmp_path / "model"), *options], tmp_path)
    segmenter = pipeline("image-segmentation", model=str(tmp_path / "out"), subtask="semantic")
    segments = segmenter(str(data / "val" / "images" / "val_0.png"))
    assert segments and segments[0]["mask"].size == (64, 40)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "rate"), [("eomt", 400, "2e-3"), ("mask2former", 600, "1e-3")])
def test_a_tiny_model_of_masks_learns_pictures_of_the_toy_dataset_by_heart(name, steps, rate, tmp_path):
    """The commands of docs/models.md, with its figures as what is to be reached, but for the last tenths."""
    toy_dataset.main(["--output_dir", str(tmp_path / "toy")])
    configs = Path(run_segmentation.__file__).parent / "configs"
    argv = ["--config", str(configs / "toy_overfit.yaml"), "--from_scratch", str(configs / f"toy_{name}.json")]
    argv += ["--dataset_dir", str(tmp_path / "toy"), "--output_dir", str(tmp_path / "out"), "--image_size", "96"]
    argv += ["--max_train_samples", "4", "--per_device_train_batch_size", "4", "--no_check_data"]
    argv += ["--max_steps", str(steps), "--learning_rate", rate, "--eval_strategy", "no", "--do_predict", "false"]
    assert run_segmentation.main(argv)["train_mean_iou"] > 0.6


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Dinov2Model(Dinov2Config(**PATCH_14)), ["--head", "upernet", "--layer_decay", "0.8"]),
        (Dinov2Model(Dinov2Config(**PATCH_14)), ["--head", "dpt", "--lora_r", "2"]),
        (PvtV2Model(PvtV2Config(**STAGES, num_attention_heads=[1] * 4)), ["--head", "upernet", "--freeze_encoder"]),
    ],
)
def test_backbones_with_a_fresh_head(model, options, data, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(backbones, "UperNetConfig", partial(UperNetConfig, hidden_size=16))
    monkeypatch.setattr(backbones, "Tipsv2DptConfig", partial(backbones.Tipsv2DptConfig, **{"fusion_hidden_size": 8}))
    config = run_through(data, ["--backbone", str(tmp_path / "model"), *options], tmp_path)
    assert config["backbone_config"]["model_type"] == model.config.model_type
