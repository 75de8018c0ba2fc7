"""`export_onnx.py` and predicting with its files, on a tiny random SegFormer: the same classes as PyTorch, image by
image, or a refusal that says why."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from factories.architectures import tiny_configs, universal_configs
from factories.models import COLORS, NAMES, noise, save_model
from onnx import TensorProto, helper
from PIL import Image

import cli_utils
import export_onnx
import predict
from cli_utils import UserError
from data.preprocessing import EvaluationProtocol
from models import onnx_export
from models.configurations import new_model
from models.image_processor import load_image_processor
from models.loading import load_trained_model
from models.onnx_model import KEYS, OnnxModel

SIZES = ((40, 60), (70, 50), (200, 33), (64, 96))
PROTOCOL = EvaluationProtocol(64)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), reduce_labels=True, colors=COLORS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed, size in enumerate(SIZES):
        noise(*size, seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def network(model_dir):
    """The export that all tests share: it takes seconds."""
    return onnx_export.export_network(load_trained_model(str(model_dir)), PROTOCOL)


@pytest.fixture
def export(model_dir, photos, network, monkeypatch, tmp_path):
    """Flags → (file, figures)."""
    monkeypatch.setattr(onnx_export, "export_network", lambda model, protocol, half: copy.deepcopy(network))

    def run(*flags, model=model_dir):
        file = tmp_path / "model.onnx"
        arguments = ["--model", model, "--output", file, "--check_images", photos, *flags]
        return file, export_onnx.main([*map(str, arguments)])

    return run


def predictions(model, photos, out, *flags):
    predict.main(["--model", str(model), "--output_dir", str(out), "--device", "cpu", str(photos), *flags])
    return [np.asarray(Image.open(out / f"{seed}.png")) for seed in range(len(SIZES))]


@pytest.mark.parametrize("flag", [[], ["--confidence"], ["--logits"]], ids=str)
def test_predictions_are_those_of_pytorch(export, model_dir, photos, tmp_path, flag):
    file, figures = export(*flag)
    assert figures["different"] == 0 and figures["pixels"] > sum(height * width for height, width in SIZES)
    found, expected = (predictions(model, photos, tmp_path / "out") for model in (file, model_dir))
    for one, other, size in zip(found, expected, SIZES, strict=True):
        assert one.shape == size and set(np.unique(other)) == {1, 2, 3}
        assert (one != other).sum() <= figures["ties"]


def test_windows_and_scales_of_a_network_are_those_of_pytorch(export, model_dir, photos, tmp_path):
    file, _ = export("--logits")
    flags = ["--slide_crop", "64", "--slide_stride", "32", "--eval_scales", "0.5", "1.5", "--eval_flip"]
    plain = predictions(model_dir, photos, tmp_path / "plain")
    found, expected = (predictions(model, photos, tmp_path / "out", *flags) for model in (file, model_dir))
    for one, other, without in zip(found, expected, plain, strict=True):
        assert (one != other).mean() < 0.001 < (other != without).mean()


def test_a_batch_is_its_images(export, photos):
    file, _ = export()
    model = OnnxModel(file)
    images = np.stack([np.asarray(noise(45, 70, seed)) for seed in (1, 2)])
    (both,) = model.run(images)
    assert both.shape == (2, 45, 70) and both.dtype == np.uint8
    for image, ids in zip(images, both, strict=True):
        assert (model.predict_ids(Image.fromarray(image)).numpy() != ids).mean() < 0.001


def test_confidence_is_the_probability_of_the_class(export, model_dir):
    file, _ = export("--confidence")
    image = noise(40, 60)
    ids, confidence = (output[0] for output in OnnxModel(file).run(np.asarray(image)[None]))
    with torch.no_grad():
        logits = load_trained_model(str(model_dir))(pixel_values=PROTOCOL.preprocess(image)[None]).logits
        likely = torch.nn.functional.interpolate(logits, (40, 60), mode="bilinear").softmax(1)[0].numpy()
    expected = np.take_along_axis(likely, ids[None].astype(int), 0)[0]
    assert expected.std() > 0.02 and (ids == likely.argmax(0)).mean() > 0.999
    assert np.abs(confidence / 255 - expected).max() < 1.1 / 255


def test_predict_writes_the_confidence_of_a_graph(export, model_dir, photos, tmp_path):
    file, _ = export("--confidence")
    predictions(file, photos, tmp_path / "graph", "--save_confidence")
    predictions(model_dir, photos, tmp_path / "model", "--save_confidence")
    for seed in range(len(SIZES)):
        graph, model = (
            np.asarray(Image.open(tmp_path / folder / "confidence" / f"{seed}.png")).astype(int)
            for folder in ("graph", "model")
        )
        assert np.abs(graph - model).max() <= 2 and model.std() > 5


def test_a_graph_predicts_together_with_a_model(export, model_dir, photos, tmp_path):
    file, _ = export("--logits")
    predict.main(["--output_dir", str(tmp_path), "--device", "cpu", "--model", str(model_dir), str(file), str(photos)])
    for seed, alone in enumerate(predictions(model_dir, photos, tmp_path / "alone")):
        assert (np.asarray(Image.open(tmp_path / f"{seed}.png")) != alone).mean() < 0.001


def test_what_a_file_says_of_itself(export, model_dir):
    file, _ = export()
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(said["class_names"]) == list(NAMES.values())
    assert json.loads(said["class_colors"]) == COLORS
    assert json.loads(said["annotation_values"]) == [1, 2, 3]
    assert "short side 64" in said["protocol"] and "same class in PyTorch" in said["checked"]
    assert said["precision"] == "float32" and json.loads(said["versions"])["torch"] == torch.__version__
    assert str(model_dir.parent) not in str(said)
    assert OnnxModel(file).protocol == PROTOCOL


def test_eight_bits(export, photos):
    file, figures = export("--int8", "--calibration_dir", photos, "--max_different", "0.5")
    assert 0 < figures["different"] < 0.2 * figures["pixels"]
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def test_a_file_that_disagrees_is_refused(export, monkeypatch):
    wrong = EvaluationProtocol(64, image_mean=(0.4, 0.4, 0.4))
    original = onnx_export.with_images
    monkeypatch.setattr(onnx_export, "with_images", lambda graph, *args: original(graph, wrong, *args[1:]))
    with pytest.raises(
        UserError, match=r"is not written, .* another one \(\d+\.\d+%\)\. Allowed are 0\.000%"
    ) as error:
        export()
    assert "\n" not in str(error.value)
    file, figures = export("--max_different", "1")
    assert file.is_file() and figures["different"] > 0


def test_nothing_is_left_of_a_file_that_is_refused(export, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_export.Agreement, "share_different", 0.1)
    with pytest.raises(UserError, match="is not written"):
        export()
    assert not list(tmp_path.iterdir())


def test_both_are_scored_on_a_dataset(export, make_dataset):
    data = make_dataset(values=(1, 2, 3, 255))
    _, figures = export("--dataset_dir", data, "--max_eval_samples", "1")
    assert 0 < figures["mean_iou_model"] < 1
    assert figures["mean_iou_graph"] == pytest.approx(figures["mean_iou_model"], abs=0.02)


def test_without_images_rendered_ones_are_compared(export, caplog, monkeypatch):
    monkeypatch.setattr(export_onnx, "find_files", lambda *args: [])
    monkeypatch.setattr(export_onnx, "render_scene", lambda *args: (noise(50, 80), None))
    file, figures = export()
    assert figures["pixels"] > 3 * 50 * 80
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert "on rendered pictures; --check_images has yours" in said["checked"]


# ---- the operators around the network -------------------------------------------------------------------------------


def identity(channels: int) -> onnx.ModelProto:
    """A network that hands on what it is shown."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", channels, height, width])
        for name, height, width in (("pixel_values", "h", "w"), ("logits", "i", "j"))
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["logits"])], "none", *map(list, zip(ports))
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx_export.OPSET)])


