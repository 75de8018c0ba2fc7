"""Masks with one object wrong, as annotators get it wrong, and how many of a run's suspected label errors are those.

    PYTHONPATH=tests python -m factories.planted_errors RUN IMAGES MASKS SCRATCH --ignore_values 11

RUN is the output folder of a run that has not trained on these images. Each round spoils half of the masks, evaluates
the model on them, and asks of the regions that it suspects, the most suspicious first, whether they were spoilt.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

import run_segmentation
from reports.intervals import load_per_image
from reports.run_record import suspected

KINDS = ("renamed", "left out", "moved")
SHARES = (0.005, 0.15)  # of the image: objects that are spoilt


def plant(mask, rng, ignored=(), names=None):
    """A mask with one of its objects called by another name, left out, or moved by about half of its size.

    Args:
        mask: uint8 (H, W).
        names: values that a renamed object may get; those of the mask if left out.

    Returns:
        The new mask, and the kind of error; (None, None) for a mask without an object of the right size.
    """
    values = [int(value) for value in np.unique(mask) if value not in ignored]
    objects = []
    for value in values:
        numbers, count = ndimage.label(mask == value)
        areas = np.bincount(numbers.ravel(), minlength=count + 1) / mask.size
        objects += [numbers == i for i in range(1, count + 1) if SHARES[0] <= areas[i] <= SHARES[1]]
    if len(values) < 2 or not objects:
        return None, None
    chosen, kind = objects[rng.integers(len(objects))], KINDS[rng.integers(len(KINDS))]
    new, own = mask.copy(), int(mask[chosen][0])
    if kind == "renamed":
        new[chosen] = rng.choice([value for value in names or values if value != own])
        return new, kind
    rim = mask[ndimage.binary_dilation(chosen, iterations=3) & ~chosen]
    rim = rim[~np.isin(rim, ignored)]
    new[chosen] = np.bincount(rim).argmax() if rim.size else next(value for value in values if value != own)
    if kind == "moved":
        turn = rng.random() * 2 * np.pi
        shift = np.rint(0.5 * chosen.sum() ** 0.5 * np.array([np.sin(turn), np.cos(turn)])).astype(int)
        rows, columns = (places + by for places, by in zip(np.nonzero(chosen), shift, strict=True))
        inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
        new[rows[inside], columns[inside]] = own
    return new, kind


def is_planted(region, mask, new):
    """Whether most of what is annotated as the region's class, within its box, is so by the planted error.

    region: of `reports.run_record.suspected`, whose ids are the masks' values.
    """
    height, width = mask.shape
    rows, columns = (
        slice(round(region[low] * side), round(region[high] * side))
        for low, high, side in (("top", "bottom", height), ("left", "right", width))
    )
    told = new[rows, columns] == region["truth"]
    return bool(told.any() and (mask != new)[rows, columns][told].mean() > 0.5)


def measure(run, images, masks, scratch, rounds, ignored):
    """For each round: whether each suspect was planted, most suspicious first, and the planted errors found by kind.

    Returns:
        A list of lists of bool, {kind: [found, planted]}.
    """
    found_by_kind, lists = {kind: [0, 0] for kind in KINDS}, []
    truth = {file.stem: np.array(Image.open(file)) for file in sorted(masks.iterdir())}
    names = [int(v) for v in np.unique(np.concatenate([np.unique(m) for m in truth.values()])) if v not in ignored]
    for seed in range(rounds):
        rng, folder = np.random.default_rng(seed), scratch / f"round_{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(images, folder / "data" / "val" / "images")
        (folder / "data" / "val" / "masks").mkdir()
        spoilt, kinds = {}, {}
        chosen = set(rng.permutation(sorted(truth))[: len(truth) // 2].tolist())
        for name, mask in truth.items():
            new, kind = plant(mask, rng, ignored, names) if name in chosen else (None, None)
            if kind:
                spoilt[name], kinds[name] = new, kind
            Image.fromarray(spoilt.get(name, mask)).save(folder / "data" / "val" / "masks" / f"{name}.png")
        argv = ["--model_name_or_path", run, "--dataset_dir", folder / "data", "--output_dir", folder / "out"]
        argv += ["--do_eval", "--report_to", "none", "--use_cpu"]
        argv += ["--ignore_values", *ignored] if ignored else []
        run_segmentation.main([str(word) for word in argv])
        evaluated, right, found = load_per_image(folder / "out"), [], set()
        for place, region in suspected(evaluated):
            name = Path(evaluated.names[place]).stem
            right.append(name in spoilt and is_planted(region, truth[name], spoilt[name]))
            found |= {name} if right[-1] else set()
        lists.append(right)
        for name, kind in kinds.items():
            found_by_kind[kind][1] += 1
            found_by_kind[kind][0] += name in found
    return lists, found_by_kind


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "images", "masks", "scratch"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ignore_values", type=int, nargs="*", default=[])
    args = parser.parse_args(argv)
    lists, kinds = measure(args.run, args.images, args.masks, args.scratch, args.rounds, args.ignore_values)
    planted = sum(count for _, count in kinds.values())
    print(f"{planted} errors in {len(lists)} rounds; {sum(map(len, lists)) / len(lists):.1f} suspects a round")
    for first in (1, 2, 3, 5, 10):
        taken = [right for one in lists for right in one[:first]]
        print(f"of the first {first}: {sum(taken)} of {len(taken)} were planted")
    for kind, (found, count) in kinds.items():
        print(f"{kind}: {found} of {count} are in the list")


if __name__ == "__main__":
    main()
