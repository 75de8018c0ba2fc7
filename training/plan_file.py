"""A plan for a run: looks at data and machine, asks the rules of `training.planning`, and writes a file of flags.

    text = make_plan(args, steps)           # YAML for `--config`, each line with its reason

Flags that were given stand in it as they are, and the rules follow them.
"""

import json
import logging
import textwrap
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import PretrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from checks.records import Finding
from checks.survey import Look, asymmetry, count_different, survey
from cli_utils import UserError, printable
from data.augmentation import TrainTransform
from data.bulk import column_of
from data.classes import ClassMap
from data.reduced_copies import add_copies
from data_utils import Data, SegmentationDataset, find_classes, load_data
from models.catalogue import MODELS
from models.configurations import is_at_hand, is_universal
from models.geometry import input_geometry
from training import planning
from training.arguments import FOR_ONCE, GROUPS, PLAN_FILE, SECRETS, Arguments
from training.optimizer import decays_by
from training.planning import ClassFacts, DataFacts, Goal, Machine, Measured, Setting, Time
from training.probe import BATCHES, Request, measure_apart
from training.run_arguments import RunArguments
from training.workers import cpus_of_process, default_workers

logger = logging.getLogger(__name__)

# Part of the time that may go into trying steps.
PROBE_SHARE, PROBE_SECONDS = 0.05, (6.0, 60.0)
LOADED = 6  # examples that are loaded to see how long it takes
# Decoding an image and counting its pixels, by pixel; measured on a CPU (two cores of an AMD EPYC).
SCORING_SECONDS = 1.5e-7
# Of what is given, that is about one command and its folder.
NOT_KEPT = {*FOR_ONCE, *SECRETS, "output_dir"}
SIDES = ("image_size", "crop_size", "slide_crop")
TOPICS = {
    "data": ("dataset_dir dataset_name images masks train_val_split split_groups"),
    "model": "model_name_or_path from_scratch backbone head",
    "what is shown": "image_size crop_size slide_crop scale_range flip_probability vertical_flip_probability "
    "quarter_turns photometric_distortion max_class_share rare_class_crops",
    "loss": "loss class_weights",
    "machine": "bf16 fp16 per_device_train_batch_size gradient_accumulation_steps dataloader_num_workers "
    "dataloader_persistent_workers",
    "how long": "do_train do_eval do_predict max_steps train_minutes eval_strategy eval_steps save_strategy "
    "save_steps load_best_model_at_end logging_steps max_predict_samples",
    "optimizer": "learning_rate head_lr_multiplier layer_decay weight_decay adam_beta2 lr_scheduler_type warmup_steps",
}


class Steps(NamedTuple):
    """The steps of `run_segmentation.py` that a plan takes as well.

    find_model: arguments → configuration, image processor, transform. check: data, arguments, output folder → raises
    for what names show. prepare: data, class map, arguments → splits, findings.
    choose_splits: splits, flags of the run → training and evaluation split. build_model: arguments, class map → model.
    fit_bands: arguments, splits, image processor, transform → the last two, for bands of more than 8 bits.
    """

    find_model: Callable[[Arguments], tuple[PretrainedConfig, ImageProcessingMixin, TrainTransform]]
    check: Callable[[Data, Arguments, Path], None]
    prepare: Callable[[Data, ClassMap, Arguments], tuple[DatasetDict, list[Finding] | None]]
    choose_splits: Callable[[DatasetDict, RunArguments], list[Dataset | None]]
    build_model: Callable[[Arguments, ClassMap], PreTrainedModel]
    fit_bands: Callable[..., tuple[ImageProcessingMixin, TrainTransform]]