@pytest.mark.parametrize(
    "protocol",
    [
        EvaluationProtocol(64, temperature=1.7),
        EvaluationProtocol(50, size_divisor=14, flip_channels=True),
        EvaluationProtocol(48, square=True),
        EvaluationProtocol(64, image_mean=(0.5, 0.4), image_std=(0.2, 0.3), threshold=0.7, temperature=0.5),
        EvaluationProtocol(64, image_mean=(0.5,) * 5, image_std=(0.1, 0.2, 0.3, 0.4, 0.5)),
    ],
    ids=str,
)
def test_images_of_any_size_are_shown_as_the_protocol_says(protocol):
    """Resized bit for bit as torchvision does, or classes that differ by one grey level would come out otherwise."""
    channels = protocol.num_channels
    graph = onnx_export.with_images(identity(channels), protocol, confidence=True)
    onnx.checker.check_model(graph, full_check=True)
    session = onnx_session(graph)
    rng = np.random.default_rng(0)
    shift = onnx_export.class_shift(protocol.threshold)[:, None, None] if protocol.threshold != 0.5 else 0
    for size in ((40, 60), (1, 9), (7, 5), (511, 64), (300, 20), (130, 1000), (64, 64), (95, 65)):
        image = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
        pixels = protocol.preprocess(torch.from_numpy(image).permute(2, 0, 1).contiguous())
        upsampled = torch.nn.functional.interpolate((pixels + shift)[None], size, mode="bilinear")[0]
        ids, confidence = (output[0] for output in session.run(None, {"image": image[None]}))
        best = upsampled.topk(2, dim=0).values.diff(dim=0)[0].abs().numpy()
        assert ids.shape == size
        assert ((ids == upsampled.argmax(0).numpy()) | (best < 1e-4)).all()
        expected = (
            ((upsampled - shift) / protocol.temperature).softmax(0).gather(0, torch.from_numpy(ids)[None].long())[0]
        )
        assert np.abs(confidence / 255 - expected.numpy()).max() < 1.1 / 255


