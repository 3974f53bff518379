"""The publisher of a node in this process."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import NodeId
from protocols.readings.events import Put, PutMany
from protocols.readings.publication import Publication
from protocols.wire.encoding.values import listed, plain
from protocols.wire.readings import EventTime, Position, Reading

PublishedWatch = Callable[[Reading, bytes | None], object]
"""Takes a reading that was just published, and the result of ``encode_alone`` for it. None: it was encoded together
with others."""


def not_open(node: NodeId) -> LocalProtocolError:
    """The error of a method of a node that is closed."""
    return LocalProtocolError(f"the node {node} is not running: use it inside 'async with meshnode.open(…) as node:'")


class Here(Protocol):
    """The node that publishes."""

    @property
    def id(self) -> NodeId:
        """Origin of the readings."""

    @property
    def position(self) -> Position | None:
        """Where the node is now."""

    @property
    def clock_uncertainty_ns(self) -> int:
        """How well its clock is known now."""


class Door(Protocol):
    """The driver, as a publisher sees it."""

    def publish(
        self, publication: Publication, value: object, where: Position | None, when: EventTime, utc_now: int
    ) -> tuple[Put, bytes]:
        """Publish one value; also returns the reading as ``encode_alone`` encodes it."""

    def publish_many(
        self, publication: Publication, values: Sequence[object], where: Position | None, whens: Sequence[EventTime],
        utc_now: int,
    ) -> PutMany:  # fmt: skip
        """Publish several values."""


class Publisher:
    """Publishes on one key with one quality of service. Made by :meth:`Node.publisher`."""

    def __init__(self, node: Here, door: Door, publication: Publication, watch: PublishedWatch | None = None) -> None:
        """``watch`` is called with each reading once it is published."""
        self.key = publication.key
        self._node, self._publication, self._watch = node, publication, watch
        self._publish: Callable[..., tuple[Put, bytes]] = door.publish
        self._publish_many: Callable[..., PutMany] = door.publish_many
        self._where = publication.where

    def put(self, value: Any, *, where: Position | None = None, time_ns: int | None = None) -> Put:
        """Publish one value and say what happened to it. May be called from any thread, and never waits.

        ``time_ns``: UTC of the measurement in nanoseconds, default now. ``where``: default the publisher's, then the
        node's.

        :raises ContextMissing: when no position is known. :raises ValueUnsupported: when ``value`` can't travel.
        :raises LocalProtocolError: when the node was closed.
        """
        utc_now = time.time_ns()
        when = EventTime(utc_now if time_ns is None else time_ns, self._node.clock_uncertainty_ns)
        return self._put(value, where or self._where or self._node.position, when, utc_now)

    def put_sensed(self, value: Any, where: Position, when: EventTime) -> Put:
        """Publish a value that was sensed at a time that is known less well, or better, than by this node's clock.
        Errors as for :meth:`put`."""
        return self._put(value, where, when, time.time_ns())

    def _put(self, value: Any, where: Position | None, when: EventTime, utc_now: int) -> Put:
        value = plain(value)
        put, alone = self._publish(self._publication, value, where, when, utc_now)
        if self._watch is not None:
            self._show(self._watch, put.sequence, value, where, when, alone)
        return put

    def put_many(
        self, values: Sequence[Any], *, where: Position | None = None, times_ns: Sequence[int] | None = None
    ) -> PutMany:
        """Publish several values at once, oldest first. Each is a reading of its own, at a fraction of the cost of a
        :meth:`put` for each. It is for sensors that hand over what they gathered, as a list or an array of one
        dimension. May be called from any thread, and never waits.

        ``times_ns``: UTC of each measurement in nanoseconds, default now for all. ``where``: as for :meth:`put`.

        :raises ContextMissing: when no position is known. :raises ValueUnsupported: when a value can't travel, there
            are none, or there is not one time for each; nothing is published then.
        :raises LocalProtocolError: when the node was closed.
        """
        values = listed(values)
        utc_now = time.time_ns()
        where = where or self._where or self._node.position
        if times_ns is None:
            whens = [EventTime(utc_now, self._node.clock_uncertainty_ns)] * len(values)
        else:
            whens = [EventTime(time_ns, self._node.clock_uncertainty_ns) for time_ns in times_ns]
        put = self._publish_many(self._publication, values, where, whens, utc_now)
        if self._watch is not None:
            for sequence, (value, when) in enumerate(zip(values, whens, strict=True), put.first_sequence):
                self._show(self._watch, sequence, value, where, when, None)
        return put

    def _show(
        self, watch: PublishedWatch, sequence: int, value: Any, where: Position | None, when: EventTime,
        alone: bytes | None,
    ) -> None:  # fmt: skip
        assert where is not None, "it was published"
        asked = self._publication
        watch(
            Reading(
                asked.key, self._node.id, sequence, value, where, when, asked.how, asked.priority, asked.lifespan_ms,
                asked.hops,
            ),
            alone,
        )  # fmt: skip

    def end(self) -> None:
        """Make :meth:`put` and :meth:`put_many` raise from now on. The node calls it when it has closed."""
        self._publish = self._publish_many = self._refuse

    def _refuse(self, *_: Any) -> Any:
        raise not_open(self._node.id)
