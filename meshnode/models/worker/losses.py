"""How a worker process was lost."""

import signal
from typing import Literal

from protocols.base.errors import InferenceError

Loss = Literal["crashed", "hung", "grew", "closed"]


class WorkerLost(InferenceError):
    """A worker process has ended, or was ended, while it was needed."""

    def __init__(self, loss: Loss, why: str) -> None:
        """``why`` completes the sentence "its worker process …"."""
        super().__init__(f"its worker process {why}")
        self.loss, self.why = loss, why


def how_it_exited(status: int) -> str:
    """How a process ended, for people. ``status``: of ``subprocess``, where signals are negative."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    more = ", which the kernel sends when memory runs out" if -status == signal.SIGKILL else ""
    return f"crashed ({name}{more})"
