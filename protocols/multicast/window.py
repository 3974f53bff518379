"""Which counters of one key were heard: a sliding window against replays (RFC 4303, section 3.4.3; RFC 6479)."""

from typing import Final

SIZE: Final = 64
_MASK: Final = (1 << SIZE) - 1


class Window:
    """The newest ``SIZE`` counters. What is older counts as heard."""

    __slots__ = ("_heard", "_since", "highest")

    def __init__(self, first: int) -> None:
        """``first``: the smallest counter that may come."""
        self.highest = first - 1
        """The largest counter that was heard."""
        self._since = first
        self._heard = _MASK  # bit n: whether highest - n was heard

    def may_take(self, counter: int) -> bool:
        """Whether a counter was not heard yet and is not too old."""
        behind = self.highest - counter
        return behind < 0 or (behind < SIZE and not self._heard >> behind & 1)

    def take(self, counter: int) -> bool:
        """Note that a counter was heard. Returns whether it is newer than all before."""
        ahead = counter - self.highest
        if ahead <= 0:
            self._heard |= 1 << -ahead
            return False
        self._heard = ((self._heard << ahead) | 1) & _MASK if ahead < SIZE else 1
        self.highest = counter
        return True

    def start_again(self) -> None:
        """Judge how much is heard by what comes from now on."""
        self._since = self.highest

    def heard_share(self) -> float | None:
        """The share of the newest counters that was heard; None: there were too few to tell."""
        return self._heard.bit_count() / SIZE if self.highest - self._since >= SIZE else None
