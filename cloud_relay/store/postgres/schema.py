"""The tables of the store in PostgreSQL, and how a database gets them.

They hold what those of SQLite hold, see :mod:`cloud_relay.store.schema`. Texts compare by their bytes, as there
(``COLLATE "C"``). What differs:

- ``records.number`` says in which order transactions began: it is the number of the transaction, and the place of the
  record in it. Relays commit in any order, but once all transactions up to one are over, nothing appears below it. So a
  stream follows numbers up to there and misses nothing, and no relay waits for another one.
- ``records.receipt`` and ``records.place`` say which receipt covers a record, and ``cell`` where it is.
- ``origins.highest`` is the highest sequence that was ever stored, and ``origins.ranges`` the number of fates.
- ``known_ranges`` has sequences that were all stored once: those without a row in ``records`` were deleted, see
  :mod:`cloud_relay.store.postgres.ranges`. ``origins`` counts both. ``receipts.records`` says how many records of a
  receipt are left, and ``store.newest_deleted`` is the highest number of a record that is gone.
- ``aggregates.filled_to`` is the number up to which records are in an aggregate, at any time, see
  :mod:`cloud_relay.store.postgres.aggregates.following`.
- ``sinks`` has how far each sink has come, and ``sink_deletions`` what retention deleted before it, see
  :mod:`cloud_relay.sinks.stores.postgres`.

Relays change rows of an origin only while they hold its lock, and take the locks of several in one order.
"""

import re
from typing import Final

from cloud_relay.store.postgres.session import SCHEMA, PostgresSession
from cloud_relay.store.postgres.sizes import SIZE
from protocols.base.errors import StorageError

NUMBER_BITS: Final = 16
"""A transaction has fewer records than this many bits can number."""
MIGRATING: Final = 0x6D6E7273
"""The lock of whoever makes or changes tables."""
MIGRATION_S: Final = 3_600.0
"""For which a relay that starts works on tables of an earlier version: a minute for some ten million records."""
NEWEST: Final = "greatest((SELECT max(number) FROM records), (SELECT newest_deleted FROM store))"
"""The number of the record that was stored last, whether it is still there or not; 0: there was none."""

