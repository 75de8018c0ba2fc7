"""The C++ of this folder, which does on CPUs what takes torch's operations many passes over large tensors.

It is compiled for this processor at its first use, in a few seconds, by the C++ compiler that `CXX` names or that is
found, and kept. Where there is none torch's operations do the same work, and a line of the log says so; `CXX=none`
asks for them.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from cli_utils import one_line

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("tile_kernel.cpp", "mix_ffn_kernel.cpp", "head_kernel.cpp"))
HEADERS = (FOLDER / "exponential.h",)
COMPILERS = ("g++", "clang++", "c++")
# What is not here would change results: reassociation is allowed loop by loop, in the source.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
SHARED = ("-shared", "-fPIC")
MINUTE = 60.0


def suits(tensor: Tensor) -> bool:
    """Whether there are kernels, and they are for this tensor: float32 on a CPU, and no stand-in of a tracer."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and library() is not None
    )


def run(kernel: str, given: ctypes.Structure, *numbers: int, count: int) -> None:
    """Calls a kernel with given, numbers, and first and last of a run of 0 to count, in as many threads as torch has.

    Raises:
        MemoryError: if there is no memory for the kernel's own.
    """
    function, threads = getattr(library(), kernel), max(1, min(count, torch.get_num_threads()))
    bounds = [count * part // threads for part in range(threads + 1)]

    def work(first: int, last: int) -> int:
        return function(ctypes.byref(given), *map(ctypes.c_int64, (*numbers, first, last)))

    # Threads of Python, as a kernel runs without its lock.
    if any(map(work, bounds, bounds[1:]) if threads == 1 else _threads(threads).map(work, bounds, bounds[1:])):
        raise MemoryError(f"no memory for {kernel}")


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


# A forked process has the pools, but none of their threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None, with a line in the log, where there is none."""
    if sys.platform != "linux":
        reason = "it was not tried on this system"
    else:
        try:
            return ctypes.CDLL(str(_compiled()))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # the second: a user without a home
            reason = one_line(getattr(error, "stderr", None) or error)
    logger.info(f"no compiled kernels, and all takes longer without: {reason}")
    return None


def _compiled() -> Path:
    """The library's file, compiled if it is not there yet. Raises OSError or SubprocessError."""
    compiler = shlex.split(os.environ.get("CXX", "")) or list(filter(None, map(shutil.which, COMPILERS)))[:1]
    if not compiler:
        raise OSError(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    if shutil.which(compiler[0]) is None:
        raise OSError(f"CXX names {compiler[0]}, which is no program here")
    command = [*compiler, *FLAGS, *SHARED]
    made_of = (*(file.read_text(encoding="utf-8") for file in (*SOURCES, *HEADERS)), *command, _processor())
    name = f"kernels_{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    file = folder / "fine_tune_segformer" / name
    if file.is_file() and file.stat().st_uid in (0, os.getuid()):  # nobody else's code
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as aside:
        made = Path(aside, name)
        subprocess.run(
            [*command, *map(str, SOURCES), "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
            timeout=5 * MINUTE,
        )
        made.replace(file)  # other processes may be about to do the same
    return file


def _processor() -> str:
    """What `-march=native` goes by: homes are shared by machines with other processors."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return repr([line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))][:3])
