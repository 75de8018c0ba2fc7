"""What a sample of pairs shows: whether pictures have a top, and how large things are."""

import numpy as np
import pytest
from factories.pictures import render
from PIL import Image

from checks.survey import asymmetry, count_different, survey
from data.arguments import ClassArguments, DatasetArguments
from data_utils import find_classes, load_data


def looked_at(folder, cache, **options):
    data = load_data(DatasetArguments(dataset_dir=str(folder)))
    return survey(data.splits["train"], find_classes(data, ClassArguments(), cache), cache_dir=cache, **options)


@pytest.fixture(scope="module")
def aerial(tmp_path_factory):
    return render("aerial", tmp_path_factory.mktemp("aerial"), train=24, validation=1)


def test_pictures_from_the_air_have_no_top_and_the_toy_pictures_have_one(aerial, toy_dataset_dir, tmp_path):
    for turn in ("upside down", "turned"):
        assert asymmetry(looked_at(aerial, tmp_path), turn) < 0.15
    assert asymmetry(looked_at(toy_dataset_dir, tmp_path), "upside down") > 0.5


@pytest.mark.parametrize("turn", ["upside down", "turned"])
@pytest.mark.parametrize("count", [10, 40])
def test_pictures_turned_at_random_have_no_top(toy_dataset_dir, tmp_path, turn, count):
    """Those of the toy dataset, each of eight orientations as likely: near 1 / n on average, however they look."""
    looks = looked_at(toy_dataset_dir, tmp_path)
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        drawn = [looks[i] for i in rng.integers(0, len(looks), count)]
        turned = []
        for look in drawn:
            k, mirrored = int(rng.integers(4)), bool(rng.integers(2))

            def move(raw, side, k=k, mirrored=mirrored):
                square = np.rot90(np.frombuffer(raw, np.uint8).reshape(side, side), k)
                return (square[::-1] if mirrored else square).tobytes()

            shares = {i: move(raw, 8) for i, raw in look.shares.items()}
            turned.append(type(look)(**vars(look) | {"thumbnail": move(look.thumbnail, 16), "shares": shares}))
        found.append(asymmetry(turned, turn))
    assert np.mean(found) < 2.5 / count
    if count >= 20:
        assert max(found) < 0.3


def test_sizes_of_objects_and_pixels_by_hand(tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 10:14] = 1
    mask[20:30, 40:60], mask[0, 0] = 2, 255
    for part, content in (("images", np.full((60, 80, 3), 90, np.uint8)), ("masks", mask)):
        (tmp_path / "data" / part).mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / "data" / part / "one.png")
    (look,) = looked_at(tmp_path / "data", tmp_path / "cache")
    assert (look.name, look.width, look.height) == ("one", 80, 60)
    assert look.pixels == {0: 60 * 80 - 240 - 200 - 1, 1: 240, 2: 200}
    assert look.objects[1] == ((4, 240),) and look.objects[2] == ((10, 200),)
    assert sum(look.shares[1]) == pytest.approx(255 * 64 * 240 / 4800, abs=16)


def test_copies_are_not_different(aerial, tmp_path):
    looks = looked_at(aerial, tmp_path)
    assert count_different(looks) == 24 and count_different(looks * 3) == 24 and count_different([]) == 0


def test_a_sample_is_the_same_again_and_read_from_the_cache(aerial, tmp_path, monkeypatch):
    first = looked_at(aerial, tmp_path, max_images=5)
    monkeypatch.setattr("checks.survey.find_objects", None)
    assert looked_at(aerial, tmp_path, max_images=5) == first and len(first) == 5


def test_pairs_that_cannot_be_used_are_left_to_the_judge(make_dataset, tmp_path):
    root = make_dataset("images and masks", count=3)
    next((root / "images").iterdir()).write_bytes(b"no picture")
    assert len(looked_at(root, tmp_path / "cache")) == 2
