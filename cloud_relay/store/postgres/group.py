"""One transaction for the batches of several origins, one of each.

It takes the locks of its origins first, in the order of their numbers, which all relays share, so none waits for one
that waits for it. Each statement after that sees what other relays committed before, and nobody changes anything about
these origins until the end. So what to store is decided here, as the writer of SQLite decides it, and one COPY stores
it. The same batch decided once more, by this relay or another one, finds its records and changes nothing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import floor
from typing import Any, Final

from cloud_relay.store.contract import StorableBatch, StorableRecord
from cloud_relay.store.postgres.fates import note_fates
from cloud_relay.store.postgres.schema import NUMBER_BITS, check_known
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.sizes import record_size_bytes
from cloud_relay.store.postgres.texts import stored_text
from cloud_relay.store.retaining import MAX_RANGES_PER_ORIGIN, TOO_MANY_GAPS
from cloud_relay.store.rows import EVENT_COLUMN, KEY_COLUMN, VALUE_COLUMN
from cloud_relay.store.schema import CELLS_AROUND, CELLS_PER_DEGREE
from protocols.wire.records import Acknowledgement, Fate, RefusedRecord, RelayRefusal

Answer = Acknowledgement | RelayRefusal
ORIGIN_LOCKS: Final = 0x6D6E6F72
"""The first half of the numbers of locks; the second is a hash of the origin."""
COLUMNS: Final = (
    "number", "origin", "sequence", "rule", "key", "sensing_origin", "reading_sequence", "value", "latitude_deg",
    "longitude_deg", "accuracy_m", "altitude_m", "heading_deg", "event_utc_ns", "uncertainty_ns", "sensor", "unit",
    "quality", "calibration", "lineage", "priority", "lifespan_ms", "received_utc_ns", "encoded", "receipt", "place",
    "cell",
)  # fmt: skip
_RECEIPT_COLUMNS: Final = ("number", "origin", "receipt", "leaves", "received_utc_ns", "records")
_LOCK: Final = (
    "SELECT pg_current_xact_id()::text::bigint, version, number_base, pg_advisory_xact_lock($1, lock)"
    " FROM store, unnest($2::int[]) AS lock"
)
_ORIGINS: Final = (
    "SELECT origin, next_sequence, incarnation, highest, ranges, known_ranges FROM origins"
    " WHERE origin = ANY ($1::text[])"
)
_HELD: Final = (
    "SELECT origin, sequence, rule, encoded, receipt FROM records JOIN unnest($1::text[], $2::bigint[])"
    " AS asked (origin, sequence) USING (origin, sequence)"
)
_DELETED: Final = (
    "SELECT asked.origin, sequence FROM unnest($1::text[], $2::bigint[]) AS asked (origin, sequence) WHERE sequence <="
    " (SELECT last FROM known_ranges WHERE origin = asked.origin AND first <= sequence ORDER BY first DESC LIMIT 1)"
)
"""What was stored, of sequences without a row."""
_TOUCHING: Final = (
    "SELECT asked.origin, asked.sequence FROM unnest($1::text[], $2::bigint[]) AS asked (origin, sequence)"
    " WHERE EXISTS (SELECT FROM records WHERE origin = asked.origin"
    " AND sequence BETWEEN asked.sequence - 1 AND asked.sequence + 1) OR asked.sequence - 1 <="
    " (SELECT last FROM known_ranges WHERE origin = asked.origin AND first <= asked.sequence + 1"
    " ORDER BY first DESC LIMIT 1)"
)
"""What is or was stored, or is beside such a record."""
_NOTE_ORIGINS: Final = (
    "INSERT INTO origins (origin, next_sequence, incarnation, last_utc_ns, highest, ranges)"
    " SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])"
    " ON CONFLICT (origin) DO UPDATE SET next_sequence = excluded.next_sequence,"
    " incarnation = excluded.incarnation, last_utc_ns = excluded.last_utc_ns, highest = excluded.highest,"
    " ranges = excluded.ranges"
)
_NOTE_STREAMS: Final = (
    "INSERT INTO streams SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[],"
    " $6::bigint[]) ON CONFLICT (key, origin, rule) DO UPDATE SET records = streams.records + excluded.records,"
    " newest_utc_ns = greatest(streams.newest_utc_ns, excluded.newest_utc_ns),"
    " size_bytes = streams.size_bytes + excluded.size_bytes"
)
_NOTE_CONFLICTS: Final = (
    "INSERT INTO conflicts SELECT origin, sequence, 1, $3 FROM unnest($1::text[], $2::bigint[]) AS told (origin,"
    " sequence) ON CONFLICT (origin, sequence) DO UPDATE SET times = conflicts.times + 1,"
    " last_utc_ns = excluded.last_utc_ns"
)
_NOTE_WRONG: Final = (
    "INSERT INTO wrong_receipts VALUES ($1, 1, $2, $3) ON CONFLICT (origin) DO UPDATE SET"
    " times = wrong_receipts.times + 1, last_utc_ns = excluded.last_utc_ns, why = excluded.why"
)
_COVER: Final = (
    "UPDATE records SET receipt = told.receipt, place = told.place FROM unnest($1::text[], $2::bigint[], $3::bigint[],"
    " $4::int[]) AS told (origin, sequence, receipt, place) WHERE records.origin = told.origin"
    " AND records.sequence = told.sequence"
)


@dataclass(slots=True)
class StoredTally:
    """What one transaction did."""

    stored: int = 0
    repeated: int = 0
    conflicts: int = 0
    fates_beyond_bounds: int = 0


@dataclass(slots=True)
class _Origin:
    """A row of ``origins``."""

    next_sequence: int
    incarnation: int
    highest: int
    ranges: int
    known_ranges: int


@dataclass(slots=True)
class _Gathered:
    """What is written at the end, each by one statement."""

    records: list[tuple[Any, ...]] = field(default_factory=list)
    streams: dict[tuple[str, str, str], tuple[int, int, int]] = field(default_factory=dict)
    """Records, time of the newest, and bytes by key, origin and rule."""
    conflicts: list[tuple[str, int]] = field(default_factory=list)
    receipts: list[tuple[Any, ...]] = field(default_factory=list)
    certificates: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    covered: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Records that were there and now have a receipt: origin, sequence, receipt, place."""
    origins: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)


