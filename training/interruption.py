"""SIGTERM and Ctrl-C while a model trains: the step is finished, a checkpoint saved, and the program ends.

Source of the way: a flag that the signal sets, read at the end of a step, in all processes at once, so that what is
saved is what any checkpoint of that step is. A run that goes on from it is bit for bit the run that was not stopped.
"""

import atexit
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from cli_utils import Interrupted, UserError, handling_signals, kill_children
from training.checkpoints import newest_checkpoint


def deaf(loader: DataLoader) -> DataLoader:
    """A data loader, in place, whose workers take no notice of signals: a terminal, a launcher and a batch system send
    them to all processes, and the main one still needs its workers for the step. It ends them itself.

    torch sets a handler of its own as a worker starts; what `worker_init_fn` does comes after it. Workers that are
    kept from epoch to epoch are still there when the program ends: multiprocessing would send them SIGTERM and wait
    for ever, so they are killed before it comes to that (what is registered last at exit comes first).
    """
    atexit.unregister(kill_children)
    atexit.register(kill_children)
    asked = getattr(loader, "base_dataloader", loader)  # accelerate wraps the one that has the workers
    if getattr(asked.worker_init_fn, "func", None) is not _ignore_signals:  # a loader that is kept comes here again
        asked.worker_init_fn = partial(_ignore_signals, then=asked.worker_init_fn)
    if asked.persistent_workers and asked.generator is None:
        # An iterator that starts draws a seed for its workers, which persistent ones do once and a run that goes on
        # once more: not from the generator that dropout draws from.
        asked.generator = torch.Generator()
    return loader


def _ignore_signals(worker: int, then: Callable | None) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if then is not None:
        then(worker)


@contextmanager
def lost_workers_named(trainer) -> Iterator[None]:
    """Raises UserError where the system kills a data loader's worker while the context lasts; torch has no kind of
    error of its own for it."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w+))?", str(error))
        if found is None:
            raise
        shared = "shared memory (/dev/shm; of a container: --shm-size) or " if "shared memory" in str(error) else ""
        checkpoint = newest_checkpoint(trainer.args.output_dir)
        raise UserError(
            f"a worker that loads images was killed after step {trainer.state.global_step} (process {found[1]}"
            f"{f', {found[2]}' if found[2] else ''}), mostly as {shared}memory ran out: give "
            f"--dataloader_num_workers fewer than {trainer.args.dataloader_num_workers}, or smaller batches"
            + (f"; to go on from {checkpoint}: --resume_from_checkpoint last" if checkpoint else "")
        ) from None


class Interruption(TrainerCallback):
    """Within `awaited`, the first SIGTERM or SIGINT lets the Trainer save after the step and raises `Interrupted`.

    Where an evaluation is due after the step it is done first, as it would have been without the signal; else the run
    that goes on would lack it. A second signal ends the process at once.
    """

    def __init__(self):
        self.signum = 0  # that this process was sent, or in the end any
        self.awaiting = False  # within `awaited`
        self.leaving = False  # with the next checkpoint

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """While the context lasts signals are noted. Raises Interrupted at its end for one that nothing came after."""
        owner = os.getpid()

        def note(signum, frame):
            if os.getpid() != owner:  # a worker that is just starting; see `deaf`
                return
            if self.signum:
                os._exit(128 + signum)
            self.signum = signum
            if int(os.environ.get("LOCAL_RANK", 0)) <= 0:
                name = signal.Signals(signum).name
                # Not through the log, which may be what was interrupted.
                os.write(2, f"\n{name}: this step is finished and saved; once more to leave at once\n".encode())

        self.awaiting = True
        try:
            with handling_signals(note):
                yield
        finally:
            self.awaiting = False
        if self.signum:
            raise Interrupted(self.signum)

    def on_step_end(self, args, state, control, **kwargs):
        # What ends an epoch, or training, may be followed by an evaluation; see `on_epoch_end`.
        last = control.should_training_stop or float(state.epoch).is_integer()
        if self._agreed(args) and not last:
            self._stop(args, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._agreed(args):
            self._stop(args, control)

    def on_evaluate(self, args, state, control, **kwargs):
        if self._agreed(args):
            self._stop(args, control)

    def on_save(self, args, state, control, **kwargs):
        if self.leaving:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            raise Interrupted(
                self.signum,
                f"interrupted after step {state.global_step}, which {checkpoint} holds; to go on: the same command "
                "with --resume_from_checkpoint last",
            )

    def _agreed(self, args) -> bool:
        """Whether any process was sent a signal; the same answer in all."""
        if not self.awaiting:  # in an evaluation after training
            return False
        signum = torch.tensor([self.signum], device=args.device)
        if args.world_size > 1:
            signum = gather(signum)
        self.signum = int(signum.max())
        return self.signum > 0

    def _stop(self, args, control) -> None:
        args.save_only_model = False
        control.should_save = self.leaving = True
