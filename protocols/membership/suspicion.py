"""How long a suspected neighbour has to prove that it is alive.

This follows Dadgar, Phillips, Currey: *Lifeguard: Local Health Awareness for More Accurate Failure Detection* (2018).
The time-out shrinks from its maximum to its minimum as more of the other neighbours suspect the same node. After ``c``
of ``k`` possible confirmations it is

    timeout = max − (max − min) · ln(c + 1) / ln(k + 1)

The indirect probe is left out, since every neighbour is one hop away.
"""

from math import log

from protocols.base.ids import NodeId


def suspicion_timeout_ns(minimum_ns: int, maximum_ns: int, confirmations: int, possible: int) -> int:
    """Time from suspect to dead, in nanoseconds. It is the maximum when ``possible`` is 0: nobody could confirm."""
    if possible <= 0:
        return maximum_ns
    share = log(min(confirmations, possible) + 1) / log(possible + 1)
    return maximum_ns - int((maximum_ns - minimum_ns) * share)


class Suspicion:
    """The suspicion of one neighbour."""

    __slots__ = ("_confirmed", "_maximum_ns", "_minimum_ns", "_possible", "_started_ns", "dead_at")

    def __init__(self, started_ns: int, minimum_ns: int, maximum_ns: int, possible: int) -> None:
        """``possible``: how many other neighbours could confirm."""
        self._started_ns = started_ns
        self._minimum_ns = minimum_ns
        self._maximum_ns = max(maximum_ns, minimum_ns)
        self._possible = possible
        self._confirmed: set[NodeId] = set()
        self.dead_at = 0
        """When the time-out ends, in monotonic nanoseconds."""
        self._reckon()

    def confirm(self, by: NodeId) -> bool:
        """Note that ``by`` suspects it too, and return whether that is new. A neighbour counts once, however often it
        says so; so the memory is bounded by the number of neighbours."""
        if by in self._confirmed:
            return False
        self._confirmed.add(by)
        self._reckon()
        return True

    def tighten(self, maximum_ns: int) -> None:
        """Allow at most ``maximum_ns`` from the start, because there is new evidence."""
        self._maximum_ns = max(min(self._maximum_ns, maximum_ns), self._minimum_ns)
        self._reckon()

    def restart(self, now: int, maximum_ns: int) -> None:
        """Start the time-out anew, because this node did not run and what it saw meanwhile is no evidence."""
        self._started_ns, self._maximum_ns = now, max(maximum_ns, self._minimum_ns)
        self._reckon()

    def _reckon(self) -> None:
        self.dead_at = self._started_ns + suspicion_timeout_ns(
            self._minimum_ns, self._maximum_ns, len(self._confirmed), self._possible
        )
