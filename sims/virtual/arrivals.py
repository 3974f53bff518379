"""Readings that reached simulated nodes, in the form in which the observer of a run gets them."""

from typing import Final

from protocols.wire.readings import Reading

_MARK_PRIME: Final = (1 << 30) - 35
_MARK_TIMES: Final = 1_000_000_007
_MARK_TIMES_TOO: Final = 998_244_353


class Series:
    """All readings of one origin and key. One object stands for each series, so that it can be a key of dicts."""

    __slots__ = ("key", "origin")

    def __init__(self, origin: str, key: str) -> None:
        self.origin, self.key = origin, key


class Issue:
    """One published reading. All nodes that it reaches share one object of it."""

    __slots__ = ("followed", "number", "published_ns", "reading", "sequence", "series", "stamp")

    def __init__(
        self, reading: Reading, series: Series, number: int, published_ns: int, followed: bool = False
    ) -> None:
        """``number``: the number of the node that is the origin; -1 when no node is. ``published_ns``: -1 when it is
        not known. ``followed``: see :class:`sims.virtual.node.SimNode`."""
        self.reading, self.series, self.number, self.published_ns = reading, series, number, published_ns
        self.followed = followed
        self.sequence: int = reading.sequence
        self.stamp = ((self.sequence << 16) + number) % _MARK_PRIME
        """A number that distinguishes this reading from others in the mark of a node."""


Arrival = tuple[int, Issue]
"""When a reading reached the subscriptions of a node, and which reading it is."""


def marked(mark: int, at_ns: int, issue: Issue) -> int:
    """The mark of a node with one more arrival in it: a polynomial modulo a prime, whose numbers fit machine words."""
    mark = (mark * _MARK_TIMES + at_ns) % _MARK_PRIME
    return (mark * _MARK_TIMES_TOO + issue.stamp) % _MARK_PRIME
