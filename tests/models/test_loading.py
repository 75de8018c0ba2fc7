import json
import logging
import os
import shutil

import huggingface_hub
import pytest
import torch
import transformers as T
from factories.architectures import tiny_configs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation

from cli_utils import UserError
from metrics_utils import IGNORE_INDEX
from models import fused_segformer, losses
from models.configurations import is_at_hand
from models.geometry import input_geometry
from models.image_processor import load_image_processor
from models.loading import MIT_VARIANTS, describe_model, find_config, load_model, load_trained_model

ID2LABEL = {0: "sky", 1: "road", 2: "car", 3: "tree"}
LOGGERS = ("models.loading", "models.image_processor", "models.configurations")
OLD_NAMES = {0: "wall", 1: "floor", 2: "lamp"}

ARCHITECTURES = list(tiny_configs())
SMALLER = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


def save_checkpoint(model_class, config, folder):
    """A random model, with running statistics that are not the initial ones, as a checkpoint with three classes."""
    torch.manual_seed(0)
    config.id2label, config.label2id = OLD_NAMES, {name: i for i, name in OLD_NAMES.items()}
    model = model_class(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return model


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def tiny_images(height=64, width=64, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def assert_equal_tensors(found, expected, keys=None):
    keys = expected.keys() if keys is None else keys
    assert [key for key in keys if not torch.equal(found[key], expected[key])] == []


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return lambda: "\n".join(record.getMessage() for record in caplog.records if record.name in LOGGERS)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def mit_b0(tmp_path_factory):
    """A folder like nvidia/mit-b0, random: a classifier of B0's shape, with the key names of its time."""
    folder = tmp_path_factory.mktemp("mit") / "b0"
    save_checkpoint(T.SegformerForImageClassification, T.SegformerConfig(), folder)
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in load_file(folder / "model.safetensors")
    return folder


@pytest.fixture
def mit_b0_copy(mit_b0, tmp_path):
    return shutil.copytree(mit_b0, tmp_path / "mit-b0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small trained SegFormer with three classes."""
    folder = tmp_path_factory.mktemp("trained") / "segformer"
    save_checkpoint(T.SegformerForSemanticSegmentation, tiny_configs()["segformer"], folder)
    return folder


@pytest.fixture
def trained_copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "trained")


# ---- key names ------------------------------------------------------------------------------------------------------


def old_b0_names():
    """Every key of a B0 segmentation model as transformers 4 writes it, from the layout of the original."""
    names = []
    for stage in range(4):
        encoder = "segformer.encoder"
        names += [f"{encoder}.patch_embeddings.{stage}.{part}" for part in ("proj", "layer_norm")]
        names += [f"{encoder}.layer_norm.{stage}"]
        for block in range(2):
            prefix = f"{encoder}.block.{stage}.{block}"
            names += [f"{prefix}.layer_norm_1", f"{prefix}.layer_norm_2"]
            names += [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
            names += [f"{prefix}.attention.output.dense"]
            names += [f"{prefix}.mlp.{part}" for part in ("dense1", "dwconv.dwconv", "dense2")]
            if stage < 3:  # the last stage does not reduce its sequence
                names += [f"{prefix}.attention.self.{part}" for part in ("sr", "layer_norm")]
        names += [f"decode_head.linear_c.{stage}.proj"]
    names += ["decode_head.batch_norm", "decode_head.classifier"]
    keys = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")} | {"decode_head.linear_fuse.weight"}
    return keys | {f"decode_head.batch_norm.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("start", ["checkpoint", "from_scratch", "resumed"])
def test_saved_key_names_are_those_of_older_transformers(start, mit_b0, tmp_path):
    if start == "from_scratch":
        model = load_model(from_scratch="mit-b0", id2label=ID2LABEL)
    else:
        model = load_model(str(mit_b0), ID2LABEL)
    if start == "resumed":
        model.save_pretrained(tmp_path / "first")
        model = load_model(str(tmp_path / "first"), ID2LABEL)
    model.save_pretrained(tmp_path)
    assert len(old_b0_names()) == 208
    assert set(load_file(tmp_path / "model.safetensors")) == old_b0_names()
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_equal_tensors(reloaded.state_dict(), model.state_dict())


def test_stock_still_mixes_key_names(mit_b0, tmp_path):
    stock = AutoModelForSemanticSegmentation.from_pretrained(mit_b0)
    stock.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors"))
    mixed = "decode_head.linear_projections.0.proj.weight" in keys and "segformer.encoder.layer_norm.0.weight" in keys
    assert mixed, "save_pretrained is consistent now: `model._weight_conversions = None` in models/loading.py can go"


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("names", ["old", "new"])
def test_encoder_comes_from_the_checkpoint(mit_b0_copy, names, file_format, log):
    weights = mit_b0_copy / "model.safetensors"
    expected = T.SegformerForImageClassification.from_pretrained(mit_b0_copy)
    if names == "new":
        save_file(expected.state_dict(), weights, metadata={"format": "pt"})
        assert "segformer.stages.0.blocks.0.attention.q_proj.weight" in load_file(weights)
    if file_format == "bin":
        torch.save(load_file(weights), mit_b0_copy / "pytorch_model.bin")
        weights.unlink()
    torch.manual_seed(1)
    model = load_model(str(mit_b0_copy), ID2LABEL)
    encoder = [key for key in expected.state_dict() if key.startswith("segformer.")]
    assert len(encoder) == 192
    assert_equal_tensors(model.state_dict(), expected.state_dict(), encoder)
    assert model.config.id2label == ID2LABEL and model.config.label2id["tree"] == 3
    assert model.config.num_labels == 4 and model.decode_head.classifier.out_channels == 4
    assert model.config.semantic_loss_ignore_index == IGNORE_INDEX
    assert not model.training  # as `from_pretrained` leaves it; the Trainer changes it
    assert f"{mit_b0_copy}: 192 tensors loaded, fresh: decode_head" in log()
    torch.manual_seed(2)
    assert not torch.equal(
        load_model(str(mit_b0_copy), ID2LABEL).decode_head.linear_fuse.weight, model.decode_head.linear_fuse.weight
    )


def test_half_precision_checkpoints_become_float32(mit_b0, tmp_path):
    T.SegformerForImageClassification.from_pretrained(mit_b0).to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load_model(str(tmp_path), ID2LABEL).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(from_scratch=str(tmp_path)).parameters()} == {torch.float32}


def pop(key):
    return lambda weights: weights.pop(key)


def put(key, *shape):
    return lambda weights: weights.update({key: torch.zeros(shape)})


BLOCK = "segformer.encoder.block.1.0"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (pop(f"{BLOCK}.mlp.dense1.weight"), r"missing segformer\.stages\.1\.blocks\.0\.mlp\.fc1\.weight$"),
        (
            put(f"{BLOCK}.mlp.dense1.bias", 7),
            r"of another shape segformer\.stages\.1\.blocks\.0\.mlp\.fc1\.bias \(7,\) instead of \(256,\)$",
        ),
        (put("segformer.encoder.block.9.0.scale", 2), r"unexpected segformer\.stages\.9\.blocks\.0\.scale$"),
        (put("something.weight", 2), r"unexpected something\.weight$"),
        (dict.clear, r"missing segformer\.stages.* and 188 more$"),
    ],
)
def test_damaged_encoders_are_refused(mit_b0_copy, edit, message):
    edit_weights(mit_b0_copy, edit)
    with pytest.raises(UserError, match=rf"mit-b0 does not fit a SegformerForSemanticSegmentation: {message}"):
        load_model(str(mit_b0_copy), ID2LABEL)


def test_a_trained_checkpoint_with_other_classes_gets_a_fresh_classifier(trained, log):
    model = load_model(str(trained), ID2LABEL)
    expected = T.SegformerForSemanticSegmentation.from_pretrained(trained).state_dict()
    same = [key for key in expected if not key.startswith("decode_head.classifier.")]
    assert_equal_tensors(model.state_dict(), expected, same)
    assert model.decode_head.classifier.weight.shape == (4, 16, 1, 1)
    said = "fresh: decode_head.classifier, as it was trained on 3 classes (wall, floor, lamp) and the data has 4"
    assert f"122 tensors loaded, {said}" in log()


def test_a_trained_checkpoint_with_other_names_keeps_its_classifier(trained, log):
    model = load_model(str(trained), {0: "wall", 1: "floor", 2: "chair"})
    assert_equal_tensors(model.state_dict(), T.SegformerForSemanticSegmentation.from_pretrained(trained).state_dict())
    assert model.config.id2label[2] == "chair"
    assert "3 classes of other names (wall, floor, lamp; here wall, floor, chair); its classifier is kept" in log()


def test_a_trained_checkpoint_with_its_own_names_raises_no_warning(trained, log):
    load_model(str(trained), OLD_NAMES)
    assert log() == f"{trained}: 124 tensors loaded, fresh: none"


def test_classes_of_a_checkpoint_come_in_the_order_of_their_ids(trained, tmp_path, log):
    """In a file they come in the order of text: 0, 1, 10, 2."""
    names = {i: f"class {i}" for i in range(12)}
    load_model(id2label=names, from_scratch=str(trained)).save_pretrained(tmp_path / "model")
    log()
    assert list(load_model(str(tmp_path / "model"), names).config.id2label.items()) == list(names.items())
    assert "of other names" not in log()
    assert list(find_config(str(tmp_path / "model")).id2label) == list(names)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (pop("decode_head.linear_c.2.proj.bias"), r"missing decode_head\.linear_projections\.2\.proj\.bias$"),
        (put("decode_head.linear_fuse.weight", 16, 60, 1, 1), r"of another shape decode_head\.linear_fuse\.weight"),
        (put("decode_head.classifier.bias", 5), r"of another shape decode_head\.classifier\.bias \(5,\)"),
        (put("classifier.bias", 3), r"unexpected classifier\.bias$"),
    ],
)
def test_damaged_heads_of_trained_checkpoints_are_refused(trained_copy, edit, message):
    edit_weights(trained_copy, edit)
    for load in (lambda: load_model(str(trained_copy), ID2LABEL), lambda: load_trained_model(str(trained_copy))):
        with pytest.raises(UserError, match=message):
            load()


