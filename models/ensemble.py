"""Several models that predict together: the mean of their probabilities, each at its own temperature, a tile of the
image after the other.

Lakshminarayanan et al. 2017, arXiv 1612.01474. They may be of any architecture and size, and each sees an image as its
own protocol says; their classes are the same.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError
from data.arguments import EvaluationArguments
from data.large_images import LargeImage
from models.banded import band_probabilities, joined
from models.inference import (
    as_passes,
    at_temperature,
    mean_probabilities,
    most_likely,
    protocol_logits,
    rows_of_tile,
)
from models.predictor import Predictor, load_predictor
from models.upsampling import full_precision, tile_rows


def load_ensemble(
    names: Sequence[str],
    evaluation_args: EvaluationArguments,
    device: torch.device,
    revision: str | None = None,
    fused_ops: bool = True,
) -> Predictor:
    """One model, as `models.predictor.load_predictor` gives it, or several in one.

    Raises:
        UserError: as there, or they do not fit together.
    """
    members = []
    for name in names:
        members.append(load_predictor(name, evaluation_args, device, revision, fused_ops))
        check_alike(members[0], members[-1])
    if len(members) == 1:
        return members[0]
    for member in members:
        if member.network is None:
            raise UserError(
                f"{member.name} gives classes, and several models predict by the mean of their probabilities: export "
                "it with --logits, or give the model itself"
            )

    def with_confidence(image):
        bands = _predict_bands(members, image, confidence=True)
        return bands if isinstance(image, LargeImage) else tuple(map(torch.cat, zip(*bands, strict=True)))

    def predict(image):
        bands = (ids for ids, _ in _predict_bands(members, image, confidence=False))
        return bands if isinstance(image, LargeImage) else torch.cat(list(bands))

    return Predictor(
        name=" ".join(names),
        description=f"{len(members)} models: " + "; ".join(member.description for member in members),
        class_map=members[0].class_map,
        protocol=members[0].protocol,
        predict=predict,
        predict_with_confidence=with_confidence,
        network=None,
        needs_whole=next((member.needs_whole for member in members if member.needs_whole), None),
    )


def check_alike(first: Predictor, other: Predictor) -> None:
    """Raises UserError, with the first difference, where two models have other classes or take other images."""

    def facts(one: Predictor) -> Iterator[tuple[str, object]]:
        class_map = one.class_map
        yield "channels", one.protocol.num_channels
        yield "numbers in images", one.protocol.image_dtype
        yield "classes", class_map.num_labels
        for i, value in enumerate(class_map.raw_values):
            yield f"name of class {i}", class_map.id2label[i]
            yield f"value in annotations of class {i} ({class_map.id2label[i]})", value

    for (what, here), (_, there) in zip(facts(first), facts(other), strict=False):
        if here != there:
            raise UserError(
                f"{first.name} and {other.name} cannot predict together; {what}: {here!r} in the one, {there!r} in "
                "the other"
            )


@torch.inference_mode()
def _predict_bands(members: Sequence[Predictor], image, confidence: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Ids and confidence of some rows of an image after the other, as `models.banded.predict_bands`."""
    threshold = members[0].protocol.threshold  # the same flag for all

    def tiles() -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
        for parts in zip(*_probabilities(members, image), strict=True):
            pixels, total = parts[0][0], 0
            for member, (_, probabilities) in zip(members, parts, strict=True):
                total = total + at_temperature(probabilities, member.protocol.temperature).to(device)
            total /= len(members)
            yield pixels, most_likely(total, -1, threshold), total

    width = (image.size if isinstance(image, LargeImage) else tvF.get_size(image))[1]
    device = next(members[0].network.parameters()).device
    with full_precision(device.type):
        yield from joined(tiles(), width, 1.0 if confidence else None)


def _probabilities(members: Sequence[Predictor], image) -> list[Iterator[tuple[tuple[slice, slice], Tensor]]]:
    """Of each member, tiles that are all cut alike."""
    if isinstance(image, LargeImage):
        devices = {next(member.network.parameters()).device for member in members}
        rows = min(tile_rows(image.size, members[0].class_map.num_labels, device) for device in devices)
        return [band_probabilities(member.network, image, member.protocol, rows) for member in members]
    size = tuple(tvF.get_size(image))
    passes = [
        as_passes(protocol_logits(member.network, member.protocol.preprocess(image), member.protocol))
        for member in members
    ]
    rows = min(rows_of_tile(one, size) for one in passes)
    return [mean_probabilities(one, size, rows) for one in passes]
