"""Which nodes are neighbours now, and in which life each node was met last."""

from protocols.base import limits
from protocols.base.ids import Incarnation, NodeId, Role


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

    def begin(self, node: NodeId, incarnation: Incarnation, role: Role) -> bool:
        """A node is present in a new life. Returns whether its incarnation has gone back, so that its sequences may be
        smaller than those before."""
        before = self._last.get(node)
        if len(self._last) >= limits.MAX_CACHED_KEYS:  # a node that was forgotten may at worst seem stale
            self._last = {known: life for known, life in self._last.items() if known in self.present}
        self._last[node] = incarnation, role
        self.present.add(node)
        return before is not None and incarnation < before[0]
