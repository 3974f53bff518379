"""The table ``fates`` of the store: disjoint ranges of records that will never come, by origin.

A range is joined to those of its own state that it touches. Where the table has another state already, that state
stays. An origin pays for its ranges: what one batch may cost and what one origin may keep are bounded, and what is
beyond the bounds is counted and not noted. The audit then shows those sequences of this origin as missing.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from protocols.base.limits import MAX_FATES_PER_BATCH
from protocols.wire.records import Fate

MAX_TOUCHED_RANGES: Final = 4 * MAX_FATES_PER_BATCH
"""Stored ranges that the fates of one batch may touch. A node keeps about as many ranges that it has not told, so only
these can come again. 1,024 fates across all ranges of an origin once kept the writer busy for 253 s."""
MAX_RANGES_PER_ORIGIN: Final = 262_144
"""Ranges kept for one origin. An honest node adds one only where a loss lies between two deliveries."""
_MAX_COUNTED_ORIGINS: Final = 4_096
"""Origins whose number of ranges is remembered; of others it is counted again, which takes up to 10 ms."""

_NEAR: Final = (
    "SELECT first, last, state FROM fates WHERE origin = :origin AND first <= :last + 1 AND first >="
    " coalesce((SELECT max(first) FROM fates WHERE origin = :origin AND first < :first), 0) ORDER BY first LIMIT :most"
)


class FateTable:
    """Belongs to the thread that writes the store. Each call is part of the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._counts: OrderedDict[str, int] = OrderedDict()
        self.beyond_bounds = 0
        """Fates of which at least a part was not noted, because a bound was reached."""

    def rolled_back(self) -> None:
        """Forget what was counted in a transaction that did not happen."""
        self._counts.clear()

    def note(self, origin: str, fates: Iterable[Fate]) -> None:
        """Note the fates of one batch."""
        left = MAX_TOUCHED_RANGES
        count = self._count(origin)
        for fate in fates:
            touched, change = self._note(origin, fate, left, MAX_RANGES_PER_ORIGIN - count)
            left -= touched
            count += change
        self._counts[origin] = count

    def _count(self, origin: str) -> int:
        count = self._counts.pop(origin, None)  # the caller puts it back as the newest
        if count is None:
            count = self._db.execute("SELECT count(*) FROM fates WHERE origin = ?", (origin,)).fetchone()[0]
            if len(self._counts) >= _MAX_COUNTED_ORIGINS:
                self._counts.popitem(last=False)
        return int(count)

    def _note(self, origin: str, fate: Fate, most: int, room: int) -> tuple[int, int]:
        """Note one fate, as far as it touches at most ``most`` ranges beside the two at its ends and adds at most
        ``room``. Returns how many it touched, the two not counted, and by how many the table grew."""
        first, last = fate.first, fate.last
        near = self._db.execute(_NEAR, {"origin": origin, "first": first, "last": last, "most": most + 3}).fetchall()
        if len(near) > most + 2:
            last = near.pop()[0] - 1
            self.beyond_bounds += 1
        gone, pieces = joined(first, last, fate.state, near)
        touched, change = max(0, len(near) - 2), len(pieces) - len(gone)
        if change > max(0, room):
            self.beyond_bounds += 1
            return touched, 0
        if gone:
            self._db.executemany("DELETE FROM fates WHERE origin = ? AND first = ?", [(origin, one) for one in gone])
        self._db.executemany("INSERT INTO fates VALUES (?, ?, ?, ?)", [(origin, a, b, fate.state) for a, b in pieces])
        return touched, change


def joined(
    first: int, last: int, state: str, near: Iterable[tuple[int, int, str]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """What becomes of a range that is told beside those that are known near it, in order: which of these it takes in,
    by their first sequence, and the ranges of its own state that are noted instead."""
    gone: list[int] = []
    pieces: list[tuple[int, int]] = []
    for other_first, other_last, other_state in near:
        if other_last < first - 1:
            continue
        if other_state == state:
            first, last = min(first, other_first), max(last, other_last)
            gone.append(other_first)
        elif other_last >= first:
            if other_first > first:
                pieces.append((first, min(other_first - 1, last)))
            first = other_last + 1
    if first <= last:
        pieces.append((first, last))
    return gone, pieces