def make_plan(args: Arguments, steps: Steps) -> str:
    """The text of a plan: YAML that `--config` takes.

    Args:
        args: with `--do_train`, and `--minutes` where the time is limited.

    Raises:
        UserError: what training would raise for the data, the model and the flags; too little time for one step.
    """
    if args.dataset.streaming:
        raise UserError("--config auto looks at the data first, which --streaming cannot: leave out one of them")
    if args.training.world_size > 1:
        raise UserError(
            "--config auto plans in one process: python plan.py DATASET --output plan.yaml, then accelerate launch "
            "run_segmentation.py --config plan.yaml with a --gradient_accumulation_steps for all processes together"
        )
    plan = _Plan(args)
    data, class_map, looks = _look_at_data(plan, steps)
    dataset, _ = steps.prepare(data, class_map, plan.args)
    train_split, eval_split = steps.choose_splits(dataset, plan.args.run)
    facts = data_facts(train_split, eval_split, looks, class_map, data.num_channels)
    machine = this_machine(args)
    minutes = args.run.minutes

    if not plan.has("model_name_or_path", "from_scratch", "backbone"):
        plan.set(*planning.choose_model(facts, machine, minutes, args.run.commercial, MODELS, is_at_hand))
        if plan.args.model.from_scratch:
            if _is_frozen(args):
                raise UserError(
                    "--freeze_encoder and --lora_r keep a pretrained encoder, and there is no network to get one: "
                    "give --model_name_or_path FOLDER"
                )
            logger.warning(plan.settings["from_scratch"].why)
    elif args.run.commercial:
        _check_commercial(args)
    config, *_ = steps.find_model(plan.args)
    if is_universal(config):
        raise UserError(
            f"--config auto knows models that score every pixel, and {config.model_type} scores masks: its recipe is "
            "in configs/ (docs/models.md)"
        )
    plan.fit = input_geometry(config).fit
    goal = Goal(fresh_part(plan.args, config, class_map), minutes, not _is_frozen(plan.args), decays_by(config))
    pretrained = goal.fresh != "all"
    plan.set(planning.precision_setting(machine), unless=("bf16", "fp16"))
    plan.set(planning.wanted_size(facts, pretrained))
    _plan_size(plan, facts)

    # What an update costs, and so how many there are.
    enough = planning.enough_steps(facts.different, goal.fresh)
    wanted = planning.effective_batch(facts.different)
    measured = _try(plan, steps, facts, class_map, train_split, eval_split, machine, minutes)
    if minutes is not None and not plan.has("image_size"):
        images = _images_in_time(plan, measured, minutes, facts)
        smaller = planning.affordable_size(plan.image_size, facts, images / 2, planning.LEAST_UPDATES, pretrained)
        if smaller:
            plan.set(smaller)
            _plan_size(plan, facts)
            measured = _try(plan, steps, facts, class_map, train_split, eval_split, machine, minutes)
    if minutes is not None:
        wanted = planning.fit_updates(wanted, _images_in_time(plan, measured, minutes, facts))
    if not plan.has("per_device_train_batch_size", "gradient_accumulation_steps"):
        plan.set(*planning.batch_settings(measured, wanted, facts.images))
    batch = plan.args.training.per_device_train_batch_size
    accumulated = plan.args.training.gradient_accumulation_steps
    if not plan.has("dataloader_num_workers"):
        plan.set(*planning.worker_settings(machine, measured, batch, accumulated))
    update = planning.update_seconds(measured, batch, accumulated, plan.args.training.dataloader_num_workers)
    evaluation = facts.eval_images * measured.eval_seconds
    predicted = facts.eval_images
    if minutes is not None and not plan.has("max_predict_samples"):
        prediction = planning.predictions_setting(predicted, minutes, measured.eval_seconds)
        plan.set(prediction)
        predicted = prediction.value if prediction else predicted
    prediction = predicted * (measured.eval_seconds + planning.DRAWING_SECONDS)
    length = planning.fill_time(minutes, update, evaluation, prediction, enough)
    if plan.has("max_steps", "num_train_epochs"):
        length = length._replace(steps=_steps_given(plan.args, facts.images))
    else:
        plan.set(*planning.length_settings(length, minutes, update, facts.different))
    epochs = length.steps * batch * accumulated / facts.images
    plan.set(*planning.flip_settings(facts))
    plan.set(planning.scale_range(facts, epochs), planning.color_setting(facts, epochs))
    if not plan.has("eval_strategy", "save_strategy", "eval_steps", "save_steps", "load_best_model_at_end"):
        plan.set(*planning.rhythm_settings(length, update, facts.eval_images))
    plan.set(*planning.optimizer_settings(goal, batch * accumulated, length.steps))
    return plan.text(facts, machine, length, update, unknown(facts, minutes, data))


