"""Which nodes are neighbours now, and in which life each node was met last."""

from protocols.base import limits
from protocols.base.ids import Incarnation, NodeId, Role
from protocols.base.sequences import first_sequence


class Lives:
    """The lives of all nodes that one node has met; those of absent nodes are bounded by ``MAX_CACHED_KEYS``."""

    __slots__ = ("_last", "present")

    def __init__(self) -> None:
        self.present: set[NodeId] = set()
        """The nodes whose Hello was accepted and that are not gone since."""
        self._last: dict[NodeId, tuple[Incarnation, Role]] = {}

    def __len__(self) -> int:
        return len(self._last)

    def is_present(self, node: NodeId, incarnation: Incarnation, role: Role) -> bool:
        """Whether a node is present in that life. A node whose certificate names another role has another life."""
        return node in self.present and self._last.get(node) == (incarnation, role)

    def begin(self, node: NodeId, incarnation: Incarnation, role: Role) -> int | None:
        """A node is present in a new life. Returns from which sequence on what is known of it is of another life; 0:
        all of it is, because its incarnation has gone back. None: it is in the life in which it was met before."""
        before = self._last.get(node)
        if len(self._last) >= limits.MAX_CACHED_KEYS:
            self._last = {known: life for known, life in self._last.items() if known in self.present}
        self._last[node] = incarnation, role
        self.present.add(node)
        if before is None or incarnation > before[0]:
            return first_sequence(incarnation)
        return None if incarnation == before[0] else 0
