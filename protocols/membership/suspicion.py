"""How long a suspected neighbour has to prove that it lives.

After Dadgar, Phillips, Currey: *Lifeguard: Local Health Awareness for More Accurate Failure Detection* (2018):
the time shrinks from ``max_ns`` to ``min_ns`` as more of the other neighbours suspect the same node,

    timeout = max − (max − min) · ln(c + 1) / ln(k + 1)

after ``c`` of ``k`` possible confirmations. Left out: the indirect probe, since every neighbour is one hop away.
"""

from math import log

from protocols.base.ids import NodeId


def suspicion_timeout_ns(minimum_ns: int, maximum_ns: int, confirmations: int, possible: int) -> int:
    """Time from suspect to dead, in nanoseconds. ``possible`` 0 (nobody could confirm) gives the maximum."""
    if possible <= 0:
        return maximum_ns
    share = log(min(confirmations, possible) + 1) / log(possible + 1)
    return maximum_ns - int((maximum_ns - minimum_ns) * share)


class Suspicion:
    """One suspected neighbour."""

    __slots__ = ("_confirmed", "_maximum_ns", "_minimum_ns", "_possible", "_started_ns", "dead_at")

    def __init__(self, started_ns: int, minimum_ns: int, maximum_ns: int, possible: int) -> None:
        """``possible``: how many other neighbours could confirm."""
        self._started_ns = started_ns
        self._minimum_ns = minimum_ns
        self._maximum_ns = max(maximum_ns, minimum_ns)
        self._possible = possible
        self._confirmed: set[NodeId] = set()
        self.dead_at = 0
        """When the time is up."""
        self._reckon()

    def confirm(self, by: NodeId) -> bool:
        """``by`` suspects it too; heard twice it counts once. Bounded by the number of neighbours. True: it is news."""
        if by in self._confirmed:
            return False
        self._confirmed.add(by)
        self._reckon()
        return True

    def tighten(self, maximum_ns: int) -> None:
        """New evidence: allow at most ``maximum_ns`` from the start."""
        self._maximum_ns = max(min(self._maximum_ns, maximum_ns), self._minimum_ns)
        self._reckon()

    def restart(self, now: int, maximum_ns: int) -> None:
        """We were not watching: the time counts anew, and what was seen meanwhile is no evidence."""
        self._started_ns, self._maximum_ns = now, max(maximum_ns, self._minimum_ns)
        self._reckon()

    def _reckon(self) -> None:
        self.dead_at = self._started_ns + suspicion_timeout_ns(
            self._minimum_ns, self._maximum_ns, len(self._confirmed), self._possible
        )
