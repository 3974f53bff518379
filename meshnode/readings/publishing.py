"""Publishing by key: what a node and an application that is connected to one have in common."""

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from protocols.base import limits
from protocols.readings.events import Put
from protocols.readings.publication import Publication, checked_publication
from protocols.wire.readings import Position, Provenance


class Puts(Protocol):
    """Publishes on one key."""

    def put(self, value: Any, *, where: Position | None = None, time_ns: int | None = None) -> Put:
        """Publish one value and say what happened to it."""


_P = TypeVar("_P", bound=Puts)


class Publishing(ABC, Generic[_P]):
    """Makes publishers, and keeps those that :meth:`publish` used, one for each key and its options."""

    def __init__(self) -> None:
        self._publishers: dict[tuple[Any, ...], _P] = {}

    @abstractmethod
    def require_open(self) -> None:
        """:raises LocalProtocolError: outside ``async with``."""

    @abstractmethod
    def _publisher_of(self, publication: Publication) -> _P:
        """Make a publisher for it."""

    def publisher(
        self, key: str, *, unit: str = "1", sensor: str = "application", where: Position | None = None,
        quality: float = 1.0, calibration: str = "", lineage: tuple[str, ...] = (), priority: int = 3,
        lifespan_ms: int = 0, hops: int = 0,
    ) -> _P:  # fmt: skip
        """A publisher on ``key``. Make it once, and call its ``put`` for each value.

        ``unit``: UCUM symbol (``m/s``). ``quality``: 0 to 1. ``lineage``: what it was derived from, nearest first.
        ``priority``: 0 to 7; 7 is the most urgent. ``lifespan_ms``: a reading is worthless after this; 0: never.
        ``hops``: how many nodes may forward it.

        :raises InvalidKey: when ``key`` is not one. :raises LocalProtocolError: when a number is out of its range.
        """
        self.require_open()
        how = Provenance(sensor, unit, quality, calibration, lineage)
        return self._publisher_of(checked_publication(key, how, where, priority, lifespan_ms, hops))

    def publish(
        self, key: str, value: Any, *, unit: str = "1", sensor: str = "application", where: Position | None = None,
        time_ns: int | None = None, quality: float = 1.0, calibration: str = "", lineage: tuple[str, ...] = (),
        priority: int = 3, lifespan_ms: int = 0, hops: int = 0,
    ) -> Put:  # fmt: skip
        """Publish one value and say what happened to it. May be called from any thread. See :meth:`publisher` for the
        options, and the publisher's ``put`` for the result.

        :raises ContextMissing: when no position is known. :raises InvalidKey: when ``key`` is not one.
        :raises NotPermitted: when the node may not publish it. :raises ValueUnsupported: when ``value`` can't travel.
        """
        how = Provenance(sensor, unit, quality, calibration, lineage)
        return self.kept_publisher(key, how, priority, lifespan_ms, hops).put(value, where=where, time_ns=time_ns)

    def kept_publisher(self, key: str, how: Provenance, priority: int = 3, lifespan_ms: int = 0, hops: int = 0) -> _P:
        """The publisher that :meth:`publish` uses for these options. It is made once, and kept. Errors as there."""
        options = (key, how, priority, lifespan_ms, hops)
        publisher = self._publishers.get(options)
        if publisher is None:
            self.require_open()
            publisher = self._publisher_of(checked_publication(key, how, None, priority, lifespan_ms, hops))
            if len(self._publishers) >= limits.MAX_CACHED_KEYS:
                self._publishers.clear()
            self._publishers[options] = publisher
        return publisher
