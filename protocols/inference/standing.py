"""The standing of neighbours: who is not asked for a while.

- Whoever gave a wrong answer (one that can't be a result of the model, or a complaint about inputs that others took) is
  not asked at all for ``WRONG_PAUSE_MIN_NS``. Each further wrong answer doubles that, up to ``WRONG_PAUSE_MAX_NS``.
- Whoever gave no result is asked last for ``MISS_PAUSE_MIN_NS``, and each further miss in a row doubles that. A result
  ends it.

What is known of a neighbour outlives its link, because a liar could otherwise begin anew by reconnecting.
"""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId

WRONG_PAUSE_MIN_NS: Final = 10 * limits.SECOND
WRONG_PAUSE_MAX_NS: Final = 600 * limits.SECOND
"""A liar that is asked again costs each time one round trip, and its pause grows."""
FORGIVE_NS: Final = 600 * limits.SECOND
"""A wrong answer this long after the end of the last pause counts as the first one."""
MISS_PAUSE_MIN_NS: Final = 250 * limits.MS
"""An honest neighbour that was busy or stalled is back within this time."""
MISS_PAUSE_MAX_NS: Final = 60 * limits.SECOND
MAX_STANDINGS: Final = 4 * limits.MAX_NEIGHBOURS
"""Neighbours remembered. Each has a certificate; the one that was asked longest ago is forgotten first."""


class _Standing:
    __slots__ = ("missed_until_ns", "misses", "wrong", "wrong_until_ns")

    def __init__(self) -> None:
        self.wrong = self.misses = 0
        self.wrong_until_ns = self.missed_until_ns = -limits.SECOND


class Standings:
    """What this node has seen of each neighbour that it asked."""

    def __init__(self) -> None:
        self._of: dict[NodeId, _Standing] = {}

    def is_distrusted(self, node: NodeId, now: int) -> bool:
        """Whether ``node`` must not be asked now, because an answer of it was wrong."""
        standing = self._of.get(node)
        return standing is not None and now < standing.wrong_until_ns

    def is_doubtful(self, node: NodeId, now: int) -> bool:
        """Whether ``node`` should be asked last, because it gave no result."""
        standing = self._of.get(node)
        return standing is not None and now < standing.missed_until_ns

    def succeeded(self, node: NodeId) -> None:
        """Note that ``node`` gave a result in time."""
        standing = self._of.get(node)
        if standing is not None:
            standing.misses, standing.missed_until_ns = 0, -limits.SECOND

    def missed(self, node: NodeId, now: int) -> None:
        """Note that ``node`` gave no result. Misses of runs that were under way together count as one."""
        standing = self._known(node)
        if now >= standing.missed_until_ns:
            standing.misses += 1
            pause_ns = MISS_PAUSE_MIN_NS << min(standing.misses - 1, 16)
            standing.missed_until_ns = now + min(pause_ns, MISS_PAUSE_MAX_NS)

    def was_wrong(self, node: NodeId, now: int) -> None:
        """Note that an answer of ``node`` was wrong. Answers to requests that were under way together count as one."""
        standing = self._known(node)
        if now >= standing.wrong_until_ns:
            forgiven = now - standing.wrong_until_ns >= FORGIVE_NS
            standing.wrong = 1 if forgiven else standing.wrong + 1
            pause_ns = WRONG_PAUSE_MIN_NS << min(standing.wrong - 1, 16)
            standing.wrong_until_ns = now + min(pause_ns, WRONG_PAUSE_MAX_NS)

    def _known(self, node: NodeId) -> _Standing:
        standing = self._of.pop(node, None) or _Standing()
        if len(self._of) >= MAX_STANDINGS:
            del self._of[next(iter(self._of))]
        self._of[node] = standing  # the one that was asked last stands last
        return standing
