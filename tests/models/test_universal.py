"""Universal models against transformers' own forward, loss and post-processing."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as T
from accelerate import PartialState
from factories.architectures import universal_configs
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
from transformers.models.mask2former import modeling_mask2former

from cli_utils import UserError
from data.arguments import EvaluationArguments
from data.preprocessing import EvaluationProtocol
from models.adapters import add_lora, enable_activation_checkpointing, freeze_encoder, merge_lora
from models.configurations import UNIVERSAL, new_model
from models.geometry import input_geometry
from models.image_processor import load_image_processor, save_processor_config
from models.inference import (
    evaluation_protocol,
    predict_with_confidence,
    predicted_ids,
    protocol_logits,
    score_logits,
    scores_at,
)
from models.loading import find_config, load_model, load_trained_model
from models.mask_scores import QueryOutput, QueryPass, full_scores, mean_scores
from models.universal import QueryObjective, check_flags_of_masks, mask_targets

ID2LABEL = {0: "sky", 1: "road", 2: "car"}


def make_model(name, seed=0, num_points=64):
    config = universal_configs(num_points)[name]
    config.id2label = dict(ID2LABEL)
    torch.manual_seed(seed)
    model = new_model(config)
    with torch.no_grad():  # masks that differ from query to query, and classes that are not all alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def without_randomness(model):
    """Fixed points in the place of random ones, and no masks of queries that are drawn."""

    def points(*shape, device=None, **kwargs):
        side = int(np.ceil(np.sqrt(shape[1])))
        grid = torch.stack(torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij"), -1).flatten(0, 1)
        return grid[: shape[1]].expand(shape[0], -1, -1).clone().to(device)

    return points


def batch(seed=0, side=64):
    """Four images of few classes: one has none at all, one is without void."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (4, 4, 4), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, :20], labels[1], labels[2, :, 30:] = 255, 255, 1
    return {"pixel_values": torch.randn(4, 3, side, side, generator=generator), "labels": labels}


def gradients(model):
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def step(model, objective, inputs, parts):
    """The loss of a step in batches of these sizes, and its gradients, through the objective."""
    count = objective.count(inputs["labels"])
    model.zero_grad()
    total, start = 0.0, 0
    for size in parts:
        some = {key: value[start : start + size] for key, value in inputs.items()}
        outputs = model(**{k: v for k, v in objective.inputs(some, count).items() if k != "labels"})
        loss = objective.loss(outputs, some["labels"], count)
        loss.backward()
        total, start = total + loss.item(), start + size
    return total, gradients(model)


def test_targets_are_a_mask_for_each_class_that_is_there():
    labels = torch.tensor([[[0, 2], [2, 255]], [[255, 255], [255, 255]]], dtype=torch.uint8)
    masks, classes = mask_targets(labels)
    assert classes[0].tolist() == [0, 2] and classes[0].dtype == torch.int64
    assert masks[0].tolist() == [[[1, 0], [0, 0]], [[0, 1], [1, 0]]] and masks[0].dtype == torch.float32
    assert masks[1].shape == (0, 2, 2) and classes[1].shape == (0,)


@pytest.mark.parametrize("name", UNIVERSAL)
def test_a_whole_batch_has_stocks_loss_and_any_split_of_it_the_same(name, monkeypatch):
    model, stock, inputs = make_model(name), make_model(name), batch()
    for one in (model, stock):
        # MaskFormer draws nothing, the others points, which depend on how a batch is split.
        monkeypatch.setattr(torch, "rand", without_randomness(one))
    masks, classes = mask_targets(inputs["labels"])
    stock.zero_grad()
    expected = stock(pixel_values=inputs["pixel_values"], mask_labels=masks, class_labels=classes).loss
    expected.backward()
    objective = QueryObjective(model)
    assert objective.count(inputs["labels"]).tolist()[0] == sum(map(len, classes))
    for parts in ([4], [1, 3], [1, 1, 1, 1]):
        loss, found = step(model, objective, inputs, parts)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        wanted = gradients(stock)
        assert found.keys() == wanted.keys()
        norm = sum(g.square().sum() for g in wanted.values()).sqrt()
        for key, gradient in wanted.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-5 * float(norm), msg=key)
    # Stock itself is not the mean of its parts.
    alone = [
        stock(pixel_values=inputs["pixel_values"][i:j], mask_labels=masks[i:j], class_labels=classes[i:j]).loss.item()
        for i, j in ((0, 1), (1, 4))
    ]
    assert abs(sum(alone) / 2 - expected.item()) > 1e-3 * expected.item()


