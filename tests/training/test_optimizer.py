"""Every parameter in its published group, and the learning rate at its published values."""

import re
from functools import partial

import pytest
import torch
from factories.architectures import universal_configs
from torch import nn
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from models.configurations import new_model
from training.arguments import SegmentationTrainingArguments
from training.optimizer import (
    NORM_LAYERS,
    groups_table,
    parameter_groups,
    poly_factor,
    poly_schedule,
    takes_parameter_groups,
)
from training.trainer import SegmentationTrainer

TINY = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


def tiny_segformer():
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=3))


# ---- parameter groups -----------------------------------------------------------------------------------------------

# From transformers' names to those of the original code, in which the published rules are written.
ORIGINAL_NAMES = [
    (r"^segformer\.stages\.(\d)\.patch_embeddings\.layer_norm", r"backbone.patch_embed\1.norm"),
    (r"^segformer\.stages\.(\d)\.patch_embeddings\.proj", r"backbone.patch_embed\1.proj"),
    (r"^segformer\.stages\.(\d)\.blocks\.(\d+)\.", r"backbone.block\1.\2."),
    (r"^segformer\.stages\.(\d)\.layer_norm", r"backbone.norm\1"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.sequence_reduction\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attn.sr."),
    (r"\.attention\.q_proj\.", ".attn.q."),
    (r"\.attention\.[kv]_proj\.", ".attn.kv."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"^decode_head\.linear_projections\.(\d)\.", r"decode_head.linear_c\1."),
    (r"^decode_head\.linear_fuse\.", "decode_head.linear_fuse.conv."),
    (r"^decode_head\.batch_norm\.", "decode_head.linear_fuse.bn."),
    (r"^decode_head\.classifier\.", "decode_head.linear_pred."),
]
ORIGINAL = re.compile(
    r"backbone\.(patch_embed\d\.(proj|norm)|norm\d|block\d\.\d+\.(norm[12]|attn\.(q|kv|proj|sr|norm)|"
    r"mlp\.(fc[12]|dwconv\.dwconv)))\.(weight|bias)|"
    r"decode_head\.(linear_c\d\.proj|linear_fuse\.(conv|bn)|linear_pred)\.(weight|bias)"
)


def published_options(name):
    """(learning rate, weight decay) by mmcv's rule: the longest key in the name, then the first by letter."""
    for pattern, replacement in ORIGINAL_NAMES:
        name = re.sub(pattern, replacement, name)
    assert ORIGINAL.fullmatch(name), name
    keys = {"pos_block": (6e-5, 0.0), "norm": (6e-5, 0.0), "head": (6e-4, 0.01)}
    for key in sorted(sorted(keys), key=len, reverse=True):
        if key in name:
            return keys[key]
    return 6e-5, 0.01


def options_by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(dict(pairs)) == len(pairs), "a parameter is in two groups"
    return dict(pairs)


def test_every_parameter_of_segformer_b0_is_in_its_published_group():
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150))
    groups = parameter_groups(model, 6e-5, 0.01, head_lr_multiplier=10)
    found = options_by_name(model, groups)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, options in found.items():
        assert options == pytest.approx(published_options(name)), name
    assert {group["name"]: len(group["params"]) for group in groups} == {
        "encoder": 132,
        "encoder norms": 60,
        "head": 13,
    }
    # The porting trap, and a bias outside a norm, spelled out.
    assert found["decode_head.batch_norm.weight"] == found["decode_head.batch_norm.bias"] == (6e-5 * 10, 0.01)
    assert found["segformer.stages.0.blocks.0.mlp.fc1.bias"] == (6e-5, 0.01)


def test_table():
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150))
    assert groups_table(parameter_groups(model, 6e-5, 0.01, 10)).splitlines() == [
        "parameter group  tensors  parameters (M)  learning rate  weight decay",
        "encoder              132           3.312          6e-05          0.01",
        "encoder norms         60           0.007          6e-05             0",
        "head                  13           0.433         0.0006          0.01",
    ]


