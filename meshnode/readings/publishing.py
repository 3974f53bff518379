"""Publishing by key, for whoever makes publishers: a node, and an application that is connected to one."""

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
    """Makes publishers, and keeps those that :meth:`publish` needed, one for each key and its options."""

    def __init__(self) -> None:
        self._publishers: dict[tuple[Any, ...], _P] = {}

    @abstractmethod
    def require_open(self) -> None:
        """:raises LocalProtocolError: outside ``async with``."""

    @abstractmethod
    def _publisher_of(self, publication: Publication) -> _P:
        """Something that publishes it."""

    def publisher(
        self, key: str, *, unit: str = "1", sensor: str = "application", where: Position | None = None,
        quality: float = 1.0, calibration: str = "", lineage: tuple[str, ...] = (), priority: int = 3,
        lifespan_ms: int = 0, hops: int = 0,
    ) -> _P:  # fmt: skip
        """Something that publishes on ``key``: make it once, ``put`` often.

        ``unit``: UCUM symbol (``m/s``). ``quality``: 0 to 1. ``lineage``: what it was derived from, nearest first.
        ``priority``: 0 to 7, 7 overtakes everything. ``lifespan_ms``: a reading is worthless after this; 0: never.
        ``hops``: how many neighbours may pass it on.

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
        options, and ``put`` of what that makes for the result.

        :raises ContextMissing: when nobody knows where.
        :raises InvalidKey, NotPermitted, ValueUnsupported: what they say.
        """
        options = (key, unit, sensor, quality, calibration, lineage, priority, lifespan_ms, hops)
        publisher = self._publishers.get(options)
        if publisher is None:
            publisher = self.publisher(
                key, unit=unit, sensor=sensor, quality=quality, calibration=calibration, lineage=lineage,
                priority=priority, lifespan_ms=lifespan_ms, hops=hops,
            )  # fmt: skip
            if len(self._publishers) >= limits.MAX_CACHED_KEYS:
                self._publishers.clear()
            self._publishers[options] = publisher
        return publisher.put(value, where=where, time_ns=time_ns)
