"""The contract of a contender, through which all of them are measured.

A contender is a pair of processes, *near* and *far*. The measures run at near; far echoes, counts or computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from protocols.base.errors import MeshError

End = Literal["near", "far"]
ENDS: tuple[End, End] = ("near", "far")
OURS = "ours"
Ports = tuple[int, ...]
"""TCP ports on the loopback address."""
PEERS = ("pynng", "zenoh", "ssl")
NAMES = (OURS, *PEERS)


class BenchmarkFailed(MeshError):
    """A measure has no result: something stalled, was lost or came back wrong."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What one end needs to open: who it is, and where its PEM files and the model are."""

    end: End
    certificate: Path
    key: Path
    authority: Path
    model: Path
    state: Path
    """The folder of this end alone, empty at the start."""

    @property
    def node(self) -> str:
        """The node id in its certificate."""
        return f"bench-{self.end}"


class Contender(Protocol):
    """One end of a mutually authenticated TLS 1.3 connection that carries readings and requests both ways.

    Readings of one key arrive in the order they were put. Callbacks run on the receiving thread of the contender.
    """

    def listen(self, ports: Ports) -> Ports:
        """Open this end. ``ports``: where the far end listens; empty at the far end itself. Returns its own ports."""

    def connect(self, ports: Ports) -> None:
        """Connect to the other end, which listens on ``ports``. It may return before that is done."""

    def subscribe(self, key: str, callback: Callable[[Any], object]) -> None:
        """Call ``callback(reading)`` for readings of ``key``; ``reading.value`` is what was put."""

    def publisher(self, key: str, *, batched: bool) -> Callable[[Any], object]:
        """A function that puts a value (float, bytes or float32 array) and waits only when the link is full.

        ``batched`` trades latency for throughput where the contender has that choice.
        """

    def gatherer(self, key: str) -> Callable[[list[Any]], object]:
        """A function that puts all values of a list, each as a reading of its own, by the fastest way the contender
        has for that."""

    def infer(self, array: Any, seconds: float) -> list[int]:
        """Have ``array`` computed by the far end again and again, one at a time, for ``seconds``.

        Returns for each request its whole duration without the model's own compute time, in nanoseconds.
        :raises BenchmarkFailed: for a wrong answer or none.
        """

    def versions(self) -> dict[str, str]:
        """The versions of the libraries in use, by name."""

    def close(self) -> None:
        """Close this end in an orderly way."""
