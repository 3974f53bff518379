"""Where to compute: a cost model learned from measurements, and the choice it leads to.

    local  = (waiting + 1) · compute
    remote = round trip + (input + output bytes) / throughput + (waiting + 1) · compute, times a learned correction

The throughput is that of the link (see :mod:`protocols.links.throughput`), measured on answers and on lanes that drain.
The correction is an exponential average of measured ÷ predicted time for each neighbour. It stands for what the model
does not know, such as a busy computer or an offer that is too optimistic. Time that a slow link explains is not counted
in it a second time. A neighbour is chosen only when it is predicted to need less than ``WORTHWHILE`` of this node's
time, since a small gain is not worth using the radio.
"""

from msgspec import Struct

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.signature import ModelSignature
from protocols.links.throughput import Throughput

WORTHWHILE = 0.8
"""A neighbour must be predicted to need less than this share of the local time."""
_UNKNOWN_COMPUTE_NS = 100 * limits.MS
_START_THROUGHPUT = 125_000_000.0
"""Bytes a second that a link is assumed to carry before the first measurement. This is optimistic on purpose: a link
that is never used is never measured, and the hedge bounds what a wrong guess costs."""
_LEARN = 0.2


class LocalModel(Struct, frozen=True):
    """A model that this node has loaded."""

    name: str
    digest: str
    compute_ns: int
    waiting: int
    served: bool
    """Whether this node computes it for neighbours too."""
    local: bool = True
    """Whether this node computes its own requests; False leaves them all to neighbours."""
    own_waiting: int | None = None
    """Runs of ``waiting`` that this node wants itself. Only they are before its next own run. None: all of them."""
    signature: ModelSignature | None = None
    """What the model takes and gives, to check answers of neighbours. None: their shapes are not checked."""


class Candidate(Struct, frozen=True):
    """A node that could compute, and when it would be done."""

    node: NodeId
    expected_ns: int
    doubtful: bool = False
    """Whether it has lately given no result; see :mod:`protocols.inference.standing`."""


class CostModel:
    """What this node has learned about its neighbours and links. Its size is bounded by the number of neighbours."""

    def __init__(self) -> None:
        self._correction: dict[NodeId, float] = {}
        self._throughput: dict[NodeId, Throughput] = {}

    def local_ns(self, compute_ns: int, waiting: int) -> int:
        """Predicted time of a run on this node."""
        return (waiting + 1) * (compute_ns or _UNKNOWN_COMPUTE_NS)

    def remote_ns(self, node: NodeId, compute_ns: int, waiting: int, round_trip_ns: int, size_bytes: int) -> int:
        """Predicted time of a run on ``node``, until its answer has arrived."""
        computed_ns = (waiting + 1) * (compute_ns or _UNKNOWN_COMPUTE_NS)
        predicted_ns = round_trip_ns + self.transfer_ns(node, size_bytes) + computed_ns
        return int(predicted_ns * self._correction.get(node, 1.0))

    def throughput_of(self, node: NodeId) -> float:
        """Throughput of the link to ``node`` in bytes a second; 0: not measured yet."""
        throughput = self._throughput.get(node)
        return throughput.bytes_per_s if throughput is not None else 0.0

    def transfer_ns(self, node: NodeId, size_bytes: int) -> float:
        """Predicted time that the link to ``node`` takes for ``size_bytes``."""
        return size_bytes / (self.throughput_of(node) or _START_THROUGHPUT) * limits.SECOND

    def transferred(self, node: NodeId, size_bytes: int, took_ns: int) -> None:
        """Note that the link to ``node`` took ``took_ns`` for ``size_bytes``."""
        self._throughput.setdefault(node, Throughput()).measured(size_bytes, took_ns)

    def knows(self, node: NodeId) -> bool:
        """Whether ``node`` has answered before."""
        return node in self._throughput

    def learn(
        self, node: NodeId, predicted_ns: int, took_ns: int, computed_ns: int, round_trip_ns: int, size_bytes: int
    ) -> None:
        """Learn from an answer. ``computed_ns`` is the time of queueing and computing there; the link took the rest.
        The first answer is ignored, because it includes dialling the bulk lane and the first run of the model."""
        if node not in self._throughput:
            self._throughput[node] = Throughput()
            return
        correction = self._correction.get(node, 1.0)
        before_ns = self.transfer_ns(node, size_bytes)
        self.transferred(node, size_bytes, max(took_ns - computed_ns - round_trip_ns, 1))
        predicted_ns += int(correction * (self.transfer_ns(node, size_bytes) - before_ns))
        # Keep the correction between a quarter and eight times, so that one odd run can't exile a neighbour.
        ratio = min(max(took_ns / max(predicted_ns, 1), 0.25), 8.0)
        self._correction[node] = min(max(correction * (1 + _LEARN * (ratio - 1)), 0.25), 8.0)

    def penalise(self, node: NodeId) -> None:
        """Trust a neighbour's offers less, because it was busy, was late or failed."""
        self._correction[node] = min(self._correction.get(node, 1.0) * 1.5, 8.0)

    def forget(self, node: NodeId) -> None:
        """Forget a neighbour that is gone."""
        self._correction.pop(node, None)
        self._throughput.pop(node, None)


def order(local: Candidate | None, remote: list[Candidate], remaining_ns: int) -> list[Candidate]:
    """Which nodes to ask, best first. This node comes first unless a neighbour is worthwhile, and is always in the list
    if it can compute at all. Neighbours that would miss the deadline, or have lately given no result, come last: they
    are better than nothing."""
    remote = sorted(
        remote,
        key=lambda candidate: (
            candidate.doubtful, candidate.expected_ns > remaining_ns, candidate.expected_ns, candidate.node
        ),
    )  # fmt: skip
    if local is None:
        return remote
    if remote and not remote[0].doubtful and remote[0].expected_ns < WORTHWHILE * local.expected_ns:
        return [remote[0], local, *remote[1:]]
    return [local, *remote]
