"""Where to compute: a cost model learned from measurements, and the choice it leads to.

    local  = (waiting + 1) · compute
    remote = round trip + (input + output bytes) / throughput + (waiting + 1) · compute, times a learned correction

The throughput is that of the link (see ``throughput``), measured on answers and on lanes that drain. The correction is
an exponential average of measured ÷ predicted per neighbour and keeps the model honest about what it does not know (a
busy computer, an offer that flatters); what a slow link explains is not put down to it as well. A neighbour is chosen
only when it is predicted to be faster than this node by ``WORTHWHILE``: a tie is not worth a radio.
"""

from msgspec import Struct

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.links.throughput import Throughput

WORTHWHILE = 0.8
"""A neighbour must be predicted to need less than this share of the local time."""
_UNKNOWN_COMPUTE_NS = 100 * limits.MS
_START_THROUGHPUT = 125_000_000.0
"""Bytes a second assumed of a link before the first measurement. Optimistic on purpose: what is never tried is never
learned, and the hedge bounds what a wrong guess costs."""
_LEARN = 0.2


class LocalModel(Struct, frozen=True):
    """A model loaded here."""

    name: str
    digest: str
    compute_ns: int
    waiting: int
    served: bool
    """Computed for neighbours too."""
    local: bool = True
    """Computed here for own requests; False leaves them all to neighbours."""


class Candidate(Struct, frozen=True):
    """A node that could compute, and when it would be done."""

    node: NodeId
    expected_ns: int


class CostModel:
    """What this node has learned. Bounded by the number of neighbours."""

    def __init__(self) -> None:
        self._correction: dict[NodeId, float] = {}
        self._throughput: dict[NodeId, Throughput] = {}

    def local_ns(self, compute_ns: int, waiting: int) -> int:
        """Predicted time of a run here."""
        return (waiting + 1) * (compute_ns or _UNKNOWN_COMPUTE_NS)

    def remote_ns(self, node: NodeId, compute_ns: int, waiting: int, round_trip_ns: int, size_bytes: int) -> int:
        """Predicted time of a run on ``node``, until its answer is here."""
        computed_ns = (waiting + 1) * (compute_ns or _UNKNOWN_COMPUTE_NS)
        predicted_ns = round_trip_ns + self._transfer_ns(node, size_bytes) + computed_ns
        return int(predicted_ns * self._correction.get(node, 1.0))

    def throughput_of(self, node: NodeId) -> float:
        """Of the link to ``node``, bytes a second; 0: not measured yet."""
        throughput = self._throughput.get(node)
        return throughput.bytes_per_s if throughput is not None else 0.0

    def _transfer_ns(self, node: NodeId, size_bytes: int) -> float:
        return size_bytes / (self.throughput_of(node) or _START_THROUGHPUT) * limits.SECOND

    def transferred(self, node: NodeId, size_bytes: int, took_ns: int) -> None:
        """The link to ``node`` took so long for so many bytes."""
        self._throughput.setdefault(node, Throughput()).measured(size_bytes, took_ns)

    def learn(
        self, node: NodeId, predicted_ns: int, took_ns: int, computed_ns: int, round_trip_ns: int, size_bytes: int
    ) -> None:
        """An answer came. ``computed_ns``: queueing and computing there; the rest was the way. The first teaches
        nothing: the bulk lane was dialled for it, and the model ran for the first time."""
        if node not in self._throughput:
            self._throughput[node] = Throughput()
            return
        correction = self._correction.get(node, 1.0)
        before_ns = self._transfer_ns(node, size_bytes)
        self.transferred(node, size_bytes, max(took_ns - computed_ns - round_trip_ns, 1))
        predicted_ns += int(correction * (self._transfer_ns(node, size_bytes) - before_ns))
        # Keep the correction between a quarter and eight times, so that one odd run can't exile a neighbour.
        ratio = min(max(took_ns / max(predicted_ns, 1), 0.25), 8.0)
        self._correction[node] = min(max(correction * (1 + _LEARN * (ratio - 1)), 0.25), 8.0)

    def penalise(self, node: NodeId) -> None:
        """It was busy, late or failed: trust its offers less."""
        self._correction[node] = min(self._correction.get(node, 1.0) * 1.5, 8.0)

    def forget(self, node: NodeId) -> None:
        """It is gone."""
        self._correction.pop(node, None)
        self._throughput.pop(node, None)


def order(local: Candidate | None, remote: list[Candidate], remaining_ns: int) -> list[Candidate]:
    """Whom to ask, best first. This node comes first unless a neighbour is worthwhile, and always stands in the list
    when it can compute at all. Neighbours that would miss the deadline come last, for want of anything better."""
    remote = sorted(
        remote, key=lambda candidate: (candidate.expected_ns > remaining_ns, candidate.expected_ns, candidate.node)
    )
    if local is None:
        return remote
    if remote and remote[0].expected_ns < WORTHWHILE * local.expected_ns:
        return [remote[0], local, *remote[1:]]
    return [local, *remote]
