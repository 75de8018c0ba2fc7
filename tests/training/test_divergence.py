"""Losses, gradients, weights and scores that are not finite: every way a run can come to them, and what is left."""

import json
import logging
import math
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

import run_segmentation
from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from models.fused_segformer import fuse_model
from models.loading import load_model, load_trained_model
from training import divergence
from training.arguments import SegmentationTrainingArguments
from training.divergence import DUMP_FILE, poisoned, replay, skipped_steps
from training.trainer import SegmentationTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1] * 4,
    "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 16,
    "num_labels": 3,
}
BAD = 5  # the image that is poisoned, where one is


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return fuse_model(SegformerForSemanticSegmentation(SegformerConfig(**CONFIG)))


class Samples(torch.utils.data.Dataset):
    """Images with names; the poisoned one overflows in the first convolution."""

    def __init__(self, poison=None, count=8):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 3, (count, 32, 32), generator=generator)
        if poison is not None:
            self.pixel_values[poison] = 1e38

    def set_epoch(self, epoch):
        pass

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixel_values[i], "labels": self.labels[i], "name": f"image {i}"}


def make_trainer(output_dir, model=None, samples=None, skip_nonfinite=0, **arguments):
    defaults = {"learning_rate": 0.01, "num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1}
    args = SegmentationTrainingArguments(
        output_dir=str(output_dir),
        do_train=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        **(defaults | arguments),
    )
    return SegmentationTrainer(
        model=model or tiny_model(),
        args=args,
        train_dataset=samples or Samples(),
        protocol=EvaluationProtocol(32),
        skip_nonfinite=skip_nonfinite,
    )


# ---- the loss and the gradient --------------------------------------------------------------------------------------


def test_an_infinite_loss_has_no_finite_gradient():
    p = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = (p - torch.tensor([0.0, 0.5])).abs().sum() - torch.tensor(0.0).log()  # infinite, with a gradient of ones
    assert torch.autograd.grad(loss, p, retain_graph=True)[0].isfinite().all()
    assert torch.autograd.grad(poisoned(loss), p)[0].isnan().all()
    loss = -p[1].log()
    assert torch.equal(poisoned(loss), loss)
    assert torch.autograd.grad(poisoned(loss), p)[0].tolist() == [0.0, -2.0]


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}])
def test_the_first_loss_that_is_not_finite_stops_the_run(tmp_path, arguments):
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e10} | arguments
    trainer = make_trainer(tmp_path, lr_scheduler_type="constant", **options)
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message
    assert re.match(r"training diverged in step 2 of \d+: the loss is nan at a learning rate of 1e\+10, with", message)
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-1'}" in message
    assert f"python -m training.divergence {tmp_path / DUMP_FILE}" in message
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history)
    # The weights are still those of the last good step.
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    lines = replay(tmp_path / DUMP_FILE)
    assert any("loss nan then, nan now" in line for line in lines) and "that of segformer." in lines[-1]


def names_in(message):
    return re.search(r"with the images (.*?)(?:;| of process|$)", message)[1].split(", ")


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_poisoned_image_is_named(tmp_path, batch_size):
    trainer = make_trainer(tmp_path, samples=Samples(BAD), per_device_train_batch_size=batch_size)
    before = {key: tensor.clone() for key, tensor in trainer.model.named_parameters()}
    with pytest.raises(UserError) as caught:
        trainer.train()
    names = names_in(str(caught.value))
    assert f"image {BAD}" in names and len(names) == batch_size
    lines = replay(tmp_path / DUMP_FILE)
    assert re.search(rf"is that of segformer\S+, for image {BAD}\b(?!,)", lines[-1]), lines
    if trainer.state.global_step == 0:
        assert all(torch.equal(tensor, before[key]) for key, tensor in trainer.model.named_parameters())


