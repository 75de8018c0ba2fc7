"""A file of `export_onnx.py`: what it says of itself, and predicting with it through ONNX Runtime (optional).

model = OnnxModel("model.onnx")
ids = model.predict_ids(image)        # (H, W), as `models.inference.predict_ids` of the PyTorch model
"""

import json
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError, check_installed, one_line, shorten
from data.arguments import EvaluationArguments
from data.classes import ClassMap
from data.preprocessing import EvaluationProtocol
from models.geometry import InputGeometry
from models.inference import predict_ids

# Names in the graph.
IMAGE, PIXEL_VALUES, LOGITS, IDS, CONFIDENCE = "image", "pixel_values", "logits", "ids", "confidence"
# What a file says of itself, in its metadata; all values are text, those of several numbers JSON.
FORMAT = "1"
KEYS = ("format", "class_names", "class_colors", "annotation_values", "annotation_map", "protocol", "protocol_values")


def metadata(class_map: ClassMap, protocol: EvaluationProtocol) -> dict[str, str]:
    """What a file says of its classes and of how images are shown to it. `protocol` is for people, all else for
    programs: names, colours and values in annotation files in the order of the ids."""
    return {
        "format": FORMAT,
        "class_names": json.dumps([name for _, name in sorted(class_map.id2label.items())], ensure_ascii=False),
        "class_colors": json.dumps(class_map.colors().tolist()),
        "annotation_values": json.dumps(class_map.raw_values),
        "annotation_map": json.dumps(class_map.to_config()),
        "protocol": protocol.describe(),
        "protocol_values": json.dumps(asdict(protocol)),
    }


class OnnxModel:
    """A graph on ONNX Runtime, and what its metadata say.

    Attributes:
        class_map: its classes. protocol: how images are shown to it.
        takes_images: whether it takes images of any size and gives classes; else it takes what the protocol makes of
            an image and gives logits, and the protocol is carried out here.

    Args:
        file: a path, or the content of one.
        device: of torch; of "cuda" the first GPU, where onnxruntime-gpu is installed.

    Raises:
        UserError: it cannot be read, or `export_onnx.py` did not write it.
    """

    def __init__(self, file: str | Path | bytes, device: str | torch.device | None = None):
        check_installed("an ONNX file", "onnxruntime")
        import onnxruntime

        self.name = "the graph" if isinstance(file, bytes) else str(file)
        providers = [name for name in ("CPUExecutionProvider",) if name in onnxruntime.get_available_providers()]
        if device is not None and torch.device(device).type == "cuda":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise UserError(f"--device {device}: this onnxruntime has no CUDA: pip install onnxruntime-gpu")
            providers.insert(0, "CUDAExecutionProvider")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            source = file if isinstance(file, bytes) else str(file)
            self.session = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:  # its errors have no common class
            raise UserError(f"{self.name} cannot be read by ONNX Runtime: {one_line(error)}") from None
        said = self.session.get_modelmeta().custom_metadata_map
        missing = [key for key in KEYS if key not in said]
        if missing:
            raise UserError(
                f"{self.name} is an ONNX file, but not one of export_onnx.py: its metadata lack "
                f"{shorten(missing, 9)}, so nobody can tell how to show images to it and what its outputs mean"
            )
        if said["format"] != FORMAT:
            raise UserError(
                f"{self.name} has format {said['format']}, this version reads {FORMAT}: export the model again"
            )
        try:
            names, colors = json.loads(said["class_names"]), json.loads(said["class_colors"])
            self.class_map = ClassMap.from_config(json.loads(said["annotation_map"]), dict(enumerate(names)), colors)
            values = json.loads(said["protocol_values"])
            known = {field.name for field in fields(EvaluationProtocol)}
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            self.protocol = EvaluationProtocol(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"the metadata of {self.name} are damaged: {one_line(error)}; export the model again"
            ) from None
        self.takes_images = self.session.get_inputs()[0].name == IMAGE
        self.has_confidence = CONFIDENCE in [output.name for output in self.session.get_outputs()]

    @cached_property
    def network(self) -> nn.Module:
        """For `models.inference`, of a graph that gives logits."""
        return _Network(self)

    def set_protocol(self, args: EvaluationArguments) -> None:
        """What the flags ask for, as `models.inference.evaluation_protocol` does.

        Raises:
            UserError: the graph does something else by itself.
        """
        old = self.protocol
        if self.takes_images:
            if args != EvaluationArguments():
                raise UserError(
                    f"{self.name} resizes images and finds the classes by itself ({old.describe()}): leave out "
                    "--image_size, --slide_crop, --eval_scales, --eval_flip and --threshold, or export the model with "
                    "them; one exported with --logits takes them all here"
                )
            return
        if args == EvaluationArguments():
            return
        geometry = InputGeometry(old.size_divisor, old.square, old.short_side if old.square else None)
        side = geometry.fit(args.image_size or old.short_side)
        self.protocol = replace(old, short_side=side, **args.options(side))

    def describe(self) -> str:
        """What goes in and what comes out."""
        ports = (self.session.get_inputs(), self.session.get_outputs())
        sides = (
            ", ".join(f"{port.name} {port.type[7:-1]} ({', '.join(map(str, port.shape))})" for port in side)
            for side in ports
        )
        return " → ".join(sides)

    def run(self, values: np.ndarray) -> list[np.ndarray]:
        """The graph's outputs for its one input."""
        return self.session.run(None, {self.session.get_inputs()[0].name: values})

    def predict_ids(self, image: Image.Image | Tensor) -> Tensor:
        """RGB image, or uint8 (C, H, W) → integer tensor (H, W) of training ids at the image's own size."""
        if not self.takes_images:
            return predict_ids(self.network, image, self.protocol)
        return self._outputs(image)[0]

    def predict_with_confidence(self, image: Image.Image | Tensor) -> tuple[Tensor, Tensor]:
        """As `predict_ids`, and what the graph says of its confidence, uint8 (H, W), where it does."""
        ids, confidence = self._outputs(image)
        return ids, confidence

    def _outputs(self, image: Image.Image | Tensor) -> list[Tensor]:
        """Of a graph that takes images, for one of them."""
        tensor = image if isinstance(image, Tensor) else tvF.pil_to_tensor(image)
        return [torch.from_numpy(part[0]) for part in self.run(tensor.permute(1, 2, 0)[None].contiguous().numpy())]


class _Network(nn.Module):
    """What `models.inference` asks of a network."""

    def __init__(self, model: OnnxModel):
        super().__init__()
        self.device_of_inputs = nn.Parameter(torch.empty(0), requires_grad=False)
        self.run = partial(model.run)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.from_numpy(self.run(pixel_values.contiguous().numpy())[0]))