def test_a_trained_model_is_loaded_as_it_is(trained):
    model = load_trained_model(str(trained))
    assert not model.training and model.config.id2label == OLD_NAMES
    stock = T.SegformerForSemanticSegmentation.from_pretrained(trained).eval()
    with torch.inference_mode():
        expected = stock(tiny_images()).logits
        torch.testing.assert_close(model(tiny_images()).logits, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(load_trained_model(str(trained), fused_ops=False)(tiny_images()).logits, expected)
    assert load_trained_model(str(trained), id2label={0: "a", 1: "b", 2: "c"}).config.id2label[2] == "c"


def test_only_trained_models_are_loaded_as_such(trained, mit_b0):
    with pytest.raises(UserError, match=r"trained on 3 classes \(wall, floor, lamp\), the data has 4 \(sky, road, ca"):
        load_trained_model(str(trained), id2label=ID2LABEL)
    with pytest.raises(UserError, match="no trained segmentation .* SegformerForImageClassification; fine-tune it"):
        load_trained_model(str(mit_b0))


# ---- what cannot be loaded ------------------------------------------------------------------------------------------


def test_hub_out_of_reach(offline):
    message = r"^nvidia/mit-b0 is no folder here, and the Hub did not give it: .*without network: .*--from_scratch m"
    with pytest.raises(UserError, match=message) as raised:
        load_model("nvidia/mit-b0", ID2LABEL)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=message):
        load_image_processor("nvidia/mit-b0")


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "outputs"])
def test_names_of_nothing(name, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a run may have left outputs/ where the tests were started
    with pytest.raises(UserError, match=f"^{name} is no folder here"):
        load_model(name, ID2LABEL)


def scatter(folder):
    """As a checkpoint of FSDP."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()


def into_checkpoints(folder):
    """As a run that was stopped."""
    for time, name in enumerate(("checkpoint-100", "checkpoint-20")):
        (folder / name).mkdir()
        (folder / "config.json").rename(folder / name / "config.json")
        os.utime(folder / name / "config.json", (time, time))
        (folder / "config.json").write_bytes((folder / name / "config.json").read_bytes())
    (folder / "config.json").unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"holds no config.json, so no model \(found: model.safetensors\)"),
        (lambda d: (d / "model.safetensors").unlink(), "weights of .* cannot be loaded: .*no file named model.safet"),
        (scatter, r"weights of .* are scattered, .*: accelerate merge-weights .*pytorch_model_fsdp_0 "),
        (into_checkpoints, r"holds no config.json, .*; the last checkpoint is one: .*checkpoint-20$"),
        (lambda d: truncate(d / "model.safetensors"), "weights of .* cannot be loaded: SafetensorError: .*metadata"),
        (lambda d: (d / "model.safetensors").write_text("version https://git-lfs"), "cannot be loaded: Safetensor"),
        (lambda d: (d / "config.json").write_text("{ not"), "configuration in .* cannot be read: .*not a valid JSON"),
        (lambda d: (d / "config.json").write_text("{}"), "configuration in .* cannot be read: .*Unrecognized model"),
        (
            lambda d: T.BertConfig().save_pretrained(d),
            "is of type bert; trained and used here are beit, ",
        ),
        (
            lambda d: T.ViTConfig().save_pretrained(d),
            "is of type vit; trained and used here are beit, ",
        ),
        (lambda d: T.DetrConfig().save_pretrained(d), "is of type detr; trained and used here are .*mask2former"),
    ],
)
def test_unusable_folders(trained_copy, damage, message):
    damage(trained_copy)
    with pytest.raises(UserError, match=message) as raised:
        load_model(str(trained_copy), ID2LABEL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"abc", None])
def test_unusable_pickles(trained_copy, content):
    weights = load_file(trained_copy / "model.safetensors")
    (trained_copy / "model.safetensors").unlink()
    torch.save(weights, trained_copy / "pytorch_model.bin")
    if content is None:
        truncate(trained_copy / "pytorch_model.bin")
    else:
        (trained_copy / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="weights of .* cannot be loaded"):
        load_model(str(trained_copy), ID2LABEL)


# ---- revisions ------------------------------------------------------------------------------------------------------


def offer(hub, repo, folder, revision="main"):
    return hub.offer(repo, {path.name: path.read_bytes() for path in folder.iterdir()}, revision)


def test_a_revision_is_pinned(hub, go_offline, trained, tmp_path):
    other = save_checkpoint(T.SegformerForSemanticSegmentation, T.SegformerConfig(**SMALLER), tmp_path / "other")
    T.SegformerImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path / "other")
    offer(hub, "somebody/model", trained)
    commit = offer(hub, "somebody/model", tmp_path / "other", "v1.0")
    for revision in ("v1.0", commit):
        for model in (
            load_model("somebody/model", OLD_NAMES, revision=revision),
            load_trained_model("somebody/model", revision=revision),
        ):
            assert_equal_tensors(model.state_dict(), other.state_dict())
        assert load_image_processor("somebody/model", revision=revision).size["height"] == 96
    assert load_model("somebody/model", OLD_NAMES).config.hidden_sizes == [8, 16, 24, 32]
    assert load_image_processor("somebody/model").size["height"] == 512
    with pytest.raises(
        UserError, match="the Hub did not give it at revision v2: .*v2 is not a valid git identifier"
    ) as e:
        load_model("somebody/model", OLD_NAMES, revision="v2")
    assert "\n" not in str(e.value)
    go_offline()
    for revision in ("v1.0", commit):
        model = load_model("somebody/model", OLD_NAMES, revision=revision)
        assert_equal_tensors(model.state_dict(), other.state_dict())
    with pytest.raises(UserError, match="at revision v2"):
        load_model("somebody/model", OLD_NAMES, revision="v2")


def test_models_at_hand_are_folders_those_that_the_hub_has_and_those_of_earlier_downloads(
    hub, go_offline, trained, tmp_path
):
    files = {file.name: file.read_bytes() for file in trained.iterdir()}
    hub.offer("somebody/downloaded", files)
    hub.offer("somebody/configuration", files)
    load_model("somebody/downloaded")
    find_config("somebody/configuration")
    names = (str(trained), "somebody/downloaded", "somebody/configuration")
    assert all(map(is_at_hand, names))
    go_offline()
    assert [is_at_hand(name) for name in names] == [True, True, False]
    assert not is_at_hand(str(tmp_path / "no folder"))


def test_a_folder_has_no_revisions(trained):
    for load in (load_model, load_trained_model, load_image_processor):
        with pytest.raises(UserError, match="--model_revision v1 is for models of the Hub, and .* is on this disk"):
            load(str(trained), revision="v1")


# ---- code of others -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_question(monkeypatch):
    """Fails where somebody is asked whether to run code, and says yes."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *args: asked.append(args) or "y")
    yield
    assert not asked


def edit_json(file, **fields):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | fields))