def test_of_accumulated_batches_the_one_with_the_image_is_named(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = make_trainer(tmp_path, samples=Samples(BAD), **options)
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert f"image {BAD}" in names_in(str(caught.value)) and len(names_in(str(caught.value))) == 2
    assert len(torch.load(tmp_path / DUMP_FILE, weights_only=True)["batches"]) == 1


def overflowing_gradient():
    """Logits of ordinary size, and gradients whose squares are too large."""
    model = tiny_model()
    with torch.no_grad():
        model.decode_head.batch_norm.weight.mul_(1e-25)
        model.decode_head.classifier.weight.mul_(1e25)
    return model


def test_a_gradient_alone_that_is_not_finite(tmp_path):
    trainer = make_trainer(tmp_path, overflowing_gradient())
    with pytest.raises(UserError, match="step 1 of 4: the gradient's norm is inf"):
        trainer.train()
    lines = replay(tmp_path / DUMP_FILE)
    assert re.search(r"every output is finite, but not the gradient of decode_head\.\S+, .* for image \d", lines[-1])


def test_what_does_not_repeat_is_said(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.decode_head.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="the gradient's norm is nan"):
        trainer.train()
    lines = replay(tmp_path / DUMP_FILE)
    assert lines[-1].endswith("it does not repeat")
    then, now = re.search(r"loss (\S+) then, (\S+) now", lines[-2]).groups()
    assert now == then  # with the same dropout and drop path


def test_overflows_of_scaled_gradients_are_the_scalers(tmp_path):
    trainer = make_trainer(tmp_path)

    class Scaler:
        scale = 65536.0

        def get_scale(self):
            return self.scale

    trainer.create_optimizer_and_scheduler(4)
    trainer.accelerator.scaler = Scaler()
    guard = trainer.divergence

    def see(loss):
        guard.begin(trainer.model, {"labels": torch.zeros(1), "names": torch.zeros(1, 8, dtype=torch.uint8)}, 1)
        guard.end(torch.tensor(loss))

    guard.keeps_dump = False
    see(1.0)
    assert not guard.passes(trainer, torch.tensor(float("inf")))
    see(float("nan"))
    with pytest.raises(UserError, match="the loss is nan"):
        guard.passes(trainer, torch.tensor(float("nan")))
    see(1.0)
    Scaler.scale = 1.0  # nothing is scaled any more, so it was no overflow
    with pytest.raises(UserError, match="norm is inf"):
        guard.passes(trainer, torch.tensor(float("inf")))


def test_the_trainer_still_asks_for_the_norm_before_the_step(tmp_path, monkeypatch):
    """When this fails, transformers has moved it: look for a public hook with the norm first."""
    order = []
    trainer = make_trainer(tmp_path, max_steps=1)
    monkeypatch.setattr(trainer.divergence, "passes", lambda *_: order.append("norm") or True)
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(lambda *_: order.append("step"))
    trainer.train()
    assert order == ["norm", "step"]


# ---- steps that are left out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_steps_that_are_left_out_change_nothing_and_are_counted(tmp_path, caplog, ema_decay):
    """Two epochs, in each of which one of eight batches is poisoned."""
    caplog.set_level(logging.WARNING)
    trainer = make_trainer(
        tmp_path, samples=Samples(BAD), skip_nonfinite=2, num_train_epochs=2, per_device_train_batch_size=1
    )
    trainer.weight_average.decay = ema_decay
    states = []

    def passes(*arguments, wrapped=trainer.divergence.passes):
        before = {key: tensor.clone() for key, tensor in trainer.model.named_parameters()}
        sound = wrapped(*arguments)
        states.append((sound, before))
        return sound

    trainer.divergence.passes = passes
    metrics = trainer.train().metrics
    assert [sound for sound, _ in states].count(False) == 2 and len(states) == 16
    for (sound, before), (_, after) in zip(states, states[1:], strict=False):
        assert all(torch.equal(before[key], after[key]) for key in before) is not sound
    assert trainer.state.global_step == 16 and skipped_steps(trainer.state) == 2
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(left_out) == 2 and all(f"image {BAD}" in line for line in left_out)
    assert DUMP_FILE in left_out[0] and DUMP_FILE not in left_out[1]  # kept once
    # Nothing of it is in the statistics, the losses or the results.
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 16 and all(0 < loss < 10 for loss in losses) and 0 < metrics["train_loss"] < 10
    json.dumps(trainer.state.log_history, allow_nan=False)


def test_one_more_than_allowed_stops(tmp_path):
    trainer = make_trainer(tmp_path, samples=Samples(BAD), skip_nonfinite=1, num_train_epochs=2)
    with pytest.raises(UserError, match=r"training diverged \(steps left out before: 1\) in step"):
        trainer.train()
    assert f"image {BAD}" in torch.load(tmp_path / DUMP_FILE, weights_only=True)["batches"][0]["names"]


def test_a_resumed_run_goes_on_counting(tmp_path):
    options = {"samples": Samples(BAD), "skip_nonfinite": 1, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, num_train_epochs=1, **options).train()
    checkpoint = str(max(tmp_path.glob("checkpoint-*")))
    with pytest.raises(UserError, match=r"training diverged \(steps left out before: 1\) in step 5 of 8"):
        make_trainer(tmp_path, num_train_epochs=2, **options).train(resume_from_checkpoint=checkpoint)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e39, save_strategy="steps", save_steps=1)
    with pytest.raises(UserError, match=r"not saved: the model after step 1 .* tensors \(segformer\.") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory):
    """A trained model with one NaN."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    tiny_model().save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["decode_head.classifier.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("load", [load_model, load_trained_model])
def test_weights_that_are_not_finite_are_not_loaded(broken_model, load):
    message = (
        rf"{broken_model} holds weights that are not finite .* in 1 of \d+ tensors \(decode_head.classifier.bias\)"
    )
    with pytest.raises(UserError, match=message):
        load(str(broken_model))


def test_nor_from_a_checkpoint(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    weights["decode_head.batch_norm.running_mean"][0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"checkpoint-1 .*not finite .*\(decode_head.batch_norm.running_mean\)"):
        make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Dark images and a white one, for a model that takes pixels as they are and overflows where they are white."""
    root = tmp_path_factory.mktemp("program")
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "masks"):
            (root / "data" / split / kind).mkdir(parents=True)
        for i in range(count):
            white = split == "train" and i == 4
            Image.new("RGB", (48, 40), "white" if white else "black").save(
                root / f"data/{split}/images/{split}_{i}.png"
            )
            mask = np.zeros((40, 48), np.uint8)
            mask[:, : 10 + 5 * i] = 1
            Image.fromarray(mask).save(root / f"data/{split}/masks/{split}_{i}.png")
    model = SegformerForSemanticSegmentation(SegformerConfig(**CONFIG | {"num_labels": 2}))
    with torch.no_grad():
        model.segformer.stages[0].patch_embeddings.proj.weight.fill_(3e38)
    model.save_pretrained(root / "model")
    SegformerImageProcessor(size={"height": 32, "width": 32}, do_normalize=False).save_pretrained(root / "model")
    flags = ["--model_name_or_path", str(root / "model"), "--dataset_dir", str(root / "data"), "--use_cpu"]
    flags += ["--photometric_distortion", "no", "--report_to", "none", "--disable_tqdm", "true", "--do_train"]
    return root, [*flags, "--do_eval", "--check_data", "no", "--num_train_epochs", "2", "--logging_steps", "1"]