def onnx_session(graph):
    import onnxruntime

    return onnxruntime.InferenceSession(graph.SerializeToString())


def test_resizing_is_torchvision_s():
    from torchvision.transforms.v2 import functional as tvF

    from models.onnx_operators import resized

    session = onnx_session(resized.to_model_proto())
    rng = np.random.default_rng(1)
    for length, size in ((7, 512), (512, 7), (100, 33), (33, 100), (1000, 768), (64, 64), (3, 1), (1, 3), (999, 1000)):
        image = rng.integers(0, 256, (length, 2, 3, 3), dtype=np.uint8)
        (found,) = session.run(None, {"image": image, "size": np.array([size])})
        columns = torch.from_numpy(image).permute(1, 3, 2, 0).contiguous()  # a height of 3 that stays
        expected = tvF.resize(columns, [3, size], antialias=True).permute(3, 0, 2, 1).numpy()
        assert np.array_equal(found, expected)


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "model.pt"], "ends in .onnx"),
        (["--fp16", "--int8"], "only one of --fp16 and --int8"),
        (["--int8"], "--int8 and --calibration_dir go together"),
        (["--logits", "--confidence"], "--confidence is of the classes"),
        (["--max_different", "2"], "--max_different is 2"),
        (["--slide_crop", "64"], "export with --logits and give them to predict.py"),
        (["--check_images", "nowhere"], "--check_images nowhere: no images there"),
        (["--threshold", "0.3"], "--threshold is for two classes"),
        (["--streaming", "--dataset_name", "x"], "--streaming is for training"),
    ],
)
def test_bad_flags(export, flags, message):
    with pytest.raises(UserError, match=message):
        export(*flags)


