"""The averaged weights are what is evaluated, saved and kept, and training goes on as if they were not there."""

import pytest
import torch
from factories.runs import forked_ranks
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainerCallback

from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from training.arguments import SegmentationTrainingArguments
from training.ema import RAW_WEIGHTS_FILE, WeightAverage, ema_decay_at
from training.trainer import SegmentationTrainer


def tiny_model():
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[8, 8, 8, 8],
            depths=[1] * 4,
            num_attention_heads=[1] * 4,
            decoder_hidden_size=8,
            num_labels=3,
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
        )
    )


class Samples(torch.utils.data.Dataset):
    def __init__(self, count=8):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 3, (count, 32, 32), generator=generator)

    def set_epoch(self, epoch):
        pass

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixel_values[i], "labels": self.labels[i]}


def make_trainer(output_dir, model=None, ema_decay=0.5, **arguments):
    defaults = {"max_steps": 4, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    args = SegmentationTrainingArguments(
        output_dir=str(output_dir),
        do_train=True,
        use_cpu=True,
        learning_rate=0.01,
        disable_tqdm=True,
        **(defaults | arguments),
    )
    return SegmentationTrainer(
        model=model or tiny_model(),
        args=args,
        train_dataset=Samples(),
        eval_dataset=Samples(3),
        protocol=EvaluationProtocol(32),
        ema_decay=ema_decay,
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


class Recorder(TrainerCallback):
    """The weights in training after every step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append(weights(model))


def test_decay_grows_to_its_value():
    assert [ema_decay_at(step, 0.9) for step in (0, 1, 80, 81, 10_000)] == [0.1, 2 / 11, 0.9, 0.9, 0.9]


@pytest.mark.parametrize("decay", [1.0, -0.1, 999])
def test_a_decay_out_of_range_is_an_error(decay):
    with pytest.raises(UserError, match=f"--ema_decay is {decay:g}; it must be at least 0 and below 1"):
        WeightAverage(decay)


def test_the_model_ends_with_the_explicit_average(tmp_path):
    recorder, trainer = Recorder(), make_trainer(tmp_path, ema_decay=0.2, max_steps=5)
    trainer.add_callback(recorder)
    trainer.train()
    expected = {name: tensor.double() for name, tensor in recorder.steps[0].items()}
    for decay, step in zip([2 / 11, 0.2, 0.2, 0.2], recorder.steps[1:], strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * step[name].double() for name in expected}
    parameters = dict(trainer.model.named_parameters())
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(
        parameters["decode_head.classifier.bias"], recorder.steps[-1]["decode_head.classifier.bias"]
    )
    for name, buffer in trainer.model.named_buffers():
        assert torch.equal(buffer, recorder.steps[-1][name]), name


def test_what_is_evaluated_is_what_is_saved_and_training_does_not_notice(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path / "a", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer.args.save_total_limit = None  # else only the best stays
    trainer.add_callback(recorder)
    trainer.train()
    logged = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}

    checkpoint = tmp_path / "a" / "checkpoint-4"
    saved = SegformerForSemanticSegmentation.from_pretrained(checkpoint)
    assert_equal(weights(saved), weights(trainer.model))
    copy = tiny_model()  # tensors in memory of their own: where they lie in a file decides about the last bit
    copy.load_state_dict(saved.state_dict())
    alone = make_trainer(tmp_path / "b", copy, ema_decay=0.0)
    assert alone.evaluate()["eval_loss"] == logged[4]
    raw = load_file(checkpoint / RAW_WEIGHTS_FILE)
    assert_equal(raw, {name: recorder.steps[3][name] for name, _ in saved.named_parameters()})

    plain, undisturbed = Recorder(), make_trainer(tmp_path / "c", ema_decay=0.0)
    undisturbed.add_callback(plain)
    undisturbed.train()
    for with_average, without in zip(recorder.steps, plain.steps, strict=True):
        assert_equal(with_average, without)
    assert_equal(weights(undisturbed.model), plain.steps[-1])


def test_the_best_checkpoint_becomes_the_model(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, load_best_model_at_end=True, save_total_limit=5, **steps)
    trainer.train()
    best = SegformerForSemanticSegmentation.from_pretrained(trainer.state.best_model_checkpoint)
    assert_equal(weights(trainer.model), weights(best))
    logged = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert trainer.evaluate()["eval_mean_iou"] == max(logged)
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / RAW_WEIGHTS_FILE).exists()


def test_resumed_equals_uninterrupted(tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "lr_scheduler_type": "polynomial"}
    whole = make_trainer(tmp_path / "whole", max_steps=6, **steps)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", max_steps=6, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_equal(weights(whole.model), weights(resumed.model))
    files = [tmp_path / run / "checkpoint-6" / RAW_WEIGHTS_FILE for run in ("whole", "resumed")]
    assert_equal(*map(load_file, files))


def test_resuming_needs_the_flags_of_the_start(tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    for name, decay in (("averaged", 0.5), ("plain", 0.0)):
        make_trainer(tmp_path / name, ema_decay=decay, **steps).train()
    with pytest.raises(UserError, match="checkpoint-2 was written with --ema_decay; resume it with"):
        make_trainer(tmp_path, ema_decay=0.0).train(resume_from_checkpoint=str(tmp_path / "averaged/checkpoint-2"))
    with pytest.raises(UserError, match="checkpoint-2 was written without --ema_decay; resume it with"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "plain/checkpoint-2"))
    frozen = tiny_model()
    frozen.segformer.requires_grad_(False)
    with pytest.raises(UserError, match="tensors, the model has 13; resume it with the flags it was started with"):
        make_trainer(tmp_path, frozen).train(resume_from_checkpoint=str(tmp_path / "averaged/checkpoint-2"))


def test_frozen_parameters_are_neither_averaged_nor_saved_twice(tmp_path):
    model = tiny_model()
    model.segformer.requires_grad_(False)
    before = weights(model.segformer)
    make_trainer(tmp_path, model, save_strategy="steps", save_steps=2, max_steps=2).train()
    assert_equal(weights(model.segformer), before)
    raw = load_file(tmp_path / "checkpoint-2" / RAW_WEIGHTS_FILE)
    assert raw.keys() == {name for name, _ in model.named_parameters() if name.startswith("decode_head.")}


def test_two_processes_have_one_average(tmp_path):
    """Two processes with one image each equal one process with two: to the bit between them, to rounding across."""

    def train(argv):
        trainer = make_trainer(tmp_path, per_device_train_batch_size=1, optim="sgd", eval_strategy="epoch")
        trainer.train()
        assert trainer.args.world_size == 2
        torch.save(trainer.model.state_dict(), tmp_path / f"{trainer.args.process_index}.pt")

    for run in forked_ranks(2, [], tmp_path / "log", train):
        assert run.wait() == 0, run.text()[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_equal(first, second)

    alone = make_trainer(tmp_path, per_device_train_batch_size=1, optim="sgd", gradient_accumulation_steps=2)
    alone.train()
    for name, parameter in alone.model.named_parameters():  # running statistics are those of one process
        torch.testing.assert_close(first[name], parameter, rtol=1e-4, atol=1e-6)
