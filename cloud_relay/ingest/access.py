"""Which records a node may upload: those whose key is valid, and that the access table of the mesh permits.

The relay knows the certificate of the node that uploads, and of no other. So there are two kinds of records:

- of the node's own reading: the rules of its role decide about the key;
- of a reading that it heard from another node: the relay has not seen the certificate of that node, so some role must
  let it publish on the key. Only the node that uploads vouches for what the other node said. The store names both.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from protocols.access import AccessTable
from protocols.base.errors import InvalidKey, InvalidName
from protocols.base.ids import NodeId, Role, node_id
from protocols.base.keys import checked_key
from protocols.base.limits import MAX_CACHED_KEYS


class PublishAccess:
    """An access table that remembers what it decided, because nodes send the same keys again and again. May be called
    from any thread."""

    def __init__(self, table: AccessTable) -> None:
        self._table = table
        self.objection: Final[Callable[[str, str, Role | None], str]] = lru_cache(MAX_CACHED_KEYS)(self._objection)
        """The reason why a record is not taken, by the origin and key of its reading; empty: it is. The third argument
        is the role of the origin if it is the node that uploads, and None otherwise."""

    def _objection(self, origin: str, key: str, role: Role | None) -> str:
        try:
            checked_key(key)
            node: NodeId = node_id(origin)  # a wildcard in it would be one in the rule too
        except (InvalidKey, InvalidName) as error:
            return str(error)
        if role is None:
            is_permitted = self._table.permits_origin(node, key)
        else:
            is_permitted = self._table.permits_publish(role, node, key)
        return "" if is_permitted else f"no access rule lets {origin} publish on {key}"
