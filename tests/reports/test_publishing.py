"""The model card, and pushes with the real Hub client to a server on the loopback interface."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from factories.hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, TrainingArguments

from cli_utils import UserError
from metrics_utils import save_confusion
from reports.model_card import training_hyperparameters, write_model_card
from reports.publishing import check_hub_access, push_command, push_run

METRICS = {
    "eval_mean_iou": 0.5,
    "eval_mean_accuracy": 0.75,
    "eval_overall_accuracy": 0.8,
    "eval_loss": 1.25,
    "eval_protocol": "short side 512; whole image",
}
PUBLISHED = {
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "README.md",
    "sample.jpg",
    "labels.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "per_category.csv",
    "confusion_matrix.npy",
}
PRIVATE = (
    "training_args.bin",
    "trainer_state.json",
    "split.json",
    "contact_sheet.png",
    "predictions/photo.png",
    "predictions/overlays/sample.jpg",
    "data/README.md",
    "checkpoint-5/model.safetensors",
    "checkpoint-5/config.json",
    "checkpoint-5/optimizer.pt",
    "checkpoint-5/eval_results.json",
)


@pytest.fixture
def run_dir(tmp_path):
    """What a run leaves; a space in the name, which the command for pushing again has to quote."""
    folder = tmp_path / "my run"
    for name in (*PUBLISHED, *PRIVATE):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {name}".encode())
    (folder / "README.md").write_text("---\ntags:\n- image-segmentation\n---\n")
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running server that is this process's Hub, with the right token."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def contents(folder, names):
    return {name: (folder / name).read_bytes() for name in names}


# ---- push -----------------------------------------------------------------------------------------------------------


def test_push_uploads_the_listed_files_and_nothing_else(server, run_dir):
    info = push_run(run_dir, "tester/model", commit_message="All done")
    assert [commit["summary"] for commit in server.commits] == ["All done"]
    assert server.files("tester/model") == contents(run_dir, PUBLISHED)
    assert (run_dir / "model.safetensors").read_bytes() in server.lfs_objects.values()
    assert info.commit_url.startswith(f"{server.url}/tester/model/commit/")


def test_push_takes_sharded_weights(server, run_dir):
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    for name in shards:
        (run_dir / name).write_bytes(name.encode())
    push_run(run_dir, "tester/model")
    assert set(server.files("tester/model")) == PUBLISHED | shards


def test_push_to_a_new_branch_of_a_private_repository(server, run_dir):
    repo_id = check_hub_access("model", None, run_dir, private=True, revision="v2")
    push_run(run_dir, repo_id, private=True, revision="v2")
    assert server.repos == {"tester/model": {"private": True, "branches": ["main", "v2"]}}
    assert set(server.files("tester/model", "v2")) == PUBLISHED
    assert server.files("tester/model", "main") == {}


@pytest.mark.parametrize(
    ("fail_on", "status", "reason"),
    [
        ("lfs", 500, "HTTP 500 Internal Server Error"),
        ("commit", 503, "HTTP 503 Service Unavailable"),
        ("commit", None, "disconnected"),
        ("commit", 401, "HTTP 401 Unauthorized"),
        ("preupload", 403, "HTTP 403 Forbidden"),
    ],
)
def test_failure_in_the_middle_keeps_the_results_and_says_how_to_push_again(
    server, run_dir, capfd, fail_on, status, reason
):
    before = contents(run_dir, (*PUBLISHED, *PRIVATE))
    server.fail_on, server.fail_status = fail_on, status
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        push_run(run_dir, "tester/model")
    message = str(error.value)
    assert fail_on in server.requests and server.commits == []
    assert f"safe in {run_dir}" in message
    assert message.splitlines()[-1].strip() == push_command(run_dir, "tester/model")
    assert ("hf auth login" in message) == (status in (401, 403))
    assert contents(run_dir, before) == before
    assert TOKEN not in message + "".join(capfd.readouterr())


def test_the_printed_command_pushes_the_same_files(server, run_dir):
    server.fail_on = "preupload"
    server.fail_status = 403
    with pytest.raises(UserError) as error:
        push_run(run_dir, "tester/model", private=True, revision="v2")
    server.fail_on = None

    command = shlex.split(str(error.value).splitlines()[-1])
    assert command[0] == "hf"
    result = subprocess.run(
        [Path(sys.executable).with_name("hf"), *command[1:]],
        env=server.env(HF_HOME=str(run_dir.parent / "home")),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert server.files("tester/model", "v2") == contents(run_dir, PUBLISHED)
    assert server.repos["tester/model"]["private"] is True


def test_the_command_is_written_out():
    assert push_command("outputs/nothing", "me/model") == "hf upload me/model outputs/nothing ."


def test_the_command_names_only_what_is_there(tmp_path):
    for name in ("config.json", "model.safetensors", "README.md", "training_args.bin"):
        (tmp_path / name).touch()
    assert push_command(tmp_path, "me/model", revision="v2") == (
        f"hf upload me/model {tmp_path} . --include config.json --include model.safetensors --include README.md "
        "--revision v2"
    )


# ---- access before training -----------------------------------------------------------------------------------------


def test_access_resolves_the_name_and_creates_the_repository(server, run_dir):
    assert check_hub_access(None, None, run_dir.parent / "toy_run") == "tester/toy_run"
    assert check_hub_access("model", None, run_dir) == "tester/model"
    assert check_hub_access("tester/model", TOKEN, run_dir) == "tester/model"
    assert list(server.repos) == ["tester/toy_run", "tester/model"]


def test_access_with_a_rejected_token(server, run_dir):
    with pytest.raises(UserError, match="refused the token.*401.*hf auth login.*HF_TOKEN") as error:
        check_hub_access("model", "hf_wrong", run_dir)
    assert "hf_wrong" not in str(error.value)
    server.reject_token = True
    with pytest.raises(UserError, match="refused the token"):
        check_hub_access("tester/model", None, run_dir)
    assert server.repos == {}


def test_access_without_a_token(server, run_dir, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is none.*hf auth login"):
        check_hub_access("model", None, run_dir)
    assert server.requests == []


def test_access_with_a_read_only_token(server, run_dir):
    server.role = "read"
    with pytest.raises(UserError, match="may only read.*write access"):
        check_hub_access("model", None, run_dir)
    assert server.repos == {}


def test_access_to_a_foreign_namespace(server, run_dir):
    with pytest.raises(UserError, match="refused the token for nvidia/model.*don't have the rights"):
        check_hub_access("nvidia/model", None, run_dir)


def test_access_to_a_hub_out_of_order(server, run_dir):
    server.fail_on, server.fail_status = "create", 503
    with pytest.raises(UserError, match="HTTP 503.*try later"):
        check_hub_access("model", None, run_dir)


def test_access_offline(server, run_dir, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--push_to_hub needs the network, but HF_HUB_OFFLINE=1"):
        check_hub_access("model", None, run_dir)


def test_access_without_network(server, run_dir, monkeypatch):
    # Port 9 (discard) of the loopback interface: refused at once.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="--push_to_hub needs the network, but http://127.0.0.1:9 cannot be reached"):
        check_hub_access("model", None, run_dir)


@pytest.mark.parametrize("name", ["a/b/c", "with space", "ends.git", "a--b"])
def test_access_with_an_impossible_name(server, run_dir, name):
    with pytest.raises(UserError, match=f"--hub_model_id {name} cannot name a repository"):
        check_hub_access(name, None, run_dir)
    assert server.requests == []


def test_access_with_an_impossible_folder_name(server, run_dir):
    with pytest.raises(UserError, match="the name of the --output_dir, 'my run', cannot.*give --hub_model_id"):
        check_hub_access(None, None, run_dir)


# ---- model card -----------------------------------------------------------------------------------------------------


def read_card(path):
    """(metadata, text) as YAML and as the Hub's own parser see them."""
    content = path.read_text(encoding="utf-8")
    _, metadata, text = content.split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_card_of_an_evaluated_run(tmp_path):
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    save_confusion(tmp_path, matrix, {0: "wall", 1: "door|gate", 2: "<sky>"})
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["SegformerForSemanticSegmentation"], "id2label": {"0": "a", "1": "b", "2": "c"}})
    )
    (tmp_path / "sample.jpg").touch()
    path = write_model_card(
        tmp_path,
        repo_id="me/my-model",
        metrics=METRICS,
        base_model="nvidia/mit-b0",
        dataset="zhoubolei/scene_parse_150",
        do_reduce_labels=True,
        ignore_values=(11,),
        hyperparameters={"learning rate": 6e-5},
        license="apache-2.0",
    )
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
    assert "<details>" not in text


