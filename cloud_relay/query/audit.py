"""The audit: does the account of every origin add up?

Nodes send records in the order of their sequence and never before the fates of those that are missing before them. So
each sequence below the highest stored one must be stored or have a fate, and a hole is a loss. Sequences above it that
were issued are outstanding: their records wait at the node, or ended there and the node has not told yet.

Two things let records overtake older ones, which count as missing until they come: urgent records of a node that holds
back the others, and batches that neighbours carry.

When an acknowledgement was lost, a record may be stored although its node gave it up. It counts as stored.

A record that retention deleted was stored once, and counts as deleted: that is no loss.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from cloud_relay.store.packs.tables import packed_up_to

MAX_LISTED_GAPS = 100
"""How many holes are listed for an origin. All are counted."""


@dataclass(frozen=True, slots=True)
class OriginAccount:
    """The account of one origin. It holds that
    ``issued == stored + deleted + expired + evicted + refused + missing + outstanding``."""

    origin: str
    issued: int
    stored: int
    deleted: int
    """Records that were stored and that retention deleted."""
    expired: int
    evicted: int
    refused: int
    outstanding: int
    """Records that the node has issued and not yet accounted for."""
    missing: int
    """Lost records: they are below the highest stored sequence, were never stored, and have no fate."""
    gaps: tuple[tuple[int, int], ...]
    """First and last sequence of each range of missing records, at most ``MAX_LISTED_GAPS`` ranges."""
    stored_after_all: int
    """Records that were stored although the node gave them up. They are counted in ``stored`` or ``deleted``."""
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


@dataclass(frozen=True, slots=True)
class OriginFacts:
    """What a store holds of one origin."""

    origin: str
    next_sequence: int
    stored: int
    lowest: int | None
    """The lowest stored sequence; None: nothing is stored."""
    highest: int
    """The highest one, or 0."""
    conflicts: int
    with_receipt: int
    wrong_receipts: int
    why_wrong: str
    fates: Iterable[tuple[int, int, str]]
    """First, last and state of disjoint ranges, in order."""
    between: Iterable[tuple[int, int]]
    """The ranges of sequences between those that were ever stored, in order."""
    deleted: int = 0
    """Records that retention deleted. ``stored`` is without them, ``lowest`` and ``highest`` are with them."""


def _account(db: sqlite3.Connection, origin: str, next_sequence: int) -> OriginAccount:
    stored, deleted, highest, with_receipt = _counts(db, origin)
    conflicts = db.execute("SELECT count(*) FROM conflicts WHERE origin = ?", (origin,)).fetchone()[0]
    wrong = db.execute("SELECT times, why FROM wrong_receipts WHERE origin = ?", (origin,)).fetchone() or (0, "")
    fates = db.execute("SELECT first, last, state FROM fates WHERE origin = ? ORDER BY first", (origin,))
    taken = (
        "SELECT sequence AS first, sequence AS last FROM records WHERE origin = ? AND rowid > ?"  # noqa: S608 - our text
        f" UNION ALL SELECT first, last FROM ({_RANGES})"
    )
    values = (origin, packed_up_to(db), origin)
    (lowest,) = db.execute(f"SELECT min(first) FROM ({taken})", values).fetchone()  # noqa: S608 - our text
    between = db.execute(
        "SELECT last + 1, following - 1 FROM (SELECT last, lead(first) OVER (ORDER BY first) AS following"  # noqa: S608 - our text
        f" FROM ({taken})) WHERE following > last + 1",
        values,
    )
    times, why = wrong
    return reckoned(
        OriginFacts(
            origin, next_sequence, stored, lowest, highest, conflicts, with_receipt, times, why, fates, between, deleted
        )
    )


def reckoned(facts: OriginFacts) -> OriginAccount:
    """The account that follows from what a store holds. Each iterable is gone through once, side by side."""
    next_sequence, highest = facts.next_sequence, facts.highest
    counted = {"expired": 0, "evicted": 0, "refused": 0}
    fated = 0
    holes = _holes(facts)
    hole = next(holes, None)
    missing = 0
    gaps: list[tuple[int, int]] = []
    # Fates are disjoint and ordered, and so are the holes between stored records: one walk along both is enough.
    for first, last, state in chain(facts.fates, [(next_sequence, next_sequence, "")]):
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
        origin=facts.origin,
        issued=issued,
        stored=facts.stored,
        deleted=facts.deleted,
        **counted,
        outstanding=issued - facts.stored - facts.deleted - lost - missing,
        missing=missing,
        gaps=tuple(gaps[:MAX_LISTED_GAPS]),
        stored_after_all=fated - lost,
        conflicts=facts.conflicts,
        with_receipt=facts.with_receipt,
        wrong_receipts=facts.wrong_receipts,
        why_wrong=facts.why_wrong,
    )


def _counts(db: sqlite3.Connection, origin: str) -> tuple[int, int, int, int]:
    """Records that are stored, records that were deleted, the highest sequence of both, and those with a receipt."""
    up_to = packed_up_to(db)
    rows, highest_row = db.execute(
        "SELECT count(*), coalesce(max(sequence), 0) FROM records WHERE origin = ? AND rowid > ?", (origin, up_to)
    ).fetchone()
    packed, deleted, highest, receipted = db.execute(
        "SELECT coalesce(sum(last - first + 1 - deleted), 0), coalesce(sum(deleted), 0), coalesce(max(last), 0),"  # noqa: S608 - our text
        f" coalesce(sum(receipted), 0) FROM ({_RANGES})",
        (origin,),
    ).fetchone()
    (beside,) = db.execute(  # of rows, and of packed records whose receipt came later
        "SELECT count(*) FROM receipted LEFT JOIN records USING (origin, sequence)"
        " WHERE receipted.origin = ? AND (records.rowid > ? OR records.rowid IS NULL AND sequence <= (SELECT last"
        " FROM pack_ranges WHERE pack_ranges.origin = receipted.origin AND first <= sequence ORDER BY first DESC"
        " LIMIT 1))",
        (origin, up_to),
    ).fetchone()
    return rows + packed, deleted, max(highest_row, highest), receipted + beside


_RANGES: Final = (
    "SELECT first, last, CASE WHEN records > 0 THEN deleted ELSE last - first + 1 END AS deleted,"
    " CASE WHEN records > 0 THEN receipted ELSE 0 END AS receipted FROM pack_ranges LEFT JOIN packs USING (pack)"
    " WHERE origin = ? AND pack <= (SELECT coalesce(max(pack), 0) FROM packs)"
)
"""Ranges of sequences in packs, and of those that were deleted. A pack that is being made does not count yet; one
without records was deleted."""


def _holes(facts: OriginFacts) -> Iterator[tuple[int, int]]:
    """The ranges of issued sequences that were never stored, in order."""
    if facts.lowest is not None and facts.lowest > 1:
        yield 1, facts.lowest - 1
    yield from facts.between
    if facts.highest < facts.next_sequence - 1:
        yield facts.highest + 1, facts.next_sequence - 1


def _add_gap(gaps: list[tuple[int, int]], first: int, last: int) -> None:
    if last < first:
        return
    if gaps and gaps[-1][1] == first - 1:
        gaps[-1] = (gaps[-1][0], last)
    elif len(gaps) < MAX_LISTED_GAPS:
        gaps.append((first, last))
