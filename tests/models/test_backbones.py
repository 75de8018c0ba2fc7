"""Pretrained backbones with fresh heads: every tensor arrives, nothing is random in silence, stock transformers loads
the result and says the same of an image."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as T
from factories.architectures import PATCH_14, VIT, backbone_configs
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSemanticSegmentation

from cli_utils import UserError
from data.arguments import EvaluationArguments
from models.adapters import add_lora, enable_activation_checkpointing, freeze_encoder
from models.backbones import config_with_head
from models.configurations import new_model
from models.geometry import input_geometry
from models.image_processor import load_image_processor
from models.inference import evaluation_protocol, protocol_logits, score_logits
from models.loading import find_config, load_model, load_trained_model
from models.losses import segmentation_loss
from training.optimizer import check_layer_decay, parameter_groups

ID2LABEL = {0: "sky", 1: "road", 2: "car", 3: "tree"}
DINOV2 = T.Dinov2Config(**PATCH_14)
CONFIGS = {
    name: config.backbone_config
    for name, config in backbone_configs().items()
    if name not in ("dpt, hybrid", "tipsv2_dpt over dinov2_with_registers")
}
CONFIGS["pixio"] = T.PixioConfig(**VIT, patch_size=16, n_cls_tokens=2)
CONFIGS["sapiens2"] = T.Sapiens2Config(**VIT, patch_size=16, num_key_value_attention_heads=2)
CONFIGS["tipsv2_vision_model"] = T.Tipsv2VisionConfig(**PATCH_14)
DPT = ("dinov2", "dinov2_with_registers", "tipsv2_vision_model", "beit")
# What a backbone does not have of its base model: norms and poolers behind the last feature map.
LEFT_BEHIND = ("layernorm.", "layer_norm.", "pooler.", "norm.", "embeddings.mask_token", "last_convolution.", "head.")


NARROW = {"upernet": {"hidden_size": 16}, "dpt": {"fusion_hidden_size": 8}}  # for speed


def load(folder, head="upernet", **options):
    return load_model(str(folder), ID2LABEL, head=head, **NARROW[head], **options)


def save_base(config, folder, model_class=AutoModel.from_config):
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():  # so that no tensor is one that a fresh model would have as well
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def dinov2(tmp_path):
    save_base(DINOV2, tmp_path / "dinov2")
    return str(tmp_path / "dinov2")


@pytest.mark.parametrize(("name", "head"), [(name, "upernet") for name in CONFIGS] + [(name, "dpt") for name in DPT])
def test_every_tensor_arrives_and_stock_transformers_loads_the_result(name, head, tmp_path):
    base = save_base(CONFIGS[name], tmp_path / "base")
    model = load(tmp_path / "base", head)
    backbone = model.backbone.state_dict()
    prefix = model.backbone.base_model_prefix + "."
    for key, tensor in base.state_dict().items():
        found = backbone.get(prefix + key, backbone.get(key))
        if found is None:
            assert key.startswith(LEFT_BEHIND), key
        else:
            assert torch.equal(found, tensor), key
    assert len(model.backbone.channels) == 4 and model.config.num_labels == 4
    model.save_pretrained(tmp_path / "out")
    stock, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and type(stock).__module__.startswith("transformers.")
    assert all(torch.equal(tensor, stock.state_dict()[key]) for key, tensor in model.state_dict().items())
    # Without one tensor, or with one of another shape, it is refused.
    file = tmp_path / "base" / "model.safetensors"
    state = load_file(file)
    key = next(
        key for key in state if key.endswith("weight") and ("layer" in key or "block" in key) and "norm" not in key
    )
    lost = state.pop(key)
    for faulty, message in ((state, "missing .*"), (state | {key: lost[:-1].clone()}, "of another shape .*")):
        save_file(faulty, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"base does not fit a .*: {message}"):
            load(tmp_path / "base", head)


@pytest.mark.parametrize(
    "model_class",
    [T.Dinov2ForImageClassification, T.SwinForImageClassification, T.SwinForMaskedImageModeling]
    + [T.TextNetForImageClassification, T.PPLCNetForImageClassification]
    + [T.ConvNextForImageClassification, T.PvtV2ForImageClassification, T.HieraForImageClassification],
)
def test_checkpoints_of_other_tasks(model_class, tmp_path):
    given = (config for config in CONFIGS.values() if type(config) is model_class.config_class)
    config = next(given, None) or model_class.config_class()
    base = save_base(config, tmp_path, model_class)
    loaded = load(tmp_path).backbone.state_dict()
    for key, tensor in base.base_model.state_dict().items():
        found = loaded.get(key, loaded.get(f"{base.base_model_prefix}.{key}"))
        assert key.startswith(LEFT_BEHIND) if found is None else torch.equal(found, tensor)


def test_parts_of_an_encoder_that_is_larger_are_not_overlooked(dinov2):
    file = f"{dinov2}/model.safetensors"
    state = load_file(file)
    key = next(key for key in state if "layer.3." in key)
    save_file(state | {key.replace("layer.3.", "layer.4."): state[key].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unexpected .*layer\.4\."):
        load(dinov2)


@pytest.mark.parametrize(("depth", "stages"), [(12, [3, 6, 9, 12]), (24, [6, 12, 18, 24]), (4, [1, 2, 3, 4])])
@pytest.mark.parametrize("kind", [T.Dinov2Config, T.Dinov2WithRegistersConfig, T.DINOv3ViTConfig])
def test_a_vit_is_read_at_its_quarters(kind, depth, stages, tmp_path):
    kind(num_hidden_layers=depth).save_pretrained(tmp_path)
    config = find_config(str(tmp_path), head="upernet")
    assert config.backbone_config.out_features == [f"stage{index}" for index in stages]


def test_dpt_is_as_wide_as_published(tmp_path):
    """transformers, convert_dinov2_depth_to_hf.py, for the small, base and large DINOv2."""
    for width, neck in ((384, [48, 96, 192, 384]), (768, [96, 192, 384, 768]), (1024, [128, 256, 512, 1024])):
        T.Dinov2Config(hidden_size=width, num_attention_heads=width // 64).save_pretrained(tmp_path)
        assert config_with_head(str(tmp_path), "dpt").neck_hidden_sizes == neck


@pytest.mark.parametrize("name", ["swin", "dinov2"])
def test_fused_upernet_is_stock_upernet(name, tmp_path):
    save_base(CONFIGS[name], tmp_path)
    torch.manual_seed(1)
    fused = load(tmp_path)
    torch.manual_seed(1)
    stock = load(tmp_path, fused_ops=False)
    protocol = evaluation_protocol(
        fused.config, load_image_processor(str(tmp_path), head="upernet", image_size=56), EvaluationArguments()
    )
    assert "resized bilinearly to the size shown, then to the original size" in protocol.describe()
    side = protocol.short_side
    pixel_values, labels = torch.randn(2, 3, side, side), torch.randint(0, 4, (2, side, side))
    losses = []
    for model in (fused, stock):
        model.train()
        torch.manual_seed(2)
        logits = model(pixel_values=pixel_values).logits
        assert (logits.shape[-1] == side) == (model is stock)
        loss = segmentation_loss(logits, labels, fused_ops=model is fused)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (key, one), other in zip(fused.named_parameters(), stock.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=key)
    # In evaluation: transformers' own two steps.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 77, 3), np.uint8))
    truth = torch.randint(0, 4, (1, 45, 77))
    with torch.inference_mode():
        shown = protocol.preprocess(image)
        full = F.interpolate(stock.eval()(shown[None]).logits, size=(45, 77), mode="bilinear", align_corners=False)
        for model, fused_ops in ((fused.eval(), True), (fused, False), (stock, True), (stock, False)):
            prediction, loss_sum, _ = score_logits(protocol_logits(model, shown, protocol), truth, fused_ops)
            assert (prediction != full.argmax(1)).float().mean() < 1e-3
            expected = F.cross_entropy(full, truth, reduction="sum")
            torch.testing.assert_close(loss_sum, expected[None], rtol=1e-4, atol=0)


def test_frozen_adapted_recomputed(dinov2):
    for head in ("upernet", "dpt"):
        model = freeze_encoder(load(dinov2, head))
        assert not any(p.requires_grad for p in model.backbone.parameters())
        model = add_lora(load(dinov2, head), 2)
        assert sum(".lora_A." in key for key in model.state_dict()) == 8  # query and value of four layers
        model = load(dinov2, head).train()
        pixel_values = torch.randn(2, 3, 56, 56)
        gradients = []
        for recompute in (False, True):
            if recompute:
                enable_activation_checkpointing(model)
                assert any(getattr(m, "gradient_checkpointing", False) for m in model.backbone.modules())
            model.zero_grad()
            model(pixel_values=pixel_values).logits.square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_rates_of_the_layers_of_a_vit(dinov2):
    """BEiT's rule for 4 layers: the last gets the decay once, what comes before the first 5 times, the rest none."""
    model = load(dinov2)
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, 1.0, 0.1, 10, layer_decay=0.5)}
    expected = {f"encoder layer {i}": 0.5 ** (4 - i) for i in range(4)} | {"encoder embeddings": 0.5**5}
    expected |= {f"encoder layer {i} norms": rate for i, rate in enumerate([0.5**4, 0.5**3, 0.5**2, 0.5])}
    assert rates == expected | {"encoder norms": 1.0, "head": 10.0, "head norms": 10.0}
    groups = parameter_groups(model, 1.0, 0.1, 10, layer_decay=0.5)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    check_layer_decay(model.config, 0.5)


