"""The tables of packed records, and where each part of a pack is.

A *pack* holds the records of a range of numbers, in the order in which records are shown: by time of sensing, node and
sequence. It becomes part of the store when its row in ``packs`` is there, in one transaction, and from then on the rows
of ``records`` up to :func:`packed_up_to` are remains that nobody looks at. So each record is found once, whenever the
relay is killed. The row of the newest pack stays when its records were deleted: it says which numbers were given.

``pack_blocks`` holds the *blocks* of each pack: a head, seven columns of all its records, and bodies of up to 512
records each. ``pack_streams`` says how many records of which stream are in a pack, and ``pack_ranges`` which sequences
of a node: each range is one of records that were stored, of which ``deleted`` ones are gone again by retention, and
``receipted`` ones that are left came with a receipt. The range of a pack that is gone has the pack :data:`GONE`. What
these tables say of a pack without a row in ``packs`` is what is left of one that was being made.
"""

import sqlite3
from typing import Final, NamedTuple

PACKS: Final = """
CREATE TABLE IF NOT EXISTS packs (
    pack INTEGER PRIMARY KEY, content INTEGER NOT NULL, first_number INTEGER NOT NULL, last_number INTEGER NOT NULL,
    records INTEGER NOT NULL, oldest_utc_ns INTEGER NOT NULL, newest_utc_ns INTEGER NOT NULL,
    south REAL NOT NULL, west REAL NOT NULL, north REAL NOT NULL, east REAL NOT NULL, best_quality REAL NOT NULL,
    first_received_utc_ns INTEGER NOT NULL, last_received_utc_ns INTEGER NOT NULL,
    first_receipt INTEGER NOT NULL, last_receipt INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pack_blocks (place INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pack_streams (
    key TEXT NOT NULL, origin TEXT NOT NULL, rule TEXT NOT NULL, pack INTEGER NOT NULL, records INTEGER NOT NULL,
    newest_utc_ns INTEGER NOT NULL, PRIMARY KEY (key, origin, rule, pack)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pack_streams_by_pack ON pack_streams (pack);
CREATE TABLE IF NOT EXISTS pack_ranges (
    origin TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, pack INTEGER NOT NULL,
    deleted INTEGER NOT NULL, receipted INTEGER NOT NULL, PRIMARY KEY (origin, first)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pack_ranges_by_pack ON pack_ranges (pack)
"""
MAX_PACK_RECORDS: Final = 32_768
"""Records of a pack. A question reads whole columns of each pack that it looks at, 0.3 ms each."""
MAX_PACK_BYTES: Final = 64 * 1024 * 1024
"""Encoded readings of a pack. Large values fill it before records do."""
GONE: Final = 0
"""The pack of ranges whose records were all deleted by retention."""

HEAD: Final = 0
STREAM, TIME, SEQUENCE, NUMBER, LATITUDE, LONGITUDE, QUALITY = COLUMN_PARTS = range(1, 8)
FIRST_BODY: Final = 16
"""Parts of a pack: its head, its columns, and its bodies from this one on."""
PART_BITS: Final = 16
PART_NAMES: Final = ("head", "streams", "times", "sequences", "numbers", "latitudes", "longitudes", "qualities")


class PackEntry(NamedTuple):
    """A row of ``packs``. Bounds are those of all records that were ever in it; ``records`` are those left."""

    pack: int
    content: int
    """Its blocks are at ``content << PART_BITS | part``. A pack that is written again gets another one."""
    first_number: int
    last_number: int
    records: int
    oldest_utc_ns: int
    newest_utc_ns: int
    south: float
    west: float
    north: float
    east: float
    best_quality: float
    first_received_utc_ns: int
    last_received_utc_ns: int
    first_receipt: int
    """The lowest number of a receipt in it; 0: there is none."""
    last_receipt: int


def packed_up_to(db: sqlite3.Connection) -> int:
    """The highest number of a record that is or was in a pack; 0: none is. Rows up to it are remains."""
    (number,) = db.execute("SELECT last_number FROM packs ORDER BY pack DESC LIMIT 1").fetchone() or (0,)
    return int(number)


def newest_number(db: sqlite3.Connection) -> int:
    """The number of the record that was stored last; 0: there is none."""
    (newest,) = db.execute("SELECT coalesce(max(rowid), 0) FROM records").fetchone()
    return max(int(newest), packed_up_to(db))


def place_of(content: int, part: int) -> int:
    """Where a block is."""
    return content << PART_BITS | part


def part_name(part: int) -> str:
    """How a part is called in messages."""
    return PART_NAMES[part] if part < len(PART_NAMES) else f"body {part - FIRST_BODY + 1}"
