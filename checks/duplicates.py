"""Images that are in a dataset twice, exactly or nearly, and masks that are; leakage from one split into another."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from checks.records import ERROR, INFO, WARNING, Finding, ImageRecord, finding, looked_at
from cli_utils import agree, count_of, shorten

HASH_SHAPE, THUMBNAIL_SIDE = (8, 8), 16
# Two pictures are near-duplicates if few bits differ and what is left of them at 16x16 correlates so well.
MAX_HASH_DISTANCE, MIN_CORRELATION = 10, 0.98
FLAT = 3.0  # standard deviation (of 0…255) of a thumbnail below which pictures cannot be told apart
BLOCK = 1024  # rows and columns of a comparison
CELL_AXES, CELL_SIDE = 5, math.sqrt(2 - 2 * MIN_CORRELATION) + 1e-3  # see `best_matches`; the rest is for rounding
# Findings whose files are alike: in two splits, or in any.
ACROSS_SPLITS = ("duplicate-across-splits", "near-duplicate-across-splits")
COPIES = (
    *ACROSS_SPLITS,
    *("duplicate-in-split", "duplicate-masks-differ", "near-duplicate-in-split", "mask-repeated"),
)
MAX_LEAK = 0.01  # share of a split's images that are in another one too, above which its scores mean nothing


def difference_hash(gray: Image.Image) -> int:
    """64 bits: whether each of 8x8 cells of a picture (mode L) is darker than the one to its right.

    Neither size, compression, contrast nor brightness change it much.
    Source: N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013 (dHash).
    """
    rows, columns = HASH_SHAPE
    # Not rounded, as cells of a smooth picture differ by less than one.
    cells = np.asarray(gray.convert("F").resize((columns + 1, rows), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


def thumbnail(gray: Image.Image) -> bytes:
    """A picture (mode L) as 16x16 bytes."""
    return gray.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()


def normalized_thumbnails(thumbnails: list[bytes]) -> np.ndarray:
    """→ float32 (n, 256) of mean 0 and length 1, whose products are correlations; zeros where there is no contrast."""
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels[pixels.std(axis=1) < FLAT] = 0
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


def mirrored(hashes: np.ndarray, thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes and normalized thumbnails of the mirror images."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, *HASH_SHAPE)
    flipped = np.packbits(1 - bits[:, :, ::-1]).view(">u8").astype(np.uint64)
    return flipped, thumbnails.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)[:, :, ::-1].reshape(len(thumbnails), -1)


def best_matches(
    hashes: np.ndarray,
    thumbnails: np.ndarray,
    known_hashes: np.ndarray,
    known_thumbnails: np.ndarray,
    earlier: bool = False,
) -> np.ndarray:
    """For each picture its nearest near-duplicate among the known ones.

    Thumbnails that correlate by c are sqrt(2 - 2c) apart, also along any axis. So pictures are sorted into cells that
    wide along the few axes in which the known ones differ most, and each is compared with those of its own cell and of
    the cells around it alone. Memory is that of a block.

    Args:
        hashes: uint64 (n,) of `difference_hash`; known_hashes: (m,).
        thumbnails: (n, 256) of `normalized_thumbnails`; known_thumbnails: (m, 256).
        earlier: the known pictures are the same ones, and each is compared with those before it only.

    Returns:
        Index of the known picture, int64 (n,); -1 where there is none.
    """
    result = np.full(len(hashes), -1)
    # Of those without contrast none matches.
    rows, columns = (np.flatnonzero(one.any(axis=1)) for one in (thumbnails, known_thumbnails))
    if not len(rows) or not len(columns):
        return result
    spread = known_thumbnails[columns].T @ known_thumbnails[columns]
    axes = np.linalg.eigh(spread.astype(np.float64))[1][:, -CELL_AXES:].astype(np.float32)
    cells = _cells(thumbnails @ axes, rows)
    known_cells = cells if earlier else _cells(known_thumbnails @ axes, columns)
    for cell, members in cells.items():
        around = itertools.product(*((side - 1, side, side + 1) for side in cell))
        near = [known_cells[other] for other in around if other in known_cells]
        if not near:
            continue
        known = np.sort(np.concatenate(near))
        for start in range(0, len(members), BLOCK):
            block = members[start : start + BLOCK]
            if earlier:
                known_block = known[: np.searchsorted(known, block[-1])]
            else:
                known_block = known
            best, highest = np.full(len(block), -1), np.full(len(block), MIN_CORRELATION, np.float32)
            for begin in range(0, len(known_block), BLOCK):
                some = known_block[begin : begin + BLOCK]
                fits = np.bitwise_count(hashes[block, None] ^ known_hashes[None, some]) <= MAX_HASH_DISTANCE
                if earlier:
                    fits &= some < block[:, None]
                if not fits.any():
                    continue
                correlation = np.where(fits, thumbnails[block] @ known_thumbnails[some].T, -1)
                place = correlation.argmax(axis=1)
                found = correlation[np.arange(len(block)), place]
                # The first of equal ones counts, so only a better one, or the first good one, replaces it.
                better = np.where(best < 0, found >= highest, found > highest)
                best[better], highest[better] = some[place[better]], found[better]
            result[block] = best
    return result


def _cells(places: np.ndarray, chosen: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Cell → those of the chosen indices in it, sorted. places: along each axis, float32 (n, axes)."""
    numbers = np.floor(places[chosen] / CELL_SIDE).astype(np.int64)
    order = np.lexsort((chosen, *numbers.T))
    numbers, chosen = numbers[order], chosen[order]
    starts = np.flatnonzero(np.append(True, (numbers[1:] != numbers[:-1]).any(axis=1)))
    return {
        tuple(numbers[start].tolist()): part for start, part in zip(starts, np.split(chosen, starts[1:]), strict=True)
    }