@pytest.mark.parametrize("name", ["dinov3_vit", "beit", "dinov2_with_registers"])
def test_every_layer_of_other_vits_is_found(name, tmp_path):
    save_base(CONFIGS[name], tmp_path)
    model = load(tmp_path)
    names = {group["name"] for group in parameter_groups(model, 1.0, 0.1, layer_decay=0.5)}
    assert {f"encoder layer {i}" for i in range(4)} | {"encoder embeddings"} <= names


def test_the_image_processor_has_the_backbones_statistics_and_a_size_for_segmentation(tmp_path):
    DINOV2.save_pretrained(tmp_path)
    T.BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    processor = load_image_processor(str(tmp_path), head="upernet")
    assert type(processor) is T.SegformerImageProcessor and (processor.size["height"], processor.size["width"]) == (
        512,
        512,
    )
    assert [*processor.image_mean, *processor.image_std] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    config = find_config(str(tmp_path), head="upernet")
    protocol = evaluation_protocol(config, processor, EvaluationArguments())
    assert (protocol.short_side, protocol.size_divisor) == (518, 14)


MISTAKES = [
    ({"config": T.BertConfig()}, "upernet", "is of type bert, of which transformers reads no feature maps"),
    ({"config": T.SegformerConfig()}, "upernet", "is of type segformer, .* own head as --model_name_or_path /"),
    ({"config": T.Mask2FormerConfig()}, "upernet", "is of type mask2former, .* own head as --model_name_or_path /"),
    ({"config": T.SwinConfig(depths=[1] * 3, num_heads=[1] * 3, embed_dim=8)}, "upernet", "has 3 stages .*reads 4"),
    ({"config": T.Dinov2Config(**VIT | {"num_hidden_layers": 3})}, "upernet", "has 3 stages"),
    ({"config": T.SwinConfig()}, "dpt", "of type swin: give --head upernet"),
    ({"config": T.DINOv3ViTConfig()}, "dpt", "of type dinov3_vit: give --head upernet"),
]