def plant_code(folder):
    """Modules for `auto_map` that leave a file when they are imported."""
    for name in ("configuration_mine", "modeling_mine", "processing_mine"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'executed')!r}, 'w').close()\n")
    return {
        "AutoConfig": "configuration_mine.MyConfig",
        "AutoModelForSemanticSegmentation": "modeling_mine.MyModel",
        "AutoImageProcessor": "processing_mine.MyProcessor",
    }


@pytest.mark.parametrize("model_type", ["mine", "segformer"])
@pytest.mark.parametrize("place", ["folder", "repository"])
def test_code_of_a_model_is_never_run_nor_asked_about(
    no_question, hub, trained_copy, tmp_path, model_type, place, log
):
    code = plant_code(trained_copy)
    edit_json(trained_copy / "config.json", auto_map=code, model_type=model_type)
    name = str(trained_copy)
    if place == "repository":
        offer(hub, "somebody/mine", trained_copy)
        name = "somebody/mine"
    loads = [
        lambda: load_model(name, ID2LABEL),
        lambda: load_trained_model(name),
        lambda: load_model(from_scratch=str(trained_copy / "config.json")),
    ]
    for load in loads:
        if model_type == "mine":
            with pytest.raises(
                UserError, match=r"code of its own \(auto_map in config.json\), which is never run"
            ) as e:
                load()
            assert "\n" not in str(e.value)
        else:
            load().save_pretrained(tmp_path / "out")
            assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
            assert "auto_map is left out; transformers' own segformer is used" in log()
    assert not (trained_copy / "executed").exists()