def test_stock_still_divides_by_a_mean_over_processes_once_more(monkeypatch):
    """Two processes with 3 and 5 masks: 8 / 2 = 4 are meant. When this fails, `get_num_masks` need not be replaced."""
    model = make_model("mask2former")
    PartialState()
    monkeypatch.setattr(modeling_mask2former, "reduce", lambda tensor: tensor.new_tensor(4.0))  # accelerate's: a mean
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    found = type(model.criterion).get_num_masks(model.criterion, [torch.zeros(3)], device="cpu")
    assert found.item() == 2.0


@pytest.mark.parametrize("name", ["eomt", "mask2former"])
def test_void_is_background_or_not_looked_at(name, monkeypatch):
    """A mask that lies on void alone: costs as background, nothing where void is ignored."""
    labels = torch.full((1, 64, 64), 1)
    labels[:, :, 32:] = 255
    masks, classes = mask_targets(labels)
    below = torch.full((1, 7, 64, 64), -9.0)
    below[:, :, :, :32] = 9.0
    losses = {}
    for void in ("background", "ignore"):
        model = make_model(name, num_points=256)
        objective = QueryObjective(model, void)
        objective.inputs({"labels": labels}, None)
        for of_void in (-9.0, 9.0):
            logits = below.clone()
            logits[:, :, :, 32:] = of_void
            torch.manual_seed(0)
            found = model.criterion(logits, torch.zeros(1, 7, 4), masks, classes)
            losses[void, of_void] = {key: value.item() for key, value in found.items()}
    assert losses["ignore", -9.0] == losses["ignore", 9.0]
    assert losses["ignore", 9.0]["loss_mask"] < 0.01 and losses["background", -9.0]["loss_mask"] < 0.2
    assert losses["background", 9.0]["loss_mask"] > 3


@pytest.mark.parametrize("name", ["eomt", "mask2former"])
def test_training_with_void_left_out(name):
    model, inputs = make_model(name), batch()
    loss, found = step(model, QueryObjective(model, "ignore"), inputs, [2, 2])
    assert np.isfinite(loss) and all(gradient.isfinite().all() for gradient in found.values())
    empty = inputs | {"labels": torch.full_like(inputs["labels"], 255)}
    for void in VOIDS:
        model = make_model(name)
        loss, found = step(model, QueryObjective(model, void), empty, [4])
        assert np.isfinite(loss) and found.keys() == {k for k, p in model.named_parameters() if p.grad is not None}


VOIDS = ("background", "ignore")


def test_more_classes_than_queries():
    config = universal_configs()["mask2former"]
    config.id2label = {index: str(index) for index in range(20)}
    model = new_model(config).eval()
    labels = torch.arange(16).reshape(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)[None].expand(2, -1, -1)
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": labels}
    for void in VOIDS:
        objective = QueryObjective(model, void)
        assert objective.count(labels).tolist() == [32, 14]  # 2 x 16 masks; 7 queries, all matched, in each
        assert np.isfinite(step(model, objective, inputs, [1, 1])[0])


# ---- scores ---------------------------------------------------------------------------------------------------------


def smooth(*shape):
    small = torch.randn(*shape[:-2], 6, 7)
    return 4 * F.interpolate(small, size=shape[-2:], mode="bicubic")


def detectron2s_order(classes, masks, shown, size):
    """`MaskFormer.semantic_inference` after `F.interpolate` to the padded input, then `sem_seg_postprocess`."""
    masks = F.interpolate(masks, size=shown, mode="bilinear", align_corners=False)
    scores = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(90, 131), (131, 90), (64, 64), (40, 300)])
