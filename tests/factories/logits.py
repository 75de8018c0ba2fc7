"""Random logits and labels for the tiled operations, what stock torch makes of them, and how large tensors get."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# input (h, w), output (H, W): scale 4, fractional, down, odd, one pixel in, one pixel out, equal, mixed
SIZES = [
    ((8, 8), (32, 32)),
    ((5, 7), (13, 31)),
    ((9, 12), (4, 5)),
    ((7, 3), (29, 17)),
    ((1, 1), (5, 3)),
    ((6, 4), (1, 1)),
    ((6, 5), (6, 5)),
    ((3, 16), (50, 7)),
]


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def stock_loss(logits, labels, ignore_index=255, **options):
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=ignore_index, **options)


def random_case(input_size, output_size, num_classes=6, batch_size=2, dtype=torch.float64, ignored=0.3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch_size, num_classes, *input_size, generator=generator, dtype=dtype) * 3
    labels = torch.randint(0, num_classes, (batch_size, *output_size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    labels[0, 0, 0] = 0  # at least one valid pixel
    return logits.requires_grad_(), labels


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns, or of the one it is a view of."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result