def test_code_of_a_backbone_is_never_run(no_question, tmp_path, log):
    tiny_configs()["upernet-convnext"].save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["backbone_config"]["auto_map"] = plant_code(tmp_path) | {"AutoBackbone": "modeling_mine.MyModel"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    load_model(from_scratch=str(tmp_path), id2label=ID2LABEL).save_pretrained(tmp_path / "out")
    assert "transformers' own convnext is used" in log() and not (tmp_path / "executed").exists()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    content["backbone_config"]["model_type"] = "mine"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="configuration .* cannot be read"):
        load_model(from_scratch=str(tmp_path), id2label=ID2LABEL)


@pytest.mark.parametrize("kind", ["SegformerImageProcessor", "MyProcessor", None])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_code_of_an_image_processor_is_never_run(no_question, trained_copy, tmp_path, kind, name):
    settings = {"auto_map": plant_code(trained_copy), "size": {"height": 96, "width": 96}}
    settings |= {"image_processor_type": kind} if kind else {}
    edit_json(trained_copy / name, **({"image_processor": settings} if name == "processor_config.json" else settings))
    if kind == "MyProcessor":
        with pytest.raises(
            UserError, match=f"the image processor of {trained_copy} is code of its own .* never run"
        ) as e:
            load_image_processor(str(trained_copy))
        assert "\n" not in str(e.value)
    else:
        processor = load_image_processor(str(trained_copy))
        processor.save_pretrained(tmp_path / "out")
        assert "auto_map" not in (tmp_path / "out" / "preprocessor_config.json").read_text()
        assert processor.size == {"height": 96, "width": 96}
    assert not (trained_copy / "executed").exists()