def test_a_calibration_folder_without_images(export, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--calibration_dir .*empty: no images there \(looked for"):
        export("--int8", "--calibration_dir", tmp_path / "empty")


def test_a_missing_package_is_named(export, monkeypatch):
    monkeypatch.setattr(cli_utils, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match="onnxscript, which is not installed: pip install onnxscript"):
        export()


def test_a_file_over_an_input(export, photos, tmp_path):
    image = tmp_path / "model.onnx"
    image.symlink_to(photos / "0.png")
    with pytest.raises(UserError, match="would be overwritten"):
        export()


def test_an_architecture_that_cannot_be_exported(model_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a long\nstory")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match="segformer cannot be exported to ONNX by torch .*: a long; predict.py and"):
        onnx_export.export_network(load_trained_model(str(model_dir)), PROTOCOL)


def test_a_graph_that_does_not_run_at_other_sizes(export, monkeypatch):
    def fail(self, image):
        raise RuntimeError("cannot be reshaped")

    monkeypatch.setattr(OnnxModel, "predict_ids", fail)
    with pytest.raises(UserError, match=r"the graph does not run on an image of 60x40 pixels \(cannot be reshaped\)"):
        export()


def test_flags_that_a_graph_cannot_follow(export, photos, tmp_path):
    file, _ = export()
    for flags in (["--image_size", "128"], ["--eval_flip"], ["--slide_crop", "64"]):
        with pytest.raises(UserError, match="finds the classes by itself .*one exported with --logits takes them"):
            predictions(file, photos, tmp_path / "out", *flags)
    with pytest.raises(UserError, match="--model_revision v1 is for models of the Hub"):
        predictions(file, photos, tmp_path / "out", "--model_revision", "v1")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_ours(network, photos, tmp_path):
    file = tmp_path / "other.onnx"
    for content, message in (
        (b"no graph", "other.onnx cannot be read by ONNX Runtime"),
        (network.SerializeToString(), f"not one of export_onnx.py: its metadata lack {', '.join(KEYS)}, so nobody"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            predictions(file, photos, tmp_path / "out")
    with pytest.raises(UserError, match=r"nowhere\.onnx: no such file"):
        predictions("nowhere.onnx", photos, tmp_path / "out")


def test_files_of_another_format_or_damaged(network):
    said = dict.fromkeys(KEYS, "?") | {"format": "7"}
    graph = copy.deepcopy(network)
    for changes, message in (({}, "has format 7, this version reads 1"), ({"format": "1"}, "are damaged: ")):
        helper.set_model_props(graph, said | changes)
        with pytest.raises(UserError, match=message):
            OnnxModel(graph.SerializeToString())


# ---- other models ---------------------------------------------------------------------------------------------------


def save_other(config, folder):
    config.id2label = dict(enumerate("abc"))
    torch.manual_seed(0)
    new_model(config).save_pretrained(folder)
    load_image_processor(from_scratch=str(folder), image_size=64).save_pretrained(folder)
    return folder


def test_upernet_resizes_twice_in_the_graph_as_well(photos, tmp_path):
    folder = save_other(tiny_configs()["upernet-convnext"], tmp_path / "model")
    arguments = ["--model", folder, "--output", tmp_path / "model.onnx", "--check_images", photos]
    assert export_onnx.main([*map(str, arguments)])


def test_models_of_masks_are_refused(photos, tmp_path):
    folder = save_other(universal_configs()["eomt"], tmp_path / "model")
    arguments = ["--model", folder, "--output", tmp_path / "model.onnx", "--check_images", photos]
    with pytest.raises(UserError, match="eomt predicts masks, .* cannot be exported; predict.py and"):
        export_onnx.main([*map(str, arguments)])


@pytest.mark.slow
def test_half_precision(model_dir, photos, tmp_path):
    arguments = ["--model", model_dir, "--output", tmp_path / "half.onnx", "--check_images", photos, "--fp16"]
    figures = export_onnx.main([*map(str, arguments)])
    assert figures["different"] <= 0.005 * figures["pixels"]
    kinds = {weight.data_type for weight in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    found, expected = (predictions(model, photos, tmp_path / "out") for model in (tmp_path / "half.onnx", model_dir))
    for one, other in zip(found, expected, strict=True):
        assert (one != other).mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--threshold", "0.3"]], ids=str)
def test_a_single_logit(photos, tmp_path, flags):
    model = save_model(tmp_path / "model", names={0: "road"})
    arguments = ["--model", model, "--output", tmp_path / "two.onnx", "--check_images", photos, *flags]
    assert export_onnx.main([*map(str, arguments)])["different"] == 0
    found = predictions(tmp_path / "two.onnx", photos, tmp_path / "out")
    expected = predictions(model, photos, tmp_path / "out", *flags)
    for one, other in zip(found, expected, strict=True):
        assert (one != other).mean() < 0.001 and set(np.unique(other)) == {0, 1}