@pytest.mark.parametrize(
    ("model_class", "config", "head", "norm"),
    [
        (
            BeitForSemanticSegmentation,
            BeitConfig(
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=64,
                out_indices=[1, 2, 3, 4],
                use_auxiliary_head=False,
                use_relative_position_bias=True,
                add_fpn=False,
                reshape_hidden_states=True,
            ),
            ("decode_head.", "fpn."),
            r"layernorm|normalization",
        ),
        (
            UperNetForSemanticSegmentation,
            UperNetConfig(
                backbone_config=ResNetConfig(
                    embedding_size=8,
                    hidden_sizes=[8, 8, 16, 16],
                    depths=[1] * 4,
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                ),
                hidden_size=16,
                use_auxiliary_head=False,
            ),
            ("decode_head.",),
            r"normalization|batch_norm",
        ),
        (
            MobileNetV2ForSemanticSegmentation,
            MobileNetV2Config(depth_multiplier=0.35),
            ("segmentation_head.",),
            "normalization",
        ),
    ],
    ids=["BEiT", "UperNet", "MobileNetV2"],
)
def test_other_architectures(model_class, config, head, norm):
    """Norms are told by type here and by name in the module; the head is what lies outside the encoder."""
    model = model_class(config)
    found = options_by_name(model, parameter_groups(model, 1.0, 0.5, head_lr_multiplier=3.0))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, options in found.items():
        expected = (3.0 if name.startswith(head) else 1.0, 0.0 if re.search(norm, name) else 0.5)
        assert options == expected, name
    assert len(set(found.values())) == 4


def test_what_mask2former_and_swin_do_not_decay():
    """Norms, embeddings, and Swin's tables of relative positions, as both published optimizers have it."""
    with torch.device("meta"):
        model = new_model(universal_configs()["mask2former"])
    found = options_by_name(model, parameter_groups(model, 1e-5, 0.05, head_lr_multiplier=10))
    undecayed = {name for name, (_, decay) in found.items() if not decay}
    embeddings = {"queries_embedder.weight", "queries_features.weight", "level_embed.weight"}
    for name in found:
        published = (
            name.endswith("relative_position_bias_table") or name.split("transformer_module.")[-1] in embeddings
        )
        assert (name in undecayed) == (published or isinstance(owner(model, name), NORM_LAYERS)), name
    assert sum(name.endswith("table") for name in undecayed) == 4
    assert found["model.transformer_module.queries_embedder.weight"] == (pytest.approx(1e-4), 0.0)


def owner(model, name):
    return model.get_submodule(name.rpartition(".")[0])


def test_frozen_parameters_are_left_out_and_shared_ones_come_once():
    model = tiny_segformer()
    model.segformer.requires_grad_(False)
    model.decode_head.linear_projections[1].proj.bias = model.decode_head.linear_projections[0].proj.bias
    (head,) = parameter_groups(model, 1.0, 0.0)
    assert head["name"] == "head" and head["lr"] == 1.0 and len(head["params"]) == 12
    torch.optim.AdamW([head])  # torch refuses a parameter in two places


def test_optimizers_that_choose_their_own_parameters():
    assert takes_parameter_groups(torch.optim.AdamW, {"lr": 1.0})
    assert not takes_parameter_groups(torch.optim.AdamW, {"lr": 1.0, "params": []})
    assert not takes_parameter_groups(torch.optim.AdamW, {"lr": 1.0, "model": None})
    assert not takes_parameter_groups(lambda: None, {"lr": 1.0})


# ---- schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    # lr = 6e-5 (1 - i / 160000) (1 - (1 - i / 1500)(1 - 1e-6)), the last factor below 1,500 only; by hand.
    [(0, 6e-11), (750, 2.985940485937500e-5), (1500, 5.94375e-5), (80_000, 3e-5), (159_999, 3.75e-10), (160_000, 0.0)],
)
def test_published_learning_rates(step, expected):
    assert 6e-5 * poly_factor(step, 160_000, 1500) == pytest.approx(expected, rel=1e-9, abs=0)


def test_power_and_end():
    assert poly_factor(50, 100, 0, power=2.0) == 0.25
    assert poly_factor(50, 100, 0, end=0.5) == 0.75
    assert poly_factor(100, 100, 0, end=0.5) == poly_factor(101, 100, 0, end=0.5) == 0.5


def schedule_of(rates=(1.0, 10.0), **options):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups)
    return optimizer, poly_schedule(optimizer, max_steps=10, warmup_steps=4, **options)


