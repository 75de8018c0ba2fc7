"""The rules by which settings follow from data, machine and time: pure functions from facts to flags with a reason.

    settings = plan(data, machine, measured, goal)

`docs/planning.md` has every rule with its source and what was measured of it; the numbers stand here, above the rule
that they belong to. `training.plan_file` gathers the facts and writes the file.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cli_utils import UserError, count_of, shorten

if TYPE_CHECKING:
    from models.catalogue import Model


class Setting(NamedTuple):
    """A flag, its value, and the reason, one line without a full stop."""

    flag: str
    value: object
    why: str


@dataclass(frozen=True)
class ClassFacts:
    """Of a class in the training images.

    Attributes:
        share: of the labelled pixels. images: training images that have it.
        thickness: pixels; a tenth of its pixels lie in thinner objects. thinnest_half: the same of a half.
        octaves: by how many doublings of the side the larger of its objects differ from the smaller ones (9 in 10 and
            1 in 10 of its pixels).
    """

    name: str
    share: float
    images: int
    thickness: float = math.inf
    thinnest_half: float = math.inf
    octaves: float = 0.0


@dataclass(frozen=True)
class DataFacts:
    """Of a dataset. Sizes are medians, in pixels.

    Attributes:
        images, eval_images: in training and evaluation. different: training images that are not nearly the same as
            another one, estimated from `looked_at`.
        upside_down, turned: of `checks.survey.asymmetry`.
        channels: of the images.
    """

    images: int
    eval_images: int
    different: int
    looked_at: int
    height: int
    width: int
    classes: tuple[ClassFacts, ...]
    upside_down: float = 1.0
    turned: float = 1.0
    channels: int = 3

    @property
    def short_side(self) -> int:
        return min(self.height, self.width)

    @property
    def present(self) -> tuple[ClassFacts, ...]:
        return tuple(one for one in self.classes if one.images)


@dataclass(frozen=True)
class Machine:
    """device: torch's type. capability, memory: of a CUDA device; bytes that are free on it. cpus: that this process
    may use. threads: of torch. workers: that may load images at most."""

    device: str = "cpu"
    capability: tuple[int, int] | None = None
    memory: int = 8 * 2**30
    cpus: int = 1
    threads: int = 1
    workers: int = 8


@dataclass(frozen=True)
class Measured:
    """What was tried with the model at one side of the crop.

    Attributes:
        side: of the crop, in pixels.
        steps: images in a step → seconds of a step, loading left out. limit: why there are no more.
        eval_seconds: for an image of the evaluation. load_seconds: for a training example, in one process.
        stride: pixels of the input for each cell of the output.
    """

    side: int
    steps: Mapping[int, float]
    eval_seconds: float
    load_seconds: float
    stride: int = 4
    limit: str = ""


@dataclass(frozen=True)
class Goal:
    """What is trained for how long.

    Attributes:
        fresh: what starts at random: "all", "head", "classifier" or "nothing".
        minutes: for all of the run; None: as long as it pays.
        trains_encoder: False where it is frozen or adapted.
        decays_by: of `training.optimizer.decays_by`.
    """

    fresh: str = "head"
    minutes: float | None = None
    trains_encoder: bool = True
    decays_by: str | None = None
    given: Collection[str] = field(default_factory=tuple)


# ---- model ----------------------------------------------------------------------------------------------------------

LARGE_MODEL_MINUTES, LARGE_MODEL_STEPS = 30, 4
SCRATCH = "mit-b0"


def choose_model(
    data: DataFacts,
    machine: Machine,
    minutes: float | None,
    commercial: bool,
    models: "Mapping[str, Model]",
    is_at_hand: Callable[[str], bool] = lambda source: True,
) -> list[Setting]:
    """Of the models that score pixels and that anybody can load: those of which there is one trained on ADE20K, or,
    for commercial use, those whose weights allow that. The one with the most parameters of which four steps at batch 2
    fit into the memory of an accelerator, if there is half an hour; else the one that computes least. Trained on
    ADE20K, where it is to be had, for photos that have a top. The next one, where one is not at hand, and random
    weights where none is, as without network.

    models: of `models.catalogue`. is_at_hand: whether the weights of a Hub id can be loaded.
    """
    usable = [
        one
        for one in models.values()
        if one.scores_pixels and one.licence.open and (one.licence.commercial if commercial else one.on_ade20k)
    ]
    room = MEMORY_USED * machine.memory / 2**30 / LARGE_MODEL_STEPS
    has_time = machine.device != "cpu" and (minutes is None or minutes >= LARGE_MODEL_MINUTES)
    fitting = [one for one in usable if has_time and one.cost.step is not None and one.cost.step <= room]
    fitting.sort(key=lambda one: -one.cost.parameters)
    rest = sorted((one for one in usable if one not in fitting), key=lambda one: one.cost.gflops)
    is_photo = data.channels == 3 and has_top(data.upside_down, data.different) is not False
    missing = []
    for model in [*fitting, *rest]:
        choice = {"model_name_or_path": model.on_ade20k} if is_photo and model.on_ade20k else model.choice
        (flag, source), *more = choice.items()
        if not is_at_hand(source):
            missing.append(source)
            continue
        reason = "there is memory and time for it" if model in fitting else "it computes least, for this machine"
        reason += f": {model.cost.parameters:g} M parameters"
        if model.cost.step is not None:
            reason += f", {model.cost.step:g} GiB for a step of 2 images of 512 px"
        if source == model.on_ade20k:
            reason += "; it knows photos of 150 classes (ADE20K), and only its last layer starts fresh"
        if missing:
            reason += f"; {missing[0]} is not to be had now, neither from the Hub nor from the cache"
        reason += f". Weights for commercial use? {model.licence.text[0].upper()}{model.licence.text[1:]}"
        if not model.licence.commercial:
            reason += "; --commercial takes others"
        return [Setting(flag, source, reason), *(Setting(*one, "a fresh one on it") for one in more)]
    reason = (
        f"RANDOM WEIGHTS, which learn slowly and end far lower: {missing[0]} is not to be had, neither from the Hub "
        "nor from the cache of downloads, as without network. Plan again with network, or with its files in a folder: "
        "--model_name_or_path FOLDER"
    )
    return [Setting("from_scratch", SCRATCH, reason)]


# ---- split ----------------------------------------------------------------------------------------------------------

VALIDATION, VALIDATION_OF_FEW, FEW_IMAGES, MOST_VALIDATION = 0.2, 0.25, 30, 500
# What images of one sequence, place or photo have in common in their names, the finest first.
GROUP_PATTERNS = (r"^(.*\D)\d+$", r"^([^_\-]+)[_\-]", r"^(.*)/")
LEAST_OF_GROUP, LEAST_GROUPS = 3, 3


def validation_share(images: int) -> Setting:
    """A fifth, more of very few images, and no more than are needed."""
    if images < FEW_IMAGES:
        why = f"there is no validation split; a quarter of {images} images, and the interval of scores will be wide"
        return Setting("train_val_split", VALIDATION_OF_FEW, why)
    share = min(VALIDATION, MOST_VALIDATION / images)
    why = f"there is no validation split; {round(share * images)} of {images} images are kept for it"
    return Setting("train_val_split", float(f"{share:.2g}"), why)


def split_groups(names: Sequence[str], classes: Sequence[Collection[int]]) -> Setting | None:
    """Groups that names show: at least 3, of 3 images on average, that share their classes; None for none.

    A needless grouping costs little, and one that is missed makes scores too good: neighbouring frames of a video, or
    tiles of a photo, on both sides.

    classes: training ids in each image; names that start with their class (rust_001) are no sequences.
    """
    for pattern in GROUP_PATTERNS:
        found = [re.search(pattern, name) for name in names]
        if not all(found):
            continue
        keys = [match[1] for match in found]
        sizes = Counter(keys)
        if len(sizes) < LEAST_GROUPS or len(names) < LEAST_OF_GROUP * len(sizes):
            continue
        of_group = defaultdict(set)
        for key, ids in zip(keys, classes, strict=True):
            of_group[key].update(ids)
        holders = Counter(i for ids in of_group.values() for i in ids)
        if all(any(holders[i] == 1 for i in ids) for ids in of_group.values()):
            continue
        shown = shorten((f"{key}… {count}" for key, count in sizes.most_common()), 3)
        why = f"names show {len(sizes)} sequences or places ({shown}); each stays on one side"
        if len(sizes) < 5:
            why += "; so few that the score of one says little of others"
        return Setting("split_groups", pattern, why)
    return None


# ---- sizes ----------------------------------------------------------------------------------------------------------

SIZES = (128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048)
# Cells of the output across an object: what is wanted, and below which it can hardly be there at all.
CELLS_WANTED, CELLS_NEEDED = 4, 2
JUDGED_SHARE = 0.0005  # of the pixels, below which a class does not choose the size
SMALLEST_PRETRAINED, SMALLEST_SCRATCH = 512, 256
LARGEST_CROP = 768  # larger pictures are cut into windows


def wanted_size(data: DataFacts, pretrained: bool, stride: int = 4) -> Setting:
    """The smallest size at which the thin parts of classes keep four cells of the output, within what the pictures
    have; not below what the model was trained at.
    """
    largest = max(SMALLEST_SCRATCH, math.ceil(data.short_side / 32) * 32)
    smallest = min(SMALLEST_PRETRAINED if pretrained else SMALLEST_SCRATCH, largest)
    thin = thinnest(data)
    if thin is None or math.isinf(thin.thickness):
        return Setting("image_size", smallest, f"objects are large enough at {smallest}")
    needed = CELLS_WANTED * stride * data.short_side / thin.thickness
    size = next((size for size in SIZES if size >= max(needed, smallest)), SIZES[-1])
    size = min(size, largest)
    pixels = thin.thickness * size / data.short_side
    said = f"a tenth of '{thin.name}' is thinner than {thin.thickness:.3g} px of {data.short_side}"
    if size == smallest:
        return Setting("image_size", size, f"{said}: {size} keeps {pixels / stride:.2g} cells of the output")
    if pixels < CELLS_WANTED * stride:
        return Setting("image_size", size, f"{said}: all that the pictures have, {pixels / stride:.2g} cells")
    return Setting("image_size", size, f"{said}: {size} keeps {pixels / stride:.2g} cells of the output")


def thinnest(data: DataFacts) -> ClassFacts | None:
    """The class whose thin parts are thinnest, of those with pixels enough to matter."""
    judged = [one for one in data.present if one.share >= JUDGED_SHARE]
    return min(judged, key=lambda one: one.thickness, default=None)


def affordable_size(
    size: int, data: DataFacts, steps: float, wanted_steps: int, pretrained: bool, stride: int = 4
) -> Setting | None:
    """A smaller size where the budget has too few steps at this one; None to stay.

    Time goes with the area, so half of the side makes four times as many steps. But no number of steps shows what has
    vanished: the thin parts of half of the classes keep two cells of the output.

    steps: that there is time for at `size`.
    """
    if steps >= wanted_steps:
        return None
    needed = CELLS_NEEDED * stride * data.short_side / median_thickness(data)
    floor = max(SMALLEST_SCRATCH if pretrained else SIZES[0], needed)
    reached = size * math.sqrt(max(steps, 1e-9) / wanted_steps)
    smaller = [one for one in SIZES if floor <= one < size]
    if not smaller:
        return None
    chosen = max((one for one in smaller if one <= reached), default=smaller[0])
    why = f"at {size} there is time for {steps:.0f} steps, at {chosen} for {steps * (size / chosen) ** 2:.0f}"
    return Setting("image_size", chosen, why)


def median_thickness(data: DataFacts) -> float:
    """Pixels; the thin parts of half of the classes are no thicker."""
    thicknesses = sorted(one.thickness for one in data.present if one.share >= JUDGED_SHARE)
    return thicknesses[(len(thicknesses) - 1) // 2] if thicknesses else math.inf


def crop_settings(size: int, data: DataFacts) -> list[Setting]:
    """Crops and windows of 512 or 768 where pictures are shown at more than 768."""
    if size <= LARGEST_CROP:
        return []
    crop = LARGEST_CROP if size < 2 * LARGEST_CROP else 512
    why = f"pictures are shown at {size} so that small things stay; crops of {crop} fit into memory"
    return [
        Setting("crop_size", crop, why),
        Setting("slide_crop", crop, "evaluation looks through windows of the size that was trained on"),
    ]


# ---- augmentation ---------------------------------------------------------------------------------------------------

NO_TOP, HAS_TOP, LEAST_LOOKED_AT = 0.3, 0.5, 20
SIDES = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)", re.IGNORECASE)
ALIKE_OCTAVES = 1.0
FEW_EPOCHS = 10


def has_top(asymmetry: float, different: int) -> bool | None:
    """Whether pictures have a top, by `checks.survey.asymmetry`; None where it cannot be said."""
    if asymmetry >= HAS_TOP:
        return True
    return False if asymmetry < NO_TOP and different >= LEAST_LOOKED_AT else None


def flip_settings(data: DataFacts) -> list[Setting]:
    """Vertical flips and quarter turns where pictures have no top; no flip where classes are called left and right."""
    named = [one.name for one in data.classes if SIDES.search(one.name)]
    if named:
        why = f"{shorten(named)}: a mirror image would make one of the other"
        return [Setting("flip_probability", 0.0, why)]
    settings = []
    vertical = has_top(data.upside_down, data.different)
    if vertical is False:
        why = f"upside down they look the same on average ({data.upside_down:.2f}; with a top it is over {HAS_TOP})"
        settings.append(Setting("vertical_flip_probability", 0.5, why))
        if has_top(data.turned, data.different) is False:
            why = f"and turned as well ({data.turned:.2f})"
            settings.append(Setting("quarter_turns", True, why))
    return settings


def scale_range(data: DataFacts, epochs: float) -> Setting | None:
    """Narrower than the published 0.5 to 2 where objects differ little in size, or where there is little time."""
    narrow = [0.75, 1.33]
    if epochs < FEW_EPOCHS:
        return Setting("scale_range", narrow, f"{epochs:.2g} epochs: too few to learn the same things at many sizes")
    alike = [one.octaves < ALIKE_OCTAVES for one in data.present]
    if alike and np.mean(alike) >= 0.8:
        why = f"in {sum(alike)} of {len(alike)} classes the larger objects are less than twice as wide as the smaller"
        return Setting("scale_range", narrow, why)
    return None


def color_setting(data: DataFacts, epochs: float) -> Setting | None:
    if data.channels != 3:
        return Setting("photometric_distortion", False, f"{data.channels} bands are no photos in colour")
    if epochs < FEW_EPOCHS:
        return Setting("photometric_distortion", False, f"{epochs:.2g} epochs: too few to learn other colours as well")
    return None


# ---- rare classes ---------------------------------------------------------------------------------------------------

IMBALANCE, LEAST_IMAGES = 50, 5
RARE_SHARE, THIN_PIXELS = 0.005, 8
FOREGROUND = 0.1


def rare_settings(data: DataFacts, size: int, crop: int) -> list[Setting]:
    """Crops around rare classes where shares differ by more than 50 times, weights where crops cannot help, as each
    shows the class anyway; Dice beside cross-entropy where the foreground is little or thin."""
    settings = []
    judged = [one for one in data.present if one.images >= min(LEAST_IMAGES, data.images)]
    if len(judged) < 2:
        return []
    rare, common = (function(judged, key=lambda one: one.share) for function in (min, max))
    if common.share > IMBALANCE * rare.share:
        ratio = f"'{common.name}' has {common.share / rare.share:,.0f} times the pixels of '{rare.name}'"
        everywhere = rare.images >= 0.95 * data.images and crop >= size
        if everywhere and rare.share < RARE_SHARE:
            settings.append(Setting("class_weights", "auto", f"{ratio}, which nearly every image has"))
        elif not everywhere:
            settings.append(Setting("rare_class_crops", 0.5, f"{ratio}: half of the crops show a rare class"))
            settings.append(Setting("max_class_share", 1.0, "crops around rare classes do what this rule is for"))
    thin = [one.name for one in judged if one.thinnest_half * size / data.short_side < THIN_PIXELS]
    foreground = len(data.present) == 2 and rare.share < FOREGROUND
    if foreground:
        settings.append(Setting("loss", "ce+dice", f"'{rare.name}' has {rare.share:.2%} of the pixels"))
    elif thin:
        why = f"half of {shorten(map(repr, thin))} is less than {THIN_PIXELS} px wide at {size}"
        settings.append(Setting("loss", "ce+dice", why))
    return settings


# ---- machine --------------------------------------------------------------------------------------------------------

MEMORY_USED, MEMORY_USED_CPU = 0.85, 0.6
GAIN_OF_BATCH = 0.05
FEW_DIFFERENT, MANY_DIFFERENT = 100, 2000
LEAST_UPDATES = 1000  # before a step takes more images


def precision_setting(machine: Machine) -> Setting | None:
    """bfloat16 from compute capability 8.0 on, float16 on 7.x, float32 on all else."""
    if machine.device != "cuda" or machine.capability is None:
        return None
    if machine.capability >= (8, 0):
        return Setting("bf16", True, "this GPU multiplies in bfloat16")
    if machine.capability >= (7, 0):
        return Setting("fp16", True, "this GPU multiplies in float16")
    return None


def effective_batch(different: int) -> int:
    """Images in an update: 8; 4 of few different pictures, 16 of many."""
    return 4 if different < FEW_DIFFERENT else 8 if different <= MANY_DIFFERENT else 16


def fit_updates(wanted: int, images_in_time: float) -> int:
    """The effective batch, halved as long as there would be less than 1,000 updates."""
    while wanted > 2 and images_in_time / wanted < LEAST_UPDATES:
        wanted //= 2
    return wanted


def device_batch(measured: Measured, wanted: int, images: int) -> int:
    """Images on the device at once: as many as fit, up to the effective batch and a quarter of the images, as long as
    that makes an image cheaper."""
    best = min(measured.steps)
    for batch in sorted(measured.steps):
        cheaper = measured.steps[batch] / batch <= (1 - GAIN_OF_BATCH) * measured.steps[best] / best
        if batch <= wanted and batch <= max(2, images // 4) and cheaper:
            best = batch
    return best


def batch_settings(measured: Measured, wanted: int, images: int) -> list[Setting]:
    batch = device_batch(measured, wanted, images)
    accumulated = max(1, wanted // batch)
    tried = ", ".join(f"{1000 * seconds / size:.0f} ms of {size}" for size, seconds in sorted(measured.steps.items()))
    why = f"tried at {measured.side} px: an image takes {tried}{f'; {measured.limit}' if measured.limit else ''}"
    settings = [Setting("per_device_train_batch_size", batch, why)]
    if accumulated > 1:
        settings.append(Setting("gradient_accumulation_steps", accumulated, f"so that {wanted} images make an update"))
    return settings


def worker_settings(machine: Machine, measured: Measured, batch: int, accumulated: int) -> list[Setting]:
    """As many processes as keep up with the steps, within the CPUs that these leave."""
    free = machine.cpus - (machine.threads if machine.device == "cpu" else 1)
    loading, step = batch * measured.load_seconds, step_seconds(measured.steps, batch)
    needed = min(machine.workers, math.ceil(1.3 * loading / step))
    said = f"loading an image takes {1000 * measured.load_seconds:.0f} ms, a step of {batch} {1000 * step:.0f} ms"
    workers = max(0, min(needed, free))
    if not workers:
        return [Setting("dataloader_num_workers", 0, f"{said}, and the steps use all {count_of(machine.cpus, 'CPU')}")]
    return [
        Setting("dataloader_num_workers", workers, said),
        Setting("dataloader_persistent_workers", True, "they live through epochs"),
    ]


def step_seconds(steps: Mapping[int, float], batch: int) -> float:
    """Seconds of a step with this many images, in proportion where it was not measured."""
    nearest = min(steps, key=lambda size: (abs(size - batch), size))
    return steps[nearest] * batch / nearest


def update_seconds(measured: Measured, batch: int, accumulated: int, workers: int) -> float:
    """Seconds of an update with loading: side by side where there are workers, else one after the other."""
    step, loading = step_seconds(measured.steps, batch), batch * measured.load_seconds
    return accumulated * (max(step, loading / workers) if workers else step + loading)


# ---- how long -------------------------------------------------------------------------------------------------------

STEPS_PER_ROOT, LEAST_STEPS, MOST_STEPS = 220, 600, 40_000
MORE_FOR = {"all": 4.0, "head": 1.0, "classifier": 0.6, "nothing": 0.3}
MOST_MINUTES = 12 * 60  # without --minutes
SETUP_SECONDS, TIME_USED = 5.0, 0.92
TOO_FEW_STEPS = 200
DRAWING_SECONDS = 0.3  # of a predicted picture, with its overlay


def enough_steps(different: int, fresh: str) -> int:
    """Updates after which more of them gain little: in proportion to the root of the number of different pictures."""
    steps = min(max(STEPS_PER_ROOT * math.sqrt(different), LEAST_STEPS), MOST_STEPS)
    return round(min(steps * MORE_FOR[fresh], 2 * MOST_STEPS))


class Time(NamedTuple):
    """steps: that are planned. seconds: of all of the run. bound: by "pays", "minutes" or "most". at_the_end: seconds
    of what is not training."""

    steps: int
    evaluations: int
    seconds: float
    bound: str
    at_the_end: float


def fill_time(minutes: float | None, update: float, evaluation: float, prediction: float, enough: int) -> Time:
    """How many updates, and evaluations on the way, fit into the time.

    Args:
        minutes: None for 12 hours, and no more steps than pay; with a budget up to twice as many.
        update: seconds of one. evaluation, prediction: seconds of one of all images.
        enough: of `enough_steps`.

    Raises:
        UserError: there is no time for a single update.
    """
    budget = 60 * (MOST_MINUTES if minutes is None else minutes)
    at_the_end = SETUP_SECONDS + evaluation + prediction
    left = TIME_USED * budget - at_the_end
    if left < update:
        raise UserError(
            f"--minutes {minutes:g} is too short: one step takes {update:.1f} s here, and {at_the_end:.0f} s go into "
            f"starting, the evaluation and the predictions at the end; {(at_the_end + update) / TIME_USED / 60:.1g} "
            "minutes would do for one step, and some hundreds of steps are usual"
        )
    limit = enough if minutes is None else 2 * enough
    evaluations = how_often(left, evaluation)
    steps = min(limit, int((left - evaluations * evaluation) / update))
    if steps == limit:
        evaluations = how_often(steps * update, evaluation)
        bound = "pays"
    else:
        bound = "most" if minutes is None else "minutes"
    evaluations = min(evaluations, steps // 2)
    return Time(steps, evaluations, at_the_end + steps * update + evaluations * evaluation, bound, at_the_end)


def predictions_setting(images: int, minutes: float, evaluation: float) -> Setting | None:
    """Fewer predictions, to look at, where all would take a tenth of the time. evaluation: seconds an image."""
    seconds = OVERHEAD * 60 * minutes
    if images * (evaluation + DRAWING_SECONDS) <= seconds:
        return None
    count = max(4, int(seconds / (evaluation + DRAWING_SECONDS)))
    why = f"pictures of all {images} would take more than a tenth of the time; scores count all"
    return Setting("max_predict_samples", count, why) if count < images else None


OVERHEAD, MOST_EVALUATIONS = 0.1, 20


def how_often(seconds: float, evaluation: float) -> int:
    """Evaluations on the way, which may cost a tenth of the time; none where there is time for one alone."""
    count = min(MOST_EVALUATIONS, int(OVERHEAD * seconds / max(evaluation, 1e-6)))
    return count if count >= 2 else 0


def length_settings(time: Time, minutes: float | None, update: float, different: int) -> list[Setting]:
    per_step = f"{update:.2g} s a step"
    why = {
        "pays": f"what pays for {different} different pictures{', twice' if minutes else ''}; {per_step}, "
        f"{time.seconds / 60:.0f} minutes in all",
        "minutes": f"what fits into {minutes or 0:g} minutes; {per_step} as measured",
        "most": f"what fits into {MOST_MINUTES // 60} hours; {per_step}. --minutes N asks for another time",
    }[time.bound]
    if time.steps < TOO_FEW_STEPS:
        why += ". TOO FEW for a good model: more --minutes, or a smaller --image_size"
    settings = [Setting("max_steps", time.steps, why)]
    if minutes is not None:
        why = "training ends by then, with fewer steps, should they take longer than they did when tried"
        settings.append(Setting("train_minutes", float(f"{minutes - time.at_the_end / 60:.3g}"), why))
    return settings


SOME_VALIDATION = 50
SAVE_MINUTES = 15


def rhythm_settings(time: Time, update: float, eval_images: int) -> list[Setting]:
    """Evaluations, checkpoints and log lines, evenly spread; the best one counts where enough images choose it."""
    settings = []
    if time.evaluations:
        every = max(1, time.steps // time.evaluations)
        said = f"{time.evaluations} evaluations cost a tenth of the time at most"
        settings += [Setting("eval_strategy", "steps", said), Setting("eval_steps", every, "evenly spread")]
        settings += [Setting("save_strategy", "steps", "a checkpoint with each"), Setting("save_steps", every, "")]
        best = eval_images >= SOME_VALIDATION
        why = f"the best of {time.evaluations} would be chosen by the luck of {eval_images} images"
        why = f"{eval_images} images are enough to choose by" if best else f"the last weights count: {why}"
        settings.append(Setting("load_best_model_at_end", best, why))
    else:
        settings.append(Setting("eval_strategy", "no", "time for one evaluation alone, at the end"))
        if time.steps * update > 60 * SAVE_MINUTES:
            every = max(1, int(60 * SAVE_MINUTES / update))
            settings += [Setting("save_strategy", "steps", f"every {SAVE_MINUTES} minutes")]
            settings += [Setting("save_steps", every, "")]
        else:
            settings.append(Setting("save_strategy", "no", "too short to be worth going on with"))
    return [*settings, Setting("logging_steps", max(1, time.steps // 100), "a hundred lines")]


# ---- optimisation ---------------------------------------------------------------------------------------------------

FINE_TUNING_RATE, SCRATCH_RATE, LONG_RUN = 6e-5, 1e-3, 2000
LEAST_WARMUP, MOST_WARMUP = 20, 1500  # steps; of a short run no more than a tenth
HEAD_MULTIPLIER = {"all": 1.0, "head": 10.0, "classifier": 10.0, "nothing": 1.0}
# Of pretrained encoders whose published recipes let the rate decay from the head down, with one rate for 16 images.
DECAYING_RATE, DECAYING_BATCH, DECAYING_WEIGHTS = 1e-4, 16, 0.05
LAYER_DECAY = {"layers": 0.65, "stages": 0.9}
FRESH = {
    "all": "all weights start at random",
    "head": "the encoder is pretrained, the head starts at random",
    "classifier": "the head is trained, too, but for its last layer",
    "nothing": "all weights are trained for these classes already",
}


def optimizer_settings(goal: Goal, batch: int, steps: int) -> list[Setting]:
    """The published recipe where there is a pretrained encoder, and what learns fast where there is none."""
    root, settings, weight_decay = math.sqrt(batch / 8), [], 0.01
    if goal.fresh == "all":
        rate = SCRATCH_RATE * root * (1 if steps >= LONG_RUN else 2)
        settings.append(Setting("learning_rate", float(f"{rate:.2g}"), f"{FRESH['all']}; {batch} images an update"))
        if steps < LONG_RUN:
            why = "a short run has no time for an average over 1,000 steps"
            settings.append(Setting("adam_beta2", 0.95, why))
    elif goal.decays_by and goal.trains_encoder:
        rate, weight_decay = DECAYING_RATE * math.sqrt(batch / DECAYING_BATCH), DECAYING_WEIGHTS
        why = f"the published 1e-4 for {batch} images an update ({FRESH[goal.fresh]})"
        settings.append(Setting("learning_rate", float(f"{rate:.2g}"), why))
        why = f"as published: {goal.decays_by} of the encoder learn the slower, the further they are from the head"
        settings.append(Setting("layer_decay", LAYER_DECAY[goal.decays_by], why))
    else:
        rate = FINE_TUNING_RATE * root
        why = f"the published 6e-5 for {batch} images an update ({FRESH[goal.fresh]})"
        settings.append(Setting("learning_rate", float(f"{rate:.2g}"), why))
        if goal.trains_encoder and HEAD_MULTIPLIER[goal.fresh] > 1:
            why = "as published: what starts at random learns faster"
            settings.append(Setting("head_lr_multiplier", HEAD_MULTIPLIER[goal.fresh], why))
    settings.append(Setting("weight_decay", weight_decay, "as published"))
    settings.append(Setting("lr_scheduler_type", "polynomial", "to 0 over exactly these steps"))
    share = 0.08 if goal.fresh == "all" else 0.05
    warmup = min(max(round(share * steps), min(LEAST_WARMUP, steps // 10)), MOST_WARMUP)
    settings.append(Setting("warmup_steps", warmup, f"{warmup / max(steps, 1):.0%} of the steps"))
    return settings
