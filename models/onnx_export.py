"""From a trained model to an ONNX graph, and whether the graph still says what the model says.

    graph = export_network(model, protocol)                # pixel values → logits
    graph = with_images(graph, protocol, confidence=True)  # uint8 images of any size → class of every pixel

Needs onnx and onnxscript (optional).
"""

import copy
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.compose import add_prefix, merge_graphs
from onnx.inliner import inline_local_functions
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedModel
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer

from cli_utils import UserError, one_line
from data.preprocessing import MAX_ASPECT_RATIO, EvaluationProtocol
from models.configurations import is_universal
from models.fused_segformer import fold_decode_head
from models.inference import class_shift, predicted_ids, protocol_logits, two_class_logits
from models.onnx_model import CONFIDENCE, IDS, IMAGE, LOGITS, PIXEL_VALUES
from models.onnx_operators import OPSET, class_ids, class_ids_and_confidence, protocol_input
from models.upsampling import TiledUpsampling

logger = logging.getLogger(__name__)
# In which numbers a graph works, and which share of the pixels may have another class than the model gives them,
# besides those where the two classes tie.
MAX_DIFFERENT = {"float32": 0.0, "float16": 0.005, "int8": 0.05}
# Two classes tie where their logits differ by less than this share of the image's largest; float32 has 1e-7, and about
# a hundred layers.
TIE = {"float32": 1e-4, "float16": 2e-2, "int8": 1e-4}


# ---- the network ----------------------------------------------------------------------------------------------------


class _Network(nn.Module):
    """Pixel values (B, C_in, h, w) → float32 logits (B, C, h', w'), of two classes or more."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits = self.model(pixel_values=pixel_values.to(self.model.dtype)).logits
        return two_class_logits(logits).float()


class _AveragePooling(nn.AdaptiveAvgPool2d):
    """Its superclass as two matrix products: of that, torch makes a graph that is right for the sides of the example
    alone (test_adaptive_pooling_still_fails tells when this can go)."""

    def forward(self, maps: Tensor) -> Tensor:
        sizes = self.output_size if isinstance(self.output_size, tuple | list) else (self.output_size,) * 2
        rows, columns = (_averages(length, size, maps) for length, size in zip(maps.shape[-2:], sizes, strict=True))
        return rows @ maps @ columns.T


def _averages(length: int, size: int, like: Tensor) -> Tensor:
    """Weights (size, length): output i is the mean of the inputs from floor(i length / size) to
    ceil((i + 1) length / size), as torch has it."""
    place, output = torch.arange(length, device=like.device), torch.arange(size, device=like.device)[:, None]
    first, stop = output * length // size, -(-(output + 1) * length // size)
    return ((first <= place) & (place < stop)).to(like.dtype) / (stop - first).to(like.dtype)


class _PatchesOfAnySize(MobileViTLayer):
    """Its superclass in whole numbers alone: that rounds sides with `math.ceil`, of which torch makes constants."""

    def unfolding(self, features: Tensor) -> tuple[Tensor, dict]:
        """Maps (B, C, h, w) → patches (B · pixels of one, patches, C), and what `folding` asks for."""
        batch, channels, *sides = features.shape
        patch = self.patch_height, self.patch_width
        # Not with negative numbers, which ONNX rounds towards zero.
        rows, columns = ((side + pixels - 1) // pixels for side, pixels in zip(sides, patch, strict=True))
        # Does nothing where the sides are multiples already.
        resized = F.interpolate(features, size=(rows * patch[0], columns * patch[1]), mode="bilinear")
        cut = resized.reshape(batch, channels, rows, patch[0], columns, patch[1]).permute(0, 3, 5, 2, 4, 1)
        return cut.reshape(batch * math.prod(patch), rows * columns, channels), {
            "orig_size": tuple(sides),
            "batch_size": batch,
            "channels": channels,
            "interpolate": True,
            "num_patches": rows * columns,
            "num_patches_width": columns,
            "num_patches_height": rows,
        }


def exportable(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU whose modules exporters can translate, in evaluation mode."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    fold_decode_head(model)
    for module in model.modules():
        # Not another module in its place, as UperNet keeps its own list of them.
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1), None):
            module.__class__ = _AveragePooling
        if type(module) is MobileViTLayer:
            module.__class__ = _PatchesOfAnySize
    return model


def _traced(network: nn.Module, example: Tensor, sides: dict) -> dict:
    """What `torch.onnx.export` is given: the network traced with its sides free; where the network decides by them, as
    MobileNet V2 pads, the network itself, for the exporter's other ways. What these get wrong the comparison finds."""
    try:
        return {"model": torch.export.export(network, (example,), dynamic_shapes=[sides], strict=False)}
    except torch._dynamo.exc.UserError:
        return {"model": network, "args": (example,), "dynamic_shapes": [sides]}