def test_scores_tile_by_tile_are_detectron2s(size, monkeypatch):
    torch.manual_seed(0)
    classes, masks = torch.randn(1, 12, 6), smooth(1, 12, 24, 32)
    shown = (96, 128)
    expected = detectron2s_order(classes, masks, shown, size)
    one = QueryPass(
        [[QueryOutput(classes[0].softmax(-1)[:, :-1], masks[0])]], [slice(0, shown[0])], [slice(0, shown[1])]
    )
    torch.testing.assert_close(full_scores(one, size), expected)
    for module in ("mask_scores", "upsampling"):
        monkeypatch.setattr(f"models.{module}.TILE_COLUMNS", 50)
    monkeypatch.setattr("models.upsampling.tile_bytes", lambda device: 50 * 22 * 4 * 17)  # 17 rows
    found = torch.empty(*size, 5)
    for pixels, scores in mean_scores([one], size):
        assert max(scores.shape[:2]) <= 50
        found[pixels] = scores
    torch.testing.assert_close(found, (expected / expected.sum(1, keepdim=True))[0].permute(1, 2, 0))
    labels = torch.randint(0, 5, (1, *size))
    labels[0, :3] = 255
    for fused_ops in (True, False):
        prediction, loss, valid = score_logits([one], labels, fused_ops)
        assert (prediction == expected.argmax(1)).float().mean() > 0.9999
        share = (expected / expected.sum(1, keepdim=True)).gather(1, labels.clamp(max=4)[:, None])[:, 0]
        torch.testing.assert_close(loss, -(share.log() * (labels != 255)).sum()[None], rtol=1e-4, atol=0)
        assert valid.item() == (labels != 255).sum()


def test_the_order_of_other_post_processings():
    """MaskFormer's of transformers is ours where masks are shown as large as they are; Mask2Former's goes by 384."""
    torch.manual_seed(0)
    classes, masks = torch.randn(1, 12, 6), smooth(1, 12, 24, 32)
    output = T.models.mask2former.modeling_mask2former.Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=classes, masks_queries_logits=masks
    )
    size = (90, 131)

    def ours(shown):
        one = QueryPass(
            [[QueryOutput(classes[0].softmax(-1)[:, :-1], masks[0])]], [slice(0, shown[0])], [slice(0, shown[1])]
        )
        return predicted_ids([one], size)

    of_maskformer = T.MaskFormerImageProcessor().post_process_semantic_segmentation(output, [size])[0]
    assert (ours((24, 32)) == of_maskformer).all()
    of_mask2former = T.Mask2FormerImageProcessor().post_process_semantic_segmentation(output, [size])[0]
    assert (ours((384, 384)) == of_mask2former).all()
    assert 0 < (ours((96, 128)) != of_mask2former).float().mean() < 0.05


@pytest.mark.parametrize("size", [(64, 64), (64, 153), (200, 64), (97, 131)])
@pytest.mark.parametrize("name", ["eomt", "eomt_dinov3"])
def test_eomts_windows_and_scores_are_transformers(name, size, tmp_path):
    """The model, its image processor with windows, and its post-processing, of stock transformers."""
    model = make_model(name)
    model.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    processor = load_image_processor(str(tmp_path))
    protocol = evaluation_protocol(model.config, processor, EvaluationArguments())
    save_processor_config(tmp_path, processor, protocol)
    stock = T.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(stock) is T.EomtImageProcessor and stock.do_split_image
    inputs = stock(images=image, return_tensors="pt")
    with torch.inference_mode():
        model.attn_mask_probs.zero_()  # as it is when trained
        output = model(**inputs)
        expected = stock.post_process_semantic_segmentation(output, [size])[0]
        found = predicted_ids(protocol_logits(model, protocol.preprocess(image), protocol), size)
    shown = protocol.input_size(*size)
    windows = [
        (row.start, column.start) for row in protocol.windows(shown[0]) for column in protocol.windows(shown[1])
    ]
    assert len(windows) == len(inputs["pixel_values"])
    long_side = 0 if shown[0] > shown[1] else 1
    assert [window[long_side] for window in windows] == [offset[1].item() for offset in inputs["patch_offsets"]]
    assert (found != expected).float().mean() < 0.01


def test_windows_at_equal_distances():
    protocol = EvaluationProtocol(64, 1, True, slide_crop=64, even_windows=True)
    assert [window.start for window in protocol.windows(153)] == [0, 44, 89]  # transformers' EomtImageProcessor
    assert protocol.windows(64) == [slice(0, 64)]
    assert "sliding window 64x64 at equal distances" in protocol.describe()


