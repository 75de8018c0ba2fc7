"""A trained model with all that predicting takes: the one way in which `predict.py` and `app.py` load one.

predictor = load_predictor("outputs/mine", EvaluationArguments(), find_device(None))
ids = predictor.predict(image)          # (H, W), as evaluation saw them
ids, confidence = predictor.predict_with_confidence(image)
predictor.class_map.id2label
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from cli_utils import UserError
from data.arguments import EvaluationArguments
from data.classes import ClassMap
from data.large_images import LargeImage
from data.preprocessing import EvaluationProtocol
from models.banded import predict_bands
from models.image_processor import load_image_processor
from models.inference import evaluation_protocol, predict_ids, predict_together, predict_with_confidence
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
        predict_with_confidence: the same → ids, and how likely they are, uint8 (H, W), 255 for certainty;
            `LargeImage` → some rows of both after the other. None: the model gives the classes alone.
        network: what gives logits, on the model's device; None: a graph that takes images, or several models.
        predict_together: images of one size → a list of ids; None: `predict` has to take one by one.
        needs_whole: why a `LargeImage` cannot be predicted; None where it can.
    """

    name: str
    description: str
    class_map: ClassMap
    protocol: EvaluationProtocol
    predict: Callable
    predict_with_confidence: Callable | None
    network: nn.Module | None
    predict_together: Callable | None = None
    needs_whole: str | None = None

    def check_size(self, name, size: tuple[int, int]) -> None:
        """Raises UserError where an image of this height and width, which is read in bands, cannot be predicted."""
        if self.needs_whole:
            raise UserError(f"{name} ({size[1]:,}x{size[0]:,} pixels) is read in bands, and {self.needs_whole}")


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

    return _of_network(name, describe_model(model), class_map, protocol, model, fused_ops)


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
    if not graph.takes_images:
        return _of_network(name, graph.describe(), graph.class_map, graph.protocol, graph.network)
    with_confidence = graph.predict_with_confidence if graph.has_confidence else None
    why = f"{name} takes images whole: export the model with --logits, or give the model itself"
    return Predictor(
        name,
        graph.describe(),
        graph.class_map,
        graph.protocol,
        graph.predict_ids,
        with_confidence,
        None,
        needs_whole=why,
    )


def _of_network(
    name: str,
    description: str,
    class_map: ClassMap,
    protocol: EvaluationProtocol,
    network: nn.Module,
    fused_ops: bool = True,
) -> Predictor:
    def predict(image):
        if isinstance(image, LargeImage):
            return (ids for ids, _ in predict_bands(network, image, protocol))
        return predict_ids(network, image, protocol, fused_ops)

    def with_confidence(image):
        if isinstance(image, LargeImage):
            return predict_bands(network, image, protocol, confidence=True)
        return predict_with_confidence(network, image, protocol, fused_ops)

    why = f"{name} predicts masks, for which it needs the whole image: cut it into tiles"
    needs_whole = why if protocol.output == "queries" else None
    together = partial(predict_together, network, protocol=protocol, fused_ops=fused_ops)
    return Predictor(
        name, description, class_map, protocol, predict, with_confidence, network, together, needs_whole=needs_whole
    )
