"""A run of a model that somebody wants, and how it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.models.model import Inputs, LoadedModel
from protocols.base.errors import InferenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Job:
    """What somebody wants: one run, or several, one after the other."""

    model: LoadedModel
    inputs: Inputs
    outputs: tuple[str, ...] = ()
    """The names of the outputs that are wanted. None named: all of them."""
    deadline_ns: int | None = None
    """An instant of ``time.monotonic_ns``. The job is not started after it, and a worker process ends it then."""
    asked_by: str | None = None
    """The neighbour that wants it; None: this node."""
    further: tuple[Inputs, ...] = ()
    """The inputs of further runs."""

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return 1 + len(self.further)


@dataclass(frozen=True, slots=True)
class RunDone:
    """The job ran."""

    outputs: "tuple[tuple[str, NDArray[Any]], ...]"
    """Those of its first run, then those of the second one, and so on."""
    queued_ns: int
    compute_ns: int
    """Of all its runs. Includes the emulated slowdown, as the slower device would have measured it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has no result."""

    error: InferenceError
    """``InputInvalid``, ``BudgetExhausted``, or what the model said. A cancelled job has a plain ``InferenceError``."""
    queued_ns: int
    cancelled: bool = False
    began: bool = False
    """Whether the model had begun to run. What failed before says nothing about the model."""


Outcome = RunDone | Failed
Callback = Callable[[Outcome], None]
