"""The fused decode head and encoder against the stock ones."""

import copy
import io

import peft
import pytest
import torch
from factories.logits import relative_error
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from models import fused_segformer
from models.fused_segformer import fuse_decode_head, fuse_model
from models.losses import upsampled_cross_entropy


def tiny_config(**changes):
    options = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 3, 4],
        "decoder_hidden_size": 20,
        "num_labels": 7,
        "classifier_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    return SegformerConfig(**(options | changes))


def segformer_pair(config, dtype=torch.float32):
    """A stock model whose BatchNorm is not the identity, and its fused copy."""
    torch.manual_seed(0)
    stock = SegformerForSemanticSegmentation(config).to(dtype)
    norm = stock.decode_head.batch_norm
    for parameter in stock.decode_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    torch.nn.init.normal_(norm.running_mean)
    return stock, fuse_model(copy.deepcopy(stock))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "logits_tolerance", "gradient_tolerance"), [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-10, 1e-10)]
)
def test_head_agrees_with_stock(training, dtype, logits_tolerance, gradient_tolerance):
    stock, fused = segformer_pair(tiny_config(), dtype)
    pixel_values = torch.randn(2, 3, 64, 96, dtype=dtype)
    weights = torch.randn(2, 7, 16, 24, dtype=dtype)
    logits = []
    for model in (stock, fused):
        model.train(training)
        logits.append(model(pixel_values).logits)
        (logits[-1] * weights).sum().backward()
    assert relative_error(logits[1], logits[0]) < logits_tolerance
    largest = max(parameter.grad.abs().max() for parameter in stock.parameters())
    for (name, expected), actual in zip(stock.named_parameters(), fused.parameters(), strict=True):
        # BatchNorm takes away constants: gradients of biases right before it are 0 but for rounding, hence the floor.
        floor = 1e-2 * largest
        error = (actual.grad - expected.grad).abs().max() / max(expected.grad.abs().max(), floor)
        assert error < gradient_tolerance, name
    for (name, expected), actual in zip(stock.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


def test_head_with_the_last_stage_as_a_sequence():
    """Stock guesses a square last stage from the wrong dimension; the same weights with the map reshaped are right."""
    stock, _ = segformer_pair(tiny_config())
    sequence = SegformerForSemanticSegmentation(tiny_config(reshape_last_stage=False))
    sequence.load_state_dict(stock.state_dict())
    pixel_values = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = stock.eval()(pixel_values).logits
        actual = fuse_model(sequence).eval()(pixel_values).logits
    assert relative_error(actual, expected) < 1e-5


def test_real_b0_head_agrees_with_stock():
    stock, fused = segformer_pair(SegformerConfig(num_labels=150, classifier_dropout_prob=0.0))
    features = [torch.randn(1, c, s, s) for c, s in zip((32, 64, 160, 256), (32, 16, 8, 4), strict=True)]
    assert relative_error(fused.decode_head(features), stock.decode_head(features)) < 1e-5
    assert relative_error(fused.eval().decode_head(features), stock.eval().decode_head(features)) < 1e-5


def test_evaluation_never_uses_stale_weights():
    stock, fused = segformer_pair(tiny_config())
    stock.eval()
    fused.eval()
    pixel_values = torch.randn(1, 3, 64, 64)

    def assert_changed_alike():
        with torch.no_grad():
            expected, actual = stock(pixel_values).logits, fused(pixel_values).logits
        assert relative_error(actual, expected) < 1e-5
        assert relative_error(actual, logits[-1]) > 1e-3
        logits.append(actual)

    logits = [torch.zeros(1)]
    assert_changed_alike()
    for model in (stock, fused):
        with torch.no_grad():
            model.decode_head.linear_fuse.weight.mul_(1.5)
    assert_changed_alike()
    for model in (stock, fused):
        model.decode_head.linear_projections[1].proj.weight.data.mul_(1.5)
    assert_changed_alike()
    for model in (stock, fused):
        model.decode_head.batch_norm.running_mean.add_(1.0)
    assert_changed_alike()
    for model in (stock, fused):
        optimizer = torch.optim.SGD(model.decode_head.parameters(), lr=1e-3)
        model(pixel_values).logits.square().sum().backward()
        optimizer.step()
    assert_changed_alike()
    other, _ = segformer_pair(tiny_config())
    torch.nn.init.normal_(other.decode_head.linear_fuse.weight)
    for model in (stock, fused):
        model.load_state_dict(other.state_dict())
    assert_changed_alike()
    with torch.no_grad():
        assert fused.double()(pixel_values.double()).logits.dtype == torch.float64


def test_fusing_the_head_alone_leaves_the_encoder():
    stock, _ = segformer_pair(tiny_config())
    fused = fuse_decode_head(copy.deepcopy(stock))
    changed = [
        name
        for (name, before), after in zip(stock.named_modules(), fused.modules(), strict=True)
        if type(before) is not type(after)
    ]
    assert changed == ["decode_head"]
    features = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    assert relative_error(fused.decode_head(features), stock.decode_head(features)) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 2])