@contextmanager
def _free_sides(network: nn.Module) -> Iterator[None]:
    """`transformers.utils.torch_int` keeps what an exporter follows, as its docstring has it, also where that is
    torch.export, of which it does not know: it would make constants of the example's sides
    (test_torch_int_still_makes_constants tells when this can go)."""

    def torch_int(value):
        return value if isinstance(value, torch.SymInt) else int(value)

    with ExitStack() as replaced:
        for module in {sys.modules[type(part).__module__] for part in network.modules()}:
            if hasattr(module, "torch_int"):
                replaced.enter_context(mock.patch.object(module, "torch_int", torch_int))
        yield


def export_network(model: PreTrainedModel, protocol: EvaluationProtocol, half: bool = False) -> ModelProto:
    """The graph from normalised pixel values (B, C_in, h, w) to logits (B, C, h', w'), both float32.

    Batch, height and width are free, for architectures that take squares only the batch.

    half: weights and arithmetic in float16.

    Raises:
        UserError: the architecture cannot be exported.
    """
    kind = model.config.model_type
    if is_universal(model.config):
        raise UserError(
            f"{kind} cannot be exported: its pixels get scores from masks with classes, which these graphs do not sum "
            "up; predict.py runs the model as it is"
        )
    copied = exportable(model)
    network = _Network(copied.half() if half else copied).eval()
    # Sides that differ, and are no square or small multiple, so that nothing is taken for a constant.
    divisor = protocol.size_divisor
    shortest = max(1, math.ceil(64 / divisor))
    height, width = (protocol.short_side,) * 2 if protocol.square else (2 * shortest * divisor, 3 * shortest * divisor)
    dynamic = torch.export.Dim.DYNAMIC
    sides = {0: dynamic} if protocol.square else {0: dynamic, 2: dynamic, 3: dynamic}
    example = torch.zeros(2, protocol.num_channels, height, width)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet(), _free_sides(network):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                **_traced(network, example, sides),
                dynamo=True,
                input_names=[PIXEL_VALUES],
                output_names=[LOGITS],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter's own errors are many, and none says what a user can do
        raise UserError(
            f"{kind} cannot be exported to ONNX by torch {torch.__version__}: {one_line(error)[:200]}; predict.py and "
            "pipeline() run it as it is"
        ) from error
    graph = program.model_proto
    _name_dimensions(graph.graph.input[0], ["batch", None, "height", "width"])
    _name_dimensions(graph.graph.output[0], ["batch", None, "low_height", "low_width"])
    return graph


class _quiet:
    """No progress of torch's exporter on the terminal: what it cannot do it raises."""

    def __enter__(self):
        self.level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_):
        logging.disable(self.level)


def _name_dimensions(value: onnx.ValueInfoProto, names: list[str | None]) -> None:
    """Names the dimensions that are free."""
    for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
        if not dimension.HasField("dim_value") and name:
            dimension.dim_param = name


# ---- from images to classes -----------------------------------------------------------------------------------------


def with_images(network: ModelProto, protocol: EvaluationProtocol, confidence: bool = False) -> ModelProto:
    """The graph from uint8 images (B, H, W, C_in) to the class of every pixel, uint8 (B, H, W), around a network.

    All is inside: the resizing of the protocol, normalisation, upsampling and argmax. confidence: a second output, the
    probability of that class at the protocol's temperature, uint8 (B, H, W), 255 for certainty.
    """
    square = protocol.square
    side = protocol.short_side
    channels = list(range(protocol.num_channels))
    if protocol.flip_channels:
        channels[:3] = channels[2::-1]
    before = _with_constants(
        protocol_input.to_model_proto(),
        {
            # Of a square both sides are what they have to be at least.
            "limits": np.array([1, 1] if square else [side, MAX_ASPECT_RATIO * side]),
            "divisor": np.array([1 if square else protocol.size_divisor]),
            "least": np.array([side if square else protocol.size_divisor]),
            "channels": np.array(channels),
            "mean": np.array(protocol.image_mean, np.float32),
            "std": np.array(protocol.image_std, np.float32),
        },
    )
    num_classes = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    shift = class_shift(protocol.threshold) if protocol.threshold != 0.5 else torch.zeros(num_classes)
    if confidence:
        constants = {"shift": shift.numpy(), "temperature": np.array([protocol.temperature], np.float32)}
        after = _with_constants(class_ids_and_confidence.to_model_proto(), constants)
    else:
        after = inline_local_functions(class_ids.to_model_proto())
    network = _shifted(network, shift) if protocol.threshold != 0.5 else network
    shown, logits, classes = (
        add_prefix(part, prefix).graph
        for part, prefix in ((before, "input/"), (network, "network/"), (after, "classes/"))
    )
    whole = merge_graphs(shown, logits, [(shown.output[0].name, logits.input[0].name)])
    whole = merge_graphs(whole, classes, [(logits.output[0].name, f"classes/{LOGITS}")])
    outputs = [IDS, CONFIDENCE][: len(whole.output)]
    names = {f"{part}/image": IMAGE for part in ("input", "classes")}
    names |= {value.name: name for value, name in zip(whole.output, outputs, strict=True)}
    for node in whole.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del whole.input[:], whole.output[:]
    whole.value_info.append(logits.output[0])  # else ONNX Runtime does not know how many axes there are
    sides = ["batch", "height", "width"]
    whole.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [*sides, protocol.num_channels]))
    whole.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, sides) for name in outputs)
    return helper.make_model(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=network.ir_version, producer_name="pytorch"
    )


