"""The rows of a Hub dataset, of parquet files or tar shards, as they are read for `--streaming`: files that are not
decoded yet."""

import logging
from collections.abc import Iterable, Iterator

import datasets
import fsspec
from datasets import Dataset, DatasetDict, Features, IterableDataset

from cli_utils import UserError, one_line
from data.arguments import DatasetArguments
from data.hub_datasets import image_columns, load_through_datasets, standard_columns
from data.layouts import standard_split_name

logger = logging.getLogger(__name__)

NO_CLASS_LIST = (
    "--streaming needs to know the classes beforehand: give --id2label FILE or --label_map FILE, or put an "
    "id2label.json beside the data"
)


def open_streams(
    args: DatasetArguments, max_eval_samples: int | None, token: str | None = None
) -> tuple[IterableDataset | None, DatasetDict]:
    """The training split as a stream, and of the validation split, else of the test split, the first rows.

    Args:
        max_eval_samples: how many; None: the split is left alone.
        token: as for `datasets.load_dataset`.

    Returns:
        The stream, with the columns "image" and "label" as {"bytes", "path"}, None where there is no training split;
        and splits as of `data_utils.Data`, one or none.

    Raises:
        UserError: it cannot be reached or read.
    """
    loaded = load_through_datasets(args.dataset_name, args.dataset_config_name, token=token, streaming=True)
    streams = {standard_split_name(name): rows for name, rows in loaded.items()}
    if not {"train", "validation", "test"} & streams.keys():
        raise UserError(f"{args.dataset_name} has no train, validation or test split; its splits: {', '.join(loaded)}")
    streams = {
        split: _files(rows, *image_columns(rows, args.image_column, args.label_column))
        for split, rows in streams.items()
        if split
    }
    evaluation = next((split for split in ("validation", "test") if split in streams), None)
    splits = DatasetDict()
    if evaluation and max_eval_samples is not None:
        rows = streams[evaluation]
        first = read_rows(rows.take(max_eval_samples))
        taken = [{name: with_bytes(file) for name, file in row.items()} for row in first]
        taken = Dataset.from_list(taken, features=rows.features)
        splits[evaluation] = standard_columns(taken, evaluation, "image", "label")
        logger.info(f"the first {len(taken)} rows of the {evaluation} split of {args.dataset_name} are evaluated")
    return streams.get("train"), splits


def read_rows(rows: Iterable[dict]) -> Iterator[dict]:
    """The rows, as long as they can be read.

    Raises:
        UserError: a file of the stream is damaged or gone, or the network is.
    """
    rows = iter(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # every format and every storage has kinds of errors of its own
            raise UserError(
                f"the stream of images breaks off ({one_line(error)}); a run that has a checkpoint goes on from it "
                "with --resume_from_checkpoint last"
            ) from None
        yield row


def _files(rows: IterableDataset, image_column: str, label_column: str) -> IterableDataset:
    """The columns "image" and "label" alone, not decoded, and not read yet where a row has but the address of a
    file."""
    undecoded = datasets.Image(decode=False)
    rows = rows.select_columns([image_column, label_column])
    rows = rows.cast_column(image_column, undecoded).cast_column(label_column, undecoded)
    return rows.map(
        lambda row: {"image": row[image_column], "label": row[label_column]},
        remove_columns=[image_column, label_column],
        features=Features({"image": undecoded, "label": undecoded}),
    )


def with_bytes(file: dict | None) -> dict | None:
    """A file as {"bytes", "path"}, read from wherever it is, as folders of images are streamed by their addresses."""
    if not file or file["bytes"] is not None:
        return file
    try:
        with fsspec.open(file["path"], "rb") as opened:
            return {"bytes": opened.read(), "path": file["path"]}
    except OSError:
        return file  # which is then found to be unreadable
