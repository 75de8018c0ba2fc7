"""The truth, sent through the geometry of every architecture, scores 1: no pixel is lost and no map is stretched."""

import itertools
import logging
import re

import pytest
import torch
import transformers as T
from factories.architectures import (
    ALL_STAGES,
    NECK,
    PATCH_14,
    STAGES,
    VIT,
    backbone_configs,
    tiny_configs,
    universal_configs,
    upernet,
)
from torch import nn
from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoModelForSemanticSegmentation

from cli_utils import UserError
from data.arguments import EvaluationArguments
from data.preprocessing import EvaluationProtocol
from metrics_utils import MeanIoU
from models.geometry import input_geometry
from models.inference import evaluation_protocol, score_logits
from models.loading import load_model, read_config

CONFIGS = tiny_configs() | {f"backbone {name}": config for name, config in backbone_configs().items()}
IMAGES = ((97, 131), (151, 57))  # odd, lying and standing


def test_no_architecture_is_left_out():
    kinds = {config.model_type for config in tiny_configs().values()}
    assert kinds == {config_class.model_type for config_class in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING}


def lively_model(config):
    """A model in float64 in which every pixel reaches the logits: no dead path, nothing that rounds to zero."""
    torch.manual_seed(0)
    if "use_auxiliary_head" in config.to_dict():
        config.use_auxiliary_head = False
    model = AutoModelForSemanticSegmentation.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.numel():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    return model


def look(model, height, width):
    """What the network does with an image of this size.

    Returns:
        The rows, and the columns, of the image of which one pixel at least changes the logits; the logits' size; and
        the size of every map that a convolution or a pooling makes.
    """
    maps = set()

    def note(name):
        return lambda module, inputs, output: maps.add((name, *output.shape[-2:]))

    # The pyramid of UperNet pools to a few fixed sizes, and transformers in MobileViT see rows of patches.
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d)
    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, layers) and not any(part in name for part in ("psp_modules", ".transformer."))
    ]
    pixel_values = torch.randn(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    logits = model(pixel_values=pixel_values).logits
    (gradient,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), pixel_values)
    for hook in hooks:
        hook.remove()
    seen = gradient[0].abs().amax(0) > 0
    return seen.any(1), seen.any(0), tuple(logits.shape[-2:]), maps


