"""Every batch that comes can be trained on, or is known not to be before training."""

import logging

import pytest
import torch
import transformers as T
from torch import nn
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from cli_utils import UserError
from data.augmentation import TrainTransform
from data.preprocessing import EvaluationProtocol
from models.adapters import freeze_encoder
from models.fused_segformer import FusedSegformerDecodeHead, fuse_model
from training.arguments import SegmentationTrainingArguments
from training.batches import batch_norm_warning, check_batches, layer_that_needs_two_images
from training.dry_run import dry_run
from training.trainer import SegmentationTrainer

TINY = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64}


def tiny_segformer():
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=3))


def configs():
    resnet = T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, out_features=STAGES)
    convnext = T.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=STAGES)
    upernet = {"hidden_size": 16, "use_auxiliary_head": False}
    neck = [8, 16, 16, 24, 32, 32, 64]
    return {
        "segformer": SegformerConfig(**TINY),
        "upernet-resnet": T.UperNetConfig(backbone_config=resnet, **upernet),
        "upernet-convnext": T.UperNetConfig(backbone_config=convnext, **upernet),
        "mobilevit": T.MobileViTConfig(
            hidden_sizes=[16, 24, 32], neck_hidden_sizes=neck, num_attention_heads=2, aspp_out_channels=16
        ),
        "mobilevitv2": T.MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=[1] * 3, aspp_out_channels=16),
        "mobilenet_v2": T.MobileNetV2Config(depth_multiplier=0.25),
        "beit": T.BeitConfig(**VIT, out_indices=[1, 2, 3, 4], use_auxiliary_head=False),
    }


# Those that pool to one pixel before a BatchNorm layer, by reading transformers.
POOLING = {"upernet-resnet", "upernet-convnext", "mobilevit", "mobilevitv2", "mobilenet_v2", "beit"}


def tiny_model(kind, side=64):
    torch.manual_seed(0)
    config = configs()[kind]
    config.num_labels = 3
    return AutoModelForSemanticSegmentation.from_config(config)


class Samples(torch.utils.data.Dataset):
    def __init__(self, count, side=64):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(count, 3, side, side, generator=generator)
        self.labels = torch.randint(0, 3, (count, side, side), generator=generator)

    def set_epoch(self, epoch):
        pass

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixel_values[i], "labels": self.labels[i]}


def arguments(output_dir, batch_size, **options):
    return SegmentationTrainingArguments(
        output_dir=str(output_dir),
        do_train=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        **options,
    )


def train(model, args, num_images):
    trainer = SegmentationTrainer(
        model=model, args=args, train_dataset=Samples(num_images), protocol=EvaluationProtocol(64)
    )
    return trainer.train().global_step


