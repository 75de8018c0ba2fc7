"""What a step costs on this machine: tried with the model itself, in a process of its own.

    measured = measure_apart(build_model, request)

The process takes its memory along when it ends, and if the system ends it for want of memory, only that size is known
not to fit.
"""

import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import psutil
import torch
import transformers
from transformers import PreTrainedModel

from cli_utils import UserError, one_line
from models.inference import two_class_logits
from models.losses import segmentation_loss
from training.planning import MEMORY_USED, MEMORY_USED_CPU

BATCHES = (2, 4, 8, 16)
TIMED_STEPS, ENOUGH_SECONDS = 3, 2.0


@dataclass(frozen=True)
class Request:
    """What is to be tried.

    Attributes:
        side: of the crop. channels, num_labels: of the data. losses: of `models.arguments.parse_loss`.
        eval_size: height and width of an image (or window) of the evaluation.
        device: torch's type. precision: what autocast takes; None for float32.
        most: images in a step at most. seconds: after which no larger step is begun.
    """

    side: int
    channels: int
    num_labels: int
    losses: tuple[str, ...]
    eval_size: tuple[int, int]
    device: str = "cpu"
    precision: str | None = None
    most: int = 16
    seconds: float = 30.0


@dataclass
class Tried:
    """steps: images → seconds of a step. eval_seconds: of `eval_size`. stride: pixels of the input for each cell of
    the output. limit: why no more images were tried, for a person."""

    steps: dict[int, float]
    eval_seconds: float = 0.0
    stride: int = 4
    limit: str = ""


def measure(model: PreTrainedModel, request: Request) -> Iterator[tuple]:
    """Steps of 2, 4, 8 … images with loss, gradients and AdamW, and an evaluation, on random pixels.

    Yields:
        ("eval", seconds, stride), ("step", images, seconds) and at last ("end", why).
    """
    begin, device = time.perf_counter(), torch.device(request.device)
    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    autocast = nullcontext()
    if request.precision:
        autocast = torch.autocast(device.type, dtype=getattr(torch, request.precision))

    def step(images: int) -> None:
        pixels = torch.randn(images, request.channels, request.side, request.side, device=device)
        labels = torch.randint(request.num_labels, (images, request.side, request.side), device=device)
        with autocast:
            logits = two_class_logits(model(pixel_values=pixels).logits)
        segmentation_loss(logits, labels, request.losses, num_items_in_batch=labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)

    sizes = [size for size in BATCHES if size <= request.most] or [request.most]
    memory, size = [], sizes[0]
    try:
        for size in sizes:
            if len(memory) > 1 and device.type == "cpu":
                # The peak grows with the images in a straight line, and must not be tried where memory ends.
                (few, less), (many, more) = memory[-2:]
                if more + (more - less) / (many - few) * (size - many) > _limit(device):
                    yield "end", f"{size} images would need more than {MEMORY_USED_CPU:.0%} of the free memory"
                    return
            step(size)  # memory is allotted, kernels are chosen
            seconds = sorted(_timed(lambda size=size: step(size)))
            memory.append((size, _peak(device)))
            if memory[-1][1] > _limit(device) and len(memory) > 1:
                yield "end", f"{size} images need more than {MEMORY_USED:.0%} of the free memory"
                return
            yield "step", size, seconds[len(seconds) // 2]
            if size == sizes[0]:
                yield "eval", *_evaluation(model, request, device)
            if time.perf_counter() - begin + 3 * seconds[0] * 2 > request.seconds:
                yield "end", f"larger steps were not tried: {request.seconds:.0f} s are for that"
                return
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and on a CPU there is no other sign
        if "memory" not in str(error).lower():
            raise
        yield "end", f"there is no memory for {size} images"
        return
    yield "end", ""


def _timed(step: Callable[[], None]) -> list[float]:
    seconds = []
    while len(seconds) < TIMED_STEPS and sum(seconds) < ENOUGH_SECONDS:
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def _evaluation(model: PreTrainedModel, request: Request, device: torch.device) -> tuple[float, int]:
    """Seconds of a forward pass, and the stride of the output."""
    pixels = torch.randn(1, request.channels, *request.eval_size, device=device)
    model.eval()
    with torch.inference_mode():
        model(pixel_values=pixels)
        _wait(device)
        begin = time.perf_counter()
        logits = model(pixel_values=pixels).logits
        _wait(device)
    model.train()
    return time.perf_counter() - begin, max(1, round(request.eval_size[0] / logits.shape[-2]))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak(device: torch.device) -> int:
    """Bytes that this process has needed at most."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _limit(device: torch.device) -> float:
    """Bytes that this process may need."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return MEMORY_USED * (free + torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return float("inf")  # what does not fit is an error of its own there
    return MEMORY_USED_CPU * (psutil.virtual_memory().available + psutil.Process().memory_info().rss)


# ---- in a process of its own ----------------------------------------------------------------------------------------


def measure_apart(build_model: Callable[[], PreTrainedModel], request: Request) -> Tried:
    """What `measure` finds, in a process of its own.

    build_model: can be pickled.

    Raises:
        UserError: not even the smallest step fits; or what the model says.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(build_model, request, sender), daemon=True)
    process.start()
    sender.close()
    tried, error = Tried({}), None
    try:
        while True:
            kind, *facts = receiver.recv()
            if kind == "step":
                tried.steps[facts[0]] = facts[1]
            elif kind == "eval":
                tried.eval_seconds, tried.stride = facts
            elif kind == "error":
                error = facts[0]
            else:
                tried.limit = facts[0]
                break
    except EOFError:  # it has ended without a word
        tried.limit = "the system ended a larger step for want of memory"
    finally:
        receiver.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    if process.exitcode > 0:  # a signal would be negative
        raise UserError(
            f"the process that tries steps did not start (code {process.exitcode}, its words are above); in a program "
            'of your own, call main() below `if __name__ == "__main__":`'
        )
    if error is not None:
        raise error if isinstance(error, UserError) else UserError(f"a step was tried and failed: {one_line(error)}")
    if not tried.steps:
        raise UserError(
            f"a step of {BATCHES[0]} images of {request.side} pixels does not fit into the memory of "
            f"{request.device}: give a smaller --image_size (or --crop_size), or a smaller model"
        )
    return tried


def _measure_and_send(build_model: Callable[[], PreTrainedModel], request: Request, sender) -> None:
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    try:
        for message in measure(build_model(), request):
            sender.send(message)
    except Exception as error:
        sender.send(("error", error if isinstance(error, UserError) else RuntimeError(one_line(error))))
        sender.send(("end", ""))
