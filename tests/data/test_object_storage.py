"""Datasets in buckets, streamed: every image once a pass, runs that go on, and what is wrong with an address."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from factories.runs import save_tiny_config
from factories.shards import SHARDS, TWO_CLASSES, levels_drawn, open_stream, parquet_shard, tar_shard
from safetensors.torch import load_file

import cli_utils
import run_segmentation
from cli_utils import UserError
from data import object_storage
from data.addresses import check_address
from data.arguments import ClassArguments, DatasetArguments
from data.object_storage import find_files
from data_utils import find_classes, load_data

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
from factories.object_storage import StorageServer  # noqa: E402

ROOT = Path(__file__).parents[2]
PARTS = ([0, 1, 2], [3, 4, 5], [6, 7, 8])  # the images of three files


@pytest.fixture(scope="module")
def server():
    with StorageServer() as server:
        for kind, shard in SHARDS.items():
            files = {f"v1/train-{i:05d}.{kind}": shard(part) for i, part in enumerate(PARTS)}
            server.put(
                kind, files | {f"v1/validation-00000.{kind}": shard(range(100, 104)), "v1/README.md": b"# Ours"}
            )
        yield server


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


# ---- what is drawn ----


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 2), (3, 0)])
def test_an_image_comes_once_a_pass(kind, processes, workers, tmp_path):
    data, _ = open_stream(f"s3://{kind}/v1/", tmp_path)
    assert data.stream.num_shards == 3
    assert levels_drawn(data, 72, processes, workers) == dict.fromkeys(range(9), 8)


@pytest.mark.parametrize("kind", SHARDS)
def test_the_first_rows_are_evaluated(kind, tmp_path):
    data, _ = open_stream(f"s3://{kind}/v1", tmp_path, max_eval_samples=2)
    assert [row["image"].getpixel((0, 0))[0] for row in data.splits["validation"]] == [100, 101]


@pytest.mark.parametrize("kind", SHARDS)
def test_a_run_that_goes_on_ends_with_the_same_weights(kind, tmp_path):
    names, out = tmp_path / "names.json", tmp_path / "out"
    names.write_text(json.dumps(TWO_CLASSES.id2label))
    flags = ["--from_scratch", save_tiny_config(tmp_path), "--dataset_name", f"s3://{kind}/v1", "--streaming"]
    flags += ["--id2label", names, "--image_size", 32, "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
    flags += ["--do_train", "--max_steps", 8, "--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", 4]
    flags += ["--save_total_limit", 9]
    weights = []
    for folder, more in ((out, []), (tmp_path / "again", ["--resume_from_checkpoint", out / "checkpoint-4"])):
        run_segmentation.main([str(word) for word in [*flags, "--output_dir", folder, *more]])
        weights.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_datasets_still_cannot_read_tar_shards_there():
    """When this fails `data.tar_shards` can go."""
    with pytest.raises(TypeError, match="block_size"):
        datasets.load_dataset("webdataset", data_files="s3://tar/v1/train-00000.tar", streaming=True)


def test_splits_and_class_lists_are_found_in_the_bucket(server, tmp_path):
    """Below folders, in capitals, and with files that are none of the dataset's."""
    files = {"a/Training/0.TAR": tar_shard([1]), "a/val/train.old": b"", "a/val/1.tar": tar_shard([2])}
    address = server.put("named", files | {"a/id2label.json": json.dumps(TWO_CLASSES.id2label).encode()})
    found = {"train": [f"{address}/a/Training/0.TAR"], "validation": [f"{address}/a/val/1.tar"]}
    assert find_files(f"{address}/a") == ("webdataset", found)
    assert find_files(found["validation"][0]) == ("webdataset", {"train": found["validation"]})
    data = load_data(DatasetArguments(dataset_name=f"{address}/a", streaming=True))
    assert find_classes(data, ClassArguments()).id2label == TWO_CLASSES.id2label
    with pytest.raises(UserError, match="--streaming needs to know the classes beforehand"):
        load_data(DatasetArguments(dataset_name="s3://tar/v1", streaming=True), needs_class_list=True)


