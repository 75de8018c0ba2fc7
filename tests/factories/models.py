"""A tiny SegFormer on disk, as a run leaves it, and pictures for it."""

import json

import numpy as np
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

NAMES = {0: "wall", 1: "floor", 2: "sky"}
COLORS = [[200, 0, 0], [0, 100, 0], [0, 0, 250]]


def save_model(
    folder, reduce_labels=False, colors=None, names=NAMES, cls=SegformerForSemanticSegmentation, num_channels=3
):
    config = SegformerConfig(
        num_channels=num_channels,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():  # logits that vary from pixel to pixel, so that every class is predicted somewhere
        for name, parameter in model.named_parameters():
            if name.startswith("decode_head") and parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    normalization = {"image_mean": [0.485, 0.456, 0.406, 0.5], "image_std": [0.229, 0.224, 0.225, 0.25]}
    normalization = {key: values[:num_channels] for key, values in normalization.items()}
    SegformerImageProcessor(size=size, do_reduce_labels=reduce_labels, **normalization).save_pretrained(folder)
    if colors:
        entries = [{"id": i, "name": names[i], "color": color} for i, color in enumerate(colors)]
        (folder / "labels.json").write_text(json.dumps(entries))
    return folder


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])
