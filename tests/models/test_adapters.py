"""Frozen encoders, adapters, other channels and recomputed activations, on small models of several architectures."""

import copy
import sys
import weakref

import pytest
import torch
import torch.distributed
import transformers as T
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSemanticSegmentation

from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from models.adapters import (
    ADAPTERS_FILE,
    add_lora,
    enable_activation_checkpointing,
    encoder_names,
    freeze_encoder,
    merge_lora,
    merged_state_dict,
    save_adapters,
    set_num_channels,
    with_adapters,
    with_channels,
)
from models.fused_segformer import RecomputingSegformerMixMLP
from models.loading import load_model
from models.losses import upsampled_cross_entropy
from training.arguments import SegmentationTrainingArguments
from training.trainer import SegmentationTrainer

NAMES = {0: "sky", 1: "road", 2: "car"}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4}
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64}
BACKBONES = {
    "convnext": T.ConvNextConfig(**STAGES, out_features=ALL_STAGES),
    "swin": T.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=ALL_STAGES),
}
CONFIGS = {
    "segformer": T.SegformerConfig(
        **STAGES, num_attention_heads=[1] * 4, decoder_hidden_size=16, drop_path_rate=0.5, hidden_dropout_prob=0.5
    ),
    "beit": T.BeitConfig(**VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True),
    "data2vec": T.Data2VecVisionConfig(**VIT, out_indices=[1, 2, 3, 4]),
    "dpt": T.DPTConfig(
        **VIT, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8
    ),
    "mobilenet_v2": T.MobileNetV2Config(depth_multiplier=0.25),
    "mobilevit": T.MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 16, 16, 24, 32, 32, 64], num_attention_heads=2
    ),
    **{f"upernet-{name}": T.UperNetConfig(backbone_config=b, hidden_size=16) for name, b in BACKBONES.items()},
}


@pytest.fixture
def make_model(tmp_path):
    """(name, options of `load_model`) → a model with random weights and three classes."""

    def make(name="segformer", seed=0, **options):
        CONFIGS[name].save_pretrained(tmp_path / name)
        torch.manual_seed(seed)
        return load_model(from_scratch=str(tmp_path / name), id2label=NAMES, **options)

    return make


def images(count=2, channels=3, seed=0):
    return torch.randn(count, channels, 64, 64, generator=torch.Generator().manual_seed(seed))


def train(model, steps=2, learning_rate=0.1):
    """Some steps of gradient descent in training mode, after which a parameter with a gradient has moved."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        upsampled_cross_entropy(model(pixel_values=images()).logits, labels).backward()
        optimizer.step()
    return model


def weights(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.fixture
def one_process():
    """A process group of this process alone, for DistributedDataParallel."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Samples(torch.utils.data.Dataset):
    def set_epoch(self, epoch):
        pass

    def __len__(self):
        return 4

    def __getitem__(self, i):
        labels = torch.randint(0, 3, (64, 64), generator=torch.Generator().manual_seed(i))
        return {"pixel_values": images(1, seed=i)[0], "labels": labels}