# ---- from scratch, configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "millions"), [*zip(MIT_VARIANTS, [3.8, 13.7, 27.5, 47.3, 64.1, 84.7], strict=True)]
)
def test_variants_have_the_published_number_of_parameters(variant, millions, offline):
    with torch.device("meta"):
        model = load_model(from_scratch=variant, id2label={i: str(i) for i in range(150)})
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    config = model.config
    assert config.drop_path_rate == 0.1 and config.classifier_dropout_prob == 0.1
    assert (config.num_attention_heads, config.sr_ratios) == ((1, 2, 5, 8), (8, 4, 2, 1))


def test_from_scratch_takes_a_folder_or_a_config_file(trained, offline):
    for source in (trained, trained / "config.json"):
        torch.manual_seed(3)
        model = load_model(id2label=ID2LABEL, from_scratch=str(source), drop_path_rate=0.3)
        assert model.config.hidden_sizes == [8, 16, 24, 32] and model.config.id2label == ID2LABEL
        assert model.config.drop_path_rate == 0.3 and model.training
        torch.manual_seed(3)
        again = load_model(id2label=ID2LABEL, from_scratch=str(source), drop_path_rate=0.3)
        assert_equal_tensors(model.state_dict(), again.state_dict())


def test_from_scratch_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"mit-b7 \(did you mean mit-b\d\?\) is neither .* mit-b0, mit-b1"):
        load_model(from_scratch="mit-b7", id2label=ID2LABEL)
    (tmp_path / "config.json").write_text('{"model_type": "segformer", "depths": [1]}')
    with pytest.raises(UserError, match="no model can be built from the configuration of .*config.json"):
        load_model(from_scratch=str(tmp_path / "config.json"), id2label=ID2LABEL)
    T.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is of type bert"):
        load_model(from_scratch=str(tmp_path), id2label=ID2LABEL)


