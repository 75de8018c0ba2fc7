"""The model card: metadata that the Hub reads, text from the files of a run, and nothing private or harmful in it."""

import html
import json
import re

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from data.classes import ClassMap
from metrics_utils import save_confusion
from reports.model_card import write_model_card
from reports.publishing import PUBLISHED_FILES

METRICS = {
    "eval_mean_iou": 0.5,
    "eval_mean_accuracy": 0.75,
    "eval_overall_accuracy": 0.8,
    "eval_loss": 1.25,
    "eval_protocol": "short side 512; whole image",
}


def leave(folder, arguments=None, metrics=None, steps=None, class_map=None, names=None, **results):
    """Writes the files of a run from which the card is made."""
    if arguments is not None:
        (folder / "arguments.yaml").write_text(yaml.safe_dump(arguments))
    if metrics is not None:
        (folder / "eval_results.json").write_text(json.dumps(metrics))
    if steps is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": []}))
        (folder / "train_results.json").write_text(json.dumps({"train_loss": 0.5} | results))
    if class_map is not None:
        class_map.save(folder / "labels.json")
        config = {
            "architectures": ["SegformerForSemanticSegmentation"],
            "id2label": names or class_map.id2label,
            "segmentation_label_map": class_map.to_config(),
        }
        (folder / "config.json").write_text(json.dumps(config))


def rows_of(text):
    """First cell → second cell of the tables in a card."""
    return dict(re.findall(r"^\| (.*?) \| (.*?) \|", text, re.MULTILINE))


def read_card(path):
    """(metadata, text) as YAML and as the Hub's own parser see them."""
    content = path.read_text(encoding="utf-8")
    _, metadata, text = content.split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_card_of_an_evaluated_run(tmp_path):
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    save_confusion(tmp_path, matrix, {0: "wall", 1: "door|gate", 2: "<sky>"})
    (tmp_path / "sample.jpg").touch()
    leave(
        tmp_path,
        {"dataset_name": "zhoubolei/scene_parse_150", "learning_rate": 6e-5},
        METRICS,
        steps=30,
        class_map=ClassMap({0: "a", 1: "b", 2: "c"}, do_reduce_labels=True, ignore_values=(11,)),
    )
    path = write_model_card(tmp_path, repo_id="me/my-model", license="apache-2.0")
    metadata, text = read_card(path)
    dataset = {"name": "zhoubolei/scene_parse_150", "type": "zhoubolei/scene_parse_150", "split": "validation"}
    assert metadata == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", "vision"],
        "base_model": "nvidia/mit-b0",
        "datasets": "zhoubolei/scene_parse_150",
        "metrics": ["mean_iou", "mean_accuracy", "overall_accuracy"],
        "model-index": [
            {
                "name": "my-model",
                "results": [
                    {
                        "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
                        "dataset": dataset,
                        "metrics": [
                            {"type": "mean_iou", "value": 0.5, "name": "Mean IoU"},
                            {"type": "mean_accuracy", "value": 0.75, "name": "Mean accuracy"},
                            {"type": "overall_accuracy", "value": 0.8, "name": "Overall accuracy"},
                        ],
                    }
                ],
            }
        ],
    }
    assert [result.metric_value for result in ModelCard(path.read_text()).data.eval_results] == [0.5, 0.75, 0.8]
    for line in (
        "# my-model",
        "| Mean IoU | 0.5000 |",
        "| 0 | wall | 0.7500 | 0.7500 |",
        "| 1 | door&#124;gate | 0.8000 | 1.0000 |",
        "| 2 | &lt;sky&gt; | – | – |",
        "| learning rate | 6e-05 |",
        "![image, annotation and prediction](sample.jpg)",
        'model_id = "me/my-model"',
        "Protocol: short side 512; whole image.",
    ):
        assert line in text.splitlines()
    assert "`SegformerForSemanticSegmentation` with 3 classes" in text
    assert "value 0 is ignored, and value n means class n - 1" in text and "evaluation: 11, 255." in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "<summary>Scores of the 3 classes</summary>\n\n" in folded and folded.count("\n| ") == 5
    assert "Expected calibration" not in text and "95 %" not in text and "planned" not in text


def test_a_score_with_its_interval_and_calibration(tmp_path):
    found = {"eval_mean_iou_low": 0.41, "eval_mean_iou_high": 0.62}
    found |= {"eval_temperature": 1.4, "eval_ece": 0.0, "eval_ece_uncalibrated": 0.08}
    leave(tmp_path, metrics=METRICS | found)
    rows = rows_of(write_model_card(tmp_path).read_text())
    assert rows["Mean IoU"] == "0.5000 (95 % interval 0.4100 to 0.6200, bootstrap over the images)"
    assert rows["Mean accuracy"] == "0.7500"
    assert rows["Expected calibration error"] == "0.0000 at temperature 1.400, 0.0800 without"
    (tmp_path / "config.json").write_text(json.dumps({"segmentation_temperature": 1.4}))
    row = rows_of(write_model_card(tmp_path).read_text())["Expected calibration error"]
    assert row == "0.0000 at temperature 1.400 (`segmentation_temperature` in `config.json`), 0.0800 without"
    leave(tmp_path, metrics=METRICS | found | {"eval_mean_iou_low": float("nan"), "eval_ece": float("nan")})
    text = write_model_card(tmp_path).read_text()
    assert "95 %" not in text and "Expected calibration" not in text