def test_convolutions_of_the_encoder_get_maps_that_are_channels_last_to_torch(batch_size):
    _, fused = segformer_pair(tiny_config())
    seen = []

    def look(module, inputs, output):
        if inputs[0].shape[1] > 3:  # not the image
            seen.append((inputs[0].stride()[1:], inputs[0].stride(0) >= inputs[0][0].numel()))

    for module in fused.segformer.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    with torch.no_grad():
        fused(torch.randn(batch_size, 3, 64, 64))
    # With a stride along a batch of one that is smaller than the image, torch takes the map for another layout.
    assert len(seen) == 3 + 3 + 4 and all(channels == 1 and whole for (channels, *_), whole in seen)


def test_encoder_with_dropout_draws_what_stock_draws():
    stock, fused = segformer_pair(tiny_config(hidden_dropout_prob=0.2, drop_path_rate=0.2))
    pixel_values = torch.randn(2, 3, 64, 64, dtype=torch.float64)  # gradients that cancel out are noise in float32
    gradients = []
    for model in (stock, fused):
        torch.manual_seed(3)
        model.double().train().segformer(pixel_values).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.segformer.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_frozen_batch_norm_in_a_training_head():
    stock, fused = segformer_pair(tiny_config())
    pixel_values = torch.randn(1, 3, 64, 64)
    for model in (stock, fused):
        model.train()
        model.decode_head.batch_norm.eval()
    assert relative_error(fused(pixel_values).logits, stock(pixel_values).logits) < 1e-5


def test_gradient_checkpointing_changes_nothing():
    _, fused = segformer_pair(tiny_config())
    checkpointed = copy.deepcopy(fused)
    checkpointed.activation_checkpointing_enable()
    pixel_values = torch.randn(2, 3, 64, 64)
    for model in (fused, checkpointed):
        model.train()(pixel_values).logits.square().sum().backward()
    for (name, expected), actual in zip(fused.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_head_under_bf16_autocast(training):
    stock, fused = segformer_pair(tiny_config())
    pixel_values = torch.randn(2, 3, 64, 64)
    exact = copy.deepcopy(stock).train(training)(pixel_values).logits
    with torch.autocast("cpu", torch.bfloat16):
        expected = stock.train(training)(pixel_values).logits
        actual = fused.train(training)(pixel_values).logits
        upsampled_cross_entropy(actual, torch.zeros(2, 64, 64, dtype=torch.long)).backward()
    assert actual.dtype == expected.dtype
    assert relative_error(actual, exact) < 1.5 * relative_error(expected, exact) + 1e-3
    assert all(parameter.grad.dtype == torch.float32 for parameter in fused.parameters())


def test_dropout_of_the_head_keeps_means_and_blocks_gradients():
    torch.manual_seed(0)
    values = torch.randn(2, 5, 60, 71)
    inputs = values.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    result = fused_segformer._ReluDropout.apply(inputs * 1, 0.25) * fused_segformer.dropout_scale(0.25)
    kept = result > 0
    assert kept.sum() / (values > 0).sum() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(result[kept], values[kept] / 0.75)
    result.sum().backward()
    torch.testing.assert_close(inputs.grad, kept / 0.75)
    assert torch.equal(fused_segformer._ReluDropout.apply(values.clone(), 0.0), values.relu())
    assert fused_segformer._ReluDropout.apply(values.clone(), 1.0).count_nonzero() == 0
    assert fused_segformer.dropout_scale(0.0) == 1 and fused_segformer.dropout_scale(1.0) == 0


def test_dropout_of_the_head_does_not_change_the_mean_of_the_logits():
    torch.manual_seed(0)
    _, fused = segformer_pair(tiny_config(classifier_dropout_prob=0.25))
    features = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    head = fused.decode_head.train()
    head.batch_norm.momentum = 0
    with torch.no_grad():
        head.classifier.weight.mul_(50)
        mean = torch.stack([head(features) for _ in range(400)]).mean(0)
        head.dropout.p = 0.0
        torch.testing.assert_close(mean, head(features), rtol=0, atol=0.25 * float(head(features).std()))


def test_dropout_is_off_in_evaluation_and_seeded_in_training():
    _, fused = segformer_pair(tiny_config(classifier_dropout_prob=0.5))
    features = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    head = fused.decode_head.train()
    torch.manual_seed(1)
    first = head(features)
    assert not torch.equal(head(features), first)
    torch.manual_seed(1)
    assert torch.equal(head(features), first)
    head.eval()
    assert torch.equal(head(features), head(features))


def test_saved_files_and_copies_stay_stock(tmp_path):
    stock, fused = segformer_pair(tiny_config())
    assert list(fused.state_dict()) == list(stock.state_dict())
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name]), name
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in stock.named_modules()]
    assert fuse_model(fused) is fused
    fused.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 64)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    copies = [
        SegformerForSemanticSegmentation.from_pretrained(tmp_path),
        copy.deepcopy(fused),
        torch.load(buffer, weights_only=False),
    ]
    with torch.no_grad():
        expected = stock.eval()(pixel_values).logits
        for model in copies:
            assert relative_error(model.eval()(pixel_values).logits, expected) < 1e-5