@pytest.mark.parametrize("name", ["mask2former", "maskformer"])
def test_flip_and_scales_average_scores(name):
    model = make_model(name)
    protocol = evaluation_protocol(
        model.config, T.SegformerImageProcessor(size={"height": 64, "width": 64}), EvaluationArguments(eval_flip=True)
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    shown = protocol.preprocess(image)
    with torch.inference_mode():
        passes = protocol_logits(model, shown, protocol)
        scores = []
        for pixels, flipped in ((shown, False), (shown.flip(-1), True)):
            output = model(pixel_values=pixels[None])
            one = detectron2s_order(output.class_queries_logits, output.masks_queries_logits, (64, 96), (64, 96))
            scores.append(one.flip(-1) if flipped else one)
        ids, confidence = predict_with_confidence(model, image, protocol)
        rows, columns = torch.tensor([0, 17, 63]), torch.tensor([95, 40, 0])
        sampled = scores_at(passes, (64, 96), rows, columns)
    assert len(passes) == 2
    shares = (sum(scores) / sum(scores).sum(1, keepdim=True))[0]
    torch.testing.assert_close(sampled.softmax(1), shares[:, rows, columns].T, rtol=1e-4, atol=1e-5)
    share = shares.gather(0, ids[None].long())[0]
    assert (confidence.float() / 255 - share).abs().max() < 0.5 / 255 + 1e-4
    assert (predicted_ids(passes, (64, 96)) == sum(scores).argmax(1)[0]).float().mean() > 0.999


def test_masked_attention_draws_the_same_for_every_image():
    model = make_model("eomt")
    model.attn_mask_probs.fill_(0.5)
    protocol = evaluation_protocol(model.config, T.SegformerImageProcessor(), EvaluationArguments())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 64, 3), np.uint8))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.inference_mode():
        one, other = (protocol_logits(model, protocol.preprocess(image), protocol) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0].outputs[0][0].masks, other[0].outputs[0][0].masks)


# ---- loading and adapting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNIVERSAL)
def test_loading_and_other_classes(name, tmp_path, caplog):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    again = load_trained_model(str(tmp_path))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    caplog.set_level(logging.INFO, "models.loading")
    more = load_model(str(tmp_path), ID2LABEL | {3: "tree"})  # as one of COCO's panoptic classes for one's own
    (said,) = [line for line in caplog.messages if " tensors loaded" in line]
    kept = "class_predictor, as it was trained on 3 classes (sky, road, car) and the data has 4"
    assert said.endswith(kept) and "criterion" not in said
    fresh = {key for key, tensor in model.state_dict().items() if tensor.shape != more.state_dict()[key].shape}
    assert {key.split(".")[-2] for key in fresh} == {"class_predictor", "criterion"}
    assert more.criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 1, 0.1])
    with pytest.raises(UserError, match=r"trained on 3 classes \(sky, road, car\), the data has 4"):
        load_trained_model(str(tmp_path), id2label=ID2LABEL | {3: "tree"})
    geometry = input_geometry(model.config)
    assert geometry == ((1, True, 64) if name.startswith("eomt") else (32, False, None))


@pytest.mark.parametrize("name", UNIVERSAL)
def test_frozen_and_adapted(name, tmp_path):
    def load():
        make_model(name).save_pretrained(tmp_path)
        return load_model(str(tmp_path), ID2LABEL)

    frozen = freeze_encoder(load()).train()
    names = {key.split(".")[0] for key, p in frozen.named_parameters() if p.requires_grad}
    assert not names & {"layers", "embeddings", "layernorm"}
    loss, found = step(frozen, QueryObjective(frozen), batch(), [2, 2])
    assert found and not any("encoder.swin" in key or key.startswith("layers.") for key in found)
    model = add_lora(load(), 2)
    assert any(".lora_A." in key for key in model.state_dict())
    _, found = step(model.train(), QueryObjective(model), batch(), [4])
    assert {key for key in found if "lora_B" in key}
    merge_lora(model)
    assert not any(".lora_" in key for key in model.state_dict())
    with pytest.raises(UserError, match="--activation_checkpointing: .* does not support it"):
        enable_activation_checkpointing(load())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": ("ce", "dice")}, r"--loss ce\+dice is about the loss of pixels; eomt predicts masks"),
        ({"class_weights": "auto"}, "--class_weights is about"),
        ({"label_smoothing": 0.1}, "--label_smoothing_factor is about"),
        ({"single_logit": True}, "--single_logit is about"),
        ({"kind": "maskformer", "void": "ignore"}, "maskformer draws none"),
        ({"kind": "segformer", "void": "ignore"}, "--void_in_masks ignore is for eomt, .*, not for segformer"),
    ],
)
def test_flags_that_do_not_fit(options, message):
    config = universal_configs()[kind] if (kind := options.pop("kind", "eomt")) in UNIVERSAL else T.SegformerConfig()
    given = {"losses": ("ce",), "class_weights": None, "label_smoothing": 0.0, "single_logit": False, "void": None}
    with pytest.raises(UserError, match=message):
        check_flags_of_masks(config, **given | options)


REFUSED = (T.OneFormerConfig, T.DetrConfig, T.VideomtConfig)


