"""What a neighbour may cost: a bucket of tokens that fills with time."""

from protocols.base import limits


class Allowance:
    """At most ``burst`` at once, and ``per_s`` more each second."""

    __slots__ = ("_at_ns", "_burst", "_left", "_per_s")

    def __init__(self, per_s: int, burst: int, now: int) -> None:
        self._per_s, self._at_ns = per_s, now
        self._burst = self._left = float(burst)

    def left(self, now: int) -> int:
        """Whole tokens there now; below 0 after a fine."""
        self._left = min(self._left + (now - self._at_ns) * self._per_s / limits.SECOND, self._burst)
        self._at_ns = now
        return int(self._left // 1)

    def take(self, now: int) -> bool:
        """Use one, if there is one."""
        if self.left(now) < 1:
            return False
        self._left -= 1
        return True

    def fine(self, tokens: int) -> None:
        """Take some in any case."""
        self._left -= tokens