def _with_constants(model: ModelProto, constants: dict[str, np.ndarray]) -> ModelProto:
    """A graph some of whose inputs are constants, and without functions of its own."""
    model = inline_local_functions(model)
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def _shifted(network: ModelProto, shift: Tensor) -> ModelProto:
    """Logits to which a constant of each class is added, as `models.inference.predicted_ids` does for a threshold."""
    shifted = ModelProto()
    shifted.CopyFrom(network)
    output = shifted.graph.output[0]
    shifted.graph.initializer.append(numpy_helper.from_array(shift[:, None, None].numpy(), "shift"))
    shifted.graph.node.append(helper.make_node("Add", [output.name, "shift"], ["shifted_logits"]))
    output.name = "shifted_logits"
    return shifted


# ---- eight bits -----------------------------------------------------------------------------------------------------


def quantized(network: ModelProto, pixel_values: Iterable[Tensor]) -> ModelProto:
    """A network whose convolutions and matrix products multiply 8-bit integers, through ONNX Runtime.

    pixel_values: what is shown to the network of some images, each (C_in, h, w); the ranges of its activations are
    those that occur there.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.values = iter(pixel_values)

        def get_next(self):
            values = next(self.values, None)
            return None if values is None else {PIXEL_VALUES: values[None].numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(network, source)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            # Seven bits for weights: processors without VNNI add pairs of products in 16 bits, which would overflow.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


# ---- does it say the same? ------------------------------------------------------------------------------------------


@dataclass
class Agreement:
    """How many pixels of some images have the same class in a model and its graph, one of two that tie, or another."""

    pixels: int = 0
    ties: int = 0
    different: int = 0
    images: int = 0

    @property
    def share_different(self) -> float:
        return self.different / max(1, self.pixels)

    def describe(self) -> str:
        same = self.pixels - self.ties - self.different
        return (
            f"{same:,} of {self.pixels:,} pixels of {self.images} images have the same class in PyTorch and in ONNX "
            f"Runtime, {self.ties:,} one of two classes that tie, {self.different:,} another one "
            f"({self.share_different:.3%})"
        )

    @torch.inference_mode()
    def add(
        self,
        model: PreTrainedModel,
        protocol: EvaluationProtocol,
        image: Image.Image | Tensor,
        found: Tensor,
        tie: float,
    ) -> Tensor:
        """Counts an image and returns what the model predicts for it, (H, W).

        found: integer (H, W), what the graph predicts. tie: difference of two logits, as a share of the largest.
        """
        size = tuple(tvF.get_size(image))
        logits = protocol_logits(model, protocol.preprocess(image), protocol)
        expected = predicted_ids(logits, size, threshold=protocol.threshold).cpu()
        if protocol.threshold != 0.5:
            logits = logits.float() + class_shift(protocol.threshold, logits.device)[:, None, None]
        differs = expected != found
        ties, limit = 0, tie * float(logits.abs().max())
        upsampling = TiledUpsampling(logits, size)
        for tile in upsampling.tiles(0) if differs.any() else ():
            where = differs[tile.pixels]
            if where.any():
                scores = tile.logits.cpu()[where]
                both = torch.stack([expected[tile.pixels][where], found[tile.pixels][where]], dim=1).long()
                ties += int((scores.gather(1, both).diff(dim=1).abs() <= limit).sum())
        self.images += 1
        self.pixels += differs.numel()
        self.ties += ties
        self.different += int(differs.sum()) - ties
        return expected
