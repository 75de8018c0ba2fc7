"""Upsampling, argmax, softmax, cross-entropy and its gradient on a CPU in one compiled pass over the pixels.

The kernel is `tile_kernel.cpp`. Where it cannot be compiled (`models.compiled`), or what is asked for is not for it
(`TileKernel.of`), the tiles of `models.upsampling` do the same work by torch's own operations.
"""

import ctypes

import torch
from torch import Tensor

from models import compiled


def bilinear_positions(
    input_size: int, output_size: int, output: slice = slice(None), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Of a run of one axis of bilinear interpolation, `align_corners=False`: the input rows before the output rows,
    int64, and how far these are from there to the next input row, if there is one; on the CPU.

    Worked out as `torch.nn.functional.interpolate` does, in the dtype of the result.
    """
    position = (torch.arange(output_size, dtype=dtype)[output] + 0.5) * (input_size / output_size) - 0.5
    position = position.clamp(min=0)
    low = position.long().clamp(max=input_size - 1)
    return low, position - low


class _Image(ctypes.Structure):
    """`Image` of the source, name by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("height", "width", "classes", "columns")),
        *((name, ctypes.c_void_p) for name in ("logits", "first_row", "row_fraction", "column", "column_fraction")),
        *((name, ctypes.c_void_p) for name in ("target", "valid", "label_weight", "class_weight")),
        ("class_weight_sum", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("loss", "gradient", "prediction")),
    ]


class TileKernel:
    """The kernel for logits (B, C, h, w) that are bilinearly upsampled to (H, W), `align_corners=False`.

    It makes the same sums in the same order whatever the number of threads.
    """

    def __init__(self, logits: Tensor, size: tuple[int, int]):
        self._logits = logits.detach().permute(0, 2, 3, 1).to(torch.float32).contiguous()
        (height, width), self._size = self._logits.shape[1:3], size
        rows, self._row_fraction = bilinear_positions(height, size[0])
        columns, self._column_fraction = bilinear_positions(width, size[1])
        self._first_row = torch.searchsorted(rows, torch.arange(height + 1))
        self._column = columns.to(torch.int32)

    @classmethod
    def of(cls, logits: Tensor, size: tuple[int, int]) -> "TileKernel | None":
        """None where it cannot be compiled, and for logits that are on no CPU, float64 or not finite, which it does
        not look for."""
        if logits.device.type != "cpu" or logits.dtype == torch.float64 or not logits.numel():
            return None
        if compiled.library() is None or not all(
            bound.isfinite() for bound in logits.detach().permute(0, 2, 3, 1).aminmax()
        ):
            return None
        return cls(logits, size)

    def argmax(self, image: int) -> Tensor:
        """Most likely classes of an image, int32 (H, W); the first one where several are."""
        prediction = torch.empty(self._size, dtype=torch.int32)
        self._run(image, prediction=prediction)
        return prediction

    def argmax_and_loss(self, image: int, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and -log p of the target, float32 (H, W), 0 where no pixel is valid. target, int64, and valid,
        bool, are (H, W)."""
        prediction, loss = torch.empty(self._size, dtype=torch.int32), torch.empty(self._size)
        ones = torch.ones(self._size)
        self._run(image, prediction=prediction, loss=loss, target=target, valid=valid, label_weight=ones)
        return prediction, loss

    def loss(
        self,
        image: int,
        target: Tensor,
        valid: Tensor,
        label_weight: Tensor,
        class_weight: Tensor | None,
        gradient: Tensor | None,
    ) -> Tensor:
        """`label_weight * -log p[target] + sum_c class_weight[c] * -log p[c]` of the valid pixels of an image, float32
        (H, W), and 0 at others.

        Args:
            target, valid, label_weight: (H, W), int64, bool and float32.
            class_weight: float32 (C,); None for zeros.
            gradient: float32 (h, w, C), contiguous, to which that of the sum is added; None: it is not asked for.
        """
        loss = torch.empty(self._size)
        given = {"target": target, "valid": valid, "label_weight": label_weight, "class_weight": class_weight}
        self._run(image, loss=loss, gradient=gradient, **given)
        return loss

    def _run(self, image: int, **tensors: Tensor | None) -> None:
        """Works on one image of the batch. tensors: of `_Image`, by name; what is written to is contiguous."""
        height, width, classes = self._logits.shape[1:]
        tensors |= {
            "logits": self._logits[image],
            "first_row": self._first_row,
            "row_fraction": self._row_fraction,
            "column": self._column,
            "column_fraction": self._column_fraction,
        }
        # Kept until the kernel has run.
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        weight_sum = float(tensors["class_weight"].sum()) if "class_weight" in tensors else 0.0
        image_of = _Image(height, width, classes, self._size[1], class_weight_sum=weight_sum, **addresses)

        # Two threads that worked on neighbouring rows would add to one row of the gradient at a time.
        for parity in (0, 1):
            compiled.run("tile_kernel", image_of, parity, count=-(-(height - parity) // 2))
