"""What the writer of the store knows of records that are in packs, so that none is stored twice."""

import sqlite3
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from typing import Final

from cloud_relay.store.contract import StorableRecord
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.packs.tables import GONE, PackEntry, packed_up_to
from cloud_relay.store.retaining import MAX_RANGES_PER_ORIGIN

MAX_PACKS_PER_BATCH: Final = 2
"""Packs that are opened for one batch, up to 15 ms each. The records of a batch that comes again are in one or two.
What is beyond is left out of the acknowledgement, and the node sends it again."""
_MAX_COUNTED_ORIGINS: Final = 4_096
"""Origins of which it is remembered whether they have all ranges that they may. Counting these takes some 60 ms on a
busy machine, once a pack."""
_NEAR: Final = (
    "SELECT first, last, pack FROM pack_ranges WHERE origin = :origin AND first <= :last AND first >="
    " coalesce((SELECT max(first) FROM pack_ranges WHERE origin = :origin AND first <= :first), 0) ORDER BY first"
    " LIMIT :most"
)
_MAX_RANGES: Final = 512
"""Twice as many ranges as one batch has records."""


class KnownAs(Enum):
    """What is known of a record that came."""

    SAME = "it is there, and came without a receipt"
    PROVEN = "it is there, and came with a receipt"
    OTHER = "another record has its sequence"
    DELETED = "it was there, and retention deleted it"
    LATER = "too many packs would have to be opened: it may come again"


class KnownRecords:
    """Belongs to the thread that writes the store. Each call is part of the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._full: OrderedDict[str, tuple[int, bool]] = OrderedDict()
        """By origin: up to which number records were packed when its ranges were counted, and whether there is no room
        for more."""

    def is_full(self, origin: str) -> bool:
        """Whether a node has so many ranges that a record may only be stored where it touches one."""
        up_to = packed_up_to(self._db)
        known = self._full.pop(origin, None)
        if known is None or known[0] != up_to:
            most = MAX_RANGES_PER_ORIGIN
            counted = "SELECT count(*) FROM (SELECT 1 FROM pack_ranges WHERE origin = ? LIMIT ?)"
            known = up_to, self._db.execute(counted, (origin, most)).fetchone()[0] >= most
        self._full[origin] = known
        if len(self._full) > _MAX_COUNTED_ORIGINS:
            self._full.popitem(last=False)
        return known[1]

    def touches(self, origin: str, sequence: int) -> bool:
        """Whether a record or one beside it is or was stored."""
        near = (origin, sequence - 1, sequence + 1)
        if self._db.execute("SELECT 1 FROM records WHERE origin = ? AND sequence BETWEEN ? AND ?", near).fetchone():
            return True
        before = "SELECT last FROM pack_ranges WHERE origin = ? AND first <= ? ORDER BY first DESC LIMIT 1"
        (last,) = self._db.execute(before, (origin, sequence + 1)).fetchone() or (-1,)
        return bool(last >= sequence - 1)

    def verdicts(self, origin: str, records: Sequence[StorableRecord]) -> dict[int, KnownAs]:
        """By sequence, of each record of a batch that is or was in a pack. The records are in order.

        :raises PackDamaged: what would have to be compared can't be read.
        """
        if not records:
            return {}
        ranges = self._ranges(origin, records[0].sequence, records[-1].sequence)
        if len(ranges) == _MAX_RANGES:  # sequences far apart: each is looked for alone
            ranges = sorted(
                {near for record in records for near in self._ranges(origin, record.sequence, record.sequence)}
            )
        if not ranges or ranges[-1][1] < records[0].sequence:
            return {}
        firsts = [first for first, _, _ in ranges]
        reader, opened = PackReader(self._db, MAX_PACKS_PER_BATCH), dict[int, PackEntry | None]()
        found: dict[int, KnownAs] = {}
        for record in records:
            _, last, pack = ranges[bisect_right(firsts, record.sequence) - 1]
            if firsts[0] <= record.sequence <= last:
                verdict = self._verdict(reader, opened, pack, origin, record)
                if verdict is not None:
                    found[record.sequence] = verdict
        return found

    def _ranges(self, origin: str, first: int, last: int) -> list[tuple[int, int, int]]:
        """The ranges that sequences from ``first`` to ``last`` can be in: first, last and pack."""
        wanted = {"origin": origin, "first": first, "last": last, "most": _MAX_RANGES}
        return self._db.execute(_NEAR, wanted).fetchall()

    def _verdict(
        self, reader: PackReader, opened: dict[int, PackEntry | None], pack: int, origin: str, record: StorableRecord
    ) -> KnownAs | None:
        if pack == GONE:
            return KnownAs.DELETED
        if pack not in opened:
            if len(opened) >= MAX_PACKS_PER_BATCH:
                return KnownAs.LATER
            row = self._db.execute("SELECT * FROM packs WHERE pack = ?", (pack,)).fetchone()
            opened[pack] = None if row is None else PackEntry._make(row)
        entry = opened[pack]
        if entry is None:
            return None  # it is being made: the rows still count
        if not entry.records:
            return KnownAs.DELETED
        content = reader.opened(entry)
        at = content.at_sequence(origin, record.sequence)
        if at is None:
            return KnownAs.DELETED
        held = content.record(at)
        if (held.rule, held.encoded) != (record.rule, record.encoded):
            return KnownAs.OTHER
        return KnownAs.PROVEN if held.receipt else KnownAs.SAME