def commit_group(
    session: PostgresSession, batches: Sequence[StorableBatch], now_utc_ns: int
) -> tuple[list[Answer], StoredTally]:
    """Take batches of different origins. It returns when they are on disk. Nothing happened if it raises one of the
    errors of a session, unless the connection was lost in the commit: then everything or nothing did.

    :raises StorageError: a newer program has changed the tables meanwhile.
    """
    with session.transaction():
        group = _Group(session, now_utc_ns)
        return group.take(batches), group.tally


def origin_lock(origin: str) -> int:
    """The number of an origin's lock. Two origins may share one; then they wait for each other."""
    return int.from_bytes(hashlib.sha256(origin.encode()).digest()[:4], "big", signed=True)


def cell_of(latitude_deg: float, longitude_deg: float) -> int:
    """See :data:`cloud_relay.store.schema.CELL`."""
    row, column = (latitude_deg + 90.0) * CELLS_PER_DEGREE, (longitude_deg + 180.0) * CELLS_PER_DEGREE
    return floor(row) * CELLS_AROUND + floor(column)


class _Group:
    """Lives for one transaction."""

    def __init__(self, session: PostgresSession, now_utc_ns: int) -> None:
        self._session, self._now = session, now_utc_ns
        self._gathered = _Gathered()
        self._known: dict[str, _Origin] = {}
        self._held: dict[tuple[str, int], tuple[str, bytes, int | None]] = {}
        self._deleted: set[tuple[str, int]] = set()
        self._touching: set[tuple[str, int]] = set()
        """Of origins with as many ranges as one may have: what may be stored nevertheless."""
        self._number = 0
        self.tally = StoredTally()

    def take(self, batches: Sequence[StorableBatch]) -> list[Answer]:
        origins = [batch.origin for batch in batches]
        assert len(set(origins)) == len(origins), "a group has one batch of each origin"
        locks = sorted({origin_lock(origin) for origin in origins})
        taken = self._session.rows(_LOCK, ORIGIN_LOCKS, locks)  # all rows, or it takes the first lock only
        transaction, version, base, _ = taken[0]
        check_known(self._session, version)
        self._number = (transaction + base) << NUMBER_BITS
        for origin, *of in self._session.rows(_ORIGINS, origins):
            self._known[origin] = _Origin(*of)
        self._look_up(batches)
        answers = [self._take(batch) for batch in batches]
        self._write()
        return answers

    def _look_up(self, batches: Sequence[StorableBatch]) -> None:
        """Find which records of the batches are there. None is above the highest one of its origin."""
        asked = [
            (batch.origin, record.sequence)
            for batch in batches
            if (known := self._known.get(batch.origin)) is not None
            for record in batch.records
            if record.sequence <= known.highest
        ]
        if asked:
            for origin, sequence, *of in self._session.rows(_HELD, *_columns(asked)):
                self._held[origin, sequence] = of[0], of[1], of[2]
        if perhaps := [name for name in asked if name not in self._held and self._known[name[0]].known_ranges]:
            self._deleted.update(map(tuple, self._session.rows(_DELETED, *_columns(perhaps))))
        full = {origin for origin, known in self._known.items() if known.known_ranges >= MAX_RANGES_PER_ORIGIN}
        of_full = [(batch.origin, one.sequence) for batch in batches if batch.origin in full for one in batch.records]
        if of_full:
            self._touching.update(map(tuple, self._session.rows(_TOUCHING, *_columns(of_full))))

    def _take(self, batch: StorableBatch) -> Answer:
        if batch.wrong_receipt:
            why = stored_text(batch.wrong_receipt)
            self._session.execute(_NOTE_WRONG, batch.origin, self._now, why)
            return RelayRefusal("receipt", batch.wrong_receipt)
        following, incarnation = batch.next_sequence, batch.incarnation
        known = self._known.get(batch.origin)
        if known is not None and following < known.next_sequence:
            if not batch.carried or batch.is_empty or self._contradicts(batch):  # an empty one asks where to begin
                return RelayRefusal("sequence", str(known.next_sequence))
            following, incarnation = known.next_sequence, max(incarnation, known.incarnation)
        stored, refused, unsuitable = self._sorted_out(batch)
        highest, ranges = (0, 0) if known is None else (known.highest, known.ranges)
        if unsuitable or batch.fates:
            never = (Fate(record.sequence, record.sequence, "refused") for record in unsuitable)
            ranges, beyond = note_fates(self._session, batch.origin, [*chain(never, batch.fates)], ranges)
            self.tally.fates_beyond_bounds += beyond
        highest = max((highest, *stored))
        self._gathered.origins.append((batch.origin, following, incarnation, self._now, highest, ranges))
        return Acknowledgement(tuple(stored), tuple(refused))

    def _contradicts(self, batch: StorableBatch) -> bool:
        """See :meth:`cloud_relay.store.sqlite.Store._contradicts`."""
        return any(
            (held := self._held.get((batch.origin, record.sequence))) is not None and not _is_same(held, record)
            for record in batch.records
        )

    def _sorted_out(self, batch: StorableBatch) -> tuple[list[int], list[RefusedRecord], list[RefusedRecord]]:
        """The sequences that are stored at the end, the records that are refused, and those of them that will never
        come. Gathers what is new."""
        origin, stored = batch.origin, list[int]()
        refused, unsuitable = list(batch.refused), list(batch.refused)
        known, fresh = self._known.get(origin), list[StorableRecord]()
        is_full = known is not None and known.known_ranges >= MAX_RANGES_PER_ORIGIN
        uncovered: list[int] = []
        for record in batch.records:
            held = self._held.get((origin, record.sequence))
            if (origin, record.sequence) in self._deleted:
                self.tally.repeated += 1
            elif held is None and is_full and not self._touches(origin, record.sequence, stored):
                unsuitable.append(RefusedRecord(record.sequence, TOO_MANY_GAPS))
                refused.append(unsuitable[-1])
                continue
            elif held is None:
                fresh.append(record)
                self.tally.stored += 1
            elif _is_same(held, record):
                self.tally.repeated += 1
                if held[2] is None:
                    uncovered.append(record.sequence)
            else:
                self.tally.conflicts += 1
                self._gathered.conflicts.append((origin, record.sequence))
                refused.append(RefusedRecord(record.sequence, "conflict: another record has this sequence"))
                continue
            stored.append(record.sequence)
        covers = batch.receipt is not None and bool(fresh or uncovered)
        number = self._keep_receipt(batch, len(fresh) + len(uncovered)) if covers else None
        places = {} if batch.receipt is None else batch.receipt.places
        for sequence in uncovered if number is not None else ():
            self._gathered.covered.append((origin, sequence, number or 0, places[sequence]))
        for record in fresh:
            self._gather(origin, record, number, None if number is None else places[record.sequence])
        return stored, refused, unsuitable

    def _touches(self, origin: str, sequence: int, stored: Sequence[int]) -> bool:
        """Whether a record or one beside it is or was stored."""
        return (origin, sequence) in self._touching or (bool(stored) and stored[-1] == sequence - 1)

    def _keep_receipt(self, batch: StorableBatch, records: int) -> int:
        receipt = batch.receipt
        assert receipt is not None
        number = self._next_number()
        self._gathered.receipts.append((number, batch.origin, receipt.receipt, receipt.leaves, self._now, records))
        self._gathered.certificates.append((batch.origin, receipt.certificate_id, receipt.certificate))
        return number

    def _gather(self, origin: str, record: StorableRecord, receipt: int | None, place: int | None) -> None:
        row, rule = record.row, stored_text(record.rule)
        key, sensing, reading, value, latitude, longitude, accuracy, altitude, heading, event, *rest = row
        uncertainty, sensor, unit, quality, calibration, lineage, priority, lifespan = rest
        self._gathered.records.append((
            self._next_number(), origin, record.sequence, rule, key, sensing, reading, value, latitude, longitude,
            accuracy, altitude, heading, event, uncertainty, stored_text(sensor), stored_text(unit), quality,
            stored_text(calibration), lineage, priority, lifespan, self._now, record.encoded, receipt, place,
            cell_of(latitude, longitude),
        ))  # fmt: skip
        stream = (row[KEY_COLUMN], origin, rule)
        count, newest_utc_ns, size_bytes = self._gathered.streams.get(stream, (0, 0, 0))
        size_bytes += record_size_bytes(record.encoded, row[VALUE_COLUMN], row[KEY_COLUMN])
        self._gathered.streams[stream] = count + 1, max(newest_utc_ns, row[EVENT_COLUMN]), size_bytes

    def _next_number(self) -> int:
        self._number += 1
        assert self._number & ((1 << NUMBER_BITS) - 1), "a group is smaller than what the bits can number"
        return self._number

    def _write(self) -> None:
        gathered, session = self._gathered, self._session
        if gathered.records:
            session.copy("records", COLUMNS, gathered.records)
        if gathered.origins:
            session.execute(_NOTE_ORIGINS, *_columns(gathered.origins))
        if gathered.streams:
            session.execute(_NOTE_STREAMS, *_columns([(*name, *of) for name, of in gathered.streams.items()]))
        if gathered.receipts:
            session.copy("receipts", _RECEIPT_COLUMNS, gathered.receipts)
            session.execute(
                "INSERT INTO certificates SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[])"
                " ON CONFLICT DO NOTHING", *_columns(gathered.certificates),
            )  # fmt: skip
        if gathered.covered:
            session.execute(_COVER, *_columns(gathered.covered))
        if gathered.conflicts:
            session.execute(_NOTE_CONFLICTS, *_columns(gathered.conflicts), self._now)


def _is_same(held: tuple[str, bytes, int | None], record: StorableRecord) -> bool:
    return held[0] == stored_text(record.rule) and held[1] == record.encoded


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
