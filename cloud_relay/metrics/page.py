"""The page that Prometheus reads: all families of the relay and the figures of its process.

Everything is read at the time of a scrape. It comes in the text format or as OpenMetrics, as ``Accept`` asks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cloud_relay.metrics.counted import CountedParts
from cloud_relay.metrics.families import gauge, info
from cloud_relay.metrics.histograms import LabelledHistogram
from cloud_relay.metrics.requests import request_latencies
from cloud_relay.metrics.stored import StoreFigures, store_families
from protocols.base.ids import Role

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_BY_ROLE = {f"requesters_{role.value}": role for role in Role}


class RelayMetrics:
    """All metrics of one relay. May be called from any thread."""

    def __init__(self) -> None:
        self.requests = request_latencies()
        """What nodes ask."""
        self.commits = LabelledHistogram(
            "commit_seconds", "Transactions of the store, with all that waited for one.", "done"
        )
        """``done``: yes or no."""
        self.questions = LabelledHistogram(
            "http_request_seconds", "Requests over HTTP, until the answer began.", "path", "status"
        )
        """What programs ask."""
        self.about: dict[str, str] = {}
        """Texts about the relay."""
        self.statistics: Callable[[], Mapping[str, Any]] = dict
        """What its parts have counted."""
        self.sources: list[Callable[[], Iterable[Metric]]] = []
        """What has families of its own."""
        self.store: StoreFigures | None = None
        """What the store has, as of the last look; None: it can't be read."""
        self._parts = CountedParts()

    def collect(self) -> "Iterable[Metric]":
        """Called by the registry."""
        yield info("Who this relay is.", self.about)
        statistics = dict(self.statistics())
        roles = [((role.value,), float(statistics.pop(name, 0))) for name, role in _BY_ROLE.items()]
        yield gauge("connections", "Connections of nodes by their role.", roles, "role")
        yield from self._parts.families(statistics)
        for family in (self.requests, self.commits, self.questions):
            yield from family.collect()
        for source in self.sources:
            yield from source()
        yield from store_families(self.store)

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page, and its media type. ``accept``: the header of who asks."""
        # Imported at the first scrape: a relay that nobody watches doesn't pay for it.
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type
