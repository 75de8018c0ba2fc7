"""Which folder holds the images and which the masks, and what pairs their files: tried out, scored by pairs made.

A candidate is a set of images, a set of masks and a rule of names: equal names, or names that are equal once a suffix
or prefix is taken off. The candidate that makes the most pairs is taken; another that pairs the same files otherwise,
and about as many, makes the choice a guess, and that is an error which names both.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cli_utils import UserError, shorten
from data.image_files import FORMATS
from data.layouts import IMAGES, MASKS, OTHER, SPLIT_OF, Picture, Tree, read_name, words_of
from data.synonyms import (
    IMAGE_EXTENSIONS,
    IMAGE_PREFIXES,
    IMAGE_SUFFIXES,
    IMAGE_WORDS,
    MASK_EXTENSIONS,
    MASK_PREFIXES,
    MASK_SUFFIXES,
    MASK_WORDS,
    OTHER_SUFFIXES,
    PREFERRED_SUFFIXES,
)

RIVAL_SHARE = 0.5  # another way to pair the same files counts if it makes so many of the best one's pairs
SAMPLE = 2000  # names from which suffixes are guessed
MAX_UNKNOWN = 12  # folders whose names say nothing that are tried against each other
LOOKED_AT = 6  # pairs that are opened where names do not tell images from masks
FEW_COLORS = 64  # a mask has no more in one picture; photographs have thousands


class Entry(NamedTuple):
    """A picture on one side. rest: folders that its counterpart should lie in as well."""

    picture: Picture
    split: str | None
    rest: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """title: what messages call it. tier: 0 if its folder's name says what it holds, 1 if it has none, 2 if it says
    nothing."""

    title: str
    entries: list[Entry]
    tier: int = 0


class Rule(NamedTuple):
    """What is taken off the names of either side; files without it do not take part."""

    image_prefix: str = ""
    image_suffix: str = ""
    mask_prefix: str = ""
    mask_suffix: str = ""
    takes_extension: bool = False  # a.jpg.png belongs to a.jpg
    differs_in_extension: bool = False  # a.png belongs to a.jpg, in one folder
    image_word: str = ""  # cam_rgb_1 belongs to cam_label_1
    mask_word: str = ""

    def __str__(self) -> str:
        parts = [
            f"{side} with {text.strip() or repr(text)} {where}"
            for side, text, where in (
                ("images", self.image_prefix, "in front"),
                ("images", self.image_suffix, "at the end"),
                ("masks", self.mask_prefix, "in front"),
                ("masks", self.mask_suffix, "at the end"),
                ("images", self.image_word, "within"),
                ("masks", self.mask_word, "within"),
            )
            if text
        ]
        parts += ["masks with the images' extensions in their names"] * self.takes_extension
        parts += ["told by extension and pixels"] * self.differs_in_extension
        return ", ".join(["by name", *parts])

    def image_key(self, stem: str) -> str | None:
        return _without_word(_stripped(stem, self.image_prefix, self.image_suffix), self.image_word)

    def mask_key(self, stem: str) -> str | None:
        key = _without_word(_stripped(stem, self.mask_prefix, self.mask_suffix), self.mask_word)
        if key is None or not self.takes_extension:
            return key
        name, _, extension = key.rpartition(".")
        return name if f".{extension.lower()}" in IMAGE_EXTENSIONS and name else None


class Match(NamedTuple):
    image: Entry
    mask: Entry
    name: str


@dataclass(frozen=True)
class Candidate:
    """unclear: (images, masks) of which one or the other are several that would do equally well."""

    images: Side
    masks: Side
    rule: Rule
    matches: list[Match]
    unclear: list[tuple[list[Entry], list[Entry]]]
    tier: int

    @property
    def is_one_folder(self) -> bool:
        return self.images.title == self.masks.title

    def __str__(self) -> str:
        if self.is_one_folder:
            return f"images and masks in {self.images.title} ({self.rule})"
        return f"images in {self.images.title}, masks in {self.masks.title} ({self.rule})"

    @property
    def flags(self) -> str:
        """The flags that choose it."""
        flags = [f"--images {_quoted(self.images.title)} --masks {_quoted(self.masks.title)}"]
        flags += [f"--image_suffix {_quoted(self.rule.image_suffix)}"] * bool(self.rule.image_suffix)
        flags += [f"--mask_suffix {_quoted(self.rule.mask_suffix)}"] * bool(self.rule.mask_suffix)
        return " ".join(flags)


def _quoted(text: str) -> str:
    return f"'{text}'" if set(text) & set(" *()[]{}$&;'") else text or "."


def _stripped(stem: str, prefix: str, suffix: str) -> str | None:
    """A stem without what must stand before and behind it; capitals do not count."""
    if len(stem) <= len(prefix) + len(suffix):
        return None
    if not stem[: len(prefix)].casefold() == prefix.casefold():
        return None
    if suffix and not stem[-len(suffix) :].casefold() == suffix.casefold():
        return None
    return stem[len(prefix) : len(stem) - len(suffix)]


def _parts(stem: str) -> list[str]:
    """Words, and what stands between them, in turn."""
    return re.split(r"([\W_]+)", stem)


def _without_word(stem: str | None, word: str) -> str | None:
    """A stem without a word, which must stand in it once, and without what parts it from the one before."""
    if stem is None or not word:
        return stem
    parts = _parts(stem)
    places = [i for i in range(0, len(parts), 2) if parts[i].casefold() == word]
    if len(places) != 1 or len(parts) == 1:
        return None
    [at] = places
    return "".join(parts[: at - 1] + parts[at + 1 :] if at else parts[2:])


# ---- sides ----------------------------------------------------------------------------------------------------------


def sides_of(tree: Tree) -> tuple[list[Side], list[Side], list[Side]]:
    """Sides of images, of masks, and of pictures of which the names of folders do not say what they are."""
    groups: dict[tuple, list[Entry]] = defaultdict(list)
    for picture in tree.pictures:
        place = picture.place
        groups[place.role, place.side].append(Entry(picture, place.split, place.rest))
    images = [Side(title_of(entries), entries) for (role, _), entries in groups.items() if role == IMAGES]
    masks = [Side(title_of(entries), entries) for (role, _), entries in groups.items() if role == MASKS]
    unknown = groups.get((None, ()), [])
    sides = []
    plain = [entry for entry in unknown if not entry.rest]
    if plain:
        sides.append(Side(title_of(plain), plain, 1))
    words = Counter(word for entry in unknown for word in dict.fromkeys(entry.rest))
    if len(words) <= MAX_UNKNOWN:
        for word in words:
            entries = [
                entry._replace(rest=tuple(part for part in entry.rest if part != word))
                for entry in unknown
                if word in entry.rest
            ]
            sides.append(Side(title_of(entries), entries, 2))
    if words and len(unknown) > max([len(plain), *words.values()]):
        sides.append(Side(title_of(unknown), unknown, 2))
    return images, masks, sides


def title_of(entries: Sequence[Entry]) -> str:
    """The folder of some files, with * for what differs: `*/images` for train/images and val/images."""
    folders = list(dict.fromkeys(entry.picture.parts for entry in entries))
    if len({len(parts) for parts in folders}) > 1 or len(folders) > 1 and _role_depth(folders[0]) is not None:
        # Up to the last name that tells the role; what lies deeper belongs to the names of files.
        depths = {_role_depth(parts) for parts in folders}
        cut = [parts[: depth + 1] for parts in folders if (depth := _role_depth(parts)) is not None]
        folders = list(dict.fromkeys(cut)) if None not in depths else folders
    if len({len(parts) for parts in folders}) > 1:
        shared = commonprefix(folders)
        return "/".join(shared) or "."
    columns = [set(names) for names in zip(*folders, strict=True)]
    return "/".join(next(iter(names)) if len(names) == 1 else _pattern(names) for names in columns) or "."


def _role_depth(parts: tuple[str, ...]) -> int | None:
    return max((i for i, name in enumerate(parts) if read_name(name).role in (IMAGES, MASKS)), default=None)


def _pattern(names: set[str]) -> str:
    """`*_masks` for train_masks and val_masks."""
    front = commonprefix(sorted(names))
    back = commonprefix([name[len(front) :][::-1] for name in sorted(names)])[::-1]
    return f"{front}*{back}"


# ---- matching -------------------------------------------------------------------------------------------------------


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def match(
    images: Sequence[Entry], masks: Sequence[Entry], rule: Rule
) -> tuple[list[Match], list[tuple[list[Entry], list[Entry]]]]:
    """Pairs of equal names in equal folders; then of names that differ in capitals alone; then of equal names where
    one lies in a folder more than the other and each is the only one of its name. A name with several files on a side
    makes no pair."""
    keyed_images = [(entry, key) for entry in images if (key := rule.image_key(entry.picture.stem)) is not None]
    keyed_masks = [(entry, key) for entry in masks if (key := rule.mask_key(entry.picture.stem)) is not None]
    # A split that one side alone has is the pair's.
    with_split = any(entry.split for entry, _ in keyed_images) and any(entry.split for entry, _ in keyed_masks)

    def exact(entry: Entry, key: str):
        return entry.split if with_split else None, entry.rest, unicodedata.normalize("NFC", key)

    def loose(entry: Entry, key: str):
        return entry.split if with_split else None, tuple(map(_folded, entry.rest)), _folded(key)

    def by_name(entry: Entry, key: str):
        return entry.split if with_split else None, _folded(key)

    matches, unclear, done = [], [], set()
    for level in (exact, loose, by_name):
        if len(matches) == min(len(keyed_images), len(keyed_masks)):
            break
        left, right = defaultdict(list), defaultdict(list)
        for entry, key in keyed_images:
            left[level(entry, key)].append((entry, key))
        for entry, _ in keyed_masks:
            right[level(entry, _)].append(entry)
        unclear = []
        for key, found in left.items():
            others = right.get(key)
            if not others:
                continue
            open_images = [(entry, name) for entry, name in found if id(entry) not in done]
            open_masks = [entry for entry in others if id(entry) not in done]
            if level is not by_name:  # what an equal name paired needs no other
                found, others = open_images, open_masks
            if not open_images or not open_masks:
                continue
            if len(found) > 1 or len(others) > 1:
                unclear.append(([entry for entry, _ in found], others))
                continue
            (entry, name), mask = found[0], others[0]
            if level is by_name and not (_lies_within(entry.rest, mask.rest) or _lies_within(mask.rest, entry.rest)):
                continue
            done |= {id(entry), id(mask)}
            matches.append(Match(entry, mask, "/".join((*entry.rest, name))))
    return matches, unclear


def _lies_within(shorter: Sequence[str], longer: Sequence[str]) -> bool:
    """Whether all names stand in the longer path in the same order."""
    rest = iter([_folded(name) for name in longer])
    return all(_folded(name) in rest for name in shorter)


# ---- rules ----------------------------------------------------------------------------------------------------------


def _table_hits(stems: Iterable[str], suffixes: Sequence[str], prefixes: Sequence[str]) -> list[tuple[str, str]]:
    """(prefix, suffix) of the tables that names have."""
    folded = [stem.casefold() for stem in stems]
    found = []
    for text in {text.casefold(): text for text in suffixes}.values():
        if any(stem.endswith(text.casefold()) for stem in folded):
            found.append(("", text))
    for text in {text.casefold(): text for text in prefixes}.values():
        if any(stem.startswith(text.casefold()) for stem in folded):
            found.append((text, ""))
    return found


def _guesses(longer: Sequence[str], shorter: set[str], support: int) -> list[tuple[str, str]]:
    """(prefix, suffix) without which at least so many names become names of the other side. What is taken off must not
    begin, or as a prefix end, with a digit, as numbers are cut in two that way."""
    counts: Counter = Counter()
    for stem in longer:
        for cut in range(1, len(stem)):
            if stem[:cut] in shorter and not stem[cut].isdigit():
                counts["", stem[cut:]] += 1
            if stem[cut:] in shorter and not stem[cut - 1].isdigit():
                counts[stem[:cut], ""] += 1
    support = max(support, RIVAL_SHARE * min(len(longer), len(shorter)))
    return [affix for affix, count in counts.most_common(4) if count >= support]


def _shared_endings(stems: Sequence[str]) -> list[tuple[str, str]]:
    """("", what all names end with, from a word on); none where that is a number."""
    ending = commonprefix([stem[::-1] for stem in stems])[::-1]
    start = next((i for i, sign in enumerate(ending) if re.match(r"[\W_]", sign)), None)
    return [("", ending[start:])] if start is not None and re.search(r"[^\W\d_]", ending[start:]) else []


def _shared_words(stems: Sequence[str]) -> set[str]:
    """Words that all names have, but for numbers and letters."""
    shared = set.intersection(*({*_parts(stem.casefold())[::2]} for stem in stems))
    return {word for word in shared if len(word) > 1 and not word.isdigit() and word not in SPLIT_OF}


def _rules_of_words(image_stems: Sequence[str], mask_stems: Sequence[str]) -> list[Rule]:
    """What all names of a side share, and none of the other, is not what pairs them, if a word of it says which side
    it is: `cam_rgb_1` and `cam_label_1`, `a_rgb_anon` and `a_gt_labelTrainIds`."""

    def tells(*texts: str) -> bool:
        words = {word for text in texts for word in words_of(text)}
        return bool(words & (IMAGE_WORDS | MASK_WORDS))

    if min(len(image_stems), len(mask_stems)) < 2:  # all names of one are no rule
        return []
    endings = _shared_endings(image_stems), _shared_endings(mask_stems)
    rules = [Rule(*image, *mask) for image in endings[0] for mask in endings[1] if tells(image[1], mask[1])]
    of_images, of_masks = _shared_words(image_stems), _shared_words(mask_stems)
    of_images, of_masks = of_images - of_masks or {""}, of_masks - of_images or {""}
    rules += [Rule(image_word=a, mask_word=b) for a in of_images for b in of_masks if tells(a, b)]
    return rules


def rules_for(images: Sequence[Entry], masks: Sequence[Entry], is_one_folder: bool, tier: int) -> list[Rule]:
    """What might make the names of two sides equal, but for what already does. tier: see `Side`."""
    step = max(1, len(images) // SAMPLE), max(1, len(masks) // SAMPLE)
    image_stems = [entry.picture.stem for entry in images[:: step[0]]]
    mask_stems = [entry.picture.stem for entry in masks[:: step[1]]]
    of_masks = _table_hits(mask_stems, MASK_SUFFIXES, MASK_PREFIXES)
    of_images = _table_hits(image_stems, IMAGE_SUFFIXES, IMAGE_PREFIXES)
    if is_one_folder:
        rules = [Rule("", "", *affix) for affix in of_masks]
    else:
        support = 1 if tier == 0 else 2  # one pair may come about by chance, unless the folders' names say the same
        of_masks += _guesses(mask_stems, {entry.picture.stem for entry in images}, support)
        of_images += _guesses(image_stems, {entry.picture.stem for entry in masks}, support)
        rules = [Rule("", "", *affix) for affix in of_masks] + [Rule(*affix) for affix in of_images]
    rules += [Rule(*image, *mask) for image in of_images for mask in of_masks]
    ends = (re.findall(r"\.[a-z0-9]+", stem.lower()) for stem in mask_stems)  # a.jpg of a.jpg.png, a.jpg___fuse.png
    has_extension = any(IMAGE_EXTENSIONS.intersection(found) for found in ends)
    plain = [Rule("", "", *affix) for affix in [("", ""), *of_masks]]
    rules += [rule._replace(takes_extension=True) for rule in plain] * has_extension
    rules += _rules_of_words(image_stems, mask_stems) if not is_one_folder else []
    # `_Mask` in the table and guessed are one.
    return list({tuple(map(_rule_key, rule)): rule for rule in rules}.values())


def _rule_key(part):
    return part.casefold() if isinstance(part, str) else part


# ---- candidates -----------------------------------------------------------------------------------------------------


def candidates_of(
    images: Side, masks: Side, mask_suffix: str | None = None, image_suffix: str | None = None
) -> list[Candidate]:
    """All rules that pair files of two sides; one and the same side holds images and masks."""
    is_one_folder = images is masks
    left = [entry for entry in images.entries if entry.picture.extension in IMAGE_EXTENSIONS]
    right = [entry for entry in masks.entries if entry.picture.extension in MASK_EXTENSIONS]
    tier = max(images.tier, masks.tier)
    found = []

    def add(rule: Rule) -> None:
        ours, theirs = left, right
        if is_one_folder:
            theirs = [entry for entry in right if rule.mask_key(entry.picture.stem) is not None]
            taken = set(map(id, theirs))
            ours = [entry for entry in left if id(entry) not in taken]
        matches, unclear = match(ours, theirs, rule)
        if matches or unclear:
            sides = replace(images, entries=ours), replace(masks, entries=theirs)
            found.append(Candidate(*sides, rule, matches, unclear, tier))

    if mask_suffix is not None or image_suffix is not None:
        fixed = Rule("", image_suffix or "", "", mask_suffix or "")
        rules = [fixed, *(rule for rule in rules_for(left, right, is_one_folder, tier) if _fits(rule, fixed))]
        for rule in dict.fromkeys(rules):
            if not is_one_folder or rule.mask_suffix or rule.mask_prefix:
                add(rule)
        return found
    if not is_one_folder:
        add(Rule())
        made = len(found[0].matches) if found else 0
        # Only files that are left over could be paired otherwise, so few of them are no rival.
        if made and max(len(left), len(right)) - made < RIVAL_SHARE * made:
            return found
    for rule in rules_for(left, right, is_one_folder, tier):
        add(rule)
    return found


def _fits(rule: Rule, fixed: Rule) -> bool:
    """Whether a rule has the suffixes asked for, and may add to the other side."""
    sides = (
        (fixed.mask_suffix, rule.mask_suffix, rule.mask_prefix),
        (fixed.image_suffix, rule.image_suffix, rule.image_prefix),
    )
    return all(not wanted or (has == wanted and not prefix) for wanted, has, prefix in sides)


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with most pairs.

    Raises:
        UserError: another pairs the same files otherwise, and about as many, or as many other ones.
    """
    candidates = [candidate for candidate in candidates if candidate.matches]
    for better, suffix in enumerate(PREFERRED_SUFFIXES):
        if any(candidate.rule.mask_suffix == suffix for candidate in candidates):
            others = PREFERRED_SUFFIXES[better + 1 :]
            candidates = [candidate for candidate in candidates if candidate.rule.mask_suffix not in others]
    if not candidates:
        return None
    # Of equals the one that takes least off.
    best = max(candidates, key=lambda candidate: (len(candidate.matches), -sum(map(bool, candidate.rule))))
    rival = next((other for other in candidates if _is_rival(other, best)), None)
    if rival is None:
        return best
    # In one folder, masks in colours may have the names of images: `a.jpg`, `a_mask.png`, `a_color.png`.
    clear = [found for found in candidates if not found.is_one_folder or _looks_right(found.matches)]
    if 0 < len(clear) < len(candidates):
        return best_of(clear)
    said = f"{best} make {len(best.matches)} pairs, and {rival} make {len(rival.matches)}; "
    if best.flags == rival.flags:  # which say no more than that
        raise UserError(f"{said}join the masks of an image in one file, or move those away that are not meant")
    raise UserError(f"{said}say which are meant: {best.flags}, or {rival.flags}")