def test_card_folds_a_long_table(tmp_path):
    save_confusion(tmp_path, np.eye(31, dtype=np.int64), {i: f"class {i}" for i in range(31)})
    text = read_card(write_model_card(tmp_path, metrics=METRICS))[1]
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "<summary>31 categories</summary>" in folded and folded.count("\n| ") == 33


def test_card_of_local_data_names_no_path(tmp_path, monkeypatch):
    """Neither the folders of the data and the model nor the folder of the run; nothing local becomes metadata."""
    (tmp_path / "secret" / "photos").mkdir(parents=True)
    (tmp_path / "secret" / "old_run").mkdir()
    monkeypatch.chdir(tmp_path)
    for dataset, base_model in (
        ("secret/photos", "secret/old_run"),
        (str(tmp_path / "secret" / "photos"), str(tmp_path / "secret" / "old_run")),
    ):
        path = write_model_card(tmp_path, metrics=METRICS, dataset=dataset, base_model=base_model)
        metadata, text = read_card(path)
        assert not {"license", "datasets", "base_model"} & set(metadata)
        assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "custom"
        assert "fine-tuned from a local model (`old_run`) on the data set `photos`" in text
        assert "secret" not in path.read_text() and str(tmp_path) not in path.read_text()


def test_card_without_evaluation(tmp_path):
    save_confusion(tmp_path, np.eye(2, dtype=np.int64), {0: "left by", 1: "an earlier run"})
    metadata, text = read_card(write_model_card(tmp_path, from_scratch="configs/tiny.json"))
    assert not {"model-index", "model_name", "metrics"} & set(metadata)
    assert "This model was not evaluated." in text and "earlier run" not in text
    assert "trained from random weights (`tiny.json`)" in text
    assert "## Training" not in text and "sample.jpg" not in text


def test_card_leaves_out_an_undefined_metric(tmp_path):
    metadata, _ = read_card(write_model_card(tmp_path, metrics=METRICS | {"eval_mean_iou": float("nan")}))
    assert metadata["metrics"] == ["mean_accuracy", "overall_accuracy"]


def test_hyperparameters(tmp_path):
    args = TrainingArguments(
        tmp_path,
        use_cpu=True,
        learning_rate=6e-5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=3,
        lr_scheduler_type="polynomial",
        optim="adamw_torch",
        seed=7,
    )
    rows = training_hyperparameters(args, steps=30)
    assert rows["batch size"] == "8 (2 per device, 1 process(es), 4 accumulated)"
    assert {name: rows[name] for name in ("learning rate", "epochs", "optimizer steps", "optimizer", "seed")} == {
        "learning rate": 6e-5,
        "epochs": 3,
        "optimizer steps": 30,
        "optimizer": "adamw_torch",
        "seed": 7,
    }
    assert rows["learning rate schedule"] == "polynomial" and "mixed precision" not in rows


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