def test_overrides(trained):
    assert load_model(str(trained), ID2LABEL, drop_path_rate=0.25).config.drop_path_rate == 0.25
    with pytest.raises(UserError, match=r"has no field drop_path \(did you mean drop_path_rate\?\)"):
        load_model(str(trained), ID2LABEL, drop_path=0.25)
    with pytest.raises(UserError, match="drop_path_rate='a' does not fit the configuration of mit-b0"):
        load_model(from_scratch="mit-b0", id2label=ID2LABEL, drop_path_rate="a")
    with pytest.raises(UserError, match="of another shape decode_head.linear_projections.3.*, segformer.stages.3"):
        load_model(str(trained), ID2LABEL, hidden_sizes=[8, 16, 24, 64])


# ---- a single logit -------------------------------------------------------------------------------------------------

BINARY = {0: "background", 1: "crack"}


def test_a_single_logit_for_two_classes(mit_b0, tmp_path, log):
    model = load_model(str(mit_b0), BINARY, single_logit=True)
    assert model.config.num_labels == 1 and model.config.id2label == {0: "crack"}
    assert model(pixel_values=tiny_images()).logits.shape == (2, 1, 16, 16)
    assert describe_model(model).endswith(", a single logit for two classes")
    model.save_pretrained(tmp_path / "out")
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and reloaded.config.id2label == {0: "crack"}
    for id2label in (BINARY, None):
        again = load_trained_model(str(tmp_path / "out"), id2label=id2label)
        assert_equal_tensors(again.state_dict(), model.state_dict())
        assert again.config.id2label == {0: "crack"}
    # Trained further, with or without it.
    again = load_model(str(tmp_path / "out"), BINARY, single_logit=True)
    assert_equal_tensors(again.state_dict(), model.state_dict())
    load_model(str(tmp_path / "out"), BINARY)
    assert "208 tensors loaded, fresh: none" in log()
    assert (
        "206 tensors loaded, fresh: decode_head.classifier, as it was trained on 1 class (crack) and the data has 2"
        in log()
    )


