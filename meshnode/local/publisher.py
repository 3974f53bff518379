"""Publishes for an application: it checks everything that can be checked here, then hands the reading to the node.

A put does not wait for the node. The node sends its rules for publishing at the start, so an application gets the same
errors at the same call as in the node's own process. The rules or the position may change while a reading is
on its way; the node's refusal is then counted, logged, and raised by ``flushed``.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from meshnode.local.outgoing import Outgoing
from protocols.access import AccessTable
from protocols.base.errors import NotPermitted, ValueUnsupported
from protocols.base.ids import NodeId, Role
from protocols.local import NODE_POSITION, OWN_POSITION, encode_parcel
from protocols.readings.events import Put, PutMany
from protocols.readings.publication import Publication
from protocols.wire.encoding.values import listed, plain
from protocols.wire.readings import EventTime, Position, Reading, check_position

NOWHERE = Position(0.0, 0.0, 0.0)
"""Stands for the node's own position, which the node fills in."""


class NodeConnection(Protocol):
    """The connection to the node, as its publishers see it."""

    id: NodeId
    role: Role
    access: AccessTable
    """The node's access table, as far as it is about publishing."""
    outgoing: Outgoing

    def require_open(self) -> None:
        """:raises LocalProtocolError: when the connection was closed."""

    def require_position(self, key: str) -> None:
        """:raises ContextMissing: when the node does not know where it is."""

    def next_put(self) -> int:
        """The number of a put."""

    async def flushed(self, timeout_s: float = 10.0, key: str | None = None) -> None:
        """Wait until the node has published what was put; raises what it refused of ``key``, or of any."""


class ConnectedPublisher:
    """Publishes on one key with one quality of service. Made by :meth:`ConnectedNode.publisher`."""

    def __init__(self, node: NodeConnection, publication: Publication) -> None:
        self.key = publication.key
        self._node, self._publication = node, publication
        self._permitted_by: AccessTable | None = None
        self._checked = publication.where

    def put(self, value: Any, *, where: Position | None = None, time_ns: int | None = None) -> Put:
        """Hand one value to the node, which publishes it. May be called from any thread; it waits only to
        ask the node for its position while that is unknown.

        What ``Publisher.put`` of a node refuses is refused here at once with the same errors, because the node's access
        table is known here. A refusal because the table or the position changed meanwhile is rare; it is counted,
        logged and raised by :meth:`flushed`. In the result, ``queued`` is 1 when the node has the reading or it waits
        for the node, and ``dropped`` is 1 when too much waits already. ``sequence`` counts this application's puts; who
        gets the reading is not known yet.

        ``time_ns``: UTC of the measurement in nanoseconds, default now. ``where``: default the publisher's, then the
        node's.

        :raises ContextMissing: when no position is known. :raises NotPermitted: when the node may not publish the key.
        :raises ValueUnsupported: when ``value`` can't travel.
        :raises LocalProtocolError: when the connection was closed.
        """
        node, asked = self._node, self._publication
        node.require_open()
        if self._permitted_by is not node.access:
            self._check_permission(node)
        label, where = OWN_POSITION, where or asked.where
        if where is None:
            node.require_position(self.key)
            label, where = NODE_POSITION, NOWHERE
        if where is not self._checked:
            check_position(where)
            self._checked = where
        utc_ns = time.time_ns() if time_ns is None else time_ns
        if type(utc_ns) is not int or utc_ns < 0:
            raise ValueUnsupported(f"{utc_ns!r} is not a time: use whole nanoseconds since 1970, 0 or more")
        sequence = node.next_put()
        reading = Reading(
            self.key, node.id, sequence, plain(value), where, EventTime(utc_ns, 0), asked.how, asked.priority,
            asked.lifespan_ms, asked.hops,
        )  # fmt: skip
        parcel = encode_parcel(label, reading)
        kept = node.outgoing.send_reading(self.key, parcel, asked.priority, asked.lifespan_ms)
        return Put(sequence, 0, 1, 0) if kept else Put(sequence, 0, 0, 1)

    def put_many(
        self, values: Sequence[Any], *, where: Position | None = None, times_ns: Sequence[int] | None = None
    ) -> PutMany:
        """Hand several values to the node, oldest first, as :meth:`put` does; ``times_ns``: UTC of each, default now.

        :raises ValueUnsupported: without a value, or without a time for each. It also raises the errors of :meth:`put`,
            possibly after some of the values were handed over.
        """
        values = listed(values)
        if len(values) == 0 or (times_ns is not None and len(times_ns) != len(values)):
            given = "no" if times_ns is None else len(times_ns)
            raise ValueUnsupported(f"{len(values)} values with {given} times: pass one or more, with a time each")
        times: Sequence[int | None] = times_ns if times_ns is not None else [None] * len(values)
        puts = [self.put(value, where=where, time_ns=time_ns) for value, time_ns in zip(values, times, strict=True)]
        return PutMany(puts[0].sequence, len(puts), sum(put.queued for put in puts), sum(put.dropped for put in puts))

    async def flushed(self, timeout_s: float = 10.0) -> None:
        """Wait until the node has published what was put so far, on any key.

        :raises NotPermitted, ContextMissing: the first refusal by the node on this key since the last call.
        :raises TransportError: the node is away or goes away. :raises TimeoutError: it needs longer than that.
        """
        await self._node.flushed(timeout_s, self.key)

    def _check_permission(self, node: NodeConnection) -> None:
        access = node.access
        if not access.permits_publish(node.role, node.id, self.key):
            raise NotPermitted(
                f"the access table does not let {node.role.value} {node.id} publish on {self.key!r}: use a key that it "
                "allows, or add a rule to the node's [access]"
            )
        self._permitted_by = access
