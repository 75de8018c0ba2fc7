"""The class lists of what `--dataset_name` names."""

import json
import logging

import datasets
import numpy as np
import pytest
from factories.shards import SHARDS, levels_drawn, open_stream
from PIL import Image

from data.arguments import ClassArguments, DatasetArguments
from data_utils import find_classes, load_data

NAMES = ["sky", "road", "car", "void"]  # the last one occurs in no mask
ID2LABEL = json.dumps(dict(enumerate(NAMES)))
FOUND_IN_MASKS = ["class_0", "class_1", "class_2"]


def split_of(seed, count=2):
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)) for _ in range(count)]
    masks = [Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), (8, 12))) for _ in range(count)]
    features = datasets.Features({"pixel_values": datasets.Image(), "annotation": datasets.Image()})
    return datasets.Dataset.from_dict({"pixel_values": pictures, "annotation": masks}, features=features)


@pytest.fixture
def parquet(tmp_path):
    """A folder with a parquet file for each of two splits."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, split in enumerate(("train", "validation")):
        split_of(seed).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def class_names(name):
    data = load_data(DatasetArguments(dataset_name=str(name)))
    return list(find_classes(data, ClassArguments()).id2label.values())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("id2label.json", ID2LABEL),
        ("labels.json", json.dumps([{"id": i, "name": name, "color": [i] * 3} for i, name in enumerate(NAMES)])),
        ("class_dict.csv", "name,r,g,b\n" + "".join(f"{name},{i},0,0\n" for i, name in enumerate(NAMES))),
    ],
)
def test_of_a_folder(parquet, file, content):
    assert class_names(parquet) == FOUND_IN_MASKS
    (parquet / file).write_text(content)
    assert class_names(parquet) == NAMES


def test_beside_a_parquet_file(parquet):
    (parquet / "id2label.json").write_text(ID2LABEL)
    assert class_names(parquet / "train-00000-of-00001.parquet") == NAMES


def test_of_a_saved_dataset(tmp_path):
    datasets.DatasetDict({"train": split_of(0), "validation": split_of(1)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "id2label.json").write_text(ID2LABEL)
    assert class_names(tmp_path / "saved") == NAMES


def offer(hub, repo, parquet, **files):
    files = {name.replace("__", "."): content.encode() for name, content in files.items()}
    hub.offer(f"datasets/{repo}", {f"data/{path.name}": path.read_bytes() for path in parquet.iterdir()} | files)


def test_of_a_repository_and_of_the_cache(hub, go_offline, parquet):
    offer(hub, "somebody/named", parquet, id2label__json=ID2LABEL, labels__json="[1, 2]")
    assert class_names("somebody/named") == NAMES
    go_offline()
    assert class_names("somebody/named") == NAMES


def test_of_a_repository_that_is_streamed(hub, parquet):
    offer(hub, "somebody/streamed", parquet, class_dict__csv="name,r,g,b\n" + "".join(f"{n},0,0,0\n" for n in NAMES))
    arguments = DatasetArguments(dataset_name="somebody/streamed", streaming=True)
    data = load_data(arguments, max_eval_samples=1)
    assert list(find_classes(data, ClassArguments()).id2label.values()) == NAMES


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize(
    ("name", "processes", "workers"),
    [
        *[("somebody/shards", 1, 0), ("somebody/shards", 2, 2), ("somebody/shards", 3, 0)],
        ("hf://datasets/somebody/shards/data", 2, 0),
    ],
)
def test_shards_of_a_repository_are_streamed_once_a_pass(hub, monkeypatch, kind, name, processes, workers, tmp_path):
    """Three files of three images."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    parts = [range(first, first + 3) for first in (0, 3, 6)]
    hub.offer("datasets/somebody/shards", {f"data/train-{i:05d}.{kind}": SHARDS[kind](p) for i, p in enumerate(parts)})
    data, _ = open_stream(name, tmp_path)
    assert data.stream.num_shards == 3
    assert levels_drawn(data, 72, processes, workers) == dict.fromkeys(range(9), 8)


def test_a_list_of_ones_own_wins(hub, parquet, tmp_path):
    offer(hub, "somebody/wrong", parquet, id2label__json="[1, 2]")
    (tmp_path / "mine.json").write_text(ID2LABEL)
    data = load_data(DatasetArguments(dataset_name="somebody/wrong"))
    found = find_classes(data, ClassArguments(id2label=str(tmp_path / "mine.json")))
    assert list(found.id2label.values()) == NAMES


def test_of_a_repository_without_one(hub, go_offline, parquet, caplog):
    caplog.set_level(logging.INFO, "data.hub_datasets")
    offer(hub, "somebody/unnamed", parquet)
    assert class_names("somebody/unnamed") == FOUND_IN_MASKS
    assert "could be read" not in caplog.text
    go_offline()
    assert class_names("somebody/unnamed") == FOUND_IN_MASKS
    assert "somebody/unnamed: no class list of its repository could be read, of id2label.json, labels" in caplog.text