def bands(size):
    """Nine rectangles, and the logits whose argmax they are at any point.

    In each direction the logits are linear in the position (those of a Voronoi diagram, without the square that all
    have in common), which bilinear interpolation keeps exactly.
    """

    def truth(height, width):
        rows, columns = ((torch.arange(side) + 0.5) * 3 // side for side in (height, width))
        return (3 * rows[:, None] + columns).long()

    def logits(rows, columns):
        # rows, columns: positions as shares of the image's height and width.
        by_row, by_column = (
            torch.stack([2 * center * at - center**2 for center in (1 / 6, 1 / 2, 5 / 6)]) for at in (rows, columns)
        )
        return (by_row[:, None, :, None] + by_column[None, :, None, :]).flatten(0, 1)[None]

    return truth(*size), logits


def score_of_truth(model, size, protocol):
    """Mean IoU of an image on which the network says the truth at every cell of its own grid: what lies below the
    cell, the grid being spread over the pixels that the network sees."""
    shown = protocol.input_size(*size)
    *seen, cells, _ = look(model, *shown)
    truth, logits_at = bands(size)
    positions = [
        (which.nonzero().min() + (torch.arange(count, dtype=torch.float64) + 0.5) / count * which.sum()) / side
        for which, count, side in zip(seen, cells, shown, strict=True)
    ]
    metric = MeanIoU(9)
    for fused_ops in (True, False):
        prediction, *_ = score_logits(logits_at(*positions), truth[None], fused_ops)
        metric.add_batch(predictions=prediction, references=truth[None])
    return metric.compute()["mean_iou"]


@pytest.mark.parametrize("name", [name for name, one in backbone_configs().items() if one.model_type == "upernet"])
def test_models_of_masks_are_shown_what_their_backbone_sees_whole(name):
    """As UperNet over the same backbone, of which the next test is."""
    config = backbone_configs()[name]
    assert input_geometry(T.Mask2FormerConfig(backbone_config=config.backbone_config)) == input_geometry(config)


def test_an_eomt_that_does_not_run_is_found_without_weights():
    config = universal_configs()["eomt"]
    config.num_blocks = config.num_hidden_layers + 1
    with pytest.raises(UserError, match="of eomt can be built but does not run: num_blocks is 5, of 4 layers"):
        input_geometry(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_truth_scores_one(name):
    config = CONFIGS[name]
    model = lively_model(config)
    geometry = input_geometry(config)
    # An odd number of patches or strides, so that maps halved once too often are found out.
    processor = T.SegformerImageProcessor(size={"shortest_edge": 3 * geometry.divisor - 1})
    protocol = evaluation_protocol(config, processor, EvaluationArguments())
    assert protocol.short_side == (geometry.side or 3 * geometry.divisor) and protocol.square == geometry.square
    crop = (protocol.short_side, protocol.short_side)
    for height, width in {crop, *(protocol.input_size(*size) for size in IMAGES)}:
        rows, columns, cells, maps = look(model, height, width)
        assert rows.all() and columns.all()
        assert cells[0] * width == cells[1] * height
        # At every scale the same number of pixels a cell, each way; pooled over the whole image is one cell.
        assert [one for one in maps if one[1] * width != one[2] * height and one[1:] != (1, 1)] == []
    for size in IMAGES:
        assert score_of_truth(model, size, protocol) == 1.0


@pytest.mark.parametrize("name", ["tipsv2_dpt", "backbone dinov2", "backbone dinov2_with_registers"])
def test_multiples_of_32_cut_off_and_stretch_patches_of_14(name):
    """That the test above finds it, and that these architectures still need a divisor of their own."""
    model = lively_model(CONFIGS[name])
    protocol = EvaluationProtocol(64)
    rows, columns, *_ = look(model, *protocol.input_size(*IMAGES[0]))
    assert not rows.all() and not columns.all()
    assert score_of_truth(model, IMAGES[0], protocol) < 0.9


@pytest.mark.parametrize(("name", "patch"), [("beit", 16), ("tipsv2_dpt", 14)])
def test_necks_still_halve_the_map_of_patches(name, patch):
    maps = look(lively_model(CONFIGS[name]), 3 * patch, 5 * patch)[3]
    assert any(one[1] * 5 != one[2] * 3 for one in maps)


def test_mobilevitv2_still_loses_an_odd_column():
    """Why its divisor is 64: 96 pixels are 3 columns at stride 32."""
    model = AutoModelForSemanticSegmentation.from_config(tiny_configs()["mobilevitv2"]).eval()
    layer = model.mobilevitv2.encoder.layer[-1]
    features = torch.ones(1, layer.unfolding(torch.ones(1, 4, 2, 2))[0].shape[1], 2, 3)
    folded = layer.folding(*layer.unfolding(features))
    assert folded[..., 2].abs().sum() == 0 and folded[..., :2].min() == 1


DIVISORS = {"tipsv2_dpt": 28, "mobilevitv2": 64, "backbone dinov2, patch 12": 12} | dict.fromkeys(
    ("backbone dinov2", "backbone dinov2_with_registers"), 14
)
SQUARES = {"dpt": None, "data2vec": 64, "backbone hiera": 64, "backbone dpt, hybrid": 64}


@pytest.mark.parametrize("name", CONFIGS)
def test_divisors_and_squares(name):
    geometry = input_geometry(CONFIGS[name])
    if name.startswith("backbone tipsv2_dpt"):
        assert geometry.divisor == 28
        return
    assert geometry == (DIVISORS.get(name, 32), name in SQUARES, SQUARES.get(name))


@pytest.mark.parametrize(
    ("name", "asked", "used", "message"),
    [
        ("segformer", 512, 512, None),
        (
            "segformer",
            500,
            512,
            r"multiples of 32 only, .* at 512 pixels \(--image_size 480 and 512 would fit",
        ),
        ("backbone dinov2", 512, 518, r"512: upernet takes multiples of 14 only, .* \(--image_size 504 and 518 would"),
        ("backbone dinov2", 518, 518, None),
        ("tipsv2_dpt", 512, 532, r"takes multiples of 28 only, .* cropped at 532 pixels"),
        ("tipsv2_dpt", 5, 28, r"28 pixels \(--image_size 28 would fit\)"),
        ("dpt", 500, 512, "dpt takes multiples of 32 only"),
        ("data2vec", 512, 64, r"takes images of one size only, .* at 64 pixels \(--image_size 64 would fit\)"),
    ],
)
def test_a_size_that_does_not_fit_is_rounded_and_named(name, asked, used, message, caplog):
    caplog.set_level(logging.WARNING)
    processor = T.SegformerImageProcessor(size={"height": asked, "width": asked})
    protocol = evaluation_protocol(CONFIGS[name], processor, EvaluationArguments())
    assert protocol.short_side == used
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == (message is not None)
    if message:
        assert re.search(message, logged[0])
    if not protocol.square:
        assert f"multiple of {protocol.size_divisor};" in protocol.describe()
        assert {side % protocol.size_divisor for size in IMAGES for side in protocol.input_size(*size)} == {0}


def test_windows_are_multiples_of_what_the_architecture_takes():
    arguments = EvaluationArguments(slide_crop=518)
    assert evaluation_protocol(CONFIGS["backbone dinov2"], T.SegformerImageProcessor(), arguments).slide_crop == 518
    for name, nearest in (("segformer", 512), ("tipsv2_dpt", 504)):
        with pytest.raises(UserError, match=f"--slide_crop is 518; it must be .*, as in {nearest}"):
            evaluation_protocol(CONFIGS[name], T.SegformerImageProcessor(), arguments)


@pytest.mark.parametrize(("crop_size", "side"), [(256, 256), (None, 640)])
def test_a_window_without_a_number_is_that_of_the_training_crop(crop_size, side):
    processor = T.SegformerImageProcessor(size={"height": 640, "width": 640})
    protocol = evaluation_protocol(CONFIGS["segformer"], processor, EvaluationArguments(slide_crop=0), crop_size)
    assert (protocol.slide_crop, protocol.slide_stride, protocol.short_side) == (side, side * 3 // 4, 640)


# ---- configurations that do not run ---------------------------------------------------------------------------------

BROKEN = {
    "dpt, hybrid": T.DPTConfig(
        is_hybrid=True,
        **VIT,
        **NECK,
        backbone_config=T.BitConfig(hidden_sizes=[32] * 4, depths=[1] * 4, num_groups=4, out_features=ALL_STAGES[:3]),
        neck_ignore_stages=[0, 1],
    ),
    "focalnet": upernet(T.FocalNetConfig, embed_dim=8, hidden_sizes=[8, 16, 32, 64], depths=[1] * 4),
    "tokens instead of maps": upernet(T.Dinov2Config, **PATCH_14, reshape_hidden_states=False),
    "maps instead of tokens": T.Tipsv2DptConfig(
        backbone_config=T.Dinov2WithRegistersConfig(**PATCH_14, out_indices=[1, 2, 3, 4]), **NECK
    ),
    "heads": T.BeitConfig(**VIT | {"num_attention_heads": 12}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_configurations_that_do_not_run_end_in_one_line(name, tmp_path):
    BROKEN[name].save_pretrained(tmp_path)
    file = str(tmp_path / "config.json")
    message = "model .* configuration of .*config.json"
    with pytest.raises(UserError, match=message) as raised:
        load_model(from_scratch=file, id2label={0: "a", 1: "b"})
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=message):
        evaluation_protocol(read_config(file), T.SegformerImageProcessor(), EvaluationArguments())


BACKBONES = {
    "dinov2": T.Dinov2WithRegistersConfig(**PATCH_14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False),
    "beit": T.BeitConfig(**VIT, out_features=ALL_STAGES),
    "swinv2": T.Swinv2Config(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_features=ALL_STAGES),
    "resnet": T.ResNetConfig(embedding_size=8, **STAGES, out_features=ALL_STAGES),
}


@pytest.mark.parametrize(
    ("kind", "backbone"),
    [
        (config_class, backbone)
        for config_class, backbone in itertools.product(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, BACKBONES)
        if "backbone_config" in config_class.sub_configs_defaults
    ],
)
def test_backbones_are_built_or_refused(kind, backbone, tmp_path):
    """transformers builds a plain DPT whatever backbone a configuration names."""
    config = kind(backbone_config=BACKBONES[backbone], **({} if kind is T.UperNetConfig else NECK))
    config.save_pretrained(tmp_path)
    if kind is T.DPTConfig:
        with pytest.raises(UserError, match=f"ignores the {BACKBONES[backbone].model_type} backbone of a dpt conf"):
            read_config(str(tmp_path))
    else:
        config = read_config(str(tmp_path))
    with torch.device("meta"):
        try:
            model = AutoModelForSemanticSegmentation.from_config(config)
        except Exception:
            with pytest.raises(UserError, match="no model can be built"):
                input_geometry(config)
            return
    kinds = {type(module.config) for module in model.modules() if isinstance(module, T.PreTrainedModel)}
    if kind is T.DPTConfig:
        assert kinds == {T.DPTConfig}, "transformers builds it now: the refusal in models/loading.py can go"
    else:
        assert type(BACKBONES[backbone]) in kinds