def test_a_single_logit_is_for_two_classes(mit_b0, tmp_path):
    with pytest.raises(UserError, match=r"--single_logit is for two classes, not 4 \(sky, road, car, tree\): leave"):
        load_model(str(mit_b0), ID2LABEL, single_logit=True)
    load_model(from_scratch="mit-b0", id2label=BINARY, single_logit=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"trained on 1 classes \(crack\), the data has 4"):
        load_trained_model(str(tmp_path), id2label=ID2LABEL)


# ---- other architectures --------------------------------------------------------------------------------------------

ENCODERS = {
    "segformer": [T.SegformerModel, T.SegformerForImageClassification],
    "beit": [T.BeitModel, T.BeitForImageClassification, T.BeitForMaskedImageModeling, T.BeitBackbone],
    "data2vec": [T.Data2VecVisionModel, T.Data2VecVisionForImageClassification],
    "dpt": [T.DPTModel, T.DPTForDepthEstimation],
    "mobilevit": [T.MobileViTModel, T.MobileViTForImageClassification],
    "mobilevitv2": [T.MobileViTV2Model, T.MobileViTV2ForImageClassification],
    "mobilenet_v2": [T.MobileNetV2Model, T.MobileNetV2ForImageClassification],
}


@pytest.mark.parametrize(("name", "encoder"), [(name, e) for name, classes in ENCODERS.items() for e in classes])
def test_encoders_of_every_architecture(name, encoder, tmp_path):
    checkpoint = save_checkpoint(encoder, tiny_configs()[name], tmp_path)
    model = load_model(str(tmp_path), ID2LABEL)
    prefix = model.base_model_prefix
    base = checkpoint.base_model.state_dict()
    loaded = model.get_submodule(prefix).state_dict()
    assert_equal_tensors(loaded, base, loaded.keys())
    # Without one tensor of the encoder it is refused.
    key = next(key for key in load_file(tmp_path / "model.safetensors") if key.endswith("weight") and "layer" in key)
    edit_weights(tmp_path, pop(key))
    with pytest.raises(UserError, match=rf": missing {prefix}\."):
        load_model(str(tmp_path), ID2LABEL)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_and_reloads(name, tmp_path, log):
    config = tiny_configs()[name]
    save_checkpoint(AutoModelForSemanticSegmentation.from_config, config, tmp_path / "in")
    model = load_model(str(tmp_path / "in"), ID2LABEL)
    has_auxiliary_head = "use_auxiliary_head" in config.to_dict()
    assert ("auxiliary head is left out" in log()) == has_auxiliary_head
    assert not any("auxiliary_head" in key for key in model.state_dict())
    assert model.config.to_dict().get("semantic_loss_ignore_index", 255) == 255

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {key: value.clone() for key, value in model.named_parameters()}
    side = input_geometry(model.config).fit(96)  # at 64 MobileViT's attention would be over a single patch
    logits = model(pixel_values=tiny_images(side, side)).logits
    assert logits.shape[:2] == (2, 4)
    losses.upsampled_cross_entropy(logits, torch.randint(0, 4, (2, side, side))).backward()
    optimizer.step()
    without_gradient = {key for key, value in model.named_parameters() if value.grad is None}
    assert without_gradient == {key for key, value in model.named_parameters() if not value.requires_grad}
    unmoved = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert unmoved == without_gradient
    assert ("do not reach the logits" in log()) == bool(without_gradient)

    model.eval().save_pretrained(tmp_path / "out")
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert_equal_tensors(reloaded.state_dict(), model.state_dict())
    again = load_trained_model(str(tmp_path / "out"))
    with torch.inference_mode():
        assert torch.equal(again(tiny_images()).logits, model(tiny_images()).logits)