def test_every_universal_type_of_transformers_is_decided_about():
    """A new one fails here until it is in `UNIVERSAL`, or refused."""
    kinds = {kind.model_type for kind in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING}
    assert kinds == {*UNIVERSAL, *(kind.model_type for kind in REFUSED)}
    assert {*universal_configs()} == {*UNIVERSAL}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_of_masks_are_refused(kind, tmp_path):
    kind().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"of type {kind.model_type}; trained and used here are .*eomt, eomt_dinov3"):
        find_config(str(tmp_path))


# ---- EoMT at another size than its checkpoint's ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eomt", "eomt_dinov3"])
def test_an_eomt_is_trained_at_another_size(name, tmp_path):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    table = "embeddings.position_embeddings.weight"
    other = load_model(str(tmp_path), ID2LABEL, image_size=96).eval()
    assert other.config.image_size == 96 and find_config(str(tmp_path), image_size=96).image_size == 96
    old, new = model.state_dict(), other.state_dict()
    assert old.keys() == new.keys()
    assert [key for key in old if not torch.equal(old[key], new[key])] == ([table] if name == "eomt" else [])
    with torch.inference_mode():
        assert other(pixel_values=torch.randn(1, 3, 96, 96)).masks_queries_logits.shape[-2:] == (24, 24)
    processor = load_image_processor(str(tmp_path), image_size=96)
    protocol = evaluation_protocol(other.config, processor, EvaluationArguments())
    assert (protocol.short_side, protocol.slide_crop) == (96, 96)
    other.save_pretrained(tmp_path / "again")
    again = load_trained_model(str(tmp_path / "again")).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in new.items())
    if name == "eomt":
        resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
        expected = resample(old[table][None], [6, 6], [4, 4], num_prefix_tokens=0)[0]
        torch.testing.assert_close(new[table], expected)


def test_sizes_that_an_eomt_cannot_be_given(tmp_path):
    make_model("eomt").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--image_size is 100, which patches of 16 .* give 96 or 112"):
        load_model(str(tmp_path), ID2LABEL, image_size=100)
    asked = EvaluationArguments(image_size=96)
    processor = load_image_processor(str(tmp_path), image_size=96)
    with pytest.raises(UserError, match="--image_size 96: .* was trained for 64 pixels and takes no others: leave it"):
        evaluation_protocol(load_trained_model(str(tmp_path)).config, processor, asked)


# ---- pretrained backbones -------------------------------------------------------------------------------------------


def test_eomt_takes_over_the_layers_of_a_dinov3(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = T.DINOv3ViTModel(T.DINOv3ViTConfig(**sizes, patch_size=16, num_register_tokens=4)).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    backbone.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), ID2LABEL, head="eomt", image_size=96).eval()
    assert type(model) is T.EomtDinov3ForUniversalSegmentation and model.config.image_size == 96
    assert (model.config.num_queries, model.config.num_blocks) == (100, 4)
    # The tokens before the queries come in, at the third layer, are the backbone's own.
    seen = []
    model.layers[2].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    pixel_values = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        model(pixel_values=pixel_values)
        expected = backbone(pixel_values=pixel_values, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(seen[0][:, 100:], expected, rtol=1e-4, atol=1e-5)
    for config, message in (
        (T.Dinov2Config(**sizes), "goes on a dinov3_vit, .* is of type dinov2"),
        (T.SwinConfig(), "is of type swin"),
    ):
        config.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=message):
            load_model(str(tmp_path), ID2LABEL, head="eomt")


def test_eomts_size_is_one_of_patches(tmp_path):
    T.DINOv3ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--image_size is 500, which patches of 16 .* give 496 or 512"):
        load_model(str(tmp_path), ID2LABEL, head="eomt", image_size=500)


def test_mask2former_over_a_pretrained_swin(tmp_path):
    torch.manual_seed(0)
    swin = T.SwinModel(T.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2))
    swin.save_pretrained(tmp_path)
    small = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "dim_feedforward"), 32)
    model = load_model(str(tmp_path), ID2LABEL, head="mask2former", **small, num_attention_heads=2)
    encoder = model.model.pixel_level_module.encoder.state_dict()
    for key, tensor in swin.state_dict().items():
        assert torch.equal(encoder[f"swin.{key}"], tensor)
    processor = load_image_processor(str(tmp_path), head="mask2former")
    assert type(processor) is T.Mask2FormerImageProcessor and processor.size["height"] == 512
