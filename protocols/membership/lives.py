"""Which nodes are neighbours now, and in which life each node was met last."""

from protocols.base import limits
from protocols.base.ids import Incarnation, NodeId


class Lives:
    """The lives of all nodes that one node has met; those of absent nodes are bounded by ``MAX_CACHED_KEYS``."""

    __slots__ = ("_last", "present")

    def __init__(self) -> None:
        self.present: set[NodeId] = set()
        """The nodes whose Hello was accepted and that are not gone since."""
        self._last: dict[NodeId, Incarnation] = {}

    def __len__(self) -> int:
        return len(self._last)

    def is_present(self, node: NodeId, incarnation: Incarnation) -> bool:
        """Whether a node is present in that life."""
        return node in self.present and self._last.get(node) == incarnation

    def begin(self, node: NodeId, incarnation: Incarnation) -> bool:
        """A node is present in a new life. Returns whether its incarnation has gone back, so that its sequences may be
        smaller than those before."""
        before = self._last.get(node)
        if len(self._last) >= limits.MAX_CACHED_KEYS:  # a node that was forgotten may at worst seem stale
            self._last = {known: life for known, life in self._last.items() if known in self.present}
        self._last[node] = incarnation
        self.present.add(node)
        return before is not None and incarnation < before