# Parameters behind the last feature map that the segmentation model uses.
UNUSED = {
    "upernet-swin": ("backbone.swin.layernorm.",),
    "beit": ("beit.layers.3.",),
    "beit-absolute": ("beit.layers.3.",),
    "data2vec": ("data2vec_vision.encoder.layer.3.",),
    "dpt": ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1."),
    "mobilenet_v2": ("mobilenet_v2.conv_1x1.",),
    "tipsv2_dpt": ("backbone.embeddings.mask_token",),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_not_trained(name, tmp_path):
    tiny_configs()[name].save_pretrained(tmp_path)
    model = load_model(from_scratch=str(tmp_path), id2label=ID2LABEL)
    expected = {key for key, _ in model.named_parameters() if key.startswith(UNUSED.get(name, ("-",)))}
    assert {key for key, value in model.named_parameters() if not value.requires_grad} == expected
    assert bool(expected) == (name in UNUSED)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_input_sizes(name, tmp_path):
    tiny_configs()[name].save_pretrained(tmp_path)
    model = load_model(from_scratch=str(tmp_path), id2label=ID2LABEL).eval()
    geometry = input_geometry(model.config)
    side = geometry.fit(96)
    with torch.inference_mode():
        if geometry.square:
            assert model(tiny_images(side, side)).logits.shape[2:] in [(s, s) for s in (16, 96)]
            with pytest.raises(RuntimeError):
                model(tiny_images(64, 96))
            return
        for height, width in ((side, 2 * side), (3 * side, side)):
            logits = model(tiny_images(height, width)).logits
            assert logits.shape[2] * width == logits.shape[3] * height


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_fused_ops(trained):
    assert type(load_model(str(trained), ID2LABEL).decode_head) is fused_segformer.FusedSegformerDecodeHead
    stock = load_model(str(trained), ID2LABEL, fused_ops=False)
    assert type(stock.decode_head).__module__.startswith("transformers.")


def test_describe_model(trained):
    assert describe_model(load_model(from_scratch="mit-b0", id2label=ID2LABEL)) == (
        "SegformerForSemanticSegmentation: 3.72 M parameters (encoder 3.32 M, head 0.40 M), 4 classes"
    )


def test_convolutions_start_as_in_the_papers_code():
    model = load_model(id2label={0: "a", 1: "b"}, from_scratch="mit-b0")
    depthwise = model.segformer.stages[3].blocks[0].mlp.dwconv.dwconv  # fan-out 3 · 3 · 1024 / 1024
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    patches = model.segformer.stages[0].patch_embeddings.proj  # fan-out 7 · 7 · 32
    assert patches.weight.std().item() == pytest.approx((2 / 1568) ** 0.5, rel=0.1)
    assert model.decode_head.linear_fuse.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert model.decode_head.classifier.weight.std().item() < 0.03


@pytest.mark.parametrize("name", tiny_configs())
def test_what_starts_fresh_starts_near_no_opinion(name, tmp_path):
    """As wide as transformers draws it, the classifier of tipsv2_dpt starts with logits of hundreds."""
    tiny_configs()[name].save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = load_model(from_scratch=str(tmp_path), id2label={index: str(index) for index in range(20)}).eval()
    model.save_pretrained(tmp_path / "trained")
    again = load_model(str(tmp_path / "trained"), {index: str(index) for index in range(30)}).eval()
    side = input_geometry(model.config).fit(64)
    for one in (model, again):  # the second with a fresh classifier for other classes
        with torch.inference_mode():
            assert one(pixel_values=torch.randn(2, 3, side, side)).logits.std() < 10
