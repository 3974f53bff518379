"""Which records a node may upload, by the access table of the mesh.

The relay knows the certificate of the node that uploads, and of no other. So there are two kinds of records:

- of the node's own reading: the rules of its role decide about the key;
- of a reading that it heard from another node: the relay has not seen the certificate of that node, so some role must
  let it publish on the key. Only the node that uploads vouches for what the other node said. The store names both.
"""

from functools import lru_cache
from typing import Final

from cloud_relay.store.rows import RecordUnsuitable
from protocols.access import AccessTable
from protocols.base.errors import InvalidName
from protocols.base.ids import NodeId, PeerIdentity, Role, node_id
from protocols.wire.readings import Reading

_MAX_REMEMBERED: Final = 65_536
"""Decisions, because nodes send the same keys again and again."""


class PublishAccess:
    """An access table that remembers what it decided. May be called from any thread."""

    def __init__(self, table: AccessTable) -> None:
        self._table = table
        self._permits = lru_cache(_MAX_REMEMBERED)(self._decide)

    def check(self, reading: Reading, peer: PeerIdentity) -> None:
        """:raises RecordUnsuitable: when ``peer`` may not upload a record of this reading."""
        origin = reading.origin
        if not self._permits(origin, reading.key, peer.role if origin == peer.node else None):
            raise RecordUnsuitable(f"no rule of access lets {origin} publish on {reading.key}"[:200])

    def _decide(self, origin: str, key: str, role: Role | None) -> bool:
        try:
            node: NodeId = node_id(origin)  # a wildcard would be one in the rule too
        except InvalidName:
            return False
        if role is None:
            return self._table.permits_origin(node, key)
        return self._table.permits_publish(role, node, key)
