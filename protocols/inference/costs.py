"""What runs and links have cost, and what the next request will cost because of that.

    here   queue + service
    there  round trip + input bytes / up + output bytes / down + queue + service + overhead

- *Service* is the time of one run, by file of the model and size of its inputs (in powers of two). What was seen counts
  before what an offer claims; a claim counts only while nothing was seen within a minute. Several runs that one request
  asks for take so many times as long.
- *Up* and *down* are the throughputs of the link (:mod:`protocols.links.throughput`), measured on answers and on lanes
  that drain. Before the first measurement a link is taken for a fast one (docs/adr/0007).
- *Queue* is the time until a run that comes now would begin. A node tells its neighbours, and each answer tells again.
  A report grows old: what waited there when it was sent is done after that time. Own requests without an answer count
  at least as much as they will take.
- *Overhead* is what none of these explains, such as a busy computer, encoding, runs of the neighbour itself that came
  later and went first, and lies: whoever claims a service of 1 µs and answers after 90 ms has an overhead of 90 ms. It
  is learned for each neighbour and kind of run, so nothing that a neighbour says can make it look faster than it has
  lately been.

Service and overhead are known by mean and 95th percentile (:mod:`protocols.base.durations`). A prediction has both.
How far predictions for a neighbour are off is averaged too: between neighbours that differ by less than that,
nobody knows which is faster.
"""

from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.durations import MAX_DURATION_NS, Durations
from protocols.base.ids import NodeId
from protocols.links.throughput import Throughput

UNKNOWN_SERVICE_NS: Final = 100 * limits.MS
"""A service that was never measured."""
START_BYTES_PER_S: Final = 125_000_000.0
"""What a link is assumed to carry before the first measurement. This is optimistic on purpose: a link that is never
used is never measured, and the hedge bounds what a wrong guess costs."""
MAX_SERVICES: Final = 4 * limits.MAX_OFFERS
"""Files and sizes of inputs whose services are known, of one node; the one that ran longest ago is forgotten first."""
MAX_KNOWN: Final = 4 * limits.MAX_NEIGHBOURS
"""Neighbours remembered, also beyond the end of their links: a liar could otherwise begin anew by reconnecting."""
ERROR_GAIN: Final = 8
"""The inverse gain of the mean error of predictions."""


class Demand(NamedTuple):
    """What is asked for, as far as it decides the cost."""

    digest: str
    size_bytes: int
    """Of the inputs."""
    runs: int = 1
    """How many runs these inputs are for."""

    @property
    def kind(self) -> tuple[str, int]:
        """Runs of one kind take about the same time: the same file, on inputs of about the same size."""
        return self.digest, self.run_bytes.bit_length()

    @property
    def run_bytes(self) -> int:
        """The inputs of one run, on average."""
        return self.size_bytes // self.runs


class Claim(NamedTuple):
    """What a node says about the service of a model, or what was seen of it; 0: nothing."""

    mean_ns: int
    p95_ns: int
    late_ns: int = 0


class Prediction(NamedTuple):
    """When a run would be done, in nanoseconds from now."""

    expected_ns: int
    p95_ns: int
    soonest_ns: int = 0
    """It can't be done before: the shortest service seen, or half of it when inputs of that kind differ in size; 0:
    nothing was seen."""
    uncertain_ns: int = 0
    """How far predictions for this node are off, on average."""
    proven: bool = True
    """Whether the last that was heard of it is a result."""
    service_ns: int = 0
    """The part that is the run itself."""
    late_ns: int = 0
    """The least that the 95th percentile may be: what takes longer is late."""


class Answer(NamedTuple):
    """What an answer of a neighbour says about its cost."""

    expected_ns: int
    queue_ns: int
    """Both as they were predicted."""
    took_ns: int
    """From the request to the answer."""
    queued_ns: int
    compute_ns: int
    """As the neighbour claims."""
    round_trip_ns: int
    output_bytes: int


class _Service:
    __slots__ = ("durations", "input_bytes", "output_bytes", "overhead")

    def __init__(self) -> None:
        self.durations, self.overhead = Durations(), Durations()
        self.output_bytes = 0
        self.input_bytes = 0
        """Of all runs that were seen; -1: they differ."""


