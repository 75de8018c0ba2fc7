"""Plans for real folders: what they hold, that they run, again and unchanged, and what is refused."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from factories.architectures import PATCH_14
from factories.pictures import render
from factories.runs import flags_for, make_dataset, save_tiny_config
from transformers import Dinov2Config, Dinov2Model

import plan
import run_segmentation
from cli_utils import UserError
from models.catalogue import FREE, MODELS, Cost, Model
from models.loading import load_model
from training import plan_file, probe
from training.arguments import Arguments
from training.idle_flags import idle_flags
from training.probe import Tried


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory):
    return save_tiny_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tried(monkeypatch):
    """No process is started and no clock is read: steps cost what is said here, in proportion to the images and their
    pixels."""
    requests, cost = [], {"pixel": 1e-7}

    def measure(build_model, request):
        requests.append(request)
        pixel = cost["pixel"] * request.side**2
        return Tried({2: 2 * pixel, 4: 3 * pixel}, pixel)

    monkeypatch.setattr("training.plan_file.measure_apart", measure)
    monkeypatch.setattr("training.plan_file.loading_seconds", lambda examples: 1e-3 * bool(examples[0]))
    measure.requests, measure.cost = requests, cost
    return measure


def base(data, tiny_config, *more):
    return [str(data), "--from_scratch", str(tiny_config), "--use_cpu", "--report_to", "none", *map(str, more)]


def planned(*argv):
    return yaml.safe_load(plan.main(list(argv)))


# ---- which model ----


def test_a_model_for_commercial_use_is_chosen_and_shown_sizes_that_it_sees_whole(data, tried, tmp_path, monkeypatch):
    Dinov2Model(Dinov2Config(**PATCH_14)).save_pretrained(tmp_path / "dinov2")
    model = Model(str(tmp_path / "dinov2"), FREE, None, None, "upernet", Cost(12.3, 4, 5.6))
    monkeypatch.setattr(plan_file, "MODELS", MODELS | {"tiny": model})
    flags = [str(data), "--use_cpu", "--report_to", "none"]
    text = plan.main([*flags, "--commercial"])
    settings = yaml.safe_load(text)
    assert (settings["backbone"], settings["head"]) == (model.weights, "upernet")
    assert "commercial" not in settings and "model_name_or_path" not in settings
    assert "12.3 M parameters" in text and "Yes: Apache-2.0" in text
    assert settings["layer_decay"] == 0.65 and settings["weight_decay"] == 0.05
    assert settings["image_size"] % 14 == 0 and tried.requests[0].side == settings["image_size"]
    with pytest.raises(UserError, match="--commercial and nvidia/mit-b0 contradict each other"):
        plan.main([*flags, "--commercial", "--model_name_or_path", "nvidia/mit-b0"])
    given = yaml.safe_load(plan.main([*flags, "--commercial", "--backbone", model.weights, "--head", "dpt"]))
    assert (given["backbone"], given["head"]) == (model.weights, "dpt")


def test_without_network_a_plan_starts_from_random_weights_and_says_so(data, tried, tmp_path, caplog):
    """The suite is offline, so none of the models to choose from is at hand."""
    file = tmp_path / "plan.yaml"
    flags = [str(data), "--use_cpu", "--report_to", "none"]
    text = plan.main([*flags, "--minutes", "9", "--output", str(file)])
    settings = yaml.safe_load(file.read_text())
    assert settings["from_scratch"] == "mit-b0" and "model_name_or_path" not in settings
    assert settings["learning_rate"] > 5e-4 and "head_lr_multiplier" not in settings  # the rules follow
    for said in (" ".join(text.replace("\n# ", " ").split()), caplog.text):
        assert "RANDOM WEIGHTS" in said and "with its files in a folder: --model_name_or_path FOLDER" in said
    assert Arguments.parse(["--config", str(file), "--output_dir", str(tmp_path / "out")]).model.from_scratch
    with pytest.raises(
        UserError, match="--freeze_encoder and --lora_r keep a pretrained encoder, and there is no net"
    ):
        plan.main([*flags, "--freeze_encoder"])
    with pytest.raises(UserError, match="nvidia/mit-b0 is no folder here, and the Hub did not give it"):
        plan.main([*flags, "--model_name_or_path", "nvidia/mit-b0"])


# ---- what a plan holds ----


def test_a_plan_is_a_file_of_flags_each_with_its_reason(data, tiny_config, tried, tmp_path):
    file = tmp_path / "plan.yaml"
    text = plan.main(base(data, tiny_config, "--minutes", "2", "--output", file))
    assert file.read_text() == text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 119
    given = {"dataset_dir", "from_scratch", "use_cpu", "report_to"}
    for number, line in enumerate(lines):
        flag = line.split(":")[0]
        if re.match(r"\w+:", line) and not flag.startswith("do_") and flag != "save_steps":
            assert "  # " in line or lines[number - 1].startswith("# "), line
            assert ("# given" in line) == (flag in given)
    content = yaml.safe_load(text)
    assert {
        "image_size",
        "max_steps",
        "learning_rate",
        "warmup_steps",
        "per_device_train_batch_size",
    } <= content.keys()
    assert content["do_train"] and content["do_eval"] and content["do_predict"]
    assert not {"output_dir", "minutes", "output", "config"} & content.keys()
    args = Arguments.parse(["--config", str(file), "--output_dir", str(tmp_path / "out")])
    assert args.training.max_steps == content["max_steps"] and args.evaluation.image_size == content["image_size"]


def test_the_same_plan_again(data, tiny_config, tried):
    argv = base(data, tiny_config, "--minutes", "2")
    assert planned(*argv) == planned(*argv)


def test_flags_that_are_given_are_kept_and_followed(data, tiny_config, tried):
    given = ["--image_size", "96", "--learning_rate", "0.5", "--scale_range", "1", "1", "--ignore_values", "2"]
    given += ["--max_steps", "1000", "--per_device_train_batch_size", "3", "--eval_strategy", "no", "--seed", "5"]
    content = planned(*base(data, tiny_config, *given))
    assert (content["image_size"], content["learning_rate"], content["scale_range"]) == (96, 0.5, [1.0, 1.0])
    assert (content["max_steps"], content["per_device_train_batch_size"], content["seed"]) == (1000, 3, 5)
    assert content["ignore_values"] == [2] and "gradient_accumulation_steps" not in content
    assert content["warmup_steps"] == 80 and content["eval_strategy"] == "no"
    assert {request.side for request in tried.requests} == {96}


def test_less_time_means_smaller_pictures_and_fewer_steps(data, tiny_config, tried):
    tried.cost["pixel"] = 3e-6
    long, short = (planned(*base(data, tiny_config, "--minutes", minutes)) for minutes in (200, 2))
    assert short["image_size"] < long["image_size"] and short["max_steps"] < long["max_steps"]
    assert [request.side for request in tried.requests] == [
        long["image_size"],
        long["image_size"],
        short["image_size"],
    ]
    assert (long["eval_strategy"], short["save_strategy"]) == (
        "steps",
        "no" if short["eval_strategy"] == "no" else "steps",
    )


def test_kinds_of_data_get_what_they_need(tiny_config, tried, tmp_path):
    aerial = planned(*base(render("aerial", tmp_path / "aerial", 24, 2), tiny_config, "--minutes", "9"))
    assert aerial["vertical_flip_probability"] == 0.5 and aerial["quarter_turns"] is True
    tiny = planned(*base(render("tiny", tmp_path / "tiny", 30, 2), tiny_config, "--minutes", "9"))
    assert tiny["rare_class_crops"] == 0.5 and tiny["max_class_share"] == 1.0
    assert tiny["image_size"] > aerial["image_size"]


def test_a_split_is_made_where_there_is_none_and_sequences_stay_together(tiny_config, tried, tmp_path):
    root = render("aerial", tmp_path / "one", 30, 1)
    for part in ("images", "masks"):
        (root / "train" / part).rename(root / part)
        for number, file in enumerate(sorted((root / part).iterdir())):
            file.rename(file.with_name(f"flight{'abc'[number % 3]}_{number:03}.png"))
        (root / "val" / part / "val_000.png").unlink()
    for folder in ("train", "val"):
        for part in ("images", "masks", "."):
            if (root / folder / part).is_dir():
                (root / folder / part).rmdir()
    content = planned(*base(root, tiny_config, "--minutes", "9"))
    assert content["train_val_split"] == 0.2 and content["split_groups"] == r"^(.*\D)\d+$"


def test_large_pictures_are_cropped_and_seen_through_windows(tiny_config, tried, tmp_path):
    root = render("tiny", tmp_path / "large", 2, 1)
    text = plan.main(base(root, tiny_config, "--image_size", "1536"))
    content = yaml.safe_load(text)
    assert (content["crop_size"], content["slide_crop"]) == (512, 512)
    assert {request.side for request in tried.requests} == {512}
    assert {request.eval_size for request in tried.requests} == {(512, 512)}


def test_names_of_classes_do_not_break_the_file(tiny_config, tried, tmp_path):
    root = render("tiny", tmp_path / "data", 30, 2)
    names = {"0": "ground: # [", "1": "'}grain\t", "2": '- se"ed'}
    (root / "id2label.json").write_text(json.dumps(names))
    assert planned(*base(root, tiny_config, "--minutes", "9"))["rare_class_crops"] == 0.5


# ---- trying steps ----


@pytest.fixture
def request_of_64():
    return probe.Request(side=64, channels=3, num_labels=3, losses=("ce",), eval_size=(64, 96), most=4, seconds=60)


def test_steps_are_tried_with_the_model_itself(tiny_config, request_of_64):
    model = load_model(id2label={0: "a", 1: "b", 2: "c"}, from_scratch=str(tiny_config))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    messages = list(probe.measure(model, request_of_64))
    assert [message[:2] for message in messages if message[0] == "step"] == [("step", 2), ("step", 4)]
    kind, seconds, stride = messages[1]
    assert (kind, stride) == ("eval", 4) and seconds > 0 and messages[-1] == ("end", "")
    assert any((p != before[name]).any() for name, p in model.named_parameters())  # real steps


def test_memory_ends_the_trying(tiny_config, request_of_64, monkeypatch):
    model = load_model(id2label={0: "a", 1: "b", 2: "c"}, from_scratch=str(tiny_config))
    request = probe.Request(**vars(request_of_64) | {"most": 16})
    peaks = iter((100, 140, 10**6))
    monkeypatch.setattr(probe, "_peak", lambda device: next(peaks))
    monkeypatch.setattr(probe, "_limit", lambda device: 219)  # 140 + 20 * 4 = 220 is what 8 would need
    messages = list(probe.measure(model, request))
    assert [message[1] for message in messages if message[0] == "step"] == [2, 4]
    assert "8 images would need more than 60% of the free memory" in messages[-1][1]


def test_an_accelerator_without_memory_ends_the_trying(tiny_config, request_of_64, monkeypatch):
    def loss(logits, *args, **kwargs):
        if len(logits) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return logits.sum()

    monkeypatch.setattr(probe, "segmentation_loss", loss)
    model = load_model(id2label={0: "a", 1: "b", 2: "c"}, from_scratch=str(tiny_config))
    messages = list(probe.measure(model, request_of_64))
    assert [message[1] for message in messages if message[0] == "step"] == [2]
    assert messages[-1] == ("end", "there is no memory for 4 images")


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_ends_the_other_process_is_one_line(request_of_64):
    with pytest.raises(UserError, match="a step of 2 images of 64 pixels does not fit into the memory of cpu: give a"):
        probe.measure_apart(killed, request_of_64)


@pytest.mark.parametrize(
    ("error", "sent"), [(ValueError("no such layer"), RuntimeError), (UserError("no"), UserError)]
)
def test_what_the_model_raises_is_sent(request_of_64, error, sent):
    def failing():
        raise error

    messages = []
    probe._measure_and_send(failing, request_of_64, SimpleNamespace(send=messages.append))
    logging.disable(logging.NOTSET)
    (kind, found), end = messages
    assert (kind, end) == ("error", ("end", "")) and type(found) is sent and str(error) in str(found)


# ---- planned and run ----


def auto(data, tiny_config, out, *more):
    more = ("--output_dir", out, "--image_size", "64", *more)
    return ["--config", "auto", "--dataset_dir", *base(data, tiny_config, *more)]


def test_a_run_is_planned_and_its_plan_runs_again(data, tiny_config, tmp_path, capsys):
    """With a real trial of steps, in a process of its own."""
    out = tmp_path / "out"
    more = ("--minutes", "0.4", "--max_steps", "6", "--disable_tqdm", "true")
    metrics = run_segmentation.main(auto(data, tiny_config, out, *more))
    assert "--minutes has no effect" not in capsys.readouterr().err
    assert 0 <= metrics["eval_mean_iou"] <= 1
    for name in ("plan.yaml", "arguments.yaml", "model.safetensors", "eval_results.json", "predictions"):
        assert (out / name).exists(), name
    content = yaml.safe_load((out / "plan.yaml").read_text())
    ran = yaml.safe_load((out / "arguments.yaml").read_text())
    assert content.items() <= ran.items() and ran.keys() - content.keys() == {"output_dir"}
    again = run_segmentation.main(["--config", str(out / "plan.yaml"), "--output_dir", str(tmp_path / "again")])
    assert again["eval_mean_iou"] == metrics["eval_mean_iou"] and again["train_loss"] == metrics["train_loss"]


@pytest.mark.slow
def test_a_planned_run_goes_on_with_its_plan(data, tiny_config, tried, tmp_path, caplog):
    out = tmp_path / "out"
    more = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no")
    run_segmentation.main(auto(data, tiny_config, out, *more))
    plan_before, tried_before = (out / "plan.yaml").read_bytes(), len(tried.requests)
    more = ("--max_steps", "6", "--resume_from_checkpoint", "last")
    run_segmentation.main(auto(data, tiny_config, out, *more))
    assert (out / "plan.yaml").read_bytes() == plan_before and len(tried.requests) == tried_before
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 6
    with pytest.raises(UserError, match="goes on with .*plan.yaml, which is not there"):
        run_segmentation.main(auto(data, tiny_config, tmp_path / "new", "--resume_from_checkpoint", "last"))


def test_a_finished_run_keeps_its_plan(data, tiny_config, tried, tmp_path):
    out = tmp_path / "out"
    run_segmentation.main(auto(data, tiny_config, out, "--max_steps", "1", "--eval_strategy", "no"))
    before = (out / "plan.yaml").read_bytes()
    with pytest.raises(UserError, match="holds a finished run"):
        run_segmentation.main(auto(data, tiny_config, out, "--max_steps", "2"))
    with pytest.raises(UserError, match="too short"):
        run_segmentation.main(auto(data, tiny_config, out, "--minutes", "0.01", "--overwrite_output_dir"))
    assert (out / "plan.yaml").read_bytes() == before and not (out / ".new_run").exists()


@pytest.mark.slow
def test_a_dry_run_is_planned_and_kept_nowhere(data, tiny_config, tried, tmp_path):
    results = run_segmentation.main(auto(data, tiny_config, tmp_path / "out", "--dry_run", "--minutes", "3"))
    assert results["perfect_mean_iou"] == 1 and not (tmp_path / "out").exists()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no/such/folder"], "no/such/folder"),
        (["DATA", "--minutes", "0"], "--minutes is 0; it must be more than 0"),
        (["DATA", "--minutes", "0.001"], "--minutes 0.001 is too short: one step takes"),
        (["DATA", "--output", "plan.txt"], "--output plan.txt: the name must end in .yaml"),
        (["DATA", "--output", "/proc/no/plan.yaml"], "--output /proc/no/plan.yaml cannot be written"),
        (["DATA", "--output", "OTHER"], "exists and is no plan"),
        (["DATA", "--minuts", "3"], r"unknown flag --minuts \(did you mean --minutes\?\)"),
        (["DATA", "EMPTY"], "belongs to no flag"),
        (["EMPTY"], "EMPTY"),
        (["--dataset_name", "x", "--streaming"], "--streaming"),
        ([], "no data: give --dataset_dir"),
    ],
)
def test_mistakes_are_one_line(argv, message, data, tiny_config, tried, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    other = tmp_path / "other.yaml"
    other.write_text("learning_rate: 1\n")
    places = {"DATA": str(data), "EMPTY": str(tmp_path / "EMPTY"), "OTHER": str(other)}
    argv = [places.get(word, word) for word in argv]
    with pytest.raises(UserError, match=message) as caught:
        plan.main([*argv, "--from_scratch", str(tiny_config), "--use_cpu"])
    assert "\n" not in str(caught.value)
    assert other.read_text() == "learning_rate: 1\n"


@pytest.mark.parametrize(
    "broken", ["no masks", "no training images", "one image", "truncated", "a single class", "wrong values"]
)
def test_data_are_judged_as_training_judges_them(broken, data, tiny_config, tried, tmp_path):
    root = make_dataset(tmp_path / "data", train=3, validation=2)
    extra = []
    if broken == "no masks":
        for mask in root.glob("*/masks/*"):
            mask.unlink()
    elif broken == "no training images":
        shutil.rmtree(root / "train")
    elif broken == "one image":
        shutil.rmtree(root / "val")
        for file in root.glob("train/*/train_[12].png"):
            file.unlink()
    elif broken == "truncated":
        file = next(root.glob("train/images/*"))
        file.write_bytes(file.read_bytes()[:300])
    elif broken == "a single class":
        (root / "classes.json").write_text('{"0": "all"}')
        extra = ["--label_map", str(root / "map.json")]
        (root / "map.json").write_text('{"0": 0, "1": 0, "2": 0}')
    else:
        (root / "classes.json").write_text('{"0": "background", "1": "disc"}')
    flags = flags_for(root, tiny_config)
    errors = []
    for main, argv in (
        (plan.main, flags[:2] + flags[2:6] + ["--use_cpu", *extra]),
        (run_segmentation.main, [*flags, "--output_dir", str(tmp_path / "out"), "--do_train", *extra]),
    ):
        with pytest.raises(UserError) as caught:
            main(argv)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_a_program_ends_although_workers_are_kept(tmp_path):
    """They take no notice of the SIGTERM that multiprocessing sends at the end of a program, which then waits."""
    script = tmp_path / "script.py"
    script.write_text(
        "from torch.utils.data import DataLoader\n"
        "from training.interruption import deaf\n"
        "if __name__ == '__main__':\n"
        "    loader = deaf(DataLoader(range(4), num_workers=1, persistent_workers=True))\n"
        "    print(len(list(loader)))\n"
    )
    root = Path(plan.__file__).parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stdout) == (0, "4\n"), ended.stderr


def test_minutes_without_a_plan_are_said_to_be_idle(data, tiny_config, tmp_path):
    argv = ["--dataset_dir", str(data), "--output_dir", str(tmp_path), "--do_train", "--minutes", "3", "--use_cpu"]
    (sentence,) = idle_flags(Arguments.parse(argv))
    assert sentence.startswith("--minutes has no effect")


def test_a_plan_is_for_training(data, tmp_path):
    with pytest.raises(UserError, match="--config auto plans training: add --do_train, or leave out --do_eval"):
        Arguments.parse(["--config", "auto", "--dataset_dir", str(data), "--output_dir", str(tmp_path), "--do_eval"])
