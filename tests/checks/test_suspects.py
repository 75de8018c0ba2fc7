"""Suspected label errors: found where they were planted, and not along borders, where every model is a little off."""

import numpy as np
import torch
import torch.nn.functional as F
from factories.planted_errors import KINDS, is_planted, plant
from factories.runs import flags_for, make_dataset, save_tiny_config
from PIL import Image

import run_segmentation
from checks.suspects import FIELDS, FOUND, suspected_errors
from reports.intervals import load_per_image
from reports.run_record import suspected


def fields(row):
    return dict(zip(FIELDS, row.tolist(), strict=True))


def certain(ids, classes=3, cells=(32, 48), sureness=6.0):
    """What a model says that sees the classes `ids` (H, W), on a coarse grid: float (classes, h, w)."""
    one_hot = F.one_hot(torch.as_tensor(ids).long(), classes).permute(2, 0, 1)[None].float()
    return (sureness * F.interpolate(one_hot, size=cells, mode="area")[0]).softmax(0)


def scene():
    ids = np.zeros((128, 192), np.uint8)
    ids[:, 96:] = 1
    return ids


def test_a_right_annotation_has_no_suspects():
    ids = scene()
    assert np.isnan(suspected_errors(certain(ids), torch.from_numpy(ids))).all()


def test_what_was_left_out_of_the_annotation_is_found_with_its_box():
    seen = scene()
    seen[16:80, 24:72] = 2
    found = suspected_errors(certain(seen), torch.from_numpy(scene()))
    assert found.shape == (FOUND, len(FIELDS)) and np.isnan(found[1:]).all()
    region = fields(found[0])
    assert (region["truth"], region["predicted"]) == (0, 2) and region["confidence"] > 0.9
    assert [region[side] for side in ("left", "top", "right", "bottom")] == [24 / 192, 16 / 128, 72 / 192, 80 / 128]
    assert region["share"] == np.float32(64 * 48 / (128 * 192))


def test_borders_a_little_off_and_unsure_regions_are_no_suspects():
    shifted = np.roll(scene(), 4, axis=1)  # an annotator's line, one cell beside the model's
    assert np.isnan(suspected_errors(certain(shifted), torch.from_numpy(scene()))).all()
    other = scene()
    other[:, :90] = 2
    assert np.isnan(suspected_errors(certain(other, sureness=0.5), torch.from_numpy(scene()))).all()


def test_ignored_pixels_are_no_suspects_and_larger_regions_come_first():
    labels, seen = scene(), scene()
    seen[0:32, 0:48], seen[64:128, 0:80], seen[0:64, 120:192] = 2, 2, 0
    labels[0:64, 120:192] = 255
    found = suspected_errors(certain(seen), torch.from_numpy(labels))
    assert [fields(row)["top"] for row in found[:2]] == [0.5, 0.0] and np.isnan(found[2:]).all()


def test_regions_of_different_pairs_are_not_one():
    seen = scene()
    seen[32:96, 48:144] = 2  # over both classes
    found = suspected_errors(certain(seen), torch.from_numpy(scene()))
    assert {(fields(row)["truth"], fields(row)["predicted"]) for row in found[:2]} == {(0, 2), (1, 2)}


# ---- how often they are right ---------------------------------------------------------------------------------------


def spoil(mask, rng):
    """A mask with one mistake that annotators make: an object left out, called by the wrong name, or one too many."""
    mask, kind = mask.copy(), rng.integers(3)
    if kind < 2:
        mask[mask == 1] = (0, 2)[kind]
    else:
        top, left = rng.integers(0, mask.shape[0] - 14), rng.integers(0, mask.shape[1] - 14)
        mask[top : top + 12, left : left + 12] = 1
    return mask


def test_planted_errors_come_first(tmp_path):
    """A model trained on clean scenes, an evaluation set with a tenth of its masks spoilt: how many of the first
    suspects are in those masks."""
    data = make_dataset(tmp_path / "set", train=24, validation=80)
    rng, masks = np.random.default_rng(0), sorted((data / "val" / "masks").iterdir())
    spoilt = {file.stem for file in rng.choice(masks, 8, replace=False)}
    for file in masks:
        if file.stem in spoilt:
            Image.fromarray(spoil(np.array(Image.open(file)), rng)).save(file)
    flags = flags_for(data, save_tiny_config(tmp_path))
    flags += ["--do_train", "--do_eval", "--eval_strategy", "no", "--save_strategy", "no", "--num_train_epochs", "8"]
    run_segmentation.main([*flags, "--output_dir", str(tmp_path / "run")])
    images = load_per_image(tmp_path / "run")
    ranked = list(dict.fromkeys(images.names[place] for place, _ in suspected(images)))
    right = sum(name in spoilt for name in ranked[:8])
    print(f"{right} of the first 8 suspects of {len(ranked)} are among the {len(spoilt)} spoilt of {len(masks)}")
    assert right >= 7


def test_errors_are_planted_in_one_object_and_known_again():
    """Of the measure on photos, whose figures docs/evaluation.md has."""
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:30], mask[40:50, 50:60], mask[:, 70:] = 1, 2, 9
    kinds = set()
    for seed in range(40):
        new, kind = plant(mask, np.random.default_rng(seed), ignored=(9,), names=(0, 1, 2, 3))
        kinds.add(kind)
        changed = new != mask
        rows, columns = np.nonzero(changed)
        assert 0 < changed.mean() < 0.2 and set(np.unique(new)) <= {0, 1, 2, 3, 9}
        box = {"top": rows.min() / 60, "bottom": (rows.max() + 1) / 60}
        box |= {"left": columns.min() / 80, "right": (columns.max() + 1) / 80}
        if kind != "moved":  # which changes two places
            (truth,) = np.unique(new[changed])
            assert is_planted(box | {"truth": truth}, mask, new)
        assert not is_planted({"truth": 0, "top": 0, "bottom": 0.15, "left": 0, "right": 0.1}, mask, new)
    assert kinds == set(KINDS)
    assert plant(np.zeros((60, 80), np.uint8), np.random.default_rng(0)) == (None, None)