class _Plan:
    """The flags so far: those given, and those that rules set where none was given."""

    def __init__(self, args: Arguments):
        self.args = args
        self.fit: Callable[[int], int] = lambda side: side  # a side that the model sees whole, in place of another
        self.settings: dict[str, Setting] = {}
        values = args.values()
        for name in (*args.given, "do_eval"):  # which the Trainer switches on by itself
            if name not in NOT_KEPT:
                self.settings[name] = Setting(name, values[name], "" if name.startswith("do_") else "given")

    def has(self, *names: str) -> bool:
        """Whether one of these was given."""
        return any(name in self.args.given for name in names)

    def set(self, *settings: Setting | None, unless: tuple[str, ...] = ()) -> None:
        """Takes settings, but for flags that were given."""
        for setting in filter(None, settings):
            if self.has(setting.flag, *unless):
                continue
            if setting.flag in SIDES and setting.value != self.fit(setting.value):
                fitting = self.fit(setting.value)
                setting = Setting(setting.flag, fitting, f"{setting.why}; {fitting} is what the model sees whole")
            self.settings[setting.flag] = setting
            owner = next(group for group in self.args.groups() if hasattr(group, setting.flag))
            setattr(owner, setting.flag, setting.value)

    def drop(self, *names: str) -> None:
        """Takes back what a rule set."""
        defaults = {f.name: f for kind in GROUPS.values() for f in fields(kind)}
        for name in names:
            if name in self.settings and not self.has(name):
                del self.settings[name]
                owner = next(group for group in self.args.groups() if hasattr(group, name))
                setattr(owner, name, defaults[name].default)

    @property
    def image_size(self) -> int:
        return self.args.evaluation.image_size

    @property
    def crop_size(self) -> int:
        return self.args.augmentation.crop_size or self.image_size

    def text(self, facts: DataFacts, machine: Machine, length: Time, update: float, unknown: list[str]) -> str:
        """The YAML, by topic, with reasons, and what could not be known at the end."""
        names = {name: topic for topic, flags in TOPICS.items() for name in flags.split()}
        order = [name for flags in TOPICS.values() for name in flags.split()]
        topics: dict[str, list[Setting]] = {topic: [] for topic in [*TOPICS, "given besides"]}
        place = {name: i for i, name in enumerate(order)}
        for setting in sorted(self.settings.values(), key=lambda one: place.get(one.flag, len(order))):
            topics[names.get(setting.flag, "given besides")].append(setting)
        lines = _comment(_headline(self.args, facts, machine))
        for topic, settings in topics.items():
            if settings:
                lines += ["", f"# ---- {topic}"]
            for setting in settings:
                line, why = _line(setting), printable(setting.why)
                if len(line) + len(why) < 110:
                    lines.append(f"{line}  # {why}" if why else line)
                else:
                    lines += [*_comment(why), line]
        if unknown:
            lines += ["", "# ---- what the data do not say"]
            for sentence in unknown:
                lines += _comment(printable(sentence))
        return "\n".join(lines) + "\n"


def _line(setting: Setting) -> str:
    """ "flag: value" on one line of YAML."""
    if isinstance(setting.value, list):
        return f"{setting.flag}: {json.dumps(setting.value, ensure_ascii=False)}"
    return yaml.safe_dump({setting.flag: setting.value}, allow_unicode=True, width=10**6).rstrip()


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(text, 108, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in lines]


def _headline(args: Arguments, facts: DataFacts, machine: Machine) -> str:
    where = f"{machine.cpus} CPUs" if machine.device == "cpu" else machine.device
    return printable(
        f"Planned for {args.dataset.source}: {facts.images} training and {facts.eval_images} evaluation images of "
        f"about {facts.width}x{facts.height}, {len(facts.classes)} classes, on {where}. Runs again with: "
        f"python run_segmentation.py --config {PLAN_FILE} --output_dir NEW_FOLDER. docs/planning.md has the rules."
    )


# ---- facts ----------------------------------------------------------------------------------------------------------