def run_trainer(model, output_dir, **arguments):
    args = SegmentationTrainingArguments(
        output_dir=str(output_dir),
        do_train=True,
        use_cpu=True,
        max_steps=2,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    trainer = SegmentationTrainer(model=model, args=args, train_dataset=Samples(), protocol=EvaluationProtocol(64))
    trainer.train()
    return trainer


# ---- a frozen encoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segformer", "mobilenet_v2", "upernet-swin"])
def test_a_frozen_encoder_stays_in_evaluation_mode(make_model, name):
    model = freeze_encoder(make_model(name))
    encoder = model.get_submodule(encoder_names(model)[0])
    head = [module for module in model.modules() if module not in set(encoder.modules()) and module is not model]
    for mode in (True, False, True):
        model.train(mode)
        assert not any(module.training for module in encoder.modules())
        assert model.training == mode and all(module.training == mode for module in head)
    before = weights(model)
    train(model)
    moved = changed(before, weights(model))
    assert moved and not any(key.startswith(encoder_names(model)[0]) for key in moved)


def kept_for_backward(model):
    """Number of elements of the tensors that autograd keeps of an encoder's forward pass, and its outputs."""
    alive = weakref.WeakSet()

    def pack(tensor):
        box = Box(tensor)
        alive.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        outputs = model.train().segformer(images(), output_hidden_states=True)
    return sum(box.tensor.numel() for box in alive), outputs


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


def test_a_frozen_encoder_keeps_no_activations(make_model):
    model = make_model()
    assert kept_for_backward(model)[0] > 10_000
    kept, outputs = kept_for_backward(freeze_encoder(model))
    assert kept == 0 and not outputs.last_hidden_state.requires_grad
    assert len(outputs.hidden_states) == 4  # transformers still knows the class


def test_copies_of_a_frozen_model_are_frozen_by_themselves(make_model):
    model = freeze_encoder(make_model())
    copied = copy.deepcopy(model).train()
    assert not copied.segformer.training and copied.decode_head.training
    assert copied.segformer.train.__self__ is copied.segformer


def test_a_frozen_encoder_through_the_trainer(make_model, tmp_path):
    model = freeze_encoder(make_model())
    before = weights(model)
    run_trainer(model, tmp_path / "out", activation_checkpointing=True).save_model()
    moved = changed(before, weights(model))
    assert "decode_head.classifier.weight" in moved and not any(key.startswith("segformer.") for key in moved)
    reloaded = T.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert not changed(weights(reloaded), weights(model))


@pytest.mark.parametrize("adapt", [freeze_encoder, lambda model: add_lora(model, 2)])
@pytest.mark.parametrize("name", ["segformer", "beit", "upernet-swin"])
def test_data_parallel_need_not_look_for_unused_parameters(make_model, name, adapt, one_process):
    # In the second step it raises where a parameter had no gradient in the first.
    train(DistributedDataParallel(adapt(make_model(name)), find_unused_parameters=False))


# ---- activation checkpointing ---------------------------------------------------------------------------------------


def gradients(model):
    labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # of dropout and drop path
    upsampled_cross_entropy(model.train()(pixel_values=images()).logits, labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize("adapt", [lambda model: model, freeze_encoder, lambda model: add_lora(model, 2)])
def test_activation_checkpointing_gives_the_same_gradients(make_model, adapt, fused_ops):
    def model():
        return adapt(make_model(fused_ops=fused_ops))

    checkpointed = model()
    enable_activation_checkpointing(checkpointed)
    stage = checkpointed.segformer.stages[0]
    assert stage.blocks[0].gradient_checkpointing
    assert isinstance(stage.blocks[0].mlp, RecomputingSegformerMixMLP) == fused_ops
    assert not changed(gradients(model()), gradients(checkpointed))


def test_activation_checkpointing_keeps_less(make_model):
    model = make_model()
    before, _ = kept_for_backward(model)
    enable_activation_checkpointing(model)
    after, _ = kept_for_backward(model)
    assert after < before / 2


@pytest.mark.parametrize("name", ["mobilenet_v2", "upernet-convnext"])
def test_architectures_without_activation_checkpointing(make_model, name):
    with pytest.raises(UserError, match="--activation_checkpointing: .*ForSemanticSegmentation does not support it"):
        enable_activation_checkpointing(make_model(name))


# ---- LoRA -----------------------------------------------------------------------------------------------------------

LORA_LAYERS = {
    "segformer": [f"stages.{i}.blocks.0.attention.{p}" for i in range(4) for p in ("q_proj", "v_proj")],
    # The fourth layer does not reach the logits.
    "beit": [f"layers.{i}.attention.{p}" for i in range(3) for p in ("q_proj", "v_proj")],
    "data2vec": [f"encoder.layer.{i}.attention.attention.{p}" for i in range(3) for p in ("query", "value")],
    "dpt": [f"encoder.layer.{i}.attention.attention.{p}" for i in range(4) for p in ("query", "value")],
    "upernet-swin": [
        f"swin.encoder.layers.{i}.blocks.0.attention.{p}" for i in range(4) for p in ("q_proj", "v_proj")
    ],
}


@pytest.mark.parametrize("name", LORA_LAYERS)
def test_lora_trains_adapters_and_head(make_model, name):
    model = make_model(name).eval()
    encoder = encoder_names(model)[0] + "."
    head = {key for key, p in model.named_parameters() if p.requires_grad and not key.startswith(encoder)}
    with torch.no_grad():
        expected = model(images()).logits
        assert torch.equal(add_lora(model, 2)(images()).logits, expected)  # B starts at zero
    adapters = {f"{encoder}{layer}.lora_{p}.default.weight" for layer in LORA_LAYERS[name] for p in "AB"}
    assert {key for key, p in model.named_parameters() if p.requires_grad} == adapters | head
    before = weights(model)
    train(model)
    moved = changed(before, weights(model))
    assert {key for key in moved if key.startswith(encoder)} == adapters
    assert head <= moved


def test_merged_weights(make_model, tmp_path):
    plain = make_model()
    model = train(add_lora(make_model(), 2)).eval()
    state = weights(model)
    expected = {}
    for key in plain.state_dict():
        layer, _, kind = key.rpartition(".")
        if f"{layer}.lora_A.default.weight" in state:
            expected[key] = state[f"{layer}.base_layer.{kind}"]
            if kind == "weight":
                a, b = (state[f"{layer}.lora_{matrix}.default.weight"] for matrix in "AB")
                assert a.shape == (2, state[f"{layer}.base_layer.weight"].shape[1])
                expected[key] = expected[key] + b @ a
        else:
            expected[key] = state[key]
    assert not changed(expected, merged_state_dict(model))
    assert not changed(state, model.state_dict())
    with torch.no_grad():
        logits = model(images()).logits
        assert merge_lora(model) is model
        torch.testing.assert_close(model(images()).logits, logits, rtol=1e-4, atol=1e-4)
    assert not changed(expected, model.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert vars(model.segformer).keys() == vars(plain.segformer).keys()

    model.save_pretrained(tmp_path / "merged")
    plain.save_pretrained(tmp_path / "plain")
    names = [set(load_file(tmp_path / folder / "model.safetensors")) for folder in ("merged", "plain")]
    assert names[0] == names[1]
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()) and not changed(expected, reloaded.state_dict())


def test_models_without_adapters_are_left_alone(make_model, tmp_path):
    model = make_model()
    before = weights(model)
    assert not changed(before, merged_state_dict(model)) and merge_lora(model) is model
    assert not changed(before, model.state_dict())
    save_adapters(model, tmp_path)
    assert not (tmp_path / ADAPTERS_FILE).exists()
    assert not changed(before, with_adapters(before, model, tmp_path))


def save_checkpoint(model, folder):
    model.save_pretrained(folder, state_dict=merged_state_dict(model))
    save_adapters(model, folder)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(make_model, tmp_path):
    model = train(add_lora(make_model(), 2))
    save_checkpoint(model, tmp_path)
    # A standard folder of the merged weights.
    saved, info = T.SegformerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not changed(saved.state_dict(), merged_state_dict(model))
    again = add_lora(make_model(seed=1), 2)
    again.load_state_dict(with_adapters(saved.state_dict(), again, tmp_path), strict=True)
    assert not changed(weights(model), again.state_dict())


@pytest.mark.parametrize(
    ("written", "now", "message"),
    [
        (2, 3, "written with --lora_r 2.*with --lora_r 3"),
        (2, 0, "with --lora_r 2.*out"),
        (0, 2, "out --lora_r, .* 2;"),
    ],
)
def test_checkpoints_of_other_adapters_are_refused(make_model, tmp_path, written, now, message):
    models = [add_lora(make_model(), r) if r else make_model() for r in (written, now)]
    save_checkpoint(models[0], tmp_path)
    with pytest.raises(UserError, match=message):
        with_adapters({}, models[1], tmp_path)


@pytest.mark.parametrize("name", ["mobilenet_v2", "upernet-convnext"])
def test_encoders_without_attention_layers(make_model, name):
    with pytest.raises(UserError, match="--lora_r: no layers .* are known in (MobileNetV2Model|ConvNextBackbone);"):
        add_lora(make_model(name), 2)


def test_mistakes_with_lora(make_model, monkeypatch):
    with pytest.raises(UserError, match="--lora_r is 0; it must be at least 1"):
        add_lora(make_model(), 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="--lora_r needs peft, which is not installed: pip install peft"):
        add_lora(make_model(), 2)


# ---- channels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_channels", [1, 4])
def test_an_image_of_equal_channels_gives_what_it_gave_in_rgb(make_model, name, num_channels):
    model = make_model(name, fused_ops=False).eval()
    other = with_channels(model, num_channels)
    grey = images(channels=1)
    with torch.no_grad():
        expected = model(grey.expand(-1, 3, -1, -1)).logits
        found = other(grey.expand(-1, num_channels, -1, -1)).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    same = [key for key in model.state_dict() if model.state_dict()[key].shape == other.state_dict()[key].shape]
    assert len(same) == len(model.state_dict()) - 1
    assert all(torch.equal(model.state_dict()[key], other.state_dict()[key]) for key in same)


FILTERS = {1: [9], 2: [4.5, 4.5], 3: [1, 2, 6], 4: [0.75, 1.5, 4.5, 2.25], 6: [0.5, 1, 3, 1.5, 1.5, 1.5]}


def test_filters_of_other_channels(make_model):
    model = make_model()
    with torch.no_grad():
        filters = model.segformer.stages[0].patch_embeddings.proj.weight
        filters[0, :, 0, 0] = torch.tensor([1.0, 2.0, 6.0])
    for num_channels, expected in FILTERS.items():
        other = with_channels(model, num_channels)
        assert other.segformer.stages[0].patch_embeddings.proj.weight[0, :, 0, 0].tolist() == expected
        assert other.config.num_channels == num_channels
    assert model.config.num_channels == 3


@pytest.mark.parametrize("name", ["segformer", "upernet-swin"])
def test_stock_transformers_loads_models_of_other_channels(make_model, tmp_path, name):
    make_model(name).save_pretrained(tmp_path / "rgb")
    # Of UperNet the fast one gives smaller logits.
    model = load_model(str(tmp_path / "rgb"), NAMES, name == "segformer", num_channels=4).eval()
    model.save_pretrained(tmp_path / "four")
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "four", output_loading_info=True)
    assert not any(info.values()) and not changed(model.state_dict(), reloaded.state_dict())
    rgb_names, names = (set(load_file(tmp_path / folder / "model.safetensors")) for folder in ("rgb", "four"))
    assert names == rgb_names
    with torch.no_grad():
        pixels = images(channels=4)
        torch.testing.assert_close(reloaded(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-6)
    again = load_model(str(tmp_path / "four"), NAMES, num_channels=4)
    assert not changed(model.state_dict(), again.state_dict())
    with pytest.raises(UserError, match=r"--num_channels 5: .*proj.*weight of .*, \(8, 4, ., .\), is no convolution"):
        load_model(str(tmp_path / "four"), NAMES, num_channels=5)


def test_mistakes_with_channels():
    with pytest.raises(UserError, match="--num_channels is 0; it must be at least 1"):
        set_num_channels(T.SegformerConfig(), 0)
    with pytest.raises(UserError, match="--num_channels: the configuration of bert has no such field"):
        set_num_channels(T.BertConfig(), 4)


def test_from_scratch_with_other_channels(make_model):
    model = make_model(num_channels=5)
    assert model.segformer.stages[0].patch_embeddings.proj.weight.shape == (8, 5, 7, 7)


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_resumed_run_with_lora_ends_as_if_it_had_not_stopped(make_model, tmp_path, ema_decay):
    def run(seed, **resume):
        arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
        args = SegmentationTrainingArguments(
            output_dir=str(tmp_path / "run"),
            do_train=True,
            use_cpu=True,
            eval_strategy="no",
            learning_rate=0.01,
            disable_tqdm=True,
            **arguments,
        )
        model = add_lora(make_model(seed=seed), 2)
        torch.manual_seed(0)
        trainer = SegmentationTrainer(
            model=model, args=args, train_dataset=Samples(), protocol=EvaluationProtocol(64), ema_decay=ema_decay
        )
        trainer.train(**resume)
        return weights(model)

    whole = run(seed=0)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert not changed(whole, run(seed=1, resume_from_checkpoint=str(checkpoint)))
    # What was evaluated, as a standard folder.
    _, info = T.SegformerForSemanticSegmentation.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())