def test_other_architectures_pass_through():
    backbone = ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage1", "stage4"])
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=3)
    model = UperNetForSemanticSegmentation(config)
    classes = [type(module) for module in model.modules()]
    assert fuse_model(model) is model
    assert [type(module) for module in model.modules()] == classes


def test_compiled_training_step_agrees():
    """Through tracing and functionalisation; aot_eager leaves out the code generation, which takes a C compiler."""
    _, fused = segformer_pair(tiny_config())
    compiled = copy.deepcopy(fused)
    features = [torch.randn(2, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    labels = torch.randint(0, 7, (2, 64, 64))
    step = torch.compile(lambda: upsampled_cross_entropy(compiled.decode_head(features), labels), backend="aot_eager")
    expected = upsampled_cross_entropy(fused.decode_head(features), labels)
    actual = step()
    torch.testing.assert_close(actual, expected)
    expected.backward()
    actual.backward()
    for (name, parameter), other in zip(
        fused.decode_head.named_parameters(), compiled.decode_head.parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


# ---- modules that are more than their weights -----------------------------------------------------------------------


def lora(*targets, **options):
    options = {"r": 2, "init_lora_weights": False, "target_modules": list(targets)} | options
    return lambda head, model: peft.inject_adapter_in_model(peft.LoraConfig(**options), model)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(name):
    return lambda head, model: parametrize.register_parametrization(head.get_submodule(name), "weight", Doubled())


def replaced(name, make):
    return lambda head, model: head.set_submodule(name, make(head.get_submodule(name)))


def own_forward(name):
    def change(head, model):
        module = head.get_submodule(name)
        module.forward = lambda x, forward=module.forward: 2 * forward(x)

    return change


def hooked(name, kind):
    """A hook that doubles what goes in or comes out, forwards or backwards."""

    def twice(values):
        return tuple(None if value is None else 2 * value for value in values)

    hooks = {
        "register_forward_hook": lambda module, args, output: 2 * output,
        "register_forward_pre_hook": lambda module, args: twice(args),
        "register_full_backward_hook": lambda module, grad_input, grad_output: twice(grad_input),
        "register_full_backward_pre_hook": lambda module, grad_output: twice(grad_output),
    }
    return lambda head, model: getattr(head.get_submodule(name), kind)(hooks[kind])


LAYERS = ("linear_projections.1", "linear_projections.1.proj", "linear_fuse", "batch_norm", "activation", "classifier")
WEIGHTED = ("linear_projections.1.proj", "linear_fuse", "classifier")
HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)
CHANGES = {
    "LoRA": lora("linear_fuse", "classifier", "proj"),
    "LoRA, fuse": lora("linear_fuse"),
    "LoRA, one projection": lora("linear_projections.2.proj"),
    "LoRA, head and encoder": lora("classifier", "q_proj", "fc1", "fc2"),
    "DoRA": lora("linear_fuse", "classifier", "proj", use_dora=True),
    "a classifier of its own": lambda head, model: (
        peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier", "linear_fuse"])
        )
        .base_model.model.decode_head.classifier.modules_to_save["default"]
        .weight.data.mul_(2)
    ),
    "a head of its own": lambda head, model: peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["decode_head"])
    ),
    "weight norm, old": lambda head, model: torch.nn.utils.weight_norm(head.classifier).weight_g.data.mul_(2),
    "spectral norm, old": lambda head, model: torch.nn.utils.spectral_norm(head.linear_fuse),
    "pruned": lambda head, model: prune.l1_unstructured(head.linear_fuse, "weight", 0.5),
    "GELU": replaced("activation", lambda old: nn.GELU()),
    "GroupNorm": replaced("batch_norm", lambda old: nn.GroupNorm(4, 20)),
    "BatchNorm without weights": replaced("batch_norm", lambda old: nn.BatchNorm2d(20, affine=False)),
    "BatchNorm without statistics": replaced("batch_norm", lambda old: nn.BatchNorm2d(20, track_running_stats=False)),
    "no BatchNorm": replaced("batch_norm", lambda old: nn.Identity()),
    "fuse with a bias": replaced("linear_fuse", lambda old: nn.Conv2d(80, 20, 1)),
    "a projection without bias": replaced("linear_projections.1.proj", lambda old: nn.Linear(16, 20, bias=False)),
    "classifier 3 x 3": replaced("classifier", lambda old: nn.Conv2d(20, 7, 3, padding=1)),
    "two layers as classifier": replaced(
        "classifier", lambda old: nn.Sequential(nn.Conv2d(20, 20, 1), nn.ReLU(), old)
    ),
    **{f"parametrized {name}": parametrized(name) for name in WEIGHTED},
    **{f"forward of its own {name}": own_forward(name) for name in LAYERS},
    **{f"{kind} {name}": hooked(name, kind) for name in LAYERS for kind in HOOKS},
}