def _look_at_data(plan: _Plan, steps: Steps) -> tuple[Data, ClassMap, list[Look]]:
    """The data, split where they have no validation images, their classes, and a sample looked at."""
    args = plan.args
    load = partial(load_data, seed=args.training.seed, token=args.token, max_eval_samples=args.run.max_eval_samples)
    data = load(args.dataset, num_channels=args.dataset.num_channels)
    if "train" not in data.splits:
        steps.check(data, args, Path(args.training.output_dir))
    class_map = find_classes(data, args.classes)
    looks = survey(data.splits["train"], class_map, data.num_channels, seed=args.training.seed)
    if not {"validation", "test"} & data.splits.keys():
        names = list(data.splits["train"]["name"])
        if len(names) > 1:
            plan.set(planning.validation_share(len(names)))
            by_name = {look.name: look.pixels for look in looks}
            plan.set(planning.split_groups(names, [by_name.get(name, {}) for name in names]))
            plan.args.dataset.__post_init__()
            data = load(args.dataset, num_channels=args.dataset.num_channels)
            kept = set(data.splits["train"]["name"])
            looks = [look for look in looks if look.name in kept] or looks
    steps.check(data, args, Path(args.training.output_dir))
    return data, class_map, looks


def data_facts(
    train_split: Dataset, eval_split: Dataset | None, looks: list[Look], class_map: ClassMap, channels: int
) -> DataFacts:
    """Counts of all prepared training images, and what a sample of them shows."""
    counts = column_of(train_split, "class_pixels")
    shares = counts.sum(axis=0) / max(1, counts.sum())
    objects = {i: [] for i in class_map.id2label}
    for look in looks:
        for i, found in look.objects.items():
            objects[i] += found
    classes = []
    for i, name in sorted(class_map.id2label.items()):
        of_class = ClassFacts(name, float(shares[i]), int((counts[:, i] > 0).sum()))
        if objects[i]:
            thickness, area = np.array(objects[i], float).T
            thin, half = weighted_quantiles(thickness, area, (0.1, 0.5))
            small, large = weighted_quantiles(np.sqrt(area), area, (0.1, 0.9))
            of_class = replace(of_class, thickness=thin, thinnest_half=half, octaves=float(np.log2(large / small)))
        classes.append(of_class)
    different = round(len(train_split) * count_different(looks) / max(1, len(looks)))
    return DataFacts(
        images=len(train_split),
        eval_images=0 if eval_split is None else len(eval_split),
        different=max(1, different),
        looked_at=len(looks),
        height=median_side(train_split, "height"),
        width=median_side(train_split, "width"),
        classes=tuple(classes),
        upside_down=asymmetry(looks, "upside down") if looks else 1.0,
        turned=asymmetry(looks, "turned") if looks else 1.0,
        channels=channels,
    )


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """The values that this share of the weight lies at or below."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return [float(values[order][np.searchsorted(reached, share)]) for share in shares]


def median_side(split: Dataset, side: str) -> int:
    """Median "height" or "width" of a prepared split, in pixels."""
    return int(np.median(column_of(split, side)))


def this_machine(args: Arguments) -> Machine:
    device = args.training.device
    machine = Machine(device.type, cpus=cpus_of_process(), threads=torch.get_num_threads())
    if device.type != "cpu":
        machine = replace(machine, workers=default_workers(device.type, max(BATCHES)))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        machine = replace(machine, capability=torch.cuda.get_device_capability(device), memory=free)
    return machine


def fresh_part(args: Arguments, config: PretrainedConfig, class_map: ClassMap) -> str:
    """What of the model starts at random, as `planning.Goal` has it."""
    if args.model.from_scratch:
        return "all"
    if not any("Segmentation" in name for name in config.architectures or ()):
        return "head"
    return "nothing" if config.id2label == class_map.id2label else "classifier"


def _check_commercial(args: Arguments) -> None:
    """Raises UserError where `--commercial` and a model of the catalogue contradict each other."""
    source = args.model.source
    for model in MODELS.values():
        if not args.model.from_scratch and source in (model.weights, model.on_ade20k) and not model.licence.commercial:
            raise UserError(
                f"--commercial and {source} contradict each other (its weights for commercial use? "
                f"{model.licence.text}): leave out one of them; without a model, --config auto chooses one"
            )


def _is_frozen(args: Arguments) -> bool:
    return args.optimization.freeze_encoder or args.optimization.lora_r is not None


def unknown(facts: DataFacts, minutes: float | None, data: Data) -> list[str]:
    """What a plan cannot know, and which flag tells it."""
    sentences = []
    if minutes is None:
        sentences.append("how much time there is: --minutes N")
    if planning.has_top(facts.upside_down, facts.different) is None:
        sentences.append(
            f"whether the pictures have a top ({facts.different} different ones are too few or too unlike to tell): "
            "--vertical_flip_probability 0.5 and --quarter_turns if they have none"
        )
    few = [one.name for one in facts.present if one.images < planning.LEAST_IMAGES]
    if few and facts.images > planning.LEAST_IMAGES:
        listed = planning.shorten(few, 5)
        sentences.append(
            f"whether {listed}, in less than {planning.LEAST_IMAGES} images, are to be learnt: "
            "--drop_classes, --merge_classes"
        )
    sentences.append("whether left and right differ in meaning: --flip_probability 0 if they do")
    sentences.append("which classes matter most: --class_weights FILE")
    return sentences


# ---- trying ---------------------------------------------------------------------------------------------------------


def _plan_size(plan: _Plan, facts: DataFacts) -> None:
    """What goes with the size: crops and windows, and what is thin at it."""
    plan.drop("crop_size", "slide_crop", "loss", "class_weights", "rare_class_crops", "max_class_share")
    if not plan.has("crop_size", "slide_crop"):
        plan.set(*planning.crop_settings(plan.image_size, facts))
    plan.set(*planning.rare_settings(facts, plan.image_size, plan.crop_size))


def _try(plan, steps, facts, class_map, train_split, eval_split, machine, minutes) -> Measured:
    """What a step, an evaluation and the loading of an example cost."""
    args = plan.args
    _, image_processor, transform = steps.find_model(args)
    _, transform = steps.fit_bands(args, {"train": train_split}, image_processor, transform)
    protocol = transform.protocol
    split = train_split if eval_split is None else eval_split
    height, width = median_side(split, "height"), median_side(split, "width")
    size, windows = protocol.input_size(height, width), 1
    if protocol.slide_crop:
        windows = len(protocol.windows(size[0])) * len(protocol.windows(size[1]))
        size = tuple(min(side, protocol.slide_crop) for side in size)
    low, high = PROBE_SECONDS
    request = Request(
        side=transform.crop_size,
        channels=protocol.num_channels,
        num_labels=class_map.num_labels,
        losses=args.loss.names,
        eval_size=size,
        device=args.training.device.type,
        precision="bfloat16" if args.training.bf16 else "float16" if args.training.fp16 else None,
        most=max(2, planning.effective_batch(facts.different)),
        seconds=high if minutes is None else min(high, max(low, PROBE_SHARE * 60 * minutes)),
    )
    tried = measure_apart(partial(steps.build_model, args, class_map), request)
    few = train_split.select(np.linspace(0, len(train_split) - 1, LOADED).astype(int).tolist())
    if args.augmentation.copies_large_photos:
        few = add_copies(few, transform)
    loading = loading_seconds(SegmentationDataset(few, transform, args.training.seed))
    passes = windows * len(protocol.scales) * (1 + protocol.flip)
    seconds = passes * tried.eval_seconds + SCORING_SECONDS * height * width
    return Measured(transform.crop_size, tried.steps, seconds, loading, tried.stride, tried.limit)


def loading_seconds(examples: SegmentationDataset) -> float:
    """Median time that it takes to load an example."""
    seconds = []
    for index in range(len(examples)):
        begin = time.perf_counter()
        examples[index]
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def _images_in_time(plan: _Plan, measured: Measured, minutes: float, facts: DataFacts) -> float:
    """Training images that there is time for, loaded one after the other."""
    batch = min(measured.steps)
    seconds = planning.update_seconds(measured, batch, 1, 0) / batch
    spent = planning.SETUP_SECONDS + 2 * facts.eval_images * measured.eval_seconds
    return max(0.0, planning.TIME_USED * 60 * minutes - spent) / seconds


def _steps_given(args: Arguments, images: int) -> int:
    """Updates that `--max_steps` or `--num_train_epochs` ask for."""
    training = args.training
    if training.max_steps > 0:
        return training.max_steps
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return max(1, round(training.num_train_epochs * images / batch))