@pytest.mark.parametrize(("given", "head", "message"), MISTAKES)
def test_backbones_that_do_not_fit_end_in_one_line(given, head, message, tmp_path):
    given["config"].save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        find_config(str(tmp_path), head=head)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", [401, 403])  # without an account, and with one that was not let in
def test_a_gated_model_says_how_to_get_access(status, hub, dinov2):
    files = {name: Path(dinov2, name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.offer("somebody/dinov3", files)
    hub.gated |= dict.fromkeys(files, status)
    with pytest.raises(UserError, match="^somebody/dinov3 is gated: ask for access on https://huggingface.co/some.*"):
        load("somebody/dinov3")
    hub.gated.clear()
    load("somebody/dinov3")


def test_drop_path_of_the_backbone(tmp_path):
    CONFIGS["swin"].save_pretrained(tmp_path)
    save_base(CONFIGS["swin"], tmp_path)
    assert load(tmp_path, drop_path_rate=0.3).config.backbone_config.drop_path_rate == 0.3
    with pytest.raises(UserError, match="no field drop_rate"):
        load(tmp_path, drop_rate=0.3)


@pytest.mark.parametrize(("depth", "published"), [(9, 6), (27, 12)])
@pytest.mark.parametrize("name", ["convnext", "dinov3_convnext"])
def test_rates_of_the_stages_of_a_convnext(name, depth, published):
    """ConvNeXt's `get_num_layer_stage_wise`, written out: layer 0 of num_layers + 2 is what downsamples, stage i layer
    i + 1, and the last one all the rest."""
    backbone = copy.deepcopy(CONFIGS[name])
    backbone.depths = [3, 3, depth, 3]
    with torch.device("meta"):
        model = new_model(T.UperNetConfig(backbone_config=backbone, hidden_size=16, use_auxiliary_head=False))
    rate = {layer: 0.9 ** (published + 2 - layer - 1) for layer in range(published + 2)}
    groups = parameter_groups(model, 1.0, 0.1, 10, layer_decay=0.9)
    rates = {group["name"].removesuffix(" norms"): group["lr"] for group in groups}
    expected = {f"encoder stage {i}": rate[i + 1] for i in range(4)}
    expected |= {"encoder downsampling": rate[0], "head": 10.0}
    if name == "convnext":  # norms of feature maps
        expected["encoder"] = 1.0
    assert rates == pytest.approx(expected)
    sizes = {group["name"]: len(group["params"]) for group in groups}
    assert sizes["encoder stage 2"] == 7 * depth and sizes["encoder stage 2 norms"] == 2 * depth
    assert sizes["encoder downsampling"] == sizes["encoder downsampling norms"] == 8
    check_layer_decay(model.config, 0.9)


def test_layers_that_do_not_decay(tmp_path):
    CONFIGS["swin"].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--layer_decay 0.8 is for ViTs, as DINOv2, and ConvNeXt, and swin comes in"):
        check_layer_decay(find_config(str(tmp_path), head="upernet"), 0.8)


def test_a_backbone_alone_is_no_segmentation_model(dinov2):
    with pytest.raises(
        UserError, match=rf"of type dinov2; .*\(--backbone {dinov2} --head upernet puts a head on it\)"
    ):
        load_trained_model(dinov2)


# ---- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_backbones_of_timm(name, tmp_path, caplog):
    pytest.importorskip("timm")
    caplog.set_level(logging.ERROR, "timm")
    data = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 160, 160]}
    config = T.TimmWrapperConfig.from_dict({"architecture": name, "num_classes": 5, "pretrained_cfg": data})
    torch.manual_seed(0)
    base = T.TimmWrapperForImageClassification(config)
    base.save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    sums = {tensor.double().sum().item() for tensor in base.state_dict().values()}
    assert {tensor.double().sum().item() for tensor in model.backbone.state_dict().values()} <= sums
    processor = load_image_processor(str(tmp_path / "base"), head="upernet")
    assert list(processor.image_mean) == data["mean"]
    model.save_pretrained(tmp_path / "out")
    stock, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(tensor, stock.state_dict()[key]) for key, tensor in model.state_dict().items())
    file = tmp_path / "base" / "model.safetensors"
    state = load_file(file)
    # What all Hub files of timm have: no prefix. And a tensor that is missing, which timm itself passes over.
    state = {key.removeprefix("timm_model."): tensor for key, tensor in state.items()}
    save_file(state, file, metadata={"format": "pt"})
    load(tmp_path / "base")
    del state[next(key for key in state if "conv" in key or "qkv" in key)]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="missing|cannot be loaded"):
        load(tmp_path / "base")


@pytest.mark.parametrize("head", ["upernet", "mask2former"])
def test_backbones_of_timm_of_one_size(head, tmp_path):
    pytest.importorskip("timm")

    def geometry(architecture):
        T.TimmWrapperConfig.from_dict({"architecture": architecture, "num_classes": 5}).save_pretrained(tmp_path)
        return input_geometry(find_config(str(tmp_path), head=head))

    assert geometry("vit_tiny_patch16_224") == (32, True, 224)
    assert geometry("vit_small_patch14_dinov2") == (2, True, 518)
    # Its maps have their channels last, where no head looks for them.
    with pytest.raises(UserError, match=rf"the configuration of {tmp_path} can be built but does not run: feature "):
        geometry("swin_tiny_patch4_window7_224")


def test_timm_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))
    monkeypatch.setattr("models.backbones.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install timm|cannot be read"):
        find_config(str(tmp_path), head="upernet")
