"""Every rule at its limits."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cli_utils import UserError
from models.catalogue import DINOV3, FREE, MIT, MODELS, Cost, Model
from training import planning
from training.arguments import GROUPS
from training.planning import ClassFacts, DataFacts, Goal, Machine, Measured

GPU = Machine("cuda", (8, 0), 24 * 2**30, 8, 4)
CPU = Machine(cpus=4, threads=2)
WALL = ClassFacts("wall", 0.6, 100, 80.0, 200.0, 2.0)
LAMP = ClassFacts("lamp", 0.4, 100, 40.0, 60.0, 2.0)
PHOTOS = DataFacts(100, 20, 100, 100, 480, 640, (WALL, LAMP), upside_down=0.8, turned=0.8)
TRIED = Measured(256, {2: 1.0, 4: 1.6, 8: 3.1}, 0.5, 0.05)


def facts(*classes, **changes):
    return replace(PHOTOS, **({"classes": classes} if classes else {}), **changes)


def flags(settings):
    return {setting.flag: setting.value for setting in settings}


def test_every_flag_that_a_rule_sets_stands_in_the_documentation():
    root = Path(planning.__file__).parents[1]
    documented = (root / "docs" / "planning.md").read_text(encoding="utf-8")
    flags = set(re.findall(r'Setting\(\s*"(\w+)"', Path(planning.__file__).read_text(encoding="utf-8")))
    known = {name for kind in GROUPS.values() for name in kind.__dataclass_fields__}
    assert len(flags) > 25 and flags <= known
    said_together = {  # by the words of their row
        "dataloader_persistent_workers": "dataloader_num_workers",
        "per_device_train_batch_size": "on the device",
        "gradient_accumulation_steps": "accumulated",
        **dict.fromkeys(("model_name_or_path", "from_scratch"), "| model"),
        **dict.fromkeys(("lr_scheduler_type", "warmup_steps", "weight_decay"), "schedule, warm-up, decay"),
        **dict.fromkeys(("eval_strategy", "eval_steps", "save_strategy", "save_steps"), "evaluations and checkpoints"),
        **dict.fromkeys(("load_best_model_at_end", "logging_steps"), "the last weights count"),
        "learning_rate": "learning rate",
        "max_predict_samples": "pictures",
    }
    assert not [flag for flag in flags if said_together.get(flag, f"`{flag}`") not in documented]


# ---- model and split ----


@pytest.mark.parametrize(
    ("changes", "machine", "minutes", "model"),
    [
        ({}, CPU, None, "nvidia/segformer-b0-finetuned-ade-512-512"),
        ({}, GPU, None, "nvidia/segformer-b2-finetuned-ade-512-512"),
        ({}, GPU, 30, "nvidia/segformer-b2-finetuned-ade-512-512"),
        ({}, GPU, 29, "nvidia/segformer-b0-finetuned-ade-512-512"),
        ({}, replace(GPU, memory=6 * 2**30), None, "nvidia/segformer-b0-finetuned-ade-512-512"),
        ({"upside_down": 0.1}, GPU, None, "nvidia/mit-b2"),
        ({"upside_down": 0.4}, CPU, None, "nvidia/segformer-b0-finetuned-ade-512-512"),  # cannot be said
        ({"channels": 5}, CPU, None, "nvidia/mit-b0"),
    ],
)
def test_model(changes, machine, minutes, model):
    (setting,) = planning.choose_model(facts(**changes), machine, minutes, False, MODELS)
    assert (setting.flag, setting.value) == ("model_name_or_path", model)
    assert "non-commercial" in setting.why and "--commercial takes others" in setting.why


def test_models_out_of_reach_make_room_for_the_next_and_for_random_weights():
    b0, b2 = (f"nvidia/segformer-{size}-finetuned-ade-512-512" for size in ("b0", "b2"))
    (setting,) = planning.choose_model(PHOTOS, GPU, None, False, MODELS, lambda source: source != b2)
    assert (setting.flag, setting.value) == ("model_name_or_path", b0) and f"{b2} is not to be had" in setting.why
    asked = []
    (setting,) = planning.choose_model(PHOTOS, GPU, None, False, MODELS, asked.append)
    assert asked == [b2, b0]
    assert (setting.flag, setting.value) == ("from_scratch", "mit-b0")
    assert b2 in setting.why and "--model_name_or_path FOLDER" in setting.why
    settings = planning.choose_model(PHOTOS, CPU, None, True, MODELS, lambda source: "convnext" in source)
    assert flags(settings) == {"backbone": "facebook/convnext-tiny-224", "head": "upernet"}


@pytest.mark.parametrize(
    ("machine", "minutes", "weights", "size"),
    [
        (CPU, None, "facebook/dinov2-small", 51.2),
        (replace(GPU, memory=80 * 2**30), None, "facebook/dinov2-base", 118.9),
        (replace(GPU, memory=80 * 2**30), 29, "facebook/dinov2-small", 51.2),
        (replace(GPU, memory=2 * 2**30), None, "facebook/dinov2-small", 51.2),
    ],
)
def test_model_for_commercial_use(machine, minutes, weights, size):
    backbone, head = planning.choose_model(facts(), machine, minutes, True, MODELS)
    assert backbone[:2] == ("backbone", weights) and head[:2] == ("head", "upernet")
    assert f"{size:g} M parameters" in backbone.why and "Yes: Apache-2.0" in backbone.why


def test_no_model_that_is_gated_or_scores_masks_is_chosen():
    models = {
        "gated": Model("some/gated", DINOV3, None, None, "upernet", Cost(9, 1, 0.1)),
        "masks": Model("some/masks", MIT, None, None, "mask2former", Cost(9, 1, 0.1)),
        "free": Model("some/free", FREE, None, None, "upernet", Cost(1, 9, 0.1)),
    }
    for machine in (CPU, GPU):
        assert planning.choose_model(facts(), machine, None, True, models)[0].value == "some/free"


@pytest.mark.parametrize(("images", "share"), [(2, 0.25), (29, 0.25), (30, 0.2), (2500, 0.2), (10000, 0.05)])
def test_validation_share(images, share):
    assert planning.validation_share(images).value == share


SHARED = [{0, 1}] * 60


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"{s}_{i:05}" for s in ("0016E5", "0006R0", "Seq05VD") for i in range(20)], r"^(.*\D)\d+$"),
        ([f"{city}_{i:06}_{i * 7}_cam" for city in "abc" for i in range(20)], r"^([^_\-]+)[_\-]"),
        ([f"{city}/{i:06}" for city in "abc" for i in range(20)], r"^(.*\D)\d+$"),
        ([f"day{day}/{name}" for day in range(3) for name in "abcdefghijklmnopqrst"], r"^(.*)/"),
        ([f"IMG_{i:04}" for i in range(60)], None),  # one group
        ([f"{i:05}" for i in range(60)], None),
        ([f"{s}_{i}" for s in "ab" for i in range(30)], None),  # two
        ([f"p{i}_0" for i in range(60)], None),  # each its own
    ],
)
def test_groups_that_names_show(names, pattern):
    setting = planning.split_groups(names, SHARED)
    assert (setting and setting.value) == pattern


def test_names_that_start_with_their_class_are_no_groups():
    names = [f"{kind}_{i:03}" for kind in ("rust", "scab", "blight") for i in range(20)]
    classes = [{0, 1 + i // 20} for i in range(60)]
    assert planning.split_groups(names, classes) is None
    assert planning.split_groups(names, [{0, 1}] * 60).value == r"^(.*\D)\d+$"


# ---- sizes ----


@pytest.mark.parametrize(
    ("thickness", "short_side", "pretrained", "size"),
    [
        (math.inf, 480, False, 256),
        (math.inf, 480, True, 480),  # no more than the pictures have
        (math.inf, 1080, True, 512),
        (30.0, 480, False, 256),  # 16 px of 30 at 256
        (29.9, 480, False, 320),
        (10.0, 480, False, 480),  # 768 would be needed
        (20.0, 1080, True, 1024),
        (4.0, 4000, True, 2048),  # 16,000 would be needed
        (4.0, 100, False, 256),  # small pictures are enlarged
    ],
)
def test_size_keeps_four_cells_within_what_there_is(thickness, short_side, pretrained, size):
    data = facts(WALL, replace(LAMP, thickness=thickness), height=short_side, width=short_side * 2)
    setting = planning.wanted_size(
        replace(data, classes=(replace(WALL, thickness=math.inf), data.classes[1])), pretrained
    )
    assert setting.value == size and str(size) in setting.why or "all that" in setting.why


def test_classes_with_hardly_any_pixels_do_not_choose_the_size():
    speck = ClassFacts("speck", 0.0004, 3, 1.0, 1.0)
    assert planning.wanted_size(facts(WALL, speck), False).value == planning.wanted_size(facts(WALL), False).value
    assert planning.wanted_size(facts(WALL, replace(speck, share=0.0005)), False).value == 480


@pytest.mark.parametrize(
    ("size", "steps", "pretrained", "smaller"),
    [
        (512, 1000, True, None),
        (512, 999, True, 448),
        (512, 250, True, 256),
        (512, 10, True, 256),
        (256, 10, True, None),
        (256, 250, False, 128),
        (256, 1, False, 128),
        (128, 1, False, None),
        (512, 600, False, 384),
    ],
)
def test_size_that_there_is_time_for(size, steps, pretrained, smaller):
    setting = planning.affordable_size(size, PHOTOS, steps, 1000, pretrained)
    assert (setting and setting.value) == smaller


@pytest.mark.parametrize(("thicknesses", "smaller"), [((2, 30, 300), 128), ((2, 15, 300), 256), ((2, 7, 300), None)])
def test_things_that_would_vanish_keep_their_size(thicknesses, smaller):
    """The median class keeps 8 pixels: 15 of 480 are 8 at 256, and 7 need all of 548."""
    data = facts(*(replace(WALL, thickness=thickness) for thickness in thicknesses))
    setting = planning.affordable_size(480, data, 1, 1000, False)
    assert (setting and setting.value) == smaller


@pytest.mark.parametrize(("size", "crop"), [(768, None), (1024, 768), (1280, 768), (1536, 512), (2048, 512)])
def test_crops(size, crop):
    found = flags(planning.crop_settings(size, PHOTOS))
    assert found == ({} if crop is None else {"crop_size": crop, "slide_crop": crop})


# ---- augmentation ----


@pytest.mark.parametrize(
    ("asymmetry", "different", "answer"),
    [(0.5, 3, True), (0.49, 1000, None), (0.3, 1000, None), (0.29, 20, False), (0.29, 19, None), (0.0, 19, None)],
)
def test_top(asymmetry, different, answer):
    assert planning.has_top(asymmetry, different) is answer


def test_flips():
    assert flags(planning.flip_settings(PHOTOS)) == {}
    assert flags(planning.flip_settings(facts(upside_down=0.1))) == {"vertical_flip_probability": 0.5}
    both = facts(upside_down=0.1, turned=0.1)
    assert flags(planning.flip_settings(both)) == {"vertical_flip_probability": 0.5, "quarter_turns": True}
    for name, is_side in (("left hand", True), ("eye_Right", True), ("bright", False), ("leftover", False)):
        found = flags(planning.flip_settings(replace(both, classes=(ClassFacts(name, 0.5, 9),))))
        assert found == {"flip_probability": 0.0} if is_side else len(found) == 2


def test_scales_and_colours():
    alike = [replace(WALL, octaves=0.9)] * 4
    assert planning.scale_range(facts(*alike, LAMP), 50).value == [0.75, 1.33]
    assert planning.scale_range(facts(*alike[:3], LAMP), 50) is None
    assert planning.scale_range(PHOTOS, 9.9).value == [0.75, 1.33] and planning.scale_range(PHOTOS, 10) is None
    assert planning.color_setting(PHOTOS, 10) is None
    assert planning.color_setting(PHOTOS, 9.9).value is False
    assert planning.color_setting(facts(channels=4), 50).value is False


# ---- rare classes ----


def test_rare_classes_are_shown_more_often_or_weigh_more():
    rare = ClassFacts("pin", 0.6 / 50 - 1e-6, 40, 30.0, 30.0)
    found = flags(planning.rare_settings(facts(WALL, LAMP, rare), 480, 480))
    assert found == {"rare_class_crops": 0.5, "max_class_share": 1.0}
    assert planning.rare_settings(facts(WALL, LAMP, replace(rare, share=0.6 / 50)), 480, 480) == []
    assert planning.rare_settings(facts(WALL, LAMP, replace(rare, images=4)), 480, 480) == []  # too few to judge
    everywhere = replace(rare, images=95, share=0.004)
    assert flags(planning.rare_settings(facts(WALL, LAMP, everywhere), 480, 480)) == {"class_weights": "auto"}
    assert "rare_class_crops" in flags(planning.rare_settings(facts(WALL, LAMP, everywhere), 1024, 512))


def test_dice_for_little_or_thin_foreground():
    def loss(*classes, size=480):
        return flags(planning.rare_settings(facts(*classes), size, size)).get("loss")

    assert loss(replace(WALL, share=0.91), replace(LAMP, share=0.09)) == "ce+dice"
    assert loss(replace(WALL, share=0.9), replace(LAMP, share=0.1)) is None
    assert loss(WALL, LAMP, ClassFacts("wire", 0.05, 50, 2.0, 7.9)) == "ce+dice"
    assert loss(WALL, LAMP, ClassFacts("wire", 0.05, 50, 2.0, 8.0)) is None
    assert loss(WALL, LAMP, ClassFacts("wire", 0.05, 50, 2.0, 8.0), size=448) == "ce+dice"


# ---- machine ----


@pytest.mark.parametrize(
    ("machine", "setting"),
    [
        (CPU, None),
        (GPU, ("bf16", True)),
        (replace(GPU, capability=(7, 5)), ("fp16", True)),
        (replace(GPU, capability=(6, 1)), None),
        (Machine("mps"), None),
    ],
)
def test_precision(machine, setting):
    found = planning.precision_setting(machine)
    assert (found and found[:2]) == setting


def test_batch():
    assert [planning.effective_batch(n) for n in (1, 99, 100, 2000, 2001)] == [4, 4, 8, 8, 16]
    assert [planning.fit_updates(8, n) for n in (8000, 7999, 4000, 3999, 10)] == [8, 4, 4, 2, 2]
    assert planning.device_batch(TRIED, 8, 100) == 4  # of 8 images each is not 5 % cheaper
    assert planning.device_batch(replace(TRIED, steps={2: 1.0, 4: 1.91}), 8, 100) == 2
    assert planning.device_batch(replace(TRIED, steps={2: 1.0, 4: 1.2, 8: 1.4, 16: 1.6}), 8, 100) == 8
    assert planning.device_batch(replace(TRIED, steps={2: 1.0, 4: 1.2, 8: 1.4}), 8, 16) == 4
    assert flags(planning.batch_settings(TRIED, 8, 100)) == {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    assert flags(planning.batch_settings(TRIED, 4, 100)) == {"per_device_train_batch_size": 4}


def test_workers():
    def workers(machine, **changes):
        return flags(planning.worker_settings(machine, replace(TRIED, **changes), 4, 1))["dataloader_num_workers"]

    assert workers(CPU) == 1
    assert workers(CPU, load_seconds=5.0) == 2  # all that the steps leave
    assert workers(replace(CPU, threads=4)) == 0
    assert workers(GPU, load_seconds=0.4) == 2  # 1.3 * 4 * 0.4 / 1.6
    assert workers(replace(GPU, cpus=16), load_seconds=40.0) == 8
    assert workers(replace(GPU, cpus=1)) == 0


def test_seconds_of_an_update():
    assert planning.step_seconds({2: 1.0, 8: 3.0}, 4) == 2.0 and planning.step_seconds({2: 1.0, 8: 3.0}, 16) == 6.0
    assert planning.update_seconds(TRIED, 4, 2, 0) == pytest.approx(2 * (1.6 + 0.2))
    assert planning.update_seconds(TRIED, 4, 2, 1) == pytest.approx(2 * 1.6)
    assert planning.update_seconds(replace(TRIED, load_seconds=1.0), 4, 1, 2) == pytest.approx(2.0)


# ---- how long ----


@pytest.mark.parametrize(
    ("different", "fresh", "steps"),
    [
        (50, "head", 1556),
        (300, "head", 3811),
        (2975, "head", 12000),
        (20210, "head", 31276),
        (1, "head", 600),
        (10**6, "head", 40000),
        (300, "classifier", 2286),
        (300, "all", 15242),
        (300, "nothing", 1143),
        (10**6, "all", 80000),
    ],
)
def test_steps_that_pay(different, fresh, steps):
    assert planning.enough_steps(different, fresh) == steps


def test_time_is_filled():
    """10 minutes: 552 s less 5 to start, 10 to evaluate and 15 to predict; five evaluations cost less than a tenth."""
    time = planning.fill_time(10, 1.0, 10.0, 15.0, 3000)
    assert time == (int(522 - 50), 5, pytest.approx(30 + 472 + 50), "minutes", 30)
    assert time.seconds <= 600
    assert planning.fill_time(10, 0.01, 10.0, 15.0, 3000)[:4:3] == (6000, "pays")
    assert planning.fill_time(None, 0.01, 10.0, 15.0, 3000)[:4:3] == (3000, "pays")
    assert planning.fill_time(None, 100.0, 10.0, 15.0, 3000).bound == "most"
    assert planning.fill_time(1, 1.0, 20.0, 5.0, 3000).evaluations == 0


@pytest.mark.parametrize("minutes", [0.1, 0.5, 1, 3, 10, 60])
@pytest.mark.parametrize("update", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("evaluation", [0.1, 3.0])
def test_a_plan_never_needs_more_than_the_minutes(minutes, update, evaluation):
    try:
        time = planning.fill_time(minutes, update, evaluation, evaluation, 10**6)
    except UserError:
        assert planning.TIME_USED * 60 * minutes < planning.SETUP_SECONDS + 2 * evaluation + update
    else:
        assert time.steps >= 1 and time.seconds <= 60 * minutes


def test_too_little_time_is_said():
    with pytest.raises(
        UserError, match=r"--minutes 0.1 is too short: one step takes 2.0 s here.*0.2 minutes would do"
    ):
        planning.fill_time(0.1, 2.0, 1.0, 1.0, 3000)
    few = planning.length_settings(planning.fill_time(1, 1.0, 1.0, 1.0, 3000), 1, 1.0, 50)
    assert "TOO FEW" in few[0].why


def test_training_is_given_the_minutes_less_what_comes_after_it():
    time = planning.fill_time(10, 1.0, 10.0, 15.0, 3000)
    assert flags(planning.length_settings(time, 10, 1.0, 50)) == {"max_steps": 472, "train_minutes": 9.5}
    assert [one.flag for one in planning.length_settings(time, None, 1.0, 50)] == ["max_steps"]


def test_rhythm():
    time = planning.Time(1000, 5, 1.0, "minutes", 0.5)
    found = flags(planning.rhythm_settings(time, 0.1, 50))
    assert found == {
        "eval_strategy": "steps",
        "eval_steps": 200,
        "save_strategy": "steps",
        "save_steps": 200,
        "load_best_model_at_end": True,
        "logging_steps": 10,
    }
    assert flags(planning.rhythm_settings(time, 0.1, 49))["load_best_model_at_end"] is False
    none = time._replace(evaluations=0)
    assert flags(planning.rhythm_settings(none, 0.1, 50)) == {
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 10,
    }
    assert flags(planning.rhythm_settings(none, 1.0, 50))["save_steps"] == 900


def test_predictions_that_take_too_long_are_fewer():
    assert planning.predictions_setting(20, 10, 1.0) is None
    assert planning.predictions_setting(1000, 10, 0.7).value == 60
    assert planning.predictions_setting(3, 0.01, 1.0) is None


# ---- optimizer ----


@pytest.mark.parametrize(
    ("goal", "batch", "steps", "rate", "multiplier"),
    [
        (Goal("head"), 8, 4000, 6e-5, 10),
        (Goal("head"), 2, 4000, 3e-5, 10),
        (Goal("classifier"), 16, 4000, 8.5e-5, 10),
        (Goal("head", trains_encoder=False), 8, 4000, 6e-5, None),
        (Goal("nothing"), 8, 4000, 6e-5, None),
        (Goal("all"), 8, 2000, 1e-3, None),
        (Goal("all"), 8, 1999, 2e-3, None),
        (Goal("all"), 4, 500, 1.4e-3, None),
    ],
)
def test_learning_rate(goal, batch, steps, rate, multiplier):
    found = flags(planning.optimizer_settings(goal, batch, steps))
    assert found["learning_rate"] == pytest.approx(rate, rel=0.02)
    assert found.get("head_lr_multiplier") == multiplier
    assert ("adam_beta2" in found) == (goal.fresh == "all" and steps < 2000)


@pytest.mark.parametrize(
    ("goal", "decay"),
    [
        (Goal("head", decays_by="layers"), 0.65),
        (Goal("classifier", decays_by="layers"), 0.65),
        (Goal("head", decays_by="stages"), 0.9),
        (Goal("head"), None),
        (Goal("all", decays_by="layers"), None),
        (Goal("head", trains_encoder=False, decays_by="layers"), None),
    ],
)
def test_layers_of_pretrained_vits_learn_the_slower_the_further_they_are_from_the_head(goal, decay):
    found = flags(planning.optimizer_settings(goal, 16, 4000))
    assert found.get("layer_decay") == decay
    assert found["weight_decay"] == (0.05 if decay else 0.01)
    if decay:
        assert found["learning_rate"] == 1e-4 and "head_lr_multiplier" not in found


@pytest.mark.parametrize(
    ("fresh", "steps", "warmup"),
    [
        *[("head", 1, 0), ("head", 36, 3), ("head", 100, 10), ("head", 200, 20), ("head", 400, 20)],
        *[("head", 4000, 200), ("head", 80000, 1500), ("all", 36, 3), ("all", 240, 20), ("all", 500, 40)],
    ],
)
def test_warmup(fresh, steps, warmup):
    assert flags(planning.optimizer_settings(Goal(fresh), 8, steps))["warmup_steps"] == warmup
