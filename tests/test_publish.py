"""Publishing a finished run with the real Hub client and a server on the loopback interface."""

import logging
import shlex
import shutil
from pathlib import Path

import pytest
from factories.hub_server import TOKEN
from factories.runs import flags_for, make_dataset, save_tiny_config

import publish
import run_segmentation
from cli_utils import REQUEST_LOGGERS, UserError
from reports.model_card import model_card, name_repository


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    flags = flags_for(make_dataset(folder / "set"), save_tiny_config(folder))
    return [*flags, "--do_train", "--do_eval", "--max_steps", "1"]


@pytest.fixture(scope="module")
def finished_run(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my_run"
    run_segmentation.main([*flags, "--output_dir", str(folder)])
    return folder


@pytest.fixture
def run_dir(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "my_run"))


def stamps(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_published_with_its_repository_in_the_card(server, run_dir):
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    address = publish.main([str(run_dir), "--hub_model_id", "tester/other", "--private", "--revision", "v2"])
    assert address.startswith(f"{server.url}/tester/other/commit/")
    assert server.repos["tester/other"]["private"] is True
    files = server.files("tester/other", "v2")
    assert files["model.safetensors"] == before["model.safetensors"] and "training_args.bin" not in files
    assert b'model_id = "tester/other"' in files["README.md"] and files["README.md"] != before["README.md"]
    # Nothing else has changed, and publishing elsewhere names the other place.
    after = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"README.md"}
    publish.main([str(run_dir)])
    assert b'model_id = "tester/my_run"' in server.files("tester/my_run")["README.md"]


def test_a_card_that_was_edited_is_published_as_it_is(server, run_dir, capsys):
    card = run_dir / "README.md"
    card.write_text(card.read_text().replace("## Usage", "Thanks to my cat.\n\n## Usage"))
    edited = card.read_bytes()
    publish.main([str(run_dir)])
    assert server.files("tester/my_run")["README.md"] == edited == card.read_bytes()
    assert "was edited" in capsys.readouterr().err


def test_the_versions_in_the_card_stay_those_that_trained(run_dir):
    card = run_dir / "README.md"
    card.write_text(card.read_text().replace("- torch ", "- torch 1.0, not "))
    assert name_repository(run_dir, "me/model")
    assert "torch 1.0, not" in card.read_text() and 'model_id = "me/model"' in card.read_text()
    card.unlink()
    assert name_repository(run_dir, "me/model")
    assert card.read_bytes() == model_card(run_dir, "me/model")


@pytest.mark.parametrize("name", ["train_results.json", "config.json", "labels.json", "model.safetensors"])
def test_a_folder_without_a_finished_run_is_refused(server, run_dir, name):
    (run_dir / name).unlink()
    before = stamps(run_dir)
    with pytest.raises(UserError, match=f"no finished run: {name} is missing"):
        publish.main([str(run_dir)])
    assert server.requests == [] and stamps(run_dir) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which run"),
        (["no/such/folder"], "no such folder"),
        (["{run}", "other"], "'other' belongs to no flag"),
        (["{run}", "--hub_model_id", "a/b/c"], "--hub_model_id a/b/c cannot name"),
        (["{run}", "--token", "hf_wrong_token"], "publish.py: .* refused the token"),
    ],
)
def test_mistakes_lose_nothing(server, run_dir, argv, message):
    before = stamps(run_dir)
    with pytest.raises(UserError, match=message) as error:
        publish.main([word.format(run=run_dir) for word in argv])
    assert "hf_wrong_token" not in str(error.value)
    assert server.repos == {} and stamps(run_dir) == before


def test_without_a_token(server, run_dir, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="publish.py needs a Hub token and there is none; log in"):
        publish.main([str(run_dir)])


def test_a_failed_push_names_the_command_that_pushes_again(server, run_dir):
    server.fail_on, server.fail_status = "commit", 503
    with pytest.raises(UserError, match="HTTP 503") as error:
        publish.main([str(run_dir), "--private", "--revision", "v2"])
    command = shlex.split(str(error.value).splitlines()[-1])
    assert command[:2] == ["python", "publish.py"]
    server.fail_on = None
    publish.main(command[2:])
    assert "model.safetensors" in server.files("tester/my_run", "v2")


def test_neither_token_nor_signed_address_is_told(server, flags, tmp_path, capfd):
    """The whole way: training with a token on the command line, an upload to signed addresses, all that is left."""
    secret, folder = TOKEN, tmp_path / "run"
    push = ["--push_to_hub", "--hub_model_id", "tester/model", "--hub_token", secret]
    run_segmentation.main([*flags, *push, "--output_dir", str(folder)])
    logging.getLogger("somebody").error("PUT https://host/lfs/1?X-Amz-Signature=%s&a=b, with %s", "5ec4e7", secret)
    assert "lfs" in server.requests
    told = "".join(capfd.readouterr())
    assert "https://host/lfs/1?…" in told
    for text in (secret, "5ec4e7", "X-Amz"):
        assert text not in told
    assert (folder / "training_args.bin").is_file()
    for path in folder.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    for content in server.files("tester/model").values():
        assert secret.encode() not in content
    for name in REQUEST_LOGGERS:
        assert logging.getLogger(name).level == logging.WARNING
