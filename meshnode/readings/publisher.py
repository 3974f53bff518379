"""What a node's own process publishes with."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meshnode.driver import Driver
from meshnode.records.recording import Recorder
from protocols.base import limits
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import NodeId
from protocols.readings.events import Put, PutMany
from protocols.readings.publication import Publication
from protocols.wire.readings import EventTime, Position, Reading
from protocols.wire.values import listed, plain

if TYPE_CHECKING:
    from meshnode.node import Node


def not_open(node: NodeId) -> LocalProtocolError:
    """What somebody gets who uses a node that is closed."""
    return LocalProtocolError(f"the node {node} is not running: use it inside 'async with meshnode.open(…) as node:'")


class Publisher:
    """Publishes on one key with one quality of service. Made by :meth:`Node.publisher`."""

    def __init__(self, node: "Node", driver: Driver, recorder: Recorder | None, publication: Publication) -> None:
        self.key = publication.key
        self._publication = publication
        self._node, self._recorder = node, recorder
        self._publish: Callable[..., Put] = driver.publish
        self._publish_many: Callable[..., PutMany] = driver.publish_many
        self._uncertainty_ns = int(node.config.node.clock_uncertainty_ms * limits.MS)

    def put(self, value: Any, *, where: Position | None = None, time_ns: int | None = None) -> Put:
        """Publish one value and say what happened to it. Any thread; never waits.

        ``time_ns``: UTC of the measurement in nanoseconds, default now. ``where``: default the publisher's, then the
        node's.

        :raises ContextMissing: when nobody knows where. :raises ValueUnsupported: when ``value`` can't travel.
        :raises LocalProtocolError: when the node was closed.
        """
        value = plain(value)
        utc_now = time.time_ns()
        where = where or self._publication.where or self._node.position
        when = EventTime(utc_now if time_ns is None else time_ns, self._uncertainty_ns)
        put = self._publish(self._publication, value, where, when, utc_now)
        if self._recorder is not None:
            self._record(self._recorder, put.sequence, value, where, when)
        return put

    def put_many(
        self, values: Sequence[Any], *, where: Position | None = None, times_ns: Sequence[int] | None = None
    ) -> PutMany:
        """Publish several values at once, oldest first: each is a reading of its own, at a fraction of the cost of as
        many :meth:`put`. For sensors that hand over what they gathered, as a list or an array of one dimension. Any
        thread; never waits.

        ``times_ns``: UTC of each measurement in nanoseconds, default now for all. ``where``: as of :meth:`put`.

        :raises ContextMissing: when nobody knows where. :raises ValueUnsupported: when a value can't travel, there is
            none, or not one time for each; nothing is published then.
        :raises LocalProtocolError: when the node was closed.
        """
        values = listed(values)
        utc_now = time.time_ns()
        where = where or self._publication.where or self._node.position
        if times_ns is None:
            whens = [EventTime(utc_now, self._uncertainty_ns)] * len(values)
        else:
            whens = [EventTime(time_ns, self._uncertainty_ns) for time_ns in times_ns]
        put = self._publish_many(self._publication, values, where, whens, utc_now)
        if self._recorder is not None:
            for sequence, (value, when) in enumerate(zip(values, whens, strict=True), put.first_sequence):
                self._record(self._recorder, sequence, value, where, when)
        return put

    def _record(self, recorder: Recorder, sequence: int, value: Any, where: Position | None, when: EventTime) -> None:
        assert where is not None, "it was published"
        reading = Reading(
            self.key, self._node.id, sequence, value, where, when, self._publication.how, self._publication.priority,
            self._publication.lifespan_ms, self._publication.hops,
        )  # fmt: skip
        recorder.consider(reading, True)

    def end(self) -> None:
        """Called by the node when it has closed: from now on :meth:`put` and :meth:`put_many` raise."""
        self._publish = self._publish_many = self._refuse

    def _refuse(self, *_: Any) -> Any:
        raise not_open(self._node.id)