@pytest.mark.parametrize(
    ("kind", "frozen"), [*((kind, False) for kind in configs()), ("mobilevit", True), ("segformer", True)]
)
def test_what_is_not_refused_can_be_trained(kind, frozen, tmp_path, caplog):
    """Whatever is left over at the end of an epoch, with and without accumulation and a frozen encoder."""
    caplog.set_level(logging.WARNING)
    for num_images, batch_size in [(1, 2), (2, 1), (3, 2), (4, 2), (5, 3)]:
        caplog.clear()
        model = tiny_model(kind)
        if frozen:
            freeze_encoder(model)
        args = arguments(tmp_path, batch_size, gradient_accumulation_steps=1 + num_images % 2)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        random_state = torch.get_rng_state()
        needs_two = kind in POOLING and (batch_size == 1 or num_images == 1)
        if needs_two:
            with pytest.raises(UserError, match="needs two images") as caught:
                check_batches(model, args, num_images, TrainTransform(EvaluationProtocol(64)))
            assert type(model).__name__ in str(caught.value)
            assert batch_size > 1 or "give 2 or more" in str(caught.value)
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                train(model, args, num_images)
            continue
        check_batches(model, args, num_images, TrainTransform(EvaluationProtocol(64)))
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        leaves_out = kind in POOLING and num_images % batch_size == 1
        assert args.dataloader_drop_last == leaves_out
        assert ("leave one over" in caplog.text) == leaves_out
        batches = num_images // batch_size + (num_images % batch_size > 0 and not leaves_out)
        assert train(model, args, num_images) == -(-batches // args.gradient_accumulation_steps)


def test_the_layer_is_named():
    layer = layer_that_needs_two_images(tiny_model("upernet-convnext"), TrainTransform(EvaluationProtocol(64)))
    assert layer.startswith("decode_head.psp_modules.0.") and layer.endswith("batch_norm")
    # A last stage of one pixel is one as well.
    assert layer_that_needs_two_images(
        tiny_model("upernet-resnet"), TrainTransform(EvaluationProtocol(32))
    ).startswith("backbone.")
    assert layer_that_needs_two_images(tiny_segformer(), TrainTransform(EvaluationProtocol(32))) is None


def test_several_processes_have_full_batches_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(SegmentationTrainingArguments, "world_size", 2)
    model = tiny_model("mobilenet_v2")
    args = arguments(tmp_path, 2)
    check_batches(model, args, 5, TrainTransform(EvaluationProtocol(64)))
    assert not args.dataloader_drop_last
    args = arguments(tmp_path, 2, accelerator_config={"even_batches": False})
    check_batches(model, args, 5, TrainTransform(EvaluationProtocol(64)))
    assert args.dataloader_drop_last
    with pytest.raises(UserError, match="--per_device_train_batch_size is 1"):
        check_batches(model, arguments(tmp_path, 1), 5, TrainTransform(EvaluationProtocol(64)))
    check_batches(
        nn.SyncBatchNorm.convert_sync_batchnorm(model),
        arguments(tmp_path, 1),
        5,
        TrainTransform(EvaluationProtocol(64)),
    )


def test_streams_do_not_end(tmp_path):
    args = arguments(tmp_path, 2)
    check_batches(tiny_model("mobilenet_v2"), args, None, TrainTransform(EvaluationProtocol(64)))
    assert not args.dataloader_drop_last


def test_images_to_be_scored_are_never_dropped(tmp_path):
    args = arguments(tmp_path, 2, dataloader_drop_last=True, per_device_eval_batch_size=2)
    trainer = SegmentationTrainer(
        model=tiny_segformer(), args=args, eval_dataset=Samples(3), protocol=EvaluationProtocol(64)
    )
    trainer.evaluate()
    assert len(trainer.compute_metrics.counts) == 3
    assert args.dataloader_drop_last


def test_a_dry_run_tries_the_last_batch(tmp_path, monkeypatch):
    seen = []

    def forward(*inputs, wrapped=None, pixel_values, **options):
        seen.append(len(pixel_values))
        return wrapped(*inputs, pixel_values=pixel_values, **options)

    model = tiny_segformer()
    model.forward = lambda *inputs, wrapped=model.forward, **options: forward(*inputs, wrapped=wrapped, **options)
    trainer = SegmentationTrainer(
        model=model, args=arguments(tmp_path, 3), train_dataset=Samples(8), protocol=EvaluationProtocol(64)
    )
    dry_run(trainer)
    assert seen == [3, 3, 2]


# ---- BatchNorm ------------------------------------------------------------------------------------------------------


def test_batch_norm_warning():
    model = tiny_segformer()
    assert batch_norm_warning(model, 2) is None
    assert "decode_head.batch_norm" in batch_norm_warning(model, 1)
    assert batch_norm_warning(nn.SyncBatchNorm.convert_sync_batchnorm(tiny_segformer()), 1) is None
    model.decode_head.batch_norm.requires_grad_(False)
    assert batch_norm_warning(model, 1) is None


def test_sync_batch_norm_keeps_the_fused_head_and_the_files():
    model = fuse_model(tiny_segformer())
    model.decode_head.batch_norm.running_mean.normal_()
    pixel_values, keys = torch.randn(2, 3, 32, 32), list(model.state_dict())
    with torch.no_grad():
        expected = model.eval()(pixel_values).logits
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert isinstance(converted.decode_head.batch_norm, nn.SyncBatchNorm)
        assert torch.equal(converted(pixel_values).logits, expected)
    assert converted is model and list(model.state_dict()) == keys
    assert isinstance(model.decode_head, FusedSegformerDecodeHead)
    model.train()(pixel_values).logits.sum().backward()  # one process: nothing to synchronise, on a CPU too
    assert model.decode_head.batch_norm.weight.grad is not None
