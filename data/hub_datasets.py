"""What `--dataset_name` takes: Hub datasets, parquet files, folders of `save_to_disk`, addresses; their splits and
columns."""

import logging
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from cli_utils import DISK_ERRORS, UserError, one_line
from data.addresses import is_address
from data.columns import find_columns
from data.layouts import standard_split_name
from data.object_storage import fetch_first, find_files
from data.preparation import undecoded
from data.tar_shards import open_shards

logger = logging.getLogger(__name__)


def load_through_datasets(
    name: str, config: str | None, cache_dir=None, token: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """What `--dataset_name` names, with its own splits and columns.

    Raises:
        UserError: it cannot be reached or read.
    """
    path = Path(name)
    saved = [path / file for file in ("dataset_dict.json", "state.json") if os.path.isfile(path / file)]
    if saved and streaming:
        raise UserError(f"--streaming: {name} is on this disk already; leave the flag out")
    builder, files = find_files(name, token) if is_address(name) else (None, None)
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
        elif builder == "webdataset" and streaming:
            loaded = IterableDatasetDict({split: open_shards(shards) for split, shards in files.items()})
        elif builder:
            loaded = datasets.load_dataset(
                builder, data_files=files, cache_dir=cache_dir, token=token, streaming=streaming
            )
        elif path.suffix == ".parquet":
            loaded = datasets.load_dataset("parquet", data_files=name, cache_dir=cache_dir, streaming=streaming)
        else:
            loaded = datasets.load_dataset(name, config, cache_dir=cache_dir, token=token, streaming=streaming)
    except ConnectionError as error:  # includes `OfflineModeIsEnabled`
        raise UserError(
            f"--dataset_name {name}: the Hub cannot be reached ({one_line(error)}); "
            "--dataset_dir FOLDER works without network"
        ) from None
    except (OSError, ValueError, RuntimeError, tarfile.TarError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise UserError(
            f"--dataset_name {name} cannot be loaded: {one_line(error)} "
            "(images and masks in a folder are read with --dataset_dir FOLDER, without network)"
        ) from None
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({standard_split_name(str(loaded.split)) or "train": loaded})
    return loaded


def class_list_folder(name: str, files: Iterable[str], token: str | None = None) -> Path | None:
    """Where the class list of what `--dataset_name` names is to be looked for: its own folder; of a dataset on the Hub
    the cached part of its repository, and of what lies at an address a folder of the cache, to which the first of
    `files` that it has is downloaded. None: nowhere.
    """
    path = Path(name)
    if is_address(name):
        found = fetch_first(name, files, Path(datasets.config.HF_DATASETS_CACHE, "segmentation_class_lists"), token)
        return found and found.parent
    if os.path.exists(path) or path.suffix == ".parquet":
        return path if path.is_dir() else path.parent
    out_of_reach = None
    for file in files:
        try:
            found = hf_hub_download(name, file, repo_type="dataset", token=token, local_files_only=bool(out_of_reach))
            return Path(found).parent
        except LocalEntryNotFoundError as error:
            out_of_reach = out_of_reach or one_line(error)
        except EntryNotFoundError:
            continue
        except (HFValidationError, OSError) as error:  # no repository, or one that must not be read
            out_of_reach = one_line(error)
            break
    if out_of_reach:
        logger.info(f"{name}: no class list of its repository could be read, of {', '.join(files)} ({out_of_reach})")
    return None


def standard_splits(dataset: DatasetDict, name) -> DatasetDict:
    splits = {}
    for original, rows in dataset.items():
        split = standard_split_name(original)
        if split is None:
            logger.warning(
                f"{name}: split {original!r} ({len(rows)} rows) is neither train, validation nor test: left out"
            )
        elif split in splits:
            raise UserError(f"{name} has two {split} splits: {', '.join(dataset)}")
        elif len(rows):
            splits[split] = rows
    if not splits:
        raise UserError(f"{name} has no rows in a train, validation or test split; its splits: {', '.join(dataset)}")
    return DatasetDict(splits)


def image_columns(
    split: Dataset | IterableDataset, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The names of the image column and the label column, see `data.columns.find_columns`."""
    usable = [name for name, feature in split.features.items() if _is_image(feature)]
    held = {
        name: str(feature) if isinstance(feature, Value) else type(feature).__name__
        for name, feature in split.features.items()
    }
    return find_columns(held, usable, image_column, label_column, holding="`datasets.Image`")


def standard_columns(split: Dataset, split_name: str, image_column: str | None, label_column: str | None) -> Dataset:
    """The columns "image", "label" and "name" as `load_segmentation_dataset` promises them."""
    image_column, label_column = image_columns(split, image_column, label_column)
    split = split.select_columns([image_column, label_column])
    # Renamed in one go, as "label" may well be what the image column is called.
    split = split.rename_columns({image_column: "image", label_column: "label"})
    split = split.cast_column("image", datasets.Image(mode="RGB")).cast_column("label", datasets.Image())
    try:
        paths = list(undecoded(split).flatten()["image.path"])
    except (ValueError, OSError) as error:  # pyarrow's are both
        raise UserError(f"the column {image_column} of the {split_name} split is damaged: {one_line(error)}") from None
    stems = [Path(path).stem for path in paths if path]
    if len(set(stems)) < len(split):
        stems = [f"{split_name}_{index:06d}" for index in range(len(split))]
    return split.add_column("name", stems)


def _is_image(feature) -> bool:
    """Image, or what an Image column is in a parquet file without the features' description."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
