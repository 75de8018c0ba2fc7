"""A tiny dataset, a tiny model, flags for a run of seconds, and runs in processes of their own without the imports."""

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import SegformerConfig

import run_segmentation
from cli_utils import run_cli

CLASSES = {"0": "background", "1": "disc", "2": "bar"}


def draw_pair(rng, height, width, offset):
    """An image whose colours tell its classes, and its mask: a disc and a bar on a background, one ignored corner."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    mask[(y - rng.integers(10, height - 10)) ** 2 + (x - rng.integers(10, width - 10)) ** 2 < 90] = 1
    mask[:, (left := rng.integers(4, width - 12)) : left + 8] = 2
    colors = np.array([[90, 120, 60], [220, 40, 40], [40, 60, 220]])
    image = np.clip(colors[mask] + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    mask = mask + offset
    mask[:5, :5] = 0 if offset else 255
    return Image.fromarray(image), Image.fromarray(mask)


def make_dataset(folder, ade20k=False, train=6, validation=5):
    """ADE20K layout (annotation 0 ignored, classes from 1), or {train,val}/{images,masks} (classes from 0)."""
    rng = np.random.default_rng(0)
    for split, count in (("training" if ade20k else "train", train), ("validation" if ade20k else "val", validation)):
        images, masks = (
            (folder / "images" / split, folder / "annotations" / split)
            if ade20k
            else (folder / split / "images", folder / split / "masks")
        )
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(count):
            image, mask = draw_pair(rng, 40 + 7 * (i % 3), 64 - 5 * (i % 2), int(ade20k))
            image.save(images / f"{split}_{i}.png")
            mask.save(masks / f"{split}_{i}.png")
    names = folder / "classes.json"
    names.write_text(json.dumps(CLASSES))
    return folder


def save_tiny_config(folder):
    """A SegFormer of 50,000 parameters; returns its `config.json`."""
    SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16
    ).save_pretrained(folder)
    return folder / "config.json"


def flags_for(data, tiny_config):
    """Everything but the output folder and what to do."""
    return [
        *("--from_scratch", str(tiny_config), "--dataset_dir", str(data), "--id2label", str(data / "classes.json")),
        *("--image_size", "64", "--learning_rate", "1e-2", "--num_train_epochs", "3", "--use_cpu", "--seed", "7"),
        *("--logging_steps", "1", "--report_to", "none", "--disable_tqdm", "true"),
    ]


class ForkedRun:
    """`run_segmentation.py` with these flags, in a process group of its own that has imported everything already.

    main: another script's. environment: added to that of this process.
    """

    def __init__(self, argv, log, main=run_segmentation.main, environment=()):
        self.log = Path(log)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid, self.returncode = os.fork(), None
        # In both processes, so that the group is there before either goes on.
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.pid, 0)
        if self.pid == 0:
            code = 99
            os.environ.update(environment)
            try:
                descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
                run_cli(lambda: main([str(word) for word in argv]))
                code = 0
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else 1
            except BaseException:  # noqa: B036 - what the interpreter would do with it
                sys.excepthook(*sys.exc_info())
                code = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self):
        """The return code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=300):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {timeout} s: {self.text()[-2000:]}")
            time.sleep(0.01)
        return self.returncode

    def wait_for(self, condition, timeout=300):
        """Until `condition()` holds, or the run has ended; returns whether it still runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.text()[-2000:]
            time.sleep(0.001)
        return self.poll() is None

    def send(self, signum, everybody=False):
        """A signal to the main process, or to its workers, too, as a terminal does; whether there was anybody."""
        if self.poll() is not None:  # another process may have its number by now
            return False
        (os.killpg if everybody else os.kill)(self.pid, signum)
        return True

    def kill(self):
        """As a lost machine: the main process and its workers at once."""
        if self.send(signal.SIGKILL, everybody=True):
            self.wait()

    def text(self):
        return self.log.read_text() if self.log.exists() else ""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def forked_ranks(count, argv, log, main=run_segmentation.main):
    """So many processes of one run, as a launcher would start them; their logs are LOG0, LOG1 and so on."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [ForkedRun(argv, f"{log}{rank['RANK']}", main, shared | rank) for rank in ranks]
