"""The table ``fates``, as :mod:`cloud_relay.store.fates` keeps it, with the same bounds.

The ranges near all fates of a batch are fetched at once, changed here, and what is other than before is written at
once. The caller holds the lock of the origin.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

from cloud_relay.store import fates
from cloud_relay.store.postgres.session import PostgresSession
from protocols.wire.records import Fate

_NEAR = """
SELECT DISTINCT near.first, near.last, near.state FROM unnest($2::bigint[], $3::bigint[]) AS told (first, last)
CROSS JOIN LATERAL (SELECT first, last, state FROM fates WHERE origin = $1 AND first <= told.last + 1 AND first >=
    coalesce((SELECT max(first) FROM fates WHERE origin = $1 AND first < told.first), 0) ORDER BY first) AS near
ORDER BY near.first LIMIT $4
"""


class NearbyFates:
    """The disjoint ranges of one origin near some fates, and what becomes of them."""

    def __init__(self, ranges: Iterable[tuple[int, int, str]]) -> None:
        self._before = {first: (last, state) for first, last, state in ranges}
        self._now = dict(self._before)
        self._firsts = sorted(self._now)
        self.beyond_bounds = 0
        """Fates of which at least a part was not noted, because a bound was reached."""

    def note(self, told: Iterable[Fate], room: int) -> int:
        """Note fates, with at most ``room`` more ranges than before. Returns by how many there are more."""
        left, more = fates.MAX_TOUCHED_RANGES, 0
        for fate in told:
            touched, change = self._note(fate, left, room - more)
            left -= touched
            more += change
        return more

    def changes(self) -> tuple[list[int], list[tuple[int, int, str]]]:
        """What is no more, by its first sequence, and what is new."""
        gone = [first for first, of in self._before.items() if self._now.get(first) != of]
        new = [(first, *of) for first, of in self._now.items() if self._before.get(first) != of]
        return gone, new

    def _note(self, fate: Fate, most: int, room: int) -> tuple[int, int]:
        near = self._near(fate, most + 3)
        last = fate.last
        if len(near) > most + 2:
            last = near.pop() - 1
            self.beyond_bounds += 1
        gone, pieces = fates.joined(fate.first, last, fate.state, [(first, *self._now[first]) for first in near])
        touched, change = max(0, len(near) - 2), len(pieces) - len(gone)
        if change > max(0, room):
            self.beyond_bounds += 1
            return touched, 0
        for first in gone:
            del self._now[first]
            del self._firsts[bisect_left(self._firsts, first)]
        for first, end in pieces:
            self._now[first] = end, fate.state
            insort(self._firsts, first)
        return touched, change

    def _near(self, fate: Fate, most: int) -> list[int]:
        """Where the ranges begin that a fate may touch: the last one that begins before it, and those that begin in it
        or right after it."""
        begin = max(0, bisect_left(self._firsts, fate.first) - 1)
        return [first for first in self._firsts[begin : begin + most] if first <= fate.last + 1]


def note_fates(session: PostgresSession, origin: str, told: list[Fate], ranges: int) -> tuple[int, int]:
    """Note the fates of one batch of an origin that has so many ranges. Returns how many it has then, and how many
    fates were not noted whole."""
    most = fates.MAX_TOUCHED_RANGES + 3 * len(told) + 1
    near = session.rows(_NEAR, origin, [fate.first for fate in told], [fate.last for fate in told], most)
    changed = NearbyFates((first, last, state) for first, last, state in near)
    if len(near) == most:  # what begins after these is not known, so nothing may be noted there
        end = near[-1][0]
        told = [Fate(fate.first, min(fate.last, end - 1), fate.state) for fate in told if fate.first < end]
    more = changed.note(told, fates.MAX_RANGES_PER_ORIGIN - ranges)
    if len(near) == most:
        changed.beyond_bounds = max(1, changed.beyond_bounds)
    gone, new = changed.changes()
    if gone:
        session.execute("DELETE FROM fates WHERE origin = $1 AND first = ANY ($2::bigint[])", origin, gone)
    if new:
        session.execute(
            "INSERT INTO fates SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::text[])", origin,
            *(list(column) for column in zip(*new, strict=True)),
        )  # fmt: skip
    return ranges + more, changed.beyond_bounds
