"""Pushes with the real Hub client to a server on the loopback interface."""

import re

import huggingface_hub
import pytest
from factories.hub_server import TOKEN

from cli_utils import UserError
from reports.publishing import check_hub_access, push_command, push_run

PUBLISHED = {
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "README.md",
    "sample.jpg",
    "curves.png",
    "confusion_matrix.png",
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


def test_the_command_is_written_out():
    assert push_command("outputs/nothing", "me/model") == "python publish.py outputs/nothing --hub_model_id me/model"
    assert push_command("my run", "me/model", private=True, revision="v2") == (
        "python publish.py 'my run' --hub_model_id me/model --private --revision v2"
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