VERSIONS: Final = (
    """
CREATE TABLE records (
    number bigint NOT NULL, origin text NOT NULL, sequence bigint NOT NULL, rule text NOT NULL,
    key text NOT NULL, sensing_origin text NOT NULL, reading_sequence bigint NOT NULL, value text NOT NULL,
    latitude_deg float8 NOT NULL, longitude_deg float8 NOT NULL, accuracy_m float8 NOT NULL,
    altitude_m float8, heading_deg float8,
    event_utc_ns bigint NOT NULL, uncertainty_ns bigint NOT NULL,
    sensor text NOT NULL, unit text NOT NULL, quality float8 NOT NULL, calibration text NOT NULL, lineage text NOT NULL,
    priority bigint NOT NULL, lifespan_ms bigint NOT NULL, received_utc_ns bigint NOT NULL, encoded bytea NOT NULL,
    receipt bigint, place integer, cell integer NOT NULL,
    PRIMARY KEY (origin, sequence));
CREATE UNIQUE INDEX records_by_number ON records (number);
CREATE INDEX records_in_streams ON records (key, origin, event_utc_ns, sequence);
CREATE INDEX records_in_time ON records (event_utc_ns, origin, sequence);
CREATE INDEX records_in_cells ON records (cell, event_utc_ns, origin, sequence);
CREATE TABLE streams (
    key text NOT NULL, origin text NOT NULL, rule text NOT NULL, records bigint NOT NULL,
    newest_utc_ns bigint NOT NULL, PRIMARY KEY (key, origin, rule)) WITH (fillfactor = 70);
CREATE INDEX streams_by_origin ON streams (origin);
CREATE TABLE fates (
    origin text NOT NULL, first bigint NOT NULL, last bigint NOT NULL, state text NOT NULL,
    PRIMARY KEY (origin, first));
CREATE TABLE conflicts (
    origin text NOT NULL, sequence bigint NOT NULL, times bigint NOT NULL, last_utc_ns bigint NOT NULL,
    PRIMARY KEY (origin, sequence));
CREATE TABLE origins (
    origin text NOT NULL PRIMARY KEY, next_sequence bigint NOT NULL, incarnation bigint NOT NULL,
    last_utc_ns bigint NOT NULL, highest bigint NOT NULL, ranges bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE receipts (
    number bigint NOT NULL PRIMARY KEY, origin text NOT NULL, receipt bytea NOT NULL, leaves bytea NOT NULL,
    received_utc_ns bigint NOT NULL);
CREATE TABLE certificates (
    origin text NOT NULL, id bytea NOT NULL, certificate bytea NOT NULL, PRIMARY KEY (origin, id));
CREATE TABLE wrong_receipts (
    origin text NOT NULL PRIMARY KEY, times bigint NOT NULL, last_utc_ns bigint NOT NULL, why text NOT NULL);
CREATE TABLE store (version integer NOT NULL, number_base bigint NOT NULL, made text NOT NULL);
INSERT INTO store VALUES (0, 0, gen_random_uuid()::text)
""",
    f"""
CREATE TABLE known_ranges (
    origin text NOT NULL, first bigint NOT NULL, last bigint NOT NULL, PRIMARY KEY (origin, first));
ALTER TABLE origins ADD COLUMN deleted bigint NOT NULL DEFAULT 0, ADD COLUMN known_ranges bigint NOT NULL DEFAULT 0;
ALTER TABLE store ADD COLUMN deleted bigint NOT NULL DEFAULT 0, ADD COLUMN newest_deleted bigint NOT NULL DEFAULT 0;
ALTER TABLE streams ADD COLUMN size_bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE receipts ADD COLUMN records integer NOT NULL DEFAULT 0;
UPDATE streams SET size_bytes = counted.size_bytes
    FROM (SELECT key, origin, rule, sum({SIZE}) AS size_bytes FROM records GROUP BY key, origin, rule) AS counted
    WHERE (streams.key, streams.origin, streams.rule) = (counted.key, counted.origin, counted.rule);
UPDATE receipts SET records = counted.records
    FROM (SELECT receipt, count(*) AS records FROM records WHERE receipt IS NOT NULL GROUP BY receipt) AS counted
    WHERE number = counted.receipt;
ALTER TABLE records SET (autovacuum_vacuum_scale_factor = 0.02)
""",  # noqa: S608 - constants only
    """
CREATE TABLE aggregates (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, identity text NOT NULL,
    percentiles text NOT NULL, max_groups bigint NOT NULL, dropped boolean NOT NULL DEFAULT false,
    made_utc_ns bigint NOT NULL, fill_begin bigint NOT NULL, filled_to bigint NOT NULL, fill_end bigint NOT NULL,
    floor_utc_ns bigint NOT NULL DEFAULT 0, below_floor bigint NOT NULL DEFAULT 0, beyond bigint NOT NULL DEFAULT 0,
    beyond_named text NOT NULL DEFAULT '', ahead bigint NOT NULL DEFAULT 0, let_go bigint NOT NULL DEFAULT 0)
    WITH (fillfactor = 50);
CREATE TABLE aggregate_groups (
    aggregate bigint NOT NULL, bucket_utc_ns bigint NOT NULL, key text NOT NULL, origin text NOT NULL,
    rule text NOT NULL, unit text NOT NULL, south_e7 integer NOT NULL, west_e7 integer NOT NULL,
    opened_by text NOT NULL, change bigint NOT NULL, summary bytea NOT NULL,
    PRIMARY KEY (aggregate, bucket_utc_ns, key, origin, rule, unit, south_e7, west_e7)) WITH (fillfactor = 70);
CREATE UNIQUE INDEX aggregate_groups_by_change ON aggregate_groups (aggregate, change);
CREATE INDEX aggregate_groups_by_opener ON aggregate_groups (aggregate, opened_by, bucket_utc_ns);
CREATE TABLE aggregate_changes (last bigint NOT NULL);
INSERT INTO aggregate_changes VALUES (0)
""",
    """
CREATE TABLE sinks (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, holder bigint NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0, progress bytea) WITH (fillfactor = 50);
CREATE TABLE sink_deletions (
    sink bigint NOT NULL, slot bigint NOT NULL, first bigint NOT NULL, last bigint NOT NULL, records bigint NOT NULL,
    PRIMARY KEY (sink, slot))
""",
)
"""What makes a store of each version from one of the version before. The first one makes it of nothing."""
SETTLED: Final = (
    f"((pg_snapshot_xmin(pg_current_snapshot())::text::bigint + (SELECT number_base FROM store)) << {NUMBER_BITS})"  # noqa: S608 - constants only
)
"""All numbers below this one are those of transactions that are over."""
_TEXT: Final = re.compile(r"\btext\b(?= NOT NULL)")