def altered_pair(change):
    stock, fused = segformer_pair(tiny_config())
    for model in (stock, fused):
        torch.manual_seed(1)
        with torch.random.fork_rng():
            change(model.decode_head, model)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
    return stock, fused


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, training) for name in CHANGES for training in ((False,) if name.startswith(HOOKS) else (True, False))],
)
def test_what_is_put_on_the_head_acts_as_on_the_stock_head(name, training):
    plain, _ = segformer_pair(tiny_config())
    models = [plain, *altered_pair(CHANGES[name])]
    pixel_values = torch.randn(2, 3, 64, 96)
    weights = torch.randn(2, 7, 16, 24)
    logits, gradients = [], []
    for model in models:
        model.train(training)
        torch.manual_seed(2)
        logits.append(model(pixel_values).logits)
        (logits[-1] * weights).sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert relative_error(logits[2], logits[1]) < 1e-5
    assert gradients[1].keys() == gradients[2].keys()
    largest = max(gradient.abs().max() for gradient in gradients[1].values())
    for key, expected in gradients[1].items():
        error = (gradients[2][key] - expected).abs().max() / max(expected.abs().max(), 1e-2 * largest)
        assert error < 1e-4, key
    if name == "a head of its own":  # a copy
        return
    # It does act: the logits, or at least some gradients, are not those of the model without it.
    shared = {key.replace(".base_layer", ""): value for key, value in gradients[1].items()}
    assert relative_error(logits[1], logits[0]) > 1e-3 or any(
        key not in shared or relative_error(shared[key], value) > 1e-3 for key, value in gradients[0].items()
    )


def test_the_head_is_fused_again_when_it_is_plain_again(monkeypatch):
    calls = []
    forward = SegformerDecodeHead.forward
    monkeypatch.setattr(SegformerDecodeHead, "forward", lambda *args, **kw: calls.append(1) or forward(*args, **kw))
    _, model = segformer_pair(tiny_config())
    pixel_values = torch.randn(1, 3, 64, 64)
    model.eval()(pixel_values)
    assert not calls
    hook = model.decode_head.dropout.register_forward_hook(lambda *args: None)
    model(pixel_values)
    assert len(calls) == 1
    hook.remove()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["linear_fuse"], init_lora_weights=False))
    with_adapters = adapted(pixel_values=pixel_values).logits
    assert len(calls) == 2
    merged = adapted.merge_and_unload()
    assert relative_error(merged(pixel_values).logits, with_adapters) < 1e-5
    assert len(calls) == 2


def test_quantised_modules_act_as_in_stock():
    stock, fused = segformer_pair(tiny_config())
    pixel_values = torch.randn(1, 3, 64, 64)
    logits = []
    for model in (stock, fused):
        model.eval()
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        with torch.no_grad():
            logits.append(quantised(pixel_values).logits)
            plain = model(pixel_values).logits
    torch.testing.assert_close(logits[1], logits[0])
    assert relative_error(logits[0], plain) > 1e-4