def rates_of(optimizer, schedule, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


def test_schedule_of_two_groups():
    """Head and encoder by the same factor; both end at `lr_end`, which is a learning rate."""
    rates = rates_of(*schedule_of(), steps=11)
    assert [head / encoder for encoder, head in rates[:10]] == pytest.approx([10.0] * 10)
    assert [encoder for encoder, _ in rates] == pytest.approx(
        [1e-6, 0.9 * 0.25, 0.8 * 0.5, 0.7 * 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-5
    )
    rates = rates_of(*schedule_of(lr_end=0.5, warmup_ratio=1.0), steps=11)
    assert rates[0] == [1.0, 10.0] and rates[5] == [0.75, 5.25] and rates[10] == [0.5, 0.5]


def test_a_resumed_schedule_is_bitwise_the_uninterrupted_one():
    optimizer, schedule = schedule_of(power=0.9, lr_end=0.01)
    whole = rates_of(optimizer, schedule, 10)
    optimizer, schedule = schedule_of(power=0.9, lr_end=0.01)
    first = rates_of(optimizer, schedule, 3)
    states = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = schedule_of(power=0.9, lr_end=0.01)
    optimizer.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    assert first + rates_of(optimizer, schedule, 7) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"powr": 0.9}, r"holds 'powr' \(did you mean power\?\); polynomial takes power, lr_end, warmup_ratio"),
        ({"lr_end": 1e-3}, "lr_end is 0.001; it must be a number from 0 to 6e-05"),
        ({"warmup_ratio": 2}, "warmup_ratio is 2; it must be a number from 0 to 1"),
        ({"power": "high"}, "power is 'high'"),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path):
    polynomial = partial(SegmentationTrainingArguments, str(tmp_path), lr_scheduler_type="polynomial")
    with pytest.raises(UserError, match=message):
        polynomial(lr_scheduler_kwargs=options)
    polynomial(lr_scheduler_kwargs={"power": 0.9, "lr_end": 1e-7, "warmup_ratio": 0.1})


def test_options_of_other_schedules_are_theirs(tmp_path):
    kwargs = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}
    SegmentationTrainingArguments(str(tmp_path), **kwargs)


# ---- in the Trainer -------------------------------------------------------------------------------------------------


def make_trainer(tmp_path, head_lr_multiplier=10.0, **arguments):
    args = SegmentationTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=6e-5, weight_decay=0.01, max_steps=10, **arguments
    )
    return SegmentationTrainer(
        model=tiny_segformer(), args=args, protocol=EvaluationProtocol(32), head_lr_multiplier=head_lr_multiplier
    )


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_trainer_uses_the_groups_with_any_optimizer(optim, tmp_path):
    trainer = make_trainer(tmp_path, optim=optim)
    groups = trainer.create_optimizer().param_groups
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder", 6e-5, 0.01),
        ("encoder norms", 6e-5, 0.0),
        ("head", pytest.approx(6e-4), 0.01),
    ]
    assert options_by_name(trainer.model, groups).keys() == {name for name, _ in trainer.model.named_parameters()}


def test_trainer_polynomial_is_the_published_schedule_and_others_are_stock(tmp_path):
    options = {"lr_scheduler_type": "polynomial", "warmup_steps": 4, "lr_scheduler_kwargs": {"warmup_ratio": 0.5}}
    trainer = make_trainer(tmp_path, **options)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    rates = rates_of(trainer.optimizer, trainer.lr_scheduler, 11)
    expected = [6e-5 * poly_factor(step, 10, 4, warmup_ratio=0.5) for step in range(11)]
    assert [rate[0] for rate in rates] == pytest.approx(expected)
    assert [rate[2] for rate in rates] == pytest.approx([10 * rate for rate in expected])

    # A second training has a schedule of its own, for which the Trainer discards the first one.
    assert trainer._created_lr_scheduler

    trainer = make_trainer(tmp_path, lr_scheduler_type="linear", warmup_steps=4)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    assert [r[0] for r in rates_of(trainer.optimizer, trainer.lr_scheduler, 5)] == pytest.approx(
        [0.0, 1.5e-5, 3e-5, 4.5e-5, 6e-5]
    )
