"""Publishing by key, for whoever makes publishers: a node, and an application that is connected to one."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

from protocols.base import limits
from protocols.readings.events import Put
from protocols.wire.readings import Position


class Puts(Protocol):
    """Publishes on one key."""

    def put(self, value: Any, *, where: Position | None = None, time_ns: int | None = None) -> Put:
        """Publish one value and say what happened to it."""


class Publishing(ABC):
    """Keeps the publishers that :meth:`publish` needed, one for each key and its options."""

    def __init__(self) -> None:
        self._publishers: dict[tuple[Any, ...], Puts] = {}

    @abstractmethod
    def publisher(
        self, key: str, *, unit: str = "1", sensor: str = "application", where: Position | None = None,
        quality: float = 1.0, calibration: str = "", lineage: tuple[str, ...] = (), priority: int = 3,
        lifespan_ms: int = 0, hops: int = 0,
    ) -> Puts:  # fmt: skip
        """Something that publishes on ``key``: make it once, ``put`` often."""

    def publish(
        self, key: str, value: Any, *, unit: str = "1", sensor: str = "application", where: Position | None = None,
        time_ns: int | None = None, quality: float = 1.0, calibration: str = "", lineage: tuple[str, ...] = (),
        priority: int = 3, lifespan_ms: int = 0, hops: int = 0,
    ) -> Put:  # fmt: skip
        """Publish one value and say what happened to it. Any thread. See :meth:`publisher` for the options, and ``put``
        of what that makes for the result.

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