def prepare_store(session: PostgresSession) -> None:
    """Make or change the tables, if they are not those of this program. It waits for another relay that does so now. It
    may raise ``ERRORS``.

    :raises StorageError: the store is of a newer program.
    """
    if _version(session) == len(VERSIONS) and _is_base_valid(session):
        return
    # The lock is taken before the transaction: one that began before it would not see all that others did meanwhile.
    session.rows("SELECT pg_advisory_lock($1)", MIGRATING)
    try:
        with session.transaction(), session.waits(MIGRATION_S):
            _migrate(session)
    finally:
        if session.is_connected:  # or it is free already
            session.rows("SELECT pg_advisory_unlock($1)", MIGRATING)


def _migrate(session: PostgresSession) -> None:
    version = _version(session)
    session.execute("SET LOCAL statement_timeout = 0")  # tables of an earlier version may be large
    if version == 0:
        session.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    for number, script in enumerate(VERSIONS[version:], version + 1):
        session.execute(_TEXT.sub('text COLLATE "C"', script))
        session.execute("UPDATE store SET version = $1", number)
    if not _is_base_valid(session):
        session.execute(
            f"UPDATE store SET number_base = ({NEWEST} >> {NUMBER_BITS}) + 1"  # noqa: S608
            " - pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
        )


def check_version(session: PostgresSession) -> None:
    """Whoever connects calls this before anything else.

    :raises StorageError: the database has no store, or one of another program. The session is disconnected then, so
        that nobody takes it for one that was checked.
    """
    try:
        _check_version(session)
    except StorageError:
        session.drop()
        raise


def _check_version(session: PostgresSession) -> None:
    version = _version(session)
    if version == 0:
        raise StorageError(
            f"the database {session.place} has no store: start a relay on it once, or name the right one"
        )
    if version < len(VERSIONS):
        raise StorageError(
            f"the store {session.place} has version {version}, this program knows {len(VERSIONS)}: start a relay of "
            "this program on it once"
        )


def _version(session: PostgresSession) -> int:
    """0: there is none."""
    if session.row("SELECT to_regclass($1) IS NULL", f"{SCHEMA}.store")[0]:
        return 0
    version = int(session.row("SELECT version FROM store")[0])
    if version > len(VERSIONS):
        check_known(session, version)
    return version


def check_known(session: PostgresSession, version: int) -> None:
    """:raises StorageError: the tables are not those of this program."""
    if version != len(VERSIONS):
        raise StorageError(
            f"the store {session.place} has version {version}, this program knows {len(VERSIONS)}: start the newer "
            "program"
        )


def _is_base_valid(session: PostgresSession) -> bool:
    """Whether new numbers are larger than those that are there. They are not when transactions are counted anew,
    because the database was restored from a dump, say."""
    return bool(
        session.row(
            f"SELECT {NEWEST} >> {NUMBER_BITS} < pg_snapshot_xmax(pg_current_snapshot())::text::bigint + number_base"  # noqa: S608
            " FROM store"
        )[0]
    )