def test_pictures_are_shown_where_they_are(tmp_path):
    leave(tmp_path, {"seed": 1}, METRICS, steps=30)
    assert "![" not in write_model_card(tmp_path).read_text()
    for name in ("curves.png", "confusion_matrix.png"):
        (tmp_path / name).touch()
        assert f"]({name})" in write_model_card(tmp_path).read_text() and name in PUBLISHED_FILES


PLAN = """\
# Planned for {data}: 6 training and 5 evaluation images of
# about 61x47. Runs again with …

# ---- data
dataset_dir: '{data}'  # given
from_scratch: '{data}/model/config.json'
model_name_or_path: nvidia/mit-b0  # given

# ---- what is shown
# {long}
image_size: 64
scale_range: [0.75, 1.33]  # 2 epochs: too few </details>
"""


def test_a_plan_is_folded_and_names_no_path(tmp_path):
    folder = tmp_path / "secret" / "my  # photos"
    leave(tmp_path, {"seed": 1}, METRICS, steps=30)
    (tmp_path / "plan.yaml").write_text(PLAN.format(data=folder, long="as it is: " + "a" * 100))
    text = write_model_card(tmp_path).read_text()
    start = text.index("<summary>The settings were planned")
    lines = text[start : text.index("\n</details>", start)].splitlines()[2:]
    assert [line for line in lines if line and not line.startswith("    ")] == []  # a block of code, whatever it holds
    shown = [line.strip() for line in lines if ": " in line and "#" != line.strip()[0]]
    assert shown == [
        "dataset_dir: my # photos  # given",
        "from_scratch: config.json",
        "model_name_or_path: nvidia/mit-b0  # given",
        "image_size: 64",
        "scale_range: [0.75, 1.33]  # 2 epochs: too few </details>",
    ]
    assert "secret" not in text and "Planned for" not in text


def test_card_folds_a_long_table_of_values(tmp_path):
    leave(tmp_path, class_map=ClassMap({0: "a", 1: "b"}, raw_to_id={raw: raw % 2 for raw in range(40)}))
    text = read_card(write_model_card(tmp_path))[1]
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "<summary>41 values</summary>" in folded and folded.count("\n| ") == 43


def test_card_of_local_data_names_no_path(tmp_path, monkeypatch):
    """Neither the folders of the data and the model nor the folder of the run; nothing local becomes metadata."""
    (tmp_path / "secret" / "photos").mkdir(parents=True)
    (tmp_path / "secret" / "old_run").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "weights.json").touch()
    for folder, flag in (
        ("secret", "dataset_dir"),
        (str(tmp_path / "secret"), "dataset_dir"),
        ("secret", "dataset_name"),
    ):
        flags = {flag: f"{folder}/photos", "model_name_or_path": f"{folder}/old_run"}
        leave(tmp_path, flags | {"class_weights": f"{folder}/weights.json"}, METRICS, steps=30)
        path = write_model_card(tmp_path)
        metadata, text = read_card(path)
        assert not {"license", "datasets", "base_model"} & set(metadata)
        assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "custom"
        assert "fine-tuned from a local model (`old_run`) on the data set `photos`" in text
        assert rows_of(text)["class weights"] == "weights.json"
        assert "secret" not in path.read_text() and str(tmp_path) not in path.read_text()


def test_card_without_evaluation(tmp_path):
    save_confusion(tmp_path, np.eye(2, dtype=np.int64), {0: "left by", 1: "an earlier run"})
    leave(tmp_path, {"from_scratch": "configs/tiny.json"})
    metadata, text = read_card(write_model_card(tmp_path))
    assert not {"model-index", "model_name", "metrics"} & set(metadata)
    assert "This model was not evaluated." in text and "earlier run" not in text
    assert "trained from random weights (`tiny.json`)" in text
    assert "## Training" not in text and "sample.jpg" not in text


def test_card_leaves_out_an_undefined_metric(tmp_path):
    leave(tmp_path, metrics=METRICS | {"eval_mean_iou": float("nan")})
    metadata, _ = read_card(write_model_card(tmp_path))
    assert metadata["metrics"] == ["mean_accuracy", "overall_accuracy"]


