"""Class weights, automatic and from files."""

import json

import numpy as np
import pytest

from cli_utils import UserError
from data.class_weights import class_weights, read_class_weights


def test_automatic_class_weights():
    shares = np.array([0.9, 0.05, 0.05])
    expected = 1 / np.log(1.02 + shares)
    weights = class_weights(np.array([[900, 0, 50, 0], [0, 50, 0, 0]]))
    np.testing.assert_allclose(weights[:3], expected / expected.mean())
    assert weights[3] == 1  # never occurs


def test_no_automatic_class_weight_is_more_than_ten_times_another():
    # Without the cap: 1 / ln(2.02) = 1.42 and 1 / ln(1.02) = 50.5.
    np.testing.assert_allclose(class_weights(np.array([10**9, 1])), [2 / 11, 20 / 11])
    np.testing.assert_allclose(class_weights(np.array([10**9, 1]), cap=3), [0.5, 1.5])


def test_automatic_class_weights_need_pixels():
    with pytest.raises(ValueError, match="no pixel"):
        class_weights(np.zeros(3))


NAMES = {0: "road", 1: "car", 2: "sky"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("w.json", "[1, 2.5, 0]"),
        ("w.json", '{"sky": 0, "road": 1, "car": 2.5}'),
        ("w.json", '{"2": 0, "0": 1, "1": 2.5}'),
        ("w.csv", "name,weight\nroad,1\ncar,2.5\nsky,0\n"),
        ("w.txt", "1\n2.5\n0\n"),
    ],
)
def test_class_weights_of_a_file(tmp_path, file, content):
    (tmp_path / file).write_text(content)
    assert read_class_weights(tmp_path / file, NAMES).tolist() == [1, 2.5, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds 2 weights; it takes one for each of 3"),
        ({"road": 1, "car": 1}, "'sky' is missing"),
        ({"road": 1, "cra": 1, "sky": 1}, r"'cra' \(did you mean car\?\) is no class"),
        ({"0": 1, "1": 1, "3": 1}, "'3' is no class"),
        ({"0": 1, "car": 1, "sky": 1}, "'0' is no class"),
        ([1, -1, 1], "the weight of 'car' is -1; it must be a number, 0 or more"),
        ([1, float("nan"), 1], "the weight of 'car' is nan"),
        ([1, 10**400, 1], "the weight of 'car' is 1000"),
        ([1, "x", 1], "the weight of 'car' is 'x'"),
        ([0, 0, 0], "all weights are 0"),
        ("road", "holds str"),
    ],
)
def test_class_weights_that_do_not_fit(tmp_path, content, message):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_class_weights(file, NAMES)


def test_class_weights_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_class_weights(tmp_path / "none.json", NAMES)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_class_weights(tmp_path / "bad.json", NAMES)
    (tmp_path / "bad.csv").write_text("class,w\nroad,1\n")
    with pytest.raises(UserError, match="columns name and weight"):
        read_class_weights(tmp_path / "bad.csv", NAMES)
    (tmp_path / "short.csv").write_text("name,weight\nroad,1\ncar\nsky,1\n")
    with pytest.raises(UserError, match="the weight of 'car' is None"):
        read_class_weights(tmp_path / "short.csv", NAMES)
    (tmp_path / "twice.csv").write_text("name,weight\nroad,1\ncar,1\nsky,1\ncar,9\n")
    with pytest.raises(UserError, match="'car' comes twice"):
        read_class_weights(tmp_path / "twice.csv", NAMES)
