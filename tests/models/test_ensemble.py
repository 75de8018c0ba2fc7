"""Several models in one: the mean of their probabilities, whatever they are, whole and in bands."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from factories.architectures import universal_configs
from factories.logits import LargestTensor
from factories.models import noise
from torch import nn
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError
from data import large_images
from data.arguments import EvaluationArguments
from data.classes import ClassMap
from data.large_images import LargeImage
from data.preprocessing import EvaluationProtocol
from models import ensemble
from models.configurations import new_model
from models.inference import as_passes, mean_probabilities, protocol_logits
from models.predictor import _of_network

NAMES = {0: "sky", 1: "road", 2: "car"}


class Network(nn.Module):
    """Pixels to logits at a quarter of their size."""

    def __init__(self, seed, num_labels=3):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, num_labels, 4, 4)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=3 * self.convolution(pixel_values))


def predictor(name, network, names=NAMES, raw_to_id=None, **options):
    class_map = ClassMap(names, raw_to_id=raw_to_id)
    protocol = EvaluationProtocol(**({"short_side": 64} | options))
    return _of_network(name, name, class_map, protocol, network.eval())


@pytest.fixture
def load(monkeypatch):
    """Predictors → the ensemble of them."""

    def load(*members):
        by_name = {member.name: member for member in members}
        monkeypatch.setattr(ensemble, "load_predictor", lambda name, *args: by_name[name])
        return ensemble.load_ensemble(list(by_name), EvaluationArguments(), torch.device("cpu"))

    return load


def expected_probabilities(members, image):
    """Full tensors: each member's probabilities at its temperature, then the mean."""
    size, total = tuple(tvF.get_size(image)), 0
    with torch.inference_mode():
        for member in members:
            passes = as_passes(protocol_logits(member.network, member.protocol.preprocess(image), member.protocol))
            probabilities = torch.empty(*size, len(NAMES))
            for pixels, tile in mean_probabilities(passes, size):
                probabilities[pixels] = tile
            total = total + (probabilities.log() / member.protocol.temperature).softmax(-1)
    return total / len(members)


def universal(name):
    config = universal_configs(64)[name]
    config.id2label = dict(NAMES)
    torch.manual_seed(0)
    return new_model(config)


@pytest.mark.parametrize("kinds", ["sizes", "passes", "architectures"])
def test_probabilities_are_averaged(load, monkeypatch, kinds):
    monkeypatch.setattr("models.upsampling.CPU_TILE_BYTES_PER_THREAD", 2**14)
    members = {
        "sizes": lambda: [
            predictor("a", Network(0), temperature=2.0),
            predictor("b", Network(1), short_side=96),
            predictor("c", Network(2), temperature=0.5),
        ],
        "passes": lambda: [
            predictor("a", Network(0), flip=True, scales=(1.0, 1.5)),
            predictor("b", Network(1), slide_crop=64, slide_stride=32, temperature=1.5),
        ],
        "architectures": lambda: [
            predictor("a", Network(0)),
            predictor("b", universal("mask2former"), output="queries", temperature=1.5),
        ],
    }[kinds]()
    image = noise(100, 150)
    together = load(*members)
    ids, confidence = together.predict_with_confidence(image)
    expected = expected_probabilities(members, image)
    highest, best = expected.max(-1)
    assert len(best.unique()) > 1 and (ids == best).float().mean() > 0.999
    assert (confidence.float() / 255 - highest).abs().max() < 0.6 / 255
    assert torch.equal(together.predict(image), ids)
    assert "models: a; b" in together.description


def test_bands_are_the_whole(load, monkeypatch):
    monkeypatch.setattr(large_images, "BAND_BYTES", 2**13)
    monkeypatch.setattr("models.upsampling.CPU_TILE_BYTES_PER_THREAD", 2**13)
    together = load(
        predictor("a", Network(0), temperature=2.0, flip=True),
        predictor("b", Network(1), short_side=96, slide_crop=64),
    )
    image = noise(220, 130)
    pixels = tvF.pil_to_tensor(image)
    large = LargeImage((220, 130), 3, lambda first, stop: pixels[:, first:stop])
    bands = list(together.predict_with_confidence(large))
    assert len(bands) > 3
    for found, expected in zip(zip(*bands, strict=True), together.predict_with_confidence(image), strict=True):
        assert torch.equal(torch.cat(found), expected)
    assert torch.equal(torch.cat(list(together.predict(large))), together.predict(image))


def test_no_tensor_of_all_classes_at_the_size_of_the_image(load):
    names = {i: f"class {i}" for i in range(100)}
    together = load(*(predictor(name, Network(seed, 100), names) for seed, name in enumerate("abc")))
    image = noise(800, 1200)
    with LargestTensor() as largest:
        together.predict_with_confidence(image)
    assert largest.numel <= 800 * 1200 * 3  # the image itself


def test_one_model_is_itself(load):
    alone = predictor("a", Network(0))
    assert load(alone) is alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {0: "sky", 1: "road"}}, "a and b cannot predict together; classes: 3 in the one, 2 in the other"),
        ({"names": NAMES | {2: "bus"}}, "name of class 2: 'car' in the one, 'bus' in the other"),
        ({"raw_to_id": {0: 0, 7: 1, 2: 2}}, r"value in annotations of class 1 \(road\): 1 in the one, 7 in the other"),
        ({"image_mean": (0.5,) * 4, "image_std": (0.2,) * 4}, "channels: 3 in the one, 4 in the other"),
    ],
)
def test_models_that_do_not_fit_together(load, options, message):
    with pytest.raises(UserError, match=message):
        load(predictor("a", Network(0)), predictor("b", Network(1), **options))


def test_what_cannot_be_averaged_or_read_in_bands(load):
    graph = replace(predictor("b.onnx", Network(1)), network=None)
    with pytest.raises(UserError, match="b.onnx gives classes, and several models predict by the mean"):
        load(predictor("a", Network(0)), graph)
    together = load(predictor("a", Network(0)), predictor("b", universal("mask2former"), output="queries"))
    with pytest.raises(UserError, match=r"x\.tif \(90,000x80,000 pixels\) is read in bands, and b predicts masks"):
        together.check_size("x.tif", (80_000, 90_000))