def test_adapters_that_draw_numbers_get_their_gradients():
    """The Mix-FFN is computed twice, and drops the same both times."""
    gradients = []
    for model in altered_pair(lora("fc1", "fc2", "classifier", lora_dropout=0.5)):
        torch.manual_seed(3)
        model.train()(torch.ones(2, 3, 64, 64)).logits.square().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    for key, expected in gradients[0].items():
        assert relative_error(gradients[1][key], expected) < 1e-4 or expected.abs().max() < 1e-4, key


# ---- export ---------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@pytest.fixture(params=["map", "sequence"])
def export_pair(request):
    """A stock model and a fused one, for tracing; and what each is to give. In the second form the last stage is a
    sequence, which stock takes for a square map and the fused head for what it is."""
    stock, fused = segformer_pair(tiny_config())
    if request.param == "sequence":
        fused = SegformerForSemanticSegmentation(tiny_config(reshape_last_stage=False))
        fused.load_state_dict(stock.state_dict())
        fuse_model(fused)
    models = Logits(stock), Logits(fused)
    for model in models:
        model(torch.randn(1, 3, 64, 64))  # transformers prepares what it records once, which no exporter can follow
    return models


IMAGE, OTHER_IMAGE = torch.randn(1, 3, 64, 96), torch.randn(3, 3, 128, 64)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_torchscript(export_pair, with_gradients):
    stock, fused = export_pair
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(fused, IMAGE)
    for image in (IMAGE, OTHER_IMAGE):
        assert relative_error(traced(image), stock(image)) < 1e-5


def test_the_traced_graph_is_the_stock_one():
    """So whatever takes a traced stock model takes a fused one, `torch.onnx.export(dynamo=False)` for instance."""
    graphs = [torch.jit.trace(Logits(model), IMAGE).inlined_graph for model in segformer_pair(tiny_config())]
    stock, fused = ([node.kind() for node in graph.nodes()] for graph in graphs)
    assert stock == fused


@pytest.mark.parametrize(
    ("export_pair", "dynamo"),
    [("map", True), ("map", False), ("sequence", False), pytest.param("sequence", True, marks=pytest.mark.slow)],
    indirect=["export_pair"],
)
def test_onnx(export_pair, dynamo, tmp_path):
    for package in ("onnx", "onnxruntime", *(["onnxscript"] if dynamo else [])):
        pytest.importorskip(package, reason=f"exporting to ONNX and running it needs {package}")
    import onnxruntime

    stock, fused = export_pair
    axes = {0: "batch", 2: "height", 3: "width"}
    shapes = {"dynamic_shapes": {"pixel_values": axes}} if dynamo else {"dynamic_axes": {"pixel_values": axes}}
    file = tmp_path / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(
            fused, (torch.cat([IMAGE] * 2),), file, dynamo=dynamo, input_names=["pixel_values"], **shapes
        )
    session = onnxruntime.InferenceSession(file)
    for image in (IMAGE, OTHER_IMAGE):
        (found,) = session.run(None, {"pixel_values": image.numpy()})
        assert relative_error(torch.from_numpy(found), stock(image)) < 1e-5


@pytest.mark.parametrize(
    ("export_pair", "with_gradients"), [("map", False), ("sequence", True)], indirect=["export_pair"]
)
def test_torch_export(export_pair, with_gradients):
    stock, fused = export_pair
    auto = torch.export.Dim.AUTO
    shapes = {"pixel_values": {0: auto, 2: auto, 3: auto}}
    with torch.set_grad_enabled(with_gradients):
        exported = torch.export.export(fused, (torch.cat([IMAGE] * 2),), dynamic_shapes=shapes)
    assert relative_error(exported.module()(OTHER_IMAGE), stock(OTHER_IMAGE)) < 1e-5
    operations = {str(node.target) for node in exported.graph.nodes}
    assert not any("cat" in name for name in operations), "the fused head does not join its stages"


def test_strict_export_of_the_head():
    stock, fused = segformer_pair(tiny_config())
    features = [torch.randn(2, c, s, s) for c, s in zip((8, 16, 24, 32), (16, 8, 4, 2), strict=True)]
    with torch.no_grad():
        exported = torch.export.export(fused.decode_head.eval(), (features,), strict=True)
    assert relative_error(exported.module()(features), stock.decode_head.eval()(features)) < 1e-5


@pytest.mark.parametrize("export_pair", ["map"], indirect=True)
@pytest.mark.parametrize("with_gradients", [True, False])
def test_compiled_whole(export_pair, with_gradients):
    stock, fused = export_pair
    with torch.set_grad_enabled(with_gradients):
        compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled(IMAGE), stock(IMAGE)) < 1e-5