def results_in(folder):
    return sorted(path.name for path in folder.glob("*") if path.suffix in (".json", ".md", ".safetensors", ".csv"))


def test_the_program_stops_with_one_line_and_leaves_no_results(program, tmp_path):
    _, flags = program
    with pytest.raises(UserError, match=r"training diverged in step \d of 6: .* train_4"):
        run_segmentation.main([*flags, "--output_dir", str(tmp_path)])
    assert set(results_in(tmp_path)) <= {"labels.json"}


def test_the_program_leaves_out_what_it_may(program, tmp_path):
    _, flags = program
    metrics = run_segmentation.main([*flags, "--skip_nonfinite", "2", "--output_dir", str(tmp_path)])
    assert metrics["skipped_steps"] == 2
    for file in tmp_path.glob("*.json"):
        json.loads(file.read_text(), parse_constant=lambda name, file=file: pytest.fail(f"{file}: {name}"))
    assert json.loads((tmp_path / "train_results.json").read_text())["skipped_steps"] == 2


LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
LAUNCH += "--dynamo_backend no --main_process_port 0"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--gradient_accumulation_steps", "2"], ["--skip_nonfinite", "4"]])
def test_two_processes_stop_together(program, tmp_path, options):
    """One of them has the image; the gradient is that of both."""
    _, flags = program
    command = [sys.executable, *LAUNCH.split(), str(REPOSITORY / "run_segmentation.py"), *flags, *options]
    begin = time.monotonic()
    done = subprocess.run([*command, "--output_dir", str(tmp_path)], capture_output=True, text=True, timeout=300)
    seconds = time.monotonic() - begin
    if "--skip_nonfinite" in options:
        assert done.returncode == 0, done.stderr[-3000:]
        results = json.loads((tmp_path / "train_results.json").read_text())
        # Once an epoch, and once more where it fills the last batch.
        assert 2 <= results["skipped_steps"] <= 4 and results["num_processes"] == 2
        weights = load_file(tmp_path / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
        return
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "train_4" in lines[0] and re.search(r"of process [01];", lines[0]), done.stderr[-3000:]
    assert done.stderr.index(lines[0]) < done.stderr.index("Traceback")  # of the launcher
    assert set(results_in(tmp_path)) <= {"labels.json"} and seconds < 120
    assert "train_4" in replay(tmp_path / DUMP_FILE)[-1]


def test_a_score_that_is_not_finite_is_an_error(program, tmp_path):
    root, flags = program
    data = tmp_path / "data"
    shutil.copytree(root / "data", data)
    Image.new("RGB", (48, 40), "white").save(data / "val/images/val_1.png")
    (data / "train/images/train_4.png").unlink()
    (data / "train/masks/train_4.png").unlink()
    message = r"evaluation: the loss is not finite on 1 of 3 images \(val_1\)"
    with pytest.raises(UserError, match=message):
        run_segmentation.main([*flags, "--dataset_dir", str(data), "--output_dir", str(tmp_path / "out")])
    assert "eval_results.json" not in results_in(tmp_path / "out")
    evaluate = ["--model_name_or_path", str(root / "model"), "--dataset_dir", str(data), "--use_cpu", "--do_eval"]
    with pytest.raises(UserError, match=message):
        run_segmentation.main([*evaluate, "--output_dir", str(tmp_path / "evaluated")])
    assert not list((tmp_path / "evaluated").glob("*.json"))


def test_a_dry_run_keeps_no_dump(program, tmp_path):
    _, flags = program
    options = ["--learning_rate", "1e38", "--max_train_samples", "4", "--dry_run", "--output_dir", str(tmp_path / "x")]
    with pytest.raises(UserError, match="training diverged in step 2 of 2") as caught:
        run_segmentation.main([*flags, *options])
    assert DUMP_FILE not in str(caught.value)


def test_the_command_that_repeats_it(tmp_path, monkeypatch, capsys):
    """python -m training.divergence, without the imports of a new process."""
    trainer = make_trainer(tmp_path, samples=Samples(BAD))
    with pytest.raises(UserError):
        trainer.train()
    monkeypatch.setattr(sys, "argv", ["divergence.py", str(tmp_path / DUMP_FILE)])
    monkeypatch.delitem(sys.modules, "training.divergence")
    runpy.run_module("training.divergence", run_name="__main__")
    assert f"for image {BAD}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("content", [None, b"", b"not a dump"])
def test_files_that_are_no_dump(tmp_path, content):
    file = tmp_path / "x.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="no such file" if content is None else "cannot be read as a batch"):
        divergence.main([str(file)])
    for device in ("cudo", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {device} cannot be used here"):
            divergence.main(["x.pt", "--device", device])
    with pytest.raises(UserError, match="which batch"):
        divergence.main([])