def _is_rival(other: Candidate, best: Candidate) -> bool:
    mask_of = {id(pair.image.picture): id(pair.mask.picture) for pair in best.matches}
    image_of = {mask: image for image, mask in mask_of.items()}
    pairs = {id(pair.image.picture): id(pair.mask.picture) for pair in other.matches}
    shared = sum(mask_of.get(image) == mask for image, mask in pairs.items())
    contrary = sum(
        (image in mask_of and mask_of[image] != mask) or (mask in image_of and image_of[mask] != image)
        for image, mask in pairs.items()
    )
    if contrary and len(pairs) >= RIVAL_SHARE * len(best.matches):
        return True
    elsewhere = (other.images.title, other.masks.title) != (best.images.title, best.masks.title)
    return elsewhere and not shared and not contrary and len(pairs) == len(best.matches)


# ---- looking into files ---------------------------------------------------------------------------------------------


def told_by_content(candidates: Iterable[Candidate], names_tell: bool = False) -> list[Candidate]:
    """Of candidates whose names do not say which side holds the masks, those where the files do: few colours in every
    mask and, unless names tell that much, many in most images."""
    return [found for found in candidates if found.matches and _looks_right(found.matches, names_tell)]


def _looks_right(matches: Sequence[Match], names_tell: bool = False) -> bool:
    step = max(1, len(matches) // LOOKED_AT)
    looked_at = matches[::step][:LOOKED_AT]
    if not all(_has_few_colors(pair.mask.picture) for pair in looked_at):
        return False
    many = [_has_few_colors(pair.image.picture) is False for pair in looked_at]
    return names_tell or sum(many) > len(many) / 2


def _has_few_colors(picture: Picture) -> bool | None:
    """None: it cannot be read."""
    try:
        with Image.open(picture.path, formats=FORMATS) as image:
            if image.mode == "1":
                return True
            return image.getcolors(FEW_COLORS) is not None
    except Exception:  # a decoder may raise anything on a damaged file
        return None


def pair_by_extension(side: Side) -> Candidate | None:
    """`a.jpg` and `a.png` in one folder: the photograph is the image, the other one its mask, as their pixels say."""
    lossy = {".jpg", ".jpeg", ".jfif"}
    images = [entry for entry in side.entries if entry.picture.extension in lossy]
    masks = [entry for entry in side.entries if entry.picture.extension in MASK_EXTENSIONS - lossy]
    matches, unclear = match(images, masks, Rule())
    if not matches or not _looks_right(matches):
        return None
    sides = replace(side, entries=images), replace(side, entries=masks)
    return Candidate(*sides, Rule(differs_in_extension=True), matches, unclear, 2)


def masks_among(tree: Tree) -> set[Path]:
    """Pictures that are masks of others there, or another form of these: those in folders called after masks by their
    names alone, all others if their pixels say so, too."""
    images, masks, unknown = sides_of(tree)
    found = [made for a in [*images, *unknown] for b in masks for made in candidates_of(a, b)]
    sides = [*images, *unknown]
    found += told_by_content((made for side in sides for made in candidates_of(side, side)), names_tell=True)
    found += told_by_content(made for a in sides for b in unknown if a is not b for made in candidates_of(a, b))
    found += filter(None, map(pair_by_extension, sides))
    pairs = [pair for made in found for pair in made.matches]
    known = {pair.mask.picture.path for pair in pairs}
    stems = {picture.stem for pair in pairs for picture in (pair.image.picture, pair.mask.picture)}
    others = (picture for picture in tree.pictures if picture.place.role == OTHER)
    return known | {
        picture.path for picture in others if picture.stem in stems or picture.stem.endswith(OTHER_SUFFIXES)
    }


def described_unclear(candidate: Candidate) -> str:
    """Why files of one name make no pair."""
    images, masks = candidate.unclear[0]
    for entries in (images, masks):
        for first, second in zip(entries, entries[1:], strict=False):
            if first.picture.parts == second.picture.parts and first.picture.stem == second.picture.stem:
                names = shorten(entry.picture.path.name for entry in (first, second))
                names = names.replace(", ", " and ")
                return f"{first.picture.path.parent} holds {names}, which differ in the extension alone"
    several, one = (images, masks) if len(images) > 1 else (masks, images)
    listed = " and ".join("/".join((*entry.picture.parts, entry.picture.path.name)) for entry in several[:2])
    pairs = [(entry, one[0]) if several is images else (one[0], entry) for entry in several[:2]]
    flags = [f"--images {_quoted(_for_all_splits(a))} --masks {_quoted(_for_all_splits(b))}" for a, b in pairs]
    advice = "; masks of one class each must be joined into one first" if several is masks else ""
    return (
        f"{listed} have one name, so which of them belongs to "
        f"{'/'.join((*one[0].picture.parts, one[0].picture.path.name))} cannot be told: {', or '.join(flags)}{advice}"
    )


def _for_all_splits(entry: Entry) -> str:
    """The folder of a picture, with * for the name of its split."""
    place = entry.picture.place
    return "/".join("*" if name in place.split_names else name for name in entry.picture.parts) or "."
