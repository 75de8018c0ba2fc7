"""Records of pairs, and samples of them."""

import datasets
import numpy as np
from factories.broken_datasets import NAMES, image_of, make_clean, mask_of
from factories.datasets import load_splits
from PIL import Image

from checks.duplicates import difference_hash
from checks.scan import scan
from data.classes import ClassMap
from data.image_files import ReadBy, Turned

FOUR = ClassMap(NAMES)


def test_record(tmp_path):
    root = make_clean(tmp_path)
    record = scan(load_splits(root), FOUR)[9]
    mask = np.asarray(Image.open(mask_of(root, 9)))
    assert (record.key, record.width, record.height) == ("validation/scene_09", 64, 48)
    assert (record.image_file, record.mask_file) == (str(image_of(root, 9)), str(mask_of(root, 9)))
    assert (record.image_mode, record.mask_mode, record.mask_size) == ("RGB", "L", (64, 48))
    assert record.raw_values == {value: int((mask == value).sum()) for value in range(4)}
    assert record.image_hash == difference_hash(Image.open(image_of(root, 9)).convert("L"))
    assert (record.problem, record.read_by, record.turned) == (None, ReadBy.IDS, Turned.BY_ENTRY)
    assert (record.lossy, record.oddities, record.orientation) == (False, (), 1)
    assert len(record.alignment) == 4


def test_processes_and_bytes_change_nothing(tmp_path):
    dataset = load_splits(make_clean(tmp_path))
    alone = scan(dataset, FOUR, num_proc=1)
    assert scan(dataset, FOUR, num_proc=2) == alone
    in_memory = datasets.DatasetDict({split: rows.map(lambda row: row) for split, rows in dataset.items()})
    as_bytes = scan(in_memory, FOUR)
    assert [record.raw_values for record in as_bytes] == [record.raw_values for record in alone]
    assert [record.image_digest for record in as_bytes] == [record.image_digest for record in alone]


def test_sample_is_seeded_and_parted_by_size(tmp_path):
    dataset = load_splits(make_clean(tmp_path, counts=(12, 4)))
    names = [record.key for record in scan(dataset, FOUR, max_images=4, seed=1)]
    assert len(names) == 4 and sum(name.startswith("validation/") for name in names) == 1
    assert names == [record.key for record in scan(dataset, FOUR, max_images=4, seed=1)]
    assert any(names != [record.key for record in scan(dataset, FOUR, max_images=4, seed=s)] for s in range(2, 5))
    assert len(scan(dataset, FOUR, max_images=99)) == 16