class Services:
    """The services of one node."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], _Service] = {}

    def add(self, demand: Demand, service_ns: int, now: int, output_bytes: int = 0) -> None:
        """Note that the runs took ``service_ns`` and gave ``output_bytes``, all together."""
        service = self._known(demand)
        service.durations.add(service_ns // demand.runs, now)
        service.output_bytes = output_bytes // demand.runs
        service.input_bytes = demand.run_bytes if service.input_bytes in (0, demand.run_bytes) else -1

    def add_overhead(self, demand: Demand, overhead_ns: int, now: int) -> None:
        """Note what a run took that nothing else explains."""
        self._known(demand).overhead.add(overhead_ns, now)

    def overhead(self, demand: Demand, now: int) -> Durations | None:
        """The overhead of runs of that kind; None when none was seen lately."""
        service = self._of.get(demand.kind)
        return service.overhead if service is not None and service.overhead.known(now) else None

    def _known(self, demand: Demand) -> _Service:
        service = self._of.pop(demand.kind, None) or _Service()
        if len(self._of) >= MAX_SERVICES:
            del self._of[next(iter(self._of))]
        self._of[demand.kind] = service  # the one that ran last stands last
        return service

    def seen(self, demand: Demand, now: int) -> Durations | None:
        """The durations of runs of that kind; None when none was seen lately."""
        service = self._of.get(demand.kind)
        return service.durations if service is not None and service.durations.known(now) else None

    def claim(self, demand: Demand, claim: Claim, now: int) -> Claim:
        """Mean and 95th percentile of all runs together, as they were seen, or else as they are claimed."""
        durations, runs = self.seen(demand, now), demand.runs
        if durations is not None:
            return Claim(durations.mean_ns * runs, durations.p95_ns * runs, durations.late_ns * runs)
        mean_ns = min(claim.mean_ns or UNKNOWN_SERVICE_NS, MAX_DURATION_NS)
        p95_ns = max(min(claim.p95_ns, MAX_DURATION_NS), mean_ns)
        return Claim(mean_ns * runs, p95_ns * runs, p95_ns * runs)

    def output_bytes(self, demand: Demand) -> int:
        """The size of the outputs of all runs, by the last of that kind; 0 when none is known."""
        service = self._of.get(demand.kind)
        return service.output_bytes * demand.runs if service is not None else 0

    def pace_ns(self, digest: str, now: int) -> float:
        """The time for each byte of inputs, by the largest runs of a file that were seen lately; 0: none was seen."""
        seen = [
            (bits, service) for (file, bits), service in self._of.items()
            if file == digest and bits and service.durations.known(now)
        ]  # fmt: skip
        if not seen:
            return 0.0
        bits, service = max(seen, key=lambda each: each[0])
        return service.durations.mean_ns / (service.input_bytes if service.input_bytes > 0 else 3 << bits >> 2)

    def soonest_ns(self, demand: Demand, now: int) -> int:
        """The runs can't take less; 0: nothing was seen just now."""
        service = self._of.get(demand.kind)
        if service is None or not service.durations.is_fresh(now):
            return 0
        shortest_ns = service.durations.shortest_ns * demand.runs
        return shortest_ns if service.input_bytes == demand.run_bytes else shortest_ns // 2

    def predict(self, demand: Demand, claim: Claim, queue_ns: int, now: int, least_queue_ns: int = 0) -> Prediction:
        """When a run on this node itself would be done. ``least_queue_ns``: what goes first in any case."""
        service, soonest_ns = self.claim(demand, claim, now), self.soonest_ns(demand, now)
        return Prediction(
            queue_ns + service.mean_ns,
            queue_ns + service.p95_ns,
            least_queue_ns + soonest_ns if soonest_ns else 0,
            service_ns=service.mean_ns,
            late_ns=queue_ns + service.late_ns,
        )


class _Known:
    """What is known about one neighbour."""

    __slots__ = ("down", "error_ns", "greeted", "overhead", "proven", "services", "up")

    def __init__(self) -> None:
        self.up, self.down = Throughput(), Throughput()
        self.services = Services()
        self.overhead = Durations()
        self.error_ns = 0
        self.greeted = self.proven = False

    def transfer_ns(self, input_bytes: int, output_bytes: int) -> int:
        up = self.up.bytes_per_s or self.down.bytes_per_s or START_BYTES_PER_S
        down = self.down.bytes_per_s or self.up.bytes_per_s or START_BYTES_PER_S
        return int((input_bytes / up + output_bytes / down) * limits.SECOND)


_UNKNOWN: Final = _Known()