def test_files_that_name_no_split_are_training_images(server, caplog):
    shard = parquet_shard([1])
    address = server.put("unsplit", {"one/0.parquet": shard, "two/0.parquet": shard, "two/test-0.parquet": shard})
    assert find_files(f"{address}/one")[1] == {"train": [f"{address}/one/0.parquet"]}
    assert find_files(f"{address}/two")[1] == {"test": [f"{address}/two/test-0.parquet"]}
    assert "files that name no split are left out: s3://unsplit/two/0.parquet" in caplog.text


# ---- what is refused ----


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://nowhere/v1", "there is no s3://nowhere"),
        ("s3://tar/v2/more", "s3://tar has no v2/more; it has v1"),
        ("s3://tar/v1/v2", r"s3://tar/v1 has no v2; it has README\.md, train-00000\.tar"),
        ("s3://empty", "s3://empty holds no dataset: parquet files"),
        ("s3://other/texts", r"holds no dataset: parquet files \(train-00000\.parquet …\) or the tar shards"),
        ("s3://other", r"holds both \.parquet and \.tar files, of which either is read"),
        ("s3://other/torn", "s3://other/torn cannot be loaded"),
    ],
)
def test_what_is_not_there(server, address, message, tmp_path):
    if address.partition("//")[2].startswith(("empty", "other")):
        files = {"texts/train.csv": b"a,b", "a.parquet": b"", "b.tar": b"", "torn/train-0.tar": b"no tar" * 200}
        server.put("empty", {})
        server.put("other", files)
    with pytest.raises(UserError, match=message):
        open_stream(address, tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket/x", r"nothing reads addresses that begin with s4://.* s3://, gs://, az://, hf://"),
        ("s3://", "s3:// names nothing: s3://BUCKET/FOLDER"),
        ("s3://bucket", "--dataset_name s3://… needs s3fs, which is not installed: pip install s3fs"),
        ("gs://bucket", "--dataset_name gs://… needs gcsfs, which is not installed: pip install gcsfs"),
        ("az://bucket", "--dataset_name az://… needs adlfs, which is not installed: pip install adlfs"),
    ],
)
def test_addresses_that_cannot_be_read_here(address, message, monkeypatch):
    monkeypatch.setattr(cli_utils, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        DatasetArguments(dataset_name=address, streaming=True)


def test_what_is_installed_is_read(monkeypatch):
    monkeypatch.setattr(cli_utils, "find_spec", lambda name: object() if name == "gcsfs" else None)
    check_address("gs://bucket/folder")
    with pytest.raises(UserError, match="--dataset_config_name belongs to the id of a Hub dataset"):
        DatasetArguments(dataset_name="gs://bucket/folder", dataset_config_name="de")


def test_no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # nor those of the user
    with pytest.raises(UserError, match=r"must not be read \(NoCredentialsError.* as AWS_ACCESS_KEY_ID and"):
        find_files("s3://tar/v1")


def test_nobody_answers(monkeypatch):
    with socket.socket() as closed:  # bound, and not listening: refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*closed.getsockname()))
        with pytest.raises(UserError, match=r"cannot be reached \(.*Could not connect to the endpoint"):
            find_files("s3://tar/v1")
    monkeypatch.setattr(object_storage, "PATIENCE", 0.2)
    s3fs.S3FileSystem.clear_instance_cache()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*silent.getsockname()))
        with pytest.raises(UserError, match=r"s3://tar/v1 cannot be reached \(no answer within 0\.2 s"):
            find_files("s3://tar/v1")


def test_public_data_need_no_credentials(server):
    """As the message about them says; the variable is read when fsspec starts."""
    hidden = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | {"FSSPEC_S3_ANON": "true"}
    program = "from data.object_storage import find_files; print(find_files('s3://tar/v1')[0])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["webdataset"], done.stderr
