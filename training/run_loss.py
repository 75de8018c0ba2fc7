"""The training loss of a whole run. The Trainer's own starts anew with every resume."""

import torch
from accelerate.utils import gather


class RunLoss:
    """Sums the losses of optimizer steps, as the Trainer does, and keeps the sum over interruptions.

    Its methods but `add` talk to the other processes, so all must call them.

    Attributes:
        total: of all steps up to the last log entry, mean over processes.
        window: of this process, of the steps since then; float32, a scalar.
        logged_at: step of the last log entry.
    """

    def __init__(self, device: torch.device, state: dict | None = None, process: int = 0, processes: int = 1):
        """state: what `state()` returned in the run that is gone on with. Where there were another number of
        processes, each takes the mean of their windows."""
        state = state or {"total": 0.0, "windows": [0.0], "logged_at": 0}
        windows = state["windows"]
        mine = windows[process] if len(windows) == processes else sum(windows) / len(windows)
        self.total, self.logged_at = state["total"], state["logged_at"]
        self.window = torch.tensor(mine, device=device)

    def add(self, loss: torch.Tensor) -> None:
        """Adds the loss of one backward pass."""
        self.window += loss.detach()

    def log(self, step: int) -> float:
        """The mean loss of the steps since the last log entry."""
        window = self._windows().mean().item()
        mean = window / max(1, step - self.logged_at)
        self.total, self.logged_at = self.total + window, step
        self.window.zero_()
        return mean

    def mean(self, steps: int) -> float:
        """The mean loss of all steps of the run."""
        return (self.total + self._windows().mean().item()) / max(1, steps)

    def state(self) -> dict:
        """For a checkpoint, as JSON can hold it."""
        return {"total": self.total, "windows": self._windows().tolist(), "logged_at": self.logged_at}

    def _windows(self) -> torch.Tensor:
        """Those of all processes."""
        return gather(self.window.reshape(1))