class NeighbourCosts:
    """What this node has learned about its neighbours and the links to them."""

    def __init__(self) -> None:
        self._of: dict[NodeId, _Known] = {}

    def predict(
        self, node: NodeId, demand: Demand, claim: Claim, queue_ns: int, round_trip_ns: int, now: int
    ) -> Prediction:
        """When the answer of a run at ``node`` would be here."""
        known = self._of.get(node, _UNKNOWN)
        service = known.services.claim(demand, claim, now)
        link_ns = round_trip_ns + known.transfer_ns(demand.size_bytes, known.services.output_bytes(demand))
        overhead = known.services.overhead(demand, now)
        if overhead is None:  # by other runs there
            overhead = known.overhead if known.overhead.known(now) else _NOTHING
        common_ns = link_ns + queue_ns
        return Prediction(
            common_ns + service.mean_ns + overhead.mean_ns,
            common_ns + service.p95_ns + overhead.p95_ns,
            known.services.soonest_ns(demand, now),
            known.error_ns,
            known.proven and overhead is not _NOTHING,
            service.mean_ns,
            common_ns + service.late_ns + overhead.late_ns,
        )

    def learn(self, node: NodeId, demand: Demand, answer: Answer, now: int) -> None:
        """Learn from an answer. The first one says nothing, because its time includes dialling the bulk lane."""
        known = self._known(node)
        compute_ns = min(answer.compute_ns, answer.took_ns)
        queued_ns = min(answer.queued_ns, answer.took_ns - compute_ns)
        greeted, known.greeted = known.greeted, True
        rest_ns = answer.took_ns - compute_ns - queued_ns - answer.round_trip_ns
        if not greeted:
            return
        known.services.add(demand, compute_ns, now, answer.output_bytes)
        if demand.size_bytes >= answer.output_bytes:
            known.up.measured(demand.size_bytes, max(rest_ns - known.transfer_ns(0, answer.output_bytes), 1))
        else:
            known.down.measured(answer.output_bytes, max(rest_ns - known.transfer_ns(demand.size_bytes, 0), 1))
        overhead_ns = rest_ns - known.transfer_ns(demand.size_bytes, answer.output_bytes)
        self._add_overhead(known, demand, overhead_ns + queued_ns - answer.queue_ns, now)
        known.proven = True
        self._mistaken(known, answer.took_ns - answer.expected_ns)

    def overdue(
        self, node: NodeId, demand: Demand, expected_ns: int, waited_ns: int, stalled: bool, now: int
    ) -> None:  # fmt: skip
        """Note that a run has taken ``waited_ns`` so far, and that its end will not be seen. ``stalled``: that is so
        long that the node has to prove itself again."""
        if waited_ns > expected_ns:
            known = self._known(node)
            known.proven = known.proven and not stalled
            if not known.greeted:  # the first run says nothing, as in learn()
                known.greeted = True
                return
            before = known.services.overhead(demand, now)
            before_ns = before.mean_ns if before is not None else 0
            self._add_overhead(known, demand, before_ns + waited_ns - expected_ns, now)
            self._mistaken(known, waited_ns - expected_ns)

    def _add_overhead(self, known: _Known, demand: Demand, overhead_ns: int, now: int) -> None:
        known.services.add_overhead(demand, overhead_ns, now)
        known.overhead.add(overhead_ns, now)

    def _mistaken(self, known: _Known, error_ns: int) -> None:
        error_ns = min(abs(error_ns), MAX_DURATION_NS)
        known.error_ns += (error_ns - known.error_ns) // ERROR_GAIN if known.error_ns else error_ns

    def transferred(self, node: NodeId, size_bytes: int, took_ns: int) -> None:
        """Note that the link to ``node`` took ``took_ns`` for ``size_bytes``."""
        self._known(node).up.measured(size_bytes, took_ns)

    def throughput_of(self, node: NodeId) -> float:
        """The throughput of the link to ``node`` in bytes a second; 0: not measured yet."""
        known = self._of.get(node, _UNKNOWN)
        return known.up.bytes_per_s or known.down.bytes_per_s

    def link_to(self, node: NodeId) -> tuple[float, float]:
        """What the link carries to ``node`` and from it, in bytes a second, as predictions take it."""
        known = self._of.get(node, _UNKNOWN)
        up = known.up.bytes_per_s or known.down.bytes_per_s or START_BYTES_PER_S
        return up, known.down.bytes_per_s or up

    def overhead_ns(self, node: NodeId, now: int) -> int:
        """What runs at ``node`` have lately taken that nothing else explains, on average."""
        known = self._of.get(node, _UNKNOWN)
        return known.overhead.mean_ns if known.overhead.known(now) else 0

    def service_ns(self, node: NodeId, demand: Demand, now: int) -> int:
        """What runs of that kind at ``node`` have lately taken, on average; 0: none was seen."""
        durations = self._of.get(node, _UNKNOWN).services.seen(demand, now)
        return durations.mean_ns if durations is not None else 0

    def pace_ns(self, node: NodeId, digest: str, now: int) -> float:
        """What ``node`` has lately needed for each byte of inputs of a file; 0: nothing was seen."""
        return self._of.get(node, _UNKNOWN).services.pace_ns(digest, now)

    def forget_link(self, node: NodeId) -> None:
        """Forget the link to a neighbour that is gone. What it claimed and did is not forgotten."""
        known = self._of.get(node)
        if known is not None:
            known.up, known.down = Throughput(), Throughput()
            known.greeted = False

    def _known(self, node: NodeId) -> _Known:
        known = self._of.pop(node, None) or _Known()
        if len(self._of) >= MAX_KNOWN:
            del self._of[next(iter(self._of))]
        self._of[node] = known
        return known


_NOTHING: Final = Durations()
