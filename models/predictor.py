"""A trained model with all that predicting takes: the one way in which `predict.py` and `app.py` load one.

predictor = load_predictor("outputs/mine", EvaluationArguments(), find_device(None))
ids = predictor.predict(image)          # (H, W), as evaluation saw them
predictor.class_map.id2label
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cli_utils import UserError
from data.arguments import EvaluationArguments
from data.classes import ClassMap
from data.large_images import LargeImage
from data.preprocessing import EvaluationProtocol
from models.banded import predict_bands
from models.configurations import is_universal
from models.image_processor import load_image_processor
from models.inference import evaluation_protocol, predict_confidence, predict_ids
from models.loading import describe_model, load_trained_model
from models.onnx_model import OnnxModel
from models.trained_classes import find_class_map


@dataclass(frozen=True)
class Predictor:
    """A model, its classes, and how images are shown to it.

    Attributes:
        name: what it was loaded from. description: of the model, a line for people.
        predict: image (PIL RGB, or uint8 (C, H, W)) → training ids, integer (H, W); `LargeImage` → some rows of them
            after the other. Both on the CPU.
        network: what gives logits, on the model's device; None: a graph that gives the classes alone.
    """

    name: str
    description: str
    class_map: ClassMap
    protocol: EvaluationProtocol
    predict: Callable
    network: nn.Module | None

    def confidence(self, image, ids: torch.Tensor) -> torch.Tensor:
        """How likely the classes are that `predict` gave, uint8 (H, W), 255 for certainty; `network` must be there."""
        return predict_confidence(self.network, image, self.protocol, ids)


def load_predictor(
    name: str,
    evaluation_args: EvaluationArguments,
    device: torch.device,
    revision: str | None = None,
    fused_ops: bool = True,
) -> Predictor:
    """A folder or Hub id of a trained model, or a file of `export_onnx.py` (NAME.onnx).

    Raises:
        UserError: it cannot be read, or does not fit the flags.
    """
    if name.endswith(".onnx"):
        return _load_graph(name, evaluation_args, device, revision)
    model = load_trained_model(name, fused_ops, revision=revision).to(device)
    image_processor = load_image_processor(name, revision=revision, image_size=evaluation_args.image_size)
    class_map = find_class_map(name, model.config, image_processor, revision)
    evaluation_args.check_classes(class_map.num_labels, name)
    protocol = evaluation_protocol(model.config, image_processor, evaluation_args)

    def predict(image):
        if not isinstance(image, LargeImage):
            return predict_ids(model, image, protocol, fused_ops)
        if is_universal(model.config):
            raise UserError(
                f"an image of {image.size[1]:,}x{image.size[0]:,} pixels is read in bands, and "
                f"{model.config.model_type} needs the whole: cut it into tiles"
            )
        return predict_bands(model, image, protocol)

    return Predictor(name, describe_model(model), class_map, protocol, predict, model)


def _load_graph(
    name: str, evaluation_args: EvaluationArguments, device: torch.device, revision: str | None
) -> Predictor:
    if revision is not None:
        raise UserError(f"--model_revision {revision} is for models of the Hub, and {name} is a file")
    if not Path(name).is_file():
        raise UserError(f"--model {name}: no such file; export_onnx.py writes one")
    graph = OnnxModel(name, device)
    evaluation_args.check_classes(graph.class_map.num_labels, name)
    graph.set_protocol(evaluation_args)
    network = None if graph.takes_images else graph.network
    return Predictor(name, graph.describe(), graph.class_map, graph.protocol, graph.predict, network)
