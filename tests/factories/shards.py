"""Parquet files and tar shards whose images are told apart by one number, and a stand-in for the transform."""

import io
import itertools
import json
import tarfile
from collections import Counter

import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from checks.judge import judge_example
from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap
from data.preprocessing import EvaluationProtocol
from data.streaming import StreamingDataset
from data_utils import find_classes, load_data

TWO_CLASSES = ClassMap({0: "dark", 1: "light"})


def encoded(array, path=None):
    """An array as an Image column has it."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": path}


def pair(number, value=None):
    """A grey image whose level is its number; the mask is 1 to the right of column 5, or all `value`."""
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 5:] = 1
    return np.full((8, 12, 3), number, np.uint8), mask if value is None else np.full((8, 12), value, np.uint8)


def parquet_shard(numbers, value=None, name=None):
    """The bytes of a parquet file."""
    images, masks = zip(*(pair(number, value) for number in numbers), strict=True)
    columns = {"image": [encoded(image, name) for image in images], "label": [encoded(mask) for mask in masks]}
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    Dataset.from_dict(columns, features=features).to_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


def tar_shard(numbers):
    """The bytes of a shard as webdataset has them: files of one name belong together."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in numbers:
            image, mask = pair(number)
            for name, array in ((f"{number:06d}.png", image), (f"{number:06d}.seg.png", mask)):
                content = encoded(array)["bytes"]
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


SHARDS = {"parquet": parquet_shard, "tar": tar_shard}


class Level:
    """Stands in for a TrainTransform: the image's grey level, and a random number."""

    protocol = EvaluationProtocol(16)

    def __call__(self, image, label, rng):
        assert image.mode == "RGB" and label.shape == image.size[::-1] and set(np.unique(label)) <= {0, 1, 255}
        return {"level": image.getpixel((0, 0))[0], "random": round(float(rng.random()), 9)}


def open_stream(name, tmp_path, max_eval_samples=None, **flags):
    """Data and classes of what `--dataset_name` names, read while training."""
    names = tmp_path / "names.json"
    names.write_text(json.dumps(TWO_CLASSES.id2label))
    class_flags = {key: flags.pop(key) for key in list(flags) if key in ClassArguments.__dataclass_fields__}
    data = load_data(
        DatasetArguments(dataset_name=str(name), streaming=True, **flags), max_eval_samples=max_eval_samples
    )
    return data, find_classes(data, ClassArguments(**({"id2label": str(names)} | class_flags)))


def levels_of(data, process=0, num_processes=1, seed=0, **options):
    """The dataset of one process, whose examples are those of `Level`."""
    dataset = StreamingDataset(data.stream, TWO_CLASSES, Level(), judge_example, seed, **options)
    dataset.share_with(process, num_processes)
    return dataset


def levels_drawn(data, count, num_processes, num_workers) -> Counter:
    """How often each level is drawn in so many examples of all processes, each of which has so many workers."""
    levels = []
    for process in range(num_processes):
        loader = DataLoader(levels_of(data, process, num_processes), batch_size=None, num_workers=num_workers)
        levels += [int(example["level"]) for example in itertools.islice(loader, count // num_processes)]
    return Counter(levels)