# ---- findings -------------------------------------------------------------------------------------------------------


def duplicate_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """Images that are there twice, exactly or nearly, within a split and across splits; masks that are."""
    looked = looked_at(records)
    decoded = [record for record in looked if "blank image" not in record.oddities]
    sizes = Counter(record.split for record in looked)
    same = _groups(decoded, lambda record: record.image_digest)
    findings = []

    def report(kind: str, groups: list[list[ImageRecord]], phrase: str, fix: str, sign: str = " = ") -> None:
        if groups:
            listed = shorten(sign.join(record.key for record in group[:2]) for group in groups)
            files = [record.key for group in groups for record in group]
            findings.append(finding(kind, WARNING, f"{count_of(len(groups), phrase)}: {listed}", fix, files))

    leaks = [group for group in same if len({record.split for record in group}) > 1]
    if leaks:
        pairs = [(group[0], record) for group in leaks for record in group if record.split != group[0].split]
        findings.append(_leak("duplicate-across-splits", "the same image", pairs, sizes))
    inside = [group for group in same if len({record.split for record in group}) < len(group)]
    phrase = "image/images occurs/occur more than once in a split"
    report("duplicate-in-split", inside, phrase, "delete all but one")
    contradictory = [group for group in same if len({record.mask_digest for record in group} - {""}) > 1]
    phrase = "image/images occurs/occur more than once with different masks"
    report("duplicate-masks-differ", contradictory, phrase, "keep the right mask", " and ")
    drawn = [record for record in decoded if record.mask_digest and len(record.raw_values) > 1]
    copies = [g for g in _groups(drawn, lambda r: r.mask_digest) if len({r.image_digest for r in g}) == len(g)]
    phrase = "mask/masks is/are the same to the pixel for different images"
    report("mask-repeated", copies, phrase, "check that each mask was saved with its own image")
    return findings + _near_duplicate_faults(decoded, sizes)


def _groups(records: Sequence[ImageRecord], key: Callable[[ImageRecord], str]) -> list[list[ImageRecord]]:
    """Records with the same key, where there are several."""
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return [group for group in groups.values() if len(group) > 1]


def _leak(kind: str, what: str, pairs: list[tuple[ImageRecord, ImageRecord]], sizes: Counter) -> Finding:
    """pairs: an image and its like in a later split, whose scores suffer."""
    leaked = Counter(split for split, _ in {(later.split, later.key) for _, later in pairs})
    share = max(count / sizes[split] for split, count in leaked.items())
    counts = ", ".join(f"{count} of {count_of(sizes[split], f'{split} image')}" for split, count in leaked.items())
    listed = shorten(f"{later.key} = {earlier.key}" for earlier, later in pairs)
    exact = kind == "duplicate-across-splits"
    return finding(
        kind,
        ERROR if exact and share > MAX_LEAK else WARNING,
        f"{counts} {agree(leaked.total(), 'shows/show')} {what} as another split, which flatters its scores: {listed}",
        "delete them from one of the splits"
        if exact
        else "keep what was taken together on one side: --train_val_split 0.2 --split_groups PATTERN",
        dict.fromkeys(key for earlier, later in pairs for key in (later.key, earlier.key)),
    )


def _near_duplicate_faults(decoded: Sequence[ImageRecord], sizes: Counter) -> list[Finding]:
    """Exact duplicates are left out: of each picture in a split one is compared."""
    by_split: dict[str, dict[str, ImageRecord]] = defaultdict(dict)
    for record in decoded:
        by_split[record.split].setdefault(record.image_digest, record)
    splits = {split: list(found.values()) for split, found in by_split.items()}
    prints = {
        split: (
            np.array([record.image_hash for record in found], np.uint64),
            normalized_thumbnails([record.thumbnail for record in found]),
        )
        for split, found in splits.items()
    }
    findings, across = [], {}
    order = list(splits)
    for index, later in enumerate(order):
        for earlier in order[:index]:
            for known in (prints[earlier], mirrored(*prints[earlier])):
                matches = best_matches(*prints[later], *known)
                for i in np.flatnonzero(matches >= 0).tolist():
                    pair = splits[earlier][matches[i]], splits[later][i]
                    if pair[0].image_digest != pair[1].image_digest:
                        across.setdefault(pair[1].key, pair)
    if across:
        what = "nearly the same image (or its mirror image)"
        findings.append(_leak("near-duplicate-across-splits", what, list(across.values()), sizes))
    inside = []
    for split, found in splits.items():
        matches = best_matches(*prints[split], *prints[split], earlier=True)
        inside += [(found[matches[i]], found[i]) for i in np.flatnonzero(matches >= 0).tolist()]
    if inside:
        listed = shorten(f"{later.key} ~ {earlier.key}" for earlier, later in inside)
        counted = count_of(len(inside), "image/images is/are")
        message = f"{counted} nearly the same as another one in the same split: {listed}"
        fix = "harmless in training; for a split of your own, keep such images on one side (--split_groups)"
        files = dict.fromkeys(record.key for pair in inside for record in pair)
        findings.append(finding("near-duplicate-in-split", INFO, message, fix, files))
    return findings
