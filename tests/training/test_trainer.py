"""What the Trainer subclass mends, and whether the stock Trainer still needs mending."""

import pytest
import torch
import torch.nn.functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer
from transformers.trainer_callback import TrainerCallback

from data.preprocessing import EvaluationProtocol
from training.arguments import SegmentationTrainingArguments
from training.trainer import SegmentationTrainer


def tiny_model(seed=0, **overrides):
    torch.manual_seed(seed)
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
        num_labels=3,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    return SegformerForSemanticSegmentation(config)


class Samples(torch.utils.data.Dataset):
    """Fixed tensors: batches of which every image has another number of ignored pixels."""

    def __init__(self, count=8):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 3, (count, 32, 32), generator=generator)
        for i in range(count):
            self.labels[i, : 4 * i] = 255

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixel_values[i], "labels": self.labels[i]}


def make_trainer(output_dir, model, fused_ops=True, **arguments):
    args = SegmentationTrainingArguments(
        output_dir=str(output_dir),
        do_train=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        **({"learning_rate": 0.01, "max_steps": 1, "save_strategy": "no"} | arguments),
    )
    return SegmentationTrainer(
        model=model, args=args, train_dataset=Samples(), protocol=EvaluationProtocol(32), fused_ops=fused_ops
    )


def train_once(output_dir, freeze_batch_norm=True, **arguments):
    """Gradient of the first optimizer step, and the logged loss. SGD at rate 1 without clipping shows the gradient."""
    model = tiny_model()
    if freeze_batch_norm:  # its statistics are per forward pass, so they alone would differ between 1 × 4 and 4 × 1
        model.decode_head.batch_norm.forward = lambda x: x
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainer = make_trainer(output_dir, model, logging_steps=1, **plain, **arguments)
    trainer.train()
    gradient = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    return gradient, trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("fused_ops", [True, False])
def test_gradient_accumulation_changes_nothing_but_rounding(tmp_path, fused_ops):
    whole, whole_loss = train_once(tmp_path, per_device_train_batch_size=4, fused_ops=fused_ops)
    parts, parts_loss = train_once(
        tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, fused_ops=fused_ops
    )
    assert whole_loss == pytest.approx(parts_loss, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_loss_is_the_mean_over_the_valid_pixels(tmp_path):
    _, loss = train_once(tmp_path, freeze_batch_norm=False, per_device_train_batch_size=8)
    model, samples = tiny_model().train(), Samples()
    logits = model(samples.pixel_values).logits
    upsampled = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, samples.labels, ignore_index=255)
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_fused_and_stock_training_agree(tmp_path):
    fused, fused_loss = train_once(tmp_path, fused_ops=True)
    stock, stock_loss = train_once(tmp_path, fused_ops=False)
    assert fused_loss == pytest.approx(stock_loss, rel=1e-5)
    for name, gradient in stock.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-3, atol=1e-6)


def test_best_model_is_restored_whole(tmp_path):
    trainer = make_trainer(tmp_path, tiny_model(), save_strategy="steps", save_steps=1, max_steps=2)
    trainer.train()
    saved = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.state.best_model_checkpoint, trainer.state.best_metric = str(tmp_path / "checkpoint-2"), 0.5
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    trainer._load_best_model()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_a_damaged_checkpoint_is_an_error_not_a_warning(tmp_path):
    trainer = make_trainer(tmp_path, tiny_model(), save_strategy="steps", save_steps=1)
    trainer.train()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match="(?i)header|safetensors|deserial"):
        make_trainer(tmp_path, tiny_model(1)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_stock_trainer_still_needs_the_override(tmp_path):
    """When this fails, transformers restores SegFormer itself: delete both `_load_*` overrides."""
    source, target = tiny_model(0), tiny_model(1)
    source.save_pretrained(tmp_path / "checkpoint-1")
    args = SegmentationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    Trainer(model=target, args=args)._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    equal = [torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)]
    assert not all(equal)


def test_stock_trainer_still_saves_in_place(tmp_path):
    """When this fails, transformers writes a checkpoint aside and moves it: see whether `_save_checkpoint` and
    `_get_output_dir` can go."""
    folders = []

    class Watched(Trainer):
        def _save_rng_state(self, output_dir):
            folders.append((tmp_path / "checkpoint-1" / "model.safetensors").is_file())
            super()._save_rng_state(output_dir)

    args = SegmentationTrainingArguments(
        output_dir=str(tmp_path),
        **{"do_train": True, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "eval_strategy": "no"},
        **{"max_steps": 1, "save_strategy": "steps", "save_steps": 1},
    )
    Watched(model=tiny_model(), args=args, train_dataset=Samples()).train()
    assert folders == [True]  # half a checkpoint stands under its name


def test_defaults_are_the_projects(tmp_path):
    args = SegmentationTrainingArguments(output_dir=str(tmp_path), do_train=True, use_cpu=True)
    assert args.learning_rate == 6e-5
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (2, 2)
    assert args.metric_for_best_model == "eval_mean_iou" and args.greater_is_better and args.load_best_model_at_end
    assert args.eval_strategy == "epoch" and args.do_eval
    predict_only = SegmentationTrainingArguments(output_dir=str(tmp_path), do_predict=True, use_cpu=True)
    assert not predict_only.do_eval


def test_one_process_drives_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(SegmentationTrainingArguments, "_setup_devices", torch.device("cpu"))
    monkeypatch.setattr(SegmentationTrainingArguments, "_n_gpu", 2, raising=False)
    assert SegmentationTrainingArguments(output_dir=str(tmp_path)).n_gpu == 1


class RecordEpochs(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(kwargs["train_dataloader"].dataset.epoch)


def test_dataset_knows_the_epoch_also_after_a_resume(tmp_path):
    record = RecordEpochs()
    trainer = make_trainer(
        tmp_path, tiny_model(), max_steps=10, save_strategy="steps", save_steps=6, save_total_limit=2
    )
    trainer.add_callback(record)
    trainer.train()
    assert record.seen == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]  # 8 samples in batches of 2
    record = RecordEpochs()
    trainer = make_trainer(tmp_path, tiny_model(), max_steps=10, save_strategy="no")
    trainer.add_callback(record)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert record.seen == [1, 1, 2, 2]


@pytest.fixture
def rounded_products():
    """As a GPU has them for which TF32 is on."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_scores_and_predictions_come_from_exact_products(tmp_path, rounded_products):
    """Training may round what it multiplies to TF32; what predict.py gives does not."""
    trainer, seen = make_trainer(tmp_path, tiny_model()), []
    trainer.model.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
    trainer.train()
    assert set(seen) == {"tf32"}
    seen.clear()
    trainer.evaluate(Samples())
    trainer.predict_ids(torch.zeros(3, 32, 32, dtype=torch.uint8))
    assert len(seen) > 1 and set(seen) == {"ieee"}
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