@pytest.mark.parametrize(
    ("processes", "batch"), [(1, "8 (2 per device, 1 process"), (3, "24 (2 per device, 3 processes")]
)
def test_hyperparameters(tmp_path, processes, batch):
    """What was not given has the project's default; what the card has no row for is left out."""
    flags = {"gradient_accumulation_steps": 4, "lr_scheduler_type": "polynomial", "seed": 7, "image_size": 512}
    leave(tmp_path, flags, steps=30, num_processes=processes)
    rows = rows_of(write_model_card(tmp_path).read_text())
    assert rows.pop("batch size") == f"{batch}, 4 accumulated)"
    assert {name: rows[name] for name in ("learning rate", "epochs", "optimizer steps", "seed")} == {
        "learning rate": "6e-05",
        "epochs": "3.0",
        "optimizer steps": "30",
        "seed": "7",
    }
    assert rows["learning rate schedule"] == "polynomial" and not {"mixed precision", "image size", "loss"} & set(rows)


def test_other_settings(tmp_path):
    flags = {"max_steps": 40, "bf16": True, "optim": "adamw_torch", "freeze_encoder": False, "class_weights": "auto"}
    flags |= {"loss": "ce+dice", "lora_r": 8, "head_lr_multiplier": 10.0, "ema_decay": 0.99, "sync_bn": True}
    leave(tmp_path, flags | {"early_stopping_patience": 3}, steps=30)
    rows = rows_of(write_model_card(tmp_path).read_text())
    assert not {"epochs", "freeze encoder"} & set(rows)
    expected = {"optimizer": "adamw_torch", "mixed precision": "bf16", "optimizer steps": "30", "lora r": "8"}
    expected |= {"loss": "ce+dice", "class weights": "auto", "head lr multiplier": "10.0", "ema decay": "0.99"}
    expected |= {"sync bn": "True", "early stopping patience": "3"}
    assert expected.items() <= rows.items()


def test_where_the_model_and_the_data_come_from(tmp_path):
    leave(tmp_path, {"dataset_name": "someone/streets", "dataset_config_name": "small"}, METRICS)
    metadata, text = read_card(write_model_card(tmp_path))
    assert "fine-tuned from [nvidia/mit-b0](https://huggingface.co/nvidia/mit-b0) on [someone/streets](" in text
    assert "(configuration `small`)." in text
    assert (metadata["base_model"], metadata["datasets"]) == ("nvidia/mit-b0", "someone/streets")
    assert metadata["model-index"][0]["results"][0]["dataset"]["config"] == "small"


def test_classes_that_were_merged(tmp_path):
    names = {0: "road", 1: "car"}
    leave(tmp_path, class_map=ClassMap(names, ignore_values=(3,), raw_to_id={0: 0, 7: 1, 8: 1}))
    text = read_card(write_model_card(tmp_path))[1]
    assert "Values in the annotation files and the classes they became" in text
    expected = {"0": "0 road", "7": "1 car", "8": "1 car", "3": "ignored", "255": "ignored"}
    assert expected.items() <= rows_of(text).items()


def test_model_with_a_single_logit(tmp_path):
    leave(tmp_path, class_map=ClassMap({0: "ground", 1: "thing"}), names={0: "thing"})
    text = read_card(write_model_card(tmp_path))[1]
    assert "with 2 classes" in text and "The model has one output" in text and "do not fit such a model" in text


@pytest.mark.parametrize(
    "name",
    [
        *("![x](http://a.b/c.png)", "[x](http://a.b)", "<img src=http://a.b>", "http://a.b", "www.a.b", "a@b.c"),
        *("`x`", "**x**", "~x~", "$x$", "\\|"),
    ],
)
def test_names_of_classes_stay_text(tmp_path, name):
    save_confusion(tmp_path, np.eye(2, dtype=np.int64), {0: "wall", 1: name})
    leave(tmp_path, metrics=METRICS)
    leave(tmp_path, class_map=ClassMap({0: "wall", 1: "x"}, raw_to_id={5: 0, 6: 1}))
    labels = [{"id": 0, "name": "wall"}, {"id": 1, "name": name}]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    text = read_card(write_model_card(tmp_path))[1]
    lines = [line for line in text.splitlines() if re.match(r"\| (1|6) \| ", line)]
    assert len(lines) == 2 and [line.count("|") for line in lines] == [3, 5]
    for line in lines:
        cell = line.split(" | ")[1].removesuffix(" |")
        assert not re.search(r"[<>\[\]`*@$\\]|://|www\.", cell)
        if name.isprintable():
            assert html.unescape(cell).removeprefix("1 ") == name


def test_the_usage_example_runs(tmp_path, monkeypatch):
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    text = write_model_card(tmp_path / "model").read_text()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40)).save("photo.jpg")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    names = {}
    exec(example.replace("path/to/this/folder", str(tmp_path / "model")), names)
    assert names["prediction"].shape == (40, 60) and names["prediction"].dtype in (torch.int32, torch.int64)
    assert all(segment["mask"].size == (60, 40) for segment in names["segments"])
