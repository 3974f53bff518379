"""The allowance of a neighbour: a token bucket, which bounds the work that one neighbour may cause."""

from protocols.base import limits


class Allowance:
    """A bucket that holds at most ``burst`` tokens, and gets ``per_s`` more each second."""

    __slots__ = ("_at_ns", "_burst", "_left", "_per_s")

    def __init__(self, per_s: int, burst: int, now: int) -> None:
        self._per_s, self._at_ns = per_s, now
        self._burst = self._left = float(burst)

    def left(self, now: int) -> int:
        """The number of whole tokens in the bucket now; it can be below 0 after a fine."""
        self._left = min(self._left + (now - self._at_ns) * self._per_s / limits.SECOND, self._burst)
        self._at_ns = now
        return int(self._left // 1)

    def take(self, now: int) -> bool:
        """Take one token, and return whether there was one."""
        if self.left(now) < 1:
            return False
        self._left -= 1
        return True

    def fine(self, tokens: int) -> None:
        """Take ``tokens`` away, even if there are fewer."""
        self._left -= tokens
