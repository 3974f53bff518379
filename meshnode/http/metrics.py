"""What a node tells Prometheus: its statistics, its neighbours, its drops, and the metrics of its parts.

Everything is read at the time of a scrape. Invariant: label values that others choose (ids of peers) are bounded: the
first ``MAX_LABELS`` get a series of their own and the rest share ``other`` for ever, so that no counter ever decreases.
"""

import re
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from meshnode.http.exposition import counter, gauge
from meshnode.running import Host
from meshnode.troubles import Troubles
from protocols.base.limits import SECOND
from protocols.membership.neighbour import State

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

MAX_LABELS: Final = 64
_OWN_GAUGES: Final = frozenset({"link_lanes", "pace_frames_per_s"})
"""Names in the statistics of a node's driver that go up and down; each part declares its own."""


class _Labels:
    """The values of one label, bounded."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def bounded(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= MAX_LABELS:
                return "other"
            self._seen.add(value)
        return value


def page_of(collector: "Collector") -> tuple[bytes, str]:
    """The page with what ``collector`` yields and the figures of the process, and its media type."""
    # Imported at the first scrape: a node that nobody watches doesn't pay for it.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


def trouble_metrics(troubles: Troubles) -> "Iterable[Metric]":
    """What does not work, and how often something began not to."""
    yield gauge("trouble", "Parts of the node that don't work; 1 each.",
                [((trouble.part, trouble.name), 1.0) for trouble in troubles.current()], "part", "name")  # fmt: skip
    yield counter("troubles", "How often a part has begun not to work.", [((), float(troubles.reported))])


class Metrics:
    """Collects and prints the metrics of one node. Methods may be called from any thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._gauges = _OWN_GAUGES.union(*(part.gauges for part in host.parts))
        self._lock = threading.Lock()
        self._peers, self._reasons, self._strangers = _Labels(), _Labels(), _Labels()

    def exposition(self) -> tuple[bytes, str]:
        """The page, and its media type."""
        return page_of(self)

    def collect(self) -> "Iterable[Metric]":
        """Called by the registry."""
        host = self._host
        yield gauge("info", "Who this node is; always 1.", [((host.id, host.role.value, host.mesh), 1.0)],
                    "id", "role", "mesh")  # fmt: skip
        yield gauge("certificate_ends_timestamp_seconds", "When the certificate ends, seconds since 1970.",
                    [((), host.certificate_ends.timestamp())])  # fmt: skip
        yield from trouble_metrics(host.troubles)
        for name, value in sorted(host.statistics().items()):
            text = re.sub(r"\W", "_", name)
            if name in self._gauges:
                yield gauge(text, f"See {name!r} in the reference.", [((), float(value))])
            elif text != "drops":  # "drops" is the sum of the series below
                yield counter(text, f"See {name!r} in the reference.", [((), float(value))])
        for part in host.parts:
            yield from part.metrics()
        with self._lock:
            yield from self._collect_failures()
            yield from self._collect_drops()
            yield from self._collect_peers()

    def _collect_drops(self) -> "Iterable[Metric]":
        sums: dict[tuple[str, ...], float] = {}
        for (peer, _, reason), count in self._host.drops():
            labels = (self._peers.bounded(peer or "self"), self._reasons.bounded(reason))
            sums[labels] = sums.get(labels, 0.0) + count
        yield counter("drops", "Readings and frames dropped.", sorted(sums.items()), "peer", "reason")

    def _collect_failures(self) -> "Iterable[Metric]":
        # A gauge: the node forgets the oldest of them, and with it its count.
        sums: dict[tuple[str, ...], float] = {}
        for failed in self._host.link_failures():
            labels = (self._strangers.bounded(failed.peer), failed.kind)
            sums[labels] = sums.get(labels, 0.0) + failed.count
        yield gauge("link_failures", "Remembered failures to make a link.", sorted(sums.items()),
                    "peer", "kind")  # fmt: skip

    def _collect_peers(self) -> "Iterable[Metric]":
        peers = self._host.peers()
        states = [((state.value,), float(sum(peer.state is state for peer in peers))) for state in State]
        yield gauge("neighbours", "Neighbours by state.", states, "state")
        # The series of a gauge may end: only present neighbours have one, and their number is bounded.
        present = [peer for peer in peers if peer.state in (State.ALIVE, State.SUSPECT)]
        measured = [((peer.node,), peer.round_trip_ns / SECOND) for peer in present if peer.round_trip_ns]
        yield gauge("neighbour_round_trip_seconds", "Round trip of a heartbeat.", measured, "peer")
        paced = [((peer.node,), peer.throughput_bytes_per_s) for peer in present if peer.throughput_bytes_per_s]
        yield gauge("neighbour_throughput_bytes_per_second", "Estimated throughput of the link.", paced, "peer")
        behind = [((peer.node,), float(peer.is_behind)) for peer in present]
        yield gauge("neighbour_behind", "1 while older readings are left out for a neighbour.", behind, "peer")
        slowed = [((peer.node,), peer.frames_per_s) for peer in present if peer.frames_per_s]
        yield gauge("neighbour_frames_per_second", "Frames sent on a lane that does not take all.", slowed, "peer")
        for name, what in (("waiting_readings", "Readings"), ("waiting_bytes", "Bytes")):
            values = [((peer.node,), float(getattr(peer, name))) for peer in present]
            yield gauge(f"neighbour_{name}", f"{what} queued for a neighbour.", values, "peer")
