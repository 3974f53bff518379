"""How a worker process was lost."""

from typing import Literal

from protocols.base.errors import InferenceError

Loss = Literal["crashed", "hung", "grew", "closed"]


class WorkerLost(InferenceError):
    """A worker process has ended, or was ended, while it was needed."""

    def __init__(self, loss: Loss, why: str) -> None:
        """``why`` completes the sentence "its worker process …"."""
        super().__init__(f"its worker process {why}")
        self.loss, self.why = loss, why
