"""The audit: does the account of every origin add up?

Nodes send records in the order of their sequence and never before the fates of those that are missing before them. So
each sequence below the highest stored one must be stored or have a fate, and a hole is a loss. Sequences above it that
were issued are outstanding: their records wait at the node, or ended there and the node has not told yet.

Two things let records overtake older ones, which count as missing until they come: urgent records of a node that holds
back the others, and batches that neighbours carry.

When an acknowledgement was lost, a record may be stored although its node gave it up. It counts as stored.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

MAX_LISTED_GAPS = 100
"""How many holes are listed for an origin. All are counted."""


@dataclass(frozen=True, slots=True)
class OriginAccount:
    """The account of one origin. It holds that
    ``issued == stored + expired + evicted + refused + missing + outstanding``."""

    origin: str
    issued: int
    stored: int
    expired: int
    evicted: int
    refused: int
    outstanding: int
    """Records that the node has issued and not yet accounted for."""
    missing: int
    """Lost records: they are below the highest stored sequence, and neither stored nor have a fate."""
    gaps: tuple[tuple[int, int], ...]
    """First and last sequence of each range of missing records, at most ``MAX_LISTED_GAPS`` ranges."""
    stored_after_all: int
    """Records that are stored although the node gave them up. They are counted in ``stored``."""
    conflicts: int
    """Sequences that came with two contents."""
    with_receipt: int
    """Stored records that their node's signature covers, see :mod:`cloud_relay.query.proofs`."""
    wrong_receipts: int
    """Batches that were refused because their receipt was wrong."""
    why_wrong: str
    """What was wrong with the last of them; empty: there was none."""

    @property
    def adds_up(self) -> bool:
        """Whether nothing is lost and nothing contradicts itself."""
        return not self.missing and not self.conflicts


def audit(db: sqlite3.Connection) -> list[OriginAccount]:
    """The accounts of all origins at one moment, ordered by name."""
    db.execute("BEGIN")
    try:
        origins = db.execute(
            "SELECT origin, next_sequence FROM origins UNION ALL"
            " SELECT origin, 1 FROM wrong_receipts WHERE origin NOT IN (SELECT origin FROM origins) ORDER BY origin"
        ).fetchall()
        return [_account(db, origin, next_sequence) for origin, next_sequence in origins]
    finally:
        db.execute("COMMIT")


def _account(db: sqlite3.Connection, origin: str, next_sequence: int) -> OriginAccount:
    stored, highest = db.execute(
        "SELECT count(*), coalesce(max(sequence), 0) FROM records WHERE origin = ?", (origin,)
    ).fetchone()
    conflicts = db.execute("SELECT count(*) FROM conflicts WHERE origin = ?", (origin,)).fetchone()[0]
    with_receipt = db.execute(
        "SELECT count(*) FROM receipted JOIN records USING (origin, sequence) WHERE origin = ?", (origin,)
    ).fetchone()[0]
    wrong = db.execute("SELECT times, why FROM wrong_receipts WHERE origin = ?", (origin,)).fetchone() or (0, "")
    counted = {"expired": 0, "evicted": 0, "refused": 0}
    fated = 0
    fates = db.execute("SELECT first, last, state FROM fates WHERE origin = ? ORDER BY first", (origin,)).fetchall()
    holes = _holes(db, origin, highest, next_sequence)
    hole = next(holes, None)
    missing = 0
    gaps: list[tuple[int, int]] = []
    # Fates are disjoint and ordered, and so are the holes between stored records: one walk along both is enough.
    for first, last, state in chain(fates, [(next_sequence, next_sequence, "")]):
        if state:
            fated += last - first + 1
        while hole is not None and hole[0] <= last:
            start, end = hole
            if start < first:
                _add_gap(gaps, start, min(end, first - 1, highest))
                missing += max(0, min(end, first - 1, highest) - start + 1)
            covered = min(end, last) - max(start, first) + 1
            if state and covered > 0:
                counted[state] += covered
            if end > last:
                hole = (last + 1, end)
                break
            hole = next(holes, None)
    lost = sum(counted.values())
    issued = next_sequence - 1
    return OriginAccount(
        origin=origin,
        issued=issued,
        stored=stored,
        **counted,
        outstanding=issued - stored - lost - missing,
        missing=missing,
        gaps=tuple(gaps[:MAX_LISTED_GAPS]),
        stored_after_all=fated - lost,
        conflicts=conflicts,
        with_receipt=with_receipt,
        wrong_receipts=wrong[0],
        why_wrong=wrong[1],
    )


def _holes(db: sqlite3.Connection, origin: str, highest: int, next_sequence: int) -> Iterator[tuple[int, int]]:
    """The ranges of issued sequences that are not stored, in order."""
    lowest = db.execute("SELECT min(sequence) FROM records WHERE origin = ?", (origin,)).fetchone()[0]
    if lowest is not None and lowest > 1:
        yield 1, lowest - 1
    yield from db.execute(
        "SELECT sequence + 1, following - 1 FROM (SELECT sequence, lead(sequence) OVER (ORDER BY sequence) AS following"
        " FROM records WHERE origin = ?) WHERE following > sequence + 1",
        (origin,),
    )
    if highest < next_sequence - 1:
        yield highest + 1, next_sequence - 1


def _add_gap(gaps: list[tuple[int, int]], first: int, last: int) -> None:
    if last < first:
        return
    if gaps and gaps[-1][1] == first - 1:
        gaps[-1] = (gaps[-1][0], last)
    elif len(gaps) < MAX_LISTED_GAPS:
        gaps.append((first, last))
