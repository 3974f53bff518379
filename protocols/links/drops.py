"""Counts what was dropped on the way to a neighbour, or refused from it."""

from collections.abc import Iterator

from protocols.base import limits
from protocols.base.shares import SharedRows


class Drops:
    """Counts what was dropped, by (peer, key, reason).

    The peers share ``MAX_DROP_REASONS`` counters. When they are used up, the largest holder's oldest counter is added
    to the one of its peer and reason with the key ``*``, so that no peer can hide what others dropped.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}
        self._rows: SharedRows[str, tuple[str, str, str]] = SharedRows()
        """The counters that have a key."""
        self.total = 0

    def count(self, peer: str, key: str, reason: str, number: int = 1) -> None:
        """Add ``number`` drops."""
        entry = (peer, key, reason)
        self.total += number
        if entry not in self._counts:
            entry = self._new(entry)
        self._counts[entry] = self._counts.get(entry, 0) + number

    def _new(self, entry: tuple[str, str, str]) -> tuple[str, str, str]:
        """Make room for a counter. Returns the counter to use."""
        peer, key, reason = entry
        rows = self._rows
        if len(self._counts) >= limits.MAX_DROP_REASONS:
            payers = len(rows.shares)
            if key != "*" and rows.shares.held(peer) * payers >= limits.MAX_DROP_REASONS:
                entry = (peer, "*", reason)  # more than an equal share: nobody gives way to it
                if entry in self._counts:
                    return entry
        while len(self._counts) >= limits.MAX_DROP_REASONS:
            if not len(rows):
                return ("*", "*", reason)
            oldest = rows.next_to_go()
            rows.remove(oldest)
            whole = (oldest[0], "*", oldest[2])
            self._counts[whole] = self._counts.get(whole, 0) + self._counts.pop(oldest)
        if entry[1] != "*":
            rows.add(peer, entry)
        return entry

    def items(self) -> Iterator[tuple[tuple[str, str, str], int]]:
        """Every ((peer, key, reason), count), sorted."""
        return iter(sorted(self._counts.items()))
