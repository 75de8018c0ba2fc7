"""Work in several processes comes back in order; keys change with everything that they are made of."""

import os
import signal
from functools import partial

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value

from data import bulk
from data.bulk import BLOCK, cache_key, column_of, map_in_order, processes_for
from data.preparation import cached_map

NAME = Value("string")


@pytest.mark.parametrize("num_proc", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_map_in_order(num_proc, count):
    assert list(map_in_order(abs, (-number for number in range(count)), num_proc)) == list(range(count))


def die_at_the_first(folder, number):
    """As a process that takes too much memory: killed, once."""
    marker = folder / "killed"
    if number == BLOCK + 40 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_costs_nothing(tmp_path, caplog):
    tasks = range(3 * BLOCK)
    assert list(map_in_order(partial(die_at_the_first, tmp_path), tasks, 2)) == list(tasks)
    assert (tmp_path / "killed").exists() and caplog.text.count("killed a process") == 1


def die_in_preparation(image, label, name, folder):
    return {"number": die_at_the_first(folder, BLOCK + 40)}


def test_nor_does_one_of_datasets(tmp_path, caplog):
    rows = {"image": [{"bytes": b"", "path": None}] * 4, "label": [{"bytes": b"", "path": None}] * 4}
    rows = Dataset.from_dict(
        rows | {"name": list("abcd")}, Features({"image": Image(), "label": Image(), "name": NAME})
    )
    options = {"folder": tmp_path}
    made = cached_map(rows, die_in_preparation, Features({"number": Value("int64")}), options, tmp_path, 2, "dying")
    assert made["number"][:] == [BLOCK + 40] * 4
    assert (tmp_path / "killed").exists() and caplog.text.count("killed a process") == 1


def test_processes_for(monkeypatch):
    monkeypatch.setattr(bulk.os, "cpu_count", lambda: 4)
    assert [processes_for(count, 500) for count in (0, 999, 1000, 2000, 10**6)] == [1, 1, 2, 4, 4]
    monkeypatch.setattr(bulk.os, "cpu_count", lambda: 64)
    assert processes_for(10**6, 500) == 8


def test_cache_key(tmp_path):
    file = tmp_path / "a"
    keys = [cache_key(1, "x", files=[file])]
    file.write_text("one")
    keys += [cache_key(1, "x", files=[file]), cache_key(2, "x", files=[file]), cache_key(1, "x", files=[])]
    keys += [cache_key(1, "x", files=[file, None])]
    os.utime(file, (5, 5))
    keys += [cache_key(1, "x", files=[file])]
    file.write_text("three")
    os.utime(file, (5, 5))
    keys += [cache_key(1, "x", files=[file])]
    assert len(set(keys)) == len(keys) and keys[-1] == cache_key(1, "x", files=[str(file)])


def test_columns_are_what_the_rows_hold():
    features = Features({"height": Value("int32"), "pixels": List(Value("int64"), length=3)})
    rows = Dataset.from_dict({"height": [4, 5, 6], "pixels": [[1, 2, 3], [4, 5, 2**40], [7, 8, 9]]}, features=features)
    for chosen in (rows, rows.select([2, 0]), rows.take(0)):
        np.testing.assert_array_equal(column_of(chosen, "height"), chosen["height"][:])
        assert column_of(chosen, "pixels").tolist() == chosen["pixels"][:]
    assert column_of(rows, "pixels").dtype == np.int64
