"""Offline, one thread, caches in a folder of their own; and small datasets in every layout."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before any library is imported, as these are read at import time.
_CACHE = tempfile.mkdtemp(prefix="segmentation_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": _CACHE,
    "HF_DATASETS_CACHE": f"{_CACHE}/datasets",
    "TORCH_EXTENSIONS_DIR": _CACHE,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# The suite says what becomes of photos that are not read; whether pillow-heif is installed must not change that.
sys.modules["pillow_heif"] = None

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from factories.datasets import LAYOUT_FILES, save_pair  # noqa: E402
from factories.hub_server import TOKEN, HubServer  # noqa: E402
from hypothesis import settings  # noqa: E402

# Properties are tried on the same examples every time, so that a change is what makes the suite fail, not chance.
# New examples: HYPOTHESIS_PROFILE=default make test.
settings.register_profile("same examples", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same examples"))


def pytest_collection_finish(session):
    """What was imported stays: the garbage collector, which accelerate asks for several times a run, need not look at
    it again and again (half a second each)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def toy_dataset_dir(tmp_path_factory) -> Path:
    """The rendered toy dataset, which takes seconds to make: look at it, and leave it as it is."""
    from toy_dataset import render_toy_dataset

    return render_toy_dataset(tmp_path_factory.mktemp("toy") / "ADE20k_toy_dataset")


@pytest.fixture(autouse=True)
def level_of_the_log():
    """Scripts set the level for their process; the next test starts with what pytest set."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def make_dataset(tmp_path):
    """(layout, images of each split, values in every mask) → folder with `train_0`, `val_1` and so on, 12x8 pixels.

    A layout without split folders has training images alone, but for Pascal VOC and the metadata file.
    """

    def make(layout: str = "split folders", count: int = 2, values=(0, 1, 2), folder: str = "data") -> Path:
        root = tmp_path / folder
        names = {}
        for split in ("train",) if layout == "images and masks" else ("train", "val"):
            names[split] = [f"{split}_{i}" for i in range(count)]
            for seed, name in enumerate(names[split], start=0 if split == "train" else 1000):
                ids = np.resize(np.array(values), (8, 12)).astype(np.uint8)
                image, mask = LAYOUT_FILES[layout]
                fill = {"split": split, "ade": {"train": "training", "val": "validation"}[split], "name": name}
                save_pair(root / image.format(**fill), root / mask.format(**fill), ids, seed)
        if layout == "Pascal VOC":
            lists = root / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True)
            for split, listed in names.items():
                (lists / f"{split}.txt").write_text("\n".join(listed))
        if layout == "metadata":
            rows = [
                f"pictures/{name}.webp,ids/{name}.gif,{split}" for split, listed in names.items() for name in listed
            ]
            (root / "metadata.csv").write_text("\n".join(["file_name,mask_file_name,split", *rows]))
        return root

    return make


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server on the loopback interface that is this process's Hub, with an empty cache."""
    with HubServer() as server:
        constants = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": f"{tmp_path}/hub",
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def server(hub, monkeypatch, tmp_path):
    """The same, with the right token, so that it takes what is pushed."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def go_offline(monkeypatch):
    """A function after which the Hub is out of reach."""

    def go():
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    return go
